"""Adam first, then SGD: the switch, what it carries, and SWATS against its paper's program."""

import copy
import functools
import pickle
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import assert_same
from trees import types

import gradtx as gx
from gradtx import testing
from gradtx._wrappers.swats import SwatsState, swats
from gradtx._wrappers.switch import SwitchState, switch

pytestmark = pytest.mark.usefixtures("quick_compilation")

PARAMS = {"w": jnp.array([[1.0, -1.0], [2.0, 0.5]]), "b": jnp.array([0.3, -3.0])}
CURVATURE = np.array([0.1, 0.3, 1.0, 2.0, 5.0, 10.0])
START = np.array([1.0, -1.0, 2.0, -2.0, 0.5, -0.5])


def raises(error, *parts):
    return pytest.raises(error, match="(?s)" + ".*".join(parts))


CARRIES: tuple[Literal["momentum", "reset"], ...] = ("momentum", "reset")


def slope(params, noise=0.0):
    """The gradient of a bowl that is not round, plus noise."""
    return jax.tree.map(lambda p: p * (1 + jnp.arange(p.size, dtype=p.dtype).reshape(p.shape)) + noise, params)


def loop(tx: Any, n: int, params: Any = PARAMS, state: Any = None, jit: bool = True) -> Any:
    """The last parameters and state, and all updates, of n steps one by one."""
    update: Any = jax.jit(tx.update) if jit else tx.update
    state, out = tx.init(params) if state is None else state, []
    for _ in range(n):
        updates, state = update(slope(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        out.append(updates)
    return params, state, out


def scanned(tx: Any, n: int, params: Any = PARAMS) -> Any:
    """The same under scan, which holds the state to its structure and types."""

    def one(carry, _):
        params, state = carry
        updates, state = tx.update(slope(params), state, params)
        return (jax.tree.map(jnp.add, params, updates), state), updates

    (params, state), updates = jax.jit(lambda p: jax.lax.scan(one, (p, tx.init(p)), None, length=n))(params)
    return params, state, updates


def norm(tree):
    return float(optax.tree.norm(tree))


ADAM, SGD = gx.adam(0.1), gx.sgd(0.01, momentum=0.9)

# first, then; by what the slot and its weight are multiplied in being carried, given the weight: as section 5 of the
# library's reference has it, b = m̂/(1−μ) from what Adam debiases, and (1−μ)b = m from what nothing debiases.
M = [0.9 * 0.4375 + 0.1, 0.9 * (0.9 * 0.4375 + 0.1) + 0.1]  # of 1 behind a sum of 1.75, of which 4 is all
STEADY = np.float32(1) / (np.float32(1) - np.float32(0.9))
PAIRS = {
    "adam, sgd": (ADAM, SGD, "m", "b", lambda w: STEADY / w),
    "article_adam, momentum_sgd": (gx.article_adam(0.1), gx.momentum_sgd(0.1), "m", "m", lambda w: np.float32(1)),
    "article_adam, sgd": (gx.article_adam(0.1), SGD, "m", "b", lambda w: STEADY),
    "adamw, sgd": (gx.adamw(0.1, weight_decay=0.01), SGD, "m", "b", lambda w: STEADY / w),
    "nadam, sgd": (gx.nadam(0.1), SGD, "m", "b", lambda w: STEADY / w),
    "adam, amsgrad": (ADAM, gx.amsgrad(0.01), "m", "m", lambda w: np.float32(1)),
    # 1/STEADY, which is 1/(1/(1−μ)): XLA takes the 1−μ that it finds there.
    "sgd, momentum_sgd": (SGD, gx.momentum_sgd(0.1), "b", "m", lambda w: np.float32(1) - np.float32(0.9)),
    "sgd, sgd": (SGD, gx.sgd(0.001, momentum=0.9, nesterov=True), "b", "b", lambda w: np.float32(1)),
}


def carried(first, then, slots, factor, state, params):
    """The state that the second phase starts with, put together by hand."""
    old = next(own for own in state.slots.values() if slots[0] in own)
    name = next(name for name, own in then.init(params).slots.items() if slots[1] in own)
    scale = factor(np.asarray(old["weight"]))
    own = {slots[1]: jax.tree.map(lambda x: jnp.asarray(scale * np.asarray(x)), old[slots[0]])}
    own["weight"] = jnp.asarray(scale * np.asarray(old["weight"]))
    fresh = then.init(params)
    return fresh._replace(count=state.count, slots=fresh.slots | {name: own})


def test_swats_switches_at_the_last_step_that_it_counts_as_at_any_other():
    tx, g = gx.swats(0.1, rtol=0.5, min_steps=2), jnp.array([1.0, -2.0])
    _, state = tx.update(g, tx.init(g))
    lasts = []
    for count in (1, 2**31 - 2, 2**31 - 1):
        _, after = tx.update(g, state._replace(count=jnp.int32(count)))
        assert after.switched
        for _ in range(3):
            last, after = tx.update(g, after)
        lasts.append(last)
    np.testing.assert_allclose(lasts, [lasts[0]] * 3)  # and does not begin anew with each step


class TestSwitch:
    @pytest.mark.parametrize(
        "pair, k, jit",
        [(pair, k, True) for pair in PAIRS for k in (1, 5)]
        + [("adam, sgd", 3, False), ("article_adam, momentum_sgd", 3, False)],
    )
    def test_is_the_first_then_the_second(self, pair, k, jit):
        first, then, *slots, factor = PAIRS[pair]
        params, state, head = loop(first, k, jit=jit)
        starts = {
            "momentum": carried(first, then, slots, factor, state, params),
            "reset": then.init(params)._replace(count=state.count),
        }
        for carry in CARRIES:
            start = starts[carry]
            end, last, tail = loop(then, 4, params, start, jit=jit)
            found_end, found, updates = loop(switch(k, first, then, carry=carry), k + 4, jit=jit)
            assert_same(updates, head + tail)
            assert_same((found_end, found.first, found.then), (end, state, last))
            assert (int(found.count), int(found.switched_at), bool(found.switched)) == (k + 4, k, True)

    def test_before_the_switch(self):
        _, state, updates = loop(switch(5, ADAM, SGD), 5)
        _, alone, expected = loop(ADAM, 5)
        assert_same((updates, state.first), (expected, alone))
        chex.assert_trees_all_equal(state.then, SGD.init(PARAMS))
        assert (int(state.switched_at), bool(state.switched)) == (-1, False)

    def test_at_once(self):
        """After no step of the first phase there is nothing to carry."""
        for carry in CARRIES:
            _, state, updates = loop(switch(0, ADAM, SGD, carry=carry), 3)
            assert_same((updates, state.then), loop(SGD, 3)[:0:-1])
            assert int(state.switched_at) == 0

    def test_steps_are_continuous_if_the_moment_is_carried(self):
        """Heavy ball from 0 stalls: its first step is 1−μ as long. From b = m̂/(1−μ) it goes on."""
        adam, rate = gx.adam(0.01), 0.0025
        params, state, updates = loop(adam, 200)
        last = norm(updates[-1])
        lengths = {}
        for carry in CARRIES:
            tx = switch(200, adam, gx.sgd(0.1 * rate, momentum=0.9), carry=carry)
            lengths[carry] = np.array([norm(u) for u in loop(tx, 221)[2]])
            assert lengths[carry][199] == pytest.approx(last, rel=1e-4)  # 200 steps of another program
        own = state.slots["momentum"]
        adams_next_mean = jax.tree.map(lambda m, g: 0.9 * m / own["weight"] + 0.1 * g, own["m"], slope(params))
        assert lengths["momentum"][200] == pytest.approx(rate * norm(adams_next_mean), rel=1e-5)
        assert lengths["reset"][200] == pytest.approx(rate * 0.1 * norm(slope(params)), rel=1e-5)
        np.testing.assert_allclose(lengths["momentum"][[200, 201]] / last, 1.0, atol=0.02)
        assert lengths["reset"][200] < 0.1 * last
        assert lengths["reset"][220] > 0.75 * last

    def test_early_switches_carry_what_the_first_phase_used(self):
        """After 2 steps of 0.9, m holds 0.19 of a mean. Adam debiases it, the article's Adam does not."""
        g = jnp.array([2.0])
        for first, share in ((gx.adam(0.1), 1.0), (gx.article_adam(0.1), 0.19)):
            tx = switch(2, first, gx.momentum_sgd(1.0))
            state = tx.init(g)
            for _ in range(3):
                updates, state = tx.update(g, state)
            chex.assert_trees_all_close(updates, -(0.9 * share + 0.1) * g, rtol=1e-6)
            assert float(state.then.slots["momentum"]["weight"]) == pytest.approx(0.9 * share + 0.1)

    def test_a_constant_gradient_goes_through_every_pair(self):
        """Between any two first moments, a debiased average of 2s is 2."""
        g = jnp.array([2.0, -2.0])
        moments = [
            gx.momentum(0.9),
            gx.momentum(0.5),
            gx.trace(0.9),
            gx.trace(0.8, nesterov=True),
            gx.damped_trace(0.9, 0.5),
            gx.nesterov(0.9),
            gx.chain(gx.scale_by_learning_rate(0.1), gx.trace(0.9), gx.scale(-10.0)),
            gx.chain(gx.scale(4.0), gx.momentum(0.9), gx.scale(0.25)),
        ]
        for i, a in enumerate(moments):
            for b in (moments[i], moments[i - 1], moments[i - 3]):
                tx = switch(3, gx.chain(a, gx.debias()), gx.chain(b, gx.debias()))
                state = tx.init(g)
                for _ in range(4):
                    updates, state = tx.update(g, state)
                name, own = next(iter(state.then.slots.items()))
                if name != "nesterov":  # which is no average
                    factor = 1.0 if "nesterov=True" not in repr(b) else float(updates[0]) / 2.0
                    chex.assert_trees_all_close(updates, factor * g, rtol=1e-5)
                    assert 0.99 < factor < 1.4
                slot = own.get("m", own.get("b"))
                gain = {"scale_by_learning_rate": -0.1, "scale": 4.0}.get(b.rules[0].label, 1.0)
                chex.assert_trees_all_close(slot / own["weight"], gain * g, rtol=1e-5)

    def test_rules_of_users(self):
        """Declarations tell how to carry: Adam's m̂ of twice the gradient becomes b = m̂/(1−μ), by hand."""

        class doubled(gx.Rule):
            def scales_by(self, h):
                return 2.0

            def apply(self, signal, slots, param, c):
                return signal._replace(direction=2 * signal.direction), {}

        class smoothed(gx.Rule):
            accumulates = True
            holds = {"mean": "average"}
            share: gx.Hyper = gx.hyper(default=0.1)

            def slots(self, param):
                return {"mean": jnp.zeros_like(param)}

            def scalars(self):
                return {"weight": 0.0}

            def tick(self, h, scalars, weights, count):
                weight = scalars.weight + h.share * (weights.direction - scalars.weight)
                return gx.Tick(vars(h), {"weight": weight}, weights._replace(direction=weight))

            def apply(self, signal, slots, param, c):
                mean = slots.mean + c.share * (signal.direction - slots.mean)
                return signal._replace(direction=mean), {"mean": mean}

        class ball(gx.Rule):  # without a weight
            accumulates = True
            holds = {"sum": "trace"}
            mu: gx.Hyper = gx.hyper(default=0.75, low=0, below=1)

            def steady_weight(self, h):
                return 1 / h.mu_complement

            def slots(self, param):
                return {"sum": jnp.zeros_like(param)}

            def apply(self, signal, slots, param, c):
                total = c.mu * slots.sum + signal.direction
                return signal._replace(direction=total), {"sum": total}

        g, rate = jnp.array([2.0, -0.5]), gx.scale_by_learning_rate(0.5)
        adam = gx.chain(doubled(), smoothed(), gx.rms(0.5), gx.debias(), gx.precondition(0.0), rate)
        for first, then, expected in (
            (adam, gx.chain(ball(), rate), [-0.5 * jnp.sign(g)] * 2 + [-0.5 * 4 * g] * 2),
            (gx.chain(ball(), rate), gx.momentum_sgd(0.5), [-0.5 * g, -0.5 * 1.75 * g] + [-0.5 * x * g for x in M]),
        ):
            testing.check(first, only=["says what it holds"], report=lambda _: None)
            tx = switch(2, first, then)
            state = tx.init(g)
            for step in expected:
                updates, state = tx.update(g, state)
                chex.assert_trees_all_close(updates, step, rtol=1e-6)

    def test_damped_trace_starts_undamped_unless_a_moment_is_carried_to_it(self):
        """μ = 0.5, τ = 0.75. A reset starts with b = g, then 0.75g; m̂ = g is carried as b = W'g, W' = 0.5."""
        g = jnp.array([2.0, -2.0])
        adam, then = gx.chain(gx.momentum(0.9), gx.debias()), gx.damped_trace(0.5, 0.75)
        for carry, expected in zip(CARRIES, ([0.5, 0.5], [1.0, 0.75]), strict=True):
            tx = switch(3, adam, then, carry=carry)
            state = tx.init(g)
            for factor in [1.0, 1.0, 1.0, *expected]:
                updates, state = tx.update(g, state)
                chex.assert_trees_all_close(updates, factor * g, rtol=1e-6)

    def test_hyperparameters_on_their_way(self):
        """A scheduled decay, and a learning rate inside the momentum, count with their values at the switch."""
        rate = optax.linear_schedule(1.0, 0.0, 10)
        then = gx.chain(gx.scale_by_learning_rate(rate), gx.trace(lambda count: 0.5 + 0.05 * count))
        g = jnp.array([2.0])
        tx = switch(4, gx.chain(gx.momentum(0.0), gx.scale_by_learning_rate(0.1)), then)
        state = tx.init(g)
        for _ in range(5):
            updates, state = tx.update(g, state)
        b = -0.6 * 2.0 / (1 - 0.7)  # in step 5, count 4: η = 0.6, μ = 0.7
        chex.assert_trees_all_close(updates, jnp.array([0.7 * b - 0.6 * 2.0]), rtol=1e-5)

    def test_one_clock(self):
        tx = switch(4, gx.sgd(1.0), gx.sgd(lambda count: 10.0 + count), carry="reset")
        state, g = tx.init(jnp.ones(1)), jnp.ones(1)
        seen = []
        for _ in range(6):
            updates, state = tx.update(g, state)
            seen.append(float(updates[0]))
        assert seen == [-1, -1, -1, -1, -14, -15]
        assert (int(state.count), int(state.then.count), int(state.first.count)) == (6, 6, 4)

    def test_second_phase_starts_from_the_parameters_of_then(self):
        """An init that depends on the parameters is repeated at the switch; without parameters there is no other."""

        def update(updates, state, params=None):
            del updates, params
            return jax.tree.map(jnp.negative, state), state

        pull = optax.GradientTransformation(lambda params: params, update)
        tx, start = switch(2, gx.sgd(0.5), pull, carry="reset"), jnp.array([8.0])
        state = tx.init(start)
        params = start
        for _ in range(3):
            updates, state = tx.update(params, state, params)
            params = params + updates
        chex.assert_trees_all_close((updates, params), (jnp.array([-2.0]), jnp.array([0.0])))
        state = tx.init(start)
        for _ in range(3):
            updates, state = tx.update(start, state)
        chex.assert_trees_all_close(updates, -start)

    def test_hyperparameters_are_data(self):
        tx = switch(2, ADAM, SGD)
        state = tx.init(PARAMS)
        state = state._replace(then=gx.set_hyperparams(state.then, learning_rate=0.5), at=jnp.array(1))
        expected = loop(switch(1, ADAM, gx.sgd(0.5, momentum=0.9)), 3)
        found = loop(tx, 3, state=state)
        assert_same((found[0], found[2]), (expected[0], expected[2]))

    def test_condition(self):
        """It sees the state before each step; it is not asked again."""

        def second_moment_is_large(state):
            return (state.first.slots["rms"]["s"]["w"].max() > 1.0) & (state.count < 100)

        tx = switch(second_moment_is_large, gx.adam(0.1, b2=0.9), SGD)
        params, state, updates = scanned(tx, 120)
        k = int(state.switched_at)
        assert 0 < k < 100
        assert state.at is None
        expected = scanned(switch(k, gx.adam(0.1, b2=0.9), SGD), 120)
        chex.assert_trees_all_close((params, updates), (expected[0], expected[2]), rtol=1e-6)
        once = switch(lambda state: state.count == 3, ADAM, SGD)
        assert int(loop(once, 8)[1].switched_at) == 3

    @pytest.mark.parametrize("pair", ["adam, sgd", "nadam, sgd"])
    def test_scan_is_the_loop(self, pair):
        tx = switch(3, *PAIRS[pair][:2])
        params, state, updates = loop(tx, 6)
        found = scanned(tx, 6)
        stacked = jax.tree.map(lambda *us: jnp.stack(us), *updates)
        chex.assert_trees_all_close(found, (params, state, stacked), rtol=2e-6)

    def test_vmap_over_the_step_and_the_learning_rate(self):
        """Members of a batch that are in different phases do not touch each other."""

        def run(at, rate):
            return scanned(switch(at, gx.adam(rate), gx.sgd(0.1 * rate, momentum=0.9)), 7)[0]

        ats, rates = jnp.array([0, 2, 5, 100]), jnp.array([0.1, 0.01, 0.1, 0.2])
        together = jax.jit(jax.vmap(run))(ats, rates)
        for i in range(4):
            alone = scanned(switch(int(ats[i]), gx.adam(rates[i]), gx.sgd(0.1 * rates[i], momentum=0.9)), 7)[0]
            chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=2e-6)

    def test_compiles_once_donated_and_in_a_branch(self):
        tx = switch(2, ADAM, SGD)
        step: Any = jax.jit(lambda p, s: gx.step(tx, p, slope(p), s), donate_argnums=(0, 1))
        params, state = jax.tree.map(jnp.copy, PARAMS), jax.jit(tx.init)(PARAMS)
        before = types(state)
        for _ in range(5):
            params, state = step(params, state)
            assert types(state) == before
        assert step._cache_size() == 1
        chex.assert_trees_all_close(params, loop(tx, 5)[0], rtol=1e-6)

        @jax.jit
        def maybe(flag, state):
            return jax.lax.cond(flag, lambda s: tx.update(PARAMS, s, PARAMS), lambda s: (PARAMS, s), state)

        assert int(maybe(True, tx.init(PARAMS))[1].count) == 1

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "complex64"])
    def test_dtypes(self, dtype):
        with jax.enable_x64(dtype == "float64"):
            params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
            for carry in CARRIES:
                tx = switch(2, ADAM, gx.chain(SGD, state_dtype=jnp.bfloat16), carry=carry)
                state = tx.init(params)
                before, update = types(state), jax.jit(tx.update)
                for _ in range(4):
                    updates, state = update(params, state, params)
                    assert types(state) == before
                    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
                chex.assert_tree_all_finite(updates)

    def test_in_chains(self):
        tx = switch(2, ADAM, SGD)
        expected = jax.tree.map(lambda u: 0.5 * u, loop(tx, 1)[2][0])
        for outer in (gx.chain(tx, gx.scale(0.5)), optax.chain(tx, optax.scale(0.5))):
            chex.assert_trees_all_close(loop(outer, 1)[2][0], expected, rtol=1e-6)
            # 0.5 is undone outside, so that the trajectories are the same
            same = gx.chain(outer, gx.scale(2.0)) if isinstance(outer, gx.Chain) else optax.chain(outer, optax.scale(2))
            chex.assert_trees_all_close(scanned(same, 5)[0], scanned(tx, 5)[0], rtol=1e-6)
        inside = switch(2, gx.chain(optax.clip(1e6), ADAM), gx.chain(gx.clip_by_global_norm(1e6), SGD))
        chex.assert_trees_all_close(scanned(inside, 5)[0], scanned(tx, 5)[0], rtol=1e-6)

    def test_optax_phases_and_extra_arguments(self):
        """An optax transformation is a phase like any other; it gets the extra arguments."""

        def update(updates, state, params=None, **extra_args):
            del params
            return jax.tree.map(lambda g: extra_args["value"] * g, updates), state

        weigh = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
        tx = switch(1, optax.adam(0.1), weigh, carry="reset")
        g = jnp.array([2.0])
        updates, state = jax.jit(tx.update)(g, tx.init(g), g, value=3.0)
        chex.assert_trees_all_close(updates, jnp.array([-0.1]), rtol=1e-5)
        updates, state = jax.jit(tx.update)(g, state, g, value=3.0)
        chex.assert_trees_all_close(updates, jnp.array([6.0]))

    @pytest.mark.parametrize("carry", CARRIES)
    def test_nested(self, carry):
        """Inner steps count from the very beginning, on whichever side the nesting is."""
        a, b, c = gx.adam(0.1), gx.nadam(0.05), gx.sgd(0.01, momentum=0.9)
        right = switch(2, a, switch(5, b, c, carry=carry), carry=carry)
        left = switch(5, switch(2, a, b, carry=carry), c, carry=carry)
        params, state, updates = loop(right, 8)
        assert_same((params, updates), loop(left, 8)[::2])
        assert (int(state.switched_at), int(state.then.switched_at), int(state.then.count)) == (2, 5, 8)
        assert_same(updates[:5], loop(switch(2, a, b, carry=carry), 5)[2])
        chex.assert_trees_all_close(scanned(right, 8)[0], params, rtol=2e-6)

    def test_an_inner_switch_that_is_due_already(self):
        a, b, c = gx.adam(0.1), gx.nadam(0.05), gx.sgd(0.01, momentum=0.9)
        found = loop(switch(3, a, switch(1, b, c)), 6)
        chex.assert_trees_all_close(found[2], loop(switch(3, a, c), 6)[2], rtol=1e-5)
        outer_first = loop(switch(3, switch(4, a, b), c), 6)
        assert_same(outer_first[2], loop(switch(3, a, c), 6)[2])

    def test_nan_is_carried_or_left_behind(self):
        bad, good = jnp.array([jnp.nan, 1.0]), jnp.ones(2)
        for carry in CARRIES:
            tx = switch(1, ADAM, SGD, carry=carry)
            _, state = tx.update(bad, tx.init(good))
            updates, _ = tx.update(good, state)
            assert jnp.isfinite(updates).tolist() == [carry == "reset", True]

    def test_is_a_value(self):
        tx = switch(100, ADAM, switch(200, gx.nadam(0.1), SGD), carry="momentum")
        assert eval(repr(tx), dict(vars(gx)) | {"switch": switch}) == tx
        assert pickle.loads(pickle.dumps(tx)) == tx == copy.deepcopy(tx)
        assert hash(copy.copy(tx)) == hash(tx)
        assert tx != switch(101, tx.first, tx.then)
        assert switch(np.int64(3), ADAM, SGD) == switch(jnp.array(3), ADAM, SGD) == switch(3, ADAM, SGD)
        static = jax.jit(lambda tx, g: tx.update(g, tx.init(g))[0], static_argnums=0)
        chex.assert_trees_all_equal(static(tx, PARAMS), jax.jit(lambda tx, g: tx.update(g, tx.init(g))[0])(tx, PARAMS))
        assert isinstance(tx.init(PARAMS), SwitchState)


class TestSwitchErrors:
    def test_nothing_to_carry(self):
        first = "'momentum', 'rms', 'debias', 'precondition', 'scale_by_learning_rate'"
        with raises(ValueError, "one first moment", "rules 'scale_by_learning_rate' has none", "momentum=0.9", "reset"):
            switch(3, ADAM, gx.sgd(0.1)).init(PARAMS)
        with raises(ValueError, "rules 'adam' has none|rules '.*' has none", "reset"):
            switch(3, optax.adam(0.1), SGD).init(PARAMS)
        with raises(ValueError, f"{first}, 'trace' has 2: 'momentum', 'trace'"):
            switch(3, gx.chain(ADAM, gx.trace()), SGD).init(PARAMS)
        with raises(ValueError, "rules 'scale_by_learning_rate' has none"):
            switch(3, ADAM, switch(5, gx.sgd(0.1), SGD)).init(PARAMS)
        switch(3, ADAM, gx.sgd(0.1), carry="reset").init(PARAMS)

    def test_averages_of_different_things(self):
        laprop = gx.chain(gx.rms(), gx.debias(), gx.precondition(), gx.momentum(), gx.scale_by_learning_rate(0.1))
        with raises(ValueError, "'momentum' of the first phase and 'trace' of the second", "precondition", "reset"):
            switch(3, laprop, SGD).init(PARAMS)
        with raises(ValueError, "different things", r"sign\(\)"):
            switch(3, ADAM, gx.chain(gx.sign(), gx.trace())).init(PARAMS)
        switch(3, laprop, gx.chain(laprop, gx.scale(0.1))).init(PARAMS)

    def test_arguments(self):
        with raises(ValueError, "switch: carry must be 'momentum' or 'reset', found 'm'"):
            switch(3, ADAM, SGD, carry="m")  # pyright: ignore[reportArgumentType] - the mistake under test
        for bad in (True, 2.5, "3", jnp.array([1, 2]), None):
            with raises(TypeError, "switch: at must be an integer"):
                switch(bad, ADAM, SGD)  # pyright: ignore[reportArgumentType] - the mistake under test
        for bad in (-1, 2**31):
            with raises(ValueError, "switch: at must be an integer from 0 to 2147483647, found"):
                switch(bad, ADAM, SGD)
        with raises(TypeError, "switch: then must be a gradtx chain or rule, or an optax transformation, found 0.1"):
            switch(3, ADAM, 0.1)  # pyright: ignore[reportArgumentType] - the mistake under test

    def test_conditions(self):
        for bad in (lambda state: state.count, lambda state: jnp.array([True])):
            tx = switch(bad, ADAM, SGD)
            with raises(TypeError, "switch: the condition at must return one bool, found"):
                tx.update(PARAMS, tx.init(PARAMS), PARAMS)

    def test_states_and_trees(self):
        tx = switch(3, ADAM, SGD)
        with raises(TypeError, "switch: update needs the SwitchState that its init returned, found ChainState"):
            tx.update(PARAMS, ADAM.init(PARAMS), PARAMS)  # pyright: ignore[reportArgumentType] - the mistake under test
        with raises(ValueError, "the updates are different trees|different trees", "missing"):
            jax.jit(tx.update)({"w": PARAMS["w"]}, tx.init(PARAMS), PARAMS)
        with raises(TypeError, "int32"):
            tx.init(jnp.arange(3))


class Paper(NamedTuple):
    weights: np.ndarray
    switched_at: int
    rate: float
    gammas: list[float]


def paper(noise, alpha=1e-2, b1=0.9, b2=0.999, eps=1e-9) -> Paper:
    """Algorithm 1 of Keskar & Socher (2017) on a quadratic with these noises in its gradients, in float64."""
    w, m, a, v = START, 0 * START, 0 * START, 0 * START
    lam, rate, phase, switched_at, path, gammas = 0.0, 0.0, "Adam", -1, [], []
    for k in range(1, len(noise) + 1):
        g = CURVATURE * w + noise[k - 1]
        if phase == "SGD":
            v = b1 * v + g
            w = w - (1 - b1) * rate * v
        else:
            m = b1 * m + (1 - b1) * g
            a = b2 * a + (1 - b2) * g**2
            p = -alpha * np.sqrt(1 - b2**k) / (1 - b1**k) * m / (np.sqrt(a) + eps)
            w = w + p
            if p @ g != 0:
                gammas.append(p @ p / -(p @ g))
                lam = b2 * lam + (1 - b2) * gammas[-1]
                if k > 1 and abs(lam / (1 - b2**k) - gammas[-1]) < eps:
                    phase, switched_at, v, rate = "SGD", k, 0 * w, lam / (1 - b2**k)
        path.append(w)
    return Paper(np.array(path), switched_at, rate, gammas)


def as_in_the_paper(alpha: Any = 1e-2, **settings: Any) -> swats:
    return swats(alpha, **({"rtol": None, "min_steps": 1, "positive": False} | settings))


def trained(tx: Any, noise: Any, start: Any = START, curvature: Any = CURVATURE) -> Any:
    """The weights after each step on the same quadratic, and the last state, in the dtype of the start."""

    def one(carry, noise):
        w, state = carry
        updates, state = tx.update(curvature * w + noise, state)
        return (w + updates, state), w + updates

    def run(start):
        return jax.lax.scan(one, (start, tx.init(start)), noise)

    (_, state), path = jax.jit(run)(jnp.asarray(start))
    return np.asarray(path), state


def noises(scale, n=200, seed=0):
    return scale * np.random.default_rng(seed).normal(size=(n, 6))


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64")
class TestSwatsIsThePaper:
    @pytest.mark.parametrize(
        "scale, seed, eps, k",
        [
            (0.0, 0, 1e-3, 2),
            (0.0, 0, 1e-6, 99),
            (0.5, 2, 1e-5, 34),
            (0.5, 3, 1e-5, 36),
            (0.0, 0, 1e-9, -1),
            (0.5, 0, 1e-9, -1),
        ],
    )
    def test_both_phases(self, scale, seed, eps, k):
        noise = noises(scale, seed=seed)
        expected = paper(noise, eps=eps)
        path, state = trained(as_in_the_paper(eps=eps), noise)
        np.testing.assert_allclose(path, expected.weights, rtol=1e-12, atol=1e-12)
        assert int(state.switched_at) == expected.switched_at == k
        assert bool(state.switched) == (k > 0)
        if k > 0:
            assert float(state.sgd_rate) == pytest.approx(expected.rate, rel=1e-12)

    def test_other_decays(self):
        noise = noises(0.5, seed=2)
        settings = {"b1": 0.8, "b2": 0.95, "eps": 3e-5}
        expected = paper(noise, **settings)
        path, state = trained(as_in_the_paper(**settings), noise)
        np.testing.assert_allclose(path, expected.weights, rtol=1e-12, atol=1e-12)
        assert int(state.switched_at) == expected.switched_at == 32

    def test_first_projection(self):
        """Adam's first step is α·sign(g): γ₁ = α·n/|g|₁."""
        g = jnp.array([3.0, -0.5, 2.0, -7.0])
        tx = swats(0.01, eps=0.0)
        _, state = tx.update(g, tx.init(g))
        assert float(state.sgd_rate) == pytest.approx(0.01 * 4 / 12.5, rel=1e-14)
        assert float(state.average) == pytest.approx(0.001 * 4 / 12.5, rel=1e-12)

    def test_at_the_second_step_the_average_is_half_way(self):
        """|λ̂₂ − γ₂| = b2/(1+b2)·|γ₁−γ₂|: what a loose tolerance mistakes for agreement."""
        gammas = paper(noises(0.5)).gammas
        tx, states = as_in_the_paper(), []
        for n in (1, 2):
            states.append(trained(tx, noises(0.5)[:n])[1])
        assert float(states[0].sgd_rate) == pytest.approx(gammas[0], rel=1e-12)
        gap = 0.999 / 1.999 * abs(gammas[0] - gammas[1])
        assert abs(float(states[1].sgd_rate) - gammas[1]) == pytest.approx(gap, rel=1e-9)

    def test_the_guard_and_the_relative_tolerance(self):
        """On the plain quadratic a tolerance of a tenth is met at k = 2, for some steps after that, and then at 72."""
        noise = noises(0.0)
        for min_steps, k in ((1, 2), (2, 2), (3, 3), (30, 72), (72, 72)):
            assert int(trained(as_in_the_paper(rtol=0.1, min_steps=min_steps), noise)[1].switched_at) == k
        loose = {"eps": 1e-3, "rtol": None}
        assert int(trained(swats(1e-2, min_steps=1, **loose), noise)[1].switched_at) == 2
        assert int(trained(swats(1e-2, **loose), noise)[1].switched_at) == -1  # 200 steps are fewer than 1000

    def test_relative_tolerance_does_not_know_the_unit_of_the_loss(self):
        noise, unit = noises(0.5, seed=1), 2.0**10
        one = swats(1e-2, rtol=1e-2, min_steps=20, eps=0.0)
        path, state = trained(one, noise)
        other_path, other = trained(one, unit * noise, curvature=unit * CURVATURE)
        np.testing.assert_allclose(other_path, path, rtol=1e-12)
        assert int(other.switched_at) == int(state.switched_at) == 71
        assert float(other.sgd_rate) == pytest.approx(float(state.sgd_rate) / unit, rel=1e-12)

    def test_a_negative_rate(self):
        """Against the gradient, as momentum sometimes carries it: the paper would then climb."""
        grads = jnp.array([[1.0], [-0.05], [-0.05], [-0.05]])
        ends = {}
        for positive in (True, False):
            tx = as_in_the_paper(rtol=10.0, positive=positive)
            state = tx.init(grads[0])
            for g in grads[:2]:
                _, state = tx.update(g, state)
            assert float(state.sgd_rate) < 0
            ends[positive] = int(state.switched_at)
        assert ends == {True: -1, False: 2}

    def test_no_projection_where_there_is_no_slope(self):
        """Steps with p·g = 0 leave λ alone, and count for its weight, as in the paper."""
        tx = swats(0.01, b2=0.9, eps=0.0)
        g, zero = jnp.array([2.0]), jnp.array([0.0])
        _, state = tx.update(zero, tx.init(g))
        assert (float(state.average), float(state.sgd_rate), int(state.count)) == (0.0, 0.0, 1)
        _, state = tx.update(g, state)
        before = state.average
        _, state = tx.update(zero, state)
        assert float(state.average) == float(before) > 0
        assert float(state.sgd_rate) == pytest.approx(float(before) * 0.01 / (1 - 0.9**3), rel=1e-12)

    def test_a_schedule_goes_on(self):
        """γ/α is averaged: Λ is as if α had been constant, times this step's α."""
        noise = noises(0.0, n=120)
        constant = trained(as_in_the_paper(eps=1e-6), noise)
        halved = as_in_the_paper(alpha=lambda count: jnp.where(count < 110, 1e-2, 5e-3), eps=1e-6)
        path, state = trained(halved, noise)
        assert int(state.switched_at) == int(constant[1].switched_at) == 99
        np.testing.assert_allclose(path[:110], constant[0][:110], rtol=1e-12)
        assert float(state.sgd_rate) == pytest.approx(0.5 * float(constant[1].sgd_rate), rel=1e-12)
        steps, expected = np.diff(path, axis=0)[109], np.diff(constant[0], axis=0)[109]
        np.testing.assert_allclose(steps, 0.5 * expected, rtol=1e-9)

    def test_complex_numbers_are_pairs_of_reals(self):
        """Re⟨p, g⟩, and one |g|² for both parts: the same as reals if they have the same modulus."""
        turn = np.exp(0.7j)
        start, curvature = jnp.array([1.0, -2.0]), jnp.array([1.0, 3.0])
        tx = as_in_the_paper(rtol=0.05, min_steps=10)
        noise = np.zeros((40, 2))
        path, state = trained(tx, noise, start, curvature)
        turned, other = trained(tx, noise, turn * start, curvature)
        np.testing.assert_allclose(turned, turn * path, rtol=1e-10)
        assert int(other.switched_at) == int(state.switched_at) > 0
        assert float(other.sgd_rate) == pytest.approx(float(state.sgd_rate), rel=1e-10)


SWATS = swats(0.01, rtol=0.05, min_steps=20)


class TestSwats:
    def test_at_the_switch_the_paper_stalls_and_a_carried_moment_does_not(self):
        """Λ is right: with Adam's moment, SGD's first step is as long as Adam's last. From v = 0 it is 1−b1 of that."""
        lengths = {}
        for carry in CARRIES:
            with jax.enable_x64(True):
                path, state = trained(as_in_the_paper(eps=1e-6, carry=carry), noises(0.0))
            assert int(state.switched_at) == 99
            lengths[carry] = np.linalg.norm(np.diff(path, axis=0), axis=1)
        last = lengths["reset"][97]  # the step to path[98] is the 99th, Adam's last
        np.testing.assert_allclose(lengths["momentum"][[98, 99, 118]] / last, [1.28, 1.27, 1.05], atol=0.01)
        np.testing.assert_allclose(lengths["reset"][[98, 99, 118]] / last, [0.12, 0.23, 0.99], atol=0.01)

    def test_loop_eager_and_jit(self):
        tx = swats(0.1, rtol=0.5, min_steps=3)
        params, state, updates = loop(tx, 8)
        assert 3 <= int(state.switched_at) < 8
        chex.assert_trees_all_close(
            scanned(tx, 8), (params, state, jax.tree.map(lambda *us: jnp.stack(us), *updates)), rtol=1e-5
        )
        chex.assert_trees_all_close(loop(tx, 8, jit=False), (params, state, updates), rtol=1e-5)

    def test_sgd_is_the_articles_momentum_with_rate_lambda(self):
        tx = swats(0.1, rtol=0.5, min_steps=3)
        k = int(loop(tx, 8)[1].switched_at)
        params, state, _ = loop(tx, k)
        expected = loop(gx.momentum_sgd(state.sgd_rate, 0.9), 8 - k, params)
        chex.assert_trees_all_close(loop(tx, 8)[0], expected[0], rtol=1e-5)
        after = loop(tx, 8)[1]
        chex.assert_trees_all_equal(after.inner.slots["rms"], state.inner.slots["rms"])  # of one program
        chex.assert_trees_all_equal((after.average, after.switched_at), (state.average, state.switched_at))
        assert float(after.sgd_rate) == pytest.approx(float(state.sgd_rate))

    def test_vmap_over_learning_rates(self):
        def run(rate):
            return scanned(swats(rate, rtol=0.05, min_steps=3), 10)[:2]

        rates = jnp.array([0.01, 0.1, 0.5])
        together = jax.jit(jax.vmap(run))(rates)
        at = [int(x) for x in together[1].switched_at]
        assert at == [3, 6, -1]
        for i, rate in enumerate(rates):
            alone = jax.jit(run)(rate)
            chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-5)
        start = swats(0.1).init(PARAMS)

        def by_state(rate):
            inner = gx.set_hyperparams(start.inner, learning_rate=rate)
            return swats(0.1).update(PARAMS, start._replace(inner=inner))[1].sgd_rate

        found = jax.vmap(by_state)(rates)
        assert float(found[2] / found[0]) == pytest.approx(50, rel=1e-4)

    def test_compiles_once_and_donated(self):
        tx = swats(0.1, rtol=0.5, min_steps=3)
        step: Any = jax.jit(lambda p, s: gx.step(tx, p, slope(p), s), donate_argnums=(0, 1))
        params, state = jax.tree.map(jnp.copy, PARAMS), jax.jit(tx.init)(PARAMS)
        before = types(state)
        for _ in range(8):
            params, state = step(params, state)
            assert types(state) == before
        assert bool(state.switched)
        assert step._cache_size() == 1
        chex.assert_trees_all_close(params, loop(tx, 8)[0], rtol=1e-5)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision_is_float32_rounded_once(self, dtype):
        grads = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), grads)
        tx = swats(0.1, rtol=0.5, min_steps=3)
        update = jax.jit(tx.update)
        state, wide_state = tx.init(grads), tx.init(wide)
        assert types(state) == types(wide_state)
        for _ in range(6):
            updates, state = update(grads, state)
            wide_updates, wide_state = update(wide, wide_state)
            rounded = jax.tree.map(lambda u: u.astype(dtype), wide_updates)
            chex.assert_trees_all_close(updates, rounded, rtol=1e-2)
            chex.assert_trees_all_close(state, wide_state, rtol=1e-6)
        assert bool(state.switched)

    def test_extreme_and_broken_gradients(self):
        tx, update = SWATS, jax.jit(SWATS.update)
        for size in (1e-38, 1e-20, 1e18):
            state = tx.init(jnp.ones(3))
            for _ in range(3):
                updates, state = update(size * jnp.array([1.0, -0.5, 0.0]), state)
            chex.assert_tree_all_finite((updates, state))
        for bad in (jnp.nan, jnp.inf):
            state = tx.init(jnp.ones(3))
            _, state = update(jnp.ones(3), state)
            _, state = update(jnp.array([1.0, bad, 1.0]), state)
            assert jnp.isfinite(state.average)
            for _ in range(30):
                updates, state = update(jnp.ones(3), state)
            assert not bool(state.switched)
            assert jnp.isfinite(updates).tolist() == [True, False, True]

    def test_empty_and_zero(self):
        state = SWATS.init({})
        updates, state = jax.jit(SWATS.update)({}, state)
        assert updates == {}
        zeros = jax.tree.map(jnp.zeros_like, PARAMS)
        state = SWATS.init(PARAMS)
        for _ in range(3):
            updates, state = SWATS.update(zeros, state)
        chex.assert_trees_all_equal(updates, zeros)
        chex.assert_tree_all_finite(state)

    def test_in_chains_and_in_a_switch(self):
        tx = swats(0.1, rtol=0.5, min_steps=3)
        expected = scanned(tx, 8)[0]
        for outer in (gx.chain(gx.clip_by_global_norm(1e6), tx), optax.chain(tx, optax.scale(1.0))):
            chex.assert_trees_all_close(scanned(outer, 8)[0], expected, rtol=1e-5)
        late = switch(2, gx.sgd(0.0), tx, carry="reset")
        params, state, _ = scanned(late, 10)
        chex.assert_trees_all_close(params, expected, rtol=1e-5)
        assert int(state.then.switched_at) == int(scanned(tx, 8)[1].switched_at)

    def test_is_a_value(self):
        assert eval(repr(SWATS), {"swats": swats}) == SWATS
        assert pickle.loads(pickle.dumps(SWATS)) == SWATS == copy.deepcopy(SWATS)
        assert hash(copy.copy(SWATS)) == hash(SWATS)
        assert SWATS != swats(0.01, rtol=0.05)
        assert swats(jnp.array(0.5)) == swats(0.5)
        assert isinstance(SWATS.init(PARAMS), SwatsState)

    def test_errors(self):
        wrong: Any = functools.partial(swats, 0.1)
        with raises(ValueError, "momentum: decay must be at least 0 and less than 1, found 1"):
            wrong(b1=1.0)
        with raises(ValueError, "rms: decay"):
            wrong(b2=-0.1)
        with raises(ValueError, "precondition: eps"):
            wrong(eps=-1.0)
        for bad in (0.0, -1.0):
            with raises(ValueError, "swats: rtol must be above 0, or None for the paper's tolerance"):
                wrong(rtol=bad)
        with raises(ValueError, "swats: rtol must be a number or None, found nan"):
            wrong(rtol=float("nan"))
        with raises(TypeError, "swats: rtol must be a number or None, found"):
            wrong(rtol=[])
        with raises(ValueError, "swats: min_steps must be an integer from 1 to 2147483647, found 0"):
            wrong(min_steps=0)
        with raises(TypeError, "swats: min_steps must be an integer from 1 to .*, found 1.5"):
            wrong(min_steps=1.5)
        with raises(TypeError, "swats: positive must be True or False"):
            wrong(positive=1)
        with raises(ValueError, "swats: carry must be 'momentum' or 'reset'"):
            wrong(carry="all")
        with raises(TypeError, "swats: update needs the SwatsState that its init returned, found dict"):
            SWATS.update(PARAMS, {}, PARAMS)  # pyright: ignore[reportArgumentType] - the mistake under test
        with raises(TypeError, "int32"):
            SWATS.init(jnp.arange(3))
        with raises(TypeError, "int32"):
            SWATS.update(jnp.arange(3), SWATS.init(jnp.ones(3)))
        with raises(ValueError, "different trees"):
            SWATS.update({"w": PARAMS["w"]}, SWATS.init(PARAMS))
