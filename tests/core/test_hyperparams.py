"""Reading and setting hyperparameters in any nesting, and what they may be, whichever way they come in."""

import copy
import datetime
import pickle
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import gradtx as gx

pytestmark = pytest.mark.usefixtures("quick_compilation")

P = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
ADAM, SCHEDULED = gx.adam(0.1), gx.adam(optax.linear_schedule(0.1, 0.0, 9))
Adam = Any


class Linear(nnx.Module):
    def __init__(self):
        self.a = nnx.Param(P["a"])
        self.b = nnx.Param(P["b"])


def of_nnx(tx: Any) -> Any:
    return nnx.Optimizer(Linear(), tx, wrt=nnx.Param)


NESTS: dict[str, Any] = {
    "": lambda adam: adam.init(P),
    "inner": lambda adam: gx.accumulate(adam, 2).init(P),
    "inner.inner": lambda adam: gx.skip_nonfinite(gx.accumulate(adam, 2)).init(P),
    "inner.inner.inner": lambda adam: gx.accumulate(gx.loss_scale(gx.packed(adam)), 2).init(P),
    "parts.a": lambda adam: gx.partition({"a": adam}, default="freeze").init(P),
    "partition.parts.a": lambda adam: gx.chain(gx.partition({"a": adam}, default="freeze")).init(P),
    "first": lambda adam: gx.switch(3, adam, gx.chain(gx.trace())).init(P),
    "swats.inner": lambda adam: gx.chain(gx.swats(adam.rules[-1].learning_rate)).init(P),
    "seal": lambda adam: gx.chain(gx.seal(adam)).init(P),
    "1": lambda adam: optax.chain(optax.clip(1.0), adam).init(P),
    "inner_state": lambda adam: optax.masked(adam, {"a": True, "b": False}).init(P),
    "inner_opt_state": lambda adam: optax.MultiSteps(adam, 2).init(P),
    "inner_states.x.inner_state": lambda adam: optax.partition(
        {"x": adam, "y": optax.set_to_zero()}, {"a": "x", "b": "y"}
    ).init(P),
    "inner_state.1": lambda adam: optax.inject_hyperparams(lambda q: optax.chain(optax.scale(q), adam))(q=1.0).init(P),
    "opt_state.inner": lambda adam: TrainState.create(
        apply_fn=lambda x: x, params=P, tx=gx.skip_nonfinite(adam)
    ),
    "skip_nonfinite.inner": lambda adam: of_nnx(gx.chain(gx.skip_nonfinite(adam))).opt_state,
    "opt_state.seal": lambda adam: of_nnx(gx.chain(gx.seal(adam))),
}  # fmt: skip


@pytest.mark.parametrize("at", NESTS)
def test_one_way_into_any_nesting(at):
    state = NESTS[at](ADAM)
    full = f"{at}.scale_by_learning_rate.learning_rate".removeprefix(".")
    assert float(gx.hyperparams(state)[full]) == np.float32(0.1)
    for name in ("learning_rate", full, "scale_by_learning_rate.learning_rate"):
        changed = gx.set_hyperparams(state, {name: 0.5})
        assert type(changed) is type(state) and jax.tree.structure(changed) == jax.tree.structure(state)
        different = {k for k, v in gx.hyperparams(changed).items() if v != gx.hyperparams(state)[k]}
        assert different == {full}
        others = [leaf for leaf, old in zip(*map(jax.tree.leaves, (changed, state)), strict=True) if leaf is not old]
        assert others == [0.5]
    with pytest.raises(ValueError, match=r"must be at least 0 and less than 1, found 1\.5"):
        gx.set_hyperparams(state, {"momentum.decay": 1.5})
    with pytest.raises(ValueError, match=f"{full} follows a schedule, which would overwrite it"):
        gx.set_hyperparams(NESTS[at](SCHEDULED), learning_rate=0.5)


def test_the_new_rate_is_that_of_the_next_step():
    tx = gx.skip_nonfinite(gx.partition({"a": gx.sgd(0.1)}, default=gx.accumulate(gx.sgd(0.1), 1)))
    state = gx.set_hyperparams(
        tx.init(P), {"a.scale_by_learning_rate.learning_rate": 0.5, "inner.scale_by_learning_rate.learning_rate": 0.25}
    )
    updates, _ = tx.update(P, state)
    chex.assert_trees_all_equal(updates, {"a": -0.5 * P["a"], "b": -0.25 * P["b"]})


def test_names():
    state = gx.switch(3, ADAM, gx.chain(gx.momentum_sgd(0.1), name="slow")).init(P)
    assert set(gx.hyperparams(state)) == {
        "first.momentum.decay", "first.precondition.eps", "first.precondition.eps_root", "first.rms.decay",
        "first.scale_by_learning_rate.learning_rate", "then.slow.momentum.decay",
        "then.slow.scale_by_learning_rate.learning_rate",
    }  # fmt: skip
    for name in ("then.slow.momentum.decay", "slow.momentum.decay"):
        changed = gx.hyperparams(gx.set_hyperparams(state, {name: 0.25}))
        assert [key for key, value in changed.items() if value == 0.25] == ["then.slow.momentum.decay"]
    candidates = "first.momentum.decay, then.slow.momentum.decay"
    with pytest.raises(ValueError, match=f"'momentum.decay' is ambiguous; say which one: {candidates}$"):
        gx.set_hyperparams(state, {"momentum.decay": 0.5})
    for unknown in ("lr", "cay", "then.decay", "decay.first"):
        with pytest.raises(ValueError, match=f"no hyperparameter '{unknown}'; this state has: first.momentum.decay, "):
            gx.set_hyperparams(state, {unknown: 0.5})
    with pytest.raises(ValueError, match=r"eps is given twice, as 'precondition.eps' and 'eps'"):
        gx.set_hyperparams(state, {"precondition.eps": 0.5}, eps=0.5)
    assert gx.hyperparams(optax.adam(0.1).init(P)) == {}
    with pytest.raises(TypeError, match="there are no hyperparameters in it"):
        gx.set_hyperparams(P, learning_rate=0.5)


def test_hyperparameters_of_optax():
    tx = optax.inject_hyperparams(optax.adam)(0.1, b1=optax.linear_schedule(0.9, 0.5, 10))
    changed = gx.set_hyperparams(tx.init(P), learning_rate=0.5)
    assert float(gx.hyperparams(changed)["learning_rate"]) == 0.5
    with pytest.raises(ValueError, match="b1 follows a schedule"):
        gx.set_hyperparams(tx.init(P), b1=0.5)


def test_what_is_scheduled_is_known_wherever_a_state_goes():
    """And is no part of the structure, so that a state of numbers goes where a scheduled one was."""
    state, fixed = SCHEDULED.init(P), ADAM.init(P)
    assert jax.tree.structure(state) == jax.tree.structure(fixed)
    loaded = gx.load_state_dict(SCHEDULED, P, gx.state_dict(fixed))
    ways = {
        "jit": jax.jit(SCHEDULED.update)(P, state)[1],
        "of numbers before": SCHEDULED.update(P, fixed)[1],
        "scan": jax.lax.scan(lambda s, _: (SCHEDULED.update(P, s)[1], None), fixed, None, 2)[0],
        "vmap": jax.vmap(SCHEDULED.init)(jax.tree.map(lambda x: x[None], P)),
        "pickle": pickle.loads(pickle.dumps(state, 0)),
        "copy": copy.deepcopy(state),
        "loaded": loaded,
        "migrated": gx.migrate(fixed, SCHEDULED, P)[0],
        "packed": gx.pack_state(gx.packed(SCHEDULED), state, P),
        "unpacked": gx.unpack_state(gx.packed(SCHEDULED), gx.packed(SCHEDULED).init(P), P),
    }
    for way, found in ways.items():
        with pytest.raises(ValueError, match="follows a schedule"):
            print(way, gx.set_hyperparams(found, learning_rate=0.5))
    gx.set_hyperparams(gx.migrate(state, ADAM, P)[0], learning_rate=0.5)
    gx.set_hyperparams(ADAM.update(P, state)[1], learning_rate=0.5)


class decaying(gx.Rule):
    """A rule of a user, with limits of its own."""

    share: gx.Hyper = gx.hyper(low=0, below=2)
    free: gx.Hyper = gx.hyper(default=0.0)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=(1 - c.share) * signal.direction + 0 * c.free), {}


class TestLimits:
    """Each value at each door."""

    BAD = {
        "nan": (float("nan"), ValueError, "found nan"),
        "low": (-0.5, ValueError, r"at least 0 and less than 2, found -0\.5"),
        "above": (2.0, ValueError, "at least 0 and less than 2, found 2"),
        "array": (np.array(2.5), ValueError, r"found 2\.5"),
        "numpy's nan": (np.float32("nan"), ValueError, "found nan"),
        "jax": (jnp.array(7.0), ValueError, "found 7"),
        "integer": (10**400, TypeError, "a number"),
        "text": ("0.1", TypeError, "a number"),
        "array of text": (np.array("0.1"), TypeError, "a number"),
        "bytes": (b"0.1", TypeError, "a number"),
        "dict": ({"a": 1}, TypeError, "a number"),
        "date": (datetime.date(2020, 1, 1), TypeError, "a number"),
        "numpy's date": (np.datetime64("2020"), TypeError, "a number"),
        "complex": (1j, TypeError, "a number"),
        "flag": (True, TypeError, "a number"),
        "array of a flag": (np.array(True), TypeError, "a number"),
    }

    @pytest.mark.parametrize("name", BAD)
    def test_refused_by_name(self, name):
        value, error, message = self.BAD[name]
        with pytest.raises(error, match=rf"decaying: share .*{message}"):
            decaying(value)
        with pytest.raises(error, match=rf"set_hyperparams: decaying.share .*{message}"):
            gx.set_hyperparams(decaying(0.5).init(P), share=value)
        with pytest.raises(error, match=rf"hyperparameter decaying.share .*{message}"):
            decaying(lambda count: value).init(P)

    @pytest.mark.parametrize("value", [float("nan"), -0.5, 2.0, np.float32(3.0)])
    def test_swept(self, value):
        with pytest.raises(ValueError, match=r"sweep: decaying: share must be at least 0 and less than 2"):
            tx = gx.skip_nonfinite(decaying(0.5))
            gx.sweep(lambda tx, key: tx.update(P, tx.init(P))[0]["a"].sum(), tx, {"share": [0.5, value]})

    def test_numbers_of_other_kinds(self):
        for value in (1, np.int8(1), np.array(1.0, np.float16), jnp.bfloat16(1), jnp.array(1)):
            assert decaying(value) == decaying(1.0)
            assert gx.set_hyperparams(decaying(0.5).init(P), share=value).hyperparams["decaying"]["share"] == 1

    def test_too_large_for_its_dtype(self):
        for make in (
            lambda: gx.scale(1e39).init(P),
            lambda: gx.set_hyperparams(gx.scale(1.0).init(P), factor=1e39),
            lambda: gx.scale(lambda count: -1e39).init(P),
        ):
            with pytest.raises(ValueError, match=r"scale.factor is -?1e\+39, which is infinite in float32"):
                make()
        assert gx.clip_by_norm(np.inf).init(P).hyperparams["clip_by_norm"]["limit"] == np.inf  # no limit
        with jax.enable_x64(True):
            wide = gx.scale(1e39).init(np.ones(1))
            assert gx.set_hyperparams(wide, factor=1e40).hyperparams["scale"]["factor"] == 1e40

    def test_under_jit_values_are_not_known(self):
        state = gx.momentum().init(P)
        assert jax.jit(lambda x: gx.set_hyperparams(state, decay=x))(1.5).hyperparams["momentum"]["decay"] == 1.5
        with pytest.raises(ValueError, match="less than 1"):
            jax.jit(lambda x: gx.set_hyperparams(state, decay=1.5))(1.0)  # this one is


class TestOwnership:
    """The array that a user gave and that in the state are two."""

    def test_arrays_that_are_given(self):
        given, plain = jnp.array(0.25), np.array(0.25, np.float32)
        tx = gx.chain(gx.momentum(0.5), gx.rms(0.5), gx.precondition(), gx.sgd(lambda count: given))
        state = gx.set_hyperparams(tx.init(P), {"momentum.decay": given, "rms.decay": given, "eps": plain})
        step = jax.jit(lambda p, s: gx.step(tx, p, p, s), donate_argnums=(0, 1))
        params = jax.tree.map(jnp.copy, P)
        params, state = step(params, state)
        plain[()] = 7.0
        assert float(gx.hyperparams(state)["precondition.eps"]) == 0.25
        params, state = gx.step(tx, params, params, state)
        step(params, state)
        assert float(given) == 0.25
        traced = jax.jit(lambda s, x: gx.set_hyperparams(s, {"momentum.decay": x, "rms.decay": x}))(tx.init(P), given)
        jax.jit(lambda s: s, donate_argnums=0)(traced)
        assert float(given) == 0.25

    def test_a_numpy_array_that_changes_later(self):
        rate = np.array(0.5)
        tx = gx.sgd(rate)
        state = tx.init(P)
        rate[()] = 7.0
        chex.assert_trees_all_equal(tx.update(P, state)[0], jax.tree.map(lambda x: -0.5 * x, P))
        chex.assert_trees_all_equal(tx.init(P), state)
