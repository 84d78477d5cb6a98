"""From instructions over nodes to a program: each node gets a slot, the output it is for or a temporary block."""

from __future__ import annotations

from collections.abc import Sequence

from gradtx.native._graph import INPUT, Graph
from gradtx.native._program import Constant, Kind, Program, Unsupported
from gradtx.native._selection import Instruction, Selection

WORDS = 8
"""The words of an instruction, as in kernel.cc: number, whether of float64, scalars, target, four operands."""


def program_of(selection: Selection, roots: Sequence[int], arrays: int, aliases: dict[int, int]) -> Program:
    """The program that stores these roots as outputs; aliases are {array: output} that are the same memory."""
    graph = selection.graph
    instructions, homes = _with_stores(selection, list(roots), arrays, aliases)
    slots, temporaries = _slots(graph, instructions, homes, arrays + len(roots))
    constants_last = sorted(
        dict.fromkeys(arg for x in instructions for arg in x.args if graph.is_scalar(arg)),
        key=lambda node: isinstance(graph[node].args[0], Constant),
    )
    first = arrays + len(roots) + temporaries
    slots |= {node: first + i for i, node in enumerate(constants_last)}
    scalars = [graph[node].args[0] for node in constants_last]
    code: list[int] = []
    for x in instructions:
        to = x.to if x.node is None else slots[x.node]
        operands = [graph[arg].args[0] if graph[arg].op == INPUT else slots[arg] for arg in x.args]
        words = [selection.ops[x.op].code, int(x.kind == Kind.F64), selection.scalar_set(x.args), to, *operands]
        code += [*words, *[0] * (WORDS - len(words))]
    return Program(
        code=tuple(code),
        constants=tuple(float(scalar.array()) for scalar in scalars if isinstance(scalar, Constant)),
        temporaries=temporaries,
        wide=any(node.kind == Kind.F64 for node in graph.nodes),
        scalar_ops=tuple(graph.scalar_ops),
        coefficients=tuple(scalar for scalar in scalars if not isinstance(scalar, Constant)),
        scales=(
            *(node.args[0] for node in graph.nodes if node.op == INPUT and node.kind == Kind.SCALE),
            *(arrays + i for i, root in enumerate(roots) if graph[root].kind == Kind.SCALE),
        ),
    )


def _with_stores(
    selection: Selection, roots: list[int], arrays: int, aliases: dict[int, int]
) -> tuple[list[Instruction], dict[int, int]]:
    """The instructions, with copies of outputs that are not computed in their place; {node: slot} of those that are."""
    graph, alias_of = selection.graph, {output: array for array, output in aliases.items()}

    def copy(root: int, node: int | None, to: int = -1) -> Instruction:
        kind = graph[root].kind
        if kind.is_code:
            raise Unsupported("codes that are stored twice, or as they came")
        return Instruction(f"copy_{kind}" if kind.is_half else "copy", kind, (root,), node, to)

    before = {}
    for output, root in enumerate(roots):  # an array that an output of another one overwrites
        node = graph[root]
        if node.op == INPUT and node.args[0] in aliases and alias_of.get(output) != node.args[0]:
            roots[output] = graph.node(copy(root, None).op, (root,), node.kind)
            before[roots[output]] = copy(root, roots[output])
    instructions = [*before.values(), *selection.instructions]

    last_read: dict[int, int] = {}  # of arrays
    times: dict[int, int] = {}
    for t, x in enumerate(instructions):
        if x.node is not None:
            times[x.node] = t
        last_read |= {graph[arg].args[0]: t for arg in x.args if graph[arg].op == INPUT}
    homes: dict[int, int] = {}
    after: list[Instruction] = []
    for output, root in enumerate(roots):
        node, array = graph[root], alias_of.get(output)
        if node.op == INPUT and node.args[0] == array:
            continue  # is in its place
        is_free = root in times and (array is None or last_read.get(array, -1) <= times[root])
        if is_free and root not in homes:
            homes[root] = arrays + output
        else:
            after.append(copy(root, None, arrays + output))
    return instructions + after, homes


def _slots(
    graph: Graph, instructions: list[Instruction], homes: dict[int, int], first: int
) -> tuple[dict[int, int], int]:
    """The slot of each node that an instruction computes, and the number of temporaries, which begin at ``first``."""
    last_use = {arg: t for t, x in enumerate(instructions) for arg in x.args}
    slots: dict[int, int] = {}
    free: list[int] = []
    temporaries = 0
    for t, x in enumerate(instructions):
        over = {arg for arg in x.args if last_use[arg] == t and slots.get(arg, 0) >= first}
        # A slot may be read and written at once only by elements of one size.
        width = None if x.node is None else graph[x.node].kind.width
        alike = {arg for arg in over if graph[arg].kind.width == width}
        free += [slots[arg] for arg in alike]
        if x.node in homes:
            slots[x.node] = homes[x.node]
        elif x.node is not None and free:
            slots[x.node] = free.pop()
        elif x.node is not None:
            slots[x.node], temporaries = first + temporaries, temporaries + 1
        free += [slots[arg] for arg in over - alike]
        if x.node is not None and x.node not in last_use and slots[x.node] >= first:
            free.append(slots[x.node])
    return slots, temporaries
