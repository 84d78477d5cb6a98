"""The contract, of types: trees and dtypes that come in and go out, the transformation as a value that shows itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx as gx
from gradtx._core.codecs import is_encoded
from gradtx._engine.transformation import Transformation
from gradtx._inspect.tables import columns, width
from gradtx.testing._compare import check, close, finite, same_types
from gradtx.testing._examples import DTYPES, params, trees
from gradtx.testing._runs import STEPS, has_formats, is_real_only, slots_of_arrays, stepped, updated


def is_an_optax_transformation(tx: Transformation[Any]) -> None:
    """init and update, alone, with extra arguments, and inside optax.chain"""
    check(isinstance(tx, optax.GradientTransformationExtraArgs), "no GradientTransformationExtraArgs")
    init, update = tx
    p = params()
    state = init(p)
    expected = updated(tx, p, tx.init(p), p)
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
    updates, state = stepped(tx, trees())  # numbers, in one compilation, for all of them in one tree
    same_types(updates, trees(), "updates")
    finite((updates, state), f"after {STEPS} steps")


def keeps_its_types(tx: Transformation[Any]) -> None:
    """structure, shapes and dtypes of state and updates, for parameters and gradients of ten pairs of dtypes"""
    for dtype in DTYPES:
        if dtype != "complex64" or not is_real_only(tx):
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
    for x in [] if has_formats(tx) else jax.tree.leaves(slots_of_arrays(tx, state)):
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


def has_one_clock(tx: Transformation[Any]) -> None:
    """count is the only integer in the state; it saturates, and the last steps that it counts are like any other"""
    p, most = params(), np.iinfo(np.int32).max
    state = tx.init(p)
    check(state.count.dtype == jnp.int32, f"count is {state.count.dtype}")
    for x in jax.tree.leaves(slots_of_arrays(tx, state), is_leaf=is_encoded):  # codes stand for numbers
        check(not jnp.issubdtype(x.dtype, jnp.integer), "a slot holds integers: is it another clock?")
    updates, after = updated(tx, p, state._replace(count=jnp.array(most, jnp.int32)), p)
    check(int(after.count) == most, "count overflows")
    before, _ = updated(tx, p, state._replace(count=jnp.array(most - 1, jnp.int32)), p)
    largest = max((float(abs(x).max()) for x in jax.tree.leaves(before)), default=0.0)  # 1/count is as small as that
    close(updates, before, "the step at the last count differs from the one before", rtol=1e-5, atol=1e-6 * largest)


def shows_what_is_like_the_parameters(tx: Transformation[Any]) -> None:
    """optax's tree_map_params finds the slots that are like the parameters"""
    p = params()
    state = tx.init(p)
    marked: Any = optax.tree_utils.tree_map_params(tx, lambda x: jnp.full_like(x, 7.0), state)
    check(jax.tree.structure(marked) == jax.tree.structure(state), "the state's structure changes")
    for rule, slots in marked.slots.items():
        for slot, tree in slots.items():
            if jax.tree.structure(tree) == jax.tree.structure(p):
                is_marked = all(bool((x == 7.0).all()) for x in jax.tree.leaves(tree))
                check(is_marked, f"slot {rule}.{slot} is not found")
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
        check(bool(rule.equation), f"rule {rule.title!r} does not say what it does: {words}")
    described = gx.describe(tx, params())
    for text in (str(tx), repr(tx), tx._repr_markdown_(), described._repr_markdown_()):
        check(isinstance(text, str) and bool(text), f"it shows itself as {text!r}")
    too_wide = [line for line in str(described).splitlines() if width(line) > columns()]
    check(not too_wide, f"describe does not fit {columns()} columns: {too_wide[:1]}")
