"""Optimizers for JAX as chains of elementary update rules.

An optimizer is a chain of rules, and nothing else::

    adam = chain(momentum(0.9), rms(0.999), debias(), precondition(), scale_by_learning_rate(1e-3))

Chains and rules are optax transformations. See ``gradtx.rules`` and ``gradtx.optimizers``.
"""

from gradtx import codecs as codecs
from gradtx import dialects as dialects
from gradtx import native as native
from gradtx._chain import Chain as Chain
from gradtx._chain import chain as chain
from gradtx._chain import seal as seal
from gradtx._chain import step as step
from gradtx._chain import where as where
from gradtx._core.contract import Arrays as Arrays
from gradtx._core.contract import Named as Named
from gradtx._core.contract import Tick as Tick
from gradtx._core.exports import exports as _exports
from gradtx._core.hyperparams import hyperparams as hyperparams
from gradtx._core.hyperparams import set_hyperparams as set_hyperparams
from gradtx._core.mesh import replicated as replicated
from gradtx._core.selectors import path as path
from gradtx._core.signal import Signal as Signal
from gradtx._core.signal import Weights as Weights
from gradtx._core.state import ChainState as ChainState
from gradtx._core.state import PackedState as PackedState
from gradtx._engine.backends import executor as executor
from gradtx._engine.backends import set_executor as set_executor
from gradtx._inspect.describe import describe as describe
from gradtx._inspect.diagnose import Diagnosis as Diagnosis
from gradtx._inspect.diagnose import Finding as Finding
from gradtx._inspect.diagnose import diagnose as diagnose
from gradtx._inspect.lookahead import (
    evaluation_point as evaluation_point,
)
from gradtx._inspect.lookahead import (
    gradient_point as gradient_point,
)
from gradtx._inspect.lookahead import (
    lookahead_iterate as lookahead_iterate,
)
from gradtx._inspect.lookahead import (
    lookahead_point as lookahead_point,
)
from gradtx._inspect.monitor import MonitorState as MonitorState
from gradtx._inspect.monitor import metrics as metrics
from gradtx._inspect.monitor import monitor as monitor
from gradtx._inspect.sharpness import ascent_point as ascent_point
from gradtx._placement.estimate import DeviceBytes as DeviceBytes
from gradtx._placement.estimate import Estimate as Estimate
from gradtx._placement.estimate import estimate as estimate
from gradtx._placement.shardings import Placement as Placement
from gradtx._placement.shardings import abstract_state as abstract_state
from gradtx._placement.shardings import placement as placement
from gradtx._placement.shardings import state_shardings as state_shardings
from gradtx._states.checkpoint import load_state_dict as load_state_dict
from gradtx._states.checkpoint import state_dict as state_dict
from gradtx._states.migrate import MigrationReport as MigrationReport
from gradtx._states.migrate import migrate as migrate
from gradtx._states.ports import from_optax as from_optax
from gradtx._states.ports import from_torch as from_torch
from gradtx._sweep.sweep import sweep as sweep
from gradtx._sweep.table import SweepTable as SweepTable
from gradtx._wrappers.accumulate import AccumulateState as AccumulateState
from gradtx._wrappers.accumulate import accumulate as accumulate
from gradtx._wrappers.loss_scale import (
    LossScaleState as LossScaleState,
)
from gradtx._wrappers.loss_scale import (
    current_loss_scale as current_loss_scale,
)
from gradtx._wrappers.loss_scale import (
    loss_scale as loss_scale,
)
from gradtx._wrappers.master_weights import MasterWeightsState as MasterWeightsState
from gradtx._wrappers.master_weights import master_weights as master_weights
from gradtx._wrappers.offload import offload as offload
from gradtx._wrappers.packed import pack_state as pack_state
from gradtx._wrappers.packed import packed as packed
from gradtx._wrappers.packed import unpack_state as unpack_state
from gradtx._wrappers.partition import PartitionState as PartitionState
from gradtx._wrappers.partition import partition as partition
from gradtx._wrappers.skip_nonfinite import SkipNonfiniteState as SkipNonfiniteState
from gradtx._wrappers.skip_nonfinite import skip_nonfinite as skip_nonfinite
from gradtx._wrappers.swats import SwatsState as SwatsState
from gradtx._wrappers.swats import swats as swats
from gradtx._wrappers.switch import SwitchState as SwitchState
from gradtx._wrappers.switch import switch as switch
from gradtx._wrappers.zero1 import zero1 as zero1
from gradtx.activations import maxout as maxout
from gradtx.activations import relu as relu
from gradtx.optimizers import *
from gradtx.rules import *
from gradtx.rules.base import Hyper as Hyper
from gradtx.rules.base import Rule as Rule
from gradtx.rules.base import hyper as hyper

__version__ = "0.1.0"

MYPY = False  # but True to mypy. It and pyright go by the imports, and read no list that is put together.
if not MYPY:
    __all__: list[str] = ["codecs", "dialects", "native", *_exports(vars())]  # pyright: ignore[reportUnsupportedDunderAll] - as above
