"""Rules at their edges, by hand: single elements, zeros, ties, what they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx as gx
from gradtx import testing

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def steps(tx: Any, gradients: Any, params: Any = 0.0) -> Any:
    """The update of each gradient in turn, the parameters staying where they are."""
    params = jnp.broadcast_to(jnp.asarray(params, float), np.shape(gradients[0]))
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for g in gradients:
        out, state = update(jnp.asarray(g, float), state, params)
        found.append(np.asarray(out))
    return found


def test_cautious():
    """A gradient of 0 agrees with no direction; one element is all of its leaf; the share is never below the floor."""
    tx = gx.chain(gx.momentum(0.5), gx.cautious(0.5))
    first, second = steps(tx, [[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 0.0, -1.0]])
    np.testing.assert_allclose(first, [2.0] * 4)
    np.testing.assert_allclose(second, [6.0, 6.0, 0.0, 0.0])  # (2 + 4)/2, twice as long for half of them
    np.testing.assert_allclose(steps(tx, [[4.0]])[0], [2.0])
    np.testing.assert_allclose(steps(tx, [[4.0] * 4, [4.0, 0.0, 0.0, 0.0]])[1], [6.0, 0.0, 0.0, 0.0])  # not 4 times
    tx = gx.chain(gx.momentum(0.5), gx.cautious(0.1, -0.5))  # grown by 4/(1 − ½); a 0 is no side
    _, second = steps(tx, [[4.0, 4.0, -4.0, 4.0], [4.0, -1.0, 0.0, -2.0]])
    np.testing.assert_allclose(second, np.array([3, -0.25, 0, 0]) * 4 / 0.5)


@pytest.mark.parametrize(
    ("g", "p", "expected"),
    [
        ([0.6, 0.8], [3.0, 4.0], [0.6 * 5, 0.8 * 5]),  # a direction of length 1 is nothing special
        ([3.0, 4.0], [0.6, 0.8], [0.6, 0.8]),
        ([3.0, 4.0], [0.0, 0.0], [3.0, 4.0]),
        ([0.0, 0.0], [3.0, 4.0], [0.0, 0.0]),
    ],
)
def test_trust_ratio(g, p, expected):
    np.testing.assert_allclose(steps(gx.scale_by_trust_ratio(), [g], p)[0], expected, rtol=1e-12)


def test_trust_ratio_with_its_options():
    (found,) = steps(gx.scale_by_trust_ratio(0.1, eps=5.0), [[3.0, 4.0]], [30.0, 40.0])
    np.testing.assert_allclose(found, [3.0 * 0.1 * 50 / 10, 4.0 * 0.1 * 50 / 10], rtol=1e-12)
    (found,) = steps(gx.scale_by_trust_ratio(floor=10.0), [[3.0, 4.0]], [0.0, 0.0])
    np.testing.assert_allclose(found, [3.0, 4.0], rtol=1e-12)


def test_sizes_of_parameters():
    np.testing.assert_allclose(steps(gx.scale_by_parameter_rms(1e-3), [[1.0, 2.0]], [3.0, 4.0])[0] ** 2, [12.5, 50.0])
    np.testing.assert_allclose(steps(gx.scale_by_parameter_rms(1e-3), [[2.0]], [-3.0])[0], [6.0])
    np.testing.assert_allclose(steps(gx.scale_by_parameter_rms(0.5), [[2.0]], [0.1])[0], [1.0])
    np.testing.assert_allclose(steps(gx.clip_by_rms(1.0), [[2.0]])[0], [1.0])
    np.testing.assert_allclose(steps(gx.clip_by_rms(1.0), [[7.0, 1.0]])[0], [1.4, 0.2])


def test_a_gradient_that_the_second_moment_has_not_seen():
    """By the root of the v of before, 0.5 here, it is 6; where v is 0 it counts as 0."""
    tx = gx.chain(gx.rms(0.5, start="first"), gx.lag_v("one"), gx.clip_by_gradient_rms(0.5), gx.precondition(0.0))
    first, second = steps(tx, [[0.5, 0.5], [0.0, 3.0]])
    np.testing.assert_allclose(first, [0.5, 0.5])
    np.testing.assert_allclose(second, [0.0, 0.5 * np.sqrt(2)], rtol=1e-12)  # 6, of a root mean square of 6/√2
    tx = gx.chain(gx.rms(0.5), gx.clip_by_gradient_rms(0.5), gx.precondition())
    np.testing.assert_allclose(steps(tx, [[0.0, 0.0], [0.0, 1.0]]), [[0.0, 0.0], [0.0, np.sqrt(2) / 2]], rtol=1e-6)


def test_what_lies_along_the_weights():
    """All of a number's gradient does; nothing where the weights are 0, nor in what is left."""
    tx = gx.project_out()
    np.testing.assert_allclose(steps(tx, [[7.0, 1.0], [4.0, -3.0]], [3.0, 4.0]), [[4.0, -3.0]] * 2, atol=1e-12)
    np.testing.assert_allclose(steps(tx, [[7.0]], [2.0])[0], [0.0], atol=1e-12)
    np.testing.assert_allclose(steps(tx, [[7.0, 1.0]], 0.0)[0], [7.0, 1.0])
    (found,) = steps(tx, [[7.0, 1.0]], [3e-200, 4e-200])  # ‖p‖² is no number
    np.testing.assert_allclose(found, [4.0, -3.0], rtol=1e-12)


def test_an_average_of_iterates_that_count_for_nothing():
    """Of a rate that starts at 0: the average stays at the start, and the first iterate with a weight is all of it."""
    tx = gx.average_iterates(pull=0.5, learning_rate=lambda count: 0.1 * count)
    first, second = steps(tx, [[2.0], [4.0]])
    np.testing.assert_allclose(first, [1.0])  # half of the way from the iterate, 2, to the average, 0
    np.testing.assert_allclose(second, [5.0])  # from there to the second iterate, 6, which is the average


@pytest.mark.parametrize("rate", [None, 0.3])
def test_a_pull_that_follows_a_schedule(rate):
    """The parameters are (1−κ)z + κx with the κ of the day, z and x summed up in numpy, and x is found from them."""
    table = np.array([0.0, 0.9, 0.9, 0.2, 1.0, 0.0, 0.5])
    tx = gx.chain(gx.sgd(0.1), gx.average_iterates(rate, lambda count: jnp.asarray(table)[count]))
    step, p = jax.jit(lambda p, g, state: gx.step(tx, p, g, state)), jnp.ones(2)
    state, z, x = tx.init(p), np.ones(2), np.ones(2)
    for t, kappa in enumerate(table):
        g = np.array([np.cos(3.0 * t), t - 2.0])
        z = z - 0.1 * g
        x = x + (1 / (t + 1) if rate is None else rate) * (z - x)
        p, state = step(p, jnp.asarray(g), state)
        np.testing.assert_allclose(p, (1 - kappa) * z + kappa * x, rtol=1e-12)
        np.testing.assert_allclose(gx.evaluation_point(state, p), x, rtol=1e-12)


def test_how_long_a_nan_stays():
    """In the slot of a lookahead until it returns, in rows and columns for ever; and it is no step of 0."""
    ones = np.ones((2, 3))
    bad = ones.copy()
    bad[0, 1] = np.nan
    seen = steps(gx.lookahead(2, 0.5), [ones, ones, bad, ones, ones, ones])
    assert [int(np.isnan(u).sum()) for u in seen] == [0, 0, 1, 1, 0, 0]
    np.testing.assert_allclose(seen[4:], np.stack([ones, 0 * ones]), rtol=1e-12)
    assert (steps(gx.lookahead(3, 0.5), [ones, np.inf * ones])[1] == np.inf).all()
    seen = steps(gx.scale_by_sm3(), [ones, bad, ones, ones])
    assert [int(np.isnan(u).sum()) for u in seen] == [0, 1, 4, 6]
    seen = steps(gx.scale_by_kronecker_root(), [ones[0], bad[0], ones[0]])
    assert [int(np.isnan(u).sum()) for u in seen] == [0, 1, 1]
    for opposed in (None, -1.0):
        seen = steps(gx.chain(gx.momentum(0.5), gx.cautious(opposed=opposed)), [ones, bad, ones])
        assert [int(np.isnan(u).sum()) for u in seen] == [0, 1, 1]
        np.testing.assert_allclose(np.delete(seen[2].ravel(), 1), 6 / 5 * (1 - 0.5**3), rtol=1e-12)
    seen = steps(gx.resilient_step(0.1), [ones, bad, ones])
    assert [int(np.isnan(u).sum()) for u in seen] == [0, 1, 0]
    seen = steps(gx.nag_lookahead(1.0), [ones, bad, ones, ones])
    assert [int(np.isnan(u).sum()) for u in seen] == [0, 1, 1, 0]


def test_a_bet_of_a_gambler_who_loses():
    """Two gradients that agree, then one against them and the way gone, which takes all of the reward."""
    tx, p = gx.coin_betting(0.0, 2.0), jnp.zeros(1)
    state, found = tx.init(p), []
    for g in (-1.0, -1.0, 6.0):
        p, state = gx.step(tx, p, jnp.array([g]), state)
        found.append(float(p[0]))
    # b/(A + L)·(1 + R/L): 1/3, for L is 2 at first; 2/4·(1 + (1/3)/2); and −4/(8 + 6)
    np.testing.assert_allclose(found, [1 / 3, 7 / 12, -2 / 7], rtol=1e-6)


def test_the_first_weight_of_prodigy_is_the_first_distance():
    """γd²/d₀ with d = d₀ = ½, of a gradient of 3; there is no way to go along yet."""
    tx, p = gx.in_units_of_distance(gx.sgd(1.0), 2.0, initial=0.5), jnp.ones(1)
    state = tx.update(jnp.array([3.0]), tx.init(p), p)[1].slots["in_units_of_distance"]["state"]
    np.testing.assert_allclose([*state["sum"], state["along"], state["distance"]], [3.0, 0.0, 0.5], rtol=1e-12)


READ_PARAMETERS = [
    *(gx.scale_by_trust_ratio(), gx.scale_by_parameter_rms(), gx.adaptive_clip(), gx.add_decayed_weights(0.1)),
    gx.project_out(),
    *(gx.decay_weights(0.1, 0.1), gx.add_cautious_decay(0.1), gx.scale_by_distance(), gx.dual_averaging()),
    *(gx.ftrl_proximal(0.1), gx.in_units_of_distance(gx.sgd(1.0), initial=0.1), gx.coin_betting()),
    *(gx.scale_by_model(), gx.at_learned_rate(gx.sgd(1.0))),
]


@pytest.mark.parametrize("rule", READ_PARAMETERS, ids=str)
def test_what_reads_the_parameters_says_so(rule):
    with pytest.raises(ValueError, match="reads the parameters"):
        rule.update(jnp.ones(2), rule.init(jnp.ones(2)))


OUT_OF_RANGE = [
    (lambda: gx.precondition(power=-0.1), "power must be a number from 0 to 1"),
    (lambda: gx.precondition(power=1.1), "power must be a number from 0 to 1"),
    (lambda: gx.rectified_precondition(threshold=3.9), "threshold must be at least 4"),
    (lambda: gx.scale_by_factored_rms(-0.1), "power must be a number of 0 or more, found -0.1"),
    (lambda: gx.scale_by_factored_rms(float("inf")), "power must be a number of 0 or more, found inf"),
    (lambda: gx.scale_by_factored_rms(eps=0.0), "eps must be greater than 0"),
    (lambda: gx.scale_by_factored_rms(least=0), "least must be at least 1"),
    (lambda: gx.scale_by_factored_rms(floor=-1.0), "floor must be 0 or more, or None, found -1.0"),
    (lambda: gx.scale_by_factored_rms(axes="first"), "axes must be"),
    (lambda: gx.orthogonalize(norm="l1"), "norm must be"),
    (lambda: gx.orthogonalize(form="min"), "form must be"),
    (lambda: gx.ftrl_proximal(0.1, power=-1.5), "power must be a number of 0 or more, found -1.5"),
    (lambda: gx.infinity(power=3), "power must be 1 or 2, found 3"),
    (lambda: gx.skip_first(-1), "steps must be an integer, 0 or more"),
    (lambda: gx.lookahead(0), "must be an integer"),
    (lambda: gx.orthogonalize(eps=-1.0), "eps must be 0 or more"),
    (lambda: gx.arctan(width=0.0), "arctan: width must be above 0, found 0"),
    (lambda: gx.prodigy(initial=0.0), "in_units_of_distance: initial must be above 0, found 0"),
    (lambda: gx.at_learned_rate(gx.sgd(1.0), eps=0.0), "at_learned_rate: eps must be above 0, found 0"),
    (lambda: gx.mars(0.1, b1=1.0), "decay must be at least 0 and less than 1, found 1"),
]


@pytest.mark.parametrize(("make", "message"), OUT_OF_RANGE, ids=[message for _, message in OUT_OF_RANGE])
def test_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


WRONG: Any = gx
"""The package, to be called with what its types refuse."""

NO_NUMBERS = [
    (lambda: WRONG.precondition(power=True), "precondition: power must be a number, found True"),
    (lambda: WRONG.scale_by_factored_rms("0.8"), "scale_by_factored_rms: power must be a number, found '0.8'"),
    (lambda: WRONG.scale_by_factored_rms(least=16.5), "least must be an integer, found 16.5"),
    (lambda: WRONG.scale_by_factored_rms(floor=[0]), r"floor must be a number or None, found \[0\]"),
    (lambda: WRONG.rectified_precondition(threshold=None), "threshold must be a number, found None"),
    (lambda: WRONG.scale_by_polyak(signed="no"), "scale_by_polyak: signed must be True or False, found 'no'"),
    (lambda: jax.jit(WRONG.scale_by_factored_rms)(0.8), "power must be a number, found .*Tracer"),
    (lambda: WRONG.trace(0.9, 1), "trace: nesterov must be True or False, found 1"),
    (lambda: WRONG.soap(largest="all"), "largest must be an integer, found 'all'"),
    (
        lambda: WRONG.orthogonalize(coefficients=(1.0, 2.0, 3.0)),
        r"coefficients must be a tuple of \(a, b, c\)",
    ),
    (lambda: WRONG.lion(0.1, b1="0.9"), "lion: b1 must be a number, a scalar array or a schedule, found '0.9'"),
    (lambda: WRONG.fromage([0.1]), "fromage: learning_rate must be a number"),
    (lambda: WRONG.mars(0.1, gamma=None), "mars: gamma must be a number"),
    (lambda: WRONG.madgrad("0.1"), "madgrad: learning_rate must be a number"),
    (lambda: WRONG.asgd(0.1, start="late"), "asgd: start must be a number"),
    (lambda: WRONG.muon(nesterov="no"), "muon: nesterov must be True or False, found 'no'"),
    (lambda: WRONG.rmsprop(0.1, centered="no"), "rmsprop: centered must be True or False, found 'no'"),
]


def test_what_is_no_number():
    for make, message in NO_NUMBERS:
        with pytest.raises(TypeError, match=message):
            make()
    assert WRONG.trace(0.9, np.True_) == gx.trace(0.9, True)
    assert WRONG.precondition(power=np.float32(0.5)) == gx.precondition()


def test_the_ends_of_the_ranges_are_in_them():
    for power in (0, 0.0, 0.3, 1):
        gx.precondition(power=power)
    gx.rectified_precondition(threshold=4.0)
    for power in (0.01, 1.0):
        gx.scale_by_factored_rms(power, eps=0.5, least=1)
        gx.infinity(power=int(power) + 1)
    gx.skip_first(0)
    gx.lookahead(1)


def test_powers_and_floors_of_the_second_moment():
    (found,) = steps(gx.chain(gx.adagrad_sum(), gx.precondition(0.0, power=0.25)), [[4.0, -0.25]])
    np.testing.assert_allclose(found, [2.0, -0.5], rtol=1e-12)
    (found,) = steps(gx.chain(gx.adagrad_sum(), gx.precondition(2.0, form="max")), [[3.0, -1.0]])
    np.testing.assert_allclose(found, [1.0, -0.5], rtol=1e-12)
    tx = gx.chain(gx.momentum(0.5), gx.rms(0.75), gx.precondition(0.0, power=0.25), gx.debias())
    np.testing.assert_allclose(steps(tx, [[4.0], [4.0]]), [[2.0], [2.0]], rtol=1e-12)


def test_averages_that_start_at_the_first_or_lag():
    tx = gx.chain(gx.rms(0.5, start="first"), gx.debias(), gx.precondition(0.0))
    np.testing.assert_allclose(steps(tx, [[2.0], [4.0]]), [[1.0], [4.0 / np.sqrt(10)]], rtol=1e-12)
    tx = gx.chain(gx.rms(0.5), gx.lag_v("one"), gx.debias(), gx.precondition(0.0))
    np.testing.assert_allclose(steps(tx, [[4.0], [6.0], [6.0]])[:2], [[4.0], [1.5]], rtol=1e-12)
    tx = gx.chain(gx.rms(0.5), gx.lag_v("skip"), gx.debias(), gx.precondition(0.0))
    np.testing.assert_allclose(steps(tx, [[4.0], [6.0]]), [[0.0], [1.5]], rtol=1e-12)
    for rule in (gx.lag_v(), gx.max_v()):
        with pytest.raises(ValueError, match="needs a second moment, and no rule before it makes one"):
            gx.chain(rule, gx.precondition()).init(jnp.ones(2))


def test_yogi_stays_where_it_is_right():
    tx = gx.chain(gx.yogi_rms(0.5, initial=4.0), gx.precondition(0.0))
    np.testing.assert_allclose(steps(tx, [[2.0], [2.0]]), [[1.0], [1.0]], rtol=1e-12)


def test_what_has_no_weight_is_not_divided():
    tx = gx.chain(gx.skip_first(), gx.add_decayed_weights(0.1), gx.debias())
    np.testing.assert_allclose(steps(tx, [[7.0], [7.0]], 3.0), [[0.3], [7.3]], rtol=1e-12)
    tx = gx.chain(gx.momentum(0.5), gx.skip_first(), gx.debias())
    np.testing.assert_allclose(steps(tx, [[7.0], [7.0]]), [[0.0], [7.0]], rtol=1e-12)


def test_bounds_and_decay_that_looks_first():
    np.testing.assert_allclose(steps(gx.arctan(1.0, 2.0), [[2.0]])[0], [np.pi / 4], rtol=1e-12)
    (found,) = steps(gx.add_cautious_decay(0.1), [[1.0, -1.0, 0.0]], [10.0, 10.0, 10.0])
    np.testing.assert_allclose(found, [2.0, -1.0, 1.0], rtol=1e-12)


def test_rules_are_what_they_declare():
    nesterov = (gx.nesterov(), gx.nesterov(schedule_decay=0.5))
    rules = (gx.momentum(), gx.trace(), gx.damped_trace(0.9, 0.5), *nesterov, gx.scale(3.0), gx.belief_rms())
    for rule in (*rules, gx.scale_by_learning_rate(0.1), gx.sign(), gx.resilient_step()):
        testing.PROPERTIES["says what it holds"](gx.chain(rule))
    assert gx.adagrad_sum(0.1).from_moment("s", 0.5, gx.Named(initial=0.1)) == 0.4
    assert gx.belief_rms().holds == {"m": "average"} and not gx.belief_rms(lagged=True).holds
    np.testing.assert_array_equal(gx.clip_by_norm(1.0).shows_finite(jnp.array([1.0, np.inf, np.nan])), [1, 0, 0])


def test_nesterov_looks_ahead_to_a_decay_that_changes():
    """And to all digits of its complement: decays of 1 − 1e-7 and 1 − 2e-7 are not float32's."""
    table = jnp.array([0.5, 0.8, 0.75])  # their products are 0.5, 0.4 and 0.3
    found = steps(gx.nesterov(lambda count: table[count]), [[4.0], [2.0]])
    np.testing.assert_allclose(found, [[0.8 * 2 / 0.6 + 4], [0.75 * 2 / 0.7 + 0.2 * 2 / 0.6]], rtol=1e-12)
    tx, g = gx.nesterov(lambda count: 1 - 1e-7 * (count + 1)), jnp.ones(1, "float32")
    np.testing.assert_allclose(jax.jit(tx.update)(g, tx.init(g))[0], [1 / 3 + 1], rtol=1e-6)


def test_factored_second_moments():
    """Of three axes the two largest are factored; zeros stay zeros; one step is an average of one square."""
    g = np.random.default_rng(0).normal(size=(2, 4, 3))
    tx = gx.scale_by_factored_rms(least=2)
    rows, columns = (g**2).mean(1, keepdims=True), (g**2).mean(2, keepdims=True)
    expected = g / np.sqrt(rows * columns / rows.mean(2, keepdims=True))
    np.testing.assert_allclose(steps(tx, [g])[0], expected, rtol=1e-12)
    np.testing.assert_array_equal(steps(tx, [np.zeros((3, 4))])[0], np.zeros((3, 4)))
    np.testing.assert_allclose(steps(tx, [[3.0, -4.0]])[0], [1.0, -1.0], rtol=1e-12)


def test_factored_second_moments_with_their_options():
    """The last two axes; a floor of the mean and, squared, of the divisor; steps before the count of the decay."""
    g = 0.5 * np.random.default_rng(0).normal(size=(4, 3, 2))
    rows, columns = (g**2).mean(2, keepdims=True), (g**2).mean(1, keepdims=True)
    (last,) = steps(gx.scale_by_factored_rms(least=1, axes="last"), [g])
    np.testing.assert_allclose(last, g / np.sqrt(rows * columns / rows.mean(1, keepdims=True)), rtol=1e-12)
    means = rows.mean(1, keepdims=True)
    floor = np.median(means)
    (floored,) = steps(gx.scale_by_factored_rms(least=1, axes="last", floor=floor), [g])
    divisors = np.maximum(rows * columns / np.maximum(means, floor), floor**2)
    np.testing.assert_allclose(floored, g / np.sqrt(divisors), rtol=1e-12)
    assert 0 < (divisors == floor**2).sum() < 24
    for leaf in (g, g.mT):  # one of their axes is too short
        (whole,) = steps(gx.scale_by_factored_rms(least=3, axes="last"), [leaf])
        np.testing.assert_allclose(whole, np.sign(leaf), rtol=1e-12)
    np.testing.assert_allclose(steps(gx.scale_by_factored_rms(floor=2.0), [[3.0, 1.0]])[0], [1.0, 0.5], rtol=1e-12)
    (overflowed,) = steps(gx.scale_by_factored_rms(least=1), [np.full((2, 3), 1e200)])
    np.testing.assert_array_equal(overflowed, np.zeros((2, 3)))
    tiny = jnp.full(2, 1e-10, jnp.float32)
    found, _ = (tx := gx.scale_by_factored_rms(floor=None)).update(tiny, tx.init(tiny))
    np.testing.assert_allclose(found, 1e-10 / np.finfo(np.float32).eps, rtol=1e-6)
    wide = jnp.array([[0.0, 1e-20], [1e18, 1e18], [2.0, -2.0]], jnp.float32)  # quotients of squares below all floats
    found, _ = (tx := gx.scale_by_factored_rms(least=1, axes="last")).update(wide, tx.init(wide))
    np.testing.assert_allclose(found, [[0.0, 1e-5], [1.0, 1.0], [1.0, -1.0]], rtol=1e-6)
    for offset, shares in ((2, [1, 1, 1, 0.5]), (-1, [0.5, 1 / 3, 0.25, 0.2])):
        tx, v = gx.scale_by_factored_rms(1.0, offset=offset), 0.0
        for g, share, found in zip((3.0, 4.0, 1.0, 2.0), shares, steps(tx, [[3.0], [4.0], [1.0], [2.0]]), strict=True):
            v += share * (g**2 - v)
            np.testing.assert_allclose(found, [g / np.sqrt(v)], rtol=1e-12)


def test_norms_in_front_of_orthogonalize():
    """For one iteration f(x) = 2x, the matrix itself over half of its norm; and times its inner product with it."""
    u = np.random.default_rng(0).normal(size=(4, 3))
    sigma = np.linalg.svd(u)[1]
    rows = np.sqrt(abs(u.T @ u).sum(1))
    norms = {"frobenius": np.sqrt(sigma @ sigma), "spectral": sigma[0], "schatten": (sigma**4).sum() ** 0.25}
    for norm, size in (norms | {"aol": rows}).items():
        double = gx.orthogonalize(coefficients=((2.0, 0.0, 0.0),), norm=norm)
        np.testing.assert_allclose(steps(double, [u])[0], 2 * u / size, rtol=1e-10)
        if norm != "aol":
            least = gx.orthogonalize(coefficients=((2.0, 0.0, 0.0),), norm=norm, eps=1.0, form="max")
            np.testing.assert_allclose(steps(least, [0.1 * u / size])[0], 0.2 * u / size, rtol=1e-10)
            np.testing.assert_allclose(steps(least, [3 * u / size])[0], 2 * u / size, rtol=1e-10)
    dual = gx.orthogonalize(coefficients=((2.0, 0.0, 0.0),), dual=True)
    np.testing.assert_allclose(steps(dual, [u, 3 * u]), [4 * u, 12 * u], rtol=1e-10)
    assert gx.orthogonalize().normalizes and not dual.normalizes


def test_slope_of_ftrl_where_there_was_no_gradient():
    """A root whose slope at 0 is infinite would make it NaN."""
    tx, p = gx.ftrl_proximal(0.1, l1=1.0), jnp.ones(1)
    slope = jax.grad(lambda g: tx.update(g, tx.init(p), p)[0].sum())(jnp.zeros(1))
    np.testing.assert_array_equal(slope, [0.0])


def test_ftrl_stays_where_a_square_overflows():
    np.testing.assert_array_equal(steps(gx.ftrl_proximal(0.1), [[1e200]]), [[0.0]])


def test_rectified_steps_with_an_epsilon_inside_the_root():
    tx = gx.chain(gx.rms(0.0, start="first"), gx.rectified_precondition(0.99, 1.0, eps_root=7.0))
    plain = gx.chain(gx.rms(0.0, start="first"), gx.rectified_precondition(0.99, 0.0))
    with_eps, without = (steps(tx, [[3.0]] * 7)[6] for tx in (tx, plain))
    np.testing.assert_allclose(with_eps / without, [3.0 / 5.0], rtol=1e-12)


def test_rectified_steps_are_debiased_by_what_they_are():
    """The first steps are the average alone, and so is their weight; later ones carry that of the quotient."""
    tx = gx.chain(gx.momentum(0.5), gx.rms(0.99), gx.rectified_precondition(0.99, eps=0.0), gx.debias())
    found = steps(tx, [[2.0]] * 7)
    np.testing.assert_allclose(found[:4], [[2.0]] * 4, rtol=1e-12)
    shares = 0.01 * 0.99 ** np.arange(7)  # of the gradients in the average, the youngest first
    rho, most = 1 + 2 * shares @ np.arange(7) / shares.sum(), 199.0
    gain = np.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    np.testing.assert_allclose(found[6], [gain], rtol=1e-10)


@pytest.mark.parametrize(
    ("rates", "expected"), [([0.1, 0.3, 0.2], (0.01 * 1 + 0.09 * 2 + 0.09 * 3) / 0.19), ([0.0, 0.3, 0.2], 2.5)]
)
def test_iterates_are_weighed_by_the_largest_rate_so_far(rates, expected):
    """Iterates 1, 2, 3; rates that are 0 at first weigh nothing."""
    table = jnp.array(rates)
    tx = gx.chain(gx.scale(1.0), gx.average_iterates(learning_rate=lambda count: table[count]))
    params, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    for _ in rates:
        params, state = gx.step(tx, params, jnp.ones(1), state)
    np.testing.assert_allclose(gx.evaluation_point(state, params), [expected], rtol=1e-6)


@pytest.mark.parametrize("eps", [1e-7, 1.0])
def test_the_eps_of_orthogonalize_is_beside_the_norm(eps):
    """A row of the norm eps comes in at half its length, which the polynomials of five steps see."""
    row = eps * jnp.eye(3)[:1]
    with_eps, without = (
        float(jnp.linalg.norm(tx.update(row, tx.init(row))[0]))
        for tx in (gx.orthogonalize(eps=eps), gx.orthogonalize(eps=0.0))
    )
    assert (round(with_eps, 3), round(without, 3)) == (0.765, 0.696)
