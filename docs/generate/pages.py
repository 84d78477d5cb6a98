"""The pages that are made: one for each rule and optimizer, and the tables of both."""

from __future__ import annotations

import functools
import html
import re
import sys
from collections.abc import Iterable
from typing import Any

import gradtx as gx
from docs.generate import api
from docs.generate.docstrings import code_links, to_markdown
from docs.generate.optimizers import OPTIMIZERS
from docs.generate.pictures import svg
from docs.generate.rules import RULES
from gradtx import dialects, optimizers, rules

__all__ = ["figure", "made", "missing", "of_optimizer", "of_rule"]


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
    return pages | {"rules/index.md": _all_rules(), "optimizers/index.md": _all_optimizers()}


def of_rule(name: str) -> str:
    """The page of a rule."""
    path = f"gradtx.{name}"
    return "\n\n".join(
        [
            f"# {name} {{ #{path} }}",
            api.lead(path),
            f"$$\n{_equation(getattr(gx, name))}\n$$",
            f"::: picture of rule {name}",
            f"## Use\n\n{api.body(path, lead=False)}",
            f"## Elsewhere\n\n{RULES[name].elsewhere}",
        ]
    )


def of_optimizer(name: str) -> str:
    """The page of an optimizer."""
    path = f"gradtx.{name}"
    tx = getattr(gx, name)(0.001)
    recipe = ",\n    ".join(map(repr, tx.rules))
    same = _same_name(name)
    return "\n\n".join(
        [
            f"# {name} {{ #{path} }}",
            api.lead(path),
            f"## Recipe\n\n`{name}(0.001)` is\n\n```python\nchain(\n    {recipe},\n)\n```\n\n{_equations(tx)}",
            f"::: picture of optimizer {name}",
            f"## Use\n\n{api.body(path, lead=False)}",
            *([f"## Under this name elsewhere\n\n{same}"] if same else []),
        ]
    )


def _equation(rule: Any) -> str:
    """The equation of a rule; of one whose equation depends on its form, that of the default."""
    return rule.equation if isinstance(rule.equation, str) else rule().equation


def _equations(tx: Any) -> str:
    rows = [f"| [`{rule.label}`][] | ${rule.equation}$ |" for rule in tx.rules]
    return "\n".join(["| rule | per step |", "|---|---|", *rows])


def _same_name(name: str) -> str:
    """What torch, Keras and optax call by this name, with their defaults: a table of chains."""
    rows = []
    for framework in (dialects.torch, dialects.keras, dialects.optax):
        if name in framework.__all__:
            make = getattr(framework, name)
            tx = make(0.001)
            label = framework.__name__.rpartition(".")[2]
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
    parts = ["# Rules", _doc(rules)]
    for title, names in _groups().items():
        rows = [f"| [`{name}`][] | ${_equation(getattr(gx, name))}$ |" for name in names]
        parts += [f"## {title}", "\n".join(["| rule | per step |", "|---|---|", *rows])]
    return "\n\n".join(parts)


def _doc(module: Any) -> str:
    return code_links(to_markdown(module.__doc__ or ""), api.path_of)


def _all_optimizers() -> str:
    rows = [
        f"| [`{name}`][] | {' → '.join(f'[`{rule.label}`][]' for rule in getattr(gx, name)(0.001).rules)} |"
        for name in OPTIMIZERS
    ]
    table = "\n".join(["| optimizer | chain |", "|---|---|", *rows])
    return f"# Optimizers\n\n{_doc(optimizers)}\n\n{table}"


@functools.cache
def figure(kind: str, name: str) -> str:
    """The picture of a "rule" or an "optimizer", with its caption, as HTML."""
    if kind == "rule":
        draw, caption = RULES[name].draw, RULES[name].caption
    else:
        way = OPTIMIZERS[name]
        draw, caption = way.draw, f"{way.caption} 60 steps of {way.call}, beside {way.beside}."
    label = html.escape(f"{name}: {caption}", quote=True)
    drawn = svg(draw).replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f'<figure class="picture">{drawn}<figcaption>{caption}</figcaption></figure>'
