"""The elementary rules. Each is what happens to one array, and once per step to its scalars.

In every rule g, u and v are the lanes of the signal (gradient, direction, second moment); m, b and s are state.
Shapes are those of the leaf; arithmetic is in float32 or wider.
"""

from gradtx.rules.averaging import average_iterates, lookahead
from gradtx.rules.clipping import clip_by_global_norm, clip_by_norm, clip_by_value
from gradtx.rules.covers import scale_by_sm3
from gradtx.rules.distances import in_units_of_distance, scale_by_distance, scale_by_gradient_norm
from gradtx.rules.factored import scale_by_factored_rms
from gradtx.rules.first_moments import damped_trace, momentum, nesterov, trace
from gradtx.rules.kronecker import scale_by_eigenbasis_rms, scale_by_kronecker_root
from gradtx.rules.layerwise import cautious, clip_by_rms, scale_by_parameter_rms, scale_by_trust_ratio
from gradtx.rules.leaders import dual_averaging, ftrl_proximal, running_sum
from gradtx.rules.lookaheads import nag_lookahead, two_point_lookahead
from gradtx.rules.matrices import orthogonalize, scale_by_shape
from gradtx.rules.mixing import add_difference, add_momentum, extrapolate, quasi_hyperbolic
from gradtx.rules.quotient import debias, precondition, rectified_precondition, scale_by_update_rms
from gradtx.rules.resilient import resilient_step
from gradtx.rules.scaling import (
    add_cautious_decay,
    add_decayed_weights,
    arctan,
    decay_weights,
    freeze,
    scale,
    scale_by_inverse_time,
    scale_by_learning_rate,
    sign,
    skip_first,
)
from gradtx.rules.second_moments import (
    adagrad_sum,
    belief_rms,
    centered_rms,
    infinity,
    lag_v,
    max_v,
    monotone_rms,
    rms,
    yogi_rms,
)
from gradtx.rules.units import adaptive_clip, centralize
from gradtx.rules.values import add_noise, scale_by_polyak

__all__ = [
    "adagrad_sum",
    "adaptive_clip",
    "add_cautious_decay",
    "add_decayed_weights",
    "add_difference",
    "add_momentum",
    "add_noise",
    "arctan",
    "average_iterates",
    "belief_rms",
    "cautious",
    "centered_rms",
    "centralize",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_rms",
    "clip_by_value",
    "damped_trace",
    "debias",
    "decay_weights",
    "dual_averaging",
    "extrapolate",
    "freeze",
    "ftrl_proximal",
    "in_units_of_distance",
    "infinity",
    "lag_v",
    "lookahead",
    "max_v",
    "momentum",
    "monotone_rms",
    "nag_lookahead",
    "nesterov",
    "orthogonalize",
    "precondition",
    "quasi_hyperbolic",
    "rectified_precondition",
    "resilient_step",
    "rms",
    "running_sum",
    "scale",
    "scale_by_distance",
    "scale_by_eigenbasis_rms",
    "scale_by_factored_rms",
    "scale_by_gradient_norm",
    "scale_by_inverse_time",
    "scale_by_kronecker_root",
    "scale_by_learning_rate",
    "scale_by_parameter_rms",
    "scale_by_polyak",
    "scale_by_shape",
    "scale_by_sm3",
    "scale_by_trust_ratio",
    "scale_by_update_rms",
    "sign",
    "skip_first",
    "trace",
    "two_point_lookahead",
    "yogi_rms",
]
