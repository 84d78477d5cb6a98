"""The native kernel against its reference: the same function under jit."""

import functools
import hashlib
import importlib.machinery
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import native
from gradtx._core.numerics import abs_sq, norms, safe_divide, safe_sqrt
from gradtx._engine.backends import NATIVE
from gradtx.native import _library
from gradtx.native._compiler import compile_jaxpr
from gradtx.native._leaves import map_leaves as map_and_reduce, sum_each, sum_leaves
from gradtx.native._selection import FUSED
from gradtx.native._slots import WORDS
from gradtx.native._views import View, as_array, join, split

built = pytest.mark.skipif(not native.available(), reason=f"compares the compiled kernel: {native.available()}")

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, 1e-30, -1e30, np.inf, -np.inf, np.nan, 3e38, 1e-37]
SHAPES = [(), (0,), (1,), (5,), (1024,), (1025,), (3, 7, 11), (70_001,)]


def map_leaves(*args, **kwargs):
    return map_and_reduce(*args, **kwargs)[0]


def data(shape, dtype=jnp.float32, seed=0, positive=False):
    x = np.random.default_rng(seed).normal(size=shape) * 2
    return jnp.asarray(np.abs(x) + 0.1 if positive else x, dtype)


def special(dtype=jnp.float32):
    """All pairs of special numbers, as two arrays."""
    x, y = np.meshgrid(SPECIAL, SPECIAL)
    with np.errstate(over="ignore"):
        return jnp.asarray(x.ravel().astype(dtype)), jnp.asarray(y.ravel().astype(dtype))


def reference(fn, leaves, shared=(), local=()):
    return [fn(*arrays, *(x[i] for x in local), *shared) for i, arrays in enumerate(leaves)]


def assert_close(found, expected, ulp=4, atol=0.0, name=""):
    """Within so many units in the last place of each dtype; NaN, infinities and zeros alike (signs too)."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        eps = float(jnp.finfo(x.dtype).eps)
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=ulp * eps, atol=atol, err_msg=name)
        if not atol:
            zero = (x == 0) & (y == 0)
            np.testing.assert_array_equal(np.signbit(x[zero]), np.signbit(y[zero]), err_msg=name)


def check_each(functions, leaves, shared=(), local=(), aliases=None, ulp=4, atol=lambda name: 0.0):
    """The kernel does each of them, and gives what the reference gives. One program for all, to compile once."""
    for name, fn in functions.items():
        assert native.supports(fn, leaves[0], len(shared) + len(local)) is None, name
    found = jax.jit(lambda *a: {name: map_leaves(fn, *a, aliases=aliases) for name, fn in functions.items()})
    expected = jax.jit(lambda *args: {name: reference(fn, *args) for name, fn in functions.items()})
    args = (leaves, shared, local)
    assert found.lower(*args).as_text().count("gradtx_native_map") >= len(functions)
    theirs = expected(*args)
    for name, ours in found(*args).items():
        assert_close(ours, theirs[name], ulp, atol(name), name)


def check(fn, leaves, shared=(), local=(), aliases=None, ulp=4, atol=0.0):
    check_each({"": fn}, leaves, shared, local, aliases, ulp, lambda name: atol)


def adam(p, m, v, g, rate, b1=0.9, b2=0.999, eps=1e-8):
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * jnp.square(g)
    return p - rate * safe_divide(m / 0.5, safe_sqrt(v / 0.25) + eps), m, v


def adam_leaves(shapes, dtype=jnp.float32):
    return [tuple(data(s, dtype, i + 4 * n, positive=i == 2) for i in range(4)) for n, s in enumerate(shapes)]


UNARY = {
    "neg": lambda x: -x,
    "abs": jnp.abs,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "sign": jnp.sign,
    "square": jnp.square,
    "cube": lambda x: x**3,
    "inverse": lambda x: x**-2,
    "zeroth": lambda x: lax.integer_pow(x, 0),
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "is_finite": lambda x: jnp.where(jnp.isfinite(x), x, 0),
    "isnan": lambda x: jnp.where(jnp.isnan(x), 1, x),
    "stop_gradient": lax.stop_gradient,
    "copy": jnp.copy,
    "relu": jax.nn.relu,
    "clip": lambda x: jnp.clip(x, -1, 1),
    "clamp": lambda x: lax.clamp(jnp.asarray(-1, x.dtype), x, jnp.asarray(2, x.dtype)),
    "logic": lambda x: jnp.where((x > 1) | ~(x > -1) ^ (x == 0) & (x != 2), x, -x),
    "truth": lambda x: (x > 0).astype(x.dtype) + jnp.where(x > 1, x > 2, x < -2).astype(x.dtype),
    "as truth": lambda x: jnp.where(x.astype(bool), x, 5),
    "constant": lambda x: jnp.full_like(x, 3) * 2,
    "safe_sqrt": safe_sqrt,
    "jit": jax.jit(lambda x: x * 2 + 1),
    "checkpoint": jax.checkpoint(lambda x: x * 3),  # pyright: ignore[reportPrivateImportUsage] - public
}
BINARY = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "eq": lambda x, y: jnp.where(x == y, x, 7),
    "ne": lambda x, y: jnp.where(x != y, x, 7),
    "lt": lambda x, y: jnp.where(x < y, x, 7),
    "le": lambda x, y: jnp.where(x <= y, x, 7),
    "gt": lambda x, y: jnp.where(x > y, x, 7),
    "ge": lambda x, y: jnp.where(x >= y, x, 7),
    "safe_divide": safe_divide,
    "mix": lambda x, y: 0.9 * x + 0.1 * y,
    "mix squares": lambda x, y: 0.9 * x + 0.1 * y * y,
    "x*y - x": lambda x, y: x * y - x,
    "x - x*y": lambda x, y: x - x * y,
    "2 - x*y": lambda x, y: 2 - x * y,
    "x - 2*y": lambda x, y: x - 2 * y,
    "sum of products": lambda x, y: x * y + y * y,
}


@built
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16])
def test_functions_of_one_number(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        tuples = {name: lambda x, fn=fn: (fn(x),) for name, fn in UNARY.items()}
        check_each(tuples, [(data(3000, dtype),), (data(7, dtype, 1),), (special(dtype)[0],)])


@built
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16])
def test_functions_of_two_numbers(dtype):
    def may_cancel(name):
        return "y" in name or "mix" in name or "sum" in name

    def atol(name):
        low = 2e-2 if dtype in (jnp.bfloat16, jnp.float16) else 0.0
        return max(low, 1e-5) if may_cancel(name) else low  # a difference is rounded once or twice

    with jax.enable_x64(dtype == jnp.float64):
        exact = {name: lambda x, y, fn=fn: (fn(x, y),) for name, fn in BINARY.items() if not may_cancel(name)}
        check_each(exact, [special(dtype)])
        both = {name: lambda x, y, fn=fn: (fn(x, y), fn(y, x)) for name, fn in BINARY.items()}
        x, y = data(3000, dtype), data(3000, dtype, 1)
        check_each(both, [(x, y)], atol=atol)
        scalar = jnp.asarray(0.7, dtype)  # each operand as a scalar: the kernel has a variant, or spreads it
        check_each(both, [(x,)], [scalar], atol=atol)


@built
@pytest.mark.parametrize("shapes", [*([s] for s in SHAPES), SHAPES, [(9,)] * 150])
def test_shapes(shapes):
    rate = jnp.float32(1e-2)
    check(adam, adam_leaves(shapes), [rate], aliases={0: 0, 1: 1, 2: 2}, atol=1e-6)


@built
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 2, 1, 3, 4), (0, 1, 2, 3)])
def test_views_of_flat_arrays(order):
    """Where they are all there and in order they stay in their flat arrays; the results are the same to the bit."""
    shapes, rate = [(5,), (3, 341), (0, 2), (), (3000,)], [jnp.float32(0.1)]
    leaves = adam_leaves(shapes)
    flat = [jnp.concatenate([leaf[a].ravel() for leaf in leaves]) for a in (1, 2)]

    def run(leaves, flat):
        columns = [split(x, shapes) for x in flat]
        rows = [(leaves[i][0], columns[0][i], columns[1][i], leaves[i][3]) for i in order]
        out = map_leaves(adam, [*rows, leaves[0]], rate, aliases={0: 0, 1: 1, 2: 2})
        whole = [isinstance(x, View) for leaf in out[:-1] for x in leaf]
        assert whole == [a > 0 and order == (0, 1, 2, 3, 4) for _ in order for a in range(3)]
        return [tuple(map(as_array, leaf)) for leaf in out]

    found = jax.jit(run)(leaves, flat)
    expected = jax.jit(lambda x: map_leaves(adam, x, rate))([*(leaves[i] for i in order), leaves[0]])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    batched = jax.vmap(run, in_axes=(None, 0))(leaves, [jnp.stack([x, x]) for x in flat])
    assert_close(jax.tree.map(lambda x: x[1], batched), expected, atol=1e-6)


@built
@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_mixed_storage(stored):
    """Parameters in one precision, moments in another, arithmetic in float32."""

    def step(p, m, v, g, rate):
        p, m, v = adam(p.astype(jnp.float32), m.astype(jnp.float32), v, g.astype(jnp.float32), rate)
        return p.astype(jnp.bfloat16), m.astype(stored), v

    dtypes = (jnp.bfloat16, stored, jnp.float32, jnp.float16)
    leaves = [tuple(data(s, d, i, i == 2) for i, d in enumerate(dtypes)) for s in [(5000,), (3, 3)]]
    check(step, leaves, [jnp.float32(0.1)], aliases={0: 0, 1: 1, 2: 2}, atol=1e-6)


@built
def test_float32_leaves_with_float64_scalars():
    with jax.enable_x64(True):
        leaf = (data(3000), data(3000, seed=1))
        check(lambda x, y, s: ((x * s + y).astype(x.dtype), x * s), [leaf], [jnp.asarray(np.pi)], atol=1e-6)


@built
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_to_nearest_even_exactly(dtype):
    bits = np.arange(2**16, dtype=np.uint16).view(dtype)
    up = jax.jit(lambda x: map_leaves(lambda x: (x.astype(jnp.float32),), [(x,)])[0][0])(jnp.asarray(bits))
    want = jnp.asarray(bits).astype(jnp.float32)
    np.testing.assert_array_equal(np.asarray(up), np.asarray(want))
    # Halfway between neighbours, and a little off on either side.
    with np.errstate(all="ignore"):
        base = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
        base[::3] = (base[::3] & ~np.uint32(0x1FFF)) | 0x1000
        base[1::3] = (base[1::3] & ~np.uint32(0xFFFF)) | 0x8000
        x = base.view(np.float32)
    x = x[(np.abs(x) > 1e-37) | ~np.isfinite(x)]  # XLA flushes subnormal float32
    down = jax.jit(lambda x: map_leaves(lambda x: (x.astype(dtype),), [(x,)])[0][0])(jnp.asarray(x))
    want = jnp.asarray(x).astype(dtype)
    np.testing.assert_array_equal(np.asarray(down, np.float32), np.asarray(want, np.float32))


@built
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_subnormal_numbers_are_zero_as_in_xla(dtype):
    """Numbers that are computed or chosen by a comparison are flushed; copies, and those chosen by a mask, are not."""
    with jax.enable_x64(dtype == jnp.float64):
        small = np.finfo(dtype).tiny / 4
        x = jnp.asarray([small, -small, 1, -1, 0, -0.0], dtype)
        if dtype == jnp.float32:
            check(lambda x: (x * 1e-10, x * 1e10), [(x,)])
        least = jnp.asarray(small, dtype)
        cases = {
            "clip": (lambda x, s: jnp.clip(x, -s, s), [0, -0.0, 0, -0.0, 0, -0.0]),
            "max": (lambda x, s: jnp.maximum(x, -s), [0, -0.0, 1, -0.0, 0, -0.0]),
            "min": (lambda x, s: jnp.minimum(x, s), [0, -0.0, 0, -1, 0, -0.0]),
            "clipped by hand": (lambda x, s: jnp.where(x > s, s, x), [0, -0.0, 0, -1, 0, -0.0]),
            "positive part": (lambda x, s: jnp.where(x > 0, x, 0), [0, 0, 1, 0, 0, 0]),
            "sign": (lambda x, s: jnp.sign(x), [0, -0.0, 1, -1, 0, -0.0]),
            "test": (lambda x, s: jnp.where((x == 0) & (s == 0), 1.0, 0.0).astype(dtype), [1, 1, 0, 0, 1, 1]),
            "as they are": (lambda x, s: jnp.where(x + 1 > 1.5, 0, -jnp.abs(x)), [-small, -small, 0, -1, -0.0, -0.0]),
            "a constant": (lambda x, s: jnp.full_like(x, small), np.full(6, small)),
        }
        functions = {name: lambda x, s, f=f: (f(x, s),) for name, (f, _) in cases.items()}
        run = jax.jit(lambda x, s: {name: map_leaves(fn, [(x,)], [s]) for name, fn in functions.items()})
        for name, ((found,),) in run(x, least).items():
            expected = np.asarray(cases[name][1], dtype)
            np.testing.assert_array_equal(np.asarray(found), expected, err_msg=name)
            np.testing.assert_array_equal(np.signbit(found), np.signbit(expected), err_msg=name)


@built
def test_a_subnormal_limit_clips_to_zero():
    import gradtx as gx

    with gx.executor("native"):
        tx, ones = gx.clip_by_value(1e-38), jnp.ones(3)
        updates, _ = jax.jit(tx.update)(ones, tx.init(ones))
    np.testing.assert_array_equal(updates, np.zeros(3))


@built
def test_huge_and_tiny_divisors():
    x = jnp.asarray(np.array([1e-38, 1.0, 1e38, -3e38, np.inf, np.nan, 0], np.float32))
    # Not beyond 2**126: there some versions of XLA divide, and some multiply by a reciprocal that is flushed to zero.
    for divisor in (8e37, -1e37, 1e-38, 2e-38, 1e-40, 0.0, -0.0, np.inf, np.nan):
        check(lambda x, s: (x / s,), [(x,)], [jnp.float32(divisor)])


@built
def test_scalars_of_leaves_and_scalars_of_all():
    leaves = [(data(n),) for n in (10, 3000, 1)]
    local = [[jnp.float32(i) for i in range(3)], [jnp.int32(i) for i in range(3)]]

    def fn(x, a, i, b):
        return (jnp.where(i == 1, a * x, b + x) + (i + 1) * a,)

    check(fn, leaves, [jnp.float32(5)], local, atol=1e-6)


@built
def test_functions_may_depend_on_shape_and_close_over_tracers():
    leaves = [(data((4, 5)),), (data(6),), (data(7),)]

    @jax.jit
    def both(leaves, rate):
        def fn(x):
            return (x * rate / x.size if x.ndim > 1 else x - rate,)

        return map_leaves(fn, leaves), reference(fn, leaves)

    assert_close(*both(leaves, jnp.float32(0.3)))


def trees(names):
    leaf = st.sampled_from(names)
    unary = ["neg", "abs", "square", "safe_sqrt", "sign", "relu", "clip", "cube", "isnan", "truth"]
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(unary), inner),
            st.tuples(
                st.sampled_from(["add", "sub", "mul", "max", "min", "lt", "eq", "safe_divide", "mix"]), inner, inner
            ),
        ),
        max_leaves=12,
    )


def evaluate(tree, values):
    if isinstance(tree, str):
        return values[tree]
    name, *args = tree
    return (UNARY | BINARY)[name](*(evaluate(arg, values) for arg in args))


@built
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")  # where there is no output for them
@hypothesis.given(st.lists(trees(["x", "y", "z", "s", "1"]), min_size=1, max_size=4), st.data())
def test_random_expressions(expressions, data_):
    """Whatever is shared, fused, overwritten in place or swapped: on small integers arithmetic is exact."""
    aliases = {}
    for output in range(min(3, len(expressions))):
        array = data_.draw(st.sampled_from([0, 1, 2, None]))
        if array is not None and array not in aliases:
            aliases[array] = output

    def fn(x, y, z, s):
        values = {"x": x, "y": y, "z": z, "s": s, "1": jnp.ones_like(x)}
        return tuple(jnp.broadcast_to(evaluate(tree, values), x.shape) for tree in expressions)

    rng = np.random.default_rng(0)
    leaf = tuple(jnp.asarray(rng.integers(-3, 4, 1500).astype(np.float32)) for _ in range(3))
    s = jnp.float32(2)
    found = jax.jit(lambda leaf, s: map_leaves(fn, [leaf], [s], aliases=aliases)[0], donate_argnums=0)
    expected = jax.jit(fn)(*leaf, s)
    for x, y in zip(found(jax.tree.map(jnp.copy, leaf), s), expected, strict=True):
        scale = np.maximum(np.abs(np.asarray(y)), 1)
        np.testing.assert_allclose(np.asarray(x) / scale, np.asarray(y) / scale, rtol=1e-5, atol=1e-4)


ALONE = {
    "muladd": lambda x, y, z, w, s: x * y + z,
    "mulsub": lambda x, y, z, w, s: x * y - z,
    "submul": lambda x, y, z, w, s: z - x * y,
    "mulmuladd": lambda x, y, z, w, s: x * y + s * w,
    "mulsqadd": lambda x, y, z, w, s: s * x + y * jnp.square(z),
    "sqrtadd": lambda x, y, z, w, s: safe_sqrt(x) + s,
    "muladdsqrtadd": lambda x, y, z, w, s: jnp.sqrt(s * x + 2) + 3,
    "safediv": lambda x, y, z, w, s: safe_divide(x, y),
    "mulsafediv": lambda x, y, z, w, s: safe_divide(s * x, y),
    "muldiv": lambda x, y, z, w, s: s * x / y,
    "lesser": lambda x, y, z, w, s: jnp.where(x < s, x, s),
    "mul": lambda x, y, z, w, s: abs_sq(x),
}


@built
def test_what_is_one_instruction():
    """Each pattern, and what is simplified to one; Adam is six, with one block beside its arrays."""
    ops = native.available().ops
    names = {op.code: name for name, op in ops.items()}

    def instructions(fn, arrays, aliases=None, reduces=()):
        closed = jax.make_jaxpr(fn)(*[data(3)] * arrays, jnp.float32(2))
        program = compile_jaxpr(closed.jaxpr, arrays, ops, aliases or {}, reduces)
        return [names[code] for code in program.code[::WORDS]], program.temporaries

    for name, fn in ALONE.items():
        assert instructions(fn, 4) == ([name], 0), name
    assert {*ALONE} >= {op for op, _, _ in FUSED}
    assert instructions(lambda x, s: abs_sq(x), 1, reduces=["sum"]) == (["sumprod"], 0)
    assert instructions(lambda x, s: 0 * x, 1, reduces=["sum"]) == (["nought"], 0)
    assert instructions(lambda x, s: x, 1, reduces=["norm"]) == (["norm"], 0)
    found, temporaries = instructions(adam, 4, {0: 0, 1: 1, 2: 2})
    assert (len(found), temporaries) == (6, 1), found


@built
def test_in_place_without_temporaries():
    leaves = adam_leaves([(1 << 18,), (1000,)])
    state, grads = [x[:3] for x in leaves], [x[3] for x in leaves]

    def step(state, grads, rate):
        both = [(*s, g) for s, g in zip(state, grads, strict=True)]
        return map_leaves(adam, both, [rate], aliases={0: 0, 1: 1, 2: 2})

    expected = jax.jit(lambda leaves, rate: reference(adam, leaves, [rate]))(leaves, jnp.float32(0.1))
    compiled = jax.jit(step, donate_argnums=0).lower(state, grads, jnp.float32(0.1)).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * 4 * (1 << 18)  # pyright: ignore[reportOptionalMemberAccess] - CPU has it
    assert memory.temp_size_in_bytes < 1 << 16  # pyright: ignore[reportOptionalMemberAccess]
    assert_close(compiled(state, grads, jnp.float32(0.1)), expected, atol=1e-6)


@built
def test_swapped_in_place_and_the_same_array_twice():
    x, y = data(5000), data(5000, seed=1)

    def swap(x, y):
        return y, x, x + y, x + y

    found = jax.jit(lambda x, y: map_leaves(swap, [(x, y)], aliases={0: 0, 1: 1}), donate_argnums=(0, 1))
    assert_close(found(jnp.copy(x), jnp.copy(y)), [swap(x, y)])
    for dtype in (jnp.bfloat16, jnp.float16):
        halves = x.astype(dtype), y.astype(dtype)
        check(lambda x, y: (y, x, x), [halves], aliases={0: 0, 1: 1})
    check(lambda x, y: (x - y, y), [(x, x)], aliases={0: 0, 1: 1})
    check(lambda p, u: ((p + u).astype(p.dtype), p), [(x.astype(jnp.bfloat16), y)], aliases={0: 0})


@pytest.mark.parametrize("leaves", [[(data(50), data(50, seed=1))], [(data(()), data((), seed=1)), (data(3), data(3))]])
def test_transformations_agree_with_the_reference(leaves):
    def fn(x, y, s):
        return x * (y / jnp.sqrt(1 + y**2)) + s * x**2, y * s

    def total(run, leaves, s):
        return sum(jnp.sum(jnp.sin(out)) for leaf in run(fn, leaves, [s]) for out in leaf)

    def agree(of, *args, atol=1e-6):
        found, expected = (jax.jit(of(run))(*args) for run in (map_leaves, reference))
        assert_close(found, expected, ulp=16, atol=atol)

    def derivative(run):
        return lambda x: jax.jvp(lambda x: run(fn, x, [s]), (x,), (jax.tree.map(jnp.ones_like, x),))

    s = jnp.float32(0.3)
    for order in (lambda f: f, jax.grad, lambda f: jax.hessian(f, 1), lambda f: jax.grad(jax.grad(f, 1), 1)):
        agree(lambda run, order=order: order(functools.partial(total, run)), leaves, s, atol=1e-5)
    agree(derivative, leaves)
    assert_close(derivative(map_leaves)(leaves), jax.jit(derivative(reference))(leaves), ulp=16, atol=1e-6)
    agree(lambda run: jax.vmap(lambda s: run(fn, leaves, [s])), jnp.linspace(0, 1, 4))
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), leaves)
    agree(lambda run: jax.vmap(jax.grad(functools.partial(total, run)), (0, None)), batch, s, atol=1e-5)


def test_control_flow_and_eager():
    leaves, rate = adam_leaves([(40,), (3, 3)]), jnp.float32(0.1)

    def repeat(step):
        state = leaves
        for _ in range(5):
            state = step(state)
        return state

    def step(run, leaves):
        return [(*out, leaf[3]) for out, leaf in zip(run(adam, leaves, [rate]), leaves, strict=True)]

    native_step = functools.partial(step, functools.partial(map_leaves, aliases={0: 0, 1: 1, 2: 2}))
    expected = repeat(functools.partial(step, reference))
    eager = repeat(native_step)
    scanned, _ = jax.jit(lambda x: lax.scan(lambda x, _: (native_step(x), None), x, length=5))(leaves)
    looped = lax.fori_loop(0, 5, lambda _, x: native_step(x), leaves)
    chosen = jax.jit(lambda n, x: lax.cond(n > 0, native_step, lambda x: x, x))(1, leaves)
    remat = jax.jit(jax.checkpoint(native_step))(leaves)  # pyright: ignore[reportPrivateImportUsage] - public
    for found in (eager, scanned, looped):
        assert_close(found, expected, ulp=64, atol=1e-5)
    for found in (chosen, remat):
        assert_close(found, step(reference, leaves), ulp=16, atol=1e-6)
    assert jax.eval_shape(native_step, leaves) == jax.eval_shape(lambda x: x, leaves)


def test_eager_calls_compile_once():
    x = data(10)
    for s in range(3):  # a new function each time, the same program

        def fn(x, s):
            return (x * s + 1,)

        map_leaves(fn, [(x,)], [jnp.float32(s)])
        if s == 0 and native.available():
            from gradtx.native._primitive import _run

            compiled = _run._cache_size()  # pyright: ignore[reportAttributeAccessIssue] - of jit
    if native.available():
        assert _run._cache_size() == compiled  # pyright: ignore[reportAttributeAccessIssue]


def test_with_jit_disabled():
    leaves = adam_leaves([(10,)])
    with jax.disable_jit():
        found = map_leaves(adam, leaves, [jnp.float32(0.1)])
    assert_close(found, reference(adam, leaves, [jnp.float32(0.1)]), atol=1e-6)


@built
def test_an_output_that_is_there_already_is_not_written():
    def step(p, g, v, s):
        v = 0.5 * v + g * g
        return g, v, v, p - g, p, v  # an array as it came, a slot and twice the same, one over another, a second slot

    def calls(when=None):
        run = lambda leaves: map_leaves(step, leaves, aliases={2: 2, 0: 3, 3: 5}, when=when)  # noqa: E731
        equations = jax.make_jaxpr(run)(leaves).eqns
        return run, [len(eqn.outvars) for eqn in equations if eqn.primitive.name == "elementwise_leaves"]

    leaves = [tuple(data(shape, seed=seed) for seed in range(4)) for shape in ((5,), (70_001,))]
    run, written = calls()
    assert written == [4 * len(leaves)]  # of six
    assert calls(jnp.array(True))[1] == [6 * len(leaves)]  # where nothing happens, a direction is 0
    before = [[np.asarray(x, np.float64) for x in leaf] for leaf in leaves]
    found = jax.jit(run, donate_argnums=0)(leaves)
    for outputs, (p, g, v, _) in zip(found, before, strict=True):
        v = 0.5 * v + g * g
        for output, expected in zip(outputs, (g, v, v, p - g, p, v), strict=True):
            np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-6)


@built
def test_functions_that_change_nothing():
    x = data((5,))
    run = jax.jit(lambda x: map_leaves(lambda x: (x, x), [(x,)], aliases={0: 0})[0])
    assert [a.tolist() for a in run(x)] == [x.tolist()] * 2
    assert "elementwise_leaves" not in str(jax.make_jaxpr(run)(x))


def test_aliases_of_another_dtype_are_no_aliases():
    x = data(10)
    (found,) = map_leaves(lambda x: (x.astype(jnp.bfloat16), x + 1), [(x,)], aliases={0: 0})
    assert_close(found, (x.astype(jnp.bfloat16), x + 1))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (jnp.cumsum(x),),
        lambda x: (x[::-1],),
        lambda x: (x / jnp.sum(x),),
        lambda x: (lax.erf_inv(x),),
        lambda x: (jnp.tanh(x),),
        lambda x: (x**0.37,),
    ],
)
def test_what_the_kernel_does_not_know_is_left_to_jax(fn):
    leaf = (data(20, positive=True) / 20,)
    assert native.supports(fn, leaf, 0)
    assert_close(jax.jit(lambda x: map_leaves(fn, [x]))(leaf), [jax.jit(fn)(*leaf)])
    assert_close(map_leaves(fn, [leaf, leaf]), [fn(*leaf)] * 2)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_other_dtypes_are_left_to_jax(dtype):
    x = jnp.asarray([1, 0, 1], dtype)
    assert native.supports(lambda x: (x,), [x], 0)
    (found,) = map_leaves(lambda x: (x, x.astype(jnp.complex64)), [(x,)])
    np.testing.assert_array_equal(found[0], x)


def test_sums():
    leaves = [(data(s, seed=i), data(s, seed=i + 50)) for i, s in enumerate([*SHAPES, *[(33,)] * 100])]
    found = jax.jit(lambda x: sum_leaves(lambda x, y, s: s * x * y, x, [jnp.float32(3)]))(leaves)
    exact = sum(3 * np.sum(np.float64(x) * np.float64(y)) for x, y in leaves)
    size = sum(3 * np.sum(np.abs(np.float64(x) * np.float64(y))) for x, y in leaves)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=1e-6 * size)
    gradient = jax.grad(lambda x: sum_leaves(lambda x, y: x * y, x))(leaves)
    assert_close([x for x, _ in gradient], [y for _, y in leaves])
    assert sum_leaves(jnp.square, []) == 0
    halves = sum_leaves(lambda x: jnp.square(x.astype(jnp.float32)), [(data(100, jnp.bfloat16),)])
    assert halves.dtype == jnp.float32
    few = data(5, jnp.bfloat16)
    assert_close(sum_leaves(jnp.square, [(few,)]), jnp.sum(jnp.square(few).astype(jnp.float32)))
    assert sum_leaves(lambda x: jnp.full_like(x, 2), [(data(5),)]) == 10
    np.testing.assert_allclose(sum_leaves(lambda x: x, [(data(70_001),)]), np.sum(np.float64(data(70_001))), 1e-5)


def test_the_sum_of_each_leaf():
    """Whatever leaves share a program, and in the order in which they are given."""
    sizes = [*(3, 1030, 0, 1, 40_000), *[7] * 90]
    leaves = [(data(n, jnp.bfloat16 if n == 1030 else jnp.float32, i),) for i, n in enumerate(sizes)]
    found = jax.jit(lambda x: sum_each(jnp.square, x))(leaves)
    exact = [np.sum(np.square(np.float64(x))) for (x,) in leaves]
    np.testing.assert_allclose(found, exact, rtol=1e-2)
    np.testing.assert_allclose(np.delete(found, 1), np.delete(exact, 1), rtol=1e-6)
    assert found.dtype == jnp.float32 and sum_each(jnp.square, []).shape == (0,)
    assert_close(jax.grad(lambda x: sum_each(jnp.square, x)[4])(leaves)[4], (2 * leaves[4][0],))
    both = jax.vmap(lambda x: sum_each(jnp.square, [(x,), (2 * x,)]))(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(both, [[5, 20], [25, 100]])


def reduced(rows):
    """In float64, of the arrays of each leaf: the sum, the norm and the largest."""
    rows = [np.float64(x).ravel() for x in rows]
    return {
        "sum": np.array([np.sum(x) for x in rows]),
        "norm": np.array([np.sqrt(np.sum(x * x)) for x in rows]),
        "max": np.array([np.max(np.abs(x), initial=0) for x in rows]),
    }


@pytest.mark.parametrize("run", [jax.jit, lambda f: f, lambda f: jax.jit(jax.vmap(f, in_axes=(0, None)))])
def test_a_pass_that_measures_while_it_maps(run):
    """Before and after what is overwritten in place, of some leaves in a flat array, and of one that has none."""
    shapes = [(5,), (3, 341), (0,), (), (40_000,)]
    leaves = [(data(s, seed=i), data(s, seed=i + 9)) for i, s in enumerate(shapes)]
    half = (data(70, jnp.bfloat16), data(70, jnp.bfloat16, 1))

    def fn(p, m, rate):
        m = 0.5 * m + p
        u = rate * m
        return (p - u).astype(p.dtype), m.astype(p.dtype), p, u, m, u * p

    def step(flat, leaves):
        parts = split(flat, shapes)
        rows = [*((p, part) for (p, _), part in zip(leaves, parts, strict=True)), half]
        kinds = ["norm", "sum", "max", "sum"]
        out, numbers = map_and_reduce(fn, rows, [jnp.float32(0.1)], aliases={0: 0, 1: 1}, reduces=kinds)
        return [tuple(map(as_array, leaf)) for leaf in out], numbers

    flat = jnp.concatenate([m.ravel() for _, m in leaves])
    batched = "vmap" in run.__code__.co_names
    out, numbers = run(step)(flat[None] if batched else flat, leaves)
    if batched:
        out, numbers = jax.tree.map(lambda x: x[0], (out, numbers))
    expected = [fn(*leaf, jnp.float32(0.1)) for leaf in [*leaves, half]]
    assert_close(out, [row[:2] for row in expected], ulp=8, atol=1e-2)
    assert_close(out[:-1], [row[:2] for row in expected[:-1]], atol=1e-6)
    columns = zip(*(row[2:] for row in expected), strict=True)
    for x, column, kind in zip(numbers, columns, ["norm", "sum", "max", "sum"], strict=True):
        assert (x.shape, x.dtype) == ((6,), jnp.float32)
        sizes = np.array([1e-6 * np.sum(np.abs(np.float64(y))) + 1e-7 for y in column])
        assert np.all(np.abs(x - reduced(column)[kind])[:5] <= sizes[:5]), kind
        np.testing.assert_allclose(x[5], reduced(column)[kind][5], rtol=0.02, atol=0.02)


def test_a_norm_is_of_numbers_of_any_size_and_finite_if_they_are():
    cases = [[3e30, 4e30], [3e-30, 4e-30], [2e38, 2e38], [np.inf, 1.0], [np.nan, 1.0], [0.0, 0.0], [-5.0, 12.0]]
    leaves = [(jnp.asarray(case, jnp.float32),) for case in cases]
    with np.errstate(over="ignore"):
        exact = {kind: x.astype(np.float32) for kind, x in reduced([x for (x,) in leaves]).items()}

    def measure(leaves):
        return map_and_reduce(lambda x: (x, x, x, 0 * x), leaves, reduces=["norm", "max", "sum", "sum"])[1]

    for norm, largest, total, nought in (jax.jit(measure)(leaves), jax.vmap(measure)([(x[None],) for (x,) in leaves])):
        np.testing.assert_array_equal(nought.ravel(), [0 if np.all(np.isfinite(x)) else np.nan for (x,) in leaves])
        np.testing.assert_allclose(norm.ravel(), exact["norm"], rtol=1e-6)
        np.testing.assert_array_equal(largest.ravel(), exact["max"])
        np.testing.assert_allclose(total.ravel(), exact["sum"], rtol=1e-6)
    gradients = jax.grad(lambda x: jnp.sum(measure(x)[0][:3]) + measure(x)[0][6])(leaves)
    for (found,), (x,), norm in zip(gradients, leaves, exact["norm"], strict=True):
        if np.isfinite(norm):
            np.testing.assert_allclose(found, np.asarray(x) / (norm or 1), rtol=1e-6)
    with jax.enable_x64(True):  # a norm in float64 is JAX's
        huge = (jnp.asarray([3e200, 4e200]),)
        assert native.supports(lambda x: (x,), huge, reduces=["max"]) is None or not native.available()
        assert native.supports(lambda x: (x,), huge, reduces=["norm"])
        np.testing.assert_allclose(map_and_reduce(lambda x: (x,), [huge], reduces=["norm"])[1][0], 5e200)


@built
def test_norms_of_groups_are_one_reading():
    """Each of one array, and of several, at the ends of what float32 holds."""
    total = NATIVE.total
    xs = [data(n, seed=n) for n in (3, 50, 1000)]
    run = jax.jit(lambda xs: (norms([[x] for x in xs], total), norms([xs, xs[:1]], total)))
    text = run.lower(xs).as_text()
    assert text.count("custom_call @gradtx_native_map") == 2 and "while" not in text
    for scale in (1, 1e30, 1e-30):
        scaled = [jnp.float32(scale) * x for x in xs]
        each = np.array([np.linalg.norm(np.float64(x)) for x in scaled])
        found, both = run(scaled)
        np.testing.assert_allclose(found, each, rtol=1e-6)
        np.testing.assert_allclose(np.array(both), [np.linalg.norm(each), each[0]], rtol=1e-6)


@built
def test_what_is_measured_in_the_pass_adds_no_operations_for_each_leaf():
    leaves = adam_leaves([(3,)] * 300)

    def step(leaves, reduces):
        results = lambda *x: (*adam(*x), x[0], x[3])[: 3 + len(reduces)]  # noqa: E731
        return map_and_reduce(results, leaves, [jnp.float32(0.1)], aliases={0: 0, 1: 1, 2: 2}, reduces=reduces)

    lines = [
        len(jax.jit(step, static_argnums=1).lower(leaves, r).as_text().splitlines()) for r in ((), ("norm", "sum"))
    ]
    assert lines[1] < lines[0] + 30


@built
def test_a_large_sum_is_as_exact_as_float32_can_be():
    x = jnp.full(1 << 20, 1.1, jnp.float32)
    found = sum_leaves(jnp.square, [(x,)] * 3)
    np.testing.assert_allclose(found, 3 * (1 << 20) * np.float64(np.float32(1.1)) ** 2, rtol=2e-7)
    with jax.enable_x64(True):
        y = data(100_000, jnp.float64)
        np.testing.assert_allclose(sum_leaves(jnp.square, [(y,)]), np.sum(np.square(y)), rtol=1e-14)


@built
def test_runs_repeat_to_the_bit():
    leaves, rate = adam_leaves([(300_000,), (5,), (100_000,)]), jnp.float32(0.1)
    run = jax.jit(lambda x: (map_leaves(adam, x, [rate]), sum_leaves(lambda *x: x[0], [(y[0],) for y in x])))
    first = run(leaves)
    for _ in range(5):
        jax.tree.map(np.testing.assert_array_equal, run(leaves), first)


def test_without_the_kernel(monkeypatch):
    absent = native.Availability("not built: for this test")
    monkeypatch.setattr(_library, "load", lambda: absent)
    leaves = adam_leaves([(10,), (3, 3)])
    assert not native.available()
    assert str(native.available()) == "no native kernel: not built: for this test"
    assert native.supports(lambda x: (x,), leaves[0][:1], 0) == str(absent)
    run = jax.jit(lambda x: map_leaves(adam, x, [jnp.float32(0.1)], aliases={0: 0}))
    assert "gradtx_native" not in run.lower(leaves).as_text()
    assert_close(run(leaves), jax.jit(lambda x: reference(adam, x, [jnp.float32(0.1)]))(leaves))
    np.testing.assert_allclose(sum_leaves(jnp.square, [(jnp.arange(3.0),)]), 5)


def test_a_broken_library_is_none(monkeypatch, tmp_path):
    broken = tmp_path / f"_kernel{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "_library.py"))
    _library.load.cache_clear()
    try:
        assert "not built" in str(native.available())
        broken.write_bytes(b"not a library")
        _library.load.cache_clear()
        assert "does not load" in str(native.available())
    finally:
        monkeypatch.undo()
        _library.load.cache_clear()


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Loads the kernel's file with changed bytes instead of it."""
    whole = Path(native.available().path).read_bytes()
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "_library.py"))

    def load(change):
        file = tmp_path / f"_kernel{importlib.machinery.EXTENSION_SUFFIXES[0]}"
        file.unlink(missing_ok=True)  # the one before may be mapped
        file.write_bytes(change(whole))
        _library.load.cache_clear()
        return native.available()

    yield load
    monkeypatch.undo()
    _library.load.cache_clear()


@built
def test_a_library_that_ends_too_early_is_none(library):
    """To map it would kill the process."""
    for share in (0, 1e-5, 1e-4, 1e-3, 0.01, *np.arange(0.05, 1, 0.1), 0.999, 0.99999):
        assert "does not load" in str(library(lambda whole, share=share: whole[: int(share * len(whole))])), share


@built
def test_a_library_of_another_program_format_is_none(library, monkeypatch):
    before_there_was_a_number = library(lambda whole: whole.replace(b"gradtx_native_format", b"gradtx_native_f0rm4t"))
    assert f"before 4, this gradtx has {_library.FORMAT}; build it anew" in str(before_there_was_a_number)
    monkeypatch.setattr(_library, "FORMAT", 99)
    assert "this gradtx has 99" in str(library(lambda whole: whole))


@built
def test_another_set_of_instructions_has_another_format_number():
    """A module that was compiled and kept holds numbers of instructions. Has this failed? Raise both format numbers."""
    source = (Path(native.__file__).parent / "kernel.cc").read_text()
    instructions = source.partition("// ---- Instructions")[2].partition("#define GRADTX_ENUM")[0]
    digest = hashlib.sha256("".join(instructions.split()).encode()).hexdigest()[:16]
    assert (_library.FORMAT, digest) == (9, "08760fa1bcb640d4")
    assert f"constexpr int32_t kFormat = {_library.FORMAT};" in source


@built
def test_what_was_compiled_before_runs_after_import_alone(tmp_path):
    from jax.experimental import serialize_executable

    x = data(2000)
    run = jax.jit(lambda x, s: map_leaves(lambda x, s: (x * s,), [(x,)], [s])[0][0])
    compiled = run.lower(x, jnp.float32(3)).compile()
    assert "gradtx_native" in str(compiled.as_text())
    (tmp_path / "compiled").write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
    code = f"""
        import pickle
        import gradtx, jax.numpy as jnp
        from jax.experimental import serialize_executable
        payload = pickle.load(open({str(tmp_path / "compiled")!r}, "rb"))
        print(serialize_executable.deserialize_and_load(*payload)(jnp.ones(2000), jnp.float32(3)).sum())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout.strip() == "6000.0", done.stderr[-3000:]


def test_leaves_that_do_not_fit_together_are_refused():
    x, flat = jnp.arange(3.0), jnp.arange(5.0)

    def refused(match, leaves, local=(), aliases=None):
        with pytest.raises(ValueError, match=match):
            map_leaves(lambda x, y, *s: (x + y, y), leaves, (), local, aliases)

    refused(r"leaf 1: array 1 has shape \(2,\), the first one \(3,\)", [(x, x), (x, x[:2])])
    refused(r"leaf 0: array 1 has shape \(2,\)", [(x, View(flat, 0, (2,)))])
    swapped = [(x, split(flat, [(2,), (3,)])[0]), (x[:2], split(flat, [(2,), (3,)])[1])]
    refused("leaf 0: array 1", swapped)
    refused(r"elements 3 to 6 are not in an array of \(5,\)", [(x, View(flat, 3, (3,)))])
    refused("elements -1 to 2 are not in", [(x, View(flat, -1, (3,)))])
    refused("are not in an array of", [(x, View(jnp.ones((3, 2)), 0, (3,)))])
    refused("leaf 0 has to begin with an array", [(View(flat, 0, (3,)), x)])
    refused("leaf 0 has to begin with an array", [()])
    refused("leaf 1 has 1 arrays, leaf 0 has 2", [(x, x), (x,)])
    refused("2 local scalars for 1 leaves", [(x, x)], local=[[x, x]])
    refused("aliases name array 5, and there are 2", [(x, x)], aliases={5: 0})
    refused("aliases name output 5, and there are 2", [(x, x)], aliases={0: 5})
    refused("several arrays into the memory of one output", [(x, x)], aliases={0: 0, 1: 0})
    with pytest.raises(ValueError, match="1 reductions more than outputs"):
        map_leaves(lambda x: (x,), [(x,)], reduces=["sum", "max"])
    with pytest.raises(ValueError, match="'mean' is not a valid Reduce"):
        map_leaves(lambda x: (x,), [(x,)], reduces=["mean"])
    with pytest.raises(ValueError, match="leaf 0: array 1"):
        sum_leaves(jnp.multiply, [(x, x[:2])])


@built
def test_the_kernel_refuses_what_does_not_fit():
    """Whoever calls it: here without the functions that make calls. See fuzz_kernel.py for many more."""
    copy, add = (native.available().ops[name].code for name in ("copy", "add"))
    x = jnp.arange(8.0)

    def call(
        match,
        code,
        *operands,
        result=x,
        inputs=1,
        outputs=1,
        temporaries=0,
        flat=(),
        reductions=0,
        scales=(),
        flag: Any = True,
    ):
        run = jax.ffi.ffi_call(_library.TARGET, jax.ShapeDtypeStruct(result.shape, result.dtype))
        attributes = {"code": np.asarray(code, np.int32).ravel(), "constants": np.zeros(0)}
        attributes |= {"inputs": np.int64(inputs), "outputs": np.int64(outputs), "temporaries": np.int64(temporaries)}
        attributes |= {"flat_inputs": np.asarray(flat, np.int64), "flat_outputs": np.zeros(0, np.int64)}
        attributes |= {"reductions": np.int64(reductions), "scales": np.asarray(scales, np.int64)}
        run = functools.partial(run, **attributes)
        if match is None:
            return run(jnp.zeros((1, 0)), *operands, jnp.array(flag))
        with pytest.raises(Exception, match=match):
            jax.block_until_ready(run(jnp.zeros((1, 0)), *operands, jnp.array(flag)))

    copied = [copy, 0, 0, 1, 0, 0, 0, 0]
    with jax.enable_x64(True):
        np.testing.assert_array_equal(call(None, copied, x), x)
        np.testing.assert_array_equal(call(None, copied, x, flag=False), 0 * x)
        call("the last operand is no flag", copied, x, flag=[True])
        call("the last operand is no flag", copied, x, flag=1.0)
        call("leaf 0 has arrays of 8 and of 9 elements", copied, x, result=jnp.zeros(9))
        call("leaf 0 has arrays of 8 and of 3", [add, 0, 0, 2, 0, 1, 0, 0], x, x[:3], inputs=2)
        call("reads slot 0, which holds another type", copied, x.astype(jnp.bfloat16))
        call("writes a result of another type", copied, x, result=x.astype(jnp.bfloat16))
        call("another type than", copied, x.astype(jnp.int32))
        codes, scale = x.astype(jnp.int8), x[:1]
        decoded = [native.available().ops["decode_i8"].code, 0, 0, 2, 0, 1, 0, 0]
        found = np.asarray(call(None, decoded, codes, scale + 2, inputs=2, scales=[1]))
        np.testing.assert_allclose(found, 2 * (np.arange(8) / 127) ** 2, rtol=1e-6)
        call("leaf 0 has arrays of 8 and of 2 elements", decoded, codes, x[:2], inputs=2, scales=[1])
        call("scales are at no position", decoded, codes, scale, inputs=2, scales=[3])
        call("scales are at no position", decoded, codes, scale, inputs=2, scales=[0])
        call("scales that are flat, or not in float32", decoded, codes, scale.astype(jnp.float16), inputs=2, scales=[1])
        call("reads slot 1, which holds another type", decoded, codes, x, inputs=2)
        over = [[native.available().ops["scales"].code, 0, 0, 3, 1, 0, 0, 0], [*decoded[:3], 3, 0, 3, 0, 0]]
        call("decode_i8, writes over what it reads", over, codes, x, inputs=2, temporaries=1)
        call("reads slot 0, which holds another type", decoded, codes.astype(jnp.uint8), scale, inputs=2, scales=[1])
        call("reads slot 9, and there are 2", [copy, 0, 0, 1, 9, 0, 0, 0], x)
        call("writes slot 2, which is no result", [copy, 0, 0, 2, 0, 0, 0, 0], x)
        call("writes slot 0, which is no result", [copy, 0, 0, 0, 0, 0, 0, 0], x)
        call("is none that there is", [999, 0, 0, 1, 0, 0, 0, 0], x)
        call("takes no such scalars", [copy, 0, 2, 1, 0, 0, 0, 0], x)
        call("ends within an instruction", copied[:-1], x)
        call("temporaries", copied, x, temporaries=2**40)
        call("holds nothing", [[copy, 0, 0, 1, 2, 0, 0, 0], copied], x, temporaries=1)
        call("does not write result 0", [], x)
        call("at no position", copied, x, x, flat=[7])
        call("fewer operands", copied, x, inputs=2**60)
        call("fewer results than reductions", copied, x, reductions=2)
        total, norm = (native.available().ops[name].code for name in ("sum", "norm"))
        one = {"outputs": 0, "reductions": 1, "result": jnp.zeros(1)}
        call("is number 1 of a leaf, and there are 1", [total, 0, 0, 1, *[0] * 4], x, **one)
        call("there are 8 numbers of 1 leaves", [total, *[0] * 7], x, outputs=0, reductions=1)
        call("is for a number that sum makes", [[op, *[0] * 7] for op in (total, norm)], x, **one)


@built
def test_a_kernel_built_for_a_newer_jaxlib_is_not_registered(monkeypatch, tmp_path):
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 0\n")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    assert "this jaxlib has 0.0" in str(_library.load.__wrapped__())
    header.write_text("")
    assert "no version" in str(_library.load.__wrapped__())


@built
def test_which_kernel():
    assert native.available()
    assert "native kernel for" in str(native.available())


def test_export_holds_no_custom_call():
    from jax import export

    leaves = adam_leaves([(10,)])
    exported = export.export(jax.jit(lambda x: map_leaves(adam, x, [jnp.float32(0.1)])))(leaves)
    assert "gradtx_native" not in exported.mlir_module()
    assert_close(exported.call(leaves), reference(adam, leaves, [jnp.float32(0.1)]), atol=1e-6)


@pytest.mark.slow
def test_over_several_devices():
    """Partitioned by XLA it is the reference, without a collective; in shard_map each device runs the kernel."""
    code = """
        import functools
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from gradtx import native
        from gradtx.native._compiler import compile_jaxpr
        from gradtx.native._leaves import map_leaves as map_and_reduce

        map_leaves = lambda *args, **kwargs: map_and_reduce(*args, **kwargs)[0]
        mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        sharded = NamedSharding(mesh, P("d"))
        x = jnp.arange(64 * 3, dtype=jnp.float32).reshape(64, 3)
        fn = lambda x, y, s: (x * s + y, jnp.sqrt(y))
        leaves = [(x, x + 1)] * 2
        want = [fn(*leaf, 2.0) for leaf in leaves]
        same = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6))
        step = jax.jit(lambda leaves, s: map_leaves(fn, leaves, [s], aliases={0: 0}))
        one = step.lower(leaves, jnp.float32(2)).as_text()
        placed = jax.device_put(leaves, sharded)
        compiled = step.lower(placed, jnp.float32(2)).compile()
        text = compiled.as_text()
        assert "gradtx_native" not in text and "all-" not in text and "collective" not in text, text
        out = compiled(placed, jnp.float32(2))
        same(out, want)
        assert out[0][0].sharding.is_equivalent_to(sharded, 2)
        for check in (True, False):
            inside = jax.jit(jax.shard_map(
                lambda leaves, s: map_leaves(fn, leaves, [s]), mesh=mesh,
                in_specs=(P("d"), P()), out_specs=P("d"), check_vma=check))
            text = inside.lower(placed, jnp.float32(2)).compile().as_text()
            assert ("gradtx_native" in text) == bool(native.available()), text
            same(inside(placed, jnp.float32(2)), want)
            grad = lambda run: jax.grad(lambda l: sum(jnp.sum(o) for leaf in run(l) for o in leaf))(leaves)
            same(grad(lambda l: inside(l, jnp.float32(2))), grad(lambda l: [fn(*x, 2.0) for x in l]))
        def measure(leaves):
            return map_and_reduce(lambda x: (x, x, x), leaves, reduces=["norm", "sum", "max"])[1]
        pair = [(x,), (jnp.float32(1e30) * x,)]
        inside = jax.jit(jax.shard_map(measure, mesh=mesh, in_specs=([(P("d"),), (P(),)],), out_specs=P()))
        exact = [np.asarray([of(np.float64(y)) for (y,) in pair]) for of in (
            lambda y: np.sqrt(np.sum(y * y)), np.sum, lambda y: np.max(np.abs(y)))]
        same(inside(pair), exact)
        same(jax.jit(measure)(jax.device_put(pair, sharded)), exact)
        same(jax.grad(lambda p: jnp.sum(inside(p)[0]))(pair)[0][0], np.asarray(x) / exact[0][0])
        same(jax.grad(lambda p: inside(p)[2][0])(pair)[0][0], np.asarray(x) == x.max())
        if native.available():
            assert "gradtx_native" in one
        explicit = jax.make_mesh((8,), ("e",), axis_types=(jax.sharding.AxisType.Explicit,))
        with jax.set_mesh(explicit):
            placed = jax.device_put(leaves, NamedSharding(explicit, P("e")))
            same(step(placed, jnp.float32(2)), want)
        print("ok")
    """
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip() == "ok", done.stderr[-3000:]


@built
def test_where_a_flag_is_false_nothing_happens():
    """Arrays that results would be in stay, donated or not, in flat ones too; all else is 0."""
    sizes = [3, 700, 0, 70_001]
    arrays = [(data((n,), seed=n), data((n,), seed=n + 1).at[:1].set(jnp.nan)) for n in sizes]
    flat = data((sum(sizes),), seed=9)

    def fn(p, g, m, rate):
        m = m + g
        return p - rate * m, m, 2 * g, g

    def step(arrays, flat, flag):
        leaves = [(*own, view) for own, view in zip(arrays, split(flat, [(n,) for n in sizes]), strict=True)]
        rows, numbers = map_and_reduce(fn, leaves, [jnp.float32(0.5)], (), {0: 0, 2: 1}, ["norm"], flag)
        return [(p, doubled) for p, _, doubled in rows], join([m for _, m, _ in rows]), numbers

    always = jax.jit(lambda arrays, flat: step(arrays, flat, None))(arrays, flat)
    runs = {"plain": jax.jit(step), "donated": jax.jit(step, donate_argnums=(0, 1)), "eager": step}
    for name, run in runs.items():
        for flag in (True, False):
            given = jax.tree.map(jnp.copy, (arrays, flat))
            found = run(*given, jnp.array(flag))
            kept = [(p, jnp.zeros_like(p)) for p, _ in arrays], flat, [jnp.zeros(len(sizes))]
            for x, y in zip(*map(jax.tree.leaves, (found, always if flag else kept)), strict=True):
                np.testing.assert_array_equal(x, y, err_msg=name)
            if name == "plain":
                for x, y in zip(jax.tree.leaves(given), jax.tree.leaves((arrays, flat)), strict=True):
                    np.testing.assert_array_equal(x, y)


@built
def test_a_flag_under_vmap_in_derivatives_and_of_a_function_that_the_kernel_does_not_know():
    x, flags = data((5,)), jnp.array([True, False])
    for fn in (lambda x: (x * x,), lambda x: (lax.cumsum(x) * x,)):

        def run(x, flag, fn=fn):
            return map_and_reduce(fn, [(x,)], (), (), {0: 0}, [], flag)[0][0][0]

        expected = jnp.stack([fn(x)[0], x])
        assert_close(jnp.stack([jax.jit(run)(x, flag) for flag in flags]), expected)
        assert_close(jax.jit(jax.vmap(run, (None, 0)))(x, flags), expected)
        ones = (jnp.ones_like(x),)
        _, tangents = jax.jvp(lambda x, run=run: jax.vmap(run, (None, 0))(x, flags), (x,), ones)
        assert_close(tangents, jnp.stack([jax.jvp(lambda x, fn=fn: fn(x)[0], (x,), ones)[1], *ones]))
