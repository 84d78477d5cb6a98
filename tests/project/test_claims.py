"""The pictures of the article's claims show what their captions say; numpy takes the same steps in float64."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import gradtx as gx
from docs.generate.claims import CLAIMS
from docs.generate.pictures import descend

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "claims.md").read_text()

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_every_picture_is_on_the_page_and_every_row_leads_somewhere():
    assert re.findall(r"^```\{picture\} claim (\w+)$", PAGE, re.MULTILINE) == [
        *("damping", "inertia", "cliff", "adam_then_sgd", "clips", "maxout", "start")
    ]
    assert set(re.findall(r"\{picture\} claim (\w+)", PAGE)) == set(CLAIMS)
    for picture in re.findall(r"^```\{figure\} (\S+)$", PAGE, re.MULTILINE):
        assert (DOCS / picture).read_bytes().startswith(b"\x89PNG")
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    rows = re.findall(r"^\| .* \| (.*) \| .*\|$", PAGE, re.MULTILINE)[1:]
    assert len(rows) == 18
    for row in rows:
        links = re.findall(r"\]\((.*?)\)", row)
        assert links, row
        assert all(link.removeprefix("#") in headings for link in links if link.startswith("#")), row


def in_numpy(step: Callable[[float, np.ndarray], float], gradient: Callable[[float], float], start: float, steps: int):
    """The way of a method: ``step`` gets the gradient and all gradients so far, that one included."""
    w, seen = start, []
    for _ in range(steps):
        seen.append(gradient(w))
        w -= step(seen[-1], np.array(seen))
    return w


def slope(w: float) -> float:
    return np.tanh(2 * w) + 99 / (1 + np.exp(-5 * (w - 12)))


def averages(gradients: np.ndarray, decay: float) -> np.ndarray:
    """Σ (1−β)β^(t−i) gᵢ² at every t."""
    v = [0.0]
    for g in gradients:
        v.append(decay * v[-1] + (1 - decay) * g**2)
    return np.array(v[1:])


def test_adagrad_stops_early_rmsprop_arrives_and_max_v_stops_again():
    steps = 250
    expected = {
        gx.adagrad(1.0): in_numpy(lambda g, seen: g / np.sqrt(np.sum(seen**2)), slope, 14.0, steps),
        gx.rmsprop(0.1): in_numpy(lambda g, seen: 0.1 * g / np.sqrt(averages(seen, 0.9)[-1]), slope, 14.0, steps),
    }
    for tx, end in expected.items():
        way = descend(tx, 14.0, lambda w: jax.numpy.tanh(2 * w) + 99 * jax.nn.sigmoid(5 * (w - 12)), steps)
        np.testing.assert_allclose(way[-1], end, atol=0.02)  # float32, over a cliff and 250 steps
    adagrad, rmsprop = expected.values()
    assert adagrad > 9 and abs(rmsprop) < 0.2
    (_, ways), curves = CLAIMS["cliff"].draw().axes, {}
    for line, name in zip(ways.lines, ("RMSProp", "AdaGrad", "max-V"), strict=True):
        curves[name] = np.asarray(line.get_ydata())
    assert abs(curves["RMSProp"][-1]) < 0.2 and min(curves["AdaGrad"][-1], curves["max-V"][-1]) > 7
    assert curves["max-V"][50] - curves["max-V"][-1] < 2.5  # on the slope it hardly moves


def test_momentum_damps_what_descent_cannot():
    """Across the valley ½·30w²: w ← (1 − 30η)w, and the roots of z² − (1 + ρ − 30η(1−ρ))z + ρ, of modulus √ρ."""
    eta, rho, steps = 0.066, 0.9, 60
    modulus = np.abs(np.roots([1, -(1 + rho - 30 * eta * (1 - rho)), rho]))
    np.testing.assert_allclose(modulus, np.sqrt(rho))
    descent, momentum = (
        np.abs(descend(tx, 1.0, lambda w: 30 * w, steps)) for tx in (gx.sgd(eta), gx.momentum_sgd(eta, rho))
    )
    np.testing.assert_allclose(descent[-1], abs(1 - 30 * eta) ** steps, rtol=1e-3)
    assert momentum[-10:].max() < 0.2 * descent[-1]


def test_the_other_pictures_show_what_they_say():
    inertia = [line for axes in CLAIMS["inertia"].draw().axes for line in axes.lines if line.get_marker() == "."]
    ends = [float(np.asarray(line.get_xdata())[-1]) for line in inertia]
    momentum, descent = ends[::2], ends[1::2]
    assert momentum[0] > 2 and descent[0] < -1 and momentum[1] > 1.5 and descent[1] < 0
    labels = [text.get_text() for text in CLAIMS["maxout"].draw().axes[0].texts]
    assert any("5" in label for label in labels)
    together, adam, sgd = (np.asarray(line.get_ydata()) for line in CLAIMS["adam_then_sgd"].draw().axes[0].lines)
    assert together[100] < sgd[100] / 10 and together[-1] < adam[-1] / 2 and together[-1] < sgd[-1] / 10
    texts = [text.get_text() for text in CLAIMS["clips"].draw().axes[0].texts]
    assert "by value: (1.00, 0.80)" in texts and "by norm: (0.97, 0.26)" in texts  # 3/√9.64
