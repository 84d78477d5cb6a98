"""The cases: an optimizer of gradtx and the same one of optax, in each framework and in each wrapper of optax."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

import gradtx as gx
from gradtx import dialects

from . import loops
from .loops import Training

LR = 0.01
DECAY = 0.1
ADAM = dialects.optax.adam(LR), optax.adam(LR)


def _kernels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)


def _matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


ADAMW_ON_KERNELS = (
    dialects.optax.adamw(LR, weight_decay=DECAY, mask="kernel$"),
    optax.adamw(LR, weight_decay=DECAY, mask=_kernels),
)
ADAMW_ON_MATRICES = (
    dialects.optax.adamw(LR, weight_decay=DECAY, mask=lambda path, leaf: leaf.ndim > 1),
    optax.adamw(LR, weight_decay=DECAY, mask=_matrices),
)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        framework: its name.
        package: what is installed for it.
        what: what is run, in the words of the framework.
        train: a training with a given optimizer.
        pair: the optimizer of gradtx, and that of optax.
    """

    framework: str
    package: str
    what: str
    train: Callable[[optax.GradientTransformation], Training]
    pair: tuple[optax.GradientTransformation, optax.GradientTransformation] = ADAM


def _nan_every(period: int) -> optax.GradientTransformation:
    """Makes gradients NaN in every so many steps."""

    def update(updates, state, params=None):
        bad = state % period == period - 1
        return jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _wrapped(wrap: Callable[..., optax.GradientTransformation]) -> Callable[..., Training]:
    return lambda tx: loops.nested_dicts(wrap(tx))


WRAPPERS: dict[str, Callable[..., Training]] = {
    "`chain(clip_by_global_norm(0.1), tx)`": _wrapped(lambda tx: optax.chain(optax.clip_by_global_norm(0.1), tx)),
    "`gradtx.chain(optax.clip_by_global_norm(0.1), tx)`": _wrapped(
        lambda tx: gx.chain(optax.clip_by_global_norm(0.1), tx)
    ),
    '`named_chain(("clip", clip(0.1)), ("adam", tx))`': _wrapped(
        lambda tx: optax.named_chain(("clip", optax.clip(0.1)), ("adam", tx))
    ),
    "`masked(tx, mask)` and `masked(sgd(0.1), not mask)`": _wrapped(
        lambda tx: optax.chain(
            optax.masked(tx, {"hidden": True, "out": False}),
            optax.masked(optax.sgd(0.1), {"hidden": False, "out": True}),
        )
    ),
    "`partition` (`multi_transform`): `tx` and `set_to_zero()`": _wrapped(
        lambda tx: optax.partition({"train": tx, "freeze": optax.set_to_zero()}, {"hidden": "train", "out": "freeze"})
    ),
    "`MultiSteps(tx, 3)`": _wrapped(lambda tx: optax.MultiSteps(tx, 3).gradient_transformation()),
    "`apply_if_finite(tx, 3)`, every seventh gradient NaN": _wrapped(
        lambda tx: optax.chain(_nan_every(7), optax.apply_if_finite(tx, 3))
    ),
    "`lookahead(tx, 5, 0.5)`": lambda tx: loops.fast_and_slow(optax.lookahead(tx, 5, 0.5)),
    "`contrib.schedule_free(tx, 0.01)`": _wrapped(lambda tx: contrib.schedule_free(tx, LR)),
    "`chain(tx, contrib.reduce_on_plateau(...))`": _wrapped(
        lambda tx: optax.chain(tx, contrib.reduce_on_plateau(factor=0.5, patience=2, rtol=0.3))
    ),
}

CASES = [
    Case("Flax NNX", "flax", "`nnx.Optimizer(model, tx, wrt=nnx.Param)` in `nnx.jit`, donated", loops.flax_nnx),
    Case(
        "Flax NNX",
        "flax",
        '`wrt=nnx.All(nnx.Param, nnx.PathContains("out"))`: the last layer',
        functools.partial(loops.flax_nnx, wrt=nnx.All(nnx.Param, nnx.PathContains("out"))),
    ),
    Case("Flax NNX", "flax", '`adamw(decay_mask="kernel$")`', loops.flax_nnx, ADAMW_ON_KERNELS),
    Case("Flax Linen", "flax", "`TrainState` in `jax.jit`, donated", loops.flax_linen),
    Case(
        "Flax Linen",
        "flax",
        '`adamw(decay_mask="kernel$")`, kernels in `nn.Partitioned`',
        functools.partial(loops.flax_linen, boxed=True),
        ADAMW_ON_KERNELS,
    ),
    Case("Equinox", "equinox", '`eqx.filter_jit(donate="all")`, `eqx.apply_updates`', loops.equinox),
    Case("Equinox", "equinox", "`adamw(decay_mask=...)` on matrices", loops.equinox, ADAMW_ON_MATRICES),
    Case("Haiku", "dm-haiku", "`hk.transform` in `jax.jit`, donated", loops.haiku),
    Case("optax", "optax", "nested dicts in `jax.jit`, donated", loops.nested_dicts),
    *(Case("optax", "optax", what, train) for what, train in WRAPPERS.items()),
]
