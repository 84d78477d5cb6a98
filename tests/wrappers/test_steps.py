"""Steps inside wrappers are the updates, added; and they are made in place, without copies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx as gx

SIZE = 2**16
ADAM, HEAVY_BALL = gx.adam(1e-3), gx.sgd(1e-3, momentum=0.9)
SWITCH = gx.switch(5, ADAM, HEAVY_BALL)

WRAPPERS = {
    "skip_nonfinite": gx.skip_nonfinite(ADAM, max_consecutive=3),
    "accumulate": gx.accumulate(ADAM, 4),
    "accumulate 1": gx.accumulate(ADAM, 1),
    "loss_scale": gx.loss_scale(ADAM),
    "partition": gx.partition({"": ADAM}),
    "switch": SWITCH,
    "packed": gx.packed(ADAM),
    "in two": gx.skip_nonfinite(gx.accumulate(ADAM, 4)),
    "of parts": gx.skip_nonfinite(gx.partition({"": gx.packed(ADAM)})),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("executor", ["native", "reference"])
def test_nothing_is_copied(name, executor):
    if executor == "native" and not gx.native.available():
        pytest.skip(str(gx.native.available()))
    tx = WRAPPERS[name]
    p = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    state = jax.eval_shape(tx.init, p)
    with gx.executor(executor):
        step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s), donate_argnums=(0, 2))
        compiled = step.lower(p, p, state).compile()
    assert not re.findall(rf"= f32\[{SIZE}\]\S* copy\(", compiled.as_text() or "")
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 0.1 * 4 * SIZE
    arrays = sum(x.size for x in jax.tree.leaves((p, state)) if x.size == SIZE)
    assert memory.alias_size_in_bytes >= 4 * arrays  # every one is where it was


MEMBER = optax.adamw(1e-3)
CLIPPED = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(1e-2))
GUARDED = {
    "skip_nonfinite": gx.skip_nonfinite(CLIPPED, max_consecutive=1),
    "accumulate": gx.accumulate(CLIPPED, 2),
    "sums": gx.accumulate(gx.skip_nonfinite(CLIPPED), 2, combine="sum"),
    "loss_scale": gx.loss_scale(CLIPPED, initial=4.0, growth_interval=2),
    "small loss_scale": gx.loss_scale(CLIPPED, initial=0.25, minimum=0.125),
    "of optax": gx.skip_nonfinite(gx.accumulate(MEMBER, 2)),
    "switch": gx.switch(2, gx.adam(1e-2), gx.sgd(1e-2, momentum=0.9)),
    "of wrappers": gx.switch(2, gx.loss_scale(ADAM), gx.loss_scale(gx.adam(1e-2)), carry="reset"),
    "swats": gx.swats(1e-2, rtol=np.inf, min_steps=2, positive=False),
    "partition": gx.partition({"w": gx.skip_nonfinite(gx.monitor()), "b": MEMBER}, default="freeze"),
}
LOW = {"bfloat16": ("bfloat16", "bfloat16"), "mixed": ("float32", "bfloat16")}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("dtypes", ["float32", *(pytest.param(d, marks=pytest.mark.exhaustive) for d in LOW)])
def test_a_step_is_the_update_added(name, dtypes):
    """Over steps of which two in a row have a NaN: for skip_nonfinite one too many."""
    tx, (of_params, of_grads) = GUARDED[name], LOW.get(dtypes, ("float32", "float32"))
    rng = np.random.default_rng(0)
    params: dict = {k: jnp.asarray(rng.normal(size=3), of_params) for k in "wb"}
    grads: dict = {k: jnp.asarray(rng.normal(size=(6, 3)), of_grads).at[3:5, 0].set(jnp.nan) for k in "wb"}
    if name == "partition":
        params["c"], grads["c"] = jnp.arange(3), jnp.zeros((6, 3))

    def by_steps(carry, g):
        params, state = gx.step(tx, carry[0], g, carry[1])
        return (params, state), params

    def by_updates(carry, g):
        updates, state = tx.update(g, carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), params

    start = (params, tx.init(params))
    one, other = (jax.jit(lambda start, by=by: jax.lax.scan(by, start, grads))(start) for by in (by_steps, by_updates))
    tolerance = 1e-5 if of_params == "float32" else 2.0**-7  # one rounding of a parameter
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=tolerance, atol=tolerance)
    moved = np.asarray(one[1]["w"], np.float64)
    assert (moved[-1] != moved[0]).any()


@pytest.mark.usefixtures("quick_compilation")
def test_too_many_steps_in_a_row_make_parameters_nan():
    p = {"w": jnp.ones(2), "n": jnp.arange(2)}
    tx = gx.skip_nonfinite(gx.partition({"w": ADAM}, default="freeze"), max_consecutive=1)
    bad, state = {"w": jnp.array([1.0, jnp.inf]), "n": None}, tx.init(p)
    once, state = gx.step(tx, p, bad, state)
    assert (once["w"] == p["w"]).all()
    for step in (gx.step, jax.jit(gx.step, static_argnums=0)):
        after, _ = step(tx, once, bad, state)
        assert jnp.isnan(after["w"]).all()
        assert (after["n"] == p["n"]).all()


PARTS = gx.chain(gx.where("w", gx.clip_by_value(0.5)), ADAM, gx.monitor(every=2))
IN_GUARDS = {
    "norms": gx.accumulate(CLIPPED, 2),
    "sums": gx.accumulate(ADAM, 2, combine="sum"),
    "in two": gx.skip_nonfinite(gx.accumulate(gx.packed(ADAM), 2)),
    "in three": gx.loss_scale(gx.skip_nonfinite(gx.accumulate(ADAM, 2), max_consecutive=1), initial=4.0),
    "observed": gx.skip_nonfinite(gx.chain(PARTS, state_dtype="root8")),
    "a switch": gx.skip_nonfinite(gx.switch(2, ADAM, HEAVY_BALL)),
    "swats": gx.skip_nonfinite(gx.swats(1e-2, rtol=np.inf, min_steps=2, positive=False)),
    "parts": gx.skip_nonfinite(gx.partition({"w": gx.skip_nonfinite(ADAM), "b": gx.loss_scale(HEAVY_BALL)})),
}


SLOWER = ("sums", "in two", "a switch", "parts")


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.exhaustive] * (x in SLOWER)) for x in IN_GUARDS])
def test_a_flag_of_the_kernel_is_the_condition_of_the_reference(name):
    tx, rng = IN_GUARDS[name], np.random.default_rng(1)
    params = {k: jnp.asarray(rng.normal(size=5), jnp.float32) for k in "wb"}
    grads = {k: jnp.asarray(rng.normal(size=(7, 5)), jnp.float32).at[2:4, 1].set(jnp.nan) for k in "wb"}

    def one(carry, g):
        (params, state), (p, s) = carry
        updates, s = tx.update(g, s, p)
        return (gx.step(tx, params, g, state), (optax.apply_updates(p, updates), s)), updates

    found = {}
    for executor in ("native", "reference"):
        with gx.executor(executor):
            start = ((params, tx.init(params)),) * 2
            found[executor] = jax.jit(lambda start: jax.lax.scan(one, start, grads))(start)
    for x, y in zip(*map(jax.tree.leaves, found.values()), strict=True):
        if x.dtype not in (jnp.int8, jnp.uint8):  # codes are rounded at random
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


@pytest.mark.skipif(not gx.native.available(), reason="flags are the kernel's")
def test_guards_in_guards_have_no_conditions_and_are_traced_in_linear_time():
    p = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    sizes = []
    tx = gx.partition({"": gx.accumulate(gx.packed(ADAM), 1)})
    for guard in (gx.skip_nonfinite, gx.loss_scale, gx.skip_nonfinite, gx.loss_scale):
        tx = guard(tx)
        with gx.executor("native"):
            traced = jax.make_jaxpr(functools.partial(gx.step, tx))(p, p, jax.eval_shape(tx.init, p))
        assert " cond[" not in str(traced)
        sizes.append(str(traced).count("\n"))
    assert sizes[3] - sizes[1] <= 1.1 * (sizes[2] - sizes[0])
