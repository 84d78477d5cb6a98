"""The public names of gradtx: their paths, docstrings and calls as written."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import gradtx
from gradtx import activations, codecs, dialects, native, optimizers, rules, testing
from gradtx._engine.transformation import Value

__all__ = ["PUBLIC", "docstring", "is_built", "is_constant", "path_of", "problems", "public", "signature"]

MODULES = (
    *(gradtx, rules, optimizers, activations, codecs, native, testing),
    *(dialects, dialects.torch, dialects.keras, dialects.optax),
)


def public() -> dict[str, Any]:
    """Public things by dotted path; each once, by the path that users write.

    >>> public()["gradtx.rms"].__name__
    'rms'
    """
    names: dict[str, Any] = {}
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if not any(thing is other for other in names.values()):
                names[f"{module.__name__}.{name}"] = thing
    return names


PUBLIC = public()


def path_of(name: str, module: str = "gradtx") -> str | None:
    """The path of a public name in any of its spellings; one of the module comes first.

    >>> [path_of(name) for name in ("rms", "gx.rms", "gradtx.rules.rms", "keras.adam", "rmsq")]
    ['gradtx.rms', 'gradtx.rms', 'gradtx.rms', 'gradtx.dialects.keras.adam', None]
    >>> path_of("adam", "gradtx.dialects.torch")
    'gradtx.dialects.torch.adam'
    """
    full = re.sub(r"^gx\.", "gradtx.", name)
    paths = [f"{module}.{name}", full, f"gradtx.{name}", f"gradtx.dialects.{name}"]
    if full.startswith("gradtx.") and not full.startswith("gradtx.dialects."):
        paths.append(f"gradtx.{full.rpartition('.')[2]}")
    return next((path for path in paths if path in PUBLIC), None)


def problems(names: Mapping[str, Any], entries: Iterable[str]) -> list[str]:
    """Flaws of the reference: names without a docstring or an entry, entries without a public name, torn paragraphs.

    >>> problems({"gradtx.new": lambda: None}, ["gradtx.old"])
    ['gradtx.new has no docstring', 'gradtx.new is on no page', 'gradtx.old is on a page, and is not public']
    """
    entries = list(entries)
    undocumented = [f"{path} has no docstring" for path, thing in names.items() if not docstring(path, thing)]
    lost = [f"{path} is on no page" for path in names if path not in entries]
    stale = [f"{path} is on a page, and is not public" for path in entries if path not in names]
    torn = [f"{path} has a Source whose second line is indented" for path, thing in names.items() if _torn(path, thing)]
    return undocumented + lost + stale + torn


def _torn(path: str, thing: Any) -> bool:
    """True if Sphinx would make a term of a line and a definition of the next."""
    return re.search(r"^(State|Source): .*\n +\S", docstring(path, thing), re.MULTILINE) is not None


def docstring(path: str, thing: Any) -> str:
    """The docstring; of a constant, the string below it in the source. One that Python makes by itself is none."""
    if is_constant(thing):
        return _strings_below_constants().get(path.rpartition(".")[2], "")
    doc = inspect.getdoc(thing) or ""
    return "" if doc.startswith(f"{path.rpartition('.')[2]}(") else doc


def is_constant(thing: Any) -> bool:
    """A constant, as against a module, a class of gradtx or something to call."""
    of_gradtx = isinstance(thing, type) and thing.__module__.startswith("gradtx")
    called = inspect.isroutine(thing) or hasattr(thing, "__wrapped__")
    return not (of_gradtx or called or isinstance(thing, types.ModuleType))


@functools.cache
def _strings_below_constants() -> dict[str, str]:
    """The strings that stand below assignments in the modules of gradtx, by the names assigned."""
    strings: dict[str, str] = {}
    for name, module in sorted(sys.modules.items()):
        if not name.startswith("gradtx"):
            continue
        for before, after in itertools.pairwise(ast.parse(inspect.getsource(module)).body):
            target = before.targets[0] if isinstance(before, ast.Assign) else getattr(before, "target", None)
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(target, ast.Name) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                strings[target.id] = inspect.cleandoc(text.value)
    return strings


def is_built(thing: Any) -> bool:
    """A class that users call: rules and wrappers, but not what gradtx makes for them."""
    return isinstance(thing, type) and issubclass(thing, Value)


class _Verbatim(str):
    """An annotation as it is written."""

    __repr__ = str.__str__


def signature(thing: Any) -> tuple[str, str]:
    """The arguments as they are written, and what is returned.

    Annotations are not evaluated: ``Hyper`` says more than the union that it stands for.

    >>> signature(gradtx.momentum_sgd)
    ('(learning_rate: Hyper, decay: Hyper = 0.9)', 'Chain')
    """
    made = inspect.signature(thing.__init__ if isinstance(thing, type) else thing)
    parameters = [
        parameter.replace(
            annotation=parameter.empty if parameter.annotation is parameter.empty else _written(parameter.annotation),
            default=_default(parameter.default),
        )
        for parameter in made.parameters.values()
        if parameter.name != "self"
    ]
    returns = (
        "" if isinstance(thing, type) or made.return_annotation is made.empty else _written(made.return_annotation)
    )
    return str(made.replace(parameters=parameters, return_annotation=made.empty)), str(returns)


def _default(value: Any) -> Any:
    """A default, with functions and dtypes by name; a marker that stands for no value is an ellipsis."""
    if value is inspect.Parameter.empty:
        return value
    if "_MISSING_TYPE" in repr(value):
        return _Verbatim("...")
    return _Verbatim(getattr(value, "__name__", repr(value)))


def _written(annotation: Any) -> _Verbatim:
    return _Verbatim(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))
