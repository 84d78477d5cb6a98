"""Packed state: the same trajectories, from fewer buffers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalog import CHAINS, DIALECTS, OPTIMIZERS, RULES
from rounding import assert_same
from trajectories import in_groups

import gradtx as gx
from gradtx import native
from gradtx._wrappers.packed import PackedSlot
from gradtx.native._primitive import LEAVES_PER_CALL

pytestmark = pytest.mark.usefixtures("quick_compilation")

built = pytest.mark.skipif(not native.available(), reason=str(native.available()))

SHAPES = {"matrix": (7, 130), "vector": (300,), "scalar": (), "none": (0, 3), "deep": [(5,), (1, 1), (4097,)]}
BELOW = 1000


def tree(dtype="float32", seed=0):
    local = np.random.default_rng(seed)

    def leaf(shape):
        return jnp.asarray(local.normal(size=shape), dtype)

    leaves = {name: leaf(shape) if isinstance(shape, tuple) else [*map(leaf, shape)] for name, shape in SHAPES.items()}
    return leaves | {"nothing": None}


def mixed(seed=0):
    """Leaves of all dtypes, taking turns."""
    dtypes = ("float32", "bfloat16", "float16", "float64")
    return {f"leaf {i}": tree(dtypes[i % 4], seed + i)["vector" if i % 3 else "matrix"] for i in range(12)}


def trajectory(tx, params, grads, n=3, donate=False):
    """Parameters and state after n jitted steps."""
    run = jax.jit(lambda p, g, s: gx.step(tx, p, g, s), donate_argnums=(0, 2) if donate else ())
    state = tx.init(params)
    if donate:
        params = jax.tree.map(jnp.copy, params)
    for k in range(n):
        params, state = run(params, jax.tree.map(lambda g, k=k: g * (k + 1), grads), state)
    return params, state


def check(tx, params, grads, below=BELOW, **options):
    """Packed and unpacked give the same."""
    packed = gx.packed(tx, below)
    expected, found = trajectory(tx, params, grads), trajectory(packed, params, grads, **options)
    assert_same(found[0], expected[0])
    assert_same(gx.unpack_state(packed, found[1], params), expected[1])
    return found[1]


@built
@pytest.mark.parametrize(
    "names",
    in_groups(
        [*OPTIMIZERS, *CHAINS, "seal", "clip_by_norm", "two_point_lookahead", "monotone_rms"],
        exhaustive={*OPTIMIZERS} - {"adam", "amsgrad", "nadamw", "nag", "lion", "adafactor", "muon", "prodigy", "lamb"},
    ),
)
def test_is_the_chain(names):
    chains = {name: (RULES | OPTIMIZERS | CHAINS)[name] for name in names}
    packed = {name: gx.packed(tx, BELOW) for name, tx in chains.items()}
    start, grads = tree(), tree(seed=1)

    def trajectories(txs):
        """Parameters and state of each after three steps, all in one program."""

        @jax.jit
        def step(params, states, grads):
            steps = {name: gx.step(tx, params[name], grads, states[name]) for name, tx in txs.items()}
            return {name: p for name, (p, _) in steps.items()}, {name: s for name, (_, s) in steps.items()}

        params, states = dict.fromkeys(txs, start), {name: tx.init(start) for name, tx in txs.items()}
        for k in range(3):
            params, states = step(params, states, jax.tree.map(lambda g, k=k: g * (k + 1), grads))
        return params, states

    (expected, states), (found, packed_states) = trajectories(chains), trajectories(packed)
    assert_same(found, expected)
    assert_same({name: gx.unpack_state(tx, packed_states[name], start) for name, tx in packed.items()}, states)


@built
@pytest.mark.parametrize("below", [0, 1, 6, 10**6])
def test_whatever_is_small(below):
    state = check(gx.amsgrad(0.1), tree(), tree(seed=1), below)
    slot = state.slots["momentum"]["m"]
    if not below:
        assert not isinstance(slot, PackedSlot)
        return
    sizes = [x.size for x in jax.tree.leaves(tree())]
    assert [x.size for x in slot.flat] == [sum(n for n in sizes if n < below)]
    assert sum(x.size for x in jax.tree.leaves(slot.leaves)) == sum(n for n in sizes if n >= below)


@built
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(dtype):
    with jax.enable_x64(True):
        check(gx.nadamw(0.1), tree(dtype), tree(dtype, seed=1))


@built
def test_dtypes_together():
    with jax.enable_x64(True):
        state = check(gx.adamw(0.1), mixed(), mixed(seed=20))
        assert len(state.slots["momentum"]["m"].flat) == 4
        check(gx.chain(gx.adam(0.1), state_dtype="bfloat16"), mixed(), mixed(seed=20))
        # gradients of several dtypes in one group: it is unpacked and packed again
        check(gx.adam(0.1), tree(), tree() | {"vector": tree("bfloat16")["vector"]})


@built
def test_complex_leaves_run_as_in_the_reference():
    params = {"z": tree("complex64")["vector"], "w": tree("complex64", 1)["matrix"]}
    tx = gx.packed(gx.adam(0.1))
    found, expected = (trajectory(one, params, params) for one in (tx, tx.tx))
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(gx.unpack_state(tx, found[1], params), expected[1], rtol=1e-5, atol=1e-6)


@built
def test_where():
    tx = gx.chain(gx.adamw(0.1, decay_mask="vector|matrix"), gx.where("deep|scalar", gx.trace(0.9)))
    state = check(tx, tree(), tree(seed=1))
    assert sorted(x is None for x in state.slots["trace"]["b"].flat) == [False, True, True]
    assert all(x is not None for x in state.slots["rms"]["s"].flat)


def test_the_reference_gives_the_same_up_to_rounding():
    with gx.executor("reference"):
        tx = gx.packed(gx.nadamw(0.1), BELOW)
        found, expected = (trajectory(one, tree(), tree(seed=1)) for one in (tx, tx.tx))
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(gx.unpack_state(tx, found[1], tree()), expected[1], rtol=1e-5, atol=1e-6)


@built
def test_runs_in_the_kernel_and_in_place():
    """One call for each group and one for the large leaf; nothing is cut out of a flat array or put together."""
    params = {f"leaf {i}": jnp.ones((3, 5)) for i in range(2 * LEAVES_PER_CALL)} | {"large": jnp.ones(10_000)}
    tx = gx.packed(gx.adam(0.1), BELOW)
    state = tx.init(params)
    assert len(jax.tree.leaves(state.slots["rms"])) == 2 + 1 + 1  # and a scalar
    step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s), donate_argnums=(0, 2))
    text = step.lower(params, params, state).compile().as_text() or ""
    assert text.count('custom_call_target="') == 3
    assert " slice(" not in text
    assert text.count("copy(") <= 3  # of the hyperparameters
    check(gx.adam(0.1), params, jax.tree.map(lambda x: x / 2, params), donate=True)


@built
def test_update_and_rules_of_shapes():
    """Programs that differ within a group run one by one."""

    class by_size(gx.Rule):
        def apply(self, signal, slots, param, c):
            return signal._replace(direction=signal.direction / (1 + signal.direction.size)), {}

    tx = gx.packed(gx.chain(gx.momentum(), by_size(), gx.sgd(0.1)))
    params = tree()
    found, state = jax.jit(tx.update)(params, tx.init(params))
    expected, unpacked = jax.jit(tx.tx.update)(params, tx.tx.init(params))
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    chex.assert_trees_all_close(gx.unpack_state(tx, state, params), unpacked, rtol=1e-6)


def test_scan_keeps_the_types():
    tx, params = gx.packed(gx.adam(0.1), BELOW), tree()

    def one(carry, _):
        return gx.step(tx, carry[0], params, carry[1]), None

    after, state = jax.jit(lambda carry: jax.lax.scan(one, carry, length=3)[0])((params, tx.init(params)))
    by_hand = params, tx.tx.init(params)
    for _ in range(3):
        by_hand = jax.jit(lambda p, s: gx.step(tx.tx, p, params, s))(*by_hand)
    ours = after, gx.unpack_state(tx, state, params)
    chex.assert_trees_all_close(ours, by_hand, rtol=1e-6, atol=1e-7)  # two programs: an ulp of steps that cancel


def test_vmap_and_derivatives():
    params, tx = {"a": jnp.arange(3.0), "b": jnp.arange(4.0)}, gx.packed(gx.adam(0.1))

    def loss(tx, rate, grads):
        after, _ = gx.step(tx, params, grads, gx.set_hyperparams(tx.init(params), learning_rate=rate))
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(after))

    rates = jnp.array([0.1, 0.2])
    for run in (jax.vmap(loss, in_axes=(None, 0, None)), jax.vmap(jax.grad(loss, argnums=1), in_axes=(None, 0, None))):
        chex.assert_trees_all_close(
            jax.jit(run)(tx, rates, params), jax.jit(run)(tx.tx, rates, params), rtol=1e-5, atol=1e-6
        )


def test_there_and_back():
    for tx in (gx.adam(0.1), gx.chain(gx.adagrad(0.1), optax.trace(0.9)), gx.sgd(0.1)):
        packed, params = gx.packed(tx, BELOW), tree()
        _, state = trajectory(packed, params, tree(seed=1))
        unpacked = gx.unpack_state(packed, state, params)
        assert isinstance(unpacked, gx.ChainState)
        back = gx.pack_state(packed, unpacked, params)
        chex.assert_trees_all_equal(back, state)
        assert jax.tree.structure(back) == jax.tree.structure(state) == jax.tree.structure(packed.init(params))
        chex.assert_trees_all_equal(gx.unpack_state(packed, back, params), unpacked)


def test_hyperparameters_are_where_they_were():
    tx, params = gx.packed(gx.adam(0.1)), tree()
    state = gx.set_hyperparams(tx.init(params), learning_rate=0.5)
    assert isinstance(state, gx.PackedState)
    assert optax.tree.get(state, "learning_rate") == 0.5
    assert state.hyperparams["momentum"]["decay"] == np.float32(0.9)
    _, after = gx.step(tx, params, params, state)
    assert optax.tree.get(after, "learning_rate") == 0.5
    assert after.count == 1


def test_within_others():
    params = tree()
    for outer in (gx.skip_nonfinite, lambda tx: gx.accumulate(tx, 2), lambda tx: gx.chain(gx.clip_by_norm(1.0), tx)):
        found, expected = (trajectory(outer(tx), params, params)[0] for tx in (gx.packed(gx.adam(0.1)), gx.adam(0.1)))
        chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)


def test_is_a_value():
    assert gx.packed(gx.adam(0.1), 5) == gx.packed(gx.adam(0.1), 5) != gx.packed(gx.adam(0.1))
    assert repr(gx.packed(gx.sgd(0.1), 5)) == f"packed(tx={gx.sgd(0.1)!r}, below=5)"
    assert all(isinstance(gx.packed(tx), gx.packed) for tx in DIALECTS.values())


def test_errors():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    tx = gx.packed(gx.adam(0.1))
    state = tx.init(params)
    with pytest.raises(TypeError, match="packed: tx must be a gradtx chain or rule, found GradientTransf"):
        gx.packed(optax.adam(0.1))
    with pytest.raises(TypeError, match="chain or rule"):
        gx.packed(gx.packed(gx.adam(0.1)))
    for below in (-1, 1.5, True):
        with pytest.raises(ValueError, match="below must be an integer, 0 or more"):
            gx.packed(gx.adam(0.1), below)  # pyright: ignore[reportArgumentType] - the mistake under test
    with pytest.raises(TypeError, match=r"expected the PackedState that init returned, found ChainState. pack_state"):
        tx.update(params, gx.adam(0.1).init(params))  # pyright: ignore[reportArgumentType] - the mistake under test
    with pytest.raises(TypeError, match=r"needs the ChainState .* found PackedState. unpack_state"):
        gx.adam(0.1).update(params, state)  # pyright: ignore[reportArgumentType] - the mistake under test
    with pytest.raises(ValueError, match=r"made by another chain \(missing 'hyperparams.trace.decay'"):
        gx.packed(gx.sgd(0.1, 0.9)).update(params, state)
    for function in (lambda p: tx.update(p, state), lambda p: gx.unpack_state(tx, state, p)):
        with pytest.raises(ValueError, match=r"for other parameters: leaf 'b' had shape \(2,\), and has \(4,\)"):
            function({"a": jnp.ones(3), "b": jnp.ones(4)})
        with pytest.raises(ValueError, match=r"other parameters \(missing 'c'; unexpected 'b'\).*See migrate"):
            function({"a": jnp.ones(3), "c": jnp.ones(2)})
    kernel = tx.init({"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=r"leaf 'w' had shape \(2, 3\), and has \(3, 2\)"):
        tx.update({"w": jnp.ones((3, 2))}, kernel)
    assert jax.tree.structure(kernel) != jax.tree.structure(tx.init({"w": jnp.ones((3, 2))}))
    with pytest.raises(ValueError, match=r"slot momentum\.m is not as init made it: 1 leaves of 6 elements"):
        slots = jax.tree.map(lambda x: x[:2] if x.ndim else x, kernel.slots)
        tx.update({"w": jnp.ones((2, 3))}, kernel._replace(slots=slots))
    for function in (gx.pack_state, gx.unpack_state):
        with pytest.raises(TypeError, match=r"expected packed\(...\), found chain"):
            function(gx.adam(0.1), state, params)  # pyright: ignore[reportArgumentType] - the mistake under test


def test_schedules_may_make_arrays_under_a_transfer_guard():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(3)}
    tx = gx.packed(gx.sgd(lambda count: jnp.asarray(count, float) * 0.5))
    with jax.transfer_guard("disallow"):
        state = tx.init(params)
        for _ in range(2):
            params, state = gx.step(tx, params, params, state)
    np.testing.assert_array_equal(params["b"], 0.5 * np.ones(3))
