"""Everything that makes updates, in one table: what a generic test has to try.

Rules stand in the smallest chain that may be used; optimizers are found by themselves. A rule of gradtx that is
missing here makes ``test_contract.py`` fail: add its line. If the line has the rule's equation in numpy as well,
``test_rules.py`` compares the two; a rule without one needs a case there, or in ``test_zoo.py``.
"""

import numpy as np
import optax
import pytest
from equations import Equation, damped, ema, fed_back_maximum, heavy_ball, nadam_moment, steps

import gradtx as gx
from gradtx import dialects, optimizers
from gradtx._engine.transformation import Transformation

LEARNING_RATE = 0.01

_RULES: dict[str, Transformation | tuple[Transformation, Equation]] = {
    "momentum": (gx.momentum(0.9), lambda g, p: ema(g, 0.9)),
    "trace": (gx.trace(0.9), lambda g, p: heavy_ball(g, 0.9)),
    "trace(nesterov)": (gx.trace(0.9, nesterov=True), lambda g, p: g + 0.9 * heavy_ball(g, 0.9)),
    "damped_trace": (gx.damped_trace(0.9, 0.5), lambda g, p: damped(g, 0.9, 0.5)),
    "nesterov": (gx.nesterov(0.9), lambda g, p: nadam_moment(g, 0.9, np.ones_like)),
    "nesterov(0.004)": (
        gx.nesterov(0.9, 0.004),
        lambda g, p: nadam_moment(g, 0.9, lambda t: 1 - 0.5 * 0.96 ** (0.004 * t)),
    ),
    "rms": (gx.chain(gx.rms(0.99), gx.precondition()), lambda g, p: g / (np.sqrt(ema(g**2, 0.99)) + 1e-8)),
    "centered_rms": (
        gx.chain(gx.centered_rms(0.9), gx.precondition()),
        lambda g, p: g / (np.sqrt(ema(g**2, 0.9) - ema(g, 0.9) ** 2) + 1e-8),
    ),
    "adagrad_sum": (
        gx.chain(gx.adagrad_sum(), gx.precondition()),
        lambda g, p: g / (np.sqrt(np.cumsum(g**2, 0)) + 1e-8),
    ),
    "adagrad_sum(0.1)": (
        gx.chain(gx.adagrad_sum(0.1), gx.precondition()),
        lambda g, p: g / (np.sqrt(0.1 + np.cumsum(g**2, 0)) + 1e-8),
    ),
    "max_v": (
        gx.chain(gx.rms(0.9), gx.max_v(), gx.precondition()),
        lambda g, p: g / (np.sqrt(np.maximum.accumulate(ema(g**2, 0.9), 0)) + 1e-8),
    ),
    "monotone_rms": (
        gx.chain(gx.monotone_rms(0.9), gx.precondition()),
        lambda g, p: g / (np.sqrt(fed_back_maximum(g**2, 0.9)) + 1e-8),
    ),
    "debias": gx.chain(gx.momentum(0.9), gx.rms(0.999), gx.debias(), gx.precondition()),
    "precondition": gx.chain(gx.rms(0.9), gx.precondition(0.0, 1e-8)),
    "scale": (gx.scale(-2.0), lambda g, p: -2 * g),
    "freeze": (gx.freeze(), lambda g, p: 0 * g),
    "sign": (gx.sign(), lambda g, p: np.sign(g)),
    "scale_by_learning_rate": gx.scale_by_learning_rate(LEARNING_RATE),
    "scale_by_inverse_time": (gx.scale_by_inverse_time(0.5), lambda g, p: g / (1 + 0.5 * (steps(g) - 1))),
    "add_decayed_weights": (gx.add_decayed_weights(0.1), lambda g, p: g + 0.1 * p),
    "decay_weights": (gx.decay_weights(LEARNING_RATE, 0.1), lambda g, p: g - LEARNING_RATE * 0.1 * p),
    "clip_by_value": gx.clip_by_value(1.0),
    "clip_by_norm": gx.clip_by_norm(1.0),
    "clip_by_global_norm": gx.clip_by_global_norm(1.0),
    "nag_lookahead": gx.nag_lookahead(1.0),
    "normalized_lookahead": gx.normalized_lookahead(0.1),
    "two_point_lookahead": gx.two_point_lookahead(1.0),
    "quasi_hyperbolic": gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(0.7)),
    "quasi_hyperbolic(2)": gx.chain(gx.momentum(0.9), gx.rms(0.9), gx.quasi_hyperbolic(0.7, 0.9), gx.precondition()),
    "add_momentum": gx.chain(gx.momentum(0.5), gx.add_momentum(0.9, 2.0)),
    "add_difference": gx.chain(gx.momentum(0.5), gx.add_difference(0.9)),
    "extrapolate": gx.extrapolate(0.5),
    "extrapolate(same)": gx.extrapolate(0.5, "same"),
    "infinity": gx.chain(gx.infinity(0.9), gx.precondition(0.0)),
    "yogi_rms": gx.chain(gx.yogi_rms(0.9), gx.precondition()),
    "belief_rms": gx.chain(gx.belief_rms(0.9, 0.99, 1e-8), gx.precondition()),
    "belief_rms(lagged)": gx.chain(gx.belief_rms(0.9, 0.99, lagged=True), gx.precondition()),
    "lag_v": gx.chain(gx.rms(0.9), gx.lag_v(), gx.precondition()),
    "lag_v(one)": gx.chain(gx.rms(0.9), gx.lag_v("one"), gx.precondition()),
    "max_v(0.9)": gx.chain(gx.rms(0.9), gx.max_v(0.9), gx.precondition()),
    "rms(first)": gx.chain(gx.rms(0.9, start="first"), gx.precondition()),
    "precondition(max)": gx.chain(gx.rms(0.9), gx.precondition(0.1, form="max")),
    "precondition(1/3)": gx.chain(gx.rms(0.9), gx.precondition(0.1, power=1 / 3)),
    "scale_by_update_rms": gx.chain(gx.rms(0.9), gx.precondition(1e-3), gx.scale_by_update_rms(0.9)),
    "resilient_step": gx.resilient_step(0.01),
    "arctan": gx.arctan(),
    "average_iterates": gx.average_iterates(pull=0.5),
    "average_iterates(0.1)": gx.average_iterates(0.1),
    "average_iterates(rate)": gx.average_iterates(pull=0.9, learning_rate=0.1),
    "lookahead": gx.lookahead(2),
    "orthogonalize": gx.orthogonalize(where=lambda path, leaf: len(leaf.shape) > 1),
    "scale_by_shape": gx.scale_by_shape(where=lambda path, leaf: len(leaf.shape) > 1),
    "rectified_precondition": gx.chain(gx.rms(0.9), gx.debias(), gx.rectified_precondition(0.9)),
    "scale_by_factored_rms": gx.scale_by_factored_rms(least=2),
    "scale_by_trust_ratio": gx.scale_by_trust_ratio(0.1),
    "cautious": gx.chain(gx.momentum(0.9), gx.cautious()),
    "cautious(opposed)": gx.chain(gx.momentum(0.9), gx.cautious(0.1, -0.5)),
    "clip_by_rms": gx.clip_by_rms(1.0),
    "clip_by_gradient_rms": gx.chain(gx.momentum(0.5), gx.rms(0.9), gx.clip_by_gradient_rms(0.5), gx.precondition()),
    "project_out": gx.project_out(),
    "scale_by_parameter_rms": gx.chain(gx.scale_by_parameter_rms(), gx.scale(1e-4)),
    "scale_by_gradient_norm": gx.scale_by_gradient_norm(0.9),
    "scale_by_gradient_norm(tree)": gx.scale_by_gradient_norm(eps_root=1e-8, over="tree"),
    "scale_by_distance": gx.scale_by_distance(0.1, relative=False),
    "scale_by_distance(tx)": gx.scale_by_distance(
        0.1, relative=False, tx=gx.scale_by_gradient_norm(eps_root=1e-8, over="tree")
    ),
    "scale_by_distance_bound": gx.chain(
        gx.rms(0.9), gx.scale_by_distance_bound(initial=0.1, decay=0.9), gx.momentum(0.9), gx.precondition()
    ),
    "in_units_of_distance": gx.in_units_of_distance(gx.adam(1.0), initial=0.1),
    "at_learned_rate": gx.at_learned_rate(gx.chain(gx.momentum(0.9), gx.scale(-1.0)), 0.1, initial=0.1, betters=2),
    "as_matrices": gx.as_matrices(
        gx.chain(gx.momentum(0.9), gx.scale(2.0)), lambda path, leaf: (-1, 0) if len(leaf.shape) > 1 else None
    ),
    "in_subspace": gx.in_subspace(gx.chain(gx.momentum(0.9), gx.scale(2.0)), 1, 0.5, every=5),
    "scale_by_sm3": gx.scale_by_sm3(),
    "running_sum": gx.running_sum(),
    "dual_averaging": gx.dual_averaging(),
    "coin_betting": gx.coin_betting(2.0),
    "ftrl_proximal": gx.ftrl_proximal(LEARNING_RATE, 0.01, 0.01, 1.0, 0.1),
    "skip_first": gx.chain(gx.skip_first(), gx.momentum(0.9)),
    "add_cautious_decay": gx.add_cautious_decay(0.1),
    "centralize": gx.centralize(),
    "add_noise": gx.add_noise(1.0, 0.5, seed=1),
    "adaptive_clip": gx.adaptive_clip(),
    "scale_by_slice_rms": gx.scale_by_slice_rms(0.9),
    "scale_by_eigenbasis_rms": gx.chain(gx.momentum(0.9), gx.scale_by_eigenbasis_rms(0.9, 1.0, every=2)),
    "scale_by_kronecker_root": gx.scale_by_kronecker_root(0.9, 1e-2),
    "monitor": gx.chain(gx.clip_by_norm(1.0), gx.monitor()),
    "monitor(2)": gx.chain(gx.clip_by_norm(1.0), gx.momentum(0.9), gx.monitor(2)),
    "seal": gx.seal(optax.scale_by_adam()),
}

RULES = {name: line if isinstance(line, Transformation) else line[0] for name, line in _RULES.items()}
EQUATIONS = {name: line[1] for name, line in _RULES.items() if not isinstance(line, Transformation)}

NEED_THE_LOSS = {"momo", "momo_adam", "polyak_sgd"}

OPTIMIZERS: dict[str, Transformation] = {
    name: getattr(optimizers, name)(LEARNING_RATE) for name in optimizers.__all__ if name not in NEED_THE_LOSS
}
OPTIMIZERS["muon"] = gx.chain(
    optimizers.muon(LEARNING_RATE, otherwise=gx.adam(LEARNING_RATE))
)  # a partition, which is a rule in a chain alone
OPTIMIZERS["sgd(momentum)"] = gx.sgd(LEARNING_RATE, momentum=0.9)
OPTIMIZERS["sgd(nesterov)"] = gx.sgd(LEARNING_RATE, momentum=0.9, nesterov=True)
OPTIMIZERS["rmsprop(momentum)"] = gx.rmsprop(LEARNING_RATE, momentum=0.9)
OPTIMIZERS["nadam(0.004)"] = gx.nadam(LEARNING_RATE, schedule_decay=0.004)

# The same rules in other orders: tried where that is cheap.
DIALECTS: dict[str, Transformation] = {
    f"{framework.__name__.split('.')[-1]}.{recipe}": getattr(framework, recipe)(LEARNING_RATE)
    for framework in (dialects.torch, dialects.keras, dialects.optax)
    for recipe in framework.__all__
    if recipe not in {*NEED_THE_LOSS, "mechanize"}  # which is around another
}
DIALECTS["optax.mechanize"] = dialects.optax.mechanize(dialects.optax.sgd(1.0), s_init=LEARNING_RATE)

# Within a partition, which does not say whether it needs the parameters: without decay.
TORCH_MUON = dialects.torch.muon(LEARNING_RATE, weight_decay=0.0)
DIALECTS["torch.muon"] = gx.chain(gx.partition([("w", TORCH_MUON)], default="freeze"))
DIALECTS["keras.muon"] = dialects.keras.muon(LEARNING_RATE, adam_weight_decay=None, weight_decay=None)

CHAINS: dict[str, Transformation] = {
    "adam at random": gx.chain(gx.adam(LEARNING_RATE), state_dtype="bfloat16_stochastic"),
    "adam in codes": gx.chain(gx.adam(LEARNING_RATE), state_dtype="root8"),
    "identity": gx.chain(),
    "sealed adam": gx.chain(gx.clip_by_norm(1.0), gx.seal(gx.adam(LEARNING_RATE))),
    "scheduled adamw": gx.adamw(
        optax.cosine_decay_schedule(LEARNING_RATE, 100), b1=lambda count: 0.9 - 0.1 / (count + 1.0), weight_decay=0.1
    ),
    "clipped nadam": gx.chain(gx.clip_by_global_norm(1.0), gx.nadam(LEARNING_RATE), gx.nag_lookahead(0.5)),
    "adamw where": gx.chain(gx.where("^", gx.clip_by_norm(1.0)), gx.adamw(LEARNING_RATE, decay_mask="")),
    "named": gx.chain(gx.chain(gx.rms(), gx.precondition(), name="first"), gx.rms(), gx.precondition(), name="all"),
}

SGD, ADAM = gx.sgd(LEARNING_RATE, momentum=0.9), gx.adam(LEARNING_RATE)

# Wrappers, in a chain, where each is one opaque rule.
WRAPPERS: dict[str, Transformation] = {
    "switch": gx.chain(gx.switch(2, ADAM, SGD)),
    "switch(reset)": gx.chain(gx.switch(2, ADAM, SGD, carry="reset")),
    "swats": gx.chain(gx.swats(LEARNING_RATE, rtol=0.5, min_steps=2)),
    "skip_nonfinite": gx.chain(gx.skip_nonfinite(ADAM)),
    "loss_scale": gx.chain(gx.loss_scale(ADAM)),
    "accumulate": gx.chain(gx.accumulate(ADAM, 2)),
    "master_weights": gx.chain(gx.master_weights(ADAM)),
    "partition": gx.chain(gx.partition({"^": ADAM}, default="freeze")),
    "offload": gx.chain(gx.offload(ADAM)),
}

ALL = RULES | OPTIMIZERS | CHAINS | WRAPPERS

# For tests that compile: most runs try every rule, a few of the optimizers (which are chains of the rules) and of the
# wrappers; the rest, variants among it, is behind a marker.
FEW = {"nadamw", "adamw where", "switch", "partition", "skip_nonfinite"}
REST = {name for name in ALL if "(" in name or name not in RULES} - FEW
REST |= {  # rules with a neighbour of their kind among the others
    *("add_momentum", "extrapolate", "infinity", "yogi_rms", "scale_by_update_rms", "resilient_step", "arctan"),
    *("lookahead", "scale_by_shape", "rectified_precondition", "scale_by_trust_ratio", "clip_by_rms"),
    *("scale_by_parameter_rms", "trace", "nesterov", "monotone_rms", "adagrad_sum", "scale", "decay_weights"),
    *("scale_by_inverse_time", "two_point_lookahead", "clip_by_value"),
    *("scale_by_gradient_norm", "scale_by_distance", "running_sum", "dual_averaging", "ftrl_proximal", "skip_first"),
    *("add_cautious_decay", "centralize", "adaptive_clip", "add_noise", "scale_by_sm3"),
    *("scale_by_eigenbasis_rms", "scale_by_kronecker_root", "coin_betting", "scale_by_distance_bound"),
    *("damped_trace", "normalized_lookahead", "quasi_hyperbolic", "belief_rms", "lag_v", "sign", "add_difference"),
    *("clip_by_norm", "in_units_of_distance", "precondition"),  # "rms" stands in front of one, "debias" is Adam
    *("at_learned_rate", "in_subspace", "project_out", "clip_by_gradient_rms", "scale_by_slice_rms", "as_matrices"),
    *("centered_rms", "monitor"),
}
VARIANTS = {name for name in ALL if "(" in name or name in OPTIMIZERS} - FEW  # of rules that are tried anyway
MOST = [pytest.param(name, marks=[pytest.mark.exhaustive] if name in REST else []) for name in ALL]

# By property and name, what is not held to it: optax and a schedule promote by themselves, and what multiplies, or
# averages over rows and columns, needs whole matrices.
LACKING = {("keeps to strict types", name) for name in ("seal", "scheduled adamw")}
SIDES = ("scale_by_eigenbasis_rms", "scale_by_kronecker_root", "soap", "shampoo", "in_subspace", "galore")
# Five products in a row magnify how two programs round one.
CLOSE = ("sweeps by vmap", "scans as it loops", "knows no other values", "computes in float32")
LACKING |= {(claim, name) for claim in CLOSE for name in ("orthogonalize", "muon", "scale_by_eigenbasis_rms", "soap")}
LACKING |= {("works under guards", "orthogonalize")}
LACKING |= {("computes in float32", "master_weights")}  # and gives the way to what is rounded
# Of gradients that stay the same, a basis of what has rank two at most: the rest of it is rounding.
LACKING |= {(claim, "soap") for claim in ("turns with the gradient", "stores slots as told", "works under guards")}
WHOLE = ("orthogonalize", "muon", "scale_by_shape", "scale_by_factored_rms", "scale_by_sm3", "sm3", *SIDES)
WHOLE += ("centralize", "adaptive_clip", "add_noise", "as_matrices", "scale_by_slice_rms")
LACKING |= {("works in shard map", name) for name in WHOLE}
LACKING |= {("shows what is like the parameters", "offload")}  # jax makes nothing like an array of the host
# Noise is there at zero, too, and does not turn.
LACKING |= {
    (claim, "add_noise") for claim in ("does nothing at zero", "is odd", "turns with the gradient", "has one clock")
}
