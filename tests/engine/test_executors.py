"""Executors against the reference, plans against counts by hand, and sharded steps against unsharded ones."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalog import ALL, OPTIMIZERS, REST
from rounding import assert_same
from trajectories import in_groups

import gradtx as gx
from gradtx import native
from gradtx._core.numerics import norms
from gradtx._engine.plan import Lane, passes
from gradtx.dialects import optax as optax_dialect

rng = np.random.default_rng(0)
SHAPES = {"matrix": (7, 130), "vector": (300,), "scalar": (), "none": (0, 3)}


def tree(dtype="float32", seed=0):
    local = np.random.default_rng(seed)
    return {name: jnp.asarray(local.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def compiled_text(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text() or ""


def trajectories(txs, executor, dtype="float32", n=3, step=gx.step):
    """Parameters and state of each after n steps, all in one program."""
    with gx.executor(executor):

        @jax.jit
        def steps(carry, grads):
            return {name: step(txs[name], params, grads, state) for name, (params, state) in carry.items()}

        params = tree(dtype)
        carry = {name: (params, tx.init(params)) for name, tx in txs.items()}
        for k in range(n):
            carry = steps(carry, tree(dtype, seed=k + 1))
    return carry


@pytest.mark.skipif(not native.available(), reason=str(native.available()))
class TestNative:
    @pytest.mark.parametrize("names", in_groups(ALL, REST))
    def test_is_the_reference(self, names):
        """The property "runs in every executor", of several in one program."""
        txs = {name: ALL[name] for name in names}
        ours, theirs = (trajectories(txs, executor) for executor in ("native", "reference"))
        chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
        chex.assert_trees_all_close(ours, theirs, rtol=12 * 2**-23, atol=12 * 2**-23)

    @pytest.mark.parametrize("dtype, ulp", [("bfloat16", 2**-8), ("float16", 2**-10), ("float64", 2**-52)])
    def test_dtypes(self, dtype, ulp):
        txs = {name: ALL[name] for name in ("adam", "amsgrad", "nadamw", "nag", "adagrad", "clipped nadam")}
        with jax.enable_x64(True):
            ours, theirs = (trajectories(txs, executor, dtype) for executor in ("native", "reference"))
        chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
        chex.assert_trees_all_close(ours, theirs, rtol=12 * ulp, atol=12 * ulp)

    def test_runs_in_the_kernel(self):
        """Not by falling back: one custom call, and nothing of the size of a leaf beside it."""
        tx, params = gx.chain(gx.clip_by_value(1.0), gx.adamw(0.1)), {"w": jnp.ones(10_000)}
        with gx.executor("native"):
            step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s), donate_argnums=(0, 2))
            compiled = step.lower(params, params, tx.init(params)).compile()
        text = compiled.as_text() or ""
        assert text.count('custom_call_target="') == 1
        assert " concatenate(" not in text  # the coefficients are computed in one loop, as a vector
        assert not re.search(r"%\S*divide\S* = f32\[\] fusion", text)  # quotients too
        memory: Any = compiled.memory_analysis()
        assert memory.temp_size_in_bytes < 4_000  # less than a tenth of one leaf
        assert memory.alias_size_in_bytes >= 3 * 40_000  # p, m and v in place

    def test_passes_around_measurements_need_no_memory(self):
        """Nothing of the size of a leaf between the passes, in which averages of several rules are, all in place."""
        adam = gx.chain(gx.momentum(0.9), gx.rms(0.999), gx.precondition())
        txs = [gx.dog(), gx.dadapt_adam(), gx.prodigy(), gx.at_learned_rate(gx.chain(adam, gx.scale(-1.0)))]
        params = {"w": jnp.ones(10_000)}

        def steps(carry, grads):
            return [gx.step(tx, params, grads, state) for tx, (params, state) in zip(txs, carry, strict=True)]

        with gx.executor("native"):
            carry = [(params, tx.init(params)) for tx in txs]
            memory: Any = jax.jit(steps, donate_argnums=0).lower(carry, params).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 8_000  # less than a fifth of one leaf
        assert memory.alias_size_in_bytes >= (2 + 4 + 5 + 4) * 40_000

    def test_xla_goes_on_with_directions_of_whole_trees(self):
        """If few arrays are written of them, and they need not be measured; directions are no array then."""
        step, params = gx.scale_by_learning_rate(0.1), {"w": jnp.ones((100, 100))}
        behind = [gx.momentum(0.9), gx.adam(0.1), gx.clip_by_norm(1.0), gx.monitor()]
        txs = [gx.chain(gx.scale_by_sm3(), rule, step) for rule in behind]
        with gx.executor("native"):
            texts = [compiled_text(lambda p, s, tx=tx: gx.step(tx, p, p, s), params, tx.init(params)) for tx in txs]
            described = " ".join(str(gx.describe(txs[0], params)).split())
        assert ["custom_call_target" in text for text in texts] == [False, True, True, True]
        assert "one pass in XLA: momentum, scale_by_learning_rate (at least 24" in described

    def test_derivatives_and_vmap_are_the_references(self):
        params = tree()
        tx = gx.adam(0.1)

        def loss(rate, grads):
            state = gx.set_hyperparams(tx.init(params), learning_rate=rate)
            after, _ = gx.step(tx, params, grads, state)
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(after))

        found = []
        for name in ("native", "reference"):
            with gx.executor(name):
                grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(0.1, params)
                batched = jax.jit(jax.vmap(loss, in_axes=(0, None)))(jnp.array([0.1, 0.2]), params)
                found.append((grad, batched))
        chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-5)

    def test_another_choice_compiles_anew(self):
        tx, params = gx.adam(0.1), tree()
        step = jax.jit(lambda p, s: gx.step(tx, p, p, s))
        for name in ("native", "reference", "native"):
            with gx.executor(name):
                assert ("custom-call" in compiled_text(step, params, tx.init(params))) == (name == "native")

    def test_auto_is_native_here(self):
        tx, params = gx.adam(0.1), tree()
        assert "custom-call" in compiled_text(lambda p, s: gx.step(tx, p, p, s), params, tx.init(params))

    def test_a_rule_the_kernel_does_not_know_runs_all_the_same(self):
        class wave(gx.Rule):
            def apply(self, signal, slots, param, c):
                return signal._replace(direction=jax.scipy.special.erf(signal.direction)), {}

        txs = {"wave": gx.chain(wave(), gx.sgd(0.1))}
        chex.assert_trees_all_close(trajectories(txs, "native"), trajectories(txs, "reference"), rtol=1e-6)


@pytest.mark.parametrize("executor", ["reference", "native"])
def test_step_is_update_and_apply(executor):
    names = ("adamw", "nag", "clipped nadam", "identity", "sealed adam", "partition", "switch")
    txs = {name: ALL[name] for name in names}

    def two(tx, params, grads, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    ours, theirs = trajectories(txs, executor), trajectories(txs, executor, step=two)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("grad, param", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float16")])
def test_step_rounds_as_apply_updates_does(grad, param):
    tx, p, g = gx.sgd(0.1), jnp.linspace(-1, 1, 7, dtype=param), jnp.linspace(0.3, 0.9, 7, dtype=grad)
    exact = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    ours, _ = exact(lambda: gx.step(tx, p, g, tx.init(p)))()
    theirs = exact(lambda: optax.apply_updates(p, tx.update(g, tx.init(p), p)[0]))()
    assert ours.dtype == param
    chex.assert_trees_all_equal(ours, theirs)  # both round where their dtypes say


def test_errors():
    with pytest.raises(ValueError, match="'auto', 'reference' or 'native', found 'fast'"):
        gx.executor("fast")  # pyright: ignore[reportArgumentType] - the mistake under test
    with pytest.raises(ValueError, match="found 'fast'"):
        gx.set_executor("fast")  # pyright: ignore[reportArgumentType] - the mistake under test


def test_a_step_needs_parameters():
    with pytest.raises(ValueError, match=r"found None: call step\(tx, params, grads, state\)"):
        gx.step(gx.sgd(0.1), None, jnp.ones(2), gx.sgd(0.1).init(jnp.ones(2)))


def test_the_default_of_the_process():
    code = (
        "import gradtx as gx, jax, jax.numpy as jnp\n"
        "gx.set_executor('reference')\n"
        "tx, p = gx.adam(0.1), jnp.ones(3)\n"
        "assert 'custom-call' not in jax.jit(lambda s: gx.step(tx, p, p, s)).lower(tx.init(p)).compile().as_text()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("wrap", [lambda tx: tx, gx.packed])
def test_outside_of_jit_a_step_is_one_program(wrap):
    """Traced once for all steps, and the same as in jit; a chain with an opaque rule goes operation by operation."""
    counts = []

    class counted(gx.Rule):
        equation = r"u \leftarrow u"

        def tick(self, h, scalars, weights, count):
            counts.append(count)
            return gx.Tick({}, {}, weights)

        def apply(self, signal, slots, param, c):
            return signal, {}

    tx = wrap(gx.chain(counted(), gx.adam(0.1)))
    params = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([0.5, 3.0])}
    alone, compiled = (params, tx.init(params)), (params, tx.init(params))
    counts.clear()  # init has looked at the rule
    step = jax.jit(lambda params, state: gx.step(tx, params, params, state))
    for _ in range(3):
        alone = gx.step(tx, alone[0], alone[0], alone[1])
    assert len(counts) == 1 and isinstance(counts[0], jax.core.Tracer)
    for _ in range(3):
        compiled = step(*compiled)
    assert_same(alone, compiled)

    opaque = gx.chain(counted(), gx.seal(optax.stateless(lambda updates, params: updates)))
    opaque.update(params, opaque.init(params), value_fn=print)  # an argument that no program takes


class TestPlans:
    PARAMS = jax.ShapeDtypeStruct((1000,), jnp.float32)

    def plan(self, tx, params=None, apply=True):
        params = self.PARAMS if params is None else params
        return tx._engine.plan(params, jax.eval_shape(tx.init, params), apply)

    @pytest.mark.parametrize(
        "tx, bytes_per_parameter",
        [
            (gx.sgd(0.1), [12]),  # g, and p in and out
            (gx.adam(0.1), [28]),  # g; p, m and v in and out
            (gx.amsgrad(0.1), [36]),
            (gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1)), [4 + 28]),  # the norm reads g once more
            (gx.chain(gx.clip_by_value(1.0), gx.adam(0.1)), [28]),
            # u goes out of the first pass, is measured, and read again with g, b and p, which are written
            (gx.chain(gx.rms(), gx.precondition(), gx.clip_by_norm(1.0), gx.sgd(0.1, 0.9)), [4 + 8 + 4, 8 + 4 + 8 + 8]),
            (gx.chain(gx.adam(0.1), state_dtype="bfloat16"), [12 + 8]),
        ],
    )
    def test_bytes(self, tx, bytes_per_parameter):
        plan = self.plan(tx)
        assert [plan.traffic(k) / 1000 for k in range(len(plan.passes))] == bytes_per_parameter

    def test_updates_cost_what_apply_saves(self):
        plan = self.plan(gx.adam(0.1), apply=False)
        assert plan.traffic(0) == 24 * 1000  # g and u; m and v in and out

    @pytest.mark.parametrize("dtype", ["float32", "float64"])  # to numpy, float64 is equal to no dtype at all
    def test_memory_is_used_again_by_the_same_array(self, dtype):
        with jax.enable_x64(True):
            plan = self.plan(gx.lamb(0.1), {"w": jax.ShapeDtypeStruct((3,), dtype)})
        for k in range(len(plan.passes)):
            launch = plan.launch(k, plan.batches[0].leaf)
            pairs = [(launch.reads[a].key, launch.writes[b].key) for a, b in launch.in_place]
            assert all(a == b or a is Lane.DIRECTION for a, b in pairs), pairs
            assert len({b for _, b in launch.in_place}) == len(pairs)

    def test_a_value_that_prints(self):
        plan = self.plan(gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(0.1)))
        assert plan == self.plan(gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(0.1)))
        assert hash(plan) == hash(self.plan(gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(0.1))))
        expected = "measured, then one pass: clip_by_global_norm, scale_by_learning_rate (16 bytes/parameter)"
        assert str(plan) == expected
        assert str(self.plan(gx.chain())) == "nothing to do"

    def test_leaves_that_differ_only_in_shape_go_together(self):
        params = {f"l{i}": jax.ShapeDtypeStruct((i + 1, 2), jnp.float32) for i in range(20)}
        params["half"] = jax.ShapeDtypeStruct((5,), jnp.bfloat16)
        assert sorted(len(batch.leaves) for batch in self.plan(gx.adam(0.1), params).batches) == [1, 20]
        some = gx.adamw(0.1, decay_mask="l7")
        assert sorted(len(batch.leaves) for batch in self.plan(some, params).batches) == [1, 1, 19]

    def test_rules_of_whole_trees_stand_alone(self):
        rules = gx.chain(gx.sgd(0.1), optax.clip(1.0), gx.trace(), gx.clip_by_norm(1.0), gx.sign()).rules
        assert [list(part.rules) for part in passes(rules)] == [[0], [1], [2], [3, 4]]
        assert [one.maps_trees for one in passes(rules)] == [False, True, False, False]
        assert [part.measures for part in passes(rules)] == [False, False, False, True]

    def test_factors_join_the_pass_of_the_rules_behind(self):
        assert str(self.plan(gx.chain(gx.dog(), gx.scale(0.5)))) == (
            "measured, then one pass: scale_by_gradient_norm, scale_by_distance, scale_by_learning_rate, scale "
            "(at least 20 bytes/parameter)"
        )
        assert [len(one.rules) for one in self.plan(gx.momo_adam()).passes] == [
            3,
            2,
        ]  # averages; the model and the rate
        rules = gx.chain(gx.sign(), gx.scale_by_distance(), gx.sign(), gx.scale_by_gradient_norm(), gx.sign()).rules
        assert [list(part.rules) for part in passes(rules)] == [[0, 1, 2], [3, 4]]
        norm, distance = gx.scale_by_gradient_norm(over="tree"), gx.scale_by_distance()
        assert (
            len(passes((distance, norm, distance, *gx.sgd(0.1).rules))) == 1
        )  # DoWG: the norm of c·g is |c| times that of g
        assert [list(part.rules) for part in passes((distance, gx.sign(), norm, norm))] == [[0, 1], [2], [3]]

    def test_what_is_measured_of_parameters_joins_a_pass(self):
        """Alone, and beside a measurement of the direction: numbers of each leaf for two rules of one pass."""
        rules = gx.chain(gx.scale_by_factored_rms(), gx.clip_by_rms(), gx.sgd(0.1), gx.scale_by_parameter_rms()).rules
        assert [(*one.rules, one.measures, *one.alongside) for one in passes(rules)] == [(0, False), (1, 2, 3, True, 3)]
        p, g = {"a": np.array([3.0, 4.0]), "b": np.array([0.5])}, {"a": np.array([1.0, -7.0]), "b": np.array([0.1])}
        limit = gx.clip_by_rms(1.0)
        tx = gx.chain(gx.momentum(0.0), limit, gx.sign(where="b"), gx.scale_by_parameter_rms(), gx.sgd(0.5))
        updates, _ = jax.jit(tx.update)(g, tx.init(p), p)
        a = g["a"] / 5 * (12.5**0.5)  # rms 5 is clipped to 1, and times that of p
        np.testing.assert_allclose(updates["a"], -0.5 * a, rtol=1e-6)
        np.testing.assert_allclose(updates["b"], [-0.25], rtol=1e-6)

    def test_a_chain_inside_of_a_rule_that_scales_runs_in_its_pass(self):
        assert str(self.plan(gx.prodigy())) == (
            "measured, then one pass: in_units_of_distance, scale_by_learning_rate (at least 36 bytes/parameter)"
        )  # g and p are measured, then g; p, m and v in and out
        apart = gx.chain(gx.in_units_of_distance(gx.lamb(1.0)), gx.scale(-1.0))
        assert [one.maps_trees for one in self.plan(apart).passes] == [True, False]

    def test_no_work_per_leaf_that_could_be_per_step(self):
        """The scalar work of a step does not grow with the leaves: the equations of one more leaf are one call."""

        def equations(leaves):
            params = {f"l{i}": jnp.ones(3) for i in range(leaves)}
            tx = gx.adam(0.1)
            with gx.executor("reference"):
                return len(jax.make_jaxpr(lambda p, s: gx.step(tx, p, p, s))(params, tx.init(params)).eqns)

        assert equations(20) - equations(10) == 10


TESTS = Path(__file__).parents[1]
SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import gradtx as gx
from gradtx import optimizers

mesh = Mesh(np.array(jax.devices()), ("d",))
spread = NamedSharding(mesh, PartitionSpec("d"))
alone = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32), "b": jnp.ones(3)}
params = alone | {"w": jax.device_put(alone["w"], spread)}
names = [*optimizers.classics.__all__, "lion", "lamb", "adan", "radam", "cautious_adamw", "schedule_free_adamw"]
chains = {name: getattr(optimizers, name)(0.1) for name in names}
chains["clip"] = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1))
for name, tx in chains.items():
    gathers = []
    for executor in ("reference", "native") if name in ("adam", "clip") else ("reference",):
        with gx.executor(executor):
            for init in (tx.init, jax.jit(tx.init)):
                state = init(params)
                for own in state.slots.values():
                    for slot in own.values():
                        if isinstance(slot, dict) and slot.keys() == params.keys():
                            assert slot["w"].sharding == spread, (name, slot["w"].sharding)
            step = jax.jit(lambda p, s, tx=tx: gx.step(tx, p, p, s))
            gathers.append(step.lower(params, state).compile().as_text().count("all-gather"))
            one, two, held = params, alone, tx.init(alone)
            for _ in range(3):
                one, state = step(one, state)
                two, held = step(two, held)
            assert one["w"].sharding == spread
            for key in one:
                np.testing.assert_allclose(one[key], two[key], rtol=1e-5, atol=1e-6, err_msg=name)
    assert not any(gathers), (name, gathers)
print("done")
"""


@pytest.mark.exhaustive
def test_sharded_over_eight_devices():
    """State is sharded as the parameters, steps are the unsharded ones, and nothing is gathered."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", SHARDED]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, cwd=TESTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


def test_the_optimizers_are_one_pass():
    """But those that measure leaves, or see them whole."""
    for name, tx in OPTIMIZERS.items():
        apart = any(rule.maps_trees or rule.scope is not None for rule in tx.rules)
        assert apart or len(passes(tx.rules)) == 1, name


@pytest.mark.skipif(not native.available(), reason=str(native.available()))
def test_many_leaves_are_measured_by_few_calls_of_the_kernel():
    """Of 64 leaves each; and no number of a leaf is cut out of a vector by itself. Both took long to compile."""
    params = {str(i): jnp.ones(3) for i in range(130)}
    tx = gx.chain(gx.clip_by_norm(1.0), gx.sgd(0.1))
    with gx.executor("native"):
        text = jax.jit(tx.update).lower(params, tx.init(params)).as_text()
    sums, maps = 3, 3  # norms that neither over- nor underflow
    assert text.count("custom_call @gradtx_native_map") == sums + maps
    assert text.count("stablehlo.slice") + text.count("stablehlo.dynamic_slice") < 10


def test_numbers_that_leaves_have_of_their_own_are_cut_out_of_no_vector():
    """Each place would be compiled anew in XLA; of numbers of the tree a vector is made at once."""
    params, texts = {str(i): jnp.ones(3) for i in range(40)}, {}
    for over in ("leaf", "tree"):
        tx = gx.scale_by_gradient_norm(over=over)
        with gx.executor("reference"):
            texts[over] = jax.jit(tx.update).lower(params, tx.init(params)).as_text()
    assert texts["leaf"].count("stablehlo.slice") + texts["leaf"].count("stablehlo.dynamic_slice") == 0
    assert texts["tree"].count("stablehlo.reduce(") < 10


@pytest.mark.skipif(not native.available(), reason=str(native.available()))
@pytest.mark.parametrize("tx", [gx.dog(), optax_dialect.dowg()])
def test_distances_and_norms_are_one_call_of_the_kernel(tx):
    """And the step another."""
    params = {str(i): jnp.ones(3) for i in range(60)}
    with gx.executor("native"):
        text = jax.jit(lambda p, s: gx.step(tx, p, p, s)).lower(params, tx.init(params)).as_text()
    assert text.count("custom_call @gradtx_native_map") == 2


@pytest.mark.skipif(not native.available(), reason=str(native.available()))
def test_a_monitor_of_many_leaves_is_few_calls_of_the_kernel():
    """One for 64 leaves, and what it gives stays in vectors."""
    params = {str(i): jnp.ones(3) for i in range(130)}
    tx = gx.chain(gx.sgd(0.1), gx.monitor())
    with gx.executor("native"):
        text = jax.jit(tx.update).lower(params, tx.init(params), params).as_text()
    assert text.count("custom_call @gradtx_native_map") == 3
    assert text.count("stablehlo.slice") + text.count("stablehlo.dynamic_slice") < 10


def test_norms_are_taken_again_only_where_one_is_out_of_range():
    """The sums of scaled squares stay in their loop, out of which the compiler moves what is the same each turn."""
    xs = [jnp.ones(5)] * 20
    text = compiled_text(lambda xs: norms([[x] for x in xs]), [x + i for i, x in enumerate(xs)])
    (body,) = re.findall(r" while\(.*body=%?([\w.\-]+)", text)
    (computation,) = re.findall(rf"^%?{re.escape(body)} .*?\{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    assert len(re.findall(r" (?:fusion|reduce|call)\(", computation)) >= len(xs)


@pytest.mark.parametrize("limit", [gx.clip_by_norm(1.0), gx.clip_by_global_norm(1.0), gx.scale(1e-30)], ids=str)
def test_squares_of_a_product_that_the_compiler_knows(limit):
    """Of gradients whose own squares overflow, made where they are used: (a·b)² is not taken as a²·b²."""
    txs = {name: gx.chain(limit, getattr(gx, name)(0.1)) for name in ("adam", "adagrad", "amsgrad", "mars")}
    p = jnp.ones(4)

    def steps(tx, g):
        return jax.lax.scan(lambda state, _: tx.update(g, state, p)[::-1], tx.init(p), length=2)[1]

    with gx.executor("reference"):
        known = jax.jit(lambda: {name: steps(tx, jnp.full_like(p, 1e30)) for name, tx in txs.items()})()
        given = jax.jit(lambda g: {name: steps(tx, g) for name, tx in txs.items()})(jnp.full_like(p, 1e30))
    chex.assert_trees_all_close(known, given, rtol=1e-5)
    for updates in known.values():
        np.testing.assert_allclose(updates[0], -0.1, rtol=1e-5)


def test_infinity_of_what_the_compiler_knows():
    p = jnp.ones(2)
    cases: Any = [(gx.chain(gx.infinity(0.9), gx.precondition(0.0)), "reference"), (gx.novograd(0.1), "native")]
    for tx, executor in cases:
        with gx.executor(executor):
            known = jax.jit(lambda tx=tx: tx.update(jnp.full_like(p, 1e30), tx.init(p), p)[0])()
        np.testing.assert_array_equal(known, 0.0)  # as for each second moment that overflows
