"""Equations in plain characters, for terminals: any LaTeX gives a text, and what is not known goes by its name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

__all__ = ["plain"]

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi pi rho sigma tau upsilon phi chi psi omega"
)
_SYMBOLS = {
    "lambda": "λ", "Lambda": "Λ", "varepsilon": "ε", "vartheta": "ϑ", "varphi": "φ", "varrho": "ϱ", "varsigma": "ς",
    "leftarrow": "← ", "gets": "← ", "rightarrow": "→ ", "to": "→ ", "Rightarrow": "⇒ ", "mapsto": "↦ ",
    "lvert": "|", "rvert": "|", "vert": "|", "lVert": "‖", "rVert": "‖", "Vert": "‖", "|": "‖",
    "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "lbrace": "{",
    "rbrace": "}", "dots": "…", "ldots": "…", "cdots": "…", "cdot": "· ", "odot": "⊙ ", "otimes": "⊗ ", "oplus": "⊕ ",
    "times": "× ", "circ": "∘ ", "ast": "* ", "star": "⋆ ", "pm": "± ", "mp": "∓ ", "div": "÷ ", "top": "⊤",
    "intercal": "⊤", "dagger": "†", "le": "≤ ", "leq": "≤ ", "ge": "≥ ", "geq": "≥ ", "ne": "≠ ", "neq": "≠ ",
    "approx": "≈ ", "sim": "~ ", "equiv": "≡ ", "propto": "∝ ", "ll": "≪ ", "gg": "≫ ", "in": "∈ ", "infty": "∞",
    "nabla": "∇", "partial": "∂", "ell": "ℓ", "prime": "′", "sum": "Σ", "prod": "Π", "int": "∫", "forall": "∀",
    "exists": "∃", "land": "∧ ", "lor": "∨ ", "neg": "¬", "quad": " ", "qquad": " ", "left": "", "right": "",
    "big": "", "Big": "", "bigl": "", "bigr": "", "limits": "", "displaystyle": "", "nonumber": "", "": "",
    "{": "{", "}": "}", "%": "%", "$": "$", "&": "&", "#": "#", "_": "_", ",": " ", ";": " ", ":": " ", "!": "",
    " ": " ", "\\": "; ",
}  # fmt: skip
_SYMBOLS |= {name: unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}") for name in _GREEK.split()}
_SYMBOLS |= {name.capitalize(): unicodedata.lookup(f"GREEK CAPITAL LETTER {name.upper()}") for name in _GREEK.split()}

_ACCENTS = {
    "bar": "\u0304", "overline": "\u0305", "underline": "\u0332", "hat": "\u0302", "widehat": "\u0302",
    "tilde": "\u0303", "widetilde": "\u0303", "dot": "\u0307", "ddot": "\u0308", "vec": "\u20d7", "check": "\u030c",
}  # fmt: skip
_STYLES = {
    "mathrm", "mathbf", "mathit", "mathsf", "mathcal", "mathbb", "mathfrak", "boldsymbol", "bm", "operatorname", "text",
    "textrm", "textbf", "textit", "texttt", "mbox",
}  # fmt: skip
_CLOSING = {"rvert", "rVert", "rangle", "rfloor", "rceil", "top", "infty"}  # a space behind them is one
_RAISED = dict(zip("0123456789+-−=()nitT⊤′*", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱᵗᵀᵀ′*", strict=True))

_BEFORE_CLOSING = re.compile(r"\s+(?=\\r(?:vert|Vert|angle|floor|ceil|brace)\b)")
_TOKENS = re.compile(r"\\[a-zA-Z]+\*?|\\.|\s+|.", re.DOTALL)


def plain(latex: str) -> str:
    r"""An equation in plain characters.

    >>> plain(r"m \leftarrow \beta m + (1-\beta) u^2, \quad u \leftarrow \frac{m}{\sqrt{v} + \varepsilon}")
    'm ← βm + (1−β) u², u ← m/(√(v) + ε)'
    >>> plain(r"u \leftarrow \operatorname{msign}(u^\top \unheard{u}) + \overline{x}_{t+1}")
    'u ← msign(uᵀ unheard u) + x̅_t+1'
    >>> plain(r"u \leftarrow \lvert u \rvert + 1")
    'u ← |u| + 1'
    """
    tokens = _TOKENS.findall(_BEFORE_CLOSING.sub("", latex.replace("$", "").replace("~", " ")))
    try:
        text = "".join(_Reader(tokens).group(lambda: False))
    except RecursionError:  # a thousand groups within each other
        text = re.sub(r"[\\{}]", "", latex)
    return re.sub(r"\s+", " ", text.replace("-", "−")).replace(" ,", ",").strip()


class _Reader:
    """Tokens, read from the left."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens[::-1]

    def peek(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self) -> str:
        return self.tokens.pop() if self.tokens else ""

    def group(self, ends: Callable[[], bool]) -> list[str]:
        """The texts up to an end, which is taken too."""
        texts: list[str] = []
        while self.tokens and not ends():
            texts.append(self.one())
        self.take()
        return texts

    def argument(self, strip: bool = True) -> str:
        """The argument of a command: a group, or a single token."""
        while self.peek().isspace():
            self.take()
        text = self.one() if self.tokens and self.peek() != "}" else ""
        return text.strip() if strip else text

    def option(self) -> str:
        """The argument in square brackets, if there is one."""
        if self.peek() != "[":
            return ""
        self.take()
        return "".join(self.group(lambda: self.peek() == "]"))

    def one(self) -> str:
        """The text of a group, a command with its arguments, or a character."""
        match token := self.take():
            case "{":
                return "".join(self.group(lambda: self.peek() == "}"))
            case "}" | "&":
                return " " if token == "&" else ""
            case "^":
                token = self.argument(strip=False)
                return _raised(token.strip()) + " " * token.endswith(" ")
            case "_":
                below = self.argument()
                return f"_({below})" if " " in below else f"_{below}"
            case _ if token.startswith("\\"):
                return self.command(token[1:].rstrip("*"))
        return token

    def command(self, name: str) -> str:
        """The text of a command."""
        if name in _STYLES:
            return self.argument()
        if name in ("begin", "end"):
            self.argument()
            return " "
        if name in ("frac", "dfrac", "tfrac"):
            return f"{_bracketed(self.argument())}/{_bracketed(self.argument())}"
        if name == "sqrt":
            root = self.option()
            return f"{_raised(root) if root else ''}√({self.argument()})"
        if name in _ACCENTS:
            of = self.argument()
            return of + _ACCENTS[name] if len(of) == 1 else f"{name}({of})"
        spaced = self.peek().isspace()
        if spaced:
            self.take()
        if name in _SYMBOLS:
            kept = spaced and (name in _CLOSING or self.peek() in tuple("+-=<>"))
            return _SYMBOLS[name] + (" " if kept else "")
        alone = self.peek()[:1] in ("", "[", "_", "^", ",", ")", "}") or (self.peek() == "(" and not spaced)
        return name if alone else f"{name} "  # a word, which what follows must not run into


def _raised(text: str) -> str:
    """An exponent."""
    if text and all(character in _RAISED for character in text):
        return "".join(_RAISED[character] for character in text)
    return f"^{text}" if len(text) < 2 else f"^({text})"


def _bracketed(text: str) -> str:
    """A part of a quotient, in brackets if it is more than a name."""
    return text if re.fullmatch(r"\w*", text) else f"({text})"
