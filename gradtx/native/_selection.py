"""From a graph to instructions in order: those that outputs need, several nodes as one where the kernel can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gradtx.native._graph import INPUT, SCALAR, Graph
from gradtx.native._library import Op
from gradtx.native._program import Kind, Reduce


@dataclass(frozen=True)
class Instruction:
    """An instruction of the kernel over nodes.

    Attributes:
        op: its name.
        kind: of the numbers that it computes with; of a test, those that it tests.
        args: nodes.
        node: the one that it computes; None if it stores an output or reduces.
        to: then the slot of the output, or the number of the reduction.
    """

    op: str
    kind: Kind
    args: tuple[int, ...]
    node: int | None
    to: int = -1


Pattern = str | int | tuple["Pattern", ...]
"""An expression: an instruction with its operands; a letter, twice the same for the same node, in capitals for scalars
only; or a constant."""

# Each instruction of several nodes: its operands, of which "-A" is the scalar with the other sign, and the expression.
# The first that fits is taken, if the kernel has it for these scalars.
FUSED: tuple[tuple[str, str, Pattern], ...] = (
    ("muladdsqrtadd", "A b C E", ("add", "E", ("sqrt", ("add", "C", ("mul", "A", "b"))))),
    ("sqrtadd", "a B", ("add", "B", ("sqrt", "a"))),
    ("mulsqadd", "a b c e", ("add", ("mul", "a", "b"), ("mul", "c", ("mul", "e", "e")))),
    ("mulsqadd", "a b c e", ("add", ("mul", "c", ("mul", "e", "e")), ("mul", "a", "b"))),
    ("mulmuladd", "a b c e", ("add", ("mul", "a", "b"), ("mul", "c", "e"))),
    ("mulmuladd", "a b c e", ("add", ("mul", "c", "e"), ("mul", "a", "b"))),
    ("muladd", "a b c", ("add", ("mul", "a", "b"), "c")),
    ("muladd", "a b c", ("add", "c", ("mul", "a", "b"))),
    ("muladd", "-A b c", ("sub", "c", ("mul", "A", "b"))),
    ("submul", "a b c", ("sub", "c", ("mul", "a", "b"))),
    ("mulsub", "a b c", ("sub", ("mul", "a", "b"), "c")),
    ("muldiv", "a b c", ("div", ("mul", "a", "b"), "c")),
    ("mulsafediv", "a b c", ("select", ("eq", 0, "c"), 0, ("div", ("mul", "a", "b"), "c"))),
    ("safediv", "a b", ("select", ("eq", 0, "b"), 0, ("div", "a", "b"))),
)

_REDUCTIONS = {Reduce.SUM: "sum", Reduce.NORM: "norm", Reduce.MAX: "largest"}


class Selection:
    """Instructions for what is asked for, in the order of asking, each before its result is read."""

    def __init__(
        self, graph: Graph, ops: dict[str, Op], roots: Sequence[int], reductions: Sequence[tuple[Reduce, int]]
    ):
        self.graph, self.ops = graph, ops
        self.instructions: list[Instruction] = []
        self._computed: set[int] = set()
        reduced = [self._reduction(reduce, node) for reduce, node in reductions]
        self._uses = self._count_uses([*(arg for _, args in reduced for arg in args), *roots])
        for k, (op, args) in enumerate(reduced):  # first, since their arrays may be overwritten then
            self._compute(args)
            self.instructions.append(Instruction(op, graph[args[0]].kind, self._with_variant(op, args), None, k))
        self._compute(roots)

    def scalar_set(self, args: Sequence[int]) -> int:
        """The bits of the operands that are scalars."""
        return sum(self.graph.is_scalar(arg) << i for i, arg in enumerate(args))

    def _count_uses(self, roots: list[int]) -> Counter[int]:
        uses, seen, stack = Counter(roots), set[int](), list(roots)
        while stack:
            node = stack.pop()
            if node in seen or self.graph[node].op in (INPUT, SCALAR):
                continue
            seen.add(node)
            uses.update(self.graph[node].args)
            stack += self.graph[node].args
        return uses

    def _reduction(self, reduce: Reduce, node: int) -> tuple[str, tuple[int, ...]]:
        """The instruction: of products they are made again, which is cheaper than to keep them."""
        factors = self.graph[node].args
        if reduce == Reduce.SUM and self.graph[node].op == "mul":
            if not self.scalar_set(factors):
                return "sumprod", factors
            if self.graph.is_constant(factors[0], 0):
                return "nought", factors[1:]
        return _REDUCTIONS[reduce], (node,)

    def _compute(self, nodes: Sequence[int]) -> None:
        for node in nodes:
            if node in self._computed or self.graph[node].op in (INPUT, SCALAR):
                continue
            self._computed.add(node)
            op, args = self._fused(node)
            self._compute(args)
            self._append(op, self._with_variant(op, args), node)

    def _append(self, op: str, args: tuple[int, ...], node: int) -> None:
        found = self.graph[node]
        kind = self.graph[found.args[-1]].kind if found.kind == Kind.BOOL else found.kind
        self.instructions.append(Instruction(op, kind, args, node))

    def _with_variant(self, op: str, args: tuple[int, ...]) -> tuple[int, ...]:
        """Where the kernel has no variant for these scalars, they are spread over a block first."""
        if self.scalar_set(args) in self.ops[op].variants:
            return args
        return tuple(self._spread(arg) if self.graph.is_scalar(arg) else arg for arg in args)

    def _spread(self, scalar: int) -> int:
        kind = self.graph[scalar].kind
        node = self.graph.node("logical_copy" if kind == Kind.BOOL else "copy", (scalar,), kind)
        if node not in self._computed:
            self._computed.add(node)
            self._append(self.graph[node].op, (scalar,), node)
        return node

    def _fused(self, node: int) -> tuple[str, tuple[int, ...]]:
        """The instruction for a node, with those nodes in it that nobody else needs."""
        for op, operands, pattern in FUSED:
            bound: dict[str, int] = {}
            if not self._matches(pattern, node, bound, root=True):
                continue
            args = tuple(self._operand(name, bound) for name in operands.split())
            if self.scalar_set(args) in self.ops[op].variants:
                return op, args
        return self.graph[node].op, self.graph[node].args

    def _operand(self, name: str, bound: dict[str, int]) -> int:
        if not name.startswith("-"):
            return bound[name]
        negated = self.graph.negated(bound[name[1:]])
        assert negated is not None
        return negated

    def _matches(self, pattern: Pattern, node: int, bound: dict[str, int], root: bool = False) -> bool:
        if isinstance(pattern, int):
            return self.graph.is_constant(node, pattern)
        if isinstance(pattern, str):
            is_scalar = self.graph.is_scalar(node)
            return (is_scalar or pattern.islower()) and bound.setdefault(pattern, node) == node
        found = self.graph[node]
        if found.op != pattern[0] or not (root or (self._uses[node] == 1 and node not in self._computed)):
            return False
        return all(self._matches(p, arg, bound) for p, arg in zip(pattern[1:], found.args, strict=True))
