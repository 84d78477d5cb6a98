"""Running optimizers over a fixed stream of gradients, to compare them with others."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

STEPS = 60
PULL = 0.1


def stream(steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    """Random gradients for two leaves, (steps, ...) each; some entries are zero and some steps large."""
    rng = np.random.default_rng(seed)
    noise = {"a": rng.normal(size=(steps, 3)), "b": rng.normal(size=(steps, 2, 2))}
    noise["a"][::3, 1] = 0.0
    noise["b"][5] *= 30.0
    return noise


def start() -> dict[str, Any]:
    """Float64 parameters that fit the stream."""
    return {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.1, 0.2], [-3.0, 4.0]])}


def run(tx: optax.GradientTransformation, steps: int = STEPS, seed: int = 0) -> Any:
    """The parameters after each step, (steps, ...) each; the gradient is the stream plus a pull to the origin."""
    return run_each({"": tx}, steps, seed)[""]


def run_each(txs: Mapping[str, optax.GradientTransformation], steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    """The same of several, each by itself, in one program."""
    updates = {name: optax.with_extra_args_support(tx).update for name, tx in txs.items()}

    def one(update, carry, noise):
        params, state = carry
        grads = jax.tree.map(lambda n, p: n + PULL * p, noise, params)
        update, state = update(grads, state, params)
        return optax.apply_updates(params, update), state

    def each(carry, noise):
        after = {name: one(update, carry[name], noise) for name, update in updates.items()}
        return after, {name: params for name, (params, _) in after.items()}

    carry = {name: (start(), tx.init(start())) for name, tx in txs.items()}
    return jax.jit(lambda: jax.lax.scan(each, carry, stream(steps, seed))[1])()


def in_groups(names: Collection[str], exhaustive: Collection[str] = (), size: int = 12) -> list[Any]:
    """Names as parameters of a test, several at a time, since a program of twelve compiles sooner than twelve programs.

    Args:
        names: of what is tried.
        exhaustive: those of them that most runs leave out.
        size: how many at a time.
    """
    parameters = []
    for marks, kind in (([], False), ([pytest.mark.exhaustive], True)):
        members = [name for name in names if (name in exhaustive) == kind]
        groups = [members[start : start + size] for start in range(0, len(members), size)]
        parameters += [pytest.param(group, marks=marks, id=f"{group[0]} to {group[-1]}") for group in groups]
    return parameters
