"""The plan of a step: its passes over memory, and for each the buffers that it reads, writes and measures.

A plan follows from the rules and the leaves' shapes and dtypes alone, and knows of a rule only what its contract
declares. Rules that map one array at a time fuse into one pass, and a rule that observes rides on it; a measurement
over whole leaves that comes first, and a rule that maps whole trees, start another. Bytes, memory used again and the
order of operands follow from the buffers.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from gradtx._core.codecs import Codec
from gradtx._core.contract import AbstractRule
from gradtx._core.numerics import real_dtype
from gradtx._engine.inputs import Members


class Lane(enum.Enum):
    """The arrays of a leaf beside the slots that a pass reads and writes."""

    INCOMING = "incoming"
    DIRECTION = "direction"
    GRADIENT = "gradient"
    SECOND_MOMENT = "second_moment"
    PARAM = "param"
    UPDATE = "update"


class Slot(NamedTuple):
    """A slot of a rule, by the position of the rule."""

    rule: int
    name: str


Key = Lane | Slot


class Buffer(NamedTuple):
    """One array of each leaf.

    Attributes:
        key: the lane or the slot that it holds.
        dtype: that it is stored in, or that its codes stand for.
        codec: of a slot or a parameter that is not just rounded to the dtype.
    """

    key: Key
    dtype: jnp.dtype
    codec: Codec | None = None

    @property
    def parts(self) -> int:
        """The number of arrays."""
        return 1 if self.codec is None else self.codec.parts

    @property
    def bytes(self) -> float:
        """The bytes of an element."""
        return self.dtype.itemsize if self.codec is None else self.codec.bytes


class Leaf(NamedTuple):
    """The facts about one leaf that a plan follows from.

    Attributes:
        members: per rule, whether it acts on the leaf.
        shape: of the leaf.
        dtype: that arithmetic happens in.
        incoming: the dtype of the incoming update.
        update: the dtype that an update is rounded to: of the incoming one, or float32 for a parameter with a codec.
        param: the buffer of the parameter, or None where there is none.
        slots: per rule, its slots: name, dtype and codec.
    """

    members: Members
    shape: tuple[int, ...]
    dtype: jnp.dtype
    incoming: jnp.dtype
    update: jnp.dtype
    param: Buffer | None
    slots: tuple[tuple[tuple[str, jnp.dtype, Codec | None], ...], ...]


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
        maps_trees: whether it is one rule that maps whole trees.
        scales: the positions of those that get their factors from whole trees, before.
        alongside: the positions of others that need a number, of parameters alone, which is measured before as well.
    """

    rules: range
    measures: bool
    maps_trees: bool
    scales: tuple[int, ...] = ()
    alongside: tuple[int, ...] = ()

    def acts_on(self, leaf: Leaf) -> bool:
        """True if there is anything to do for a leaf."""
        return any(leaf.members[r] for r in self.rules)


class Launch(NamedTuple):
    """One function over the leaves of a batch, in one pass over memory.

    Attributes:
        rules: the positions of the rules that run, in order; none where the pass only takes the step.
        reads: the operands, in order.
        writes: the results, in order.
        in_place: by the positions of operand arrays, those of the result arrays that may have their memory.
        freezes: whether the direction that comes in stays, as the gradient, for the passes that follow.
    """

    rules: tuple[int, ...]
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    in_place: tuple[tuple[int, int], ...]
    freezes: bool = False

    @property
    def rounded(self) -> tuple[Buffer, ...]:
        """The results that are rounded at random, each with a seed for each leaf."""
        return tuple(buffer for buffer in self.writes if buffer.codec is not None and buffer.codec.rounds)

    @property
    def kept(self) -> tuple[tuple[int, int], ...]:
        """Those of ``in_place`` that hold the same before and after: they stay where a step does not happen."""
        update = {at for at, buffer in _placed(self.writes) if buffer.key is Lane.UPDATE}
        return tuple((array, result) for array, result in self.in_place if result not in update)

    @property
    def bytes(self) -> float:
        """The bytes that are read and written of each element."""
        return _bytes(self.reads) + _bytes(self.writes)


class Place(NamedTuple):
    """The place where a pass runs.

    Attributes:
        where: in words.
        why: the reason why it is not the kernel, or "".
        exact: whether it is one pass for sure; what the kernel does not know, XLA may do in several.
    """

    where: str = ""
    why: str = ""
    exact: bool = True


class Plan(NamedTuple):
    """The passes of a chain on given leaves; a value, equal for what runs alike.

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

    def is_accumulated(self, leaf: Leaf, r: int) -> bool:
        """True if the gradient is a lane of its own before rule ``r``."""
        return any(leaf.members[i] and self.rules[i].accumulates for i in range(r))

    def has_second_moment(self, leaf: Leaf, r: int) -> bool:
        """True if there is a second moment before rule ``r``."""
        makers = [self.rules[i].second_moment for i in range(r) if leaf.members[i] and self.rules[i].second_moment]
        return bool(makers) and makers[-1] != "uses"

    def first_pass(self, leaf: Leaf) -> int | None:
        """The first pass that does anything to a leaf."""
        return next((k for k, one in enumerate(self.passes) if one.acts_on(leaf)), None)

    def last_pass(self, leaf: Leaf) -> int | None:
        """The last pass that does anything to a leaf."""
        return next((k for k in reversed(range(len(self.passes))) if self.passes[k].acts_on(leaf)), None)

    def lanes(self, leaf: Leaf, r: int) -> dict[Lane, Buffer]:
        """The lanes before the pass that begins with rule ``r``."""
        lanes = [Buffer(Lane.DIRECTION, self._direction(leaf, r))]
        if self.is_accumulated(leaf, r):
            lanes.append(Buffer(Lane.GRADIENT, self._gradient(leaf, r)))
        if self.has_second_moment(leaf, r):
            lanes.append(Buffer(Lane.SECOND_MOMENT, real_dtype(leaf.dtype)))
        return {buffer.key: buffer for buffer in lanes if isinstance(buffer.key, Lane)}

    def _direction(self, leaf: Leaf, r: int) -> jnp.dtype:
        """The dtype of the direction before rule ``r``: as it came in, until a pass has written it."""
        return leaf.dtype if any(one.acts_on(leaf) for one in self.passes if one.rules.stop <= r) else leaf.incoming

    def _gradient(self, leaf: Leaf, r: int) -> jnp.dtype:
        """The dtype of the gradient: that of the direction, where it is the array that came into a pass."""
        writer = next(
            (one for one in reversed(self.passes) if one.rules.stop <= r and self._writes_gradient(one, leaf)), None
        )
        if writer is not None:
            return leaf.dtype
        return self._direction(leaf, self._freezing(leaf).rules.start)

    def _freezing(self, leaf: Leaf) -> Pass:
        """The pass with the first rule that accumulates."""
        return next(one for one in self.passes if any(leaf.members[r] and self.rules[r].accumulates for r in one.rules))

    def _writes_gradient(self, one: Pass, leaf: Leaf) -> bool:
        """True if the gradient after a pass is neither the one before it nor the direction as it came in."""
        rules = [r for r in one.rules if leaf.members[r]]
        if not self.is_accumulated(leaf, one.rules.stop):
            return False
        if any(self.rules[r].filters for r in rules):
            return True
        if self.is_accumulated(leaf, one.rules.start):
            return False
        return one.maps_trees or not self.rules[rules[0]].accumulates

    def launch(self, k: int, leaf: Leaf) -> Launch:
        """The launch of pass ``k`` over a leaf that it acts on: of whole trees, at least this."""
        one = self.passes[k]
        rules = tuple(r for r in one.rules if leaf.members[r])
        first, last = k == self.first_pass(leaf), k == self.last_pass(leaf)
        steps = last and self.applies and not one.maps_trees and leaf.param is not None
        reads = list(self.lanes(leaf, one.rules.start).values())
        if not first and any(self.rules[r].observes for r in rules):
            reads.append(Buffer(Lane.INCOMING, leaf.incoming))
        sees_param = any(self.rules[r].needs_params or "param" in self.rules[r].observes for r in rules)
        if leaf.param is not None and (steps or sees_param):
            reads.append(leaf.param)
        if not last:
            after = self.lanes(leaf, one.rules.stop)
            if not self._writes_gradient(one, leaf):
                after.pop(Lane.GRADIENT, None)
            writes = list(after.values())
        elif steps and leaf.param is not None:
            writes = [leaf.param]
        else:
            writes = [Buffer(Lane.UPDATE, leaf.update)]
        slots = [Buffer(Slot(r, name), dtype, codec) for r in rules for name, dtype, codec in leaf.slots[r]]
        lanes = {buffer.key for buffer in (*reads, *writes)}
        freezes = not last and self.is_accumulated(leaf, one.rules.stop) and Lane.GRADIENT not in lanes
        return _launch(rules, [*reads, *slots], [*writes, *slots], not first and not freezes)._replace(freezes=freezes)

    def last_launch(self, leaf: Leaf) -> Launch | None:
        """The step of a leaf, if no pass takes it."""
        k = self.last_pass(leaf)
        if leaf.param is None or not self.applies or (k is not None and not self.passes[k].maps_trees):
            return None
        direction = Buffer(Lane.DIRECTION, leaf.incoming if k is None else leaf.dtype)
        return _launch((), [direction, leaf.param], [leaf.param], temporary=False)

    def measured(self, k: int, leaf: Leaf) -> dict[Lane, Buffer]:
        """The lanes that the measurement before pass ``k`` reads of a leaf, and the buffers that they are in."""
        one, r = self.passes[k], self.passes[k].rules.start
        if not (one.measures or one.scales or one.alongside):
            return {}
        lanes = self.lanes(leaf, r)
        lanes.setdefault(Lane.GRADIENT, lanes[Lane.DIRECTION])
        if leaf.param is not None:
            lanes[Lane.PARAM] = leaf.param
        measuring = {*one.scales, *one.alongside} | ({r} if one.measures else set())
        read = dict.fromkeys(lane for i in measuring if leaf.members[i] for lane in self.rules[i].reads)
        return {Lane(lane): lanes[Lane(lane)] for lane in read if Lane(lane) in lanes}

    def traffic(self, k: int) -> float:
        """The bytes that a pass reads and writes, its measurement included; of whole trees, at least these."""
        return sum(
            batch.size * (self.launch(k, batch.leaf).bytes + _bytes({*self.measured(k, batch.leaf).values()}))
            for batch in self.batches
            if self.passes[k].acts_on(batch.leaf)
        )

    def lines(self, places: Sequence[Place] = ()) -> list[str]:
        """A line for each pass, and where it runs, if that is known."""
        total = sum(batch.size for batch in self.batches)
        lines = []
        for k, one in enumerate(self.passes):
            labels = [self.rules[r].title for r in one.rules]
            measured = one.measures or one.scales or one.alongside
            how = "whole trees" if one.maps_trees else "measured, then one pass" if measured else "one pass"
            where, why, exact = places[k] if places else Place()
            per_parameter = self.traffic(k) / total if total else 0.0
            size = f"{'' if exact and not one.scales else 'at least '}{per_parameter:.4g} bytes/parameter"
            lines.append(f"{how}{where and f' {where}'}: {', '.join(labels)} ({size}{why and f'; {why}'})")
        return lines or ["nothing to do"]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _bytes(buffers: Collection[Buffer]) -> float:
    return sum(buffer.bytes for buffer in buffers)


def _launch(rules: tuple[int, ...], reads: list[Buffer], writes: list[Buffer], temporary: bool) -> Launch:
    """A launch; ``temporary``: whether nobody needs the direction that comes in any more."""
    results = {buffer.key: (at, buffer.dtype) for at, buffer in _placed(writes)}
    if Lane.UPDATE in results:
        results.setdefault(Lane.DIRECTION, results[Lane.UPDATE])
    in_place = []
    for at, buffer in _placed(reads):
        if buffer.key not in results or (buffer.key is Lane.DIRECTION and not temporary):
            continue
        result, dtype = results[buffer.key]
        if dtype == buffer.dtype:
            in_place += [(at + i, result + i) for i in range(buffer.parts)]
    return Launch(rules, tuple(reads), tuple(writes), tuple(in_place))


def _placed(buffers: Sequence[Buffer]) -> list[tuple[int, Buffer]]:
    """The buffers with the positions of their first arrays."""
    starts = itertools.accumulate((buffer.parts for buffer in buffers), initial=0)
    return list(zip(starts, buffers, strict=False))


def passes(rules: tuple[AbstractRule, ...]) -> tuple[Pass, ...]:
    """The passes of a chain: a new one before each measurement or factor, and around a rule that maps whole trees."""

    def of(start: int, stop: int) -> Pass:
        first, scales = rules[start], [r for r in range(start, stop) if rules[r].scales]
        measures, maps_trees = first.scope is not None and not first.scales, first.maps_trees and not first.scales
        alongside = [r for r in range(start + 1, stop) if rules[r].scope is not None and not rules[r].scales]
        return Pass(range(start, stop), measures, maps_trees, tuple(scales), tuple(alongside))

    return tuple(itertools.starmap(of, itertools.pairwise(sorted(_borders(rules)))))


def _borders(rules: tuple[AbstractRule, ...]) -> set[int]:
    borders = {0, len(rules)}
    for r, rule in enumerate(rules):
        if rule.maps_trees and not rule.scales:
            borders |= {r, r + 1}
        elif rule.scope is not None and not _joins(rule, rules[max(border for border in borders if border <= r) : r]):
            borders.add(r)
    return borders


def _joins(rule: AbstractRule, before: Sequence[AbstractRule]) -> bool:
    """True if the measurement of a rule needs nothing that the rules before it in the pass write."""
    if rule.scales and rule.scope != "tree":
        return False
    multiply = all(one.multiplies and one.scope == "tree" and not one.accumulates for one in before)
    return rule.reads == ("param",) or (rule.takes_factors and multiply)


def plan(rules: Sequence[AbstractRule], leaves: Sequence[Leaf | None], applies: bool = False) -> Plan:
    """The plan of these rules on these leaves; None for a leaf that nothing is done to."""
    alike: dict[Leaf, list[int]] = {}
    known = {i: leaf for i, leaf in enumerate(leaves) if leaf is not None}
    for i, leaf in known.items():
        alike.setdefault(leaf._replace(shape=()), []).append(i)
    batches = [Batch(leaf, tuple(at), sum(math.prod(known[i].shape) for i in at)) for leaf, at in alike.items()]
    return Plan(tuple(rules), passes(tuple(rules)), tuple(batches), applies)
