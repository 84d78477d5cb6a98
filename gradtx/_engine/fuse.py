"""The rules of one pass as one function of arrays and scalars."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradtx._core import methods
from gradtx._core.codecs import parts
from gradtx._core.contract import AbstractRule
from gradtx._core.numerics import added, real_dtype, widest
from gradtx._core.signal import Signal
from gradtx._engine.plan import Buffer, Key, Lane, Launch, Slot


class Lanes(NamedTuple):
    """The lanes on their way through rules: the gradient is the direction, until a rule accumulates.

    Attributes:
        signal: the lanes.
        is_accumulated: True from the first rule that accumulates on.
    """

    signal: Signal
    is_accumulated: bool = False

    def through(
        self, rule: AbstractRule, slots: dict[str, jax.Array], param: Any, c: dict[str, jax.Array]
    ) -> tuple[Lanes, dict[str, jax.Array]]:
        """The lanes and the slots after a rule."""
        signal, after = methods.applied(rule, self.signal, slots, param if rule.needs_params else None, c)
        is_accumulated = self.is_accumulated or bool(rule.accumulates)
        if not is_accumulated:
            signal = signal._replace(gradient=signal.direction)
        elif not rule.filters:
            signal = signal._replace(gradient=self.signal.gradient)
        return Lanes(signal, is_accumulated), after


@dataclass(frozen=True)
class Fused:
    """A launch as a function: its buffers and the coefficients in, its buffers out. A value, equal for what is equal.

    Attributes:
        launch: the buffers.
        rules: those of the launch.
        coefficients: per rule, the names of its coefficients, which come behind the buffers and the seeds of those that
            are rounded at random: first of the rules whose coefficients are a leaf's own.
        dtype: that arithmetic happens in.
        update: the dtype that the update is rounded to.
        observing: whether observers take numbers.
        local: the places of the rules whose coefficients are a leaf's own.
    """

    launch: Launch
    rules: tuple[AbstractRule, ...]
    coefficients: tuple[tuple[str, ...], ...]
    dtype: jnp.dtype
    update: jnp.dtype
    observing: bool = True
    local: tuple[int, ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        """Computed once: it is asked for with each leaf."""
        return hash((self.launch, self.rules, self.coefficients, self.dtype, self.update, self.observing, self.local))

    def __call__(self, *operands: jax.Array) -> tuple[jax.Array, ...]:
        outputs, terms = self._run(operands)
        return (*outputs, *(x for _, x in terms.values()))

    def terms(self, *avals: Any) -> dict[tuple[int, str], Literal["sum", "norm"]]:
        """The ways in which observers take the last outputs, by the rule's position and the term's name."""
        noted: dict[tuple[int, str], Any] = {}

        def note(*operands: jax.Array) -> None:
            noted.update({key: how for key, (how, _) in self._run(operands)[1].items()})

        if self.observing and any(rule.observes for rule in self.rules):
            jax.eval_shape(note, *avals)
        return noted

    def _run(
        self, operands: Sequence[jax.Array]
    ) -> tuple[tuple[jax.Array, ...], dict[tuple[int, str], tuple[Any, jax.Array]]]:
        rest = iter(operands)
        arrays: dict[Any, jax.Array] = {buffer.key: _read(buffer, rest) for buffer in self.launch.reads}
        seeds = {buffer.key: next(rest) for buffer in self.launch.rounded}
        lanes = Lanes(self._signal(arrays), Lane.GRADIENT in arrays)
        incoming = arrays[Lane.INCOMING].astype(self.dtype) if Lane.INCOMING in arrays else lanes.signal.direction
        terms: dict[tuple[int, str], tuple[Any, jax.Array]] = {}
        stored = arrays.get(Lane.PARAM)
        param = None if stored is None else widened_to(stored, self.dtype)
        of_leaf = {k: {name: next(rest) for name in self.coefficients[k]} for k in self.local}
        rules = zip(self.launch.rules, self.rules, self.coefficients, strict=True)
        for k, (r, rule, names) in enumerate(rules):
            c = of_leaf[k] if k in of_leaf else {name: next(rest) for name in names}
            if rule.observes:
                given = {
                    "incoming": incoming,
                    "gradient": lanes.signal.gradient,
                    "direction": lanes.signal.direction,
                    "param": param,
                }
                seen = methods.observed(rule, {lane: given[lane] for lane in rule.observes}) if self.observing else {}
                terms |= {(r, name): term for name, term in seen.items()}
                continue
            slots = {
                key.name: widened_to(arrays[key], real_dtype(self.dtype))
                for key in arrays
                if isinstance(key, Slot) and key.rule == r
            }
            lanes, after = lanes.through(rule, slots, param, c)
            arrays |= {Slot(r, name): x for name, x in after.items()}
        arrays |= zip((Lane.GRADIENT, Lane.DIRECTION, Lane.SECOND_MOMENT), lanes.signal, strict=True)
        arrays[Lane.UPDATE] = lanes.signal.direction.astype(self.update)
        if stored is not None:
            arrays[Lane.PARAM] = added(stored, arrays[Lane.UPDATE])
        written = (self._written(buffer, arrays[buffer.key], seeds.get(buffer.key)) for buffer in self.launch.writes)
        return tuple(itertools.chain(*written)), terms

    def _written(self, buffer: Buffer, x: jax.Array, seed: jax.Array | None) -> tuple[jax.Array, ...]:
        """The arrays that a buffer is stored in."""
        if buffer.codec is None:
            return (x.astype(buffer.dtype),)
        return parts(buffer.codec.encode(x, seed, self._is_nonnegative(buffer.key)))

    def _is_nonnegative(self, key: Key) -> bool:
        """True for a slot that never is negative."""
        if not isinstance(key, Slot):
            return False
        return key.name in self.rules[self.launch.rules.index(key.rule)].nonnegative

    def _signal(self, arrays: dict[Any, jax.Array]) -> Signal:
        direction = arrays[Lane.DIRECTION].astype(self.dtype)
        gradient = arrays.get(Lane.GRADIENT)
        return Signal(
            direction if gradient is None else gradient.astype(self.dtype), direction, arrays.get(Lane.SECOND_MOMENT)
        )

    def apart(self, avals: Sequence[Any]) -> Iterator[tuple[AbstractRule, Fused, list[Any]]]:
        """Each rule, the function of it alone, and its arrays' abstract values, from those of all."""
        rest = iter(avals)
        given = {buffer.key: list(itertools.islice(rest, buffer.parts)) for buffer in self.launch.reads}
        like = avals[0]
        for r, rule, names in zip(self.launch.rules, self.rules, self.coefficients, strict=True):
            reads = [Buffer(Lane.DIRECTION, self.dtype), Buffer(Lane.GRADIENT, self.dtype)]
            if rule.second_moment in ("edits", "uses"):
                reads.append(Buffer(Lane.SECOND_MOMENT, real_dtype(self.dtype)))
            slots = [b for b in self.launch.reads if isinstance(b.key, Slot) and b.key.rule == r]
            kept = [*(b for b in self.launch.reads if b.key is Lane.PARAM), *slots]
            launch = Launch((r,), (*reads, *kept), (Buffer(Lane.UPDATE, self.update), *slots), ())
            alone = replace(self, launch=launch, rules=(rule,), coefficients=(names,), local=())
            lanes = [jax.ShapeDtypeStruct(like.shape, buffer.dtype) for buffer in reads]
            yield rule, alone, [*lanes, *(x for buffer in kept for x in given[buffer.key])]


def _read(buffer: Buffer, operands: Iterator[jax.Array]) -> jax.Array:
    """The numbers in a buffer, of which the operands are next."""
    arrays = itertools.islice(operands, buffer.parts)
    return next(arrays) if buffer.codec is None else buffer.codec.decode(*arrays)


def widened_to(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """An array in this dtype, or in its own if that is wider."""
    return x.astype(widest(x.dtype, dtype))
