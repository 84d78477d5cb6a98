"""Each rule against a float64 numpy version of its equation, written here from the paper and not from the code."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalog import EQUATIONS, RULES
from equations import damped, divide, ema, heavy_ball, nadam_moment, steps, weighted
from test_zoo import OPTAX, PAPERS

import gradtx as gx
from gradtx._core.numerics import l2_norm, norms, safe_divide, safe_sqrt, stacked

pytestmark = pytest.mark.usefixtures("x64")
STEPS = 30
G = np.random.default_rng(0).normal(size=(STEPS, 5)) * np.array([1.0, 10.0, 0.01, 0.0, 1.0])
P = np.array([1.0, -2.0, 3.0, 4.0, 0.0])


def run(tx, gradients=G, params=P):
    """The update of every step."""

    def one(state, g):
        updates, state = tx.update(g, state, jnp.asarray(params))
        return state, updates

    return np.asarray(jax.jit(lambda: jax.lax.scan(one, tx.init(jnp.asarray(params)), jnp.asarray(gradients))[1])())


def l2_norms(groups):
    return stacked(norms(groups))


T = steps(G)
ROOT_RMS = np.sqrt(ema(G**2, 0.8))


def unit(u, limit, axis=1):
    norm = np.sqrt((u**2).sum(axis, keepdims=True))
    return u * np.minimum(1, limit / norm)


PRE = gx.precondition(0.0)
# Beside those in the catalog.
CASES = {name: (RULES[name], equation(G, P)) for name, equation in EQUATIONS.items()} | {
    "momentum scheduled": (
        gx.momentum(lambda count: 0.5 + 0.1 * (count % 3)),
        weighted(
            G,
            lambda t, i: (1 - (0.5 + 0.1 * (i % 3))) * np.prod([0.5 + 0.1 * (k % 3) for k in range(i + 1, t + 1)]),
        ),
    ),
    "damped_trace of nothing later": (gx.damped_trace(1e-40, 1.0), weighted(G, lambda t, i: 1e-40**t * (i == 0))),
    "nesterov 0": (gx.nesterov(0.8, 0.0), nadam_moment(G, 0.8, lambda t: 0.5 + 0.0 * t)),
    "eps outside": (gx.chain(gx.rms(0.8), gx.precondition(0.3)), G / (ROOT_RMS + 0.3)),
    "eps inside": (gx.chain(gx.rms(0.8), gx.precondition(0.0, 0.3)), G / np.sqrt(ROOT_RMS**2 + 0.3)),
    "debias momentum": (gx.chain(gx.momentum(0.8), gx.debias()), ema(G, 0.8) / (1 - 0.8**T)),
    "debias rms": (gx.chain(gx.rms(0.8), gx.debias(), PRE), divide(G, ROOT_RMS / np.sqrt(1 - 0.8**T))),
    "debias trace": (gx.chain(gx.trace(0.8), gx.debias()), heavy_ball(G, 0.8) * (1 - 0.8) / (1 - 0.8**T)),
    "debias trace nesterov": (
        gx.chain(gx.trace(0.8, nesterov=True), gx.debias()),
        (G + 0.8 * heavy_ball(G, 0.8)) / (1 + 0.8 * (1 - 0.8**T) / (1 - 0.8)),
    ),
    "debias damped_trace": (
        gx.chain(gx.damped_trace(0.8, 0.3), gx.debias()),
        damped(G, 0.8, 0.3) / damped(np.ones_like(G), 0.8, 0.3),
    ),
    "debias damped_trace of momentum": (
        gx.chain(gx.momentum(0.5), gx.damped_trace(0.8, 0.3), gx.debias()),
        damped(ema(G, 0.5), 0.8, 0.3) / damped(1 - 0.5**T + 0 * G, 0.8, 0.3),
    ),
    "debias centered_rms": (
        gx.chain(gx.centered_rms(0.8), gx.debias(), gx.precondition(0.1)),
        G / (np.sqrt((ema(G**2, 0.8) - ema(G, 0.8) ** 2) / (1 - 0.8**T)) + 0.1),
    ),
    "debias adagrad": (
        gx.chain(gx.adagrad_sum(), gx.debias(), PRE),
        divide(G, np.sqrt(np.cumsum(G**2, 0) / T)),
    ),
    "epsilon hat": (
        gx.chain(gx.momentum(0.9), gx.rms(0.8), gx.precondition(0.1), gx.debias()),
        np.sqrt(1 - 0.8**T) / (1 - 0.9**T) * ema(G, 0.9) / (ROOT_RMS + 0.1),
    ),
    "momentum of momentum": (
        gx.chain(gx.momentum(0.8), gx.momentum(0.5), gx.debias()),
        ema(ema(G, 0.8), 0.5) / ema(1 - 0.8 ** T.astype(float), 0.5),
    ),
    "learning rate": (gx.scale_by_learning_rate(lambda count: 0.1 / (count + 1)), -0.1 / T * G),
    "clip_by_value": (gx.clip_by_value(0.7), np.clip(G, -0.7, 0.7)),
    "clip_by_norm": (gx.clip_by_norm(3.0), unit(G, 3.0)),
    "clip_by_global_norm": (gx.clip_by_global_norm(3.0), unit(G, 3.0)),
    "nag_lookahead": (gx.nag_lookahead(0.6), G + 0.6 * (G - np.vstack([np.zeros(5), G[:-1]]))),
    "two_point_lookahead": (gx.two_point_lookahead(0.6), G),
    "nag_lookahead scheduled": (
        gx.nag_lookahead(lambda count: 0.1 * (count % 4)),
        G + 0.1 * (T % 4) * G - np.vstack([np.zeros(5), (0.1 * (T % 4) * G)[:-1]]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equation(name):
    tx, expected = CASES[name]
    np.testing.assert_allclose(run(tx), expected, rtol=1e-11, atol=1e-13)


OF_DIALECTS = {"start_averages", "one_late", "first_rate"}


def test_every_rule_has_its_equation_tested():
    """Here or, of the optimizers since Adam, beside a framework or a paper."""
    cases = [tx for table in (CASES, OPTAX, PAPERS) for tx, _ in table.values()]
    tested = {type(rule).__name__ for tx in cases for rule in tx.rules} | {
        *("orthogonalize", "scale_by_shape", "in_units_of_distance", "add_noise", "scale_by_polyak"),
        "scale_by_model",
        *("normalized_lookahead", "scale_by_distance_bound", "in_subspace", "as_matrices", "project_out"),
    }
    rules = {
        name for name in gx.__all__ if isinstance(getattr(gx, name), type) and issubclass(getattr(gx, name), gx.Rule)
    }
    assert rules - {"Rule", "monitor", "seal"} == tested - {"monitor", "seal", *OF_DIALECTS}


def test_norms_are_per_leaf_or_over_all():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    per_leaf = gx.clip_by_norm(6.5).update(grads, gx.clip_by_norm(6.5).init(grads))[0]
    over_all = gx.clip_by_global_norm(6.5).update(grads, gx.clip_by_global_norm(6.5).init(grads))[0]
    np.testing.assert_allclose(per_leaf["a"], [3.0, 4.0])
    np.testing.assert_allclose(per_leaf["b"], [6.5])
    np.testing.assert_allclose(over_all["a"], [1.5, 2.0])
    np.testing.assert_allclose(over_all["b"], [6.0])


def test_complex_second_moment_is_the_squared_modulus():
    g = jnp.array([3.0 + 4.0j])
    tx = gx.chain(gx.rms(0.75), PRE)
    updates, state = tx.update(g, tx.init(g))
    assert state.slots["rms"]["s"].dtype == jnp.float64
    np.testing.assert_allclose(state.slots["rms"]["s"], [0.25 * 25.0])
    np.testing.assert_allclose(updates, g / 2.5)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_norm_does_not_overflow_or_vanish(scale):
    tx = gx.clip_by_norm(scale)
    g = scale * jnp.array([3.0, 4.0])
    updates, _ = jax.jit(tx.update)(g, tx.init(g))
    np.testing.assert_allclose(updates / scale, [0.6, 0.8], rtol=1e-14)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("rule", [gx.clip_by_norm, gx.clip_by_global_norm])
def test_a_norm_that_is_not_finite_is_never_a_silent_zero(rule, bad):
    g = jnp.array([bad, 1.0])
    updates, _ = rule(1.0).update(g, rule(1.0).init(g))
    assert np.isnan(updates).all()


@pytest.mark.parametrize("jit", [False, True])
def test_damped_trace_has_a_first_step_at_any_count(jit):
    tx = gx.damped_trace(0.8, 0.3)
    update = jax.jit(tx.update) if jit else tx.update
    state = tx.init(G[0])._replace(count=jnp.array(7, jnp.int32))
    for g, expected in zip(G, damped(G, 0.8, 0.3), strict=True):
        updates, state = update(g, state)
        np.testing.assert_allclose(updates, expected, rtol=1e-12, atol=1e-15)


def test_two_points_are_ahead_by_the_factor_of_the_next_step():
    tx = gx.two_point_lookahead(lambda count: 0.1 * (count % 4))
    state = tx.init(jnp.asarray(P))
    for t, g in enumerate(G, 1):
        _, state = tx.update(jnp.asarray(g), state)
        np.testing.assert_allclose(gx.lookahead_point(state, jnp.asarray(P)), P + 0.1 * (t % 4) * g, rtol=1e-14)


class TestWeightZero:
    """Decays of 1 average nothing: v and its weight stay 0."""

    NOTHING = gx.rms(lambda count: 1.0 + 0.0 * count)

    def test_only_epsilon_is_left_and_debias_finds_nothing_to_divide_out(self):
        np.testing.assert_allclose(run(gx.chain(self.NOTHING, gx.precondition(0.1))), 10.0 * G)
        np.testing.assert_allclose(run(gx.chain(self.NOTHING, gx.precondition(0.1), gx.debias())), 10.0 * G)
        np.testing.assert_allclose(run(gx.chain(self.NOTHING, gx.debias(), gx.precondition(0.1))), 10.0 * G)

    def test_zero_over_zero_is_zero(self):
        np.testing.assert_array_equal(run(gx.chain(self.NOTHING, PRE)), 0.0 * G)


class TestNumbers:
    def test_zero_has_a_root_and_a_quotient_with_slopes(self):
        x = jnp.array([0.0, 4.0])
        np.testing.assert_array_equal(safe_sqrt(x), [0.0, 2.0])
        for slope in (jax.grad, jax.jacfwd):
            np.testing.assert_array_equal(jax.vmap(slope(safe_sqrt))(x), [0.0, 0.25])
        np.testing.assert_array_equal(safe_divide(jnp.array([3.0, 3.0]), x), [0.0, 0.75])
        for slope in (jax.grad, jax.jacfwd):
            slopes = jax.vmap(slope(safe_divide, argnums=(0, 1)))(jnp.array([3.0, 3.0]), x)
            np.testing.assert_array_equal(slopes, [[0.0, 0.25], [0.0, -0.1875]])
        assert np.isnan(safe_sqrt(jnp.array([np.nan, -1.0]))).all()
        assert np.isnan(safe_divide(jnp.array(1.0), jnp.array(np.nan)))

    @pytest.mark.parametrize("jit", [False, True])
    @pytest.mark.parametrize(
        "x",
        [
            [1.5e-19] + [1e-19] * 100,  # one square is a normal number, a hundred of them subnormal, or flushed to 0
            [3e-22, 1e-22, 2e-22],  # squares of one to seven units of the least subnormal
            [3e-38, 4e-38],
            [3e19, 1e19],
            [0.0, 0.0],
        ],
    )
    def test_norm_in_float32_is_that_of_float64(self, x, jit):
        x = np.asarray(x, np.float32)
        norm = (jax.jit(l2_norm) if jit else l2_norm)([jnp.asarray(x)])
        assert norm.dtype == jnp.float32
        np.testing.assert_allclose(norm, np.linalg.norm(x.astype(np.float64)), rtol=1e-6)

    def test_norms_out_of_range_beside_norms_within(self):
        scales = np.array([1e-25, 1.0, 1e25, 0.0, 1e3])
        groups = [[jnp.asarray([3.0 * s], jnp.float32), jnp.asarray([4.0 * s], jnp.float32)] for s in scales]
        np.testing.assert_allclose(l2_norms([*groups, []]), [*(5.0 * scales), 0.0], rtol=1e-6)

    @pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e25, 3e38])
    def test_norm_of_numbers_that_the_compiler_knows(self, value):
        """It reorders products of constants: (0·s)·(0·s) becomes 0·(s·s), which is NaN where s² overflows."""
        value = np.float32(value)

        def three_norms(times):
            three, two = jnp.full(3, value) * times, jnp.full(2, value) * times
            return l2_norms([[three[:1]], [two], [two[:1], jnp.zeros(3, "float32")]])

        one = jnp.ones((), "float32")
        for found in (
            jax.jit(lambda: three_norms(one))(),
            jax.jit(three_norms)(one),
            jax.vmap(three_norms)(one[None])[0],
            three_norms(one),
        ):
            np.testing.assert_allclose(found, value * np.array([1, 2**0.5 if value < 3e38 else np.inf, 1]), rtol=1e-6)

    def test_norm_of_complex_numbers(self):
        for scale in (1e-30, 1.0, 1e30):
            lengths = l2_norms([[jnp.array([3 + 4j, 12j], "complex64") * np.float32(scale)]])
            assert lengths.dtype == jnp.float32
            np.testing.assert_allclose(lengths, [13 * scale], rtol=1e-6)

    def test_a_factor_of_zeros_may_be_as_large_as_it_is(self):
        def two_norms(s):
            return jnp.stack([l2_norm([np.zeros(3, "f") * s]), l2_norm([np.full(3, 1e25, "f") * (s * 1e-30)])])

        for s in (1e30, 1e10):
            np.testing.assert_allclose(jax.jit(two_norms)(jnp.float32(s)), [0, 3**0.5 * s * 1e-5], rtol=1e-6)

    @pytest.mark.parametrize("jit", [False, True])
    def test_norms_of_several_widths(self, jit):
        """A square that overflows in one width does not in another; a norm is in the widest of all."""
        with jax.enable_x64(True):
            for wide, narrow in itertools.product((0.0, 1e-200, 1e-30, 1.0, 1e200), (0.0, 1e-30, 1.0, 1e30)):
                arrays = [jnp.full(2, wide, "float64"), jnp.full(2, narrow, "float32"), jnp.ones(2, "float16")]
                lengths = (jax.jit(l2_norms) if jit else l2_norms)([arrays[:2], [arrays[1]], arrays[1:], arrays])
                exact = [np.asarray(x, np.longdouble) for x in arrays]
                expected = [np.hypot.reduce(np.concatenate(xs)) for xs in (exact[:2], [exact[1]], exact[1:], exact)]
                assert lengths.dtype == jnp.float64
                np.testing.assert_allclose(lengths, np.asarray(expected, float), rtol=1e-6)

    def test_clips_of_several_widths(self):
        tree = {"a": jnp.full(2, 3e200), "b": jnp.full(2, 1e25, "float32"), "c": jnp.full(2, 1e-30, "float32")}
        for tx, b in ((gx.clip_by_norm(1.0), 0.5**0.5), (gx.clip_by_global_norm(1.0), 0.0)):
            clipped = jax.jit(lambda g, tx=tx: tx.update(g, tx.init(g))[0])(tree)
            for key, expected in {"a": 0.5**0.5, "b": b, "c": 1e-30 if b else 0}.items():
                np.testing.assert_allclose(clipped[key], [expected] * 2, rtol=1e-6)

    def test_many_small_squares_beside_one_in_range(self):
        """A million squares that float32 flushes to 0 make a hundredth of this sum."""
        x = np.full(2**20, 1e-19, np.float32)
        x[0] = 1e-15
        np.testing.assert_allclose(l2_norm([jnp.asarray(x)]), np.linalg.norm(x.astype(float)), rtol=1e-6)

    def test_norms_outside_of_jit_compile_once(self, caplog):
        first, second = ([[jnp.full(3, scale)], [jnp.ones(2)]] for scale in (1e-25, 1.0))
        l2_norms(first)
        with jax.log_compiles():
            l2_norms(second)
        assert not caplog.messages

    @pytest.mark.parametrize("power", [-80, -70, 0, 64, 100])
    def test_norm_of_right_angles_is_exact(self, power):
        """Squares out of range are taken of numbers scaled by a power of two, which rounds nothing."""
        for a, b, c in ((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (12, 35, 37), (9, 40, 41)):
            x = jnp.asarray(np.array([a, b]) * 2.0**power, jnp.float32)
            assert float(l2_norm([x])) == c * 2.0**power

    def test_slope_of_a_norm(self):
        for scale in (1e-25, 1.0, 1e25):
            x = jnp.asarray(scale * np.array([3.0, -4.0]), jnp.float32)
            np.testing.assert_allclose(jax.grad(lambda x: l2_norm([x]))(x), [0.6, -0.8], rtol=1e-6)
        np.testing.assert_array_equal(jax.grad(lambda x: l2_norm([x]))(jnp.zeros(2)), [0.0, 0.0])


class TestOverflow:
    """A gradient whose square overflows: v is infinite, and the step 0 from then on, whatever the compiler knows."""

    @pytest.mark.parametrize("executor", ["reference", "native"])
    @pytest.mark.parametrize(
        "v",
        [gx.adagrad_sum(), gx.rms(0.9), gx.rms(0.0), gx.monotone_rms(0.5), gx.chain(gx.rms(0.9), gx.max_v())],
        ids=str,
    )
    def test_the_step_is_zero(self, v, executor):
        tx, large, one = gx.chain(v, PRE), jnp.full(3, 1e30, "float32"), jnp.ones(3, "float32")

        def steps(g, state):
            first, state = tx.update(g, state)
            return [first, tx.update(jnp.ones(3, "float32"), state)[0]]

        with gx.executor(executor):
            inside = jax.jit(lambda: steps(jnp.full(3, 1e30, "float32"), tx.init(one)))()
            half = jax.jit(lambda state: steps(jnp.full(3, 1e30, "float32"), state))(tx.init(one))
            passed = jax.jit(steps)(large, tx.init(one))
        for found in (inside, half, passed):
            np.testing.assert_array_equal(found[0], np.zeros(3))
            if not tx.rules[0].hyperparameters().get("decay") == 0:  # 0·inf is NaN
                np.testing.assert_array_equal(found[1], np.zeros(3))


class TestNesterov:
    """Against the two-point methods that the lookahead stands for, on a nonlinear gradient."""

    @staticmethod
    def gradient(w, jnp=np):
        return w**3 + jnp.array([1.0, 4.0, 0.5]) * w - 1.0

    W0 = np.array([1.0, -0.5, 2.0])

    def held(self, tx, steps=40):
        """The parameters that the chain holds, from the start on."""
        w, state, out = jnp.asarray(self.W0), tx.init(jnp.asarray(self.W0)), [self.W0]
        update = jax.jit(tx.update)
        for _ in range(steps):
            updates, state = update(self.gradient(w, jnp), state, w)
            w = w + updates
            out.append(np.asarray(w))
        return np.stack(out), state

    def sutskever(self, eta, mu, steps=40):
        """y_t = θ_t + μ_t v_t;  v_{t+1} = μ_t v_t − η_t ∇f(y_t);  θ_{t+1} = θ_t + v_{t+1}: the y and the last θ."""
        theta, v, ys = self.W0.copy(), np.zeros(3), []
        for t in range(steps + 1):
            ys.append(theta + mu(t) * v)
            if t < steps:
                v = mu(t) * v - eta(t) * self.gradient(ys[-1])
                theta = theta + v
        return np.stack(ys), theta

    SCHEDULES = {
        "constant": (lambda t: 0.05, lambda t: 0.9),
        "changing rate": (lambda t: 0.05 * 0.95**t, lambda t: 0.9),
        "changing both": (lambda t: 0.05 * 0.95**t, lambda t: 0.9 - 0.5 / (t + 1.0)),
    }

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_lookahead_is_sutskevers_for_any_schedule(self, name):
        eta, mu = self.SCHEDULES[name]
        held, state = self.held(gx.chain(gx.scale_by_learning_rate(eta), gx.trace(mu), gx.nag_lookahead(mu)))
        ys, theta = self.sutskever(eta, mu)
        np.testing.assert_allclose(held, ys, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(held[-1] - state.slots["nag_lookahead"]["offset"], theta, rtol=1e-12)

    def test_trace_nesterov_is_the_same_at_a_constant_rate_only(self):
        for (eta, mu), same in ((self.SCHEDULES["constant"], True), (self.SCHEDULES["changing rate"], False)):
            held, _ = self.held(gx.chain(gx.trace(0.9, nesterov=True), gx.scale_by_learning_rate(eta)))
            gap = abs(held - self.sutskever(eta, mu)[0]).max()
            assert (gap < 1e-13) == same
            assert same or gap > 1e-3

    def test_the_articles_nag(self):
        """g_t = ∇f(w_t − η m_{t−1}), m the article's average, w ← w − ηm: two points, here with numpy."""
        w, m, ys = self.W0.copy(), np.zeros(3), []
        for _ in range(41):
            ys.append(w - 0.1 * m)
            m = 0.9 * m + 0.1 * self.gradient(ys[-1])
            w = w - 0.1 * m
        held, _ = self.held(gx.nag(0.1))
        np.testing.assert_allclose(held, np.stack(ys), rtol=1e-12, atol=1e-13)

    def test_lookahead_of_any_direction_is_a_two_point_method(self):
        """Nadam as the article means it: Adam whose gradient is taken one whole last step ahead."""
        eta, step = (lambda t: 0.05 * 0.97**t), np.zeros(3)
        w, m, v, ys = self.W0.copy(), np.zeros(3), np.zeros(3), []
        for t in range(41):
            ys.append(w + step)
            g = self.gradient(ys[-1])
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
            step = -eta(t) * m / np.sqrt(v)
            w = w + step
        tx = gx.chain(gx.article_adam(eta, 0.9, 0.99), gx.nag_lookahead(1.0))
        np.testing.assert_allclose(self.held(tx)[0], np.stack(ys), rtol=1e-11, atol=1e-12)
