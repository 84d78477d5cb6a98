"""The elementary rules. Each is what happens to one array, and once per step to its scalars.

In every rule g, u and v are the lanes of the signal (gradient, direction, second moment); m, b and s are state.
Shapes are those of the leaf; arithmetic is in float32 or wider.
"""

from gradtx.rules import (
    averaging,
    clipping,
    covers,
    distances,
    factored,
    first_moments,
    kronecker,
    layerwise,
    leaders,
    lookaheads,
    matrices,
    mixing,
    quotient,
    resilient,
    scaling,
    second_moments,
    units,
    values,
)
from gradtx.rules.averaging import *
from gradtx.rules.clipping import *
from gradtx.rules.covers import *
from gradtx.rules.distances import *
from gradtx.rules.factored import *
from gradtx.rules.first_moments import *
from gradtx.rules.kronecker import *
from gradtx.rules.layerwise import *
from gradtx.rules.leaders import *
from gradtx.rules.lookaheads import *
from gradtx.rules.matrices import *
from gradtx.rules.mixing import *
from gradtx.rules.quotient import *
from gradtx.rules.resilient import *
from gradtx.rules.scaling import *
from gradtx.rules.second_moments import *
from gradtx.rules.units import *
from gradtx.rules.values import *

MYPY = False  # but True to mypy, which reads no list that is put together: what a star brings is public to it
if not MYPY:
    __all__: list[str] = []
    __all__ += averaging.__all__
    __all__ += clipping.__all__
    __all__ += covers.__all__
    __all__ += distances.__all__
    __all__ += factored.__all__
    __all__ += first_moments.__all__
    __all__ += kronecker.__all__
    __all__ += layerwise.__all__
    __all__ += leaders.__all__
    __all__ += lookaheads.__all__
    __all__ += matrices.__all__
    __all__ += mixing.__all__
    __all__ += quotient.__all__
    __all__ += resilient.__all__
    __all__ += scaling.__all__
    __all__ += second_moments.__all__
    __all__ += units.__all__
    __all__ += values.__all__
