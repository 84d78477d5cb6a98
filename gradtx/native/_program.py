"""From an elementwise function to a program for the kernel.

The jaxpr of the function on one array becomes a graph of instructions; what does not depend on an array is split off,
to be computed once per call and not once per element. Equal expressions are one node, what no output needs is gone,
and common pairs of instructions are fused. Then each node gets a place: the output it is for, where that can be
written already, or a temporary block.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from gradtx._core.mesh import vary, varying
from gradtx.native._library import Op

F32, F64, TRUTH = "f32", "f64", "truth"
_KINDS = {"float32": F32, "bfloat16": F32, "float16": F32, "float64": F64, "bool": TRUTH}
_HALVES = {"bfloat16": "bf16", "float16": "f16"}
_NUMPY = {F32: "float32", F64: "float64"}
_BYTES = {F32: 4, F64: 8, TRUTH: 1, "bf16": 2, "f16": 2}


class Reduce(enum.StrEnum):
    """How the elements of a leaf become one number.

    Attributes:
        SUM: added up, in the kernel in float64.
        NORM: the L2 norm, which neither over- nor underflows where it is a normal number itself.
        MAX: the largest absolute value; 0 for no element.
    """

    SUM = "sum"
    NORM = "norm"
    MAX = "max"


_REDUCTIONS = {Reduce.SUM: "sum", Reduce.NORM: "norm", Reduce.MAX: "largest"}


class Unsupported(Exception):
    """The function holds something that the kernel does not do. The message says what."""


@dataclass(frozen=True)
class Step:
    """One primitive over scalars. Its operands and results are numbered through: arguments, then results of steps."""

    primitive: core.Primitive
    params: tuple[tuple[str, Any], ...]
    operands: tuple[int | Constant, ...]
    results: int


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


@dataclass(frozen=True)
class Program:
    """What the kernel runs for each leaf.

    Attributes:
        code: the instructions, flat.
        constants: scalars known when the program is made.
        temporaries: how many blocks it needs besides inputs and outputs.
        wide: whether a block may hold float64.
        steps: what to compute from the scalar arguments before.
        coefficients: which scalars, of arguments and results of steps, the program reads, in order.
    """

    code: tuple[int, ...]
    constants: tuple[float, ...]
    temporaries: int
    wide: bool
    steps: tuple[Step, ...]
    coefficients: tuple[int, ...]

    def scalars(self, *arguments: jax.Array) -> list[jax.Array]:
        """The coefficients, from the function's scalar arguments."""
        values: list[Any] = list(arguments)
        for step in self.steps:
            operands = [x.array() if isinstance(x, Constant) else values[x] for x in step.operands]
            operands = [vary(x, varying(*operands)) for x in operands]
            results = step.primitive.bind(*operands, **dict(step.params))
            values += results if step.primitive.multiple_results else [results]
        return [values[i] for i in self.coefficients]


def aval_of(atom: core.Var | core.Literal) -> Any:
    """The abstract value, which has a shape and a dtype, as all here have."""
    return atom.aval


def compile_jaxpr(
    jaxpr: core.Jaxpr, arrays: int, ops: dict[str, Op], aliases: dict[int, int], reduces: Sequence[Reduce] = ()
) -> Program:
    """The program of a jaxpr whose first ``arrays`` arguments, after its constants, are arrays and the rest scalars.

    Args:
        jaxpr: its constants (``constvars``) are scalars; they come after the other scalars.
        arrays: how many of its arguments are arrays, all of one shape.
        ops: the instructions of the kernel.
        aliases: {array argument: output} that are the same memory.
        reduces: how the last outputs are reduced over the elements, and not stored.

    Raises:
        Unsupported: the kernel cannot do this.
    """
    graph = _Graph(ops)
    shape = aval_of(jaxpr.invars[0]).shape
    variables: dict[core.Var, _Value] = {}
    for i, var in enumerate(jaxpr.invars[:arrays]):
        if aval_of(var).shape != shape:
            raise Unsupported(f"arrays of shapes {shape} and {aval_of(var).shape}")
        variables[var] = graph.input(i, aval_of(var).dtype)
    scalars = [*jaxpr.invars[arrays:], *jaxpr.constvars]
    for i, var in enumerate(scalars):
        if np.prod(aval_of(var).shape, dtype=int) != 1 or aval_of(var).ndim:
            raise Unsupported(f"a constant or scalar of shape {aval_of(var).shape}")
        variables[var] = _Uniform(i, aval_of(var).dtype)
    graph.scalars = len(scalars)
    outputs = _read_jaxpr(graph, jaxpr, variables, shape)
    for var in jaxpr.outvars:
        if aval_of(var).shape != shape:
            raise Unsupported(f"an output of shape {aval_of(var).shape} for arrays of shape {shape}")
    written = len(outputs) - len(reduces)
    roots = [graph.output(value) for value in outputs[:written]]
    reductions = [graph.reduction(reduce, value) for reduce, value in zip(reduces, outputs[written:], strict=True)]
    return _Assembler(graph, roots, reductions, arrays, aliases).program()


# -- The graph --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Uniform:
    """A scalar: the same for all elements of a leaf."""

    ref: int | Constant
    dtype: Any


@dataclass(frozen=True)
class _Vector:
    """One number per element: the node that computes it, and the dtype that JAX knows it by."""

    node: int
    dtype: Any


_Value = _Uniform | _Vector


@dataclass(frozen=True)
class _Node:
    op: str  # an instruction, or "input" or "scalar"
    args: tuple[Any, ...]  # nodes; for an input its number, for a scalar its reference
    kind: str


_COMMUTATIVE = {"add", "mul", "max", "min", "eq", "ne", "logical_and", "logical_or", "logical_xor"}


class _Graph:
    """Instructions as values: equal ones are the same node."""

    def __init__(self, ops: dict[str, Op]):
        self.ops = ops
        self.nodes: list[_Node] = []
        self.index: dict[_Node, int] = {}
        self.steps: list[Step] = []
        self.step_results: dict[Step, int] = {}
        self.scalars = 0

    def __getitem__(self, node: int) -> _Node:
        return self.nodes[node]

    def node(self, op: str, args: tuple[Any, ...], kind: str) -> int:
        new = _Node(op, args, kind)
        if new not in self.index:
            self.index[new] = len(self.nodes)
            self.nodes.append(new)
        return self.index[new]

    def is_scalar(self, node: int) -> bool:
        return self[node].op == "scalar"

    def is_constant(self, node: int, value: float) -> bool:
        ref = self[node].args[0]
        return self.is_scalar(node) and isinstance(ref, Constant) and float(ref.array()) == value

    def kind(self, dtype: Any) -> str:
        if (kind := _KINDS.get(jnp.dtype(dtype).name)) is None:
            raise Unsupported(f"numbers of dtype {dtype}")
        return kind

    def input(self, i: int, dtype: Any) -> _Vector:
        half = _HALVES.get(jnp.dtype(dtype).name)
        if self.kind(dtype) == TRUTH:
            raise Unsupported("arrays of dtype bool")
        node = self.node("input", (i,), half or self.kind(dtype))
        return _Vector(self.node(f"load_{half}", (node,), F32) if half else node, dtype)

    def output(self, value: _Value) -> int:
        """The node to be stored as an output: in the dtype of the array."""
        node, half = self.operand(value), _HALVES.get(jnp.dtype(value.dtype).name)
        if self.kind(value.dtype) == TRUTH:
            raise Unsupported("an output of dtype bool")
        if half is None:
            return node
        if self[node].op == f"round_{half}":
            (node,) = self[node].args
        if self[node].op == f"load_{half}":
            return self[node].args[0]
        if self.is_scalar(node):
            node = self.node("copy", (node,), F32)
        return self.node(f"store_{half}", (node,), half)

    def reduction(self, reduce: Reduce, value: _Value) -> tuple[str, int]:
        """The instruction, and the node to be reduced by it over the elements."""
        kind = self.kind(value.dtype)
        if kind == TRUTH or jnp.dtype(value.dtype).name in _HALVES or (reduce == Reduce.NORM and kind == F64):
            raise Unsupported(f"the {reduce} of numbers of dtype {value.dtype}")
        return _REDUCTIONS[reduce], self.operand(value)

    def operand(self, value: _Value) -> int:
        if isinstance(value, _Vector):
            return value.node
        return self.scalar(value.ref, self.kind(value.dtype))

    def step(
        self, primitive: core.Primitive, params: dict[str, Any], values: Sequence[_Uniform], avals: Sequence[Any]
    ) -> list[_Uniform]:
        """A primitive over scalars, for JAX to compute before; at once where it only changes a constant's dtype."""
        refs = tuple(value.ref for value in values)
        if primitive.name == "convert_element_type" and isinstance(refs[0], Constant):
            dtype = params["new_dtype"]
            return [_Uniform(Constant.of(refs[0].array().astype(dtype)), dtype)]
        step = Step(primitive, tuple(sorted(params.items())), refs, len(avals))
        try:
            first = self.step_results.get(step)
        except TypeError:  # parameters without a hash
            raise Unsupported(f"{primitive.name} of scalars") from None
        if first is None:
            first = self.scalars + sum(step.results for step in self.steps)
            self.step_results[step] = first
            self.steps.append(step)
        return [_Uniform(first + i, aval.dtype) for i, aval in enumerate(avals)]

    def negated(self, node: int) -> int | None:
        """A scalar with the other sign; None if the node is not one."""
        if not self.is_scalar(node):
            return None
        (ref,) = self[node].args
        if isinstance(ref, Constant):
            return self.scalar(Constant.of(-ref.array()), self[node].kind)
        return self.computed(jax.lax.neg_p, {}, [self.wide(node)])

    def reciprocal(self, node: int) -> int:
        """One divided by a scalar."""
        one = _Uniform(Constant.of(np.ones((), _NUMPY[self[node].kind])), _NUMPY[self[node].kind])
        return self.computed(jax.lax.div_p, {}, [one, self.wide(node)])

    def scalar(self, ref: int | Constant, kind: str) -> int:
        return self.node("scalar", (ref,), kind)

    def constant(self, value: float, kind: str) -> int:
        return self.scalar(Constant.of(np.asarray(value, _NUMPY[kind])), kind)

    def computed(self, primitive: core.Primitive, params: dict[str, Any], values: list[_Uniform]) -> int:
        """The node of what a primitive makes of scalars, in their dtype."""
        dtype = values[0].dtype
        (value,) = self.step(primitive, params, values, [jax.ShapeDtypeStruct((), dtype)])
        return self.scalar(value.ref, self.kind(dtype))

    def wide(self, node: int) -> _Uniform:
        """A scalar in the dtype that the kernel computes in: float32 for half precision."""
        dtype = np.dtype(_NUMPY[self[node].kind])
        params = {"new_dtype": dtype, "weak_type": False, "sharding": None}
        value = _Uniform(self[node].args[0], None)
        (value,) = self.step(jax.lax.convert_element_type_p, params, [value], [jax.ShapeDtypeStruct((), dtype)])
        return value

    def maths(self, op: str, *operands: int) -> int:
        """A number from numbers, or a truth, or a choice; simplified."""
        args: tuple[int, ...] = operands
        kind = self[args[-1]].kind
        if op == "sub" and (negative := self.negated(args[1])) is not None:
            op, args = "add", (args[0], negative)
        if op == "add" and self[args[1]].op == "neg":
            op, args = "sub", (args[0], self[args[1]].args[0])
        if op == "div" and self.is_scalar(args[1]):  # by the reciprocal, as XLA does
            op, args = "mul", (self.reciprocal(args[1]), args[0])
        if op in _COMMUTATIVE and (not self.is_scalar(args[0]), args[0]) > (not self.is_scalar(args[1]), args[1]):
            args = (args[1], args[0])
        if op == "mul" and args[0] == args[1] and self[args[0]].op == "min":
            limit, x = self[args[0]].args
            if self.is_constant(limit, float(np.finfo(_NUMPY[kind]).max)):
                args = (x, x)  # of infinity too the square is infinite
        if op == "max" and self.is_constant(args[0], -1) and self[args[1]].op == "mul":
            if len({*self[args[1]].args}) == 1:
                return args[1]  # a square
        if op == "select":
            truth, yes, no = operands
            if self[truth].op == "ne":  # the opposite, for NaN too
                truth, yes, no = self.node("eq", self[truth].args, TRUTH), no, yes
            args = (truth, self.given(truth, True, yes), self.given(truth, False, no))
            if args[1] == args[2]:
                return args[1]
            if self.is_root_but_zero(*args):  # √x, but never −0
                return self.node("add", (args[1], args[2]), kind)
            test = self[args[0]]
            if test.op == "lt" and set(test.args) == set(args[1:]):
                return self.node("lesser" if args[1] == test.args[0] else "greater", args[1:], kind)
        if op in ("eq", "ne", "lt", "le", "is_finite") or op.startswith("logical"):
            kind = TRUTH
        return self.node(op, args, kind)

    def is_root_but_zero(self, truth: int, yes: int, no: int) -> bool:
        """Whether this choice is x = 0 ? 0 : √x."""
        test, root = self[truth], self[no]
        return (
            (test.op, root.op) == ("eq", "sqrt")
            and self.is_constant(yes, 0)
            and self.is_constant(test.args[0], 0)
            and test.args[1] == root.args[0]
        )

    def given(self, truth: int, value: bool, node: int, depth: int = 4) -> int:
        """The node where the truth has this value: choices by the same truth are made."""
        op, args = self[node].op, self[node].args
        if op == "select" and args[0] == truth:
            return self.given(truth, value, args[1 if value else 2], depth)
        if depth == 0 or op in ("input", "scalar"):
            return node
        chosen = tuple(self.given(truth, value, arg, depth - 1) for arg in args)
        return node if chosen == args else self.node(op, chosen, self[node].kind)


# -- From jaxpr to graph ----------------------------------------------------------------------------------------------

# What a vector unit does by itself. Of exp, tanh and the like XLA has vector versions, and the C++ library has not.
_SAME_NAME = "neg abs sqrt rsqrt sign floor ceil add sub mul div max min eq ne lt le"
_MATHS = {name: name for name in _SAME_NAME.split()} | {"add_any": "add"}
_SWAPPED = {"gt": "lt", "ge": "le"}
_LOGIC = {"and": "logical_and", "or": "logical_or", "xor": "logical_xor", "not": "logical_not"}
_IDENTITY = {"copy", "copy_p", "stop_gradient", "pvary", "pcast", "optimization_barrier", "reduce_precision"}
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "remat": "jaxpr"}
_CALLS |= {"remat2": "jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}
_ELEMENTWISE = {*_MATHS, *_SWAPPED, *_LOGIC, *_IDENTITY, "convert_element_type", "select_n", "clamp", "square"}
_ELEMENTWISE |= {"integer_pow", "is_finite", "round"}


def _read_jaxpr(graph: _Graph, jaxpr: core.Jaxpr, variables: dict[core.Var, _Value], shape: Any) -> list[_Value]:
    def read(atom: core.Var | core.Literal) -> _Value:
        if isinstance(atom, core.Literal):
            if aval_of(atom).shape != ():
                raise Unsupported(f"a constant of shape {aval_of(atom).shape}")
            return _Uniform(Constant.of(np.asarray(atom.val, aval_of(atom).dtype)), aval_of(atom).dtype)
        return variables[atom]

    for eqn in jaxpr.eqns:
        if eqn.effects:
            raise Unsupported(f"{eqn.primitive.name}, which has effects")
        values = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in _CALLS:
            inner = eqn.params[_CALLS[name]]
            inner, consts = (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, [])
            if any(np.ndim(const) for const in consts):
                raise Unsupported("a constant array in a nested function")
            own = {
                var: _Uniform(Constant.of(c), aval_of(var).dtype)
                for var, c in zip(inner.constvars, consts, strict=True)
            }
            results = _read_jaxpr(graph, inner, own | dict(zip(inner.invars, values, strict=True)), shape)
        elif all(isinstance(value, _Uniform) for value in values):
            results = _read_uniform(graph, eqn, values, shape)  # pyright: ignore[reportArgumentType] - all uniform
        else:
            if any(aval_of(var).shape not in (shape, ()) for var in (*eqn.invars, *eqn.outvars)):
                raise Unsupported(f"{name}, which changes the shape")
            results = _read_elementwise(graph, eqn, values)
        variables |= zip(eqn.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _read_uniform(graph: _Graph, eqn: core.JaxprEqn, values: list[_Uniform], shape: Any) -> list[_Uniform]:
    """A primitive whose operands are the same for all elements; arrays of that kind are kept as scalars."""
    name, shapes = eqn.primitive.name, [aval_of(var).shape for var in (*eqn.invars, *eqn.outvars)]
    if name in ("pvary", "pcast"):  # constants vary as what they meet does
        return values
    if name in ("broadcast_in_dim", "reshape") and values and all(s in (shape, ()) for s in shapes):
        return [values[0]]
    if any(s != () for s in shapes) and (name not in _ELEMENTWISE or any(s not in (shape, ()) for s in shapes)):
        raise Unsupported(f"{name} of shape {aval_of(eqn.outvars[0]).shape}")
    return graph.step(eqn.primitive, eqn.params, values, [aval_of(var) for var in eqn.outvars])


def _read_elementwise(graph: _Graph, eqn: core.JaxprEqn, values: list[_Value]) -> list[_Value]:
    name, params, dtype = eqn.primitive.name, eqn.params, aval_of(eqn.outvars[0]).dtype
    if name in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims") or name in _IDENTITY - {"reduce_precision"}:
        if aval_of(eqn.outvars[0]).shape != aval_of(eqn.invars[0]).shape:
            raise Unsupported(f"{name}, which changes the shape")
        return list(values)
    if params.get("accuracy") is not None:
        raise Unsupported(f"{name} of accuracy {params['accuracy']}")
    args = [graph.operand(value) for value in values]
    if name == "convert_element_type":
        node = _convert(graph, args[0], values[0].dtype, dtype)
        return [_Vector(node, dtype)]
    if name == "reduce_precision":
        formats = {(8, 7): "bf16", (5, 10): "f16"}
        bits = (params["exponent_bits"], params["mantissa_bits"])
        if bits not in formats or graph[args[0]].kind != F32:
            raise Unsupported(f"reduce_precision to {bits}")
        return [_Vector(graph.node(f"round_{formats[bits]}", (args[0],), F32), dtype)]
    if name in _LOGIC:
        if any(graph[arg].kind != TRUTH for arg in args):
            raise Unsupported(f"bitwise {name}")
        return [_Vector(graph.maths(_LOGIC[name], *args), dtype)]
    if name == "select_n":
        if len(args) != 3 or graph[args[0]].kind != TRUTH:
            raise Unsupported("select_n by a number")
        truth, no, yes = args
        if graph[yes].kind == TRUTH:  # truth·yes + (1 − truth)·no
            without = graph.maths("logical_not", truth)
            chosen = [graph.maths("logical_and", truth, yes), graph.maths("logical_and", without, no)]
            return [_Vector(graph.maths("logical_or", *chosen), dtype)]
        return [_Vector(graph.maths("select", truth, yes, no), dtype)]
    if any(graph[arg].kind == TRUTH for arg in args):
        raise Unsupported(f"{name} of truth values")
    if name in _MATHS:
        node = graph.maths(_MATHS[name], *args)
    elif name in _SWAPPED:
        node = graph.maths(_SWAPPED[name], args[1], args[0])
    elif name == "is_finite":
        node = graph.maths("is_finite", *args)
    elif name == "square":
        node = graph.maths("mul", args[0], args[0])
    elif name == "integer_pow":
        node = _integer_pow(graph, args[0], params["y"])
    elif name == "clamp":
        node = graph.maths("min", graph.maths("max", args[1], args[0]), args[2])
    elif name == "round" and params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        node = graph.maths("round", *args)
    else:
        raise Unsupported(f"the primitive {name}")
    if half := _HALVES.get(jnp.dtype(dtype).name):
        node = graph.node(f"round_{half}", (node,), F32)
    return [_Vector(node, dtype)]


def _integer_pow(graph: _Graph, x: int, y: int) -> int:
    """By squaring, as JAX does."""
    if y == 0:
        return graph.constant(1, graph[x].kind)
    power, factor, rest = None, x, abs(y)
    while rest:
        if rest & 1:
            power = factor if power is None else graph.maths("mul", power, factor)
        rest >>= 1
        factor = graph.maths("mul", factor, factor) if rest else factor
    assert power is not None
    if y > 0:
        return power
    return graph.maths("div", graph.constant(1, graph[x].kind), power)


def _convert(graph: _Graph, node: int, old: Any, new: Any) -> int:
    before, after = graph.kind(old), graph.kind(new)
    half = _HALVES.get(jnp.dtype(new).name)
    if before == TRUTH and after != TRUTH:
        return graph.node(f"bool_to_{after}", (node,), after)
    if before != TRUTH and after == TRUTH:
        return graph.maths("ne", node, graph.constant(0, before))
    if (before, after) == (F32, F64):
        return graph.node("widen", (node,), F64)
    if (before, after) == (F64, F32):
        node = graph.node("narrow", (node,), F32)
    if half and jnp.dtype(old) != jnp.dtype(new):
        node = graph.node(f"round_{half}", (node,), F32)
    return node


# -- From graph to program --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Instruction:
    op: str
    kind: str
    args: tuple[int, ...]  # nodes
    node: int | None  # what it computes; None if it stores an output or reduces
    to: int = -1  # the slot of the output, or the number of the reduction


class _Assembler:
    """Orders the nodes that the outputs need, fuses them, and gives each a slot."""

    def __init__(
        self,
        graph: _Graph,
        roots: list[int],
        reductions: list[tuple[str, int]],
        arrays: int,
        aliases: dict[int, int],
    ):
        self.graph, self.roots, self.arrays = graph, roots, arrays
        self.reductions = [self._reduction(op, node) for op, node in reductions]
        self.aliased = {output: array for array, output in aliases.items()}
        self.uses = self._count_uses()
        self.instructions: list[_Instruction] = []
        self.done: set[int] = set()

    def program(self) -> Program:
        for k, (op, args) in enumerate(self.reductions):  # first, as what they read may be overwritten then
            for arg in args:
                self._emit(arg)
            kind = self.graph[args[0]].kind
            self.instructions.append(_Instruction(op, kind, self._with_variant(op, args), None, k))
        for root in self.roots:
            self._emit(root)
        return self._allocate()

    def _count_uses(self) -> Counter[int]:
        stack = [*self.roots, *(arg for _, args in self.reductions for arg in args)]
        uses: Counter[int] = Counter(stack)
        seen: set[int] = set()
        while stack:
            node = stack.pop()
            if node in seen or self.graph[node].op in ("input", "scalar"):
                continue
            seen.add(node)
            uses.update(self.graph[node].args)
            stack += self.graph[node].args
        return uses

    def _emit(self, node: int) -> None:
        if node in self.done or self.graph[node].op in ("input", "scalar"):
            return
        self.done.add(node)
        op, args = self._fused(node)
        for arg in args:
            self._emit(arg)
        args = self._with_variant(op, args)
        self.instructions.append(_Instruction(op, self._number_kind(node), args, node))

    def _reduction(self, op: str, node: int) -> tuple[str, tuple[int, ...]]:
        """The instruction for a reduction: of products they are made again, which is cheaper than to keep them."""
        found = self.graph[node]
        if op == "sum" and found.op == "mul" and not self._scalars(found.args):
            return "sumprod", found.args
        return op, (node,)

    def _number_kind(self, node: int) -> str:
        """What an instruction computes with: of a test, the kind of what it tests."""
        found = self.graph[node]
        return self.graph[found.args[-1]].kind if found.kind == TRUTH else found.kind

    def _with_variant(self, op: str, args: tuple[int, ...]) -> tuple[int, ...]:
        """Where the kernel has no variant for these scalars, they are spread over a block first."""
        if self._scalars(args) in self.graph.ops[op].variants:
            return args
        spread = []
        for arg in args:
            if self.graph.is_scalar(arg):
                kind = self.graph[arg].kind
                arg = self.graph.node("logical_copy" if kind == TRUTH else "copy", (arg,), kind)
                if arg not in self.done:
                    self.done.add(arg)
                    self.instructions.append(_Instruction(self.graph[arg].op, kind, self.graph[arg].args, arg))
            spread.append(arg)
        return tuple(spread)

    def _scalars(self, args: Sequence[int]) -> int:
        return sum(self.graph.is_scalar(arg) << i for i, arg in enumerate(args))

    # Fusing.

    def _inner(self, node: int, *ops: str) -> tuple[int, ...] | None:
        """The operands of a node that is one of these and is needed nowhere else."""
        found = self.graph[node]
        return found.args if found.op in ops and self.uses[node] == 1 and node not in self.done else None

    def _fused(self, node: int) -> tuple[str, tuple[int, ...]]:
        """The instruction for a node, with those instructions in it that nobody else needs."""
        op, args = self.graph[node].op, self.graph[node].args
        candidates: dict[str, Callable[..., Any]] = {
            "add": self._fused_add,
            "sub": self._fused_sub,
            "div": self._fused_div,
            "select": self._fused_select,
        }
        fused = candidates[op](*args) if op in candidates else None
        if fused and self._scalars(fused[1]) in self.graph.ops[fused[0]].variants:
            return fused
        return op, args

    def _fused_add(self, x: int, y: int) -> tuple[str, tuple[int, ...]] | None:
        if self.graph.is_scalar(x) and (inner := self._inner(y, "add")) and self.graph.is_constant(inner[0], 0):
            y = inner[1]  # the zero was there for a −0, which x takes away as well
        if (root := self._inner(y, "sqrt")) and self.graph.is_scalar(x):
            if (total := self._inner(root[0], "add")) and (product := self._inner(total[1], "mul")):
                if self.graph.is_scalar(total[0]) and self.graph.is_scalar(product[0]):
                    return "muladdsqrtadd", (*product, total[0], x)
            return "sqrtadd", (*root, x)
        first, second = self._inner(x, "mul"), self._inner(y, "mul")
        if first and second and x != y:
            for one, other in ((first, second), (second, first)):
                if (square := self._inner(other[1], "mul")) and square[0] == square[1]:
                    return "mulsqadd", (*one, other[0], square[0])
            if self.graph.is_scalar(second[0]) and not self.graph.is_scalar(first[0]):
                first, second = second, first
            return "mulmuladd", (*first, *second)
        if product := first or second:
            return "muladd", (*product, y if product is first else x)
        return None

    def _fused_sub(self, x: int, y: int) -> tuple[str, tuple[int, ...]] | None:
        if product := self._inner(y, "mul"):
            negative = self.graph.negated(product[0])
            return ("submul", (*product, x)) if negative is None else ("muladd", (negative, product[1], x))
        if product := self._inner(x, "mul"):
            return "mulsub", (*product, y)
        return None

    def _fused_div(self, x: int, y: int) -> tuple[str, tuple[int, ...]] | None:
        product = self._inner(x, "mul")
        return ("muldiv", (*product, y)) if product else None

    def _fused_select(self, truth: int, yes: int, no: int) -> tuple[str, tuple[int, ...]] | None:
        test, quotient = self._inner(truth, "eq"), self._inner(no, "div")
        if test and quotient and test[1] == quotient[1] and self._are_zero(yes, test[0]):
            if product := self._inner(quotient[0], "mul"):
                return "mulsafediv", (*product, quotient[1])
            return "safediv", quotient
        return None

    def _are_zero(self, *nodes: int) -> bool:
        return all(self.graph.is_constant(node, 0) for node in nodes)

    # Places.

    def _allocate(self) -> Program:
        graph, arrays, outputs = self.graph, self.arrays, len(self.roots)
        instructions, home = self._with_stores()
        last_use: dict[int, int] = {}
        for t, instruction in enumerate(instructions):
            last_use |= dict.fromkeys(instruction.args, t)

        place: dict[int, int] = {}  # of a node: its slot
        free: list[int] = []
        temporaries = 0
        scalars: dict[int, int] = {}
        rows: list[list[int]] = []
        base = arrays + outputs
        for t, instruction in enumerate(instructions):
            slots = []
            for arg in instruction.args:
                node = graph[arg]
                if node.op == "input":
                    slots.append(node.args[0])
                elif node.op == "scalar":
                    slots.append(-1 - scalars.setdefault(arg, len(scalars)))
                else:
                    slots.append(place[arg])
            over = {arg for arg in instruction.args if last_use[arg] == t and place.get(arg, 0) >= base}
            # A place may be read and written at once only by elements of one size.
            width = 0 if instruction.node is None else _BYTES[graph[instruction.node].kind]
            free += [place[arg] for arg in over if _BYTES[graph[arg].kind] == width]
            if instruction.node is None:
                to = instruction.to
            elif instruction.node in home:
                to = arrays + home[instruction.node]
            elif free:
                to = free.pop()
            else:
                to, temporaries = base + temporaries, temporaries + 1
            free += [place[arg] for arg in over if _BYTES[graph[arg].kind] != width]
            if instruction.node is not None:
                place[instruction.node] = to
                if instruction.node not in last_use and to >= base:
                    free.append(to)
            op = graph.ops[instruction.op].code
            rows.append([op, instruction.kind == F64, self._scalars(instruction.args), to, *slots])

        # Scalars come last: first those computed for each call, then those known now.
        order = sorted(scalars, key=lambda node: isinstance(graph[node].args[0], Constant))
        slot_of = {-1 - scalars[node]: base + temporaries + i for i, node in enumerate(order)}
        code = [[*row[:4], *(slot_of.get(s, s) for s in row[4:]), *([0] * (8 - len(row)))] for row in rows]
        refs = [graph[node].args[0] for node in order]
        return Program(
            code=tuple(int(word) for row in code for word in row),
            constants=tuple(float(ref.array()) for ref in refs if isinstance(ref, Constant)),
            temporaries=temporaries,
            wide=any(node.kind == F64 for node in graph.nodes),
            steps=tuple(graph.steps),
            coefficients=tuple(ref for ref in refs if not isinstance(ref, Constant)),
        )

    def _with_stores(self) -> tuple[list[_Instruction], dict[int, int]]:
        """The instructions, with copies for outputs not written where they are computed; {node: output} of the rest."""
        graph = self.graph
        overwritten, first = set(self.aliased.values()), {}
        for output, root in enumerate(self.roots):
            node = graph[root]
            if node.op == "input" and node.args[0] in overwritten and self.aliased.get(output) != node.args[0]:
                copy = graph.node(_copy(node.kind), (root,), node.kind)
                first[copy] = _Instruction(_copy(node.kind), node.kind, (root,), copy)
                self.roots[output] = copy
        instructions = [*first.values(), *self.instructions]

        last_read: dict[int, int] = {}  # of input arrays
        times: dict[int, int] = {}
        for t, instruction in enumerate(instructions):
            if instruction.node is not None:
                times[instruction.node] = t
            last_read |= {graph[arg].args[0]: t for arg in instruction.args if graph[arg].op == "input"}
        homes: dict[int, int] = {}
        stores: list[_Instruction] = []
        for output, root in enumerate(self.roots):
            node, array = graph[root], self.aliased.get(output)
            if node.op == "input" and node.args[0] == array:
                continue  # is in its place
            free = root in times and (array is None or last_read.get(array, -1) <= times[root])
            if free and root not in homes:
                homes[root] = output
            else:
                stores.append(_Instruction(_copy(node.kind), node.kind, (root,), None, self.arrays + output))
        return instructions + stores, homes


def _copy(kind: str) -> str:
    return "copy" if kind in (F32, F64) else f"copy_{kind}"
