"""The dialects against the real torch and Keras: stored trajectories always, the frameworks where installed."""

import importlib.util
import inspect
import types
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from oracles.cases import CASES, LR_NAME, NEED_THE_LOSS, OF_A_TREE, OPTAX
from oracles.compare import (
    GOLDENS,
    make,
    of_dialect,
    of_optax,
    optax_difference,
    optax_in_float64,
    table,
    trajectory,
    update,
)
from oracles.generate import run_keras, run_torch
from trajectories import in_groups, run as run_stream, run_each

import gradtx as gx
from gradtx import dialects, testing

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def by_case(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


def live(framework):
    """For each set of arguments one case in most runs: what a framework does stays while its version is pinned."""
    cases = [case for case in CASES if case.framework == framework]
    rest = {case.id for case in cases if case.schedule != "decaying" or case.problem not in ("stochastic", "matrices")}
    return by_case([pytest.param(case, marks=[pytest.mark.exhaustive] * (case.id in rest)) for case in cases])


FIRST = {"sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam"}  # these are tried with all arguments


def said(case):
    """Cases of most runs: where most of what an argument does shows; of the later optimizers with other arguments."""
    first = case.optimizer in FIRST and case.variant != "maximize"
    shows = case.problem in ("stochastic", "matrices") and case.schedule == "decaying"
    further = case.variant in OF_A_TREE.get((case.framework, case.optimizer), {}).keys() - {"first", "power", "decay"}
    further = further and case.optimizer not in ("muon", "schedule_free_adamw", "lion")
    return further or (shows and (first or case.variant not in ("default", "lr")))


SOME = [pytest.param(case, marks=[] if said(case) else [pytest.mark.exhaustive]) for case in CASES]


@by_case(SOME)
def test_same_trajectory_as_stored(case):
    golden = GOLDENS[case.framework][case.id]
    np.testing.assert_allclose(trajectory(case, make(case)), golden, rtol=1e-10, atol=1e-10)
    assert np.ptp(golden, axis=0).max() > 1e-3  # it went somewhere


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed: extra [oracles]")
@live("torch")
def test_stored_is_what_torch_does(case):
    np.testing.assert_allclose(run_torch(case), GOLDENS["torch"][case.id], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # raised within Keras
@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="keras is not installed: extra [oracles]")
@live("keras")
def test_stored_is_what_keras_does(case):
    np.testing.assert_allclose(run_keras(case), GOLDENS["keras"][case.id], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam"])
def test_the_frameworks_are_not_the_same(optimizer):
    """The goldens tell the frameworks apart, so that a dialect cannot pass with the other's order."""
    moved = 0.0
    for case in CASES:
        if case.optimizer == optimizer and case.variant == "all" and case.schedule == "decaying":
            theirs = GOLDENS[case.framework][case.id]
            plain = getattr(gx, optimizer)(case.lr)
            moved = max(moved, abs(trajectory(case, plain) - theirs).max())
    assert moved > 1e-3


SCHEDULE = optax.exponential_decay(0.03, 1, 0.95)


@pytest.mark.parametrize(
    "rate", [pytest.param(0.01, marks=pytest.mark.exhaustive), SCHEDULE], ids=["constant", "scheduled"]
)
@pytest.mark.parametrize("names", in_groups([name for name in OPTAX if name not in NEED_THE_LOSS], size=5))
def test_same_trajectory_as_optax(names, rate):
    calls = {f"{name} {kwargs}": (name, kwargs) for name in names for kwargs in OPTAX[name]}
    ours = run_each({call: of_dialect(name)(rate, **kwargs) for call, (name, kwargs) in calls.items()})
    with optax_in_float64():
        theirs = run_each({call: of_optax(name)(rate, **kwargs) for call, (name, kwargs) in calls.items()})
    chex.assert_trees_all_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", NEED_THE_LOSS)
def test_same_trajectory_as_optax_with_the_loss(name):
    for kwargs in OPTAX[name]:
        assert optax_difference(name, kwargs) < 1e-11


def test_adadelta_of_optax_without_a_learning_rate():
    """It climbs, unless something behind it turns it around."""
    ours, theirs = (gx.chain(made(eps=1e-3), gx.scale(-0.5)) for made in (dialects.optax.adadelta, optax.adadelta))
    chex.assert_trees_all_close(run_stream(ours, 20), run_stream(theirs, 20), rtol=1e-11)
    assert float(dialects.optax.adadelta().update(ONE := jnp.ones(1), dialects.optax.adadelta().init(ONE))[0][0]) > 0


def test_warmup_of_optax():
    """Its weights read the schedule a step ahead of its steps."""
    ours, theirs = (
        run_each({f"power {x}": tx(0.1, warmup_steps=7, weight_lr_power=x) for x in (2, 1)})
        for tx in (dialects.optax.schedule_free_sgd, optax.contrib.schedule_free_sgd)
    )
    chex.assert_trees_all_close(ours["power 2"], theirs["power 2"], rtol=1e-11)
    chex.assert_trees_all_close(ours["power 1"], theirs["power 1"], atol=1e-7)  # a root of optax's rate, in float32


def test_corners_of_optax():
    """Rprop where a gradient is 0, and Adafactor without a learning rate."""
    grads = jnp.array([[1.0, 2.0], [0.0, -3.0], [2.0, 0.0], [-1.0, 4.0], [0.0, 5.0]])

    def updates(tx):
        p = jnp.array([3.0, -1.0])
        return jax.lax.scan(lambda state, g: tx.update(g, state, p)[::-1], tx.init(p), grads)[1]

    for ours, theirs in (
        (dialects.optax.rprop(0.1), optax.rprop(0.1)),
        (dialects.optax.adafactor(), optax.adafactor()),
    ):
        chex.assert_trees_all_close(*jax.jit(lambda a=ours, b=theirs: (updates(a), updates(b)))(), rtol=1e-6)


def test_optimism_that_follows_a_schedule():
    """αg + β(g − g₋) with the α of this step, 1 and 2, and the first g₋ the gradient itself."""
    tx = dialects.optax.optimistic_gradient_descent(1.0, alpha=lambda count: count + 1.0, beta=0.5)
    first, state = tx.update(jnp.array([1.0]), tx.init(jnp.array([0.0])))
    second, _ = tx.update(jnp.array([3.0]), state)
    np.testing.assert_allclose([first, second], [[-1.0], [-(2 * 3 + 0.5 * (3 - 1))]], rtol=1e-12)


def test_debiasing_in_the_rate_is_right_in_float32():
    """1 − 0.999 of a number, which in float32 is 6e-5 too large."""
    with jax.enable_x64(False):
        rate = dialects.optax.prodigy().rules[-1].hyperparameters()["learning_rate"]
        np.testing.assert_allclose(rate(jnp.int32(0)), 0.001**0.5 / 0.1, rtol=1e-6)


@pytest.mark.parametrize("mask", [{"a": True, "b": False}, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)])
def test_masks_of_optax(mask):
    for name, argument in (("adamw", "mask"), ("lars", "trust_ratio_mask"), ("adadelta", "weight_decay_mask")):
        kwargs = {argument: mask, "weight_decay": 0.3}
        ours, theirs = getattr(dialects.optax, name)(0.1, **kwargs), getattr(optax, name)(0.1, **kwargs)
        chex.assert_trees_all_close(run_stream(ours), run_stream(theirs), rtol=1e-11)


SHAPES = {"s": (), "v": (3,), "m": (3, 4), "q": (4, 3, 2), "o": (3, 2, 4), "k": (2, 3, 4, 5)}
"""A scalar, a vector, a matrix, attention's kernels and a leaf of four axes."""


def run_on_shapes(txs):
    """The parameters after each of 60 steps of each transformation, in one program."""
    rng = np.random.default_rng(0)
    start = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    noise = {name: jnp.asarray(rng.normal(size=(60, *shape))) for name, shape in SHAPES.items()}

    def each(carry, noise):
        after = {
            name: update(tx, jax.tree.map(lambda n, p: n + 0.1 * p, noise, carry[name][0]), *carry[name][::-1])
            for name, tx in txs.items()
        }
        return after, {name: params for name, (params, _) in after.items()}

    carry = {name: (start, tx.init(start)) for name, tx in txs.items()}
    return jax.jit(lambda: jax.lax.scan(each, carry, noise)[1])()


M = optax.contrib.MuonDimensionNumbers
G: Any = getattr(optax.contrib, "GaLoreDimensionNumbers", None)  # of optax 0.2.8
NUMBERED: dict[str, tuple[str, dict[str, Any]]] = {
    "a tree": (
        "muon",
        {
            "muon_weight_dimension_numbers": {
                **{"s": None, "v": None, "m": M(1, 0), "q": M(0, (1, 2)), "o": M((0, 1), 2), "k": M((1, -2), 3)}
            },
            **{"nesterov": False, "consistent_rms": 0.3, "weight_decay": 0.1},
        },
    ),
    "a function": (
        "muon",
        {
            "muon_weight_dimension_numbers": lambda params: jax.tree.map(
                lambda x: M(-1, -2) if x.ndim > 1 else None, params
            ),
            **{"adaptive": True, "ns_steps": 2},
        },
    ),
    "galore": (
        "galore",
        {
            "weight_dimension_numbers": lambda params: {
                **{"s": None, "v": None, "m": G(1, 0), "q": G(0, (1, 2)), "o": None, "k": G((1, 2), (3, 0))}
            },
            **{"rank": 2, "update_proj_gap": 7, "base_optimizer": optax.scale_by_rms(), "weight_decay": 0.1},
        },
    ),
    "galore, a function": (
        "galore",
        {
            "weight_dimension_numbers": lambda params: jax.tree.map(
                lambda x: G(0, tuple(range(1, x.ndim))) if x.ndim > 2 else None, params
            ),
            "rank": 2,
        },
    ),
}


@pytest.mark.exhaustive
def test_dimension_numbers_of_optax():
    numbered = {case: NUMBERED[case] for case in NUMBERED if G is not None or "galore" not in case}
    ours = run_on_shapes({case: of_dialect(name)(0.02, **kwargs) for case, (name, kwargs) in numbered.items()})
    with optax_in_float64():
        theirs = run_on_shapes({case: of_optax(name)(0.02, **kwargs) for case, (name, kwargs) in numbered.items()})
    chex.assert_trees_all_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.exhaustive
@pytest.mark.skipif(G is None, reason="this optax's GaLore has no dimension numbers")
def test_dimension_numbers_for_all_leaves():
    """In optax's GaLore a single one is for those that have enough axes."""
    three, two = ({"a": jnp.eye(2), "b": jnp.ones((2, 3)), "c": x} for x in (jnp.ones((2, 3, 2)), jnp.ones(2)))
    muon, galore = {"muon_weight_dimension_numbers": M(0, 1)}, {"rank": 1, "weight_dimension_numbers": G and G(0, 1)}
    for name, kwargs, leaves in (("muon", muon, three), ("galore", galore, two)):
        makers: Any = of_dialect(name), of_optax(name)
        ours, theirs = (make_tx(0.1, **kwargs) for make_tx in makers)
        with optax_in_float64():
            expected, _ = theirs.update(leaves, theirs.init(leaves), leaves)
        chex.assert_trees_all_close(ours.update(leaves, ours.init(leaves), leaves)[0], expected, rtol=1e-11, atol=1e-15)


def test_dtypes_of_optax():
    """A dtype of optax is that of the slot."""
    params = {"w": jnp.ones((2, 2))}
    for tx, slots in (
        (dialects.optax.adam(0.1, mu_dtype=jnp.bfloat16), {"momentum.m"}),
        (dialects.optax.nadam(0.1, mu_dtype="bfloat16"), {"nesterov.m"}),
        (dialects.optax.lion(0.1, mu_dtype=jnp.bfloat16), {"momentum.m"}),
        (dialects.optax.sgd(0.1, 0.9, accumulator_dtype=jnp.bfloat16), {"trace.b"}),
        (dialects.optax.ademamix(0.1, mu_dtype=jnp.bfloat16), {"momentum.m", "rms.s", "add_momentum.m"}),
    ):
        held = {
            f"{rule}.{k}": jax.tree.leaves(x)[0].dtype
            for rule, slot in tx.init(params).slots.items()
            for k, x in slot.items()
        }
        assert {name for name, dtype in held.items() if dtype == jnp.bfloat16} == slots


@pytest.mark.parametrize("clip", ["clip", "clip_by_global_norm"])
def test_clips_of_optax(clip):
    ours = run_stream(gx.chain(getattr(dialects.optax, clip)(1.5), dialects.optax.sgd(0.1)))
    theirs = run_stream(optax.chain(getattr(optax, clip)(1.5), optax.sgd(0.1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)


class TestKerasOwnGoldens:
    """Numbers from Keras's own unit tests: gradients 0.01 ten times, then 0.1 to 1.0, from ones, in float32 there."""

    def rows(self, tx, steps):
        first = np.full(10, 0.01)
        grads = [first, *[np.arange(0.1, 1.1, 0.1)] * (steps - 1)]
        params, state, out = jnp.ones(10), tx.init(jnp.ones(10)), []
        for g in grads:
            params, state = update(tx, jnp.asarray(g), state, params)
            out.append(np.asarray(params))
        return np.stack(out)

    def test_adamw_pins_where_epsilon_stands(self):
        keras = self.rows(dialects.keras.adamw(1.0, weight_decay=0.5, epsilon=2.0), 2)
        np.testing.assert_allclose(keras[0], 0.4998, atol=5e-4)
        np.testing.assert_allclose(keras[1][[0, -1]], [0.2486, 0.2382], atol=5e-4)
        optax_order = self.rows(dialects.optax.adamw(1.0, weight_decay=0.5, eps=2.0), 2)
        assert abs(optax_order[0] - 0.4998).max() > 1e-3  # the order of division and debias shows

    def test_nadam_pins_the_schedule(self):
        keras = self.rows(dialects.keras.nadam(0.5, beta_1=0.5, beta_2=0.67, epsilon=1e-5), 5)
        np.testing.assert_allclose(keras[:, 0], [0.4281, -0.1738, -0.7115, -1.2335, -1.7492], atol=5e-4)
        torch = self.rows(dialects.torch.nadam(0.5, betas=(0.5, 0.67), eps=1e-5), 5)
        assert abs(torch[:, 0] - keras[:, 0]).max() > 1e-2
        same = self.rows(dialects.torch.nadam(0.5, betas=(0.5, 0.67), eps=1e-5, momentum_decay=1.0), 5)
        np.testing.assert_allclose(same, keras, rtol=1e-12)

    SINGLE = (
        (dialects.keras.rmsprop(0.5), [-0.5811, 0.4189, 1.4189, 2.4189]),
        (dialects.keras.adagrad(0.5), [0.5233, 1.5007, 2.5005, 3.5061]),
        (dialects.keras.nadam(0.5), [0.4686, 1.4686, 2.4686, 3.4686]),
    )

    @pytest.mark.parametrize(("tx", "expected"), SINGLE, ids=["rmsprop", "adagrad", "nadam"])
    def test_single_steps(self, tx, expected):
        params, grads = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 6.0, 7.0, 2.0])
        stepped, _ = update(tx, grads, tx.init(params), params)
        np.testing.assert_allclose(stepped, expected, atol=5e-4)

    def test_rmsprop_docstring(self):
        tx, x = dialects.keras.rmsprop(0.1), jnp.array(10.0)
        stepped, _ = update(tx, x, tx.init(x), x)  # the gradient of x²/2
        assert float(stepped) == pytest.approx(9.683772, abs=1e-6)


class TestErrors:
    def test_torch(self):
        bads: tuple[dict[str, Any], ...] = {}, {"momentum": 0.9, "dampening": 0.5}
        for bad in bads:
            with pytest.raises(ValueError, match=r"nesterov=True needs a momentum.*dampening=0"):
                dialects.torch.sgd(nesterov=True, **bad)

    def test_keras(self):
        with pytest.raises(ValueError, match=r"at most one of clipnorm.*\['clipnorm', 'clipvalue'\]"):
            dialects.keras.adam(clipnorm=1.0, clipvalue=1.0)
        with pytest.raises(ValueError, match=r"global_clipnorm must be positive, found 0\. Keras would clip nothing"):
            dialects.keras.sgd(global_clipnorm=0.0)

    def test_optax(self):
        for error, wrong in (
            ("alpha=0 stands still", lambda d: d.optimistic_gradient_descent(0.1, alpha=0.0)),
            (
                "weight_lr_power must be a number of 0 or more, found -1",
                lambda d: d.schedule_free_sgd(weight_lr_power=-1),
            ),
            (
                "dog: the first of init_step must be .*found 'x'",
                lambda d: d.dog(init_step=("x", 1.0)),
            ),
            ("5 iterations, and ns_steps=4", lambda d: d.muon(0.1, "dion", 4)),
            ("norm must be .*'aol'.*found 'l1'", lambda d: d.muon(0.1, preconditioning="l1")),
        ):
            with pytest.raises(ValueError, match=error):
                wrong(dialects.optax)

    def test_more_of_torch(self):
        for name in ("sgd", "adam", "rprop", "asgd", "muon"):
            with pytest.raises(ValueError, match=rf"torch.{name}: lr must be 0 or more, found -0.1. To go uphill"):
                getattr(dialects.torch, name)(-0.1)
        with pytest.raises(ValueError, match="adjust_lr_fn must be 'original' or 'match_rms_adamw', found 'x'"):
            dialects.torch.muon(adjust_lr_fn="x")
        with pytest.raises(TypeError, match=r"torch.adam got an unexpected keyword argument 'nesterov'"):
            getattr(dialects.torch, "adam")(nesterov=True)  # noqa: B009 - hides it from the type checker

    def test_more_of_keras(self):
        for error, wrong in (
            ("adamw: weight_decay must be a number", lambda d: d.adamw(weight_decay=None)),
            ("schedule_free_adamw: use_ema would average", lambda d: d.schedule_free_adamw(use_ema=True)),
            ("lion: beta_1 must be greater than 0 and at most 1, found 0", lambda d: d.lion(beta_1=0.0)),
            ("lion: beta_1 must be greater than 0 and at most 1, found 1.5", lambda d: d.lion(beta_1=1.5)),
            ("ftrl_proximal: power must be a number of 0 or more", lambda d: d.ftrl(learning_rate_power=2.0)),
            ("gradient_accumulation_steps must be an integer from 2", lambda d: d.sgd(gradient_accumulation_steps=1)),
            ("every must be an integer from 1", lambda d: d.sgd(use_ema=True, ema_overwrite_frequency=0)),
        ):
            with pytest.raises(ValueError, match=error):
                wrong(dialects.keras)
        with pytest.raises(TypeError, match=r"keras.adam got an unexpected keyword argument 'eps'"):
            getattr(dialects.keras, "adam")(eps=1e-3)  # noqa: B009 - hides it from the type checker

    def test_what_is_left_out_says_what_to_use(self):
        for module, name, advice in (
            (dialects.torch, "LBFGS", "Use optax.lbfgs"),
            (dialects.torch, "SparseAdam", "Use gradtx.dialects.keras.adam"),
            (dialects.torch, "Adam", "It is a function here: adam"),
            (dialects.keras, "Ftrl", "It is a function here: ftrl"),
            (dialects.optax, "noisy_sgd", "use gradtx.add_noise in front"),
            (
                dialects.optax,
                "scale_by_lion",
                r"use the rules of gradtx.dialects.optax.lion\(...\) but for the learning",
            ),
            (dialects.optax, "cosine_decay_schedule", "no optimizer. Use optax's own"),
        ):
            with pytest.raises(AttributeError, match=advice):
                getattr(module, name)
        assert not hasattr(dialects.torch, "nonsense")


def test_every_transformation_of_optax_is_here_or_says_what_to_use():
    """With the arguments and defaults of its namesake."""
    seen = 0
    for name, made in [*vars(optax).items(), *vars(optax.contrib).items()]:
        if not isinstance(made, types.FunctionType) or name.startswith("_"):
            continue
        theirs = inspect.signature(made)
        if "GradientTransformation" not in str(theirs.return_annotation) and name not in dialects.optax.__all__:
            continue
        seen += 1
        if name not in dialects.optax.__all__:
            with pytest.raises(
                AttributeError, match=f"has no '{name}': (.*gradtx|every chain|use dog|optax deprecates)"
            ):
                getattr(dialects.optax, name)
            continue
        ours = inspect.signature(getattr(dialects.optax, name)).parameters
        assert list(ours) == list(theirs.parameters), name
        for argument, parameter in theirs.parameters.items():
            same = ours[argument].default == parameter.default
            assert same or (name, argument) in OTHER_DEFAULTS, f"{name}: {argument}"
    assert seen > 100


ELSEWHERE = {
    "optax": {
        *("mask", "weight_decay_mask", "trust_ratio_mask", "mu_dtype", "accumulator_dtype", "state_dtype"),
        *("base_optimizer", "warmup_steps", "update_proj_gap", "scaling"),
        *("muon_weight_dimension_numbers", "weight_dimension_numbers"),
    },
    "torch": {"decay_mask", "switches"},
    "keras": {"decay_mask", "options", "clipnorm", "clipvalue", "global_clipnorm"},
}
"""Arguments that one function takes for all, or that a test of its own is about."""


@pytest.mark.parametrize("framework", ["optax", "torch", "keras"])
def test_every_argument_is_tried(framework):
    """In a trajectory, with another value than the default."""
    module, tried = getattr(dialects, framework), {}
    for name, arguments in OPTAX.items() if framework == "optax" else ():
        tried[name] = {"learning_rate"}.union(*arguments)
    for case in CASES:
        if case.framework == framework:
            tried.setdefault(case.optimizer, {LR_NAME[framework]}).update(case.kwargs)
    assert set(tried) == {name for name in module.__all__ if not name.startswith("clip")}
    for name, seen in tried.items():
        signature = inspect.signature(getattr(module, name)).parameters
        missing = signature.keys() - seen - ELSEWHERE[framework]
        assert not missing, f"{framework}.{name}: {missing}"


OTHER_DEFAULTS = {("adopt", "clip_value_fn"), ("muon", "ns_coeffs")}  # the same values, by a function and a name

OF_CLASS = {"ScheduleFreeAdamW": "schedule_free_adamw", "LossScaleOptimizer": None, "MultiOptimizer": None}
"""The functions of classes whose names in lower case they have not; None for wrappers of others."""


@pytest.mark.parametrize("framework", ["torch", pytest.param("keras", marks=pytest.mark.slow)])
def test_every_optimizer_and_argument_is_here_or_says_what_to_use(framework, monkeypatch):
    """With the defaults of its namesake."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    theirs = pytest.importorskip({"torch": "torch.optim", "keras": "keras.optimizers"}[framework])
    module, seen = getattr(dialects, framework), 0
    for name, made in vars(theirs).items():
        if not isinstance(made, type) or not issubclass(made, theirs.Optimizer) or made is theirs.Optimizer:
            continue
        function = getattr(module, OF_CLASS.get(name, name.lower()) or "nothing", None)
        if function is None:
            with pytest.raises(AttributeError, match=f"has no '{name}': "):
                getattr(module, name)
            continue
        seen += 1
        ours = inspect.signature(function).parameters
        for argument, parameter in inspect.signature(made).parameters.items():
            assert argument in ("params", "name", "kwargs") or taken_by(function, argument), f"{name}: {argument}"
            assert argument not in ours or ours[argument].default == parameter.default, f"{name}: {argument}"
    assert seen >= 13


def taken_by(function, argument):
    """Whether it does not call the argument an unexpected one."""
    try:
        function(**{argument: None})
    except TypeError as error:
        return "unexpected keyword" not in str(error)
    except ValueError:
        pass
    return True


def moved(tx, sign=1.0):
    """Parameters after five steps against gradients that depend on them."""
    params = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]])}
    state = tx.init(params)
    for k in range(5):
        grads = jax.tree.map(lambda p, k=k: sign * (jnp.sin(3.0 * k + p) - 0.2), params)
        params, state = update(tx, grads, state, params)
    return params


def test_loss_scale_factor_of_keras():
    """Gradients of a loss times 4 are those of the loss, before they are clipped."""
    tx, plain = dialects.keras.sgd(0.5, clipvalue=0.5, loss_scale_factor=4.0), dialects.keras.sgd(0.5, clipvalue=0.5)
    chex.assert_trees_all_close(moved(tx, sign=4.0), moved(plain), rtol=1e-12)


def test_average_of_keras():
    """It begins with the parameters after the first step, and has 0.99 for its decay as Keras has."""
    average = dialects.keras.sgd(use_ema=True).rules[-1].hyperparameters()["rate"]
    np.testing.assert_allclose([average(jnp.int32(count)) for count in (0, 1, 5)], [1.0, 0.01, 0.01], rtol=1e-12)


def test_size_of_small_weights_in_adafactor_of_keras():
    """The floor is of weights that have decayed: 2·(1 − 0.1·0.5) − 0.1·10, since g/√v is 1."""
    tx, p = dialects.keras.adafactor(0.1, epsilon_2=10.0, weight_decay=0.5), jnp.full(3, 2.0)
    np.testing.assert_allclose(update(tx, jnp.full(3, 7.0), tx.init(p), p)[0], 0.9, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "arguments"), [("sgd", {"momentum": 0.9}), ("adamw", {}), ("rprop", {}), ("asgd", {})]
)
def test_maximize_is_to_turn_the_gradient_around(name, arguments):
    """In front of the decay, as in torch; and what says how to compute changes nothing."""
    make = getattr(dialects.torch, name)
    decay = {} if name == "rprop" else {"weight_decay": 0.1}
    up = make(0.1, **arguments, **decay, maximize=True, foreach=True, capturable=False, differentiable=False)
    chex.assert_trees_all_equal(moved(up), moved(make(0.1, **arguments, **decay), sign=-1.0))


def test_maximize_is_one_rule_in_front():
    """Of every optimizer that has the argument, its decay before the direction or after it."""
    names = [name for name in dialects.torch.__all__ if not name.startswith("clip") and name != "muon"]
    decays = [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}]
    for name in names:
        maker = getattr(dialects.torch, name)
        taken = inspect.signature(maker).parameters.keys()
        for decay in decays:
            if taken >= decay.keys():
                front, *rest = [str(rule) for rule in maker(maximize=True, **decay).rules]
                same = [rule.label for rule in maker(**decay).rules]
                assert front == "scale(-1)" and [rule.split("(")[0] for rule in rest] == same, name
    assert len(names) == 12


def test_the_rate_of_adafactor_falls():
    """As the paper has it, min(η, 1/√t)."""
    for tx in (dialects.torch.adafactor(0.5), dialects.keras.adafactor(0.5)):
        (rule,) = (rule for rule in tx.rules if rule.label == "scale_by_learning_rate")
        rate = rule.hyperparameters()["learning_rate"]
        np.testing.assert_allclose([rate(count) for count in (0, 3, 8, 99)], [0.5, 0.5, 1 / 3, 0.1], rtol=1e-12)


def test_averaged_sgd_of_torch_with_a_start_before_the_first_step():
    """Its share is 1 in the first step, whatever t0 is, and 1/(t − t0) from then on."""
    tx, p, z, x = dialects.torch.asgd(0.1, lambd=0.0, t0=-5), jnp.array([1.0]), 1.0, None
    state = tx.init(p)
    for t in range(4):
        p, state = gx.step(tx, p, jnp.array([t + 1.0]), state)
        z = z - 0.1 * (t + 1)
        x = z if x is None else x + (z - x) / (t + 5)
        np.testing.assert_allclose([*p, *gx.evaluation_point(state, p)], [z, x], rtol=1e-12)


def test_schedules_of_dialects_keep_to_strict_types():
    """Those that a dialect makes of the count of steps, and DoWG's norm of what is scaled."""
    theirs, keras, torch = dialects.optax, dialects.keras, dialects.torch
    made = [torch.adafactor(), torch.asgd(), keras.adafactor(), keras.schedule_free_adamw(warmup_steps=3)]
    made += [theirs.adopt(0.1), theirs.dadapt_adamw(weight_decay=0.1), theirs.prodigy(), theirs.dowg()]
    for tx in [*made, theirs.rmsprop(0.1, centered=True, bias_correction=True)]:
        testing.check(tx, only=["keeps to strict types"], report=lambda line: None)


def test_arrays_of_one_element_are_numbers():
    betas = (jnp.array([0.8]), np.array([0.9]))
    ours, same = dialects.torch.adam(np.array([0.1]), betas), dialects.torch.adam(0.1, (0.8, 0.9))
    chex.assert_trees_all_close(moved(ours), moved(same), rtol=1e-6)


@pytest.mark.parametrize(
    "make", [dialects.torch.adamw, dialects.keras.adamw, dialects.keras.sgd], ids=["torch", "keras", "keras sgd"]
)
def test_decay_mask(make):
    """Which leaves decay, in every dialect."""
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    tx = make(0.1, weight_decay=0.5, decay_mask="kernel")
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert updates["bias"].tolist() == [0.0, 0.0] and float(updates["kernel"].max()) < -0.04


def test_where_the_later_ones_disagree():
    """The numbers of the page."""
    shown = (Path(__file__).parents[2] / "docs" / "guide" / "disagreements.md").read_text()
    p, g = jnp.array([3.0, 4.0]), jnp.array([0.3, -0.4])
    for lars in (optax.lars, dialects.optax.lars):
        tx: Any = lars(1.0, weight_decay=0.1, trust_coefficient=1.0, momentum=0.0)
        np.testing.assert_allclose(tx.update(g, tx.init(p), p)[0], [-5, 0], atol=1e-12)
    row, wide = 1e-7 * jnp.eye(3)[:1], jnp.ones((256, 1024))
    for eps, found in ((0.0, "0.6964"), (1e-7, "0.7654"), (1e-8, "0.6892")):
        tx = gx.orthogonalize(eps=eps)
        assert f"{float(tx.update(row, tx.init(row))[0][0, 0]):.4f}" == found and found in shown
    for tx, found in ((gx.scale_by_shape(), 2.0), (gx.scale_by_shape(0.2), 6.4)):
        np.testing.assert_allclose(tx.update(wide, tx.init(wide))[0], found, rtol=1e-12)
    root, one = gx.scale_by_kronecker_root(eps=0.0), jnp.ones((1, 1))
    _, state = root.update(one, root.init(one))
    assert f"{float(root.update(one, state)[0][0, 0]):.4f}" == "0.7071" and "0.7071 or 0.5774" in shown
    tiny = jnp.full((2, 3), 1e-4, jnp.float32)
    for floor, found in ((0.0, "1"), (None, "3.45")):
        tx = gx.scale_by_factored_rms(least=1, floor=floor)
        assert f"{float(tx.update(tiny, tx.init(tiny))[0][0, 0]):.3g}" == found and found in shown
    agrees = gx.chain(gx.momentum(0.5), gx.cautious())
    _, state = agrees.update(jnp.ones(7), agrees.init(jnp.ones(7)))
    updates, _ = agrees.update(jnp.where(jnp.arange(7) < 3, 1.0, -0.1), state)
    np.testing.assert_allclose(updates, [7 / 3 * 0.75] * 3 + [0] * 4, rtol=1e-12)


def test_the_table_in_the_docs_is_up_to_date():
    """Its chains, line by line; the figures are those of the run that wrote it."""
    shown = (Path(__file__).parents[2] / "docs" / "dialects.md").read_text()
    for line in table(run=False).splitlines():
        assert line.rsplit("|", 3)[0] in shown, f"python -m tests.oracles.compare > docs/dialects.md: {line}"
