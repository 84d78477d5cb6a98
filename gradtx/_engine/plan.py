"""How a chain runs on given leaves: in how many passes over memory, and which leaves go together.

A plan follows from the rules and the leaves' shapes and dtypes alone, and knows of a rule only what ``AbstractRule``
declares. Rules that map one array at a time fuse into one pass; a measurement over whole leaves, and a rule that maps
whole trees, start another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from gradtx._core.contract import AbstractRule


class Leaf(NamedTuple):
    """What a plan has to know of one leaf.

    Attributes:
        members: per rule, whether it acts on the leaf.
        shape: of the leaf.
        dtype: that arithmetic happens in.
        update: the dtype of the incoming update.
        param: the dtype of the parameter, or None where there is none.
        slots: per rule, the dtypes of its slots.
    """

    members: tuple[bool, ...]
    shape: tuple[int, ...]
    dtype: jnp.dtype
    update: jnp.dtype
    param: jnp.dtype | None
    slots: tuple[tuple[jnp.dtype, ...], ...]


class Batch(NamedTuple):
    """Leaves that are treated alike, as only their shapes differ.

    Attributes:
        leaf: one of them.
        leaves: their positions.
        size: the number of elements of all of them.
    """

    leaf: Leaf
    leaves: tuple[int, ...]
    size: int


class Pass(NamedTuple):
    """Rules that run together, element by element.

    Attributes:
        rules: their positions.
        measures: whether the first of them needs a number from whole leaves, which is measured before.
        whole: whether it is one rule that maps whole trees.
    """

    rules: range
    measures: bool
    whole: bool

    def acts_on(self, leaf: Leaf) -> bool:
        """Whether there is anything to do for a leaf."""
        return any(leaf.members[r] for r in self.rules)


class Place(NamedTuple):
    """Where a pass runs.

    Attributes:
        where: in words.
        why: the reason why it is not the kernel, or "".
        exact: whether it is one pass for sure; what the kernel does not know, XLA may do in several.
    """

    where: str = ""
    why: str = ""
    exact: bool = True


class Plan(NamedTuple):
    """How a chain runs on given leaves; a value, equal for what runs alike.

    Attributes:
        rules: the rules, in order.
        passes: the passes, in order.
        batches: the leaves, by what is done to them.
        applies: whether the last pass takes the step as well, and gives parameters instead of updates.
    """

    rules: tuple[AbstractRule, ...]
    passes: tuple[Pass, ...]
    batches: tuple[Batch, ...]
    applies: bool

    def last_pass(self, leaf: Leaf) -> int | None:
        """The last pass that does anything to a leaf."""
        return next((k for k in reversed(range(len(self.passes))) if self.passes[k].acts_on(leaf)), None)

    def accumulated(self, leaf: Leaf, r: int) -> bool:
        """Whether the gradient is frozen before rule ``r``."""
        return any(leaf.members[i] and self.rules[i].accumulates for i in range(r))

    def second_moment(self, leaf: Leaf, r: int) -> bool:
        """Whether there is a second moment before rule ``r``."""
        makers = [self.rules[i].second_moment for i in range(r) if leaf.members[i] and self.rules[i].second_moment]
        return bool(makers) and makers[-1] != "uses"

    def lanes(self, leaf: Leaf, r: int) -> int:
        """The number of lanes that go from one pass to the next before rule ``r``."""
        return 1 + self.accumulated(leaf, r) + self.second_moment(leaf, r)

    def traffic(self, k: int) -> int:
        """The bytes that a pass reads and writes, its measurement included; of whole trees, at least these."""
        part = self.passes[k]
        return sum(
            batch.size * self._traffic(k, part, batch.leaf) for batch in self.batches if part.acts_on(batch.leaf)
        )

    def _traffic(self, k: int, part: Pass, leaf: Leaf) -> int:
        first = not any(self.passes[i].acts_on(leaf) for i in range(k))
        last = self.last_pass(leaf) == k
        size = leaf.dtype.itemsize
        param = 0 if leaf.param is None else leaf.param.itemsize
        incoming = leaf.update.itemsize if first else size * self.lanes(leaf, part.rules.start)
        outgoing = leaf.update.itemsize if last else size * self.lanes(leaf, part.rules.stop)
        ours = [r for r in part.rules if leaf.members[r]]
        slots = 2 * sum(dtype.itemsize for r in ours for dtype in leaf.slots[r])
        measured = 0
        if part.measures and leaf.members[part.rules.start]:
            reads = self.rules[part.rules.start].reads
            frozen = self.accumulated(leaf, part.rules.start)
            beside = [size for lane in reads if lane == "second_moment" or (lane == "gradient" and frozen)]
            own = leaf.update.itemsize if first else size
            measured = own + sum(beside) + (param if "param" in reads else 0)
        if last and self.applies and not part.whole:
            return measured + incoming + slots + 2 * param
        return measured + incoming + slots + outgoing + (param if any(self.rules[r].needs_params for r in ours) else 0)

    def lines(self, places: Sequence[Place] = ()) -> list[str]:
        """A line for each pass, and where it runs, if that is known."""
        total = sum(batch.size for batch in self.batches)
        lines = []
        for k, part in enumerate(self.passes):
            labels = [self.rules[r].name or self.rules[r].label for r in part.rules]
            how = "whole trees" if part.whole else "measured, then one pass" if part.measures else "one pass"
            where, why, exact = places[k] if places else Place()
            per_parameter = (
                f"{'' if exact else 'at least '}{self.traffic(k) / total if total else 0.0:.4g} bytes/parameter"
            )
            lines.append(f"{how}{where and f' {where}'}: {', '.join(labels)} ({per_parameter}{why and f'; {why}'})")
        return lines or ["nothing to do"]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def passes(rules: tuple[AbstractRule, ...]) -> tuple[Pass, ...]:
    """The passes of a chain: a new one before each measurement, and around each rule that maps whole trees."""
    starts = {0, len(rules)}
    for r, rule in enumerate(rules):
        starts |= {r, r + 1} if rule.whole else {r} if rule.scope is not None else set()
    ends = sorted(starts)
    return tuple(
        Pass(range(start, stop), rules[start].scope is not None, rules[start].whole)
        for start, stop in itertools.pairwise(ends)
    )


def plan(rules: Sequence[AbstractRule], leaves: Sequence[Leaf | None], applies: bool = False) -> Plan:
    """How these rules run on these leaves; None for a leaf that nothing is done to."""
    alike: dict[Leaf, list[int]] = {}
    known = {i: leaf for i, leaf in enumerate(leaves) if leaf is not None}
    for i, leaf in known.items():
        alike.setdefault(leaf._replace(shape=()), []).append(i)
    batches = [Batch(leaf, tuple(at), sum(math.prod(known[i].shape) for i in at)) for leaf, at in alike.items()]
    return Plan(tuple(rules), passes(tuple(rules)), tuple(batches), applies)
