"""Optimizers for JAX as chains of elementary update rules.

An optimizer is a chain of rules, and nothing else::

    adam = chain(momentum(0.9), rms(0.999), debias(), precondition(), scale_by_learning_rate(1e-3))

Chains and rules are optax transformations. See ``gradtx.rules`` and ``gradtx.optimizers``.
"""

from gradtx import dialects, native
from gradtx._chain import Chain, chain, seal, step, where
from gradtx._core.contract import Arrays, Named, Tick
from gradtx._core.hyperparams import hyperparams, set_hyperparams
from gradtx._core.mesh import replicated
from gradtx._core.selectors import path
from gradtx._core.signal import Signal, Weights
from gradtx._core.state import ChainState, PackedState
from gradtx._engine.backends import executor, set_executor
from gradtx._inspect.describe import describe
from gradtx._inspect.diagnose import Diagnosis, Finding, diagnose
from gradtx._inspect.lookahead import evaluation_point, gradient_point, lookahead_iterate, lookahead_point
from gradtx._inspect.monitor import MonitorState, metrics, monitor
from gradtx._inspect.sharpness import ascent_point
from gradtx._states.checkpoint import load_state_dict, state_dict
from gradtx._states.migrate import MigrationReport, migrate
from gradtx._states.ports import from_optax, from_torch
from gradtx._sweep.sweep import sweep
from gradtx._sweep.table import SweepTable
from gradtx._wrappers.accumulate import AccumulateState, accumulate
from gradtx._wrappers.loss_scale import LossScaleState, current_loss_scale, loss_scale
from gradtx._wrappers.packed import pack_state, packed, unpack_state
from gradtx._wrappers.partition import PartitionState, partition
from gradtx._wrappers.skip_nonfinite import SkipNonfiniteState, skip_nonfinite
from gradtx._wrappers.swats import SwatsState, swats
from gradtx._wrappers.switch import SwitchState, switch
from gradtx.activations import maxout, relu
from gradtx.optimizers import *
from gradtx.rules import *
from gradtx.rules.base import Hyper, Rule, hyper

__version__ = "0.1.0"

__all__ = [
    "AccumulateState",
    "Arrays",
    "Chain",
    "ChainState",
    "Diagnosis",
    "Finding",
    "Hyper",
    "LossScaleState",
    "MigrationReport",
    "MonitorState",
    "Named",
    "PackedState",
    "PartitionState",
    "Rule",
    "Signal",
    "SkipNonfiniteState",
    "SwatsState",
    "SweepTable",
    "SwitchState",
    "Tick",
    "Weights",
    "accumulate",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adagrad_sum",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "adaptive_clip",
    "add_cautious_decay",
    "add_decayed_weights",
    "add_difference",
    "add_momentum",
    "add_noise",
    "ademamix",
    "adopt",
    "amsgrad",
    "arctan",
    "article_adam",
    "article_max_v",
    "ascent_point",
    "asgd",
    "average_iterates",
    "belief_rms",
    "cautious",
    "cautious_adamw",
    "centered_rms",
    "centralize",
    "chain",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_rms",
    "clip_by_value",
    "current_loss_scale",
    "damped_trace",
    "debias",
    "decay_weights",
    "describe",
    "diagnose",
    "dialects",
    "dog",
    "dual_averaging",
    "evaluation_point",
    "executor",
    "extrapolate",
    "freeze",
    "from_optax",
    "from_torch",
    "fromage",
    "ftrl_proximal",
    "gradient_point",
    "hyper",
    "hyperparams",
    "in_units_of_distance",
    "infinity",
    "lag_v",
    "lamb",
    "laprop",
    "lars",
    "lion",
    "load_state_dict",
    "lookahead",
    "lookahead_iterate",
    "lookahead_point",
    "loss_scale",
    "madgrad",
    "mars",
    "max_v",
    "maxout",
    "metrics",
    "migrate",
    "momentum",
    "momentum_sgd",
    "monitor",
    "monotone_rms",
    "muon",
    "nadam",
    "nadamw",
    "nag",
    "nag_lookahead",
    "native",
    "nesterov",
    "novograd",
    "orthogonalize",
    "pack_state",
    "packed",
    "partition",
    "path",
    "precondition",
    "prodigy",
    "qhadam",
    "qhm",
    "quasi_hyperbolic",
    "radam",
    "rectified_precondition",
    "relu",
    "replicated",
    "resilient_step",
    "rms",
    "rmsprop",
    "rprop",
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
    "schedule_free_adamw",
    "schedule_free_sgd",
    "seal",
    "set_executor",
    "set_hyperparams",
    "sgd",
    "shampoo",
    "sign",
    "signum",
    "skip_first",
    "skip_nonfinite",
    "sm3",
    "soap",
    "state_dict",
    "step",
    "swats",
    "sweep",
    "switch",
    "trace",
    "two_point_lookahead",
    "unpack_state",
    "where",
    "yogi",
    "yogi_rms",
]
