"""Every optimizer and every documented order, in float64 against live optax, with constant and changing rates."""

import chex
import jax.numpy as jnp
import optax
import pytest
from trajectories import STEPS, in_groups, run, run_each

import gradtx as gx

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

RATES = {
    "constant": 0.01,
    "scheduled": optax.exponential_decay(0.03, 1, 0.95),
    "warmup": optax.warmup_cosine_decay_schedule(0.0, 0.05, 10, STEPS),
}


def adam_parts(b1=0.9, b2=0.999):
    return gx.momentum(b1), gx.rms(b2)


PAIRS = {
    "sgd": (gx.sgd, optax.sgd),
    "sgd momentum": (lambda lr: gx.sgd(lr, 0.9), lambda lr: optax.sgd(lr, 0.9)),
    "sgd nesterov": (lambda lr: gx.sgd(lr, 0.9, nesterov=True), lambda lr: optax.sgd(lr, 0.9, nesterov=True)),
    "momentum_sgd": (
        lambda lr: gx.momentum_sgd(lr, 0.85),
        lambda lr: optax.chain(optax.ema(0.85, debias=False), optax.scale_by_learning_rate(lr)),
    ),
    "debiased momentum": (
        lambda lr: gx.chain(gx.momentum(0.85), gx.debias(), gx.scale_by_learning_rate(lr)),
        lambda lr: optax.chain(optax.ema(0.85), optax.scale_by_learning_rate(lr)),
    ),
    "adagrad": (lambda lr: gx.adagrad(lr, initial=0.1, eps=0.0, eps_root=1e-7), optax.adagrad),
    "adagrad from zero": (
        lambda lr: gx.adagrad(lr, eps=0.0),
        lambda lr: optax.adagrad(lr, initial_accumulator_value=0.0, eps=0.0),
    ),
    "rmsprop": (lambda lr: gx.rmsprop(lr, eps=0.0, eps_root=1e-8), optax.rmsprop),
    "rmsprop eps outside": (
        lambda lr: gx.rmsprop(lr, 0.95, eps=1e-2),
        lambda lr: optax.rmsprop(lr, 0.95, eps=1e-2, eps_in_sqrt=False),
    ),
    "rmsprop momentum": (
        lambda lr: gx.rmsprop(lr, momentum=0.9, eps=0.0, eps_root=1e-8),
        lambda lr: optax.rmsprop(lr, momentum=0.9),
    ),
    "rmsprop centered": (
        lambda lr: gx.rmsprop(lr, centered=True, eps=0.0, eps_root=1e-4),
        lambda lr: optax.rmsprop(lr, centered=True, eps=1e-4),
    ),
    "rmsprop nesterov": (
        lambda lr: gx.rmsprop(lr, momentum=0.9, nesterov=True, eps=0.0, eps_root=1e-8),
        lambda lr: optax.rmsprop(lr, momentum=0.9, nesterov=True),
    ),
    "adam": (gx.adam, optax.adam),
    "adam other arguments": (
        lambda lr: gx.adam(lr, 0.8, 0.95, 1e-3, 1e-2),
        lambda lr: optax.adam(lr, 0.8, 0.95, 1e-3, 1e-2),
    ),
    "adamw": (gx.adamw, optax.adamw),
    "adamw decay": (lambda lr: gx.adamw(lr, weight_decay=0.3), lambda lr: optax.adamw(lr, weight_decay=0.3)),
    "amsgrad": (
        lambda lr: gx.chain(
            *adam_parts(), gx.debias(), gx.max_v(), gx.precondition(), gx.scale_by_learning_rate(lr)
        ),
        optax.amsgrad,
    ),
    "amsgrad of the paper": (
        lambda lr: gx.chain(*adam_parts(), gx.max_v(), gx.precondition(), gx.scale_by_learning_rate(lr)),
        lambda lr: optax.chain(
            optax.scale_by_amsgrad(bias_correction_mu=False, bias_correction_nu=False),
            optax.scale_by_learning_rate(lr),
        ),
    ),
    "nadam": (gx.nadam, optax.nadam),
    "nadamw": (lambda lr: gx.nadamw(lr, weight_decay=0.2), lambda lr: optax.nadamw(lr, weight_decay=0.2)),
    "laprop": (
        lambda lr: gx.chain(
            gx.rms(0.999), gx.debias(), gx.precondition(1e-15), gx.momentum(0.9), gx.debias(),
            gx.scale_by_learning_rate(lr),
        ),
        lambda lr: optax.chain(
            optax.scale_by_rms(0.999, 1e-15, eps_in_sqrt=False, bias_correction=True),
            optax.ema(0.9),
            optax.scale_by_learning_rate(lr),
        ),
    ),
    "coupled decay": (
        lambda lr: gx.chain(gx.add_decayed_weights(0.1), gx.adam(lr)),
        lambda lr: optax.chain(optax.add_decayed_weights(0.1), optax.adam(lr)),
    ),
    "global norm, then adamw": (
        lambda lr: gx.chain(gx.clip_by_global_norm(2.0), gx.adamw(lr)),
        lambda lr: optax.chain(optax.clip_by_global_norm(2.0), optax.adamw(lr)),
    ),
    "clip by value, then sgd": (
        lambda lr: gx.chain(gx.clip_by_value(0.5), gx.sgd(lr, 0.9)),
        lambda lr: optax.chain(optax.clip(0.5), optax.sgd(lr, 0.9)),
    ),
    "sign of momentum": (
        lambda lr: gx.chain(gx.momentum(0.9), gx.sign(), gx.scale(2.0), gx.scale_by_learning_rate(lr)),
        lambda lr: optax.chain(
            optax.ema(0.9, debias=False), optax.scale_by_sign(), optax.scale(2.0), optax.scale_by_learning_rate(lr)
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("names", in_groups(PAIRS))
def test_same_trajectory_as_optax(names, rate):
    ours, theirs = (run_each({name: PAIRS[name][side](RATES[rate]) for name in names}) for side in (0, 1))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for name in names:
        assert float(jnp.ptp(ours[name]["a"])) > 0.1, f"{name} goes nowhere, so the comparison could not fail"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (gx.amsgrad, optax.amsgrad),  # torch's order of max and debias
        (lambda lr: gx.nadam(lr, schedule_decay=0.004), optax.nadam),
        (lambda lr: gx.rmsprop(lr, momentum=0.9), lambda lr: optax.rmsprop(lr, momentum=0.8)),
        (lambda lr: gx.adam(lr, eps=1e-2), optax.adam),
        (gx.article_adam, optax.adam),
        (gx.adagrad, optax.adagrad),
    ],
)
def test_the_comparison_sees_a_difference(ours, theirs):
    ours, theirs = run(ours(0.01)), run(theirs(0.01))
    assert max(float(abs(ours[k] - theirs[k]).max()) for k in ours) > 1e-4


def test_learning_rate_inside_or_outside_is_one_only_while_it_is_constant():
    def outside(lr):
        return gx.chain(gx.trace(0.9), gx.scale_by_learning_rate(lr))

    def inside(lr):
        return gx.chain(gx.scale_by_learning_rate(lr), gx.trace(0.9))

    chex.assert_trees_all_close(run(outside(0.01)), run(inside(0.01)), rtol=1e-12, atol=1e-12)
    a, b = run(outside(RATES["scheduled"])), run(inside(RATES["scheduled"]))
    assert float(abs(a["a"] - b["a"]).max()) > 0.01
