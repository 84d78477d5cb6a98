"""Optimizers since Adam, in float64: against optax and torch, and against the papers' equations in numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from oracles import authors
from oracles.compare import AUTHORS, OF_A_DECOMPOSITION, trajectory_of_authors
from trajectories import PULL, STEPS, run, run_each, start, stream

import gradtx as gx

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

LR = 0.01


def falling(count):
    """A learning rate as a schedule."""
    return 0.03 * 0.95 ** jnp.asarray(count, float)


rate = gx.scale_by_learning_rate


def averages(b1=0.9, b2=0.999):
    return gx.chain(gx.momentum(b1), gx.rms(b2), gx.debias())


def decayed(direction):
    """optax's direction, decoupled weight decay and learning rate."""
    return optax.chain(direction, optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(LR))


OPTAX = {
    "signum": (
        gx.signum(LR, 0.8, 0.1),
        decayed(optax.chain(optax.ema(0.8, debias=False), optax.scale_by_sign())),
    ),
    "lion": (gx.lion(LR, 0.8, 0.95, 0.1), optax.lion(LR, 0.8, 0.95, weight_decay=0.1)),
    "adamax": (gx.adamax(LR, 0.8, 0.9), optax.adamax(LR, 0.8, 0.9, eps=0.0)),
    "infinity": (
        gx.chain(gx.momentum(0.9), gx.infinity(0.9, 1e-2), gx.debias(), gx.precondition(0.0), rate(LR)),
        optax.adamax(LR, b2=0.9, eps=1e-2),
    ),
    "adabelief": (
        gx.adabelief(LR, eps=1e-3, weight_decay=0.1),
        decayed(optax.scale_by_belief(eps=1e-3, eps_root=1e-3)),
    ),
    "acprop": (
        gx.chain(
            gx.belief_rms(0.9, 0.999, 1e-16, lagged=True),
            gx.debias(),
            gx.lag_v("one"),
            gx.precondition(1e-16),
            rate(LR),
        ),
        optax.contrib.acprop(LR, b1=0.9, b2=0.999, eps=1e-16),
    ),
    "yogi": (gx.dialects.optax.yogi(LR), optax.yogi(LR)),
    "adadelta": (gx.adadelta(0.5, 0.9), optax.adadelta(0.5, rho=0.9, eps=1e-6)),
    "ademamix": (gx.ademamix(LR, b3=0.95), optax.contrib.ademamix(LR, b3=0.95, alpha=5.0)),
    "adopt": (gx.adopt(LR, b2=0.99, weight_decay=0.1), decayed(optax.contrib.scale_by_adopt(b2=0.99))),
    "optimistic": (
        gx.chain(gx.extrapolate(0.5, first="same"), rate(LR)),
        optax.optimistic_gradient_descent(LR, alpha=1.0, beta=0.5),
    ),
    "radam": (
        gx.radam(LR, b2=0.9, eps=1e-2, weight_decay=0.1),
        decayed(optax.scale_by_radam(b2=0.9, eps=1e-2)),
    ),
    "radam later": (gx.radam(LR, b2=0.99), optax.radam(LR, b2=0.99)),
    "adafactor": (
        gx.adafactor(LR, 0.7, 0.5, 0.9, least=2),
        optax.adafactor(LR, 2, 0.7, clipping_threshold=0.5, momentum=0.9),
    ),
    "lamb": (gx.lamb(LR, weight_decay=0.1), optax.lamb(LR, weight_decay=0.1)),
    "lars": (gx.lars(falling, 0.8, 0.01, 0.1), optax.lars(falling, 0.1, trust_coefficient=0.01, momentum=0.8)),
    "clip_by_rms": (gx.chain(gx.clip_by_rms(0.3), rate(LR)), optax.chain(optax.clip_by_block_rms(0.3), optax.sgd(LR))),
    "scale_by_parameter_rms": (
        gx.chain(gx.scale_by_parameter_rms(), rate(LR)),
        optax.chain(optax.scale_by_param_block_rms(), optax.sgd(LR)),
    ),
    "novograd": (gx.novograd(LR, 0.8, 0.9, 1e-3, 0.1), optax.novograd(LR, 0.8, 0.9, 1e-3, weight_decay=0.1)),
    "sm3": (gx.sm3(LR), optax.sm3(LR)),
    "dog": (
        gx.dog(0.5, 0.1, weight_decay=0.1),
        optax.contrib.dog(0.5, ("heuristic", 0.1), weight_decay=0.1),
    ),
    "mechanic": (
        gx.chain(gx.at_learned_rate(gx.sgd(1.0, 0.9), 0.5, 0.1, 0.3, betters=3)),
        optax.contrib.mechanize(optax.sgd(1.0, 0.9), 0.5, 0.1, 0.3, 3),
    ),
    "fromage": (gx.fromage(LR), optax.fromage(LR, min_norm=0.0)),
    "adaptive_clip": (
        gx.chain(gx.adaptive_clip(0.1), rate(LR)),
        optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(LR)),
    ),
    "centralize": (
        gx.chain(gx.centralize(output=0), rate(LR)),
        optax.chain(optax.centralize(), optax.sgd(LR)),
    ),
    "schedule_free_sgd": (
        gx.schedule_free_sgd(0.1, weight_decay=0.1),
        optax.contrib.schedule_free_sgd(0.1, weight_decay=0.1),
    ),
    "schedule_free_adamw": (
        gx.schedule_free_adamw(LR, weight_decay=0.1),
        optax.contrib.schedule_free_adamw(LR, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_as_optax(name):
    ours, theirs = OPTAX[name]
    # optax computes Adafactor's decay in float32, whatever the parameters are.
    tolerance = 1e-6 if name == "adafactor" else 1e-9
    chex.assert_trees_all_close(run(ours), run(theirs), rtol=tolerance, atol=1e-11)


TORCH = {
    "adamax": (
        gx.chain(gx.momentum(0.9), gx.infinity(0.999), gx.debias(), gx.precondition(0.0), rate(LR)),
        lambda torch, p: torch.optim.Adamax(p, lr=LR),
    ),
    "adadelta": (gx.adadelta(0.5, 0.9), lambda torch, p: torch.optim.Adadelta(p, lr=0.5)),
    "rprop": (gx.rprop(LR), lambda torch, p: torch.optim.Rprop(p, lr=LR)),
    "asgd": (gx.asgd(LR, 0.01, 0.75, 10), lambda torch, p: torch.optim.ASGD(p, lr=LR, lambd=0.01, t0=10)),
}


@pytest.mark.parametrize("name", TORCH)
def test_as_torch(name):
    torch = pytest.importorskip("torch")
    ours, make = TORCH[name]
    noise, params = stream(), {k: torch.nn.Parameter(torch.tensor(np.asarray(p))) for k, p in start().items()}
    optimizer, seen = make(torch, list(params.values())), {k: [] for k in params}
    for t in range(STEPS):
        for k, p in params.items():
            p.grad = torch.tensor(noise[k][t]) + PULL * p.detach()
        optimizer.step()
        for k, p in params.items():
            seen[k].append(p.detach().numpy().copy())
    # torch keeps ASGD's step size in float32, whatever the parameters are.
    tolerance = 1e-6 if name == "asgd" else 1e-10
    chex.assert_trees_all_close(run(ours), {k: np.stack(v) for k, v in seen.items()}, rtol=tolerance, atol=1e-12)


# Authors' own packages, and timm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUTHORS)
def test_as_its_authors(name):
    """Stored trajectories; see ``oracles/authors.py``."""
    near = 1e-9 if name in OF_A_DECOMPOSITION else 1e-12
    np.testing.assert_allclose(trajectory_of_authors(name), np.load(authors.STORED)[name], rtol=near, atol=near)


# Papers, in numpy -----------------------------------------------------------------------------------------------------


def trajectory(step):
    """The parameters after each step of ``step(t, g, w, s)``, which returns the new w; s is a dict of arrays."""
    noise, out = stream(), {}
    for k, p in start().items():
        w, s, rows = np.asarray(p), {}, []
        for t in range(1, STEPS + 1):
            w = step(t, noise[k][t - 1] + PULL * w, w, s)
            rows.append(w)
        out[k] = np.stack(rows)
    return out


def ema(s, name, decay, x):
    s[name] = decay * s.get(name, 0.0) + (1 - decay) * x
    return s[name]


def qhadam(t, g, w, s):
    m, v = ema(s, "m", 0.9, g) / (1 - 0.9**t), ema(s, "v", 0.99, g * g) / (1 - 0.99**t)
    return w - LR * (0.7 * m + 0.3 * g) / (np.sqrt(0.8 * v + 0.2 * g * g) + 1e-8)


def yogi(t, g, w, s):
    m, v = ema(s, "m", 0.9, g), s.get("v", 0.0 * g)
    s["v"] = v - 0.1 * np.sign(v - g * g) * g * g
    return w - LR * (m / (1 - 0.9**t)) / (np.sqrt(s["v"] / (1 - 0.9**t)) + 1e-3)


def laprop(t, g, w, s):
    v = ema(s, "v", 0.99, g * g) / (1 - 0.99**t)
    return w - LR * (ema(s, "m", 0.9, g / (np.sqrt(v) + 1e-8)) / (1 - 0.9**t) + 0.1 * w)


def adan(t, g, w, s):
    change = g - s.get("g", g)
    s["g"] = g
    m = ema(s, "m", 0.98, g) / (1 - 0.98**t)
    d = ema(s, "d", 0.92, change) / (1 - 0.92**t)
    n = ema(s, "n", 0.99, (g + 0.92 * change) ** 2) / (1 - 0.99**t)
    return w - LR * ((m + 0.92 * d) / (np.sqrt(n) + 1e-8) + 0.1 * w)


def mars(t, g, w, s):
    c = g + 0.025 * 0.95 / 0.05 * (g - s.get("g", 0.0))
    s["g"] = g
    c = c / max(1.0, np.sqrt((c * c).sum()))
    m, v = ema(s, "m", 0.95, c) / (1 - 0.95**t), ema(s, "v", 0.99, c * c) / (1 - 0.99**t)
    return w - LR * (m / (np.sqrt(v) + 1e-2) + 0.1 * w)


def adafactor(t, g, w, s):
    beta, q = 1 - t**-0.8, g * g + 1e-30
    if g.ndim == 2:
        for name, axis in (("r", 1), ("c", 0)):
            s[name] = beta * s.get(name, 0.0) + (1 - beta) * q.mean(axis)
        v = np.outer(s["r"], s["c"]) / s["r"].mean()
    else:
        v = s["v"] = beta * s.get("v", 0.0) + (1 - beta) * q
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt((u * u).mean()))
    return w - 0.1 * (max(1e-3, np.sqrt((w * w).mean())) * u + 0.1 * w)


def rprop(t, g, w, s):
    turned = np.sign(g * s.get("g", 0.0 * g))
    step = s.get("step", 0.1 + 0.0 * g) * np.where(turned > 0, 1.2, np.where(turned < 0, 0.5, 1.0))
    s["step"] = np.clip(step, 0.02, 0.3)
    s["g"] = np.where(turned < 0, 0.0, g)
    return w - s["step"] * np.sign(s["g"])


def adam_atan2(t, g, w, s):
    m, v = ema(s, "m", 0.9, g) / (1 - 0.9**t), ema(s, "v", 0.99, g * g) / (1 - 0.99**t)
    return w - LR * 1.27 * np.arctan2(m, np.sqrt(v))


def adam_mini(t, g, w, s):
    """One second moment for all that goes into an output; for a vector one in all."""
    axes = tuple(range(g.ndim - 1)) if g.ndim > 1 else None
    m, v = ema(s, "m", 0.9, g), ema(s, "v", 0.99, np.mean(g * g, axes, keepdims=True))
    return w - LR * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-2)


def madgrad_root(t, g, w, s):
    s["v"] = s.get("v", 0.0) + g * g
    root = np.cbrt(s["v"]) + 1e-6
    return w - LR * g / root


def slow_weights(t, g, w, s):
    slow = s.setdefault("slow", w)
    w = w - LR * g
    if t % 5 == 0:
        w = s["slow"] = slow + 0.3 * (w - slow)
    return w


def muon_momentum(t, g, w, s):
    """Lion's mixture at (B², B) with B = 0.9, of the momentum before this gradient."""
    before = s.get("m", 0.0 * g)
    ema(s, "m", 0.9, g)
    return w - LR * (0.81 * before + 0.19 * g)


def cautious_adam(t, g, w, s):
    m, v = ema(s, "m", 0.9, g) / (1 - 0.9**t), ema(s, "v", 0.999, g * g) / (1 - 0.999**t)
    agrees = (m * g > 0).astype(float)
    return w - LR * (agrees / max(agrees.mean(), 1e-3) * m / (np.sqrt(v) + 1e-8) + 0.1 * w)


def stable_adam(t, g, w, s):
    m, v = ema(s, "m", 0.9, g) / (1 - 0.9**t), ema(s, "v", 0.99, g * g) / (1 - 0.99**t)
    return w - LR / max(1.0, np.sqrt((g * g / v).mean()) / 0.8) * m / (np.sqrt(v) + 1e-3)


def madgrad(t, g, w, s):
    start, weight = s.setdefault("start", w), LR * np.sqrt(t)
    s["sum"], s["v"] = s.get("sum", 0.0) + weight * g, s.get("v", 0.0) + weight * g * g
    return 0.7 * w + 0.3 * (start - s["sum"] / (np.cbrt(s["v"]) + 1e-6))


def ftrl(t, g, w, s, power=0.5, shrinkage=0.0):
    """McMahan's Algorithm 1, element by element as it is written; and with what TensorFlow adds."""
    z, n = s.get("z", 0.0 * g), s.get("n", 0.0 * g + 0.1)
    pulled = g + 2 * shrinkage * w
    s["z"], s["n"] = z + pulled - ((n + g * g) ** power - n**power) / 0.3 * w, n + g * g
    sides = (0.7 + s["n"] ** power) / 0.3 + 2 * 0.2
    return np.where(np.abs(s["z"]) <= 0.4, 0.0, -(s["z"] - 0.4 * np.sign(s["z"])) / sides)


def cocob(t, g, w, s):
    """Orabona & Tommasi's Algorithm 2, whose g is the negative gradient."""
    start, g = s.setdefault("start", w), -g
    s["L"] = np.maximum(s.get("L", 0.0), np.abs(g))
    s["G"] = s.get("G", 0.0) + np.abs(g)
    s["reward"] = np.maximum(s.get("reward", 0.0) + (w - start) * g, 0)
    s["theta"] = s.get("theta", 0.0) + g
    beta = s["theta"] / (s["L"] * np.maximum(s["G"] + s["L"], 3.0 * s["L"]))
    return start + beta * (s["L"] + s["reward"])


def cautious_decay(t, g, w, s):
    u = ema(s, "m", 0.9, g)
    return w - LR * (u + 2.0 * w * (u * w >= 0))


def outers(g):
    """ggᵀ and gᵀg of a matrix."""
    return {"L": g @ g.T, "R": g.T @ g}


def shampoo(t, g, w, s):
    m = ema(s, "m", 0.8, g)
    if g.ndim == 1:
        s["v"] = s.get("v", 0.0) + g * g
        return w - LR * (m / np.sqrt(s["v"] + 1e-2) + 0.1 * w)
    roots = {}
    for name, x in outers(g).items():
        s[name] = s.get(name, 0.0) + x
        values, vectors = np.linalg.eigh(s[name] + 1e-2 * np.eye(len(x)))
        roots[name] = vectors @ np.diag(values**-0.25) @ vectors.T
    return w - LR * (roots["L"] @ m @ roots["R"] + 0.1 * w)


def soap(t, g, w, s):
    """Its authors' order: the first gradient makes the basis, each later one is divided in the basis of before."""
    w, column = (1 - LR * 0.1) * w, g.reshape(len(g), -1)
    left, right = s.get("QL", np.eye(column.shape[0])), s.get("QR", np.eye(column.shape[1]))
    if t > 1:
        m, v = ema(s, "m", 0.8, column), ema(s, "v", 0.9, (left.T @ column @ right) ** 2)
        bias = np.sqrt(1 - 0.9 ** (t - 1)) / (1 - 0.8 ** (t - 1))
        w = w - LR * bias * (left @ (left.T @ m @ right / (np.sqrt(v) + 1e-3)) @ right.T).reshape(w.shape)
    if g.ndim == 2:
        for k, x in outers(g).items():
            factor = ema(s, k, 0.9, x)
            if t == 1:
                s["Q" + k] = np.linalg.eigh(factor)[1][:, ::-1]
            elif (t - 1) % 3 == 0:
                order = np.argsort(-np.diag(s["Q" + k].T @ factor @ s["Q" + k]))
                s["v"] = s["v"][order] if k == "L" else s["v"][:, order]
                s["Q" + k] = np.linalg.qr(factor @ s["Q" + k][:, order])[0]
    return w


PAPERS = {
    "madgrad": (gx.madgrad(LR, 0.7), madgrad),
    "cocob": (gx.coin_betting(3.0), cocob),
    "ftrl": (gx.ftrl_proximal(0.3, 0.4, 0.2, 0.7, 0.1), ftrl),
    "ftrl, shrinking": (
        gx.ftrl_proximal(0.3, 0.4, 0.2, 0.7, 0.1, 0.25, power=0.3),
        lambda *step: ftrl(*step, power=0.3, shrinkage=0.25),
    ),
    "adam-mini": (gx.chain(gx.momentum(0.9), gx.debias(), gx.scale_by_slice_rms(0.99, 1e-2), rate(LR)), adam_mini),
    "cautious decay": (gx.chain(gx.momentum(0.9), gx.add_cautious_decay(2.0), rate(LR)), cautious_decay),
    "shampoo": (gx.shampoo(LR, 0.8, 1e-2, 0.1), shampoo),
    "soap": (gx.soap(LR, 0.8, 0.9, 1e-3, 0.1, every=3), soap),
    "Muon's Nesterov momentum": (
        gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(0.9), rate(LR)),
        muon_momentum,
    ),
    "cautious": (gx.cautious_adamw(LR, weight_decay=0.1), cautious_adam),
    "stable adam": (
        gx.chain(averages(0.9, 0.99), gx.clip_by_gradient_rms(0.8), gx.precondition(1e-3), rate(LR)),
        stable_adam,
    ),
    "qhadam": (gx.qhadam(LR, 0.9, 0.99, 0.7, 0.8), qhadam),
    "yogi": (gx.yogi(LR, 0.9, 0.9), yogi),
    "laprop": (gx.laprop(LR, 0.9, 0.99, weight_decay=0.1), laprop),
    "adan": (gx.adan(LR, weight_decay=0.1), adan),
    "mars": (gx.mars(LR, eps=1e-2, weight_decay=0.1), mars),
    "adafactor": (gx.adafactor(0.1, least=2, weight_decay=0.1), adafactor),
    "rprop": (gx.rprop(0.1, 0.5, 1.2, 0.02, 0.3), rprop),
    "adam-atan2": (gx.chain(averages(0.9, 0.99), gx.precondition(0.0), gx.arctan(), rate(LR)), adam_atan2),
    "cube root": (gx.chain(gx.adagrad_sum(), gx.precondition(1e-6, power=1 / 3), rate(LR)), madgrad_root),
    "lookahead": (gx.chain(gx.sgd(LR), gx.lookahead(5, 0.3)), slow_weights),
}


def test_prodigy():
    """Algorithm 4 of its paper, which debiases nothing, over both leaves together; there is a decay, too."""
    noise, start_point = stream(), {k: np.asarray(p) for k, p in start().items()}
    w, m, v, s = (jax.tree.map(lambda p, k=k: k * p, start_point) for k in (1.0, 0.0, 0.0, 0.0))
    d, r, rows = 0.02, 0.0, []
    for t in range(STEPS):
        g = {k: noise[k][t] + PULL * w[k] for k in w}
        r = 0.95 * r + 0.5 * d**2 * sum(np.sum(g[k] * (start_point[k] - w[k])) for k in w)
        s = {k: 0.95 * s[k] + 0.5 * d**2 * g[k] for k in w}
        m = {k: 0.9 * m[k] + 0.1 * d * g[k] for k in w}
        v = {k: 0.9025 * v[k] + 0.0975 * d**2 * g[k] ** 2 for k in w}
        before, d = d, max(d, 1.5 * r / sum(np.abs(x).sum() for x in s.values()))
        w = {k: w[k] - 0.5 * before * (m[k] / (np.sqrt(v[k]) + d * 1e-2) + 0.1 * w[k]) for k in w}
        rows.append(w)
    ours = run(gx.prodigy(0.5, 0.9, 0.9025, 1e-2, 0.02, 1.5, 0.1))
    chex.assert_trees_all_close(ours, {k: np.stack([row[k] for row in rows]) for k in w}, rtol=1e-10, atol=1e-12)
    assert d > 0.1  # it estimated something


def d_adaptation(eps):
    """Algorithm 4 of its paper, D-Adapted Adam, over both leaves together; and the last distance."""
    noise, w = stream(), {k: np.asarray(p) for k, p in start().items()}
    m, v, s = (dict.fromkeys(w, 0.0) for _ in range(3))
    d, r, rows = 0.02, 0.0, []
    for t in range(STEPS):
        g = {k: noise[k][t] + PULL * w[k] for k in w}
        m = {k: 0.9 * m[k] + 0.1 * d * 0.5 * g[k] for k in w}
        v = {k: 0.9025 * v[k] + 0.0975 * g[k] ** 2 for k in w}
        root = {k: np.where(v[k] > 0, np.sqrt(v[k]) + eps, 1.0) for k in w}
        w = {k: w[k] - m[k] / root[k] for k in w}
        r = 0.95 * r + 0.05 * 0.5 * d * sum(np.sum(g[k] * s[k] / root[k]) for k in w)
        s = {k: 0.95 * s[k] + 0.05 * 0.5 * d * g[k] for k in w}
        d = max(d, r / (0.05 * sum(np.abs(x).sum() for x in s.values())))
        rows.append(w)
    return {k: np.stack([row[k] for row in rows]) for k in w}, d


def test_units_of_distance_around_what_sees_the_whole_tree():
    """A clip that clips nothing makes another way of it, in which gradients and steps are multiplied apart."""
    adam, clip = (gx.momentum(0.9), gx.rms(0.99), gx.precondition(1e-3)), gx.clip_by_global_norm(1e9)
    units = [gx.in_units_of_distance(gx.chain(*inside), initial=0.3) for inside in (adam, (*adam, clip))]
    one_pass, apart = run_each({name: gx.chain(tx, rate(1.0)) for name, tx in zip("ab", units, strict=True)}).values()
    chex.assert_trees_all_close(apart, one_pass, rtol=1e-11)


@pytest.mark.parametrize("eps", [1e-2, 0.0])
def test_d_adaptation(eps):
    paper, d = d_adaptation(eps)
    bound = gx.scale_by_distance_bound(0.5, 0.02, 0.95, eps)
    ours = run(gx.chain(gx.rms(0.9025), bound, gx.momentum(0.9), gx.precondition(eps), gx.scale(-1.0)))
    chex.assert_trees_all_close(ours, paper, rtol=1e-10, atol=1e-12)
    assert d > 0.04  # it found something


@pytest.mark.parametrize("variant", ["sps", "sps+"])
def test_polyak_as_optax(variant):
    """From above f* and from below it, where one goes uphill, and the other stays."""

    def losses(tx):
        def one(carry, _):
            p, state = carry
            loss, g = jax.value_and_grad(lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 4))(p)
            updates, state = tx.update(g, state, p, value=loss)
            return (optax.apply_updates(p, updates), state), loss

        p = start()
        return jax.jit(lambda: jax.lax.scan(one, (p, tx.init(p)), length=STEPS)[1])()

    for minimum, ends in ((0.5, 6.0), (380.0, {"sps": 380.0, "sps+": 342.0}[variant])):
        arguments = (0.03, 1.2, minimum, 1e-3, variant)
        ours, theirs = losses(gx.dialects.optax.polyak_sgd(*arguments)), losses(optax.polyak_sgd(*arguments))
        np.testing.assert_allclose(ours, theirs, rtol=1e-11)
        assert abs(ours[-1] - ends) < 6
    with pytest.raises(TypeError, match=r"'scale_by_polyak' needs the loss: step\(tx, params, grads, state, value"):
        gx.scale_by_polyak().update(jnp.ones(1), gx.scale_by_polyak().init(jnp.ones(1)))


MODELS = {
    "momo": (0.7, 0.8, 0.5),
    "momo, below its bound": (0.7, 0.8, 100.0),
    "momo, decayed": (0.7, 0.8, 0.5, 0.3),
    "momo, with a bound that is found": (0.7, 0.8, -30.0, 0.3, True),
    "momo_adam": (0.3, 0.8, 0.9, 1e-2, 0.5),
    "momo_adam, bounded": (0.01, 0.8, 0.9, 0.0),
    "momo_adam, with a bound that is found": (0.3, 0.8, 0.9, 1e-2, -30.0, 0.3, True),
}


@pytest.mark.parametrize("name", MODELS)
def test_momo_as_optax(name):
    """Where the model decides how long steps are, where the learning rate does, and where the model asks for none."""
    kind, at = name.split(",")[0], start()

    def points(tx):
        def one(carry, _):
            p, state = carry
            loss, g = jax.value_and_grad(lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(jnp.cosh(p["b"])))(p)
            updates, state = tx.update(g, state, p, value=loss)
            p = optax.apply_updates(p, updates)
            return (p, state), p

        return jax.jit(lambda: jax.lax.scan(one, (at, tx.init(at)), length=STEPS)[1])()

    ours, theirs = (points(getattr(kinds, kind)(*MODELS[name])) for kinds in (gx.dialects.optax, optax.contrib))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-11)


def by_the_model(tx, eta, decay, lower=0.5, adam=False):
    """MoMo, or MoMo-Adam, as its paper has it, and as the chain: parameters of twenty steps.

    The weights and the step, both divided by 1 + ηλ; the averages are not debiased, as in its Algorithm 2.
    """
    w = {k: np.asarray(p) for k, p in start().items()}
    m, v, f, along, rows = dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0), 0.0, 0.0, []

    def loss_of(p):
        return jnp.sum(p["a"] ** 2) + jnp.sum(jnp.cosh(p["b"]))

    for t in range(1, 21):
        g = {"a": 2 * w["a"], "b": np.sinh(w["b"])}
        m = {k: 0.8 * m[k] + 0.2 * g[k] for k in w}
        v = {k: 0.9 * v[k] + 0.1 * g[k] ** 2 for k in w}
        f = 0.8 * f + 0.2 * float(loss_of(w))
        along = 0.8 * along + 0.2 * sum(np.sum(g[k] * w[k]) for k in w)
        divisor = {k: 1e-2 + np.sqrt(v[k] / (1 - 0.9**t)) if adam else 1.0 for k in w}
        rest = 1 - 0.8**t
        model = (1 + eta * decay) * (f - along - rest * lower) + sum(np.sum(m[k] * w[k]) for k in w)
        step = min(eta / rest, max(model, 0.0) / sum(np.sum(m[k] ** 2 / divisor[k]) for k in w))
        w = {k: (w[k] - step * m[k] / divisor[k]) / (1 + eta * decay) for k in w}
        rows.append(w)
    p, ours = start(), []
    state = tx.init(p)
    for _ in rows:
        value, g = jax.value_and_grad(loss_of)(p)
        p, state = gx.step(tx, p, g, state, value=value)
        ours.append(p)
    return ours, rows


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_momo_as_its_paper(decay):
    tx = gx.momo_adam(0.3, 0.8, 0.9, 1e-2, 0.5, decay)
    chex.assert_trees_all_close(*by_the_model(tx, 0.3, decay, adam=True), rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(*by_the_model(gx.momo(0.3, 0.8, 0.5, decay), 0.3, decay), rtol=1e-10, atol=1e-12)


LAYERS = {"short, wide": (3, 5), "short, tall": (5, 3), "square": (4, 4), "layers": (2, 3, 5), "vector": (4,)}


def signed(new, old):
    """Each column turned towards its predecessor, as the sign of their product says."""
    return new * np.sign(np.sum(new * old, axis=0)) if old.ndim else new


def galore(rows, side):
    """The updates of a matrix for its gradients, in a basis that is taken anew in steps 0, 4 and 8."""
    left = (rows[0].shape[0] <= rows[0].shape[1]) if side == "short" else rows[0].shape[0] >= rows[0].shape[1]
    m, v, basis, out = 0.0, 0.0, np.zeros(()), []
    for t, g in enumerate(rows, 1):
        if t % 4 == 1:
            u, _, vt = np.linalg.svd(g)
            basis = signed((u if left else vt.T)[:, :2], basis)
        r = basis.T @ g if left else g @ basis
        m, v = 0.9 * m + 0.1 * r, 0.99 * v + 0.01 * r**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-3)
        out.append(0.25 * (basis @ u if left else u @ basis.T))
    return np.stack(out)


@pytest.mark.parametrize("side", ["short", "long"])
def test_galore_in_numpy(side):
    """Adam on m by r or r by n numbers, in a basis that is taken anew in steps 0, 4 and 8."""
    rng = np.random.default_rng(0)
    grads = [{k: rng.normal(size=shape) for k, shape in LAYERS.items()} for _ in range(11)]

    adam = gx.chain(gx.momentum(0.9), gx.rms(0.99), gx.debias(), gx.precondition(1e-3))
    tx = gx.in_subspace(adam, 2, 0.25, every=4, side=side)
    stacked = gx.in_subspace(adam, 2, 0.25, every=4, side=side, stacked=1)
    for k, shape in LAYERS.items():
        rows = [g[k] for g in grads]
        if k == "vector":
            expected = updates(adam, rows)
        elif k == "layers":
            expected = np.stack([galore([row[i] for row in rows], side) for i in range(shape[0])], axis=1)
        else:
            expected = galore(rows, side)
        found = updates(stacked if k == "layers" else tx, rows)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11, err_msg=k)


def test_directions_of_complex_matrices_turn_towards_those_of_before():
    """Their inner products are real and positive, whatever phases the decomposition has."""
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(rng.normal(size=(2, 5, 3)) + 1j * rng.normal(size=(2, 5, 3)))
    tx, bases = gx.in_subspace(gx.scale(1.0), 2, every=1), []
    state = tx.init(gradients[0])
    for g in gradients:
        _, state = tx.update(g, state)
        bases.append(np.asarray(state.slots["in_subspace"]["state"]["basis"]))
    along = np.sum(bases[1].conj() * bases[0], axis=0)
    assert np.all(along.real > 0)
    np.testing.assert_allclose(along.imag, 0, atol=1e-12)


def test_what_galore_holds():
    """A basis of each matrix, none of what is no matrix; one element is a matrix, too."""
    leaves = {"tall": (5, 3), "layer": (1, 3, 5), "vector": (4,), "none": (0, 3), "number": (1, 1)}
    zeros = {k: jnp.zeros(shape) for k, shape in leaves.items()}
    for stacked, expected in ((0, (1, 0, 0)), (1, (1, 3, 2))):
        tx = gx.in_subspace(gx.scale(2.0), 2, 0.25, stacked=stacked)
        shapes = jax.tree.map(jnp.shape, tx.init(zeros).slots["in_subspace"]["state"]["basis"])
        assert shapes["layer"] == expected and shapes["vector"] == (0, 0) == shapes["none"]
    one = gx.in_subspace(gx.scale(2.0), 2, 0.25)
    np.testing.assert_allclose(updates(one, [3.0 * np.ones((1, 1))]), [[[1.5]]])
    assert jax.tree.map(jnp.shape, one.init(zeros).slots["in_subspace"]["state"]["basis"])["tall"] == (3, 2)


def updates(tx, rows):
    """The update for each of these gradients."""

    def one(state, g):
        out, state = tx.update(g, state)
        return state, out

    return jax.lax.scan(one, tx.init(jnp.zeros(rows[0].shape)), jnp.stack(rows))[1]


def test_noise_has_its_variance_and_goes_on_from_the_count():
    tx, g = gx.add_noise(0.5, 2.0, seed=3), {"a": jnp.zeros(40_000), "b": jnp.zeros(40_000)}
    state, found = tx.init(g), []
    for _ in range(3):
        updates, state = tx.update(g, state)
        found.append(np.stack([updates["a"], updates["b"]]))
    np.testing.assert_allclose(np.stack(found).std(-1) ** 2, [[0.5] * 2, [0.125] * 2, [0.5 / 9] * 2], rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(np.concatenate(found)), np.eye(6), atol=0.03)
    again, _ = tx.update(g, tx.init(g)._replace(count=jnp.int32(2)))
    np.testing.assert_allclose(again["b"], found[2][1], rtol=1e-12)


def test_ascent_point():
    p, g = {"a": np.array([1.0, 2.0]), "b": np.array([[3.0]])}, {"a": np.array([2.0, -1.0]), "b": np.array([[2.0]])}
    point = gx.ascent_point(jax.tree.map(jnp.asarray, p), jax.tree.map(jnp.asarray, g), 0.3)
    chex.assert_trees_all_close(point, {k: p[k] + 0.1 * g[k] for k in p}, rtol=1e-14)
    chex.assert_trees_all_equal(gx.ascent_point(point, jax.tree.map(jnp.zeros_like, point)), point)
    chex.assert_trees_all_equal(jax.jit(gx.ascent_point)(point, point, 0.0), point)
    for grads, radius, message in (
        ({"a": g["a"]}, 0.3, "the gradients and the parameters are different trees .missing 'b'"),
        (g | {"b": g["a"]}, 0.3, r"leaf 'b': the gradients have shape \(2,\), the parameters \(1, 1\)"),
        (g, -0.3, "ascent_point: radius must be at least 0, found -0.3"),
    ):
        with pytest.raises(ValueError, match=message):
            gx.ascent_point(p, grads, radius)


@pytest.mark.parametrize("name", PAPERS)
def test_as_the_paper(name):
    ours, paper = PAPERS[name]
    chex.assert_trees_all_close(run(ours), trajectory(paper), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5), (3, 2, 4)])
def test_singular_values_go_through_the_polynomial(shape):
    """UΣVᵀ of a matrix, or of a kernel with the outputs last, becomes U·f(Σ/‖Σ‖)·Vᵀ, whatever its scale."""
    x = np.random.default_rng(0).normal(size=shape)
    u, s, vt = np.linalg.svd(x.reshape(-1, shape[-1]), full_matrices=False)
    s = s / np.linalg.norm(s)
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5:
        s = a * s + b * s**3 + c * s**5
    for tx, scale in ((gx.orthogonalize(), 1.0), (gx.orthogonalize(), 1e-200), (gx.orthogonalize(), 1e200)):
        out, _ = tx.update(jnp.asarray(scale * x), tx.init(jnp.asarray(x)))
        np.testing.assert_allclose(out, (u * s @ vt).reshape(shape), rtol=1e-9, atol=1e-12)


def test_stacked_matrices_are_matrices_one_by_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)))
    stacked, one = gx.orthogonalize(stacked=1), gx.orthogonalize()
    out, _ = stacked.update(x, stacked.init(x))
    for i in range(3):
        np.testing.assert_allclose(out[i], one.update(x[i], one.init(x[i]))[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("outputs", [3, 7])
def test_muon_as_optax(outputs):
    rng = np.random.default_rng(0)
    start, noise = jnp.asarray(rng.normal(size=(4, outputs))), jnp.asarray(rng.normal(size=(STEPS, 4, outputs)))

    def trained(tx):
        def one(carry, n):
            p, state = carry
            updates, state = tx.update(n + PULL * p, state, p)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(one, (start, tx.init(start)), noise)[0][0]

    ours, theirs = gx.muon(LR, nesterov=False), optax.contrib.muon(LR, nesterov=False, eps=0.0)
    np.testing.assert_allclose(jax.jit(lambda: trained(ours))(), jax.jit(lambda: trained(theirs))(), rtol=1e-9)


SEE_LEAVES = (
    *(gx.orthogonalize(), gx.scale_by_shape(), gx.scale_by_factored_rms(least=2), gx.scale_by_sm3(), gx.centralize()),
    *(gx.adaptive_clip(), gx.scale_by_kronecker_root(), gx.scale_by_eigenbasis_rms(), gx.add_noise()),
    *(gx.in_subspace(gx.sign()), gx.as_matrices(gx.sign(), (0, 1)), gx.scale_by_slice_rms()),
)


@pytest.mark.parametrize("rule", SEE_LEAVES, ids=lambda rule: rule.label)
def test_a_shard_is_no_matrix(rule):
    """On a mesh of one device, whose types say all the same that there might be more."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    spec = jax.sharding.PartitionSpec("d")
    run = jax.shard_map(lambda g: rule.update(g, rule.init(g), g)[0], mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(ValueError, match=r"needs whole leaves.*along 'd'.*all_gather"):
        jax.jit(run)(jnp.ones((2, 2)))


def test_a_shard_may_be_of_a_matrix_that_is_factored():
    """By the shapes that the whole may have: of (4, 2) over eight devices (32, 2) or (4, 16)."""
    mesh, spec = jax.sharding.AbstractMesh((8,), ("d",)), jax.sharding.PartitionSpec("d")

    def updated(least, spec=spec):
        rule = gx.scale_by_factored_rms(least=least)
        run = jax.shard_map(lambda g: rule.update(g, rule.init(g))[0], mesh=mesh, in_specs=spec, out_specs=spec)
        return jax.eval_shape(run, jax.ShapeDtypeStruct((32, 2), jnp.float32)).shape

    for least in (3, 4):
        with pytest.raises(ValueError, match="needs whole leaves"):
            updated(least)
    assert updated(5) == (32, 2) and updated(2, jax.sharding.PartitionSpec()) == (32, 2)


def test_muon_leaves_what_is_no_matrix_to_adamw():
    params = {
        "kernel": jnp.ones((2, 3)),
        "conv": jnp.ones((2, 2, 1, 3)),
        "bias": jnp.ones(3),
        "scan": jnp.ones((2, 3, 3)),
    }
    adamw = gx.adamw(3e-4, 0.9, 0.95)
    updates, _ = (tx := gx.muon(0.02)).update(params, tx.init(params), params)
    expected, _ = adamw.update(params, adamw.init(params), params)
    for name in ("bias", "scan"):
        np.testing.assert_array_equal(updates[name], expected[name])
    for name in ("kernel", "conv"):
        assert float(jnp.abs(updates[name] - expected[name]).min()) > 1e-4


# Averages of the parameters -------------------------------------------------------------------------------------------


def points(tx):
    """Parameters and evaluation points after each step."""

    def one(carry, noise):
        p, state = carry
        p, state = gx.step(tx, p, jax.tree.map(lambda n, p: n + PULL * p, noise, p), state)
        return (p, state), (p, gx.evaluation_point(state, p))

    p = start()
    return jax.jit(lambda: jax.lax.scan(one, (p, tx.init(p)), stream())[1])()


def test_average_of_all_iterates():
    held, average = points(gx.chain(gx.adam(LR), gx.average_iterates()))
    chex.assert_trees_all_close(held, run(gx.adam(LR)), rtol=1e-12)
    counts = np.arange(1, STEPS + 1)
    expected = jax.tree.map(lambda x: np.cumsum(x, 0) / counts.reshape(-1, *[1] * (x.ndim - 1)), held)
    chex.assert_trees_all_close(average, expected, rtol=1e-11)


def test_average_from_a_step_on():
    """As torch's ASGD: the iterate itself, and from t − start = 1 on the mean of all since then."""
    held, average = points(gx.asgd(LR, start=10))
    for k in held:
        np.testing.assert_allclose(average[k][:12], held[k][:12], rtol=1e-12)
        np.testing.assert_allclose(average[k][-1], np.mean(held[k][11:], axis=0), rtol=1e-12)


def test_exponential_average_of_iterates():
    held, average = points(gx.chain(gx.sgd(LR, 0.9), gx.average_iterates(0.1)))
    expected = {}
    for k, p in start().items():
        x, rows = np.asarray(p), []
        for row in np.asarray(held[k]):
            x = 0.9 * x + 0.1 * row
            rows.append(x)
        expected[k] = np.stack(rows)
    chex.assert_trees_all_close(average, expected, rtol=1e-11)


def test_momentum_sam():
    """As its paper has it: the gradient at w − ρv/‖v‖, over both leaves together, v the heavy ball."""
    tx = gx.chain(gx.sgd(LR, 0.9), gx.normalized_lookahead(lambda count: 0.2 + 0.01 * count))
    held, evaluated = points(tx)
    noise, w, v = stream(), {k: np.asarray(p) for k, p in start().items()}, dict.fromkeys(start(), 0.0)
    at, rows = w, {"held": [], "evaluated": []}
    for t in range(STEPS):
        v = {k: 0.9 * v[k] + noise[k][t] + PULL * at[k] for k in w}
        w = {k: w[k] - LR * v[k] for k in w}
        length = np.sqrt(sum(np.sum(x**2) for x in v.values()))
        at = {k: w[k] - (0.2 + 0.01 * t) * v[k] / length for k in w}
        rows["held"].append(at)
        rows["evaluated"].append(w)
    for found, name in ((held, "held"), (evaluated, "evaluated")):
        expected = {k: np.stack([row[k] for row in rows[name]]) for k in w}
        chex.assert_trees_all_close(found, expected, rtol=1e-11, atol=1e-13)


def test_schedule_free_evaluates_where_optax_does():
    warmup = optax.linear_schedule(0.0, 0.1, 10)
    tx = optax.contrib.schedule_free(optax.sgd(warmup), learning_rate=warmup, b1=0.9)

    def one(carry, noise):
        p, state = carry
        updates, state = tx.update(jax.tree.map(lambda n, p: n + PULL * p, noise, p), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), optax.contrib.schedule_free_eval_params(state, p)

    p = start()
    constant = gx.chain(gx.sgd(0.1), gx.average_iterates(pull=0.9, learning_rate=0.1))
    theirs = optax.contrib.schedule_free(optax.sgd(0.1), learning_rate=0.1, b1=0.9)
    tx = theirs
    expected = jax.jit(lambda: jax.lax.scan(one, (p, tx.init(p)), stream())[1])()
    chex.assert_trees_all_close(points(constant)[1], expected, rtol=1e-9, atol=1e-11)


def test_rectification_after_a_decay_that_fell():
    """An average older than its decay will ever make another is corrected by nothing: u/√v, here the sign."""

    def decay(count):
        return jnp.where(count < 20, 0.99, 0.5)

    tx = gx.chain(gx.rms(decay), gx.debias(), gx.rectified_precondition(decay, 0.0, threshold=4.0))
    g = jnp.array([3.0, -0.1])

    def one(state, _):
        updates, state = tx.update(g, state)
        return state, updates

    _, updates = jax.lax.scan(one, tx.init(g), length=30)
    np.testing.assert_allclose(updates[20], np.sign(g), rtol=1e-12)
    np.testing.assert_array_equal(updates[-1], g)
