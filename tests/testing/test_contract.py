"""The contract that every rule, optimizer and chain keeps, whatever it computes. All are tried: see ``catalog.py``.

The properties are those that users hold their rules to, ``gradtx.testing``; that each can fail, ``test_testing.py``.
"""

import chex
import jax
import jax.numpy as jnp
import pytest
from catalog import ALL, DIALECTS, FEW, LACKING, MOST, NEED_THE_LOSS, OPTIMIZERS, REST, RULES

import gradtx as gx
from gradtx import optimizers, rules, testing

pytestmark = pytest.mark.usefixtures("quick_compilation")

EVERYTHING = ALL | DIALECTS
ORDERS = [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in {*REST, *DIALECTS})) for name in EVERYTHING]
ELSEWHERE = {"keeps its types", "runs in every executor"}  # below, and in test_executors.py
SLOW = {"works under guards", "leaks no tracers"}  # below, and in test_modes.py
COMPILED = [name for name in testing.PROPERTIES if name not in ELSEWHERE | SLOW]
NOT_OURS = {("is odd", "seal")}  # maps whole trees by somebody else's transformation
NOT_OURS |= LACKING


def test_every_rule_is_listed():
    """In its file, whose list ``gradtx.rules`` shows, and in the package's own."""

    def below(cls):
        return {cls, *(one for derived in cls.__subclasses__() for one in below(derived))}

    defined = {cls.__name__ for cls in below(gx.Rule) if cls.__module__.startswith("gradtx.rules.")} - {"Rule"}
    assert {name for name in defined if not name.startswith("_")} == set(rules.__all__), "missing in a list __all__"


def test_the_catalog_is_complete():
    in_use = {type(rule).__name__ for tx in RULES.values() for rule in tx.rules}
    need_the_loss = {"scale_by_model", "scale_by_polyak"}  # test_zoo.py has them
    known = {*rules.__all__, "monitor", "seal"} - need_the_loss
    assert in_use == known, "a rule is missing from tests/catalog.py, or unknown"
    assert set(optimizers.__all__) <= set(OPTIMIZERS) | NEED_THE_LOSS
    assert {*rules.__all__, *optimizers.__all__, "monitor", "seal"} <= set(gx.__all__)


def holds(claim, tx):
    reason = testing.PROPERTIES[claim](tx)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("claim", COMPILED)  # varies first: what is compiled for one serves the next
@pytest.mark.parametrize("name", MOST)
def test_contract(claim, name):
    if (claim, name) in NOT_OURS:
        pytest.skip("not a rule of gradtx")
    holds(claim, ALL[name])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["scale_by_polyak", *sorted(NEED_THE_LOSS - {"polyak_sgd"})])
def test_what_needs_the_loss_keeps_the_contract(name):
    tx = gx.chain(gx.scale_by_polyak(), gx.scale(-0.1)) if name == "scale_by_polyak" else getattr(optimizers, name)(0.1)
    testing.check(tx, extra={"value": 2.0})


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.exhaustive]) for n in ALL])
def test_works_under_guards(name):
    if ("works under guards", name) in NOT_OURS:
        pytest.skip("not held to it")
    holds("works under guards", ALL[name])


@pytest.mark.parametrize("name", ORDERS)
def test_keeps_its_types(name):
    holds("keeps its types", EVERYTHING[name])


def test_many_leaves():
    tree = {f"layer_{i}": jnp.full(2, i / 100) for i in range(300)}
    tx = gx.chain(gx.clip_by_norm(1e6), gx.momentum_sgd(0.1))
    updates, _ = jax.jit(tx.update)(tree, tx.init(tree))
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.01 * g, tree), rtol=1e-5)
