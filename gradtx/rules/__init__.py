"""The elementary rules. Each is what happens to one array, and once per step to its scalars.

In every rule g, u and v are the lanes of the signal (gradient, direction, second moment); m, b and s are state.
Shapes are those of the leaf; arithmetic is in float32 or wider.
"""

from gradtx.rules.clipping import clip_by_global_norm, clip_by_norm, clip_by_value
from gradtx.rules.first_moments import damped_trace, momentum, nesterov, trace
from gradtx.rules.lookahead import nag_lookahead, two_point_lookahead
from gradtx.rules.quotient import debias, precondition
from gradtx.rules.scaling import (
    add_decayed_weights,
    decay_weights,
    freeze,
    scale,
    scale_by_inverse_time,
    scale_by_learning_rate,
    sign,
)
from gradtx.rules.second_moments import adagrad_sum, centered_rms, max_v, monotone_rms, rms

__all__ = [
    "adagrad_sum",
    "add_decayed_weights",
    "centered_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "damped_trace",
    "debias",
    "decay_weights",
    "freeze",
    "max_v",
    "momentum",
    "monotone_rms",
    "nag_lookahead",
    "nesterov",
    "precondition",
    "rms",
    "scale",
    "scale_by_inverse_time",
    "scale_by_learning_rate",
    "sign",
    "trace",
    "two_point_lookahead",
]
