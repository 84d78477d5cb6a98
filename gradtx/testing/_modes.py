"""The contract in jax's modes: its transformations, the devices of a mesh, and its stricter settings."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import gradtx as gx
from gradtx._core import verification
from gradtx._engine.transformation import Transformation
from gradtx.testing._compare import check, close, own_buffers, same_types
from gradtx.testing._examples import normal, params
from gradtx.testing._runs import remade, updated

STEPS = 3
SHAPES = {"rows": (4, 3), "columns": (5, 4), "both": (8, 4), "vector": (2,), "number": ()}
SPECS = {
    "rows": PartitionSpec("x"),
    "columns": PartitionSpec(None, "y"),
    "both": PartitionSpec("x", "y"),
    "vector": PartitionSpec(),
    "number": PartitionSpec(),
}


def mesh(kind: AxisType) -> Mesh:
    """Two axes over four devices, or over as many as there are."""
    devices = jax.devices()
    shape = (2, 2) if len(devices) >= 4 else (min(len(devices), 2), 1)
    return jax.make_mesh(shape, ("x", "y"), (kind, kind), devices=devices[: shape[0] * shape[1]])


def arrays(seed: int, *axes: int) -> dict[str, jax.Array]:
    """A tree of arrays for these specifications, with more axes in front."""
    return {name: normal(*axes, *shape, seed=seed) for name, shape in SHAPES.items()}


def specs(state: Any) -> Any:
    """How the state of these parameters is spread: slots like a parameter as that, all else on all devices."""
    by_shape = {shape: SPECS[name] for name, shape in SHAPES.items()}
    return jax.tree.map(lambda x: by_shape.get(x.shape, PartitionSpec()), state)


def steps(tx: Transformation[Any], params: Any, state: Any, grads: Any) -> Any:
    """Parameters and state after a step for each of the gradients, under scan, which holds both to their types."""

    def one(carry: Any, grads: Any) -> Any:
        params, state = carry
        return gx.step(tx, params, grads, state), None

    return jax.lax.scan(one, (params, state), grads)[0]


def works_on_explicit_meshes(tx: Transformation[Any]) -> None:
    """on a mesh of explicit axes state and parameters keep their types; the numbers too, with several devices"""
    params, grads = arrays(0), arrays(1, STEPS)
    explicit = mesh(AxisType.Explicit)
    spread = {name: PartitionSpec(None, *spec) for name, spec in SPECS.items()}
    run = functools.partial(steps, tx)
    for executor in ("reference", "native"):
        with gx.executor(executor):
            with jax.set_mesh(explicit):
                placed = [
                    {name: jax.device_put(x, NamedSharding(explicit, spec[name])) for name, x in tree.items()}
                    for tree, spec in ((params, SPECS), (grads, spread))
                ]
                state = tx.init(placed[0])
                after = jax.make_jaxpr(run)(placed[0], state, placed[1]).out_avals
                for x, y in zip(jax.tree.leaves((placed[0], state)), after, strict=True):
                    spec, given = y.sharding.spec, jax.typeof(x).sharding.spec
                    check(spec == given, f"an array of shape {x.shape} is spread over {spec}, not {given}")
                if len(jax.devices()) == 1:
                    continue
                found = jax.jit(run)(placed[0], state, placed[1])
            whole = jax.jit(run)(params, tx.init(params), grads)
            close(found[0], whole[0], "parameters on a mesh", rtol=1e-5, atol=1e-6)


def works_in_shard_map(tx: Transformation[Any]) -> None:
    """on shards the numbers and types of whole arrays, sharded and replicated ones mixed; on one device, types only"""
    params, grads = arrays(0), arrays(1, STEPS)
    over = functools.partial(jax.shard_map, mesh=mesh(AxisType.Auto))
    spread = {name: PartitionSpec(None, *spec) for name, spec in SPECS.items()}
    state = tx.init(params)
    held = specs(state)
    inside = over(lambda p, g: steps(tx, p, tx.init(p), g)[0], in_specs=(SPECS, spread), out_specs=SPECS)
    outside = over(functools.partial(steps, tx), in_specs=(SPECS, held, spread), out_specs=(SPECS, held))

    def run(params: Any, state: Any, grads: Any) -> Any:
        return steps(tx, params, state, grads), outside(params, state, grads), inside(params, grads)

    for executor in ("reference", "native"):
        with gx.executor(executor):
            if len(jax.devices()) == 1:
                jax.eval_shape(run, params, state, grads)
                continue
            whole, from_outside, from_inside = jax.jit(run)(params, state, grads)
            close(from_outside, whole, "on shards, with a state that was made outside", rtol=1e-5, atol=1e-6)
            close(from_inside, whole[0], "on shards, with a state that was made there", rtol=1e-5, atol=1e-6)


def keeps_to_strict_types(tx: Transformation[Any]) -> None:
    """strict promotion of dtypes and no promotion of ranks, for leaves and gradients of several dtypes"""
    pairs = [("float32", "float32"), ("bfloat16", "float32"), ("float32", "float64"), ("float64", "bfloat16")]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for first, second in pairs:
            params = {"w": normal(3, 2, dtype=first), "b": normal(2, dtype=second)}
            state = jax.eval_shape(tx.init, params)
            for grads in (params, jax.tree.map(lambda x: x.astype(jnp.float32), params)):
                jax.eval_shape(functools.partial(gx.step, tx), params, grads, state)


def works_under_guards(tx: Transformation[Any]) -> None:
    """outside of jit with transfers disallowed and NaNs refused, and with jit disabled: the same numbers"""
    params, grads = arrays(0), arrays(1)
    zeros = jax.tree.map(jnp.zeros_like, params)

    def three(params: Any, grads: Any) -> Any:
        state = tx.init(params)
        for _ in range(STEPS):
            params, state = gx.step(tx, params, grads, state)
        return params

    with jax.transfer_guard("disallow"), jax.debug_nans(True):
        found = three(params, grads)
        three(zeros, zeros)
    with jax.disable_jit():
        close(three(params, grads), found, "without jit", rtol=1e-5, atol=1e-6)


def leaks_no_tracers(tx: Transformation[Any]) -> None:
    """what is traced leaves nothing behind"""
    params = arrays(0)
    state = tx.init(params)
    with jax.checking_leaks():
        jax.make_jaxpr(functools.partial(gx.step, tx))(params, params, state)


# -- Transformations of jax -------------------------------------------------------------------------------------------


def compiles_once(tx: Transformation[Any]) -> None:
    """one compilation for all steps, and for other hyperparameters"""
    traces: list[None] = []

    @jax.jit
    def update(grads: Any, state: Any, p: Any) -> Any:
        traces.append(None)
        return tx.update(grads, state, p)

    p = params()
    updates, state = p, tx.init(p)
    for _ in range(3):
        updates, state = update(p, state, p)
    changed = state._replace(hyperparams=jax.tree.map(lambda x: 0.5 * x, state.hyperparams))
    update(p, changed, p)
    update(updates, changed, jax.tree.map(jnp.add, p, updates))
    check(len(traces) == 1, f"traced {len(traces)} times instead of once")


def donates_and_branches(tx: Transformation[Any]) -> None:
    """steps that reuse the memory of parameters and state, as init makes it with and without jit, and lax.cond"""
    p = params()
    step = jax.jit(lambda p, s: gx.step(tx, p, params(), s), donate_argnums=(0, 1))
    for init in (tx.init, jax.jit(tx.init)):
        now = jax.tree.map(jnp.copy, p)
        state = init(now)
        own_buffers({"parameters": now, "state": state}, "a fresh state")
        for _ in range(3):
            now, state = step(now, state)

    @jax.jit
    def maybe(flag: bool, now: Any, state: Any) -> Any:
        return jax.lax.cond(flag, lambda now, s: gx.step(tx, now, p, s), lambda now, s: (now, s), now, state)

    _, after = maybe(True, p, tx.init(p))
    same_types(after, state, "state after a step in lax.cond")
    close(maybe(False, now, state), (now, state), "the branch without a step")
    check(int(after.count) == 1, f"one step counts {int(after.count)}")


def sweeps_by_vmap(tx: Transformation[Any]) -> None:
    """hyperparameters are what the state says, and vmap over them gives what separate runs give"""
    p, factors = params(), jnp.array([0.5, 0.9, 1.0])
    start = tx.init(p)

    def times(factor: Any) -> Any:
        return start._replace(hyperparams=jax.tree.map(lambda x: factor * x, start.hyperparams))

    together = jax.jit(jax.vmap(lambda factor: tx.update(p, times(factor), p)))(factors)
    for i, factor in enumerate(factors):
        alone = updated(tx, p, times(factor), p)
        close(jax.tree.map(lambda x, i=i: x[i], together), alone, "vmap and a run alone differ", rtol=2e-6)
    rebuilt = updated(remade(tx, gx.chain(*map(_halved, gx.chain(tx).rules))), p, times(0.5), p)
    close(rebuilt, updated(tx, p, times(0.5), p), f"hyperparameters in the state are not used{_unread(tx)}", rtol=2e-6)


def _unread(tx: Transformation[Any]) -> str:
    """The hyperparameters that nothing in ``apply`` depends on, in words."""
    reads = []
    for rule in tx.rules:
        if names := verification.unread(rule, jax.ShapeDtypeStruct((3, 2), jnp.dtype("float32"))):
            read, meant = (", ".join(f"{where}.{name}" for name in names) for where in ("c", "self"))
            reads.append(f"rule {rule.title!r} does not depend on {read}: does it read {meant}?")
    return f" ({' '.join(reads)})" if reads else ""


def _halved(rule: gx.Rule) -> gx.Rule:
    """The rule with half of each number for a hyperparameter."""
    numbers = {name: 0.5 * value for name, value in rule.hyperparameters().items() if not callable(value)}
    return dataclasses.replace(rule, **numbers)
