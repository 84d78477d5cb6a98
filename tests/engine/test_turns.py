"""Passes in XLA on a CPU whose outputs are computed one after another: beside optax, and how much memory they take."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx as gx
from gradtx._engine import turns
from gradtx.dialects import optax as ours

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE = turns.LEAST
NAMES = ("adabelief", "adadelta", "optimistic_gradient_descent", "rprop")
CONTRIB = ("acprop", "adopt", "schedule_free_adamw")
"""Some of optax in which a parameter or a slot is read by others than the one that overwrites it."""

params = jnp.asarray(np.random.default_rng(0).normal(size=SIZE), jnp.float32)
grads = [jnp.asarray(np.random.default_rng(k).normal(size=SIZE), jnp.float32) for k in (1, 2, 3)]


def after(txs, executor):
    """Parameters after three steps of each, all in one program, and the arrays that it makes beside its results."""

    def step(carry, g):
        return {name: gx.step(txs[name], p, g, state) for name, (p, state) in carry.items()}

    carry = jax.tree.map(jnp.copy, {name: (params, tx.init(params)) for name, tx in txs.items()})
    with gx.executor(executor):
        compiled = jax.jit(step, donate_argnums=0).lower(carry, grads[0]).compile()
    for g in grads:
        carry = compiled(carry, g)
    memory = compiled.memory_analysis()
    assert memory is not None
    return {name: p for name, (p, _) in carry.items()}, memory.temp_size_in_bytes / (4 * SIZE)


def test_as_optax_and_without_copies():
    theirs = {name: getattr(optax, name, None) or getattr(optax.contrib, name) for name in NAMES + CONTRIB}
    expected, copies = after({name: tx(0.01) for name, tx in theirs.items()}, "reference")
    found, arrays = after({name: getattr(ours, name)(0.01) for name in theirs}, "reference")
    for name in theirs:
        # acprop divides by the difference of g and its average, of which rounding leaves little where they agree.
        np.testing.assert_allclose(found[name], expected[name], rtol=5e-5, atol=5e-5, err_msg=name)
    assert copies > 5  # as XLA compiles it by itself
    assert arrays < 0.1


class optimistic(gx.Rule):
    """u ← 2g − g₋, with a g₋ of 3 before the first step."""

    equation = r"u \leftarrow 2g - g_{t-1}"
    accumulates = True

    def slots(self, param):
        return {"previous": jnp.full_like(param, 3)}

    def apply(self, signal, slots, param, c):
        g = signal.gradient
        return signal._replace(direction=2 * g - slots.previous), {"previous": g}


def first_step(p, g) -> Any:
    tx = gx.chain(optimistic(), gx.sgd(0.1))
    with gx.executor("reference"):
        return gx.step(tx, p, g, tx.init(p))


def test_derivatives_batches_and_exports():
    p, g = params, grads[0]
    after = p - 0.1 * (2 * g - 3)
    along = jax.jit(lambda p, g: jax.jvp(lambda g: first_step(p, g)[0], (g,), (g,)))(p, g)
    many = jax.jit(jax.vmap(lambda p, g: first_step(p, g)[0]))(jnp.stack([p, p]), jnp.stack([g, -g]))
    exported: Any = jax.export.export(jax.jit(first_step))(p, g).call(p, g)
    for found, expected in [(along[0], after), (along[1], -0.2 * g), (many[0], after), (exported[0], after)]:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many[1], p - 0.1 * (-2 * g - 3), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(exported[1].slots["optimistic"]["previous"], g)


FUNCTIONS = {
    "a chain": (lambda p, m, v: (p + 1, m * p, v * m), (2, 1, 0)),
    "the other way": (lambda p, m, v: (p * m, m * v, v + 1), (0, 1, 2)),
    "one stays": (lambda p, m, g: (p - m, m + g, g), (0, 1)),
    "from those before": (lambda p, m, v: (p / jnp.sqrt(m * m + v), m * m, v + m), (0, 2, 1)),
    "no array": (lambda p, m, v: (p * v, jnp.zeros(3), m), (0, 2, 1)),
    "nobody waits": (lambda p, m, v: (p * v, m * v, v), None),
}


def test_order():
    """By hand: an array is read before it is overwritten."""
    arrays = [jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.25, 2.0]), jnp.array([3.0, 1.0, 4.0])]
    planned = {
        name: turns._planned(jax.make_jaxpr(fn)(*arrays).jaxpr, {0: 0, 1: 1, 2: 2})
        for name, (fn, _) in FUNCTIONS.items()
    }
    assert {name: one and one.order for name, one in planned.items()} == {
        name: order for name, (_, order) in FUNCTIONS.items()
    }
    found = jax.jit(lambda *xs: {name: one.local(*xs) for name, one in planned.items() if one})(*arrays)
    for name, outputs in found.items():
        for x, expected in zip(outputs, FUNCTIONS[name][0](*map(np.asarray, arrays)), strict=True):
            np.testing.assert_allclose(x, expected, rtol=1e-6, err_msg=name)


def loops(tx, leaves, executor):
    """The loops that XLA makes of a step, without the names in them: alike is compiled once."""
    tree = {str(i): jax.ShapeDtypeStruct((100, 30), jnp.float32) for i in range(leaves)}
    with gx.executor(executor):
        step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s), donate_argnums=(0, 2))
        text = step.lower(tree, tree, jax.eval_shape(tx.init, tree)).compile().as_text() or ""
    found = set()
    for body in re.findall(r"^%fused_computation[^\n]*(\{\n.*?\n)\}", text, re.MULTILINE | re.DOTALL):
        names = dict.fromkeys(re.findall(r"%[\w.-]+", body))
        plain = re.sub(r", metadata=\{[^}]*\}", "", body)
        found.add(re.sub(r"%[\w.-]+", lambda m, order=[*names]: f"%{order.index(m[0])}", plain))
    return found


def test_leaves_of_one_shape_are_compiled_once():
    """A scalar that leaves share is no reason to compile one of them apart, also of what the kernel does not know."""
    for tx, executor in ((gx.adam(0.1), "reference"), (gx.madgrad(0.1), "native")):
        assert len(loops(tx, 3, executor)) == len(loops(tx, 1, executor)), executor
