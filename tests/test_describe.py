"""Looking at a chain: repr, str, the table, and the equations in a notebook."""

import jax
import jax.numpy as jnp
import optax
import pytest
from catalog import ALL

import gradtx as gx
from gradtx._describe import plain

PARAMS = {"w": jnp.zeros((10, 10)), "b": jnp.zeros(10, jnp.bfloat16)}


def test_repr_is_the_expression_and_str_the_rules_in_order():
    tx = gx.chain(gx.clip_by_norm(1), gx.adam(1e-3))
    assert repr(tx) == (
        "chain(clip_by_norm(limit=1.0), momentum(decay=0.9), rms(decay=0.999), debias(), "
        "precondition(eps=1e-08, eps_root=0.0), scale_by_learning_rate(learning_rate=0.001))"
    )
    assert str(tx) == (
        "clip_by_norm(1) → momentum(0.9) → rms(0.999) → debias() → precondition(1e-08, 0) → "
        "scale_by_learning_rate(0.001)"
    )
    assert repr(gx.trace(0.5, name="b", state_dtype=jnp.bfloat16)) == (
        "trace(decay=0.5, nesterov=False, name='b', state_dtype='bfloat16')"
    )
    assert repr(gx.chain()) == "chain()"
    assert str(gx.chain()) == "identity"


def test_schedules_and_optax_members_say_what_they_are():
    tx = gx.chain(optax.clip(1.0), gx.sgd(optax.cosine_decay_schedule(0.1, 10)), gx.seal(gx.scale(2.0)))
    assert str(tx) == "optax.clip(...) → scale_by_learning_rate(<function cosine_decay_schedule>) → seal(scale(2))"
    assert repr(tx).startswith("chain(seal(tx=<optax clip>), ")


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"partition"}))  # its parts: test_where.py
def test_bytes_are_those_of_the_state(name):
    tx = ALL[name]
    found = gx.describe(tx, PARAMS)
    state = tx.init(PARAMS)
    assert found.parameters == 110
    assert found.bytes == sum(row.bytes for row in found.rows) == sum(x.nbytes for x in jax.tree.leaves(state.slots))
    assert [row.rule for row in found.rows] == list(tx.names)
    assert gx.describe(tx, jax.eval_shape(lambda: PARAMS)) == found  # nothing is computed


def test_table():
    text = str(gx.describe(gx.adam(1e-3), PARAMS))
    lines = text.splitlines()
    assert lines[0].split() == ["rule", "equation", "hyperparameters", "slots", "bytes/param", "bytes"]
    assert "momentum" in lines[2]
    assert "m ← βm + (1−β) u, u ← m" in lines[2]
    assert "decay=0.9" in lines[2]
    assert "m, weight" in lines[2]
    assert lines[2].endswith("4.04    444")
    assert lines[-3].split() == ["in", "all", "110", "parameters", "8.07", "888"]
    assert lines[-1] == "a step: one pass: " + ", ".join(gx.adam(1e-3).names) + " (27.45 bytes/parameter)"
    markdown = gx.describe(gx.adam(1e-3), PARAMS)._repr_markdown_()
    assert markdown.splitlines()[1] == "| --- | --- | --- | --- | ---: | ---: |"
    assert all(line.count("|") == 7 for line in markdown.splitlines()[:-2])


def test_no_parameters():
    lines = str(gx.describe(gx.adam(1e-3), {})).splitlines()
    assert lines[-3].split() == ["in", "all", "0", "parameters", "0.00", "8"]


@pytest.mark.parametrize("name", ALL)
def test_every_rule_shows_its_equation(name):
    tx = ALL[name]
    markdown = tx._repr_markdown_()
    for rule, own in zip(tx.rules, tx.names, strict=True):
        assert f"| `{own}` | ${rule.equation}$ |" in markdown
        text = plain(rule.equation)
        assert "←" in text
        assert "\\" not in text
        assert "{" not in text


def test_plain():
    latex = r"u \leftarrow u / (\sqrt{v + \epsilon_r} + \epsilon) - \lvert g\rvert^2 \mu_{t+1}"
    assert plain(latex) == "u ← u / (√(v + ε_r) + ε) − |g|² μ_t+1"
