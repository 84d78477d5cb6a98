"""The laws of the algebra, over random trees, dtypes, gradients and chains.

Bits are compared where one program runs with several arguments; two programs are held to a rounding (``rounding.py``).
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, strategies as st
from rounding import assert_same

import gradtx as gx

LR = gx.scale_by_learning_rate(0.1)
SHAPES = [(), (1,), (3,), (2, 2), (0,)]
DTYPES = ["float32", "bfloat16", "float16"]

seeds = st.integers(0, 2**32 - 1)
decays = st.sampled_from([0.0, 0.5, 0.9, 0.999])
leaves = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=4,
)


def is_spec(x):
    return isinstance(x, tuple)


def filled(spec, seed, scale=1.0):
    """Random numbers, some of them zero, for a tree of (shape, dtype)."""
    rng = np.random.default_rng(seed)

    def leaf(shape_and_dtype):
        shape, dtype = shape_and_dtype
        return jnp.asarray(scale * rng.normal(size=shape) * (rng.random(size=shape) > 0.2), dtype)

    return jax.tree.map(leaf, spec, is_leaf=is_spec)


def vector(seed, n=6):
    return filled(((n,), "float32"), seed)


@functools.partial(jax.jit, static_argnums=0)
def run(tx, grads, params=None, state=None):
    """All updates, and the last state, for gradients stacked along the first axis."""
    params = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads) if params is None else params
    steps = {g.shape[0] for g in jax.tree.leaves(grads)}

    def one(state, g):
        updates, state = tx.update(g, state, params)
        return state, updates

    state = tx.init(params) if state is None else state
    state, updates = jax.lax.scan(one, state, grads, length=max(steps, default=0))
    return updates, state


def stack(seed, steps=8, n=6):
    return filled(((steps, n), "float32"), seed)


def made(rule, *arguments):
    return st.tuples(*arguments).map(lambda drawn: rule(*drawn))


def elementary(draw_decay=decays):
    """Rules that may stand anywhere in a chain."""
    return st.one_of(
        made(gx.momentum, draw_decay),
        made(gx.trace, draw_decay, st.booleans()),
        made(gx.damped_trace, draw_decay, st.sampled_from([0.0, 0.5, 1.0])),
        made(gx.nesterov, draw_decay, st.sampled_from([None, 0.0, 0.004, 1.0])),
        st.just(gx.debias()),
        made(gx.scale, st.sampled_from([-1.0, 0.5, 3.0])),
        st.just(gx.sign()),
        st.just(LR),
        made(gx.scale_by_inverse_time, st.sampled_from([0.0, 0.5])),
        made(gx.add_decayed_weights, st.sampled_from([0.0, 0.1])),
        made(gx.decay_weights, st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.1])),
        made(gx.clip_by_value, st.sampled_from([0.0, 0.1, 10.0])),
        made(gx.clip_by_norm, st.sampled_from([0.1, 10.0])),
        made(gx.clip_by_global_norm, st.sampled_from([0.1, 10.0])),
    )


@st.composite
def blocks(draw):
    """A second moment with whatever may stand between making and using it."""
    maker = draw(
        st.one_of(
            made(gx.rms, decays),
            made(gx.monotone_rms, decays),
            made(gx.centered_rms, decays),
            made(gx.adagrad_sum, st.sampled_from([0.0, 0.1])),
        )
    )
    between = draw(st.lists(st.one_of(elementary(), st.just(gx.max_v())), max_size=3))
    return [maker, *between, gx.precondition(draw(st.sampled_from([0.0, 1e-8, 0.1])))]


@st.composite
def chains(draw):
    """Any order of any rules that init accepts."""
    parts = draw(st.lists(st.one_of(elementary().map(lambda rule: [rule]), blocks()), max_size=4))
    end = [gx.nag_lookahead(draw(st.sampled_from([0.0, 0.9, 1.0])))] if draw(st.booleans()) else []
    flat = [rule for part in parts for rule in part] + end
    cut = draw(st.integers(0, len(flat)))
    return gx.chain(gx.chain(*flat[:cut]), gx.chain(*flat[cut:]))


# --- chains -------------------------------------------------------------------------------------------------------


@given(st.lists(elementary(), max_size=3), st.lists(elementary(), max_size=3), st.lists(elementary(), max_size=3))
def test_chains_are_flat(a, b, c):
    a, b, c = gx.chain(*a), gx.chain(*b), gx.chain(*c)
    assert gx.chain(a, gx.chain(b, c)) == gx.chain(gx.chain(a, b), c) == gx.chain(a, b, c)
    assert gx.chain(gx.chain(), a) == gx.chain(a, gx.chain()) == a
    assert gx.chain(a, b, c).names == gx.chain(a, gx.chain(b, c)).names


@given(chains(), trees, seeds)
def test_any_chain_on_any_tree(tx, spec, seed):
    """Finite from finite, the same types in and out, repr rebuilds it, and a scan is the loop."""
    assert eval(repr(tx), dict(vars(gx))) == tx
    grads = filled(spec, seed)
    state = tx.init(grads)
    update = jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(grads, state, grads)
    chex.assert_tree_all_finite((updates, state))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
    stacked = jax.tree.map(lambda g: jnp.stack([g] * 3), grads)
    scanned, scanned_state = run(tx, stacked, grads)
    if not jax.tree.leaves(spec, is_leaf=is_spec) or any(isinstance(rule, gx.sign) for rule in tx.rules):
        return  # nothing to compare; or a sign, which turns rounding at zero into a difference of 2
    last = jax.tree.map(lambda u: u[-1], scanned)
    wide = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float32))
    # XLA contracts multiply and add differently in a loop body; half-precision leaves round that to an ulp of theirs.
    rtol = 2e-2 if "16" in repr(spec) else 1e-4
    chex.assert_trees_all_close(wide(last), wide(updates), rtol=rtol, atol=rtol)
    chex.assert_trees_all_close(wide(scanned_state.slots), wide(state.slots), rtol=rtol, atol=rtol)


@given(decays, decays, seeds)
def test_lanes_commute(b1, b2, seed):
    """Momentum and rms read the same gradient: either order."""
    rest = (gx.debias(), gx.precondition())
    one, _ = run(gx.chain(gx.momentum(b1), gx.rms(b2), *rest), stack(seed))
    other, _ = run(gx.chain(gx.rms(b2), gx.momentum(b1), *rest), stack(seed))
    assert_same(one, other)


@given(seeds)
def test_sequence_matters_elsewhere(seed):
    """Momentum after the division is LaProp, not Adam; the lanes do not make everything commute."""
    adam, _ = run(gx.chain(gx.momentum(0.9), gx.rms(0.9), gx.debias(), gx.precondition()), stack(seed))
    laprop, _ = run(gx.chain(gx.rms(0.9), gx.debias(), gx.precondition(), gx.momentum(0.9), gx.debias()), stack(seed))
    assert float(abs(adam - laprop).max()) > 1e-3


# --- averages and their weights -----------------------------------------------------------------------------------


@given(decays, seeds)
def test_debiased_momentum_is_debiased_trace(decay, seed):
    one, _ = run(gx.chain(gx.momentum(decay), gx.debias()), stack(seed))
    other, _ = run(gx.chain(gx.trace(decay), gx.debias()), stack(seed))
    # Both cancel where gradients of opposite sign meet, and by then carry an error relative to the largest of them.
    chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-5)


@given(decays, seeds)
def test_a_constant_gradient_debiases_to_itself(decay, seed):
    g = jnp.broadcast_to(vector(seed), (20, 6))
    for average in (
        gx.momentum(decay),
        gx.trace(decay),
        gx.trace(decay, nesterov=True),
        gx.damped_trace(decay, 0.5),
        gx.chain(gx.momentum(decay), gx.momentum(0.5)),
    ):
        chex.assert_trees_all_close(run(gx.chain(average, gx.debias()), g)[0], g, rtol=1e-5)
    for moment in (gx.rms(decay), gx.monotone_rms(decay), gx.adagrad_sum(), gx.chain(gx.rms(decay), gx.max_v())):
        unit, _ = run(gx.chain(moment, gx.debias(), gx.precondition(0.0)), g)
        chex.assert_trees_all_close(unit, jnp.sign(g), rtol=1e-5)


@given(decays, seeds)
def test_adam_without_momentum_is_debiased_rmsprop(decay, seed):
    one, _ = run(gx.adam(0.1, b1=0.0, b2=decay), stack(seed))
    other, _ = run(gx.chain(gx.rms(decay), gx.debias(), gx.precondition(), LR), stack(seed))
    chex.assert_trees_all_close(one, other, rtol=2e-7)


@given(seeds)
def test_decay_zero_is_the_identity(seed):
    g = stack(seed)
    for rule in (gx.momentum(0.0), gx.trace(0.0)):
        chex.assert_trees_all_equal(run(rule, g)[0], g)


@given(seeds)
def test_first_steps(seed):
    """The sizes that tell the optimizers apart."""
    g = stack(seed, steps=1)
    sizes = {
        gx.adam(0.1, eps=0.0): 0.1,
        gx.adagrad(0.1, eps=0.0): 0.1,
        gx.rmsprop(0.1, eps=0.0): 0.1 / np.sqrt(0.1),
        gx.nadam(0.1, eps=0.0): 0.1 * (0.9 * 0.1 / (1 - 0.81) + 1),
        gx.article_adam(0.1): 0.1 * 0.1 / np.sqrt(0.001),
    }
    for tx, size in sizes.items():
        chex.assert_trees_all_close(run(tx, g)[0], -size * jnp.sign(g), rtol=2e-5)  # 1 − 0.999 in float32


# --- symmetries ---------------------------------------------------------------------------------------------------


@given(seeds, st.integers(-20, 20))
def test_linear_rules_scale_with_the_gradient(seed, k):
    for tx in (gx.momentum(0.9), gx.trace(0.9, nesterov=True), gx.nesterov(0.9, 0.004), gx.nag(0.1)):
        chex.assert_trees_all_equal(run(tx, 2.0**k * stack(seed))[0], 2.0**k * run(tx, stack(seed))[0])


@given(seeds, st.integers(-12, 12))
def test_where_epsilon_stands(seed, k):
    """f(cg; c·eps) = f(g; eps) outside the root, f(cg; c²·eps) = f(g; eps) inside it; without it f(cg) = f(g)."""
    c, g, tx = 2.0**k, stack(seed), gx.adam(0.1)
    start = tx.init(g[0])
    for eps, eps_root, scaled in (
        (0.25, 0.0, (0.25 * c, 0.0)),
        (0.0, 0.25, (0.0, 0.25 * c**2)),
        (0.0, 0.0, (0.0, 0.0)),
    ):
        one, _ = run(tx, g, g[0], gx.set_hyperparams(start, eps=eps, eps_root=eps_root))
        other, _ = run(tx, c * g, g[0], gx.set_hyperparams(start, eps=scaled[0], eps_root=scaled[1]))
        chex.assert_trees_all_equal(one, other)


@given(seeds, st.permutations(range(6)))
def test_permuting_elements_permutes_updates(seed, order):
    order = np.array(order)
    for tx in (gx.adamw(0.1), gx.amsgrad(0.1), gx.nag(0.1), gx.clip_by_value(0.5), gx.clip_by_norm(0.5)):
        # The elements of a vector and those that are left over need not be rounded alike.
        assert_same(run(tx, stack(seed)[:, order])[0], run(tx, stack(seed))[0][:, order])


@given(seeds)
def test_splitting_a_leaf_changes_nothing(seed):
    """Also not for the global norm, up to the order of its sum."""
    g = stack(seed)
    halves = {"a": g[:, :2], "b": g[:, 2:]}
    for tx in (gx.adam(0.1), gx.chain(gx.clip_by_global_norm(0.5), gx.sgd(0.1, 0.9))):
        whole, split = run(tx, g)[0], run(tx, halves)[0]
        chex.assert_trees_all_close(jnp.concatenate([split["a"], split["b"]], 1), whole, rtol=1e-5, atol=1e-6)


# --- second moments that do not fall ------------------------------------------------------------------------------


@given(decays, seeds)
def test_max_v_never_falls_and_the_articles_is_never_smaller(decay, seed):
    g = stack(seed, steps=20)
    amsgrad, _ = run(second_moment(gx.rms(decay), gx.max_v()), g)
    article, _ = run(second_moment(gx.monotone_rms(decay)), g)
    assert bool((jnp.diff(amsgrad, axis=0) >= 0).all())
    assert bool((jnp.diff(article, axis=0) >= 0).all())
    assert bool((article >= amsgrad * (1 - 1e-6)).all())  # exact in real arithmetic


class reveal(gx.Rule):
    """The second moment as the direction, to look at it."""

    equation = r"u \leftarrow v"
    second_moment = "uses"

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.second_moment, second_moment=None), {}


def second_moment(*rules):
    return gx.chain(*rules, reveal())


# --- clips --------------------------------------------------------------------------------------------------------


@given(seeds, st.floats(0.0009765625, 1024.0, width=32), st.sampled_from([1e-30, 1.0, 1e30]))
def test_clips_are_bounded_idempotent_and_idle_within_the_limit(seed, limit, scale):
    g = filled(((1, 6), "float32"), seed, scale)
    norm = float(np.linalg.norm(np.asarray(g, np.float64)))
    assume(norm > 0)
    for rule, size in ((gx.clip_by_value, jnp.max), (gx.clip_by_norm, jnp.linalg.norm)):
        once, _ = run(rule(limit), g)
        assert float(size(abs(once / scale)) * scale) <= limit * (1 + 1e-6)
        chex.assert_trees_all_close(run(rule(limit), once)[0], once, rtol=1e-6)
        idle, _ = run(rule(float(norm * 1.01)), g)
        chex.assert_trees_all_equal(idle, g)


# --- how large Adam's steps get -----------------------------------------------------------------------------------


def test_adams_step_is_bounded_by_7_27_and_not_by_3_16():
    """|m̂|/√v̂ has a Cauchy-Schwarz bound with limit 7.27 for (0.9, 0.999), and a ramp of gradients reaches it."""
    with jax.enable_x64(True):
        steps = 4000
        t = np.arange(1, steps + 1)
        # The equality case: weights of m divided by weights of v, so g_t ∝ (β₁/β₂)^(T−t).
        ramp = (0.9 / 0.999) ** (steps - t)
        updates, _ = run(gx.adam(1.0, eps=0.0), jnp.asarray(ramp)[:, None])
        assert float(abs(updates[-1, 0])) == pytest.approx(7.2703, rel=1e-2)
        ratio = 0.9**2 / 0.999
        bound = (0.1 / (1 - 0.9**t)) * np.sqrt((1 - 0.999**t) / 0.001 * (1 - ratio**t) / (1 - ratio))
        np.testing.assert_allclose(bound[[0, 1, 9, 99]], [1, 1.00136, 1.0431, 2.2434], rtol=1e-4)
        for seed in range(5):
            g = np.random.default_rng(seed).normal(size=(500, 50)) ** 9
            updates, _ = run(gx.adam(1.0, eps=0.0), jnp.asarray(g))
            assert bool((abs(updates) <= bound[:500, None] * (1 + 1e-9)).all())


# --- with and without jit -----------------------------------------------------------------------------------------


class Variants(chex.TestCase):
    """The same numbers with and without jit, up to contraction of multiply and add."""

    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue] - a decorator chex leaves untyped
    def test_adam(self):
        variant: Any = self.variant  # pyright: ignore[reportAttributeAccessIssue] - chex sets it
        g = jnp.array([1.0, -2.0, 0.0])
        tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1))
        state = tx.init(g)
        for _ in range(3):
            updates, state = variant(tx.update)(g, state, g)
        reference = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
        theirs = reference.init(g)
        for _ in range(3):
            expected, theirs = reference.update(g, theirs, g)
        chex.assert_trees_all_close(updates, expected, rtol=1e-5)
