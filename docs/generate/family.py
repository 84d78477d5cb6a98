"""The map of all optimizers, made from their chains: which rules each has, and which are one rule apart."""

from __future__ import annotations

import difflib
import functools
import html
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradtx as gx
from gradtx import optimizers

__all__ = ["around", "chains", "every", "map_svg", "page", "steps_apart", "table"]

ROW, COLUMN, LEFT, RIGHT, TOP = 17, 12.5, 136, 48, 140


def chains() -> dict[str, tuple[str, ...]]:
    """The rules of each optimizer, in order; of one that treats parts differently, those of its first part.

    A rule that holds a chain stands in front of the chain's rules.
    """
    return {name: tuple(rule.label for rule in every(getattr(gx, name)(0.001))) for name in optimizers.__all__}


def every(tx: Any) -> Iterator[Any]:
    """Every rule of an optimizer, as ``chains`` counts them."""
    if isinstance(tx, gx.partition):
        yield from every(next(iter(tx.named_parts.values())))
        return
    for rule in gx.chain(tx).rules:
        inner = getattr(rule, "tx", None)
        holds = isinstance(inner, gx.Chain | gx.Rule | gx.partition)
        if not (holds and isinstance(rule, gx.seal)):
            yield rule
        if holds:
            yield from every(inner)


def _by_module(names: Sequence[str], order: Sequence[Any]) -> Iterator[tuple[str, list[str]]]:
    """Names by the module that they are made in, called by what its docstring says first."""
    modules = list(dict.fromkeys(getattr(gx, name).__module__ for name in order))
    for module in modules:
        if members := [name for name in names if getattr(gx, name).__module__ == module]:
            yield (sys.modules[module].__doc__ or "").partition("\n")[0].rstrip("."), members


def steps_apart(one: Sequence[str], other: Sequence[str]) -> str:
    """How one chain becomes another by one rule that is added, left out, moved or exchanged; else nothing.

    >>> steps_apart(["momentum", "sign"], ["momentum", "quasi_hyperbolic", "sign"])
    '`quasi_hyperbolic` added behind `momentum`'
    >>> steps_apart(["rms", "precondition"], ["adagrad_sum", "precondition"])
    '`adagrad_sum` for `rms`'
    >>> steps_apart(["momentum", "rms"], ["rms", "momentum"])
    '`momentum` moved to behind `rms`'
    >>> steps_apart(["momentum", "sign"], ["in_subspace", "momentum", "sign"])
    '`in_subspace` around `momentum`'
    >>> steps_apart(["rms"], ["momentum"] * 3)
    ''
    """
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = list(one[start:]), list(other[start:])
    while a and b and a[-1] == b[-1]:
        del a[-1], b[-1]
    if not a and not b:
        return "the same rules with other numbers"
    before = other[start - 1] if start else ""
    if not a and len(b) == 1 and "tx" in getattr(gx, b[0]).__dataclass_fields__:
        return f"`{b[0]}` around `{other[start + 1]}`"
    if not a and len(b) == 1:
        return f"`{b[0]}` added" + (f" behind `{before}`" if before else " in front")
    if len(a) == len(b) == 1:
        return f"`{b[0]}` for `{a[0]}`"
    if a and a[1:] + a[:1] == b:
        return f"`{a[0]}` moved to behind `{b[-2]}`"
    return ""


@functools.cache
def neighbours() -> list[tuple[str, str, str]]:
    """All pairs of optimizers that are one rule apart, each once: the longer, or the later, from the other."""
    found = []
    for (one, a), (other, b) in itertools.combinations(_ordered().items(), 2):
        first, second = ((one, a), (other, b)) if len(a) <= len(b) else ((other, b), (one, a))
        if how := steps_apart(first[1], second[1]) or steps_apart(second[1], first[1]):
            found.append((first[0], second[0], how))
    return found


def _ordered() -> dict[str, tuple[str, ...]]:
    """The chains in the order of their modules, from the simple ones."""
    made = chains()
    order = ["sgd", "lion", "adopt", "lamb", "muon", "asgd", *made]
    names = (name for _, group in _by_module(list(made), order) for name in sorted(group, key=lambda n: len(made[n])))
    return {name: made[name] for name in names}


def _depth(rule: str, made: Mapping[str, Sequence[str]]) -> tuple[float, str]:
    """How far down its chains a rule stands, so that rows read from left to right; then its name."""
    places = [labels.index(rule) / len(labels) for labels in made.values() if rule in labels]
    return sum(places) / len(places), rule


def map_svg() -> str:
    """Optimizers by rules; the number in a dot says where in the chain the rule stands. Its ink is the page's."""
    made = _ordered()
    columns = sorted({label for labels in made.values() for label in labels}, key=lambda rule: _depth(rule, made))
    place = {name: i for i, name in enumerate(columns)}
    width, height = LEFT + COLUMN * len(columns) + RIGHT, TOP + ROW * len(made) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" width="{width}" '
        'aria-label="A map: which rules each optimizer is made of" font-family="sans-serif" font-size="11" '
        'fill="currentColor">'
    ]
    for name, i in place.items():
        x, y = LEFT + COLUMN * (i + 0.5), TOP - 6
        parts.append(f'<text transform="translate({x + 3:g} {y}) rotate(-70)">{html.escape(name)}</text>')
        parts.append(f'<path d="M{x:g} {TOP}V{height - 8}" stroke="currentColor" stroke-opacity=".12"/>')
    for j, (name, labels) in enumerate(made.items()):
        y = TOP + ROW * (j + 0.5)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:g}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(f'<path d="M{LEFT} {y:g}H{width - RIGHT}" stroke="currentColor" stroke-opacity=".12"/>')
        for rule in dict.fromkeys(labels):
            x, at = LEFT + COLUMN * (place[rule] + 0.5), [k for k, label in enumerate(labels, 1) if label == rule]
            text = ",".join(map(str, at))
            size = 9 if len(text) < 2 else 6
            parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="6" fill="#0072B2"/>')
            parts.append(
                f'<text x="{x:g}" y="{y + size * 0.36:.4g}" text-anchor="middle" fill="#fff" '
                f'font-size="{size}">{text}</text>'
            )
    return "".join([*parts, "</svg>"])


def changes(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The rules that are exchanged, added and left out on the way from one chain to another, in order.

    >>> changes(["momentum", "sign", "scale"], ["momentum", "orthogonalize", "scale_by_shape", "scale"])
    ['`orthogonalize` for `sign`', '`scale_by_shape` added behind `orthogonalize`']
    >>> changes(["rms", "debias", "scale"], ["rms", "scale"])
    ['`debias` left out']
    """
    said = []
    for kind, i, end, j, last in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        before, after = ([], []) if kind == "equal" else (one[i:end], other[j:last])
        said += [f"`{b}` for `{a}`" for a, b in zip(before, after, strict=False)]
        said += [f"`{a}` left out" for a in before[len(after) :]]
        for k in range(j + len(before), j + len(after)):
            said.append(f"`{other[k]}` added " + (f"behind `{other[k - 1]}`" if k else "in front"))
    return said


def around(name: str) -> list[tuple[str, str, str]]:
    """The neighbours of an optimizer that are one rule apart; of one that has none, the nearest, or the two nearest."""
    if rows := [pair for pair in neighbours() if name in pair[:2]]:
        return rows
    made = _ordered()
    steps = {other: changes(made[other], made[name]) for other in made if other != name}

    def unlike(other: str) -> tuple[int, float]:
        return len(steps[other]), -difflib.SequenceMatcher(None, made[other], made[name]).ratio()

    nearest, second = sorted(steps, key=unlike)[:2]
    others = [nearest, *([second] if len(steps[second]) < 4 else [])]
    return [(other, name, ", ".join(steps[other])) for other in others]


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = [f"| `{one}` | `{other}` | {how} |" for one, other, how in rows]
    return "\n".join(["| from | to | by |", "|---|---|---|", *lines])


def page() -> str:
    """The page of the map: the picture, and a table of what is one rule apart."""
    return "\n\n".join(
        [
            "# A map of the family",
            "Each row is an optimizer, each column a rule. The number in a dot is the rule's place in the chain. Full\n"
            "columns are what most optimizers share; a row differs from its neighbours by a dot or two. Of Muon it is\n"
            "the chain for matrices; a rule that holds a chain, as `in_subspace`, stands in front of its rules.\n"
            "Nothing is drawn by hand: the map is made from the chains.",
            f'<figure class="picture map">{map_svg()}</figure>',
            "## One rule apart",
            "Pairs of optimizers whose chains differ by one rule that is added, exchanged or moved, whatever its\n"
            "numbers are. What equal numbers and other orders show beyond that is drawn in\n"
            "[They are all one family](../notebooks/one_family.ipynb).",
            table(neighbours()),
            "## Further apart",
            "Optimizers without such a neighbour, and what is nearest to them.",
            table([row for name in _ordered() for row in around(name) if row not in neighbours()]),
        ]
    )
