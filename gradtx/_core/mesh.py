"""Arrays over the devices of a mesh: what the type of one says, and what holds for all of its shards.

Inside of ``jax.shard_map`` a device sees its own shard of an array, and the type of the array says along which axes of
the mesh the shards differ. A sum over all of the array is then one over these axes too; each array has its own, so that
sharded and replicated ones mix. With ``check_vma=False`` types say nothing: what is done to each element is right all
the same, and whatever needs whole arrays is refused.
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
from jax.tree_util import tree_leaves_with_path, tree_map_with_path

from gradtx._core.dataflow import never
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


_same_everywhere = jax.make_user_context(False)  # part of the key of jit's cache


def replicated() -> Any:
    """Says that in this context, inside of ``shard_map``, all devices hold the same arrays: ``with replicated(): ...``.

    Inside of ``jax.shard_map`` norms, sums and guards are over all shards of each leaf; along which axes of the mesh a
    leaf is sharded, its type says. With ``check_vma=False``, and inside of ``jax.pmap``, types do not: a step that
    needs whole leaves is then refused, as it might take a shard for a leaf. It need not be where gradients, parameters
    and state are whole on each device, as in plain data parallelism behind the mean of the gradients.

    Where leaves are sharded, let ``in_specs`` say how: take the step in a ``shard_map`` with ``check_vma=True`` (of its
    own, if the gradients need another), or outside of it, under ``jit``. Where types do say what is sharded, this
    changes nothing.

    >>> import functools, gradtx, jax, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(0.1))
    >>> @functools.partial(jax.pmap, axis_name="data", in_axes=(None, None, 0))
    ... def train(params, state, batch):
    ...     grads = jax.lax.pmean(jax.grad(lambda p: (p * batch).sum())(params), "data")
    ...     with gradtx.replicated():
    ...         return gradtx.step(tx, params, grads, state)
    >>> params = jnp.array([1.0, 2.0])
    >>> print(train(params, tx.init(params), jnp.array([[3.0, 4.0]]))[0])
    [[0.94 1.92]]
    """
    return _same_everywhere(True)


def check_types(who: str = "") -> None:
    """Refuses to take numbers of whole arrays where types do not say what is a shard.

    Args:
        who: the beginning of the message; without, whoever calls a rule says which.

    Raises:
        ValueError: inside of ``shard_map(check_vma=False)`` or ``pmap`` over several devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh.manual_axes
    if _same_everywhere.value or math.prod(mesh.shape[axis] for axis in axes) == 1:
        return
    if not types_tell(axes):
        raise ValueError(
            f"{who and f'{who}: '}needs whole leaves, and inside of shard_map(check_vma=False), or pmap, over "
            f"{', '.join(map(repr, axes))} types do not say which leaves are shards. Take the step with "
            "check_vma=True, in a shard_map of its own if need be; or outside of shard_map, under jit; or, where "
            "gradients, parameters and state are the same on all devices, inside of `with gradtx.replicated():`."
        )


def types_tell(axes: Sequence[str]) -> bool:
    """True if types say inside of ``shard_map`` over these axes what differs along them."""
    if not axes:
        return True
    (index,) = jax.make_jaxpr(lambda: jax.lax.axis_index(tuple(axes)))().out_avals
    return bool(varying(index))


def may_differ(x: Any) -> tuple[str, ...]:
    """The axes of the mesh along which an array differs between devices, or may, where types do not say."""
    mesh = jax.sharding.get_abstract_mesh()
    told = types_tell(mesh.manual_axes) or _same_everywhere.value
    return tuple(axis for axis in (varying(x) if told else mesh.manual_axes) if mesh.shape[axis] > 1)


_whole_rows = jax.make_user_context(())


def keeps_rows_whole(axes: Sequence[str]) -> Any:
    """Says that in this context, inside of ``shard_map``, no last axis is cut within a block along these axes."""
    return _whole_rows(tuple(axes))


def rows_stay_whole() -> tuple[str, ...]:
    """The axes along which no last axis is cut within a block, as is said."""
    return _whole_rows.value


def check_whole(rule: str, x: Any) -> None:
    """Refuses a shard where a rule needs the whole leaf.

    Raises:
        ValueError: for an array that differs between devices inside of ``shard_map``, or may.
    """
    check_types(f"gradtx: rule {rule!r}")
    if axes := varying(x):
        raise ValueError(
            f"gradtx: rule {rule!r} needs whole leaves, and inside of shard_map this one of shape {jnp.shape(x)} is a "
            f"shard: its devices differ along {', '.join(map(repr, axes))}. Gather it (jax.lax.all_gather), replicate "
            "such leaves, or leave the partition to the compiler: jit with shardings needs no shard_map."
        )


def whole_shapes(x: jax.Array) -> set[tuple[int, ...]]:
    """The shapes that the whole of a shard may have, inside of ``shard_map``; of an array that is whole, its own."""
    shapes = {x.shape}
    for axis in may_differ(x):
        size = jax.sharding.get_abstract_mesh().shape[axis]
        shapes = {(*shape[:i], n * size, *shape[i + 1 :]) for shape in shapes for i, n in enumerate(shape)}
    return shapes


def is_split(x: Any) -> bool:
    """True if the type of an array says that it is spread over explicit axes of a mesh."""
    return any(axes is not None for axes in jax.typeof(x).sharding.spec)


def unsplit(x: jax.Array) -> jax.Array:
    """The same array, whole on all devices where it is known to be spread over them."""
    if isinstance(x, jax.core.Tracer):
        sharding = jax.typeof(x).sharding
        return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec())) if is_split(x) else x
    sharding = x.sharding
    if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated:
        return x
    return jax.device_put(x, NamedSharding(sharding.mesh, PartitionSpec()))


def sum_of(numbers: Sequence[jax.Array]) -> jax.Array:
    """The sum of numbers of shards over all shards, in float32 or wider, by one collective."""
    dtype = promoted(jnp.float32, *(x.dtype for x in numbers))
    terms, axes = once_each([x.astype(dtype) for x in numbers])
    return over_shards(functools.reduce(jnp.add, terms), axes) if terms else jnp.zeros((), dtype)


def sums_of(numbers: Sequence[jax.Array]) -> list[jax.Array]:
    """The sum over all shards of each number of shards, in float32 or wider, by one collective."""
    return over_shards(*once_each([x.astype(promoted(jnp.float32, x.dtype)) for x in numbers]))


def once_each(numbers: Sequence[jax.Array]) -> tuple[list[jax.Array], tuple[str, ...]]:
    """Numbers as they are summed along the same axes, and these: 0 on all but one of the devices that hold the same."""
    if numbers:
        check_types()
    axes = varying(*numbers)

    def once(x: jax.Array) -> jax.Array:
        if repeated := tuple(axis for axis in axes if axis not in varying(x)):
            x = jnp.where(jax.lax.axis_index(repeated) == 0, x, 0)
        return vary(x, axes)

    return [once(x) for x in numbers], axes


def over_shards(x: Any, axes: Sequence[str]) -> Any:
    """The sum along these axes, if there are any."""
    return jax.lax.psum(x, tuple(axes)) if axes else x


def size_of(x: jax.Array) -> int:
    """The number of elements of an array, over all of its shards."""
    check_types()
    return math.prod((x.size, *(jax.lax.psum(1, axis) for axis in varying(x))))


def sharded_as(x: jax.Array, other: jax.Array) -> jax.Array:
    """The same array, over the devices as another of its shape, of which in ``jit`` only the compiler knows."""
    if not isinstance(other, jax.core.Tracer):
        return x
    return jnp.where(never(other), jnp.ones_like(x), x)


def largest_divided(lengths: Sequence[int], size: int, block: int = 1) -> int | None:
    """The dimension with the largest length that a number of devices divides, the first of equals; None if none is.

    Args:
        lengths: of the dimensions.
        size: the number of devices.
        block: of how many elements along the last dimension none may be apart.
    """
    units = [1] * (len(lengths) - 1) + [block]
    divided = [0 if n % (size * unit) else n for n, unit in zip(lengths, units, strict=False)]
    return divided.index(max(divided)) if any(divided) else None


def is_manual(axis: str) -> bool:
    """True if this is inside of ``shard_map`` over an axis of the mesh."""
    return axis in jax.sharding.get_abstract_mesh().manual_axes


def part_of(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """The part that a device has, inside of ``shard_map``, of what is whole on each along an axis of the mesh."""
    length = x.shape[dimension] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(vary(x, (axis,)), jax.lax.axis_index(axis) * length, length, dimension)


def gathered(x: jax.Array, axis: str, dimension: int) -> jax.Array:
    """All parts along an axis of the mesh, the same on each device."""
    before: Any = getattr(jax.lax, "all_gather_invariant", None)  # its name before jax 0.10
    if before is not None:
        return before(x, axis, axis=dimension, tiled=True)
    return jax.lax.all_gather(x, axis, axis=dimension, tiled=True, to="invarying")


def divided_over(x: jax.Array, axis: str, block: int = 1) -> jax.Array:
    """The same array divided over an axis, if that is explicit, as its shards would be inside of ``shard_map``."""
    sharding = jax.typeof(x).sharding
    sizes, spec = sharding.mesh.shape, sharding.spec
    named = [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    if axis not in sharding.mesh.explicit_axes or any(axis in axes for axes in named):
        return x
    local = [n // math.prod(sizes[one] for one in axes) for n, axes in zip(x.shape, named, strict=True)]
    longest = largest_divided(local, sizes[axis], block)
    entries = [(*axes, axis) if i == longest else axes or None for i, axes in enumerate(named)]
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*entries)))


def in_host_memory(x: Any) -> bool:
    """True if the type of an array says that it is in the memory of the host, and not in that of a device."""
    aval: Any = x if isinstance(x, jax.core.ShapedArray) else jax.typeof(x)
    return getattr(aval, "memory_space", None) == jax.memory.Space.Host


def check_memory(who: str, kind: str, device: Any) -> None:
    """Refuses a kind of memory that a device does not have.

    Raises:
        ValueError: for such a kind.
    """
    known = [memory.kind for memory in device.addressable_memories()]
    if kind not in known:
        raise ValueError(
            f"{who}: memory_kind {kind!r} is no memory of {device.platform} devices here, which have "
            f"{', '.join(map(repr, known))}"
        )


def spread_as(x: jax.Array, like: Any) -> jax.Array:
    """The same array, over explicit axes of a mesh as one of this type is."""
    found, wanted = jax.typeof(x).sharding, like.sharding
    if found.spec == wanted.spec:
        return x
    return jax.sharding.reshard(x, NamedSharding(found.mesh if wanted.mesh.empty else wanted.mesh, wanted.spec))


def like_parameters(state: Any, params: Any) -> Any:
    """The state, in which arrays that belong to parameters of the same shape are spread over the devices as these.

    An array belongs to the parameter with whose path its own ends. In ``jit`` zeros know nothing of a parameter whose
    shape they have, and would be on one device, or whole on all of them.
    """
    known = {keys: p for keys, p in tree_leaves_with_path(params) if _is_traced(p) and p.ndim}

    def one(keys: Any, x: Any) -> Any:
        if in_host_memory(x):
            return x
        ends = (known.get(keys[start:]) for start in range(len(keys) + 1))
        return next((sharded_as(x, p) for p in ends if p is not None and jnp.shape(x) == p.shape), x)

    return tree_map_with_path(one, state) if known else state


def _is_traced(x: Any) -> bool:
    """True if it is an array of numbers that ``jit`` traces."""
    return isinstance(x, jax.core.Tracer) and jnp.issubdtype(x.dtype, jnp.number)


def _on_all_devices(state: R, params: Any) -> R:
    """The state, of which ``jit`` knows that it is where the parameters are, though it may not depend on them."""
    traced = [p for p in jax.tree.leaves(params) if _is_traced(p) and p.size and not is_split(p) and not varying(p)]
    leaves, treedef = jax.tree.flatten(state)
    numbers = [i for i, x in enumerate(leaves) if jnp.shape(x) == () and jnp.issubdtype(x.dtype, jnp.number)]
    if not traced or not numbers:
        return state
    first = jax.lax.slice(traced[0], (0,) * traced[0].ndim, (1,) * traced[0].ndim).reshape(())
    leaves[numbers[0]] = sharded_as(leaves[numbers[0]], first)
    return treedef.unflatten(leaves)


def left_to_compiler(function: Callable[..., R], like: Any, *arguments: Any) -> R:
    """``function(*arguments)``, where the compiler says what is on which device, on axes that are explicit as well.

    Args:
        function: that of trees of arrays, given as arguments all that it reads.
        like: a tree as the result, of arrays that are spread as the results are to be.
        arguments: the trees.
    """
    leaves = [x for x in jax.tree.leaves((like, arguments)) if isinstance(x, jax.Array) and is_split(x)]
    if not leaves:
        return function(*arguments)
    axes = jax.typeof(leaves[0]).sharding.mesh
    spread = jax.tree.map(lambda x: NamedSharding(axes, jax.typeof(x).sharding.spec), like)
    by_compiler: Any = jax.sharding.auto_axes(function, out_sharding=spread)
    return by_compiler(*arguments)


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
            return _on_all_devices(_placed(init(*args, **kwargs), params), params)
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
