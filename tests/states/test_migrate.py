"""Going on from other chains' states, and from those of live optax and torch."""

import importlib.util
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.states import BEFORE, STEPS, TORCH, stored_torch, torch_run
from trajectories import PULL, start, stream

import gradtx as gx
from gradtx.dialects import optax as like_optax

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def trained(tx: Any, params: Any, state: Any, first: int, last: int) -> Any:
    """Parameters and state after these steps of the stream."""
    for i in range(first, last):
        grads = jax.tree.map(lambda n, p: n[i] + PULL * p, stream(STEPS), params)  # noqa: B023
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def close(ours: Any, theirs: Any):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), ours, theirs)


class TestMigrate:
    params = {"w": jnp.array([1.0, -2.0], jnp.float32), "b": jnp.array([0.5], jnp.float32)}

    def moved(self, old, new, params=None, **kwargs):
        grads = jax.tree.map(lambda p: 0.3 * p, self.params)
        _, state = old.update(grads, old.init(self.params), self.params)
        return state, *gx.migrate(state, new, self.params if params is None else params, **kwargs)

    def test_the_same_chain_keeps_everything(self):
        old, new, report = self.moved(gx.adam(0.1), gx.adam(0.1))
        assert jax.tree.structure(old) == jax.tree.structure(new)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, old, new)))
        assert report == ({"count": "1"} | dict.fromkeys(report.kept.keys() - {"count"}, ""), {}, {})
        assert set(report.kept) == {"count", "momentum.m", "momentum.weight", "rms.s", "rms.weight"}

    def test_adam_goes_on_as_amsgrad(self):
        old, new, report = self.moved(gx.adam(0.1), gx.amsgrad(0.1))
        np.testing.assert_array_equal(new.slots["momentum"]["m"]["w"], old.slots["momentum"]["m"]["w"])
        assert report.fresh == {"max_v.s": "not in the old state"} and report.dropped == {}
        gx.amsgrad(0.1).update(self.params, new, self.params)

    def test_sums_are_not_carried_into_weighted_ones(self):
        """A sum of gradients is none of weighted gradients: the next mean is that of what comes afterwards."""
        equal, weighted = (gx.accumulate(gx.sgd(1.0), 2, combine) for combine in ("mean", "weighted mean"))
        _, new, report = self.moved(equal, weighted)
        assert {"sums", "held", "weight"} <= report.fresh.keys() and "micro_steps" in report.kept
        for _ in range(2):
            updates, new = weighted.update(self.params, new, weight=3.0)
        np.testing.assert_allclose(updates["w"], -self.params["w"], rtol=1e-6)
        assert gx.migrate(new, equal, self.params)[1].fresh.keys() >= {"sums", "held"}

    def test_hyperparameters_are_the_new_ones_unless_asked_for(self):
        old, new, report = self.moved(gx.adam(0.1), gx.adam(0.2, b2=0.99))
        assert float(new.hyperparams["rms"]["decay"]) == pytest.approx(0.99)
        assert report.fresh["rms.decay"] == "0.99 as given, 0.999 in the old state"
        old, new, report = self.moved(gx.adam(0.1), gx.adam(0.2, b2=0.99), hyperparams=True)
        assert new.hyperparams == old.hyperparams
        assert report.kept["rms.decay"] == "0.999, instead of 0.99 as given" and not report.fresh

    def test_rename_a_rule_and_swap_two(self):
        two = gx.chain(gx.momentum(0.9), gx.momentum(0.5), gx.scale(-1.0))
        swap = {"momentum": "momentum_1", "momentum_1": "momentum"}
        old, new, report = self.moved(two, two, rename=swap)
        np.testing.assert_array_equal(new.slots["momentum"]["m"]["w"], old.slots["momentum_1"]["m"]["w"])
        np.testing.assert_array_equal(new.slots["momentum_1"]["m"]["w"], old.slots["momentum"]["m"]["w"])
        assert report.kept["momentum.m"] == "from momentum_1.m"

    def test_rename_slots(self):
        rename = {"nesterov.m": "momentum.m", "nesterov.weight": "momentum.weight"}
        old, new, report = self.moved(gx.nadam(0.1), gx.adam(0.1), rename=rename)
        np.testing.assert_array_equal(new.slots["momentum"]["m"]["w"], old.slots["nesterov"]["m"]["w"])
        assert not report.dropped

    def test_an_average_without_its_weight_starts_fresh(self):
        _, new, report = self.moved(gx.nadam(0.1), gx.adam(0.1), rename={"nesterov.m": "momentum.m"})
        assert not np.any(new.slots["momentum"]["m"]["w"])
        assert report.fresh["momentum.weight"] == "not in the old state"
        assert report.fresh["momentum.m"] == "belongs to momentum.weight, which is fresh"
        assert report.dropped == {
            "nesterov.m": "momentum starts fresh",
            "nesterov.weight": "no such slot in the new state",
        }
        _, new, report = self.moved(gx.adam(0.1), gx.sgd(0.1, 0.9), rename={"momentum": "trace"})
        assert float(new.slots["trace"]["weight"]) == 0  # m is no b

    def test_a_leaf_of_another_shape(self):
        params = {"w": jnp.zeros(3, jnp.float32), "b": jnp.zeros(1, jnp.float32), "new": jnp.zeros((), jnp.float32)}
        old, new, report = self.moved(gx.sgd(0.1, 0.9), gx.sgd(0.1, 0.9), params)
        np.testing.assert_array_equal(new.slots["trace"]["b"]["b"], old.slots["trace"]["b"]["b"])
        assert report.fresh == {
            "trace.b/new": "not in the old state",
            "trace.b/w": "shape (2,) in the old state, (3,) here",
        }
        assert set(report.kept) == {"count", "trace.b/b", "trace.weight"}
        only = {"w": jnp.zeros(3, jnp.float32)}
        _, new, report = self.moved(gx.sgd(0.1, 0.9), gx.sgd(0.1, 0.9), only)
        assert float(new.slots["trace"]["weight"]) == 0  # of an average that none is left of
        assert report.fresh["trace.b/w"] == "shape (2,) in the old state, (3,) here"

    def test_dtypes(self):
        _, new, report = self.moved(gx.momentum(0.9), gx.momentum(0.9, state_dtype="bfloat16"))
        assert new.slots["momentum"]["m"]["w"].dtype == jnp.bfloat16
        assert report.kept["momentum.m/w"] == "float32 as bfloat16"
        complex_params = jax.tree.map(lambda p: p.astype(jnp.complex64), self.params)
        _, new, report = self.moved(gx.momentum(0.9), gx.momentum(0.9), complex_params)
        assert report.fresh["momentum.m/w"] == "float32 in the old state, complex64 here"

    def test_in_and_out_of_a_wrapper(self):
        adam, safe = gx.adam(0.1), gx.skip_nonfinite(gx.adam(0.1))
        old, new, report = self.moved(adam, safe)
        np.testing.assert_array_equal(new.inner.slots["rms"]["s"]["w"], old.slots["rms"]["s"]["w"])
        assert report.fresh == {
            "SkipNonfiniteState": "ChainState in the old state, SkipNonfiniteState here; "
            "only the chain within is carried"
        }
        _, back, report = self.moved(safe, adam)
        assert int(back.count) == 1 and list(report.dropped) == ["SkipNonfiniteState"]

    def test_within_a_wrapper(self):
        tx = gx.partition({"w": gx.adam(0.1), "b": gx.sgd(0.1, 0.9)})
        old, new, report = self.moved(tx, gx.partition({"w": gx.amsgrad(0.1), "b": gx.sgd(0.1, 0.9)}))
        assert report.fresh == {"parts/w/max_v.s": "not in the old state"}
        np.testing.assert_array_equal(new.parts["b"].slots["trace"]["b"]["b"], old.parts["b"].slots["trace"]["b"]["b"])

    def test_sealed(self):
        def sealed(tx):
            return gx.chain(gx.clip_by_norm(1.0), gx.seal(tx), optax.scale_by_adam())

        _, new, report = self.moved(sealed(gx.adam(0.1)), sealed(gx.amsgrad(0.1)))
        assert report.fresh == {"seal.state/max_v.s": "not in the old state"} and not report.dropped
        assert int(new.slots["scale_by_adam"]["state"].count) == 1
        _, _, report = self.moved(gx.chain(optax.scale_by_rms()), gx.chain(optax.scale_by_adam()))
        assert list(report.dropped) == ["scale_by_rms.state"] and "scale_by_adam.state" in report.fresh

    def test_nothing_in_common(self):
        two = optax.chain(gx.adam(0.1), gx.sgd(0.1, 0.9))
        _, _, report = self.moved(two, gx.adam(0.1))
        assert report.fresh == report.dropped == {"all": "tuple in the old state, ChainState here"}

    def test_the_first_phase_of_a_switch_and_the_phase_that_is_on(self):
        adam, sgd = gx.adam(0.1), gx.sgd(0.1, 0.9)
        old, new, report = self.moved(adam, gx.skip_nonfinite(gx.switch(5, adam, sgd)))
        np.testing.assert_array_equal(new.inner.first.slots["rms"]["s"]["w"], old.slots["rms"]["s"]["w"])
        assert not report.dropped and not new.inner.switched and not new.inner.then.count
        for at, out in ((5, adam), (0, sgd)):  # in its first phase, and after it
            old, new, report = self.moved(gx.switch(at, adam, sgd), out)
            held = (old.then if old.switched else old.first).slots
            assert all(jax.tree.leaves(jax.tree.map(np.array_equal, new.slots, held)))
            assert int(new.count) == 1 and list(report.dropped) == ["SwitchState"] and not report.fresh
        phases = gx.switch(0, adam, sgd)
        _, new, report = self.moved(gx.skip_nonfinite(phases), phases)  # both, as they are
        assert (
            new.switched and int(new.count) == 1 and not report.fresh and list(report.dropped) == ["SkipNonfiniteState"]
        )

    def test_packed_states_are_carried_leaf_by_leaf(self):
        packed = gx.packed(gx.adam(0.1))
        old, new, report = self.moved(packed, gx.packed(gx.adam(0.2)))
        assert float(new.hyperparams["scale_by_learning_rate"]["learning_rate"]) == pytest.approx(0.2)
        assert jax.tree.structure(old) == jax.tree.structure(new) and not report.dropped
        held = gx.unpack_state(packed, old, self.params)
        other = {"w": self.params["w"], "new": jnp.zeros(3, jnp.float32)}  # one leaf more, one less
        _, new, report = self.moved(packed, packed, other)
        after = gx.unpack_state(packed, new, other).slots["rms"]["s"]
        np.testing.assert_array_equal(after["w"], held.slots["rms"]["s"]["w"])
        assert not after["new"].any() and "rms.s/new" in report.fresh and "rms.s/b" in report.dropped
        for one, two in ((packed, packed.tx), (packed.tx, gx.skip_nonfinite(packed))):
            _, new, report = self.moved(one, two)
            assert "momentum.m" in report.kept and not report.dropped

    def test_between_chains_and_partitions(self):
        adam = gx.adam(0.1)
        for parts in (
            gx.partition({"w": adam, "b": gx.packed(adam)}),
            gx.accumulate(gx.partition({"^": gx.skip_nonfinite(adam)}, "freeze"), 2),
        ):
            old, new, report = self.moved(adam, parts)
            assert not report.dropped
            parts.update(self.params, new, self.params)
            back, report = gx.migrate(new, adam, self.params)
            assert jax.tree.structure(back) == jax.tree.structure(old)
            jax.tree.map(np.testing.assert_array_equal, back, old)
        some = gx.partition({"w": adam, "b": gx.sgd(0.1, 0.9)})
        _, new, report = self.moved(adam, some)
        assert set(report.dropped) == {"momentum.m/b", "rms.s/b"} and new.parts["w"].slots["rms"]["s"]["w"].any()
        state = some.init(self.params)
        other = gx.partition({"b": adam, "w": adam})
        ahead = gx.migrate(other.init(self.params), other, self.params)[0]
        weights = ahead.parts["w"].slots["rms"] | {"weight": jnp.float32(0.5)}
        ahead.parts["w"] = ahead.parts["w"]._replace(slots=ahead.parts["w"].slots | {"rms": weights})
        _, report = gx.migrate(ahead, adam, self.params)
        assert report.dropped["rms"] == "the parts b, w have other weights" and state is not None

    def test_rows(self):
        grown = {"w": jnp.zeros(3, jnp.float32), "b": jnp.zeros(1, jnp.float32)}
        old, new, report = self.moved(gx.packed(gx.adam(0.1)), gx.adam(0.1), grown, keep_rows=True)
        np.testing.assert_array_equal(new.slots["rms"]["s"]["w"], [*old.slots["rms"]["s"].by_keys()[("w",)], 0])
        assert report.kept["rms.s/w"] == "2 rows of 2, and 1 fresh"

    def test_stacked(self):
        stacked = jax.vmap(lambda rate: gx.adam(rate).init(self.params))(jnp.array([0.1, 0.2]))
        with pytest.raises(ValueError, match=r"this state is stacked: its count has shape \(2,\)"):
            gx.migrate(stacked, gx.adam(0.1), self.params)

    @pytest.mark.parametrize(
        ("rename", "message"),
        [
            ({"rsm": "rms"}, "no 'rsm' in the old state, which has: debias|no 'rsm' in the old state, which has: mom"),
            ({"rms": "mrs"}, "no 'mrs' in the new state, which has: "),
            ({"rms": "rms.s"}, "'rms' is a rule, 'rms.s' is a part of a rule"),
            ({"momentum.weight": "rms.weight"}, "both 'momentum.weight' and 'rms.weight' would become 'rms.weight'"),
        ],
    )
    def test_errors(self, rename, message):
        with pytest.raises(ValueError, match=message):
            self.moved(gx.adam(0.1), gx.adam(0.1), rename=rename)


RATE = optax.exponential_decay(0.03, 1, 0.95)
MASK = {"a": True, "b": False}
OPTAX = {
    "adam": (gx.adam, optax.adam),
    "adamw": (gx.adamw, optax.adamw),
    "amsgrad": (like_optax.amsgrad, optax.amsgrad),
    "amsgrad of the paper": (
        lambda lr: gx.chain(gx.momentum(), gx.rms(0.999), gx.max_v(), gx.precondition(), gx.scale_by_learning_rate(lr)),
        lambda lr: optax.chain(
            optax.scale_by_amsgrad(bias_correction_mu=False, bias_correction_nu=False), optax.scale_by_learning_rate(lr)
        ),
    ),
    "nadam": (gx.nadam, optax.nadam),
    "lion": (lambda lr: gx.lion(lr, weight_decay=0.001), optax.lion),
    "sgd": (lambda lr: gx.sgd(lr, 0.9), lambda lr: optax.sgd(lr, 0.9)),
    "sgd nesterov": (lambda lr: gx.sgd(lr, 0.9, nesterov=True), lambda lr: optax.sgd(lr, 0.9, nesterov=True)),
    "rmsprop": (like_optax.rmsprop, optax.rmsprop),
    "rmsprop momentum": (lambda lr: like_optax.rmsprop(lr, momentum=0.9), lambda lr: optax.rmsprop(lr, momentum=0.9)),
    "rmsprop centered": (
        lambda lr: like_optax.rmsprop(lr, centered=True, momentum=0.5, eps=1e-4),
        lambda lr: optax.rmsprop(lr, centered=True, momentum=0.5, eps=1e-4),
    ),
    "rmsprop debiased": (
        lambda lr: like_optax.rmsprop(lr, bias_correction=True),
        lambda lr: optax.rmsprop(lr, bias_correction=True),
    ),
    "adagrad": (like_optax.adagrad, optax.adagrad),
    "adagrad, another start": (lambda lr: gx.adagrad(lr, eps=0.0, eps_root=1e-7), optax.adagrad),
    "chain": (
        lambda lr: gx.chain(gx.clip_by_global_norm(1.0), gx.adam(lr), gx.momentum(0.5), gx.debias()),
        lambda lr: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lr), optax.chain(optax.ema(0.5))),
    ),
    "masked": (
        lambda lr: gx.chain(gx.where("a", gx.rms(0.9), gx.precondition(0, 1e-8)), gx.sgd(lr)),
        lambda lr: optax.chain(optax.masked(optax.scale_by_rms(), MASK), optax.sgd(lr)),
    ),
    "injected": (gx.adamw, lambda lr: optax.inject_hyperparams(optax.adamw)(lr)),
    "a schedule of the decay": (
        lambda lr: gx.adam(lr, b1=lambda count: 0.9 - 0.5 / (count + 2.0)),
        None,  # optax debiases with the last decay alone
    ),
}


@pytest.mark.parametrize(
    ("name", "rate"),
    [(name, RATE) for name, pair in OPTAX.items() if pair[1]]
    + [(name, 0.01) for name in ("adam", "sgd", "rmsprop momentum", "adagrad")],
)
def test_goes_on_as_optax_would(name, rate):
    make, make_theirs = OPTAX[name]
    tx, theirs = make(rate), make_theirs(rate)
    params, state = trained(theirs, start(), theirs.init(start()), 0, BEFORE)
    ours = gx.from_optax(tx, state, params)
    assert jax.tree.structure(ours) == jax.tree.structure(tx.init(params))
    close(trained(tx, params, ours, BEFORE, STEPS)[0], trained(theirs, params, state, BEFORE, STEPS)[0])


class scaled_ball(gx.Rule):
    """A user's heavy ball that holds b·rate, from nothing of gradtx's."""

    accumulates = True
    holds = {"step": "trace"}
    rate: gx.Hyper = gx.hyper(default=0.01)

    def from_moment(self, slot, moment, h):
        return moment * h.rate

    def slots(self, param):
        return {"step": jnp.zeros_like(param)}

    def apply(self, signal, slots, param, c):
        step = 0.9 * slots.step + c.rate * signal.direction
        return signal._replace(direction=-step), {"step": step}


class by_the_count(gx.Rule):
    """A user's bias correction."""

    def tick(self, h, scalars, weights, count):
        return gx.Tick({"share": 1 - 0.5 ** (count + 1.0)}, {}, weights)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction / c.share), {}


def test_rules_of_users():
    theirs = optax.sgd(0.01, 0.9)
    params, state = trained(theirs, start(), theirs.init(start()), 0, BEFORE)
    tx = gx.chain(scaled_ball())
    ours = gx.from_optax(tx, state, params)
    close(trained(tx, params, ours, BEFORE, STEPS)[0], trained(theirs, params, state, BEFORE, STEPS)[0])
    with pytest.raises(ValueError, match=r"by_the_count\(\) needs one; say it: count="):
        gx.from_optax(gx.chain(scaled_ball(), by_the_count()), state, params)


@pytest.mark.parametrize(
    "name", ["adam", "nadam", "amsgrad", "sgd", "rmsprop momentum", "chain", "a schedule of the decay"]
)
def test_weights_and_schedules_are_those_of_the_chain_itself(name):
    tx = OPTAX[name][0](RATE)
    params, state = trained(tx, start(), tx.init(start()), 0, BEFORE)
    found = tx._engine.after(tx.init(params), params, BEFORE)
    assert int(found.count) == BEFORE
    close(found.hyperparams, state.hyperparams)
    for rule, own in state.slots.items():
        if "weight" in own:
            np.testing.assert_allclose(found.slots[rule]["weight"], own["weight"], rtol=1e-14)


def test_the_import_matters():
    """A fresh state goes elsewhere, so that the comparison can fail."""
    tx = optax.adam(0.01)
    params, state = trained(tx, start(), tx.init(start()), 0, BEFORE)
    fresh = trained(gx.adam(0.01), params, gx.adam(0.01).init(params), BEFORE, STEPS)[0]
    assert abs(fresh["a"] - trained(tx, params, state, BEFORE, STEPS)[0]["a"]).max() > 1e-3


class TestOptaxErrors:
    @pytest.mark.parametrize(
        ("tx", "theirs", "message"),
        [
            (
                gx.adam(0.1),
                optax.sgd(0.1, 0.9),
                "nothing for the rules momentum, rms. It has, and no rule takes: .*trace",
            ),
            (gx.sgd(0.1), optax.adam(0.1), "and no rule takes: average, square"),
            (gx.amsgrad(0.1), optax.amsgrad(0.1), "of the debiased second moment, so debias must stand before max_v"),
            (gx.adam(0.1), optax.adadelta(0.1), "a ScaleByAdaDeltaState has no counterpart. Known are ScaleByAdam"),
            (gx.adam(0.1), optax.lion(0.1), "It has nothing for the rules rms"),
            (gx.nag(0.1), optax.chain(optax.ema(0.9)), "It has nothing for the rules nag_lookahead"),
            (gx.chain(gx.sgd(0.1, 0.9), gx.debias()), optax.sgd(0.1, 0.9), r"debias\(\) needs one; say it: count="),
            (gx.sgd(RATE, 0.9), optax.sgd(0.1, 0.9), r"scale_by_learning_rate.* needs one; say it: count="),
        ],
    )
    def test_not_the_same_optimizer(self, tx, theirs, message):
        with pytest.raises(ValueError, match=message):
            gx.from_optax(tx, theirs.init(start()), start())

    def test_counts(self):
        theirs = optax.sgd(RATE, 0.9)
        state = theirs.init(start())
        assert int(gx.from_optax(gx.sgd(RATE, 0.9), state, start(), count=7).count) == 7
        both = optax.chain(optax.adam(0.1), optax.scale_by_schedule(RATE))
        adam, rate = cast(Any, both.init(start()))
        with pytest.raises(ValueError, match=r"the counters differ, \[0, 3\]"):
            gx.from_optax(gx.adam(0.1), (adam, rate._replace(count=3)), start())

    def test_other_parameters_and_wrappers(self):
        state = optax.adam(0.1).init(start())
        with pytest.raises(ValueError, match=r"the state for momentum and the parameters are different trees"):
            gx.from_optax(gx.adam(0.1), state, {"a": jnp.zeros(3)})
        with pytest.raises(TypeError, match="must be a chain or a rule, found skip_nonfinite"):
            gx.from_optax(gx.skip_nonfinite(gx.adam(0.1)), state, start())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", TORCH)
def test_goes_on_as_torch_would(name):
    """From stored states, and on to stored parameters."""
    state, before, after = stored_torch(name)
    tx = TORCH[name][2]
    params: Any = {"w": jnp.asarray(before[0]), "b": jnp.asarray(before[1])}
    ours = gx.from_torch(tx, state, params, names=["w", "b"], count=BEFORE if "SGD" in name else None)
    noise = {"w": stream(STEPS)["a"], "b": stream(STEPS)["b"]}
    for i in range(BEFORE, STEPS):
        grads = jax.tree.map(lambda n, p: n[i] + PULL * p, noise, params)  # noqa: B023
        updates, ours = tx.update(grads, ours, params)
        params = optax.apply_updates(params, updates)
    close([params["w"], params["b"]], list(after))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed: extra [oracles]")
@pytest.mark.parametrize("name", TORCH)
def test_stored_is_what_torch_does(name):
    """The stored states and parameters; and tensors make the state that arrays make."""
    live, stored = torch_run(name), stored_torch(name)
    for i in (1, 2):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), live[i], stored[i])
    params = {"w": jnp.asarray(live[1][0]), "b": jnp.asarray(live[1][1])}
    close(*(gx.from_torch(TORCH[name][2], run[0], params, ["w", "b"], count=BEFORE) for run in (live, stored)))


class TestTorch:
    params = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    tx = gx.dialects.torch.sgd(0.1, momentum=0.9)

    def theirs(self, **extra):
        buffers = {0: {"momentum_buffer": np.ones(2)}, 1: {"momentum_buffer": np.ones((2, 3))}}
        return {"state": buffers, "param_groups": [{"params": [0, 1]} | extra]}

    def test_names(self):
        named = self.theirs(param_names=["layer.bias", "layer.weight"])
        for names in (["b", "w"], {"w": 1, "b": 0}, {"w": "layer.weight", "b": "layer.bias"}):
            state = gx.from_torch(self.tx, named, self.params, names)
            np.testing.assert_array_equal(state.slots["trace"]["b"]["w"], np.ones((2, 3)))

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["w"], "names has ['w'], the parameters are ['b', 'w']"),
            ({"w": 1, "b": 2}, "torch's optimizer has no 'b': 2; it has [0, 1]"),
            ({"w": "weight", "b": 0}, "torch's optimizer has no 'w': 'weight'"),
            ({"w": 1, "b": 1}, "gives one parameter of torch to several"),
            (["w", "b"], "leaf 'b': the state for trace have shape (2, 3), the parameters (2,)"),
        ],
    )
    def test_wrong_names(self, names, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            gx.from_torch(self.tx, self.theirs(), self.params, names)

    def test_wrong_states(self):
        theirs = self.theirs()
        del theirs["state"][0]
        state = gx.from_torch(self.tx, theirs, self.params, ["b", "w"])  # where torch begins with b = g, as from 0
        np.testing.assert_array_equal(state.slots["trace"]["b"]["b"], np.zeros(2))
        damped = gx.dialects.torch.sgd(0.1, momentum=0.9, dampening=0.5)
        with pytest.raises(ValueError, match=r"'b' has no momentum_buffer, as others have.*\n?.*partition"):
            gx.from_torch(damped, theirs, self.params, ["b", "w"], count=1)
        theirs["state"] = {i: {"eta": np.ones(1)} for i in (0, 1)}
        with pytest.raises(ValueError, match="'eta' of torch's state has no counterpart"):
            gx.from_torch(self.tx, theirs, self.params, ["b", "w"])
        theirs["state"] = {i: {"step": np.array(float(i))} for i in (0, 1)}
        with pytest.raises(ValueError, match=r"the counters differ, \[0, 1\]"):
            gx.from_torch(gx.sgd(0.1), theirs, self.params, ["b", "w"])
        moments = {"step": np.array(1.0), "exp_avg": 0, "exp_avg_sq": 0, "max_exp_avg_sq": 0}
        theirs = {"state": {0: moments}, "param_groups": [{"params": [0]}]}
        with pytest.raises(ValueError, match="of the raw second moment, so debias must stand after max_v"):
            gx.from_torch(like_optax.amsgrad(0.1), theirs, jnp.zeros(()), {"": 0})

    def adams(self, count: Any = 3.0, **group: Any) -> Any:
        def own(shape):
            return {"step": np.array(count), "exp_avg": np.ones(shape), "exp_avg_sq": np.ones(shape)}

        groups = [{"params": [0], "lr": 0.1} | group, {"params": [1], "lr": 0.1} | group]
        return {"state": {0: own(2), 1: own((2, 3))}, "param_groups": groups}

    def test_other_optimizers_with_moments_of_the_same_names(self):
        adam, nadam = gx.dialects.torch.adam(0.1), gx.dialects.torch.nadam(0.1)
        betas = {"betas": (0.9, 0.999)}
        gx.from_torch(adam, self.adams(**betas, amsgrad=False), self.params, ["b", "w"])
        with pytest.raises(ValueError, match="the state of RAdam or SparseAdam"):
            gx.from_torch(adam, self.adams(**betas), self.params, ["b", "w"])
        theirs = self.adams(**betas, momentum_decay=0.004)
        for own in theirs["state"].values():
            own["mu_product"] = np.array(0.5)
        gx.from_torch(nadam, theirs, self.params, ["b", "w"])
        with pytest.raises(ValueError, match=r"a state of NAdam, and .* see gradtx.dialects.torch.nadam"):
            gx.from_torch(adam, theirs, self.params, ["b", "w"])
        with pytest.raises(ValueError, match=r"a state of Adam, and .* see gradtx.dialects.torch.adam"):
            gx.from_torch(nadam, self.adams(), self.params, ["b", "w"])

    def test_groups_are_parts(self):
        theirs = self.adams()
        theirs["param_groups"][1]["lr"] = 0.01
        adam = gx.dialects.torch.adam
        with pytest.raises(ValueError, match=r"groups differ in lr \(0.1, 0.01\).*partition"):
            gx.from_torch(adam(0.1), theirs, self.params, ["b", "w"])
        del theirs["state"][0]
        parts = gx.partition({"w": adam(0.01), "b": adam(0.1)}, default="freeze")
        params = self.params | {"frozen": jnp.array([1], jnp.int8)}
        state = gx.from_torch(parts, theirs, params, ["b", "w"])
        assert jax.tree.structure(state) == jax.tree.structure(parts.init(params))
        assert {part: int(own.count) for part, own in state.parts.items()} == {"w": 3, "b": 0, "default": 0}
        np.testing.assert_array_equal(state.parts["w"].slots["momentum"]["m"]["w"], np.ones((2, 3)))
        parts.update(params, state, params)

    @pytest.mark.parametrize("count", [-5, 2.7, "5", np.nan, [1, 2]])
    def test_counts_that_are_none(self, count):
        tx = gx.dialects.torch.adam(0.1)
        with pytest.raises(ValueError, match="from_torch: count must be a number of steps, 0 or more, found"):
            gx.from_torch(tx, self.adams(), self.params, ["b", "w"], count=count)
        with pytest.raises(ValueError, match="from_optax: count must be a number of steps, 0 or more, found"):
            gx.from_optax(tx, optax.adam(0.1).init(self.params), self.params, count=count)
        if isinstance(count, float):
            with pytest.raises(ValueError, match="from_torch: step must be a number of steps, 0 or more, found"):
                gx.from_torch(tx, self.adams(count), self.params, ["b", "w"])

    def test_parts_of_a_state_dict(self):
        whole = self.theirs()
        for theirs, message in (
            ({"param_groups": whole["param_groups"]}, "there is no state"),
            ({"state": whole["state"]}, "there is no param_groups"),
            ({"state": whole["state"], "param_groups": [{"lr": 0.1}]}, "there is no param_groups/params"),
            ({"state": {}, "param_groups": whole["param_groups"]}, "It has nothing for the rules trace"),
        ):
            with pytest.raises(ValueError, match=message):
                gx.from_torch(self.tx, theirs, self.params, ["b", "w"])

    def test_complex_moments_of_torch_are_not_ours(self):
        moments = {"step": np.array(1.0), "square_avg": np.array([1j])}
        theirs = {"state": {0: moments}, "param_groups": [{"params": [0]}]}
        with pytest.raises(ValueError, match=r"rms\.s is real, and complex in the state"):
            gx.from_torch(gx.rmsprop(0.1), theirs, jnp.zeros(1, complex), {"": 0})
