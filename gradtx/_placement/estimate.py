"""A training over many devices on paper: bytes on each, bytes between them, and the time that takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gradtx._core.limits import integer, number
from gradtx._core.numerics import is_inexact
from gradtx._core.selectors import flatten_with_keys, path_of
from gradtx._placement.shardings import divided, given_shardings, placement

__all__ = ["DeviceBytes", "Estimate", "estimate"]

_WHOLE = PartitionSpec()


class DeviceBytes(NamedTuple):
    """The bytes of one device, at the worst moment of a step and over the network.

    Attributes:
        parameters: held from step to step.
        gradients: what is kept of them until the optimizer has read it.
        state: of the optimizer, held from step to step.
        temporaries: what stands beside those: sums of gradients beside their terms, parameters that were gathered.
        network: sent to other devices in a step.
        optimizer: read and written by it in a step.
    """

    parameters: int
    gradients: int
    state: int
    temporaries: int
    network: int
    optimizer: int

    @property
    def memory(self) -> int:
        """The memory that a device needs beside that of activations."""
        return self.parameters + self.gradients + self.state + self.temporaries


class Estimate(NamedTuple):
    """The needs of a training over many devices; it prints as a table.

    Attributes:
        parameters: their number, on all devices together.
        mesh: the sizes of the axes of the mesh.
        axis: the axis along which batches, and what is divided, are divided.
        placements: the bytes of a device, by the name of the placement.
        undivided: the leaves that ``axis`` does not divide, by path, with their bytes on each device. They, their
            gradients and their slots stay whole along it in each placement.
        network_bandwidth: bytes a second that a device sends, or None.
        memory_bandwidth: bytes a second that a device reads and writes, or None.
    """

    parameters: int
    mesh: dict[str, int]
    axis: str
    placements: dict[str, DeviceBytes]
    undivided: dict[str, int]
    network_bandwidth: float | None
    memory_bandwidth: float | None

    def seconds(self, name: str) -> float:
        """The time of a step's collectives and of the optimizer's pass over memory, one behind the other.

        Nothing is taken to overlap; what has no bandwidth takes no time.
        """
        row = self.placements[name]
        needs = ((row.network, self.network_bandwidth), (row.optimizer, self.memory_bandwidth))
        return sum(nbytes / bandwidth for nbytes, bandwidth in needs if bandwidth is not None)

    def __str__(self) -> str:
        devices, mesh = math.prod(self.mesh.values()), " × ".join(f"{k} {n:,}" for k, n in self.mesh.items())
        timed = self.network_bandwidth is not None or self.memory_bandwidth is not None
        columns = ["params", "grads", "state", "temp.", "memory", "network", *["time"] * timed]
        rows = [[f"divided by {self.axis}", *columns]]
        for name, row in self.placements.items():
            sizes = (row.parameters, row.gradients, row.state, row.temporaries, row.memory, row.network)
            rows.append([name, *map(_bytes, sizes), *[_seconds(self.seconds(name))] * timed])
        lines = [f"{self.parameters:,} parameters on {devices:,} devices: {mesh}"]
        lines += ["".join([name.ljust(22), *(cell.rjust(8) for cell in cells)]) for name, *cells in rows]
        largest = sorted(self.undivided.items(), key=lambda item: -item[1])
        lines += [f"not divided: {path[-56:]}, {_bytes(nbytes)}" for path, nbytes in largest[:3]]
        if len(largest) > 3:
            lines.append(f"not divided: {len(largest) - 3} more, {_bytes(sum(n for _, n in largest[3:]))}")
        return "\n".join(lines)


def estimate(
    tx: optax.GradientTransformation,
    params: Any,
    mesh: Mesh | AbstractMesh | Mapping[str, int],
    *,
    axis: str = "data",
    specs: Any = _WHOLE,
    gradients: Any = None,
    scanned: int = 1,
    network: float | None = None,
    memory: float | None = None,
) -> Estimate:
    r"""The memory, the traffic and the time that a training over many devices takes, from shapes alone.

    With N devices along ``axis``, and P, G and S bytes of parameters, gradients and state on a device if nothing is
    divided by them, a device holds, and sends in a step:

    ======================  ==========  =========  =====  ===========  =====================
    placement               parameters  gradients  state  temporaries  network, times (N−1)/N
    ======================  ==========  =========  =====  ===========  =====================
    replicated              P           G          S      G            2G
    ZeRO-1, out_shardings   P           G          S/N    G            2G + P
    ZeRO-1, reduce-scatter  P           G/N        S/N    P/N          G + P
    fully sharded           P/N         G/N        S/N    P            G + P
    ======================  ==========  =========  =====  ===========  =====================

    Replicated is plain data parallelism. The second is what XLA makes under ``jit`` of a state by ``state_shardings``
    with this ``axis``: an all-reduce of the gradients, an all-gather of the parameters. The third is ``zero1``
    inside of ``shard_map``: gradients are reduced and scattered, the step is taken on shards, parameters are gathered.
    Fully sharded parameters are gathered for their use. In a ring, each device sends (N−1)/N of what is gathered, or
    reduced and scattered, and twice that of what is all-reduced.

    Temporaries are the sums of gradients beside their terms, the shards that a step is taken on, and gathered
    parameters. In the last two placements a gradient that is not yet scattered takes no memory of its own: XLA puts it
    where its parameter was, which is donated, or gathered. It cannot where leaves are stacked over L layers, and a scan
    goes over them with ``jax.checkpoint`` around each layer. Then gradients are kept whole, and a layer is gathered and
    reduced at a time, forward and again backward:

    ======================  ==========  =========  =====  ===========  =====================
    replicated              P           G          S      2G/L         2G
    ZeRO-1, out_shardings   P           G          S/N    2G/L         2G + P
    ZeRO-1, reduce-scatter  P           G          S/N    (P + G)/N    G + P
    fully sharded           P/N         G/N        S/N    (P + G)/L    G + 2P
    ======================  ==========  =========  =====  ===========  =====================

    A leaf that N divides along no free dimension stays whole, and its gradient is all-reduced. The state is that of
    ``placement``.

    Not counted are activations and what sends them around, a rule's own temporaries (matrix products), and the few
    bytes of norms. The sums agree with ``memory_analysis`` of what jax 0.10 compiles for eight CPUs to 5 %, and the
    network with its HLO. But in the third placement XLA may keep copies of parameters, and those of leaves divided
    along another dimension than the first in another layout: up to 30 % more in all. Fully sharded parameters under
    ``jit`` alone, without ``shard_map``, are up to the compiler: there it sent more.

    Args:
        tx: a gradtx chain, rule or wrapper, or any optax transformation.
        params: the parameters, or ``jax.ShapeDtypeStruct``\ s like them. No array is made.
        mesh: of devices, an abstract one, or the sizes of its axes, ``{"data": 64, "model": 8}``.
        axis: the axis that batches are divided over. "data".
        specs: how parameters are sharded over the other axes: a ``PartitionSpec`` for each, or one for all. Not at all.
        gradients: their dtype. None: that of the parameters.
        scanned: L, if leaves are stacked over as many layers; 1: they are not.
        network: bytes a second that a device sends. None: it takes no time.
        memory: bytes a second that a device reads and writes. None: it takes no time. The optimizer reads gradients,
            parameters and state and writes the latter two, of a shard where the state is divided: G + 2P + 2S bytes.

    Raises:
        ValueError: for an ``axis`` that the mesh does not have, or that ``specs`` have; for a bandwidth not above 0.
        TypeError: for a ``tx`` that is no transformation, and arguments of another type.

    Source: Rajbhandari et al. (2020), "ZeRO: memory optimizations toward training trillion parameter models"; Patarasuk
    & Yuan (2009), "Bandwidth optimal all-reduce algorithms for clusters of workstations".

    >>> import gradtx, jax, jax.numpy as jnp
    >>> layers = {"w": jax.ShapeDtypeStruct((64, 8192, 32768), jnp.bfloat16)}
    >>> mesh = {"data": 512}
    >>> print(gradtx.estimate(gradtx.adamw(1e-4), layers, mesh, scanned=64, network=50e9, memory=3e12))
    17,179,869,184 parameters on 512 devices: data 512
    divided by data         params   grads   state   temp.  memory network    time
    replicated             34.4 GB 34.4 GB  137 GB 1.07 GB  207 GB 68.6 GB   1.5 s
    ZeRO-1, out_shardings  34.4 GB 34.4 GB  268 MB 1.07 GB 70.1 GB  103 GB  2.06 s
    ZeRO-1, reduce-scatter 34.4 GB 34.4 GB  268 MB  134 MB 69.1 GB 68.6 GB  1.37 s
    fully sharded          67.1 MB 67.1 MB  268 MB 1.07 GB 1.48 GB  103 GB  2.06 s
    """
    for name, value in (("network", network), ("memory", memory)):
        if value is not None and number("estimate", name, value) <= 0:
            raise ValueError(f"estimate: {name} must be above 0, found {value!r}")
    layers = integer("estimate", "scanned", scanned, low=1)
    if isinstance(mesh, Mapping):
        mesh = AbstractMesh(tuple(mesh.values()), tuple(mesh))
    if axis not in mesh.shape:
        raise ValueError(f"estimate: axis {axis!r} is none of the mesh, which has {', '.join(map(repr, mesh.shape))}")
    shardings = jax.tree.map(
        functools.partial(NamedSharding, mesh), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    sizes = _sizes(params, shardings, axis, gradients)
    count = sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(params) if hasattr(x, "dtype"))
    state, state_shard = (placement(tx, params, shardings, of).nbytes_per_device for of in (None, axis))
    rows = _rows(sizes, state, state_shard, mesh.shape[axis], layers)
    undivided = {path: x.parameters for path, x in sizes.items() if not x.is_divided}
    return Estimate(count, dict(mesh.shape), axis, rows, undivided, network, memory)


class _Leaf(NamedTuple):
    """The bytes of a leaf and its gradient on a device, and those of its shard where an axis divides it."""

    parameters: int
    gradients: int
    parameters_shard: int
    gradients_shard: int
    is_divided: bool


def _sizes(params: Any, shardings: Any, axis: str, dtype: Any) -> dict[str, _Leaf]:
    """The sizes of each leaf that is an array, by its path."""
    leaves, treedef = flatten_with_keys(params)
    given, sizes = given_shardings(leaves, treedef, shardings), {}
    for keys, x in leaves:
        if keys not in given:
            continue
        path = path_of(keys) or "params"
        whole, shard = given[keys], divided(jnp.shape(x), given[keys], axis)
        if any(axis in (entry if isinstance(entry, tuple) else (entry,)) for entry in whole.spec):
            raise ValueError(
                f"estimate: specs shard leaf {path!r} over {axis!r}, the axis that the placements divide it by, or do "
                "not: they are for the other axes of the mesh."
            )
        width = jnp.dtype(x.dtype).itemsize
        gradient = 0 if not is_inexact(x.dtype) else width if dtype is None else jnp.dtype(dtype).itemsize
        elements, parts = (math.prod(of.shard_shape(jnp.shape(x))) for of in (whole, shard))
        sizes[path] = _Leaf(elements * width, elements * gradient, parts * width, parts * gradient, whole != shard)
    return sizes


def _rows(sizes: Mapping[str, _Leaf], state: int, state_shard: int, n: int, layers: int) -> dict[str, DeviceBytes]:
    """The bytes of each placement; ``n``: devices along the axis."""
    p, g, p_shard, g_shard, _ = (sum(column) for column in zip(*sizes.values(), strict=True))
    p_split, g_split, p_part, g_part, _ = (
        sum(column)
        for column in zip(*(x for x in sizes.values() if x.is_divided), _Leaf(0, 0, 0, 0, False), strict=True)
    )

    def once(nbytes: int) -> int:
        """Sent to reduce and scatter, or to gather, so many bytes."""
        return nbytes * (n - 1) // n

    moved, moved_shard = g + 2 * p + 2 * state, g_shard + 2 * p_shard + 2 * state_shard
    kept = g - g_split if n > 1 else 0
    reduced = once(g_split) + 2 * once(g - g_split)
    if layers == 1:
        summed, left, scattered, gathered, gathers = g, g_shard, p_part, p_split, 1
    else:
        one = (p_split + g_split) // layers
        summed, left, scattered, gathered, gathers = 2 * g // layers, g, p_part + g_part, one, 2
    return {
        "replicated": DeviceBytes(p, g, state, summed * (n > 1), 2 * once(g), moved),
        "ZeRO-1, out_shardings": DeviceBytes(
            p, g, state_shard, summed * (n > 1), 2 * once(g) + once(p_split), moved_shard
        ),
        "ZeRO-1, reduce-scatter": DeviceBytes(
            p, left, state_shard, scattered + kept, reduced + once(p_split), moved_shard
        ),
        "fully sharded": DeviceBytes(
            p_shard, g_shard, state_shard, gathered + kept, gathers * once(p_split) + reduced, moved_shard
        ),
    }


def _rounded(x: float) -> str:
    """A number with three digits and the prefix of its size, with a space behind if it has none."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if x < 999.5 or prefix == "P":
            return f"{x:.3g} {prefix}"
        x /= 1000
    raise AssertionError


def _bytes(nbytes: int) -> str:
    return f"{_rounded(nbytes)}B"


def _seconds(seconds: float) -> str:
    if seconds >= 1 or seconds == 0:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
