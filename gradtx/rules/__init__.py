"""The elementary rules. Each is what happens to one array, and once per step to its scalars.

In every rule g, u and v are the lanes of the signal (gradient, direction, second moment); m, b and s are state.
Shapes are those of the leaf; arithmetic is in float32 or wider.
"""

from gradtx._core.exports import exports as _exports
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

MYPY = False  # but True to mypy. It and pyright go by the imports, and read no list that is put together.
if not MYPY:
    __all__: list[str] = _exports(vars())  # pyright: ignore[reportUnsupportedDunderAll] - as above
