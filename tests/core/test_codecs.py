"""The formats of slots, beside their formulas in numpy, and beside what float32 does."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gradtx as gx
from gradtx import native
from gradtx._core.codecs import Blocks, Encoded, Rounded, decoded
from gradtx._core.rounding import dithered
from gradtx.native._leaves import map_leaves

BLOCK = 256

pytestmark = pytest.mark.usefixtures("quick_compilation")


def numbers(*shape):
    """Of either sign, over eight powers of ten."""
    rng = np.random.default_rng(sum(shape))
    return (rng.normal(size=shape) * 10.0 ** rng.uniform(-4, 4, shape)).astype(np.float32)


class TestRounded:
    def truth(self, x, seed):
        """The hash and the rounding by the book, in numpy's integers."""
        with np.errstate(over="ignore"):
            place = np.arange(x.size, dtype=np.uint32) * np.uint32(0x9E3779B9)
            h = (place ^ (place >> 15)) + np.uint32(seed)
            h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
            h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
            h = h ^ (h >> 16)
            bits = x.ravel().view(np.uint32) + (h >> 16)
        return (bits >> 16).astype(np.uint16).view(ml_dtypes.bfloat16).reshape(x.shape)

    def test_both_executors_round_by_the_same_bits(self):
        """Integers alone make them, from numbers that are given: these bits are a contract."""
        xs = [numbers(3), numbers(70, 11), numbers(2, 700)]
        seeds = [1.0, 77.0, 2.0**24 - 1]
        codec = Rounded()

        def one(x, seed):
            return (codec.encode(x, seed),)

        leaves = [(jnp.asarray(x),) for x in xs]
        native = jax.jit(lambda leaves, s: map_leaves(one, leaves, local=[s])[0])(leaves, jnp.asarray(seeds))
        for x, (fast,), seed in zip(xs, native, seeds, strict=True):
            want = self.truth(x, int(seed)).view(np.uint16)
            np.testing.assert_array_equal(np.asarray(fast).view(np.uint16), want)
            np.testing.assert_array_equal(np.asarray(one(jnp.asarray(x), seed)[0]).view(np.uint16), want)

    def test_the_mean_stays_and_what_fits_stays(self):
        x = np.float32(1 + 3 / 1024)  # a third of the way from 1 to the next number, 1 + 1/128
        rounded = np.asarray(Rounded().encode(jnp.full(20000, x), jnp.float32(5)), np.float64)
        assert set(rounded) == {1.0, 1 + 1 / 128}
        share = (rounded > 1).mean()
        assert abs(share - 3 / 8) < 4 * (0.375 * 0.625 / 20000) ** 0.5
        exact = jnp.asarray(numbers(1000).astype(ml_dtypes.bfloat16).astype(np.float32))
        special = jnp.array([0.0, -0.0, jnp.inf, -jnp.inf, jnp.nan])
        for y in (exact, special):
            np.testing.assert_array_equal(dithered(y, jnp.float32(9)), y)

    def test_leaves_slots_and_steps_round_apart(self):
        tx = gx.chain(gx.adam(0.1), state_dtype="bfloat16_stochastic")
        g = {"a": jnp.full(3000, 1.003), "b": jnp.full(3000, 1.003)}
        state = tx.init(g)
        (_, later), (_, again), (_, state) = (
            tx.update(g, state._replace(count=jnp.int32(count))) for count in (1, 0, 0)
        )
        assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(again)))
        m, v, after = state.slots["momentum"]["m"], state.slots["rms"]["s"], later.slots["momentum"]["m"]
        ups = [np.asarray(x, np.float64) for x in (m["a"], m["b"], v["a"], after["a"])]
        ups = [x > x.min() for x in ups]
        assert all(0.02 < x.mean() < 0.98 for x in ups)
        for i, x in enumerate(ups):
            for y in ups[:i]:
                assert abs(np.corrcoef(x, y)[0, 1]) < 0.08


class TestBlocks:
    @pytest.mark.parametrize("kind", ["root", "dynamic"])
    @pytest.mark.parametrize("nonnegative", [False, True])
    def test_numbers_become_the_nearest_or_the_next_code(self, kind, nonnegative):
        x = numbers(5, 700)
        x = np.abs(x) if nonnegative else x
        x[0, :40] = 0
        codec, seed = Blocks(kind), jnp.float32(3)
        shares = np.arange(256) / 255 if nonnegative else np.arange(-127, 128) / 127
        shares = shares**4 if nonnegative else shares * np.abs(shares)
        if kind == "dynamic":  # as Dettmers et al. describe it: the means of even steps in each of seven decades
            steps = [np.linspace(0.1, 1, 2 ** (i + nonnegative) + 1) * 10.0 ** (i - 6) for i in range(7)]
            shares = np.concatenate([(s[1:] + s[:-1]) / 2 for s in steps])
            shares = np.concatenate([[0.0, 1.0], shares, [] if nonnegative else -shares])
        shares = np.sort(shares)
        nearest, at_random = (codec.encode(jnp.asarray(x), s, nonnegative) for s in (None, seed))
        for start in range(0, 700, BLOCK):
            block = x[:, start : start + BLOCK].astype(np.float64)
            top = np.abs(block).max(-1, keepdims=True)
            near, random = (np.asarray(y.decode(), np.float64)[:, start : start + BLOCK] for y in (nearest, at_random))
            place = np.clip(np.searchsorted(shares, block / top, side="right") - 1, 0, len(shares) - 2)
            low, high = shares[place] * top, shares[place + 1] * top
            slack = 1e-5 * (high - low) + 1e-6 * np.abs(block)
            lowest = shares[1] * top * (1 - 1e-6)
            for y in (near, random):
                assert np.all((y >= low - slack) & (y <= high + slack))
                assert np.all(y[block == 0] == 0)
                assert not nonnegative or np.all((y >= lowest) | (block == 0))
            # to nearest: of the fourth roots where there are such
            power = 0.25 if nonnegative and kind == "root" else 1
            x_, low_, high_ = (np.sign(y) * np.abs(y / top) ** power for y in (block, low, high))
            halfway = (low_ + high_) / 2
            pushed = nonnegative & (block > 0) & (place == 0)
            is_near = np.where(x_ > halfway, near > low + slack, near < high - slack)
            assert np.all(is_near | pushed | (np.abs(x_ - halfway) < 1e-6))

    def test_the_kernel_makes_the_same_codes(self):
        """But for a last bit in a root, where it makes the difference between two codes."""
        shapes = [(4, 512), (5000,), (2, 300)]  # the last of which it does not take: blocks that end with rows
        xs = [jnp.asarray(numbers(*shape)) for shape in shapes]
        xs[1] = xs[1].at[:256].set(0).at[300].set(jnp.inf)
        for nonnegative in (False, True):
            first = [Blocks().encode(abs(x) if nonnegative else x, None, nonnegative) for x in xs]
            assert "decode" in str(jax.make_jaxpr(Encoded.decode)(first[0]))

            def one(x, codes, scale, seed, nonnegative=nonnegative):
                old = Blocks().decode(codes, scale)
                new = Blocks().encode(abs(old + x) if nonnegative else old + x, seed, nonnegative)
                return old, new.codes, new.scale

            leaves = [(x, y.codes, y.scale) for x, y in zip(xs, first, strict=True)]
            mapped = jax.jit(lambda leaves, s: map_leaves(one, leaves, local=[s], aliases={1: 1, 2: 2})[0])
            seeds = jnp.array([3.0, 4.0, 5.0])
            assert ("gradtx_native" in mapped.lower(leaves, seeds).as_text()) == bool(native.available())
            for leaf, seed, found in zip(leaves, seeds, mapped(leaves, seeds), strict=True):
                old, codes, scale = one(*leaf, seed)
                np.testing.assert_allclose(found[0], old, rtol=1e-6)
                np.testing.assert_allclose(found[2], scale, rtol=1e-6)
                apart = np.abs(np.asarray(found[1], int) - np.asarray(codes, int))
                finite = np.isfinite(old)  # of NaN a code means nothing
                assert apart[finite].max() <= 1
                assert apart[finite].mean() < 1e-3

    def test_a_function_of_a_user_is_none_of_the_kernels(self):
        """Whatever it is called: instructions are known by their names."""

        @jax.jit
        def gradtx_double(x):
            return 2 * x

        (mapped,), _ = jax.jit(lambda x: map_leaves(lambda x: (gradtx_double(x),), [(x,)]))(jnp.ones(3))
        np.testing.assert_array_equal(mapped[0], 2)

    def test_codes_stay_as_they_are(self):
        for nonnegative in (False, True):
            x = jnp.asarray(numbers(40, 512))
            first = Blocks().encode(jnp.abs(x) if nonnegative else x, jnp.float32(1), nonnegative)
            for seed in (None, 2.0, 3.0, 4.0):
                again = Blocks().encode(first.decode(), None if seed is None else jnp.float32(seed), nonnegative)
                assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(first)))

    def test_what_is_not_finite_is_seen_in_its_block_alone(self):
        x = numbers(1, 3 * BLOCK)
        x[0, 0], x[0, BLOCK] = np.nan, np.inf
        out = np.asarray(Blocks().encode(jnp.asarray(x)).decode())
        assert np.isnan(out[0, : 2 * BLOCK]).all()
        assert np.isfinite(out[0, 2 * BLOCK :]).all()

    def test_second_moments_follow_and_zero_divides_nothing(self):
        """v after its gradient changed; steps after one that was large in each block."""
        n, rng = 4096, np.random.default_rng(0)
        size = 10.0 ** rng.normal(0, 0.7, n)
        before, after = (np.float32(x) for x in (size, np.roll(size, 1)))
        large = np.where(np.arange(n) % BLOCK == 0, 1e3, 0)
        small = np.where((large == 0) & (np.arange(n) % BLOCK != 1), rng.normal(size=n) * 1e-3, 0)

        def run(storage, rate, gradients, times):
            tx = gx.chain(gx.adam(rate), state_dtype=storage)

            def one(carry, t):
                w, state = carry
                g = jnp.asarray(gradients[-1], jnp.float32)
                for x, until in reversed(list(zip(gradients, times, strict=False))):
                    g = jnp.where(t < until, jnp.asarray(x, jnp.float32), g)
                new, state = gx.step(tx, w, g, state)
                return (new, state), abs(new - w).max()

            w = jnp.zeros(n)
            (w, state), steps = jax.lax.scan(one, (w, tx.init(w)), jnp.arange(1500))
            return w, np.asarray(decoded(state.slots["rms"]["s"]), np.float64), steps.max()

        wide = [x.astype(np.float64) ** 2 for x in (before, after)]
        true = wide[0] * (1 - 0.999**700) * 0.999**800 + wide[1] * (1 - 0.999**800)
        gone = [large + small, small, 0 * small]
        for storage, bias in (("bfloat16_stochastic", 0.005), ("root8", 0.005), ("dynamic8", 0.03)):
            _, v, _ = run(storage, 1e-3, [before, after], [700])
            assert abs(np.log10(v / true).mean()) < bias
            w, _, largest = run(storage, 1.0, gone, [1, 100])
            assert largest < 10  # learning rates; 7,600 where a v above 0 becomes 0
            assert np.all(np.asarray(w)[1::BLOCK] == 0)
        _, v, _ = run("bfloat16", 1e-3, [before, after], [700])
        assert abs(np.log10(v / true).mean()) > 0.1  # that the test can fail: to nearest, it stalls


def params():
    return {"w": jnp.asarray(numbers(16, 300)), "e": jnp.asarray(numbers(4096)), "b": jnp.asarray(numbers(40))}


class TestStates:
    def test_one_word_for_all_or_for_some(self):
        tx = gx.chain(gx.adam(0.1), state_dtype="root8")
        assert repr(tx.rules[2]) == "debias()"
        assert repr(tx.rules[1]) == "rms(decay=0.999, state_dtype='root8')"
        slots = tx.init(params()).slots
        assert slots["rms"]["s"]["w"].codes.dtype == jnp.uint8
        assert slots["momentum"]["m"]["w"].codes.dtype == jnp.int8
        assert slots["momentum"]["m"]["w"].scale.shape == (16, 2)
        assert slots["momentum"]["m"]["b"].dtype == jnp.float32  # too small for blocks
        elements = 16 * 300 + 4096
        assert gx.describe(tx, params()).bytes == 2 * (elements + 4 * (16 * 2 + 16) + 4 * 40) + 8
        some = gx.rms(0.9, state_dtype={"^w": "bfloat16_stochastic", "w|e": Blocks("dynamic")})
        found = gx.chain(some, gx.precondition()).init(params()).slots["rms"]["s"]
        assert (found["w"].dtype, found["e"].codec, found["b"].dtype) == (jnp.bfloat16, Blocks("dynamic"), jnp.float32)
        assert "'w|e': 'dynamic8'" in repr(some)

    def test_complex_slots_stay(self):
        tx = gx.chain(gx.adam(0.1), state_dtype="root8")
        slots = tx.init(jnp.ones(5000, jnp.complex64)).slots
        assert slots["momentum"]["m"].dtype == jnp.complex64
        assert isinstance(slots["rms"]["s"], Encoded)

    @pytest.mark.parametrize("storage", ["bfloat16_stochastic", "root8"])
    def test_a_step_is_made_before_the_rounding(self, storage):
        """The first step of Adam is the same to rounding, and later ones are near."""
        p = params()
        plain, tx = gx.adam(0.1), gx.chain(gx.adam(0.1), state_dtype=storage)
        with gx.executor("native"):
            step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s), donate_argnums=(0, 2))
            state = jax.jit(tx.init)(p)
            (ours, state), (theirs, _) = step(jax.tree.map(jnp.copy, p), p, state), gx.step(plain, p, p, plain.init(p))
            for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)  # of 0.1, the step
            ours, state = step(ours, p, state)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(ours))

    def test_skipped_steps_and_small_leaves_in_flat_arrays(self):
        tx, p = gx.chain(gx.adam(0.1), state_dtype="bfloat16_stochastic"), params()
        flat = gx.packed(tx, below=4096)
        plain, in_flat = tx.init(p), flat.init(p)
        for _ in range(3):
            plain, in_flat = tx.update(p, plain)[1], flat.update(p, in_flat)[1]
        unpacked = gx.unpack_state(flat, in_flat, p)
        for x, y in zip(jax.tree.leaves(unpacked.slots), jax.tree.leaves(plain.slots), strict=True):
            np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=2**-7)  # next to each other, if not equal
        mixed = gx.packed(gx.chain(gx.adam(0.1), state_dtype="root8"))
        _, state = mixed.update(p, mixed.init(p))
        assert isinstance(state.slots["rms"]["s"].leaves["w"], Encoded)

    def test_migrate_says_what_it_rounds(self):
        p, g = params(), jax.tree.map(lambda x: x / 3, params())
        wide, tx = gx.adam(0.1), gx.chain(gx.adam(0.1), state_dtype="root8")
        _, state = wide.update(g, wide.init(p))
        new, report = gx.migrate(state, tx, p)
        assert report.kept["rms.s/w"] == "float32 as root8"
        back, report = gx.migrate(new, wide, p)
        assert report.kept["momentum.m/e"] == "root8 as float32"
        m = state.slots["momentum"]["m"]["w"]
        top = np.abs(np.asarray(m)).max()
        np.testing.assert_allclose(back.slots["momentum"]["m"]["w"], m, atol=top / 127)
        np.testing.assert_array_equal(back.slots["momentum"]["m"]["b"], state.slots["momentum"]["m"]["b"])
        same, report = gx.migrate(new, tx, p)
        assert report.kept["rms.s"] == ""
        assert all(map(np.array_equal, jax.tree.leaves(same), jax.tree.leaves(new)))
        _, report = gx.migrate(new, gx.chain(gx.adam(0.1), state_dtype="bfloat16"), p)
        assert report.kept["rms.s/w"] == "root8 as bfloat16"

    def test_other_ways_in_and_out(self):
        p = params()
        tx = gx.chain(gx.adam(0.1), state_dtype="root8")
        _, state = tx.update(p, tx.init(p))
        read = gx.load_state_dict(tx, p, gx.state_dict(state))
        assert all(map(np.array_equal, jax.tree.leaves(read), jax.tree.leaves(state)))
        optax = pytest.importorskip("optax")
        theirs = optax.scale_by_adam()
        _, of_optax = theirs.update(p, theirs.init(p))
        ours = gx.from_optax(tx, of_optax, p)
        m = of_optax.mu["w"]
        np.testing.assert_allclose(ours.slots["momentum"]["m"]["w"].decode(), m, atol=float(abs(m).max()) / 127)
        handing = gx.switch(1, tx, gx.chain(gx.sgd(0.1, momentum=0.9), state_dtype="bfloat16"))
        state = handing.init(p)
        for _ in range(2):
            _, state = handing.update(p, state)
        b = state.then.slots["trace"]["b"]["w"]
        assert b.dtype == jnp.bfloat16
        # m̂ = g, which a heavy ball holds as g / (1 − μ), and fades by μ in its step
        np.testing.assert_allclose(np.float32(b), 0.9 * 10 * p["w"] + p["w"], atol=float(abs(p["w"]).max()) / 8)

    def test_refusals(self):
        with pytest.raises(TypeError, match="float16 for slot 's': squares of small gradients are 0 there"):
            gx.rms(0.9, state_dtype="float16")
        assert gx.momentum(0.9, state_dtype="float16").state_dtype == "float16"
        with pytest.raises(TypeError, match=r"float8_e4m3fn has 3 bits of mantissa.*'root8'"):
            gx.momentum(0.9, state_dtype="float8_e4m3fn")
        with pytest.raises(TypeError, match="'bfloat16_stochastic', 'root8', 'dynamic8'"):
            gx.momentum(0.9, state_dtype="root4")
        for by_leaf, words in (
            ({}, "by selectors of leaves, found {}"),
            ({"w": {"w": "root8"}}, "'w': {'w': 'root8'}"),
        ):
            with pytest.raises(TypeError, match=words):
                gx.momentum(0.9, state_dtype=by_leaf)
        with pytest.raises(TypeError, match=r"found Codec\(\)"):
            gx.momentum(0.9, state_dtype=gx.codecs.Codec())
        wrong: list[tuple[Any, Any, str]] = [
            (Blocks, {"map": "roots"}, "Blocks: map must be 'root' or 'dynamic', found 'roots'"),
            (Blocks, {"least": -1}, "Blocks: least must be an integer from 0 .*, found -1"),
            (Blocks, {"least": 0.5}, "Blocks: least must be an integer from 0 .*, found 0.5"),
            (Rounded, {"dtype": "float16"}, "Rounded: dtype must be 'bfloat16', found 'float16'"),
        ]
        for codec, argument, words in wrong:
            with pytest.raises((TypeError, ValueError), match=words):
                codec(**argument)
        with pytest.raises(ValueError, match=r"state_dtype of rule 'momentum', 'z', chooses no leaf"):
            gx.momentum(0.9, state_dtype={"z": "root8"}).init(params())
