"""Arrays over the devices of a mesh: what the type of one says, and what holds for all of its shards.

Inside of ``jax.shard_map`` a device sees its own shard of an array, and the type of the array says along which axes of
the mesh the shards differ. A sum or a condition over all of the array is then one over these axes too; each array has
its own, so that sharded and replicated ones mix. With ``check_vma=False`` types say nothing, and each shard is taken
for a whole array.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.core
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from gradtx._core.dtypes import promoted

P = ParamSpec("P")
R = TypeVar("R")


def varying(*xs: Any) -> tuple[str, ...]:
    """The axes of the mesh along which any of these arrays, or types of some, differs between devices, by name."""
    return tuple(sorted({axis for x in xs for axis in _varying(x)}))


def _varying(x: Any) -> frozenset[str]:
    aval: Any = x if isinstance(x, jax.core.ShapedArray) else jax.typeof(x)
    if hasattr(aval, "vma"):  # before jax 0.10
        return aval.vma
    return aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else frozenset()


def vary(x: Any, axes: Sequence[str]) -> jax.Array:
    """The same array, as one that may differ along these axes too."""
    missing = tuple(axis for axis in axes if axis not in varying(x))
    if not missing:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, missing, to="varying")
    return jax.lax.pvary(x, missing)  # pyright: ignore[reportAttributeAccessIssue] - its name before jax 0.9


def check_whole(rule: str, x: Any) -> None:
    """Refuses a shard where a rule needs the whole leaf.

    Raises:
        ValueError: for an array that differs between devices inside of ``shard_map``.
    """
    if axes := varying(x):
        raise ValueError(
            f"gradtx: rule {rule!r} needs whole leaves, and inside of shard_map this one of shape {jnp.shape(x)} is a "
            f"shard: its devices differ along {', '.join(map(repr, axes))}. Gather it (jax.lax.all_gather), replicate "
            "such leaves, or leave the partition to the compiler: jit with shardings needs no shard_map."
        )


def is_split(x: Any) -> bool:
    """Whether the type of an array says that it is spread over explicit axes of a mesh."""
    return any(axes is not None for axes in jax.typeof(x).sharding.spec)


def sum_of(numbers: Sequence[jax.Array]) -> jax.Array:
    """The sum of numbers of shards over all shards, in float32 or wider, by one collective for each set of axes."""
    dtype = promoted(jnp.float32, *(x.dtype for x in numbers))
    groups: dict[tuple[str, ...], list[jax.Array]] = {}
    for number in numbers:
        groups.setdefault(varying(number), []).append(number.astype(dtype))
    sums = [functools.reduce(jnp.add, group) for group in groups.values()]
    sums = [jax.lax.psum(x, axes) if axes else x for x, axes in zip(sums, groups, strict=True)]
    return functools.reduce(jnp.add, sums) if sums else jnp.zeros((), dtype)


def all_of(flags: Sequence[jax.Array]) -> jax.Array:
    """Whether all flags hold, in all shards: one collective."""
    flag = functools.reduce(jnp.logical_and, flags, jnp.array(True))
    axes = varying(flag)
    return jax.lax.pmin(flag.astype(jnp.int32), axes).astype(bool) if axes else flag


def size_of(x: jax.Array) -> int:
    """The number of elements of an array, over all of its shards."""
    return math.prod((x.size, *(jax.lax.psum(1, axis) for axis in varying(x))))


def sharded_as(x: jax.Array, other: jax.Array) -> jax.Array:
    """The same array, over the devices as another of its shape, of which in ``jit`` only the compiler knows."""
    if not isinstance(other, jax.core.Tracer):
        return x
    never = (other.real < 0) & (other.real > 0)  # what is chosen by an array is sharded as it is
    return jnp.where(never, jnp.ones_like(x), x)


def puts_constants(method: Callable[P, R]) -> Callable[P, R]:
    """A method that may put constants of its own on the devices, whatever ``jax.transfer_guard`` says of other data."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.transfer_guard("allow"):
            return method(*args, **kwargs)

    return wrapped


def starts(init: Callable[P, R]) -> Callable[P, R]:
    """An ``init`` whose state is on all devices that the parameters are on, and which takes abstract parameters.

    A compiled step gives back its state so: it is then the same program for the first step and for all others. What
    the state of abstract parameters, ``jax.ShapeDtypeStruct``, has from their values is abstract too.
    """

    @puts_constants
    @functools.wraps(init)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        *before, params = (*args, *kwargs.values())
        if not any(map(_is_abstract, jax.tree.leaves(params))):
            return _placed(init(*args, **kwargs), params)
        of: Callable[..., R] = init
        states = [of(*before, jax.tree.map(functools.partial(_filled, value=value), params)) for value in (0, 1)]
        return jax.tree.map(_if_same, *states)

    return wrapped


def _is_abstract(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def _filled(x: Any, value: int) -> Any:
    return jnp.full(x.shape, value, x.dtype, device=x.sharding) if _is_abstract(x) else x


def _if_same(x: jax.Array, y: jax.Array) -> Any:
    return x if isinstance(x, jax.core.Tracer) or bool((x == y).all()) else jax.ShapeDtypeStruct(x.shape, x.dtype)


def _placed(state: R, params: Any) -> R:
    known = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)]
    meshes = {x.sharding.mesh for x in known if isinstance(x.sharding, NamedSharding) and x.sharding.mesh.size > 1}
    if len(meshes) != 1:
        return state
    everywhere = NamedSharding(meshes.pop(), PartitionSpec())

    def place(x: Any) -> Any:
        return jax.device_put(x, everywhere) if len(x.sharding.device_set) == 1 else x

    return jax.tree.map(place, state)
