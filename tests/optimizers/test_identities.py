"""Identities between optimizers of different papers, as laws: each is one rule exchanged for another, or moved.

Every line says what is the same, and gives two chains. Both go down a random slope, in float64, in one program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import gradtx as gx

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

STEPS = 24
LR, NU = 0.01, 0.6
RATE = gx.scale_by_learning_rate(LR)
PRE = gx.precondition(0.0)
UNIT = gx.chain(gx.clip_by_global_norm(1e-9), gx.scale(1e9))

SOPHIA = gx.precondition(1e-15, power=1, form="max")

SHAPES = {"a": (2, 3)}
LEAVES = {"a": (3,), "b": (2, 2)}  # for what looks at all of them, or at each
MIXED = {"complex128": (3,), "float32": (2, 2)}  # for what is linear, and what knows |g| alone
NUMBERS = {"x": (), "y": (1,), "z": (1, 1)}
VECTORS = {"a": (3,), "b": (4, 1)}
ROW = {"a": (1, 5)}

seeds = st.integers(0, 2**32 - 1)
exponents = st.integers(-6, 6)


def random(shapes, seed, *axes, zeros=0.2):
    """Normal numbers, some of them zero; of the dtype that a leaf is called by, else float64."""
    rng = np.random.default_rng(seed)

    def leaf(name, shape):
        x = rng.normal(size=shape) * (rng.random(shape) >= zeros)
        if name == "complex128":
            return x + 1j * rng.normal(size=shape)
        return x.astype(name if name in MIXED else float)

    return {name: leaf(name, (*axes, *shape)) for name, shape in shapes.items()}


def path(tx, start, noise):
    """The parameters after each step; the gradient is the noise, and a pull to the origin."""

    def one(carry, noise):
        p, state = carry
        updates, state = tx.update(jax.tree.map(lambda n, p: n + 0.1 * p, noise, p), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    return jax.lax.scan(one, (start, tx.init(start)), noise)[1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def both(left, right, start, noise):
    return path(left, start, noise), path(right, start, noise)


@functools.partial(jax.jit, static_argnums=0)
def directions(tx, gradients):
    """The update of a chain for each gradient, the parameters being 1."""
    one = jax.tree.map(lambda g: jnp.ones_like(g[0]), gradients)
    return jax.lax.scan(lambda state, g: tx.update(g, state, one)[::-1], tx.init(one), gradients)[1]


def same(left, right, near=1e-9):
    """Equal but for what twenty steps make of a rounding."""
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        close = near if x.dtype != np.float32 else 3e-5
        np.testing.assert_allclose(x, y, rtol=close, atol=close * max(1e-3, float(np.abs(y).max(initial=0))))


class dilute(gx.Rule):
    """Both lanes in other units: u ← u/d, v ← v/d²."""

    second_moment = "edits"
    equation = r"u \leftarrow u / d, \quad v \leftarrow v / d^2"

    d: gx.Hyper = gx.hyper(default=1.0)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction / c.d, second_moment=signal.second_moment / c.d**2), {}


def polynomial(x):
    """The singular value that orthogonalization makes of another."""
    for a, b, c in gx.orthogonalize().coefficients:
        x = a * x + b * x**3 + c * x**5
    return x


ORTHOGONAL = polynomial(1.0)


def remembered(count):
    """The decay that an average has which is debiased in each step."""
    t = jnp.asarray(count, float) + 1
    return 0.9 * (1 - 0.9 ** (t - 1)) / (1 - 0.9**t)


IDENTITIES = {
    "Lion with equal betas is Signum": (gx.lion(LR, 0.9, 0.9), gx.signum(LR, 0.9)),
    "MARS's first moment without the clip is QHM with ν = 1−γ": (
        gx.chain(gx.seal(gx.extrapolate(0.4 * 0.9 / 0.1)), gx.momentum(0.9), RATE),
        gx.qhm(LR, 0.9, 0.6),
        MIXED,
    ),
    "MARS of Lion is Lion with b1 = (1−γ)·b2": (
        gx.chain(gx.extrapolate(0.4 * 0.9 / 0.1), gx.momentum(0.9), gx.sign(), RATE),
        gx.lion(LR, 0.6 * 0.9, 0.9),
    ),
    "momentum and extrapolation are a quasi-hyperbolic momentum": (
        gx.chain(gx.momentum(0.9), gx.extrapolate(NU), RATE),
        gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(1 - NU * 0.1 / 0.9), RATE),
        MIXED,
    ),
    "debiased, too": (
        gx.chain(gx.momentum(0.9), gx.extrapolate(NU), gx.debias(), RATE),
        gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(1 - NU * 0.1 / 0.9), gx.debias(), RATE),
        MIXED,
    ),
    "torch's Nesterov momentum is quasi-hyperbolic with ν = β": (
        gx.chain(gx.trace(0.9, nesterov=True), gx.scale(0.1), RATE),
        gx.qhm(LR, 0.9, 0.9),
        MIXED,
    ),
    "the article's Nesterov momentum is quasi-hyperbolic with ν = (2β−1)/β": (
        gx.nag(LR, 0.9),
        gx.qhm(LR, 0.9, 0.8 / 0.9),
        MIXED,
    ),
    "MSAM is Nesterov's lookahead of steps that have one length": (
        gx.chain(gx.momentum(0.9), UNIT, RATE, gx.normalized_lookahead(0.3)),
        gx.chain(gx.momentum(0.9), UNIT, RATE, gx.nag_lookahead(0.3 / LR)),
        LEAVES,
    ),
    "linear rules commute": (
        gx.chain(gx.extrapolate(NU), gx.momentum(0.9), RATE),
        gx.chain(gx.momentum(0.9), RATE, gx.extrapolate(NU)),
        MIXED,
    ),
    "Adan with b1 = b2 is Adam on the extrapolated gradient": (
        gx.adan(LR, 0.9, 0.9, 0.99),
        gx.chain(
            gx.extrapolate(0.9, first="same"), gx.momentum(0.9), gx.rms(0.99), gx.debias(), gx.precondition(), RATE
        ),
    ),
    "AdaBelief's s with equal betas is β times the variance": (
        gx.chain(gx.momentum(0.9), gx.centered_rms(0.9), gx.precondition(0.0), gx.scale(0.9**-0.5), RATE),
        gx.chain(gx.belief_rms(0.9, 0.9), gx.precondition(0.0), RATE),
        MIXED,
    ),
    "ACProp's s is AdaBelief's over b1²": (
        gx.chain(gx.momentum(0.8), gx.belief_rms(0.8, 0.9, lagged=True), gx.precondition(0.0), RATE),
        gx.chain(gx.belief_rms(0.8, 0.9), gx.precondition(0.0), gx.scale(0.8), RATE),
    ),
    "Adamax is AMSGrad's maximum with forgetting": (
        gx.adamax(LR, 0.9, 0.9),
        gx.chain(gx.momentum(0.9), gx.rms(0.0), gx.max_v(0.81), gx.debias(), gx.precondition(0.0), RATE),
    ),
    "AdaGrad is RMS with β = 1−1/t": (
        gx.chain(gx.adagrad_sum(), gx.debias(), gx.precondition(), RATE),
        gx.chain(gx.rms(lambda count: count / (count + 1.0)), gx.precondition(), RATE),
        MIXED,
    ),
    "Adafactor's v, not factored and with p = 1, is AdaGrad's over t": (
        gx.chain(gx.scale_by_factored_rms(1.0, least=9), RATE),
        gx.chain(gx.adagrad_sum(), gx.debias(), PRE, RATE),
        MIXED,
    ),
    "an average that starts at the first gradient has weight 1": (
        gx.chain(gx.rms(0.9, start="first"), gx.precondition(), RATE),
        gx.chain(gx.rms(0.9, start="first"), gx.debias(), gx.precondition(), RATE),
    ),
    "schedule-free with a constant rate is quasi-hyperbolic over momentum": (
        gx.chain(RATE, gx.average_iterates(0.1, pull=0.7)),
        gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(0.7), RATE),
        MIXED,
    ),
    "Lookahead of one step is a smaller step": (
        gx.chain(gx.adam(LR), gx.lookahead(1, 0.3)),
        gx.chain(gx.adam(LR), gx.scale(0.3)),
        MIXED,
    ),
    "QHAdam with both shares 1 is Adam": (gx.qhadam(LR, 0.9, 0.999, 1.0, 1.0), gx.adam(LR)),
    "AdEMAMix without its slow average is AdamW": (
        gx.ademamix(LR, alpha=0.0, weight_decay=0.1),
        gx.adamw(LR, weight_decay=0.1),
    ),
    "the maximum that never forgets is AMSGrad's": (
        gx.amsgrad(LR),
        gx.chain(gx.momentum(0.9), gx.rms(0.999), gx.max_v(1.0), gx.debias(), gx.precondition(), RATE),
    ),
    "cautious without momentum is the identity": (gx.chain(gx.cautious(), gx.sgd(LR)), gx.sgd(LR)),
    "AggMo is a sum of momenta": (
        gx.chain(gx.momentum(0.5), gx.add_momentum(0.5, 2.0), RATE),
        gx.momentum_sgd(3 * LR, 0.5),
        MIXED,
    ),
    "a quasi-hyperbolic mixture in the gradient phase is the gradient": (
        gx.chain(gx.quasi_hyperbolic(0.3, 0.2), gx.adam(LR)),
        gx.adam(LR),
        MIXED,
    ),
    "MARS with γ = 1−β and no clip is Nesterov's momentum": (
        gx.chain(gx.extrapolate(0.9), gx.momentum(0.9), RATE),
        gx.qhm(LR, 0.9, 0.9),
        MIXED,
    ),
    "Grokfast is three times a quasi-hyperbolic average with ν = ⅔": (
        gx.chain(gx.add_momentum(0.98, 2.0), RATE),
        gx.chain(gx.momentum(0.98), gx.quasi_hyperbolic(2 / 3), gx.scale(3.0), RATE),
        MIXED,
    ),
    "the gradient and its average together are twice one with ν = ½": (
        gx.chain(gx.add_momentum(0.95, 1.0), RATE),
        gx.chain(gx.momentum(0.95), gx.quasi_hyperbolic(0.5), gx.scale(2.0), RATE),
        MIXED,
    ),
    "simplified AdEMAMix has a quasi-hyperbolic numerator": (
        gx.chain(gx.trace(0.9), gx.add_momentum(0.0, 5.0), RATE),
        gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(1 / 1.5), gx.scale(15.0), RATE),
        MIXED,
    ),
    "QHM with ν = 1 is momentum": (gx.qhm(LR, 0.9, 1.0), gx.momentum_sgd(LR, 0.9), MIXED),
    "RMSProp without memory is signSGD": (
        gx.chain(gx.rms(0.0), PRE, RATE),
        gx.chain(gx.sign(), RATE),
    ),
    "a debiased average is one with a decay that grows, and weight 1": (
        gx.chain(gx.rms(0.9), gx.debias(), PRE, RATE),
        gx.chain(gx.rms(remembered), PRE, RATE),
    ),
    "Lookahead that goes all of the way is none": (gx.chain(gx.adam(LR), gx.lookahead(5, 1.0)), gx.adam(LR)),
    "dual averaging of plain sums is gradient descent": (
        gx.chain(RATE, gx.running_sum(), gx.dual_averaging()),
        gx.sgd(LR),
        MIXED,
    ),
    "dual averaging that goes a share 1−μ of the way is momentum": (
        gx.chain(RATE, gx.running_sum(), gx.dual_averaging(), gx.scale(0.1)),
        gx.momentum_sgd(LR, 0.9),
        MIXED,
    ),
    "FTRL without regularization is AdaGrad": (gx.ftrl_proximal(LR), gx.adagrad(LR, eps=0.0)),
    "Prodigy with a distance that stays is Adam at η·d": (
        gx.chain(gx.in_units_of_distance(gx.adam(1.0), initial=0.3, coefficient=0.0), gx.scale(0.1)),
        gx.adam(0.03),
        LEAVES,
    ),
    "Adam in other units has its ε in them": (
        gx.chain(gx.scale(0.3), gx.momentum(0.9), gx.rms(0.999), dilute(0.3), gx.precondition(1e-3), RATE),
        gx.chain(gx.momentum(0.9), gx.rms(0.999), gx.precondition(1e-3), RATE),
    ),
    "LARS does not know how large gradients are": (gx.lars(LR), gx.chain(gx.scale(8.0), gx.lars(LR)), LEAVES),
    "centralization commutes with momentum": (
        gx.chain(gx.centralize(), gx.momentum(0.9), RATE),
        gx.chain(gx.momentum(0.9), gx.centralize(), RATE),
        MIXED,
    ),
    "DoWG has its distance before and behind the norm": (
        gx.chain(gx.scale_by_distance(0.1, tx=gx.scale_by_gradient_norm(over="tree")), RATE),
        gx.chain(gx.scale_by_distance(0.1), gx.scale_by_gradient_norm(over="tree"), gx.scale_by_distance(0.1), RATE),
        LEAVES,
    ),
    "DoWG's numerator is in units of its distance": (
        gx.chain(gx.scale_by_distance(0.1), gx.scale_by_gradient_norm(over="tree"), RATE),
        gx.chain(gx.scale(8.0), gx.scale_by_distance(0.1), gx.scale_by_gradient_norm(over="tree"), RATE),
        LEAVES,
    ),
    "of numbers, NovoGrad's divisor is RMSProp's that starts at the first": (
        gx.chain(gx.scale_by_gradient_norm(0.9), RATE),
        gx.chain(gx.rms(0.9, start="first"), PRE, RATE),
        NUMBERS,
    ),
    "of numbers, AdaGrad-Norm is AdaGrad": (
        gx.chain(gx.scale_by_gradient_norm(), RATE),
        gx.adagrad(LR, eps=0.0),
        NUMBERS,
    ),
    "where there is no curvature, Sophia is Signum": (
        gx.chain(gx.momentum(0.9), gx.centered_rms(0.0), SOPHIA, gx.clip_by_value(1.0), RATE),
        gx.signum(LR, 0.9),
    ),
    "Lion with b1 = 0 is signSGD": (gx.lion(LR, 0.0, 0.9), gx.chain(gx.sign(), RATE)),
    "what is linear does not see the basis that it is in": (
        gx.chain(gx.in_subspace(gx.momentum(0.9)), RATE),
        gx.momentum_sgd(LR, 0.9),
    ),
    "of a row, GaLore is Adam": (gx.galore(LR, factor=1.0, every=5), gx.adam(LR), ROW),
    "of numbers, Muon is Signum": (
        gx.chain(gx.momentum(0.9), gx.orthogonalize(), RATE),
        gx.chain(gx.momentum(0.9), gx.sign(), gx.scale(ORTHOGONAL), RATE),
        {"z": (1, 1)},
    ),
    "of numbers, LAMB is steps by signs, as long as the weight": (
        gx.chain(gx.momentum(0.9), gx.scale_by_trust_ratio(), RATE),
        gx.chain(gx.momentum(0.9), gx.sign(), gx.scale_by_trust_ratio(), RATE),
        NUMBERS,
    ),
    "of a row, Adam-mini is Adam": (
        gx.chain(gx.momentum(0.9), gx.debias(), gx.scale_by_slice_rms(), RATE),
        gx.adam(LR),
        ROW,
    ),
    "of vectors, SM3 is AdaGrad": (gx.chain(gx.scale_by_sm3(0.0), RATE), gx.adagrad(LR, eps=0.0), VECTORS),
    "of vectors, Shampoo is AdaGrad": (
        gx.chain(gx.scale_by_kronecker_root(eps=0.0), RATE),
        gx.adagrad(LR, eps=0.0),
        {"a": (3,)},
    ),
    "of a row, the factored second moment is the whole one": (
        gx.chain(gx.scale_by_factored_rms(least=1), RATE),
        gx.chain(gx.scale_by_factored_rms(least=9), RATE),
        ROW,
    ),
    "of a row, Muon is momentum of one length": (
        gx.chain(gx.momentum(0.9), gx.orthogonalize(), RATE),
        gx.chain(gx.momentum(0.9), gx.clip_by_norm(1e-9), gx.scale(ORTHOGONAL * 1e9), RATE),
        ROW,
    ),
}


@settings(max_examples=4)
@given(seed=seeds, exponent=exponents)
@pytest.mark.parametrize("name", IDENTITIES)
def test_identity(name, seed, exponent):
    left, right, *shapes = IDENTITIES[name]
    shapes = shapes[0] if shapes else SHAPES
    noise = jax.tree.map(lambda x: 2.0**exponent * x, random(shapes, seed, STEPS))
    same(*both(left, right, random(shapes, seed + 1, zeros=0.0), noise))


MOMENTUM = gx.momentum(0.9)


def averages(x, decay=0.9):
    """The exponential average, from zero on, in each step: a sum of all of before, by their age."""
    age = np.arange(len(x))[:, None] - np.arange(len(x))
    return np.tensordot(np.where(age < 0, 0, (1 - decay) * decay ** abs(age)), x, 1)


def before(x):
    return np.concatenate([0 * x[:1], x[:-1]])


def weights(x, decay=0.9):
    return np.reshape(1 - decay ** np.arange(1.0, len(x) + 1), (-1, *[1] * (x.ndim - 1)))


def each(function, *trees):
    """A function of all steps of a leaf, for each leaf."""
    return {name: function(*(np.asarray(tree[name]) for tree in trees)) for name in trees[0]}


def squashed(g):
    """Adam with equal betas is q/√(1+q²) with q = √β·AdaBelief, and below 1; debiased, that times √(1−βᵗ) either."""
    adam, belief = gx.chain(MOMENTUM, gx.rms(0.9)), gx.belief_rms(0.9, 0.9)
    u, q = directions(gx.chain(adam, PRE), g), directions(gx.chain(belief, gx.scale(0.9**0.5), PRE), g)
    debiased = directions(gx.chain(adam, gx.debias(), PRE), g), directions(gx.chain(belief, gx.debias(), PRE), g)
    assert max(np.abs(u).max() for u in u.values()) <= 1 + 1e-12
    expected = each(lambda q: q / np.sqrt(1 + q * q), q)
    again = [each(lambda x: x * np.sqrt(weights(x)), x) for x in debiased]
    return [u, *again], [expected, expected, each(lambda q: q / np.sqrt(0.9), q)]


def mean_of_two(g):
    """Cautious, not rescaled, is the mean of the momentum and of Grams, its size with the gradient's signs."""
    m, grams = (directions(tx, g) for tx in (MOMENTUM, gx.chain(MOMENTUM, gx.cautious(1.0, -1.0))))
    half = directions(gx.chain(MOMENTUM, gx.cautious(1.0)), g)
    return [grams, half], [each(lambda m, g: abs(m) * np.sign(g), m, g), each(lambda m, n: (m + n) / 2, m, grams)]


def mean_of_signs(g):
    """Cautious Signum is the mean of the signs of momentum and gradient."""
    m = directions(MOMENTUM, g)
    return directions(gx.chain(MOMENTUM, gx.sign(), gx.cautious(1.0)), g), jax.tree.map(
        lambda m, g: (np.sign(m) + np.sign(g)) / 2, m, g
    )


def offset(g):
    """An exponential average of parameters is them less β times a trace of their steps; the plain one is their mean."""

    def ended(tx):
        zero = jax.tree.map(lambda g: jnp.zeros_like(g[0]), g)
        return jax.lax.scan(lambda state, g: (tx.update(g, state)[1], None), tx.init(zero), g)[0]

    def behind(average):
        return jax.jit(lambda: ended(gx.chain(RATE, average)))().slots["average_iterates"]["average_offset"]

    trace = directions(gx.chain(RATE, gx.trace(0.9)), g)
    way = each(lambda g: -LR * np.cumsum(g, 0), g)
    mean = each(lambda way: way.mean(0) - way[-1], way)
    return [behind(gx.average_iterates(rate)) for rate in (0.1, None)], [each(lambda b: -0.9 * b[-1], trace), mean]


def delayed(g):
    """SOAP of leaves without matrices is Adam with epsilon hat, one step later."""
    soap = directions(gx.soap(LR, 0.9, 0.95, 1e-3, largest=0), g)
    adam = gx.chain(MOMENTUM, gx.rms(0.95), gx.precondition(1e-3), gx.debias(), RATE)
    later = directions(adam, jax.tree.map(lambda x: x[1:], g))
    assert not any(np.any(u[0]) for u in soap.values())
    return jax.tree.map(lambda u: u[1:], soap), later


def schedule_free(g):
    """Schedule-free with c = 1/t steps by a mixture of the gradient and M = g/t + (1 − 2/t)M₋, which weighs a half."""

    def expected(rows):
        m, out = 0.0 * rows[0], []
        for t, row in enumerate(rows, 1):
            m = row / t + (1 - 2 / t) * m
            out.append(-LR * (0.1 * row + 0.9 * m))
        return np.stack(out)

    tx, steady = gx.chain(RATE, gx.average_iterates(pull=0.9)), each(lambda g: 0 * g + g[:1], g)
    shares = np.array([1.0] + [1 - 0.9 / 2] * (STEPS - 1))
    shorter = each(lambda g: -LR * g * shares.reshape(-1, *[1] * (g.ndim - 1)), steady)
    return [directions(tx, g), directions(tx, steady)], [each(expected, g), shorter]


def doubled(g):
    """Adding the average to itself is one that is twice as long, and debiased it is the same."""
    twice = gx.chain(MOMENTUM, gx.add_momentum(0.9, 1.0), gx.debias())
    return directions(twice, g), directions(gx.chain(MOMENTUM, gx.debias()), g)


def between(g):
    """Muon's momentum is Lion's mixture β₁m₋ + (1−β₁)g with β₁ = β²."""
    found = directions(gx.chain(MOMENTUM, gx.quasi_hyperbolic(0.9)), g)
    return found, each(lambda g: 0.81 * before(averages(g)) + 0.19 * g, g)


def branch(g):
    """Adan's third average is a momentum with a negative factor, w of it and of the gradient, but for the first one."""
    decay, factor = 0.9, 0.5
    w = factor * (1 - decay) / decay
    adan = directions(gx.chain(gx.momentum(0.8), gx.add_difference(decay, factor)), g)
    momenta = directions(gx.chain(gx.momentum(0.8), gx.add_momentum(decay, -w), gx.add_momentum(0.0, w)), g)

    def expected(u, g):
        m, weight = averages(g, 0.8), weights(g, decay)
        return m + (u - m - w * (1 - weight) * g[:1]) / weight

    return adan, each(expected, momenta, g)


def corrected(g):
    """MARS is QHM over a root that has seen the corrected gradient: QHAdam's has seen it as it came."""
    found = directions(gx.chain(gx.extrapolate(0.4 * 0.9 / 0.1), MOMENTUM, gx.rms(0.99), PRE), g)

    def expected(g):
        c = g + 3.6 * (g - before(g))
        return (0.6 * averages(g) + 0.4 * g) / np.sqrt(averages(c * c, 0.99))

    return found, each(expected, g)


def late(g):
    """ADOPT and ACProp divide by the root of the step before, which has not seen the gradient."""
    found = directions(gx.chain(gx.rms(0.9), gx.lag_v(), PRE), g)
    return found, each(lambda g: before(1 / np.sqrt(averages(g * g))) * g, g)


def stable(g):
    """StableAdamW's clip of what the second moment has not seen is, without momentum, one of the direction."""
    rms = gx.chain(gx.rms(0.9), gx.debias())
    found = directions(gx.chain(MOMENTUM, rms, gx.clip_by_gradient_rms(0.8), PRE), g)
    of_direction = directions(gx.chain(rms, PRE, gx.clip_by_rms(0.8)), g)

    def expected(u, g):
        v = averages(g * g) / weights(g)
        share = np.sqrt((g * g / v).mean(tuple(range(1, g.ndim)), keepdims=True))
        return u / np.sqrt(v) / np.maximum(1, share / 0.8)

    return [found, of_direction], [each(lambda g: expected(averages(g) / weights(g), g), g), each(expected, g, g)]


def angle(g):
    """Adam-atan2 is the arcus tangent of Adam without ε."""
    found = directions(gx.chain(MOMENTUM, gx.rms(0.9), PRE, gx.arctan()), g)
    return found, each(lambda g: 1.27 * np.arctan2(averages(g), np.sqrt(averages(g * g))), g)


def one_late(g):
    """optax's Rprop takes the step of before, and none where the sign turns."""
    steps = directions(gx.rprop(LR), g)
    return directions(optax.rprop(LR), g), each(lambda u: before(u) * (u != 0), steps)


LAWS = (
    *(squashed, mean_of_two, mean_of_signs, offset, delayed, schedule_free, doubled),
    *(between, branch, corrected, late, stable, angle, one_late),
)


@settings(max_examples=4)
@given(seed=seeds, exponent=exponents)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, seed, exponent):
    left, right = law(jax.tree.map(lambda x: 2.0**exponent * x, random(SHAPES, seed, STEPS, zeros=0.0)))
    same(left, right, 1e-8)


def first(tx, x):
    return np.asarray(tx.update(x, tx.init(x))[0])


@settings(max_examples=4)
@given(seed=seeds)
def test_one_step_of_shampoo_is_the_nearest_orthogonal_matrix(seed):
    """L^(−¼) G R^(−¼) = UVᵀ: where Muon goes at once, whatever its iterations make of it."""
    g = np.random.default_rng(seed).normal(size=(4, 3))
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    same(first(gx.scale_by_kronecker_root(eps=0.0), jnp.asarray(g)), u @ vt, 1e-7)


@settings(max_examples=4)
@given(seed=seeds)
def test_orthogonalization_commutes_with_turns(seed):
    """Muon does not know which elements a matrix has, but only its singular values."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 3))
    a, b = np.linalg.qr(rng.normal(size=(4, 4)))[0], np.linalg.qr(rng.normal(size=(3, 3)))[0]
    tx = gx.orthogonalize()
    same(first(tx, jnp.asarray(a @ x @ b)), a @ first(tx, jnp.asarray(x)) @ b)
    values = np.eye(4, 3) * rng.normal(size=3)
    same(first(tx, jnp.asarray(values)), polynomial(values / np.linalg.norm(values)))  # so of a diagonal it is the sign


@settings(max_examples=4)
@given(seed=seeds)
def test_sm3_divides_by_no_less_than_adagrad(seed):
    """The least of what rows and columns remember is at least what the element has seen."""
    g = random({"a": (3, 4)}, seed, STEPS)
    sm3, adagrad = (directions(tx, g)["a"] for tx in (gx.scale_by_sm3(0.0), gx.chain(gx.adagrad_sum(), PRE)))
    assert np.all(np.abs(sm3) <= np.abs(adagrad) * (1 + 1e-12))


@settings(max_examples=4)
@given(seed=seeds)
def test_factored_squares_of_rank_one_are_exact(seed):
    """Adafactor loses nothing of a gradient that is a product of a row and a column: its direction is the sign."""
    rng = np.random.default_rng(seed)
    g = np.outer(rng.normal(size=4), rng.normal(size=5))
    same(first(gx.scale_by_factored_rms(least=1), jnp.asarray(g)), np.sign(g))


@settings(max_examples=4)
@given(seed=seeds)
def test_fromage_is_a_turn_where_gradients_are_orthogonal_to_weights(seed):
    """By atan η; and there it is what sets the length anew after a step of η‖p‖, as HyperBall does."""
    rng = np.random.default_rng(seed)
    p, g = rng.normal(size=6), rng.normal(size=6)
    tx = gx.chain(gx.project_out(), gx.fromage(0.3))
    after, _ = gx.step(tx, jnp.asarray(p), jnp.asarray(g), tx.init(jnp.asarray(p)))
    g = g - p * (p @ g) / (p @ p)
    longer = p - 0.3 * np.linalg.norm(p) * g / np.linalg.norm(g)
    same(after, longer * np.linalg.norm(p) / np.linalg.norm(longer), 1e-12)
    np.testing.assert_allclose(np.linalg.norm(after), np.linalg.norm(p), rtol=1e-12)
    np.testing.assert_allclose(p @ after / (p @ p), np.cos(np.arctan(0.3)), rtol=1e-12)


@settings(max_examples=4)
@given(seed=seeds)
def test_adafactor_in_the_basis_of_shampoo_is_shampoo(seed):
    """There the direction is tr(L)^½ L^(−½) G R^(−½), of averages L and R: SOAP with a factored v is Shampoo."""
    g = np.random.default_rng(seed).normal(size=(STEPS, 4, 3))
    outer = np.einsum("tij,tkj->ik", g, g) / STEPS, np.einsum("tji,tjk->ik", g, g) / STEPS
    (left, p), (right, q) = map(np.linalg.eigh, outer)
    turned = directions(gx.scale_by_factored_rms(1.0, least=1), {"a": p.T @ g @ q})["a"][-1]
    expected = left.sum() ** 0.5 * (p * left**-0.5) @ p.T @ g[-1] @ (q * right**-0.5) @ q.T
    same(p @ turned @ q.T, expected)


@settings(max_examples=4)
@given(seed=seeds)
def test_ftrl_that_starts_with_squares_takes_a_part_of_the_weights_away(seed):
    """From weights of 0 it is AdaGrad with those squares at the start; from others it loses √(s₀/(s₀+g₁²)) of them."""
    tx, adagrad = gx.ftrl_proximal(LR, initial=0.1), gx.adagrad(LR, 0.1, 0.0)
    p, noise = random(SHAPES, seed, zeros=0.0), random(SHAPES, seed + 1, STEPS)
    same(*both(tx, adagrad, each(np.zeros_like, p), noise))
    first_step = each(lambda n, p: n[0] + 0.1 * p, noise, p)
    lost = each(lambda g, p: p * np.sqrt(0.1 / (0.1 + g * g)), first_step, p)
    found, expected = both(tx, adagrad, p, noise)
    same(each(lambda x: x[0], found), each(lambda x, lost: x[0] - lost, expected, lost))


@jax.jit
@jax.vmap
def gradients_averaged(decays):
    """ρ of an average with these decays, after each step."""
    tx = gx.chain(gx.rms(), gx.rectified_precondition(lambda count: decays[count]))

    def one(state, _):
        state = tx.update(jnp.ones(1), state)[1]
        slots = state.slots["rectified_precondition"]
        return state, 1 + 2 * slots["age"] / slots["weight"]

    return jax.lax.scan(one, tx.init(jnp.ones(1)), None, len(decays))[1]


@settings(max_examples=4)
@given(decay=st.floats(0.5, 0.999))
def test_rectification_counts_the_gradients_that_a_second_moment_averages(decay):
    """ρ is 1 + 2·(their mean age): RAdam's for a constant β, t itself where all count alike, less in Adafactor."""
    t = np.arange(1.0, 201)
    radam, adagrad, adafactor = map(
        np.asarray, gradients_averaged(jnp.stack([jnp.full(200, decay), 1 - 1 / t, 1 - t**-0.8]))
    )
    most = (1 + decay) / (1 - decay)
    np.testing.assert_allclose(radam, most - 2 * t * decay**t / (1 - decay**t), rtol=1e-8)
    np.testing.assert_allclose(adagrad, t, rtol=1e-9)
    np.testing.assert_allclose(adafactor[[9, 99, 199]], [7.87, 58.96, 106.6], rtol=1e-3)
