"""Small arrays that stand one after another in a flat one, so that only that one has to be handed over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradtx._core.mesh import vary, varying


@dataclass(frozen=True, eq=False)
class View:
    """An array that is not there by itself, but as elements of a flat one.

    Attributes:
        flat: of one axis.
        offset: of its first element there.
        shape: its own.
    """

    flat: jax.Array
    offset: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> jnp.dtype:
        return self.flat.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def array(self) -> jax.Array:
        """A copy that is there by itself."""
        if self.size == 0:  # a slice of nothing, batched, makes the compiler of jax 0.10 for CPUs crash
            return vary(jnp.zeros(self.shape, self.dtype), varying(self.flat))
        return jax.lax.slice_in_dim(self.flat, self.offset, self.offset + self.size).reshape(self.shape)


def as_array(x: jax.Array | View) -> jax.Array:
    """An array, or a view as one."""
    return x.array() if isinstance(x, View) else x


def element(x: jax.Array, i: int) -> jax.Array:
    """One number of a vector."""
    return jax.lax.index_in_dim(x, i, keepdims=False)


def split(flat: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[View]:
    """The views of a flat array, one after another."""
    offsets = itertools.accumulate(map(math.prod, shapes), initial=0)
    return [View(flat, offset, shape) for offset, shape in zip(offsets, shapes, strict=False)]


def are_all(xs: Sequence[jax.Array | View]) -> bool:
    """True if these are all the views of one flat array, in order."""
    end, first = 0, xs[0]
    for x in xs:
        if not isinstance(x, View) or not isinstance(first, View) or x.flat is not first.flat or x.offset != end:
            return False
        end += x.size
    return isinstance(first, View) and end == first.flat.size


def join(xs: Sequence[jax.Array | View]) -> jax.Array:
    """The flat array that has these as its views: that which they are views of already, or a new one."""
    first = xs[0]
    if isinstance(first, View) and are_all(xs):
        return first.flat
    return jnp.concatenate([as_array(x).ravel() for x in xs])
