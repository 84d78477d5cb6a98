"""Surprises of users of optax that do not happen here.

Each test states the true value, from float64 or by hand; ``optax_gives`` keeps what optax 0.2.8 does beside it, so that
the difference stays documented and a change there is noticed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx as gx
from gradtx import optimizers

LR = gx.scale_by_learning_rate(0.1)


def run(tx: Any, grads: Any, params: Any) -> Any:
    state, updates = tx.init(params), None
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, params)
    return updates, state


def first(tx, g, params=None):
    return run(tx, [g], g if params is None else params)[0]


def wide(x):
    return np.asarray(jnp.asarray(x, jnp.float32), np.float64)


def optax_gives(found, expected, **tolerance):
    """Documents optax's value; if a newer optax differs, that is news and not an error of gradtx."""
    if optax.__version__.startswith("0.2.8"):
        np.testing.assert_allclose(wide(found), expected, **tolerance)


def test_01_bfloat16_does_not_round_the_decays():
    """b2 = 0.999 is 1 in bfloat16."""
    params = jnp.ones(3, jnp.bfloat16)
    tx = gx.adamw(0.1)
    assert float(tx.init(params).hyperparams["rms"]["decay"]) == pytest.approx(0.999)
    np.testing.assert_allclose(wide(first(tx, params)), -0.1, rtol=1e-2)  # one bfloat16 ulp is 2⁻⁸
    theirs = optax.inject_hyperparams(optax.adamw)(0.1)
    optax_gives(first(theirs, params), np.nan)


def test_02_float16_gradients_have_a_norm():
    g = jnp.array([300.0, 400.0], jnp.float16)
    np.testing.assert_allclose(wide(first(gx.clip_by_global_norm(1.0), g)), [0.6, 0.8], rtol=1e-3)
    optax_gives(first(optax.clip_by_global_norm(1.0), g), [0.0, 0.0])


def test_03_a_norm_of_many_bfloat16_leaves():
    ones = [jnp.ones((), jnp.bfloat16)] * 1000
    clipped = first(gx.clip_by_global_norm(1.0), ones)
    np.testing.assert_allclose(wide(clipped[0]), 1000**-0.5, rtol=1e-2)
    optax_gives(optax.tree.norm(ones), 16.0)


def test_04_clipping_zero_to_zero_and_one_inf():
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(first(gx.clip_by_global_norm(0.0), zero), 0.0)
    optax_gives(first(optax.clip_by_global_norm(0.0), zero), np.nan)
    one_inf = jnp.array([jnp.inf, 1.0])
    assert np.isnan(first(gx.clip_by_global_norm(1.0), one_inf)).all()  # defined, and never a silent zero
    optax_gives(first(optax.clip_by_global_norm(1.0), one_inf), [np.nan, 0.0])


def test_04_a_norm_beyond_the_range_of_float32_squares():
    g = jnp.array([3e30, 4e30])
    np.testing.assert_allclose(first(gx.clip_by_global_norm(1.0), g), [0.6, 0.8], rtol=1e-6)
    optax_gives(first(optax.clip_by_global_norm(1.0), g), [0.0, 0.0])


def test_05_a_bad_step_in_optax_multisteps_is_optaxs_own():
    """gradtx accumulates nothing itself; inside MultiSteps its chains see what MultiSteps hands them."""
    steps = optax.MultiSteps(gx.sgd(1.0), 2)
    state = steps.init(jnp.zeros(1))
    for g in (jnp.inf, 1.0, 1.0, 1.0):
        updates, state = steps.update(jnp.array([g]), state, jnp.zeros(1))
    optax_gives(updates, np.nan)  # its accumulator stays poisoned


@pytest.mark.parametrize("g", [0.0, 1e-4])
def test_06_adam_in_float16(g):
    grads = jnp.full(2, g, jnp.float16)
    np.testing.assert_allclose(wide(first(gx.adam(0.1), grads)), -0.1 * (g > 0), rtol=2e-3)
    optax_gives(first(optax.adam(0.1), grads), np.nan if g == 0 else -np.inf)


def test_07_averages_do_not_stall_in_bfloat16():
    params, one, zero = jnp.zeros(1, jnp.bfloat16), jnp.ones(1, jnp.bfloat16), jnp.zeros(1, jnp.bfloat16)
    tx = gx.chain(gx.rms(0.999), gx.precondition())
    state = tx.init(params)._replace(slots={"rms": {"s": jnp.ones(1), "weight": jnp.ones(())}})
    update = jax.jit(tx.update)
    for _ in range(300):
        _, state = update(zero, state)
    np.testing.assert_allclose(state.slots["rms"]["s"], 0.999**300, rtol=1e-4)  # 0.741
    tx = gx.chain(gx.adagrad_sum(), gx.precondition())
    _, state = run(tx, [one] * 300, params)
    assert float(state.slots["adagrad_sum"]["s"][0]) == 300.0
    theirs = optax.scale_by_rss(initial_accumulator_value=0.0)
    optax_gives(run(theirs, [one] * 300, params)[1].sum_of_squares, 256.0)


@pytest.mark.parametrize("make", [gx.adam, gx.amsgrad, gx.rmsprop, gx.adagrad, gx.nadam, lambda lr: gx.sgd(lr, 0.9)])
def test_08_state_keeps_its_dtypes(make):
    """bfloat16 parameters with float32 gradients; lax.scan refuses a carry that changes."""
    tx, params, grads = make(0.1), jnp.ones(2, jnp.bfloat16), jnp.ones(2)
    jax.lax.scan(lambda state, _: (tx.update(grads, state, params)[1], None), tx.init(params), None, 2)


def test_08_optax_changes_them():
    params, grads = jnp.ones(2, jnp.bfloat16), jnp.ones(2)
    tx = optax.amsgrad(0.1)
    with pytest.raises(TypeError, match="carry"):
        jax.lax.scan(lambda state, _: (tx.update(grads, state, params)[1], None), tx.init(params), None, 2)


def test_09_the_first_step_of_adam_is_the_learning_rate():
    """1 − b2**t cancels in float32; a weight carried along does not."""
    g = jnp.array([1.0, -3.0])
    np.testing.assert_allclose(first(gx.adam(1.0, eps=0.0), g), [-1.0, 1.0], rtol=2e-7)
    optax_gives(first(optax.adam(1.0, eps=0.0), g), [-0.9999934, 0.9999934], rtol=1e-7)


def test_10_amsgrad_in_torchs_order_exists():
    """Checked against torch itself in test_dialects.py; neither of optax's flags gives it."""
    grads = [jnp.array([x]) for x in (1.0, 0.1, 0.1, 0.1)]
    ours, _ = run(gx.amsgrad(0.1, b2=0.9), grads, jnp.zeros(1))
    for flags in ({}, {"bias_correction_nu": False}, {"bias_correction_mu": False, "bias_correction_nu": False}):
        theirs, _ = run(optax.amsgrad(0.1, b2=0.9, **flags), grads, jnp.zeros(1))
        assert abs(float(ours[0]) - float(theirs[0])) > 1e-3


def test_11_adagrad_takes_whole_first_steps():
    g = jnp.array([1e-6])
    np.testing.assert_allclose(first(gx.adagrad(1.0), g), -1.0, rtol=1.1e-2)  # 1e-6/(1e-6 + 1e-8)
    optax_gives(first(optax.adagrad(1.0, initial_accumulator_value=0.0), g), -0.0032, rtol=2e-2)


@pytest.mark.parametrize("steps", [20, 60, 120, 200])
def test_12_centered_rms_keeps_its_digits_at_a_constant_gradient(steps):
    """The variance of a constant falls as βᵗ(1 − βᵗ); float32 follows it, where a difference of squares is noise."""
    g = jnp.array([3.0, 0.1])
    updates, _ = run(gx.chain(gx.centered_rms(0.9), gx.precondition(0.0)), [g] * steps, g)
    bias = 0.9**steps
    np.testing.assert_allclose(updates, 1.0 / np.sqrt(bias * (1 - bias)), rtol=1e-3)
    theirs, _ = run(optax.scale_by_stddev(0.9, eps=0.0), [g] * 200, g)
    off = abs(wide(theirs) * np.sqrt(0.9**200 * (1 - 0.9**200)) - 1)
    assert not (off < 0.5).all()  # optax's: noise, or NaN


def test_13_shapes_and_integers():
    """Refused, with the leaf's name: test_errors.py. optax broadcasts the first and truncates the second."""
    with pytest.raises(ValueError, match="nothing is broadcast"):
        gx.sgd(1.0).update(jnp.ones(3), gx.sgd(1.0).init(jnp.ones((3, 1))), jnp.ones((3, 1)))
    with pytest.raises(TypeError, match="only floating and complex leaves"):
        gx.sgd(0.1).init(jnp.arange(3))


def test_14_clear_errors():
    assert gx.chain().update(jnp.ones(1), gx.chain().init(jnp.ones(1)))[0] == 1.0  # the identity
    with pytest.raises(TypeError, match="needs the ChainState"):
        gx.adam(0.1).update(jnp.ones(1), optax.adam(0.1).init(jnp.ones(1)))  # pyright: ignore[reportArgumentType] - the mistake
    with pytest.raises(ValueError, match="'add_decayed_weights' reads the parameters"):
        gx.adamw(0.1).update(jnp.ones(1), gx.adamw(0.1).init(jnp.ones(1)))
    with pytest.raises(ValueError, match="unpack"):
        optax.chain().init(jnp.ones(1))


def test_15_looking_inside_keeps_the_structure():
    """Everything worth looking at is in the state already, and nothing is added by looking."""
    state = gx.adam(0.1).init(jnp.ones(1))
    assert float(optax.tree_utils.tree_get(state, "learning_rate")) == pytest.approx(0.1)
    assert optax.tree_utils.tree_get(state, "m").shape == (1,)


def test_16_every_optimizer_descends():
    no_first_step, of_the_loss = {"adopt", "soap"}, {"momo", "momo_adam"}
    names = sorted(set(optimizers.__all__) - no_first_step - of_the_loss)
    gradient = jnp.array([1.0, -1.0])
    updates = jax.jit(lambda: {name: first(getattr(gx, name)(0.1), gradient, jnp.zeros(2)) for name in names})()
    for name in names:
        assert bool((updates[name] * gradient < 0).all()), name
    optax_gives(first(optax.adadelta(), jnp.ones(1)) > 0, 1.0)  # its default ascends


META = {
    "adam": (lambda lr, x: gx.adam(lr, x), 0.9),
    "b2": (lambda lr, x: gx.adam(lr, b2=x), 0.99),
    "eps": (lambda lr, x: gx.adam(lr, eps=x), 1e-3),
    "adamw": (lambda lr, x: gx.adamw(lr, weight_decay=x), 0.1),
    "rmsprop": (lambda lr, x: gx.rmsprop(lr, x), 0.9),
    "centered": (lambda lr, x: gx.rmsprop(lr, x, centered=True), 0.9),
    "adagrad": (lambda lr, x: gx.adagrad(lr, x), 0.1),
    "amsgrad": (lambda lr, x: gx.amsgrad(lr, b2=x), 0.9),
    "max_v": (lambda lr, x: gx.article_max_v(lr, second_decay=x), 0.9),
    "nadam": (lambda lr, x: gx.nadam(lr, schedule_decay=x), 0.004),
    "nag": (lambda lr, x: gx.nag(lr, lookahead=x), 1.0),
    "trace": (lambda lr, x: gx.sgd(lr, x, nesterov=True), 0.9),
    "damped": (lambda lr, x: gx.chain(gx.damped_trace(0.9, x), gx.scale_by_learning_rate(lr)), 0.5),
    "inverse time": (lambda lr, x: gx.chain(gx.scale_by_inverse_time(x), gx.scale_by_learning_rate(lr)), 0.5),
    "decay_weights": (lambda lr, x: gx.chain(gx.sgd(lr), gx.decay_weights(lr, x)), 0.5),
    "debiased": (lambda lr, x: gx.chain(gx.momentum(x), gx.debias(), gx.scale_by_learning_rate(lr)), 0.5),
    "clip_by_norm": (lambda lr, x: gx.chain(gx.clip_by_norm(x), gx.sgd(lr)), 0.7),
    "clip_by_global_norm": (lambda lr, x: gx.chain(gx.clip_by_global_norm(x), gx.sgd(lr)), 0.7),
    "clip_by_value": (lambda lr, x: gx.chain(gx.clip_by_value(x), gx.sgd(lr)), 0.3),
    "sign and scale": (lambda lr, x: gx.chain(gx.sign(), gx.scale(x), gx.sgd(lr)), 0.5),
    "torch clip": (lambda lr, x: gx.chain(gx.dialects.torch.clip_grad_norm(x), gx.sgd(lr)), 0.7),
    "epsilon hat": (lambda lr, x: gx.dialects.keras.adam(lr, epsilon=x), 1e-3),
}


def loss_after(make: Any, lr: Any, x: Any, scale: Any, params: Any) -> Any:
    """The loss after three steps whose gradients depend on what came before."""
    tx = make(lr, x)
    state = tx.init(params)
    for k in range(3):
        g = scale * (jnp.array([1.0, -0.5]) + 0.3 * k * params)
        params, state = gx.step(tx, params, g, state)
    return jnp.sum(jnp.cos(params) + 0.1 * params**2)


@pytest.mark.parametrize("name", META)
def test_17_differentiating_through_updates(name):
    """In the learning rate, another hyperparameter and the gradient: finite at zero, finite differences elsewhere."""
    make, value = META[name]
    with jax.enable_x64(True):
        params = jnp.array([0.5, -1.0])

        def loss(point):
            lr, x, scale = point
            return loss_after(make, lr, x, scale, params)

        loss_and_slopes = jax.jit(jax.value_and_grad(loss))
        _, at_zero = loss_and_slopes(jnp.array([0.1, value, 0.0]))
        assert bool(jnp.isfinite(at_zero).all()), at_zero
        point, h = np.array([0.1, value, 1.0]), 1e-6
        around = [(loss_and_slopes(point + h * e)[0], loss_and_slopes(point - h * e)[0]) for e in np.eye(3)]
        numeric = [(above - below) / (2 * h) for above, below in around]
        np.testing.assert_allclose(loss_and_slopes(point)[1], numeric, rtol=1e-5, atol=1e-7)


def test_17_optax_gives_nan():
    def loss(lr, scale):
        tx: Any = optax.adam(lr)
        g = scale * jnp.ones(2)
        return tx.update(g, tx.init(g))[0].sum()

    optax_gives(jax.grad(loss, argnums=1)(0.1, 0.0), np.nan)


def test_18_one_count_and_a_learning_rate_to_find():
    tx = gx.adamw(optax.cosine_decay_schedule(0.1, 10))
    state = tx.init(jnp.ones(1))
    assert int(optax.tree_utils.tree_get(state, "count")) == 0
    assert float(optax.tree_utils.tree_get(state, "learning_rate")) == pytest.approx(0.1)
    theirs = optax.adamw(optax.cosine_decay_schedule(0.1, 10)).init(jnp.ones(1))
    with pytest.raises(KeyError, match="multiple values"):
        optax.tree_utils.tree_get(theirs, "count")


class TestNonFinite:
    """Inf and NaN, as the docstrings of the rules say."""

    @pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan])
    @pytest.mark.parametrize("tx", [gx.adam(0.1), gx.sgd(0.1, 0.9), gx.rmsprop(0.1), gx.adagrad(0.1), gx.nadam(0.1)])
    def test_bad_elements_stay_where_they_are(self, tx, bad):
        g = jnp.array([bad, 1.0])
        updates, _ = run(tx, [g, jnp.ones(2)], g)
        good, _ = run(tx, [jnp.ones(2)] * 2, g)
        assert float(updates[1]) == float(good[1])
        assert not bool(jnp.isfinite(updates[0])) or float(updates[0]) == 0.0  # 0: divided by an infinite root

    def test_clip_by_value(self):
        g = jnp.array([jnp.inf, -jnp.inf, jnp.nan])
        np.testing.assert_array_equal(first(gx.clip_by_value(2.0), g), [2.0, -2.0, np.nan])

    def test_an_infinite_second_moment_stops_the_element(self):
        g = jnp.array([1e30, 1.0])  # whose square is inf in float32
        updates, _ = run(gx.rmsprop(0.1), [g, jnp.ones(2)], g)
        assert float(updates[0]) == 0.0
        assert float(updates[1]) < 0.0
