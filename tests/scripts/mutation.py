"""Break the mathematics of each rule in turn, and see whether the tests notice.

    python tests/scripts/mutation.py                  # every mutant: a quarter of an hour on one core
    python tests/scripts/mutation.py --sample 10      # ten of them, the same ones each time

A mutant is one change in a method of a rule (or in what rules compute with): + for −, × for ÷, a comparison turned
round, maximum for minimum, a number raised by one, branches swapped, a declaration flipped. It is killed if a test
fails; that all of them pass without a change is seen first. Exits with status 1 if one survives that is not listed,
with its reason, in ``EQUIVALENT``, or if one that is listed there is killed.
"""

import argparse
import ast
import concurrent.futures
import copy
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
MODULES = [*sorted((ROOT / "gradtx" / "rules").glob("[a-z]*.py")), ROOT / "gradtx" / "_core" / "numerics.py"]
# Quick ones first: the first failure ends a mutant.
KILLERS = [
    "tests/engine/test_errors.py",
    "tests/rules/test_by_hand.py",
    "tests/rules/test_weights.py",
    "tests/rules/test_rules.py",
    "tests/rules/test_float32.py",
    "tests/engine/test_chain.py",
    "tests/rules/test_zoo.py",
    "tests/optimizers/test_identities.py",
    "tests/optimizers/test_surprises.py",
]

# Changes that make no difference anybody could see. Keyed by the mutant's description.
INNER = "the inner constant of a double where: any number without a singularity; its value and slope are dropped"
LAST = "the rule stands last: there is nothing behind it to read another gradient"
AFTER_V = "the second moment that it needs was made by a rule that accumulates"
EQUIVALENT: dict[str, str] = {
    "numerics:safe_sqrt.defjvp: jnp.where(x == 0, 1, x) -> jnp.where(x == 0, 2, x)": INNER,
    "numerics:safe_divide.defjvp: jnp.where(y == 0, 1, y) -> jnp.where(y == 0, 2, y)": INNER,
    "numerics:_scale_of: norm < 1 -> norm < 2": "norms out of range are far from 1 and from 2",
    "averaging:average_iterates.accumulates: True -> False": LAST,
    "averaging:lookahead.accumulates: True -> False": LAST,
    "averaging:average_iterates.tick: jnp.where(total == 0, 1, total) -> jnp.where(total == 0, 2, total)": (
        "0 is divided by it"
    ),
    "lookaheads:nag_lookahead.accumulates: False -> True": LAST,
    "lookaheads:two_point_lookahead.accumulates: False -> True": LAST,
    "quotient:rectified_precondition.tick: jnp.where(divides, share, 1) -> jnp.where(divides, share, 2)": (
        "a gain that nothing is multiplied by"
    ),
    "second_moments:max_v.accumulates: False -> True": AFTER_V,
    "second_moments:lag_v.accumulates: False -> True": AFTER_V,
    "scaling:add_cautious_decay.apply: jnp.sign(u) * jnp.sign(param) -> jnp.sign(u) / jnp.sign(param)": (
        "where the parameter is 0, so is its decay"
    ),
}

SWAPS: dict[type[ast.AST], type[Any]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.Gt: ast.LtE, ast.Lt: ast.GtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
FUNCTIONS = {"maximum": "minimum", "minimum": "maximum", "square": "abs", "isfinite": "isnan"}
DECLARATIONS = {"accumulates", "second_moment", "last", "needs_params", "real_only", "scope", "debiases", "normalizes"}


class Mutant(NamedTuple):
    """A changed module."""

    path: Path
    description: str
    source: str


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that might stand in the place of this one."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])]()], node.comparators)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
        yield node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield ast.Constant(node.value + 1)
    if isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in FUNCTIONS:
            yield ast.Call(
                ast.Attribute(node.func.value, FUNCTIONS[node.func.attr], ast.Load()), node.args, node.keywords
            )
        if node.func.attr == "where":
            yield ast.Call(node.func, [node.args[0], node.args[2], node.args[1]], [])


def targets(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Each function and declaration that is mathematics, with its name."""
    for top in tree.body:
        if isinstance(top, ast.FunctionDef):  # a derivative has no name but its decorator's
            yield ast.unparse(top.decorator_list[0]) if top.name == "_" else top.name, top
        elif isinstance(top, ast.ClassDef):
            for item in top.body:
                if isinstance(item, ast.FunctionDef) and item.name != "equation":
                    yield f"{top.name}.{item.name}", item
                elif isinstance(item, ast.Assign) and item.targets[0].id in DECLARATIONS:  # pyright: ignore[reportAttributeAccessIssue] - a name
                    yield f"{top.name}.{item.targets[0].id}", item  # pyright: ignore[reportAttributeAccessIssue] - a name


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of one module."""
    tree = ast.parse(path.read_text())
    for name, target in targets(tree):
        if isinstance(target, ast.Assign):
            flipped = {
                "uses": None,
                "edits": None,
                "makes": None,
                "leaf": "tree",
                "tree": "leaf",
                True: False,
                False: True,
            }
            value = ast.literal_eval(target.value)
            yield _replaced(path, tree, name, target.value, ast.Constant(flipped[value]))
            continue
        for node in ast.walk(target):
            for new in changes(node):
                yield _replaced(path, tree, name, node, new)


def _replaced(path: Path, tree: ast.Module, name: str, old: ast.AST, new: ast.AST) -> Mutant:
    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is old else self.generic_visit(node)

    # The nodes of the copy are found by the place they have in a walk, which a copy keeps.
    walk = list(ast.walk(tree))
    index, shown = walk.index(old), walk.index(old)
    if isinstance(old, ast.Constant):  # alone, one number looks like another: shown in the expression around it
        around = next(node for node in walk if old in ast.iter_child_nodes(node))
        shown = walk.index(around) if isinstance(around, ast.expr) else index
    copied = copy.deepcopy(tree)
    nodes = list(ast.walk(copied))
    old, before = nodes[index], ast.unparse(nodes[shown])
    source = ast.unparse(ast.fix_missing_locations(Replace().visit(copied)))
    after = ast.unparse(new if shown == index else nodes[shown])
    return Mutant(path, f"{path.stem}:{name}: {before} -> {after}", source)


def _limit_processor_time() -> None:
    """A loop without end is noticed too: the tests take a minute."""
    resource.setrlimit(resource.RLIMIT_CPU, (200, 300))


def survives(mutant: Mutant, cache: str) -> bool:
    """Whether all tests pass with the changed module in place; what did not change is compiled once for all mutants."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("gradtx", "tests"):
            shutil.copytree(ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        (Path(folder) / mutant.path.relative_to(ROOT)).write_text(mutant.source)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *KILLERS]
        environment = {
            **os.environ,
            "PYTHONPATH": folder,
            "CI": "true",
            "PYTHONDONTWRITEBYTECODE": "1",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, preexec_fn=_limit_processor_time
        )
    if done.returncode not in (0, 1, 2, -signal.SIGXCPU):
        raise RuntimeError(done.stdout + done.stderr)
    return done.returncode == 0


def main() -> int:
    """Make mutants, run the tests on each, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="try only so many, drawn with a fixed seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at once (default: one per core)")
    parser.add_argument("--only", default="", help="only mutants whose description holds this text")
    arguments = parser.parse_args()
    made = [mutant for path in MODULES for mutant in mutants(path) if arguments.only in mutant.description]
    if arguments.sample is not None:
        made = [mutant for mutant in made if mutant.description not in EQUIVALENT]
        made = random.Random(0).sample(made, min(arguments.sample, len(made)))
    verdicts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as cache, concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        # All of them begin by seeing the tests pass; a sample is for when one has just seen that.
        unchanged = [] if arguments.sample else [Mutant(MODULES[0], "unchanged", MODULES[0].read_text())]
        lived = pool.map(survives, [*unchanged, *made], itertools.repeat(cache))
        if unchanged and not next(lived):
            pool.shutdown(cancel_futures=True)
            sys.exit("The tests fail without any change, so a failure says nothing about a mutant.")
        for i, (mutant, lives) in enumerate(zip(made, lived, strict=True), 1):
            listed = mutant.description in EQUIVALENT
            verdict = ("equivalent" if listed else "SURVIVED") if lives else "NOT EQUIVALENT" if listed else "killed"
            print(f"{i:4d}/{len(made)} {verdict:14s} {mutant.description}", flush=True)
            verdicts[verdict] += 1
    print(f"{len(made)} mutants: {', '.join(f'{times} {verdict}' for verdict, times in sorted(verdicts.items()))}")
    return len(made) > verdicts["killed"] + verdicts["equivalent"]


if __name__ == "__main__":
    sys.exit(main())
