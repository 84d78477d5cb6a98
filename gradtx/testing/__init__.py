"""The contract of every rule and chain, for those who write their own::

    from gradtx import testing

    testing.check(my_rule())

tries one property after another, as gradtx's own tests do for all that gradtx has. With pytest, one test for each::

    @pytest.mark.parametrize("name", testing.PROPERTIES)
    def test_my_rule(name):
        testing.check(my_rule(), only=[name])

Whether a rule computes what its paper says is not in the contract: compare its numbers with somebody else's.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import optax

from gradtx._chain import Chain, chain
from gradtx._engine.transformation import Transformation
from gradtx.rules.base import Rule
from gradtx.testing._examples import params
from gradtx.testing._properties import ORDERED, Property
from gradtx.testing._runs import Given

__all__ = ["PROPERTIES", "check"]

PROPERTIES: Mapping[str, Property] = MappingProxyType({fn.__name__.replace("_", " "): fn for fn in ORDERED})
"""By name, the properties that make up the contract; the docstring of each says what it means."""


def check(
    tx: optax.GradientTransformation,
    *,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    extra: Mapping[str, Any] | None = None,
    report: Callable[[str], Any] = print,
) -> None:
    """See whether a rule or a chain keeps the contract: a line for each property as it is tried.

    Args:
        tx: a rule, a chain, or whatever else goes into one. A rule that makes or needs a second moment has to stand in
            the smallest chain that may be used: ``chain(my_second_moment(), precondition())``.
        only: names of properties, out of ``PROPERTIES``; None: all of them, in ten seconds or so.
        skip: names of properties that it is not meant to have: a rule that adds noise does not do nothing at zero.
        extra: the extra arguments that every step gets, by name, for what needs any: ``{"value": 2.0}`` is a loss.
        report: what to do with each line.

    Raises:
        AssertionError: once all are tried, for those that do not hold; says which, and what was found.
        ValueError: for an unknown name; for a rule that may not stand alone (see ``chain``).

    >>> import gradtx
    >>> from gradtx import testing
    >>> testing.check(gradtx.sign(), only=["compiles once", "turns with the gradient"])
    holds    compiles once: one compilation for all steps, and for other hyperparameters
    is not   turns with the gradient: has no meaning for complex numbers
    """
    unknown = {*(only or ()), *skip} - PROPERTIES.keys()
    if unknown:
        raise ValueError(f"testing.check: no property {', '.join(map(repr, sorted(unknown)))}; known: {[*PROPERTIES]}")
    made = tx if isinstance(tx, Chain | Rule) else chain(tx)
    if extra:
        made = Given(chain(made).rules, extra)
    made.init(params())  # an order that makes no sense is refused here, in words of its own
    wrong: list[str] = []
    with _quick_compilation():
        for name, holds in PROPERTIES.items():
            if name not in skip and (only is None or name in only):
                report(_tried(name, holds, made, wrong))
    if wrong:
        raise AssertionError("\n".join([f"{made} does not keep the contract:", *wrong]))


def _tried(name: str, holds: Property, tx: Transformation[Any], wrong: list[str]) -> str:
    """The line for the report; adds to what is wrong."""
    try:
        reason = holds(tx)
    except Exception as error:  # of whatever kind: what a rule raises is what is wrong with it
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        wrong.append(f"  {name}: {kind}{error}")
        return f"FAILS    {name}"
    return f"is not   {name}: {reason}" if reason else f"holds    {name}: {inspect.getdoc(holds)}"


@contextlib.contextmanager
def _quick_compilation() -> Iterator[None]:
    """Without most of the compiler's optimizations: structure and types are the same, and it takes two thirds."""
    option = "jax_disable_most_optimizations"
    before = jax.config.values[option]
    jax.config.update(option, True)
    try:
        yield
    finally:
        jax.config.update(option, before)
