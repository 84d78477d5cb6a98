"""The public names of gradtx, and an entry of the reference for each."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Any

import gradtx
from docs.generate.docstrings import code_links, to_markdown
from gradtx import activations, dialects, native, optimizers, rules, testing
from gradtx._core.contract import AbstractRule
from gradtx._engine.transformation import Transformation, Value

__all__ = ["body", "docstring", "entry", "lead", "path_of", "problems", "public", "signature"]

MODULES = (
    *(gradtx, rules, optimizers, activations, native, testing),
    *(dialects, dialects.torch, dialects.keras, dialects.optax),
)


def public() -> dict[str, Any]:
    """What is public, by its dotted path; each thing once, by the path that users write.

    >>> public()["gradtx.rms"].__name__
    'rms'
    """
    found: dict[str, Any] = {}
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if not any(thing is other for other in found.values()):
                found[f"{module.__name__}.{name}"] = thing
    return found


PUBLIC = public()


def path_of(name: str, module: str = "gradtx") -> str | None:
    """The path of an entry by any of its names: ``rms``, ``gradtx.rms``, ``gradtx.rules.rms``; first in a module."""
    paths = (
        f"{module}.{name}",
        name,
        f"gradtx.{name}",
        f"gradtx.{name.rpartition('.')[2]}" if name.startswith("gradtx.") else "",
    )
    return next((path for path in paths if path in PUBLIC), None)


def problems(names: Mapping[str, Any], pages: Mapping[str, str]) -> list[str]:
    """What is wrong with the reference: names without a docstring, and names that no page has.

    >>> problems({"gradtx.new": lambda: None}, {})
    ['gradtx.new has no docstring', 'gradtx.new is on no page of the reference']
    """
    undocumented = [f"{path} has no docstring" for path, thing in names.items() if not docstring(path, thing)]
    lost = [f"{path} is on no page of the reference" for path in names if path not in pages]
    stale = [
        f"{page} has an entry for {path}, which is not public" for path, page in pages.items() if path not in names
    ]
    return undocumented + lost + stale


def docstring(path: str, thing: Any) -> str:
    """The docstring; of a constant, the string that stands below it. None that Python makes by itself counts."""
    own = (
        isinstance(thing, types.ModuleType | property)
        or _is_class(thing)
        or inspect.isroutine(thing)
        or hasattr(thing, "__wrapped__")
    )
    if own:
        doc = inspect.getdoc(thing) or ""
        return "" if doc.startswith(f"{path.rpartition('.')[2]}(") else doc
    sources = (module for name, module in vars(gradtx).items() if isinstance(module, types.ModuleType))
    return next((doc for module in sources if (doc := _below(module).get(path.rpartition(".")[2]))), "")


def _is_class(thing: Any) -> bool:
    """Whether it is a class of gradtx; one from elsewhere that has a name here is a constant."""
    return isinstance(thing, type) and thing.__module__.startswith("gradtx")


@functools.cache
def _below(thing: Any) -> dict[str, str]:
    """The strings below assignments in a module or a class, by the names assigned."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body if isinstance(thing, type) else [
        ast.parse(inspect.getsource(thing))
    ]  # fmt: skip
    found: dict[str, str] = {}
    body: list[ast.stmt] = getattr(tree, "body", [])
    for before, after in itertools.pairwise(body):
        target = before.targets[0] if isinstance(before, ast.Assign) else getattr(before, "target", None)
        text = after.value if isinstance(after, ast.Expr) else None
        if isinstance(target, ast.Name) and isinstance(text, ast.Constant) and isinstance(text.value, str):
            found[target.id] = text.value
    return found


class _Raw(str):
    """An annotation as it was written."""

    __repr__ = str.__str__


def signature(name: str, thing: Any) -> str:
    """The call that makes or uses it, as code; nothing for what is not called.

    >>> print(signature("gx.momentum_sgd", gradtx.momentum_sgd))
    gx.momentum_sgd(learning_rate: Hyper, decay: Hyper = 0.9) -> Chain
    """
    if isinstance(thing, type):
        called = issubclass(thing, Value)
    else:
        called = inspect.isroutine(thing) or hasattr(thing, "__wrapped__")
    if not called:
        return ""
    found = inspect.signature(thing.__init__ if isinstance(thing, type) else thing)
    parts: list[str] = []
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        if parameter.annotation is not parameter.empty:
            parameter = parameter.replace(annotation=_Raw(parameter.annotation))
        parts.append(str(parameter).replace(" = <dataclasses._MISSING_TYPE object>", ""))
    gives = found.return_annotation
    returns = "" if isinstance(thing, type) or gives is found.empty else f" -> {gives}"
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) <= 78:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){returns}"])


def entry(path: str, level: int = 2) -> str:
    """An entry as Markdown: heading, call, docstring, and what belongs to it; of a module, the entries in it."""
    thing = PUBLIC[path]
    if isinstance(thing, types.ModuleType):
        inside = [name for name in PUBLIC if name.rpartition(".")[0] == path]
        same = [name for name in thing.__all__ if f"{path}.{name}" not in inside]
        aliases = f"\n\nThe same here as there: {', '.join(f'[`{name}`][]' for name in same)}." if same else ""
        parts = [
            _linked(to_markdown(docstring(path, thing)), f"{path}.") + aliases,
            *(entry(name, level + 1) for name in inside),
        ]
        return "\n\n".join([f"{'#' * level} {path} {{ #{path} }}", *parts])
    return f"{'#' * level} {path.rpartition('.')[2]} {{ #{path} }}\n\n{body(path)}"


def lead(path: str) -> str:
    """The first paragraph of an entry's docstring."""
    return _linked(docstring(path, PUBLIC[path]).partition("\n\n")[0], path)


def body(path: str, lead: bool = True) -> str:
    """An entry without its heading: the call, the docstring (without its first paragraph, if so asked), members."""
    thing = PUBLIC[path]
    doc = docstring(path, thing)
    text = to_markdown(doc if lead else doc.partition("\n\n")[2])
    call = signature(path, thing)
    parts = [f"```python\n{call}\n```" if call else "", _linked(text, path), *_members(path, thing)]
    return "\n\n".join(part for part in parts if part)


def _linked(text: str, inside: str = "") -> str:
    """Text with references to all entries that it names but its own."""
    module = inside.rpartition(".")[0] or "gradtx"
    return code_links(text, lambda name: path if (path := path_of(name, module)) != inside else None)


def _members(path: str, thing: Any) -> Iterator[str]:
    """Methods, properties and attributes with docstrings: a class's own, and what makes a chain or a rule one."""
    if not _is_class(thing) or (issubclass(thing, gradtx.Rule) and thing is not gradtx.Rule):
        return
    families = {gradtx.Chain: (gradtx.Chain, Transformation), gradtx.Rule: (AbstractRule, gradtx.Rule)}
    seen: set[str] = set()
    for owner in families.get(thing, (thing,)):
        notes = _below(owner)
        for name, member in vars(owner).items():
            if name.startswith("_") or name in seen or (thing is not gradtx.Rule and not callable(member)
                                                         and not isinstance(member, property)):  # fmt: skip
                continue
            doc = notes.get(name) or docstring(name, member)
            if doc:
                seen.add(name)
                call = f"\n\n```python\n{signature(name, member)}\n```" if inspect.isfunction(member) else ""
                yield f"#### `{name}` {{ #{path}.{name} }}{call}\n\n{_linked(to_markdown(doc), path)}"
