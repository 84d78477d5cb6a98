"""Looking at a chain: its rules, equations, hyperparameters, and what its state costs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradtx._chain import chain, seal
from gradtx._checks import named_leaves
from gradtx._partition import partition
from gradtx._rule import Rule, Transformation
from gradtx._select import Leaves
from gradtx._state import ChainState
from gradtx._tables import aligned, line, markdown
from gradtx._wrapper import Wrapper

_NUMBERS = 4  # the column from which cells are numbers


class Row(NamedTuple):
    """One rule of a described chain. Bytes are those of its slots, over all leaves."""

    rule: str
    equation: str
    hyperparameters: str
    slots: str
    bytes_per_parameter: float
    bytes: int


class Leaf(NamedTuple):
    """One leaf of the parameters, and the rules that act on it, in order."""

    path: str
    shape: tuple[int, ...]
    rules: tuple[str, ...]


class Description(NamedTuple):
    """What ``describe`` found; prints as a table, and is one in a notebook.

    Attributes:
        rows: one for each rule, in order.
        parameters: how many numbers the parameters are.
        bytes: what the state's slots take in all; hyperparameters and the count are not in it.
        leaves: one for each leaf; printed if not all leaves get the same rules (see ``where`` and ``partition``).
        passes: how often a step goes over memory, and with how many bytes, one line for each pass (see ``executor``).
    """

    rows: tuple[Row, ...]
    parameters: int
    bytes: int
    leaves: tuple[Leaf, ...] = ()
    passes: str = ""

    def _cells(self) -> list[list[str]]:
        head = ["rule", "equation", "hyperparameters", "slots", "bytes/param", "bytes"]
        body = [[*row[:4], f"{row.bytes_per_parameter:.2f}", f"{row.bytes:,}"] for row in self.rows]
        per_parameter = self.bytes / self.parameters if self.parameters else 0.0
        total = ["in all", "", "", f"{self.parameters:,} parameters", f"{per_parameter:.2f}", f"{self.bytes:,}"]
        return [head, *body, total]

    def _leaf_cells(self) -> list[list[str]]:
        """Leaves by rules; nothing if they all get the same."""
        if len({leaf.rules for leaf in self.leaves}) < 2:
            return []
        body = [[leaf.path, str(leaf.shape), ", ".join(leaf.rules) or "none"] for leaf in self.leaves]
        return [["leaf", "shape", "rules"], *body]

    def __str__(self) -> str:
        *rules, total = aligned(self._cells(), _NUMBERS)
        lines = [rules[0], line(rules), *rules[1:], line(rules), total]
        leaves = aligned(self._leaf_cells(), _NUMBERS)
        leaf_lines = ["", leaves[0], line(leaves), *leaves[1:]] if leaves else []
        return "\n".join([*lines, *leaf_lines, "", f"a step: {self.passes}"])

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        tables = [markdown(cells, _NUMBERS) for cells in (self._cells(), self._leaf_cells()) if cells]
        return "\n\n".join([*tables, f"a step: {self.passes}"])


def describe(tx: Transformation, params: Any) -> Description:
    """A table of a chain's rules: equation, hyperparameters, slots, and bytes of state for these parameters.

    Where ``where`` or ``partition`` give leaves different rules, a second table says which leaf gets which. The last
    lines say in how many passes over memory ``step`` runs it: rules that act element by element fuse into one; a norm
    has to be measured before.

    Args:
        tx: a gradtx chain or rule, or a ``partition``, whose parts' rules are shown as ``part.rule``.
        params: the parameters, or ``jax.ShapeDtypeStruct``s like them; nothing is computed.

    Raises:
        TypeError: if ``tx`` is not made of gradtx rules (``seal`` it to see what its state costs).
        ValueError, TypeError: as ``init``, for chains and parameters that do not fit.

    >>> import gradtx, jax.numpy as jnp
    >>> print(gradtx.describe(gradtx.chain(gradtx.trace(0.9), gradtx.scale(-0.1)), {"w": jnp.zeros((10, 10))}))
    rule    equation           hyperparameters            slots           bytes/param  bytes
    ────────────────────────────────────────────────────────────────────────────────────────
    trace   b ← μb + u, u ← b  decay=0.9, nesterov=False  b, weight              4.04    404
    scale   u ← a u            factor=-0.1                                       0.00      0
    ────────────────────────────────────────────────────────────────────────────────────────
    in all                                                100 parameters         4.04    404
    <BLANKLINE>
    a step: one pass: trace, scale (20 bytes/parameter)
    """
    if not isinstance(tx, Transformation):
        raise TypeError(f"describe: expected a gradtx chain or rule, found {type(tx).__name__}; use chain() or seal()")
    tx = chain(tx)  # of a wrapper, the wrapper as one rule
    state = jax.eval_shape(tx.init, params)
    abstract = jax.eval_shape(lambda p: p, params)
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract))
    leaves, treedef = named_leaves(abstract, "parameters")
    acting: dict[str, list[str]] = {path: [] for path, _ in leaves}
    rows = list(_rows(tx, "", state, leaves, treedef, parameters, acting))
    shapes = {path: leaf.shape for path, leaf in leaves}
    described = tuple(Leaf(path, shapes[path], tuple(rules)) for path, rules in acting.items())
    passes = str(tx._lifted.plan(params, state, apply=True)).replace("\n", "\n        ")
    return Description(tuple(rows), parameters, sum(row.bytes for row in rows), described, passes)


def _rows(
    tx: Any, prefix: str, state: Any, leaves: Leaves, treedef: Any, parameters: int, acting: dict[str, list[str]]
) -> Iterator[Row]:
    """A row for each rule, those of a partition's parts included; notes in ``acting`` which leaves it acts on."""
    if not isinstance(tx, Transformation) or isinstance(tx, Wrapper):
        tx = chain(tx)
        state = ChainState(state, {}, {tx.names[0]: {"state": state}})
    for name, rule, chosen in zip(tx.names, tx.rules, tx.acts_on(leaves, treedef), strict=True):
        ours = [leaf if acts else None for leaf, acts in zip(leaves, chosen, strict=True)]
        slots = state.slots.get(name, {})
        if isinstance(rule, seal) and isinstance(rule.tx, partition):
            kept = [leaf for leaf in ours if leaf is not None]
            whole = jax.tree.structure(treedef.unflatten([None if leaf is None else leaf[1] for leaf in ours]))
            parts = rule.tx.part_of(kept, whole)
            for part, inside in rule.tx.named_parts.items():
                own = [leaf for leaf, its in zip(kept, parts, strict=True) if its == part]
                values = iter(parts)
                pruned = whole.unflatten([0 if next(values) == part else None for _ in kept])
                inner = slots["state"].parts[part]
                structure = jax.tree.structure(pruned)
                yield from _rows(inside, f"{prefix}{part}.", inner, own, structure, parameters, acting)
            continue
        for leaf in ours:
            if leaf is not None:
                acting[leaf[0]].append(prefix + name)
        size = sum(int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(slots))
        per_parameter = size / parameters if parameters else 0.0
        yield Row(prefix + name, plain(rule.equation), _values(rule), ", ".join(slots), per_parameter, size)


def _values(rule: Rule) -> str:
    inside = repr(rule).partition("(")[2].removesuffix(")")
    return re.sub(r",? ?name='[^']*'", "", inside)


_SYMBOLS = {
    "leftarrow": "← ", "quad": "", "lvert": "|", "rvert": "|", "lVert": "‖", "rVert": "‖", "dots": "…", "max": "max",
    "min": "min", "lambda": "λ",
}  # fmt: skip


def plain(latex: str) -> str:
    """An equation of a rule in plain characters: \\beta as β, \\sqrt{x} as √(x)."""
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"√(\1)", latex)
    text = re.sub(r"\\mathrm\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\([a-zA-Z]+) ?", lambda match: _symbol(match[1]), text)
    text = re.sub(r"_\{([^{}]*)\}", r"_\1", text)
    return re.sub(r"\s+", " ", text.replace("^2", "²").replace("-", "−")).replace(" ,", ",")


def _symbol(name: str) -> str:
    return _SYMBOLS[name] if name in _SYMBOLS else unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}")
