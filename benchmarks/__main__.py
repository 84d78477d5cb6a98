"""``python -m benchmarks``: the command line."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.contestants import Same, executors
from benchmarks.floor import why_missing
from benchmarks.picture import draw, draw_costs
from benchmarks.record import Result, surroundings, to_json
from benchmarks.report import bar, print_surroundings, tables
from benchmarks.timing import interleave
from benchmarks.workloads import WORKLOADS, Setting, Workload, sweeps
from gradtx.workbench.files import check_writable, write_whole

COSTS = ("guards", "guards-large", "guards1000")
"""The workloads of wrappers."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks.

    Args:
        argv: the arguments, ``sys.argv[1:]`` if None.

    Returns:
        The exit status: 0; 1 if contestants disagree; 2 for a mistake in the arguments.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.list:
        width = 1 + max(map(len, WORKLOADS))
        for name, workload in WORKLOADS.items():
            print(f"{name:{width}}{workload.about}{' (slow)' * workload.slow}")
        return 0
    try:
        setting = Setting(executors(asked.executor), asked.quick)
        for path in (asked.json, asked.picture, asked.costs):
            if path is not None:
                check_writable(path)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
    names = asked.workload or [name for name, workload in WORKLOADS.items() if not workload.slow]
    axes = sweeps(setting) if asked.picture else {}
    rounds = asked.repeats or (3 if asked.quick else 15)

    console, where = Console(), surroundings(arguments)
    print_surroundings(where, console)
    if why_missing() is not None:
        console.print(f"The floor is left out: {why_missing()}.\n", highlight=False)
    results: dict[str, Result] = {}
    swept: dict[str, dict[int, Result]] = {name: {} for name in axes}
    status = 0
    with bar() as progress:
        for name in names:
            try:
                results[name] = _run(name, WORKLOADS[name], setting, rounds, progress)
            except Same as disagreement:  # the others are right all the same
                print(f"benchmarks: {name}: {disagreement}", file=sys.stderr)
                status = 1
                continue
            for table in tables(name, results[name], console.width):
                console.print(table)
                console.print()
        for name, sweep in axes.items():
            for at, workload in sweep.points.items():
                swept[name][at] = _run(workload.about, workload, setting, rounds, progress)
    if asked.json is not None:
        write_whole(asked.json, to_json(where, results, swept).encode())
    machine = where["machine"]
    caption = f"{machine['processor']}, {machine['cores']} cores; {where['date'][:10]}; {where['command']}"
    if asked.picture is not None:
        write_whole(asked.picture, draw(axes, swept, caption))
    if asked.costs is not None and (wrappers := {name: x for name, x in results.items() if name in COSTS}):
        write_whole(asked.costs, draw_costs(wrappers, caption))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="gradtx beside optax, torch and a loop in C, taking turns."
    )
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, metavar="NAME", help="these (default: all but slow)"
    )
    parser.add_argument("--list", action="store_true", help="list the workloads")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--repeats", type=_positive, metavar="N", help="measurements of each (default 15; quick 3)")
    parser.add_argument("--executor", nargs="+", default=[], metavar="NAME", help="gradtx's (default: each it has)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to a file")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="sweep sizes, and draw them")
    parser.add_argument("--costs", type=Path, metavar="FILE", help=f"draw what wrappers cost, of {' and '.join(COSTS)}")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _run(name: str, workload: Workload, setting: Setting, rounds: int, progress: Progress) -> Result:
    """Line up, take turns, and let go of the memory."""
    rounds = min(rounds, workload.rounds)
    task = progress.add_task(f"{name}: lining up", total=rounds)
    contestants = workload.line_up(setting)
    progress.update(task, total=rounds * len(contestants))
    samples = interleave(
        contestants, rounds, lambda done: progress.update(task, advance=1, description=f"{name}: {done}")
    )
    details = {contestant: dict(own.details) for contestant, own in contestants.items()}
    progress.remove_task(task)
    del contestants
    gc.collect()
    return Result(workload.about, workload.unit, samples, details)


if __name__ == "__main__":
    sys.exit(main())
