"""Optimizers for JAX as chains of elementary update rules.

An optimizer is a chain of rules, and nothing else::

    adam = chain(momentum(0.9), rms(0.999), debias(), precondition(), scale_by_learning_rate(1e-3))

Chains and rules are optax transformations. See ``gradtx.rules`` and ``gradtx.optimizers``.
"""

from gradtx import codecs as codecs, dialects as dialects, native as native
from gradtx._chain import Chain as Chain, chain as chain, seal as seal, step as step, where as where
from gradtx._core.contract import Arrays as Arrays, Named as Named, Tick as Tick
from gradtx._core.exports import exports as _exports
from gradtx._core.hyperparams import hyperparams as hyperparams, set_hyperparams as set_hyperparams
from gradtx._core.mesh import replicated as replicated
from gradtx._core.selectors import path as path
from gradtx._core.signal import Signal as Signal, Weights as Weights
from gradtx._core.state import ChainState as ChainState, PackedState as PackedState
from gradtx._engine.backends import executor as executor, set_executor as set_executor
from gradtx._inspect.describe import describe as describe
from gradtx._inspect.diagnose import Diagnosis as Diagnosis, Finding as Finding, diagnose as diagnose
from gradtx._inspect.lookahead import (
    evaluation_point as evaluation_point,
    gradient_point as gradient_point,
    lookahead_iterate as lookahead_iterate,
    lookahead_point as lookahead_point,
)
from gradtx._inspect.monitor import MonitorState as MonitorState, metrics as metrics, monitor as monitor
from gradtx._inspect.sharpness import ascent_point as ascent_point
from gradtx._placement.estimate import DeviceBytes as DeviceBytes, Estimate as Estimate, estimate as estimate
from gradtx._placement.shardings import (
    Placement as Placement,
    abstract_state as abstract_state,
    placement as placement,
    state_shardings as state_shardings,
)
from gradtx._states.checkpoint import load_state_dict as load_state_dict, state_dict as state_dict
from gradtx._states.from_optax import from_optax as from_optax
from gradtx._states.from_torch import from_torch as from_torch
from gradtx._states.migrate import migrate as migrate
from gradtx._states.report import MigrationReport as MigrationReport
from gradtx._sweep.sweep import sweep as sweep
from gradtx._sweep.table import SweepTable as SweepTable
from gradtx._wrappers.accumulate import AccumulateState as AccumulateState, accumulate as accumulate
from gradtx._wrappers.loss_scale import (
    LossScaleState as LossScaleState,
    current_loss_scale as current_loss_scale,
    loss_scale as loss_scale,
)
from gradtx._wrappers.master_weights import MasterWeightsState as MasterWeightsState, master_weights as master_weights
from gradtx._wrappers.offload import offload as offload
from gradtx._wrappers.packed import pack_state as pack_state, packed as packed, unpack_state as unpack_state
from gradtx._wrappers.partition import PartitionState as PartitionState, partition as partition
from gradtx._wrappers.skip_nonfinite import SkipNonfiniteState as SkipNonfiniteState, skip_nonfinite as skip_nonfinite
from gradtx._wrappers.swats import SwatsState as SwatsState, swats as swats
from gradtx._wrappers.switch import SwitchState as SwitchState, switch as switch
from gradtx._wrappers.zero1 import zero1 as zero1
from gradtx.activations import maxout as maxout, relu as relu
from gradtx.optimizers import *
from gradtx.rules import *
from gradtx.rules.base import Hyper as Hyper, Rule as Rule, hyper as hyper

__version__ = "0.1.0"

MYPY = False  # but True to mypy. It and pyright go by the imports, and read no list that is put together.
if not MYPY:
    __all__: list[str] = ["codecs", "dialects", "native", *_exports(vars())]  # pyright: ignore[reportUnsupportedDunderAll] - as above
