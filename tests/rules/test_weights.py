"""The weights that rules pass on, and the gradient that accumulators leave as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx as gx

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

G = jnp.array([2.0, -0.5, 1e-3])


def updates(tx, gradients):
    """The update of each gradient in turn, in one program."""

    def one(state, g):
        out, state = tx.update(g, state, jnp.zeros(3))
        return state, out

    return jax.jit(lambda gradients: jax.lax.scan(one, tx.init(jnp.zeros(3)), gradients)[1])(gradients)


@pytest.mark.parametrize(
    "rule",
    [
        gx.quasi_hyperbolic(0.7),
        gx.quasi_hyperbolic(1.5),
        gx.add_momentum(0.8, 3.0),
        gx.extrapolate(0.5),
        gx.extrapolate(0.5, "same"),
        gx.add_difference(0.8),
    ],
)
def test_a_mixture_of_a_constant_gradient_debiases_to_a_multiple_of_it(rule):
    """A weight is what the direction would be for a gradient of 1; its quotient by it is the gradient."""
    found = updates(gx.chain(gx.momentum(0.9), rule, gx.debias()), jnp.broadcast_to(G, (6, 3)))
    np.testing.assert_allclose(found, np.broadcast_to(G, (6, 3)), rtol=1e-12)


def test_so_does_the_second_moment_of_a_mixture():
    tx = gx.chain(gx.momentum(0.9), gx.rms(0.99), gx.quasi_hyperbolic(0.7, 0.6), gx.debias(), gx.precondition(0.0))
    np.testing.assert_allclose(
        updates(tx, jnp.broadcast_to(G, (6, 3))), np.sign(np.broadcast_to(G, (6, 3))), rtol=1e-12
    )


class shows_gradient(gx.Rule):
    """The gradient lane in place of the direction."""

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.gradient), {}


class drops_v(gx.Rule):
    second_moment = "uses"

    def apply(self, signal, slots, param, c):
        return signal._replace(second_moment=None), {}


ACCUMULATE = (
    *(gx.momentum(), gx.trace(), gx.damped_trace(), gx.nesterov(), gx.add_momentum(), gx.add_difference()),
    *(gx.resilient_step(), gx.scale_by_update_rms(), gx.skip_first(), gx.running_sum(), gx.scale_by_factored_rms()),
    *(gx.rms(), gx.monotone_rms(), gx.centered_rms(), gx.adagrad_sum(), gx.infinity(), gx.yogi_rms(), gx.belief_rms()),
    *(gx.scale_by_sm3(), gx.scale_by_gradient_norm(), gx.scale_by_eigenbasis_rms(), gx.scale_by_kronecker_root()),
    *(gx.ftrl_proximal(0.1), gx.in_units_of_distance(gx.sgd(1.0), initial=0.1), gx.coin_betting()),
    *(gx.at_learned_rate(gx.sgd(1.0), initial=0.1), gx.in_subspace(gx.sign())),
)


def test_behind_what_accumulates_the_gradient_stays():
    """And behind what does not, it is the direction: extrapolated, clipped, scaled."""
    behind = gx.chain(gx.scale(2.0), shows_gradient())
    for rule in ACCUMULATE:
        tx = gx.chain(rule, behind, *([drops_v()] if rule.second_moment else []))
        np.testing.assert_array_equal(updates(tx, G[None])[0], G, err_msg=str(rule))
    edit = (gx.extrapolate(0.5), gx.clip_by_norm(1e9), gx.sign(), gx.quasi_hyperbolic())
    for rule in (*edit, gx.scale_by_distance(), gx.dual_averaging()):
        expected = 2 * updates(gx.chain(rule), G[None])[0]
        np.testing.assert_array_equal(updates(gx.chain(rule, behind), G[None])[0], expected, err_msg=str(rule))
    tx = gx.chain(gx.scale_by_polyak(), shows_gradient())  # the loss over the square of the gradient
    np.testing.assert_allclose(tx.update(G, tx.init(G), value=jnp.sum(G * G) / 4)[0], G / 4, rtol=1e-6)
    tx = gx.chain(gx.scale_by_model(), shows_gradient())
    np.testing.assert_array_equal(tx.update(G, tx.init(G), G, value=jnp.ones(()))[0], G)


@pytest.mark.parametrize(
    "rule",
    [
        *(gx.nag_lookahead(), gx.normalized_lookahead(0.1), gx.two_point_lookahead()),
        *(gx.average_iterates(), gx.lookahead()),
    ],
    ids=str,
)
def test_what_knows_another_point_stands_last(rule):
    with pytest.raises(ValueError, match="must be the last of its chain; 'scale' follows it"):
        gx.chain(rule, gx.scale(2.0)).init(G)


@pytest.mark.parametrize(
    "rule",
    [
        *(gx.resilient_step(), gx.sign(), gx.arctan(), gx.cautious(), gx.clip_by_value(1.0)),
        *(gx.add_cautious_decay(0.1), gx.ftrl_proximal(0.1), gx.coin_betting()),
    ],
    ids=str,
)
def test_what_has_no_meaning_for_complex_numbers_says_so(rule):
    with pytest.raises(TypeError, match="has no meaning for complex numbers"):
        rule.init(G * 1j)


def test_rules_that_forget_how_large_gradients_are_say_so():
    """A thousand times the gradient is not as many times the update, of which an average is none of gradients."""
    forgetful = [
        *(gx.sign(), gx.resilient_step(0.01), gx.orthogonalize(), gx.scale_by_trust_ratio(), gx.scale_by_sm3()),
        *(gx.scale_by_gradient_norm(), gx.scale_by_factored_rms(least=2), gx.scale_by_kronecker_root()),
        *(gx.scale_by_eigenbasis_rms(), gx.scale_by_polyak(), gx.scale_by_update_rms(0.5)),
        *(gx.coin_betting(), gx.scale_by_model(), gx.scale_by_slice_rms()),
    ]
    params = jnp.array([[1.0, -2.0], [0.5, 3.0]])

    def second(tx, gradient):
        """The update of the second step."""
        _, state = tx.update(gradient, tx.init(params), params, value=jnp.ones(()))
        return tx.update(gradient, state, params, value=jnp.ones(()))[0]

    gradient = jnp.array([[3.0, -1.0], [2.0, 4.0]])
    few, many = jax.jit(lambda: [[second(tx, factor * gradient) for tx in forgetful] for factor in (1.0, 1000.0)])()
    for tx, small, large in zip(forgetful, few, many, strict=True):
        assert np.all(small) and not np.allclose(1000 * small, large, rtol=0.1), tx
        assert tx.normalizes, tx
