"""The formats that slots are stored in: a floating dtype, rounded to nearest or at random, or codes of 8 bits.

The maths of a rule knows none of this. An engine decodes a slot before the pass that reads it, and encodes it after.
Random bits are a hash of a seed and the place of an element in its leaf: no key is kept, a step that is taken again
rounds alike, and so does the same step on another mesh.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gradtx._core import selectors
from gradtx._core.limits import check_choice, integer
from gradtx._core.mesh import may_differ, rows_stay_whole, types_tell, varying
from gradtx._core.numerics import safe_divide
from gradtx._core.rounding import dithered, instruction, mixed, noise
from gradtx._core.walk import word

_Map = Literal["root", "dynamic"]


@dataclass(frozen=True)
class Codec:
    """A format of a slot, and how numbers are rounded to it: ``Rounded`` or ``Blocks``.

    A value; it prints as ``state_dtype`` takes it.
    """

    @property
    def parts(self) -> int:
        """The number of arrays that a slot is stored in."""
        return 1

    @property
    def rounds(self) -> bool:
        """True if numbers are rounded at random, by a seed."""
        return True

    def encode(self, x: jax.Array, seed: jax.Array | None = None, nonnegative: bool = False) -> Any:
        """The numbers as they are stored; without a seed rounded to nearest."""
        raise NotImplementedError

    def decode(self, *parts: jax.Array) -> jax.Array:
        """The numbers, of the arrays that they are stored in."""
        raise NotImplementedError

    @property
    def bytes(self) -> float:
        """The bytes of an element."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rounded(Codec):
    """A floating dtype, rounded at random: up as often as the number is near to the one above, so that the mean stays.

    An average with a decay near 1 moves by less than half a digit of bfloat16 in a step. To nearest it stalls; so, it
    arrives, in the mean.

    Attributes:
        dtype: "bfloat16".

    >>> import gradtx
    >>> gradtx.momentum(0.999, state_dtype=gradtx.codecs.Rounded())
    momentum(decay=0.999, state_dtype='bfloat16_stochastic')
    """

    dtype: Literal["bfloat16"] = "bfloat16"

    def __post_init__(self):
        check_choice("codecs.Rounded", "dtype", self.dtype, ("bfloat16",))

    def encode(self, x: jax.Array, seed: jax.Array | None = None, nonnegative: bool = False) -> jax.Array:
        del nonnegative
        x = x if seed is None else dithered(x.astype(jnp.float32), seed)
        return x.astype(self.dtype)

    def decode(self, *parts: jax.Array) -> jax.Array:
        (x,) = parts
        return x

    @property
    def bytes(self) -> float:
        return jnp.dtype(self.dtype).itemsize

    def __repr__(self) -> str:
        return f"'{self.dtype}_stochastic'"


@dataclass(frozen=True)
class Blocks(Codec):
    """Codes of 8 bits for blocks of 256 elements along the last axis, each with its largest modulus in float32.

    A number r of the largest modulus of its block is the code q, with r = (q/127)·|q/127| for what may be negative, and
    r = (q/255)⁴ for what never is: fine near zero, where most numbers are. Rounded at random: the mean of r stays as it
    is, or that of its fourth root, so that neither a direction nor the logarithm of a denominator is biased. A number
    above 0 that may not be negative never becomes 0, since another is divided by its root. 0 is 0. Inf and NaN make NaN
    of their block.

    Attributes:
        map: "root", as above; or "dynamic", 7 decades with evenly spaced codes in each (Dettmers et al. 2022), to
            compare with: a search in a table, which is slow.
        least: leaves of fewer elements are in no blocks, but as they are: small ones, as norms and biases, are
            sensitive and cost little. Of a leaf that is sharded all elements count.

    Where the last axis is no multiple of 256, the last block of a row is short; an axis of 16 costs a
    scale for 16 elements. Over several devices blocks stay where they are if each shard of the last axis holds whole
    ones; the others are refused where types say that there are shards, as they would differ from mesh to mesh.

    Raises:
        TypeError: for a ``least`` that is no integer.
        ValueError: for another ``map``, and a ``least`` below 0; in ``init`` and ``update``, for a last axis that is
            cut within a block, or may be: inside of ``shard_map``, see ``gradtx.zero1``.

    Source: Dettmers et al. (2022), "8-bit optimizers via block-wise quantization", for blocks and their map.

    >>> import gradtx
    >>> gradtx.rms(0.999, state_dtype=gradtx.codecs.Blocks())
    rms(decay=0.999, state_dtype='root8')
    """

    map: _Map = "root"
    least: int = 4096

    def __post_init__(self):
        check_choice("codecs.Blocks", "map", self.map, get_args(_Map))
        object.__setattr__(self, "least", integer("codecs.Blocks", "least", self.least, 0))

    def encode(self, x: jax.Array, seed: jax.Array | None = None, nonnegative: bool = False) -> Encoded:
        x = x.astype(jnp.float32)
        scale = scales(x)
        if seed is None or self.map != "root":
            codes = _codes(x, scale, seed, nonnegative, self.map)
        else:
            codes = (encode_u8 if nonnegative else encode_i8)(x, scale, seed)
        return Encoded(codes, scale, self, x.shape[-1] if x.shape[-1] % SIZE else None)

    def decode(self, *parts: jax.Array) -> jax.Array:
        """The numbers of codes and scales, in float32."""
        codes, scale = parts
        nonnegative = codes.dtype == jnp.uint8
        if self.map != "root":
            return _numbers(codes, scale, nonnegative, self.map)
        return (decode_u8 if nonnegative else decode_i8)(codes, scale)

    @property
    def parts(self) -> int:
        return 2

    @property
    def bytes(self) -> float:
        return 1 + 4 / SIZE  # and more, where the last axis is short

    def __repr__(self) -> str:
        return f"'{self.map}8'" if self == Blocks(self.map) else f"codecs.Blocks({self.map!r}, {self.least})"


SIZE = 256
"""The number of elements of a block, as in kernel.cc."""

_CLOSE = 5e-5  # of the step between two codes: what rounding makes of a share that is a code is less, 4e-5


def _codes(x: jax.Array, scale: jax.Array, seed: jax.Array | None, nonnegative: bool, kind: str) -> jax.Array:
    """The codes of numbers in blocks with these scales, at random or to nearest."""
    blocks = _in_blocks(x)
    share = safe_divide(blocks, scale[..., None])
    lower, part = _place(share, nonnegative, kind)
    part = jnp.where(part < _CLOSE, 0, jnp.where(part > 1 - _CLOSE, 1, part))  # a code as it is stays one
    level = 0.5 if seed is None else _in_blocks((noise(x.shape, seed) >> 8).astype(jnp.float32) * 2.0**-24)
    code = lower + (level < part).astype(jnp.int32)
    if nonnegative:
        code = jnp.where(blocks > 0, jnp.maximum(code, 1), code)
    elif kind == "root":
        code = jnp.where(share < 0, -code, code)
    return _joined(code.astype(jnp.uint8 if nonnegative else jnp.int8), x.shape)


def _numbers(codes: jax.Array, scale: jax.Array, nonnegative: bool, kind: str) -> jax.Array:
    """The numbers that codes stand for."""
    return _joined(_in_blocks(_share(codes.astype(jnp.int32), nonnegative, kind)) * scale[..., None], codes.shape)


def _share(code: jax.Array, nonnegative: bool, kind: str) -> jax.Array:
    """The share of the largest modulus that a code stands for."""
    if kind == "dynamic":
        return jnp.asarray(_dynamic(nonnegative))[code + (0 if nonnegative else 128)]
    root = code.astype(jnp.float32) / (255 if nonnegative else 127)
    return jnp.square(jnp.square(root)) if nonnegative else root * jnp.abs(root)


def _place(share: jax.Array, nonnegative: bool, kind: str) -> tuple[jax.Array, jax.Array]:
    """The largest code that stands for a share or less, and is not the last; the part of the way to the next.

    Of roots it is the code of the modulus, so that the opposite numbers have the opposite codes.
    """
    if kind == "dynamic":
        found = jnp.searchsorted(jnp.asarray(_dynamic(nonnegative)), share, side="right").astype(jnp.int32) - 1
        lower = jnp.clip(found, 0, 254) - (0 if nonnegative else 128)
    else:
        share = jnp.abs(share)
        root = jnp.sqrt(share)
        root = 255 * jnp.sqrt(root) if nonnegative else 127 * root
        below = jnp.clip(jnp.floor(root), 0, 254 if nonnegative else 126)
        lower = below.astype(jnp.int32)
        if nonnegative:
            return lower, root - below
    low, high = _share(lower, nonnegative, kind), _share(lower + 1, nonnegative, kind)
    return lower, (share - low) / (high - low)


@instruction
def scales(x: jax.Array) -> jax.Array:
    """The largest modulus of each block; NaN where one is not finite."""
    largest = jnp.max(jnp.abs(_in_blocks(x)), axis=-1)
    return jnp.where(jnp.isfinite(largest), largest, jnp.nan)


@instruction
def encode_i8(x: jax.Array, scale: jax.Array, seed: jax.Array) -> jax.Array:
    """Codes by roots, rounded at random."""
    return _codes(x, scale, seed, False, "root")


@instruction
def encode_u8(x: jax.Array, scale: jax.Array, seed: jax.Array) -> jax.Array:
    """Codes by fourth roots, rounded at random."""
    return _codes(x, scale, seed, True, "root")


@instruction
def decode_i8(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """The numbers of ``encode_i8``."""
    return _numbers(codes, scale, False, "root")


@instruction
def decode_u8(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """The numbers of ``encode_u8``."""
    return _numbers(codes, scale, True, "root")


class Stored:
    """Arrays that stand for one of numbers in float32: a leaf to all that asks for its shape and dtype."""

    codec: Any

    @property
    def parts(self) -> tuple[Any, ...]:
        """The arrays, of which the first has the shape of the leaf."""
        raise NotImplementedError

    def of(self, *parts: Any) -> Any:
        """The same of other arrays."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        return self.parts[0].shape

    @property
    def ndim(self) -> int:
        """The number of the leaf's dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the numbers that it stands for."""
        return jnp.dtype(jnp.float32)

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays."""
        return sum(x.nbytes for x in self.parts)

    def decode(self) -> jax.Array:
        """The numbers."""
        return self.codec.decode(*self.parts)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded(Stored):
    """A slot of one leaf in codes: one array to all that asks for its shape and dtype.

    Attributes:
        codes: int8, or uint8 of a slot that is never negative; of the leaf's shape.
        scale: for each block the largest modulus, float32; the leaf's shape with blocks in place of the last axis.
        codec: the format; static.
        row: the length of the last axis, where its last block is short; None where all are whole. Static: inside of
            ``shard_map``, where shapes are those of a shard, it tells whether blocks are.
    """

    codes: Any
    scale: Any
    codec: Blocks = field(metadata={"static": True})
    row: int | None = field(default=None, metadata={"static": True})

    @property
    def parts(self) -> tuple[Any, ...]:
        """Codes and scales."""
        return self.codes, self.scale

    def of(self, *parts: Any) -> Encoded:
        """The same of other codes and scales."""
        codes, scale = parts
        return replace(self, codes=codes, scale=scale)


def is_encoded(x: Any) -> bool:
    """True if a node of a tree stands for one array, as a slot in codes: a leaf, for what maps over slots."""
    return isinstance(x, Stored)


def decoded(tree: Any) -> Any:
    """The tree with the numbers, in float32, in place of codes: to look at a state.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.chain(gradtx.adam(0.1), state_dtype="root8"), jnp.ones((64, 256))
    >>> params, state = gradtx.step(tx, params, params, tx.init(params))
    >>> moment = state.slots["rms"]["s"]
    >>> print(moment.codes.dtype, moment.scale.shape, gradtx.codecs.decoded(moment)[0, 0])
    uint8 (64, 1) 0.001
    """
    return jax.tree.map(lambda x: x.decode() if is_encoded(x) else x, tree, is_leaf=is_encoded)


def stored_as(x: Any, like: Any) -> Any:
    """The numbers as another slot is stored, to nearest."""
    if is_encoded(like):
        return like.codec.encode(jnp.asarray(x), nonnegative=like.codes.dtype == jnp.uint8)
    return jnp.asarray(x, jnp.asarray(like).dtype)


@dataclass(frozen=True)
class ByLeaf:
    """Formats by selectors, of which the first that chooses a leaf counts; None for a leaf that none chooses."""

    choices: tuple[tuple[Any, Any], ...]

    def of_each(self, leaves: selectors.Leaves, treedef: Any, what: str) -> list[Any]:
        """The format of each leaf."""
        formats: list[Any] = [None] * len(leaves)
        for select, one in reversed(self.choices):
            chosen = selectors.chosen(select, leaves, treedef, what)
            formats = [one if chooses else before for chooses, before in zip(chosen, formats, strict=True)]
        return formats

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{select!r}: {one!r}' for select, one in self.choices)}}}"


Format = str | Codec | ByLeaf
"""The storage of slots: a dtype's name, a codec, or one of these by leaf."""

NAMED: dict[str, Codec] = {
    "bfloat16_stochastic": Rounded(),
    "root8": Blocks(),
    "dynamic8": Blocks("dynamic"),
}
"""The codecs by the names that ``state_dtype`` takes."""


def format_of(rule: str, value: Any) -> Format | None:
    """The storage that a user asks for.

    Raises:
        TypeError: for what is no floating dtype, codec, or mapping to some; and for a dtype of fewer bits than
            bfloat16 has, in which averages stand still.
    """
    if value is None or isinstance(value, Rounded | Blocks | ByLeaf):
        return value
    if isinstance(value, Mapping):
        pairs = [(selectors.selector(select), format_of(rule, one)) for select, one in value.items()]
        if not pairs or any(isinstance(one, ByLeaf) for _, one in pairs):
            raise TypeError(f"{rule}: state_dtype as a dict must be formats by selectors of leaves, found {value!r}")
        return ByLeaf(tuple(pairs))
    if isinstance(value, str) and value in NAMED:
        return NAMED[value]
    known = ", ".join(map(repr, NAMED))
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise TypeError(
            f"{rule}: state_dtype must be a floating dtype, found {value!r}. Or one of {known}, or a dict of them by "
            "selectors of leaves."
        ) from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{rule}: state_dtype must be a floating dtype, found {dtype.name}. Or one of {known}.")
    if jnp.finfo(dtype).nmant < jnp.finfo(jnp.bfloat16).nmant:
        raise TypeError(
            f"{rule}: state_dtype {dtype.name} has {jnp.finfo(dtype).nmant} bits of mantissa, in which averages stand "
            "still, and small numbers are 0. For 8 bits take 'root8', which has a scale for each block."
        )
    return dtype.name


def check_range(rule: str, value: Format | None, nonnegative: Sequence[str]) -> None:
    """Refuses float16 for a square: of a gradient of 1e-4 it is 0, and a step is divided by its root."""
    each = [one for _, one in value.choices] if isinstance(value, ByLeaf) else [value]
    if nonnegative and "float16" in each:
        raise TypeError(
            f"{rule}: state_dtype float16 for slot {nonnegative[0]!r}: squares of small gradients are 0 there, and the "
            "step that is divided by their root is too long. Take 'bfloat16_stochastic', of the same size, or 'root8'."
        )


def formats(value: Format | None, leaves: selectors.Leaves, treedef: Any, rule: str) -> list[Any]:
    """The format of each leaf's slots: a dtype's name, a codec, or None."""
    if isinstance(value, ByLeaf):
        return value.of_each(leaves, treedef, f"state_dtype of rule {rule!r}")
    return [value] * len(leaves)


def stored(x: jax.Array, format: Any, nonnegative: bool, what: str) -> Any:
    """A slot at the start, as it is stored. Complex ones stay as they are, and small leaves are not for blocks.

    Args:
        x: the slot.
        format: as ``formats`` gives it.
        nonnegative: whether it never is negative.
        what: the rule, the slot and the leaf, for errors.
    """
    if format is None or jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x
    if isinstance(format, Blocks):
        if x.ndim == 0 or x.size == 0 or _size(x, format.least, what) < format.least:
            return x
        check_blocks(x, what)
    return format.encode(x, nonnegative=nonnegative) if isinstance(format, Codec) else x.astype(format)


def _size(x: jax.Array, least: int, what: str) -> int:
    """The number of elements of an array, over all of its shards."""
    axes = may_differ(x)
    size = x.size * math.prod(jax.lax.axis_size(axis) for axis in axes)
    if x.size < least <= size and not types_tell(axes):
        raise ValueError(
            f"gradtx: {what}: leaves of fewer than {least} elements are in no blocks. This one has {x.size} here, and "
            f"inside of shard_map(check_vma=False), or pmap, types do not say of how many more it is a shard. {_MADE}, "
            f"or {_SAID}."
        )
    return size


_MADE = "Make the state outside of it, by jax.jit(tx.init, out_shardings=gradtx.state_shardings(tx, params))"
_SAID = "where all devices hold the same, inside of `with gradtx.replicated():`"


def check_blocks(x: Any, what: str) -> None:
    """Refuses blocks that lie on two devices: they would be others on each mesh, and so would a checkpoint of them.

    Args:
        x: a slot, ``Encoded`` or still an array of numbers.
        what: the rule, the slot and the leaf, for the error.

    Raises:
        ValueError: for such blocks, and inside of ``shard_map`` where there may be some; for scales of other blocks.
    """
    codes = x.codes if is_encoded(x) else x
    last = codes.shape[-1]
    found, remedy = "", f"Spread another axis, or this one by multiples of {SIZE}"
    if last % (SIZE * (shards := _shards_of_last_axis(codes))) and shards > 1:
        found = f"is spread over {shards} devices"
    elif is_encoded(x):
        if last != (x.row or last) or (x.row is None and last % SIZE):
            found = f"is a part of {x.row or 'an axis of whole blocks'}"
        elif x.scale.shape != (*x.shape[:-1], -(-last // SIZE)):
            found = f"has scales of shape {x.scale.shape}"
            remedy = "Spread codes and scales alike"
    elif last % SIZE and (axes := [axis for axis in may_differ(x) if axis not in rows_stay_whole()]):
        found = f"is a part or whole: inside of shard_map no type says what is cut along {', '.join(map(repr, axes))}"
        remedy = f"{_MADE}, which knows" + ("" if types_tell(axes) else f", or {_SAID}")
    if found:
        raise ValueError(
            f"gradtx: {what}, of shape {codes.shape}: the last axis, in blocks of {SIZE} that have to be whole on a "
            f"device, {found}. {remedy}; or keep such leaves as they are, by state_dtype="
            "{'their path': 'float32', '': 'root8'}."
        )


def _shards_of_last_axis(x: jax.Array) -> int:
    """The number of devices that the last axis is spread over, on explicit axes of a mesh."""
    sharding = jax.typeof(x).sharding
    axes = sharding.spec[-1] if sharding.spec else None
    named = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
    return math.prod(sharding.mesh.shape[axis] for axis in named)


def leaves_in_blocks(state: Any) -> set[tuple[str, ...]]:
    """The ends of the paths of slots in blocks, among them the paths of their parameters."""
    nodes, _ = selectors.flatten_with_keys(state, is_leaf=is_encoded)
    paths = [tuple(map(word, keys)) for keys, x in nodes if is_encoded(x)]
    return {path[i:] for path in paths for i in range(len(path) + 1)}


def codec_of(x: Any, format: Any) -> Codec | None:
    """The codec of a slot as it is stored; None where its dtype says all."""
    if is_encoded(x):
        return x.codec
    return format if isinstance(format, Rounded) and x.dtype == format.dtype else None


def parts(x: Any) -> tuple[Any, ...]:
    """The arrays of a slot."""
    return x.parts if is_encoded(x) else (x,)


def seeds(count: jax.Array, names: Sequence[str], leaves: Sequence[Any]) -> Any:
    """Seeds of this step for slots of leaves, by their names: numbers below 2²⁴, which float32 has all of.

    Inside of ``shard_map`` a device counts the elements of its own shard, so that each has seeds of its own.
    """
    places = jnp.asarray([zlib.crc32(name.encode()) for name in names], jnp.uint32)
    found = mixed(places + jnp.uint32(0x9E3779B9) * count.astype(jnp.uint32))
    axes = [varying(x) for x in leaves]
    if any(axes):
        found = [_of_shard(found[i], own) for i, own in enumerate(axes)]
        return [(x >> 8).astype(jnp.float32) for x in found]
    return (found >> 8).astype(jnp.float32)


def _of_shard(seed: jax.Array, axes: Sequence[str]) -> jax.Array:
    for axis in axes:
        seed = mixed(seed + jax.lax.axis_index(axis).astype(jnp.uint32))
    return seed


def _in_blocks(x: jax.Array) -> jax.Array:
    """The last axis as blocks, the last of which is filled up with zeros."""
    last, spec = x.shape[-1], jax.typeof(x).sharding.spec
    blocks = -(-last // SIZE)
    if last % SIZE and blocks > 1:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, blocks * SIZE - last)])
    return _reshaped(x, (*x.shape[:-1], blocks, x.shape[-1] // blocks), (*spec, None))


def _reshaped(x: jax.Array, shape: tuple[int, ...], spec: Sequence[Any]) -> jax.Array:
    """An array in another shape, spread over explicit axes as it was."""
    if not any(axes is not None for axes in spec):
        return x.reshape(shape)
    return jnp.reshape(x, shape, out_sharding=NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec)))


def _joined(blocks: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Blocks as the array that they are of."""
    *before, count, size = blocks.shape
    spec = (*jax.typeof(blocks).sharding.spec, *[None] * blocks.ndim)[: blocks.ndim - 1]
    joined = _reshaped(blocks, (*before, count * size), spec)
    return joined if count * size == shape[-1] else joined[..., : shape[-1]]


def _dynamic(nonnegative: bool) -> np.ndarray:
    """The 256 shares of the dynamic map, in order."""
    positive = []
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2 ** (decade + nonnegative) + 1)
        positive += [*((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6))]
    negative = [] if nonnegative else [-x for x in positive]
    return np.sort(np.asarray([*negative, 0.0, *positive, 1.0], np.float32))
