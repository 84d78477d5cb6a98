"""Sweeps: each row against a single run, and against optax; chunks, what is refused, the table."""

from __future__ import annotations

import functools
import itertools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx as gx
from gradtx._core.dataflow import Flow, flows

pytestmark = pytest.mark.usefixtures("quick_compilation")

CURVATURE = {"a": jnp.array([1.0, 10.0, 30.0]), "b": jnp.array([[2.0], [5.0]])}
GRID = {"learning_rate": [0.03, 0.1], "rms.decay": [0.9, 0.99]}
STEPS = 12


def start(key: jax.Array) -> Any:
    """Parameters that depend on the key; no random numbers, which take long to compile."""
    seed = jax.random.key_data(key)[-1].astype(float)
    return jax.tree.map(lambda c: (1.0 + 0.3 * seed) * jnp.cos(c), CURVATURE)


def train(tx: Any, key: jax.Array, values: Any = None) -> dict[str, Any]:
    """A valley in five dimensions, with a kick to the gradients in every third step."""

    def one(carry: Any, i: jax.Array) -> Any:
        params, state = carry
        grads = jax.tree.map(lambda c, p: c * jnp.tanh(p) + 0.3 * (i % 3 == 1), CURVATURE, params)
        return gx.step(tx, params, grads, state), None

    params = start(key)
    state = tx.init(params)
    state = state if values is None else gx.set_hyperparams(state, values)
    (params, _), _ = jax.lax.scan(one, (params, state), jnp.arange(STEPS))
    return {"norm": optax.tree.norm(params), "first": params["a"][0]}


def single_runs(make: Any, grid: Any, seeds: Any, train: Any = train) -> list[dict[str, Any]]:
    """The rows of a sweep, by compiling a run for each point: the values are built into the optimizer."""
    rows = []
    for values in itertools.product(*grid.values()):
        run = jax.jit(functools.partial(train, make(*values)))
        point = dict(zip(grid, values, strict=True))
        rows += [point | {"seed": seed} | jax.device_get(run(jax.random.key(seed))) for seed in seeds]
    return rows


def assert_rows(table: Any, rows: list[dict[str, Any]], rtol: float) -> None:
    assert list(table.columns) == list(rows[0]) and len(table) == len(rows)
    for name in table.columns:
        np.testing.assert_allclose(table[name], [row[name] for row in rows], rtol=rtol, err_msg=name)


# Rows


def adam(rate: Any = 0.1, decay: Any = 0.999) -> gx.Chain:
    return gx.adam(rate, b2=decay)


WRAPPED = {
    "chain": adam,
    "packed": lambda *h: gx.packed(adam(*h)),
    "skip_nonfinite": lambda *h: gx.skip_nonfinite(adam(*h)),
    "loss_scale": lambda *h: gx.loss_scale(adam(*h), initial=1.0),
    "accumulate": lambda *h: gx.accumulate(adam(*h), 2),
    "in a chain": lambda *h: gx.chain(gx.clip_by_norm(3.0), gx.skip_nonfinite(adam(*h))),
    "partition": lambda *h: gx.partition({"a": adam(*h)}, default="freeze"),
    "optax.chain": lambda *h: optax.chain(optax.clip(5.0), adam(*h)),
    "optax.apply_if_finite": lambda *h: optax.apply_if_finite(adam(*h), 3),
}
SLOWER = {"loss_scale", "accumulate", "partition", "optax.chain"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] if name in SLOWER else []) for name in WRAPPED]
)
def test_rows_are_single_runs(name: str):
    make = WRAPPED[name]
    grid = {"learning_rate": [0.03, 0.1], "rms.decay": [0.9]}
    table = gx.sweep(train, make(), grid, seeds=[3, 7], chunk=4)
    # Side by side, XLA rounds otherwise: twelve steps of Adam, no worse than 1e-5.
    assert_rows(table, single_runs(make, grid, [3, 7]), rtol=1e-5)


def test_row_by_row():
    """As ``jit`` of one run that has the hyperparameters as arguments; the same to the bit in a smaller sweep."""
    run = jax.jit(functools.partial(train, adam()))
    table = gx.sweep(train, adam(), GRID, seeds=2, chunk=1)
    for row in table:
        alone = run(jax.random.key(row["seed"]), {name: row[name] for name in GRID})
        assert row == row | {name: pytest.approx(float(x), rel=1e-5) for name, x in alone.items()}
    last = {name: values[-1:] for name, values in GRID.items()}
    assert gx.sweep(train, adam(), last, seeds=[1], chunk=1).rows() == table.rows()[-1:]


def test_a_rule_and_a_switch():
    table = gx.sweep(train, gx.scale_by_learning_rate(0.1), {"learning_rate": [0.01, 0.02]})
    assert_rows(table, single_runs(gx.sgd, {"learning_rate": [0.01, 0.02]}, [0]), rtol=1e-5)
    grid = {"first.scale_by_learning_rate.learning_rate": [0.01, 0.1], "then.learning_rate": [0.001, 0.01]}

    def make(first: float = 0.5, then: float = 0.5) -> gx.switch:
        return gx.switch(6, gx.adam(first), gx.sgd(then, momentum=0.9))

    with pytest.raises(ValueError, match=r"no hyperparameter 'then.learning_rate'.*first.momentum.decay"):
        gx.sweep(train, make(), grid)
    grid["then.scale_by_learning_rate.learning_rate"] = grid.pop("then.learning_rate")
    assert_rows(gx.sweep(train, make(), grid), single_runs(make, grid, [0]), rtol=1e-5)


def test_against_optax():
    def theirs(tx: Any, key: jax.Array) -> Any:
        updating = optax.GradientTransformationExtraArgs(tx.init, tx.update)  # so that step is update and apply_updates
        return train(updating, key)

    def make(rate: float, decay: float) -> Any:
        return optax.adam(rate, b2=decay)

    with jax.enable_x64(True):
        table = gx.sweep(train, adam(), GRID, seeds=2, chunk=3)
        assert_rows(table, single_runs(make, GRID, [0, 1], theirs), rtol=1e-11)
        injected = optax.inject_hyperparams(optax.adam)(0.1)
        swept = gx.sweep(theirs, injected, {"learning_rate": [0.003, 0.1], "b2": [0.9, 0.99]})
        assert_rows(swept, single_runs(make, {"learning_rate": [0.003, 0.1], "b2": [0.9, 0.99]}, [0]), rtol=1e-11)


def test_a_run_that_diverges_hinders_nobody():
    rates = [0.01, 1e30, 0.02, np.inf]
    table = gx.sweep(train, gx.sgd(0.1), {"learning_rate": rates}, chunk=4)
    assert np.isfinite(table["norm"]).tolist() == [True, False, True, False] and len(table) == 4
    alone = gx.sweep(train, gx.sgd(0.1), {"learning_rate": [0.01, 0.02]})
    np.testing.assert_allclose(table["norm"][[0, 2]], alone["norm"], rtol=1e-6)
    assert table.best("norm")["learning_rate"] in (0.01, 0.02)


def test_train_may_be_compiled_itself():
    """A transformation is often a static argument of ``jit``; what was compiled for one sweep is not for another."""
    compiled = jax.jit(train, static_argnums=0)
    for rates in ([0.01, 0.02], [0.03, 0.04]):
        table = gx.sweep(compiled, gx.sgd(0.1), {"learning_rate": rates}, chunk=1)
        assert_rows(table, single_runs(gx.sgd, {"learning_rate": rates}, [0]), rtol=1e-5)


# Chunks


@functools.cache
def whole() -> Any:
    return gx.sweep(count_traces, gx.sgd(0.1), {"learning_rate": np.geomspace(0.001, 0.1, 7)}, seeds=[5, 2])


TRACES: list[int] = []


def count_traces(tx: Any, key: jax.Array) -> Any:
    TRACES.append(1)
    return {"first": jax.random.uniform(key), "second": tx.init(jnp.ones(2)).hyperparams} | used(tx)


def used(tx: Any) -> dict[str, Any]:
    return {"moved": tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0][0]}


@pytest.mark.parametrize("chunk", [1, 3, 4, 13, 14, 100])
def test_chunks_neither_lose_nor_repeat_rows_and_compile_once(chunk: int):
    expected = whole()
    TRACES.clear()
    seen = []
    rates = {"learning_rate": np.geomspace(0.001, 0.1, 7)}
    table = gx.sweep(
        count_traces, gx.sgd(0.1), rates, seeds=[5, 2], chunk=chunk, progress=lambda *each: seen.append(each)
    )
    assert len(TRACES) == 2  # to look at it, and to compile it: for the last chunk, too
    rate = "second/scale_by_learning_rate/learning_rate"
    assert table.columns == ("learning_rate", "seed", "first", "moved", rate)
    np.testing.assert_array_equal(table[rate], np.float32(np.repeat(rates["learning_rate"], 2)))
    np.testing.assert_array_equal(table["moved"], -table[rate])
    np.testing.assert_array_equal(table["seed"], [5, 2] * 7)
    draws = [float(jax.random.uniform(jax.random.key(seed))) for seed in (5, 2)]
    np.testing.assert_array_equal(table["first"], np.array(draws * 7, np.float32))
    assert table.rows() == expected.rows()
    sizes = [len(part) for part, _ in seen]
    assert sizes[-1] == 14 and all(total == 14 for _, total in seen)
    steps = np.diff([0, *sizes])
    assert max(steps) <= chunk and max(steps) - min(steps) <= max(steps) - 1 and len(sizes) == -(-14 // chunk)
    assert seen[0][0].rows() == expected.rows()[: sizes[0]]


def big(tx: Any, key: jax.Array) -> jax.Array:
    """A run with 40 kB of parameters and two moments."""
    params = jnp.arange(10_000.0) + jax.random.key_data(key)[-1]

    def one(carry: Any, _: Any) -> Any:
        params, state = carry
        return gx.step(tx, params, params, state), None

    (params, _), _ = jax.lax.scan(one, (params, tx.init(params)), length=3)
    return params.mean()


def test_memory_decides_how_many_run_side_by_side():
    grid = {"learning_rate": np.geomspace(0.01, 0.1, 20)}

    def chunks(memory: int) -> list[int]:
        sizes: list[int] = []
        gx.sweep(big, gx.adam(0.1), grid, memory=memory, progress=lambda table, _: sizes.append(len(table)))
        return np.diff([0, *sizes]).tolist()

    assert chunks(2**30) == [20]
    few = chunks(2_000_000)
    assert sum(few) == 20 and 2 <= max(few) <= 2_000_000 // (3 * 40_000)
    assert max(chunks(1_000_000)) < max(few)
    with pytest.raises(ValueError, match=r"one run needs [\d,]+ bytes, more than memory=10,000. Give more memory; or"):
        chunks(10_000)


# Progress


def test_progress_may_stop_a_sweep():
    tables = []

    def stop(table: Any, rows: int) -> None:
        tables.append(table)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gx.sweep(train, gx.sgd(0.1), {"learning_rate": [0.01, 0.02, 0.03]}, chunk=1, progress=stop)
    (table,) = tables
    assert len(table) == 1 and table["learning_rate"].tolist() == [0.01]


def test_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert len(gx.sweep(train, gx.sgd(0.1), {"learning_rate": [0.01, 0.02]}, progress=True)) == 2
    assert "100%" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ModuleNotFoundError, match="the bar needs rich: pip install rich"):
        gx.sweep(lambda tx, key: 1 / 0, gx.sgd(0.1), {"learning_rate": [0.1]}, progress=True)


# Refusals


def falling(count: jax.Array) -> jax.Array:
    return 0.1 / (1.0 + count)


RATE = {"learning_rate": [0.1]}
TWICE = RATE | {"scale_by_learning_rate.learning_rate": [0.2]}


@pytest.mark.parametrize(
    ("error", "message", "tx", "grid", "more"),
    [
        (ValueError, r"no hyperparameter 'lr'; this state has: momentum.decay, ", adam(), {"lr": [1.0]}, {}),
        (ValueError, r"'decay' is ambiguous; say which one: momentum.decay, rms.decay", adam(), {"decay": [0.9]}, {}),
        (ValueError, r"is given twice, as 'learning_rate' and 'scale_by_", gx.sgd(0.1), TWICE, {}),
        (ValueError, r"rms: decay must be at least 0 and less than 1, found 1.5", adam(), {"rms.decay": [1.5]}, {}),
        (ValueError, r"sweep: rms: decay must be .* found -1", gx.accumulate(adam(), 2), {"rms.decay": [-1]}, {}),
        (ValueError, r"sweep: momentum: decay must be .* found 1", gx.swats(0.1), {"momentum.decay": [1]}, {}),
        (ValueError, r"learning_rate must be a number, found nan", gx.sgd(0.1), {"learning_rate": [np.nan]}, {}),
        (ValueError, r"the grid \{\} has no points", adam(), {}, {}),
        (ValueError, r"has no points", adam(), {"learning_rate": []}, {}),
        (ValueError, r"has no points", adam(), [], {}),
        (ValueError, r"points must have the same names", adam(), [RATE, {"eps": 1.0}], {}),
        (TypeError, r"grid must be \{name: values\} or a list", adam(), 0.1, {}),
        (TypeError, r"learning_rate must have numbers as values, found '0.1'", adam(), {"learning_rate": ["0.1"]}, {}),
        (TypeError, r"must have numbers as values, found \[0.1, 0.2\]", adam(), {"learning_rate": [[0.1, 0.2]]}, {}),
        (TypeError, r"found <function falling.*one chain for each", adam(), {"learning_rate": [falling]}, {}),
        (TypeError, r"names of hyperparameters are strings, found 3", adam(), {3: [0.1]}, {}),
        (TypeError, r"seeds must be whole numbers, or how many, found 0.5", adam(), RATE, {"seeds": 0.5}),
        (ValueError, r"seeds must be different numbers, one at least, found 0", adam(), RATE, {"seeds": 0}),
        (ValueError, r"seeds must be different numbers, one at least, found \[1, 1\]", adam(), RATE, {"seeds": [1, 1]}),
        (ValueError, r"chunk must be a whole number, 1 or more, or None, found 0", adam(), RATE, {"chunk": 0}),
        (ValueError, r"memory must be a whole number, 1 or more, or None, found 0.5", adam(), RATE, {"memory": 0.5}),
        (TypeError, r"expected sweep\(train, tx, grid\)", gx.adam, RATE, {}),
    ],
)  # fmt: skip
def test_mistakes(error: Any, message: str, tx: Any, grid: Any, more: Any):
    with pytest.raises(error, match=message):
        gx.sweep(train, tx, grid, **more)


@pytest.mark.parametrize(
    "tx",
    [
        gx.adam(falling),
        gx.packed(gx.adam(falling)),
        gx.skip_nonfinite(gx.adam(falling)),
        gx.chain(gx.accumulate(gx.adam(falling), 2)),
        gx.partition({"a": gx.adam(falling)}, default="freeze"),
        gx.switch(3, gx.adam(falling), gx.momentum(0.9)),
        optax.apply_if_finite(gx.adam(falling), 3),
        optax.inject_hyperparams(optax.adam)(falling),
    ],
    ids=lambda tx: getattr(tx, "label", "optax"),
)
def test_a_scheduled_hyperparameter_is_refused(tx: Any):
    with pytest.raises(ValueError, match="'learning_rate' is overwritten in each step, as by a schedule"):
        gx.sweep(train, tx, RATE)


def test_a_schedule_beside_what_is_swept():
    """Another rule, and another part, may be scheduled; and the height of a schedule is a factor."""

    def make(rate: float = 0.5) -> gx.partition:
        return gx.partition({"a": gx.adam(rate, b1=lambda count: 0.9 - 0.1 / (count + 1))}, default=gx.adam(falling))

    grid = {"a.scale_by_learning_rate.learning_rate": [0.01, 0.1]}
    assert_rows(gx.sweep(train, make(), grid), single_runs(make, grid, [0]), rtol=1e-5)
    with pytest.raises(ValueError, match="overwritten"):
        gx.sweep(train, make(), {"default.scale_by_learning_rate.learning_rate": [0.1]})
    table = gx.sweep(train, gx.chain(gx.adam(falling), gx.scale(1.0)), {"factor": [0.5, 2.0]})
    halves = single_runs(lambda f: gx.adam(lambda count: f * falling(count)), {"factor": [0.5, 2.0]}, [0])
    assert_rows(table, halves, rtol=1e-5)


def test_a_hyperparameter_that_nothing_reads_is_refused():
    class early(gx.Rule):
        """Reads its hyperparameter in ``init`` only, where it is not yet what the row says."""

        accumulates = False

        size: Any = gx.hyper(default=1.0)

        def slots(self, param: Any) -> Any:
            return {"x": jnp.full_like(param, self.size)}

        def apply(self, signal: Any, slots: Any, param: Any, c: Any) -> Any:
            return signal._replace(direction=signal.direction * slots.x), {"x": slots.x}

    with pytest.raises(ValueError, match=r"'size' changes nothing: no step of this optimizer reads early\.size"):
        gx.sweep(train, gx.chain(early(), gx.sgd(0.1)), {"size": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("error", "message", "returns"),
    [
        (TypeError, r"returned 'x' of shape \(3,\) and dtype float32; results are scalars", {"x": jnp.ones(3)}),
        (TypeError, r"returned 'result' of shape \(\) and dtype key", jax.random.key(0)),
        (ValueError, r"the result 'seed' has the name of another column", {"seed": 1}),
        (ValueError, r"the result 'learning_rate' has the name of another column", {"learning_rate": 1.0}),
        (ValueError, r"train returned nothing", None),
        (ValueError, r"train returned nothing", {}),
    ],
)  # fmt: skip
def test_results_that_are_no_columns(error: Any, message: str, returns: Any):
    with pytest.raises(error, match=message):
        gx.sweep(lambda tx, key: (tx.init(jnp.ones(2)), returns)[1], gx.sgd(0.1), RATE)


def test_trainings_that_cannot_be_swept():
    with pytest.raises(ValueError, match="train never called init of the transformation it was given"):
        gx.sweep(lambda tx, key: train(gx.sgd(0.1), key), gx.sgd(0.1), RATE)
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        gx.sweep(lambda tx, key: 1.0 if train(tx, key)["norm"] > 1 else 0.0, gx.sgd(0.1), RATE)
    assert any("train is compiled, for all runs at once" in note for note in caught.value.__notes__)


# The table


TABLE = gx.SweepTable(
    {
        "learning_rate": [0.3, 0.3, 0.1, 0.1, 1.0, 1.0],
        "seed": [4, 5, 4, 5, 4, 5],
        "loss": [1.0, 4.0, 2.0, 2.5, np.nan, 0.5],
        "right": [True, True, False, False, False, True],
    },
    results=["loss", "right"],
)


def test_a_table():
    assert len(TABLE) == 6 and TABLE.columns == ("learning_rate", "seed", "loss", "right")
    assert TABLE.hyperparameters == ("learning_rate",) and TABLE.results == ("loss", "right")
    assert TABLE["seed"].tolist() == [4, 5] * 3
    assert TABLE.rows()[1] == {"learning_rate": 0.3, "seed": 5, "loss": 4.0, "right": True}
    assert list(TABLE)[:4] == TABLE.rows()[:4]
    assert {name: x.shape for name, x in TABLE.to_dict().items()} == dict.fromkeys(TABLE.columns, (6,))
    assert TABLE.best("loss") == {"learning_rate": 1.0, "seed": 5, "loss": 0.5, "right": True}
    assert TABLE.best("loss", largest=True)["loss"] == 4.0
    with pytest.raises(ValueError, match="best: no result 'seed'; this table has: loss, right"):
        TABLE.best("seed")
    with pytest.raises(ValueError, match="no run has a finite loss: all of them diverged"):
        gx.SweepTable({"seed": [0], "loss": [np.nan]}, ["loss"]).best("loss")


def test_a_table_over_seeds():
    mean = TABLE.over_seeds()
    assert mean.columns == ("learning_rate", "loss", "right") and len(mean) == 3
    np.testing.assert_array_equal(mean["learning_rate"], [0.3, 0.1, 1.0])
    np.testing.assert_array_equal(mean["loss"], [2.5, 2.25, np.nan])
    np.testing.assert_array_equal(mean["right"], [1.0, 0.0, 0.5])
    assert mean.best("loss")["learning_rate"] == 0.1
    np.testing.assert_array_equal(TABLE.over_seeds(np.max)["loss"], [4.0, 2.5, np.nan])
    two = gx.SweepTable({"b": [1, 1, 2, 2], "a": [2, 1, 1, 2], "seed": [0] * 4, "x": [5, 6, 7, 8]}, ["x"])
    assert [row["x"] for row in two.over_seeds()] == [5, 6, 7, 8]


def test_a_table_prints():
    assert str(TABLE).splitlines() == [
        "learning_rate  seed  loss  right",
        "────────────────────────────────",
        "          0.3     4     1      1",
        "          0.3     5     4      1",
        "          0.1     4     2      0",
        "          0.1     5   2.5      0",
        "            1     4   nan      0",
        "            1     5   0.5      1",
    ]
    assert TABLE._repr_markdown_().splitlines()[1:3] == ["| ---: | ---: | ---: | ---: |", "| 0.3 | 4 | 1 | 1 |"]
    long = gx.SweepTable({"seed": np.arange(100), "loss": np.arange(100)}, ["loss"])
    lines = str(long).splitlines()
    assert len(lines) == 2 + 41 + 1 and lines[22:24] == ["   …     …", "  80    80"] and lines[-1] == "(100 rows)"


# The data of a step that depend on its state


def test_flows():
    def function(flag: Any, x: Any, y: Any) -> Any:
        kept = jax.lax.cond(flag, lambda x, y: (x, y), lambda x, y: (x, x), x, y)
        chosen = jnp.where(flag, x, x), jnp.where(flag, x, y), jnp.where(y > 0, x, x), jnp.where(x > 0, y, y)
        inside = jax.jit(lambda a, b: (b, a + b, jnp.sin(a)))(y, x)
        loop = jax.lax.fori_loop(0, 3, lambda _, z: (z[1], z[0]), (x, y))
        by_itself = jax.lax.cond(x > 0, lambda: 1.0, lambda: 2.0)
        return kept, chosen, inside, loop, by_itself, 1.0, jax.lax.optimization_barrier((x, y))

    found = flows(function, True, 2.0, 3.0, follow=1)
    none, same, made = Flow.NONE, Flow.SAME, Flow.MADE
    assert found == [same, made, same, made, same, made, same, made, none, made, made, made, none, same, none]
