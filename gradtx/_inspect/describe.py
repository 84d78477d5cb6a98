"""Looking at a chain: its rules, equations, hyperparameters, and what its state costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import optax

from gradtx._chain import Chain, chain, seal
from gradtx._core.control import types_of, without_schedules
from gradtx._core.numerics import widened
from gradtx._core.selectors import Leaves, flatten_with_paths
from gradtx._engine.transformation import Transformation, show
from gradtx._inspect.latex import plain
from gradtx._inspect.tables import aligned, broken, columns, fitted, line, markdown, unbroken, width
from gradtx._wrappers.base import Wrapper
from gradtx._wrappers.master_weights import master_weights
from gradtx._wrappers.packed import packed
from gradtx._wrappers.partition import partition
from gradtx.rules.base import Rule


class Row(NamedTuple):
    """One rule of a described chain. Bytes are those of its slots, over all leaves.

    Of a transformation around others, slots are its own, and its rows come next, one level deeper.
    """

    rule: str
    equation: str
    hyperparameters: str
    slots: str
    bytes_per_parameter: float
    bytes: int
    depth: int = 0


class Leaf(NamedTuple):
    """One leaf of the parameters, and the rules that act on it, in order."""

    path: str
    shape: tuple[int, ...]
    rules: tuple[str, ...]


class Description(NamedTuple):
    """The answer of ``describe``; prints as a table, as wide as the terminal or 80, and is one in a notebook.

    Attributes:
        rows: one for each rule, in order; those inside a wrapper behind it.
        parameters: how many numbers the parameters are.
        bytes: what the state's slots take in all; hyperparameters and the count are not in it.
        weights: the bytes of the parameters. Gradients are taken to be as large.
        leaves: one for each leaf; printed if not all leaves get the same rules (see ``where`` and ``partition``).
        passes: how often a step goes over memory, with how many bytes, where that runs, and if it is not the compiled
            kernel, why not; one line for each pass (see ``executor``).
    """

    rows: tuple[Row, ...]
    parameters: int
    bytes: int
    leaves: tuple[Leaf, ...] = ()
    passes: str = ""
    weights: int = 0

    def _memory(self) -> str:
        """The bytes that a parameter takes in all."""
        sizes = [2 * self.weights + self.bytes, self.weights, self.weights, self.bytes]
        each = [f"{round(size / self.parameters, 2) if self.parameters else 0:g}" for size in sizes]
        return "memory: {} bytes/parameter: weight {}, gradient {}, state {}".format(*each)

    def _cells(self, indent: str = "  ") -> list[list[str]]:
        head = ["rule", "equation", "hyperparameters", "slots", "bytes/param", "bytes"]
        body = [
            [indent * row.depth + row.rule, *row[1:4], f"{row.bytes_per_parameter:.2f}", f"{row.bytes:,}"]
            for row in self.rows
        ]
        per_parameter = self.bytes / self.parameters if self.parameters else 0.0
        total = ["in all", "", f"{self.parameters:,} parameters", "", f"{per_parameter:.2f}", f"{self.bytes:,}"]
        return [head, *body, total]

    def _leaf_cells(self) -> list[list[str]]:
        """Leaves by rules; nothing if they all get the same."""
        if len({leaf.rules for leaf in self.leaves}) < 2:
            return []
        body = [[leaf.path, str(leaf.shape), ", ".join(leaf.rules) or "none"] for leaf in self.leaves]
        return [["leaf", "shape", "rules"], *body]

    def _blocks(self, most: int) -> list[list[str]]:
        """The lines of each row, of at most so many columns.

        If those are too few, equations stand below their rules; and if words would be broken even then, so do the
        hyperparameters.
        """
        cells = self._cells()
        lines = aligned(cells, numbers=4)
        if max(map(width, lines)) <= most:
            return [[text] for text in lines]
        texts, below = 3, [[row.equation] for row in self.rows]
        cells = [[rule, *rest] for rule, _, *rest in cells]
        if unbroken(cells, texts) > most:
            texts, below = 2, [[row.hyperparameters, row.equation] for row in self.rows]
            total = f"{cells[-1][0]}, {cells[-1][1]}"
            cells = [[row[0], *row[2:]] for row in cells[:-1]] + [[total, *cells[-1][2:]]]
        blocks = fitted(cells, texts, most)
        for block, row, lines in zip(blocks[1:-1], self.rows, below, strict=True):
            indent = "  " * (row.depth + 1)
            block += [part for text in lines if text for part in broken(indent + text, most, indent + "  ")]
        return blocks

    def __str__(self) -> str:
        most = columns()
        head, *rules, total = self._blocks(most)
        rule = line([one for block in (head, *rules, total) for one in block])
        lines = [*head, rule, *itertools.chain(*rules), rule, *total]
        if cells := self._leaf_cells():
            head, *leaves = fitted(cells, 3, most)
            lines += ["", *head, line([*head, *itertools.chain(*leaves)]), *itertools.chain(*leaves)]
        lines += ["", *broken(self._memory(), most, " " * 8)]
        for i, one in enumerate(self.passes.split("\n")):
            indent = " " * (10 + len(one) - len(one.lstrip()))
            lines += broken(("        " if i else "a step: ") + one, most, indent)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        tables = [markdown(cells, 4) for cells in (self._cells("&emsp;"), self._leaf_cells()) if cells]
        return "\n\n".join([*tables, self._memory(), f"a step: {self.passes}"])


def describe(tx: Transformation[Any], params: Any) -> Description:
    """A table of a chain's rules: equation, hyperparameters, slots, and bytes of state for these parameters.

    Wrappers are taken apart: what is inside stands indented behind them. Where ``where`` or ``partition`` give leaves
    different rules, a second table says which leaf gets which. Then comes what a parameter takes in all: weight,
    gradient (as large as the weight) and state. The last lines say in how many passes over memory ``step`` runs it, and
    where: rules that act element by element fuse into one; a norm has to be measured before; and what the compiled
    kernel does not know (a sum inside ``apply``, say) takes the pass to XLA.

    Args:
        tx: a gradtx chain or rule, or a ``partition``, whose parts' rules are shown as ``part.rule``.
        params: the parameters, or ``jax.ShapeDtypeStruct`` objects like them; nothing is computed.

    Raises:
        TypeError: if ``tx`` is not made of gradtx rules (``seal`` it to see what its state costs).
        ValueError, TypeError: as ``init``, for chains and parameters that do not fit.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.trace(0.9), gradtx.scale(-0.1))
    >>> print(gradtx.describe(tx, {"w": jnp.zeros((10, 10))}))  # doctest: +ELLIPSIS
    rule    hyperparameters            slots      bytes/param  bytes
    ────────────────────────────────────────────────────────────────
    trace   decay=0.9, nesterov=False  b, weight         4.04    404
      b ← μb + u, u ← b
    scale   factor=-0.1                                  0.00      0
      u ← a u
    ────────────────────────────────────────────────────────────────
    in all  100 parameters                               4.04    404
    <BLANKLINE>
    memory: 12.04 bytes/parameter: weight 4, gradient 4, state 4.04
    a step: one pass in ...: trace, scale (20 bytes/parameter...
    """
    if not isinstance(tx, Transformation):
        raise TypeError(f"describe: expected a gradtx chain or rule, found {type(tx).__name__}; use chain() or seal()")
    tx = chain(tx)  # of a wrapper, the wrapper as one rule
    abstract = jax.eval_shape(lambda p: p, params)
    leaves, treedef = flatten_with_paths(abstract)
    parameters = sum(leaf.size for _, leaf in leaves)
    weights = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    acting: dict[str, list[str]] = {path: [] for path, _ in leaves}
    state = types_of(tx.init, params)
    rows = list(_rows(tx, state, _Part("", 0, leaves, treedef), parameters, acting))
    described = tuple(Leaf(path, leaf.shape, tuple(acting[path])) for path, leaf in leaves)
    passes = "\n".join(_passes(tx, abstract, apply_updates=True))
    return Description(tuple(rows), parameters, sum(row.bytes for row in rows), described, passes, weights)


class _Part(NamedTuple):
    """The leaves that a transformation is for, and where its rules stand: the prefix of their names, and the depth."""

    prefix: str
    depth: int
    leaves: Leaves
    treedef: Any

    def where(self, mask: Sequence[bool]) -> _Part:
        """The same, of some leaves."""
        members = [leaf if acts else None for (_, leaf), acts in zip(self.leaves, mask, strict=True)]
        leaves = [leaf for leaf, acts in zip(self.leaves, mask, strict=True) if acts]
        return self._replace(leaves=leaves, treedef=jax.tree.structure(self.treedef.unflatten(members)))

    def inside(self, rule: Rule, name: str) -> _Part:
        """The description of a transformation inside of a rule."""
        part = self._replace(prefix=f"{self.prefix}{name}." if name else self.prefix, depth=self.depth + 1)
        if isinstance(rule, seal) and isinstance(rule.tx, partition):
            return part.where([of_leaf == name for of_leaf in rule.tx.part_of(self.leaves, self.treedef)])
        if isinstance(rule, seal) and isinstance(rule.tx, master_weights):
            return part._replace(leaves=[(path, widened(leaf)) for path, leaf in self.leaves])
        return part

    def params(self) -> Any:
        """The leaves as a tree."""
        return self.treedef.unflatten([leaf for _, leaf in self.leaves])


def _members(rule: Any, state: Any) -> dict[str, tuple[Any, Any]]:
    """The transformations in a rule, by their names, with their states; none if it cannot be taken apart."""
    if not isinstance(getattr(rule, "tx", None), Transformation):
        return {}
    if isinstance(state, dict):  # of a rule that holds more than the state of what is in it
        return {"": (rule.tx, state["inner"])}
    return rule.tx._members(state) if isinstance(rule.tx, Wrapper) else {"": (rule.tx, state)}


def _rows(tx: Any, state: Any, at: _Part, parameters: int, acting: dict[str, list[str]]) -> Iterator[Row]:
    """A row for each rule, those inside others behind them; notes which leaves each acts on."""
    opaque = not isinstance(tx, Chain | Rule)
    tx = chain(tx)
    slots_of = {tx.names[0]: {"state": state}} if opaque else state.slots
    for name, rule, acts_on in zip(tx.names, tx.rules, tx.acts_on(at.leaves, at.treedef), strict=True):
        slots = slots_of.get(name, {})
        part, members = at.where(acts_on), _members(rule, slots.get("state"))
        inside = {id(leaf) for _, inner in members.values() for leaf in jax.tree.leaves(inner)}
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(slots) if id(x) not in inside)
        if members:
            fields = slots["state"]._asdict() if hasattr(slots["state"], "_asdict") else slots["state"]
            fields = fields if isinstance(fields, dict) else {}
            slots = {field: x for field, x in fields.items() if any(id(y) not in inside for y in jax.tree.leaves(x))}
        stored = [slot for slot, x in slots.items() if jax.tree.leaves(x) or not parameters]
        per_parameter = size / parameters if parameters else 0.0
        equation = "" if members else plain(rule.equation)  # of a wrapper, what is in it says what it does
        yield Row(at.prefix + name, equation, _values(rule), ", ".join(stored), per_parameter, size, at.depth)
        for path, _ in () if members else part.leaves:
            acting[path].append(at.prefix + name)
        for label, (member, inner) in members.items():
            yield from _rows(member, inner, part.inside(rule, label), parameters, acting)


def _passes(tx: Any, params: Any, apply_updates: bool) -> Iterator[str]:
    """A line for each pass, those of what is inside a rule behind it."""
    tx = chain(tx)
    state = types_of(tx.init, params)
    plan = tx._engine.plan(params, state, apply_updates)
    leaves, treedef = flatten_with_paths(params)
    mask = tx.acts_on(leaves, treedef)
    with without_schedules():
        places = tx._engine.places(params, state, apply_updates)
    for k, text in enumerate(plan.lines(places)):
        r = plan.passes[k].rules.start if plan.passes else None
        if r is None or not plan.passes[k].maps_trees:
            yield text
            continue
        members = _members(tx.rules[r], state.slots[tx.names[r]]["state"])
        wrapper = getattr(tx.rules[r], "tx", None)
        size = sum(leaf.size for _, leaf in leaves)
        width = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves) / size if size else 0
        if isinstance(wrapper, Wrapper) and (count := wrapper.arrays_read()) is not None:
            text = f"{wrapper.label}: {count * width:.4g} bytes/parameter of its own"
        yield text if members else text.replace("whole trees", "whole trees in XLA", 1)
        part = _Part("", 0, leaves, treedef).where(mask[r])
        for name, (member, _) in members.items():
            if isinstance(member, Transformation):
                when = wrapper.conditions.get(name, "") if isinstance(wrapper, Wrapper) else ""
                applies = isinstance(member, packed) or (bool(when) and apply_updates and len(tx.rules) == 1)
                lines = _passes(member, part.inside(tx.rules[r], name).params(), applies)
                if when:
                    how = "a flag" if member.takes_flag else "a condition"
                    lines = (f"{text[:-1]}; {when}, {how})" if text.endswith(")") else text for text in lines)
                yield from (f"  {name and f'{name}: '}{text}" for text in lines)


def _values(rule: Rule) -> str:
    """The fields of a rule as in the call that makes it; of one that is taken apart, those of the wrapper in it."""
    shown = {"name": False} | {name: given for name, given in rule._options().items() if name != "name"}
    values = {name: x for name, x in rule._values().items() if shown.get(name, True)}
    if isinstance(inside := values.get("tx"), Transformation):
        del values["tx"]
        wrapper = inside._values() if isinstance(inside, Wrapper) else {}
        values = {name: x for name, x in wrapper.items() if not _holds_transformations(x)} | values
    return " ".join(", ".join(f"{name}={_short(x)}" for name, x in values.items()).split())


def _short(value: Any) -> str:
    """A value as in the call that makes it; of a number of many digits, six."""
    text = show(value)
    return show(value, 6) if len(text) > 8 else text


def _holds_transformations(value: Any) -> bool:
    def is_one(x: Any) -> bool:
        return isinstance(x, optax.GradientTransformation)

    return any(map(is_one, jax.tree.leaves(value, is_leaf=is_one)))
