"""Looking at a chain: repr, str, the table, and the equations in a notebook."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from catalog import ALL, VARIANTS

import gradtx as gx
from gradtx._inspect.latex import plain
from gradtx._inspect.tables import columns, width

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


def inner_states(state):
    """The states of chains in a state, that of the outermost chain left out."""
    found = jax.tree.leaves(state.slots, is_leaf=lambda x: isinstance(x, gx.ChainState))
    inside = [x for x in found if isinstance(x, gx.ChainState)]
    return inside + [y for x in inside for y in inner_states(x)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.exhaustive] * (n in VARIANTS)) for n in ALL])
def test_bytes_are_those_of_the_state(name):
    tx = ALL[name]
    found = gx.describe(tx, PARAMS)
    state = tx.init(PARAMS)
    assert found.parameters == 110
    nbytes = sum(x.nbytes for x in jax.tree.leaves(state.slots))
    nbytes -= sum(x.nbytes for own in inner_states(state) for x in jax.tree.leaves((own.count, own.hyperparams)))
    assert found.bytes == sum(row.bytes for row in found.rows) == nbytes
    assert [row.rule for row in found.rows if row.depth == 0] == list(tx.names)
    assert gx.describe(tx, jax.eval_shape(lambda: PARAMS)) == found  # nothing is computed
    assert max(map(width, str(found).splitlines())) <= 80


def on_a_terminal(monkeypatch, most):
    monkeypatch.setattr("gradtx._inspect.describe.columns", lambda: most)


def test_table(monkeypatch):
    on_a_terminal(monkeypatch, 150)
    text = str(gx.describe(gx.adam(1e-3), PARAMS))
    lines = text.splitlines()
    assert lines[0].split() == ["rule", "equation", "hyperparameters", "slots", "bytes/param", "bytes"]
    assert "momentum" in lines[2]
    assert "m ← βm + (1−β) u, u ← m" in lines[2]
    assert "decay=0.9" in lines[2]
    assert "m, weight" in lines[2]
    assert lines[2].endswith("4.04    444")
    assert lines[-4].split() == ["in", "all", "110", "parameters", "8.07", "888"]
    assert lines[-2] == "memory: 15.71 bytes/parameter: weight 3.82, gradient 3.82, state 8.07"
    where = "in the kernel" if gx.native.available() else "in XLA"
    assert lines[-1].startswith(
        f"a step: one pass {where}: " + ", ".join(gx.adam(1e-3).names) + " (27.45 bytes/parameter"
    )
    markdown = gx.describe(gx.adam(1e-3), PARAMS)._repr_markdown_()
    assert markdown.splitlines()[1] == "| --- | --- | --- | --- | ---: | ---: |"
    assert all(line.count("|") == 7 for line in markdown.splitlines()[:-4])


def test_fits_where_it_is_printed(monkeypatch):
    """Equations stand below their rules where there is no room beside them, and what is too long is broken."""
    chain = gx.chain(gx.adam(1e-3), name="the_averages_of_the_encoder_and_of_the_decoder")
    tx = gx.chain(gx.accumulate(gx.skip_nonfinite(chain), 4), gx.where("w", gx.scale(2.0)))
    for most in (40, 60, 80, 120, 500):
        on_a_terminal(monkeypatch, most)
        text = str(gx.describe(tx, PARAMS))
        assert max(map(width, text.splitlines())) <= most
        packed = "".join(text.split())
        assert "m←βm+(1−β)u,u←m" in packed
        assert any("momentum" in line and "βm" in line for line in text.splitlines()) == (most == 500)


def test_no_word_is_broken_in_80_columns():
    """Hyperparameters stand below their rules, too, where there is no room for the longest of them."""
    phases = gx.switch(10, gx.adam(1e-3), gx.sgd(0.1, momentum=0.9))
    text = str(gx.describe(gx.chain(phases, gx.scale(0.1 + 0.2)), PARAMS))
    words = {"learning_rate=0.001", "learning_rate=0.1", "carry='momentum'", "factor=0.3", "switched_at,", "parameters"}
    assert words <= set(text.split())
    assert "tx(u)" not in text  # of a wrapper, what is in it says what it does


def test_a_terminal_is_asked_for_its_width(monkeypatch):
    assert columns() == 80
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("COLUMNS", "133")
    assert columns() == 133
    monkeypatch.setattr("sys.stdout", None)
    assert columns() == 80


def test_wrappers_are_taken_apart():
    inner = gx.chain(gx.clip_by_norm(1.0), gx.sgd(0.1, momentum=0.9))
    rows = gx.describe(gx.chain(gx.accumulate(gx.skip_nonfinite(inner), 4), gx.scale(1.0)), PARAMS).rows
    assert [(row.depth, row.rule, row.bytes) for row in rows] == [
        (0, "accumulate", 4 * 110 + 3 * 4),
        (1, "skip_nonfinite", 2 * 4 + 1),
        (2, "clip_by_norm", 0),
        (2, "trace", 4 * 110 + 4),
        (2, "scale_by_learning_rate", 0),
        (0, "scale", 0),
    ]
    assert rows[0].hyperparameters.startswith("every=4") and rows[1].hyperparameters == "max_consecutive=None"
    phases = gx.describe(
        gx.switch(5, gx.sgd(0.1, momentum=0.9), gx.partition({"w": optax.sgd(0.1)}, gx.sgd(1.0)), "reset"), PARAMS
    )
    assert [row.rule for row in phases.rows] == [
        "switch", "first.trace", "first.scale_by_learning_rate", "then.partition", "then.w.chain",
        "then.default.scale_by_learning_rate",
    ]  # fmt: skip
    assert gx.describe(gx.packed(gx.adam(0.1)), PARAMS).bytes == gx.describe(gx.adam(0.1), PARAMS).bytes
    assert "    first: one pass" in str(phases)


class centred(gx.Rule):
    equation = r"u \leftarrow u - \operatorname{mean}(u)"

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction - signal.direction.mean()), {}


@pytest.mark.skipif(not gx.native.available(), reason="no kernel")
def test_says_where_each_pass_runs_and_why():
    def passes(*rules, params=PARAMS):
        return gx.describe(gx.chain(*rules), params).passes

    assert passes(gx.sgd(0.1)).startswith("one pass in the kernel: scale_by_learning_rate (")
    found = passes(gx.momentum(), centred(), gx.sgd(0.1))
    assert found.startswith("one pass in XLA: momentum, centred, scale_by_learning_rate (at least ")
    assert "; not in the kernel: centred: the primitive reduce_sum)" in found
    assert (
        passes(centred(), gx.clip_by_global_norm(1.0), gx.sgd(0.1))
        .splitlines()[1]
        .startswith("measured, then one pass in the k")
    )
    mixed = passes(gx.sgd(0.1), params={"z": jnp.ones(3, jnp.complex64), "w": jnp.ones(3)})
    assert "in XLA and the kernel" in mixed and "not in the kernel: numbers of dtype complex64" in mixed
    with gx.executor("reference"):
        assert passes(gx.sgd(0.1)).endswith("bytes/parameter; no kernel: the executor is 'reference')")


def test_states_of_any_kind():
    noisy = gx.chain(
        optax.add_noise(0.1, 0.1, jax.random.key(0)), gx.sgd(lambda count: 0.1 if int(count) < 3 else 0.01)
    )
    assert "add_noise" in str(gx.describe(noisy, PARAMS))
    assert gx.describe(gx.chain(optax.contrib.mechanize(optax.sgd(0.1))), PARAMS).bytes > 440
    assert (
        gx.describe(gx.chain(optax.partition({"a": optax.adam(1.0)}, "a"), optax.identity()), PARAMS).rows[1].bytes == 0
    )
    needs_value = gx.chain(optax.polyak_sgd(), gx.sgd(0.1))  # an argument of update that describe does not have
    assert "whole trees in XLA: " in gx.describe(needs_value, PARAMS).passes


def test_no_parameters():
    (total,) = [line for line in str(gx.describe(gx.adam(1e-3), {})).splitlines() if line.startswith("in all")]
    assert total.split() == ["in", "all", "0", "parameters", "0.00", "8"]


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


@pytest.mark.parametrize(
    "latex, text",
    [
        (r"s + \varepsilon + \overline{x} + \overline{xy}", "s + ε + x̅ + overline(xy)"),
        (r"U^\top U^{-1} x^{y^{z}}_{i_{j}}", "Uᵀ U⁻¹ x^(y^z)_i_j"),
        (r"\operatorname{sign}(u) \odot \mathbf{v}", "sign(u) ⊙ v"),
        (r"\frac{m + 1}{\sqrt[3]{v}} + \frac12", "(m + 1)/(³√(v)) + 1/2"),
        (r"\begin{cases} u & \text{if } u > 0 \\ -u & \text{else} \end{cases}", "u if u > 0 ; −u else"),
        (r"\left\lVert g \right\rVert_2, \quad \|g\|", "‖g ‖_2, ‖g‖"),
        (r"\unheard{a} \of x", "unheard a of x"),
        (r"\Delta \hat{m}_{t-1} \in \mathbb{R}^{n}", "Δm̂_t−1 ∈ Rⁿ"),
        ("}{ \\ ^ _ \\frac \\sqrt \\begin", None),
        ("{" * 5000, ""),
    ],
)
def test_plain_takes_any_latex(latex, text):
    found = plain(latex)
    assert found == text or text is None
    assert not set(found) & set("\\{}$")


class barred(gx.Rule):
    equation = "u \\leftarrow |u|\n"

    def apply(self, signal, slots, param, c):
        return signal, {}


class silent(barred):
    equation = ""


def test_equations_stay_in_their_cell_of_a_table():
    assert barred()._repr_markdown_().splitlines()[2:] == [r"| `barred` | $u \leftarrow \vert u\vert$ |"]
    assert silent()._repr_markdown_().splitlines()[2:] == ["| `silent` |  |"]
    assert "silent" in str(gx.describe(silent(), PARAMS))


@pytest.mark.skipif(not gx.native.available(), reason="flags are the kernel's")
def test_steps_that_may_not_happen():
    """By hand: a check reads 4 bytes, adding up 12; a norm shows that gradients are finite."""
    p = jax.ShapeDtypeStruct((8,), jnp.float32)
    guarded = gx.skip_nonfinite(gx.accumulate(gx.sgd(0.1), 4))
    with gx.executor("native"):
        lines = gx.describe(guarded, p).passes.split("\n")
        clipped = gx.describe(gx.skip_nonfinite(gx.chain(gx.clip_by_norm(1.0), gx.sgd(0.1))), p).passes
    assert lines[0] == "skip_nonfinite: 4 bytes/parameter of its own"
    assert lines[1] == "  accumulate: 12 bytes/parameter of its own"
    assert "(12 bytes/parameter; if the batch is complete, a flag; if gradients are finite, a flag)" in lines[2]
    assert clipped.startswith("skip_nonfinite: 0 bytes")
    with gx.executor("reference"):
        assert gx.describe(guarded, p).passes.endswith("if gradients are finite, a condition)")
