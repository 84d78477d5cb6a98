"""Numbers at their edges: dtypes, residuals, reductions. Roots, quotients and norms are in ``rules/test_rules.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx._core import numerics

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def test_what_is_narrow_is_widened():
    for dtype, wide in {"bfloat16": "float32", "float8_e5m2": "float32", "float64": "float64", "int8": "int8"}.items():
        array, abstract = jnp.ones(2, dtype), jax.ShapeDtypeStruct((2,), dtype)
        assert numerics.widened(array).dtype == wide
        assert numerics.widened(abstract) == jax.ShapeDtypeStruct((2,), wide)
    assert numerics.widened(0.5) == 0.5


def test_float8_is_added_to_anything_in_float32():
    narrow = jnp.array([0.0703125], "float8_e4m3fn")
    np.testing.assert_array_equal(numerics.added(jnp.ones(1, "float32"), narrow), jnp.array([1.0703125], "float32"))
    total = numerics.added(jnp.array([1.125], "float8_e4m3fn"), narrow)  # 1.1953125, of four digits in base 2
    np.testing.assert_array_equal(total, jnp.array([1.25], "float8_e4m3fn"))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_has_no_residual(value):
    for number in (value, jnp.array(value)):
        _, residual = numerics.split(number, jnp.float32)
        assert float(residual) == 0


def test_limits_are_finite_where_infinities_are_faults():
    most = np.finfo(np.float32).max
    with jax.debug_infs(True):
        for value, expected in ((0.5, 0.5), (-np.inf, -most), (np.inf, most)):
            assert float(numerics.split(value, jnp.float32)[0]) == expected


def test_complements_with_and_without_residuals():
    decay = np.float32(0.9999)
    held = {"decay": jnp.asarray(decay), "decay_residual": jnp.float32(0.9999 - float(decay))}
    assert float(numerics.complement(held, "decay")) == float(np.float32(1e-4))
    assert float(numerics.complement({"decay": jnp.array(0.75)}, "decay")) == 0.25


def test_a_divisor_of_fewer_elements():
    np.testing.assert_array_equal(numerics.safe_divide(jnp.array([3.0, 0.0]), jnp.zeros(1)), [0.0, 0.0])
    np.testing.assert_array_equal(numerics.safe_divide(jnp.array([3.0, 0.0]), jnp.full(1, 2.0)), [1.5, 0.0])
    x = np.array([3e38, -1e38], np.float32)
    for y in (3e38, 1.0):  # the first has no reciprocal that is a normal number, the second lets nothing grow
        found = jax.jit(numerics.safe_divide)(x, jnp.full(1, y, "float32"))
        np.testing.assert_allclose(found, x.astype(np.float64) / y, rtol=1e-6)


def test_reductions_are_those_of_numpy():
    columns = [[jnp.array([0.25, -0.5]), jnp.array([[3.0], [4.0]])], [jnp.array([0.125])], [jnp.array([-2.0, 1.0])]]
    hows = ["max", "norm", "sum"]
    by_hand = {"max": lambda x: abs(x).max(), "norm": np.linalg.norm, "sum": np.sum}
    for order in ([0, 1, 2], [2, 0, 1], [0, 0, 1]):
        found = numerics.reductions([hows[k] for k in order], [columns[k] for k in order])
        for k, numbers in zip(order, found, strict=True):
            np.testing.assert_allclose(numbers, [by_hand[hows[k]](np.asarray(x)) for x in columns[k]], rtol=1e-15)
    (empty,) = numerics.reductions(["max"], [[jnp.zeros(0)]])
    np.testing.assert_array_equal(empty, [0.0])


def test_reductions_of_functions_are_those_of_numpy():
    """In and out of the range of squares, with derivatives, also where a norm is 0; and of two functions at once."""
    ((alone,),) = numerics.reductions_of(lambda x: (x,), [(jnp.array([3e200, 4e200]),)], ["norm"])
    np.testing.assert_allclose(alone, 5e200, rtol=1e-15)
    fn = lambda x, y, c: (c * x, x - y, x * y)  # noqa: E731
    hows, c = ["norm", "norm", "sum"], jnp.float32(2.0)

    def numbers(rows):
        return [numerics.stacked(x) for x in numerics.reductions_of(fn, [(*row, c) for row in rows], hows)]

    x, y = [np.array([3.0, -1.0]), np.array([[0.5]])], [np.array([0.0, 3.0]), np.array([[0.5]])]
    compiled = jax.jit(numbers)
    for scale in (1.0, 1e-25, 1e25):
        rows = [(jnp.float32(scale) * a.astype("float32"), b.astype("float32")) for a, b in zip(x, y, strict=True)]
        wide = [[np.asarray(z, np.float64) for z in row] for row in rows]
        found = compiled(rows)
        np.testing.assert_allclose(found[0], [2 * np.linalg.norm(a) for a, _ in wide], rtol=1e-6)
        np.testing.assert_allclose(found[1], [np.linalg.norm(a - b) for a, b in wide], rtol=1e-6)
        np.testing.assert_allclose(found[2], [np.sum(a * b) for a, b in wide], rtol=1e-6)
    rows = [*zip(map(jnp.asarray, x), map(jnp.asarray, y), strict=True)]
    each = jax.jit(lambda rows: [jax.grad(lambda rows, k=k: numbers(rows)[k].sum())(rows) for k in range(3)])
    truth = ([[6, -2], [[2 * 10**0.5]]], [[3, -4], [[0]]], y)
    for k, (found, slopes) in enumerate(zip(each(rows), truth, strict=True)):
        lengths = ([10**0.5] * 2, [5, 1], [1, 1])[k]
        for (along, _), slope, length in zip(found, slopes, lengths, strict=True):
            np.testing.assert_allclose(along, np.asarray(slope) / length, rtol=1e-12)


def test_numbers_in_another_order():
    numbers = [jnp.array(x) for x in (1.0, 2.0, 3.0)]
    for given in (numbers, jnp.stack(numbers)):
        for places in ([0, 1, 2], [2, 0, 1], [1], [0, 1]):
            np.testing.assert_array_equal(numerics.in_order(given, places), [1.0 + place for place in places])


def test_a_norm_of_norms():
    for norms in ([3e-25, 4e-25], [3.0, 4.0], [3e25, 4e25], [0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0], []):
        found = numerics.norm_of_norms(jnp.array(norms, "float32"))
        np.testing.assert_allclose(found, np.linalg.norm(np.array(norms)), rtol=1e-6)


def test_norms_of_the_least_normal_numbers():
    for dtype in ("float32", "float64"):
        tiny = jnp.finfo(dtype).tiny
        np.testing.assert_allclose(numerics.l2_norm([jnp.full(4, tiny, dtype)]) / tiny, 2.0, rtol=1e-6)


class OneReading(numerics.SumOver):
    """Norms of single arrays, as the kernel has them."""

    def norms(self, xs, vector=False):
        del vector
        return jnp.stack([jnp.sqrt(jnp.sum(x**2)) for x in xs])


class Vectors(numerics.SumOver):
    """Sums as a vector, as the kernel has them."""

    def each(self, fn, *columns, local=()):
        return jnp.stack(super().each(fn, *columns, local=local))


def test_norms_of_sums_that_are_a_vector():
    found = numerics.norms([[jnp.array([x])] for x in (3e-200, 4.0, 5e200)], Vectors())
    np.testing.assert_allclose(found, [3e-200, 4.0, 5e200], rtol=1e-15)


def test_norms_of_groups_whose_arrays_have_norms():
    arrays = [jnp.array([3.0, 4.0]), jnp.array([12.0]), jnp.array([[8.0]])]
    for groups, expected in (([arrays[:2], arrays[2:]], [13.0, 8.0]), ([[x] for x in arrays], [5.0, 12.0, 8.0])):
        np.testing.assert_allclose(numerics.norms(groups, OneReading()), expected, rtol=1e-15)
