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

SHAPES = {"a": (3,), "b": (2, 2)}
NUMBERS = {"x": (), "y": (1,), "z": (1, 1)}
VECTORS = {"a": (3,), "b": (4, 1)}
ROW = {"a": (1, 5)}

seeds = st.integers(0, 2**32 - 1)
exponents = st.integers(-6, 6)


def random(shapes, seed, *axes, zeros=0.2):
    """Normal numbers, some of them zero."""
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=(*axes, *shape)) * (rng.random((*axes, *shape)) >= zeros) for k, shape in shapes.items()}


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
        np.testing.assert_allclose(x, y, rtol=near, atol=near * max(1e-3, float(np.abs(y).max(initial=0))))


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
    ),
    "momentum and extrapolation are a quasi-hyperbolic momentum": (
        gx.chain(gx.momentum(0.9), gx.extrapolate(NU), RATE),
        gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(1 - NU * 0.1 / 0.9), RATE),
    ),
    "debiased, too": (
        gx.chain(gx.momentum(0.9), gx.extrapolate(NU), gx.debias(), RATE),
        gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(1 - NU * 0.1 / 0.9), gx.debias(), RATE),
    ),
    "torch's Nesterov momentum is quasi-hyperbolic with ν = β": (
        gx.chain(gx.trace(0.9, nesterov=True), gx.scale(0.1), RATE),
        gx.qhm(LR, 0.9, 0.9),
    ),
    "linear rules commute": (
        gx.chain(gx.extrapolate(NU), gx.momentum(0.9), RATE),
        gx.chain(gx.momentum(0.9), RATE, gx.extrapolate(NU)),
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
    ),
    "an average that starts at the first gradient has weight 1": (
        gx.chain(gx.rms(0.9, start="first"), gx.precondition(), RATE),
        gx.chain(gx.rms(0.9, start="first"), gx.debias(), gx.precondition(), RATE),
    ),
    "schedule-free with a constant rate is quasi-hyperbolic over momentum": (
        gx.chain(RATE, gx.average_iterates(0.1, pull=0.7)),
        gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(0.7), RATE),
    ),
    "Lookahead of one step is a smaller step": (
        gx.chain(gx.adam(LR), gx.lookahead(1, 0.3)),
        gx.chain(gx.adam(LR), gx.scale(0.3)),
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
    ),
    "a quasi-hyperbolic mixture in the gradient phase is the gradient": (
        gx.chain(gx.quasi_hyperbolic(0.3, 0.2), gx.adam(LR)),
        gx.adam(LR),
    ),
    "MARS with γ = 1−β and no clip is Nesterov's momentum": (
        gx.chain(gx.extrapolate(0.9), gx.momentum(0.9), RATE),
        gx.qhm(LR, 0.9, 0.9),
    ),
    "Grokfast is three times a quasi-hyperbolic average with ν = ⅔": (
        gx.chain(gx.add_momentum(0.98, 2.0), RATE),
        gx.chain(gx.momentum(0.98), gx.quasi_hyperbolic(2 / 3), gx.scale(3.0), RATE),
    ),
    "the gradient and its average together are twice one with ν = ½": (
        gx.chain(gx.add_momentum(0.95, 1.0), RATE),
        gx.chain(gx.momentum(0.95), gx.quasi_hyperbolic(0.5), gx.scale(2.0), RATE),
    ),
    "simplified AdEMAMix has a quasi-hyperbolic numerator": (
        gx.chain(gx.trace(0.9), gx.add_momentum(0.0, 5.0), RATE),
        gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(1 / 1.5), gx.scale(15.0), RATE),
    ),
    "QHM with ν = 1 is momentum": (gx.qhm(LR, 0.9, 1.0), gx.momentum_sgd(LR, 0.9)),
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
    ),
    "dual averaging that goes a share 1−μ of the way is momentum": (
        gx.chain(RATE, gx.running_sum(), gx.dual_averaging(), gx.scale(0.1)),
        gx.momentum_sgd(LR, 0.9),
    ),
    "FTRL without regularization is AdaGrad": (gx.ftrl_proximal(LR), gx.adagrad(LR, eps=0.0)),
    "Prodigy with a distance that stays is Adam at η·d": (
        gx.chain(gx.in_units_of_distance(gx.adam(1.0), initial=0.3, coefficient=0.0), gx.scale(0.1)),
        gx.adam(0.03),
    ),
    "Adam in other units has its ε in them": (
        gx.chain(gx.scale(0.3), gx.momentum(0.9), gx.rms(0.999), dilute(0.3), gx.precondition(1e-3), RATE),
        gx.chain(gx.momentum(0.9), gx.rms(0.999), gx.precondition(1e-3), RATE),
    ),
    "LARS does not know how large gradients are": (gx.lars(LR), gx.chain(gx.scale(8.0), gx.lars(LR))),
    "centralization commutes with momentum": (
        gx.chain(gx.centralize(), gx.momentum(0.9), RATE),
        gx.chain(gx.momentum(0.9), gx.centralize(), RATE),
    ),
    "DoWG's numerator is in units of its distance": (
        gx.chain(gx.scale_by_distance(0.1), gx.scale_by_gradient_norm(over="tree"), RATE),
        gx.chain(gx.scale(8.0), gx.scale_by_distance(0.1), gx.scale_by_gradient_norm(over="tree"), RATE),
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


def squashed(g):
    """Adam with equal betas is q/√(1+q²) with q = √β·AdaBelief."""
    q = jax.tree.map(lambda u: np.sqrt(0.9) * u, directions(gx.chain(gx.belief_rms(0.9, 0.9), PRE), g))
    adam = directions(gx.chain(MOMENTUM, gx.rms(0.9), PRE), g)
    assert max(np.abs(u).max() for u in adam.values()) <= 1 + 1e-12
    return adam, jax.tree.map(lambda q: q / np.sqrt(1 + q * q), q)


def mean_of_two(g):
    """Cautious, not rescaled, is the mean of the momentum and of its size with the gradient's signs."""
    m = directions(MOMENTUM, g)
    return directions(gx.chain(MOMENTUM, gx.cautious(1.0)), g), jax.tree.map(
        lambda m, g: (m + np.abs(m) * np.sign(g)) / 2, m, g
    )


def mean_of_signs(g):
    """Cautious Signum is the mean of the signs of momentum and gradient."""
    m = directions(MOMENTUM, g)
    return directions(gx.chain(MOMENTUM, gx.sign(), gx.cautious(1.0)), g), jax.tree.map(
        lambda m, g: (np.sign(m) + np.sign(g)) / 2, m, g
    )


def offset(g):
    """The exponential average of parameters is the parameters less β times a trace of their steps."""
    tx = gx.chain(RATE, gx.average_iterates(0.1))

    def ended(tx):
        zero = jax.tree.map(lambda g: jnp.zeros_like(g[0]), g)
        return jax.lax.scan(lambda state, g: (tx.update(g, state)[1], None), tx.init(zero), g)[0]

    behind = jax.jit(lambda: ended(tx))().slots["average_iterates"]["average_offset"]
    trace = directions(gx.chain(RATE, gx.trace(0.9)), g)
    return behind, jax.tree.map(lambda b: -0.9 * b[-1], trace)


def delayed(g):
    """SOAP of leaves without matrices is Adam with epsilon hat, one step later."""
    soap = directions(gx.soap(LR, 0.9, 0.95, 1e-3, largest=0), g)
    adam = gx.chain(MOMENTUM, gx.rms(0.95), gx.precondition(1e-3), gx.debias(), RATE)
    later = directions(adam, jax.tree.map(lambda x: x[1:], g))
    assert not any(np.any(u[0]) for u in soap.values())
    return jax.tree.map(lambda u: u[1:], soap), later


def schedule_free(g):
    """Schedule-free with c = 1/t steps by a mixture of gradient and M_t = g/t + (1 − 2/t)M_{t−1}."""
    found, expected = directions(gx.chain(RATE, gx.average_iterates(pull=0.9)), g), {}
    for k, rows in g.items():
        m, out = 0.0 * rows[0], []
        for t, row in enumerate(rows, 1):
            m = row / t + (1 - 2 / t) * m
            out.append(-LR * (0.1 * row + 0.9 * m))
        expected[k] = np.stack(out)
    return found, expected


def doubled(g):
    """Adding the average to itself is one that is twice as long, and debiased it is the same."""
    twice = gx.chain(MOMENTUM, gx.add_momentum(0.9, 1.0), gx.debias())
    return directions(twice, g), directions(gx.chain(MOMENTUM, gx.debias()), g)


LAWS = (squashed, mean_of_two, mean_of_signs, offset, delayed, schedule_free, doubled)


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
def test_fromage_keeps_the_length_of_weights_that_gradients_are_orthogonal_to(seed):
    """It is a turn by atan η."""
    rng = np.random.default_rng(seed)
    p, g = rng.normal(size=6), rng.normal(size=6)
    g = g - p * (p @ g) / (p @ p)
    tx = gx.fromage(0.3)
    after, _ = gx.step(tx, jnp.asarray(p), jnp.asarray(g), tx.init(jnp.asarray(p)))
    np.testing.assert_allclose(np.linalg.norm(after), np.linalg.norm(p), rtol=1e-12)
    np.testing.assert_allclose(p @ after / (p @ p), np.cos(np.arctan(0.3)), rtol=1e-12)
