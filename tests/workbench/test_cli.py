"""The command line: what it prints and writes, and what it refuses."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fixtures.command import TINY, files
from PIL import Image

import gradtx
from gradtx import optimizers
from gradtx.__main__ import main
from gradtx.workbench import files as writing
from gradtx.workbench.options import parse
from gradtx.workbench.picture import line_of
from gradtx.workbench.recipes import ALIASES, ARTICLE, RECIPES, recipe_of
from gradtx.workbench.runs import kind as running
from gradtx.workbench.settings import Impossible
from gradtx.workbench.signals import ending
from gradtx.workbench.sweeps import kind as sweeping

pytestmark = pytest.mark.usefixtures("quick_compilation", "empty_folder")


# A comparison


def test_compare(capsys: pytest.CaptureFixture[str]):
    arguments = [*TINY, "--optimizers", "adam", "nag", "--seed", "3", "--clip-norm", "1", "--clip-value", "0.5"]
    assert main(["compare", *arguments, "--json", "numbers.json"]) == 0
    printed = capsys.readouterr()
    heading = r"ReLU network, 1 hidden layer of 4 *\n2 epochs, batch size 128, clip norm 1, clip value 0.5"
    assert re.search(heading, printed.out)
    assert "maxout network, 1 hidden layer of 4" in printed.out
    assert re.search(r"NAG +0\.32 +\d\.\d\de.\d\d +\d+\.\d % +\d\.\d\de.\d\d +\d+\.\d % +not trained", printed.out)
    assert "not trained enough: training accuracy below 95 %" in printed.out
    assert "Picture: gradtx-compare.png" in printed.out and "Numbers: numbers.json" in printed.out
    assert printed.err.splitlines()[0].startswith("Adam on ReLU, batch size 128: training loss ")
    assert len(printed.err.splitlines()) == 4
    assert max(map(len, printed.out.splitlines())) <= 80
    assert files() == ["gradtx-compare.png", "numbers.json"]
    with Image.open("gradtx-compare.png") as image:
        assert image.format == "PNG" and image.width > 1000 and image.height > 500

    content = json.loads(Path("numbers.json").read_text())
    assert content["settings"] == {
        "optimizers": ["adam", "nag"],
        "networks": ["relu", "maxout"],
        "depth": 1,
        "width": 4,
        "gain": None,
        "samples": None,
        "epochs": 2,
        "batch_sizes": [128],
        "learning_rate": None,
        "clip_norm": 1.0,
        "clip_layer": None,
        "clip_value": 0.5,
        "weight_decay": None,
        "health": False,
        "sweep": False,
        "seeds": 5,
        "seed": 3,
        "output": "gradtx-compare.png",
        "json": "numbers.json",
    }
    assert {"python", "gradtx", "jax", "numpy", "optax", "scikit-learn"} <= set(content["versions"])
    assert content["versions"]["gradtx"] == gradtx.__version__
    assert content["interrupted"] is False
    runs = content["runs"]
    assert [(run["network"], run["optimizer"]) for run in runs] == [
        ("relu", "adam"), ("relu", "nag"), ("maxout", "adam"), ("maxout", "nag"),
    ]  # fmt: skip
    for run in runs:
        assert run["chain"].startswith("clip_by_global_norm(1) → clip_by_value(0.5) → momentum(0.9)")
        assert run["learning_rate"] == RECIPES[run["optimizer"]].rate(128)
        assert run["batch_size"] == 128 and run["descent"] is None
        assert run["seconds"] > 0 and run["verdict"] == "not trained enough"
        assert set(run["epochs"]) == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
        assert all(len(values) == 3 for values in run["epochs"].values())
        assert run["final"] == {name: values[-1] for name, values in run["epochs"].items()}
        assert list(run["gradient_norms"]) == ["layer_1", "layer_2"]
        assert run["first_steps"]["loss"][0] == pytest.approx(run["epochs"]["train_loss"][0], rel=0.2)  # other images
        assert [len(norms) for norms in run["first_steps"]["gradient_norms"].values()] == [22, 22]
        assert [run["health"][moment]["metrics"]["steps"] for moment in ("first", "last")] == [1, 22]
        assert "clipped" in [finding["problem"] for finding in run["health"]["first"]["diagnosis"]]
        assert all(len(values) == 3 for values in run["gradient_norms"].values())


def test_batch_sizes(capsys: pytest.CaptureFixture[str]):
    """SGD, if no optimizer is named; with the rate that suits each size, and with one rate for all."""
    shape = ["--depth", "1", "--width", "4", "--epochs", "1", "--network", "relu", "--samples", "96"]
    assert main(["compare", *shape, "--batch-size", "48", "8", "8", "--json", "numbers.json"]) == 0
    printed = capsys.readouterr()
    assert "1 epoch, batch size 48 8, 96 training images" in printed.out
    assert re.search(r"SGD +48 +0\.23 ", printed.out) and re.search(r"SGD +8 +0\.05 ", printed.out)
    assert "SGD on ReLU, batch size 48: training loss" in printed.err
    assert max(map(len, printed.out.splitlines())) <= 80
    assert files() == ["gradtx-batches.png", "numbers.json"]
    with Image.open("gradtx-batches.png") as image:
        assert 600 < image.width < 900 and 400 < image.height < 600
    runs = json.loads(Path("numbers.json").read_text())["runs"]
    assert [run["batch_size"] for run in runs] == [48, 8]
    for run in runs:
        steps = 96 // run["batch_size"]
        assert len(run["descent"]) == 201
        by_step, by_epoch = run["descent"][::steps], run["epochs"]["train_loss"]
        assert by_step[:2] == pytest.approx(by_epoch, rel=1e-4)  # two programs: rounding
    one = parse(["compare", "--batch-size", "48", "8", "--network", "relu", "--learning-rate", "0.1"])
    assert [one.rate(task) for task in one.tasks] == [0.1, 0.1]


def test_optimizers_of_users(capsys: pytest.CaptureFixture[str], quick_compilation: None):
    """Descent from a file is that of the library."""
    Path("mine.py").write_text(
        "import gradtx as gx\n\n\nclass minus(gx.Rule):\n    equation = r'u \\leftarrow -u'\n\n"
        "    def apply(self, signal, slots, param, c):\n"
        "        return signal._replace(direction=-signal.direction), {}\n\n\n"
        "def descent(learning_rate):\n    return gx.chain(minus(), gx.scale(learning_rate))\n"
    )
    names = ["sgd", "mine.py:descent"]
    shape = ["--depth", "1", "--width", "4", "--epochs", "2", "--network", "relu", "--samples", "64"]
    given = ["compare", *shape, "--optimizers", *names, "--learning-rate", "0.1", "--json", "numbers.json"]
    assert main(given) == 0
    assert re.search(r"^descent +0\.1 ", capsys.readouterr().out, re.MULTILINE)
    runs = json.loads(Path("numbers.json").read_text())["runs"]
    assert [run["optimizer"] for run in runs] == names
    ours, theirs = [run["epochs"]["train_loss"] for run in runs]
    assert theirs == pytest.approx(ours, rel=1e-5)  # rounding
    names += ["optax:sgd", "gradtx.dialects.optax:sgd"]
    by_name, by_factor = ("learning_rate",), ("rate.factor",)
    assert [recipe_of(name).swept for name in names] == [by_name, by_factor, by_factor, by_name]
    assert len(set(map(line_of, names))) == 4


def test_names_of_optimizers():
    """Optimizers of the library and of the command; the article's if none is named."""
    assert set(optimizers.__all__) <= {*RECIPES, *ALIASES}
    taken = parse(["compare", "--optimizers", *optimizers.__all__, "swats", "adam_then_sgd"]).optimizers
    assert set(taken) == set(RECIPES) == set(parse(["compare", "--optimizers", "all"]).optimizers)
    assert parse(["compare"]).optimizers == tuple(ARTICLE)
    assert parse(["compare", "--batch-size", "1", "2"]).optimizers == ("sgd",)
    assert parse(["compare", "--samples", "20"]).batch_sizes == (20,)


@pytest.mark.exhaustive  # test_workbench.py sees the same findings without the command
def test_gradient_health(capsys: pytest.CaptureFixture[str]):
    shape = ["--depth", "8", "--width", "16", "--epochs", "1", "--batch-size", "128", "--optimizers", "sgd", "adam"]
    assert main(["compare", *shape, "--network", "sigmoid"]) == 0
    printed = capsys.readouterr().out
    assert "sigmoid network, 8 hidden layers of 16 " in printed
    assert re.search(r"first +vanishing +layer_1/\w, layer_\d/\w and \d+ more +all", printed)
    assert "vanishing: Try ReLU or maxout" in printed and max(map(len, printed.splitlines())) <= 80
    assert main(["compare", *shape, "--network", "relu", "--gain", "20", "--json", "numbers.json"]) == 0
    printed = capsys.readouterr().out
    assert "ReLU network, 8 hidden layers of 16, gain 20 " in printed
    assert re.search(r"first +exploding +layer_", printed)
    run, _ = json.loads(Path("numbers.json").read_text())["runs"]
    (exploding,) = [each for each in run["health"]["first"]["diagnosis"] if each["problem"] == "exploding"]
    assert set(exploding) == {"problem", "leaves", "values", "measure", "advice"}
    assert exploding["values"][0] == run["health"]["first"]["metrics"][f"gradient_norm/{exploding['leaves'][0]}"]
    assert main(["compare", "--network", "relu", "--optimizers", "adam", "--epochs", "4"]) == 0
    assert "gradient health" not in capsys.readouterr().out  # it went well
    assert main(["compare", "--network", "relu", "--optimizers", "adam", "--epochs", "1", "--health"]) == 0
    assert "gradient health: no findings" in capsys.readouterr().out


def test_same_seed_same_numbers():
    def numbers(seed: str) -> list[dict]:
        main(["compare", *TINY, "--network", "relu", "--optimizers", "adam", "--seed", seed, "--json", "n.json"])
        runs = json.loads(Path("n.json").read_text())["runs"]
        return [{name: value for name, value in run.items() if name != "seconds"} for run in runs]

    first, again, other = map(numbers, "556")
    assert first == again != other


def test_a_diverging_comparison(capsys: pytest.CaptureFixture[str]):
    arguments = ["--network", "maxout", "--optimizers", "sgd", "--learning-rate", "1e30", "--json", "numbers.json"]
    assert main(["compare", *TINY, *arguments]) == 0
    assert re.search(r"SGD +1e\+30 +nan .*diverged", capsys.readouterr().out)
    (run,) = json.loads(Path("numbers.json").read_text())["runs"]
    assert run["final"]["train_loss"] is None and run["verdict"] == "diverged"


@pytest.mark.exhaustive  # CI runs it, with the few that it has of those
def test_the_module_runs_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-W", "error", "-m", "gradtx", "compare", "--epochs", "1", "--optimizers", "adam"]
    done = subprocess.run([*command, "--network", "relu"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Adam" in done.stdout and files() == ["gradtx-compare.png"]
    assert re.fullmatch(r"Adam on ReLU: training loss \S+, \S+ s\n", done.stderr)


def test_version_and_help(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gradtx {gradtx.__version__}\n"
    assert main([]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["compare", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES) and "overfitting: " in printed


# Refusals, before any training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["contrast"], "invalid choice: 'contrast'"),
        (["compare", "--optimizers", "adamm"], "invalid choice: 'adamm' (choose from"),
        (["compare", "--optimizers", "adamm.py:adam"], "--optimizers adamm.py:adam: [Errno 2] No such file"),
        (["compare", "--optimizers", "adamm:adam"], "--optimizers adamm:adam: No module named 'adamm'"),
        (["compare", "--optimizers", "optax:adamm"], "--optimizers optax:adamm: module 'optax' has no attribute"),
        (["compare", "--optimizers"], "expected at least one argument"),
        (["compare", "--network", "tanh"], "invalid choice: 'tanh'"),
        (["compare", "--gain", "0"], "--gain: expected a number greater than 0"),
        (["compare", "--clip-layer", "-1"], "--clip-layer: expected a number greater than 0"),
        (["compare", "--depth", "0"], "--depth: expected a whole number from 1 to 50, found '0'"),
        (["compare", "--depth", "51"], "--depth: expected a whole number from 1 to 50, found '51'"),
        (["compare", "--width", "0"], "--width: expected a whole number of at least 1, found '0'"),
        (["compare", "--width", "2.5"], "--width: expected a whole number of at least 1, found '2.5'"),
        (["compare", "--width", "100000"], "--depth 3 --width 100000 make a network of 40,014,400,010 weights"),
        (["compare", "--epochs", "0"], "--epochs: expected a whole number of at least 1, found '0'"),
        (["compare", "--batch-size", "-1"], "--batch-size: expected a whole number of at least 1, found '-1'"),
        (["compare", "--batch-size", "1438"], "--batch-size 1438 is more than the 1437 training images"),
        (["compare", "--batch-size"], "--batch-size: expected at least one argument"),
        (["compare", "--batch-size", "1", "16.0"], "--batch-size: expected a whole number of at least 1, found '16.0'"),
        (["compare", "--sweep", "--batch-size", "1", "16"], "--sweep takes one batch size, found 1 16"),
        (["compare", "--samples", "1438"], "--samples 1438 is more than the 1437 training images"),
        (
            ["compare", "--samples", "50", "--batch-size", "8", "51"],
            "--batch-size 51 is more than the 50 training images",
        ),
        (["compare", "--weight-decay", "0"], "--weight-decay: expected a number greater than 0"),
        (["compare", "--optimizers", "everything"], "invalid choice: 'everything' (choose from"),
        (["compare", "--learning-rate", "0"], "--learning-rate: expected a number greater than 0"),
        (["compare", "--learning-rate", "fast"], "--learning-rate: expected a number greater than 0"),
        (["compare", "--learning-rate", "nan"], "--learning-rate: expected a number greater than 0"),
        (["compare", "--learning-rate", "1e39"], "that float32 can hold, found '1e39'"),
        (["compare", "--clip-norm", "-1"], "--clip-norm: expected a number greater than 0"),
        (["compare", "--clip-value", "inf"], "--clip-value: expected a number greater than 0"),
        (["compare", "--seed", "-1"], "--seed: expected a whole number from 0 to 4294967295"),
        (["compare", "--output", "picture.jpg"], "--output picture.jpg: the picture is a PNG"),
        (
            ["compare", "--output", "missing/picture.png"],
            "--output missing/picture.png cannot be written: No such file",
        ),
        (["compare", "--output", "folder.png"], "--output folder.png cannot be written: "),
        (["compare", "--json", "missing/n.json"], "--json missing/n.json cannot be written: No such file"),
        (["compare", "--json", "/dev/null"], "--json /dev/null cannot be written: /dev/null is not a regular file"),
        (
            ["compare", "--sweep", "--learning-rate", "0.1"],
            "--sweep tries learning rates of its own: leave out --learning",
        ),
        (["compare", "--sweep", "--health"], "--sweep does not watch gradients: leave out --health, or --sweep"),
        (["compare", "--sweep", "--seeds", "0"], "--seeds: expected a whole number of at least 1, found '0'"),
        (["compare", "--sweep", "--seed", "4294967295"], "--seeds 5: the last seed is more than 4294967295"),
        (["compare", "--seeds", "3"], "--seeds is for --sweep"),
        (["compare", "--output", "a.png", "--json", "./a.png"], "--output and --json are the same file, a.png"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def no_training(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(running, "train", no_training)
    monkeypatch.setattr(sweeping, "sweep_rates", no_training)
    Path("folder.png").mkdir()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err
    assert printed.err.count("\n") == 1 and printed.err.startswith("gradtx")
    assert files() == ["folder.png"]


NASTY = [
    *("", " ", "-", "--", "---", "-1", "0", "1", "2.5", "-0", "+3", "1_0", "٣", "1e3", "1e400", "-1e400", "1e-400"),
    *("nan", "-inf", "0x10", "1,5", "9" * 30, "9" * 5000, "é", "\udcff", "\x00", "%s", "%(prog)s", "{}", "[red]", "\n"),
    *("a b", "*", "adam", "adam adam", "relu", "both", "True", "None", ".", "..", "/", "~", "x.png", "X.PNG", "x.jpg"),
    *(
        ".png",
        "no/x.png",
        "folder.png",
        "/dev/full",
        "/dev/null",
        "/proc/x.png",
        "x" * 251 + ".png",
        "é" * 126 + ".png",
    ),
]
OPTIONS = """--optimizers --network --depth --width --gain --samples --epochs --batch-size --learning-rate --clip-norm
    --clip-layer --clip-value --weight-decay --health --sweep --seeds --seed --output --json""".split()


def test_any_value_of_any_option(capsys: pytest.CaptureFixture[str]):
    """It is taken, or refused in one line; nothing is written for either."""
    random = Random(0)
    Path("folder.png").mkdir()
    before, taken = files(), 0
    arguments = [[f"{option}={value}"] for option in OPTIONS for value in NASTY]
    arguments += [[random.choice(words) for _ in range(3) for words in (OPTIONS, NASTY)] for _ in range(300)]
    for each in [["--version=--"], *arguments]:
        try:
            settings = parse(["compare", *each])
            settings.check(1437, [settings.network(name, 64, 10) for name in settings.networks])
            taken += 1
        except SystemExit as stop:
            assert stop.code == 2, each
        except Impossible as problem:
            assert str(problem).startswith("--"), each
        lines = 1 + sum(word.count("\n") for word in each)
        assert capsys.readouterr().err.count("\n") <= lines, each
    assert files() == before and 100 < taken < len(arguments)


def test_an_unknown_optimizer_lists_the_known(capsys: pytest.CaptureFixture[str]):
    main(["compare", "--optimizers", "sgd", "adagard"])
    printed = capsys.readouterr().err
    assert all(name in printed for name in RECIPES)


def test_a_missing_extra():
    code = """if True:
        import sys
        from gradtx.__main__ import main
        for package in ["sklearn", "matplotlib", "rich"]:
            sys.modules[package] = None
            assert main(["compare"]) == 2
            del sys.modules[package]
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines() == [
        f'gradtx compare: {package} is missing: pip install "gradtx[demo]"'
        for package in ["sklearn", "matplotlib", "rich"]
    ]


def test_a_file_that_cannot_be_written_after_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def train_and_lose_the_folder(*args, **kwargs):
        shutil.rmtree("folder")
        return train(*args, **kwargs)

    train = running.train
    monkeypatch.setattr(running, "train", train_and_lose_the_folder)
    Path("folder").mkdir()
    arguments = ["--network", "relu", "--optimizers", "sgd", "--output", "folder/picture.png"]
    assert main(["compare", *TINY, *arguments]) == 1
    printed = capsys.readouterr()
    assert "SGD" in printed.out and "No such file or directory" in printed.err.splitlines()[-1]


def test_each_file_by_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A disk that is full for one of them, and then for the other."""

    def fsync(number: int) -> None:
        if (content := os.readlink(f"/proc/self/fd/{number}")) and full in content:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing.os, "fsync", fsync)
    arguments = ["compare", *TINY, "--network", "relu", "--optimizers", "sgd", "--json", "n.json"]
    for full, kept in (("n.json", "gradtx-compare.png"), ("gradtx-compare.png", "n.json")):
        assert main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.err.splitlines()[-1] == f"gradtx compare: {full} cannot be written: No space left on device"
        assert "SGD" in printed.out and kept in printed.out and full not in printed.out and files() == [kept]
        Path(kept).unlink()


def test_an_error_keeps_what_is_finished(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def train_once(*args, **kwargs):
        monkeypatch.setattr(running, "train", lambda *args, **kwargs: 1 // 0)
        return train(*args, **kwargs)

    train = running.train
    monkeypatch.setattr(running, "train", train_once)
    with pytest.raises(ZeroDivisionError):
        main(["compare", *TINY, "--network", "relu", "--optimizers", "sgd", "adam", "--json", "n.json"])
    assert "SGD" in capsys.readouterr().out and files() == ["gradtx-compare.png", "n.json"]


# The terminal


def gone() -> Any:
    read, write = os.pipe()
    os.close(read)
    return open(write, "w")


def full() -> Any:
    return open("/dev/full", "w")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize(
    ("out", "err", "status"), [(full, gone, 1), (gone, full, 141), (lambda: None, lambda: None, 0)]
)
def test_a_terminal_that_is_full_or_gone(out: Any, err: Any, status: int, monkeypatch: pytest.MonkeyPatch):
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:
        for name, stream in (("stdout", out()), ("stderr", err())):
            patch.setattr(sys, name, stream and stack.enter_context(stream))
        assert main(["compare", *TINY, "--network", "relu", "--optimizers", "sgd", "--json", "n.json"]) == status
    assert files() == ["gradtx-compare.png", "n.json"]


@pytest.mark.exhaustive
def test_a_reader_that_leaves(tmp_path: Path):
    command = [sys.executable, "-m", "gradtx", "compare", *TINY, "--network", "relu", "--optimizers", "sgd"]
    with gone() as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 141 and re.fullmatch(r"SGD on ReLU.*: training loss \S+, \S+ s\n", done.stderr)
    assert files() == ["gradtx-compare.png"]


def test_an_encoding_without_frames_and_names(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    arguments = ["--network", "relu", "--optimizers", "sgd", "--output", "é\udcff.png", "--json", "\udcff.json"]
    assert main(["compare", *TINY, *arguments]) == 0
    assert b"Picture: ??.png" in printed.getvalue()
    assert "\udcff" in json.loads(Path("\udcff.json").read_text())["settings"]["json"]


# Signals


def interrupt_run(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Press Ctrl-C in the first epoch of a run, counted from 1."""
    runs = []
    train = running.train

    def interrupted_train(*args, progress, **kwargs):
        def progress_or_stop(*each):
            if len(runs) == number:
                raise KeyboardInterrupt
            progress(*each)

        runs.append(args)
        return train(*args, progress=progress_or_stop, **kwargs)

    monkeypatch.setattr(running, "train", interrupted_train)


def test_ctrl_c_shows_what_is_finished(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    interrupt_run(monkeypatch, 2)
    arguments = ["--network", "relu", "--optimizers", "sgd", "momentum", "adam", "--json", "numbers.json"]
    assert main(["compare", *TINY, *arguments]) == 130
    printed = capsys.readouterr()
    assert "interrupted: 1 of 3 runs finished" in printed.err
    assert "SGD" in printed.out and "Momentum" not in printed.out
    assert files() == ["gradtx-compare.png", "numbers.json"]
    content = json.loads(Path("numbers.json").read_text())
    assert content["interrupted"] is True and [run["optimizer"] for run in content["runs"]] == ["sgd"]


@pytest.mark.skipif(sys.platform == "win32", reason="no signals for oneself there")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("when", ["training", "drawing"])
def test_signals(name: str, when: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A finished run is kept, also if another signal comes while it is being written."""

    def send_in(owner: Any, attribute: str, call: int) -> None:
        original, calls = getattr(owner, attribute), []

        def and_send(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), getattr(signal, name))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, and_send)

    monkeypatch.setattr(running, "watch", lambda *args: None)
    if when == "training":
        send_in(running, "train", 2)
    send_in(writing, "_part", 3)  # the first two are for the check before the training
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    arguments = ["--network", "relu", "--optimizers", "sgd", "adam", "--json", "numbers.json"]
    assert main(["compare", *TINY, *arguments]) == 128 + getattr(signal, name)
    printed = capsys.readouterr()
    assert ("interrupted: 1 of 2 runs finished" in printed.err) == (when == "training")
    assert "SGD" in printed.out and ("Adam" in printed.out) == (when == "drawing")
    assert files() == ["gradtx-compare.png", "numbers.json"]
    assert json.loads(Path("numbers.json").read_text())["interrupted"] == (when == "training")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_is_ignored_stays_ignored():
    """As HUP under nohup."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ending() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.signal is None and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_whose_exception_is_lost_ends_the_training_after_the_run():
    """As inside a callback of the garbage collector, which lets none through."""
    with ending() as signals:
        for _ in range(2):  # the second is only noted
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signals.check()
        signals.check()


def test_ctrl_c_in_the_first_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    interrupt_run(monkeypatch, 1)
    assert main(["compare", *TINY, "--json", "numbers.json"]) == 130
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "interrupted: 0 of 18 runs finished\n"
    assert files() == []


@pytest.mark.exhaustive  # as that without a warning
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a child there")
def test_a_real_interrupt(tmp_path: Path):
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have it ignored\n"
        "from gradtx.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "compare", *TINY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("SGD on ReLU")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"interrupted: \d+ of 18 runs finished", err)
    assert "Traceback" not in err or "Exception ignored in" in err  # inside a callback of the garbage collector
    assert "SGD" in out and files() == ["gradtx-compare.png"]


# The default comparison


@pytest.mark.exhaustive  # .ci/run runs it
def test_every_optimizer_trains_both_networks(capsys: pytest.CaptureFixture[str]):
    assert main(["compare", "--json", "numbers.json"]) == 0
    runs = json.loads(Path("numbers.json").read_text())["runs"]
    assert len(runs) == 18
    for run in runs:
        name = f"{run['optimizer']} on {run['network']}"
        assert run["final"]["train_accuracy"] >= 0.99, name
        assert run["final"]["test_accuracy"] >= 0.95, name
        assert run["verdict"] == "good", name


@pytest.mark.exhaustive
def test_none_of_all_optimizers_diverges(capsys: pytest.CaptureFixture[str]):
    assert main(["compare", "--optimizers", "all", "--json", "numbers.json"]) == 0
    runs = json.loads(Path("numbers.json").read_text())["runs"]
    assert {run["optimizer"] for run in runs} == set(RECIPES)
    assert {f"{run['optimizer']} on {run['network']}": run["verdict"] for run in runs if run["verdict"] != "good"} == {}
