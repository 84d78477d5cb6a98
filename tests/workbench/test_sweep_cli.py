"""``gradtx compare --sweep``: what it prints and writes, and what it makes of its trainings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gradtx
from gradtx.__main__ import main
from gradtx.workbench.data import load_digits
from gradtx.workbench.recipes import make_optimizer
from gradtx.workbench.settings import Settings
from gradtx.workbench.sweeps import sweep as sweeping
from gradtx.workbench.sweeps.picture import draw_sweeps
from gradtx.workbench.sweeps.report import print_sweeps
from gradtx.workbench.sweeps.sweep import RATES, Range, Sweep
from gradtx.workbench.training import train

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = ["--depth", "1", "--width", "4", "--epochs", "2", "--batch-size", "128"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


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


def test_ctrl_c_shows_what_is_finished(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def one_sweep(*args: Any, **kwargs: Any) -> Any:
        progress, rows = kwargs["progress"], []
        table = made({1e-3: [(0.5, 0.9)], 1e-2: [(0.4, 0.9)]}).table
        for _ in range(3):
            rows.append(1)
            if begun == ["sgd", "adam"]:
                raise KeyboardInterrupt
            progress(table, 3)
        return table

    begun: list[str] = []
    begins = Settings.optimizer
    monkeypatch.setattr(
        Settings, "optimizer", lambda self, name, *rest: (begun.append(name), begins(self, name, *rest))[1]
    )
    monkeypatch.setattr(sweeping.gradtx, "sweep", one_sweep)
    shape = [*TINY, "--network", "relu", "--optimizers", "sgd", "adam", "nag", "--json", "numbers.json"]
    assert main(["compare", "--sweep", "--seeds", "1", *shape]) == 130
    printed = capsys.readouterr()
    assert "interrupted: 1 of 3 sweeps finished" in printed.err
    assert "SGD" in printed.out and "Adam" not in printed.out
    content = json.loads(Path("numbers.json").read_text())
    assert content["interrupted"] is True and len(content["sweeps"]) == 1
    assert files() == ["gradtx-sweep.png", "numbers.json"]


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
    print_sweeps(settings, [SWEEP, nothing])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(("SGD", "Adam"))] == [
        ["SGD", "1", "1.0e-01", "±", "5e-02", "90.0", "±", "0.0", "%", "0.1", "1", "10"],
        ["Adam", "0.1", "inf", "±", "nan", "0.0", "±", "0.0", "%", "none"],
    ]
    assert draw_sweeps(settings, [SWEEP, nothing]).startswith(b"\x89PNG")
