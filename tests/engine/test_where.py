"""Rules for some leaves, chains for parts: against each leaf's own chain run alone, and against optax's masks."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import gradtx as gx

pytestmark = pytest.mark.usefixtures("quick_compilation")

LR = gx.scale_by_learning_rate(0.1)
rng = np.random.default_rng(0)
PARAMS = {
    "dense": {"kernel": jnp.array(rng.normal(size=(3, 2))), "bias": jnp.array(rng.normal(size=2))},
    "embed": jnp.array(rng.normal(size=(4, 2))),
    "head": {"kernel": jnp.array(rng.normal(size=(2, 3)))},
}
GRADS = [jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 3, p.dtype), PARAMS) for _ in range(5)]


def run(tx, params=PARAMS, grads=GRADS):
    """The updates of each step, stacked, and the last state."""
    update, state, out = jax.jit(tx.update), tx.init(params), []
    for g in grads:
        updates, state = update(g, state, params)
        out.append(updates)
    return jax.tree.map(lambda *xs: jnp.stack(xs), *out), state


def only(path):
    """A leaf's parameters and gradients, as trees of one leaf."""

    def get(tree):
        for key in path.split("/"):
            tree = tree[key]
        return {"x": tree}

    return get(PARAMS), [get(g) for g in GRADS]


SELECT = {
    "a regular expression": "kernel",
    "a predicate of the path": lambda path, leaf: path.endswith("kernel"),
    "a mask": {"dense": {"kernel": True, "bias": False}, "embed": False, "head": {"kernel": True}},
    "a mask that is a prefix": {"dense": {"kernel": True, "bias": False}, "embed": False, "head": True},
    "numpy booleans": {"dense": {"kernel": np.True_, "bias": np.False_}, "embed": np.False_, "head": np.True_},
    "arrays": {
        "dense": jax.tree.map(jnp.array, {"kernel": True, "bias": False}),
        "embed": np.array(False),
        "head": True,
    },
    "a function of the tree, as of optax": lambda tree: jax.tree_util.tree_map_with_path(
        lambda keys, leaf: jax.tree_util.keystr(keys).endswith("['kernel']"), tree
    ),
}
MASK = {"dense": {"kernel": True, "bias": False}, "embed": False, "head": {"kernel": True}}


@pytest.mark.parametrize("name", SELECT)
def test_selectors_choose_as_optax_masks_do(name):
    tx = gx.chain(gx.where(SELECT[name], gx.trace(0.9), gx.clip_by_global_norm(0.5)), LR)
    theirs = optax.chain(
        optax.masked(optax.chain(optax.trace(0.9), optax.clip_by_global_norm(0.5)), MASK), optax.scale(-0.1)
    )
    updates, state = run(tx)
    chex.assert_trees_all_close(updates, run(theirs)[0], rtol=1e-6)
    assert state.slots["trace"]["b"]["embed"] is None  # no state for leaves that are not chosen
    assert len(jax.tree.leaves(state.slots["trace"]["b"])) == 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    """A box, as Flax puts around parameters: one leaf, under the key ``value``."""

    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    """A layer in which ``value`` is a name among others."""

    key: Any
    value: Any


def test_a_box_is_no_level_of_the_tree():
    """Flax has it around parameters in init and not in update: paths and files must be the same."""
    plain = {"dense": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "attention": Attention(jnp.ones(2), jnp.ones(2))}
    boxed = plain | {"dense": jax.tree.map(Box, plain["dense"])}
    tx = gx.chain(gx.where("(kernel|value)$", gx.trace(0.9)), LR)
    chosen = {"attention": Attention(False, True), "dense": {"kernel": True, "bias": False}}
    paths = {}
    for params in (plain, boxed):
        state = tx.init(params)
        is_box = lambda x: isinstance(x, Box) or x is None  # noqa: E731
        is_there = jax.tree.map(lambda x: getattr(x, "value", x) is not None, state.slots["trace"]["b"], is_leaf=is_box)
        assert is_there == chosen
        paths[params is boxed] = list(gx.state_dict(state))
        loaded = gx.load_state_dict(tx, params, gx.state_dict(state))
        chex.assert_trees_all_equal(loaded, state)
    assert paths[True] == paths[False]
    assert "state/slots/trace/b/attention/value" in paths[True]
    assert list(gx.metrics(gx.monitor().init(boxed))) == list(gx.metrics(gx.monitor().init(plain)))


@jax.tree_util.register_pytree_node_class
class Module:
    """A pytree that can be called, as modules of Equinox, and masks of them, can."""

    def __init__(self, kernel, bias):
        self.leaves = kernel, bias

    def __call__(self, x):
        return x

    def tree_flatten(self):
        return self.leaves, None

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        return cls(*leaves)


def test_a_pytree_may_compare_and_print_by_where_it_is():
    params = Module(jnp.ones((2, 2)), jnp.ones(2))
    tx = gx.partition([(Module(True, False), gx.adafactor(0.1))], default=gx.adafactor(0.1))
    _, state = tx.update(params, tx.init(params), params)
    assert not any("0x" in name for name in state.parts)
    assert "0x" not in str(gx.where(lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree), gx.sgd(0.1)))
    chex.assert_trees_all_equal_structs(jax.eval_shape(tx.update, params, state, params)[1], state)


def test_a_pytree_that_can_be_called_is_a_tree():
    params = Module(jnp.ones((2, 2)), jnp.ones(2))
    tx = gx.adamw(0.1, weight_decay=0.5, decay_mask=jax.tree.map(lambda x: x.ndim > 1, params))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates.leaves[0], -0.05 * np.ones((2, 2)), rtol=1e-6)
    np.testing.assert_array_equal(updates.leaves[1], np.zeros(2))


def test_the_pattern_of_a_whole_key():
    params = {"layers": [jnp.ones(1) for _ in range(12)], "head/layers/1": jnp.ones(1)}
    state = gx.where(gx.path("layers", 1), gx.trace()).init(params)
    assert [i for i, x in enumerate(state.slots["trace"]["b"]["layers"]) if x is not None] == [1]
    one, ten = gx.path("layers", 1), gx.path("layers/10")
    gx.partition({one: gx.sgd(1.0), ten: gx.sgd(2.0)}, "freeze").init(params)
    with pytest.raises(ValueError, match=r"layers/1' is found within a key of 'layers/10'; gradtx.path"):
        gx.partition({"^layers/1": gx.sgd(1.0), "layers/1": gx.sgd(1.0)}, "freeze").init(params)


def test_predicates_and_masks_may_choose_nothing_and_patterns_may_not():
    """Predicates and masks are made by programs, for several trees; patterns are typed."""
    for decay_mask in (lambda path, leaf: leaf.ndim > 1, lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)):
        decayed = gx.adamw(0.1, weight_decay=0.5, decay_mask=decay_mask)
        tx = gx.partition({"kernel": decayed, "bias|embed": decayed})
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
        np.testing.assert_array_equal(updates["embed"] == 0, PARAMS["embed"].ndim < 2)
    nothing = gx.partition([(lambda path, leaf: False, gx.nadam(0.1)), ("^", gx.sgd(1.0))])
    updates, _ = nothing.update(PARAMS, nothing.init(PARAMS))
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.negative, PARAMS))
    for select in ("kernle", ("kernle", lambda path, leaf: False), ("kernel", "bias")):
        with pytest.raises(ValueError, match="chooses no leaf"):
            gx.where(select, gx.sign()).init(PARAMS)


def test_a_predicate_sees_shape_and_dtype():
    seen = {}

    def matrices(path, leaf):
        seen[path] = (leaf.shape, leaf.dtype)
        return leaf.ndim == 2

    updates, _ = run(gx.where(matrices, gx.scale(0.0)))
    assert seen["dense/bias"] == ((2,), PARAMS["dense"]["bias"].dtype)
    assert not updates["embed"].any()
    assert updates["dense"]["bias"].all()


ELEMENTWISE = [
    gx.momentum(0.5),
    gx.trace(0.9),
    gx.trace(0.9, nesterov=True),
    gx.damped_trace(0.9, 0.5),
    gx.nesterov(0.9, 0.004),
    gx.chain(gx.rms(0.9), gx.precondition()),
    gx.chain(gx.momentum(0.7), gx.rms(0.99), gx.max_v(), gx.debias(), gx.precondition(0.0, 1e-8)),
    gx.chain(gx.adagrad_sum(0.1), gx.debias(), gx.precondition()),
    gx.clip_by_value(1.0),
    gx.clip_by_norm(1.0),
    gx.add_decayed_weights(0.1),
    gx.debias(),
    gx.scale(0.5),
    gx.sign(),
]
PATHS = ["dense/kernel", "dense/bias", "embed", "head/kernel"]


@settings(max_examples=settings().max_examples // 3)  # each compiles five chains
@given(st.lists(st.tuples(st.sampled_from(ELEMENTWISE), st.sets(st.sampled_from(PATHS), min_size=1)), max_size=5))
def test_each_leaf_gets_its_own_chain(parts):
    """The whole meaning of where: each leaf moves as in a chain of the rules that act on it, and no others."""
    tx = gx.chain(*(gx.where(f"^({'|'.join(sorted(paths))})$", rule) for rule, paths in parts))
    try:
        updates, _ = run(tx)
    except ValueError as error:
        assert "averages directions of different weights" in str(error)  # see test_one_average_has_one_weight
        return
    for path in PATHS:
        params, grads = only(path)
        alone, _ = run(gx.chain(*(rule for rule, paths in parts if path in paths)), params, grads)
        together = updates
        for key in path.split("/"):
            together = together[key]
        np.testing.assert_allclose(together, alone["x"], rtol=2e-5, atol=1e-6)


def test_one_average_has_one_weight():
    """An average after another that only some leaves have holds two different weights; the same one before does not."""
    some = gx.where("kernel", gx.momentum(0.5))
    with pytest.raises(ValueError, match=r"rule 'momentum_1' averages .* different weights.*partition"):
        gx.chain(some, gx.momentum(0.9), gx.debias()).init(PARAMS)
    gx.chain(some, gx.rms(0.9), gx.debias(), gx.precondition()).init(PARAMS)  # reads the gradient, whose weight is 1
    gx.chain(gx.momentum(0.9), some, gx.debias()).init(PARAMS)


def test_inside_another_where_both_must_choose():
    nested = gx.where("dense", gx.where("kernel", gx.scale(0.0)))
    updates, _ = run(nested)
    zero = {jax.tree_util.keystr(k, simple=True, separator="/") for k, u in
            jax.tree_util.tree_leaves_with_path(updates) if not u.any()}  # fmt: skip
    assert zero == {"dense/kernel"}
    assert eval(repr(nested), dict(vars(gx))) == nested


@pytest.mark.parametrize("name", [name for name in SELECT if not callable(SELECT[name])][1:])
def test_masks_are_values(name):
    tx = gx.where(SELECT[name], gx.scale(2.0))
    assert tx == gx.where(SELECT[name], gx.scale(2.0))
    assert hash(tx) == hash(gx.where(SELECT[name], gx.scale(2.0)))
    assert tx != gx.where("kernel", gx.scale(2.0))
    assert eval(repr(tx), dict(vars(gx))) == tx
    assert str(gx.where("kernel", gx.scale(2.0))) == "scale(2) where 'kernel'"


def test_rules_of_whole_trees_see_the_chosen_leaves_only():
    tx = gx.chain(gx.where("kernel", optax.clip_by_global_norm(0.5)), LR)
    theirs = optax.chain(optax.masked(optax.clip_by_global_norm(0.5), MASK), optax.scale(-0.1))
    chex.assert_trees_all_close(run(tx)[0], run(theirs)[0], rtol=1e-6)


def test_complex_leaves_may_be_left_out():
    params = {"x": jnp.ones(2), "z": jnp.ones(2, jnp.complex64)}
    tx = gx.where("x", gx.sign())
    updates, _ = tx.update(params, tx.init(params))
    chex.assert_trees_all_equal(updates, params)
    with pytest.raises(TypeError, match="rule 'sign' has no meaning for complex numbers, and leaf 'z'"):
        gx.where("^", gx.sign()).init(params)


def test_state_keeps_its_types_and_compiles_once():
    tx = gx.chain(gx.where("kernel", gx.momentum(0.9)), gx.where("embed", gx.rms(0.9), gx.precondition()), LR)
    update, state = jax.jit(tx.update, donate_argnums=1), tx.init(PARAMS)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for g in GRADS:
        _, state = update(g, state, PARAMS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before
    assert update._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue] - jax has no public way to ask
    marked = optax.tree_utils.tree_map_params(tx, lambda x: 0 * x + 7, state)
    assert bool((marked.slots["momentum"]["m"]["dense"]["kernel"] == 7).all())  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("make, theirs", [(gx.adamw, optax.adamw), (gx.nadamw, optax.nadamw)])
def test_decay_masks(make, theirs):
    mask = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
    for select in (mask, lambda path, leaf: leaf.ndim > 1):
        ours, _ = run(make(0.1, weight_decay=0.3, decay_mask=select))
        # optax debiases by 1 − βᵗ in float32, which has lost digits.
        chex.assert_trees_all_close(ours, run(theirs(0.1, weight_decay=0.3, mask=mask))[0], rtol=2e-5, atol=1e-6)
    ours, _ = run(make(0.1, weight_decay=0.3))
    chex.assert_trees_all_close(ours, run(theirs(0.1, weight_decay=0.3))[0], rtol=2e-5, atol=1e-6)


class TestPartition:
    PARTS = {"kernel": gx.adam(0.1), "bias": gx.chain(gx.clip_by_global_norm(0.5), gx.sgd(0.1, momentum=0.9))}

    def test_is_optax_partition(self):
        tx = gx.partition(self.PARTS, default="freeze")
        labels = {"dense": {"kernel": "k", "bias": "b"}, "embed": "e", "head": {"kernel": "k"}}
        clipped = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
        theirs = optax.partition({"k": optax.adam(0.1), "b": clipped, "e": optax.set_to_zero()}, labels)
        updates, state = run(tx)
        chex.assert_trees_all_close(updates, run(theirs)[0], rtol=2e-5, atol=1e-6)
        assert set(state.parts) == {"kernel", "bias", "default"}
        assert state.parts["bias"].slots["trace"]["b"]["embed"] is None

    def test_pass_and_freeze(self):
        updates, _ = run(gx.partition({"embed": "freeze"}, default="pass"))
        assert not updates["embed"].any()
        chex.assert_trees_all_equal(updates["head"]["kernel"][0], GRADS[0]["head"]["kernel"])

    def test_parts_may_be_optax_or_pairs_of_masks_and_predicates(self):
        tx = gx.partition([(MASK, optax.adam(0.1)), (lambda path, leaf: path == "embed", gx.sgd(0.1))], "pass")
        updates, _ = run(tx)
        alone, _ = run(optax.adam(0.1), *only("dense/kernel"))
        np.testing.assert_allclose(updates["dense"]["kernel"], alone["x"], rtol=1e-6)
        np.testing.assert_allclose(updates["embed"][0], -0.1 * GRADS[0]["embed"], rtol=1e-6)

    def test_inside_a_chain_and_in_scan(self):
        tx = gx.chain(gx.clip_by_global_norm(1.0), gx.partition(self.PARTS, default="freeze"))
        expected, _ = run(tx)
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *GRADS)

        def one(state, g):
            updates, state = tx.update(g, state, PARAMS)
            return state, updates

        _, updates = jax.lax.scan(one, tx.init(PARAMS), stacked)
        chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)

    def test_is_a_value(self):
        tx = gx.partition(self.PARTS, default="freeze")
        assert tx == gx.partition(dict(self.PARTS), default=gx.freeze())
        assert eval(repr(tx), dict(vars(gx))) == tx
        assert hash(tx) == hash(gx.partition(self.PARTS, default="freeze"))

    @pytest.mark.parametrize(
        "make, error, message",
        [
            (lambda: gx.partition({"kernel": gx.sgd(1)}).init(PARAMS), ValueError, "no part: 'dense/bias', 'embed'"),
            (
                lambda: gx.partition({"kernel": gx.sgd(1), "dense": gx.sgd(1)}, "pass").init(PARAMS),
                ValueError,
                r"more than one part: 'dense/kernel' by \['kernel', 'dense'\]",
            ),
            (
                lambda: gx.partition({"kernle": gx.sgd(1)}, "pass").init(PARAMS),
                ValueError,
                "part 'kernle'.*chooses no leaf. The leaves are: 'dense/bias', 'dense/kernel'",
            ),
            (lambda: gx.partition({}), ValueError, "no parts"),
            (lambda: gx.partition({"a": "frozen"}), TypeError, "'freeze' or 'pass', found 'frozen'"),
            (
                lambda: gx.partition({"a": gx.sgd}),
                TypeError,
                "partition: a part must be a gradtx chain or rule, or an optax tr",
            ),
            (lambda: gx.partition(["kernel"]), TypeError, "dict or pairs"),
            (lambda: gx.partition([("a", gx.sgd(1)), ("a", gx.sgd(2))]), ValueError, "same name"),
            (lambda: gx.partition({"default": "pass"}, "pass"), ValueError, "same name"),
            (
                lambda: gx.partition({"^": gx.sgd(1)}).update(PARAMS, jnp.zeros(())),  # pyright: ignore[reportArgumentType] - the mistake
                TypeError,
                "PartitionState that its init returned, found ArrayImpl",
            ),
        ],
    )
    def test_errors(self, make, error, message):
        with pytest.raises(error, match=message):
            make()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: gx.where("kernle", gx.sign()).init(PARAMS), ValueError, "'sign', 'kernle', chooses no leaf.*'embed'"),
        (lambda: gx.where("(", gx.sign()), ValueError, r"'\(' is no regular expression"),
        (lambda: gx.where(lambda: True, gx.sign()), TypeError, r"takes \(path, leaf\) .* takes \(\)"),
        (lambda: gx.where({"dense": jnp.ones(2, bool)}, gx.sign()), TypeError, "tree of True and False; found Array"),
        (lambda: gx.where({"dense": 1}, gx.sign()), TypeError, "tree of True and False; found 1"),
        (lambda: gx.where({"dense": True}, gx.sign()).init(PARAMS), ValueError, "mask of where of rule 'sign'"),
        (lambda: gx.where(lambda *_: 1, gx.sign()).init(PARAMS), TypeError, "must return True or False.* returned 1"),
        (
            lambda: gx.chain(gx.where("kernel", gx.rms()), gx.precondition()).init(PARAMS),
            ValueError,
            "'precondition'.*for leaf 'dense/bias'.*needs a second moment",
        ),
        (
            lambda: gx.chain(gx.rms(), gx.where("kernel", gx.precondition())).init(PARAMS),
            ValueError,
            "second moment of rule 'rms' is never used, for leaf 'dense/bias'",
        ),
        (
            lambda: gx.chain(gx.where("kernel", gx.add_decayed_weights(0.1)), LR).update(
                PARAMS, gx.chain(gx.where("kernel", gx.add_decayed_weights(0.1)), LR).init(PARAMS)
            ),
            ValueError,
            "'add_decayed_weights' reads the parameters",
        ),
        (
            lambda: gx.where("kernel", gx.trace()).update(PARAMS, gx.where("embed", gx.trace()).init(PARAMS)),
            ValueError,
            "slots trace.b and the updates are different trees.*missing 'dense/kernel'",
        ),
    ],
)  # fmt: skip
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_describe_says_which_leaf_gets_which_rules():
    found = gx.describe(gx.chain(gx.where("kernel", gx.trace()), LR), PARAMS)
    assert dict((leaf.path, leaf.rules) for leaf in found.leaves) == {
        "dense/bias": ("scale_by_learning_rate",),
        "dense/kernel": ("trace", "scale_by_learning_rate"),
        "embed": ("scale_by_learning_rate",),
        "head/kernel": ("trace", "scale_by_learning_rate"),
    }
    assert "dense/kernel  (3, 2)  trace, scale_by_learning_rate" in str(found)
    assert "| dense/kernel | (3, 2) | trace, scale_by_learning_rate |" in found._repr_markdown_()
    assert "leaf " not in str(gx.describe(gx.sgd(0.1), PARAMS))
    assert found.rows[0].bytes == 4 * (6 + 6) + 4  # slots of two kernels, and a weight
    parts = gx.describe(gx.chain(gx.sign(), gx.partition({"kernel": gx.adam(0.1)}, "freeze")), PARAMS)
    assert parts.leaves[0].rules == ("sign", "default.freeze")
    assert parts.leaves[1].rules[:2] == ("sign", "kernel.momentum")
    assert [row.rule for row in parts.rows][-1] == "default.freeze"
    assert parts.bytes == 2 * (4 * (6 + 6) + 4)  # m and v of two kernels, each with a weight
