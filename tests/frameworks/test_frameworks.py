"""gradtx inside Flax, Equinox, Haiku and optax's wrappers: against optax's optimizer there."""

import io
import pickle
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradtx as gx
from frameworks import loops
from frameworks.cases import ADAM, CASES, LR
from frameworks.loops import STEPS, Training, run
from frameworks.table import PAGE, compare, listed

pytestmark = pytest.mark.usefixtures("quick_compilation", "ranks_promoted")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.framework} {case.what}")
def test_same_training_as_with_optax(case):
    compared = compare(case)
    assert compared.traces <= 1  # none if another test has used it
    assert compared.theirs.losses[-1] < 0.7 * compared.theirs.losses[0]  # it went somewhere
    # Rounding of float32, 3e-6 where this was written; a decay of 0.998 for 0.999 makes 6e-5 and more.
    assert compared.difference < 2e-5
    np.testing.assert_allclose(compared.ours.losses, compared.theirs.losses, rtol=1e-4)


def test_the_table_in_the_docs_is_up_to_date():
    """Its rows; the figures are those of the run that wrote it."""
    expected = [(case.framework, case.what) for case in CASES]
    assert listed(PAGE.read_text()) == expected, "python -m tests.frameworks.table"


@pytest.mark.parametrize(
    "example",
    re.findall(r"## (.*?)\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL),
    ids=lambda example: example[0],
)
def test_examples_train(example):
    namespace: dict[str, Any] = {}
    exec(example[1], namespace)
    assert float(namespace["loss"]) < 0.01


class Framework(NamedTuple):
    """Where the optimizer's state is in a carry, and how the framework itself saves a carry and loads it."""

    train: Callable[[Any], Training]
    state: Callable[[Any], Any]
    with_state: Callable[[Any, Any], Any]
    params: Callable[[Any], Any]
    save: Callable[[Any], Any]
    load: Callable[[Any, Any], Any]


def _nnx_with_state(carry, state):
    model, optimizer = carry
    nnx.update(optimizer.opt_state, nnx.state(state))
    return model, optimizer


def _nnx_load(carry, saved):
    nnx.update(carry, saved)
    return carry


def _equinox_save(carry):
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, carry)
    return file.getvalue()


FRAMEWORKS = {
    "Flax NNX": Framework(
        loops.flax_nnx,
        lambda carry: carry[1].opt_state,
        _nnx_with_state,
        lambda carry: nnx.state(carry[0], nnx.Param),
        lambda carry: jax.tree.map(np.array, nnx.state(carry)),
        _nnx_load,
    ),
    "Flax Linen": Framework(
        loops.flax_linen,
        lambda carry: carry.opt_state,
        lambda carry, state: carry.replace(opt_state=state),
        lambda carry: carry.params,
        flax.serialization.to_bytes,
        flax.serialization.from_bytes,
    ),
    "Equinox": Framework(
        loops.equinox,
        lambda carry: carry[1],
        lambda carry, state: (carry[0], state),
        lambda carry: loops.trained(carry[0]),
        _equinox_save,
        lambda carry, saved: eqx.tree_deserialise_leaves(io.BytesIO(saved), carry),
    ),
    "Haiku": Framework(
        loops.haiku,
        lambda carry: carry[1],
        lambda carry, state: (carry[0], state),
        lambda carry: carry[0],
        lambda carry: pickle.dumps(jax.tree.map(np.array, carry)),
        lambda carry, saved: jax.tree.map(jnp.array, pickle.loads(saved)),
    ),
}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_saved_on_the_way(name):
    """By the framework's own means, and by state_dict: the rest of the training is the same to the bit."""
    framework, (tx, _) = FRAMEWORKS[name], ADAM
    training = loops.training(framework.train, tx)
    unbroken, traced = run(training), len(training.traces)
    half = run(training, STEPS // 2)
    saved = framework.save(half.carry)
    arrays = gx.state_dict(framework.state(half.carry))
    loaded = framework.load(training.start(), saved)
    again = framework.with_state(loaded, gx.load_state_dict(tx, framework.params(loaded), arrays))
    for carry in (framework.load(training.start(), saved), again):
        rest = run(training, STEPS - STEPS // 2, carry)
        np.testing.assert_array_equal(rest.losses, unbroken.losses[STEPS // 2 :])
        chex.assert_trees_all_equal(rest.params, unbroken.params)
    assert len(training.traces) == traced


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_another_learning_rate_on_the_way(name):
    framework, training = FRAMEWORKS[name], loops.training(FRAMEWORKS[name].train, ADAM[0])
    carry, traced = run(training, 2).carry, len(training.traces)
    state = framework.state(carry)
    stopped = gx.set_hyperparams(state, learning_rate=0.0)
    assert jax.tree.structure(stopped) == jax.tree.structure(state)
    before = jax.tree.map(np.array, training.params(carry))
    after = run(training, 2, framework.with_state(carry, stopped))
    chex.assert_trees_all_equal(after.params, before)
    assert len(training.traces) == traced


# Wrappers in wrappers, and rules chosen by path. Equinox calls a kernel a weight.
ALL_IN_ONE = gx.skip_nonfinite(
    gx.partition(
        {"(kernel|weight)$": gx.chain(gx.where("out", gx.clip_by_norm(0.1)), gx.adam(LR), gx.monitor())},
        default=gx.packed(gx.sgd(0.1, momentum=0.9)),
    )
)


def _same_as_plain(training, plain):
    ours, theirs = run(training, 10), run(plain, 10)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-4)
    chex.assert_trees_all_close(ours.params, theirs.params, atol=2e-5)
    assert ours.losses[-1] < 0.9 * ours.losses[0]
    assert len(training.traces) == 1
    return ours


def test_all_in_one_in_nnx():
    training = loops.flax_nnx(ALL_IN_ONE)
    _, optimizer = _same_as_plain(training, loops.nested_dicts(ALL_IN_ONE, training.params(training.start()))).carry
    seen = gx.metrics(optimizer.opt_state)
    assert seen["steps"] == 10 and "gradient_norm/out/kernel" in seen
    assert gx.diagnose(seen) is not None  # nothing is in a box of NNX


def test_all_in_one_in_equinox():
    training = loops.equinox(ALL_IN_ONE)
    model, _ = training.start()
    plain = loops.plain(ALL_IN_ONE, loops.trained(model), lambda params: jax.vmap(eqx.combine(params, model))(loops.X))
    _same_as_plain(training, plain)


TX = gx.adam(LR)
WRAPPED: dict[str, optax.GradientTransformation] = {
    "chain": optax.chain(optax.clip(1.0), TX),
    "named_chain": optax.named_chain(("clip", optax.clip(1.0)), ("adam", TX)),
    "masked": optax.masked(TX, {"hidden": True, "out": False}),
    "partition": optax.partition({"adam": TX, "none": optax.set_to_zero()}, {"hidden": "adam", "out": "none"}),
    "MultiSteps": optax.MultiSteps(TX, 1).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(TX, 3),
    "schedule_free": optax.contrib.schedule_free(TX, LR),
    "skip_nonfinite": gx.skip_nonfinite(TX),
    "packed": gx.packed(TX),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_hyperparameter_is_found_and_set_deep_in_a_state(name):
    """``optax.tree.set`` does in any wrapper as set_hyperparams does for a chain."""
    state = WRAPPED[name].init(loops.PARAMS)
    assert optax.tree.get(state, "learning_rate", filtering=_of_the_chain) == np.float32(LR)
    assert optax.tree.get(state, "eps") == np.float32(1e-8)
    changed = optax.tree.set(state, _of_the_chain, learning_rate=jnp.float32(0.5))
    found = [leaf for leaf, other in zip(*map(jax.tree.leaves, (changed, state)), strict=True) if (leaf != other).any()]
    assert found == [0.5]
    chex.assert_trees_all_equal_shapes_and_dtypes(changed, state)


def _of_the_chain(path, _):
    return "hyperparams" in jax.tree_util.keystr(path)


MARKED: dict[str, tuple[optax.GradientTransformation, int]] = {
    "adam": (TX, 2 * 4),
    "packed": (gx.packed(TX), 2),
    "packed, none": (gx.packed(TX, below=0), 2 * 4),
    "partition": (gx.partition({"hidden": TX}, default="freeze"), 2 * 2),
    "switch": (gx.switch(3, TX, gx.sgd(LR, momentum=0.9)), 2 * 4 + 4),
    "skip_nonfinite": (gx.skip_nonfinite(TX), 2 * 4),
    "loss_scale": (gx.loss_scale(TX), 2 * 4),
    "accumulate": (gx.accumulate(TX, 2), 2 * 4 + 4),
    "where": (gx.where("kernel", gx.trace(0.9)), 2),
    "masked": (optax.masked(TX, {"hidden": True, "out": False}), 2 * 2),
}


@pytest.mark.parametrize("name", MARKED)
def test_tree_map_params_maps_what_is_like_the_parameters(name):
    """So many arrays of slots, all of those with axes, and no hyperparameter, count or weight."""
    tx, expected = MARKED[name]
    state = tx.init(loops.PARAMS)
    marked = optax.tree_utils.tree_map_params(tx, lambda x: jnp.full_like(x, 7.0), state)
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    mapped = [leaf.ndim for leaf in jax.tree.leaves(marked) if (leaf == 7.0).all()]
    assert len(mapped) == expected == sum(leaf.ndim > 0 for leaf in jax.tree.leaves(state))
    assert all(mapped)
