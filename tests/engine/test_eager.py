"""Steps outside of jit: what is Python there stays Python, hyperparameters are data, and nothing is compiled twice."""

import contextlib
import gc
import math
import weakref
from collections.abc import Iterator
from typing import Any

import catalog
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradtx as gx
from gradtx._core.blank import reads_itself
from gradtx._engine.eager import blanks_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

P: Any = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
Tx = Any


def updates_of(tx: Tx, steps: int, grads: Any = P) -> Any:
    state, out = tx.init(P), []
    for _ in range(steps):
        updates, state = tx.update(grads, state, P)
        out.append(updates)
    return out


def rates_of(tx: Tx, steps: int) -> list[float]:
    """The learning rate of each step of plain gradient descent."""
    return [float(-updates["b"] / P["b"]) for updates in updates_of(tx, steps)]


COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs that are compiled meanwhile."""
    found: list[str] = []
    listening = [True]

    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        if listening and event == COMPILED:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield found
    listening.clear()


# ---------------------------------------------------------------------------------------------------------------------
# Schedules
# ---------------------------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Any] = {
    "if": lambda count: 0.5 if count < 2 else 0.25,
    "numpy": lambda count: np.interp(int(count), [0, 4], [1.0, 0.0]),
    "math": lambda count: 1 + math.cos(count),
    "index": lambda count: [0.5, 0.25, 0.125, 0.0625][count],
    "jax": lambda count: 0.5 / (1.0 + count),
    "optax": optax.linear_schedule(1.0, 0.0, 4),
}
AROUND: dict[str, Any] = {
    "": lambda tx: tx,
    "packed": gx.packed,
    "guards": lambda tx: gx.skip_nonfinite(gx.accumulate(gx.loss_scale(tx, initial=1), 1)),
    "partition": lambda tx: gx.partition({"b": tx}, default="freeze"),
    "switch": lambda tx: gx.switch(2, tx, tx, carry="reset"),
    "chain of optax": lambda tx: gx.chain(optax.identity(), tx),
    "optax": lambda tx: optax.chain(optax.identity(), tx),
    "subspace": lambda tx: gx.chain(gx.in_subspace(tx, 1)),
}


@pytest.mark.parametrize("around", AROUND)
def test_schedules_are_called_with_numbers(around):
    for name, schedule in SCHEDULES.items():
        expected = [float(np.float32(schedule(jnp.array(i)))) for i in range(4)]
        found = rates_of(AROUND[around](gx.sgd(schedule)), 4)
        np.testing.assert_allclose(found, expected, rtol=2e-7, err_msg=name)


@pytest.mark.parametrize("around", sorted(AROUND.keys() - {"switch"}))  # which calls init of the second phase again
def test_schedules_may_have_a_state_and_read_python(around):
    calls: list[int] = []
    box = {"rate": 0.5}

    def schedule(count):
        calls.append(int(count))
        return box["rate"]

    tx = AROUND[around](gx.sgd(schedule))
    state = tx.init(P)
    calls.clear()
    for step, rate in enumerate((0.5, 0.25, 2.0)):
        box["rate"] = rate
        updates, state = tx.update(P, state, P)
        assert float(updates["b"]) == -3.0 * rate
        assert calls == list(range(step + 1))


def test_schedules_in_python_where_gradients_are_lifted():
    """The types of a mean of bfloat16 gradients are those that a step alone gives: schedules are not asked for them."""
    p = jnp.zeros(2, jnp.bfloat16)
    tx = gx.accumulate(gx.sgd(SCHEDULES["if"]), 2)
    state, moved = tx.init(p), p
    for _ in range(6):
        moved, state = gx.step(tx, moved, p + 1, state)
    np.testing.assert_array_equal(moved, [-1.25, -1.25])


def test_what_the_next_step_has_is_data_too():
    """Of Nadam's momentum and of lookaheads, which read it: the same as with a number that is what it is then."""
    values = [0.5, 0.25, 0.125, 0.5, 0.75]
    for make in (
        lambda value: gx.nadam(0.1, value),
        lambda value: gx.chain(gx.sgd(0.1), gx.nag_lookahead(value)),
        lambda value: gx.nadam(0.1, 0.9, schedule_decay=value),
    ):
        eager = updates_of(make(lambda count: values[int(count)]), 4)
        traced = make(lambda count: jnp.array(values)[count])
        state, update = traced.init(P), jax.jit(traced.update)
        for updates in eager:
            expected, state = update(P, state, P)
            chex.assert_trees_all_close(updates, expected, rtol=2e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["", "jit"])
def test_an_error_in_a_schedule_names_the_hyperparameter(wrap):
    tx = gx.adam(0.1, b2=lambda count: {}["lost"])
    with pytest.raises(KeyError, match=r"in the schedule of hyperparameter rms\.decay"):
        wrap(tx.init)(P)
    tx = gx.adam(lambda count: 0.5 if count < 2 else 0.25)
    state = tx.init(P)
    if wrap is jax.jit:
        message = r"schedule of hyperparameter scale_by_learning_rate\.learning_rate\. Under jit the count is traced"
        with pytest.raises(jax.errors.TracerBoolConversionError, match=message):
            jax.jit(tx.update)(P, state)


# ---------------------------------------------------------------------------------------------------------------------
# Other Python that a step reads
# ---------------------------------------------------------------------------------------------------------------------


def test_predicates_are_asked_anew():
    frozen = {"b"}
    restricted: Any
    for restricted in (
        gx.where(lambda path, leaf: path not in frozen, gx.sgd(0.5)),
        gx.where(lambda tree: {key: key not in frozen for key in tree}, gx.sgd(0.5)),
        gx.partition([(lambda path, leaf: path in frozen, "pass")], default=gx.sgd(0.5)),
    ):
        frozen.add("b")
        state = restricted.init(P)
        updates, state = restricted.update(P, state)
        chex.assert_trees_all_equal(updates, {"a": -0.5 * P["a"], "b": P["b"]})
        frozen.clear()
        updates, state = restricted.update(P, state)
        chex.assert_trees_all_equal(updates, jax.tree.map(lambda x: -0.5 * x, P))


def test_a_method_that_is_replaced():
    """As a notebook replaces it: a new function, or new code in the old one."""

    class times(gx.Rule):
        factor: gx.Hyper = gx.hyper(default=1.0)

        def apply(self, signal, slots, param, c):
            return signal._replace(direction=2 * c.factor * signal.direction), {}

    def thrice(self, signal, slots, param, c):
        return signal._replace(direction=3 * c.factor * signal.direction), {}

    def fourfold(self, signal, slots, param, c):
        return signal._replace(direction=4 * c.factor * signal.direction), {}

    plain, mixed = times(), gx.chain(optax.identity(), times())
    inside = gx.in_subspace(gx.in_subspace(times(), 1), 1)
    for expected in (2, 3, 4):
        if expected == 3:
            times.apply = thrice
        if expected == 4:
            thrice.__code__ = fourfold.__code__
        for tx in (plain, mixed, inside):
            assert float(updates_of(tx, 1)[0]["b"]) == 3.0 * expected


class reads(gx.Rule):
    """A rule that reads its fields in all the ways it should not."""

    delta: gx.Hyper = gx.hyper(default=1.0)
    way: str = "apply"
    scope = "leaf"

    def _own(self, way: str) -> Any:
        if way != self.way:
            return 1.0
        return self.delta if isinstance(self.delta, float) and self.delta != 0 else 0.0

    def tick(self, h, scalars, weights, count):
        return gx.Tick({"x": jnp.asarray(self._own("tick"))}, {}, weights)

    def measure(self, groups, total):
        return jnp.array([self._own("measure")] * len(groups))

    def settle(self, c, measured):
        return {"x": c.x * measured * self._own("settle")}

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.x * self._own("apply") * signal.direction), {}


@pytest.mark.parametrize("way", ["tick", "measure", "settle", "apply"])
def test_a_rule_that_reads_its_own_number(way):
    for delta in (2.0, 5.0, 0.0):
        rule = reads(delta, way)
        mixed = gx.chain(optax.identity(), rule)
        for tx, update in ((rule, rule.update), (mixed, mixed.update), (rule, jax.jit(rule.update))):
            assert float(update(P, tx.init(P))[0]["b"]) == 3.0 * delta
    assert reads_itself(reads)


class calls(gx.Rule):
    """A rule that calls its schedule by itself."""

    size: gx.Hyper = gx.hyper()

    def apply(self, signal, slots, param, c):
        own: Any = self.size
        return signal._replace(direction=own(0) * signal.direction), {}


def test_a_rule_that_calls_its_own_schedule():
    box = {"size": 2.0}
    tx = calls(lambda count: box["size"])
    assert float(updates_of(tx, 1)[0]["b"]) == 6.0


@pytest.mark.parametrize("name", catalog.RULES)
def test_no_rule_of_ours_reads_its_own_numbers(name):
    """A step would be compiled for each of them."""
    tx = gx.chain(catalog.RULES[name])
    blanks = blanks_of(tx._engine)
    state = jax.eval_shape(tx.init, P)
    jax.eval_shape(lambda p, s: blanks.run(p, s, p, {}, True), P, state)
    assert not any(reads_itself(type(rule)) for rule in tx.rules)


# ---------------------------------------------------------------------------------------------------------------------
# Compilations, and what is kept
# ---------------------------------------------------------------------------------------------------------------------

MANY: Any = {f"layer_{i}": jnp.full((2,), 1.0 + i) for i in range(4)}
CLIP = gx.clip_by_global_norm(1.0)
STEPS: dict[str, Any] = {
    "adam": gx.adam(0.1),
    "monitor": gx.chain(CLIP, gx.adam(0.1), gx.monitor()),
    "beside optax": gx.chain(CLIP, optax.sgd(0.1), gx.monitor()),
    "around a guard": gx.chain(gx.clip_by_norm(1.0), gx.skip_nonfinite(gx.chain(CLIP, gx.adam(0.1)))),
    "accumulate": gx.accumulate(gx.chain(CLIP, gx.adam(0.1)), 2),
    "loss_scale": gx.loss_scale(gx.chain(CLIP, gx.sgd(0.1))),
    "partition": gx.partition({"^layer_[01]": gx.chain(CLIP, gx.sgd(0.1))}, default=gx.packed(gx.nadam(0.1))),
    "switch": gx.switch(1, gx.chain(CLIP, gx.adam(0.1)), gx.sgd(0.1, momentum=0.9)),
    "swats": gx.swats(0.1, min_steps=1, rtol=0.5),
    "predicate": gx.chain(gx.where(lambda path, leaf: path < "layer_2", CLIP), gx.sgd(0.1)),
}


@pytest.mark.parametrize("name", STEPS)
def test_nothing_is_compiled_after_the_first_steps(name):
    tx = STEPS[name]
    state = tx.init(MANY)
    for k in range(8):  # two kinds of arrays by two kinds of steps of an accumulation
        grads: Any = MANY if k % 2 else jax.tree.map(np.asarray, MANY)
        with compilations() as found:
            updates, state = tx.update(grads, state, MANY)
            jax.block_until_ready(updates)
        assert k < 4 or not found, f"step {k} compiled {len(found)}"


def test_numbers_and_variables_for_parameters():
    params: Any
    for params in ({"a": 1.0, "b": 2.0}, nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Param)):
        tx: Any = gx.chain(CLIP, gx.nag(0.1))
        state = tx.init(params)
        for k in range(3):
            with compilations() as found:
                params, state = gx.step(tx, params, params, state)
                gx.lookahead_iterate(state, params)
            assert k < 2 or not found


def test_other_numbers_are_not_compiled_anew():
    """Of any hyperparameter, of schedules, and of chains in wrappers and in rules."""

    def steps(x: float) -> None:
        inside = (gx.in_units_of_distance(gx.adam(x)), gx.at_learned_rate(gx.sgd(x)), gx.in_subspace(gx.sgd(x), 1))
        tx: Any
        for tx in (
            *(gx.nadamw(x, 1 - x, eps=x), gx.packed(gx.adam(lambda count: x)), gx.skip_nonfinite(gx.sgd(x, x))),
            *inside,
        ):
            state = tx.init(P)
            for _ in range(2):
                updates, state = tx.update(P, state, P)
        assert float(updates["b"]) == pytest.approx(-3 * x)

    steps(0.5)
    with compilations() as found:
        for i in range(20):
            steps(0.1 + 0.01 * i)
    assert not found


def test_nothing_is_kept():
    """Of what a schedule or a predicate closes over, once the transformation is gone; without the garbage collector."""

    class Rate:
        def __call__(self, count: Any) -> float:
            return 0.5

    def used(rate: Rate) -> None:
        chosen = gx.where(lambda path, leaf: rate(0) > 0, gx.clip_by_norm(rate))
        mixed = gx.chain(optax.identity(), chosen)
        for tx in (gx.momentum(rate), gx.nadam(rate), gx.chain(chosen, gx.sgd(rate)), mixed):
            updates_of(tx, 2)
        update = jax.jit(gx.sgd(rate).update)
        update(P, gx.sgd(rate).init(P))

    gc.collect()
    gc.disable()
    try:
        rate = Rate()
        used(rate)
        alive = weakref.ref(rate)
        del rate
        assert alive() is None
    finally:
        gc.enable()


def test_no_tracer_leaks():
    def trained(rate: Any, p: Any) -> Any:
        inside = (gx.in_subspace(gx.sgd(rate), 1), gx.seal(optax.sgd(rate)))
        for tx in (
            gx.adam(rate),
            gx.nag(rate),
            gx.scale(rate),
            gx.skip_nonfinite(gx.chain(CLIP, gx.sgd(rate))),
            *inside,
        ):
            p, _ = gx.step(tx, p, p, tx.init(p))
        return p

    with jax.checking_leaks():
        jax.jit(trained)(0.1, P)


def test_nothing_can_be_set():
    tx = gx.adam(0.1)
    with pytest.raises(AttributeError, match=r"'learning_rate' cannot be set.*set_hyperparams"):
        tx.learning_rate = 5.0  # pyright: ignore[reportAttributeAccessIssue] - the mistake under test
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del tx._rules
    for mistake in (lambda: tx._replace(init=None), lambda: gx.momentum()._replace(update=None), lambda: tx._make([1])):
        with pytest.raises(TypeError, match="init and update"):
            mistake()
    init, update = gx.sgd(0.5)
    updates: Any = update(P, init(P))[0]
    assert float(updates["b"]) == -1.5
