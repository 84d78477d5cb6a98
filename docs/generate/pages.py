"""The pages that are made: one for each rule and optimizer, and the tables of both."""

from __future__ import annotations

import functools
import html
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any

import gradtx as gx
from docs.generate import api, family
from docs.generate.claims import CLAIMS
from docs.generate.optimizers import OPTIMIZERS
from docs.generate.pictures import svg
from docs.generate.rules import RULES
from gradtx import dialects, optimizers, rules

__all__ = ["figure", "made", "missing", "of_optimizer", "of_rule", "shared", "shown"]


def missing(table: Iterable[str], public: Iterable[str], where: str) -> list[str]:
    """Names that should be in a table of the documentation and are not, or that are and should not.

    >>> missing(["rms"], ["rms", "new"], "RULES")
    ['new is not in RULES']
    """
    table, public = set(table), set(public)
    return [f"{name} is not in {where}" for name in sorted(public - table)] + [
        f"{name} is in {where}, and is not public" for name in sorted(table - public)
    ]


def made() -> dict[str, str]:
    """All of them, as Markdown by file name.

    Raises:
        ValueError: if a rule or an optimizer has no entry in its table.
    """
    wrong = missing(RULES, [*rules.__all__, "monitor", "seal"], "docs/generate/rules.py")
    wrong += missing(OPTIMIZERS, optimizers.__all__, "docs/generate/optimizers.py")
    if wrong:
        raise ValueError("; ".join(wrong))
    pages = {f"rules/{name}.md": of_rule(name) for name in RULES}
    pages |= {f"optimizers/{name}.md": of_optimizer(name) for name in OPTIMIZERS}
    indexes = {"rules/index.md": _all_rules(), "optimizers/index.md": _all_optimizers()}
    return pages | indexes | {"optimizers/family.md": family.page()}


def of_rule(name: str) -> str:
    """The page of a rule."""
    return _page(name, _reference("class", f"gradtx.{name}"), f"## Elsewhere\n\n{RULES[name].elsewhere}")


def of_optimizer(name: str) -> str:
    """The page of an optimizer."""
    same = _same_name(name)
    elsewhere = [f"## Under this name elsewhere\n\n{same}"] if same else []
    neighbours = f"## Neighbours\n\n{family.table(family.around(name))}\n\nAll of them are in [the map](family.md)."
    return _page(name, _reference("function", f"gradtx.{name}"), *elsewhere, neighbours)


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", *parts]) + "\n"


def _reference(kind: str, path: str) -> str:
    """The entry of a public name, which Sphinx makes from its docstring."""
    return f"```{{eval-rst}}\n.. auto{kind}:: {path}\n```"


def shown(path: str) -> str:
    """The part of an entry that follows the first paragraph of its docstring, in reStructuredText.

    Of a rule: its equation and its picture. Of an optimizer: its recipe, the equations and its picture.

    >>> print(shown("gradtx.sign"))
    <BLANKLINE>
    .. math:: u \\leftarrow \\mathrm{sign}(u)
    <BLANKLINE>
    .. picture:: rule sign
    """
    name = path.removeprefix("gradtx.")
    if name in RULES:
        return f"\n.. math:: {_equation(getattr(gx, name))}\n\n.. picture:: rule {name}"
    if name in OPTIMIZERS:
        tx = getattr(gx, name)(0.001)
        recipe = "".join(f"{_laid_out(_named(rule), 8)},\n" for rule in tx.rules)
        recipe = _laid_out(_named(tx), 4) if isinstance(tx, gx.partition) else f"    chain(\n{recipe}    )"
        rows = "".join(f"   * - ``{rule.label}``\n     - :math:`{rule.equation}`\n" for rule in family.every(tx))
        return (
            f"\n``{name}(0.001)`` is\n\n.. code-block:: python\n\n{recipe}\n\n"
            f".. list-table::\n   :header-rows: 1\n\n   * - rule\n     - per step\n{rows}\n"
            f".. picture:: optimizer {name}"
        )
    return ""


def _named(rule: Any) -> str:
    """A rule as it is written, with functions by name, not by address."""
    return re.sub(r"<function (?:\w+\.<locals>\.)*(\w+) at \w+>", r"\1", repr(rule))


def _laid_out(code: str, indent: int = 0, width: int = 84) -> str:
    """A call in lines that fit the column, each argument on its own where it has to be.

    >>> print(_laid_out("chain(rms(decay=0.9), where((1, 2)))", width=20))
    chain(
        rms(decay=0.9),
        where((1, 2)),
    )
    """
    space = " " * indent
    if indent + len(code) <= width or not code.endswith(")"):
        return space + code
    head, _, inside = code[:-1].partition("(")
    parts, depth = [""], 0
    for letter in inside:
        depth += {"(": 1, ")": -1, "[": 1, "]": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    lines = (f"{_laid_out(part.strip(), indent + 4, width)},\n" for part in parts if part.strip())
    return f"{space}{head}(\n{''.join(lines)}{space})"


def shared(path: str, module: Any) -> str:
    """The names of a module that have their entries elsewhere, in reStructuredText."""
    same = [name for name in getattr(module, "__all__", ()) if api.path_of(name, path) == f"gradtx.{name}"]
    return "\nIn ``gradtx`` itself, too: {}.\n".format(", ".join(f"``{name}``" for name in same)) if same else ""


def _equation(rule: Any) -> str:
    """The equation of a rule; of one whose equation depends on its form, that of the default."""
    return rule.equation if isinstance(rule.equation, str) else rule().equation


OTHER_NAMES = {"dadapt_adam": "dadapt_adamw"}
"""Optimizers whose nearest relative in the frameworks has another name."""


def _same_name(name: str) -> str:
    """The optimizers of torch, Keras and optax with this name, with their defaults: a table of chains."""
    rows = []
    for framework in (dialects.torch, dialects.keras, dialects.optax):
        named = OTHER_NAMES.get(name, name)
        if named in framework.__all__:
            tx = getattr(framework, named)(0.001)
            label = framework.__name__.rpartition(".")[2] + (f": `{named}`" if named != name else "")
            inner = getattr(tx.rules[-1], "tx", None)
            if isinstance(inner, gx.partition):  # the part of the matrices
                tx = next(iter(inner.named_parts.values()))
            shown = " → ".join(f"`{rule}`" for rule in gx.chain(tx).rules)
            rows.append(f"| {label} | {re.sub('<function .*?>', 'a schedule', shown)} |")
    return "\n".join(["| | at a learning rate of 0.001 |", "|---|---|", *rows]) if rows else ""


def _groups() -> dict[str, list[str]]:
    """Rules by the module that they stand in, called by what its docstring says first."""
    groups: dict[str, list[str]] = {}
    for name in RULES:
        module = sys.modules[getattr(gx, name).__module__]
        inside = module.__name__.startswith("gradtx.rules")
        title = (module.__doc__ or "").partition("\n")[0].rstrip(".") if inside else "Rules that change no number"
        groups.setdefault(title, []).append(name)
    return groups


def _all_rules() -> str:
    parts = [_reference("module", "gradtx.rules")]
    for title, names in _groups().items():
        rows = [f"| `{name}` | ${_equation(getattr(gx, name))}$ |" for name in names]
        parts += [f"## {title}", "\n".join(["| rule | per step |", "|---|---|", *rows]), _contents(title, names)]
    return _page("Rules", *parts)


def _all_optimizers() -> str:
    chains = family.chains()
    rows = [
        f"| `{name}` | {when_to_use(name)} | {' → '.join(f'`{label}`' for label in chains[name])} |"
        for name in OPTIMIZERS
    ]
    table = "\n".join(["| optimizer | when to use | chain |", "|---|---|---|", *rows])
    lead = "[Which optimizer?](../guide/which.md) helps to choose, and [a map](family.md) shows all at once."
    contents = _contents("", ["family", *OPTIMIZERS])
    return _page("Optimizers", _reference("module", "gradtx.optimizers"), lead, table, contents)


def when_to_use(name: str) -> str:
    """The docstring of an optimizer, as Markdown.

    >>> when_to_use("nadam")
    'Where Adam overshoots.'
    """
    doc = inspect.getdoc(getattr(gx, name)) or ""
    text = " ".join(doc.partition("When to use: ")[2].partition("\n\n")[0].split())
    return text[:1].upper() + text[1:].replace("``", "`")


def _contents(caption: str, names: Iterable[str]) -> str:
    """Pages in the navigation."""
    return "\n".join(["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), "", *names, "```"])


@functools.cache
def figure(kind: str, name: str) -> str:
    """The picture of a "rule", an "optimizer" or a "claim", with its caption, as HTML."""
    if kind == "rule":
        draw, caption = RULES[name].draw, RULES[name].caption
    elif kind == "claim":
        draw, caption = CLAIMS[name]
    else:
        way = OPTIMIZERS[name]
        draw, caption = way.draw, f"{way.caption} {way.steps} steps of {way.call}, beside {way.beside}."
    label = html.escape(f"{name}: {caption}", quote=True)
    drawn = svg(draw).replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f'<figure class="picture">{drawn}<figcaption>{caption}</figcaption></figure>'
