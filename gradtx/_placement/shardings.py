"""The placement of a state before there is one: over the devices of a mesh, and in which memory."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gradtx._core.codecs import SIZE, is_encoded, leaves_in_blocks
from gradtx._core.mesh import check_memory, in_host_memory, largest_divided
from gradtx._core.selectors import flatten_with_keys
from gradtx._core.state import PackedState
from gradtx._core.walk import Keys, walk, word, words
from gradtx._engine.checks import dtype_of
from gradtx._engine.transformation import check_transformation
from gradtx._wrappers.packed import PackedSlot, check_not_spread
from gradtx._wrappers.zero1 import zero1

__all__ = ["Placement", "abstract_state", "placement", "state_shardings"]


class Placement(NamedTuple):
    """The placement of a state; it prints as its bytes, and what an axis does not divide.

    Attributes:
        state: the state, a ``jax.ShapeDtypeStruct`` with its sharding for each array.
        axis: the axis of the mesh that the slots were to be divided over, by ``axis`` or ``zero1``, or None.
    """

    state: Any
    axis: str | None

    @property
    def shardings(self) -> Any:
        """The sharding of each array of the state."""
        return jax.tree.map(lambda x: x.sharding, self.state)

    @property
    def nbytes(self) -> int:
        """The bytes of the state, each array counted once."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.state))

    @property
    def nbytes_per_device(self) -> int:
        """The bytes that the state takes on each device."""
        return sum(_shard_bytes(x) for x in jax.tree.leaves(self.state))

    @property
    def undivided(self) -> dict[str, int]:
        """The arrays of the state that ``axis`` does not divide, by path, with their bytes on each device."""
        if self.axis is None:
            return {}
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.state)
        return {
            "/".join(words(keys)): _shard_bytes(x)
            for keys, x in leaves
            if x.ndim and self.axis not in _axes(x.sharding.spec)
        }

    def __str__(self) -> str:
        devices = {x.sharding.num_devices for x in jax.tree.leaves(self.state)}
        lines = [
            f"{self.nbytes:,} bytes of state, {self.nbytes_per_device:,} on each of {max(devices, default=0)} devices"
        ]
        if self.undivided:
            lines.append(f"not divided by {self.axis!r}:")
            lines += [f"  {path}: {nbytes:,} bytes" for path, nbytes in self.undivided.items()]
        return "\n".join(lines)


def placement(
    tx: optax.GradientTransformation,
    params: Any,
    shardings: Any = None,
    axis: str | None = None,
    memory_kind: str | None = None,
) -> Placement:
    """The place of a transformation's state, and the bytes that it takes: ``state_shardings`` with a report.

    Args:
        tx, params, shardings, axis, memory_kind: as for ``state_shardings``.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
    >>> everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    >>> params = {"w": jax.ShapeDtypeStruct((512, 256), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
    >>> print(gradtx.placement(gradtx.adam(1e-3), params, everywhere, axis="data"))
    1,048,640 bytes of state, 131,136 on each of 8 devices
    not divided by 'data':
      momentum/m/b: 12 bytes
      rms/s/b: 12 bytes
    """
    check_transformation("placement", "tx", tx)
    leaves, treedef = flatten_with_keys(params)
    given = given_shardings(leaves, treedef, shardings)
    mesh = _mesh_of(given)
    if axis is not None and axis not in mesh.axis_names:
        raise ValueError(f"state_shardings: axis {axis!r} is none of the mesh, which has {mesh.axis_names}")
    if memory_kind is not None and isinstance(mesh, Mesh):
        check_memory("state_shardings", memory_kind, mesh.devices.flat[0])
    shapes = {keys: jnp.shape(x) for keys, x in leaves if keys in given}
    in_blocks = leaves_in_blocks(_state_of(tx, leaves, treedef, {})) if axis is not None else set()
    wanted = {keys: divided(shape, given[keys], axis, _words(keys) in in_blocks) for keys, shape in shapes.items()}
    spelled = {_whole_spec(wanted[keys].spec, len(shape)): wanted[keys].spec for keys, shape in shapes.items()}
    place = functools.partial(_place, mesh, spelled, memory_kind)

    def abstract(types: AbstractMesh, of: Mapping[Keys, NamedSharding]) -> Any:
        return _state_of(tx, leaves, treedef, {keys: NamedSharding(types, s.spec) for keys, s in of.items()})

    explicit = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=(AxisType.Explicit,) * len(mesh.axis_names))
    try:
        state = abstract(explicit, wanted)
    except Exception as error:
        if type(error).__name__ != "ShardingTypeError":  # which jax has no public name for
            raise
        state = _state_of(tx, leaves, treedef, {})

    def placed(keys: Keys, x: Any) -> Any:  # codes, their scales, and what is like them, go together
        if is_encoded(x):
            return jax.tree.map(place, x)
        of = _parameter_of(keys, x.shape, shapes)
        return place(x, axis=None if of is not None and _words(of) in in_blocks else axis)

    nodes, structure = flatten_with_keys(_by_path(state, explicit, wanted, shapes), is_leaf=is_encoded)
    state = structure.unflatten(itertools.starmap(placed, nodes))
    if any(walk(state, PackedState)):  # packs what init sees to be whole, on this mesh
        as_started = abstract(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh, given)
        state = _packed_as(
            as_started, state, {tuple(map(word, keys)): (x, given.get(keys)) for keys, x in leaves}, place
        )
    return Placement(state, tx.axis_name if isinstance(tx, zero1) else axis)


def state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    shardings: Any = None,
    axis: str | None = None,
    memory_kind: str | None = None,
) -> Any:
    r"""The sharding of each array of the state: each slot as its parameter, scalars on all devices.

    From shapes, dtypes and shardings alone, before there is a state. It goes into ``jax.jit`` as ``out_shardings`` of
    ``init`` and, with that of the parameters, of a step; then a state keeps its place, whatever the compiler would
    choose for it.

    With ``axis``, as ``"data"``, the slots are divided over that axis of the mesh as well, though the parameters are
    not: optimizer-state sharding, the first stage of ZeRO. Each device holds 1/N of the state and steps its part of the
    parameters. Elementwise rules give the same trajectories, bit for bit; norms, up to rounding. XLA makes it with an
    all-reduce of the gradients and an all-gather of the parameters, half more over the network than plain data
    parallelism; ``zero1`` makes it with a reduce-scatter, in ``shard_map``.

    Args:
        tx: a gradtx chain, rule or wrapper, or any optax transformation.
        params: the parameters, or ``jax.ShapeDtypeStruct``\ s like them.
        shardings: a ``jax.sharding.NamedSharding`` of each parameter, all on one mesh, abstract or not; a tree like the
            parameters, or one for all. None, the default: those that the parameters have.
        axis: an axis of the mesh. It divides the longest dimension of each slot that is free (over which the parameter
            is not sharded) and that the size of the axis divides; jax has no uneven shards. None, the default: slots as
            their parameters. What it divides nowhere stays as it is: ``placement`` lists that, with its bytes.
        memory_kind: of all slots with dimensions, as ``"pinned_host"``; scalars stay on the device, so that nothing
            compiles anew after a restart. A step then needs ``offload``. None, the default: the device's.

    Returns:
        A tree like the state of ``jax.jit(tx.init)``, of ``NamedSharding``\ s.

    How slots follow parameters is what ``init`` does on explicit axes of a mesh: sums of rows and columns as the
    parameter's rows and columns. What it cannot do there, and what is whole there though it has a parameter's path and
    shape, follows that parameter. What says nothing of a parameter, as the factors of ``soap``, is whole on each
    device, or divided along its own longest dimension with ``axis``. The flat arrays of ``packed`` are whole.

    Raises:
        TypeError: for a ``tx`` that is no transformation, and a sharding that is no ``NamedSharding``.
        ValueError: for shardings of several meshes, an unknown ``axis`` or memory, parameters that are spread over
            devices and would be ``packed``.

    Source: Rajbhandari et al. (2020), "ZeRO: memory optimizations toward training trillion parameter models".

    >>> import gradtx, jax, jax.numpy as jnp
    >>> mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
    >>> rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
    >>> params = {"w": jax.ShapeDtypeStruct((512, 256), jnp.float32)}
    >>> for axis in None, "data":
    ...     found = gradtx.state_shardings(gradtx.adam(1e-3), params, rows, axis=axis)
    ...     print(found.slots["rms"]["s"]["w"].spec, found.count.spec)
    P('model',) P()
    P('model', 'data') P()
    """
    return placement(tx, params, shardings, axis, memory_kind).shardings


def abstract_state(
    tx: optax.GradientTransformation,
    params: Any,
    shardings: Any = None,
    axis: str | None = None,
    memory_kind: str | None = None,
) -> Any:
    """The state as ``jax.ShapeDtypeStruct`` with shardings: what Orbax restores into, on any mesh.

    Args:
        tx, params, shardings, axis, memory_kind: as for ``state_shardings``.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
    >>> rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    >>> params = {"w": jax.ShapeDtypeStruct((512, 256), jnp.bfloat16)}
    >>> slot = gradtx.abstract_state(gradtx.adam(1e-3), params, rows).slots["rms"]["s"]["w"]
    >>> print(slot.shape, slot.dtype, slot.sharding.spec)
    (512, 256) float32 P('data',)
    """
    return placement(tx, params, shardings, axis, memory_kind).state


def given_shardings(leaves: list[tuple[Keys, Any]], treedef: Any, shardings: Any) -> dict[Keys, NamedSharding]:
    """The sharding of each parameter that is an array, as the user gives it."""
    if shardings is None:
        each = [getattr(x, "sharding", None) for _, x in leaves]
    else:
        each = treedef.flatten_up_to(jax.tree.broadcast(shardings, treedef.unflatten(range(len(leaves)))))
    given = {}
    for (keys, x), sharding in zip(leaves, each, strict=True):
        if dtype_of(x) is None:
            continue
        if not isinstance(sharding, NamedSharding):
            path = "/".join(map(word, keys))
            raise TypeError(
                f"state_shardings: leaf {path!r} needs a jax.sharding.NamedSharding, found {sharding}. Give them as "
                "shardings=, for each parameter or one for all; a PartitionSpec alone names no mesh."
            )
        given[keys] = sharding
    return given


def _mesh_of(given: Mapping[Keys, NamedSharding]) -> Mesh | AbstractMesh:
    meshes = {sharding.mesh for sharding in given.values()}
    if len(meshes) != 1:
        raise ValueError(f"state_shardings: the parameters must be on one mesh, found {len(meshes)}: {meshes}")
    return meshes.pop()


def _words(keys: Keys) -> tuple[str, ...]:
    return tuple(map(word, keys))


def divided(
    shape: tuple[int, ...], sharding: NamedSharding, axis: str | None, in_blocks: bool = False
) -> NamedSharding:
    """The sharding of an array that is divided over an axis as well, where that divides it.

    Args:
        shape, sharding: of the array.
        axis: of the mesh.
        in_blocks: whether the last dimension is one of blocks of codes, which stay whole.
    """
    spec = _whole_spec(sharding.spec, len(shape))
    if axis is None or axis in _axes(spec):
        return sharding
    free = [n if entry is None else 0 for n, entry in zip(shape, spec, strict=True)]
    longest = largest_divided(free, sharding.mesh.shape[axis], SIZE if in_blocks else 1)
    if longest is None:
        return sharding
    entries = [axis if i == longest else entry for i, entry in enumerate(spec)]
    return NamedSharding(sharding.mesh, _short_spec(entries), memory_kind=sharding.memory_kind)


def _state_of(
    tx: optax.GradientTransformation, leaves: list[tuple[Keys, Any]], treedef: Any, of: Mapping[Keys, NamedSharding]
) -> Any:
    """The state as its types are, of parameters with these shardings, whatever mesh is set here."""
    abstract = {
        keys: jax.ShapeDtypeStruct(jnp.shape(x), dtype_of(x), sharding=of.get(keys))
        for keys, x in leaves
        if dtype_of(x) is not None
    }

    def init(arrays: list[Any]) -> Any:
        given = dict(zip(abstract, arrays, strict=True))
        return tx.init(treedef.unflatten([given.get(keys, x) for keys, x in leaves]))

    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        jaxpr, state = jax.make_jaxpr(init, return_shape=True)(list(abstract.values()))
    return jax.tree.unflatten(jax.tree.structure(state), jaxpr.out_avals)


def _parameter_of(keys: Keys, shape: tuple[int, ...], shapes: Mapping[Keys, tuple[int, ...]]) -> Keys | None:
    """The parameter with whose path a path in the state ends, if it has the shape."""
    ends = (keys[start:] for start in range(len(keys) + 1))
    return next((end for end in ends if shapes.get(end) == shape), None)


def _by_path(
    state: Any, mesh: AbstractMesh, of: Mapping[Keys, NamedSharding], shapes: Mapping[Keys, tuple[int, ...]]
) -> Any:
    """The state, in which what is whole by its type, and is called and shaped as a parameter, is spread as that is."""

    def one(keys: Keys, x: Any) -> Any:
        like = _parameter_of(keys, x.shape, shapes)
        if like is None or _axes(x.sharding.spec):
            return x
        return x.update(sharding=NamedSharding(mesh, _whole_spec(of[like].spec, x.ndim)))

    leaves, treedef = flatten_with_keys(state)
    return treedef.unflatten([one(keys, x) for keys, x in leaves])


def _place(
    mesh: Mesh | AbstractMesh,
    spelled: Mapping[PartitionSpec, PartitionSpec],
    memory_kind: str | None,
    x: Any,
    axis: str | None = None,
) -> jax.ShapeDtypeStruct:
    """An abstract array of the state with its sharding, spelled as that of parameters where it is one of theirs."""
    spec = _whole_spec(x.sharding.spec, x.ndim)
    sharding = divided(x.shape, NamedSharding(mesh, spelled.get(spec, _short_spec(spec))), axis)
    kind = "pinned_host" if in_host_memory(x) else memory_kind if x.ndim else None
    sharding = sharding if kind is None else sharding.with_memory_kind(kind)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _packed_as(
    like: Any, state: Any, params: Mapping[tuple[str, ...], tuple[Any, Any]], place: Callable[[Any], Any]
) -> Any:
    """The state with leaves packed as they are in another one."""
    leaves, treedef = jax.tree.flatten(like, is_leaf=lambda x: isinstance(x, PackedSlot))

    def one(packed: Any, x: Any) -> Any:
        if not isinstance(packed, PackedSlot):
            return x
        for i in (i for group in packed.packing.groups for i in group):
            leaf, sharding = params[packed.packing.keys[i]]
            abstract = jax.ShapeDtypeStruct(jnp.shape(leaf), dtype_of(leaf), sharding=sharding)
            check_not_spread("/".join(packed.packing.keys[i]), abstract)
        of_leaves = x.leaves if isinstance(x, PackedSlot) else x
        by_keys = {tuple(map(word, keys)): leaf for keys, leaf in flatten_with_keys(of_leaves)[0]}
        kept, of_kept = flatten_with_keys(packed.leaves)
        flat: Any = [None if f is None else place(f) for f in packed.flat]
        return PackedSlot(
            of_kept.unflatten([by_keys[tuple(map(word, keys))] for keys, _ in kept]), tuple(flat), packed.packing
        )

    return treedef.unflatten(list(map(one, leaves, treedef.flatten_up_to(state))))


def _whole_spec(spec: PartitionSpec, ndim: int) -> PartitionSpec:
    """The specification with an entry for each dimension."""
    return PartitionSpec(*spec, *[None] * (ndim - len(spec)))


def _short_spec(spec: Any) -> PartitionSpec:
    """The specification without entries behind the last that says anything, as jax gives back arrays."""
    entries = list(spec)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _axes(spec: PartitionSpec) -> set[str]:
    """The axes of the mesh in it."""
    return {axis for entry in spec if entry is not None for axis in (entry if isinstance(entry, tuple) else (entry,))}


def _shard_bytes(x: Any) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
