"""``gradtx compare --sweep``: what it prints and writes, and what it makes of its trainings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.command import TINY, files
from PIL import Image
from rich.console import Console

import gradtx
from gradtx.__main__ import main
from gradtx.workbench.data import load_digits
from gradtx.workbench.recipes import RECIPES, make_optimizer
from gradtx.workbench.settings import Settings
from gradtx.workbench.sweeps import sweep as sweeping
from gradtx.workbench.sweeps.picture import draw_sweeps
from gradtx.workbench.sweeps.report import print_sweeps
from gradtx.workbench.sweeps.sweep import RATES, Range, Sweep
from gradtx.workbench.training import train

pytestmark = pytest.mark.usefixtures("quick_compilation", "empty_folder")


def test_sweep(capsys: pytest.CaptureFixture[str]):
    shape = ["--network", "relu", "--optimizers", "sgd", "adam", "--clip-norm", "5"]
    assert main(["compare", "--sweep", *TINY, *shape, "--seed", "3", "--seeds", "2", "--json", "numbers.json"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"ReLU network, 1 hidden layer of 4 *\n2 epochs, batch size 128, clip norm 5", printed.out)
    assert re.search(r"Adam +0\.\d+ +\d\.\de.\d\d ± \de.\d\d +\d\d\.\d ± \d\.\d % +none", printed.out)
    assert "mean of 2 seeds" in printed.out and max(map(len, printed.out.splitlines())) <= 80
    assert re.fullmatch(r"(\w+ on ReLU, batch size 128: best learning rate \S+, \S+ s\n){2}", printed.err)
    assert files() == ["gradtx-sweep.png", "numbers.json"]
    with Image.open("gradtx-sweep.png") as image:
        assert image.format == "PNG" and image.width > 600

    content = json.loads(Path("numbers.json").read_text())
    assert content["settings"]["sweep"] is True and content["settings"]["seeds"] == 2
    sgd, adam = content["sweeps"]
    assert (sgd["optimizer"], adam["optimizer"], adam["network"]) == ("sgd", "adam", "relu")
    assert adam["chain"].startswith("clip_by_global_norm(5) → momentum(0.9)") and adam["trains"] is None
    assert [(row["learning_rate"], row["seed"]) for row in sgd["rows"]] == [(x, s) for x in RATES for s in (3, 4)]
    row = adam["rows"][9]
    assert set(row) == {"learning_rate", "seed", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}

    settings = Settings(("adam",), ("relu",), depth=1, width=4)
    data = load_digits()
    tx = make_optimizer("adam", row["learning_rate"], clip_norm=5.0)
    alone = train(settings.network("relu", 64, 10), tx, data, epochs=2, batch_size=128, seed=row["seed"]).measures
    # One program computes what several do alone: rounding, over 22 steps.
    np.testing.assert_allclose(row["train_loss"], alone.train_loss, rtol=1e-4)
    np.testing.assert_allclose(row["test_loss"], alone.test_loss[-1], rtol=1e-4)
    images = 360
    assert abs(row["test_accuracy"] - alone.test_accuracy[-1]) <= 1 / images  # one of them may change sides
    assert abs(row["train_accuracy"] - alone.train_accuracy[-1]) <= 2 / 1437


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_an_interrupted_sweep_keeps_its_rows(
    rows: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Of the second optimizer those that are done, two for each learning rate: in the file all, in the table pairs."""

    def one_sweep(*args: Any, progress: Any, **kwargs: Any) -> Any:
        calls.append(args)
        whole = made({rate: [(0.5, 0.9), (0.4, 0.9)] for rate in RATES}).table
        for number in range(1, len(whole) + 1):
            if len(calls) == 2 and number > rows:
                raise KeyboardInterrupt
            done = gradtx.SweepTable({name: whole[name][:number] for name in whole.columns}, whole.results)
            progress(done, len(whole))
        return whole

    calls: list[Any] = []
    monkeypatch.setattr(sweeping.gradtx, "sweep", one_sweep)
    shape = [*TINY, "--network", "relu", "--optimizers", "sgd", "adam", "nag", "--json", "numbers.json"]
    assert main(["compare", "--sweep", "--seeds", "2", *shape]) == 130
    printed = capsys.readouterr()
    message = "interrupted: 1 of 3 sweeps finished" + ", and a part of the next" * (rows > 0)
    assert printed.err.splitlines()[-1] == message
    whole = {0: "", 1: "1 of 13 learning rates, up to 1e-05", 5: "2 of 13 learning rates, up to 3.2e-05"}[rows]
    assert re.findall(r"not finished: Adam on ReLU, (.*)", printed.out) == [whole] * (rows > 0)
    assert "SGD" in printed.out and "not finished: SGD" not in printed.out and "NAG" not in printed.out
    content = json.loads(Path("numbers.json").read_text())
    assert content["interrupted"] is True
    assert [len(sweep["rows"]) for sweep in content["sweeps"]] == [26, *[rows] * (rows > 0)]
    assert files() == ["gradtx-sweep.png", "numbers.json"]


@pytest.mark.parametrize("name", ["prodigy", "madgrad", "fromage", "rprop"])
def test_a_point_of_a_sweep_is_the_optimizer_at_that_rate(name: str):
    """Those whose learning rate is more than one number of the state, against a new one."""
    rate, params = 0.3, {"w": jnp.linspace(-1, 2, 6).reshape(2, 3)}
    swept, new = make_optimizer(name, RECIPES[name].learning_rate), make_optimizer(name, rate)
    states = gradtx.set_hyperparams(swept.init(params), RECIPES[name].point(rate)), new.init(params)
    ways = [params, params]
    for _ in range(4):
        ways, states = zip(
            *(gradtx.step(tx, w, {"w": 3 * w["w"]}, s) for tx, w, s in zip((swept, new), ways, states, strict=True)),
            strict=True,
        )
    np.testing.assert_allclose(ways[0]["w"], ways[1]["w"], rtol=1e-5, atol=1e-6)  # the ε of MADGRAD is not scaled
    assert (ways[0]["w"] != params["w"]).any()


def test_every_optimizer_has_the_hyperparameters_that_its_sweep_changes():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    for name, recipe in RECIPES.items():
        point = recipe.point(0.25)
        tx = make_optimizer(name, recipe.learning_rate)
        state = (sweeping.with_factor(tx) if sweeping.FACTOR in point else tx).init(params)
        gradtx.set_hyperparams(state, point)  # or it says which there are


# Tables and pictures of the trainings


def made(ends: dict[float, list[tuple[float, float]]], optimizer: str = "sgd") -> Sweep:
    """A sweep of two epochs, from {learning rate: [(final training loss, training accuracy) for each seed]}."""
    rows = [
        {"learning_rate": rate, "seed": seed, "train_loss/0": 2.0, "train_loss/1": 1.0, "train_loss/2": loss}
        | {"train_accuracy": accuracy, "test_loss": 1.0, "test_accuracy": accuracy - 0.1}
        for rate, seeds in ends.items()
        for seed, (loss, accuracy) in enumerate(seeds)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return Sweep("relu", optimizer, "chain", gradtx.SweepTable(columns, list(columns)[2:]), 1.0)


SWEEP = made(
    {
        0.01: [(0.9, 0.6), (0.8, 0.7)],
        0.1: [(0.1, 0.95), (0.3, 0.96)],
        1.0: [(0.05, 1.0), (0.15, 1.0)],
        10.0: [(0.01, 1.0), (0.5, 0.94)],
        100.0: [(2.5, 0.99), (0.01, 0.99)],
        1000.0: [(np.nan, 0.1), (np.inf, 0.99)],
    }
)


def test_best_and_range():
    assert SWEEP.rates.tolist() == [0.01, 0.1, 1, 10, 100, 1000]
    assert SWEEP.rates[SWEEP.best] == 1.0
    assert SWEEP.curves.shape == (6, 2, 3) and SWEEP.curves[1, 1].tolist() == [2.0, 1.0, 0.3]
    # 10: one seed of two is below 95 %; 100: one ends with more loss than it began with.
    assert SWEEP.trains.tolist() == [False, True, True, False, False, False]
    assert SWEEP.range == Range(0.1, 1.0, open=False) and Range(0.1, 1.0, open=False).factor == 10
    assert SWEEP.losses[-1].tolist() == [np.inf, np.inf]


@pytest.mark.parametrize(
    ("trains", "expected"),
    [
        ("......", None),
        ("xx.xx.", Range(1e-5, 1e-4, open=True)),
        ("x.xx..", Range(1e-3, 1e-2, open=False)),
        ("x..xxx", Range(1e-2, 1.0, open=True)),
        ("xxxxxx", Range(1e-5, 1.0, open=True)),
    ],
)
def test_ranges(trains: str, expected: Range | None):
    sweep = made({10.0 ** (i - 5): [(0.1, 1.0 if each == "x" else 0.5)] for i, each in enumerate(trains)})
    assert sweep.range == expected


def test_report_and_picture(capsys: pytest.CaptureFixture[str]):
    nothing = made({0.1: [(np.nan, 0.1), (np.nan, 0.1)], 1.0: [(np.nan, 0.1), (np.nan, 0.1)]}, "adam")
    settings = Settings(("sgd", "adam"), ("relu",), sweep=True, seeds=2, epochs=2)
    print_sweeps(settings, [SWEEP, nothing], Console())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(("SGD", "Adam"))] == [
        ["SGD", "1", "1.0e-01", "±", "5e-02", "90.0", "±", "0.0", "%", "0.1", "1", "10"],
        ["Adam", "0.1", "inf", "±", "nan", "0.0", "±", "0.0", "%", "none"],
    ]
    assert draw_sweeps(settings, [SWEEP, nothing]).startswith(b"\x89PNG")
