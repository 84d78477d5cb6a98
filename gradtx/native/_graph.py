"""A function as a graph of the kernel's instructions: equal expressions are one node, and simplified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend import core

from gradtx.native._program import Constant, Kind, Scalar, ScalarOp, Unsupported

INPUT, SCALAR = "input", "scalar"
"""The nodes that no instruction computes."""

_COMMUTATIVE = {"add", "mul", "max", "min", "eq", "ne", "logical_and", "logical_or", "logical_xor"}
_TESTS = {"eq", "ne", "lt", "le", "is_finite"}
NAMED: dict[str, tuple[tuple[Kind | None, ...], Kind]] = {
    "dither_bf16": ((Kind.F32, None), Kind.F32),
    "decode_i8": ((Kind.I8, Kind.SCALE), Kind.F32),
    "decode_u8": ((Kind.U8, Kind.SCALE), Kind.F32),
    "scales": ((Kind.F32,), Kind.SCALE),
    "encode_i8": ((Kind.F32, Kind.SCALE, None), Kind.I8),
    "encode_u8": ((Kind.F32, Kind.SCALE, None), Kind.U8),
    "dither_f24": ((Kind.F32, None), Kind.F32),
    "join_i16": ((Kind.BF16, Kind.I16), Kind.F32),
    "join_i8": ((Kind.BF16, Kind.I8), Kind.F32),
    "upper": ((Kind.F32,), Kind.BF16),
    "lower_i16": ((Kind.F32,), Kind.I16),
    "lower_i8": ((Kind.F32,), Kind.I8),
}
"""The instructions that functions have by name: the kinds of their operands, None for a scalar, and of the result."""


@dataclass(frozen=True)
class Uniform:
    """A scalar: the same for all elements of a leaf."""

    scalar: Scalar
    dtype: Any


@dataclass(frozen=True)
class Vector:
    """One number per element: the node that computes it, and the dtype that JAX knows it by."""

    node: int
    dtype: Any


Value = Uniform | Vector


@dataclass(frozen=True)
class Node:
    """A number, or a truth, of each element.

    Attributes:
        op: an instruction, or "input" or "scalar".
        args: nodes; of an input its number, of a scalar the scalar.
        kind: of what it computes.
    """

    op: str
    args: tuple[Any, ...]
    kind: Kind


class Graph:
    """Nodes by their numbers; equal ones have the same."""

    def __init__(self, scalars: int):
        self.nodes: list[Node] = []
        self.index: dict[Node, int] = {}
        self.scalar_ops: list[ScalarOp] = []
        self._results: dict[ScalarOp, int] = {}  # the number of the first
        self._scalars = scalars  # arguments and results so far

    def __getitem__(self, node: int) -> Node:
        return self.nodes[node]

    def node(self, op: str, args: tuple[Any, ...], kind: Kind) -> int:
        new = Node(op, args, kind)
        if new not in self.index:
            self.index[new] = len(self.nodes)
            self.nodes.append(new)
        return self.index[new]

    def is_scalar(self, node: int) -> bool:
        return self[node].op == SCALAR

    def is_constant(self, node: int, value: float) -> bool:
        (scalar, *_) = self[node].args
        return self.is_scalar(node) and isinstance(scalar, Constant) and float(scalar.array()) == value

    # Arguments and results of the function.

    def input(self, i: int, dtype: Any) -> Vector:
        kind = Kind.stored(dtype)
        if kind == Kind.BOOL:
            raise Unsupported("arrays of dtype bool")
        node = self.node(INPUT, (i,), kind)
        return Vector(self.node(f"load_{kind}", (node,), Kind.F32) if kind.is_half else node, dtype)

    def output(self, value: Value) -> int:
        """The node to be stored as an output: in the dtype of the array."""
        node, kind = self.operand(value), Kind.stored(value.dtype)
        if kind == Kind.BOOL:
            raise Unsupported("an output of dtype bool")
        if not kind.is_half:
            return node
        if self[node].op == f"round_{kind}":
            (node,) = self[node].args
        if self[node].op == f"load_{kind}":
            return self[node].args[0]
        if self.is_scalar(node):
            node = self.node("copy", (node,), Kind.F32)
        return self.node(f"store_{kind}", (node,), kind)

    def operand(self, value: Value) -> int:
        return value.node if isinstance(value, Vector) else self.scalar(value.scalar, Kind.computed(value.dtype))

    def round(self, node: int, dtype: Any) -> int:
        """A number as it is in half precision, if the dtype is such."""
        kind = Kind.stored(dtype)
        return self.node(f"round_{kind}", (node,), Kind.F32) if kind.is_half else node

    def scales(self, i: int) -> Vector:
        """An array of scales of codes."""
        return Vector(self.node(INPUT, (i,), Kind.SCALE), Kind.SCALE.dtype)

    def is_code(self, value: Value) -> bool:
        """True if a value is codes or their scales, of which no number can be made but by decoding."""
        return isinstance(value, Vector) and self[value.node].kind.is_code

    def is_scales(self, value: Value) -> bool:
        """True if a value is scales of codes."""
        return isinstance(value, Vector) and self[value.node].kind == Kind.SCALE

    def instruction(self, op: str, values: Sequence[Value]) -> int:
        """The node of a function that is an instruction by its name; all operands but a seed are arrays."""
        kinds, result = NAMED[op]
        args = tuple(
            self._loaded(self.operand(x)) if kind == Kind.BF16 else self.operand(x)
            for x, kind in zip(values, kinds, strict=True)
        )
        found = [None if self.is_scalar(arg) else self[arg].kind for arg in args]
        if found != list(kinds):
            raise Unsupported(f"{op} of what is the same for all elements, or of another dtype")
        node = self.node(op, args, result)
        return self.node(f"load_{result}", (node,), Kind.F32) if result.is_half else node

    def _loaded(self, node: int) -> int:
        """The node of numbers as they are stored, of one that loads them."""
        return self[node].args[0] if self[node].op.startswith("load_") else node

    def convert(self, node: int, dtype: Any) -> int:
        """A number or a truth in another dtype; of halves it may have more digits than fit."""
        before, after = self[node].kind, Kind.computed(dtype)
        if before == after:
            return node
        if before == Kind.BOOL:
            return self.node(f"bool_to_{after}", (node,), after)
        if after == Kind.BOOL:
            return self.op("ne", node, self.constant(0, before))
        return self.node("widen" if after == Kind.F64 else "narrow", (node,), after)

    # Scalars.

    def scalar(self, scalar: Scalar, kind: Kind) -> int:
        return self.node(SCALAR, (scalar,), kind)

    def constant(self, value: float, kind: Kind) -> int:
        return self.scalar(Constant.of(np.asarray(value, kind.dtype)), kind)

    def scalar_op(
        self, primitive: core.Primitive, params: dict[str, Any], values: Sequence[Uniform], dtypes: Sequence[Any]
    ) -> list[Uniform]:
        """A primitive over scalars; at once where it only changes a constant's dtype."""
        scalars = tuple(value.scalar for value in values)
        if primitive.name == "convert_element_type" and isinstance(scalars[0], Constant):
            dtype = params["new_dtype"]
            return [Uniform(Constant.of(scalars[0].array().astype(dtype)), dtype)]
        op = ScalarOp(primitive, tuple(sorted(params.items())), scalars, len(dtypes))
        try:
            first = self._results.get(op)
        except TypeError:  # parameters without a hash
            raise Unsupported(f"{primitive.name} of scalars") from None
        if first is None:
            first = self._results[op] = self._scalars
            self._scalars += op.results
            self.scalar_ops.append(op)
        return [Uniform(first + i, dtype) for i, dtype in enumerate(dtypes)]

    def negated(self, node: int) -> int | None:
        """A scalar with the other sign; None if the node is not one."""
        if not self.is_scalar(node):
            return None
        (scalar,) = self[node].args
        if isinstance(scalar, Constant):
            return self.scalar(Constant.of(-scalar.array()), self[node].kind)
        return self._computed(jax.lax.neg_p, self._widened(node))

    def reciprocal(self, node: int) -> int:
        """One divided by a scalar."""
        dtype = self[node].kind.dtype
        return self._computed(jax.lax.div_p, Uniform(Constant.of(np.ones((), dtype)), dtype), self._widened(node))

    def _computed(self, primitive: core.Primitive, *values: Uniform) -> int:
        """The node of what a primitive makes of scalars, in their dtype."""
        dtype = values[0].dtype
        (value,) = self.scalar_op(primitive, {}, values, [dtype])
        return self.scalar(value.scalar, Kind.computed(dtype))

    def _widened(self, node: int) -> Uniform:
        """A scalar in the dtype that the kernel computes in: float32 for half precision."""
        dtype = self[node].kind.dtype
        params = {"new_dtype": dtype, "weak_type": False, "sharding": None}
        value = Uniform(self[node].args[0], None)
        (value,) = self.scalar_op(jax.lax.convert_element_type_p, params, [value], [dtype])
        return value

    # Operations.

    def op(self, op: str, *args: int) -> int:
        """The node of an operation on numbers or truths, simplified."""
        if op == "sub" and (negative := self.negated(args[1])) is not None:
            op, args = "add", (args[0], negative)
        if op == "add" and self[args[1]].op == "neg":
            op, args = "sub", (args[0], self[args[1]].args[0])
        if op == "div" and self.is_scalar(args[1]):  # by the reciprocal, as XLA does
            op, args = "mul", (self.reciprocal(args[1]), args[0])
        if op in _COMMUTATIVE and (not self.is_scalar(args[0]), args[0]) > (not self.is_scalar(args[1]), args[1]):
            args = (args[1], args[0])
        if op == "add":
            args = self._terms(*args)
        if op == "mul":
            args = self._factors(*args)
        if op == "max" and self.is_constant(args[0], -1) and self._is_square(args[1]):
            return args[1]
        if op == "select":
            return self._select(*args)
        is_truth = op in _TESTS or op.startswith("logical")
        return self.node(op, args, Kind.BOOL if is_truth else self[args[-1]].kind)

    def _terms(self, x: int, y: int) -> tuple[int, int]:
        """A scalar and 0 + z without the zero, which was there for a −0; the scalar takes that away as well."""
        if self.is_scalar(x) and self[y].op == "add" and self.is_constant(self[y].args[0], 0):
            return x, self[y].args[1]
        return x, y

    def _is_square(self, node: int) -> bool:
        return self[node].op == "mul" and len({*self[node].args}) == 1

    def _factors(self, x: int, y: int) -> tuple[int, int]:
        """A square without the limit at the largest number, as the square of infinity is infinite too."""
        if x != y or self[x].op != "min":
            return x, y
        limit, z = self[x].args
        return (z, z) if self.is_constant(limit, float(np.finfo(self[x].kind.dtype).max)) else (x, y)

    def _select(self, truth: int, yes: int, no: int) -> int:
        kind = self[no].kind
        if self[truth].op == "ne":  # the opposite, for NaN too
            truth, yes, no = self.node("eq", self[truth].args, Kind.BOOL), no, yes
        yes, no = self._given(truth, True, yes), self._given(truth, False, no)
        if yes == no:
            return yes
        if self._is_root_but_zero(truth, yes, no):  # √x, but never −0
            return self.node("add", (yes, no), kind)
        test = self[truth]
        if test.op == "lt" and set(test.args) == {yes, no}:
            return self.node("lesser" if yes == test.args[0] else "greater", (yes, no), kind)
        return self.node("select", (truth, yes, no), kind)

    def _is_root_but_zero(self, truth: int, yes: int, no: int) -> bool:
        """True if this choice is x = 0 ? 0 : √x."""
        test, root = self[truth], self[no]
        return (
            (test.op, root.op) == ("eq", "sqrt")
            and self.is_constant(yes, 0)
            and self.is_constant(test.args[0], 0)
            and test.args[1] == root.args[0]
        )

    def _given(self, truth: int, value: bool, node: int, depth: int = 4) -> int:
        """The node where the truth has this value: choices by the same truth are made."""
        op, args = self[node].op, self[node].args
        if op == "select" and args[0] == truth:
            return self._given(truth, value, args[1 if value else 2], depth)
        if depth == 0 or op in (INPUT, SCALAR):
            return node
        simpler = tuple(self._given(truth, value, arg, depth - 1) for arg in args)
        return node if simpler == args else self.node(op, simpler, self[node].kind)
