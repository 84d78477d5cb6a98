"""Rules that see whole leaves and trees: leaves of any number of axes, what is refused, what is zero, huge or NaN."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx as gx
from gradtx._engine.plan import passes

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

RNG = np.random.default_rng(0)
G = RNG.normal(size=(7, 3, 2, 4))


def outs(tx, gradients: Any = G, params=None):
    """The update of each gradient."""
    p = jnp.zeros_like(gradients[0]) if params is None else jnp.asarray(params)
    return np.asarray(
        jax.jit(lambda: jax.lax.scan(lambda s, g: tx.update(g, s, p)[::-1], tx.init(p), jnp.asarray(gradients))[1])()
    )


def outer(g, axis):
    rows = np.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return rows @ rows.T


def along(g, axis, matrix):
    """The matrix times each column of the leaf along an axis."""
    return np.moveaxis(np.tensordot(matrix, np.moveaxis(g, axis, 0), 1), 0, axis)


@pytest.mark.parametrize(("decay", "every", "largest"), [(None, 1, 9), (0.9, 3, 9), (None, 2, 3)])
def test_kronecker_roots_of_three_axes(decay, every, largest):
    """H^(−1/6) along each axis, or of its diagonal where the axis is long, made anew every so many steps."""
    factors, roots, expected = [0.0] * 3, [np.eye(1)] * 3, []
    for t, g in enumerate(G):
        for a, n in enumerate(g.shape):
            new = outer(g, a)
            factors[a] = factors[a] + new if decay is None else decay * factors[a] + (1 - decay) * new
            if t % every == 0:
                h = factors[a] if n <= largest else np.diag(np.diag(factors[a]))
                values, vectors = np.linalg.eigh(h + 0.1 * np.eye(n))
                roots[a] = vectors @ np.diag(values ** (-0.5 / 3)) @ vectors.T
        for a, root in enumerate(roots):
            g = along(g, a, root)
        expected.append(g)
    tx = gx.scale_by_kronecker_root(decay, 0.1, every=every, largest=largest)
    np.testing.assert_allclose(outs(tx), expected, rtol=1e-10)


def test_what_is_below_the_rounding_of_a_matrix_is_no_eigenvalue():
    """The squares are 10⁶ and 10⁻¹⁴, of which the second is taken for the last digit of the first."""
    g = np.diag([1e3, 1e-7])
    expected = np.diag([1.0, 1e-7 / np.sqrt(1e6 * np.finfo(float).eps)])
    np.testing.assert_allclose(outs(gx.scale_by_kronecker_root(eps=0.0), g[None])[0], expected, rtol=1e-9)


def test_kronecker_roots_of_a_complex_gradient():
    """Of the first one, without ε: the nearest unitary matrix."""
    g = RNG.normal(size=(1, 3, 3)) + 1j * RNG.normal(size=(1, 3, 3))
    u, _, v = np.linalg.svd(g[0])
    np.testing.assert_allclose(outs(gx.scale_by_kronecker_root(eps=0.0), g)[0], u @ v, rtol=1e-10)


@pytest.mark.parametrize(("every", "largest"), [(1, 9), (3, 3)])
def test_eigenbases_of_three_axes(every, largest):
    """The basis follows by one product and one decomposition; a long axis keeps its elements."""
    axes = [a for a, n in enumerate(G.shape[1:]) if n <= largest]
    bases, factors, s, expected = {}, dict.fromkeys(axes, 0.0), 0.0, []
    for t, g in enumerate(G):
        u = g
        for a, q in bases.items():
            u = along(u, a, q.T)
        if t:
            s = 0.8 * s + 0.2 * u**2
            u = u / (np.sqrt(s) + 0.01)
        for a, q in bases.items():
            u = along(u, a, q)
        expected.append(u if t else 0 * u)
        for a in axes:
            factors[a] = 0.9 * factors[a] + 0.1 * outer(g, a)
            if t == 0:
                bases[a] = np.linalg.eigh(factors[a])[1][:, ::-1]
            elif t % every == 0:
                order = np.argsort(-np.diag(bases[a].T @ factors[a] @ bases[a]))
                s, bases[a] = np.take(s, order, a), np.linalg.qr(factors[a] @ bases[a][:, order])[0]
    tx = gx.scale_by_eigenbasis_rms(0.8, 0.01, 0.9, every=every, largest=largest)
    np.testing.assert_allclose(outs(tx), expected, rtol=1e-9, atol=1e-12)


def test_debias_knows_the_weight_in_the_basis():
    """Of s, which begins with the second gradient: 1 − 0.8ᵗ⁻¹; the direction before it has the weight 1."""
    tx = gx.chain(gx.scale_by_eigenbasis_rms(0.8, 0.01, 0.9), gx.debias())
    plain = outs(gx.scale_by_eigenbasis_rms(0.8, 0.01, 0.9))
    weights = 1 - 0.8 ** np.arange(len(G)).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(outs(tx), plain * np.sqrt(weights), rtol=1e-12)


def test_sm3_of_three_axes():
    """Element by element: what is held for an axis is the most of all that share its place there."""
    held, expected = [np.zeros(n) for n in G.shape[1:]], []
    gradients = G * (np.arange(4) > 0)  # of the first place on the last axis there is no gradient
    for g in gradients:
        v = np.empty(g.shape)
        for i, j, k in np.ndindex(*g.shape):
            v[i, j, k] = min(held[0][i], held[1][j], held[2][k]) + g[i, j, k] ** 2
        held = [v.max((1, 2)), v.max((0, 2)), v.max((0, 1))]
        expected.append(np.where(v > 0, g / np.sqrt(v + 0.1), 0))
    np.testing.assert_allclose(outs(gx.scale_by_sm3(0.1), gradients), expected, rtol=1e-12)


@pytest.mark.parametrize("rule", [gx.scale_by_sm3(), gx.scale_by_kronecker_root(eps=0.0)], ids=str)
@pytest.mark.parametrize("shape", [(2,), (2, 2)])
def test_where_there_was_no_gradient(rule, shape):
    """A direction that something else made stays out where v, or the sum of outer products, is 0."""
    tx, g, p = gx.chain(gx.momentum(), gx.add_decayed_weights(0.1), rule), jnp.zeros(shape), jnp.ones(shape)
    np.testing.assert_array_equal(tx.update(g, tx.init(p), p)[0], g)


def test_a_leaf_that_is_no_matrix_is_named():
    for rule, shape, of_which in (
        (gx.orthogonalize(), (3,), ""),
        (gx.orthogonalize(stacked=1), (2, 3), ", of which 1 axes count matrices"),
    ):
        with pytest.raises(ValueError) as error:
            rule.init({"bias": jnp.zeros(shape)})
        assert f"needs matrices, and leaf 'bias' has shape {shape}{of_which}. Give such leaves" in str(error.value)


@pytest.mark.parametrize(
    ("rule", "shape", "factor"),
    [
        (gx.scale_by_shape(), (1, 4), 2.0),  # from one input to four outputs
        (gx.scale_by_shape(), (4, 1), 1.0),
        (gx.scale_by_shape(output=0), (4, 2), 2**0.5),
        (gx.scale_by_shape(stacked=1), (3, 1, 4), 2.0),
        (gx.scale_by_shape(0.5), (1, 16), 2.0),
        (gx.scale_by_shape(0.5), (16, 1), 2.0),
    ],
)
def test_scale_by_shape(rule, shape, factor):
    u = jnp.full(shape, 3.0)
    np.testing.assert_allclose(rule.update(u, rule.init(u))[0], factor * u, rtol=1e-14)
    with pytest.raises(ValueError, match=r"needs matrices, found a leaf of shape \(3,\)"):
        rule.update(u.ravel()[:3], rule.init(u.ravel()[:3]))


def test_matrices_that_are_made_orthogonal_together():
    """Three leaves of one shape, and one of another, are each what it is alone."""
    tx, tree = gx.orthogonalize(), dict(zip("abc", jnp.asarray(RNG.normal(size=(3, 2, 2))), strict=True))
    tree["d"] = jnp.asarray(np.arange(6.0).reshape(3, 2))
    together, alone = jax.jit(
        lambda: (tx.update(tree, tx.init(tree))[0], {k: tx.update(x, tx.init(x))[0] for k, x in tree.items()})
    )()
    for k, x in alone.items():
        np.testing.assert_allclose(together[k], x, rtol=1e-9)


def of_singular_values(matrix):
    """Muon's direction of a matrix, from numpy's decomposition, times √max(1, out/in)."""
    u, sigma, v = np.linalg.svd(matrix, full_matrices=False)
    sigma = sigma / np.linalg.norm(matrix)
    for a, b, c in gx.orthogonalize().coefficients:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return u * sigma @ v * max(1, matrix.shape[1] / matrix.shape[0]) ** 0.5


MUON = gx.chain(gx.orthogonalize(stacked=1), gx.scale_by_shape(stacked=1))


def test_as_matrices():
    """Heads apart and joined, layers stacked, outputs first, and a leaf that is no matrix, beside numpy's SVD."""
    x = RNG.normal(size=(5, 3, 2))
    layers = RNG.normal(size=(2, 5, 3, 2))
    heads = np.stack([of_singular_values(x[:, h]) for h in range(3)], 1)
    joined, to_width = of_singular_values(x.reshape(5, 6)).reshape(x.shape), of_singular_values(x.reshape(15, 2))
    stacked = np.stack([of_singular_values(one.reshape(5, 6)).reshape(x.shape) for one in layers])
    transposed = of_singular_values(x.reshape(5, 6).T).T.reshape(x.shape)
    cases = {
        "heads": (x, (0, 2), heads),
        "joined": (x, (0, (1, 2)), joined),
        "out": (x, [[0, 1], -1], to_width.reshape(x.shape)),
        "outputs first": (x, ((-2, -1), 0), transposed),
        "layers": (layers, (1, (2, 3)), stacked),
    }
    axes, tree = {name: sides for name, (_, sides, _) in cases.items()}, {name: y for name, (y, *_) in cases.items()}
    tx = gx.as_matrices(MUON, lambda path, leaf: axes[path])
    updates = jax.jit(lambda: tx.update(tree, tx.init(tree))[0])()
    for name, (*_, expected) in cases.items():
        np.testing.assert_allclose(updates[name], expected, rtol=1e-9, err_msg=name)


def test_what_is_no_matrix_stays_as_it_is():
    """No rule in the chain takes it for matrices, though it has as many axes; parameters are seen likewise."""
    seen = []

    def shapes(tree):
        seen.append(jax.tree.map(jnp.shape, tree))
        return jax.tree.map(lambda _: True, tree)

    decay = gx.chain(gx.in_subspace(gx.scale(2.0), 1, stacked=1), gx.add_decayed_weights(0.5, where=shapes))
    tx = gx.as_matrices(decay, lambda path, leaf: (1, 0) if path == "w" else None)
    tree = {"w": jnp.asarray(G[0, 0]), "v": jnp.ones(2), "three": jnp.asarray(G[0])}
    updates, _ = tx.update(tree, tx.init(tree), tree)
    assert seen[-1] == {"w": (1, 4, 2), "v": (2,), "three": (1, 3, 2, 4)}
    np.testing.assert_allclose(updates["three"], 2.5 * G[0], rtol=1e-12)
    u, sigma, v = np.linalg.svd(G[0, 0])
    np.testing.assert_allclose(updates["w"], 2 * sigma[0] * np.outer(u[:, 0], v[0]) + 0.5 * G[0, 0], rtol=1e-9)
    assert tx.needs_params and not gx.as_matrices(MUON, (0, 1)).needs_params
    assert gx.as_matrices(MUON, (0, 1)).normalizes and not gx.as_matrices(MUON, (0, 1)).accumulates
    assert gx.as_matrices(gx.momentum(), (0, 1)).accumulates and not gx.as_matrices(gx.momentum(), (0, 1)).normalizes


def test_muon_by_axes():
    """They come before the other choices of matrices."""
    shapes = {"scan/kernel": (2, 4, 2, 2), "dense/kernel": (3, 4)}
    params = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in shapes.items()} | {"bias": jnp.ones(3)}
    axes = {"scan/kernel": (1, (2, 3))}
    tx = gx.muon(0.1, nesterov=False, axes=axes, weight_decay=0.1, otherwise="freeze")  # pyright: ignore[reportArgumentType] - as in partition
    state, grads = tx.init(params), jax.tree.map(jnp.sin, params)
    updates, _ = jax.jit(tx.update)(grads, state, params)
    for name, shape in (("scan/kernel", (2, 4, 4)), ("dense/kernel", (3, 4))):
        directions = map(of_singular_values, np.asarray(grads[name]).reshape(-1, *shape[-2:]))
        direction = np.stack(list(directions)).reshape(shapes[name])
        np.testing.assert_allclose(updates[name], -0.1 * (direction + 0.1 * params[name]), rtol=1e-9)
    assert state.parts["scan/kernel"].slots["momentum"]["m"]["scan/kernel"].shape == shapes["scan/kernel"]
    # The names are those of any process, as checkpoints need them.
    assert list(state.parts) == ["scan/kernel", "matrix and not 'scan/kernel'", "default"]
    params["q"] = jnp.ones((3, 2, 2))
    chosen = gx.muon(axes=[(lambda path, leaf: leaf.ndim == 3, (0, (1, 2)))], matrices="dense", stacked="scan")
    assert len(jax.tree.leaves(chosen.init(params).parts["default"].slots["momentum"]["m"])) == 1  # the bias
    assert not any("0x" in part for part in chosen.init(params).parts)
    for axes in (3, [("q/kernel", 0, 1)], lambda path, leaf: (0, 1)):
        with pytest.raises(TypeError, match="muon: axes must be a dict or pairs"):
            gx.muon(axes=axes)  # pyright: ignore[reportArgumentType] - wrong


def test_adaptive_clip_of_any_size():
    """Slices of any scale; one with a NaN becomes NaN, and only that one; a vector is one slice."""
    p, g = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))
    norm = np.linalg.norm
    for scale in (1e-200, 1.0, 1e200):
        tx = gx.adaptive_clip(0.3, 0.0)
        limit = 0.3 * norm(p, axis=0) / norm(g, axis=0)
        np.testing.assert_allclose(
            outs(tx, scale * g[None], scale * p)[0] / scale, g * np.minimum(1, limit), rtol=1e-12
        )
    across = outs(gx.adaptive_clip(0.3, 0.0, output=0), g[None], p)[0]
    np.testing.assert_allclose(across, g * np.minimum(1, 0.3 * norm(p, axis=1) / norm(g, axis=1))[:, None], rtol=1e-12)
    vector = outs(gx.adaptive_clip(0.3, 10.0), g[:1], 0 * g[0])[0]
    np.testing.assert_allclose(vector, g[0] * min(1, 3.0 / norm(g[0])), rtol=1e-12)
    broken = outs(gx.adaptive_clip(), np.array([[[np.nan, 1e-9], [1.0, 0.0]]]), np.ones((2, 2)))[0]
    np.testing.assert_array_equal(broken, [[np.nan, 1e-9], [np.nan, 0.0]])


def test_centralize():
    last, first = outs(gx.centralize()), outs(gx.centralize(output=0))
    np.testing.assert_allclose(last, G - G.mean((1, 2), keepdims=True), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(first, G - G.mean((2, 3), keepdims=True), rtol=1e-12, atol=1e-14)
    matrix = G[:, 0]
    np.testing.assert_allclose(
        outs(gx.centralize(), matrix), matrix - matrix.mean(1, keepdims=True), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_array_equal(outs(gx.centralize(), G[:, 0, 0]), G[:, 0, 0])


def test_slices_and_leaves_by_their_squares():
    """The first step: of all but one axis, of all axes, and of heads as matrices."""
    g, root = np.asarray(G[0]), np.sqrt
    for tx, axes in (
        (gx.scale_by_slice_rms(output=0), (1, 2)),
        (gx.scale_by_slice_rms(over="leaf"), None),
        (gx.as_matrices(gx.scale_by_slice_rms(output=0), (0, 2)), (0, 2)),  # the second axis counts
    ):
        np.testing.assert_allclose(outs(tx, g[None])[0], g / root(np.mean(g**2, axes, keepdims=True)), rtol=1e-6)
    expected = g[0] / (root(np.mean(g[0] ** 2, 0)) + 0.5)
    np.testing.assert_allclose(outs(gx.scale_by_slice_rms(eps=0.5), g[None, 0])[0], expected, rtol=1e-12)


def test_a_leaf_of_one_element():
    """It is its own mean, and its own slice."""
    p, g = jnp.full((1, 1), 2.0), jnp.full((1, 1), 5.0)
    for tx, expected in ((gx.centralize(), 0.0), (gx.adaptive_clip(0.1), 0.2), (gx.scale_by_slice_rms(eps=0.0), 1.0)):
        np.testing.assert_allclose(tx.update(g, tx.init(p), p)[0], [[expected]], rtol=1e-12)


@pytest.mark.parametrize(
    ("gradient", "loss", "step"), [(1.0, 0.25, 0.25), (0.5, 1.0, 4.0), (1.0, -2.0, 0.0), (1e-200, 1.0, 0.0)]
)
def test_polyak_of_one_element(gradient, loss, step):
    """(f − 0)/‖u‖², nothing below the minimum, and nothing where the square of the gradient is 0."""
    tx, g = gx.scale_by_polyak(most=10.0), jnp.array([gradient])
    np.testing.assert_allclose(tx.update(g, tx.init(g), value=loss)[0], [step * gradient], rtol=1e-12)


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("over", ["leaf", "tree"])
def test_gradient_norms(decay, over):
    tx = gx.scale_by_gradient_norm(decay, 0.1, 0.2, over=over)
    g = {"a": RNG.normal(size=(5, 3)), "b": RNG.normal(size=(5, 2))}
    state, s = tx.init({"a": jnp.zeros(3), "b": jnp.zeros(2)}), dict.fromkeys(g, 0.0)
    for t in range(5):
        updates, state = tx.update({k: jnp.asarray(x[t]) for k, x in g.items()}, state)
        squares = {k: float((x[t] ** 2).sum()) for k, x in g.items()}
        if over == "tree":
            squares = dict.fromkeys(squares, sum(squares.values()))
        for k, x in squares.items():
            s[k] = x if t == 0 else (s[k] + x if decay is None else 0.9 * s[k] + 0.1 * x)
            np.testing.assert_allclose(updates[k], g[k][t] / (np.sqrt(s[k] + 0.2) + 0.1), rtol=1e-12)


@pytest.mark.parametrize("averages", [False, True])
def test_the_norm_of_a_gradient_that_some_leaves_scale(averages):
    """DoWG on one leaf, DoG's divisor on the other; behind an average the gradient is what came into that."""
    some = gx.scale_by_distance(0.5, relative=False, where="a")
    tx = gx.chain(*[gx.momentum(0.5)] * averages, some, gx.scale_by_gradient_norm(over="tree"), gx.sgd(1.0))
    p, s, m, far = {"a": G[0], "b": G[1]}, 0.0, {"a": 0.0, "b": 0.0}, 0.5
    params = jax.tree.map(jnp.asarray, p)
    state, start, step = tx.init(params), p["a"], jax.jit(lambda p, g, s: gx.step(tx, p, g, s))
    for t in range(2, 6):
        g = {"a": G[t], "b": 2 * G[t - 1]}
        params, state = step(params, jax.tree.map(jnp.asarray, g), state)
        m = {name: 0.5 * m[name] + 0.5 * g[name] for name in g} if averages else g
        far = max(far, np.linalg.norm(p["a"] - start))
        seen = g if averages else g | {"a": far * g["a"]}
        s += sum(np.sum(x**2) for x in seen.values())
        p = {"a": p["a"] - far * m["a"] / s**0.5, "b": p["b"] - m["b"] / s**0.5}
    for name in p:
        np.testing.assert_allclose(params[name], p[name], rtol=1e-12)


def test_a_distance_around_norms():
    """DoWG behind a factor, with a norm of all and one that fades in it: u ← r̄·f·f'·r̄·g."""
    tx = gx.chain(gx.scale_by_gradient_norm(0.5, over="tree"), gx.scale_by_gradient_norm(over="tree"))
    tx = gx.chain(
        gx.scale_by_distance(0.3, relative=False), gx.scale_by_distance(0.5, relative=False, tx=tx), gx.scale(-1.0)
    )
    p = {"a": G[0], "b": G[1]}
    params, start, faded, s, far = jax.tree.map(jnp.asarray, p), p, 0.0, 0.0, 0.0
    state, step = tx.init(params), jax.jit(lambda p, g, s: gx.step(tx, p, g, s))
    for t in range(2, 6):
        g = {"a": G[t], "b": 2 * G[t - 1]}
        params, state = step(params, jax.tree.map(jnp.asarray, g), state)
        far = max(far, sum(np.sum((p[k] - start[k]) ** 2) for k in p) ** 0.5)
        before, around = max(far, 0.3), max(far, 0.5)
        square = (before * around) ** 2 * sum(np.sum(x**2) for x in g.values())
        faded = square if t == 2 else 0.5 * faded + 0.5 * square
        s += square / faded
        p = {k: p[k] - before * around**2 / (faded * s) ** 0.5 * g[k] for k in p}
    for k in p:
        np.testing.assert_allclose(params[k], p[k], rtol=1e-12)
    held = state.slots["scale_by_distance_1"]["state"]
    np.testing.assert_allclose(held["inner"].slots["scale_by_gradient_norm"]["state"], faded, rtol=1e-12)
    assert held["inner"].count == 4


def test_a_distance_is_what_stands_in_it():
    """Around a norm it accumulates: behind it, the gradient is what came in. Alone it only multiplies."""
    plain, norm = gx.scale_by_distance(0.5, relative=False), gx.scale_by_gradient_norm(over="tree")
    around = gx.scale_by_distance(0.5, relative=False, tx=norm)
    assert around.accumulates and around.normalizes and around.pure
    assert not plain.accumulates and not plain.normalizes and plain.pure
    assert len(passes((plain, around))) == 1 and len(passes((gx.scale(2.0), around))) == 2
    p = jnp.array([3.0, -4.0])
    tx = gx.chain(around, gx.rms(0.0), gx.precondition(0.0))
    np.testing.assert_allclose(tx.update(p, tx.init(p), p)[0], [0.1, -0.1], rtol=1e-12)  # r̄·r̄/‖r̄g‖·g/|g|
    once = gx.scale_by_gradient_norm(eps=lambda count: float(count), over="tree")  # in plain Python
    tx = gx.scale_by_distance(0.5, relative=False, tx=once)
    _, state = tx.update(p, tx.init(p), p)
    np.testing.assert_allclose(tx.update(p, state, p)[0], 0.25 * p / (12.5**0.5 + 1), rtol=1e-12)
    assert not tx.pure


@pytest.mark.parametrize("executor", ["reference", "native"])
def test_a_way_whose_square_is_out_of_range(executor):
    """In one program the norms of leaves of 1e-25 and 1e25, of few elements and of many, are those in float64."""
    tx, sizes = gx.scale_by_distance(0.0, relative=False), {"few": 7, "many": 5000, "most": 6000}
    way = {k: np.linspace(1.0, 2.0, n) for k, n in sizes.items()}
    start = {k: jnp.zeros(n, jnp.float32) for k, n in sizes.items()}
    with gx.executor(executor):
        step = jax.jit(tx.update)
        for scales in ((1.0, 1.0, 1.0), (1e-25, 1e-25, 2e-25), (1e25, 1.0, 1e-25), (1e-25, 1e25, 1.0), (0.0, 0.0, 0.0)):
            p = {k: jnp.asarray(c * x, jnp.float32) for c, (k, x) in zip(scales, way.items(), strict=True)}
            _, state = step(p, tx.init(start), p)
            norm = np.linalg.norm([np.linalg.norm(np.asarray(x, np.float64)) for x in p.values()])
            np.testing.assert_allclose(state.slots["scale_by_distance"]["state"]["largest"], norm, rtol=1e-6)


def test_distance_does_not_fall():
    tx, p = gx.scale_by_distance(0.1), {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    state, factors = tx.init(p), []
    for away in (0.0, 2.0, 1.0, 3.0, 0.0):
        moved = {"a": p["a"] + away, "b": p["b"] + away}
        updates, state = tx.update(jax.tree.map(jnp.ones_like, p), state, moved)
        factors.append(float(updates["b"][0]))
    np.testing.assert_allclose(factors, [0.6, 2 * 3**0.5, 2 * 3**0.5, 3 * 3**0.5, 3 * 3**0.5], rtol=1e-12)


def test_a_mean_of_all():
    """The sum knows its weight, also of averages."""
    mean = outs(gx.chain(gx.running_sum(), gx.debias()))
    np.testing.assert_allclose(mean, np.cumsum(G, 0) / np.arange(1, 8).reshape(-1, 1, 1, 1), rtol=1e-12)
    ones = outs(gx.chain(gx.momentum(0.7), gx.running_sum(), gx.debias()), np.ones((7, 2)))
    np.testing.assert_allclose(ones, np.ones((7, 2)), rtol=1e-12)


def test_skip_first():
    skipped = outs(gx.chain(gx.skip_first(2), gx.momentum(0.7), gx.debias()))
    np.testing.assert_array_equal(skipped[:2], 0)
    np.testing.assert_allclose(skipped[2:], outs(gx.chain(gx.momentum(0.7), gx.debias()), G[2:]), rtol=1e-12)
    seen = outs(gx.chain(gx.skip_first(1), gx.adagrad_sum(), gx.precondition(0.0)))
    np.testing.assert_allclose(seen[1], G[1] / np.sqrt(G[0] ** 2 + G[1] ** 2), rtol=1e-12)


def test_cautious_decay_at_zero():
    """Where the step or the weight is 0 the decay acts as always: [u·p ≥ 0]."""
    tx, p = gx.add_cautious_decay(0.5), np.array([2.0, 2.0, 2.0, -2.0, 0.0])
    np.testing.assert_array_equal(outs(tx, np.array([[1.0, -1.0, 0.0, -1.0, 3.0]]), p), [[2, -1, 1, -2, 3]])


WRONG = {
    "every must be an integer from 1 to 2147483647, found 0": lambda: gx.scale_by_eigenbasis_rms(every=0),
    "every must be an integer, found True": lambda: gx.scale_by_kronecker_root(every=True),
    "every must be an integer, found 1.5": lambda: gx.scale_by_kronecker_root(every=1.5),  # pyright: ignore[reportArgumentType] - wrong
    "scale_by_distance: tx must multiply all leaves by one number": lambda: gx.scale_by_distance(tx=gx.sign()),
    "does, found 1: put scale_by_distance before and behind": lambda: gx.scale_by_distance(tx=1),  # pyright: ignore[reportArgumentType] - wrong
    "number that follows from the gradient": lambda: gx.scale_by_distance(tx=gx.scale_by_gradient_norm()),
    "over must be 'leaf' or 'tree', found 'all'": lambda: gx.scale_by_gradient_norm(over="all"),
    "output must be -1, the last axis, or 0, the first, found 1": lambda: gx.centralize(output=1),
    "slice_rms: output must be -1, the last axis, or 0, the first, found 2": lambda: gx.scale_by_slice_rms(output=2),
    "over must be 'slice' or 'leaf', found 'tree'": lambda: gx.scale_by_slice_rms(over="tree"),
    "output must be an integer, found False": lambda: gx.adaptive_clip(output=False),
    "orthogonalize: output must be -1, the last axis, or 0, the first, found 1": lambda: gx.orthogonalize(output=1),
    "steps must be an integer, 0 or more, found -1": lambda: gx.skip_first(-1),
    "steps must be an integer, found True": lambda: gx.skip_first(True),
    "seed must be an integer, found 0.5": lambda: gx.add_noise(seed=0.5),  # pyright: ignore[reportArgumentType] - wrong
    "seed must be an integer, found True": lambda: gx.add_noise(seed=True),
    "tx must be a gradtx chain or rule, found 1": lambda: gx.in_units_of_distance(1),  # pyright: ignore[reportArgumentType] - wrong
    "at_learned_rate: tx must be a gradtx chain or rule, found 1": lambda: gx.at_learned_rate(1),  # pyright: ignore[reportArgumentType] - wrong
    "at_learned_rate: betters must be an integer from 1": lambda: gx.at_learned_rate(gx.sgd(1.0), betters=0),
    "as_matrices: tx must be a gradtx chain or rule, found 1": lambda: gx.as_matrices(1, (0, 1)),  # pyright: ignore[reportArgumentType] - wrong
    "as_matrices: axes must be a pair, those of the inputs and those of the outputs, found 0": lambda: gx.as_matrices(
        gx.sign(),
        0,  # pyright: ignore[reportArgumentType] - wrong
    ),
    "leaf 'w': the axes of inputs and outputs must be different ones of its 2, found (0,) and (2,) for the shape": (
        lambda: of_axes((0, 2))
    ),
    "found (0, 1) and (-1,) for the shape (2, 3)": lambda: of_axes(((0, 1), -1)),
    "leaf 'w': axes must be a pair, those of the inputs and those of the outputs, found (0, 1.5)": lambda: of_axes(
        lambda path, leaf: (0, 1.5)
    ),
    "in_subspace: tx must be a gradtx chain or rule, found 1": lambda: gx.in_subspace(1),  # pyright: ignore[reportArgumentType] - wrong
    "in_subspace: add_decayed_weights needs the parameters": lambda: gx.in_subspace(gx.adamw(1.0, weight_decay=0.1)),
    "in_subspace: rank must be an integer from 1": lambda: gx.in_subspace(gx.sign(), 0),
    "in_subspace: every must be an integer, found 1.5": lambda: gx.in_subspace(gx.sign(), every=1.5),  # pyright: ignore[reportArgumentType] - wrong
    "in_subspace: side must be 'short' or 'long', found 'left'": lambda: gx.in_subspace(gx.sign(), side="left"),
    "in_subspace: stacked must be a number of axes": lambda: gx.in_subspace(gx.sign(), stacked=-1),
    "eps must be a number and no schedule": lambda: gx.in_units_of_distance(gx.adam(1.0, eps=lambda count: 1e-8)),
    "value must be one number, found shape (1,)": lambda: outs_with_loss(jnp.ones(1)),
    "value must be a real number, found (1+2j)": lambda: outs_with_loss(1 + 2j),
    "value must be a real number, found 'low'": lambda: outs_with_loss("low"),
    "value must be a real number, found {'a': 1.0}": lambda: outs_with_loss({"a": 1.0}),
}


def of_axes(axes):
    return gx.as_matrices(gx.sign(), axes).init({"w": jnp.ones((2, 3))})


def outs_with_loss(loss):
    tx = gx.scale_by_polyak()
    return tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=loss)


@pytest.mark.parametrize("message", WRONG)
def test_what_is_refused(message):
    with pytest.raises((ValueError, TypeError)) as error:
        WRONG[message]()
    assert message in str(error.value)


def test_a_basis_is_turned_towards_the_one_before():
    """A singular vector is one up to its phase: that whose inner product with the one before is above 0."""
    g, old = (np.array(x) for x in ([[1 + 2j, 0], [3j, 1]], [[0.6], [0.8j]]))
    new = np.asarray(gx.in_subspace(gx.sign(), 1, side="short")._leading(jnp.asarray(g), jnp.asarray(old)))
    inner = (new.conj() * old).sum()
    np.testing.assert_allclose(inner, abs(inner), rtol=1e-12)
    np.testing.assert_allclose(abs(np.linalg.svd(g)[0][:, :1].conj().T @ new), 1.0, rtol=1e-12)


def test_at_the_edge_of_what_is_refused():
    assert gx.at_learned_rate(gx.sgd(1.0), betters=1) and gx.in_subspace(gx.sign(), 1, every=1)
    assert gx.scale_by_kronecker_root(every=1) and gx.skip_first(0) and gx.centralize(output=0)
    np.testing.assert_array_equal(outs(gx.skip_first(0)), G)


@pytest.mark.parametrize("executor", ["reference", "native"])
def test_a_chain_in_the_pass_of_the_rule_around_it_and_apart(executor):
    """A selector that chooses every leaf keeps the chain apart: the same steps, of a gradient that others averaged."""
    params = {"w": jnp.asarray(G[0]), "c": jnp.asarray(G[1, 0, 0] + 1j * G[2, 0, 0]), "i": jnp.ones(2)}
    some = {"w": True, "c": True, "i": False}

    def steps(where):
        decay = gx.add_decayed_weights(0.1, where=where)
        adam = gx.chain(gx.momentum(0.9), gx.rms(0.99), gx.debias(), gx.precondition(1e-2), gx.scale(-1.0), decay)
        rules = [around(adam, initial=0.3, where=some) for around in (gx.in_units_of_distance, gx.at_learned_rate)]
        assert [rule.scales for rule in rules] == [where is None] * 2
        txs = [gx.chain(gx.momentum(0.5), rule, gx.trace(0.3)) for rule in rules]

        def step(carry, t):
            grads = [jax.tree.map(lambda x: jnp.sin(t + x) * x, p) for p, _ in carry]
            return [gx.step(tx, p, g, s) for tx, g, (p, s) in zip(txs, grads, carry, strict=True)], None

        return jax.lax.scan(step, [(params, tx.init(params)) for tx in txs], jnp.arange(4.0))[0]

    with gx.executor(executor):
        together, apart = jax.jit(lambda: (steps(None), steps(".*")))()
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_empty_leaves():
    empty = {"x": jnp.zeros((0, 3)), "y": jnp.zeros((2, 0))}
    for tx in (
        gx.centralize(),
        gx.adaptive_clip(),
        gx.scale_by_slice_rms(),
        gx.scale_by_sm3(),
        gx.scale_by_kronecker_root(),
        gx.soap(),
        gx.galore(),
    ):
        updates, _ = tx.update(empty, tx.init(empty), empty)
        assert jax.tree.map(jnp.shape, updates) == {"x": (0, 3), "y": (2, 0)}


READ_HISTORY = (
    *(gx.scale_by_sm3(), gx.scale_by_gradient_norm(), gx.scale_by_kronecker_root(), gx.scale_by_eigenbasis_rms()),
    *(gx.in_units_of_distance(gx.adam(1.0)), gx.ftrl_proximal(0.1), gx.running_sum(), gx.skip_first()),
    *(gx.at_learned_rate(gx.sgd(1.0)), gx.in_subspace(gx.adam(1.0)), gx.scale_by_slice_rms()),
)
EDIT = (gx.scale_by_distance(), gx.dual_averaging(), gx.centralize(), gx.adaptive_clip(), gx.add_noise())


@pytest.mark.parametrize("rule", [*READ_HISTORY, *EDIT], ids=lambda rule: rule.label)
def test_what_an_accumulator_behind_it_reads(rule):
    """The gradient as it came, behind a rule that remembers gradients; else what the rule makes of it."""
    tx, g, p = gx.chain(rule, gx.adagrad_sum(), gx.precondition(0.0)), jnp.asarray(G[0]), jnp.ones(G[0].shape)
    _, state = tx.update(g, tx.init(p), p)
    read = g if rule in READ_HISTORY else rule.update(g, rule.init(p), p)[0]
    np.testing.assert_allclose(state.slots["adagrad_sum"]["s"], read**2, rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("jit", [False, True])
def test_a_tree_that_does_not_fit_is_refused_by_name(jit):
    """As a cast or another program may have made it: of a rule that holds one array, several, or a chain."""
    p = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    cases = [
        (gx.soap(0.1), "['factors']['w'][0]", "int32, and must be floating"),
        (gx.dadapt_adam(), "['along']", r"shape \(1,\), and must be a scalar"),
        (gx.chain(gx.at_learned_rate(gx.adam(0.1))), "['gain']", r"must be of shape \(6,\)"),
        (gx.galore(0.1), "['basis']['w']", r"must be of shape \(2, 2\)"),
    ]
    for tx, at, message in cases:
        state = tx.init(p)
        update = jax.jit(tx.update) if jit else tx.update
        update(p, state, p)
        for k, (path, x) in enumerate(jax.tree_util.tree_leaves_with_path(state)):
            if jax.tree_util.keystr(path).endswith(at):
                leaves = jax.tree.leaves(state)
                leaves[k] = x.astype(jnp.int32) if "int32" in message else x[None]
                with pytest.raises((TypeError, ValueError), match=rf"slot .*{re.escape(at)} of this state.*{message}"):
                    update(p, jax.tree.unflatten(jax.tree.structure(state), leaves), p)
                break
        else:
            pytest.fail(at)
