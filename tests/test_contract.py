"""What every rule, optimizer and chain must do, whatever it computes. All of them are tried: see ``catalog.py``."""

import copy
import dataclasses
import pickle
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalog import ALL, DIALECTS, MOST, OPTIMIZERS, RULES

import gradtx as gx
from gradtx import optimizers, rules

REAL_ONLY = {name for name, tx in (ALL | DIALECTS).items() if any(rule.real_only for rule in tx.rules)}
WHOLE = {"seal"}  # maps whole trees by somebody else's transformation, which need not be odd, say


def own_slots(tx, state):
    """The slots of rules that map one array at a time: what a rule that maps whole trees keeps is its own affair."""
    layout = tx._lifted.layout.slots
    return {rule: own for rule, own in state.slots.items() if "whole" not in layout[rule].values()}


EVERYTHING = ALL | DIALECTS
every = pytest.mark.parametrize("name", MOST)


@pytest.fixture(autouse=True)
def quick_compilation():
    """What is tested here is structure and types; LLVM's slow passes would take a third of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    kernel: Any
    bias: Any


def normal(*shape, seed=0, dtype=jnp.float32):
    x = np.random.default_rng(seed).normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * np.random.default_rng(seed + 1).normal(size=shape)
    return jnp.asarray(x, dtype)


PARAMS = {"w": normal(3, 2), "b": normal(2, seed=1)}
TREES = {
    "empty": {},
    "one array": normal(3),
    "scalar": {"x": normal()},
    "size 0": {"x": jnp.zeros((0, 3)), "y": normal(2)},
    "only size 0": {"x": jnp.zeros((0,))},
    "None leaves": {"x": normal(2), "frozen": None, "deep": (None, normal(1))},
    "nested": {"a": [normal(2), (normal(1), {"b": normal()})], "c": Pair(normal(2), Block(normal(2, 2), normal(2)))},
    "odd keys": {0: normal(2), -1: normal(1), 7: {"a/b": normal(1), "": normal(1), "['x']": normal(1)}},
    "ranks": [normal(*range(1, rank + 1)) for rank in range(6)],
    "1 element": (normal(1, 1, 1),),
}


def steps(tx: Any, params: Any, grads: Any, n: int = 3) -> Any:
    """The last updates and state of n steps under scan, which holds the state to its structure and dtypes."""

    def run(params, grads):
        def one(state, _):
            updates, state = tx.update(grads, state, params)
            return state, updates

        state, updates = jax.lax.scan(one, tx.init(params), None, length=n)
        return jax.tree.map(lambda x: x[-1], updates), state

    return jax.jit(run)(params, grads)


def types(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype, x.weak_type) for x in leaves]


def test_the_catalog_is_complete():
    in_use = {type(rule).__name__ for tx in RULES.values() for rule in tx.rules}
    assert in_use == {*rules.__all__, "monitor", "seal"}, "a rule is missing from tests/catalog.py, or unknown"
    assert set(optimizers.__all__) <= set(OPTIMIZERS)
    assert {*rules.__all__, *optimizers.__all__, "monitor", "seal"} <= set(gx.__all__)


@every
def test_is_an_optax_transformation(name):
    tx = ALL[name]
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    init, update = tx
    state = init(PARAMS)
    expected = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(jax.jit(update)(PARAMS, state, PARAMS), expected)
    extra = jax.jit(lambda g, s: tx.update(g, s, g, value=1.0, unknown="ignored"))(PARAMS, state)
    chex.assert_trees_all_equal(extra, expected)
    outer = optax.chain(tx, optax.scale(0.5))
    halved, _ = jax.jit(outer.update)(PARAMS, outer.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(halved, jax.tree.map(lambda x: 0.5 * x, expected[0]), rtol=1e-6)


@every
def test_any_tree(name):
    """Types for each kind of tree; numbers, in one compilation, for all of them in one tree."""
    tx = ALL[name]
    for tree in TREES.values():
        state = jax.eval_shape(tx.init, tree)
        updates, after = jax.eval_shape(tx.update, tree, state, tree)
        assert types(updates) == types(tree)
        assert types(after) == types(state)
    updates, state = steps(tx, TREES, TREES)
    assert types(updates) == types(TREES)
    chex.assert_tree_all_finite((updates, state))


def test_many_leaves():
    tree = {f"layer_{i}": normal(2, seed=i) for i in range(300)}
    tx = gx.chain(gx.clip_by_norm(1e6), gx.momentum_sgd(0.1))
    updates, _ = jax.jit(tx.update)(tree, tx.init(tree))
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.01 * g, tree), rtol=1e-5)


DTYPES = {
    # parameters: gradients of the same, a narrower and a wider dtype
    "float32": ("float32", "bfloat16", "float64"),
    "bfloat16": ("bfloat16", "float16", "float32"),
    "float16": ("float16", "bfloat16", "float64"),
    "float64": ("float64", "float32", "bfloat16"),
    "complex64": ("complex64", "complex128"),
}


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("dtype", DTYPES)
def test_state_and_updates_keep_their_types(name, dtype):
    """Same structure, shapes, dtypes and weak types; updates in the dtype of the gradients; state wide enough."""
    if dtype == "complex64" and name in REAL_ONLY:
        pytest.skip("has no meaning for complex numbers; the refusal is tested in test_errors.py")
    tx = EVERYTHING[name]
    with jax.enable_x64(True):
        params = {"w": normal(3, 2, dtype=dtype), "b": normal(2, dtype=dtype)}
        state = jax.eval_shape(tx.init, params)
        assert types(state) == types(tx.init(params))
        scalar = jnp.float64 if dtype == "float64" else jnp.float32
        assert all(x.dtype == scalar for x in jax.tree.leaves(state.hyperparams))
        real = np.finfo(jnp.result_type(jnp.float32, dtype)).dtype
        assert all(jnp.finfo(x.dtype).dtype == real for x in jax.tree.leaves(own_slots(tx, state)))
        for grad_dtype in DTYPES[dtype]:
            grads = jax.tree.map(lambda x, d=grad_dtype: x.astype(d), params)
            updates, after = jax.eval_shape(tx.update, grads, state, params)
            assert types(updates) == types(grads)
            assert types(after) == types(state)
            if not any(rule.needs_params for rule in tx.rules):
                updates, after = jax.eval_shape(lambda g, s: tx.update(g, s), grads, state)
                assert types(updates) == types(grads)
                assert types(after) == types(state)


@every
def test_weakly_typed_leaves_are_what_their_dtype_says(name):
    """``jnp.array(0.5)`` and 0.5 are float64 under x64, though jax lets them promote like float32."""
    tx = ALL[name]
    with jax.enable_x64(True):
        strong = {"x": jnp.array([0.5])[0], "y": jnp.array([-1.0])[0]}
        expected, state = jax.jit(tx.update)(strong, tx.init(strong), strong)
        for weak in ({"x": jnp.array(0.5), "y": -1.0}, {"x": 0.5, "y": np.float64(-1.0)}):
            assert types(tx.init(weak)) == types(tx.init(strong))
            updates, after = jax.jit(lambda w: tx.update(w, tx.init(w), w))(weak)
            chex.assert_trees_all_close((updates, after), (expected, state), rtol=1e-14)
            assert types(updates) == types(expected)


@every
def test_mixed_dtypes_leaf_by_leaf(name):
    """bfloat16 beside float32 gives what each would give alone in float32, rounded once at the end."""
    params = {"kernel": normal(3, 2, dtype=jnp.bfloat16), "norm": normal(2)}
    updates, state = steps(ALL[name], params, params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    wide_updates, wide_state = steps(ALL[name], wide, wide)
    assert updates["kernel"].dtype == jnp.bfloat16
    expected = jax.tree.map(lambda u, p: u.astype(p.dtype), wide_updates, params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-2)  # one bfloat16 ulp is 2⁻⁸; XLA may fuse differently
    chex.assert_trees_all_close(state, wide_state, rtol=1e-5)


@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_zero_gradients_do_nothing(name, dtype):
    params = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), PARAMS)
    updates, state = steps(ALL[name], params, params, n=5)
    chex.assert_trees_all_equal(updates, params)
    chex.assert_tree_all_finite(state)


@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_updates_are_finite(name, dtype):
    """Also from gradients near the ends of the dtype's range."""
    info = jnp.finfo(dtype)
    sizes = jnp.array([0.0, info.tiny, 1e-4, 1.0, 100.0, min(float(info.max) / 8, 1e18)], dtype)
    params = {"w": jnp.stack([sizes, -sizes]), "b": sizes[:2]}
    updates, state = steps(ALL[name], params, params, n=5)
    chex.assert_tree_all_finite((updates, state))


@every
def test_compiles_once(name):
    tx = ALL[name]
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    for _ in range(3):
        updates, state = update(PARAMS, state, PARAMS)
    changed = state._replace(hyperparams=jax.tree.map(lambda x: 0.5 * x, state.hyperparams))
    update(PARAMS, changed, PARAMS)
    update(updates, changed, jax.tree.map(jnp.add, PARAMS, updates))
    assert update._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue] - jax has no public way to ask


@every
def test_donated_step_and_branches(name):
    tx = ALL[name]
    step = jax.jit(lambda p, s: gx.step(tx, p, PARAMS, s), donate_argnums=(0, 1))
    params, state = jax.tree.map(jnp.copy, PARAMS), jax.jit(tx.init)(PARAMS)
    for _ in range(3):
        params, state = step(params, state)

    @jax.jit
    def maybe(flag, params, state):
        return jax.lax.cond(flag, lambda p, s: gx.step(tx, p, PARAMS, s), lambda p, s: (p, s), params, state)

    _, new_state = maybe(True, PARAMS, tx.init(PARAMS))
    assert types(new_state) == types(state)
    same_params, same_state = maybe(False, params, state)
    chex.assert_trees_all_equal((same_params, same_state), (params, state))
    assert int(new_state.count) == 1


@every
def test_scan_is_the_loop_and_vmap_is_separate_runs(name):
    tx = ALL[name]
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    for _ in range(3):
        updates, state = update(PARAMS, state, PARAMS)
    chex.assert_trees_all_close(steps(tx, PARAMS, PARAMS), (updates, state), rtol=2e-6)

    factors = jnp.array([0.5, 0.9, 1.0])
    start = tx.init(PARAMS)

    def with_factor(factor):
        state = start._replace(hyperparams=jax.tree.map(lambda x: factor * x, start.hyperparams))
        return tx.update(PARAMS, state, PARAMS)

    together = jax.jit(jax.vmap(with_factor))(factors)
    for i, factor in enumerate(factors):
        alone = jax.jit(with_factor)(factor)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=2e-6)


@every
def test_count_is_the_only_clock_and_saturates(name):
    tx = ALL[name]
    state = tx.init(PARAMS)
    assert state.count.dtype == jnp.int32
    last = state._replace(count=jnp.array(np.iinfo(np.int32).max, jnp.int32))
    _, after = jax.jit(tx.update)(PARAMS, last, PARAMS)
    assert int(after.count) == np.iinfo(np.int32).max
    assert not [x for x in jax.tree.leaves(own_slots(tx, state)) if jnp.issubdtype(x.dtype, jnp.integer)]


@every
def test_tree_map_params(name):
    """optax's way to find what is like the parameters: it calls init with a placeholder."""
    tx = ALL[name]
    state = tx.init(PARAMS)
    marked: Any = optax.tree_utils.tree_map_params(tx, lambda x: jnp.full_like(x, 7.0), state)
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    like_params = [
        slot
        for own in marked.slots.values()
        for slot in own.values()
        if jax.tree.structure(slot) == jax.tree.structure(PARAMS)
    ]
    assert all(bool((x == 7.0).all()) for x in jax.tree.leaves(like_params))
    chex.assert_trees_all_equal(marked.hyperparams, state.hyperparams)


@every
def test_is_a_value(name):
    tx = ALL[name]
    assert copy.deepcopy(tx) == tx
    assert hash(copy.copy(tx)) == hash(tx)
    assert gx.chain(tx) == gx.chain(gx.chain(), tx, gx.chain())
    if "<" not in repr(tx):  # no schedule and no optax transformation in it
        assert eval(repr(tx), dict(vars(gx))) == tx
        assert pickle.loads(pickle.dumps(tx)) == tx
    static = jax.jit(lambda tx, g, s: tx.update(g, s, g)[0], static_argnums=0)
    argument = jax.jit(lambda tx, g, s: tx.update(g, s, g)[0])
    state = tx.init(PARAMS)
    chex.assert_trees_all_equal(static(tx, PARAMS, state), argument(copy.copy(tx), PARAMS, state))


@every
def test_odd(name):
    """f(−g, −p) = −f(g, p), to the last bit."""
    if name in WHOLE:
        pytest.skip("not a rule of gradtx")
    flipped = jax.tree.map(jnp.negative, PARAMS)
    updates, _ = steps(ALL[name], PARAMS, PARAMS)
    opposite, _ = steps(ALL[name], flipped, flipped)
    chex.assert_trees_all_equal(opposite, jax.tree.map(jnp.negative, updates))


@every
def test_rotates_with_a_complex_gradient(name):
    if name in REAL_ONLY:
        pytest.skip("has no meaning for complex numbers; the refusal is tested in test_errors.py")
    turn = np.exp(0.7j)
    params = {"w": normal(3, 2, dtype=jnp.complex64)}
    rotated = jax.tree.map(lambda x: (turn * x).astype(x.dtype), params)
    updates, _ = steps(ALL[name], params, params)
    expected = jax.tree.map(lambda u: (turn * u).astype(u.dtype), updates)
    chex.assert_trees_all_close(steps(ALL[name], rotated, rotated)[0], expected, rtol=1e-5, atol=1e-6)


@every
def test_state_dtype(name):
    """Slots as asked for, arithmetic in float32: the update is that of float32 up to the rounding of the slots."""
    tx = gx.chain(ALL[name], state_dtype=jnp.bfloat16)
    state = tx.init(PARAMS)
    for rule, kinds in tx._lifted.layout.slots.items():
        for slot, kind in kinds.items():
            if kind.endswith("leaf"):
                assert {x.dtype for x in jax.tree.leaves(state.slots[rule][slot])} == {jnp.dtype(jnp.bfloat16)}
    updates, after = steps(tx, PARAMS, PARAMS)
    assert types(after) == types(state)
    chex.assert_trees_all_close(updates, steps(ALL[name], PARAMS, PARAMS)[0], rtol=3e-2, atol=1e-4)
