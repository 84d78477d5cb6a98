"""Optimizers for JAX as chains of elementary update rules.

An optimizer is a chain of rules, and nothing else::

    adam = chain(momentum(0.9), rms(0.999), debias(), precondition(), scale_by_learning_rate(1e-3))

Chains and rules are optax transformations. See ``gradtx.rules`` and ``gradtx.optimizers``.
"""

from gradtx import dialects, native
from gradtx._chain import Chain, chain, seal, step, where
from gradtx._checkpoint import load_state_dict, state_dict
from gradtx._describe import describe
from gradtx._executors import executor, set_executor
from gradtx._guards import (
    AccumulateState,
    LossScaleState,
    SkipNonfiniteState,
    accumulate,
    current_loss_scale,
    loss_scale,
    skip_nonfinite,
)
from gradtx._hyperparams import hyperparams, set_hyperparams
from gradtx._lookahead import lookahead_iterate, lookahead_point
from gradtx._maths import Arrays, Named, Tick
from gradtx._migrate import MigrationReport, from_optax, from_torch, migrate
from gradtx._monitor import Diagnosis, Finding, MonitorState, diagnose, metrics, monitor
from gradtx._packed import pack_state, packed, unpack_state
from gradtx._partition import PartitionState, partition
from gradtx._rule import Hyper, Rule, hyper
from gradtx._select import path
from gradtx._signal import Signal, Weights
from gradtx._state import ChainState, PackedState
from gradtx._sweep import sweep
from gradtx._sweep_table import SweepTable
from gradtx._switch import SwatsState, SwitchState, swats, switch
from gradtx.activations import maxout, relu
from gradtx.optimizers import (
    adagrad,
    adam,
    adamw,
    amsgrad,
    article_adam,
    article_max_v,
    momentum_sgd,
    nadam,
    nadamw,
    nag,
    rmsprop,
    sgd,
)
from gradtx.rules import (
    adagrad_sum,
    add_decayed_weights,
    centered_rms,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    damped_trace,
    debias,
    decay_weights,
    freeze,
    max_v,
    momentum,
    monotone_rms,
    nag_lookahead,
    nesterov,
    precondition,
    rms,
    scale,
    scale_by_inverse_time,
    scale_by_learning_rate,
    sign,
    trace,
    two_point_lookahead,
)

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
    "adagrad",
    "adagrad_sum",
    "adam",
    "adamw",
    "add_decayed_weights",
    "amsgrad",
    "article_adam",
    "article_max_v",
    "centered_rms",
    "chain",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "current_loss_scale",
    "damped_trace",
    "debias",
    "decay_weights",
    "describe",
    "diagnose",
    "dialects",
    "executor",
    "freeze",
    "from_optax",
    "from_torch",
    "hyper",
    "hyperparams",
    "load_state_dict",
    "lookahead_iterate",
    "lookahead_point",
    "loss_scale",
    "max_v",
    "maxout",
    "metrics",
    "migrate",
    "momentum",
    "momentum_sgd",
    "monitor",
    "monotone_rms",
    "nadam",
    "nadamw",
    "nag",
    "nag_lookahead",
    "native",
    "nesterov",
    "pack_state",
    "packed",
    "partition",
    "path",
    "precondition",
    "relu",
    "rms",
    "rmsprop",
    "scale",
    "scale_by_inverse_time",
    "scale_by_learning_rate",
    "seal",
    "set_executor",
    "set_hyperparams",
    "sgd",
    "sign",
    "skip_nonfinite",
    "state_dict",
    "step",
    "swats",
    "sweep",
    "switch",
    "trace",
    "two_point_lookahead",
    "unpack_state",
    "where",
]
