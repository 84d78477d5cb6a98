"""The contract that users hold their rules to: each property refuses a rule that lacks it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx as gx
from gradtx import testing
from gradtx._chain import Chain


class Direction(gx.Rule):
    """A rule that maps the direction alone."""

    def of(self, u):
        raise NotImplementedError

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=self.of(signal.direction)), {}


class without_extra_arguments(Chain):
    def update(self, updates, state, params=None):  # pyright: ignore[reportIncompatibleMethodOverride] - is what is wrong
        return super().update(updates, state, params)


class for_vectors(Direction):
    def of(self, u):
        return u - u[0]


class wide_slot(gx.Rule):
    def slots(self, param):
        return {"m": jnp.zeros(param.shape)}  # of whatever dtype is the default

    def apply(self, signal, slots, param, c):
        return signal, {"m": slots.m}


class narrowed_by_numpy(Chain):
    def update(self, updates, state, params=None, **extra_args):
        return super().update(jax.tree.map(lambda u: u * np.float32(1), updates), state, params)


class squares_as_stored(Chain):
    def update(self, updates, state, params=None, **extra_args):
        return super().update(jax.tree.map(lambda u: u * u, updates), state, params)


class normalized(Direction):
    def of(self, u):
        return u / abs(u)


class cubed(Direction):
    def of(self, u):
        return u * u * u


class weak_count(Chain):
    def update(self, updates, state, params=None, **extra_args):
        updates, state = super().update(updates, state, params)
        return updates, state._replace(count=jnp.asarray(1))


class shared_memory(Chain):
    def init(self, params):
        state = super().init(params)
        return state._replace(slots={"trace": state.slots["trace"] | {"b": params}})


class counts_traces(Direction):
    traces = itertools.count(1)

    def of(self, u):
        return u * next(self.traces)


class constant(gx.Rule):
    rate: float = gx.hyper(default=0.5)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=self.rate * signal.direction), {}  # not c.rate


class overflowing(Chain):
    def update(self, updates, state, params=None, **extra_args):
        updates, after = super().update(updates, state, params)
        return updates, after._replace(count=state.count + 1)


class hidden_slot(Chain):
    def init(self, params):
        return super().init({"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)})  # whatever the parameters are


class misprinted(Direction):
    factor: float = 1.0

    def of(self, u):
        return self.factor * u

    def __repr__(self):
        return "misprinted(2.0)"


class shifted(Direction):
    def of(self, u):
        return u + 1


class real_part(Direction):
    def of(self, u):
        return u.real.astype(u.dtype)


class small_steps_from_one(gx.Rule):
    accumulates = True

    def slots(self, param):
        return {"m": jnp.ones_like(param)}

    def apply(self, signal, slots, param, c):
        m = slots.m + 1e-3 * signal.direction  # half of an ulp of bfloat16 is 4e-3
        return signal._replace(direction=1e3 * (m - 1)), {"m": m}


class sums(gx.trace):
    """A trace that says of itself that it is an average."""

    def steady_weight(self, h):
        return 1.0


class doubles(Direction):
    def of(self, u):
        return 2 * u


class says_that_it_doubles(Direction):
    def scales_by(self, h):
        return 2.0

    def of(self, u):
        return jnp.clip(u, -0.01, 0.01)


class forgets(Direction):
    def of(self, u):
        return jnp.sign(u)


class weighs_otherwise(gx.momentum):
    def tick(self, h, scalars, weights, count):
        tick = super().tick(h, scalars, weights, count)
        return tick._replace(scalars={"weight": jnp.ones(())})


class says_that_it_forgets(gx.momentum):
    accumulates = False


class late(gx.Rule):
    """The direction of the step before."""

    accumulates = False

    def slots(self, param):
        return {"before": jnp.zeros_like(param)}

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=-slots.before), {"before": signal.direction}


class squares_that_it_forgets(gx.rms):
    accumulates = False


class sums_of_trees(gx.Rule):
    maps_trees = True

    def init_tree(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def apply_tree(self, trees, state):
        state = jax.tree.map(jnp.add, state, trees.direction)
        return state, state


class loop_from_a_constant(Direction):
    def of(self, u):
        return u / jax.lax.fori_loop(0, 2, lambda _, x: x + abs(u).max(), 1.0)


class scaled_square(gx.Rule):
    """Right as written; but (0·s)·(0·s) of zeros that XLA knows becomes 0·s², and the square of 2⁹⁹ is no float32."""

    scale: gx.Hyper = gx.hyper(default=2.0**99)

    def apply(self, signal, slots, param, c):
        u = signal.direction
        return signal._replace(direction=u + jnp.sign(u) * jnp.square(u * c.scale) * 0), {}


class flattened(Direction):
    def of(self, u):
        return u.ravel().reshape(u.shape)


class promotes(Direction):
    def of(self, u):
        return (u * jnp.ones((), jnp.bfloat16)).astype(u.dtype)


class remembers(Direction):
    seen = []

    def of(self, u):
        self.seen[:] = [u]
        return u


BROKEN = {
    "is an optax transformation": (without_extra_arguments((gx.sign(),)), "unexpected keyword argument 'value'"),
    "takes any tree": (for_vectors(), "IndexError"),
    "keeps its types": (wide_slot(), "rule 'wide_slot': slots returns m in float64, for a leaf in float32"),
    "takes weak types for what they say": (
        narrowed_by_numpy((gx.sign(),)),
        "weakly typed leaves: x is float32[], not float64[]",
    ),
    "computes in float32": (squares_as_stored((gx.momentum(),)), "state: slots/momentum/m/w is "),
    "does nothing at zero": (normalized(), "updates of zero gradients in float32: b is [nan nan], not [0. 0.]"),
    "stays finite": (cubed(), "very small and large gradients in float32: 0/w is "),
    "compiles once": (weak_count((gx.sign(),)), "traced 2 times instead of once"),
    "donates and branches": (shared_memory((gx.trace(),)), "state/slots/trace/b/b is the memory of parameters/b"),
    "scans as it loops": (counts_traces(), "scan and loop differ: 0/b is "),
    "sweeps by vmap": (constant(), "(rule 'constant' does not depend on c.rate: does it read self.rate?): 0/b is "),
    "has one clock": (overflowing(()), "count overflows"),
    "knows no other values": (
        scaled_square(),
        "with known gradients and a state that is passed in, the step is another",
    ),
    "shows what is like the parameters": (hidden_slot((gx.momentum(),)), "slot momentum.m is not found"),
    "is a value": (misprinted(), "its repr makes another: misprinted(2.0)"),
    "shows itself": (shifted(), "rule 'shifted' does not say what it does: write equation = "),
    "is odd": (shifted(), "f(−g, −p) is not −f(g, p): b is "),
    "turns with the gradient": (real_part(), "for |z| = 1: w is "),
    "stores slots as told": (small_steps_from_one(), "updates: b is "),
    "says what it holds": (
        sums(),
        "rule 'sums' declares a steady weight of 1, and a step from there makes it 1.9",
    ),
    "runs in every executor": (counts_traces(), "kernel and reference differ: 0/matrix is "),
    "works in shard map": (loop_from_a_constant(), "carry"),
    "works on explicit meshes": (flattened(), "sharding"),
    "keeps to strict types": (promotes(), "TypePromotionError"),
    "works under guards": (normalized(), "invalid value (nan)"),
    "leaks no tracers": (remembers(), "Leaked"),
}


class ages(gx.Rule):
    """1/t, whose t overflows before it is a float."""

    equation = r"u \leftarrow u / t"

    def tick(self, h, scalars, weights, count):
        return gx.Tick({"share": 1 / (count + 1)}, {}, weights)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.share * signal.direction), {}


def test_a_count_that_overflows_before_it_is_a_float():
    with pytest.raises(AssertionError, match="the step at the last count differs from the one before"):
        testing.check(ages(), only=["has one clock"], report=lambda _: None)


class unweighted(gx.Rule):
    """An average that starts at zero and says nothing of its weight, so that ``debias`` does nothing."""

    accumulates = True
    holds = {"m": "average"}

    def slots(self, param):
        return {"m": jnp.zeros_like(param)}

    def apply(self, signal, slots, param, c):
        m = 0.9 * slots.m + 0.1 * signal.direction
        return signal._replace(direction=m), {"m": m}


class sizes(gx.Rule):
    """An average of |g| that is handed over as one of |g|²."""

    accumulates = True
    holds = {"s": "square"}
    second_moment = "makes"

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def apply(self, signal, slots, param, c):
        s = 0.9 * slots.s + 0.1 * abs(signal.gradient)
        return signal._replace(second_moment=s), {"s": s}


class stands_still(unweighted):
    """A slot that is returned as it came."""

    holds = {}

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=0.9 * slots.m + signal.direction), {"m": slots.m}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (doubles(), "declares that it scales by 1, and makes "),
        (says_that_it_doubles(), "declares that it scales by 2, and makes "),
        (forgets(), "forgets how large the gradient is: declare normalizes = True"),
        (weighs_otherwise(), "holds in 'm' something else than its weight times a constant gradient"),
        (says_that_it_forgets(0.9), "goes on in the direction of gradients that are past: .* accumulates = True"),
        (late(), "goes on in the direction of gradients that are past"),
        (gx.chain(squares_that_it_forgets(0.9), gx.precondition()), "goes on in the direction of gradients"),
        (sums_of_trees(), "goes on in the direction of gradients that are past"),
        (unweighted(), "holds in 'm' an average whose weight is not 1, and no weight"),
        (
            gx.chain(sizes(), gx.precondition()),
            "'s' holds an average of squares, and 0.2 is in it after a gradient of 2",
        ),
        (stands_still(), "a step leaves its slots as they were"),
    ],
)
def test_says_what_it_holds(rule, message):
    with pytest.raises(AssertionError, match=message):
        testing.check(rule, only=["says what it holds"], report=lambda _: None)


def test_each_property_can_fail():
    assert [*BROKEN] == [*testing.PROPERTIES]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_refused(name):
    if name == "runs in every executor" and not gx.native.available():
        pytest.skip(str(gx.native.available()))
    rule, message = BROKEN[name]
    lines = []
    with pytest.raises(AssertionError) as refusal:
        testing.check(rule, only=[name], report=lines.append)
    assert str(refusal.value).startswith(f"{rule} does not keep the contract:\n  {name}: ")
    assert message in str(refusal.value)
    assert lines == [f"FAILS    {name}"]


def test_reports_all_that_fails_and_goes_on():
    lines = []
    with pytest.raises(AssertionError) as refusal:
        testing.check(shifted(), only=["has one clock", "is odd", "does nothing at zero"], report=lines.append)
    assert [line[:9] for line in lines] == ["FAILS    ", "holds    ", "FAILS    "]
    assert "  does nothing at zero: " in str(refusal.value) and "  is odd: " in str(refusal.value)


def test_skips_and_takes_whatever_goes_into_a_chain():
    lines = []
    everything_else = testing.PROPERTIES.keys() - {"has one clock", "turns with the gradient"}
    testing.check(gx.switch(2, gx.sgd(0.1), gx.sign(), carry="reset"), skip=everything_else, report=lines.append)
    assert [line[:6].strip() for line in lines] == ["holds", "is not"]


def test_what_needs_the_loss_is_given_it():
    """By name, in every step, also where a property makes a chain of other rules or gives arguments of its own."""
    names = ["is an optax transformation", "is a value", "sweeps by vmap"]
    lines = []
    testing.check(gx.scale_by_polyak(most=10.0), only=names, extra={"value": 2.0}, report=lines.append)
    assert [line[:6] for line in lines] == ["holds "] * len(names)
    with pytest.raises(AssertionError, match="needs the loss"):
        testing.check(gx.scale_by_polyak(), only=names[:1], report=lines.append)
    with pytest.raises(AssertionError, match="value must be a real number, found 'low'"):
        testing.check(gx.scale_by_polyak(), only=names[:1], extra={"value": "low"}, report=lines.append)


def test_wrong_use():
    with pytest.raises(ValueError, match=r"no property 'is even'; known: .*'is odd'"):
        testing.check(gx.sign(), only=["is even"])
    with pytest.raises(ValueError, match="the second moment of rule 'rms' is never used"):
        testing.check(gx.rms())


def test_leaves_the_compiler_as_it_was():
    before = jax.config.values["jax_disable_most_optimizations"]
    with pytest.raises(AssertionError):
        testing.check(shifted(), only=["is odd"], report=lambda line: None)
    assert jax.config.values["jax_disable_most_optimizations"] == before
