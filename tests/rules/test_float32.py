"""Float32 against the truth, which is float64: 1 − β for β up to 1 − 1e-9, first steps, settled states, long runs."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalog import OPTIMIZERS, RULES
from scripts.float32 import GRADIENTS, RUNS, errors, last_updates, measured

import gradtx as gx
from gradtx import dialects
from gradtx._core.numerics import complement, fade, mix, split

pytestmark = pytest.mark.usefixtures("quick_compilation")

ULP = 2.0**-23
DECAYS = [0.0, 1e-6, 0.3, 0.5, 0.6, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-6, 1 - 1e-9]
PRE = gx.precondition(0.0)


def parts(decay):
    """A decay and its complement, as a rule gets them."""
    value, residual = split(decay, "float32")
    return value, complement({"decay": value, "decay_residual": residual}, "decay")


class TestMix:
    """One step of an average, of random numbers of all magnitudes."""

    RNG = np.random.default_rng(0)
    OLD, NEW = (
        jnp.asarray(RNG.normal(size=2000) * 10 ** RNG.uniform(-15, 15, 2000), jnp.float32),
        jnp.asarray(RNG.normal(size=2000) * 10 ** RNG.uniform(-15, 15, 2000), jnp.float32),
    )

    @pytest.mark.parametrize("decay", DECAYS)
    def test_is_exact_to_rounding(self, decay):
        value, rest = parts(decay)
        np.testing.assert_allclose(float(rest), 1 - decay, rtol=ULP)
        old, new = np.float64(self.OLD), np.float64(self.NEW)
        size = np.abs(decay * old) + np.abs((1 - decay) * new)
        np.testing.assert_array_less(np.abs(mix(value, rest, self.OLD, self.NEW) - (decay * old + (1 - decay) * new)),
                                     2 * ULP * size)  # fmt: skip
        np.testing.assert_allclose(mix(value, rest, 0 * self.OLD, self.NEW), (1 - decay) * new, rtol=ULP)
        np.testing.assert_allclose(fade(value, rest, self.OLD, 0 * self.NEW), decay * old, rtol=ULP)

    @pytest.mark.parametrize("decay", DECAYS)
    def test_settles(self, decay):
        value, rest = parts(decay)
        settled = jax.lax.fori_loop(0, 100, lambda _, s: mix(value, rest, s, self.NEW), self.NEW)
        np.testing.assert_allclose(settled, self.NEW, rtol=1.01 * ULP)

    def test_infinite_stays_infinite(self):
        for decay in DECAYS[1:]:
            np.testing.assert_array_equal(
                mix(*parts(decay), jnp.array([np.inf, -np.inf]), jnp.ones(2)), [np.inf, -np.inf]
            )

    def test_huge_numbers_do_not_overflow(self):
        most = float(jnp.finfo(jnp.float32).max)
        for decay in DECAYS:
            for old, new in ((most, most), (most, -most), (-most, most)):
                assert np.isfinite(mix(*parts(decay), jnp.float32(old), jnp.float32(new) * (1 - ULP)))

    def test_decay_zero_is_the_new_number(self):
        np.testing.assert_array_equal(mix(*parts(0.0), self.OLD, self.NEW), self.NEW)

    def test_in_float64_there_is_no_residual(self):
        with jax.enable_x64(True):
            value, residual = split(0.999, "float64")
            assert (float(value), float(residual)) == (0.999, 0.0)
            rounded, residual = split(jnp.array(0.999), "float32")
            assert float(rounded) + float(residual) == pytest.approx(0.999, rel=1e-14)

    def test_of_infinity_there_is_no_residual(self):
        assert [*map(float, split(np.inf, "float32"))] == [np.inf, 0]


def first_steps(decay: Any) -> dict[str, Any]:
    """Of each rule that takes 1 − β, a chain and its first update at a gradient of 1."""
    beta: Any = decay(0) if callable(decay) else decay
    rest, averaged = 1 - beta, gx.chain(gx.momentum(decay), gx.rms(decay), gx.debias(), PRE)
    mixed = gx.chain(gx.rms(decay), gx.quasi_hyperbolic(0.0, decay), PRE)
    return {
        "momentum": (gx.momentum(decay), rest),
        "rms": (gx.chain(gx.rms(decay), PRE), rest**-0.5),
        "monotone_rms": (gx.chain(gx.monotone_rms(decay), PRE), rest**-0.5),
        "centered_rms": (gx.chain(gx.centered_rms(decay), PRE), (beta * rest) ** -0.5),
        "dampening": (gx.damped_trace(0.5, decay), 1.0),
        "torch.rmsprop": (dialects.torch.rmsprop(1.0, decay, eps=0.0, maximize=True), rest**-0.5),
        "epsilon hat": (gx.chain(gx.momentum(decay), gx.rms(decay), PRE, gx.debias()), 1.0),
        "adam": (averaged, 1.0),
        "momentum, debias": (gx.chain(gx.momentum(decay), gx.debias()), 1.0),
        "nesterov": (gx.nesterov(decay), beta * rest / (1 - beta**2) + 1),
        "trace(nesterov)": (gx.trace(decay, nesterov=True), 1 + beta),
        "quasi_hyperbolic": (gx.chain(gx.momentum(0.0), gx.scale(0.0), gx.quasi_hyperbolic(decay)), rest),
        "quasi_hyperbolic(2)": (mixed, (rest * (1 + beta)) ** -0.5),
        "average_iterates": (gx.average_iterates(0.0, pull=decay), rest),
    }  # fmt: skip


def update(tx, state=None):
    g = jnp.ones(2)
    return tx.update(g, tx.init(g) if state is None else state)[0][0]


class TestFirstStep:
    @pytest.mark.parametrize("way", ["number", "schedule", "set"])
    def test_of_every_rule_with_a_decay(self, way):
        """By a number, by a schedule in Python, by set_hyperparams."""

        def start(tx: Any, decay: float) -> Any:
            state = tx.init(jnp.ones(2))
            names = [name for name, x in gx.hyperparams(state).items() if x == np.float32(0.9)]
            return gx.set_hyperparams(state, {name: decay for name in names}) if way == "set" else state

        for decay in (0.9, 0.999, 1 - 1e-6, 1 - 1e-9):
            chains = first_steps({"number": decay, "schedule": lambda count, d=decay: d, "set": 0.9}[way])
            txs = {name: tx for name, (tx, _) in chains.items()}
            states = {name: start(tx, decay) for name, tx in txs.items()}
            found = jax.jit(lambda states, txs=txs: {name: update(tx, states[name]) for name, tx in txs.items()})(
                states
            )
            for name, (_, expected) in first_steps(decay).items():
                assert float(found[name]) == pytest.approx(expected, rel=4 * ULP), (name, decay)

    def test_of_dampening_in_the_second(self):
        for decay in (0.9, 0.999, 1 - 1e-6, 1.0):
            tx = gx.damped_trace(0.0, decay)
            _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
            np.testing.assert_allclose(update(tx, state), 1 - decay, rtol=2 * ULP)

    def test_of_the_way_back_in_the_second(self):
        for share in (0.9, 0.999, 1 - 1e-6, 1.0):
            tx, g = gx.lookahead(2, share), jnp.ones(2)
            _, state = tx.update(g, tx.init(g))
            np.testing.assert_allclose(tx.update(0 * g, state)[0], share - 1, rtol=2 * ULP)

    def test_of_debiasing_in_the_learning_rate(self):
        for decay in (0.0, 0.9, 0.999, 1 - 1e-6, 1 - 1e-9):
            tx = dialects.optax.dadapt_adamw(1.0, (0.5, decay), eps=0.0, estim_lr0=1.0)
            assert float(update(tx)) == pytest.approx(-1, rel=4 * ULP)

    def test_of_a_sweep(self):
        decays = [0.9, 0.999, 0.9999, 1 - 1e-6, 1 - 1e-9]
        for chunk in (1, 5):
            rows = gx.sweep(
                lambda tx, key: update(tx), gx.rmsprop(1.0, eps=0.0), {"decay": decays}, seeds=1, chunk=chunk
            )
            np.testing.assert_allclose(rows["result"], -1 / np.sqrt(1 - np.array(decays)), rtol=4 * ULP)


def test_decays_that_round_to_one_are_decays():
    """1 − 1e-9 is 1 in float32, and 1 − β is not 0."""
    g, decay = jnp.array([1.0, -3.0]), 1 - 1e-9
    for tx in (gx.adam(-0.1, b2=decay), gx.adam(-0.1, decay), gx.amsgrad(-0.1, decay, decay), gx.nadam(-0.1, b2=decay)):
        p, state = jnp.zeros(2), tx.init(g)
        step = jax.jit(lambda p, s, tx=tx: gx.step(tx, p, g, s))
        for k in range(3):
            p, state = step(p, state)
            if "nesterov" not in state.slots:
                np.testing.assert_allclose(p, 0.1 * (k + 1) * np.sign(g), rtol=1e-5)
        assert np.isfinite(p).all()
    tx = gx.switch(2, gx.adam(0.1), gx.sgd(1e-9, momentum=decay))
    state = tx.init(g)
    for _ in range(3):
        updates, state = tx.update(g, state)
    np.testing.assert_allclose(updates, -np.asarray(g), rtol=1e-5)  # 1e-9 times g/(1 − μ)


def test_a_state_without_residuals_goes_on():
    """One of before there were any, or made by hand: 1 − β is that of the rounded β, and the structure stays."""
    tx, g = gx.adam(0.1), jnp.ones(2)
    state = tx.init(g)
    old = state._replace(hyperparams={rule: {name: x for name, x in own.items() if not name.endswith("_residual")}
                                      for rule, own in state.hyperparams.items()})  # fmt: skip
    for _ in range(2):
        updates, after = tx.update(g, old)
        assert jax.tree.structure(after) == jax.tree.structure(old)
        old = after
    np.testing.assert_allclose(updates, -0.1, rtol=1e-4)
    arrays = {path: x for path, x in gx.state_dict(state).items() if not path.endswith("_residual")}
    loaded = gx.load_state_dict(tx, g, arrays)
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert float(loaded.hyperparams["rms"]["decay_residual"]) == 0


def test_a_residual_goes_with_its_hyperparameter():
    tx, g = gx.chain(gx.rms(0.999), PRE), jnp.ones(2)
    state = gx.set_hyperparams(tx.init(g), decay=0.9999)
    assert not any("residual" in name for name in gx.hyperparams(state)), "a residual is no hyperparameter"
    carried, _ = gx.migrate(state, tx, g, hyperparams=True)
    for one in (state, carried, gx.load_state_dict(tx, g, gx.state_dict(state))):
        np.testing.assert_allclose(update(tx, one), 100, rtol=2 * ULP)
    given, _ = gx.migrate(state, tx, g)
    np.testing.assert_allclose(update(tx, given), 1000**0.5, rtol=2 * ULP)


# -- Every rule and optimizer ------------------------------------------------------------------------------------------

SLOW = 1 - 1e-6
NOT_OF_ROUNDING = ("seal", "monitor", "monitor(2)", "add_noise")  # noise is another in another dtype
NOT_OF_ROUNDING += ("scale_by_distance_bound",)  # grows until it overflows, since the parameters here stay
CHAINS = {name: tx for name, tx in (RULES | OPTIMIZERS).items() if name not in NOT_OF_ROUNDING}
EXTREME = {
    "adam, slow": gx.adam(0.1, SLOW, SLOW),
    "adam, eps 0": gx.adam(0.1, eps=0.0),
    "adam, eps 1e-30": gx.adam(0.1, eps=1e-30, eps_root=1e-30),
    "adam, eps 1e30": gx.adam(1e30, eps=1e30),
    "amsgrad, slow": gx.amsgrad(0.1, 0.9, SLOW, 0.0),
    "nadam, slow": gx.nadam(0.1, SLOW, SLOW),
    "nadam, scheduled": gx.nadam(0.1, 0.9999, 0.9999, schedule_decay=1.0),
    "article_adam, slow": gx.article_adam(0.1, 0.99, SLOW),
    "article_max_v, slow": gx.article_max_v(0.1, 0.99, SLOW),
    "rmsprop, slow": gx.rmsprop(0.1, SLOW, momentum=0.999),
    "rmsprop, centered": gx.rmsprop(0.1, 0.9999, centered=True),
    "sgd, slow": gx.sgd(0.1, SLOW, nesterov=True),
    "sgd, decays 0": gx.chain(gx.momentum(0.0), gx.trace(0.0), gx.rms(0.0), PRE),
    "sgd, least rate": gx.sgd(1e-36),
    "sgd, largest rate": gx.sgd(1e36, 0.5),
    "dampening": gx.damped_trace(0.9999, 0.9999),
    "momentum, least": gx.chain(gx.scale(1e-25), gx.momentum(SLOW), gx.scale(1e25)),
}


SUMMED = ("adagrad", "yogi", "average_iterates", "schedule_free", "resilient", "rprop", "update_rms", "adadelta")
SUMMED += ("gradient_norm", "sm3", "running_sum", "ftrl", "kronecker", "coin_betting")
"""Rules that sum, or multiply, over all steps."""
VANISHING = ("centered", "belief")
"""Rules whose second moment is 0, but for βᵗ, if the gradient does not change."""


def bound(name, tx, steps):
    """How many ulp an update may be off: some of its own arithmetic, and half of one for each step it remembers."""
    decays = [x for rule in tx.rules for own, x in rule.hyperparameters().items() if own == "decay"]
    remembered = (
        steps if any(word in f"{name} {tx}" for word in SUMMED) else min(steps, 1 / (1 - max(decays, default=0)))
    )
    return (8 if steps == 1 else 32) + remembered / 2


OVERFLOWING = {
    f"{size:g}, {steps} steps": (steps, np.concatenate([size / 2 * GRADIENTS[:2].clip(-2, 2), GRADIENTS[2:]]))
    for size in (1e18, 1e20, 1e37, 1e-20, 1e-30, 0.0)
    for steps in (1, 2, 3)
}
"""Two gradients that are next to nothing, or whose squares are no float32, and one as usual: for each way to end."""

ENDING = {
    "at_learned_rate": "sums products of gradients and ways; optax's mechanize is NaN from 1e20 on",
    "sgd, decays 0": "0·∞ in an average that forgets all, as in torch's and optax's RMSprop",
}
"""Chains that are NaN behind squares that overflow, and why."""


def hold(txs, executor):
    with gx.executor(executor):
        found = last_updates(txs, runs=RUNS | OVERFLOWING)
    truth = last_updates(txs, "float64", runs=RUNS | OVERFLOWING)
    worse = []
    for run, name in itertools.product(OVERFLOWING, txs.keys() - ENDING.keys()):
        if not np.isfinite(found[run][name]).all() and np.abs(truth[run][name]).max() < 1e38:
            worse.append(f"{name}, {run}: {found[run][name]}, and in float64 {truth[run][name]}")
    for run, (steps, _) in RUNS.items():
        for name, tx in txs.items():
            if "constant" in run and any(word in f"{name} {tx}" for word in VANISHING):
                continue
            if not (error := errors(found[run][name], truth[run][name])) <= bound(name, tx, steps):
                worse.append(f"{name}, {run}: {error:.3g} ulp, and may be {bound(name, tx, steps):.3g}")
    assert not worse, "\n".join(worse)


def test_every_rule_and_optimizer():
    hold(CHAINS, "native")


def test_extreme_hyperparameters():
    hold(EXTREME, "reference")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_rounded_once(dtype):
    """Gradients and updates are of the low precision, all between is float32."""
    txs = {
        name: CHAINS[name] for name in ("momentum", "trace", "rms", "adam", "amsgrad", "nadam", "rmsprop", "adagrad")
    }
    found, truth, half_an_ulp = last_updates(txs, dtype), last_updates(txs, "float64"), float(jnp.finfo(dtype).eps) / 2
    for run, (name, tx) in itertools.product(RUNS, txs.items()):
        rtol = half_an_ulp + ULP * bound(name, tx, RUNS[run][0])
        least = float(jnp.finfo(dtype).smallest_subnormal)
        np.testing.assert_allclose(found[run][name], truth[run][name], rtol=rtol, atol=least, err_msg=f"{name}, {run}")


@pytest.mark.exhaustive
def test_the_same_in_the_other_executor():
    hold(CHAINS, "reference")
    hold(EXTREME, "native")


@pytest.mark.exhaustive
def test_no_worse_than_optax_and_torch():
    """Their numbers and ours, which `python tests/scripts/float32.py` writes into a table."""
    pytest.importorskip("torch")
    for name, runs in measured().items():
        for run, (ours, *theirs) in runs.items():
            assert ours <= 1.5 * min(theirs) + 2, (name, run, ours, theirs)


def test_squares_that_overflow_make_no_nan():
    """Of 1e20 the square is no float32; the step is 0 there, as optax's, and right in all other elements."""
    g = {"b": jnp.array([1e20, -1e20, 1.0]), "w": jnp.array([[1e20, 1.0], [1.0, 1.0]])}
    chains = {  # and the last element's third step
        "ν₂ = 1": (gx.chain(gx.rms(0.5), gx.quasi_hyperbolic(1.0, 1.0), PRE), 0.875**-0.5),
        "ν₂ = 0": (gx.chain(gx.rms(0.5), gx.quasi_hyperbolic(1.0, 0.0), PRE), 1.0),
        "factored": (gx.scale_by_factored_rms(least=2), 1.0),
        "yogi": (gx.chain(gx.yogi_rms(0.5), gx.debias(), PRE), 0.875**0.5),
        "ftrl": (gx.ftrl_proximal(1.0), -(3**0.5)),
        "eigenbasis": (gx.scale_by_eigenbasis_rms(0.5, 0.0, every=1), 0.75**-0.5),
        "kronecker": (gx.scale_by_kronecker_root(eps=0.0), 3**-0.5),
    }

    @jax.jit
    def third():
        last = {}
        for name, (tx, _) in chains.items():
            p = jax.tree.map(jnp.zeros_like, g)
            state = tx.init(p)
            for _ in range(3):
                last[name], state = tx.update(jax.lax.optimization_barrier(g), state, p)
        return last

    for name, u in third().items():
        np.testing.assert_allclose(u["b"], [0, 0, chains[name][1]], rtol=1e-6, err_msg=name)
        elsewhere = 0 if name in ("factored", "kronecker") else chains[name][1]
        np.testing.assert_allclose(u["w"], [[0, elsewhere], [elsewhere, elsewhere]], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("size", [1e-30, 1e20, 1e37])
@pytest.mark.parametrize("executor", ["native", "reference"])
def test_adamax_takes_no_squares(size, executor):
    """Its steps are those of gradients of another size; by hand, and as torch's and optax's."""
    g = jnp.array([1.0, -1.0, 0.5]) * size
    ours = {
        "gradtx": gx.adamax(-1.0, b2=0.5),
        "torch": dialects.torch.adamax(1.0, (0.9, 0.5), eps=0.0, maximize=True),
        "keras": dialects.keras.adamax(-1.0, beta_2=0.5, epsilon=0.0),
        "optax": dialects.optax.adamax(-1.0, b2=0.5, eps=0.0),
        "optax's own": optax.adamax(-1.0, b2=0.5, eps=0.0),
    }
    with gx.executor(executor):

        @jax.jit
        def run(g):
            last = {}
            for name, tx in ours.items():
                state = tx.init(g)
                _, state = tx.update(g, state, g)
                last[name], _ = tx.update(g / 8, state, g)
            return last

        m = (0.9 * 0.1 + 0.1 / 8) / 0.19
        for name, u in run(g).items():
            np.testing.assert_allclose(u, np.sign(g) * m / 0.5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("executor", ["native", "reference"])
def test_lengths_whose_quotient_is_no_normal_number(executor):
    """The limit over the norm is below 1e-38, and so is 1 over the norm; what is clipped is the direction."""
    way = np.array([1.0, -0.5, 0.1])
    unit = way / np.linalg.norm(way)

    @jax.jit
    def run(g, limit):
        p = jnp.array([1.0, 0.0, 0.0])
        txs = {clip.__name__: clip(limit) for clip in (gx.clip_by_norm, gx.clip_by_global_norm, gx.clip_by_rms)} | {
            "torch": dialects.torch.clip_grad_norm(limit),
            "adaptive_clip": gx.adaptive_clip(limit),
            "trust ratio": gx.scale_by_trust_ratio(limit),
        }
        lookahead = gx.normalized_lookahead(limit)
        ahead = lookahead.update(g, lookahead.init(p))[1].slots["normalized_lookahead"]["offset"]
        return {name: tx.update(g, tx.init(p), p)[0] for name, tx in txs.items()} | {"ahead": ahead}

    with gx.executor(executor):
        for limit, size in [(1.0, 3e38), (1e-3, 1e36), (1e-20, 1e20), (1e-30, 1e9)]:
            for name, u in run(jnp.asarray(size * way, jnp.float32), jnp.float32(limit)).items():
                length = np.sqrt(3) if name == "clip_by_rms" else 1
                np.testing.assert_allclose(np.float64(u) / limit, length * unit, rtol=1e-5, err_msg=f"{name}, {size}")
    with gx.executor(executor):  # and a quotient that is too large
        tx, p = gx.scale_by_trust_ratio(), jnp.array([1e30, 0.0, 0.0])
        np.testing.assert_allclose(tx.update(jnp.float32(1e-20 * way), tx.init(p), p)[0], 1e30 * unit, rtol=1e-5)
