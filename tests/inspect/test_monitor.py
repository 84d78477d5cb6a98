"""A monitor changes nothing, what it says is what numpy says in float64, and the verdicts follow from the numbers."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import assert_same
from trees import normal, types

import gradtx as gx
from gradtx import diagnose, metrics, monitor

pytestmark = pytest.mark.usefixtures("quick_compilation")


PARAMS = {"layer_0": {"w": normal(3, 2), "b": normal(2, seed=1)}, "layer_1": {"w": normal(2, 1, seed=2)}}
GRADS = jax.tree.map(lambda p: 0.3 * p + 0.1, PARAMS)
PATHS = ["layer_0/b", "layer_0/w", "layer_1/w"]


def after(tx, grads, params=PARAMS, n=1):
    """The metrics after n steps with the same gradients."""
    state = tx.init(params)
    for _ in range(n):
        _, state = tx.update(grads, state, params)
    return metrics(state)


def norm(*xs):
    return math.sqrt(sum(float(np.sum(np.abs(np.asarray(x, np.complex128)) ** 2)) for x in xs))


# The measurements


def test_values_against_float64():
    tx = gx.chain(gx.clip_by_global_norm(0.5), gx.momentum_sgd(0.1), monitor())
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    seen = metrics(state)
    leaves = [dict(zip(PATHS, jax.tree.leaves(tree), strict=True)) for tree in (GRADS, updates, PARAMS)]
    for g, u, p, end in [*((*(tree[path] for tree in leaves), f"/{path}") for path in PATHS)]:
        np.testing.assert_allclose(seen["gradient_norm" + end], norm(g), rtol=1e-6)
        np.testing.assert_allclose(seen["gradient_rms" + end], norm(g) / math.sqrt(g.size), rtol=1e-6)
        np.testing.assert_allclose(seen["update_norm" + end], norm(u), rtol=1e-6)
        np.testing.assert_allclose(seen["param_norm" + end], norm(p), rtol=1e-6)
        np.testing.assert_allclose(seen["update_ratio" + end], norm(u) / norm(p), rtol=1e-6)
    g, u, p = (tree.values() for tree in leaves)
    np.testing.assert_allclose(seen["gradient_norm"], norm(*g), rtol=1e-6)
    np.testing.assert_allclose(seen["gradient_rms"], norm(*g) / math.sqrt(10), rtol=1e-6)
    np.testing.assert_allclose(seen["update_norm"], norm(*u), rtol=1e-6)
    np.testing.assert_allclose(seen["update_ratio"], norm(*u) / norm(*p), rtol=1e-6)
    quantities = ["gradient_norm", "gradient_rms", "update_norm", "param_norm", "update_ratio", "zeros"]
    quantities += ["nonfinite", "clipped"]
    assert set(seen) == {"steps"} | {f"{q}{end}" for q in quantities for end in ["", *(f"/{path}" for path in PATHS)]}
    assert all(value.shape == () for value in seen.values())


def test_zeros():
    grads = {"a": jnp.array([0.0, 1.0, -0.0, 2.0]), "b": jnp.zeros((2, 3)), "c": jnp.ones(2)}
    seen = after(monitor(), grads, grads)
    assert [float(seen[f"zeros{end}"]) for end in ["/a", "/b", "/c", ""]] == [0.5, 1.0, 0.0, pytest.approx(8 / 12)]


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_norms_neither_overflow_nor_vanish(size):
    params = {"x": size * normal(5), "y": jnp.zeros(3), "z": size * normal(2)}
    seen = after(monitor(), params, params)
    for name in ["gradient_norm", "update_norm"]:
        np.testing.assert_allclose(seen[f"{name}/x"], norm(params["x"]), rtol=1e-5)
        np.testing.assert_allclose(seen[name], norm(*params.values()), rtol=1e-5)
        assert seen[f"{name}/y"] == 0
    np.testing.assert_allclose(seen["update_ratio"], 1.0, rtol=1e-6)


def test_there_is_no_ratio_without_parameters():
    params = {"bias": jnp.zeros(2), "w": jnp.ones(2)}
    seen = after(monitor(), params, params)
    assert np.isnan(seen["update_ratio/bias"]) and seen["update_ratio/w"] == 1 and seen["update_ratio"] == 1
    state = monitor().init(params)
    _, without = monitor().update(params, state)
    assert types(without) == types(state)
    assert all(np.isnan(metrics(without)[f"update_ratio{end}"]) for end in ["", "/bias", "/w"])


def test_gradients_that_are_not_finite_are_counted():
    tx, state = monitor(), monitor().init(PARAMS)
    for bad in [None, ("w", jnp.inf), ("b", jnp.nan), ("w", jnp.nan), None]:
        grads = jax.tree.map(jnp.copy, GRADS)
        if bad is not None:
            grads["layer_0"][bad[0]] = grads["layer_0"][bad[0]].at[-1].set(bad[1])
        _, state = tx.update(grads, state, PARAMS)
        if bad is not None:
            assert not np.isfinite(metrics(state)[f"gradient_norm/layer_0/{bad[0]}"])
    seen = metrics(state)
    counts = [int(seen[f"nonfinite{end}"]) for end in ["", "/layer_0/b", "/layer_0/w", "/layer_1/w"]]
    assert counts == [3, 1, 2, 0] and seen["steps"] == 5
    assert np.isfinite(seen["gradient_norm"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
def test_dtypes(dtype):
    with jax.enable_x64(True):
        params = {"x": normal(4, dtype=dtype), "empty": jnp.zeros((0, 2), dtype), "frozen": None}
        tx = gx.chain(monitor(), gx.momentum(0.9))
        state = tx.init(params)
        updates, after_one = jax.jit(tx.update)(params, state, params)
        assert types(after_one) == types(state)
        assert updates["x"].dtype == dtype
        seen = metrics(after_one)
        wide = "float64" if dtype in ("float64", "complex128") else "float32"
        assert seen["gradient_norm/x"].dtype == wide and seen["steps"].dtype == jnp.int32
        np.testing.assert_allclose(seen["gradient_norm/x"], norm(params["x"]), rtol=1e-6)
        assert [float(seen[f"{q}/empty"]) for q in ["gradient_norm", "gradient_rms", "zeros", "clipped"]] == [0] * 4
        assert not [name for name in seen if "frozen" in name]


@pytest.mark.parametrize("params", [{}, {"x": None}, [], {"x": jnp.zeros((0,))}])
def test_trees_of_nothing(params):
    seen = after(gx.chain(gx.clip_by_norm(1.0), monitor()), params, params)
    assert seen["steps"] == 1 and seen["gradient_norm"] == 0 and seen["clipped"] == 0 and seen["zeros"] == 0
    assert str(diagnose(seen, dead=2.0)) == "healthy"


# Which steps count as clipped

LARGE = jax.tree.map(lambda p: 100 * p, PARAMS)
LR = gx.scale_by_learning_rate(0.1)


@pytest.mark.parametrize(
    ("tx", "share"),
    [
        (gx.chain(gx.clip_by_norm(1.0), gx.adam(0.1), monitor()), 1),
        (gx.chain(gx.clip_by_norm(1e6), gx.adam(0.1), monitor()), 0),
        (gx.chain(gx.clip_by_global_norm(1.0), monitor(), LR), 1),
        (gx.chain(gx.clip_by_value(1.0), gx.trace(0.9), LR, monitor()), 1),
        (gx.chain(optax.clip_by_global_norm(1.0), gx.momentum(0.9), monitor()), 1),
        (gx.chain(gx.clip_by_norm(0.0), gx.momentum(0.9), monitor()), 1),
        (gx.chain(monitor(), gx.clip_by_norm(1.0), gx.adam(0.1)), 0),  # before the clip
        (gx.chain(gx.adam(0.1), gx.clip_by_norm(1e-9), monitor()), 0),  # of the direction
        (gx.chain(gx.clip_by_norm(1.0), LR, monitor()), 0),  # turned round by the learning rate
        (gx.chain(gx.scale(0.5), gx.momentum(0.9), monitor()), 1),  # which does the same
        (gx.chain(gx.add_decayed_weights(0.1), gx.momentum(0.9), monitor()), 0),
        (gx.sgd(0.1), None),
        (gx.chain(gx.sgd(0.1), monitor()), 0),
    ],
    ids=str,
)
def test_clipped(tx, share):
    if share is None:
        with pytest.raises(ValueError, match="holds no MonitorState"):
            after(tx, LARGE)
        return
    seen = after(tx, LARGE, n=2)
    assert seen["clipped"] == share
    assert seen["clipped/layer_0/w"] == share


def test_weight_decay_that_shortens_a_gradient_is_no_clip():
    params = {"w": jnp.array([1.0, -1.0])}
    tx = gx.chain(gx.add_decayed_weights(0.1), gx.momentum(0.9), monitor())
    seen = after(tx, {"w": jnp.array([-5.0, -0.01])}, params)  # (−4.9, −0.11): shorter, and one element longer
    assert seen["clipped"] == 0


def test_shares_of_clipped_steps_and_leaves():
    tx = gx.chain(gx.clip_by_norm(1.0), gx.momentum(0.9), monitor())
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1, jnp.complex64)}
    state = tx.init(params)
    for a, b in [(3.0, 0.5), (0.1, 2j), (0.1, 0.5), (9.0, -3 - 1j)]:
        _, state = tx.update({"a": jnp.full(2, a), "b": jnp.full(1, b, jnp.complex64)}, state, params)
    seen = metrics(state)
    assert [float(seen[f"clipped{end}"]) for end in ["/a", "/b", ""]] == [0.5, 0.5, 0.75]


# All else stays as it is

ADAM = [gx.clip_by_global_norm(1.0), gx.momentum(0.9), gx.rms(0.99), gx.debias(), gx.precondition(), LR]


@pytest.mark.parametrize("every", [1, 3])
def test_updates_are_the_same(every):
    """With a monitor at each place of a chain, all in one program."""
    places = range(len(ADAM) + 1)
    txs = {"none": gx.chain(*ADAM)} | {
        f"at {place}": gx.chain(*ADAM[:place], monitor(every), *ADAM[place:]) for place in places
    }

    def one(carry, scale):
        steps = {}
        for name, (params, state) in carry.items():
            updates, state = txs[name].update(jax.tree.map(lambda g: scale * g, GRADS), state, params)
            steps[name] = (jax.tree.map(jnp.add, params, updates), state), updates
        return {name: carry for name, (carry, _) in steps.items()}, {
            name: updates for name, (_, updates) in steps.items()
        }

    start = {name: (PARAMS, tx.init(PARAMS)) for name, tx in txs.items()}
    after, updates = jax.jit(lambda: jax.lax.scan(one, start, jnp.linspace(0.1, 3, 7)))()
    expected = updates.pop("none")
    assert_same(updates, dict.fromkeys(updates, expected))
    for name in updates:
        assert metrics(after[name][1])["steps"] == {1: 7, 3: 3}[every], name


def test_other_optimizers_are_let_alone_too():
    tx = optax.chain(optax.adam(0.1), monitor())
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    expected, _ = optax.adam(0.1).update(GRADS, optax.adam(0.1).init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates, expected)
    assert metrics(state)["gradient_norm"] == pytest.approx(norm(*jax.tree.leaves(expected)), rel=1e-6)


# Steps


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_every_nth_step_is_measured(every):
    def one(state, scale):
        _, state = tx.update({"x": scale * jnp.ones(1)}, state, {"x": jnp.ones(1)})
        return state, metrics(state)

    tx = monitor(every)
    _, seen = jax.jit(lambda: jax.lax.scan(one, tx.init({"x": jnp.ones(1)}), jnp.arange(1.0, 8)))()
    last_measured = [1 + (i // every) * every for i in range(7)]
    np.testing.assert_array_equal(seen["gradient_norm/x"], last_measured)
    np.testing.assert_array_equal(seen["steps"], [1 + i // every for i in range(7)])


def test_steps_between_are_not_computed():
    tx = gx.chain(gx.clip_by_norm(1.0), gx.momentum(0.9), monitor(10))
    jaxpr = str(jax.make_jaxpr(tx.update)(GRADS, tx.init(PARAMS), PARAMS))
    assert "cond" in jaxpr
    state = tx.init(PARAMS)
    _, first = tx.update(GRADS, state, PARAMS)
    _, second = tx.update(jax.tree.map(lambda g: 7 * g, GRADS), first, PARAMS)
    chex.assert_trees_all_equal(
        second.slots["monitor"]["state"]._replace(wait=0), first.slots["monitor"]["state"]._replace(wait=0)
    )


def test_scan_vmap_and_donation():
    tx = gx.chain(gx.clip_by_norm(1.0), gx.sgd(0.1, momentum=0.9), monitor())

    def trained(scale):
        def one(carry, _):
            params, state = carry
            return gx.step(tx, params, jax.tree.map(lambda p: scale * p, params), state), None

        return jax.lax.scan(one, (PARAMS, tx.init(PARAMS)), length=4)[0]

    scales = jnp.array([0.1, 1.0, 10.0])
    _, together = jax.jit(jax.vmap(trained))(scales)
    seen = metrics(together)
    assert seen["gradient_norm"].shape == (3,)
    step = jax.jit(lambda p, s, scale: gx.step(tx, p, jax.tree.map(lambda x: scale * x, p), s), donate_argnums=(0, 1))
    for i, scale in enumerate(scales):
        chex.assert_trees_all_close(metrics(trained(scale)[1]), {k: v[i] for k, v in seen.items()}, rtol=1e-5)
        params, state = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
        for _ in range(4):
            params, state = step(params, state, scale)
        chex.assert_trees_all_close(metrics(state), {k: v[i] for k, v in seen.items()}, rtol=1e-5)


def test_counts_saturate():
    most = jnp.array(np.iinfo(np.int32).max, jnp.int32)
    tx = gx.chain(gx.clip_by_norm(0.1), gx.momentum(0.9), monitor())
    state = tx.init({"x": jnp.ones(2)})
    full = state.slots["monitor"]["state"]._replace(steps=most, clipped_steps=most, clipped=most[None])
    state = state._replace(slots={**state.slots, "monitor": {"state": full}})
    _, state = tx.update({"x": jnp.ones(2)}, state)
    assert metrics(state)["steps"] == most and metrics(state)["clipped"] == 1


# Finding the monitors


def test_wherever_it_stands():
    adam = gx.chain(gx.adam(0.1), monitor())
    finite, bad = GRADS, jax.tree.map(lambda g: g * jnp.nan, GRADS)
    for tx in [
        gx.skip_nonfinite(adam),
        gx.loss_scale(adam, initial=1.0),
        gx.accumulate(adam, 1),
        gx.switch(2, adam, gx.sgd(0.1), carry="reset"),
        gx.seal(adam),
        gx.chain(gx.seal(adam)),
        optax.chain(optax.identity(), adam),
        optax.apply_if_finite(adam, 3),
    ]:
        state = tx.init(PARAMS)
        _, state = tx.update(finite, state, PARAMS)
        assert metrics(state)["steps"] == 1, str(tx)
    inside, outside = gx.skip_nonfinite(adam), gx.chain(monitor(), gx.skip_nonfinite(gx.adam(0.1)))
    assert after(inside, bad)["nonfinite"] == 0
    assert after(outside, bad)["nonfinite"] == 1


def test_several_monitors():
    tx = gx.chain(monitor(name="raw"), gx.clip_by_norm(0.1), monitor(), gx.sgd(0.5), monitor())
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    seen = metrics(state)
    assert {name.partition("/")[0] for name in seen} == {"raw", "monitor", "monitor_1"}
    assert seen["raw/clipped"] == 0 and seen["monitor/clipped"] == 1
    for name in ["raw", "monitor", "monitor_1"]:
        one = metrics(state, name)
        assert {f"{name}/{key}": value for key, value in one.items()}.items() <= seen.items()
    with pytest.raises(ValueError, match="no monitors are named 'health'; this state has: 'monitor', 'monitor_1', 'r"):
        metrics(state, "health")
    with pytest.raises(ValueError, match="several monitors: choose one"):
        diagnose(seen)


def test_equal_names_in_two_chains():
    phase = gx.chain(gx.sgd(0.1), monitor())
    state = gx.switch(2, phase, phase, carry="reset").init(PARAMS)
    assert {"first/monitor/steps", "then/monitor/steps"} <= set(metrics(state))
    assert metrics(state, "then/monitor")["steps"] == 0
    with pytest.raises(ValueError, match="2 monitors are named 'monitor'"):
        metrics(state, "monitor")


def test_names_of_leaves():
    x = jnp.ones(1)
    assert "gradient_norm/params" in after(monitor(), x, x)
    assert {"zeros/0/a", "zeros/1"} <= set(after(monitor(), [{"a": x}, x], [{"a": x}, x]))
    clash = {"a/b": x, "a": {"b": 2 * x}}
    seen = after(monitor(), clash, clash)
    assert seen["gradient_norm/['a/b']"] == 1 and seen["gradient_norm/['a']['b']"] == 2


def test_inside_jit():
    tx = gx.chain(gx.sgd(0.1), monitor())
    seen = jax.jit(lambda g: metrics(tx.update(g, tx.init(PARAMS), PARAMS)[1]))(GRADS)
    chex.assert_trees_all_close(seen, after(tx, GRADS), rtol=1e-6)


@pytest.mark.parametrize("every", [0, -1, 2**31])
def test_every_out_of_range(every):
    with pytest.raises(ValueError, match="monitor: every must be an integer from 1"):
        monitor(every)


@pytest.mark.parametrize("every", [1.5, "2", True, None])
def test_every_that_is_no_integer(every):
    with pytest.raises(TypeError, match="monitor: every must be an integer, found"):
        monitor(every)


def test_no_monitor():
    for state in [gx.sgd(0.1).init(PARAMS), optax.adam(0.1).init(PARAMS), {}, None]:
        with pytest.raises(ValueError, match="holds no MonitorState"):
            metrics(state)


# Diagnosis


def healthy(n=3):
    """Metrics of n leaves with nothing wrong."""
    names = [f"layer_{i}/w" for i in range(n)]
    values = {"gradient_norm": 1.0, "gradient_rms": 0.1, "update_norm": 0.01, "param_norm": 10.0}
    values |= {"update_ratio": 1e-3, "zeros": 0.1, "nonfinite": 0, "clipped": 0.0}
    seen = {f"{quantity}/{name}": value for quantity, value in values.items() for name in names}
    return seen | values | {"steps": 100}


def test_nothing_wrong():
    found = diagnose(healthy())
    assert not found and len(found) == 0 and str(found) == repr(found) == "healthy"


VERDICTS: list[tuple[str, dict[str, float], dict[str, float]]] = [
    # problem, numbers that just have it, numbers that just have not
    ("vanishing", {"gradient_rms": 0.99e-4}, {"gradient_rms": 1.01e-4}),
    ("exploding", {"gradient_norm": 30.1}, {"gradient_norm": 29.9}),
    ("dead", {"zeros": 0.9}, {"zeros": 0.89}),
    ("nonfinite", {"nonfinite": 1}, {"nonfinite": 0}),
    ("large updates", {"update_norm": 1.01}, {"update_norm": 0.99}),
    ("small updates", {"update_ratio": 5.9e-8}, {"update_ratio": 6.1e-8}),
    ("clipped", {"clipped": 0.9}, {"clipped": 0.89}),
]


@pytest.mark.parametrize(("problem", "bad", "good"), VERDICTS, ids=[verdict[0] for verdict in VERDICTS])
def test_each_verdict_both_ways(problem, bad, good):
    def with_numbers(numbers):
        return diagnose(healthy() | {f"{quantity}/layer_1/w": value for quantity, value in numbers.items()})

    (finding,) = with_numbers(bad)
    assert finding.problem == problem and finding.leaves == ("layer_1/w",)
    (measured,) = bad.values()
    part = {"nonfinite": measured / 100, "vanishing": measured / 0.1, "large updates": measured / 10}
    assert finding.values == (pytest.approx(part.get(problem, measured)),)
    assert str(finding).startswith(f"{problem}: layer_1/w (") and finding.advice in str(finding)
    assert not with_numbers(good)


@pytest.mark.parametrize(
    ("threshold", "bad"),
    [
        ({"vanishing": 1e-8}, {"gradient_rms": 1e-5}),
        ({"exploding": 1e9}, {"gradient_norm": 1e6}),
        ({"dead": 0.99}, {"zeros": 0.95}),
        ({"nonfinite": 0.05}, {"nonfinite": 5}),
        ({"large_update": 1.0}, {"update_norm": 5.0}),
        ({"small_update": 0.0}, {"update_ratio": 1e-12}),
        ({"clipped": 1.01}, {"clipped": 1.0}),
    ],
    ids=lambda each: next(iter(each)),
)
def test_thresholds_are_arguments(threshold, bad):
    seen = healthy() | {f"{quantity}/layer_1/w": value for quantity, value in bad.items()}
    assert diagnose(seen) and not diagnose(seen, **threshold)


def test_what_explodes_is_no_measure_for_others():
    seen = healthy() | {"gradient_norm/layer_0/w": 1e8, "gradient_rms/layer_0/w": 1e7}
    assert [finding.problem for finding in diagnose(seen)] == ["exploding"]
    assert [finding.problem for finding in diagnose(seen | {"clipped/layer_0/w": 1.0})] == ["clipped"]


def test_all_zeros_are_dead_and_not_vanished():
    seen = healthy() | {f"{name}/layer_0/w": 0.0 for name in ("gradient_norm", "gradient_rms")} | {"zeros/layer_0/w": 1}
    assert [finding.problem for finding in diagnose(seen)] == ["dead"]


def test_a_bias_that_starts_at_zero_may_move():
    start = {"param_norm/layer_1/w": 0.0, "update_ratio/layer_1/w": None}
    assert not diagnose(healthy() | start | {"update_norm/layer_1/w": 0.08})
    assert [finding.problem for finding in diagnose(healthy() | start | {"update_norm/layer_1/w": 0.09})] == [
        "large updates"
    ]
    nothing = {f"{name}/layer_{i}/w": 0.0 for name in ("param_norm", "update_norm") for i in range(3)}
    assert not diagnose(healthy() | nothing)


def test_the_worst_first_and_not_too_many():
    seen = healthy(9) | {f"gradient_rms/layer_{i}/w": 10.0**-i for i in range(9)}
    (finding,) = diagnose(seen, vanishing=1e-2)
    assert finding.leaves == tuple(f"layer_{i}/w" for i in (8, 7, 6, 5, 4, 3))
    assert "layer_5/w (1e-05) and 2 more: the gradient" in str(finding)


def test_numbers_from_a_file_have_null_for_nan():
    seen = healthy() | {"update_ratio/layer_0/w": None, "gradient_rms/layer_2/w": math.nan}
    assert not diagnose(seen)


def test_misuse_of_diagnose():
    tx = monitor()
    seen = after(tx, GRADS)
    with pytest.raises(TypeError, match="inside jit the numbers are not known"):
        jax.jit(diagnose)(seen)
    with pytest.raises(ValueError, match=r"have shape \(2,\): diagnose one step"):
        diagnose(jax.tree.map(lambda x: jnp.stack([x, x]), seen))
    with pytest.raises(ValueError, match="nothing has been measured yet"):
        diagnose(metrics(tx.init(PARAMS)))
    with pytest.raises(ValueError, match="metrics of no monitor"):
        diagnose({"loss": 1.0})
    with pytest.raises(TypeError, match="expected the dict that metrics returned, found ChainState"):
        diagnose(tx.init(PARAMS))  # pyright: ignore[reportArgumentType] - the mistake


# In memory and in files


def test_vectors_in_memory_are_trees_in_files():
    """A file says of each leaf, by its path, what a monitor saw; a tree with other leaves takes over what it has."""
    tx = gx.chain(gx.sgd(0.1), monitor())
    grads = jax.tree.map(lambda g: g.at[0].set(0), GRADS)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    own = state.slots["monitor"]["state"]
    assert own.gradient_norm.shape == own.nonfinite.shape == (3,)
    file = gx.state_dict(state)
    for i, (path, g) in enumerate(zip(PATHS, jax.tree.leaves(grads), strict=True)):
        at = "state/slots/monitor/state"
        np.testing.assert_allclose(file[f"{at}/gradient_norm/{path}"], norm(g), rtol=1e-6)
        np.testing.assert_allclose(file[f"{at}/zeros/{path}"], np.mean(np.asarray(g) == 0), rtol=1e-6)
        assert (
            file[f"{at}/update_norm/{path}"] == own.update_norm[i] and file[f"{at}/nonfinite/{path}"].dtype == np.int32
        )
    assert_same(gx.load_state_dict(tx, PARAMS, file), state)

    fewer = {"layer_1": PARAMS["layer_1"], "layer_2": PARAMS["layer_1"]}
    moved, _ = gx.migrate(state, tx, fewer)
    seen = metrics(moved)
    assert seen["gradient_norm/layer_1/w"] == own.gradient_norm[2] and seen["gradient_norm/layer_2/w"] == 0
