"""Nesterov's lookahead in its two forms, which are one: points held, or iterates held and gradients taken ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import gradtx as gx

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

START = {"a": np.array([1.0, -0.5, 2.0]), "b": np.array(0.3)}
STEPS = 30


def gradient(params):
    """Of a quartic valley, nonlinear and not separable."""
    return jax.grad(lambda p: jnp.sum(0.25 * p["a"] ** 4 + p["a"] ** 2) + 20 * (p["b"] - p["a"][0]) ** 2)(params)


def held(tx):
    """Form (a): the points held, and the iterates behind them, from the start on."""

    def one(carry, _):
        params, state = carry
        new = gx.step(tx, params, gradient(params), state)
        return new, (params, gx.lookahead_iterate(state, params))

    return jax.lax.scan(one, (START, tx.init(START)), length=STEPS)[1]


def two_points(tx):
    """Form (b): the points where gradients were taken, and the iterates held."""

    def one(carry, _):
        params, state = carry
        point = gx.lookahead_point(state, params)
        return gx.step(tx, params, gradient(point), state), (point, params)

    return jax.lax.scan(one, (START, tx.init(START)), length=STEPS)[1]


def close(one, other, tolerance=1e-11):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other)


directions = st.sampled_from(
    [
        lambda rate: gx.sgd(rate),
        lambda rate: gx.momentum_sgd(rate, 0.8),
        lambda rate: gx.sgd(rate, 0.8),
        lambda rate: gx.chain(gx.scale_by_learning_rate(rate), gx.trace(0.8)),
        lambda rate: gx.adam(rate, b2=0.9),
        lambda rate: gx.article_max_v(rate, second_decay=0.9),
        lambda rate: gx.chain(gx.clip_by_global_norm(1.0), gx.nadam(rate, schedule_decay=0.004)),
        lambda rate: gx.adamw(rate, weight_decay=0.1),
        lambda rate: gx.rmsprop(rate, momentum=0.5),
    ]
)
rates = st.sampled_from(
    [0.001, optax.exponential_decay(0.002, 1, 0.9), optax.warmup_cosine_decay_schedule(0.0, 0.002, 5, 30)]
)
factors = st.sampled_from([0.0, 0.9, 1.0, lambda count: 0.9 - 0.5 / (count + 1.0)])


@settings(max_examples=settings().max_examples // 3)  # each compiles two trainings
@given(directions, rates, factors)
def test_the_two_forms_are_one(direction, rate, factor):
    """For any chain and any schedule: the points of one are the points of the other, and so are the iterates.

    Except weight decay, which shrinks the parameters held: the points in one form, the iterates in the other.
    """
    tx = direction(rate)
    if any(rule.needs_params for rule in tx.rules):
        tx = gx.chain(*(rule for rule in tx.rules if not rule.needs_params))
    close(held(gx.chain(tx, gx.nag_lookahead(factor))), two_points(gx.chain(tx, gx.two_point_lookahead(factor))))


def sutskever(eta, mu):
    """y = w + μv; v ← μv − η∇f(y); w ← w + v, with the μ of the step."""
    w, v, out = START, jax.tree.map(jnp.zeros_like, START), []
    for t in range(STEPS):
        y = jax.tree.map(lambda w, v, t=t: w + mu(t) * v, w, v)
        out.append((y, w))
        v = jax.tree.map(lambda v, g, t=t: mu(t) * v - eta(t) * g, v, gradient(y))
        w = jax.tree.map(jnp.add, w, v)
    return jax.tree.map(lambda *xs: jnp.stack(xs), *out)


def nesterov_1983(eta, mu):
    """w' = y − η∇f(y); y' = w' + μ'(w' − w), with the μ of the next step."""
    w, y, out = START, START, []
    for t in range(STEPS):
        out.append((y, w))
        new = jax.tree.map(lambda y, g, t=t: y - eta(t) * g, y, gradient(y))
        y = jax.tree.map(lambda new, w, t=t: new + mu(t + 1) * (new - w), new, w)
        w = new
    return jax.tree.map(lambda *xs: jnp.stack(xs), *out)


SCHEDULES = {
    "constant": (lambda t: 0.01, lambda t: 0.9),
    "falling rate": (lambda t: 0.01 * 0.95**t, lambda t: 0.9),
    "both": (lambda t: 0.01 * 0.95**t, lambda t: 0.9 - 0.5 / (t + 1.0)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_both_forms_are_nesterov_and_sutskever(name):
    eta, mu = SCHEDULES[name]
    step = gx.chain(gx.scale_by_learning_rate(eta), gx.trace(mu))
    expected = sutskever(eta, mu)
    close(nesterov_1983(eta, mu), expected)
    close(held(gx.chain(step, gx.nag_lookahead(mu))), expected)
    close(two_points(gx.chain(step, gx.two_point_lookahead(mu))), expected)


def test_torch_only_at_a_constant_rate():
    for name, same in (("constant", True), ("falling rate", False)):
        eta, mu = SCHEDULES[name]
        tx = gx.dialects.torch.sgd(eta, momentum=0.9, nesterov=True)

        def one(carry, _, tx=tx):
            params, state = carry
            return gx.step(tx, params, gradient(params), state), params

        points = jax.lax.scan(one, (START, tx.init(START)), length=STEPS)[1]
        gap = float(abs(points["a"] - sutskever(eta, mu)[0]["a"]).max())
        assert (gap < 1e-12) == same
        assert same or gap > 1e-3


def test_iterate_and_point_are_found_inside_other_states():
    tx = optax.chain(optax.clip(1.0), gx.nag(0.1))
    y, state = START, tx.init(START)
    updates, state = tx.update(gradient(y), state, y)
    y = optax.apply_updates(y, updates)
    moved = jax.tree.map(lambda y, s: y - s, y, gx.lookahead_iterate(state, y))
    assert float(abs(moved["a"]).max()) > 1e-3


def test_iterates_keep_the_dtype_of_the_parameters():
    tx, w = gx.nag(0.1), jnp.ones(3, jnp.bfloat16)
    w, state = gx.step(tx, w, w, tx.init(w))
    assert gx.lookahead_iterate(state, w).dtype == jnp.bfloat16


def test_errors():
    with pytest.raises(ValueError, match="has no slots 'offset' of a nag_lookahead rule"):
        gx.lookahead_iterate(gx.adam(0.1).init(START), START)
    with pytest.raises(ValueError, match="other form of lookahead: nag_lookahead holds points"):
        gx.lookahead_point(gx.nag(0.1).init(START), START)
    both = optax.chain(gx.nag(0.1), gx.nag(0.1)).init(START)
    with pytest.raises(ValueError, match="has 2 slots 'offset'"):
        gx.lookahead_iterate(both, START)
    for point in (gx.evaluation_point, gx.gradient_point):
        with pytest.raises(TypeError, match="state is a transformation"):
            point(gx.schedule_free_sgd(0.1), START)
    state = gx.schedule_free_sgd(0.1).init(START)
    with pytest.raises(ValueError, match=r"leaf 'b' of the parameters has shape \(1,\), and its offset"):
        gx.evaluation_point(state, {"a": START["a"], "b": np.ones(1)})
    with pytest.raises(ValueError, match="holds offsets of leaves that are no parameters: 'b'"):
        gx.evaluation_point(state, {"a": START["a"]})


def test_the_slot_is_that_of_the_phase_that_is_on():
    """After a switch the frozen slot of the first phase is not read any more."""
    tx = gx.switch(2, gx.chain(gx.sgd(0.01, momentum=0.9), gx.nag_lookahead(0.9)), gx.sgd(0.01), carry="reset")
    y, state = START, tx.init(START)
    for k in range(4):
        y, state = gx.step(tx, y, gradient(y), state)
        offset = jax.tree.map(lambda y, w: float(abs(y - w).max()), y, gx.lookahead_iterate(state, y))
        assert (offset["a"] > 1e-4) == (k < 2)
    both = gx.switch(2, gx.nag(0.01), gx.nag(0.02), carry="reset")
    y, state = START, both.init(START)
    for k in range(4):
        y, state = gx.step(both, y, gradient(y), state)
        now = (state.first, state.then)[k >= 2].slots["nag_lookahead"]["offset"]
        close(gx.lookahead_iterate(state, y), jax.tree.map(jnp.subtract, y, now))


def test_parts_without_lookahead_hold_the_iterate():
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    tx = gx.partition({"a": gx.nag(0.1), "b": gx.nag(0.2), "c": gx.sgd(0.1)})
    y, state = gx.step(tx, params, params, tx.init(params))
    w = gx.lookahead_iterate(state, y)
    np.testing.assert_allclose([w["a"][0], w["b"][0], w["c"][0]], [0.99, 0.98, 0.9], rtol=1e-6)
    tx = gx.chain(gx.sgd(0.1, momentum=0.9), gx.where("a", gx.nag_lookahead(1.0)))
    y, state = gx.step(tx, params, params, tx.init(params))
    w = gx.lookahead_iterate(state, y)
    np.testing.assert_allclose([w["a"][0], y["a"][0], w["b"][0]], [0.9, 0.8, 0.9], rtol=1e-6)


def test_states_in_wrappers_hold_the_same_points():
    params = {"a": jnp.ones((2, 2)), "b": jnp.full(3, 2.0)}
    for tx, point in (
        (gx.nag(0.1), gx.lookahead_iterate),
        (gx.chain(gx.sgd(0.1, 0.5), gx.two_point_lookahead(0.5)), gx.gradient_point),
        (gx.schedule_free_sgd(0.1), gx.evaluation_point),
    ):
        held, state = gx.step(tx, params, params, tx.init(params))
        expected = point(state, held)
        packed = gx.packed(tx)
        for wrapped in (packed, gx.accumulate(packed, 1), gx.partition({"a": packed, "b": tx})):
            held, state = gx.step(wrapped, params, params, wrapped.init(params))
            for found in (point(state, held), jax.jit(point)(state, held)):
                jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
    away = gx.offload(gx.nag(0.1))
    held, state = gx.step(away, params, params, away.init(params))
    found = gx.evaluation_point(state, held)
    jax.tree.map(lambda p, w: np.testing.assert_allclose(w, 0.99 * p, rtol=1e-6), params, found)
