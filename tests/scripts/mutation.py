"""Break the mathematics of each rule in turn, and see whether the tests notice.

    python tests/scripts/mutation.py                        # every mutant
    python tests/scripts/mutation.py --sample 10            # ten of them, the same ones each time
    python tests/scripts/mutation.py --resume fates.txt     # writes down what was killed, and goes on from there
    python tests/scripts/mutation.py --resume fates.txt --again   # all of them, what killed each one first
    python tests/scripts/mutation.py --recipes              # those of optimizers and dialects

A mutant is one change in a method of a rule (or in what rules compute with): + for −, × for ÷, a comparison turned
round, maximum for minimum, a number raised by one, branches swapped, a declaration flipped. In a recipe it is also a
rule dropped, two neighbours exchanged, a default off by a tenth, or a flag turned round. It is killed if a test fails,
or if it takes more than ``LIMIT`` seconds of processor time, as a loop without end does. Exits with status 1 if one
survives that is not listed, with its reason, in ``EQUIVALENT``, or if one that is listed there is killed.

Each mutant is a child of this process, which has imported JAX and pytest but not gradtx. The first child changes
nothing: all tests have to pass in it, what it compiles is there for those that follow, and each function notes in which
tests it runs. Each mutant gets the quickest tests of its function; one that is not noticed gets the others, and then
those of its rule.
"""

import argparse
import ast
import builtins
import copy
import hashlib
import importlib.machinery
import importlib.util
import itertools
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import jax
import optax.contrib  # noqa: F401 - for all children, as JAX
import pytest

ROOT = Path(__file__).parents[2]
MODULES = [*sorted((ROOT / "gradtx" / "rules").glob("[a-z]*.py")), ROOT / "gradtx" / "_core" / "numerics.py"]
RECIPES = sorted(
    path
    for folder in ("optimizers", "dialects")
    for path in (ROOT / "gradtx" / folder).rglob("*.py")
    if path.stem != "__init__"
)
LIMIT = 300  # all tests together take two minutes
# Quick ones first: the first failure ends a mutant.
KILLERS = [
    "tests/core/test_numerics.py",
    "tests/core/test_authors.py",
    "tests/engine/test_errors.py",
    "tests/engine/test_eager.py",
    "tests/rules/test_by_hand.py",
    "tests/rules/test_weights.py",
    "tests/rules/test_rules.py",
    "tests/rules/test_whole_trees.py",
    "tests/rules/test_lookahead.py",
    "tests/engine/test_frozen.py",
    "tests/rules/test_float32.py",
    "tests/engine/test_chain.py",
    "tests/engine/test_executors.py::TestPlans",
    "tests/rules/test_zoo.py",
    "tests/optimizers/test_identities.py",
    "tests/optimizers/test_surprises.py",
]

RECIPE_KILLERS = [
    "tests/optimizers/test_defaults.py",
    "tests/rules/test_every_optimizer.py",
    "tests/rules/test_zoo.py",
    "tests/dialects/test_dialects.py",
    "tests/optimizers/test_against_optax.py",
    "tests/optimizers/test_identities.py",
]

# Changes that make no difference anybody could see. Keyed by the mutant's description.
INNER = "the inner constant of a double where: any number without a singularity; its value and slope are dropped"
LAST = "the rule stands last: there is nothing behind it to read another gradient"
SIDE = "a polynomial of XXᴴ before X is that of XᴴX behind it: the shorter side is only cheaper"
BELOW = "any number below all squares"
COMPLEMENT = "mix goes by the complement of a decay, which is share, where the two differ"
AFTER_V = "the second moment that it needs was made by a rule that accumulates"
WHOLE = "an infinity norm has weight 1: it is not debiased"
ODD = "Rprop goes by signs, and turns around with the gradient"
ROW = "where an axis has one element, the factors give the squares themselves"
EQUIVALENT: dict[str, str] = {
    "numerics:safe_sqrt.defjvp: jnp.where(x == 0, 1, x) -> jnp.where(x == 0, 2, x)": INNER,
    "numerics:safe_divide.defjvp: jnp.where(y == 0, 1, y) -> jnp.where(y == 0, 2, y)": INNER,
    "numerics:safe_divide: abs(y) > 1 -> abs(y) > 2": "between 1 and 2 a quotient by y and by y/4 has the same digits",
    "numerics:widest: 256 -> 257": "how many a cache has room for",
    "numerics:has_few_bits: jnp.dtype(dtype).itemsize < 2 -> jnp.dtype(dtype).itemsize < 3": (
        "16 bits are widened to float32 beside anything, and a sum of two of them is rounded alike from there"
    ),
    "numerics:abs_sq: -1 -> -2": BELOW,
    "numerics:_in_range: -1 -> -2": BELOW,
    "numerics:_in_range: scale_of(stacked(norms), jnp.asarray(least)) != 1 -> scale_of(stacked(norms), "
    "jnp.asarray(least)) != 2": "sums that are in range are taken again, of numbers times 1",
    "numerics:scale_of: norm < 1 -> norm < 2": "norms out of range are far from 1 and from 2",
    "numerics:scale_of: info.maxexp // 2 - 1 -> info.maxexp // 2 + 1": "four times as large is in range, too",
    "factored:scale_by_factored_rms.apply_tree: 1 - share -> 1 + share": COMPLEMENT,
    "factored:scale_by_factored_rms.apply_tree: 1 - share -> 2 - share": COMPLEMENT,
    "averaging:average_iterates.accumulates: True -> False": LAST,
    "averaging:lookahead.accumulates: True -> False": LAST,
    "averaging:average_iterates.tick: jnp.where(after['total'] == 0, 1, after['total']) -> "
    "jnp.where(after['total'] == 0, 2, after['total'])": "0 is divided by it",
    "lookaheads:nag_lookahead.accumulates: False -> True": LAST,
    "lookaheads:two_point_lookahead.accumulates: False -> True": LAST,
    "lookaheads:normalized_lookahead.accumulates: False -> True": LAST,
    "quotient:rectified_precondition.tick: jnp.where(divides, share, 1) -> jnp.where(divides, share, 2)": (
        "a gain that nothing is multiplied by"
    ),
    "distances:scale_by_distance.init_tree: 0 * one -> 0 / one": "one is greater than 0",
    "kronecker:scale_by_eigenbasis_rms.scalars: {'weight': 0.0} -> {'weight': 1.0}": "the first step makes it 0",
    "kronecker:scale_by_eigenbasis_rms._of_leaf: jnp.where(count % self.every == 0, 1, 2) -> jnp.where(count % "
    "self.every == 0, 1, 3)": "a branch behind the last one is the last one",
    "kronecker:_eigenvectors: -1 -> 1": "what is divided in a basis and turned back does not know its order",
    "kronecker:_inverse_power: jnp.where(infinite, 1, x) -> jnp.where(infinite, 2, x)": INNER,
    "values:add_noise._noisy: u + deviation * jax.random.normal(jax.random.fold_in(key, leaf), u.shape, u.dtype) -> "
    "u - deviation * jax.random.normal(jax.random.fold_in(key, leaf), u.shape, u.dtype)": (
        "noise and its negative have the same distribution"
    ),
    "distances:scale_by_distance_bound.accumulates: True -> False": AFTER_V,
    "distances:scale_by_distance_bound.apply_tree: {0: 0} -> {1: 0}": "in which memory the sums are, not what they are",
    "distances:scale_by_distance_bound.apply_tree: {0: 0, 3: 1} -> {1: 0, 3: 1}": "the same",
    "distances:in_units_of_distance.apply_tree: {0: 0} -> {1: 0}": "the same",
    "covers:scale_by_sm3._maxima: None if v.size else 0 -> None if v.size else 1": "no element has that maximum",
    "matrices:orthogonalize._orthogonal: -2 -> 2": SIDE,
    "matrices:orthogonalize._orthogonal: -2 -> -3": SIDE,
    "matrices:orthogonalize._orthogonal: -1 -> 1": SIDE,
    "matrices:orthogonalize._orthogonal: -1 -> -2": SIDE,
    "second_moments:rms.tick: jnp.where(starts, 0, decay) -> jnp.where(starts, 1, decay)": "0 is multiplied by it",
    "second_moments:max_v.accumulates: False -> True": AFTER_V,
    "second_moments:lag_v.accumulates: False -> True": AFTER_V,
    "scaling:add_cautious_decay.apply: jnp.sign(u) * jnp.sign(param) -> jnp.sign(u) / jnp.sign(param)": (
        "where the parameter is 0, so is its decay"
    ),
    "averaging:average_iterates.scalars: {'pull': 0.0} -> {'pull': 1.0}": "the first offset is 0",
    "quotient:debias.tick: jnp.where(w == 0, 1, w) -> jnp.where(w == 0, 2, w)": "an average without weight is 0",
    "quotient:precondition._root: self.power == 1 -> self.power == 2": "x to the power of 1 is x",
    # Recipes
    "optimizers.adaptive:adamax: chain(momentum(b1), infinity(b2, 0.0, power=1), debias()) -> chain(momentum(b1), "
    "debias(), infinity(b2, 0.0, power=1))": WHOLE,
    "dialects.keras:adamax: chain(rules.momentum(beta_1), rules.infinity(beta_2, 0.0, power=1), rules.debias()) -> "
    "chain(rules.momentum(beta_1), rules.debias(), rules.infinity(beta_2, 0.0, power=1))": WHOLE,
    "dialects.optax.adaptive:adamaxw: chain(rules.momentum(b1), rules.infinity(b2, eps, power=1), rules.debias()) -> "
    "chain(rules.momentum(b1), rules.debias(), rules.infinity(b2, eps, power=1))": WHOLE,
    "dialects.torch:adamax: chain(rules.momentum(b1), rules.infinity(b2, eps, power=1), rules.debias()) -> "
    "chain(rules.momentum(b1), rules.debias(), rules.infinity(b2, eps, power=1))": WHOLE,
    "optimizers.layerwise:cautious_adamw: chain(momentum(b1), rms(b2), debias(), precondition(eps), cautious()) -> "
    "chain(momentum(b1), rms(b2), debias(), cautious(), precondition(eps))": "a divisor above 0 changes no sign",
    "optimizers.distances:dog: chain(*decoupled(weight_decay, decay_mask), norm, distance, "
    "scale_by_learning_rate(learning_rate)) -> chain(*decoupled(weight_decay, decay_mask), norm, "
    "scale_by_learning_rate(learning_rate), distance)": "both are factors",
    "dialects.optax.layerwise:adafactor: chain(direction, rate, *size, *average, *decay) -> chain(direction, *size, "
    "rate, *average, *decay)": "both are factors",
    "optimizers.signs:rprop: chain(resilient_step(learning_rate, shrink, grow, low, high), scale(-1.0)) -> "
    "chain(scale(-1.0), resilient_step(learning_rate, shrink, grow, low, high))": ODD,
    "dialects.torch:rprop: chain(*front, rules.resilient_step(_rate('rprop', lr), *etas, *step_sizes), "
    "rules.scale(-1.0)) -> chain(*front, rules.scale(-1.0), rules.resilient_step(_rate('rprop', lr), *etas, "
    "*step_sizes))": ODD,
    "dialects.keras:adafactor: rules.scale_by_factored_rms(-beta_2_decay, epsilon_1, 1, axes='last') -> "
    "rules.scale_by_factored_rms(-beta_2_decay, epsilon_1, 2, axes='last')": ROW,
    "dialects.torch:adafactor: 1 -> 2": ROW,
    "dialects.optax.adaptive:adabelief: chain(rules.nesterov(b1), rules.belief_rms(b1, b2, added, lagged=True), "
    "rules.debias()) -> chain(rules.belief_rms(b1, b2, added, lagged=True), rules.nesterov(b1), rules.debias())": (
        "each reads the gradient alone"
    ),
    "dialects.optax.adaptive:acprop: chain(rules.belief_rms(b1, b2, eps_root, lagged=True), rules.debias(), "
    "rules.lag_v('one')) -> chain(rules.belief_rms(b1, b2, eps_root, lagged=True), rules.lag_v('one'), "
    "rules.debias())": "the weight is one step late with v",
    "dialects.optax.adaptive:yogi: chain(rules.momentum(b1), start_averages(1e-06), rules.yogi_rms(b2, 1e-06), "
    "rules.debias()) -> chain(rules.momentum(b1), rules.yogi_rms(b2, 1e-06), start_averages(1e-06), rules.debias())": (
        "one moves u, the other makes v"
    ),
    "dialects.optax.adaptive:adopt: [rules.trace(b1, True, state_dtype=mu_dtype), rules.scale(derived(lambda b: "
    "1 - b, b1))] -> [rules.scale(derived(lambda b: 1 - b, b1)), rules.trace(b1, True, state_dtype=mu_dtype)]": (
        "both are linear, and optax's β is a number"
    ),
    "dialects.optax.classics:rmsprop: start_averages(0.0, initial_scale) -> start_averages(1.0, initial_scale)": (
        "the direction is no average: its weight is 1"
    ),
    "dialects.optax.signs:one_late.apply: jnp.sign(signal.gradient) * jnp.sign(slots.previous) -> "
    "jnp.sign(signal.gradient) / jnp.sign(slots.previous)": "where the sign before is 0, so is the direction",
}

SWAPS: dict[type[ast.AST], type[Any]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.Gt: ast.LtE, ast.Lt: ast.GtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
FUNCTIONS = {"maximum": "minimum", "minimum": "maximum", "square": "abs", "isfinite": "isnan"}
DECLARATIONS = {"accumulates", "second_moment", "last", "needs_params", "real_only", "scope", "debiases", "normalizes"}


# Neighbours in a recipe that are the same either way round: a first and a second moment of the gradient, each in its
# own lane, and a factor of the direction beside what divides or multiplies it.
MOMENTS = {"momentum", "nesterov", "first_moment"}, {"rms", "infinity", "yogi_rms", "monotone_rms"}
FACTORS = {"scale", "scale_by_learning_rate", "scale_by_inverse_time", "_step"}
LINEAR = FACTORS | {"precondition"}


class Mutant(NamedTuple):
    """A changed module, and the function or declaration in it that is changed."""

    path: Path
    function: str
    description: str
    changed: str
    source: str

    @property
    def digest(self) -> str:
        """The same for the same change of the same function or declaration."""
        return hashlib.sha256(f"{self.function}\n{self.changed}".encode()).hexdigest()[:16]

    @property
    def likenesses(self) -> tuple[str, str, str]:
        """What it has in common with others that the same test kills: all, the function, the function's name."""
        return self.description, self.function, self.function.rpartition(".")[2]


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
        if node.func.attr == "where" and len(node.args) == 3:
            yield ast.Call(node.func, [node.args[0], node.args[2], node.args[1]], [])


def recipe_changes(node: ast.AST) -> Iterator[ast.AST]:
    """A list of rules without one of them, or with two neighbours exchanged; a flag turned round."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    if isinstance(node, ast.Call) and called(node) == "chain":
        field = "args"
    elif isinstance(node, ast.List | ast.Tuple) and all(isinstance(x, ast.Call | ast.Starred) for x in node.elts):
        field = "elts"
    else:
        return
    rules = getattr(node, field)
    orders = [rules[:i] + rules[i + 1 :] for i in range(len(rules))]
    for i in range(1, len(rules)):
        if not commute(called(rules[i - 1]), called(rules[i])):
            orders.append([*rules[: i - 1], rules[i], rules[i - 1], *rules[i + 1 :]])
    for order in orders:
        changed = copy.copy(node)
        setattr(changed, field, order)
        yield changed


def called(node: ast.AST) -> str:
    """The name of the function that a node calls."""
    function = node.func if isinstance(node, ast.Call) else node
    return getattr(function, "attr", getattr(function, "id", ""))


def commute(one: str, other: str) -> bool:
    """True for rules of which either may stand first."""
    first, second = MOMENTS
    apart = (one in first and other in second) or (one in second and other in first)
    return apart or (one in LINEAR and other in LINEAR and (one in FACTORS or other in FACTORS))


def default_changes(node: ast.AST) -> Iterator[ast.AST]:
    """A number that is off by a tenth; of all else, the changes that it has elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield ast.Constant(0.9 * node.value or 0.1)
    else:
        yield from changes(node)
        yield from recipe_changes(node)


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


def part(path: Path) -> str:
    """The name of a module: its own, and of a recipe's with that of its folder, since rules have some of these, too."""
    return ".".join(path.relative_to(ROOT / "gradtx").with_suffix("").parts) if path in RECIPES else path.stem


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of one module; the second with the same description has a number."""
    times: Counter[str] = Counter()
    for mutant in _mutants(path, ast.parse(path.read_text())):
        times[mutant.description] += 1
        number = f" ({times[mutant.description]})" * (times[mutant.description] > 1)
        yield mutant._replace(description=mutant.description + number)


def _mutants(path: Path, tree: ast.Module) -> Iterator[Mutant]:
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
            yield _replaced(path, tree, name, target, target.value, ast.Constant(flipped[value]))
            continue
        arguments = target.args  # pyright: ignore[reportAttributeAccessIssue] - a function's
        defaults = {
            x for default in (*arguments.defaults, *arguments.kw_defaults) if default for x in ast.walk(default)
        }
        for node in _computing(target):
            made = changes(node)
            if path in RECIPES:
                made = default_changes(node) if node in defaults else itertools.chain(made, recipe_changes(node))
            for new in made:
                yield _replaced(path, tree, name, target, node, new)


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function but those of its annotations."""
    yield node
    for name, field in ast.iter_fields(node):
        for inner in field if isinstance(field, list) else [field]:
            if isinstance(inner, ast.AST) and name not in ("annotation", "returns"):
                yield from _computing(inner)


def _replaced(path: Path, tree: ast.Module, name: str, target: ast.AST, old: ast.AST, new: ast.AST) -> Mutant:
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
    changed = nodes[walk.index(target)]
    if isinstance(changed, ast.FunctionDef):
        changed.body = changed.body[bool(ast.get_docstring(changed)) :]
    function = f"{part(path)}:{name}"
    return Mutant(path, function, f"{function}: {before} -> {after}", ast.unparse(changed), source)


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with another source than that of its file."""

    def __init__(self, name: str, path: str, source: str):
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        """The changed module, compiled."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder:
    """Finds the modules whose sources are changed."""

    def __init__(self, sources: dict[Path, str]):
        names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources}
        self.loaders = {name: Loader(name, str(path), sources[path]) for name, path in names.items()}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As the import system asks."""
        loader = self.loaders.get(name)
        return loader and importlib.util.spec_from_file_location(name, loader.path, loader=loader)


class Notes:
    """A plugin of pytest that notes the seconds of each test, and the functions that run in it."""

    def __init__(self):
        self.tests: Tests = {}
        builtins.__dict__["_note"] = lambda name: None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Around each test."""
        functions: set[str] = set()
        builtins.__dict__["_note"] = functions.add
        begin = time.perf_counter()
        result = yield
        self.tests[item.nodeid] = time.perf_counter() - begin, sorted(functions)
        return result


Tests = dict[str, tuple[float, list[str]]]
"""The seconds that each test takes, and the functions that run in it, by the test's id."""


def noting(path: Path) -> str:
    """The source of a module whose functions note that they run."""
    tree = ast.parse(path.read_text())
    for name, target in targets(tree):
        if isinstance(target, ast.FunctionDef):
            target.body[bool(ast.get_docstring(target)) : 0] = ast.parse(f"_note({f'{part(path)}:{name}'!r})").body
    return ast.unparse(ast.fix_missing_locations(tree))


def child(sources: dict[Path, str], run: Callable[[], int], output: Path) -> int:
    """The id of a process that runs something with changed modules, and exits with the status that it returns."""
    process = os.fork()
    if process:
        return process
    status = 3
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 60))
        signal.alarm(20 * LIMIT)  # for one that waits without end
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.meta_path.insert(0, Finder(sources))  # pyright: ignore[reportArgumentType] - has all that is asked for
        status = run()
        sys.stdout.flush()
    finally:
        os._exit(status)


def tested(tests: Sequence[str], *plugins: object) -> int:
    """The status of pytest: 0 if all pass, 1 if one fails, 2 if a file cannot be imported, 4 if a test is not there."""
    return int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", "--tb=line", *tests], plugins))


def unchanged(modules: Sequence[Path], files: Sequence[str], folder: Path) -> Tests:
    """All tests, after they have passed."""

    def run() -> int:
        status = tested(files, notes := Notes())
        (folder / "notes").write_text(json.dumps(notes.tests))
        return status

    process = child({path: noting(path) for path in modules}, run, folder / "output")
    if os.waitpid(process, 0)[1]:
        print((folder / "output").read_text())
        sys.exit("The tests fail without any change, so a failure says nothing about a mutant.")
    return json.loads((folder / "notes").read_text())


def nearest(mutant: Mutant, tests: Tests) -> list[str]:
    """The tests in which the changed function runs, then the others of its class: of each those that name it first."""
    owner = (mutant.function.rpartition(".")[0] or mutant.function) + "."
    name = owner.partition(":")[2].partition(".")[0]

    def place(test: str) -> tuple[bool, bool, float]:
        seconds, functions = tests[test]
        return mutant.function not in functions, name not in test, seconds

    def runs(test: str) -> bool:  # a rule that is refused runs nothing
        return f"[{name}" in test or any(f"{function}.".startswith(owner) for function in tests[test][1])

    return sorted(filter(runs, tests), key=place)


def started(mutant: Mutant, tests: Tests, killers: dict[str, str], output: Path) -> int:
    """The id of a process that exits with 0 if no test in which the changed function or its class runs notices it."""
    near = nearest(mutant, tests)
    if mutant.path in RECIPES or not near:  # tables of tests hold chains that were made before a test ran
        near += sorted(tests.keys() - {*near}, key=lambda test: tests[test][0])
    likely = {killers[key]: None for key in mutant.likenesses if killers.get(key) in near}

    def run() -> int:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # what is compiled here is for this one
        for chosen in ([*likely], near[:8], near[8::8], near[8:]):
            status = tested(chosen) if chosen else 0
            if status == 4:  # a rule prints itself otherwise, so that its cases have other names
                status = tested(sorted({test.split("[")[0] for test in chosen}))
            if status:
                return status
        return 0

    return child({mutant.path: mutant.source}, run, output)


def noticed(
    made: Sequence[Mutant], tests: Tests, killers: dict[str, str], jobs: int, folder: Path
) -> Iterator[tuple[Mutant, str]]:
    """Each mutant, as it is done, with the failure of a test; or with nothing. What kills one may kill the next."""
    waiting, running = iter(made), {}
    while True:
        while len(running) < jobs and (mutant := next(waiting, None)):
            output = folder / mutant.digest
            running[started(mutant, tests, killers, output)] = mutant, output
        if not running:
            return
        process, status = os.wait()
        mutant, output = running.pop(process)
        said, code = output.read_text(), os.waitstatus_to_exitcode(status)
        failure = ""
        if code in (-signal.SIGXCPU, -signal.SIGALRM):
            failure = "out of time"
        elif code in (1, 2):
            lines = said.splitlines()
            failure = next((x for x in lines if x.startswith(("FAILED", "ERROR"))), f"status {code}")
        elif code:
            raise RuntimeError(f"{mutant.description}: status {code}\n{said}")
        killers |= dict.fromkeys(mutant.likenesses, killer(failure)) if failure else {}
        yield mutant, failure


def killer(failure: str) -> str:
    """The test that a line of pytest's summary is about."""
    return failure.removeprefix("FAILED ").split(" - ")[0]


def main() -> int:
    """Make mutants, run the tests on each, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="try only so many, drawn with a fixed seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at once (default: one per core)")
    parser.add_argument("--only", default="", help="only mutants whose description holds this text")
    parser.add_argument("--resume", type=Path, help="a file of what was killed, which is not tried again, and by what")
    parser.add_argument("--again", action="store_true", help="try those as well, each with its killer first")
    parser.add_argument("--recipes", action="store_true", help="mutants of optimizers and dialects instead of rules")
    arguments = parser.parse_args()
    modules, files = (RECIPES, RECIPE_KILLERS) if arguments.recipes else (MODULES, KILLERS)
    made = [mutant for path in modules for mutant in mutants(path)]
    listed = {key for key in EQUIVALENT if key.partition(":")[0] in map(part, modules)}
    if stale := listed - {mutant.description for mutant in made}:
        sys.exit(f"There is no such mutant (any more), and EQUIVALENT lists it: {', '.join(sorted(stale))}")
    made = [mutant for mutant in made if arguments.only in mutant.description]
    if arguments.sample is not None:
        made = [mutant for mutant in made if mutant.description not in EQUIVALENT]
        made = random.Random(0).sample(made, min(arguments.sample, len(made)))
    verdicts: Counter[str] = Counter()
    killers: dict[str, str] = {}
    if arguments.resume and arguments.resume.exists():
        fates = [line.split("\t") for line in arguments.resume.read_text().splitlines()]
        killers = {
            key: killer(failure)
            for _, description, failure in fates
            for key in (description, description.split(": ")[0])
        }
        if not arguments.again:
            known = {digest for digest, _, _ in fates}
            verdicts["killed before"] = sum(mutant.digest in known for mutant in made)
            made = [mutant for mutant in made if mutant.digest not in known]
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ |= {"CI": "true", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        tested(["--collect-only", "-qq", "tests/conftest.py"])  # imports pytest's plugins, for all children
        tests = unchanged(modules, files, Path(folder))
        for i, (mutant, failure) in enumerate(noticed(made, tests, killers, arguments.jobs, Path(folder)), 1):
            listed = mutant.description in EQUIVALENT
            verdict = ("NOT EQUIVALENT" if listed else "killed") if failure else "equivalent" if listed else "SURVIVED"
            print(f"{i:4d}/{len(made)} {verdict:14s} {mutant.description}", flush=True)
            verdicts[verdict] += 1
            if arguments.resume and failure:
                with arguments.resume.open("a") as file:
                    file.write(f"{mutant.digest}\t{mutant.description}\t{failure}\n")
    counts = ", ".join(f"{times} {verdict}" for verdict, times in sorted(verdicts.items()))
    print(f"{verdicts.total()} mutants: {counts}")
    return bool(verdicts["SURVIVED"] or verdicts["NOT EQUIVALENT"])


if __name__ == "__main__":
    sys.exit(main())
