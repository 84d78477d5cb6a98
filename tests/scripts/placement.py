"""States, and steps, over eight devices: each claim a function, which prints its name once it has been seen.

    python tests/scripts/placement.py [claim ...]

all claims without.
"""

import contextlib
import functools
import math
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import gradtx as gx
from gradtx._core.mesh import check_memory

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
import catalog

from docs import measure_devices

SHAPES = {"rows": (64, 24), "columns": (12, 16), "both": (16, 8), "odd": (7, 3), "scalar": ()}
SPECS = {"rows": P("x"), "columns": P(None, "y"), "both": P("x", "y"), "odd": P(), "scalar": P()}
ADAM = gx.adam(0.1)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))


def arrays(seed):
    draw = np.random.default_rng(seed).normal
    return {name: jnp.asarray(draw(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def shardings(on):
    return {name: NamedSharding(on, spec) for name, spec in SPECS.items()}


def spread(tree, on):
    return jax.device_put(tree, shardings(on))


def refused(*wrong):
    for call, words in wrong:
        try:
            call()
        except (TypeError, ValueError) as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


def state_by_jit_is_where_the_parameters_are():
    """State that depends on no parameter, as zeros of optax and a state of scalars alone, would be on one device."""
    params = spread(arrays(0), mesh())
    slow = gx.chain(gx.in_units_of_distance(ADAM, initial=0.1))
    for tx in gx.sgd(0.1), gx.adafactor(0.1), gx.chain(optax.adam(0.1)), gx.skip_nonfinite(optax.adam(0.1)), slow:
        for keys, x in jax.tree.leaves_with_path(jax.jit(tx.init)(params)):
            name = getattr(keys[-1], "key", None)
            like = SPECS[name] if name in SHAPES and x.shape == SHAPES[name] else P()
            wanted = NamedSharding(mesh(), like)
            assert x.sharding.is_equivalent_to(wanted, x.ndim), (tx, jax.tree_util.keystr(keys), x.sharding)


def what_multiplies_matrices_runs_on_explicit_axes():
    """Under ``set_mesh`` and without: the numbers of one device, and the types of before."""
    by_axes = gx.muon(0.1, otherwise=ADAM, axes=[(lambda path, leaf: len(leaf.shape) > 1, ((0, 1), ()))])
    for tx in gx.muon(0.1, otherwise=ADAM), by_axes, gx.shampoo(0.1):
        step = jax.jit(lambda p, s, tx=tx: gx.step(tx, p, p, s))
        whole = step(arrays(0), tx.init(arrays(0)))[0]
        params = spread(arrays(0), mesh(AxisType.Explicit))
        state = tx.init(params)
        types = jax.tree.map(jax.typeof, (params, state))
        found = step(params, state)
        assert jax.tree.map(jax.typeof, found) == types, tx
        with jax.set_mesh(mesh(AxisType.Explicit)):
            assert [x.sharding.spec for x in jax.make_jaxpr(step)(params, state).out_avals] == [
                x.sharding.spec for x in jax.tree.leaves(types)
            ]
        for name in SHAPES:
            np.testing.assert_allclose(found[0][name], whole[name], rtol=1e-4, atol=1e-5)


def packed_refuses_what_is_spread():
    params = spread(arrays(0), mesh())
    refused((lambda: gx.packed(ADAM).init(params), "leaf 'both' of 128 elements is spread"))
    assert gx.packed(ADAM, below=128).init(params).slots["rms"]["s"].packing.groups == ((2, 4),)
    found = []  # inside of shard_map, where types tell, shards are left out

    def init(params):
        found.append(gx.packed(ADAM).init(params).slots["rms"]["s"].packing.groups)

    jax.eval_shape(jax.shard_map(init, mesh=mesh(), in_specs=(SPECS,), out_specs=P()), params)
    assert found == [((2, 4),)], found


def held(state):
    """The bytes of a state on the first device."""
    device = jax.devices()[0]
    return sum(s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards if s.device == device)


def same_places(state, shardings):
    """Whether each array is where a sharding says."""
    assert jax.tree.structure(state) == jax.tree.structure(shardings)
    return all(
        x.sharding.is_equivalent_to(s, x.ndim) and x.sharding.memory_kind == s.memory_kind
        for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    )


FEW = {
    "clipped adam": gx.chain(gx.clip_by_global_norm(1.0), ADAM),
    "accumulate": gx.accumulate(optax.adam(0.1), 2),
}
CASES = ((P(None, "y"), "x"), (P(), "x"), (P("x"), None))
WIDE = {"w": (64, 48), "v": (24, 64), "stack": (4, 16, 8)}


def steps(tx, params, shardings, axis):
    """Parameters and state after three compiled steps that keep the state where it is to be, and the report."""
    plan = gx.placement(tx, params, axis=axis)
    state = jax.jit(tx.init, out_shardings=plan.shardings)(params)
    assert same_places(state, plan.shardings)
    assert held(state) == plan.nbytes_per_device
    step = jax.jit(lambda p, s: gx.step(tx, p, p, s), out_shardings=(shardings, plan.shardings))
    for _ in range(3):
        params, state = step(params, state)
        assert same_places(state, plan.shardings)
    return params, state, plan


def divides(named, cases):
    on = mesh()
    params = {k: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for k, shape in WIDE.items()}
    for name, tx in named.items():
        for spec, axis in cases:
            where = NamedSharding(on, spec)
            placed = jax.device_put(params, where)
            if axis is None:  # slots as their parameters: what init does by itself
                assert same_places(tx.init(placed), gx.state_shardings(tx, placed)), name
            found, state, plan = steps(tx, placed, where, axis)
            whole = sum(x.nbytes for x in jax.tree.leaves(state))
            assert plan.nbytes == whole
            if spec == P():  # each slot is divided by four, but those that are listed, and scalars
                stays = sum(plan.undivided.values()) + sum(x.nbytes for x in jax.tree.leaves(state) if not x.ndim)
                assert 4 * (held(state) - stays) == whole - stays, name
                assert sum(plan.undivided.values()) <= 0.01 * whole + 100, (name, plan.undivided)
            elif axis is not None and name in EVEN:
                assert abs(8 * held(state) - whole) < 0.01 * whole + 8 * 200, (name, held(state), whole)
            expected = params
            state = tx.init(params)
            step = jax.jit(lambda p, s, tx=tx: gx.step(tx, p, p, s))
            for _ in range(3):
                expected, state = step(expected, state)
            for key in WIDE if name not in RANDOM else ():
                np.testing.assert_allclose(found[key], expected[key], rtol=1e-4, atol=1e-5, err_msg=f"{name} {key}")


RANDOM = {"add_noise", "soap", "scale_by_eigenbasis_rms"}  # and what rounding alone decides of rank two
RANDOM |= {"scale_by_kronecker_root", "shampoo"}  # and what roots magnify
EVEN = {"clipped adam", "accumulate", "adam", "amsgrad", "nadam", "lion", "switch", "swats", "partition", "lamb"}


def slots_are_divided_over_an_axis():
    """Bytes on each device as told, 1/4 of the state and 1/8 with the sharding of the parameter; the same steps."""
    divides(FEW, CASES[:1])


def slots_of_everything_are_divided_over_an_axis():
    divides(FEW | catalog.ALL, CASES)


def what_an_axis_does_not_divide_is_listed():
    on = mesh()
    plan = gx.placement(ADAM, arrays(0), shardings(on), axis="y")
    assert plan.undivided == {"momentum/m/odd": 84, "rms/s/odd": 84}, plan.undivided
    specs = {name: s.spec for name, s in plan.shardings.slots["rms"]["s"].items()}
    assert specs == {"rows": P("x", "y"), "columns": P(None, "y"), "both": P("x", "y"), "odd": P(), "scalar": P()}
    packed = gx.packed(ADAM)
    params = jax.device_put({"w": jnp.ones((8, 4)), "v": jnp.ones(3)}, NamedSharding(on, P()))
    plan = gx.placement(packed, params, axis="x")
    assert plan.undivided == {"momentum/m/flat/0": 140, "rms/s/flat/0": 140}, plan.undivided
    assert same_places(jax.jit(packed.init, out_shardings=plan.shardings)(params), plan.shardings)
    refused(
        (lambda: gx.state_shardings(ADAM, arrays(0), shardings(on), axis="z"), "'z' is none of the mesh"),
        (lambda: gx.state_shardings(ADAM, arrays(0)), "leaf 'both' needs a jax.sharding.NamedSharding"),
        (lambda: gx.state_shardings(ADAM, arrays(0), shardings(on), memory_kind="tape"), "'tape' is no memory of cpu"),
        (lambda: gx.state_shardings(packed, arrays(0), shardings(on)), "packed: leaf 'both'"),
    )


def _blind(params):
    return jax.tree.map(lambda x: jnp.zeros(x.shape), params)


def _bent(params):
    return jax.tree.map(lambda x: 0 * x.reshape(-1)[::-1].reshape(x.shape), params)


def slots_follow_by_their_paths_what_they_say_nothing_of():
    """Zeros of a shape alone, and what an init makes by what explicit axes do not take."""
    shapes = {"w": jax.ShapeDtypeStruct((16, 256), jnp.float32), "v": jax.ShapeDtypeStruct((4, 8), jnp.float32)}
    columns = NamedSharding(mesh(), P(None, "y"))
    for init in _blind, _bent:
        tx = gx.chain(optax.GradientTransformation(init, optax.identity().update))
        for axis, spec in (None, P(None, "y")), ("x", P("x", "y")):
            found = jax.tree.leaves(gx.state_shardings(tx, shapes, columns, axis=axis).slots)
            assert [s.spec for s in found] == [spec] * 2, found


def a_divided_state_on_explicit_axes_gives_back_parameters_as_they_were():
    """So that ``scan`` takes them; the state keeps its types, too. With the mesh set and without."""
    on = mesh(AxisType.Explicit)
    params = jax.device_put(arrays(0), NamedSharding(on, P()))
    cut = jax.device_put({"odd": jnp.ones(4 * 1400), "w": jnp.ones((64, 1000))}, NamedSharding(on, P()))
    codes = gx.accumulate(gx.chain(ADAM, state_dtype="root8"), 2)  # whose sums are divided as the codes are
    low, master = jax.tree.map(lambda x: x.astype(jnp.bfloat16), cut), gx.master_weights(ADAM, "int8")
    for tx, given in [*((tx, params) for tx in FEW.values()), (codes, cut), (master, low)]:
        for told in (contextlib.nullcontext(), gx.executor("native")), (jax.set_mesh(on), gx.executor("reference")):
            with told[0], told[1]:
                state = jax.jit(tx.init, out_shardings=gx.state_shardings(tx, given, axis="x"))(given)
                one = lambda carry, _: (gx.step(tx, carry[0], carry[0], carry[1]), None)  # noqa: B023, E731
                jax.eval_shape(lambda p, s: jax.lax.scan(one, (p, s), None, 2), given, state)  # noqa: B023


SPREAD = {"rows": P(), "columns": P(None, "y"), "both": P("x", "y"), "odd": P(), "scalar": P()}


def data_parallel(wrapper, taken, dtype="float32"):
    """Steps inside of shard_map with gradients of each device, and the program of them."""
    on, start = mesh(), {name: x.astype(dtype) for name, x in arrays(0).items()}
    places = {name: NamedSharding(on, spec) for name, spec in SPREAD.items()}
    shardings = gx.state_shardings(wrapper, start, places)
    specs = jax.tree.map(lambda s: s.spec, shardings)
    own = {name: P("x", *(None if e == "x" else e for e in spec)) for name, spec in SPREAD.items()}
    own["both"] = P(None, "x", "y")  # of a shard of the parameters there is one gradient, their own

    def three(params, state, grads):
        grads = {name: g[0] for name, g in grads.items()}
        step = lambda carry, _: (gx.step(wrapper, carry[0], grads, carry[1]), None)  # noqa: E731
        return jax.lax.scan(step, (params, state), None, 3)[0]  # which holds both to their types

    over = functools.partial(jax.shard_map, mesh=on)
    run = jax.jit(over(three, in_specs=(SPREAD, specs, own), out_specs=(SPREAD, specs)))
    params = jax.device_put(start, places)
    state = jax.jit(wrapper.init, out_shardings=shardings)(params)
    inside = jax.jit(over(wrapper.init, in_specs=(SPREAD,), out_specs=specs))(params)
    assert same_places(inside, shardings)
    jax.tree.map(np.testing.assert_array_equal, inside, state)
    grads = {name: jnp.stack([taken(i)[name] for i in range(1 if name == "both" else 4)]) for name in SHAPES}
    grads = jax.device_put(grads, {name: NamedSharding(on, spec) for name, spec in own.items()})
    return run(params, state, grads), run.lower(params, state, grads)


def zero1_is_data_parallelism(names=("guarded",)):
    """On two axes, with leaves over one, both and none: steps on the mean gradient, which numpy takes in float64."""
    clipped = gx.chain(gx.clip_by_global_norm(1.0), ADAM, gx.monitor())
    every = {"guarded": gx.skip_nonfinite(clipped), "optax": gx.chain(gx.clip_by_norm(0.5), optax.adam(0.1))}
    every |= {"accumulate": gx.accumulate(ADAM, 2), "scaled": gx.loss_scale(ADAM, 1.0), "lamb": gx.lamb(0.1)}
    every |= {"swats": gx.swats(0.1, rtol=0.5, min_steps=2), "switch": gx.switch(2, ADAM, gx.sgd(0.1, momentum=0.9))}
    for name in names or every:
        tx = every[name]
        for executor in ("reference", "native") if not names else ("native",):
            with gx.executor(executor):
                (params, state), lowered = data_parallel(gx.zero1(tx, "x"), lambda i: arrays(i + 1))
            text = str(lowered.compile().as_text())
            wide = [jax.tree.map(lambda g: np.asarray(g, np.float64), arrays(i + 1)) for i in range(4)]
            mean = jax.tree.map(lambda *g: jnp.asarray(sum(g) / 4, jnp.float32), *wide) | {"both": arrays(1)["both"]}
            expected, after = arrays(0), tx.init(arrays(0))
            step = jax.jit(lambda p, s, tx=tx, mean=mean: gx.step(tx, p, mean, s))
            for _ in range(3):
                expected, after = step(expected, after)
            for key in SHAPES:
                np.testing.assert_allclose(params[key], expected[key], rtol=1e-5, atol=1e-5, err_msg=f"{name} {key}")
            for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, err_msg=name)
            assert len(re.findall(r" reduce-scatter\(", text)) == 2, name  # rows and columns; both is a shard
            summed = re.findall(r"= (.*?) all-reduce\(", text)
            sizes = [
                math.prod(map(int, s.split(","))) if s else 1
                for one in summed
                for s in re.findall(r"\[([\d,]*)\]", one)
            ]
            assert max(sizes, default=0) <= 21, summed  # of the leaves that four do not divide, and numbers


def zero1_of_everything_is_data_parallelism():
    zero1_is_data_parallelism(None)


def parameters_of_few_bits_are_spread_and_gathered_as_such():
    """On explicit axes, and by zero1, which gathers bfloat16 and has what is kept of a part alone: as on one device."""
    start, grads = {name: x.astype(jnp.bfloat16) for name, x in arrays(0).items()}, arrays(1)
    tx = gx.master_weights(gx.sgd(0.01, momentum=0.9), "int8")
    step = lambda carry, _: (gx.step(tx, carry[0], grads, carry[1]), None)  # noqa: E731
    three = jax.jit(lambda p, s: jax.lax.scan(step, (p, s), None, 3)[0])
    expected, _ = three(start, tx.init(start))
    with jax.set_mesh(mesh(AxisType.Explicit)):
        placed = spread(start, mesh(AxisType.Explicit))
        explicit, _ = three(placed, tx.init(placed))
    (divided, state), lowered = data_parallel(gx.zero1(tx, "x"), lambda i: grads, "bfloat16")
    gathered = re.findall(r"all_gather.*-> tensor<[\dx]*x(\w+)>", lowered.as_text())
    assert gathered == ["bf16"] * 2, gathered
    for params in (explicit, divided):
        for name, x in params.items():
            x, y = np.float32(x), np.float32(expected[name])
            assert params[name].dtype == jnp.bfloat16
            np.testing.assert_allclose(x, y, rtol=2**-7, err_msg=name)
            assert (x == y).mean() > 0.9, name
    kept = state.kept["rows"]
    assert kept.dtype == "int8" and kept.addressable_shards[0].data.nbytes == kept.nbytes / 4


def zero1_takes_gradients_of_every_kind():
    """Each device's own, of mean 1.5; their mean; and none. Without parameters, too."""
    momentum = gx.sgd(0.1, momentum=0.9)
    part = gx.partition({"w": momentum, "b": momentum}, default="freeze")
    params = {"w": jnp.ones((16, 8)), "b": jnp.ones(3), "n": jnp.arange(4)}
    floats = {name: params[name] for name in ("w", "b")}
    alone, frozen = gx.zero1(momentum, "x"), gx.zero1(part, "x")

    def run(own):
        grads = {name: own[0] * jnp.ones_like(x) for name, x in floats.items()}
        summed = jax.lax.pmean(grads, "x")
        without = [alone.update(g, alone.init(floats))[0] for g in (grads, summed)]
        return *without, gx.step(frozen, params, grads | {"n": None}, frozen.init(params))[0]

    *updates, after = jax.jit(jax.shard_map(run, mesh=mesh(), in_specs=P("x"), out_specs=P()))(jnp.arange(4.0))
    for x in jax.tree.leaves((updates, {name: after[name] - 1 for name in floats})):
        np.testing.assert_allclose(x, -0.15, rtol=1e-5)
    np.testing.assert_array_equal(after["n"], params["n"])


def zero1_says_where_it_does_not_run():
    tx, params = gx.zero1(ADAM, "x"), arrays(0)
    run = functools.partial(gx.step, tx, params, params)
    unchecked = jax.shard_map(run, mesh=mesh(), in_specs=P(), out_specs=P(), check_vma=False)
    muon = gx.zero1(gx.chain(gx.where("rows", gx.orthogonalize()), gx.sgd(0.1)), "x")
    whole = jax.shard_map(lambda p: gx.step(muon, p, p, muon.init(p))[0], mesh=mesh(), in_specs=P(), out_specs=P())
    refused(
        (lambda: run(tx.init(params)), "inside of jax.shard_map over the axis 'x'"),
        (lambda: jax.eval_shape(unchecked, tx.init(params)), "check_vma=True"),
        (lambda: jax.eval_shape(whole, params), "rule 'orthogonalize' needs whole leaves"),
        (lambda: gx.zero1(gx.packed(ADAM), "x"), "zero1: packed"),
    )


def codes_are_the_same_on_every_mesh():
    """Blocks stay where they are if a shard holds whole ones: no collective; and elements are counted over the mesh."""
    x = np.random.default_rng(0).normal(size=(64, 2048)).astype(np.float32)
    for storage in ("root8", "bfloat16_stochastic"):
        tx = gx.chain(ADAM, state_dtype=storage)
        held = {}
        for kind, spec in (
            (AxisType.Auto, P()),
            (AxisType.Auto, P("x", "y")),
            (AxisType.Explicit, P("y", "x")),
            (AxisType.Explicit, P(None, ("x", "y"))),
        ):
            on = mesh(kind)
            with jax.set_mesh(on):
                params = jax.device_put(x, NamedSharding(on, spec))
                state = jax.jit(tx.init)(params)
                step = jax.jit(lambda p, s, tx=tx: gx.step(tx, p, p, s)).lower(params, state).compile()
                params, state = step(*step(params, state))
                assert not re.findall("all-|collective|gather", str(step.as_text()))
            slots = state.slots["rms"]["s"]
            for part in jax.tree.leaves(slots):
                assert part.sharding.is_equivalent_to(NamedSharding(on, spec), 2), (part.sharding, spec)
            held[kind, spec] = [np.asarray(part, np.float32) for part in jax.tree.leaves(slots)]
        first, *others = held.values()
        for one in others:  # by other programs: a last bit may be the next code
            for a, b in zip(one, first, strict=True):
                assert (a != b).mean() < 1e-3
    tx = gx.chain(ADAM, state_dtype="root8")
    on = mesh()
    for shape, spec in (((64, 2048), P(None, "x")), ((64, 768), P("x")), ((66, 768), P())):
        slot = gx.state_shardings(tx, jax.ShapeDtypeStruct(shape, x.dtype), NamedSharding(on, P()), axis="x")
        moment = slot.slots["momentum"]["m"]
        assert moment.codes.spec == moment.scale.spec == spec, (shape, moment)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        narrow = jax.device_put(x[:, :512], NamedSharding(mesh(AxisType.Explicit), P(None, "x")))
        refused((lambda: tx.init(narrow), "is spread over 4 devices"))


IN_PARTS = {  # of each kind of leaf, how it is cut inside of shard_map
    "between blocks": ((4096,), P("x")),
    "in rows": ((64, 300), P("x")),
    "in rows, few here": ((64, 64), P("x", None)),
    "columns": ((4, 2048), P(None, "x")),
    "whole": ((5, 1000), P()),
    "few": ((8, 16), P("x")),
}
IN_ZERO1 = {  # along which dimension the slots are divided, of leaves that are whole
    "between blocks": P("x"),
    "in rows": P("x"),
    "in rows, few here": P("x"),
    "columns": P(None, "x"),
    "whole": P(),
    "few": P(None, "x"),
    "of one axis": P(),
}


def codes_in_shard_map_are_those_of_any_mesh():
    """By parameters in parts, whose state was made outside, and by zero1, which divides between blocks."""
    on = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tx = gx.skip_nonfinite(gx.chain(gx.clip_by_global_norm(1.0), gx.adam(0.1), state_dtype="root8"))
    shapes = {name: shape for name, (shape, _) in IN_PARTS.items()} | {"of one axis": (8 * 700,)}
    whole = {name: jax.random.normal(jax.random.key(len(name)), shape) for name, shape in shapes.items()}
    expected, truth = jax.jit(lambda p, s: gx.step(tx, p, p, s))(whole, tx.init(whole))

    def alike(params, state):
        assert jax.tree.structure(state) == jax.tree.structure(truth)
        for name, x in params.items():
            np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
            for rule, slot in ("momentum", "m"), ("rms", "s"):
                found, wanted = (s.inner.slots[rule][slot][name] for s in (state, truth))
                scales = [x.scale if hasattr(x, "scale") else x for x in (found, wanted)]
                np.testing.assert_allclose(*scales, rtol=1e-5, err_msg=name)

    def inside(step, specs, of_state):
        return jax.jit(jax.shard_map(step, mesh=on, in_specs=(specs, of_state), out_specs=(specs, of_state)))

    params = jax.device_put(whole, NamedSharding(on, P()))
    divided = gx.zero1(tx, "x")
    plan = gx.placement(divided, params)
    assert {name: s.spec for name, s in plan.shardings.inner.slots["rms"]["s"].items() if name == "few"} == {
        "few": IN_ZERO1["few"]
    }
    of_codes = {name: x.codes.spec for name, x in plan.shardings.inner.slots["rms"]["s"].items() if name != "few"}
    assert of_codes | {"few": IN_ZERO1["few"]} == IN_ZERO1, of_codes
    assert plan.undivided["inner/rms/s/of one axis/codes"] == 5600, plan.undivided
    specs = jax.tree.map(lambda s: s.spec, plan.shardings)
    state = jax.jit(divided.init, out_shardings=plan.shardings)(params)
    same = jax.jit(jax.shard_map(divided.init, mesh=on, in_specs=P(), out_specs=specs))(params)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    own = lambda p, s: gx.step(divided, p, jax.lax.pcast(p, "x", to="varying"), s)  # noqa: E731
    alike(*inside(own, P(), specs)(params, state))

    del whole["of one axis"], params["of one axis"]
    expected, truth = jax.jit(lambda p, s: gx.step(tx, p, p, s))(whole, tx.init(whole))
    places = {name: NamedSharding(on, spec) for name, (_, spec) in IN_PARTS.items()}
    shardings = gx.state_shardings(tx, params, places)
    specs = jax.tree.map(lambda s: s.spec, shardings)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    run = inside(lambda p, s: gx.step(tx, p, p, s), jax.tree.map(lambda s: s.spec, places), specs)
    alike(*run(params, state))


def blocks_that_would_be_of_the_mesh_are_refused():
    """By rule, slot and leaf, with what to do: in init and in update, and where types do not tell."""
    on = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tx = gx.chain(ADAM, state_dtype="root8")
    params = {"w": jnp.ones((8, 2000))}
    state = tx.init(params)
    of_scales = jax.tree.map(lambda x: P(None, "x") if x.ndim else P(), state)

    def inside(fn, specs, out, said: Any = contextlib.nullcontext, checked=True):
        def run(*args):
            with said():
                return fn(*args)

        return lambda *args: jax.eval_shape(
            jax.shard_map(run, mesh=on, in_specs=specs, out_specs=out, check_vma=checked), *args
        )

    def slot(params):
        return tx.init(params).slots["rms"]["s"]["w"].codes

    rows, columns = P("x"), P(None, "x")
    step = inside(lambda p, s: tx.update(p, s)[0], (columns, of_scales), columns)
    even = {"w": jnp.ones((8, 2048))}
    alone = jax.tree.map(lambda x: columns if x.shape == (8, 2048) else P(), tx.init(even))
    apart = inside(lambda p, s: tx.update(p, s)[0], (columns, alone), columns)
    refused(
        (lambda: inside(slot, columns, columns)(params), "slot momentum.m, leaf 'w', of shape (8, 250)"),
        (lambda: inside(slot, rows, rows)(params), "Make the state outside of it, by jax.jit(tx.init, out_sh"),
        (lambda: inside(slot, columns, columns)(params), "{'their path': 'float32', '': 'root8'}"),
        (lambda: step(params, state), "is a part of 2000"),
        (lambda: apart(even, tx.init(even)), "has scales of shape (8, 8)"),
        (lambda: inside(slot, P(), P(), checked=False)(params), "with gradtx.replicated()"),
        (lambda: inside(slot, columns, columns, checked=False)(even), "This one has 2048 here"),
        (lambda: gx.state_shardings(tx, params, NamedSharding(on, columns)), "is spread over 8 devices"),
    )
    inside(slot, P(), P(), gx.replicated, checked=False)(params)  # as is said, there are no parts
    inside(slot, columns, columns)(even)


def codes_are_restored_on_other_meshes():
    """Saved by Orbax on eight devices: the same bits on four, along another axis, and on one."""
    import orbax.checkpoint as ocp  # which takes longer to import than most claims to see

    tx = gx.chain(ADAM, state_dtype={"w": "root8", "": "bfloat16_stochastic"})
    start = {"w": arrays_of((64, 1024)), "b": arrays_of((64,))}
    everywhere = mesh()
    rows = {"w": NamedSharding(everywhere, P(("x", "y"))), "b": NamedSharding(everywhere, P("x"))}
    params = jax.device_put(start, rows)
    _, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params))
    others = {
        "four": (jax.make_mesh((4,), ("x",), devices=jax.devices()[:4]), P("x")),
        "another axis": (everywhere, P(None, "x")),
        "one": (jax.make_mesh((1,), ("x",), devices=jax.devices()[:1]), P()),
    }
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder) / "state", state)
        checkpointer.wait_until_finished()
        for name, (on, spec) in others.items():
            where = {"w": NamedSharding(on, spec), "b": NamedSharding(on, P())}
            wanted = gx.abstract_state(tx, start, where)
            found = checkpointer.restore(Path(folder) / "state", wanted)
            assert found.slots["rms"]["s"]["w"].codes.sharding.is_equivalent_to(where["w"], 2), name
            for saved, restored in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
                np.testing.assert_array_equal(np.asarray(saved), np.asarray(restored))


def arrays_of(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def offloads(named):
    on = mesh()
    params = spread(arrays(0), on)
    for name, tx in named.items():
        away = gx.offload(tx)
        shardings = gx.state_shardings(away, params)
        state = jax.jit(away.init, out_shardings=shardings)(params)
        assert {x.sharding.memory_kind for x in jax.tree.leaves(state) if x.ndim} <= {"pinned_host"}, name
        assert {x.sharding.memory_kind for x in jax.tree.leaves(state) if not x.ndim} == {"device"}, name
        if name == "clipped adam":
            assert same_places(away.init(params), shardings)
            kept = jax.tree.map(lambda s: s.memory_kind, gx.state_shardings(tx, params, memory_kind="pinned_host"))
            assert kept == jax.tree.map(lambda s: s.memory_kind, shardings)
        where = jax.tree.map(lambda x: x.sharding, params)
        told: Any = (
            {} if name in FEW else {"out_shardings": (where, shardings)}
        )  # the compiler spreads factors as it likes
        step = jax.jit(functools.partial(gx.step, away), donate_argnums=2, **told)
        near = jax.jit(functools.partial(gx.step, tx))
        found, expected, other = params, params, tx.init(params)
        for _ in range(3):
            found, state = step(found, found, state)
            expected, other = near(expected, expected, other)
            assert same_places(state, shardings), name
        for key in SHAPES if name not in RANDOM else ():
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}")


def slots_on_the_host_make_the_same_steps():
    """Whatever is around: over a mesh, donated, in each step where they were; scalars on the device."""
    offloads({"clipped adam": FEW["clipped adam"]})


def slots_of_everything_on_the_host_make_the_same_steps():
    offloads(FEW | catalog.ALL)


def the_host_is_named_where_it_is_wrong():
    params = arrays(0)
    seconds = gx.offload(ADAM, where="rms/s/both")
    state = seconds.init(params)
    kinds = [x.sharding.memory_kind for x in jax.tree.leaves(state)]
    assert kinds.count("pinned_host") == 1 and state.slots["rms"]["s"]["both"].sharding.memory_kind == "pinned_host"
    inside = gx.skip_nonfinite(gx.offload(ADAM))
    whole = gx.chain(optax.adam(0.1))
    away = gx.offload(whole).init(params)
    soap = gx.chain(gx.skip_first(), gx.scale_by_eigenbasis_rms())
    of_soap = gx.offload(soap, where="scale_by_eigenbasis_rms").init(params)
    refused(
        (lambda: gx.step(ADAM, params, params, state), "slot rms.s, leaf 'both', of this state is in the memory"),
        (lambda: gx.step(whole, params, params, away), "slot chain.state of this state is in the memory of the host"),
        (
            lambda: gx.step(soap, params, params, of_soap),
            "slot scale_by_eigenbasis_rms.state['bases']['both'][0] of this state is in",
        ),
        (lambda: jax.eval_shape(inside.update, params, inside.init(params)), "offload(skip_nonfinite(tx))"),
        (lambda: gx.offload(ADAM, "tape"), "memory_kind must be 'pinned_host'"),
        (lambda: gx.offload(ADAM, where="nowhere").init(params), "'nowhere', chooses no leaf"),
        (lambda: check_memory("offload", "tape", jax.devices()[0]), "'tape' is no memory of cpu devices here"),
    )


def the_table(names):
    """Each row of the page measured again: bytes of state and collectives as it says, and peaks nearly so."""
    lines = dict(re.findall(r"^(\|[^|]*\|[^|]*\|)(.*)$", measure_devices.PAGE.read_text(), re.MULTILINE))
    for name in names:
        rows = {}
        for sharding in measure_devices.SHARDINGS if names is measure_devices.OPTIMIZERS else QUICK:
            shown = [cell.strip() for cell in lines[f"| {name} | {sharding} |"].strip("|").split("|")]
            if "refused" in shown[-1]:
                continue
            row = rows[sharding] = measure_devices.measured(measure_devices.OPTIMIZERS[name], sharding)
            found = [c.strip() for c in measure_devices.line(name, sharding, row).strip("|").split("|")[2:]]
            assert found[:2] == shown[:2] and abs(row.peak / float(shown[2]) - 1) < 0.1, (name, sharding, found, shown)
            assert found[4] == shown[4] or names is measure_devices.OPTIMIZERS, (found, shown)
            if "divided" in sharding:
                assert abs(8 * row.held / row.state - 1) < 0.01, (name, row)
        if QUICK[1] in rows:  # what divides the state with a peak as before is no gain
            by_xla, by_hand = (rows[key].peak for key in QUICK)
            assert by_hand < 0.7 * by_xla, rows


QUICK = measure_devices.SHARDINGS[2:]


def the_page_shows_what_is_measured():
    the_table(["Adam"])


def the_page_shows_all_that_is_measured():
    the_table(measure_devices.OPTIMIZERS)


CLAIMS = [
    state_by_jit_is_where_the_parameters_are,
    what_multiplies_matrices_runs_on_explicit_axes,
    packed_refuses_what_is_spread,
    slots_are_divided_over_an_axis,
    slots_of_everything_are_divided_over_an_axis,
    what_an_axis_does_not_divide_is_listed,
    slots_follow_by_their_paths_what_they_say_nothing_of,
    a_divided_state_on_explicit_axes_gives_back_parameters_as_they_were,
    zero1_is_data_parallelism,
    zero1_of_everything_is_data_parallelism,
    parameters_of_few_bits_are_spread_and_gathered_as_such,
    zero1_takes_gradients_of_every_kind,
    zero1_says_where_it_does_not_run,
    codes_are_the_same_on_every_mesh,
    codes_in_shard_map_are_those_of_any_mesh,
    blocks_that_would_be_of_the_mesh_are_refused,
    codes_are_restored_on_other_meshes,
    slots_on_the_host_make_the_same_steps,
    slots_of_everything_on_the_host_make_the_same_steps,
    the_host_is_named_where_it_is_wrong,
    the_page_shows_what_is_measured,
    the_page_shows_all_that_is_measured,
]


def main(names):
    assert jax.device_count() == 8
    for claim in CLAIMS:
        if not names or claim.__name__ in names:
            claim()
            print(claim.__name__, flush=True)


if __name__ == "__main__":  # and not where tests are collected, which import this as well
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    main(sys.argv[1:])
