"""Optimizers as recipes: each is a chain of elementary rules, and nothing else.

Every recipe takes the learning rate as a number, a scalar array or a schedule (the first step sees it at count 0),
as it takes every other hyperparameter. Defaults are those of the original paper where it names any, else those of
optax. What each rule does, its state and its source stand with the rule, in ``gradtx.rules``.
"""

from gradtx._core.exports import exports as _exports
from gradtx.optimizers.adaptive import *
from gradtx.optimizers.averaged import *
from gradtx.optimizers.classics import *
from gradtx.optimizers.distances import *
from gradtx.optimizers.kronecker import *
from gradtx.optimizers.layerwise import *
from gradtx.optimizers.leaders import *
from gradtx.optimizers.losses import *
from gradtx.optimizers.matrices import *
from gradtx.optimizers.signs import *

MYPY = False  # but True to mypy. It and pyright go by the imports, and read no list that is put together.
if not MYPY:
    __all__: list[str] = _exports(vars())  # pyright: ignore[reportUnsupportedDunderAll] - as above
