"""The page of each rule, beside its docstring: a picture of its effect, and what others do instead.

A rule that is missing here makes the build fail: add its entry.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import gradtx as gx
from docs.generate.pictures import GRADIENT, STEPS, bars, descend, lines, over_time, plane, root_v, scan, updates
from gradtx._engine.transformation import Transformation

__all__ = ["RULES", "Entry"]


class Entry(NamedTuple):
    """The part of a rule's page that is its own.

    Attributes:
        draw: its picture.
        caption: what there is to see in it.
        elsewhere: what other frameworks do instead.
    """

    draw: Callable[[], Figure]
    caption: str
    elsewhere: str


OUT = "direction out, u"
STABLE = gx.chain(gx.momentum(0.5), gx.rms(0.95), gx.debias())
ROOT = "what the direction will be divided by, √v"


def _seen(*rules: Transformation) -> Transformation:
    return gx.chain(*rules, root_v())


def _decay() -> Figure:
    """A weight that only noise pulls at, a little or hard, under coupled and decoupled decay."""
    noise = jax.random.normal(jax.random.key(0), (STEPS,))

    def shrinking(tx: Transformation, size: float) -> np.ndarray:
        def one(carry, draw):
            w, state = carry
            return gx.step(tx, w, size * draw, state), w

        w = jnp.array(1.0)
        return np.asarray(scan(one, (w, tx.init(w)), noise)[1])

    adam = gx.chain(gx.momentum(0.9), gx.rms(0.999), gx.debias(), gx.precondition())
    coupled = gx.chain(gx.add_decayed_weights(0.1), adam, gx.scale_by_learning_rate(0.03))
    decoupled = gx.chain(adam, gx.add_decayed_weights(1.0), gx.scale_by_learning_rate(0.03))
    curves = {
        "in front, small gradients": shrinking(coupled, 0.01),
        "in front, large gradients": shrinking(coupled, 10.0),
        "decoupled": shrinking(decoupled, 10.0),
    }
    return lines("a weight under Adam with decay", curves)


def _decay_inside() -> Figure:
    velocity = gx.chain(gx.scale_by_learning_rate(0.05), gx.trace(0.9))
    chains = {
        "decay_weights": gx.chain(velocity, gx.decay_weights(0.05, 0.3)),
        "through the momentum": gx.chain(gx.add_decayed_weights(0.3), velocity),
    }
    curves = {label: descend(tx, 1.0, jnp.zeros_like) for label, tx in chains.items()}
    return lines("a weight without gradient", curves)


def _disk() -> Figure:
    points = np.random.default_rng(3).normal(0.0, 1.0, (40, 2))
    return plane("two elements of one leaf", points, updates(gx.clip_by_norm(1.0), points), ("u₁", "u₂"), 1.0)


def _norms() -> Figure:
    sizes = np.array([0.3, 2.4, 0.8, 1.5, 0.1])
    leaves = {f"leaf {i + 1}": jnp.array([size]) for i, size in enumerate(sizes)}

    def norms(tx: Transformation) -> np.ndarray:
        return np.concatenate(list(tx.update(leaves, tx.init(leaves))[0].values()))

    groups = {
        "in": sizes,
        "clip_by_global_norm": norms(gx.clip_by_global_norm(1.0)),
        "clip_by_norm": norms(gx.clip_by_norm(1.0)),
    }
    return bars("norm of each leaf", list(leaves), groups, 1.0)


def _swinging() -> Figure:
    momentum = gx.chain(gx.scale_by_learning_rate(0.1), gx.trace(0.9))
    curves = {
        "nag_lookahead(0.9)": descend(gx.chain(momentum, gx.nag_lookahead(0.9)), 1.0, lambda w: w),
        "without": descend(momentum, 1.0, lambda w: w),
    }
    return lines("w on the loss ½w²", curves)


def _two_points() -> Figure:
    tx = gx.chain(gx.scale_by_learning_rate(0.1), gx.trace(0.9), gx.two_point_lookahead(0.9))

    def one(carry, _):
        w, state = carry
        point = gx.lookahead_point(state, w)
        return gx.step(tx, w, point, state), (w, point)

    w = jnp.array(1.0)
    held, ahead = scan(one, (w, tx.init(w)), length=STEPS // 2 + 1)[1]
    return lines("on the loss ½w²", {"gradient taken here": np.asarray(ahead), "w, held": np.asarray(held)})


def _watched() -> Figure:
    tx = gx.chain(gx.clip_by_norm(2.0), gx.momentum(0.9), gx.monitor())

    def one(state, gradient):
        _, state = tx.update(gradient, state)
        seen = gx.metrics(state)
        return state, (seen["update_norm"], seen["gradient_norm"])

    w = jnp.zeros(1)
    update, gradient = scan(one, tx.init(w), jnp.asarray(GRADIENT[:, None], jnp.float32))[1]
    curves = {"update_norm": np.asarray(update), "gradient_norm": np.asarray(gradient)}
    return lines("metrics of chain(clip_by_norm(2), momentum(0.9), monitor())", curves, first=1)


def _averaged() -> Figure:
    """Noisy descent into a bowl, with a rate that stays: the iterates, and their averages."""
    noise = jax.random.normal(jax.random.key(3), (STEPS,))

    def points(average: Transformation) -> tuple[np.ndarray, np.ndarray]:
        tx = gx.chain(gx.sgd(0.3), average)

        def one(carry, draw):
            w, state = carry
            w, state = gx.step(tx, w, w + draw, state)
            return (w, state), (w, gx.evaluation_point(state, w))

        w = jnp.array(3.0)
        held, evaluated = scan(one, (w, tx.init(w)), noise)[1]
        return np.asarray(held), np.asarray(evaluated)

    iterates, exponential = points(gx.average_iterates(0.1))
    curves = {
        "average, c = 0.1": exponential,
        "average, c = 1/t": points(gx.average_iterates())[1],
        "iterates": iterates,
    }
    return lines("a weight under SGD with noise, and the points to evaluate", curves, first=1)


def _slow_weights() -> Figure:
    noise = jax.random.normal(jax.random.key(3), (STEPS,))

    def way(tx: Transformation) -> np.ndarray:
        def one(carry, draw):
            w, state = carry
            w, state = gx.step(tx, w, w + draw, state)
            return (w, state), w

        w = jnp.array(3.0)
        return np.asarray(scan(one, (w, tx.init(w)), noise)[1])

    curves = {"lookahead(5, 0.5)": way(gx.chain(gx.sgd(0.3), gx.lookahead(5, 0.5))), "sgd": way(gx.sgd(0.3))}
    return lines("a weight under SGD with noise", curves, first=1)


def _singular_values() -> Figure:
    before = after = np.linspace(0.0, 1.0, 400)
    for a, b, c in gx.orthogonalize().coefficients:
        after = a * after + b * after**3 + c * after**5
    return lines(
        "a singular value after the iterations, over what it was", {"after": after, "before": before}, x=before
    )


def _heads() -> Figure:
    """Four heads whose gradients are of different sizes, as one matrix and each for itself."""
    sizes = np.array([1.0, 0.3, 0.1, 0.03])
    g = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 4)) * sizes[:, None])
    norms = {}
    for name, axes in {"(0, (1, 2)), one matrix": (0, (1, 2)), "(0, 2), one for each head": (0, 2)}.items():
        tx = gx.as_matrices(gx.orthogonalize(stacked=1), axes)
        norms[name] = np.linalg.norm(np.asarray(tx.update(g, tx.init(g))[0]), axis=(0, 2))
    return bars("the norm of a head's step, over that of its gradient", [f"{size:g}" for size in sizes], norms)


def _shapes() -> Figure:
    sizes = (64, 256, 1024, 4096)
    names = [f"256 by {n}" for n in sizes]
    factor = np.array([np.sqrt(max(1, n / 256)) for n in sizes])
    constant = np.array([0.2 * np.sqrt(max(n, 256)) for n in sizes])
    return bars(
        "the factor, for a matrix with so many inputs and outputs", names, {"grown": factor, "rms=0.2": constant}
    )


def _distances() -> Figure:
    """DoG from a first step that is much too small; the distance gone grows by a factor, until it is about right."""
    curves = {
        f"first distance {r:g}": descend(
            gx.chain(gx.scale_by_gradient_norm(over="tree"), gx.scale_by_distance(r, relative=False), gx.scale(-1.0)),
            3.0,
            lambda w: w,
        )
        for r in (0.1, 0.01, 0.001)
    }
    return lines("w on the loss ½w²", curves)


def _estimated() -> Figure:
    def estimates(initial: float) -> np.ndarray:
        tx = gx.prodigy(initial=initial)

        def one(carry, _):
            w, state = carry
            w, state = gx.step(tx, w, w, state)
            return (w, state), state.slots["in_units_of_distance"]["state"]["distance"]

        w = jnp.array([3.0, -4.0])
        return np.asarray(scan(one, (w, tx.init(w)), length=STEPS)[1])

    curves = {f"first {d:g}": estimates(d) for d in (0.1, 1e-3, 1e-6)}
    return lines("the estimated distance d", curves, first=1)


def _learned() -> Figure:
    def factors(initial: float) -> np.ndarray:
        tx = gx.at_learned_rate(gx.adam(1.0), initial=initial)

        def one(carry, _):
            w, state = carry
            w, state = gx.step(tx, w, w, state)
            return (w, state), jnp.sum(state.slots["at_learned_rate"]["state"]["factor"])

        w = jnp.array([3.0, -4.0])
        return np.asarray(scan(one, (w, tx.init(w)), length=STEPS)[1])

    curves = {f"first {s:g}": factors(s) for s in (0.1, 1e-3, 1e-6)}
    return lines("the factor s of Adam's steps", curves, first=1)


def _bounded() -> Figure:
    def estimates(initial: float) -> np.ndarray:
        tx = gx.chain(
            *(gx.rms(0.999), gx.scale_by_distance_bound(initial=initial)),
            *(gx.momentum(0.9), gx.precondition(), gx.scale(-1.0)),
        )

        def one(carry, _):
            w, state = carry
            w, state = gx.step(tx, w, w, state)
            return (w, state), state.slots["scale_by_distance_bound"]["state"]["distance"]

        w = jnp.array([3.0, -4.0])
        return np.asarray(scan(one, (w, tx.init(w)), length=STEPS)[1])

    curves = {f"first {d:g}": estimates(d) for d in (0.1, 1e-3, 1e-6)}
    return lines("the bound d", curves, first=1)


def _covered() -> Figure:
    gradients = jnp.array([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 0.0]]])

    def v(tx: Transformation) -> np.ndarray:
        state = tx.init(gradients[0])
        _, state = tx.update(gradients[0], state)
        u, _ = tx.update(gradients[1] + 1e-3, state)
        return np.asarray((gradients[1] + 1e-3) / u).ravel() ** 2

    groups = {
        "AdaGrad": v(gx.chain(gx.adagrad_sum(), gx.precondition(0.0))),
        "scale_by_sm3": v(gx.scale_by_sm3(0.0)),
    }
    return bars("v of each element of a matrix, after two gradients", ["1, 1", "1, 2", "2, 1", "2, 2"], groups)


def _led() -> Figure:
    noise = 0.3 * jax.random.normal(jax.random.key(1), (STEPS,))

    def way(l1: float) -> np.ndarray:
        tx = gx.ftrl_proximal(0.5, l1=l1)

        def one(carry, draw):
            w, state = carry
            return gx.step(tx, w, draw - 0.1, state), w

        w = jnp.array(0.0)
        return np.asarray(scan(one, (w, tx.init(w)), noise)[1])

    return lines("a weight that gradients pull at, a little", {"l1 = 2": way(2.0), "l1 = 0": way(0.0)})


def _from_the_start() -> Figure:
    sums = gx.chain(gx.scale(-0.1), gx.running_sum())
    curves = {
        "and a third of the way": descend(gx.chain(sums, gx.dual_averaging(), gx.scale(0.3)), 1.0, lambda w: w),
        "dual_averaging": descend(gx.chain(sums, gx.dual_averaging()), 1.0, lambda w: w),
    }
    return lines("w on the loss ½w²", curves)


def _bets() -> Figure:
    curves = {
        f"coin_betting({alpha:g})": descend(gx.coin_betting(alpha), 0.0, lambda w: jnp.sign(w - 3.0))
        for alpha in (10.0, 100.0)
    }
    return lines("w on the loss |w − 3|", curves)


def _at_a_distance() -> Figure:
    tx = gx.chain(gx.sgd(0.1, momentum=0.9), gx.normalized_lookahead(0.5))

    def one(carry, _):
        w, state = carry
        w, state = gx.step(tx, w, w, state)
        return (w, state), (w, gx.evaluation_point(state, w))

    w = jnp.array(3.0)
    held, iterate = scan(one, (w, tx.init(w)), length=STEPS // 2)[1]
    return lines("on the loss ½w²", {"gradient taken here": np.asarray(held), "iterate": np.asarray(iterate)}, first=1)


def _turned() -> Figure:
    """The length of weights that are multiplied with a vector once their length is divided out."""

    def length(*rules: Transformation) -> np.ndarray:
        tx = gx.chain(gx.sgd(0.1, 0.9), *rules)
        gradient = jax.grad(lambda w: w[0] / jnp.linalg.norm(w))
        return np.linalg.norm(descend(tx, [0.8, 0.6], gradient), axis=1)

    curves = {"and project_out": length(gx.project_out()), "momentum": length()}
    return lines("‖w‖ of weights of which w/‖w‖ alone matters", curves)


def _cautious_decay() -> Figure:
    def way(decay: Transformation) -> np.ndarray:
        tx = gx.chain(gx.momentum(0.9), decay, gx.scale_by_learning_rate(0.1))
        return descend(tx, 0.2, lambda w: w - 1.0)

    curves = {
        "add_cautious_decay(1)": way(gx.add_cautious_decay(1.0)),
        "add_decayed_weights(1)": way(gx.add_decayed_weights(1.0)),
    }
    return lines("a weight whose loss is least at 1", curves)


def _polyak() -> Figure:
    def way(minimum: float) -> np.ndarray:
        tx = gx.chain(gx.scale_by_polyak(minimum), gx.scale(-1.0))

        def one(carry, _):
            w, state = carry
            return gx.step(tx, w, w, state, value=0.5 * w**2 + 0.1), w

        w = jnp.array(3.0)
        return np.asarray(scan(one, (w, tx.init(w)), length=STEPS // 2)[1])

    return lines("w on the loss ½w² + 0.1", {"minimum = 0.1": way(0.1), "minimum = 0": way(0.0)})


def _modelled() -> Figure:
    noise = 0.3 * jax.random.normal(jax.random.key(1), (STEPS,))

    def way(tx: Transformation) -> np.ndarray:
        def one(carry, draw):
            w, state = carry
            return gx.step(tx, w, w + draw, state, value=0.5 * w**2 + draw * w + 0.5 * draw**2), w

        w = jnp.array(3.0)
        return np.asarray(scan(one, (w, tx.init(w)), noise)[1])

    average = gx.chain(gx.momentum(0.9), gx.debias())
    curves = {
        "scale_by_model(0.9)": way(gx.chain(average, gx.scale_by_model(0.9), gx.scale(-1.0))),
        "scale_by_polyak()": way(gx.chain(gx.scale_by_polyak(), gx.scale(-1.0))),
    }
    return lines("w on the loss ½(w + noise)²", curves)


def _centred() -> Figure:
    g = jnp.array([[1.0, 0.5], [2.0, -0.5], [3.0, 1.5]])
    out, _ = gx.centralize().update(g, gx.centralize().init(g))
    names = [f"{i}, {j}" for j in (1, 2) for i in (1, 2, 3)]
    return bars(
        "inputs of two outputs", names, {"in": np.asarray(g.T.ravel()), "centralize": np.asarray(out.T.ravel())}
    )


def _unit_norms() -> Figure:
    g, p = jnp.array([[0.5, 1.5, 3.0, 6.0]] * 2), jnp.array([[1.0, 1.0, 4.0, 4.0]] * 2)
    tx = gx.adaptive_clip(1.0)
    out, _ = tx.update(g, tx.init(p), p)
    groups = {name: np.linalg.norm(x, axis=0) for name, x in {"in": g, "adaptive_clip(1)": out, "weights": p}.items()}
    return bars("norm of each output's slice", [f"output {i}" for i in range(1, 5)], groups)


def _slices() -> Figure:
    g = jnp.array([[0.25, 0.5, 1.0, 1.5]] * 2)
    names = {"in": gx.chain(), "of each output": gx.scale_by_slice_rms()}
    names |= {"of the leaf": gx.scale_by_slice_rms(over="leaf")}
    groups = {name: np.asarray(tx.update(g, tx.init(g))[0])[0] for name, tx in names.items()}
    return bars("root mean square of each output's slice", [f"output {i}" for i in range(1, 5)], groups)


def _hilly(*chains: tuple[str, Transformation]) -> Figure:
    """A quadratic of a matrix whose long axes are no elements."""
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (6, 6)))[0]
    curvature = (turn * jnp.geomspace(0.02, 2.0, 6)) @ turn.T
    start = jax.random.normal(jax.random.key(1), (6, 6))
    noise = 0.05 * jax.random.normal(jax.random.key(2), (STEPS, 6, 6))

    def losses(tx: Transformation) -> np.ndarray:
        def one(carry, draw):
            w, state = carry
            loss = 0.5 * jnp.sum(w * (curvature @ w))
            return gx.step(tx, w, curvature @ w + draw, state), loss

        return np.asarray(scan(one, (start, tx.init(start)), noise)[1])

    return lines("loss, whose long axes are combinations of elements", {name: losses(tx) for name, tx in chains})


def _roots() -> Figure:
    g = jnp.diag(jnp.array([4.0, 2.0, 1.0, 0.25]))

    def values(tx: Transformation) -> np.ndarray:
        return np.linalg.svd(tx.update(g, tx.init(g))[0], compute_uv=False)

    groups = {
        "in": np.diag(g),
        "ε = 0": values(gx.scale_by_kronecker_root(eps=0.0)),
        "ε = 1": values(gx.scale_by_kronecker_root(eps=1.0)),
    }
    return bars("singular values of one gradient", ["1", "2", "3", "4"], groups)


RULES: dict[str, Entry] = {
    "momentum": Entry(
        partial(over_time, OUT, {"β = 0.9": gx.momentum(0.9), "β = 0.5": gx.momentum(0.5)}),
        "An average of the last 1/(1−β) gradients or so. It follows a step late, and hardly shows a spike.",
        "`optax.ema` is this rule with debiasing switched on by default; `optax.ema(debias=False)` is it exactly. What "
        "torch, Keras and `optax.sgd` call momentum is the sum of `trace`, 1/(1−β) times as large. torch with "
        "`dampening` equal to the momentum averages too, but starts at the first gradient instead of at zero: that is "
        "`damped_trace`.",
    ),
    "trace": Entry(
        partial(over_time, OUT, {"trace(0.9)": gx.trace(0.9), "nesterov=True": gx.trace(0.9, nesterov=True)}),
        "A sum that forgets: for a constant gradient it grows to 1/(1−μ) = 10 times the gradient.",
        "torch and `optax.sgd` have the learning rate behind the sum, Keras and `optax.rmsprop` in front of it (Keras "
        "keeps the sum with the opposite sign, too). That is the same while the rate is constant, and only then: with "
        "a rate that falls by a tenth each step the two end 0.9 apart on a way of 1.1. `nesterov=True` is Nesterov's "
        "method under a constant rate alone; `nag_lookahead` is it under any.",
    ),
    "damped_trace": Entry(
        partial(over_time, OUT, {"τ = 0.9": gx.damped_trace(0.9, 0.9), "momentum(0.9)": gx.momentum(0.9)}),
        "With τ = μ it is an average, but one that starts at the first gradient: nothing to debias.",
        "Only torch has dampening. Its first gradient enters undamped, which its formula does not show. Keras and "
        "optax have no counterpart.",
    ),
    "nesterov": Entry(
        partial(
            over_time,
            OUT,
            {
                "constant μ (optax)": gx.nesterov(0.9),
                "ψ = 0.004 (torch)": gx.nesterov(0.9, 0.004),
                "ψ = 1 (Keras)": gx.nesterov(0.9, 1.0),
                "momentum, debias": gx.chain(gx.momentum(0.9), gx.debias()),
            },
            30,
        ),
        "The first thirty steps, where the schedules differ most. At the step up, all run ahead of the average.",
        "Three schedules of μ go by the name of Nadam: none in optax, 0.96^(0.004 t) in torch, 0.96^t in Keras 3, "
        "which lost the factor that older versions had. torch's `momentum_decay=0` is not constant μ but half of it, "
        "μ = β/2; a huge value is needed to switch the schedule off.",
    ),
    "rms": Entry(
        partial(over_time, ROOT, {"β = 0.9": _seen(gx.rms(0.9)), "β = 0.99": _seen(gx.rms(0.99))}),
        "How large gradients have been of late, whatever their sign. With a larger β, one large gradient changes √v "
        "less, but for more steps.",
        "The decay is 0.9 by default in optax and Keras and 0.99 in torch. Only optax has an option to debias inside "
        "RMSProp. For complex gradients torch squares real and imaginary parts as if they were two parameters; here, "
        "as in optax, it is the squared modulus, so that turning the gradient turns the step.",
    ),
    "centered_rms": Entry(
        partial(over_time, ROOT, {"centered_rms": _seen(gx.centered_rms(0.9)), "rms": _seen(gx.rms(0.9))}),
        "The spread of gradients around their mean: it goes to zero while they do not change, and steps grow.",
        "torch, Keras and optax subtract the square of the mean from the mean of the squares. Rounding can make that "
        "negative; with epsilon outside the root, torch and optax can then give NaN. Here it is the sum of squared "
        "distances, which cannot.",
    ),
    "adagrad_sum": Entry(
        partial(over_time, ROOT, {"adagrad_sum": _seen(gx.adagrad_sum()), "rms(0.9)": _seen(gx.rms(0.9))}),
        "It forgets nothing, so steps only shrink.",
        "The sum starts at 0.1 in optax and Keras, at 0 in torch and in the paper: in one test of 60 steps their "
        "defaults ended 39 % of the way apart. optax and Keras then add 1e-7 inside the root, torch 1e-10 outside. "
        "JAX's own example puts a momentum of 0.9 on top.",
    ),
    "max_v": Entry(
        partial(
            over_time,
            ROOT,
            {"rms, max_v": _seen(gx.rms(0.9), gx.max_v()), "rms": _seen(gx.rms(0.9))},
        ),
        "The average may fall, its maximum does not: a spike is remembered for ever.",
        "The AMSGrads differ only in where this rule stands. The paper debiases nothing. torch and Keras take the "
        "maximum first and debias it afterwards, so that what they divide by can fall after all. optax takes the "
        "maximum of the debiased average, which is never less than the first gradient; with both "
        "`bias_correction_mu` and `bias_correction_nu` off it is the paper's form, and no setting makes it torch's.",
    ),
    "monotone_rms": Entry(
        partial(
            over_time,
            ROOT,
            {"monotone_rms": _seen(gx.monotone_rms(0.9)), "rms, max_v": _seen(gx.rms(0.9), gx.max_v())},
        ),
        "The second spike is averaged with the maximum itself, not with an average that has forgotten the first.",
        "No framework has it. It is what the review article writes where others mean AMSGrad; on the example that "
        "Reddi et al. broke Adam with it needs about ten times the steps of AMSGrad.",
    ),
    "debias": Entry(
        partial(
            over_time,
            OUT,
            {"momentum(0.97), debias": gx.chain(gx.momentum(0.97), gx.debias()), "momentum(0.97)": gx.momentum(0.97)},
        ),
        "The average starts at zero and takes its time; divided by its weight it is right from the first step.",
        "torch, optax and Keras divide by 1 − βᵗ, from a count of steps. In float32 that cancels for β near 1, and it "
        "is wrong for a β that changes. Keras debiases behind the division by √v, so that its epsilon is one on the "
        'biased average ("epsilon hat"): `precondition, debias`.',
    ),
    "precondition": Entry(
        partial(
            over_time,
            OUT,
            {
                "ε = 0": gx.chain(gx.rms(0.9), gx.precondition(0.0)),
                "ε = 1": gx.chain(gx.rms(0.9), gx.precondition(1.0)),
            },
        ),
        "The gradient in units of its own size. A large ε brings the size back.",
        "Where epsilon stands differs by optimizer and framework. RMSProp: inside the root in optax and Keras, outside "
        "in torch. Adam: outside everywhere, but on the biased average in Keras. Its value is 1e-8 in optax and torch, "
        "1e-7 in Keras. In float16 1e-8 is zero, and Adam of optax and torch gives NaN at a zero gradient; here "
        "arithmetic is in float32 at least, and where the denominator is zero, so is the step.",
    ),
    "scale": Entry(
        partial(over_time, OUT, {"scale(−0.5)": gx.scale(-0.5)}),
        "Each number times the factor.",
        "`optax.scale` is the same, with the factor hidden in a closure; here it is data in the state.",
    ),
    "freeze": Entry(
        partial(
            over_time,
            OUT,
            {
                "sgd(0.5), freeze()": gx.chain(gx.sgd(0.5), gx.freeze()),
                "sgd(0.5)": gx.sgd(0.5),
            },
        ),
        "Nothing comes out, whatever comes in.",
        "optax has `set_to_zero`; torch has `requires_grad=False`, and Keras `trainable=False`, which belong to the "
        "parameter and not to the optimizer.",
    ),
    "sign": Entry(
        partial(
            over_time,
            OUT,
            {"sign": gx.sign(), "momentum(0.9), sign": gx.chain(gx.momentum(0.9), gx.sign())},
        ),
        "Every step is as long as every other. Behind an average, the noise no longer decides the sign.",
        "`optax.scale_by_sign` is the same. torch's Rprop, the oldest of its kind, adapts the length of steps as well.",
    ),
    "scale_by_learning_rate": Entry(
        partial(
            over_time,
            OUT,
            {
                "cosine schedule": gx.scale_by_learning_rate(optax.cosine_decay_schedule(1.0, STEPS)),
                "η = 1": gx.scale_by_learning_rate(1.0),
            },
        ),
        "The step is downhill, so the sign turns. A schedule fades it out.",
        "`optax.scale_by_learning_rate(None)` is the identity and leaves the sign as it is: `optax.adadelta()` with "
        "its defaults climbs. torch's schedulers change the rate from outside, between steps; those of Keras and optax "
        "see count 0 in the first step, as here.",
    ),
    "scale_by_inverse_time": Entry(
        partial(
            over_time,
            OUT,
            {"r = 0.05": gx.scale_by_inverse_time(0.05), "r = 0.5": gx.scale_by_inverse_time(0.5)},
        ),
        "The same gradient counts for less and less.",
        "It is `lr_decay` of torch's Adagrad. In optax and Keras it would be a schedule of the learning rate.",
    ),
    "add_decayed_weights": Entry(
        _decay,
        "In front of Adam, how fast a weight decays depends on how noisy its gradients are; decoupled, it does not.",
        "torch's SGD, RMSprop, Adagrad and Adam have it in front (L2), AdamW behind; Keras has it behind for every "
        "optimizer; in optax it is a place in the chain, as here. AdamW's default is 1e-4 in optax, 1e-2 in torch and "
        "4e-3 in Keras. All three multiply it by the learning rate; in the paper only the schedule does.",
    ),
    "decay_weights": Entry(
        _decay_inside,
        "Decay that goes through the momentum overshoots zero; this one does not go through it.",
        "Keras does this for every optimizer, before the step. torch's AdamW likewise shrinks the weights first, which "
        "comes to the same. In optax, add the decay before the learning rate.",
    ),
    "clip_by_value": Entry(
        partial(over_time, OUT, {"clip_by_value(1)": gx.clip_by_value(1.0)}),
        "What is beyond the limit is cut off, each element by itself; the direction of the whole may change.",
        "`optax.clip`, torch's `clip_grad_value_` and Keras's `clipvalue` do the same, NaN and infinities included. "
        "For complex numbers a limit means nothing; here it is an error.",
    ),
    "clip_by_norm": Entry(
        _disk,
        "Leaves outside the limit are drawn in towards zero as a whole. Those inside, blue, stay.",
        "Keras has it as `clipnorm`. optax has no clip by the L2 norm of a leaf, only one by its root mean square "
        "(`clip_by_block_rms`). torch has it if `clip_grad_norm_` is called for each parameter by itself.",
    ),
    "clip_by_global_norm": Entry(
        _norms,
        "All leaves shrink by the same factor, small ones too, so the direction of the step stays.",
        "torch divides by the norm plus 1e-6: it shrinks what lies just at the limit, and clipping twice is not "
        "clipping once. optax divides at the limit and may end an ulp above it. One infinite element makes one NaN "
        "beside zeros in optax and torch; in Keras, and here, all is NaN: never a silent zero.",
    ),
    "nag_lookahead": Entry(
        _swinging,
        "Heavy ball swings; with gradients from where it is about to be, it brakes in time.",
        "`nesterov=True` of torch and optax is a formula without the lookahead in it, which agrees with Nesterov's "
        "method as long as the learning rate is constant. Keras has the rate inside the momentum, and always agrees. "
        "All of them hold the looked-ahead points as their parameters, as this rule does. The review article looks a "
        "whole step ahead, κ = 1; everybody else μ of it.",
    ),
    "normalized_lookahead": Entry(
        _at_a_distance,
        "The gradient is taken half a unit ahead of the iterate, however short steps are.",
        "torchzero has it as MSAM, with the offset in units of the momentum; SAM in `optax.contrib` takes a second "
        "gradient for it.",
    ),
    "two_point_lookahead": Entry(
        _two_points,
        "The gradient is taken ahead of the point that is held, by κ times the last step.",
        "No framework has it: they hold the points looked ahead to. Papers write it so (Sutskever et al.).",
    ),
    "quasi_hyperbolic": Entry(
        partial(
            over_time,
            OUT,
            {
                "ν = 0.7": gx.chain(gx.momentum(0.9), gx.quasi_hyperbolic(0.7)),
                "ν = 1": gx.momentum(0.9),
            },
        ),
        "The average, with a share of the gradient itself: it answers at once, and a spike comes through.",
        "Lion's mixture is this rule with ν = b1/b2, Muon's and torch's Nesterov momentum with ν = β, the first moment "
        "of MARS with ν = 1 − γ. pytorch_optimizer's QHAdam adds 1 − β₂g² where the paper has (1 − β₂)g², and gives "
        "NaN.",
    ),
    "add_momentum": Entry(
        partial(
            over_time,
            OUT,
            {
                "and add_momentum(0.97)": gx.chain(gx.momentum(0.5), gx.add_momentum(0.97, 2.0)),
                "momentum(0.5)": gx.momentum(0.5),
            },
        ),
        "A quick average, and a slow one on top, which remembers where gradients came from long ago.",
        "AdEMAMix. Its α is 5 in `optax.contrib.ademamix`, 2 in its authors' torch code. Not debiased in the paper, "
        "optax and its authors' code; pytorch_optimizer divides it by 1 − b1ᵗ too.",
    ),
    "add_difference": Entry(
        partial(
            over_time,
            OUT,
            {
                "and add_difference": gx.chain(gx.momentum(0.9), gx.debias(), gx.add_difference(0.5)),
                "momentum": gx.chain(gx.momentum(0.9), gx.debias()),
            },
        ),
        "Where gradients change, the average of the changes runs ahead; where they do not, it adds nothing.",
        "Adan. `optax.adan` computes another algorithm than the paper; timm and the authors' code agree with this.",
    ),
    "extrapolate": Entry(
        partial(
            over_time,
            OUT,
            {
                "and extrapolate(2)": gx.chain(gx.momentum(0.9), gx.extrapolate(2.0)),
                "momentum": gx.momentum(0.9),
            },
        ),
        "A direction that is changing is carried further the way it changes.",
        '`optax.optimistic_gradient_descent` is it before the learning rate, with `first="same"`; MARS has it on the '
        "gradient, with zero before the first (timm: the same), and a clip of each leaf to norm 1 behind it.",
    ),
    "infinity": Entry(
        partial(over_time, ROOT, {"β = 0.9": _seen(gx.infinity(0.9)), "rms(0.9)": _seen(gx.rms(0.9))}),
        "The largest gradient of late, fading by a tenth each step.",
        "torch and optax take the maximum with |g| + ε, as here; Keras adds its ε to the maximum.",
    ),
    "yogi_rms": Entry(
        partial(over_time, ROOT, {"yogi_rms(0.9)": _seen(gx.yogi_rms(0.9)), "rms(0.9)": _seen(gx.rms(0.9))}),
        "After a spike it falls by a tenth of the squared gradient each step, however high it is.",
        "`optax.yogi` starts both averages at 1e-6 instead of at zero.",
    ),
    "belief_rms": Entry(
        partial(over_time, ROOT, {"belief_rms": _seen(gx.belief_rms(0.9, 0.9)), "rms": _seen(gx.rms(0.9))}),
        "While gradients are as expected, it is small, and steps are long.",
        "In `optax.adabelief` and the paper ε is added to s in each step, and so accumulates; `optax.contrib.acprop` "
        "is the lagged form.",
    ),
    "lag_v": Entry(
        partial(over_time, ROOT, {"rms, lag_v": _seen(gx.rms(0.9), gx.lag_v()), "rms": _seen(gx.rms(0.9))}),
        "The same, one step late: a spike is not divided by itself.",
        "ADOPT's clip grows with count^¼ in optax and the paper, with count^⅓ in timm.",
    ),
    "scale_by_update_rms": Entry(
        partial(
            over_time,
            OUT,
            {
                "and update rms": gx.chain(gx.rms(0.9), gx.precondition(0.0, 1e-2), gx.scale_by_update_rms(0.9, 1e-2)),
                "rms, precondition": gx.chain(gx.rms(0.9), gx.precondition(0.0, 1e-2)),
            },
        ),
        "Steps are as long as earlier steps were: the first is √ε long, and they grow from there.",
        "AdaDelta: ρ is 0.9 in torch and optax, 0.95 in Keras and the paper; ε 1e-6, 1e-6 and 1e-7. "
        "`optax.adadelta()` with its defaults climbs, since no learning rate turns its sign.",
    ),
    "resilient_step": Entry(
        partial(over_time, OUT, {"resilient_step(0.1)": gx.resilient_step(0.1, high=1.0)}),
        "The step grows while the sign stays, halves where it turns, and pauses there.",
        "torch's Rprop. `optax.rprop` returns the update of the step before.",
    ),
    "arctan": Entry(
        partial(over_time, OUT, {"arctan()": gx.arctan(), "clip_by_value(2)": gx.clip_by_value(2.0)}),
        "Small directions as they are, large ones bent towards a bound.",
        "adam-atan2-pytorch has it built into Adam. `atan2` of a gradient whose square underflows is a·π/2, where "
        "`precondition(0)` gives 0.",
    ),
    "average_iterates": Entry(
        _averaged,
        "The iterates keep shaking; both averages settle. The plain one remembers the start for longer.",
        "torch's `AveragedModel` and timm's `ModelEma` hold a second copy of the parameters, Keras has `use_ema`, "
        "optax `contrib.schedule_free`, and an `ema` of updates, not of parameters. Here it is one offset at the "
        "end of any chain. torch's EMA starts as a copy at its first call. Keras counts every iterate of its "
        "schedule-free optimizer alike, also in the warm-up.",
    ),
    "lookahead": Entry(
        _slow_weights,
        "Every fifth step goes half of the way back.",
        "`optax.lookahead` holds two sets of parameters, in a type of their own that goes through the loss; here it is "
        "an offset. optax and timm can reset the inner state at each return.",
    ),
    "orthogonalize": Entry(
        _singular_values,
        "All but the smallest singular values come out between 0.68 and 1.13.",
        "torch and its author's Muon iterate in bfloat16 whatever the weights are, and agree with this to a hundredth; "
        "optax and Keras do as here. A guard of 1e-8 or 1e-7 on the norm, which all of them have, shrinks a matrix of "
        "norm 1e-6 by a tenth. optax's Muon has the other norms, too, and `dual` as `adaptive`.",
    ),
    "scale_by_shape": Entry(
        _shapes,
        "The first form grows with the outputs, the second keeps the root mean square of the step.",
        "√max(1, out/in) in torch, optax and its author's Muon; 0.2·√max(in, out) is torch's `match_rms_adamw`, "
        "optax's `consistent_rms`, and Keras's default.",
    ),
    "rectified_precondition": Entry(
        partial(
            over_time,
            OUT,
            {
                "rectified": gx.chain(gx.rms(0.99), gx.debias(), gx.rectified_precondition(0.99)),
                "precondition": gx.chain(gx.rms(0.99), gx.debias(), gx.precondition()),
            },
        ),
        "Five steps by the gradient alone, then small ones that grow.",
        "RAdam rectifies from ρ > 5 on in torch, from ρ ≥ 5 in optax; the paper has 4. torch has its epsilon on the "
        "biased average, optax on the debiased one. pytorch_optimizer takes no step at all before.",
    ),
    "scale_by_factored_rms": Entry(
        partial(
            over_time,
            OUT,
            {"p = 0.8": gx.scale_by_factored_rms(), "p = 1": gx.scale_by_factored_rms(1.0)},
        ),
        "One element has no rows and columns to factor: what is left is an average of squares, whose memory grows.",
        "torch clamps: the mean of rows to at least 1.2e-7, and v to its square, so that gradients below 3e-4 are "
        "inflated (`floor=None`); optax, Keras and transformers add 1e-30 to the squares, as here. optax factors the "
        "two largest axes if both have 128 or more, torch, Keras and transformers the last two of any size "
        '(`axes="last"`).',
    ),
    "scale_by_trust_ratio": Entry(
        partial(
            over_time,
            OUT,
            {"for a weight of 1": gx.scale_by_trust_ratio(), "g": gx.chain()},
            param=1.0,
        ),
        "With one element to a leaf, the step has the sign of the gradient and the length of the weight.",
        "LARS in three forms: the norm of g + λp (optax), the sum of ‖g‖ and λ‖p‖ (the paper, timm), ‖g‖ alone "
        "(pytorch_optimizer); the same step is 4.5, 6.3 and 8.7 long in one example. LAMB has the decay inside the "
        "ratio in the paper, optax and timm; Keras shrinks the weights before.",
    ),
    "cautious": Entry(
        partial(
            over_time,
            OUT,
            {"and cautious": gx.chain(gx.momentum(0.9), gx.cautious()), "momentum(0.9)": gx.momentum(0.9)},
        ),
        "Where the gradient turns against the momentum there is no step.",
        "Five forms: the mean as here (the authors' AdamW, timm), n/(number + 1) (their Lion, pytorch_optimizer), "
        "n/max(1, number) by the bits of the sign (heavyball), mean + ε (levanter), and a small factor instead of 0 "
        "(lucidrains: `opposed`). The authors' own path for many tensors masks with m·m > 0, which is nothing.",
    ),
    "clip_by_rms": Entry(
        partial(over_time, OUT, {"clip_by_rms(1)": gx.clip_by_rms(1.0), "g": gx.chain()}),
        "With one element to a leaf, it is a clip by value.",
        "`optax.clip_by_block_rms` is it.",
    ),
    "clip_by_gradient_rms": Entry(
        partial(
            over_time,
            OUT,
            {
                "and clipped": gx.chain(STABLE, gx.clip_by_gradient_rms(), gx.precondition()),
                "Adam's": gx.chain(STABLE, gx.precondition()),
            },
        ),
        "Where a large gradient comes, v has not seen it yet, and the step would be long.",
        "transformers has it as `stable_adamw`, of the package optimi, and pytorch_optimizer as StableAdamW.",
    ),
    "project_out": Entry(
        _turned,
        "Gradients are orthogonal to such weights, and momentum, which knows those of before, is not.",
        "AdamP (timm, pytorch_optimizer) projects its direction where the cosine between gradient and weights is below "
        "0.1/√n, by output and else by leaf, and decays such weights by a tenth. OrthoGrad projects the gradient, and "
        "gives it the length that it had.",
    ),
    "scale_by_parameter_rms": Entry(
        partial(
            over_time,
            OUT,
            {"for a weight of 0.5": gx.scale_by_parameter_rms(), "g": gx.chain()},
            param=0.5,
        ),
        "A weight half as large moves half as far.",
        "`optax.scale_by_param_block_rms` is it, and a part of every Adafactor.",
    ),
    "monitor": Entry(
        _watched,
        "What it saw in each step, read from the state. The chain computes the same without it.",
        "torch's `clip_grad_norm_` returns the global norm that it found, and `optax.global_norm` is there to be "
        "called; the rest is up to callbacks and hooks.",
    ),
    "scale_by_gradient_norm": Entry(
        partial(
            over_time,
            OUT,
            {"sum of all": gx.scale_by_gradient_norm(), "β = 0.9": gx.scale_by_gradient_norm(0.9)},
        ),
        "One element, so this is AdaGrad, and RMSProp from the first gradient on; of many, one number serves all.",
        "NovoGrad in optax and timm is this rule with a decay, started at the first norm. pytorch_optimizer starts "
        "there and averages the first norm in again. optax's DoG has the sum over all leaves, with ε inside the root.",
    ),
    "scale_by_distance": Entry(
        _distances,
        "The distance from the start says how long steps may be: it grows by itself, however small it was.",
        "`optax.contrib.dog` and `dowg` have it inside, with the distance, or its square, at the start given.",
    ),
    "in_units_of_distance": Entry(
        _estimated,
        "From any first estimate that is too small it comes to the same order; the weights have 3 and 4 to go here.",
        "Prodigy's authors debias nothing by default, and can; optax always does, and lets its learning rate of the "
        "estimate know of it. pytorch_optimizer with debiasing counts two steps for each.",
    ),
    "at_learned_rate": Entry(
        _learned,
        "Betters win while steps in one direction would have paid, and the factor grows; s₀ says how soon.",
        "`optax.contrib.mechanize`, by its authors, is this; its sums of gains may fall below 0, and then bet none.",
    ),
    "scale_by_distance_bound": Entry(
        _bounded,
        "From any first d that is too small it comes to the same order; the weights have 3 and 4 to go here.",
        "`optax.contrib.dadapt_adamw` and its authors' package divide s by the root of before this gradient, as "
        "`lagged=True` does; the paper has that with it. Both debias by the learning rate, if at all.",
    ),
    "scale_by_sm3": Entry(
        _covered,
        "What is held for a row and a column is an upper bound of AdaGrad's sum where they meet.",
        "`optax.sm3` is this and a momentum; it has no scalars.",
    ),
    "running_sum": Entry(
        partial(over_time, OUT, {"running_sum": gx.running_sum(), "trace(0.9)": gx.trace(0.9)}),
        "Nothing is forgotten.",
        "Inside of `optax.contrib.madgrad`, as the sum of gradients.",
    ),
    "dual_averaging": Entry(
        _from_the_start,
        "By itself gradient descent; going a share of the way only, it has inertia.",
        "Inside of MADGRAD, in optax and its authors' package, which also add ε to the learning rate.",
    ),
    "coin_betting": Entry(
        _bets,
        "While gradients agree steps grow exponentially. No length was given: α says only how it begins.",
        "`optax.contrib.cocob` begins with a scale of gradients of 1e-8, and has the learning rate in front, where a "
        "constant one changes nothing.",
    ),
    "ftrl_proximal": Entry(
        _led,
        "With l₁ the weight stays exactly 0 until the gradients' sum is greater.",
        "Keras's Ftrl starts the squares at 0.1 and z at 0, which do not fit: its first step multiplies the weights by "
        "1 − √(0.1/(0.1 + g²)), so that without any gradient they become 0.",
    ),
    "skip_first": Entry(
        partial(
            over_time,
            OUT,
            {
                "skip_first(5)": gx.chain(gx.skip_first(5), gx.momentum(0.9), gx.debias()),
                "without": gx.chain(gx.momentum(0.9), gx.debias()),
            },
            30,
        ),
        "The average begins with the sixth gradient, as if there had been none before.",
        "SOAP, ADOPT and PSGD skip their first step by a condition of their own.",
    ),
    "add_cautious_decay": Entry(
        _cautious_decay,
        "It does not hold the weight back on its way away from 0; beyond its place it brakes it.",
        "pytorch_optimizer and heavyball have it as an option; heavyball looks at the bits of the signs, for which 0 "
        "is positive.",
    ),
    "scale_by_model": Entry(
        _modelled,
        "Its steps follow averages of noisy losses and gradients, where those of Polyak follow each.",
        "`optax.contrib.momo` begins its averages with the first gradient, `momo_adam` at 0, debiased. With a weight "
        "decay the model is that of a step divided by 1 + ηλ as the weights are, and the step that optax takes is not.",
    ),
    "scale_by_polyak": Entry(
        _polyak,
        "Told how far the loss is from its minimum, it needs no rate. Told less, it goes on as if there were more.",
        "`optax.polyak_sgd` multiplies by −η first and takes the norm of that.",
    ),
    "add_noise": Entry(
        partial(
            over_time,
            OUT,
            {"variance 1": gx.add_noise(1.0), "variance 0": gx.add_noise(0.0)},
        ),
        "Much at first; after sixty steps a tenth of the variance is left.",
        "`optax.add_noise` has a key in its state, and so another noise.",
    ),
    "centralize": Entry(
        _centred,
        "The inputs of each output are moved to a mean of 0.",
        "`optax.centralize` keeps axis 0, torch's layout of the outputs, though its adaptive clip, one module away, "
        "takes the last axis for them.",
    ),
    "adaptive_clip": Entry(
        _unit_norms,
        "Each output's gradient is at most as long as its weights, here.",
        "`optax.adaptive_grad_clip` takes only axis 0 together in a leaf of three axes.",
    ),
    "scale_by_slice_rms": Entry(
        _slices,
        "The first step: slices are as long as each other, and their elements keep their proportions.",
        "Its authors' Adam-mini takes a number for each head of queries and keys, which is `output=0` inside of "
        "`as_matrices`, and for each output of other matrices. NovoGrad divides whole leaves before its momentum.",
    ),
    "scale_by_eigenbasis_rms": Entry(
        partial(_hilly, ("soap(0.1)", gx.soap(0.1, 0.9, every=1)), ("adam(0.1)", gx.adam(0.1, 0.9, 0.95))),
        "Adam divides elements, SOAP what goes together. Here it starts more slowly, with equal steps along all axes.",
        "The authors and heavyball keep the momentum in the rotated basis and turn it with that; in the original one, "
        "as here, it is the same. heavyball debiases before it divides; the authors do so afterwards.",
    ),
    "as_matrices": Entry(
        _heads,
        "Heads whose gradients are small take smaller steps where all are one matrix, and the same where each is one.",
        "`optax.contrib.muon` and `galore` take dimension numbers for it; torch's Muon takes matrices alone, Keras's "
        "leaves others to Adam, and its author flattens the kernels of convolutions.",
    ),
    "in_subspace": Entry(
        partial(
            _hilly,
            ("galore(0.2, rank=2)", gx.galore(0.2, rank=2, factor=1.0, every=5)),
            ("adam(0.2)", gx.adam(0.2)),
        ),
        "Two of six directions at a time, taken anew every five steps.",
        "The paper projects the shorter side, and so do its authors, but for square matrices, where they take the "
        "columns; `optax.contrib.galore` the longer. Both take float32 decompositions with whatever signs these have.",
    ),
    "scale_by_kronecker_root": Entry(
        _roots,
        "Of one gradient, with ε = 0, all singular values become 1.",
        "Distributed Shampoo averages instead of summing (`decay`), and takes the size of steps from another "
        "optimizer. pytorch_optimizer has ε on the first sum only, as here, and puts its direction into the momentum; "
        "torch_optimizer takes L^(−½), and R of what L has divided already.",
    ),
    "seal": Entry(
        partial(
            over_time,
            OUT,
            {
                "sealed": gx.chain(gx.momentum(0.9), gx.seal(gx.chain(gx.rms(0.9), gx.precondition()))),
                "not sealed": gx.chain(gx.momentum(0.9), gx.rms(0.9), gx.precondition()),
            },
        ),
        "A momentum, then rms and precondition. Sealed, the average of squares sees the momentum, not the gradient.",
        "In `optax.chain` every transformation is sealed in this sense: it sees what the one before it made. So "
        "`optax.chain(ema, scale_by_rms)` is not Adam, and Adam has to be one transformation.",
    ),
}
