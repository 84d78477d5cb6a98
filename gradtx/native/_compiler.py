"""From an elementwise function to a program for the kernel.

The jaxpr of the function on one array becomes a graph (``_lowering``), in which equal expressions are one node
(``_graph``). What the outputs need is put in order, common pairs of instructions fused (``_selection``). Then each node
gets a place: the output it is for, where that can be written already, or a temporary block (``_slots``).
"""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend import core

from gradtx.native._library import Op
from gradtx.native._lowering import lowered
from gradtx.native._program import Kind, Program, Reduce, Unsupported
from gradtx.native._selection import Selection
from gradtx.native._slots import program_of


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
    graph, outputs = lowered(jaxpr, arrays)
    written = len(outputs) - len(reduces)
    for reduce, value in zip(reduces, outputs[written:], strict=True):
        kind = Kind.stored(value.dtype)
        if kind not in (Kind.F32, Kind.F64) or (reduce == Reduce.NORM and kind == Kind.F64):
            raise Unsupported(f"the {reduce} of numbers of dtype {value.dtype}")
    roots = [graph.output(value) for value in outputs[:written]]
    reductions = [*zip(reduces, map(graph.operand, outputs[written:]), strict=True)]
    return program_of(Selection(graph, ops, roots, reductions), roots, arrays, aliases)
