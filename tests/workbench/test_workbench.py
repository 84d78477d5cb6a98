"""The workbench: data, networks, training, verdicts, pictures and files."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits as read_digits

import gradtx
from gradtx.workbench.batches.picture import draw_batches
from gradtx.workbench.data import load_digits, split_digits
from gradtx.workbench.files import check_writable, write_whole
from gradtx.workbench.networks import ACTIVATIONS, Network, Params
from gradtx.workbench.picture import DPI, LINES, spread
from gradtx.workbench.recipes import ARTICLE, RECIPES, make_optimizer
from gradtx.workbench.runs.health import Health, monitors, watched
from gradtx.workbench.runs.picture import draw
from gradtx.workbench.runs.run import Run
from gradtx.workbench.settings import Settings
from gradtx.workbench.table import table_of_numbers
from gradtx.workbench.training import (
    Data,
    History,
    Measures,
    Steps,
    cross_entropy,
    measure,
    run_epoch,
    shuffled_batches,
    train,
)
from gradtx.workbench.verdict import EXPLODING, LARGEST_GAP, TRAINED, VANISHING, trained, verdict

pytestmark = pytest.mark.usefixtures("quick_compilation")

PIXELS, LABELS = map(np.asarray, read_digits(return_X_y=True))


@pytest.fixture(scope="module")
def few() -> Data:
    """Real digits, few of them."""
    data = load_digits()
    return Data(*(np.asarray(part)[:67] for part in data))


def small(activation: str = "relu", depth: int = 2) -> Network:
    return Network(ACTIVATIONS[activation], depth, width=6, inputs=64, classes=10)


# Data


def test_split_has_every_image_once():
    train_part, test_part = split_digits(LABELS)
    assert len(train_part) == 1437 and len(test_part) == 360
    assert sorted([*train_part, *test_part]) == list(range(1797))


def test_split_is_always_the_same():
    assert split_digits(LABELS).test[:8].tolist() == [21, 24, 28, 34, 35, 37, 39, 42]


def test_split_has_a_fifth_of_each_digit_for_testing():
    test_part = LABELS[split_digits(LABELS).test]
    np.testing.assert_allclose(np.bincount(test_part) / np.bincount(LABELS), 0.2, atol=0.005)


def test_standardisation_is_of_the_training_images_only():
    train_part, test_part = split_digits(LABELS)
    mean, deviation = PIXELS[train_part].mean(axis=0), PIXELS[train_part].std(axis=0)
    deviation[deviation == 0] = 1
    data = load_digits()
    np.testing.assert_allclose(data.train_images, (PIXELS[train_part] - mean) / deviation, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.test_images, (PIXELS[test_part] - mean) / deviation, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(data.train_labels, LABELS[train_part])
    np.testing.assert_array_equal(data.test_labels, LABELS[test_part])


def test_constant_pixels_become_zero():
    data = load_digits()
    constant = np.ptp(PIXELS, axis=0) == 0
    assert constant.sum() == 3
    assert not np.asarray(data.train_images)[:, constant].any()
    assert np.isfinite(data.test_images).all()


def test_dtypes():
    assert [np.asarray(part).dtype for part in load_digits()] == [np.float32, np.int32, np.float32, np.int32]


# Loss and networks


def numpy_cross_entropy(logits: np.ndarray, labels: ArrayLike) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_softmax[np.arange(len(logits)), np.asarray(labels)].mean())


def numpy_logits(network: Network, params: dict, images: ArrayLike) -> np.ndarray:
    """The network in float64, written out."""
    x = np.asarray(images, np.float64)
    for i in range(1, network.depth + 2):
        x = x @ params[f"layer_{i}"]["w"] + params[f"layer_{i}"]["b"]
        if i <= network.depth:
            x = NUMPY_ACTIVATIONS[network.activation.title](x)
    return x


NUMPY_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ReLU": lambda x: np.maximum(x, 0),
    "maxout": lambda x: np.maximum(x[:, ::2], x[:, 1::2]),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def loss_of(network: Network) -> Callable[[Params, ArrayLike, ArrayLike], jax.Array]:
    """The loss as a function of parameters, images and labels."""
    return lambda params, images, labels: cross_entropy(network.apply(params, jnp.asarray(images)), jnp.asarray(labels))


def in_float64(params: dict) -> dict:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


@pytest.mark.parametrize("size", [1.0, 30.0, 3000.0])
def test_cross_entropy_against_float64(size: float):
    logits = size * np.random.default_rng(0).normal(size=(50, 10))
    labels = np.arange(50) % 10
    ours = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(ours, numpy_cross_entropy(logits, labels), rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_shapes_and_logits(activation: str, depth: int, few: Data):
    network = small(activation, depth)
    params = network.init(jax.random.key(3))
    leaves = jax.tree.leaves(params)
    assert network.size == sum(leaf.size for leaf in leaves)
    assert tuple(params[f"layer_{i}"]["w"].shape for i in range(1, depth + 2)) == network.shapes
    logits = network.apply(params, jnp.asarray(few.train_images))
    np.testing.assert_allclose(logits, numpy_logits(network, in_float64(params), few.train_images), atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_against_central_differences(activation: str, few: Data):
    network = small(activation)
    params = network.init(jax.random.key(0))
    gradient = jax.grad(loss_of(network))(params, few.train_images, few.train_labels)
    rng = np.random.default_rng(1)
    for _ in range(5):
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
        losses = []
        for step in (1e-6, -1e-6):
            moved = jax.tree.map(lambda p, d, step=step: p + step * d, in_float64(params), direction)
            losses.append(numpy_cross_entropy(numpy_logits(network, moved, few.train_images), few.train_labels))
        along = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(along, (losses[0] - losses[1]) / 2e-6, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "maxout"])
def test_initialisation_keeps_the_mean_square(activation: str):
    network = Network(ACTIVATIONS[activation], depth=6, width=300, inputs=300, classes=300)
    logits = network.apply(network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (500, 300)))
    assert 0.7 < float(jnp.mean(logits**2)) < 1.4


def test_a_small_gain_makes_gradients_vanish(few: Data):
    sigmoid = small("sigmoid", depth=8)
    norms = measure(sigmoid, sigmoid.init(jax.random.key(0)), few).gradient_norms
    assert norms[0] < 1e-4 * norms[-1]


# Training


def test_batches_have_no_image_twice_and_drop_the_last_ones():
    batches = shuffled_batches(jax.random.key(0), 67, 8)
    assert batches.shape == (8, 8)
    assert len(np.unique(batches)) == 64 and int(batches.min()) >= 0 and int(batches.max()) < 67


def test_each_epoch_drops_other_images():
    used = [set(shuffled_batches(jax.random.key(epoch), 67, 8).ravel().tolist()) for epoch in range(2)]
    assert used[0] != used[1]


def test_few_samples_are_among_many():
    few, more, everything = load_digits(20), load_digits(40), load_digits()
    assert few.size == 20 and more.size == 40 and everything.size == 1437
    np.testing.assert_array_equal(few.train_labels, np.asarray(more.train_labels)[:20])
    np.testing.assert_allclose(np.asarray(few.train_images).mean(axis=0), 0, atol=1e-6)  # standardised by themselves
    assert np.shape(few.test_images) == (360, 64)


@pytest.mark.parametrize("name", ["sgd", "nag", "adam"])
def test_epoch_is_the_loop_written_by_hand(name: str, few: Data):
    network, tx = small("maxout"), make_optimizer(name, 0.01, clip_norm=0.5)
    by_hand = network.init(jax.random.key(0))
    state_by_hand = tx.init(by_hand)
    key = jax.random.key(5)
    params, state, *_ = run_epoch(network, tx, 16, by_hand, state_by_hand, few, key)
    images, labels = np.asarray(few.train_images), np.asarray(few.train_labels)
    gradient, update = jax.jit(jax.grad(loss_of(network))), jax.jit(tx.update)
    for rows in np.asarray(shuffled_batches(key, 67, 16)):
        updates, state_by_hand = update(gradient(by_hand, images[rows], labels[rows]), state_by_hand, by_hand)
        by_hand = jax.tree.map(lambda p, u: p + u, by_hand, updates)
    assert int(state.count) == 4
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(by_hand), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_measures_are_of_all_images(few: Data):
    network = small()
    params = network.init(jax.random.key(0))
    measures = measure(network, params, few)
    for images, labels, loss, accuracy in [
        (few.train_images, few.train_labels, measures.train_loss, measures.train_accuracy),
        (few.test_images, few.test_labels, measures.test_loss, measures.test_accuracy),
    ]:
        logits, labels = numpy_logits(network, in_float64(params), np.asarray(images)), np.asarray(labels)
        np.testing.assert_allclose(loss, numpy_cross_entropy(logits, labels), rtol=1e-5)
        np.testing.assert_allclose(accuracy, np.mean(logits.argmax(axis=1) == labels), rtol=1e-6)


def test_gradient_norms_are_in_the_order_of_the_layers(few: Data):
    network = small(depth=11)  # "layer_10" sorts before "layer_2"
    params = network.init(jax.random.key(0))
    gradient = jax.grad(loss_of(network))(params, few.train_images, few.train_labels)
    layers = [gradient[f"layer_{i}"] for i in range(1, 13)]
    norms = [np.sqrt(np.sum(np.square(layer["w"])) + np.sum(np.square(layer["b"]))) for layer in layers]
    np.testing.assert_allclose(measure(network, params, few).gradient_norms, norms, rtol=1e-4)


def test_same_seed_same_numbers(few: Data):
    def trained(seed: int):
        return train(small(), gradtx.adam(0.01), few, epochs=2, batch_size=16, seed=seed)

    first, again, other = trained(7), trained(7), trained(8)
    for a, b in zip(jax.tree.leaves(first[:2]), jax.tree.leaves(again[:2]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.measures.train_loss[0] != other.measures.train_loss[0]


def test_history_and_progress(few: Data):
    told = []
    history = train(
        small(), gradtx.sgd(0.1), few, epochs=3, batch_size=67, seed=0, progress=lambda *each: told.append(each)
    )
    assert history.measures.train_loss.shape == (4,) and history.measures.gradient_norms.shape == (4, 3)
    assert history.measures.train_loss[-1] < history.measures.train_loss[0]
    assert history.seconds > 0
    # One batch of all images, so what is seen of it is what is measured before its step; rounding.
    np.testing.assert_allclose(history.steps.loss, history.measures.train_loss[:-1], rtol=1e-5)
    np.testing.assert_allclose(history.steps.gradient_norms, history.measures.gradient_norms[:-1], rtol=1e-4)
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    np.testing.assert_array_equal([measures.train_loss for _, measures in told], history.measures.train_loss[1:])
    after = measure(small(), history.params, few)
    np.testing.assert_array_equal(after.train_loss, history.measures.train_loss[-1])


def test_what_the_optimizer_wants_evaluated_is_measured(few: Data):
    averaging = gradtx.chain(gradtx.sgd(0.1), gradtx.average_iterates())
    average = train(small(), averaging, few, epochs=2, batch_size=67, seed=0)
    once, twice = (train(small(), gradtx.sgd(0.1), few, epochs=n, batch_size=67, seed=0) for n in (1, 2))
    for mean, first, second in zip(*map(jax.tree.leaves, (average.params, once.params, twice.params)), strict=True):
        np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)
    assert average.measures.train_loss[-1] == measure(small(), average.params, few).train_loss


def test_every_optimizer_starts_from_the_same_weights(few: Data):
    starts = {
        float(train(small(), tx, few, epochs=1, batch_size=67, seed=3).measures.train_loss[0])
        for tx in [gradtx.sgd(0.1), gradtx.adam(0.1)]
    }
    assert len(starts) == 1


def test_a_diverging_training_ends_in_numbers_that_are_not_finite(few: Data):
    history = train(small("maxout"), gradtx.sgd(1e30), few, epochs=2, batch_size=8, seed=0)
    assert not np.isfinite(history.measures.train_loss[-1])
    assert verdict(history.measures) == "diverged"


# Gradient health


def problems(network: Network, tx: gradtx.Chain, epochs: int = 1) -> tuple[History, list[set[str]]]:
    """A training on all digits, and what is wrong at its first step and at its last."""
    history = train(network, watched(tx), load_digits(), epochs=epochs, batch_size=32, seed=0, log=monitors)
    return history, [{finding.problem for finding in found} for found in Health.of(history.logged).diagnoses()]


def deep(activation: str, gain: float | None = None) -> Network:
    return Settings(("sgd",), (activation,), depth=8, gain=gain).network(activation, 64, 10)


@pytest.mark.slow
def test_a_deep_sigmoid_network_vanishes_and_relu_cures_it():
    vanishing, (first, last) = problems(deep("sigmoid"), gradtx.sgd(0.1), epochs=6)
    assert "vanishing" in first and "vanishing" in last
    assert vanishing.measures.train_accuracy[-1] < 0.2
    cured, (first, last) = problems(deep("relu"), gradtx.sgd(0.1), epochs=6)
    assert not first and not last
    assert cured.measures.train_accuracy[-1] > TRAINED


@pytest.mark.slow
def test_a_large_gain_explodes_and_clipping_by_norm_cures_it():
    exploding, (first, last) = problems(deep("relu", gain=6.0), gradtx.sgd(0.1), epochs=6)
    assert "exploding" in first and "nonfinite" in last
    assert verdict(exploding.measures) == "diverged"
    tx = gradtx.chain(gradtx.clip_by_norm(1.0), gradtx.sgd(0.1))
    cured, (first, last) = problems(deep("relu", gain=6.0), tx, epochs=6)
    assert "clipped" in first and not {"exploding", "nonfinite"} & (first | last)
    assert cured.measures.train_accuracy[-1] > 0.9


@pytest.mark.parametrize("name", ["adam", "nag"])
def test_monitors_change_no_training(name: str, few: Data):
    tx = make_optimizer(name, 0.01, clip_layer=0.5)
    assert [rule.name for rule in watched(tx).rules if isinstance(rule, gradtx.monitor)] == ["clipping", "health"]
    bare = train(small(), tx, few, epochs=2, batch_size=16, seed=0)
    seen = train(small(), watched(tx), few, epochs=2, batch_size=16, seed=0, log=monitors)
    for a, b in zip(jax.tree.leaves(bare.params), jax.tree.leaves(seen.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # compiled together with them, rounded differently
    assert bare.logged is None
    np.testing.assert_array_equal(seen.logged["health"].steps, range(1, 9))
    first, last = Health.of(seen.logged)
    assert first["steps"] == 1 and last["steps"] == 8 and last["clipped"] > 0


# Recipes


def test_recipes_are_the_article_s():
    assert list(ARTICLE) == "sgd momentum nag adagrad rmsprop adam max_v amsgrad nadam".split()
    assert make_optimizer("max_v", 0.1) == gradtx.article_max_v(0.1)
    assert make_optimizer("momentum", 0.1) == gradtx.momentum_sgd(0.1)


def test_clipping_comes_first():
    chain = make_optimizer("adam", 0.1, clip_norm=1.0, clip_layer=2.0, clip_value=0.5, weight_decay=0.1)
    first = [rule.label for rule in chain.rules[:5]]
    assert first == ["clip_by_global_norm", "clip_by_norm", "clip_by_value", "add_decayed_weights", "momentum"]


def test_learning_rates_go_with_the_batch_size():
    """Proportional to it up to the one that they are tuned for, with its cube root above."""
    rates = [RECIPES["momentum"].rate(size) for size in (1, 8, 32, 256)]
    expected = np.array([1 / 32, 1 / 4, 1, 2]) * RECIPES["momentum"].learning_rate
    np.testing.assert_allclose(rates, expected, rtol=0.05)  # two digits


def test_adam_then_sgd_changes_over_in_the_middle():
    """With a gradient of 1 Adam's step is its rate, and so is that of SGD, whose momentum is 1 by then."""
    params = {"w": jnp.ones(2)}
    tx = make_optimizer("adam_then_sgd", 0.003, steps=8)
    state, steps = tx.init(params), []
    for _ in range(8):
        updates, state = tx.update(params, state, params)
        steps.append(-float(updates["w"][0]))
    np.testing.assert_allclose(steps, [0.003] * 4 + [0.2] * 4, rtol=1e-4)


# Verdicts


def measures_ending_in(loss: float, train_accuracy: float, test_accuracy: float, norm: float = 1.0) -> Measures:
    def path(last: float) -> np.ndarray:
        return np.array([2.3, 1.0, last], np.float32)

    norms = np.ones((3, 4), np.float32)
    norms[0, 2] = norm
    return Measures(path(loss), path(train_accuracy), path(loss), path(test_accuracy), norms)


@pytest.mark.parametrize(
    ("loss", "train_accuracy", "test_accuracy", "expected"),
    [
        (np.nan, 1.0, 1.0, "diverged"),
        (np.inf, 1.0, 1.0, "diverged"),
        (2.4, 1.0, 1.0, "diverged"),
        (2.2, 0.1, 0.1, "not trained enough"),
        (0.5, TRAINED - 0.001, 0.2, "not trained enough"),
        (0.1, TRAINED + 0.001, TRAINED, "good"),
        (0.1, 1.0, 1 - LARGEST_GAP - 0.001, "overfitting"),
        (0.1, 1.0, 1 - LARGEST_GAP + 0.001, "good"),
        (0.1, 0.96, 0.99, "good"),
    ],
)
def test_verdict(loss: float, train_accuracy: float, test_accuracy: float, expected: str):
    assert verdict(measures_ending_in(loss, train_accuracy, test_accuracy)) == expected


@pytest.mark.parametrize(
    ("norm", "train_accuracy", "test_accuracy", "expected"),
    [
        (EXPLODING + 1, 1.0, 0.7, "badly initialised"),
        (np.nan, 1.0, 0.7, "badly initialised"),
        (EXPLODING, 1.0, 0.7, "overfitting"),
        (0.9 * VANISHING, 1.0, 0.7, "badly initialised"),
        (1.1 * VANISHING, 1.0, 0.7, "overfitting"),
        (EXPLODING + 1, 0.9, 0.7, "not trained enough"),  # the training images come first
        (EXPLODING + 1, 1.0, 0.99, "good"),
    ],
)
def test_verdict_on_gradients_that_explode_or_vanish_at_the_start(
    norm: float, train_accuracy: float, test_accuracy: float, expected: str
):
    assert verdict(measures_ending_in(0.1, train_accuracy, test_accuracy, norm)) == expected


@pytest.mark.parametrize(
    ("losses", "accuracy", "expected"),
    [([2.3, 0.1], 0.95, True), ([2.3, 0.1], 0.94, False), ([2.3, 2.4], 1.0, False), ([2.3, np.nan], 1.0, False)],
)
def test_trained(losses: list[float], accuracy: float, expected: bool):
    assert trained(np.array(losses), accuracy) is expected


# Pictures


def run_of(network: str, optimizer: str, losses: list[float], layers: int = 4) -> Run:
    path = np.array(losses, np.float32)
    measures = Measures(path, np.ones_like(path), path, np.ones_like(path), np.outer(path, np.arange(1.0, layers + 1)))
    steps = Steps(np.repeat(path, 3), np.repeat(measures.gradient_norms, 3, axis=0))
    return Run(network, optimizer, 32, 0.1, "chain", measures, steps, Health({"steps": 1}, {"steps": 2}), 1.0, path)


def picture(runs: list[Run], **settings) -> Image.Image:
    everything = Settings(tuple(RECIPES), tuple(ACTIVATIONS), **settings)
    image = Image.open(io.BytesIO(draw(everything, runs)))
    image.load()
    return image


def test_a_table_breaks_names_and_no_numbers():
    table = table_of_numbers("ReLU network", [f"head {i}" for i in range(6)])
    table.add_row("AdamW without a schedule", *["0.0003162"] * 6)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table)
    text = console.export_text()
    assert text.count("0.0003162") == 6 and "…" not in text and max(map(len, text.splitlines())) <= 80
    assert all(word in text for word in ("AdamW", "without", "schedule"))


def test_a_picture_has_a_column_for_each_network():
    runs = [
        run_of(network, name, [2.3, 0.1, 0.01]) for network in ("relu", "maxout") for name in ["sgd", "adam", "nadam"]
    ]
    two, one = picture(runs), picture(runs[:3])
    assert one.format == "PNG" and one.width > 500 and one.height > 500
    assert 1.7 < two.width / one.width < 2.3 and abs(two.height - one.height) < 60
    assert one.convert("L").getextrema() == (0, 255)
    telephone = 370  # pixels wide, without margins; letters are 10 points high
    assert 10 / 72 * DPI * telephone / one.width >= 9


def test_all_optimizers_look_different():
    assert len(set(LINES.values())) == len(LINES) and list(LINES) == list(RECIPES)


@functools.cache
def picture_of_two(*losses: float):
    return picture([run_of("relu", "sgd", list(losses)), run_of("relu", "adam", list(losses))])


@pytest.mark.parametrize(
    "losses", [[2.3, np.nan], [np.nan, np.nan], [2.3, np.inf], [2.3, 1e38], [2.3, 0.0], [0.0, 0.0]]
)
def test_a_picture_of_numbers_that_have_no_place(losses: list[float]):
    """In the size that it has with numbers that have one: nothing is drawn far outside of its axes."""
    odd, usual = picture_of_two(*losses), picture_of_two(2.3, 0.1)
    assert abs(odd.width - usual.width) < 130 and abs(odd.height - usual.height) < 60


def test_the_step_that_ends_a_training():
    assert run_of("relu", "sgd", [2.3, 1.0, np.nan]).end == 7 and run_of("relu", "sgd", [2.3, 0.1]).end is None


@pytest.mark.exhaustive
def test_a_gallery_of_all_optimizers():
    gallery = picture([run_of("relu", name, [2.3, 0.1]) for name in RECIPES])
    few = picture([run_of("relu", name, [2.3, 0.1]) for name in ARTICLE])
    assert gallery.height > 1.2 * few.height and abs(gallery.width - few.width) < 60


def test_a_picture_of_batch_sizes():
    ends = [("sgd", 1, 0.1), ("sgd", 8, np.nan), ("adam", 1, 0.1), ("adam", 8, 0.01)]
    runs = [run_of("relu", name, [2.3, loss])._replace(batch_size=size) for name, size, loss in ends]
    settings = Settings(("sgd", "adam", "nag"), ("relu", "maxout"), batch_sizes=(8, 1))
    for number in (4, 3, 1):  # fewer of a comparison that was interrupted
        assert draw_batches(settings, runs[:number]).startswith(b"\x89PNG")


def test_a_picture_of_an_interrupted_comparison():
    runs = [*(run_of("relu", name, [2.3, 0.1]) for name in list(RECIPES)[:4]), run_of("maxout", "sgd", [2.3, 0.1])]
    assert picture(runs).width > 1000


def test_a_picture_of_a_deep_network_and_one_epoch():
    assert picture([run_of("maxout", "nag", [2.3, 0.1], layers=51)], depth=50).height > 400


@pytest.mark.parametrize("places", [[0.0] * 9, [1.0] * 9, [0.3, 0.31, 0.9, 0.92, 0.3], [0.5]])
def test_spread_keeps_the_order_and_the_distance(places: list[float]):
    moved = spread(places, 0.1)
    assert moved.min() > -1e-9 and moved.max() < 1 + 1e-9
    assert (np.diff(np.sort(moved)) > 0.1 - 1e-9).all()
    assert (np.argsort(moved, kind="stable") == np.argsort(places, kind="stable")).all()


def test_spread_leaves_what_is_far_apart():
    np.testing.assert_allclose(spread([0.9, 0.1, 0.5], 0.1), [0.9, 0.1, 0.5])


# Files


def test_write_whole_replaces(tmp_path: Path):
    path = tmp_path / "numbers.json"
    path.write_text("old")
    write_whole(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_follows_a_link(tmp_path: Path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_whole(link, b"new")
    assert link.is_symlink() and target.read_text() == "new"


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_write_whole_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    def fail(self: Path, target: Path):
        raise error

    path = tmp_path / "numbers.json"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(error)):
        write_whole(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_check_writable_changes_nothing(tmp_path: Path):
    path = tmp_path / "picture.png"
    check_writable(path)
    assert not list(tmp_path.iterdir())
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"
    with pytest.raises(OSError, match="not a regular file"):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "missing" / "picture.png")


# Floors


def test_the_library_does_not_load_the_workbench_nor_training_the_extra():
    code = """if True:
        import sys, gradtx
        above = ("gradtx.workbench", "sklearn", "matplotlib", "rich")
        assert not [name for name in sys.modules if name.startswith(above)]
        sys.modules.update(sklearn=None, matplotlib=None, rich=None)
        import gradtx.workbench.training, gradtx.__main__
    """
    subprocess.run([sys.executable, "-c", code], check=True)
