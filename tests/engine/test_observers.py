"""Observers: numbers that are taken in the pass of the rules around them, held to numpy's in float64."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx as gx
from gradtx._engine.small import SmallSums

RNG = np.random.default_rng(0)
PARAMS = {"a": jnp.asarray(RNG.normal(size=(40, 5)), jnp.float32), "b": jnp.asarray(RNG.normal(size=7), jnp.bfloat16)}
GRADS = jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), p.dtype), PARAMS)


class watcher(gx.Rule):
    """The norms of step and parameters, and the sums of the gradients, of each leaf in the last step."""

    equation = r"u \leftarrow u"
    observes = ("incoming", "gradient", "direction", "param")
    every: int = 1

    def init_tree(self, params):
        zeros = jnp.zeros(len(jax.tree.leaves(params)))
        return {"step": zeros, "incoming": zeros, "gradient": zeros, "param": zeros, "count": jnp.zeros((), jnp.int32)}

    def terms(self, lanes) -> Any:
        sums = {"incoming": ("sum", lanes.incoming), "gradient": ("sum", lanes.gradient)}
        return {"step": ("norm", lanes.direction), "param": ("norm", lanes.param)} | sums

    def due(self, state):
        return None if self.every == 1 else state["count"] % self.every == 0

    def observe(self, numbers, state, executor):
        seen = {} if numbers is None else {name: jnp.stack([*values]) for name, values in numbers.items()}
        return state | seen | {"count": state["count"] + 1}


def stepped(tx, steps=1):
    params, state = PARAMS, tx.init(PARAMS)
    step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s))
    for _ in range(steps):
        params, state = step(params, GRADS, state)
    return params, state.slots.get("watcher", {}).get("state", {})


def wide(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


CASES = {
    "alone": ((), 1),
    "in one pass": ((gx.scale(0.5),), 0.5),
    "behind a rule of whole trees": ((optax.scale(0.5),), 0.5),
    "behind a measurement": ((gx.clip_by_global_norm(1.0),), 1 / np.sqrt(sum((g**2).sum() for g in wide(GRADS)))),
    "behind an accumulator": ((gx.scale(0.5), gx.momentum(0.0)), 0.5),
}


@pytest.mark.parametrize("executor", ["reference", "native"])
@pytest.mark.parametrize("name", CASES)
def test_numbers_of_each_leaf(executor, name):
    before, factor = CASES[name]
    with gx.executor(executor):
        params, seen = stepped(gx.chain(*before, watcher(), gx.scale_by_learning_rate(0.1)))
        unwatched, _ = stepped(gx.chain(*before, gx.scale_by_learning_rate(0.1)))
    grads = wide(GRADS)
    np.testing.assert_allclose(seen["step"], [factor * np.linalg.norm(g) for g in grads], rtol=1e-5)
    np.testing.assert_allclose(seen["param"], [np.linalg.norm(p) for p in wide(PARAMS)], rtol=1e-5)
    np.testing.assert_allclose(seen["incoming"], [g.sum() for g in grads], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen["gradient"], [factor * g.sum() for g in grads], rtol=1e-4, atol=1e-5)
    for x, y in zip(wide(params), wide(unwatched), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)  # an observer changes nothing


def test_where_it_acts():
    _, seen = stepped(gx.chain(gx.where("b", watcher()), gx.scale_by_learning_rate(0.1)))
    np.testing.assert_allclose(seen["step"], [np.linalg.norm(wide(GRADS)[1])], rtol=1e-5)


@pytest.mark.parametrize("executor", ["reference", "native"])
def test_no_numbers_where_none_are_due(executor):
    with gx.executor(executor):
        _, seen = stepped(gx.chain(gx.momentum(0.5), watcher(every=3), gx.scale_by_learning_rate(0.1)), steps=3)
    assert seen["count"] == 3
    first = [0.5 * np.linalg.norm(g) for g in wide(GRADS)]  # m = g/2 in the first step, and no other was asked for
    np.testing.assert_allclose(seen["step"], first, rtol=1e-5)


def test_one_pass():
    """By the plan's bytes, those of Adam alone: gradient; parameter, m and v in and out."""
    leaf = jax.ShapeDtypeStruct((1000,), jnp.float32)
    tx = gx.chain(gx.adam(0.1), gx.monitor())
    plan = tx._engine.plan(leaf, jax.eval_shape(tx.init, leaf), True)
    assert [plan.traffic(k) for k in range(len(plan.passes))] == [28_000]


LARGE = 2**20
OBSERVING = {
    "monitor": gx.chain(gx.adam(0.1), gx.monitor()),
    "now and then": gx.skip_nonfinite(gx.chain(gx.adam(0.1), gx.monitor(every=9))),
    "swats": gx.skip_nonfinite(gx.swats(0.1)),
    "switch": gx.skip_nonfinite(gx.switch(5, gx.adam(0.1), gx.sgd(0.1, momentum=0.9))),
}


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("name", OBSERVING)
def test_no_memory(executor, name):
    """A step that takes numbers, and one of several, makes no array of the size of a large leaf, and copies none."""
    tx = OBSERVING[name]
    if executor == "native" and not gx.native.available():
        pytest.skip(str(gx.native.available()))
    leaf = jax.ShapeDtypeStruct((LARGE,), jnp.float32)
    with gx.executor(executor):
        step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s), donate_argnums=(0, 2))
        memory = step.lower(leaf, leaf, jax.eval_shape(tx.init, leaf)).compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 4 * LARGE / 2


@pytest.mark.parametrize("size", [LARGE, 2**18 + 77])
def test_numbers_of_large_leaves_in_xla(size):
    """Taken block by block: as numpy's in float64, in and out of the range of squares, and with a NaN."""
    tx = gx.chain(gx.scale(0.5), gx.monitor())
    x, zeros = np.random.default_rng(1).normal(size=size), 3000
    x[:zeros] = 0
    with gx.executor("reference"):
        step = jax.jit(tx.update)
        for scale in (1.0, 1e-30, 1e30):
            g = jnp.asarray(scale * x, jnp.float32)
            seen = gx.metrics(step(g, tx.init(g), g)[1])
            for name, factor in ("gradient_norm", 1.0), ("update_norm", 0.5), ("param_norm", 1.0):
                np.testing.assert_allclose(seen[name], factor * np.linalg.norm(np.asarray(g, np.float64)), rtol=1e-6)
            np.testing.assert_allclose(seen["zeros"], zeros / size, rtol=1e-6)
            assert seen["clipped"] == 1  # each is half of what came in
        seen = gx.metrics(step(g.at[-1].set(jnp.nan), tx.init(g), g)[1])
    np.testing.assert_allclose(seen["zeros"], zeros / size, rtol=1e-6)
    assert np.isnan(seen["gradient_norm"]) and seen["nonfinite"] == 1


def test_sums_of_a_large_leaf_that_is_written_in_xla():
    """Prodigy's by sums that XLA fuses, D-Adaptation's, which divide, in a loop: as numpy's in float64."""
    g, start, p = np.random.default_rng(4).normal(size=(3, 2**18)).astype(np.float32)
    units = gx.in_units_of_distance(gx.scale(1.0), initial=1.0, decay=0.0)
    bound = gx.scale_by_distance_bound(initial=1.0, decay=0.5, eps=0.0)
    bound = gx.chain(gx.rms(0.0), bound, gx.precondition())
    with gx.executor("reference"):
        steps = [jax.jit(tx.update).lower(g, tx.init(start), p) for tx in (units, bound)]
        assert [step.as_text().count("stablehlo.while") for step in steps] == [0, 1]
        prodigy, adaptation = (step.compile() for step in steps)
        _, state = prodigy(g, units.init(start), p)
        _, bounded = adaptation(g, adaptation(g, bound.init(start), p)[1], p)
    wide, moved = g.astype(float), start.astype(float) - p
    found, length = state.slots["in_units_of_distance"]["state"], np.abs(wide).sum()
    np.testing.assert_allclose(found["along"], wide @ moved, rtol=1e-3)
    np.testing.assert_allclose(found["sum"], g, rtol=1e-6)
    np.testing.assert_allclose(found["distance"], max(1.0, wide @ moved / length), rtol=1e-5)
    found = bounded.slots["scale_by_distance_bound"]["state"]
    np.testing.assert_allclose(found["along"], 0.25 * length, rtol=1e-5)
    np.testing.assert_allclose(found["sum"], 0.75 * wide, rtol=1e-5)


def test_numbers_of_large_leaves_with_narrow_slots_in_xla():
    """The trace of two equal gradients is 1.5 times one, up to the rounding of what is stored."""
    tx = gx.chain(gx.trace(0.5), gx.monitor(), state_dtype="bfloat16")
    g = jnp.asarray(np.random.default_rng(8).normal(size=2**18), jnp.float32)
    with gx.executor("reference"):
        step = jax.jit(tx.update)
        seen = gx.metrics(step(g, step(g, tx.init(g))[1])[1])
    np.testing.assert_allclose(seen["update_norm"], 1.5 * np.linalg.norm(np.asarray(g, np.float64)), rtol=2e-3)


class centered(gx.Rule):
    """A rule that is no function of each element by itself."""

    equation = r"u \leftarrow u - \overline{u}"

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction - signal.direction.mean()), {}


def test_rules_that_see_the_whole_leaf_see_it():
    g = jnp.asarray(np.random.default_rng(3).normal(1.0, 1.0, size=2**18), jnp.float32)
    tx = gx.chain(centered(), gx.monitor())
    with gx.executor("reference"):
        seen = gx.metrics(jax.jit(tx.update)(g, tx.init(g))[1])
    np.testing.assert_allclose(seen["update_norm"], np.std(np.asarray(g, np.float64)) * 2**9, rtol=1e-5)


def test_derivatives_and_batches_of_large_leaves_in_xla():
    tx, x = gx.monitor(), jnp.asarray(np.random.default_rng(2).normal(size=LARGE), jnp.float32)

    def norm(scale):
        return gx.metrics(tx.update(scale * x, tx.init(x), x)[1])["gradient_norm"]

    with gx.executor("reference"):
        value, slope = jax.jit(jax.value_and_grad(norm))(jnp.float32(2))
        both = jax.jit(jax.vmap(norm))(jnp.array([1.0, 2.0]))
    truth = np.linalg.norm(np.asarray(x, np.float64))
    np.testing.assert_allclose([value, slope, *both], truth * np.array([2, 1, 1, 2]), rtol=1e-5)


@pytest.mark.parametrize(
    "terms, message",
    [
        ({"x": 1.0}, "'watcher': terms must return"),
        ({"x": ("median", jnp.zeros(3))}, "known are 'sum' and 'norm'"),
        ({"x": ("sum", jnp.zeros(()))}, "returns x as"),
    ],
)
def test_wrong_terms(terms, message):
    class wrong(watcher):
        def terms(self, lanes):
            return terms

    tx = gx.chain(gx.scale(0.1), wrong(name="watcher"))
    with pytest.raises((TypeError, ValueError), match=message):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))


@pytest.mark.parametrize(
    "tx, times",
    [
        (gx.loss_scale(gx.chain(gx.sgd(0.1), gx.monitor()), initial=8.0), 8),
        (gx.accumulate(gx.chain(gx.sgd(0.1), gx.monitor()), 1, combine="sum"), 1),
        (gx.skip_nonfinite(gx.chain(gx.sgd(0.1), gx.monitor())), 1),
    ],
)
def test_the_gradient_is_that_of_the_chain(tx, times):
    """Not what came into a wrapper around it."""
    params, grads = jnp.ones(3), jnp.asarray([3.0, 4.0, 0.0])
    _, state = jax.jit(lambda g, s: gx.step(tx, params, g, s))(times * grads, tx.init(params))
    assert float(gx.metrics(state)["gradient_norm"]) == pytest.approx(5.0, rel=1e-6)


@pytest.mark.usefixtures("quick_compilation")
def test_small_leaves_beside_large_ones():
    """Small ones are read once, in float64, whatever the numbers; alone they need no loop."""
    rng = np.random.default_rng(5)
    sizes = {"a": 7, "b": 7, "c": 30, "d": 5000, "e": 2**18, "f": 7}
    scales = {"a": 1e-30, "b": 1.0, "c": 1e30, "d": 1e30, "e": 1.0, "f": 0.0}
    g = {k: jnp.asarray(scales[k] * rng.normal(size=n), jnp.float32) for k, n in sizes.items()}
    tx = gx.chain(gx.clip_by_norm(1e-3), gx.clip_by_global_norm(1e-3), gx.monitor())
    truth = {k: np.linalg.norm(np.asarray(x, np.float64)) for k, x in g.items()}
    clipped = {k: min(1e-3, norm) for k, norm in truth.items()}
    factor = min(1, 1e-3 / np.linalg.norm(np.array([*clipped.values()], np.float64)))
    with gx.executor("reference"):
        step = jax.jit(lambda g, s: tx.update(g, s, g)[1])
        seen = gx.metrics(step(g, tx.init(g)))
        few = {k: g[k] for k in "abcf"}
        assert "while" not in step.lower(few, tx.init(few)).as_text()
    for k in sizes:
        np.testing.assert_allclose(seen[f"gradient_norm/{k}"], truth[k], rtol=3e-7)
        np.testing.assert_allclose(seen[f"update_norm/{k}"], factor * clipped[k], rtol=1e-6)


@pytest.mark.usefixtures("quick_compilation")
def test_small_leaves_of_one_shape_are_read_together():
    """With a factor for each, and before one of them is overwritten."""
    shapes = {"a": (2, 3), "b": (6,), "c": (2, 3), "d": (), "e": (1,), "f": (6,), "g": (0,)}
    rng = np.random.default_rng(6)
    params, grads = ({k: jnp.asarray(rng.normal(size=n), jnp.float32) for k, n in shapes.items()} for _ in range(2))
    grads["b"] = jnp.zeros(6)
    tx = gx.chain(gx.clip_by_norm(0.5), gx.sgd(0.1, momentum=0.9), gx.monitor())
    truth = {k: np.linalg.norm(np.asarray(g, np.float64)) for k, g in grads.items()}
    lengths = {k: np.linalg.norm(np.asarray(p, np.float64)) for k, p in params.items()}
    with gx.executor("reference"):
        step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s), donate_argnums=(0, 2))
        step = step.lower(params, grads, tx.init(params)).compile()
        assert not re.search(r"f32\[(6|2,3)\]\S* copy\(", step.as_text() or "")
        seen = gx.metrics(step(params, grads, tx.init(params))[1])
    for k in shapes:
        np.testing.assert_allclose(seen[f"gradient_norm/{k}"], truth[k], rtol=3e-7)
        np.testing.assert_allclose(seen[f"update_norm/{k}"], 0.1 * min(0.5, truth[k]), rtol=1e-6)
        np.testing.assert_allclose(seen[f"param_norm/{k}"], lengths[k], rtol=3e-7)
        assert seen[f"zeros/{k}"] == (k == "b") and seen[f"clipped/{k}"] == (truth[k] > 0.5)


@pytest.mark.parametrize("scaled", [False, True])
def test_sums_over_small_arrays(scaled):
    """Together those of one shape, of a function that is known alone; and of one with a scalar of the step."""
    rng = np.random.default_rng(7)
    xs = [jnp.asarray(rng.normal(size=n), jnp.float32) for n in (5, (2, 2), 5, (), (2, 2), 0, 9000)]
    sum_of = jax.jit(lambda c, xs: SmallSums()(lambda x, y: x * y * (c if scaled else 2), xs, xs))
    truth = 2 * sum(np.sum(np.square(np.asarray(x, np.float64))) for x in xs)
    np.testing.assert_allclose(sum_of(jnp.float32(2), xs), truth, rtol=1e-6)
