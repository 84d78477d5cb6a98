"""The contract, property by property: each function raises an AssertionError if the transformation lacks it.

One that does not apply returns the reason. The docstrings are what ``check`` prints.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx as gx
from gradtx._core import verification
from gradtx._core.codecs import is_encoded
from gradtx._engine.layout import Kind
from gradtx._engine.transformation import Transformation
from gradtx._inspect.tables import columns, width
from gradtx.testing._compare import check, close, finite, own_buffers, same_types
from gradtx.testing._declared import says_what_it_holds
from gradtx.testing._examples import DTYPES, normal, params, trees
from gradtx.testing._modes import (
    keeps_to_strict_types,
    leaks_no_tracers,
    works_in_shard_map,
    works_on_explicit_meshes,
    works_under_guards,
)

Property = Callable[[Transformation[Any]], str | None]

STEPS = 5
LOW = ("float32", "bfloat16", "float16")
NOT_COMPLEX = "has no meaning for complex numbers"


# A transformation is a value: what is compiled for it here serves several properties.
@functools.partial(jax.jit, static_argnums=0)
def _update(tx: Transformation[Any], grads: Any, state: Any, params: Any) -> Any:
    return tx.update(grads, state, params)


@functools.partial(jax.jit, static_argnums=0)
def _steps(tx: Transformation[Any], params: Any) -> Any:
    """The last updates and state of a few steps under scan, which holds the state to its structure and dtypes."""

    def one(state: Any, _: None) -> Any:
        updates, state = tx.update(params, state, params)
        return state, updates

    state, updates = jax.lax.scan(one, tx.init(params), None, length=STEPS)
    return jax.tree.map(lambda x: x[-1], updates), state


def _real_only(tx: Transformation[Any]) -> bool:
    """True if a transformation says that it is for real numbers alone."""
    try:
        jax.eval_shape(tx.init, params("complex64"))
    except TypeError as error:
        return NOT_COMPLEX in str(error)
    return False


def _own_slots(tx: Transformation[Any], state: Any) -> Any:
    """Slots of rules that map one array at a time: what a rule that maps whole trees keeps is its own affair."""
    layout = tx._engine.layout.slots
    return {rule: own for rule, own in state.slots.items() if Kind.TREE not in layout[rule].values()}


def is_an_optax_transformation(tx: Transformation[Any]) -> None:
    """init and update, alone, with extra arguments, and inside optax.chain"""
    check(isinstance(tx, optax.GradientTransformationExtraArgs), "no GradientTransformationExtraArgs")
    init, update = tx
    p = params()
    state = init(p)
    expected = _update(tx, p, tx.init(p), p)
    close(jax.jit(update)(p, state, p), expected, "the pair (init, update) and the methods differ")
    extra = jax.jit(lambda g, s, p: tx.update(g, s, p, value=1.0, unknown="ignored"))(p, state, p)
    close(extra, expected, "extra arguments change something")
    outer = optax.chain(tx, optax.scale(0.5))
    halved, _ = jax.jit(outer.update)(p, outer.init(p), p)
    close(halved, jax.tree.map(lambda x: 0.5 * x, expected[0]), "inside optax.chain", rtol=1e-6)


def takes_any_tree(tx: Transformation[Any]) -> None:
    """empty trees, scalars, arrays of size 0, None, tuples, dataclasses, many axes, odd keys"""
    for kind, tree in trees().items():
        state = jax.eval_shape(tx.init, tree)
        updates, after = jax.eval_shape(tx.update, tree, state, tree)
        same_types(updates, tree, f"updates of a tree ({kind})")
        same_types(after, state, f"state of a tree ({kind})")
    updates, state = _steps(tx, trees())  # numbers, in one compilation, for all of them in one tree
    same_types(updates, trees(), "updates")
    finite((updates, state), f"after {STEPS} steps")


def keeps_its_types(tx: Transformation[Any]) -> None:
    """structure, shapes and dtypes of state and updates, for parameters and gradients of ten pairs of dtypes"""
    for dtype in DTYPES:
        if dtype != "complex64" or not _real_only(tx):
            with jax.enable_x64(True):
                _keeps_types_of(tx, dtype)


def _keeps_types_of(tx: Transformation[Any], dtype: str) -> None:
    p = params(dtype)
    state = jax.eval_shape(tx.init, p)
    same_types(state, tx.init(p), "init, abstract and not")
    scalar = jnp.dtype("float64" if dtype == "float64" else "float32")
    for x in jax.tree.leaves(state.hyperparams):
        check(x.dtype == scalar, f"{dtype} parameters: a hyperparameter is {x.dtype}, not {scalar}")
    real = np.finfo(jnp.result_type(jnp.float32, dtype)).dtype
    for x in [] if _has_formats(tx) else jax.tree.leaves(_own_slots(tx, state)):
        check(jnp.finfo(x.dtype).dtype == real, f"{dtype} parameters: a slot is {x.dtype}, and should be as {real}")
    for grad_dtype in DTYPES[dtype]:
        grads = jax.tree.map(lambda x, d=grad_dtype: x.astype(d), p)
        optional = grad_dtype == dtype and not any(rule.needs_params for rule in tx.rules)
        for arguments in ([p], []) if optional else ([p],):
            updates, after = jax.eval_shape(tx.update, grads, state, *arguments)
            same_types(updates, grads, f"updates for {dtype} parameters and {grad_dtype} gradients")
            same_types(after, state, f"state for {dtype} parameters and {grad_dtype} gradients")


def takes_weak_types_for_what_they_say(tx: Transformation[Any]) -> None:
    """float64 scalars, which jax lets promote like float32, are float64"""
    with jax.enable_x64(True):
        strong = {"x": jnp.array([0.5])[0], "y": jnp.array([-1.0])[0]}
        expected, state = jax.jit(tx.update)(strong, tx.init(strong), strong)
        for weak in ({"x": jnp.array(0.5), "y": -1.0}, {"x": 0.5, "y": np.float64(-1.0)}):
            same_types(tx.init(weak), tx.init(strong), "init of weakly typed leaves")
            updates, after = jax.jit(lambda w: tx.update(w, tx.init(w), w))(weak)
            close((updates, after), (expected, state), "weakly typed leaves", rtol=1e-14)
            same_types(updates, expected, "updates of weakly typed leaves")


def computes_in_float32(tx: Transformation[Any]) -> None:
    """bfloat16 leaves give what they would give in float32, rounded once at the end"""
    mixed = {"w": normal(3, 2, dtype="bfloat16"), "b": normal(2)}
    updates, state = _steps(tx, mixed)
    wide_updates, wide_state = _steps(tx, jax.tree.map(lambda x: x.astype(jnp.float32), mixed))
    check(updates["w"].dtype == jnp.bfloat16, f"updates of a bfloat16 leaf are {updates['w'].dtype}")
    expected = jax.tree.map(lambda u, p: u.astype(p.dtype), wide_updates, mixed)
    close(updates, expected, "updates", rtol=1e-2)  # one bfloat16 ulp is 2⁻⁸; XLA may fuse differently
    close(state, wide_state, "state", rtol=1e-5)


def does_nothing_at_zero(tx: Transformation[Any]) -> None:
    """zero parameters and gradients give zero updates and a finite state"""
    for dtype in LOW:
        zeros = jax.tree.map(jnp.zeros_like, params(dtype))
        updates, state = _steps(tx, zeros)
        close(updates, zeros, f"updates of zero gradients in {dtype}")
        finite(state, f"state after zero gradients in {dtype}")


def stays_finite(tx: Transformation[Any]) -> None:
    """finite updates and state, also from gradients near the ends of a dtype's range"""
    for dtype in LOW:
        info = jnp.finfo(dtype)
        large = min(float(info.max) / 8, 1e18)
        w = jnp.array([[0.0, info.tiny], [-1e-4, 100.0], [large, -large]], dtype)
        finite(_steps(tx, {"w": w, "b": w[0]}), f"after {STEPS} steps with very small and large gradients in {dtype}")


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


def scans_as_it_loops(tx: Transformation[Any]) -> None:
    """lax.scan gives what a loop gives"""
    p = params()
    updates, state = p, tx.init(p)
    for _ in range(STEPS):
        updates, state = _update(tx, p, state, p)
    close(_steps(tx, p), (updates, state), "scan and loop differ", rtol=2e-6)


def sweeps_by_vmap(tx: Transformation[Any]) -> None:
    """hyperparameters are what the state says, and vmap over them gives what separate runs give"""
    p, factors = params(), jnp.array([0.5, 0.9, 1.0])
    start = tx.init(p)

    def times(factor: Any) -> Any:
        return start._replace(hyperparams=jax.tree.map(lambda x: factor * x, start.hyperparams))

    together = jax.jit(jax.vmap(lambda factor: tx.update(p, times(factor), p)))(factors)
    for i, factor in enumerate(factors):
        alone = _update(tx, p, times(factor), p)
        close(jax.tree.map(lambda x, i=i: x[i], together), alone, "vmap and a run alone differ", rtol=2e-6)
    rebuilt = _update(gx.chain(*map(_halved, gx.chain(tx).rules)), p, times(0.5), p)
    close(rebuilt, _update(tx, p, times(0.5), p), f"hyperparameters in the state are not used{_unread(tx)}", rtol=2e-6)


def _unread(tx: Transformation[Any]) -> str:
    """The hyperparameters that nothing in ``apply`` depends on, in words."""
    found = []
    for rule in tx.rules:
        if names := verification.unread(rule, jax.ShapeDtypeStruct((3, 2), jnp.dtype("float32"))):
            read, meant = (", ".join(f"{where}.{name}" for name in names) for where in ("c", "self"))
            found.append(f"rule {rule.name or rule.label!r} does not depend on {read}: does it read {meant}?")
    return f" ({' '.join(found)})" if found else ""


def _halved(rule: gx.Rule) -> gx.Rule:
    """The rule with half of each number for a hyperparameter."""
    numbers = {name: 0.5 * value for name, value in rule.hyperparameters().items() if not callable(value)}
    return dataclasses.replace(rule, **numbers)


def has_one_clock(tx: Transformation[Any]) -> None:
    """count is the only integer in the state; it saturates, and the last steps that it counts are like any other"""
    p, most = params(), np.iinfo(np.int32).max
    state = tx.init(p)
    check(state.count.dtype == jnp.int32, f"count is {state.count.dtype}")
    for x in jax.tree.leaves(_own_slots(tx, state), is_leaf=is_encoded):  # codes stand for numbers
        check(not jnp.issubdtype(x.dtype, jnp.integer), "a slot holds integers: is it another clock?")
    updates, after = _update(tx, p, state._replace(count=jnp.array(most, jnp.int32)), p)
    check(int(after.count) == most, "count overflows")
    before, _ = _update(tx, p, state._replace(count=jnp.array(most - 1, jnp.int32)), p)
    largest = max((float(abs(x).max()) for x in jax.tree.leaves(before)), default=0.0)  # 1/count is as small as that
    close(updates, before, "the step at the last count differs from the one before", rtol=1e-5, atol=1e-6 * largest)


def knows_no_other_values(tx: Transformation[Any]) -> None:
    """numbers that the compiler knows (gradients, parameters, hyperparameters) give what those passed in give"""
    factor = normal(3, seed=7)

    def start(scale: Any = 1.0) -> dict[str, jax.Array]:
        return {name: jnp.ones(3) * scale for name in ("factor", "ones", "stopped", "unused")}

    def loss(p: dict[str, jax.Array]) -> jax.Array:
        return jnp.vdot(factor, p["factor"]) + p["ones"].sum() + 0.0 * jax.lax.stop_gradient(p["stopped"]).sum()

    def known(scale: Any = 1.0, state: Any = None) -> Any:
        p = start(scale)
        return tx.update(jax.grad(loss)(p), tx.init(p) if state is None else state, p)

    def scanned() -> Any:
        def one(carry: Any, _: None) -> Any:
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p), state, p)
            return (p, state), updates

        p = start()
        (_, state), updates = jax.lax.scan(one, (p, tx.init(p)), None, length=2)
        return jax.tree.map(lambda x: x[-1], updates), state

    @jax.jit
    def all_ways(state: Any) -> dict[str, Any]:
        natively = known()
        with gx.executor("reference"):  # the compiler sees all of it
            mapped = jax.tree.map(lambda x: x[1], jax.vmap(known)(jnp.ones(2)))
            ways = {"": known(), " and a state that is passed in": known(1.0, state), " under vmap": mapped}
            ways[" of zero"] = tx.update(jax.tree.map(jnp.zeros_like, start()), state, start())
            return ways | {" by the default executor": natively, " in a scan": scanned()}

    p = start()
    grads = {**{name: jnp.zeros(3) for name in p}, "factor": factor, "ones": jnp.ones(3)}
    first = _update(tx, grads, tx.init(p), p)
    second = _update(tx, grads, first[1], p)
    at_zero = _update(tx, jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
    for how, found in all_ways(tx.init(p)).items():
        expected = {" in a scan": second, " of zero": at_zero}.get(how, first)
        close(found, expected, f"with known gradients{how}, the step is another", rtol=1e-5, atol=1e-6)


def shows_what_is_like_the_parameters(tx: Transformation[Any]) -> None:
    """optax's tree_map_params finds the slots that are like the parameters"""
    p = params()
    state = tx.init(p)
    marked: Any = optax.tree_utils.tree_map_params(tx, lambda x: jnp.full_like(x, 7.0), state)
    check(jax.tree.structure(marked) == jax.tree.structure(state), "the state's structure changes")
    for rule, own in marked.slots.items():
        for slot, tree in own.items():
            if jax.tree.structure(tree) == jax.tree.structure(p):
                found = all(bool((x == 7.0).all()) for x in jax.tree.leaves(tree))
                check(found, f"slot {rule}.{slot} is not found")
    close(marked.hyperparams, state.hyperparams, "hyperparameters are taken for parameters")


def is_a_value(tx: Transformation[Any]) -> None:
    """equal, hashable, copied, pickled, rebuilt by its repr, an argument of jit, static or not"""
    check(copy.deepcopy(tx) == tx, "a copy differs")
    check(hash(copy.copy(tx)) == hash(tx), "the hash of a copy differs")
    check(gx.chain(tx) == gx.chain(gx.chain(), tx, gx.chain()), "a chain with empty chains differs")
    if "<" not in repr(tx):  # no schedule and no optax transformation in it
        names = dict(_classes(Transformation)) | vars(gx) | {type(rule).__name__: type(rule) for rule in tx.rules}
        check(eval(repr(tx), names) == tx, f"its repr makes another: {tx!r}")
        importable = all("<locals>" not in type(rule).__qualname__ for rule in tx.rules)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1 if importable else 0):
            check(pickle.loads(pickle.dumps(tx, protocol)) == tx, f"unpickled it differs (protocol {protocol})")
    p = params()
    static = jax.jit(lambda tx, g, s: tx.update(g, s, g)[0], static_argnums=0)
    argument = jax.jit(lambda tx, g, s: tx.update(g, s, g)[0])
    close(static(tx, p, tx.init(p)), argument(copy.copy(tx), p, tx.init(p)), "as an argument of jit it differs")


def _classes(cls: type) -> Iterator[tuple[str, type]]:
    for derived in cls.__subclasses__():
        yield derived.__name__, derived
        yield from _classes(derived)


def shows_itself(tx: Transformation[Any]) -> None:
    """an equation for each rule; str, repr, describe within the terminal or 80 columns, and tables for notebooks"""
    for rule in tx.rules:
        words = r'write equation = r"u \leftarrow ..." in its class'
        check(bool(rule.equation), f"rule {rule.name or rule.label!r} does not say what it does: {words}")
    described = gx.describe(tx, params())
    for text in (str(tx), repr(tx), tx._repr_markdown_(), described._repr_markdown_()):
        check(isinstance(text, str) and bool(text), f"it shows itself as {text!r}")
    wide = [one for one in str(described).splitlines() if width(one) > columns()]
    check(not wide, f"describe does not fit {columns()} columns: {wide[:1]}")


def is_odd(tx: Transformation[Any]) -> None:
    """the opposite gradients and parameters give the opposite updates, to the last bit"""
    opposite, _ = _steps(tx, jax.tree.map(jnp.negative, params()))
    close(opposite, jax.tree.map(jnp.negative, _steps(tx, params())[0]), "f(−g, −p) is not −f(g, p)")


def turns_with_the_gradient(tx: Transformation[Any]) -> str | None:
    """complex gradients and parameters times a phase give updates times that phase"""
    if _real_only(tx):
        return NOT_COMPLEX
    turn, p = np.exp(0.7j), {"w": normal(3, 2, dtype="complex64")}
    expected = jax.tree.map(lambda u: (turn * u).astype(u.dtype), _steps(tx, p)[0])
    turned, _ = _steps(tx, jax.tree.map(lambda x: (turn * x).astype(x.dtype), p))
    close(turned, expected, "f(zg, zp) is not z·f(g, p) for |z| = 1", rtol=1e-5, atol=1e-6)


def _has_formats(tx: Transformation[Any]) -> bool:
    """True if a rule says what its slots are stored in."""
    return any(rule.state_dtype is not None for rule in tx.rules)


def stores_slots_as_told(tx: Transformation[Any]) -> str | None:
    """state_dtype="bfloat16" stores slots so, and arithmetic stays in float32"""
    if _has_formats(tx):
        return "slots have formats of their own"
    p, narrow = params(), gx.chain(tx, state_dtype="bfloat16")
    state = narrow.init(p)
    for rule, kinds in narrow._engine.layout.slots.items():
        for slot, kind in kinds.items():
            if kind.of_leaf:
                dtypes = {str(x.dtype) for x in jax.tree.leaves(state.slots[rule][slot])}
                check(dtypes == {"bfloat16"}, f"slot {rule}.{slot} is stored in {', '.join(dtypes)}")
    updates, after = _steps(narrow, p)
    same_types(after, state, "state")
    close(updates, _steps(tx, p)[0], "updates", rtol=3e-2, atol=1e-4)
    return None


def runs_in_every_executor(tx: Transformation[Any]) -> str | None:
    """the compiled kernel gives what the reference gives, within 4 ulp a step"""
    if not gx.native.available():
        return str(gx.native.available())

    def tree(seed: int) -> dict[str, jax.Array]:
        shapes = {"matrix": (7, 130), "vector": (300,), "scalar": (), "none": (0, 3)}
        return {name: normal(*shape, seed=seed) for name, shape in shapes.items()}

    def trajectory(executor: Any) -> Any:
        with gx.executor(executor):
            step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s))
            p = tree(0)
            state = tx.init(p)
            for k in range(3):
                p, state = step(p, tree(k + 1), state)
        return p, state

    ours, theirs = trajectory("native"), trajectory("reference")
    close(ours, theirs, "kernel and reference differ", rtol=12 * 2**-23, atol=12 * 2**-23)
    same_types(ours, theirs, "kernel and reference")


ORDERED: tuple[Property, ...] = (
    is_an_optax_transformation,
    takes_any_tree,
    keeps_its_types,
    takes_weak_types_for_what_they_say,
    computes_in_float32,
    does_nothing_at_zero,
    stays_finite,
    compiles_once,
    donates_and_branches,
    scans_as_it_loops,
    sweeps_by_vmap,
    has_one_clock,
    knows_no_other_values,
    shows_what_is_like_the_parameters,
    is_a_value,
    shows_itself,
    is_odd,
    turns_with_the_gradient,
    stores_slots_as_told,
    says_what_it_holds,
    runs_in_every_executor,
    works_in_shard_map,
    works_on_explicit_meshes,
    keeps_to_strict_types,
    works_under_guards,
    leaks_no_tracers,
)
