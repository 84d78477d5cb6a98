"""Programs for the kernel, as values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from gradtx._core.codecs import SIZE
from gradtx._core.mesh import vary, varying


class Unsupported(Exception):
    """The function holds something that the kernel does not do. The message says what."""


class Kind(enum.StrEnum):
    """The type of the elements in a slot of the kernel. Instructions have it in their names."""

    BOOL = "bool"
    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"
    F64 = "f64"
    I8 = "i8"
    U8 = "u8"
    I16 = "i16"
    SCALE = "scale"

    @classmethod
    def stored(cls, dtype: Any) -> Kind:
        """The kind of an array of a dtype."""
        if (kind := _KINDS.get(jnp.dtype(dtype).name)) is None:
            raise Unsupported(f"numbers of dtype {dtype}")
        return kind

    @classmethod
    def computed(cls, dtype: Any) -> Kind:
        """The kind that numbers of a dtype are computed in: float32 for half precision."""
        kind = cls.stored(dtype)
        return cls.F32 if kind.is_half else kind

    @property
    def is_half(self) -> bool:
        return self in (Kind.BF16, Kind.F16)

    @property
    def is_code(self) -> bool:
        """True if the elements stand for numbers, or scale those that do."""
        return self in (Kind.I8, Kind.U8, Kind.I16, Kind.SCALE)

    @property
    def dtype(self) -> np.dtype:
        return jnp.dtype(_DTYPES[self])

    @property
    def width(self) -> int:
        """The number of bytes of an element; 0 of scales, which are there for some elements only."""
        return 0 if self is Kind.SCALE else self.dtype.itemsize


_DTYPES = {
    Kind.BOOL: "bool",
    Kind.BF16: "bfloat16",
    Kind.F16: "float16",
    Kind.F32: "float32",
    Kind.F64: "float64",
    Kind.I8: "int8",
    Kind.U8: "uint8",
    Kind.I16: "int16",
}
_KINDS = {dtype: kind for kind, dtype in _DTYPES.items()}
_DTYPES[Kind.SCALE] = "float32"


def scales_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of codes, for blocks along the last axis."""
    return (*shape[:-1], *(-(-n // SIZE) for n in shape[-1:]))


class Reduce(enum.StrEnum):
    """The way in which the elements of a leaf become one number.

    Attributes:
        SUM: added up, in the kernel in float64.
        NORM: the L2 norm, which neither over- nor underflows where it is a normal number itself.
        MAX: the largest absolute value; 0 for no element.
    """

    SUM = "sum"
    NORM = "norm"
    MAX = "max"


@dataclass(frozen=True)
class Constant:
    """A scalar known when the program is made. Equal if dtype and bits are."""

    dtype: str
    value: bytes

    @classmethod
    def of(cls, value: Any) -> Constant:
        array = np.asarray(value)
        return cls(array.dtype.name, array.tobytes())

    def array(self) -> np.ndarray:
        return np.frombuffer(self.value, jnp.dtype(self.dtype))[0]


Scalar = int | Constant
"""A number that is the same for all elements of a leaf: an argument or a result by its number, or a constant."""


@dataclass(frozen=True)
class ScalarOp:
    """A primitive over scalars, for JAX to compute before. Arguments are numbered through, then results of all."""

    primitive: core.Primitive
    params: tuple[tuple[str, Any], ...]
    operands: tuple[Scalar, ...]
    results: int


@dataclass(frozen=True)
class Program:
    """The work of the kernel for each leaf.

    Attributes:
        code: the instructions, flat.
        constants: scalars known when the program is made.
        temporaries: how many blocks it needs besides inputs and outputs.
        wide: whether a block may hold float64.
        scalar_ops: how to compute further scalars from the arguments, before.
        coefficients: the scalars, of arguments and results, that the program reads, in order.
        scales: the positions, among inputs and outputs, of scales of codes.
    """

    code: tuple[int, ...]
    constants: tuple[float, ...]
    temporaries: int
    wide: bool
    scalar_ops: tuple[ScalarOp, ...]
    coefficients: tuple[int, ...]
    scales: tuple[int, ...] = ()

    def scalars(self, *arguments: jax.Array) -> list[jax.Array]:
        """The coefficients, from the function's scalar arguments."""
        values: list[Any] = list(arguments)
        for op in self.scalar_ops:
            operands = [x.array() if isinstance(x, Constant) else values[x] for x in op.operands]
            operands = [vary(x, varying(*operands)) for x in operands]
            results = op.primitive.bind(*operands, **dict(op.params))
            values += results if op.primitive.multiple_results else [results]
        return [values[i] for i in self.coefficients]


def aval_of(atom: core.Var | core.Literal) -> Any:
    """The abstract value, which has a shape and a dtype, as all here have."""
    return atom.aval
