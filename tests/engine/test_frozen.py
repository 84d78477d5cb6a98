"""Leaves of any dtype, and without a gradient, where they are frozen; float8 parameters everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx as gx

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUANTIZED = {
    "int8": jnp.array([1, -2], jnp.int8),
    "large": jnp.array([2**30 + 1]),
    "bool": jnp.array([True, False]),
    "key": jax.random.key(3),
    "float8": jnp.ones(2, jnp.float8_e4m3fn),
    "float32": jnp.full(2, -0.0),
}
PARAMS = QUANTIZED | {"adapter": jnp.array([1.0, -2.0])}
ADAPTER = jnp.array([0.5, 3.0])
PATTERN = "int8|large|bool|key|float8|float32"


def float0():
    """As ``jax.grad(..., allow_int=True)`` gives them."""

    def loss(p):
        return jnp.sum(p["adapter"] * ADAPTER) + 0 * jnp.sum(p["int8"] * p["float32"])

    return jax.grad(loss, allow_int=True)(PARAMS)


GRADS = {
    "float0": float0(),
    "None": dict.fromkeys(PARAMS) | {"adapter": ADAPTER},
    "of their own dtype": {k: None if k == "key" else jnp.ones_like(x) for k, x in PARAMS.items()}
    | {"adapter": ADAPTER},
    "straight through": {k: None if k == "key" else jnp.full(x.shape, 0.7) for k, x in PARAMS.items()}
    | {"adapter": ADAPTER},
}

parts = gx.partition({"adapter": gx.adam(0.1)}, default="freeze")
CHAINS = {
    "partition": parts,
    "where": gx.chain(gx.where("adapter", gx.adam(0.1)), gx.where(PATTERN, gx.freeze())),
    "freeze last": gx.chain(gx.adam(0.1), gx.where(PATTERN, gx.freeze())),
    "in a chain": gx.chain(gx.clip_by_global_norm(100.0), gx.skip_nonfinite(parts)),
    "accumulated": gx.accumulate(gx.loss_scale(parts, initial=1.0), 1),
    "switched": gx.switch(5, parts, gx.partition({"adapter": gx.sgd(0.1)}, "freeze"), carry="reset"),
    "in optax": optax.chain(parts, optax.identity()),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("kind", GRADS)
def test_frozen_leaves_may_be_anything(name, kind):
    tx, grads = CHAINS[name], GRADS[kind]
    if name not in ("partition", "freeze last") and kind not in ("float0", "None"):
        pytest.skip("the same")
    state = tx.init(PARAMS)
    held = [x for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jnp.floating) and x.ndim]
    assert not held, "a slot for a leaf that is no number"
    for step in (gx.step, jax.jit(gx.step, static_argnums=0)):
        params, after = step(tx, PARAMS, grads, state)
        np.testing.assert_allclose(params["adapter"], [0.9, -2.1], rtol=1e-5)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for key in QUANTIZED:
            assert params[key].dtype == PARAMS[key].dtype
            raw = jax.random.key_data if key == "key" else np.asarray
            np.testing.assert_array_equal(raw(params[key]), raw(PARAMS[key]), err_msg=key)
    updates, _ = tx.update(grads, state, PARAMS)
    for key in ("int8", "large", "bool"):
        zeros = updates[key]
        assert (zeros is None) == (kind == "None") and (zeros is None or not np.any(zeros))
        assert zeros is None or zeros.dtype == (jnp.float32 if kind == "straight through" else PARAMS[key].dtype)
    if kind == "None":
        assert updates["float32"] is None


def test_accumulation_and_files_and_tables():
    tx = gx.accumulate(parts, 2)
    state = tx.init(PARAMS)
    assert state.sums["int8"] is None
    params = PARAMS
    for grads in (GRADS["float0"], GRADS["float0"]):
        params, state = gx.step(tx, params, grads, state)
    np.testing.assert_allclose(params["adapter"], [0.9, -2.1], rtol=1e-5)
    weighted = gx.accumulate(parts, 1, combine="weighted mean")
    params, _ = gx.step(weighted, PARAMS, GRADS["float0"], weighted.init(PARAMS), weight=2.0)
    np.testing.assert_allclose(params["adapter"], [0.9, -2.1], rtol=1e-5)
    again = gx.load_state_dict(tx, PARAMS, gx.state_dict(state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert "adapter.momentum" in str(gx.describe(parts, PARAMS))


def test_a_predicate_is_asked_outside_of_jit_too():
    tx = gx.chain(
        gx.where(lambda path, _: path == "adapter", gx.adam(0.1)),
        gx.where(lambda path, _: path != "adapter", gx.freeze()),
    )
    for grads in GRADS.values():
        params, _ = gx.step(tx, PARAMS, grads, tx.init(PARAMS))
        np.testing.assert_allclose(params["adapter"], [0.9, -2.1], rtol=1e-5)
    first = gx.chain(gx.where(lambda path, _: path != "adapter", gx.freeze()), gx.momentum(0.9))
    with pytest.raises(TypeError, match="and rule 'momentum' acts on it"):
        first.init(PARAMS)


def test_elsewhere_the_rule_and_the_leaf_are_named():
    for key in ("int8", "bool", "key"):
        params = {key: PARAMS[key]}
        with pytest.raises(TypeError, match=rf"leaf '{key}' .* rule 'momentum' acts on it.*Freeze it"):
            gx.chain(gx.momentum(0.9)).init(params)
    with pytest.raises(TypeError, match=r"leaf 'embed' .* dtype int8.* 'momentum'"):
        gx.partition({"adapter": "freeze"}, gx.adam(0.1)).init({"adapter": ADAPTER, "embed": PARAMS["int8"]})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx: Any
    for tx in (gx.adam(0.1), gx.partition({"^": gx.adam(0.1)}), gx.chain(gx.partition({"^": gx.adam(0.1)}))):
        with pytest.raises(ValueError, match=r"leaf 'b' of the updates has no gradient .None.*'momentum' acts on it"):
            tx.update({"a": jnp.ones(2), "b": None}, tx.init(params), params)
    later = gx.chain(gx.freeze(), gx.add_decayed_weights(0.1))  # moves what was frozen
    with pytest.raises(TypeError, match="int8"):
        later.init({"int8": PARAMS["int8"]})


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("executor", ["reference", "native"])
def test_float8_parameters_are_those_of_float32_rounded(dtype, executor):
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.nadamw(0.25))
    params = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]], dtype), "b": jnp.array([1.0, 2.0])}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    with gx.executor(executor):
        step = jax.jit(gx.step, static_argnums=0)
        for grads in (params, wide):
            found, state = step(tx, params, grads, tx.init(params))
            updates, _ = tx.update(wide, tx.init(wide), wide)
            expected = jax.tree.map(lambda p, u, q: p + u.astype(q.dtype).astype(p.dtype), wide, updates, grads)
            np.testing.assert_array_equal(found["w"], np.asarray(expected["w"]).astype(dtype))
            np.testing.assert_allclose(found["b"], expected["b"], rtol=1e-6)
            assert state.slots["rms"]["s"]["w"].dtype == jnp.float32
