"""Functions of one array over many leaves: for the kernel where it has a program for them, for JAX where not."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import PartitionSpec

from gradtx._core.control import Once, either
from gradtx._core.dtypes import promoted
from gradtx._core.mesh import once_each, over_shards, vary, varying
from gradtx._core.numerics import Numbers, in_order, safe_divide
from gradtx.native import _library
from gradtx.native._compiler import compile_jaxpr
from gradtx.native._primitive import LEAVES_PER_CALL, Call, call_p, evaluated, joined
from gradtx.native._program import Program, Reduce, Unsupported, scales_shape
from gradtx.native._views import View, are_all, as_array, split


def map_leaves(
    fn: Callable[..., Sequence[jax.Array]],
    leaves: Sequence[tuple[jax.Array | View, ...]],
    shared: Sequence[jax.Array] = (),
    local: Sequence[Numbers] = (),
    aliases: Mapping[int, int] | None = None,
    reduces: Sequence[Reduce | str] = (),
    when: jax.Array | None = None,
    otherwise: Callable[..., Sequence[jax.Array]] | None = None,
) -> tuple[list[tuple[Any, ...]], list[jax.Array]]:
    """``[fn(*arrays, *scalars, *shared) for arrays, scalars in zip(leaves, zip(*local))]``, in one pass over each leaf.

    Args:
        fn: elementwise in the arrays; returns arrays of the leaf's shape. Scales of codes may be among both.
        leaves: per leaf a tuple of arrays of one shape, the first an array and each other one an array or a ``View`` of
            a flat one; as many for each leaf.
        shared: scalars, the same for each leaf.
        local: for each scalar that leaves have of their own, a list or a vector.
        aliases: {position of an array in the leaf's tuple: position of an output} that may be the same memory.
        reduces: how the last outputs of ``fn``, one for each, are reduced over the elements of a leaf instead of
            written: "sum"; "norm", the L2 norm; "max", the largest absolute value.
        when: a flag. Where it is false nothing is computed: an output that may be the same memory as an array is that
            array, and the others, and numbers, are 0.
        otherwise: ``otherwise(fn, operands, aliases)`` computes a leaf that the kernel has no program for, where there
            are no reductions and no flag; None for JAX, leaf by leaf.

    Leaves whose views are all there is of some flat arrays go together, and the outputs that may have the same memory
    are views of flat arrays too. Other views are copied, and their outputs are arrays.

    Returns:
        The written outputs of each leaf, and for each reduction a vector of one number for each leaf: over all shards,
        real and in float32 or wider. The kernel adds in float64, squares too, in an order that does not depend on the
        number of threads, and takes the root of a norm before it rounds: a norm is finite if the elements are, and it
        is not above 3e38.

    Raises:
        ValueError: for arrays of a leaf that differ in shape, views that are not in their flat arrays, local scalars of
            another number of leaves, aliases of what is not there, and more reductions than outputs, or unknown ones.

    >>> from gradtx.native._leaves import map_leaves
    >>> import jax.numpy as jnp
    >>> leaves = [(jnp.array([1.0, 2.0]), jnp.array([3.0, -4.0])), (jnp.array(3.0), jnp.array(2.0))]
    >>> step = lambda p, g, rate: (p - rate * g, g)
    >>> params, (norms,) = map_leaves(step, leaves, shared=[jnp.array(0.5)], aliases={0: 0}, reduces=["norm"])
    >>> print(*params[0], *params[1], norms)
    [-0.5  4. ] 2.0 [5. 2.]
    """
    aliases = {} if aliases is None else aliases
    _check(leaves, local, aliases)
    kinds = tuple(Reduce(kind) for kind in reduces)

    def function(*operands: jax.Array) -> tuple[jax.Array, ...]:
        results = tuple(fn(*operands))
        written = len(results) - len(kinds)
        _check_outputs(aliases, written)
        return (*results[:written], *(x.astype(promoted(jnp.float32, x.dtype)) for x in results[written:]))

    results: list[tuple[Any, ...]] = [()] * len(leaves)
    numbers: list[tuple[list[int], Sequence[jax.Array]]] = []
    for group in _groups(function, leaves, local, shared, aliases, kinds, when):
        if group.program is None:
            operands = [(*map(as_array, leaves[i]), *(x[i] for x in local), *shared) for i in group.members]
            if otherwise is not None and not kinds and when is None:
                for i, xs in zip(group.members, operands, strict=True):
                    results[i] = tuple(otherwise(fn, xs, aliases))
                continue
            functions = [functools.partial(function, *xs) for xs in operands]
            rows, vectors = _evaluated(functions, kinds, [leaves[i] for i in group.members], aliases, when)
            for i, row in zip(group.members, rows, strict=True):
                results[i] = tuple(row)
            numbers.append((group.members, vectors))
            continue
        for flat, chunks in group.together(leaves).items():
            call = group.call(leaves, local, flat, chunks, kinds, when is not None)
            flags = [] if when is None else [vary(when, group.axes)]
            found = call_p.bind(*flags, *group.operands(leaves, local, shared, flat, chunks), call=call)
            own, vectors = iter(found), found[len(found) - len(kinds) :]
            flat_results = iter(found[len(found) - len(kinds) - len(chunks) * len(flat) :])
            for chunk in chunks:
                shapes = [jnp.shape(leaves[i][0]) for i in chunk]
                views = {output: split(next(flat_results), shapes) for output in call.flat_outputs}
                for k, i in enumerate(chunk):
                    row = [views[o][k] if o in views else next(own) for o in range(call.outputs)]
                    results[i] = tuple(row[s] if s >= 0 else vary(leaves[i][~s], group.axes) for s in group.sources)
            numbers.append((list(itertools.chain(*chunks)), vectors))
    return results, [
        _of_all_shards(kind, [(members, vectors[k]) for members, vectors in numbers]) for k, kind in enumerate(kinds)
    ]


def _evaluated(
    functions: Sequence[Callable[[], Sequence[jax.Array]]],
    reduces: Sequence[Reduce],
    leaves: Sequence[tuple[jax.Array | View, ...]],
    aliases: Mapping[int, int],
    when: jax.Array | None,
) -> tuple[list[list[jax.Array]], list[jax.Array]]:
    """As ``evaluated``; where a flag is false, what ``map_leaves`` says."""
    step = Once(lambda: evaluated(functions, reduces))
    if when is None:
        return step()
    kept = {output: array for array, output in aliases.items()}

    def left() -> tuple[list[list[jax.Array]], list[jax.Array]]:
        rows, vectors = step.avals
        each = zip(leaves, rows, strict=True)
        results = [[own[kept[o]] if o in kept else None for o in range(len(row))] for own, row in each]
        return jax.tree.map(_as_it_is, rows, results), jax.tree.map(_as_it_is, vectors, [None] * len(vectors))

    return either(when, step, left)


def _as_it_is(aval: Any, x: jax.Array | View | None) -> jax.Array:
    """The array of which a result would have the memory; zeros where there is none."""
    return jnp.zeros(aval.shape, aval.dtype) if x is None or x.dtype != aval.dtype else as_array(x)


def sum_leaves(
    fn: Callable[..., jax.Array],
    leaves: Sequence[tuple[jax.Array, ...]],
    shared: Sequence[jax.Array] = (),
    when: jax.Array | None = None,
) -> jax.Array:
    """The sum of ``fn(*arrays, *shared)`` over all elements of all leaves, as ``map_leaves``.

    Args:
        fn: elementwise in the arrays; returns one array of the leaf's shape.
        leaves: per leaf a tuple of arrays of one shape, as many for each leaf.
        shared: scalars, the same for each leaf.
        when: a flag; the sum is 0 where it is false.

    Raises:
        ValueError: for arrays of a leaf that differ in shape.

    >>> from gradtx.native._leaves import sum_leaves
    >>> import jax.numpy as jnp
    >>> print(sum_leaves(jnp.square, [(jnp.array([1.0, 2.0]),), (jnp.array(3.0),)]))
    14.0
    """
    return jnp.sum(sum_each(fn, leaves, shared, when=when))


def sum_each(
    fn: Callable[..., jax.Array],
    leaves: Sequence[tuple[jax.Array, ...]],
    shared: Sequence[jax.Array] = (),
    local: Sequence[Numbers] = (),
    when: jax.Array | None = None,
) -> jax.Array:
    """For each leaf the sum of ``fn(*arrays, *scalars, *shared)`` over all its elements, as ``map_leaves``: a vector.

    >>> from gradtx.native._leaves import sum_each
    >>> import jax.numpy as jnp
    >>> print(sum_each(jnp.square, [(jnp.array([1.0, 2.0]),), (jnp.array(3.0),)]))
    [5. 9.]
    """
    _, (sums,) = map_leaves(lambda *operands: (fn(*operands),), leaves, shared, local, reduces=[Reduce.SUM], when=when)
    return sums


def _of_all_shards(kind: Reduce, parts: Sequence[tuple[list[int], jax.Array]]) -> jax.Array:
    """The numbers of all leaves in order, from those of the shards of some leaves each."""
    if not parts:
        return jnp.zeros(0, jnp.float32)
    terms, axes = once_each([numbers for _, numbers in parts])
    over = {Reduce.SUM: over_shards, Reduce.NORM: _norm_over, Reduce.MAX: _largest_over}[kind]
    whole = over(joined(terms), axes) if axes else joined(terms)
    order = [i for members, _ in parts for i in members]
    return in_order(whole, sorted(range(len(order)), key=order.__getitem__))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _norm_over(norms: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The norm over all shards, from those of each, by one collective.

    It sums the squares of the norms and of two multiples, one of which is in range where those overflow or vanish.
    """
    info = jnp.finfo(norms.dtype)
    scales = np.array([1.0, 2.0 ** int(0.78 * info.maxexp), 2.0 ** -int(0.62 * info.maxexp)], norms.dtype)[:, None]
    squares = jax.lax.psum(jnp.square(scales * norms[None]), axes)
    found, larger, smaller = jnp.sqrt(squares) / scales
    found = jnp.where(squares[0] < info.tiny / info.eps, larger, found)
    return jnp.where(squares[0] > info.max, smaller, found)


@_norm_over.defjvp
def _(axes: tuple[str, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (norms,), (along,) = primals, tangents
    norm = _norm_over(norms, axes)
    return norm, jax.lax.psum(safe_divide(norms, norm) * along, axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest_over(numbers: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The largest of all shards, with a derivative, which ``pmax`` has not."""
    return jax.lax.pmax(numbers, axes)


@_largest_over.defjvp
def _(axes: tuple[str, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    largest = _largest_over(x, axes)
    share = (x == largest).astype(x.dtype)
    return largest, jax.lax.psum(share * dx, axes) / jax.lax.psum(share, axes)


def _check(leaves: Sequence[tuple[Any, ...]], local: Sequence[Numbers], aliases: Mapping[int, int]) -> None:
    """Refuse what would pair elements that do not belong together, or is not there."""
    who = "map_leaves"
    for i, arrays in enumerate(leaves):
        if len(arrays) != len(leaves[0]):
            raise ValueError(f"{who}: leaf {i} has {len(arrays)} arrays, leaf 0 has {len(leaves[0])}")
        if not arrays or isinstance(arrays[0], View):
            raise ValueError(f"{who}: leaf {i} has to begin with an array, found {arrays[0] if arrays else 'nothing'}")
        for a, x in enumerate(arrays):
            if x.shape not in (arrays[0].shape, scales_shape(arrays[0].shape)):
                raise ValueError(f"{who}: leaf {i}: array {a} has shape {x.shape}, the first one {arrays[0].shape}")
            if isinstance(x, View) and (x.flat.ndim != 1 or x.offset < 0 or x.offset + x.size > x.flat.size):
                end = x.offset + x.size
                raise ValueError(f"{who}: leaf {i}: elements {x.offset} to {end} are not in an array of {x.flat.shape}")
    for x in local:
        if len(x) != len(leaves):
            raise ValueError(f"{who}: {len(x)} local scalars for {len(leaves)} leaves")
    for array in aliases:
        if leaves and not 0 <= array < len(leaves[0]):
            raise ValueError(f"{who}: aliases name array {array}, and there are {len(leaves[0])}")
    if len(set(aliases.values())) < len(aliases):
        raise ValueError(f"{who}: aliases put several arrays into the memory of one output: {dict(aliases)}")


def _check_outputs(aliases: Mapping[int, int], outputs: int) -> None:
    if outputs < 0:
        raise ValueError(f"map_leaves: there are {-outputs} reductions more than outputs")
    for output in aliases.values():
        if not 0 <= output < outputs:
            raise ValueError(f"map_leaves: aliases name output {output}, and there are {outputs}")


Chunks = list[list[int]]
"""The leaves of each call of the kernel."""

Sources = tuple[int, ...]
"""Of each output that is written its place among those of the kernel; ~a where it is array ``a``, as it came."""


class _Distinct:
    """A function of a leaf's arrays without the outputs that are an array as it came, or that are there twice.

    Attributes:
        sources: the places of the function's outputs, once it is traced.
        aliases: (array, output) that are the same memory and of one dtype, likewise.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        arrays: Sequence[Any],
        aliases: Mapping[int, int],
        reductions: int,
        flagged: bool,
    ):
        self.fn, self.arrays, self.wanted, self.reductions = fn, arrays, aliases, reductions
        self.as_it_is = flagged or any(isinstance(x, View) for x in arrays)
        self.sources: Sources = ()
        self.aliases: tuple[tuple[int, int], ...] = ()

    def __call__(self, *operands: jax.Array) -> list[jax.Array]:
        results = list(self.fn(*operands))
        outputs = results[: len(results) - self.reductions]
        in_place = {o: a for a, o in sorted(self.wanted.items()) if self.arrays[a].dtype == outputs[o].dtype}
        came = {} if self.as_it_is else {id(x): a for a, x in enumerate(operands[: len(self.arrays)])}
        for o, a in in_place.items():
            if outputs[o] is not operands[a]:
                came.pop(id(operands[a]), None)  # it is overwritten
        array_of = {o: came.get(id(x)) for o, x in enumerate(outputs)}
        stays = {o: a for o, a in array_of.items() if a is not None and in_place.get(o, a) == a}
        written = sorted((o for o in array_of if o not in stays), key=lambda o: o in in_place)
        one = {id(outputs[o]): o for o in written}  # of those that are the same, and in place if one is
        kept = sorted(o for o in written if self.as_it_is or o in in_place or one[id(outputs[o])] == o)
        places = {o: place for place, o in enumerate(kept)} | {o: ~a for o, a in stays.items()}
        self.sources = tuple(places[o] if o in places else places[one[id(x)]] for o, x in enumerate(outputs))
        self.aliases = tuple((a, places[o]) for o, a in in_place.items() if o in kept)
        return [*(outputs[o] for o in kept), *results[len(outputs) :]]


class _Group:
    """Leaves with one program, None if they have none, whose shards differ along the same axes of a mesh.

    The program has each output once, by ``sources``.
    """

    def __init__(
        self,
        program: Program | None,
        consts: Sequence[jax.Array],
        sources: Sources,
        aliases: tuple[tuple[int, int], ...],
        axes: tuple[str, ...],
    ):
        self.program, self.consts, self.sources, self.aliases, self.axes = program, consts, sources, aliases, axes
        self.members: list[int] = []
        self.jaxprs: dict[int, core.Jaxpr] = {}

    def together(self, leaves: Sequence[tuple[jax.Array | View, ...]]) -> dict[tuple[int, ...], Chunks]:
        """By the positions of the views that can stay in their flat arrays, the leaves that go together."""
        alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for i in self.members:
            views = [(a, id(x.flat)) for a, x in enumerate(leaves[i]) if isinstance(x, View)]
            alike.setdefault(tuple(views), []).append(i)
        together: dict[tuple[int, ...], Chunks] = {}
        plain: list[int] = []
        for views, members in alike.items():
            flat = tuple(a for a, _ in views)
            if flat and all(a in dict(self.aliases) and are_all([leaves[i][a] for i in members]) for a in flat):
                together.setdefault(flat, []).append(members)
            else:
                plain += members
        if plain:
            starts = range(0, len(plain), LEAVES_PER_CALL)
            together[()] = [plain[start : start + LEAVES_PER_CALL] for start in starts]
        return together

    def call(
        self,
        leaves: Sequence[Any],
        local: Sequence[Any],
        flat: tuple[int, ...],
        chunks: Chunks,
        reduces: tuple[Reduce, ...],
        flagged: bool,
    ) -> Call:
        assert self.program is not None
        return Call(
            program=self.program,
            chunks=tuple(map(len, chunks)),
            arrays=len(leaves[chunks[0][0]]),
            local=len(local),
            jaxprs=tuple(self.jaxprs[i] for i in itertools.chain(*chunks)),
            flat=flat,
            aliases=self.aliases,
            reduces=reduces,
            flagged=flagged,
        )

    def operands(
        self,
        leaves: Sequence[Any],
        local: Sequence[Any],
        shared: Sequence[Any],
        flat: tuple[int, ...],
        chunks: Chunks,
    ) -> list[Any]:
        """The operands of a ``Call``."""
        members = list(itertools.chain(*chunks))
        arrays = [as_array(x) for i in members for a, x in enumerate(leaves[i]) if a not in flat]
        flats = [leaves[chunk[0]][a].flat for chunk in chunks for a in flat]
        operands = [*arrays, *(in_order(x, members) for x in local), *flats, *shared, *self.consts]
        return [vary(x, self.axes) for x in operands]


def _groups(
    fn: Callable[..., Any],
    leaves: Sequence[tuple[jax.Array | View, ...]],
    local: Sequence[Numbers],
    shared: Sequence[jax.Array],
    aliases: Mapping[int, int],
    reduces: Sequence[Reduce],
    when: jax.Array | None,
) -> list[_Group]:
    """Leaves by what the kernel has to do for them. The function is traced once for each kind of leaf."""
    ops, flags = _library.load().ops, [] if when is None else [when]
    traced: dict[Any, tuple[_Group, core.Jaxpr | None]] = {}
    groups: dict[Any, _Group] = {}
    for i, arrays in enumerate(leaves):
        own = [x[i] if isinstance(x, list) else x for x in local]  # a vector has the type of its elements
        axes = varying(*(x.flat if isinstance(x, View) else x for x in arrays), *own, *shared, *flags)
        first = jax.typeof(vary(arrays[0], axes))
        scalar = first.update(shape=(), weak_type=False, sharding=first.sharding.update(spec=PartitionSpec()))
        avals = (
            *(
                first.update(dtype=x.dtype, weak_type=False) if isinstance(x, View) else jax.typeof(vary(x, axes))
                for x in arrays
            ),
            *(scalar.update(dtype=x.dtype) for x in own),
        )
        if avals not in traced:
            program, jaxpr, consts, sources, pairs = None, None, [], (), ()
            if ops:
                distinct = _Distinct(fn, arrays, aliases, len(reduces), when is not None)
                closed = jax.make_jaxpr(distinct)(*avals, *(vary(x, axes) for x in shared))
                jaxpr, consts, sources, pairs = closed.jaxpr, closed.consts, distinct.sources, distinct.aliases
                if jaxpr.outvars:
                    with contextlib.suppress(Unsupported):
                        program = compile_jaxpr(jaxpr, len(arrays), ops, dict(pairs), reduces)
            key = (program, sources, pairs, axes, avals[len(arrays) :], *map(id, consts))
            traced[avals] = groups.setdefault(key, _Group(program, consts, sources, pairs, axes)), jaxpr
        group, jaxpr = traced[avals]
        group.members.append(i)
        if jaxpr is not None:
            group.jaxprs[i] = jaxpr
    return list(groups.values())
