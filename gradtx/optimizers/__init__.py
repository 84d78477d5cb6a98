"""Optimizers as recipes: each is a chain of elementary rules, and nothing else.

Every recipe takes the learning rate as a number, a scalar array or a schedule (the first step sees it at count 0),
as it takes every other hyperparameter. Defaults are those of the original paper where it names any, else those of
optax. What each rule does, its state and its source stand with the rule, in ``gradtx.rules``.
"""

from gradtx.optimizers import adaptive, averaged, classics, distances, kronecker, layerwise, leaders, matrices, signs
from gradtx.optimizers.adaptive import *
from gradtx.optimizers.averaged import *
from gradtx.optimizers.classics import *
from gradtx.optimizers.distances import *
from gradtx.optimizers.kronecker import *
from gradtx.optimizers.layerwise import *
from gradtx.optimizers.leaders import *
from gradtx.optimizers.matrices import *
from gradtx.optimizers.signs import *

MYPY = False  # but True to mypy, which reads no list that is put together: what a star brings is public to it
if not MYPY:
    __all__: list[str] = []
    __all__ += adaptive.__all__
    __all__ += averaged.__all__
    __all__ += classics.__all__
    __all__ += distances.__all__
    __all__ += kronecker.__all__
    __all__ += layerwise.__all__
    __all__ += leaders.__all__
    __all__ += matrices.__all__
    __all__ += signs.__all__
