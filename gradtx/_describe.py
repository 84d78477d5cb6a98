"""Looking at a chain: its rules, equations, hyperparameters, and what its state costs."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradtx._rule import Rule, Transformation


class Row(NamedTuple):
    """One rule of a described chain. Bytes are those of its slots, over all leaves."""

    rule: str
    equation: str
    hyperparameters: str
    slots: str
    bytes_per_parameter: float
    bytes: int


class Description(NamedTuple):
    """What ``describe`` found; prints as a table, and is one in a notebook.

    Attributes:
        rows: one for each rule, in order.
        parameters: how many numbers the parameters are.
        bytes: what the state's slots take in all; hyperparameters and the count are not in it.
    """

    rows: tuple[Row, ...]
    parameters: int
    bytes: int

    def _cells(self) -> list[list[str]]:
        head = ["rule", "equation", "hyperparameters", "slots", "bytes/param", "bytes"]
        body = [[*row[:4], f"{row.bytes_per_parameter:.2f}", f"{row.bytes:,}"] for row in self.rows]
        per_parameter = self.bytes / self.parameters if self.parameters else 0.0
        total = ["in all", "", "", f"{self.parameters:,} parameters", f"{per_parameter:.2f}", f"{self.bytes:,}"]
        return [head, *body, total]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i >= 4 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        rule = "─" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        head, *body = self._cells()
        lines = [head, ["---"] * 4 + ["---:"] * 2, *body]
        return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def describe(tx: Transformation, params: Any) -> Description:
    """A table of a chain's rules: equation, hyperparameters, slots, and bytes of state for these parameters.

    Args:
        tx: a gradtx chain or rule.
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
    """
    if not isinstance(tx, Transformation):
        raise TypeError(f"describe: expected a gradtx chain or rule, found {type(tx).__name__}; use chain() or seal()")
    state = jax.eval_shape(tx.init, params)
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(jax.eval_shape(lambda p: p, params)))
    rows = []
    for name, rule in zip(tx.names, tx.rules, strict=True):
        slots = state.slots.get(name, {})
        size = sum(int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(slots))
        per_parameter = size / parameters if parameters else 0.0
        rows.append(Row(name, plain(rule.equation), _values(rule), ", ".join(slots), per_parameter, size))
    return Description(tuple(rows), parameters, sum(row.bytes for row in rows))


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
