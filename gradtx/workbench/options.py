"""The command line of ``gradtx``, and what it refuses at sight."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

import gradtx
from gradtx.workbench.networks import ACTIVATIONS
from gradtx.workbench.recipes import ALIASES, ARTICLE, BATCH_SIZE, RECIPES, recipe_of
from gradtx.workbench.settings import LARGEST_SEED, Settings
from gradtx.workbench.verdict import ADVICE

__all__ = ["parse"]

DEEPEST = 50
"""The hidden layers that ``--depth`` allows; each one takes its time to compile."""

BOTH = ("relu", "maxout")
"""The networks of ``--network both``."""

SWEPT = Path("gradtx-sweep.png")
"""The picture of a sweep, if nothing else is said."""

OF_BATCHES = Path("gradtx-batches.png")
"""Likewise, of several batch sizes."""

_MOST = 10_000_000
"""More epochs, images or units than anybody waits for."""

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        text = f"{self.prog}: {message} (see {self.prog} --help)\n"
        self.exit(2, text.encode(errors="backslashreplace").decode())  # half a surrogate, of a file name, as \\udc80


def _whole(low: int, high: int | None = None, most: int = _MOST) -> Callable[[str], int]:
    """A whole number; ``most`` is a limit that nobody has to be told of before meeting it."""
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"expected a whole number {limits}, found {_short(text)}")
        if high is None and number > most:
            raise argparse.ArgumentTypeError(f"expected a whole number of at most {most}, found {_short(text)}")
        return number

    return whole


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not _SMALLEST <= number <= _LARGEST:
        message = f"expected a number greater than 0 that float32 can hold, found {_short(text)}"
        raise argparse.ArgumentTypeError(message)
    return number


def _optimizer(text: str) -> str:
    if text not in {*RECIPES, *ALIASES, "all"} and not all(text.rpartition(":")):
        known = ", ".join([*RECIPES, *ALIASES, "all"])
        raise argparse.ArgumentTypeError(f"invalid choice: {_short(text)} (choose from {known}, FILE.py:FUNCTION)")
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def parse(arguments: Sequence[str] | None) -> Settings:
    """The settings that the arguments (``sys.argv`` for None) ask for.

    Raises:
        SystemExit: with status 0 after --help, which no arguments are, or --version; with 2, and one line on stderr,
            for a mistake.

    >>> parse(["compare", "--optimizers", "adam", "--network", "relu"]).epochs
    20
    """
    parser = _Parser(prog="gradtx", description="Optimizers for JAX as chains of elementary update rules.")
    parser.add_argument("--version", action="version", version=f"gradtx {gradtx.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_compare(commands)
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for argument in arguments:  # where some versions of argparse fail without a word
        if argument.startswith("--") and argument.endswith("=--"):
            parser.error(f"argument {argument.removesuffix('=--')}: expected a value, found '--'")
    chosen = vars(parser.parse_args(arguments))
    sizes = chosen.pop("batch_size")
    default_size = min(BATCH_SIZE, chosen["samples"] or BATCH_SIZE)
    chosen["batch_sizes"] = tuple(dict.fromkeys(sizes)) if sizes else (default_size,)
    several = len(chosen["batch_sizes"]) > 1
    if chosen["seeds"] is not None and not chosen["sweep"]:
        parser.error("compare: --seeds is for --sweep")
    chosen["seeds"] = chosen["seeds"] or Settings.seeds
    if chosen["output"] is None:
        chosen["output"] = SWEPT if chosen["sweep"] else OF_BATCHES if several else Settings.output
    network = chosen.pop("network")
    networks = BOTH if network == "both" else (network,)
    names = chosen.pop("optimizers") or (["sgd"] if several else list(ARTICLE))
    names = list(RECIPES) if "all" in names else [ALIASES.get(name, name) for name in names]
    for name in names:
        try:
            recipe_of(name)
        except (FileNotFoundError, ModuleNotFoundError, AttributeError) as error:
            parser.error(f"compare: --optimizers {name}: {error}")
    return Settings(tuple(dict.fromkeys(names)), networks, **chosen)


def _add_compare(commands: argparse._SubParsersAction[_Parser]) -> None:
    verdicts = "\n".join(f"  {word}: {advice}" for word, advice in ADVICE.items())
    parser = commands.add_parser(
        "compare",
        help="train a ReLU and a maxout network on handwritten digits with each optimizer",
        description="Train networks on the handwritten digits that scikit-learn ships, with each optimizer; print a\n"
        "table (training first, then test, then which of the two is the problem) and draw the losses\n"
        "and the gradient norm of each layer.",
        epilog=f"verdicts, the first that applies:\n{verdicts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default, add = Settings, parser.add_argument
    add(
        "--optimizers",
        nargs="+",
        type=_optimizer,
        default=None,
        metavar="NAME",
        help=f"which ones, of: {' '.join(RECIPES)}; or all; or your own, a function of the learning rate, as"
        f" FILE.py:FUNCTION or MODULE:FUNCTION (default: the first {len(ARTICLE)}; of several batch sizes sgd)",
    )
    add("--network", choices=[*ACTIVATIONS, "both"], default="both", help="which one; both: ReLU and maxout (default)")
    add(
        "--depth",
        type=_whole(1, DEEPEST),
        default=default.depth,
        metavar="LAYERS",
        help="hidden layers (default: %(default)s)",
    )
    add(
        "--width",
        type=_whole(1),
        default=default.width,
        metavar="UNITS",
        help="units in a hidden layer; a maxout unit is the greater of two affine functions (default: %(default)s)",
    )
    add(
        "--gain",
        type=_positive,
        default=default.gain,
        metavar="GAIN",
        help="hidden weights start with variance GAIN / fan-in (default: what keeps the scale, 2 for ReLU, else 1)",
    )
    add(
        "--samples",
        type=_whole(1),
        default=default.samples,
        metavar="IMAGES",
        help="training images to use; few of them and a wide network overfit (default: all)",
    )
    add(
        "--epochs",
        type=_whole(1),
        default=default.epochs,
        help="passes over the training images (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=_whole(1),
        nargs="+",
        default=None,
        metavar="IMAGES",
        help="images in a mini-batch; what is left over at the end of an epoch is dropped; several sizes are compared"
        f" by step and by epoch (default: {BATCH_SIZE})",
    )
    add(
        "--learning-rate",
        type=_positive,
        default=default.learning_rate,
        metavar="RATE",
        help="for every optimizer and batch size (default: one that suits each)",
    )
    add(
        "--clip-norm",
        type=_positive,
        default=default.clip_norm,
        metavar="LIMIT",
        help="shrink gradients whose norm, over all layers, is larger",
    )
    add(
        "--clip-layer",
        type=_positive,
        default=default.clip_layer,
        metavar="LIMIT",
        help="shrink the gradient of each layer's weights, and of its biases, whose norm is larger (after --clip-norm)",
    )
    add(
        "--clip-value",
        type=_positive,
        default=default.clip_value,
        metavar="LIMIT",
        help="clip each element of the gradient (after the other clips)",
    )
    add(
        "--weight-decay",
        type=_positive,
        default=default.weight_decay,
        metavar="RATE",
        help="add RATE times the parameters to the gradient (after the clips)",
    )
    add(
        "--health",
        action="store_true",
        help="run every training again with its gradients watched (default: only those that went wrong)",
    )
    add(
        "--sweep",
        action="store_true",
        help="try learning rates from 0.00001 to 10 with every optimizer, and see which is best and how many train",
    )
    add(
        "--seeds",
        type=_whole(1, most=10_000),
        default=None,
        metavar="NUMBER",
        help=f"of --sweep: how many, from --seed on, for each learning rate (default: {default.seeds})",
    )
    add(
        "--seed",
        type=_whole(0, LARGEST_SEED),
        default=default.seed,
        help="of the initial weights and of the shuffling (default: %(default)s)",
    )
    files = f"{default.output}; {SWEPT} with --sweep, {OF_BATCHES} with several batch sizes"
    add("--output", type=Path, default=None, metavar="FILE.png", help=f"the picture (default: {files})")
    add("--json", type=Path, default=default.json, metavar="FILE", help="write all settings and numbers too")
