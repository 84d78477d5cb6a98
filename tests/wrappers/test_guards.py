"""Guards against plain models: whether a step happens, and what is left of it if it does not."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from typing import Any

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from rounding import assert_same
from trees import normal, types

import gradtx as gx
from gradtx._wrappers.accumulate import accumulate
from gradtx._wrappers.loss_scale import LossScaleState, current_loss_scale, loss_scale
from gradtx._wrappers.skip_nonfinite import SkipNonfiniteState, skip_nonfinite

pytestmark = pytest.mark.usefixtures("quick_compilation")


PARAMS = {"w": normal(3, 2), "b": normal(2, seed=1)}
BAD = [jnp.inf, -jnp.inf, jnp.nan]


def two_or_three(emitted):
    return 2 + emitted % 2


GUARDS = {
    "skip_nonfinite": skip_nonfinite,
    "skip_nonfinite(2)": lambda tx: skip_nonfinite(tx, max_consecutive=2),
    "loss_scale": loss_scale,
    "accumulate(1)": lambda tx: accumulate(tx, 1),
    "accumulate(3)": lambda tx: accumulate(tx, 3),
    "accumulate(schedule)": lambda tx: accumulate(tx, two_or_three),
    "skip of accumulate": lambda tx: skip_nonfinite(accumulate(tx, 2)),
    "accumulate of skip": lambda tx: accumulate(skip_nonfinite(tx), 2),
    "scale of accumulate": lambda tx: loss_scale(accumulate(tx, 2), growth_interval=2),
    "accumulate of scale": lambda tx: accumulate(loss_scale(tx, growth_interval=2), 2),
}
INNER = {"gradtx": gx.adam(0.1), "optax": optax.adam(0.1)}
SMALL = gx.chain(gx.trace(0.9), gx.scale_by_learning_rate(0.1))  # compiles sooner

CLOSE: Any = {"rtol": 2e-6, "atol": 1e-7}  # XLA fuses differently; sums cancel

FEWER = ["skip_nonfinite(2)", "loss_scale", "accumulate(3)", "accumulate(schedule)", "skip of accumulate",
         "accumulate of scale"]  # fmt: skip

every_guard = pytest.mark.parametrize("guard", GUARDS)
fewer_guards = pytest.mark.parametrize("guard", FEWER)  # where there is much to compile
every_inner = pytest.mark.parametrize("inner", INNER)


def gradients(n, bad=(), seed=10):
    """n steps of gradients of PARAMS, stacked; those of the bad steps have one inf or NaN."""
    grads = {name: normal(n, *x.shape, seed=seed + i) for i, (name, x) in enumerate(PARAMS.items())}
    for i in bad:
        grads["b"] = grads["b"].at[i, i % 2].set(BAD[i % 3])
    return grads


def at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def runner(tx, params=PARAMS):
    """From all gradients to all updates and states, under scan, which holds the state to its structure and dtypes."""

    def one(state, g):
        updates, state = tx.update(g, state, params)
        return state, (updates, state)

    return jax.jit(lambda grads: jax.lax.scan(one, tx.init(params), grads)[1])


def scanned(tx, grads, params=PARAMS):
    """All updates, and all states, of a run."""
    return runner(tx, params)(grads)


def counted(tx):
    """The transformation, and how often it ran so far in compiled code."""
    runs = []

    def update(updates, state, params=None, **extra):
        jax.debug.callback(lambda: runs.append(1))
        return optax.with_extra_args_support(tx).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update), runs


# The contract of every guard


@fewer_guards
@every_inner
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "complex64"])
def test_types_never_change(guard, inner, dtype):
    tx, bare = GUARDS[guard](INNER[inner]), INNER[inner]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
        state = jax.eval_shape(tx.init, params)
        for grad_dtype in {dtype, {"complex64": "complex128", "float16": "float32"}.get(dtype, "float16")}:
            grads = jax.tree.map(lambda x, d=grad_dtype: x.astype(d), params)
            updates, after = jax.eval_shape(tx.update, grads, state, params)
            assert types(after) == types(state)
            seen = grads
            if "scale" in guard:
                seen = jax.tree.map(lambda x: x.astype(jnp.result_type(x, jnp.float32)), grads)
            assert types(updates) == types(jax.eval_shape(bare.update, seen, bare.init(params), params)[0])


@fewer_guards
def test_weak_types_of_an_inside_do_not_leak(guard):
    """Python numbers in its state and its updates become arrays with a dtype of their own."""
    tx = GUARDS[guard](
        optax.GradientTransformation(
            lambda params: {"weak": 1.0, "count": 0},
            lambda updates, state, params=None: (jax.tree.map(lambda u: jnp.asarray(0.5), updates), state),
        )
    )
    scalars = {"x": jnp.float32(1.0)}
    state = tx.init(scalars)
    assert not any(weak for *_, weak in types(state)[1])
    for update in tx.update, jax.jit(tx.update):
        updates, after = update(scalars, state)
        assert types((updates, after)) == types((scalars, state))


@fewer_guards
def test_scan_is_the_loop_and_vmap_is_separate_runs(guard):
    """Also without jit, where the condition is an ``if``; compiled once, donated, and in a branch."""
    tx = GUARDS[guard](SMALL)
    run, step = runner(tx), jax.jit(lambda g, s: tx.update(g, s, PARAMS), donate_argnums=1)
    runs = [gradients(6, bad=bad, seed=30 + i) for i, bad in enumerate([[1, 4], [0, 1, 2], []])]
    expected = [run(grads) for grads in runs]

    state, eager = tx.init(PARAMS), tx.init(PARAMS)
    for i in range(6):
        updates, state = step(at(runs[0], i), state)
        chex.assert_trees_all_close((updates, state), at(expected[0], i), **CLOSE)
        updates, eager = tx.update(at(runs[0], i), eager, PARAMS)
        chex.assert_trees_all_close((updates, eager), at(expected[0], i), **CLOSE)
        assert types((updates, eager)) == types(at(expected[0], i))
    assert step._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue] - jax has no public way to ask

    together = jax.vmap(run)(jax.tree.map(lambda *x: jnp.stack(x), *runs))
    for i in range(3):
        chex.assert_trees_all_close(at(together, i), expected[i], **CLOSE)

    def maybe(flag, g, s):
        return jax.lax.cond(flag, lambda g, s: tx.update(g, s, PARAMS), lambda g, s: (g, s), g, s)

    assert types(jax.eval_shape(maybe, True, PARAMS, state)) == types((PARAMS, state))


@fewer_guards
def test_in_chains(guard):
    """Inside gradtx's chain, inside optax's, and with optax inside: the same."""
    grads = gradients(6, bad=[2])
    alone = GUARDS[guard](SMALL)
    state, expected = alone.init(PARAMS), []
    for i in range(6):
        updates, state = alone.update(at(grads, i), state, PARAMS)
        expected.append(updates)
    ours = gx.chain(GUARDS[guard](gx.trace(0.9)), gx.scale(-0.1))
    theirs = optax.chain(GUARDS[guard](optax.trace(0.9)), optax.scale(-0.1))
    for tx in ours, theirs:
        updates, _ = scanned(tx, grads)
        for i in range(6):
            chex.assert_trees_all_close(at(updates, i), expected[i], **CLOSE)
        assert types(tx.init(PARAMS)) == types(jax.eval_shape(tx.update, at(grads, 0), tx.init(PARAMS), PARAMS)[1])


@every_guard
@every_inner
def test_tree_map_params(guard, inner):
    """Finds what is like the parameters inside, and the sums; nothing else."""
    bare, tx = INNER[inner], GUARDS[guard](INNER[inner])
    marked = [
        sum(bool((x == 7).all()) for x in jax.tree.leaves(optax.tree_utils.tree_map_params(t, lambda x: x * 0 + 7, s)))
        for t in (bare, tx)
        for s in [t.init(PARAMS)]
    ]
    assert marked[1] == marked[0] + (len(PARAMS) if "accumulate" in guard else 0)


@every_guard
def test_is_a_value(guard):
    tx = GUARDS[guard](gx.sgd(0.1))
    assert copy.deepcopy(tx) == tx == GUARDS[guard](gx.sgd(0.1))
    assert hash(copy.copy(tx)) == hash(tx)
    assert tx not in (gx.sgd(0.1), GUARDS[guard](gx.sgd(0.2)))
    assert pickle.loads(pickle.dumps(tx)) == tx
    if "<" not in repr(tx):
        assert eval(repr(tx), dict(vars(gx))) == tx
    static = jax.jit(lambda tx, g, s: tx.update(g, s, g)[0], static_argnums=0)
    argument = jax.jit(lambda tx, g, s: tx.update(g, s, g)[0])
    state = tx.init(PARAMS)
    chex.assert_trees_all_equal(static(tx, PARAMS, state), argument(copy.copy(tx), PARAMS, state))


def test_values_differ_by_their_arguments():
    tx = gx.sgd(0.1)
    assert len({skip_nonfinite(tx), skip_nonfinite(tx, 3), loss_scale(tx), accumulate(tx, 2), accumulate(tx, 3)}) == 5
    assert loss_scale(tx, initial=1024) == loss_scale(tx, initial=1024.0)
    assert accumulate(tx, np.int64(2)) == accumulate(tx, 2)  # pyright: ignore[reportArgumentType]
    assert repr(accumulate(tx, np.int64(2))) == repr(accumulate(tx, 2))  # pyright: ignore[reportArgumentType]
    assert repr(skip_nonfinite(tx, 3)) == f"skip_nonfinite(tx={tx!r}, max_consecutive=3)"


@fewer_guards
def test_any_tree(guard):
    trees = {
        "empty": {},
        "scalar": normal(),
        "size 0": {"x": jnp.zeros((0, 3)), "y": normal(2)},
        "None": {"x": normal(2), "frozen": None, "deep": (None, [normal(1)])},
    }
    tx = GUARDS[guard](SMALL)
    for tree in trees.values():
        state = jax.eval_shape(tx.init, tree)
        assert types(jax.eval_shape(tx.update, tree, state, tree)) == types((tree, state))
    chex.assert_tree_all_finite(jax.jit(tx.update)(trees, tx.init(trees), trees))


@every_guard
def test_extra_arguments_reach_the_inside(guard):
    def update(updates, state, params=None, *, value=0.0, **extra):
        return jax.tree.map(lambda u: u + value, updates), state

    tx = GUARDS[guard](optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    state = tx.init(PARAMS)
    seen = []
    for value in 1.0, 2.0, 3.0, 4.0:
        updates, state = tx.update(zeros, state, PARAMS, value=value, other="passed on")
        seen.append(float(updates["b"][0]))
    emits = {"accumulate(1)": [1, 2, 3, 4], "accumulate(3)": [0, 0, 3, 0], "accumulate(schedule)": [0, 2, 0, 0]}
    assert seen == emits.get(guard, [0, 2, 0, 4] if "accumulate" in guard else [1, 2, 3, 4])


@every_guard
def test_counts_saturate(guard):
    tx = GUARDS[guard](gx.sgd(0.1))
    most = np.iinfo(np.int32).max

    def full(path, x):  # how many micro-batches are held starts anew with each batch
        return jnp.full_like(x, most) if x.dtype == jnp.int32 and path[-1].name != "held" else x

    state = jax.tree_util.tree_map_with_path(full, tx.init(PARAMS))
    for grads in PARAMS, jax.tree.map(lambda x: x * jnp.inf, PARAMS):
        _, after = tx.update(grads, state, PARAMS)
        assert all(0 <= int(x) for x in jax.tree.leaves(after) if x.dtype == jnp.int32)


ERRORS = {
    "skip: no transformation": (lambda: skip_nonfinite(0.1), TypeError, r"skip_nonfinite: tx must be .* found 0.1"),  # pyright: ignore[reportArgumentType]
    "skip: not called": (lambda: skip_nonfinite(gx.adam), TypeError, r"call it"),  # pyright: ignore[reportArgumentType]
    "skip: a float": (lambda: skip_nonfinite(gx.sgd(1), 1.5), TypeError, r"max_consecutive .* 0 .* or None, found 1.5"),  # pyright: ignore[reportArgumentType]
    "skip: a bool": (lambda: skip_nonfinite(gx.sgd(1), True), TypeError, r"max_consecutive .* found True"),
    "skip: negative": (lambda: skip_nonfinite(gx.sgd(1), -1), ValueError, r"max_consecutive .* found -1"),
    "scale: no transformation": (lambda: loss_scale(optax.adam), TypeError, r"loss_scale: tx must be"),  # pyright: ignore[reportArgumentType]
    "scale: factor 1": (lambda: loss_scale(gx.sgd(1), factor=1), ValueError, r"factor must be greater than 1, found 1"),
    "scale: factor NaN": (lambda: loss_scale(gx.sgd(1), factor=np.nan), ValueError, r"factor must be finite"),
    "scale: factor text": (lambda: loss_scale(gx.sgd(1), factor="2"), TypeError, r"factor must be a number, found '2'"),  # pyright: ignore[reportArgumentType]
    "scale: interval 0": (lambda: loss_scale(gx.sgd(1), growth_interval=0), ValueError, r"growth_interval .* found 0"),
    "scale: interval 2³¹": (lambda: loss_scale(gx.sgd(1), growth_interval=2**31), ValueError, r"2147483647, found"),
    "scale: interval float": (lambda: loss_scale(gx.sgd(1), growth_interval=2e3), TypeError, r"found 2000.0"),  # pyright: ignore[reportArgumentType]
    "scale: minimum 0": (lambda: loss_scale(gx.sgd(1), minimum=0), ValueError, r"0 < minimum ≤ initial .* minimum=0"),
    "scale: minimum tiny": (lambda: loss_scale(gx.sgd(1), minimum=1e-50), ValueError, r"normal numbers of float32"),
    "scale: initial low": (lambda: loss_scale(gx.sgd(1), initial=0.5), ValueError, r"initial=0.5"),
    "scale: initial high": (lambda: loss_scale(gx.sgd(1), initial=2.0**30), ValueError, r"maximum=1.67772e\+07"),
    "scale: maximum 2¹²⁷": (lambda: loss_scale(gx.sgd(1), maximum=2.0**127), ValueError, r"float32 up to 2¹²⁶"),
    "scale: maximum inf": (lambda: loss_scale(gx.sgd(1), maximum=np.inf), ValueError, r"maximum must be finite"),
    "scale: consecutive": (lambda: loss_scale(gx.sgd(1), max_consecutive=-2), ValueError, r"loss_scale: max_consec"),
    "accumulate: no transformation": (lambda: accumulate({}, 2), TypeError, r"accumulate: tx must be"),  # pyright: ignore[reportArgumentType]
    "accumulate: 0": (lambda: accumulate(gx.sgd(1), 0), ValueError, r"every must be an integer from 1 .* found 0"),
    "accumulate: 2.0": (lambda: accumulate(gx.sgd(1), 2.0), TypeError, r"every .* or a schedule, found 2.0"),  # pyright: ignore[reportArgumentType]
    "accumulate: True": (lambda: accumulate(gx.sgd(1), True), TypeError, r"found True"),
    "accumulate: None": (lambda: accumulate(gx.sgd(1), None), TypeError, r"found None"),  # pyright: ignore[reportArgumentType]
    "accumulate: traced": (lambda: jax.eval_shape(lambda k: accumulate(gx.sgd(1), k), 2), TypeError, r"every .* found"),
    "accumulate: integers": (lambda: accumulate(gx.sgd(1), 2).init({"n": jnp.arange(3)}), TypeError, r"'n'.*int32"),
    "accumulate: shapes": (lambda: wrong_update(jnp.zeros((3, 1))), ValueError, r"'x'.*\(3,\).*\(3, 1\)"),
    "accumulate: trees": (lambda: wrong_update(jnp.zeros(3), y=jnp.zeros(3)), ValueError, r"accumulated .* 'y'"),
    "accumulate: complex": (lambda: wrong_update(1j * jnp.zeros(3)), TypeError, r"'x'.*complex"),
    "accumulate: combine": (lambda: accumulate(gx.sgd(1), 2, "median"), ValueError, r"one of .* found 'median'"),  # pyright: ignore[reportArgumentType]
    "accumulate: no weight": (lambda: combined("weighted mean"), TypeError, r"needs the weight of each"),
    "accumulate: a weight": (lambda: combined("mean", weight=1), TypeError, r"and this one has combine='mean'"),
    "accumulate: weights": (lambda: combined("weighted mean", weight=[1, 2]), TypeError, r"one real .* int32\[2\]"),
    "accumulate: weight 1j": (lambda: combined("weighted mean", weight=1j), TypeError, r"one real .* complex64"),
    "accumulate: weight -1": (lambda: combined("weighted mean", weight=-1), ValueError, r"0 or more, found -1"),
    "accumulate: emit yes": (lambda: combined("sum", emit="yes"), TypeError, r"emit must be one bool, found 'yes'"),
    "accumulate: emit 1": (lambda: combined("sum", emit=1), TypeError, r"emit must be one bool, found 1"),
    "accumulate: state": (lambda: combined("weighted mean", "sum", weight=1), ValueError, r"made with another combine"),
    "no scale": (lambda: current_loss_scale(gx.sgd(1).init(PARAMS)), ValueError, r"no LossScaleState in this ChainS"),
    "two scales": (lambda: current_loss_scale([loss_scale(gx.sgd(1)).init(PARAMS)] * 2), ValueError, r"found 2"),
}  # fmt: skip


def combined(combine: Any, started: Any = None, **extra):
    tx, first = (accumulate(gx.sgd(1.0), 2, how) for how in (combine, started or combine))
    return tx.update(PARAMS, first.init(PARAMS), **extra)


def wrong_update(x, **more):
    tx = accumulate(gx.sgd(1.0), 2)
    return tx.update({"x": x} | more, tx.init({"x": jnp.zeros(3)}))


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    wrong, error, message = ERRORS[case]
    with pytest.raises(error, match=f"(?s){message}"):
        wrong()


@pytest.mark.parametrize("guard", ["skip_nonfinite", "loss_scale", "accumulate(3)"])
def test_a_state_of_something_else_is_refused(guard):
    tx = GUARDS[guard](gx.sgd(0.1))
    with pytest.raises(TypeError, match=r"needs the (SkipNonfinite|LossScale|Accumulate)State .* found ChainState"):
        tx.update(PARAMS, gx.sgd(0.1).init(PARAMS), PARAMS)


@every_guard
def test_an_inside_that_changes_its_structure_is_refused(guard):
    def update(updates, state: Any, params=None):
        return updates, (*state, jnp.zeros(()))

    tx = GUARDS[guard](optax.GradientTransformation(lambda params: (), update))
    with pytest.raises(TypeError, match="changed the structure or the shapes of its state"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


# skip_nonfinite


streams = st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=12)
guarded_step = jax.jit(skip_nonfinite(gx.adam(0.1)).update)


@given(streams, st.data())
def test_a_skipped_step_never_was(finite, data):
    """The good steps are, to the last bit, those of a run of the same program that never saw the others."""
    state = never = skip_nonfinite(gx.adam(0.1)).init(PARAMS)
    skipped = consecutive = 0
    for i, good in enumerate(finite):
        grads = {name: normal(*x.shape, seed=100 * i + len(name)) for name, x in PARAMS.items()}
        if good:
            expected, never = guarded_step(grads, never, PARAMS)
            consecutive = 0
        else:
            name = data.draw(st.sampled_from(sorted(grads)))
            where = data.draw(st.integers(0, grads[name].size - 1))
            grads[name] = (
                grads[name].at[np.unravel_index(where, grads[name].shape)].set(data.draw(st.sampled_from(BAD)))
            )
            expected = jax.tree.map(jnp.zeros_like, PARAMS)
            skipped, consecutive = skipped + 1, consecutive + 1
        updates, state = guarded_step(grads, state, PARAMS)
        chex.assert_trees_all_equal(updates, expected)
        chex.assert_trees_all_equal(state.inner, never.inner)
        assert (int(state.skipped), int(state.consecutive), bool(state.finite)) == (skipped, consecutive, good)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_too_many_in_a_row_are_seen(most):
    tx = skip_nonfinite(gx.adam(0.1), max_consecutive=most)
    bad = [1, 2, 3, 4, 5, 7, 8]
    updates, states = scanned(tx, gradients(10, bad))
    in_a_row = 0
    for i in range(10):
        in_a_row = in_a_row + 1 if i in bad else 0
        values = np.concatenate([np.ravel(u) for u in jax.tree.leaves(at(updates, i))])
        assert int(states.consecutive[i]) == in_a_row
        assert np.isnan(values).all() if in_a_row > most else np.isfinite(values).all()
        assert in_a_row == 0 or in_a_row > most or (values == 0).all()
    chex.assert_tree_all_finite(states.inner)
    good = [i for i in range(10) if i not in bad]
    chex.assert_trees_all_close(
        at(updates, np.array(good)), scanned(gx.adam(0.1), at(gradients(10, bad), np.array(good)))[0], rtol=2e-6
    )


def test_a_limit_of_none_skips_for_ever():
    updates, states = scanned(skip_nonfinite(gx.adam(0.1)), gradients(40, bad=range(40)))
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, updates))
    assert int(states.consecutive[-1]) == int(states.skipped[-1]) == 40


HUGE = 3e38  # a norm of two of these is more than float32 holds, and each is finite
CLIPS = {
    "global": gx.clip_by_global_norm(1.0),
    "of each leaf": gx.clip_by_norm(1.0),
    "of some leaves": gx.where("w", gx.clip_by_global_norm(1.0)),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("executor", ["native", "reference"])
def test_a_norm_that_is_measured_anyway_says_whether_gradients_are_finite(executor, clip):
    tx = skip_nonfinite(gx.chain(CLIPS[clip], SMALL))
    with gx.executor(executor):
        step = jax.jit(tx.update)
        for value, finite in [(1.0, True), (1e30, True), (HUGE, True), (jnp.inf, False), (jnp.nan, False)]:
            for name in PARAMS:
                grads = {k: jnp.ones_like(p).at[:2].set(value if k == name else 1.0) for k, p in PARAMS.items()}
                updates, state = step(grads, tx.init(PARAMS))
                assert state.finite == finite and state.skipped == (not finite) and state.inner.count == finite
                if not finite:
                    assert all(not u.any() for u in jax.tree.leaves(updates))


LARGE = {name: jnp.zeros(2**17) for name in PARAMS}


def test_large_gradients_in_xla_are_finite_if_each_number_is():
    """Whatever their sum is: infinite of finite numbers, and no number of infinite ones."""
    tx, params = gx.skip_nonfinite(gx.sgd(0.0)), {"large": jnp.zeros(2**18), "small": jnp.zeros(3)}
    with gx.executor("reference"):
        step = jax.jit(lambda g: gx.step(tx, params, g, tx.init(params))[1].finite)
        for large, small in ((HUGE, HUGE), (1.0, np.nan), (np.inf, 1.0), (np.nan, 1.0), ((np.inf, -np.inf), 1.0)):
            g = np.full(2**18, 1e-3, np.float32)
            g[7:9] = large
            seen = {"large": g, "small": np.full(3, small, np.float32)}
            assert step(seen) == all(np.isfinite(x).all() for x in seen.values())


def test_gradients_are_read_once_for_the_norm_and_the_check():
    """Of leaves too large to be read together a norm in XLA is the only loop. Left out may be a check, and the step."""
    tx = skip_nonfinite(gx.chain(gx.clip_by_global_norm(1.0), gx.scale_by_learning_rate(0.1)))
    with gx.executor("reference"):
        text = jax.jit(tx.update).lower(LARGE, tx.init(LARGE)).compile().as_text() or ""
    assert (text.count(" while("), text.count(" conditional(")) == (1, 2)


def test_skipped_steps_are_not_computed():
    inside, runs = counted(optax.adam(0.1))
    jax.block_until_ready(scanned(skip_nonfinite(inside), gradients(9, bad=[0, 3, 4, 8])))
    jax.effects_barrier()
    assert len(runs) == 5


def test_nothing_is_traced_or_compiled_without_jit():
    """A ``lax.cond`` would compile anew in every step of a notebook's loop."""
    traced = []

    def update(updates, params):
        traced.append(isinstance(updates["b"], jax.core.Tracer))
        return updates

    tx = skip_nonfinite(optax.stateless(update))
    state = tx.init(PARAMS)
    for i in range(3):
        _, state = tx.update(at(gradients(3, bad=[1]), i), state)
    assert traced == [False, True, False]  # in the bad step, for the dtypes of its zeros only


def test_leaves_that_are_no_floats():
    """Integers, booleans and None count as finite, and are zero in a skipped step, also a NaN one."""
    params = {"x": jnp.ones(2), "n": jnp.array([3, 4]), "flag": jnp.array(True), "none": None}
    tx = skip_nonfinite(optax.identity(), max_consecutive=1)
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(params, state)
    chex.assert_trees_all_equal(updates, params)
    for x in 0.0, np.nan:
        updates, state = jax.jit(tx.update)(params | {"x": params["x"] * jnp.inf}, state)
        expected = {"x": jnp.full(2, x), "n": jnp.array([0, 0]), "flag": jnp.array(False), "none": None}
        chex.assert_trees_all_equal(updates, expected)
        assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_every_dtype_is_looked_at(dtype):
    tx = skip_nonfinite(gx.sgd(0.1))
    state = tx.init(jnp.zeros(2, dtype))
    for value in [*BAD, *([complex(0, np.inf), complex(0, np.nan)] if dtype == "complex64" else [])]:
        updates, state = tx.update(jnp.array([1, value], dtype), state)
        chex.assert_trees_all_equal(updates, jnp.zeros(2, dtype))
    _, state = tx.update(jnp.array([1, jnp.finfo(dtype).max], dtype), state)
    assert int(state.inner.count) == 1


def test_random_keys_inside_stand_still_too():
    tx = skip_nonfinite(optax.add_noise(0.1, 0.5, 0))
    updates, states = scanned(tx, gradients(4, bad=[1, 2]))
    chex.assert_trees_all_equal(at(states.inner, 0), at(states.inner, 2))
    assert float(updates["b"][0, 0]) != 0 == float(updates["b"][1, 0])


SHARDED = """
    import jax, jax.numpy as jnp, numpy as np, gradtx as gx
    from jax.sharding import NamedSharding, PartitionSpec as P
    from gradtx import accumulate, loss_scale, skip_nonfinite

    assert jax.device_count() == 8
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    layout = {"w": NamedSharding(mesh, P("x", "y")), "b": NamedSharding(mesh, P("y")), "s": NamedSharding(mesh, P())}
    shapes = {"w": (8, 4), "b": (4,), "s": ()}
    draw = np.random.default_rng(0).normal
    params = {name: draw(size=shape).astype(np.float32) for name, shape in shapes.items()}
    steps = [{name: draw(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(6)]
    steps[1]["w"][7, 3] = np.nan  # one element of the last of eight shards
    steps[4]["b"][0] = np.inf

    for guard in (
        skip_nonfinite(gx.adam(0.1)),
        loss_scale(gx.momentum_sgd(0.1), growth_interval=2),
        accumulate(gx.momentum_sgd(0.1), 2),
        accumulate(skip_nonfinite(gx.momentum_sgd(0.1)), 2),
        skip_nonfinite(accumulate(gx.momentum_sgd(0.1), 2)),
    ):
        runs = []
        for place in (lambda tree: jax.device_put(tree, layout), lambda tree: jax.tree.map(jnp.asarray, tree)):
            step = jax.jit(lambda p, g, s: gx.step(guard, p, g, s))
            p, s = place(params), guard.init(place(params))
            where = [x.sharding for x in jax.tree.leaves(s) if x.ndim]
            for g in steps:
                p, s = step(p, place(g), s)
                after = [x.sharding for x in jax.tree.leaves(s) if x.ndim]
                same = [a.is_equivalent_to(b, x.ndim) for a, b, x in
                        zip(where, after, [x for x in jax.tree.leaves(s) if x.ndim], strict=True)]
                assert all(same), (guard, where, after)
            for x in jax.tree.leaves(s):  # what is held on all devices is the same on all devices
                if not x.ndim:
                    assert len({np.asarray(shard.data).tobytes() for shard in x.addressable_shards}) == 1
            runs.append(jax.tree.map(np.asarray, (p, s)))
        for a, b in zip(*map(jax.tree.leaves, runs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)  # two programs: an ulp of what cancels
            assert np.array_equal(np.isnan(a), np.isnan(b))
        print(type(guard).__name__, int(getattr(runs[0][1], "skipped", 0)))
"""


def test_one_bad_shard_skips_on_every_device():
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SHARDED)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == "skip_nonfinite 2 loss_scale 0 accumulate 0 accumulate 0 skip_nonfinite 2".split()


def test_outside_of_jit_sums_are_traced_once(monkeypatch):
    module = sys.modules[accumulate.__module__]
    added, traced = module._joined, []
    monkeypatch.setattr(module, "_joined", lambda *operands: traced.append(operands) or added(*operands))
    tx, g = accumulate(gx.sgd(0.5), 4), jnp.arange(17.0)
    with gx.executor("native"):
        state = tx.init(g)
        updates, state = tx.update(g, state)
        first = len(traced)
        for _ in range(3):
            updates, state = tx.update(g, state)
    assert first == len(traced) > 0
    np.testing.assert_array_equal(updates, -0.5 * g)


# loss_scale


@given(streams, st.integers(1, 4), st.sampled_from([2.0, 4.0, 1.5]), st.sampled_from([(2.0, 64.0), (1.0, 1e6)]))
def test_the_scale_is_that_of_a_plain_model(finite, interval, factor, limits):
    tx = loss_scale(gx.sgd(0.5), 16, growth_interval=interval, factor=factor, minimum=limits[0], maximum=limits[1])
    state, w = tx.init(jnp.zeros(())), 0.0
    scale, good, skipped = 16.0, 0, 0
    for is_finite in finite:
        updates, state = tx.update(jnp.float32(3.0 * scale if is_finite else np.inf), state)
        if is_finite:
            w -= 0.5 * 3.0
            good += 1
            if good == interval:
                scale, good = min(scale * factor, limits[1]), 0
        else:
            scale, good, skipped = max(scale / factor, limits[0]), 0, skipped + 1
        assert float(updates) == pytest.approx(-1.5 if is_finite else 0.0, rel=1e-6)
        assert float(state.scale) == pytest.approx(scale, rel=1e-6)
        assert (int(state.good_steps), int(state.inner.skipped)) == (good, skipped)
        assert int(state.inner.inner.count) == len(finite[: int(state.inner.inner.count) + skipped]) - skipped


def test_halved_and_doubled_exactly():
    """Powers of two: S after each step, by hand; never under the minimum or above the maximum."""
    tx = loss_scale(gx.sgd(0.5), initial=8, growth_interval=2, minimum=2, maximum=16)
    _, states = scanned(tx, gradients(12, bad=[3, 4, 5, 6]))
    assert states.scale.tolist() == [8, 16, 16, 8, 4, 2, 2, 2, 4, 4, 8, 8]
    assert states.good_steps.tolist() == [1, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1]
    _, states = scanned(tx, gradients(9))
    assert states.scale.tolist() == [8, 16, 16, 16, 16, 16, 16, 16, 16]


def test_a_power_of_two_changes_no_bit():
    tx, grads = loss_scale(gx.adam(0.1)), gradients(5)
    update = jax.jit(tx.update)
    state, plain = tx.init(PARAMS), tx.init(PARAMS)._replace(scale=jnp.float32(1.0))
    for i in range(5):
        updates, state = update(at(jax.tree.map(lambda g: g * 2**15, grads), i), state, PARAMS)
        expected, plain = update(at(grads, i), plain, PARAMS)
        chex.assert_trees_all_equal((updates, state.inner), (expected, plain.inner))
    assert_same(updates, at(scanned(gx.adam(0.1), grads)[0], 4))


def test_the_inside_sees_unscaled_gradients_in_float32_or_wider():
    seen = []
    record = optax.stateless(lambda g, p: seen.append(jax.tree.map(lambda x: x.dtype.name, g)) or g)
    with jax.enable_x64(True):
        tx = loss_scale(record)
        grads = {d: jnp.asarray([1.0], d) for d in ("float16", "bfloat16", "float32", "float64", "complex64")}
        updates, _ = tx.update(grads | {"n": jnp.array([3])}, tx.init(grads))
    wide = {"float16": "float32", "bfloat16": "float32"}
    assert seen[0] == {d: wide.get(d, d) for d in grads} | {"n": "int64"}
    # The smallest number of float16, far below its range when unscaled, is there to the last bit.
    assert float(updates["float16"][0]) == 2.0**-15 and int(updates["n"][0]) == 3
    tiny = jnp.array([jnp.finfo(jnp.float16).smallest_subnormal], jnp.float16)
    tx = loss_scale(gx.scale(1.0), initial=2**24)
    assert float(tx.update(tiny, tx.init(tiny))[0][0]) == 2.0**-24 / 2**24


TARGET = np.array([1.0, -2.0, 0.5], np.float32)


def half_precision_loss(params, factor):
    """¼·10⁻⁶·|w − target|² computed through float16: gradients of at most 1.25e-6, with nothing left of 1e-8."""
    half = (params - TARGET).astype(jnp.float16)  # the backward pass goes through this cast
    return factor * jnp.float32(2.5e-9) * jnp.sum(jnp.square(half.astype(jnp.float32)))


def train(tx, steps=60, scale_of=lambda state: 1.0):
    @jax.jit
    def step(params, state):
        grads = jax.grad(half_precision_loss)(params, scale_of(state))
        return gx.step(tx, params, grads, state)

    params = jnp.zeros(3)
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return np.asarray(params), state


def test_gradients_that_float16_loses_are_learned_from():
    lost, _ = train(gx.sgd(1e8))
    assert (lost == 0).all()
    learned, state = train(loss_scale(gx.sgd(1e8)), scale_of=current_loss_scale)
    np.testing.assert_allclose(learned, TARGET, rtol=2e-3)  # a gradient has 11 bits
    assert int(state.inner.skipped) == 0


def test_overflow_is_recovered_from():
    """S·g starts above 65504 and falls by halves until it is below: 2⁴⁰ · 1e-8 is 1.1e4, three and a bit above."""
    tx = loss_scale(gx.sgd(1e8), initial=2.0**50, maximum=2.0**60, growth_interval=20)
    learned, state = train(tx, steps=100, scale_of=current_loss_scale)
    np.testing.assert_allclose(learned, TARGET, rtol=2e-3)
    largest = 5e-9 * 2.0  # 2·2.5e-9·|w − target| at the start
    halvings = int(np.ceil(np.log2(2.0**50 * largest / 65504)))
    assert 0 < halvings <= int(state.inner.skipped)
    _, state = train(tx, steps=halvings + 1, scale_of=current_loss_scale)
    assert (int(state.inner.skipped), float(state.scale)) == (halvings, 2.0 ** (50 - halvings))
    assert int(state.inner.inner.count) == 1


def test_float16_parameters():
    """Everything in float16, updates in float32; the parameters stay what they are."""
    tx = loss_scale(gx.adam(0.05), growth_interval=2)
    params = jnp.zeros(3, jnp.float16)

    @jax.jit
    def step(params, state):
        scale = current_loss_scale(state)
        grads = jax.grad(lambda w: scale * 1e-2 * jnp.sum(jnp.square(w.astype(jnp.float32) - TARGET)))(params)
        assert grads.dtype == jnp.float16
        updates, state = tx.update(grads, state, params)
        assert updates.dtype == jnp.float32
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(150):
        params, state = step(params, state)
    assert params.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(params, np.float32), TARGET, atol=0.02)
    assert int(state.inner.skipped) >= 1  # it grew until it overflowed, and went on


def test_a_scale_at_its_minimum_does_not_hide_a_dead_run():
    tx = loss_scale(gx.sgd(0.1), initial=4, max_consecutive=5)
    updates, states = scanned(tx, gradients(8, bad=range(8)))
    assert np.isnan(updates["w"]).all(axis=(1, 2)).tolist() == [False] * 5 + [True] * 3
    assert states.scale.tolist() == [2, 1, 1, 1, 1, 1, 1, 1]


def test_finding_the_scale():
    tx = loss_scale(gx.adam(0.1), initial=256)
    for around in tx, accumulate(tx, 2), skip_nonfinite(tx), gx.chain(tx), optax.chain(optax.identity(), tx):
        assert float(current_loss_scale(around.init(PARAMS))) == 256
    assert isinstance(skip_nonfinite(tx).init(PARAMS), SkipNonfiniteState)
    assert isinstance(tx.init(PARAMS), LossScaleState)


# accumulate


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 1000))
def test_is_the_mean_of_a_plain_model(k, n, seed):
    grads = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    tx = accumulate(gx.trace(0.5), k)
    state, held, b, emitted = tx.init(jnp.zeros(3)), [], np.zeros(3), 0
    for i, g in enumerate(grads):
        updates, state = tx.update(jnp.asarray(g), state)
        held.append(g.astype(np.float64))
        expected = np.zeros(3)
        if len(held) == k:
            b = expected = 0.5 * b + np.mean(held, axis=0)
            held, emitted = [], emitted + 1
        np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-6)
        assert (int(state.held), int(state.micro_steps), int(state.emitted)) == (len(held), i + 1, emitted)
        assert int(state.inner.count) == emitted
        np.testing.assert_allclose(state.sums, np.sum(held, axis=0) if held else np.zeros(3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-12), ("float32", 2e-4)])
def test_is_the_big_batch(dtype, rtol):
    """Real micro-batches of a regression under Adam. float32: 2⁻²⁴ per operation, through 10 steps near convergence."""
    with jax.enable_x64(True):
        x, y = normal(10, 32, 4, dtype=dtype), normal(10, 32, seed=1, dtype=dtype)
        grad = jax.grad(lambda w, x, y: jnp.mean(jnp.square(x @ w - y)))

        def trained(tx, x, y):
            def one(carry, batch):
                w, state = carry
                return gx.step(tx, w, grad(w, *batch), state), None

            w = jnp.zeros(4, dtype)
            return jax.jit(lambda x, y: jax.lax.scan(one, (w, tx.init(w)), (x, y))[0])(x, y)

        small, state = trained(accumulate(gx.adam(0.1), 8), x.reshape(80, 4, 4), y.reshape(80, 4))
        big, big_state = trained(gx.adam(0.1), x, y)
        np.testing.assert_allclose(small, big, rtol=rtol)
        chex.assert_trees_all_close(state.inner, big_state, rtol=10 * rtol)
        assert int(state.emitted) == int(big_state.count) == 10


def test_is_multi_steps_of_optax():
    grads = gradients(9)
    theirs = optax.MultiSteps(optax.adam(0.1), 3)
    state, update = theirs.init(PARAMS), jax.jit(theirs.update)
    updates, _ = scanned(accumulate(gx.adam(0.1), 3), grads)
    for i in range(9):
        expected, state = update(at(grads, i), state, PARAMS)
        chex.assert_trees_all_close(at(updates, i), expected, rtol=1e-4)  # its 1 − 0.999ᵗ cancels


@pytest.mark.parametrize("inside", ["gradtx", "optax", "optax bfloat16"])
def test_every_one_is_the_inside_to_the_last_bit(inside):
    """With numbers that nothing rounds, so that two programs have no reason to differ: eighths, and halves of them."""
    dtype = jnp.bfloat16 if "bfloat16" in inside else jnp.float32
    bare = gx.trace(0.5) if inside == "gradtx" else optax.trace(0.5)
    params, grads = jax.tree.map(lambda x: (jnp.round(8 * x) / 8).clip(-1, 1).astype(dtype), (PARAMS, gradients(4)))
    updates, states = scanned(accumulate(bare, 1), grads, params)
    expected, expected_states = scanned(bare, grads, params)
    chex.assert_trees_all_equal((updates, states.inner), (expected, expected_states))
    minus_zero, _ = accumulate(optax.identity(), 1).update(-jnp.zeros(1), accumulate(bare, 1).init(jnp.zeros(1)))
    assert np.signbit(minus_zero)


def test_the_inside_runs_only_when_it_emits():
    inside, runs = counted(gx.adam(0.1))
    _, states = scanned(accumulate(inside, 4), gradients(11))
    jax.effects_barrier()
    assert len(runs) == 2 == int(states.emitted[-1]) == int(states.inner.count[-1])
    assert int(states.micro_steps[-1]) == 11


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_summed_in_float32(dtype):
    """1 and then 255 times 1/256: bfloat16 would stay at 1."""
    params = jnp.zeros(1, dtype)
    tx = accumulate(gx.scale(1.0), 256)
    grads = jnp.full((256, 1), 1 / 256, dtype).at[0].set(1.0)
    updates, states = scanned(tx, grads, params)
    assert states.sums.dtype == jnp.float32
    assert float(states.sums[-2, 0]) == 1 + 254 / 256
    assert updates.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(float(updates[-1, 0]), (1 + 255 / 256) / 256, rtol=2**-8)
    # The inside sees unrounded numbers.
    _, states = scanned(accumulate(gx.trace(0.9), 256), grads, params)
    assert float(states.inner.slots["trace"]["b"][-1, 0]) == (1 + 255 / 256) / 256


@pytest.mark.parametrize("value", BAD)
def test_a_bad_micro_batch_spoils_its_own_emission_only(value):
    grads = gradients(9)
    grads["b"] = grads["b"].at[4, 1].set(value)  # in the second batch of three
    tx = accumulate(gx.scale(-1.0), 3)
    updates, states = scanned(tx, grads)
    mean = grads["b"].reshape(3, 3, 2).mean(axis=1)
    np.testing.assert_allclose(updates["b"][2], -mean[0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"][5], [-mean[1, 0], -value], rtol=1e-6)
    np.testing.assert_allclose(updates["b"][8], -mean[2], rtol=1e-6)
    chex.assert_tree_all_finite(jax.tree.map(lambda x: x[5:], states.sums))


def test_the_whole_batch_or_only_the_micro_batch():
    grads = gradients(9, bad=[4])
    whole, whole_states = scanned(accumulate(skip_nonfinite(gx.sgd(1.0)), 3), grads)
    one, one_states = scanned(skip_nonfinite(accumulate(gx.sgd(1.0), 3)), grads)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)

    def mean(*steps):
        return jax.tree.map(lambda g: -g[np.array(steps)].mean(axis=0), grads)

    # Inside: of the batches 012, 345 and 678 the second is dropped.
    for i, expected in {2: mean(0, 1, 2), 5: zero, 8: mean(6, 7, 8)}.items():
        chex.assert_trees_all_close(at(whole, i), expected, rtol=1e-5, atol=1e-6)
    assert (int(whole_states.emitted[-1]), int(whole_states.inner.skipped[-1])) == (3, 1)
    assert int(whole_states.inner.inner.count[-1]) == 2
    # Outside: the batches are 012 and 356, and 7 and 8 wait for a third.
    for i, expected in {2: mean(0, 1, 2), 4: zero, 5: zero, 6: mean(3, 5, 6), 8: zero}.items():
        chex.assert_trees_all_close(at(one, i), expected, rtol=1e-5, atol=1e-6)
    assert (int(one_states.skipped[-1]), int(one_states.inner.emitted[-1]), int(one_states.inner.held[-1])) == (1, 2, 2)
    assert int(one_states.inner.micro_steps[-1]) == 8


def test_scaled_micro_batches_keep_what_scaling_saved():
    """float16 gradients, float32 parameters: the update, 1e-9, would vanish in float16, whichever is outside."""
    params, grads = jnp.zeros(2), jnp.array([1e-9, -2e-9]) * 2**15
    for tx in (
        accumulate(loss_scale(gx.sgd(1.0)), 2),
        loss_scale(accumulate(gx.sgd(1.0), 2)),
        skip_nonfinite(accumulate(loss_scale(gx.sgd(1.0)), 2)),
    ):
        updates, _ = scanned(tx, jnp.stack([grads.astype(jnp.float16)] * 2), params)
        np.testing.assert_allclose(updates[-1], [-1e-9, 2e-9], rtol=1e-3)


@pytest.mark.parametrize("schedule", [two_or_three, lambda emitted: jnp.array([1, 0, 4, 2])[emitted]])
def test_a_schedule_of_the_emissions(schedule):
    grads = gradients(10)
    updates, states = scanned(accumulate(gx.sgd(1.0), schedule), grads)
    held, emitted = [], 0
    for i in range(8):
        held.append(i)
        expected = np.zeros(2)
        if len(held) >= int(schedule(jnp.array(emitted))):
            expected = -np.asarray(grads["b"])[held].mean(axis=0)
            held, emitted = [], emitted + 1
        np.testing.assert_allclose(updates["b"][i], expected, rtol=1e-5, atol=1e-6)
        assert (int(states.held[i]), int(states.emitted[i])) == (len(held), emitted)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
def test_weights_make_the_mean_over_all_tokens(dtype, jit):
    """By numpy in float64, over windows of three and of what is left; one of the batches is empty, and its mean NaN."""
    tokens = np.array([3, 1, 4, 0, 5, 9, 2, 6])
    ends = [2, 5, 7]  # the last by emit
    with jax.enable_x64(dtype == "float64"):
        params = jnp.zeros(3, dtype)
        tx = accumulate(gx.trace(0.5), 3, "weighted mean")
        update = jax.jit(tx.update) if jit else tx.update
        grads = [normal(n, 3, seed=i, dtype=dtype).mean(axis=0) for i, n in enumerate(tokens)]
        wide = np.array(grads, np.complex128 if dtype == "complex64" else np.float64)
        state, start, b = tx.init(params), 0, 0.0
        assert state.weight is not None
        assert state.weight.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
        for i, (g, w) in enumerate(zip(grads, tokens, strict=True)):
            updates, state = update(g, state, params, weight=int(w), emit=jnp.array(i == 7))
            assert state.weight is not None
            expected = np.zeros(3)
            if i in ends:
                window = [j for j in range(start, i + 1) if tokens[j]]
                b = 0.5 * b + np.sum(wide[window].T * tokens[window], axis=1) / np.sum(tokens[window])
                expected, start = b, i + 1
            rtol = {"float64": 1e-13, "bfloat16": 2**-8}.get(dtype, 1e-6)
            np.testing.assert_allclose(np.asarray(updates, wide.dtype), expected, rtol=rtol, atol=rtol)
            assert (int(state.held), float(state.weight)) == (i + 1 - start, tokens[start : i + 1].sum())
            assert updates.dtype == params.dtype


def test_weighted_micro_batches_are_the_big_batch():
    """A regression under Adam on batches of 7 and 25 rows, in the step as users write it; float64."""
    with jax.enable_x64(True):
        x, y = normal(32, 4, dtype="float64"), normal(32, seed=1, dtype="float64")
        grad = jax.grad(lambda w, x, y: jnp.mean(jnp.square(x @ w - y)))
        tx, big = gx.chain(gx.clip_by_norm(1e6), accumulate(gx.adam(0.1), 2, "weighted mean")), gx.adam(0.1)
        w = expected = jnp.zeros(4)
        state, big_state = tx.init(w), big.init(w)
        for _ in range(4):
            w, state = gx.step(tx, w, grad(w, x[:7], y[:7]), state, weight=7)
            w, state = gx.step(tx, w, grad(w, x[7:], y[7:]), state, weight=25)
            expected, big_state = gx.step(big, expected, grad(expected, x, y), big_state)
        np.testing.assert_allclose(w, expected, rtol=1e-12)


def test_sums_and_what_is_left_at_the_end_of_an_epoch():
    """Emitted by an argument that is traced: in scan, in every wrapper, and by what accumulates inside, too."""
    grads, last = jnp.arange(1.0, 8.0), jnp.arange(7) == 6

    def run(tx):
        def one(state, inputs):
            g, emit = inputs
            updates, state = tx.update(g, state, jnp.zeros(()), emit=emit)
            return state, updates

        return jax.jit(lambda: jax.lax.scan(one, tx.init(jnp.zeros(())), (grads, last))[1])().tolist()

    double = gx.scale(2.0)
    assert run(accumulate(double, 3, "sum")) == [0, 0, 12, 0, 0, 30, 14]
    assert run(accumulate(double, 2)) == [0, 3, 0, 7, 0, 11, 14]
    assert run(skip_nonfinite(accumulate(double, lambda emitted: 4 - emitted))) == [0, 0, 0, 5, 0, 0, 12]
    assert run(loss_scale(gx.chain(accumulate(double, 4)), initial=1.0)) == [0, 0, 0, 5, 0, 0, 12]
    assert run(accumulate(accumulate(double, 2, "sum"), 2, "sum")) == [0, 0, 0, 20, 0, 0, 36]
    assert run(optax.chain(accumulate(double, 5))) == [0, 0, 0, 0, 6, 0, 13]


def test_weights_in_weights_and_no_weight_at_all():
    tx = accumulate(accumulate(gx.scale(1.0), 2, "weighted mean"), 2, "weighted mean")
    state, seen = tx.init(jnp.zeros(())), []
    for g, w in ((1.0, 1), (5.0, 3), (2.0, 2), (8.0, 2), (np.nan, 0), (np.nan, 0), (7.0, 0), (np.inf, 0.0)):
        updates, state = tx.update(jnp.float32(g), state, weight=w)
        seen.append(float(updates))
    assert seen == [0, 0, 0, 4.5, 0, 0, 0, 0]
    assert int(state.emitted) == 4 and int(state.inner.emitted) == 2


@pytest.mark.parametrize("optimizer", [optax.novograd, lambda rate: optax.contrib.mechanize(optax.sgd(rate))])
@pytest.mark.parametrize("wrap", [lambda tx: accumulate(tx, 2), lambda tx: loss_scale(tx, initial=1.0)])
def test_parameters_of_low_precision_are_lifted_as_gradients_are(optimizer, wrap):
    """The optimizer in float32, since it takes only gradients and parameters of one dtype."""
    grads = jnp.array([1.0, -2.0, 0.5], jnp.bfloat16)
    params = jnp.array([0.5, 1.0, -1.0], jnp.bfloat16)
    tx, plain = wrap(optimizer(0.1)), optimizer(0.1)
    state, wide = tx.init(params), params.astype(jnp.float32)
    held, updates, steps = plain.init(wide), grads, 2 * (2 if isinstance(tx, accumulate) else 1)
    update = jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(grads, state, params)
    for _ in range(2):
        expected, held = plain.update(grads.astype(jnp.float32), held, wide)
    assert updates.dtype == (jnp.bfloat16 if isinstance(tx, accumulate) else jnp.float32)
    chex.assert_trees_all_close(updates.astype(jnp.float32), expected, rtol=2**-8)


def test_guards_within_guards_trace_what_is_inside_once():
    traces = []

    def update(updates, state, params=None):
        traces.append(updates)
        return updates, state

    tx = optax.GradientTransformation(lambda params: (), update)
    for guard in (gx.skip_nonfinite, lambda tx: gx.accumulate(tx, 2), gx.loss_scale, gx.skip_nonfinite):
        tx = guard(tx)
        params = jnp.ones(3)
        state = tx.init(params)
        traces.clear()
        jax.jit(tx.update).lower(params, state, params)
        assert len(traces) == 1
