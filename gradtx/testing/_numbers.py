"""The contract, of numbers: precision, zeros and extremes, symmetries, and what is known of them at compile time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx as gx
from gradtx._engine.transformation import Transformation
from gradtx.testing._compare import check, close, finite, same_types
from gradtx.testing._examples import normal, params
from gradtx.testing._runs import NOT_COMPLEX, STEPS, has_formats, is_real_only, remade, stepped, updated

LOW = ("float32", "bfloat16", "float16")


def computes_in_float32(tx: Transformation[Any]) -> None:
    """bfloat16 leaves give what they would give in float32, rounded once at the end"""
    mixed = {"w": normal(3, 2, dtype="bfloat16"), "b": normal(2)}
    updates, state = stepped(tx, mixed)
    wide_updates, wide_state = stepped(tx, jax.tree.map(lambda x: x.astype(jnp.float32), mixed))
    check(updates["w"].dtype == jnp.bfloat16, f"updates of a bfloat16 leaf are {updates['w'].dtype}")
    expected = jax.tree.map(lambda u, p: u.astype(p.dtype), wide_updates, mixed)
    close(updates, expected, "updates", rtol=1e-2)  # one bfloat16 ulp is 2⁻⁸; XLA may fuse differently
    close(state, wide_state, "state", rtol=1e-5)


def does_nothing_at_zero(tx: Transformation[Any]) -> None:
    """zero parameters and gradients give zero updates and a finite state"""
    for dtype in LOW:
        zeros = jax.tree.map(jnp.zeros_like, params(dtype))
        updates, state = stepped(tx, zeros)
        close(updates, zeros, f"updates of zero gradients in {dtype}")
        finite(state, f"state after zero gradients in {dtype}")


def stays_finite(tx: Transformation[Any]) -> None:
    """finite updates and state, also from gradients near the ends of a dtype's range"""
    for dtype in LOW:
        info = jnp.finfo(dtype)
        large = min(float(info.max) / 8, 1e18)
        w = jnp.array([[0.0, info.tiny], [-1e-4, 100.0], [large, -large]], dtype)
        finite(stepped(tx, {"w": w, "b": w[0]}), f"after {STEPS} steps with very small and large gradients in {dtype}")


def scans_as_it_loops(tx: Transformation[Any]) -> None:
    """lax.scan gives what a loop gives"""
    p = params()
    updates, state = p, tx.init(p)
    for _ in range(STEPS):
        updates, state = updated(tx, p, state, p)
    close(stepped(tx, p), (updates, state), "scan and loop differ", rtol=2e-6)


def knows_no_other_values(tx: Transformation[Any]) -> None:
    """numbers that the compiler knows (gradients, parameters, hyperparameters) give what those passed in give"""
    factor = normal(3, seed=7)

    def start(scale: Any = 1.0) -> dict[str, jax.Array]:
        return {name: jnp.ones(3) * scale for name in ("factor", "ones", "stopped", "unused")}

    def loss(p: dict[str, jax.Array]) -> jax.Array:
        return jnp.vdot(factor, p["factor"]) + p["ones"].sum() + 0.0 * jax.lax.stop_gradient(p["stopped"]).sum()

    def known(scale: Any = 1.0, state: Any = None) -> Any:
        p = start(scale)
        return tx.update(jax.grad(loss)(p), tx.init(p) if state is None else state, p)

    def scanned() -> Any:
        def one(carry: Any, _: None) -> Any:
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p), state, p)
            return (p, state), updates

        p = start()
        (_, state), updates = jax.lax.scan(one, (p, tx.init(p)), None, length=2)
        return jax.tree.map(lambda x: x[-1], updates), state

    @jax.jit
    def all_ways(state: Any) -> dict[str, Any]:
        natively = known()
        with gx.executor("reference"):  # the compiler sees all of it
            mapped = jax.tree.map(lambda x: x[1], jax.vmap(known)(jnp.ones(2)))
            passed = jax.vmap(known)(jnp.ones(1), jax.tree.map(lambda x: x[None], state))  # no leaf is alone in a batch
            passed = jax.tree.map(lambda x: x[0], passed)
            ways = {"": known(), " and a state that is passed in": passed, " under vmap": mapped}
            ways[" of zero"] = tx.update(jax.tree.map(jnp.zeros_like, start()), state, start())
            return ways | {" by the default executor": natively, " in a scan": scanned()}

    p = start()
    grads = {**{name: jnp.zeros(3) for name in p}, "factor": factor, "ones": jnp.ones(3)}
    first = updated(tx, grads, tx.init(p), p)
    second = updated(tx, grads, first[1], p)
    at_zero = updated(tx, jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
    for how, step in all_ways(tx.init(p)).items():
        expected = {" in a scan": second, " of zero": at_zero}.get(how, first)
        close(step, expected, f"with known gradients{how}, the step is another", rtol=1e-5, atol=1e-6)


def is_odd(tx: Transformation[Any]) -> None:
    """the opposite gradients and parameters give the opposite updates, to the last bit"""
    opposite, _ = stepped(tx, jax.tree.map(jnp.negative, params()))
    close(opposite, jax.tree.map(jnp.negative, stepped(tx, params())[0]), "f(−g, −p) is not −f(g, p)")


def turns_with_the_gradient(tx: Transformation[Any]) -> str | None:
    """complex gradients and parameters times a phase give updates times that phase"""
    if is_real_only(tx):
        return NOT_COMPLEX
    turn, p = np.exp(0.7j), {"w": normal(3, 2, dtype="complex64")}
    expected = jax.tree.map(lambda u: (turn * u).astype(u.dtype), stepped(tx, p)[0])
    turned, _ = stepped(tx, jax.tree.map(lambda x: (turn * x).astype(x.dtype), p))
    close(turned, expected, "f(zg, zp) is not z·f(g, p) for |z| = 1", rtol=1e-5, atol=1e-6)


def stores_slots_as_told(tx: Transformation[Any]) -> str | None:
    """state_dtype="bfloat16" stores slots so, and arithmetic stays in float32"""
    if has_formats(tx):
        return "slots have formats of their own"
    p, narrow = params(), remade(tx, gx.chain(tx, state_dtype="bfloat16"))
    state = narrow.init(p)
    for rule, kinds in narrow._engine.layout.slots.items():
        for slot, kind in kinds.items():
            if kind.of_leaf:
                dtypes = {str(x.dtype) for x in jax.tree.leaves(state.slots[rule][slot])}
                check(dtypes == {"bfloat16"}, f"slot {rule}.{slot} is stored in {', '.join(dtypes)}")
    updates, after = stepped(narrow, p)
    same_types(after, state, "state")
    close(updates, stepped(tx, p)[0], "updates", rtol=3e-2, atol=1e-4)
    return None


def runs_in_every_executor(tx: Transformation[Any]) -> str | None:
    """the compiled kernel gives what the reference gives, within 4 ulp a step"""
    if not gx.native.available():
        return str(gx.native.available())

    def tree(seed: int) -> dict[str, jax.Array]:
        shapes = {"matrix": (7, 130), "vector": (300,), "scalar": (), "none": (0, 3)}
        return {name: normal(*shape, seed=seed) for name, shape in shapes.items()}

    def trajectory(executor: Any) -> Any:
        with gx.executor(executor):
            step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s))
            p = tree(0)
            state = tx.init(p)
            for k in range(3):
                p, state = step(p, tree(k + 1), state)
        return p, state

    native, reference = trajectory("native"), trajectory("reference")
    close(native, reference, "kernel and reference differ", rtol=12 * 2**-23, atol=12 * 2**-23)
    same_types(native, reference, "kernel and reference")
