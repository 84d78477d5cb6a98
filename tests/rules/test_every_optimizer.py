"""The evidence for each optimizer of gradtx: whom it is compared with, and what is between the two.

Most are compared in ``test_zoo.py`` and in ``optimizers/test_against_optax.py``; here are those that are left, and the
table of all for ``docs/dialects.md``, which ``python -m tests.oracles.compare`` writes.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from oracles import authors
from oracles.compare import optax_in_float64, shown, trajectory_of_authors
from test_zoo import LR, OPTAX, PAPERS, by_the_model, d_adaptation, ema, falling, galore, trajectory
from trajectories import run

import gradtx as gx
from gradtx import optimizers

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


class Evidence(NamedTuple):
    """A chain, whom it is compared with, and what makes both trajectories."""

    tx: Any
    beside: str
    both: Callable[[], tuple[Any, Any]]

    def difference(self) -> float:
        """The largest difference, relative to parameters greater than 1."""
        ours, theirs = (jax.tree.leaves(side) for side in self.both())
        pairs = zip(map(np.asarray, ours), map(np.asarray, theirs), strict=True)
        return max(float((abs(x - y) / np.maximum(1, abs(y))).max()) for x, y in pairs)


def of_optax(ours, theirs):
    return Evidence(ours, "optax", lambda: (run(ours), run(theirs)))


def of_paper(ours, step):
    return Evidence(ours, "its paper, in numpy", lambda: (run(ours), trajectory(step)))


def qhm(t, g, w, s):
    return w - LR * (0.7 * ema(s, "m", 0.9, g) + 0.3 * g)


def article_adam(t, g, w, s):
    return w - LR * ema(s, "m", 0.9, g) / np.sqrt(ema(s, "v", 0.99, g * g))


def article_max_v(t, g, w, s):
    """The largest v is what the next average goes on from."""
    m = ema(s, "m", 0.9, g)
    s["v"] = np.maximum(s.get("v", 0.0), 0.9 * s.get("v", 0.0) + 0.1 * g * g)
    return w - LR * m / np.sqrt(s["v"])


def amsgrad(t, g, w, s):
    """As torch has it: the maximum of v, and then 1 − β₂ᵗ."""
    m, v = ema(s, "m", 0.9, g), ema(s, "v", 0.99, g * g)
    s["most"] = np.maximum(s.get("most", 0.0), v)
    return w - LR * m / (1 - 0.9**t) / (np.sqrt(s["most"] / (1 - 0.99**t)) + 1e-3)


def nag(t, g, w, s):
    """The point that is held is β·the last step ahead of the one that moves by the average."""
    d = -0.03 * 0.95 ** (t - 1) * ema(s, "m", 0.9, g)
    before = s.get("d", 0.0)
    s["d"] = d
    return w - 0.9 * before + d + 0.9 * d


def of_matrices(ours, theirs):
    """The updates of some gradients of a matrix of ones, taller than wide."""
    rows = np.random.default_rng(0).normal(size=(11, 5, 3))

    def updates(tx):
        params = jnp.ones((5, 3))
        return jax.lax.scan(lambda state, g: tx.update(g, state, params)[::-1], tx.init(params), rows)[1]

    other = theirs if callable(theirs) else lambda rows: jax.jit(lambda: updates(theirs))()
    return lambda: (jax.jit(lambda: updates(ours))(), other(rows))


def _galore(rows):
    return -LR * (galore([*rows], "short") + 0.1)


MODEL, BOUND = (0.3, 0.8, 0.5, 0.3), (0.5, 0.9, 0.9025, 1e-2, 0.02)
FURTHER = {
    "nag": of_paper(gx.nag(falling, 0.9, 0.9), nag),
    "article_adam": of_paper(gx.article_adam(LR, 0.9, 0.99), article_adam),
    "article_max_v": of_paper(gx.article_max_v(LR, 0.9, 0.9), article_max_v),
    "amsgrad": of_paper(gx.amsgrad(LR, 0.9, 0.99, 1e-3), amsgrad),
    "qhm": of_paper(gx.qhm(LR, 0.9, 0.7), qhm),
    "cocob": of_optax(gx.cocob(falling, 3.0, 0.1), optax.contrib.cocob(falling, 3.0, 0.0, 0.1)),
    "asgd": of_paper(
        gx.asgd(LR, 0.01, 0.75, 10), lambda t, g, w, s: w - LR / (1 + 0.01 * LR * (t - 1)) ** 0.75 * (g + 0.01 * w)
    ),
    "dadapt_adam": Evidence(
        gx.dadapt_adam(*BOUND), "its paper, in numpy", lambda: (run(gx.dadapt_adam(*BOUND)), d_adaptation(1e-2)[0])
    ),
    "momo": Evidence(gx.momo(*MODEL), "its paper, in numpy", lambda: by_the_model(gx.momo(*MODEL), 0.3, 0.3)),
    "momo_adam": Evidence(
        gx.momo_adam(0.3, 0.8, 0.9, 1e-2, 0.5, 0.3),
        "its paper, in numpy",
        lambda: by_the_model(gx.momo_adam(0.3, 0.8, 0.9, 1e-2, 0.5, 0.3), 0.3, 0.3, adam=True),
    ),
    "galore": Evidence(
        (tx := gx.galore(LR, rank=2, factor=0.25, every=4, b2=0.99, eps=1e-3, weight_decay=0.1)),
        "its paper, in numpy",
        of_matrices(tx, _galore),
    ),
    "muon": Evidence(
        (tx := gx.muon(LR, nesterov=False, weight_decay=0.1)),
        "optax",
        of_matrices(tx, optax.contrib.muon(LR, nesterov=False, eps=0.0, weight_decay=0.1)),
    ),
}
"""Optimizers that no other test compares as they are, or only within a chain."""

CLASSICS = {
    "sgd": of_optax(gx.sgd(LR, 0.9), optax.sgd(LR, 0.9)),
    "momentum_sgd": of_optax(
        gx.momentum_sgd(LR, 0.85), optax.chain(optax.ema(0.85, debias=False), optax.scale_by_learning_rate(LR))
    ),
    "adagrad": of_optax(gx.adagrad(LR, 0.1, 0.0, 1e-7), optax.adagrad(LR)),
    "rmsprop": of_optax(gx.rmsprop(LR, 0.95, eps=1e-2), optax.rmsprop(LR, 0.95, eps=1e-2, eps_in_sqrt=False)),
    **{
        name: of_optax(getattr(gx, name)(LR), getattr(optax, name)(LR)) for name in ("adam", "adamw", "nadam", "nadamw")
    },
}
PRODIGY = Evidence(
    gx.prodigy(LR, initial=0.01, weight_decay=0.1),
    "prodigyopt",
    lambda: (trajectory_of_authors("prodigy"), np.load(authors.STORED)["prodigy"]),
)


def evidence() -> dict[str, Evidence]:
    """That for each optimizer."""
    papers = {name: of_paper(*pair) for name, pair in PAPERS.items()}
    made = (
        papers
        | {name: of_optax(*pair) for name, pair in OPTAX.items() if name not in ("yogi", "adafactor")}
        | CLASSICS
        | FURTHER
    )
    made |= {"prodigy": PRODIGY, "cautious_adamw": papers["cautious"]}
    return {name: made[name] for name in optimizers.__all__}


IN_OTHER_TESTS = {"dadapt_adam", "momo", "momo_adam", "galore", "muon"}  # chains like these, or they themselves


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in IN_OTHER_TESTS)) for name in FURTHER]
)
def test_what_no_other_test_compares(name):
    assert FURTHER[name].difference() < 1e-11


def test_muons_momentum_looks_ahead():
    """As torch's does, whose dialect is held to torch; its layout is outputs by inputs."""
    ours, theirs = of_matrices(gx.muon(LR, output=0), gx.dialects.torch.muon(LR, weight_decay=0.0))()
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6)


def test_lion_has_to_remember():
    with pytest.raises(ValueError, match="lion: b2 must be greater than 0; with b2=0 take signum"):
        gx.lion(LR, b2=0.0)


def test_every_decay_mask():
    """Without a gradient only the leaf that decays moves; with a decay of 1, which is no way to say none."""
    p = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    zeros = jax.tree.map(jnp.zeros_like, p)
    makers = {name: getattr(optimizers, name) for name in optimizers.__all__}
    decaying = {k: make for k, make in makers.items() if "decay_mask" in inspect.signature(make).parameters}
    txs = {name: make(LR, weight_decay=1.0, decay_mask="a") for name, make in decaying.items()}
    updates = jax.jit(lambda: {k: tx.update(zeros, tx.init(p), p, value=jnp.ones(()))[0] for k, tx in txs.items()})()
    for name, update in updates.items():
        assert not update["b"].any() and (update["a"] < 0).all(), name
    assert len(updates) > 20


@optax_in_float64()
def table(measure: bool = True) -> str:
    """Markdown: each optimizer, whom it is compared with, its chain there, and the largest difference."""
    lines = ["| optimizer | beside | chain | largest difference |", "|---|---|---|---:|"]
    for name, one in evidence().items():
        largest = f"{one.difference():.0e}" if measure else ""
        lines.append(f"| `{name}` | {one.beside} | {shown(one.tx)} | {largest} |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_up_to_date():
    """It has all of them, and their chains; the figures are those of the run that wrote it."""
    written = (Path(__file__).parents[2] / "docs" / "dialects.md").read_text()
    for line in table(measure=False).splitlines():
        assert line.rsplit("|", 2)[0] in written, f"python -m tests.oracles.compare > docs/dialects.md: {line}"
