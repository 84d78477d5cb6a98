"""Composition: the gradient phase, names, optax inside and outside, sealing, hyperparameters and schedules."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import assert_same

import gradtx as gx

pytestmark = pytest.mark.usefixtures("quick_compilation")

G = jnp.array([3.0, -4.0])
LR = gx.scale_by_learning_rate(0.1)


def first(tx: Any, g: Any = G, params: Any = None) -> Any:
    return tx.update(g, tx.init(g), g if params is None else params)[0]


def run(tx: Any, grads: Any) -> Any:
    state, out = tx.init(grads[0]), []
    for g in grads:
        updates, state = tx.update(g, state, g)
        out.append(updates)
    return jnp.stack(out), state


class TestGradientPhase:
    """Until the first accumulator a rule edits the gradient itself; from then on the direction only."""

    def test_a_clip_in_front_is_seen_by_the_second_moment(self):
        tx = gx.chain(gx.clip_by_value(1.0), gx.rms(0.75), gx.precondition(0.0))
        chex.assert_trees_all_close(first(tx), jnp.array([2.0, -2.0]))

    def test_a_clip_behind_is_not(self):
        tx = gx.chain(gx.rms(0.75), gx.clip_by_value(1.0), gx.precondition(0.0))
        chex.assert_trees_all_close(first(tx), jnp.array([1.0, -1.0]) / (0.5 * abs(G)))

    def test_any_accumulator_ends_it(self):
        for accumulator in (gx.momentum(0.0), gx.trace(0.0), gx.damped_trace(0.0), gx.nesterov(0.0)):
            tx = gx.chain(accumulator, gx.scale(10.0), gx.rms(0.75), gx.precondition(0.0))
            chex.assert_trees_all_close(first(tx), 10.0 * 2.0 * jnp.sign(G))

    def test_any_second_moment_ends_it(self):
        """A second one, after the first is used up, still reads the gradient: u = (g/√v₁)/√v₂ with √v₂ = |g|/2."""
        for maker, root in (
            (gx.rms(0.75), 0.5),
            (gx.monotone_rms(0.75), 0.5),
            (gx.centered_rms(0.75), (0.75 * 0.25) ** 0.5),
            (gx.adagrad_sum(), 1.0),
        ):
            tx = gx.chain(maker, gx.precondition(0.0), gx.rms(0.75), gx.precondition(0.0))
            chex.assert_trees_all_close(first(tx), jnp.sign(G) / root / (0.5 * abs(G)), rtol=1e-6)

    def test_rules_without_memory_do_not(self):
        tx = gx.chain(gx.scale(10.0), gx.debias(), gx.rms(0.75), gx.precondition(0.0))
        chex.assert_trees_all_close(first(tx), 2.0 * jnp.sign(G))

    def test_decay_in_front_is_coupled_and_behind_decoupled(self):
        params = jnp.array([10.0, 10.0])
        tail = (gx.rms(0.0), gx.precondition(0.0))
        coupled = gx.chain(gx.add_decayed_weights(1.0), *tail)
        decoupled = gx.chain(*tail, gx.add_decayed_weights(1.0))
        chex.assert_trees_all_close(first(coupled, params=params), jnp.sign(G + params))
        chex.assert_trees_all_close(first(decoupled, params=params), jnp.sign(G) + params)

    def test_optax_in_front_edits_the_gradient_too(self):
        ours = gx.chain(gx.clip_by_value(1.0), gx.rms(0.75), gx.precondition(0.0))
        theirs = gx.chain(optax.clip(1.0), gx.rms(0.75), gx.precondition(0.0))
        assert_same(first(ours), first(theirs))

    def test_the_frameworks_orders(self):
        """Adam's epsilon hat, and AMSGrad's order of maximum and debiasing, are orders and nothing else."""
        grads = [G, 0.01 * G, 5.0 * G]
        averages = (gx.momentum(0.9), gx.rms(0.9))
        m, v, v_max = np.zeros(2), np.zeros(2), np.zeros(2)
        for t, g in enumerate(np.asarray(grads), 1):
            m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g**2
            v_max = np.maximum(v_max, v)
            bias = 1 - 0.9**t
            hat = np.sqrt(bias) / bias * m / (np.sqrt(v) + 0.1)
            torch_amsgrad = (m / bias) / (np.sqrt(v_max / bias) + 0.1)
        hat_chain = gx.chain(*averages, gx.precondition(0.1), gx.debias())
        torch_chain = gx.chain(*averages, gx.max_v(), gx.debias(), gx.precondition(0.1))
        np.testing.assert_allclose(run(hat_chain, grads)[0][-1], hat, rtol=1e-5)
        np.testing.assert_allclose(run(torch_chain, grads)[0][-1], torch_amsgrad, rtol=1e-5)


class TestNames:
    def test_unique(self):
        pair = (gx.rms(), gx.precondition())
        assert gx.chain(*pair, *pair, *pair).names == (
            "rms", "precondition", "rms_1", "precondition_1", "rms_2", "precondition_2",
        )  # fmt: skip

    def test_given_names_win(self):
        tx = gx.chain(gx.scale(1.0), gx.scale(2.0, name="scale"), gx.scale(3.0, name="scale_1"), gx.scale(4.0))
        assert tx.names == ("scale_2", "scale", "scale_1", "scale_3")

    def test_a_chains_name_goes_before_its_rules(self):
        inner = gx.chain(gx.trace(), gx.trace(), name="inner")
        tx = gx.chain(gx.trace(), inner, name="outer")
        assert tx.names == ("outer.trace", "outer.inner.trace", "outer.inner.trace_1")
        assert set(tx.init(G).slots) == set(tx.names)
        assert eval(repr(tx), dict(vars(gx))) == tx

    def test_state_keys(self):
        state = gx.adam(0.1).init(G)
        assert set(state.hyperparams) == {"momentum", "rms", "precondition", "scale_by_learning_rate"}
        assert set(state.slots) == {"momentum", "rms"}
        assert gx.chain(gx.debias(), gx.sign()).init(G) == gx.ChainState(jnp.array(0), {}, {})


class TestOptax:
    def test_members(self):
        tx = gx.chain(optax.clip(1.0), gx.momentum(0.9), gx.rms(0.999), gx.debias(), gx.precondition(), LR)
        theirs = optax.chain(optax.clip(1.0), optax.adam(0.1))
        grads = [G, -0.3 * G, 2.0 * G]
        # One element cancels to 4e-9; the others are of the size of the learning rate.
        chex.assert_trees_all_close(run(tx, grads)[0], run(theirs, grads)[0], rtol=1e-5, atol=1e-8)

    def test_stateful_member(self):
        tx = gx.chain(gx.clip_by_norm(1.0), optax.scale_by_adam(), LR)
        theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
        grads = [G, -0.3 * G, 2.0 * G]
        chex.assert_trees_all_close(run(tx, grads)[0], run(theirs, grads)[0], rtol=1e-6)
        assert tx.names == ("clip_by_norm", "scale_by_adam", "scale_by_learning_rate")

    def test_extra_arguments_reach_members(self):
        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            return jax.tree.map(lambda u: extra["factor"] * u, updates), state

        member: Any = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
        sealed: Any = gx.chain(LR, gx.seal(gx.chain(member)))
        inside: Any = optax.chain(LR, gx.chain(member))
        for tx in (gx.chain(LR, member), sealed, inside):
            updates, _ = tx.update(G, tx.init(G), G, factor=7.0, unknown=None)
            chex.assert_trees_all_close(updates, -0.7 * G)

    def test_inside_optax(self):
        grads = [G, -0.3 * G, 2.0 * G]
        halved = optax.chain(gx.adam(0.1), optax.scale(0.5))
        chex.assert_trees_all_close(run(halved, grads)[0], 0.5 * run(gx.adam(0.1), grads)[0])
        masked = optax.masked(gx.sgd(0.1), {"a": True, "b": False})
        tree = {"a": G, "b": G}
        chex.assert_trees_all_close(first(masked, tree, tree), {"a": -0.1 * G, "b": G})
        parts = optax.partition({"x": gx.sgd(0.1), "y": gx.sgd(1.0)}, {"a": "x", "b": "y"})
        chex.assert_trees_all_close(first(parts, tree, tree), {"a": -0.1 * G, "b": -G})

    def test_members_keep_their_types_under_bfloat16(self):
        """optax.trace alone turns a bfloat16 state into float32 when gradients are float32."""
        params = jnp.ones(3, jnp.bfloat16)
        tx = gx.chain(optax.trace(0.9), optax.scale_by_adam(), LR)
        state = tx.init(params)
        _, after = jax.lax.scan(lambda s, _: (tx.update(params.astype(jnp.float32), s, params)[1], s), state, None, 3)
        assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(state))
        chex.assert_trees_all_equal_dtypes(jax.tree.map(lambda x: x[0], after), state)

    def test_seal_hides_the_lanes(self):
        """The second moment inside sees the direction, as in a sequential chain."""
        sealed = gx.chain(gx.momentum(0.5), gx.seal(gx.chain(gx.rms(0.75), gx.precondition(0.0))))
        theirs = optax.chain(optax.ema(0.5, debias=False), optax.scale_by_rms(0.75, 0.0), optax.scale(1.0))
        grads = [G, -0.3 * G, 2.0 * G]
        chex.assert_trees_all_close(run(sealed, grads)[0], run(theirs, grads)[0], rtol=1e-6)
        assert sealed.names == ("momentum", "seal")


class TestHyperparameters:
    def test_found_by_optax(self):
        state = gx.adamw(0.25).init(G)
        assert float(optax.tree_utils.tree_get(state, "learning_rate")) == 0.25
        state = optax.tree_utils.tree_set(state, learning_rate=0.5)
        assert float(state.hyperparams["scale_by_learning_rate"]["learning_rate"]) == 0.5
        assert int(optax.tree_utils.tree_get(state, "count")) == 0

    def test_set(self):
        tx = gx.adam(0.1)
        state = tx.init(G)
        other = gx.set_hyperparams(state, {"rms.decay": 0.5}, learning_rate=1.0, eps=0.25)
        chex.assert_trees_all_equal(state, tx.init(G))  # nothing changed in place
        expected = gx.adam(1.0, b2=0.5, eps=0.25)
        chex.assert_trees_all_equal(other, expected.init(G))
        chex.assert_trees_all_equal(tx.update(G, other), expected.update(G, other))

    def test_set_under_jit_and_vmap_compiles_once(self):
        tx = gx.sgd(0.1)
        state = tx.init(G)
        swept = jax.vmap(lambda lr: gx.set_hyperparams(state, learning_rate=lr))(jnp.array([0.1, 1.0]))
        updates, _ = jax.vmap(tx.update, in_axes=(None, 0))(G, swept)
        chex.assert_trees_all_close(updates, jnp.stack([-0.1 * G, -G]))

    def test_arrays_and_traced_values(self):
        assert gx.adam(jnp.array(0.5)) == gx.adam(0.5) == gx.adam(np.float32(0.5))
        assert repr(gx.scale(np.float64(2))) == "scale(factor=2.0)"
        chex.assert_trees_all_close(jax.jit(lambda lr: first(gx.sgd(lr)))(0.5), -0.5 * G)
        slope = jax.grad(lambda lr: first(gx.sgd(lr)).sum())(0.5)
        chex.assert_trees_all_close(slope, -G.sum())

    SCHEDULED = {
        "decay": (lambda c: gx.momentum(c), 0.5, 0.9),
        "trace": (lambda c: gx.trace(c), 0.5, 0.9),
        "nesterov": (lambda c: gx.nesterov(0.5, c), 0.0, 1.0),
        "rms": (lambda c: gx.chain(gx.rms(c), gx.precondition()), 0.5, 0.9),
        "eps": (lambda c: gx.chain(gx.rms(), gx.precondition(c)), 0.1, 1.0),
        "eps_root": (lambda c: gx.chain(gx.rms(), gx.precondition(0.0, c)), 0.1, 1.0),
        "initial": (lambda c: gx.chain(gx.adagrad_sum(c), gx.precondition()), 0.1, 1.0),
        "factor": (lambda c: gx.scale(c), 2.0, 3.0),
        "rate": (lambda c: gx.add_decayed_weights(c), 0.1, 0.3),
        "learning_rate": (lambda c: gx.sgd(c), 0.1, 0.3),
        "limit": (lambda c: gx.clip_by_value(c), 1.0, 2.0),
        "norm": (lambda c: gx.clip_by_norm(c), 1.0, 2.0),
        "global norm": (lambda c: gx.clip_by_global_norm(c), 1.0, 2.0),
    }

    @pytest.mark.parametrize("name", SCHEDULED)
    def test_every_hyperparameter_takes_a_schedule(self, name):
        """The same as setting the value by hand before each step; the state holds the value last used."""
        make, before, after = self.SCHEDULED[name]
        scheduled, fixed = make(lambda count: jnp.where(count == 0, before, after)), make(before)
        (own,) = {k for names in scheduled.init(G).hyperparams.values() for k in names} & {
            k for rule in scheduled.rules for k, v in rule.hyperparameters().items() if callable(v)
        }  # fmt: skip
        (rule,) = (n for n, r in zip(scheduled.names, scheduled.rules, strict=True) if callable(getattr(r, own, None)))
        state, by_hand = scheduled.init(G), fixed.init(G)
        chex.assert_trees_all_equal(state, by_hand)
        for step, value in enumerate((before, after, after)):
            by_hand = gx.set_hyperparams(by_hand, {f"{rule}.{own}": value})
            updates, state = scheduled.update(G, state, G)
            expected, by_hand = fixed.update(G, by_hand, G)
            if name != "nesterov" or step:  # its first step already looks at the second step's momentum
                chex.assert_trees_all_close(updates, expected, rtol=1e-6)
            assert float(state.hyperparams[rule][own]) == pytest.approx(value)

    def test_first_step_sees_count_zero(self):
        seen = first(gx.scale_by_learning_rate(lambda count: 1.0 + count))
        chex.assert_trees_all_close(seen, -G)

    def test_optax_schedules(self):
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, 3, 10)
        updates, _ = run(gx.sgd(schedule), [G] * 10)
        theirs, _ = run(optax.sgd(schedule), [G] * 10)
        chex.assert_trees_all_close(updates, theirs, rtol=1e-6)


def test_step_is_update_and_apply():
    tx, params = gx.adamw(0.1), {"w": G, "b": jnp.ones(2, jnp.bfloat16)}
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    state = tx.init(params)
    updates, expected_state = tx.update(grads, state, params)
    stepped, stepped_state = gx.step(tx, params, grads, state)
    assert_same(stepped, optax.apply_updates(params, updates), ulps=4)
    assert_same(stepped_state, expected_state)
    theirs, _ = gx.step(optax.sgd(0.1), params, grads, optax.sgd(0.1).init(params))
    chex.assert_trees_all_close(theirs["w"], G - 0.05 * G)


def test_arguments_in_another_order_are_refused_by_name():
    params = {"w": jnp.ones(2)}
    for tx in (gx.adam(0.1), gx.accumulate(gx.adam(0.1), 2)):
        state = tx.init(params)
        order, kind = r"The arguments are step\(tx, params, grads, state\)", type(state).__name__
        with pytest.raises(TypeError, match=rf"step: grads is a state, {kind}\. {order}"):
            gx.step(tx, params, state, params)
        with pytest.raises(TypeError, match=rf"step: params is a state, {kind}\. {order}"):
            gx.step(tx, state, params, params)
        with pytest.raises(TypeError, match=rf"step: tx is no transformation, dict\. {order}"):
            gx.step(params, params, state, tx)  # pyright: ignore[reportArgumentType] - the mistake
        for read in (gx.evaluation_point, gx.gradient_point):
            with pytest.raises(TypeError, match=f"params is a state, {kind}. The state comes first"):
                read(params, state)
    with pytest.raises(TypeError, match=r"argument 0 must be .*found \[.*\(give its members one by one: \*rules\)"):
        gx.chain([gx.sgd(0.1)])  # pyright: ignore[reportArgumentType] - the mistake


@pytest.mark.parametrize("make", [gx.adam, gx.amsgrad, gx.nadam, gx.nag, gx.rmsprop, lambda lr: gx.sgd(lr, 0.9)])
def test_a_scan_of_100_steps_is_the_loop(make):
    """On a loss whose gradient depends on where the steps led; float64, so that contraction does not show."""
    with jax.enable_x64(True):
        tx = gx.chain(gx.clip_by_global_norm(5.0), make(optax.cosine_decay_schedule(0.05, 100)))
        start = {"w": jnp.array([2.0, -1.0]), "b": jnp.array(0.5)}

        def one(carry):
            params, state = carry
            grads = jax.grad(lambda p: jnp.sum(jnp.cosh(p["w"])) + (p["b"] - p["w"][0]) ** 2)(params)
            return gx.step(tx, params, grads, state)

        looped, step = (start, tx.init(start)), jax.jit(one)
        for _ in range(100):
            looped = step(looped)
        scanned, _ = jax.lax.scan(lambda carry, _: (one(carry), None), (start, tx.init(start)), length=100)
        chex.assert_trees_all_close(scanned, looped, rtol=1e-10, atol=1e-12)
        assert int(scanned[1].count) == 100


def test_a_fresh_state_owns_its_memory():
    """Whatever stands in it: no buffer is there twice, is a parameter's, or an array that the user gave."""
    params, key = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jax.random.key(0)
    begins_with_params = optax.contrib.mechanize(optax.sgd(0.1))
    noisy = optax.add_noise(0.1, 0.5, key)
    for tx in (
        gx.swats(0.1),
        gx.accumulate(gx.partition({"w": gx.swats(0.1)}, begins_with_params), 2),
        gx.skip_nonfinite(begins_with_params),
        gx.switch(2, begins_with_params, gx.sgd(0.1), carry="reset"),
        gx.chain(noisy, begins_with_params),
        gx.partition({"^": noisy}),
    ):
        state = tx.init(params)
        arrays = [x for x in jax.tree.leaves((params, state)) if jnp.issubdtype(x.dtype, jnp.number)]
        assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays), tx
        jax.jit(lambda p, s: (p, s), donate_argnums=(0, 1))(jax.tree.map(jnp.copy, params), state)
        assert not key.is_deleted()
