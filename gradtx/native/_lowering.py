"""From the jaxpr of a function of one array to a graph of instructions.

Numbers that do not depend on an array are split off, to be computed once per call and not once per element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from gradtx._core.codecs import SIZE
from gradtx._core.rounding import INSTRUCTION
from gradtx.native._graph import NAMED, Graph, Uniform, Value, Vector
from gradtx.native._program import Constant, Kind, Unsupported, aval_of, scales_shape


def lowered(jaxpr: core.Jaxpr, arrays: int) -> tuple[Graph, list[Value]]:
    """The graph of a jaxpr, and its outputs there.

    Its first ``arrays`` arguments are arrays of one shape, the rest, and then its constants, are scalars.
    """
    shape = aval_of(jaxpr.invars[0]).shape
    scalars = [*jaxpr.invars[arrays:], *jaxpr.constvars]
    graph = Graph(len(scalars))
    variables: dict[core.Var, Value] = {}
    for i, var in enumerate(jaxpr.invars[:arrays]):
        if aval_of(var).shape != shape:
            _check_scales(aval_of(var).shape, shape)
            variables[var] = graph.scales(i)
        else:
            variables[var] = graph.input(i, aval_of(var).dtype)
    for i, var in enumerate(scalars):
        if aval_of(var).shape != ():
            raise Unsupported(f"a constant or scalar of shape {aval_of(var).shape}")
        variables[var] = Uniform(i, aval_of(var).dtype)
    outputs = _read_jaxpr(graph, jaxpr, variables, shape)
    for var, value in zip(jaxpr.outvars, outputs, strict=True):
        if aval_of(var).shape != shape and not graph.is_scales(value):
            raise Unsupported(f"an output of shape {aval_of(var).shape} for arrays of shape {shape}")
    return graph, outputs


def _check_scales(scales: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuses an array of another shape, if it is not that of scales for each so many elements in a row."""
    if scales != scales_shape(shape):
        raise Unsupported(f"arrays of shapes {shape} and {scales}")
    if len(shape) > 1 and shape[-1] % SIZE:
        raise Unsupported(f"blocks of codes that end with rows of {shape[-1]}, which is no multiple of {SIZE}")


def _read_jaxpr(graph: Graph, jaxpr: core.Jaxpr, variables: dict[core.Var, Value], shape: Any) -> list[Value]:
    def read(atom: core.Var | core.Literal) -> Value:
        if isinstance(atom, core.Literal):
            if aval_of(atom).shape != ():
                raise Unsupported(f"a constant of shape {aval_of(atom).shape}")
            return Uniform(Constant.of(np.asarray(atom.val, aval_of(atom).dtype)), aval_of(atom).dtype)
        return variables[atom]

    for eqn in jaxpr.eqns:
        if eqn.effects:
            raise Unsupported(f"{eqn.primitive.name}, which has effects")
        variables |= zip(eqn.outvars, _read_equation(graph, eqn, [*map(read, eqn.invars)], shape), strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _read_equation(graph: Graph, eqn: core.JaxprEqn, values: list[Value], shape: Any) -> list[Any]:
    name = eqn.primitive.name
    before, beginning, op = str(eqn.params.get("name", "")).partition(INSTRUCTION)
    inner = callee(eqn)
    if inner is not None and beginning and not before and op in NAMED:
        (out,) = eqn.outvars
        return [Vector(graph.instruction(op, values), aval_of(out).dtype)]
    if inner is not None:
        jaxpr, consts = inner.jaxpr, inner.consts
        if any(np.ndim(const) for const in consts):
            raise Unsupported("a constant array in a nested function")
        constants = [Uniform(Constant.of(c), aval_of(v).dtype) for v, c in zip(jaxpr.constvars, consts, strict=True)]
        variables = zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *values), strict=True)
        return _read_jaxpr(graph, jaxpr, dict(variables), shape)
    uniform = [value for value in values if isinstance(value, Uniform)]
    if len(uniform) == len(values):
        return _read_uniform(graph, eqn, uniform, shape)
    if any(aval_of(var).shape not in (shape, ()) for var in (*eqn.invars, *eqn.outvars)):
        raise Unsupported(f"{name}, which changes the shape")
    if any(graph.is_code(value) for value in values):
        raise Unsupported(f"{name} of codes")
    return [_read_elementwise(graph, eqn, values)]


CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "remat": "jaxpr"}
CALLS |= {"remat2": "jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}
"""The primitives that stand for a function, and what they call it."""


def callee(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The function that an equation calls; None if it calls none."""
    if eqn.primitive.name not in CALLS:
        return None
    inner = eqn.params[CALLS[eqn.primitive.name]]
    return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())


def _read_uniform(graph: Graph, eqn: core.JaxprEqn, values: list[Uniform], shape: Any) -> list[Uniform]:
    """A primitive whose operands are the same for all elements; arrays of that kind are kept as scalars."""
    name, shapes = eqn.primitive.name, [aval_of(var).shape for var in (*eqn.invars, *eqn.outvars)]
    if name in ("pvary", "pcast"):  # constants vary as what they meet does
        return values
    if name in ("broadcast_in_dim", "reshape") and values and all(s in (shape, ()) for s in shapes):
        return [values[0]]
    elementwise = name in _READERS or name in SAME_VALUE
    if any(s != () for s in shapes) and (not elementwise or any(s not in (shape, ()) for s in shapes)):
        raise Unsupported(f"{name} of shape {aval_of(eqn.outvars[0]).shape}")
    return graph.scalar_op(eqn.primitive, eqn.params, values, [aval_of(var).dtype for var in eqn.outvars])


def _read_elementwise(graph: Graph, eqn: core.JaxprEqn, values: list[Value]) -> Value:
    name, (out,) = eqn.primitive.name, eqn.outvars
    if name in SAME_VALUE or name in SAME_ELEMENTS:
        if aval_of(out).shape != aval_of(eqn.invars[0]).shape:
            raise Unsupported(f"{name}, which changes the shape")
        return values[0]
    if eqn.params.get("accuracy") is not None:
        raise Unsupported(f"{name} of accuracy {eqn.params['accuracy']}")
    reader = _READERS.get(name)
    args = [graph.operand(value) for value in values]
    truths = [graph[arg].kind == Kind.BOOL for arg in args]
    if reader is None or (reader.of == "numbers" and any(truths)):
        raise Unsupported(f"the primitive {name}{' of truth values' if any(truths) else ''}")
    if reader.of == "truths" and not all(truths):
        raise Unsupported(f"bitwise {name}")
    node = reader.read(graph, args, _Equation(eqn.params, values[0].dtype, aval_of(out).dtype))
    return Vector(graph.round(node, aval_of(out).dtype) if reader.of == "numbers" else node, aval_of(out).dtype)


# -- Primitives -------------------------------------------------------------------------------------------------------


class _Equation(NamedTuple):
    """The parameters of a primitive, and the dtypes of its first operand and of its result."""

    params: dict[str, Any]
    before: Any
    after: Any


class _Reader(NamedTuple):
    """The node of a primitive of nodes, and whether these have to be numbers or truths. Numbers are rounded after."""

    read: Callable[[Graph, list[int], _Equation], int]
    of: str


def _operation(op: str) -> Callable[[Graph, list[int], _Equation], int]:
    return lambda graph, args, eqn: graph.op(op, *args)


def _integer_pow(graph: Graph, args: list[int], eqn: _Equation) -> int:
    """By squaring, as JAX does."""
    (x,), y = args, eqn.params["y"]
    one = graph.constant(1, graph[x].kind)
    if y == 0:
        return one
    power, factor, rest = None, x, abs(y)
    while rest:
        if rest & 1:
            power = factor if power is None else graph.op("mul", power, factor)
        rest >>= 1
        factor = graph.op("mul", factor, factor) if rest else factor
    assert power is not None
    return power if y > 0 else graph.op("div", one, power)


def _round(graph: Graph, args: list[int], eqn: _Equation) -> int:
    if eqn.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise Unsupported(f"the primitive round by {eqn.params['rounding_method']}")
    return graph.op("round", *args)


def _select(graph: Graph, args: list[int], eqn: _Equation) -> int:
    del eqn
    if len(args) != 3 or graph[args[0]].kind != Kind.BOOL:
        raise Unsupported("select_n by a number")
    truth, no, yes = args
    if graph[yes].kind != Kind.BOOL:
        return graph.op("select", truth, yes, no)
    without = graph.op("logical_not", truth)  # truth·yes + (1 − truth)·no
    return graph.op("logical_or", graph.op("logical_and", truth, yes), graph.op("logical_and", without, no))


def _convert(graph: Graph, args: list[int], eqn: _Equation) -> int:
    (x,) = args
    node = graph.convert(x, eqn.after)
    is_same = eqn.before == eqn.after or Kind.BOOL in (Kind.stored(eqn.before), Kind.stored(eqn.after))
    return node if is_same else graph.round(node, eqn.after)


def _reduce_precision(graph: Graph, args: list[int], eqn: _Equation) -> int:
    dtypes = {(8, 7): "bfloat16", (5, 10): "float16"}
    bits = (eqn.params["exponent_bits"], eqn.params["mantissa_bits"])
    if bits not in dtypes or graph[args[0]].kind != Kind.F32:
        raise Unsupported(f"reduce_precision to {bits}")
    return graph.round(args[0], dtypes[bits])


SAME_VALUE = {"copy", "copy_p", "stop_gradient", "pvary", "pcast", "optimization_barrier"}
SAME_ELEMENTS = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}

# Instructions that a vector unit does by itself. Of exp, tanh and the like XLA has vector versions, and the C++ library
# has not.
_NUMBERS: dict[str, Callable[[Graph, list[int], _Equation], int]] = {
    **{name: _operation(name) for name in "neg abs sqrt rsqrt sign floor ceil is_finite".split()},
    **{name: _operation(name) for name in "add sub mul div max min eq ne lt le".split()},
    "add_any": _operation("add"),
    "gt": lambda graph, args, _: graph.op("lt", *args[::-1]),
    "ge": lambda graph, args, _: graph.op("le", *args[::-1]),
    "square": lambda graph, args, _: graph.op("mul", *args, *args),
    "clamp": lambda graph, args, _: graph.op("min", graph.op("max", args[1], args[0]), args[2]),
    "integer_pow": _integer_pow,
    "round": _round,
}
_TRUTHS = {name: _operation(f"logical_{name}") for name in ("and", "or", "xor", "not")}
_OTHERS = {"select_n": _select, "convert_element_type": _convert, "reduce_precision": _reduce_precision}
_READERS = {
    name: _Reader(read, of)
    for of, readers in (("numbers", _NUMBERS), ("truths", _TRUTHS), ("", _OTHERS))
    for name, read in readers.items()
}
