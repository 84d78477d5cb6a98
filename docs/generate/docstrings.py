"""Docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator

__all__ = ["code_links", "to_markdown"]

_LISTS = ("Args", "Raises", "Attributes")
_SECTION = re.compile(r"(Args|Raises|Attributes|Returns):$")
_LABEL = re.compile(r"(State|Source):\s")
_ITEM = re.compile(r"([\w*, .]+): (.*)", re.DOTALL)


def to_markdown(doc: str) -> str:
    """A docstring as Markdown: sections as lists, examples and formulas as code.

    >>> print(to_markdown("Twice.\\n\\nArgs:\\n    x: what\\n        to double.\\n\\nSource: a book."))
    Twice.
    <BLANKLINE>
    **Args**
    <BLANKLINE>
    - `x`: what to double.
    <BLANKLINE>
    **Source**: a book.
    """
    return "\n\n".join(map(_block, _blocks(inspect.cleandoc(doc))))


def code_links(text: str, path_of: Callable[[str], str | None]) -> str:
    """Code as in docstrings, between double backticks, as Markdown's; a reference where that is the name of an entry.

    >>> code_links("see ``rms`` and ``x``", {"rms": "gradtx.rms"}.get)
    'see [`rms`][gradtx.rms] and `x`'
    """

    def shown(code: re.Match[str]) -> str:
        path = path_of(code[1])
        return f"[`{code[1]}`][{path}]" if path else f"`{code[1]}`"

    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    return re.sub(r"(?<!`)``([^`]+)``(?!`)", shown, text)


def _blocks(doc: str) -> Iterator[str]:
    """Paragraphs; what is indented goes together, and with the section that it stands below."""
    block = ""
    for paragraph in re.split(r"\n[ ]*\n", doc):
        if paragraph.startswith(" ") and (block.startswith(" ") or _SECTION.match(block.partition("\n")[0])):
            block = f"{block}\n\n{paragraph}"
        else:
            yield from filter(None, [block])
            block = paragraph
    yield block


def _block(block: str) -> str:
    head, _, rest = block.partition("\n")
    if section := _SECTION.match(head):
        rest = textwrap.dedent(rest)
        body = "\n".join(map(_item, _items(rest))) if section[1] in _LISTS else to_markdown(rest)
        return f"**{section[1]}**\n\n{body}"
    if block.startswith(">>>"):
        return "```pycon\n{}\n```".format(block.replace("<BLANKLINE>", ""))
    if block.startswith(" "):
        return "```text\n{}\n```".format(textwrap.dedent(block).replace("``", ""))
    if _LABEL.match(head):
        return "**{}**: {}".format(*_one_line(block).split(": ", 1))
    return re.sub(r"::$", ":", block)


def _items(body: str) -> list[str]:
    return re.split(r"\n(?! )", body)


def _item(text: str) -> str:
    """``name: what it is`` as an item of a list."""
    text = _one_line(text)
    found = _ITEM.fullmatch(text)
    if not found:
        return f"- {text}"
    names = ", ".join(f"`{name.strip()}`" for name in found[1].split(","))
    return f"- {names}: {found[2]}"


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
