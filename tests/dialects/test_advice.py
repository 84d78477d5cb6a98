"""Names that a dialect does not have, and the argument values that it refuses: what is advised makes the same steps."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from oracles.compare import optax_in_float64, update
from oracles.generate import keras_float64
from trajectories import in_groups, run_each

import gradtx as gx
from gradtx.dialects import keras as of_keras, optax as of_optax, torch as of_torch

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

MASK = {"a": True, "b": False}
RATE = optax.exponential_decay(0.05, 1, 0.95)


def down(tx, rate=0.05):
    """A direction, and its steps."""
    return gx.chain(tx, gx.scale(-rate))


def apart(tx):
    """Each leaf for itself."""
    return gx.partition([(f"^{leaf}$", tx) for leaf in "ab"])


def sealed(tx):
    return gx.chain(gx.seal(tx), gx.sgd(0.1)), optax.chain(tx, optax.sgd(0.1))


def sometimes(step: Any, **_: Any) -> Any:
    return step % 3 == 0


def same() -> dict[str, tuple[Any, Any]]:
    """Of names that optax's dialect does not have: what is advised, and optax's own."""
    dog = gx.chain(gx.scale_by_gradient_norm(eps_root=1e-8, over="tree"), gx.scale_by_distance())
    adam = optax.adam(0.05)
    return {
        "optimistic_adam": (of_optax.optimistic_adam_v2(1.0, alpha=0.05, beta=0.1), optax.optimistic_adam(0.05, 0.1)),
        "schedule_free": (
            gx.chain(gx.sgd(RATE), gx.average_iterates(pull=0.8, learning_rate=lambda count: RATE(count + 1))),
            optax.contrib.schedule_free(optax.sgd(RATE), RATE, b1=0.8),
        ),
        "chain": (gx.chain(gx.trace(0.9), gx.scale(-0.1)), optax.chain(optax.trace(0.9), optax.scale(-0.1))),
        "named_chain": (gx.chain(gx.sgd(0.1), name="x"), optax.named_chain(("x", optax.sgd(0.1)))),
        "identity": (gx.chain(), optax.identity()),
        "partition": (
            gx.partition({"a": gx.sgd(0.1), "b": gx.adam(0.1)}),
            optax.partition({0: optax.sgd(0.1), 1: optax.adam(0.1)}, {"a": 0, "b": 1}),
        ),
        "multi_transform": (
            gx.partition({"a": gx.sgd(0.1), "b": gx.adam(0.1)}),
            optax.multi_transform({0: optax.sgd(0.1), 1: optax.adam(0.1)}, {"a": 0, "b": 1}),
        ),
        "masked": (gx.where(MASK, gx.sgd(0.1)), optax.masked(optax.sgd(0.1), MASK)),
        "selective_transform": (
            gx.partition({"b": gx.adam(0.1)}, default="freeze"),
            optax.selective_transform(optax.adam(0.1), freeze_mask=MASK),
        ),
        "freeze": (gx.chain(gx.sgd(0.1), gx.freeze(where=MASK)), optax.chain(optax.sgd(0.1), optax.freeze(MASK))),
        "set_to_zero": (gx.freeze(), optax.set_to_zero()),
        "flatten": (gx.packed(gx.adam(0.05)), optax.flatten(adam)),
        "multisteps": (gx.accumulate(gx.adam(0.05), 3), optax.MultiSteps(adam, 3).gradient_transformation()),
        "apply_every": (
            gx.chain(gx.sgd(0.1), gx.accumulate(gx.chain(), 3, combine="sum")),
            optax.chain(optax.sgd(0.1), optax.apply_every(3)),
        ),
        "apply_if_finite": (gx.skip_nonfinite(gx.adam(0.05)), optax.apply_if_finite(adam, 60)),
        "skip_not_finite": (
            gx.skip_nonfinite(gx.accumulate(gx.adam(0.05), 3)),
            optax.MultiSteps(adam, 3, should_skip_update_fn=optax.skip_not_finite).gradient_transformation(),
        ),
        "adaptive_grad_clip": (
            gx.chain(gx.adaptive_clip(0.1), gx.sgd(0.1)),
            optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)),
        ),
        "clip_by_block_rms": (down(gx.clip_by_rms(0.3)), optax.chain(optax.clip_by_block_rms(0.3), optax.scale(-0.05))),
        "add_decayed_weights": (
            down(gx.add_decayed_weights(0.3, where=MASK)),
            optax.chain(optax.add_decayed_weights(0.3, MASK), optax.scale(-0.05)),
        ),
        "centralize": (down(gx.centralize(output=0)), optax.chain(optax.centralize(), optax.scale(-0.05))),
        "trace": (down(gx.trace(0.9, True)), optax.chain(optax.trace(0.9, True), optax.scale(-0.05))),
        "ema": (
            down(gx.chain(gx.momentum(0.9), gx.debias())),
            optax.chain(optax.ema(0.9), optax.scale(-0.05)),
        ),
        "scale": (gx.scale(-0.1), optax.scale(-0.1)),
        "scale_by_schedule": (
            gx.scale(lambda count: -1 * jnp.asarray(RATE(count))),
            optax.scale_by_schedule(lambda count: -1 * jnp.asarray(RATE(count))),
        ),
        "scale_by_learning_rate": (gx.scale_by_learning_rate(RATE), optax.scale_by_learning_rate(RATE)),
        "scale_by_sign": (down(gx.sign()), optax.chain(optax.scale_by_sign(), optax.scale(-0.05))),
        "scale_by_rms": (
            down(gx.chain(gx.rms(0.9), gx.precondition(0.0, 1e-2))),
            optax.chain(optax.scale_by_rms(0.9, 1e-2), optax.scale(-0.05)),
        ),
        "scale_by_rss": (
            down(gx.chain(gx.adagrad_sum(0.1), gx.precondition(0.0, 1e-7))),
            optax.chain(optax.scale_by_rss(), optax.scale(-0.05)),
        ),
        "scale_by_stddev": (
            down(gx.chain(gx.centered_rms(0.9), gx.precondition(0.0, 1e-2))),
            optax.chain(optax.scale_by_stddev(0.9, 1e-2), optax.scale(-0.05)),
        ),
        "scale_by_belief": (
            down(gx.chain(gx.belief_rms(0.9, 0.99, 1e-3), gx.debias(), gx.precondition(1e-2))),
            optax.chain(optax.scale_by_belief(0.9, 0.99, 1e-2, 1e-3), optax.scale(-0.05)),
        ),
        "scale_by_factored_rms": (
            down(gx.scale_by_factored_rms(0.8, 1e-30, 2)),
            optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=2), optax.scale(-0.05)),
        ),
        "scale_by_trust_ratio": (
            down(gx.scale_by_trust_ratio(0.1, 1e-2)),
            optax.chain(optax.scale_by_trust_ratio(trust_coefficient=0.1, eps=1e-2), optax.scale(-0.05)),
        ),
        "scale_by_param_block_rms": (
            down(gx.scale_by_parameter_rms(1.5)),
            optax.chain(optax.scale_by_param_block_rms(1.5), optax.scale(-0.05)),
        ),
        "scale_by_optimistic_gradient": (
            down(gx.extrapolate(0.5, "same")),
            optax.chain(optax.scale_by_optimistic_gradient(1.0, 0.5), optax.scale(-0.05)),
        ),
        "scale_by_distance_over_gradients": (
            apart(gx.chain(dog, gx.scale(-1.0))),
            optax.scale_by_distance_over_gradients(param_dtype=jnp.float64, global_scale=-1.0),
        ),
        "normalize": (
            down(gx.scale_by_gradient_norm(0.0, over="tree")),
            optax.chain(optax.contrib.normalize(), optax.scale(-0.05)),
        ),
        "inject_hyperparams": (gx.adam(0.05), optax.inject_hyperparams(optax.adam)(0.05)),
        "with_extra_args_support": (gx.adam(0.05), optax.with_extra_args_support(adam)),
        "stateless": (gx.scale(-0.05), optax.stateless(lambda g, _: jax.tree.map(lambda x: -0.05 * x, g))),
        "zero_nans": sealed(optax.zero_nans()),
        "keep_params_nonnegative": sealed(optax.keep_params_nonnegative()),
        "normalize_by_update_norm": sealed(optax.normalize_by_update_norm()),
        "conditionally_mask": sealed(optax.conditionally_mask(optax.sgd(1.0), sometimes)),
        "conditionally_transform": sealed(optax.conditionally_transform(optax.scale(2.0), sometimes)),
        "scale_by_param_block_norm": sealed(optax.scale_by_param_block_norm()),
        "split_real_and_imaginary": sealed(optax.contrib.split_real_and_imaginary(adam)),
        "scale_by_lbfgs": sealed(optax.scale_by_lbfgs(3)),
    }


NOT_COMPARED = {
    **dict.fromkeys(("skip_large_updates", "add_noise", "noisy_sgd"), "another, as it says"),
    **dict.fromkeys(("monitor", "snapshot", "measure_with_ema", "schedule_free_eval_params"), "makes no steps"),
    "lookahead": "takes two sets of parameters; a test of the rule compares it",
    **dict.fromkeys(("inject_stateful_hyperparams", "stateless_with_tree_map"), "as another one here"),
    **dict.fromkeys(("scale_by_backtracking_linesearch", "scale_by_zoom_linesearch", "lbfgs"), "reads the loss"),
    **dict.fromkeys(("scale_by_polyak", "reduce_on_plateau", "sam"), "reads the loss, or its gradient twice"),
    **dict.fromkeys(("sophia", "hutchinson_estimator_diag_hessian"), "reads the loss"),
    **dict.fromkeys(("dpsgd", "differentially_private_aggregate"), "sees the gradient of each example"),
    **dict.fromkeys(("scale_by_cocob", "scale_by_madgrad", "scale_by_muon"), "among the directions"),
}
"""Other names, and why their advice is not compared."""

ALIKE = {"multisteps": 1e-7, "skip_not_finite": 1e-7}
"""Where optax takes means in float32."""


@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning")
def test_the_advice_of_every_name_is_compared():
    assert same().keys() | NOT_COMPARED.keys() == of_optax._INSTEAD.keys()
    assert not same().keys() & NOT_COMPARED.keys()


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning")
def test_what_is_advised_makes_the_same_steps():
    table = list(same().items())
    for start in range(0, len(table), 12):
        some = table[start : start + 12]
        ours = run_each({name: advised for name, (advised, _) in some})
        with optax_in_float64(), jax.numpy_rank_promotion("allow"):
            theirs = run_each({name: own for name, (_, own) in some})
        for name in ours:
            tolerance = ALIKE.get(name, 1e-11)
            chex.assert_trees_all_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance)


DIRECTIONS: dict[str, dict[str, Any]] = {
    "adan": {"eps_root": 1e-8},  # where the two have other defaults
    "novograd": {"eps": 1e-6},
    "ademamix": {"alpha": 5.0},
    **{name: {} for name in ("adadelta", "adam", "adamax", "amsgrad", "lion", "radam", "sm3", "yogi")},
    **{name: {} for name in ("acprop", "simplified_ademamix", "adopt", "galore")},
}
"""Arguments of what optax has as ``scale_by_...`` beside the optimizer."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("names", in_groups(list(DIRECTIONS)))
def test_directions_are_the_rules_but_for_the_learning_rate(names):
    ours, theirs = {}, {}
    for name in names:
        with pytest.raises(AttributeError, match=rf"rules of gradtx.dialects.optax.{name}\(...\) but for"):
            getattr(of_optax, f"scale_by_{name}")
        made, where = getattr(of_optax, name), optax if hasattr(optax, f"scale_by_{name}") else optax.contrib
        still = {"weight_decay": 0.0} if name in ("lion", "adan", "acprop", "novograd") else {}
        ours[name] = down(gx.chain(*made(1.0, **DIRECTIONS[name], **still).rules[:-1]))
        direction = getattr(where, f"scale_by_{name}")(**DIRECTIONS[name])
        theirs[name] = optax.chain(direction, optax.scale(-0.05))
    with optax_in_float64():
        expected = run_each(theirs)
    chex.assert_trees_all_close(run_each(ours), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.exhaustive
def test_directions_that_are_the_whole():
    """Those of the optimizers in which the learning rate is not the last rule; Muon's, for matrices."""
    ours = {
        "cocob": of_optax.cocob(),
        "madgrad": of_optax.madgrad(0.1, eps=1e-3),
        "muon": down(gx.chain(gx.nesterov(0.95), gx.orthogonalize(eps=1e-8))),
    }
    theirs = {
        "cocob": optax.contrib.scale_by_cocob(),
        "madgrad": optax.contrib.scale_by_madgrad(0.1, eps=1e-3),
        "muon": optax.chain(optax.contrib.scale_by_muon(), optax.scale(-0.05)),
    }
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))
    for name, made in ours.items():
        with optax_in_float64():
            runs = [steps_of(tx, matrix) for tx in (made, theirs[name])]
        chex.assert_trees_all_close(*runs, rtol=1e-11, atol=1e-11)


def steps_of(tx, params, steps=20):
    """The parameters in the end, and the gradient a function of them and of the step."""
    state = tx.init(params)
    for k in range(steps):
        grads = jax.tree.map(lambda p, k=k: jnp.sin(3.0 * k + p) + 0.1 * p, params)
        params, state = update(tx, grads, state, params)
    return params


# torch ----------------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_what_is_advised_for_torch():
    """SparseAdam with gradients of all rows; an average of weights, torch's of all and its exponential one."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(3, 2)), rng.normal(size=(60, 3, 2))

    def trained(make, tx, averaging=None):
        """The parameters, and those of the average, in the end: torch's and ours."""
        w = torch.nn.Parameter(torch.tensor(start))
        holder = torch.nn.ParameterList([w])
        optimizer, average = make([w]), torch.optim.swa_utils.AveragedModel(holder, **averaging or {})
        params, state = jnp.asarray(start), tx.init(jnp.asarray(start))
        for g in grads:
            dense = torch.tensor(g)
            w.grad = dense.to_sparse(1) if isinstance(optimizer, torch.optim.SparseAdam) else dense
            optimizer.step()
            average.update_parameters(holder)
            params, state = update(tx, jnp.asarray(g), state, params)
        theirs = w.detach().numpy(), next(iter(average.module.parameters())).detach().numpy()
        return theirs, (params, gx.evaluation_point(state, params))

    (expected, _), (found, _) = trained(
        lambda ws: torch.optim.SparseAdam(ws, 0.1, (0.8, 0.9), 1e-2), of_keras.adam(0.1, 0.8, 0.9, 1e-2)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    sgd, ours = (lambda ws: torch.optim.SGD(ws, 0.1)), of_torch.sgd(0.1)
    (_, expected), (_, found) = trained(sgd, gx.chain(ours, gx.average_iterates()))
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    ema = {"multi_avg_fn": torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)}
    rate = gx.average_iterates(lambda count: jnp.where(count == 0, 1.0, 0.2))
    (_, expected), (_, found) = trained(sgd, gx.chain(ours, rate), ema)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_what_torch_refuses_too():
    torch = pytest.importorskip("torch")
    w = [torch.nn.Parameter(torch.ones(2, 2))]
    for name, arguments in (
        ("SGD", {"nesterov": True}),
        ("SGD", {"momentum": 0.9, "dampening": 0.5, "nesterov": True}),
        ("Adam", {"lr": -0.1}),
        ("Muon", {"adjust_lr_fn": "x"}),
    ):
        with pytest.raises(ValueError):
            getattr(torch.optim, name)(w, **arguments)
        with pytest.raises(ValueError):
            getattr(of_torch, name.lower())(**arguments)
    with pytest.raises(ValueError):
        torch.optim.Muon([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="needs matrices"):
        of_torch.muon().init(jnp.ones(2))


# Keras ----------------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # raised within Keras
def test_what_is_advised_for_keras(monkeypatch):
    """No clip for one that is not positive, no average of an average, and a scale of the loss."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in ((3, 2), (4,))]
    grads = [rng.normal(size=(30, *x.shape)) for x in start]
    cases: dict[str, tuple[Any, Any, float]] = {
        "clip": (of_keras.adam(0.1), lambda keras: keras.optimizers.Adam(0.1, clipnorm=0.0), 1.0),
        "average": (
            of_keras.schedule_free_adamw(0.1),
            lambda keras: keras.optimizers.ScheduleFreeAdamW(0.1, use_ema=True),
            1.0,
        ),
        "scale": (
            gx.loss_scale(of_keras.adam(0.1), initial=8.0),
            lambda keras: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1), initial_scale=8.0),
            8.0,
        ),
    }
    with keras_float64() as keras:
        for tx, make, scale in cases.values():
            variables = [keras.Variable(x, dtype="float64") for x in start]
            optimizer = make(keras)
            optimizer.build(variables)
            theirs, held = [v.value for v in variables], [v.value for v in optimizer.variables]
            params = [jnp.asarray(x) for x in start]
            state = tx.init(params)
            for k in range(30):
                gs = [scale * (g[k] + 0.1 * p) for g, p in zip(grads, params, strict=True)]
                theirs, held = optimizer.stateless_apply(held, gs, theirs)
                params, state = update(tx, gs, state, params)
            chex.assert_trees_all_close(params, theirs, rtol=1e-6)


@pytest.mark.exhaustive
def test_what_keras_refuses_too(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    for name, arguments in (
        ("AdamW", {"weight_decay": None}),
        ("Lion", {"beta_1": 0.0}),
        ("SGD", {"gradient_accumulation_steps": 1}),
        ("Adam", {"clipnorm": 1.0, "clipvalue": 1.0}),
    ):
        with pytest.raises((ValueError, TypeError)):
            getattr(keras.optimizers, name)(**arguments)
        with pytest.raises(ValueError):
            getattr(of_keras, name.lower())(**arguments)
