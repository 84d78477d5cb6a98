"""The benchmarks: their arithmetic, and a small run. Never a time."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.contestants import Same, check
from benchmarks.data import Data, affordable, gpt2, parameters_of
from benchmarks.floor import Floor, why_missing
from benchmarks.guards import GUARDS
from benchmarks.picture import draw_costs
from benchmarks.recipes import ZOO
from benchmarks.record import Result
from benchmarks.report import scale, tables
from benchmarks.timing import Against, Summary, interleave, ratio, summary
from benchmarks.workloads import WORKLOADS, Setting, beside_optax

ROOT = Path(__file__).parents[2]


def test_median_quartiles_and_least():
    assert summary([5.0, 1.0, 3.0, 2.0, 4.0]) == Summary(3.0, 2.0, 4.0, 1.0)
    assert summary([7.0]) == Summary(7.0, 7.0, 7.0, 7.0)


def test_a_ratio_is_of_the_same_turn():
    load = np.array([1.0, 5.0, 2.0, 50.0, 1.0])  # that both of them meet
    assert ratio(list(3 * load), list(2 * load)) == pytest.approx((1.5, 1.5, 1.5, 1.5))


class Counter:
    """A contestant that writes down when it was measured."""

    def __init__(self, name, log):
        self.name, self.log, self.details = name, log, {}

    def measure(self):
        self.log.append(self.name)
        return float(len(self.log))


def test_contestants_take_turns_and_begin_in_turn():
    log = []
    samples = interleave({name: Counter(name, log) for name in "abc"}, 3)
    assert "".join(log) == "abcbcacab"
    assert samples == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_ratios_are_gradtx_against_the_others():
    result = Result("nothing", "s", {"gradtx reference": [2.0, 4.0], "optax": [1.0, 2.0], "floor (C)": [0.5, 1.0]}, {})
    assert result.ours == ["gradtx reference"]
    assert {name: found.median for name, found in result.ratios("gradtx reference").items()} == {
        "optax": 2.0,
        "floor (C)": 4.0,
    }
    assert [table.row_count for table in tables("name", result, 120)] == [3]


def test_a_picture_of_costs():
    """A row of the picture for each wrapper, whoever was there, and none for Adam alone."""
    samples = {
        "adam, optax": [1.3],
        "skip_nonfinite, native": [1.2, 1.3],
        "skip_nonfinite, optax": [2.0],
        "monitor, reference": [2.0],
    }
    result = Result("wrappers: one leaf", "cost", samples, {"monitor, reference": {"compile_ratio": 1.2}})
    assert draw_costs({"guards": result, "guards1000": result}, "here").startswith(b"\x89PNG")


def test_a_zoo_of_ratios():
    """Of the same turn, both ways; of optimizers that are checked to do the same."""
    log = []
    pair = Against(Counter("a", log), Counter("b", log))
    assert [pair.measure() for _ in range(2)] == [1 / 2, 3 / 4] and pair.details == {}
    recipes = {name: ZOO[name] for name in ("lion", "sm3", "adagrad")}
    contestants = beside_optax(recipes, [(4, 2)], [(4, 2)])(Setting(["reference"], quick=True))
    torch = ["adagrad, torch"] if importlib.util.find_spec("torch") else []
    assert list(contestants) == ["lion, reference", "sm3, reference", "adagrad, reference", *torch]
    assert all(contestant.measure() > 0 for contestant in contestants.values())
    assert all(contestants[f"{name}, reference"].details["compile_ratio"] > 0 for name in recipes)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed: extra [oracles]")
def test_torch_in_the_zoo_does_what_it_is_said_to_do():
    """Its AdaGrad starts at 0, and optax's at 0.1: held against optax's it is refused."""
    wrong = ZOO["adagrad"]._replace(differing={})
    with pytest.raises(Same, match="of the way off"):
        beside_optax({"adagrad": wrong}, [(4, 2)], [(4, 2)])(Setting(["reference"], quick=True))


@pytest.mark.parametrize(
    ("names", "unit", "samples"),
    [
        (["gradtx reference", "gradtx native", "gradtx packed", "optax", "plain SGD by hand"], "s", [0.652, 0.00123]),
        (
            [f"{row}, {how}" for row in GUARDS for how in ("reference", "native", "optax", "floor (C)")],
            "cost",
            [10.52, 0.992],
        ),
        ([f"{name}, reference" for name in ZOO], "ratio", [10.52, 0.992]),
        (["gradtx reference", "gradtx native", "optax"], "bytes", [2.0**33, 2.0**33]),
    ],
    ids=["steps", "guards", "zoo", "memory"],
)
@pytest.mark.parametrize("room", [80, 200])
def test_no_number_is_cut(names, unit, samples, room):
    scaled = {name: [(i + 1) * sample for sample in samples] for i, name in enumerate(names)}
    compiled = {name: {"trace_and_compile_s": 123.45} for name in names if unit == "s"}
    made = tables("name", Result("about", unit, scaled, compiled), room)
    assert len(made) == (2 if names[0].startswith("gradtx") and room == 80 else 1)
    console = Console(width=room, record=True, file=io.StringIO())
    for table in made:
        console.print(table)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= room
    assert all(name in text for name in names)


def test_units():
    assert [scale(x, "s")[1] for x in (2.0, 0.5, 2e-6, 0.0)] == ["s", "ms", "µs", "ns"]
    assert [scale(x, "bytes")[1] for x in (2**21, 2000, 3)] == ["MiB", "KiB", "B"]


@pytest.mark.skipif(why_missing() is not None, reason="no C compiler")
@pytest.mark.parametrize("kind", ["adam", "measured", "accumulated", "bfloat16"])
def test_the_floors_take_steps_of_adam(kind):
    """Beside float64: of means of three, without a step that is not finite, with moments rounded to bfloat16."""
    every = 3 if kind == "accumulated" else 1
    data = Data([(7,), (130, 3)])
    floor = Floor(data, 0.1, threads=2, kind=kind, every=every)
    first, second = ([np.asarray(g, np.float64) for g in gradients.values()] for gradients in data.gradients)
    bad = {name: g.at[-1].set(np.nan) for name, g in data.gradients[0].items()}
    data.gradients.append(bad)
    rounded = (lambda x: np.asarray(np.asarray(x, jnp.bfloat16), np.float64)) if kind == "bfloat16" else lambda x: x
    expected: list[Any] = [np.float64(x) for x in data.start]
    m: list[Any] = [0.0, 0.0]
    v: list[Any] = [0.0, 0.0]
    for t in range(1, 5):
        for which in (0, 1, 1)[:every] if every > 1 else [t % 2]:
            floor.use(which)
            floor.step()
        if kind == "measured":
            floor.use(2)
            floor.step()
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            g = (a + 2 * b) / 3 if every > 1 else (a, b)[t % 2]
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            w1, w2 = (1 - 0.9**t, 1 - 0.999**t)
            expected[i] -= 0.1 * (m[i] / w1) / (np.sqrt(v[i] / w2) + 1e-8)
            m[i], v[i] = rounded(m[i]), rounded(v[i])
    for i, x in enumerate(expected):
        np.testing.assert_allclose(floor.leaf(i), x, rtol=0, atol=3e-6 if kind != "bfloat16" else 2e-3)


def test_gpt2_has_its_leaves():
    assert len(gpt2()) == 148
    assert parameters_of(gpt2()) == 124_439_808
    assert not affordable([(10**13,)], 1)


class Walker:
    """A stepper that goes a length along the gradient."""

    def __init__(self, data, length):
        self.data, self.length, self.x = data, length, data.start[0].copy()
        self.use(0)

    def use(self, which):
        self.g = np.asarray(self.data.gradients[which]["leaf_0000"])

    def step(self):
        self.x = self.x - self.length * self.g

    def leaf(self, i):
        return self.x


@pytest.mark.parametrize("off", [0.0, 1e-3])
def test_nobody_is_timed_on_other_work(off):
    data = Data([(100,)])
    made = {"gradtx": Walker(data, 1e-2), "optax": Walker(data, 1e-2 * (1 + off))}
    if off:
        with pytest.raises(Same, match="optax"):
            check(made, data)
    else:
        check(made, data)
        assert len(data.gradients) == 1


def test_list(capsys):
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(WORKLOADS)


@pytest.mark.parametrize(
    "arguments", [["--workload", "no-such"], ["--executor", "no-such"], ["--repeats", "0"], ["--json", "/no/such/file"]]
)
def test_mistakes(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.exhaustive  # .ci/run runs it
def test_a_small_run(tmp_path):
    file, picture = tmp_path / "run.json", tmp_path / "run.png"
    command = [sys.executable, "-W", "error", "-m", "benchmarks"]
    arguments = ["--quick", "--repeats", "2", "--workload", "one-leaf", "1000x1024", "--json", str(file)]
    arguments += ["--picture", str(picture)]
    done = subprocess.run(command + arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "one-leaf" in done.stdout
    found = json.loads(file.read_text())
    assert {"date", "command", "commit", "machine", "versions", "workloads", "sweeps"} <= set(found)
    assert found["machine"]["processor"] and found["machine"]["cores"] >= 1
    assert found["versions"]["jax"]
    assert list(found["workloads"]) == ["one-leaf", "1000x1024"]
    for workload in found["workloads"].values():
        assert {"gradtx reference", "optax"} <= set(workload["contestants"])
        for own in workload["contestants"].values():
            assert len(own["samples"]) == 2
            assert 0 < own["least"] <= own["low"] <= own["median"] <= own["high"]
        assert "optax" in workload["ratios"]["gradtx reference"]
    assert [point["at"] for point in found["sweeps"]["leaves"]] == [1, 3, 10]
    assert picture.read_bytes().startswith(b"\x89PNG")
