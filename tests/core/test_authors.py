"""Rules of one's own: each mistake of an author is refused in words; what is right by itself stays so."""

import abc
import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalog import RULES as RULES_OF_GRADTX

import gradtx as gx
from gradtx._core import verification

PARAMS = {"w": jnp.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]]), "b": jnp.array([0.5, -0.5])}


class anchored(gx.Rule):
    """A pull to where the parameters were at the start."""

    equation = r"u \leftarrow u + \lambda (p - a)"
    accumulates = False
    needs_params = True

    rate: gx.Hyper = gx.hyper(default=0.1)

    def slots(self, param):
        return {"a": param, "again": jax.device_put(param)}  # the second is another array in the same memory

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction + c.rate * (param - slots.a)), vars(slots)


@pytest.mark.parametrize(
    "tx", [anchored(), gx.chain(gx.seal(anchored())), gx.chain(optax.contrib.mechanize(optax.sgd(0.1)))]
)
def test_a_fresh_state_shares_no_memory_with_the_parameters(tx):
    params = jax.tree.map(jnp.copy, PARAMS)
    expected, _ = gx.step(tx, params, PARAMS, tx.init(params))
    step = jax.jit(lambda params, state: gx.step(tx, params, PARAMS, state), donate_argnums=(0, 1))
    found, _ = step(params, tx.init(params))  # XLA refuses to be given the same memory twice
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_pickles(protocol):
    phases = gx.switch(2, gx.adam(0.1), gx.chain(gx.sgd(0.1)), carry="reset")
    made = pickle.loads(pickle.dumps([gx.adopt(0.1), gx.asgd(0.1)], protocol))  # with schedules of their own
    assert [str(tx) for tx in made] == [str(gx.adopt(0.1)), str(gx.asgd(0.1))]
    for tx in (gx.momentum(0.5), gx.adamw(0.1), gx.packed(gx.adam(0.1)), gx.accumulate(phases, 2)):
        state = tx.init(PARAMS)
        again = pickle.loads(pickle.dumps(tx, protocol))
        assert again == tx and hash(again) == hash(tx) and repr(again) == repr(tx)
        assert jax.tree.structure(again[0](PARAMS)) == jax.tree.structure(state)


def test_descends_along_the_conjugate_of_the_gradient_of_a_complex_parameter():
    centre, z = 1.0 - 2.0j, np.complex64(3.0 + 1.0j)
    tx, params = gx.sgd(0.1), jnp.asarray(z)
    state = tx.init(params)
    for _ in range(5):
        grads = jax.grad(lambda x: jnp.abs(x - centre) ** 2)(params).conj()
        params, state = gx.step(tx, params, grads, state)
        z = z - 0.1 * 2 * (z - centre)  # the gradient by real and imaginary part
    np.testing.assert_allclose(params, z, rtol=1e-5)


# -- Mistakes ---------------------------------------------------------------------------------------------------------


def rule(*bases, **members):
    """A class of a rule by the name of ``mine``, with annotations under ``fields``."""
    members["__annotations__"] = members.pop("fields", {})
    return type("mine", bases or (gx.Rule,), {"__module__": __name__, **members})


def keep(self, signal, slots, param, c):
    return signal, {}


def halved(self, signal, slots, param, c):
    return signal._replace(direction=0.5 * signal.direction), {}


def returning(make):
    """An ``apply`` that returns this."""
    return {"apply": lambda self, signal, slots, param, c: make(signal, slots, param, c)}


OTHER: Any = None
M = {"accumulates": True, "slots": lambda self, param: {"m": jnp.zeros_like(param)}}
W = {"scalars": lambda self: {"weight": 0.0}}


def ticking(make):
    """A ``tick`` that returns this."""
    return {"apply": keep, "tick": lambda self, h, scalars, weights, count: make(h, scalars, weights, count)}


def direction(make):
    return returning(lambda signal, slots, param, c: (signal._replace(direction=make(signal.direction)), {}))


HYPER = {"fields": {"delta": gx.Hyper}, "delta": gx.hyper(default=1.0)}

CLASSES = {
    "apply misspelt": ({"aply": halved}, "a chain reads no 'aply'; do you mean 'apply'"),
    "apply in capitals": ({"Apply": halved}, "do you mean 'apply'"),
    "tick misspelt": ({"tik": keep, "apply": keep}, "do you mean 'tick'"),
    "slots misspelt": ({"slot": lambda self, param: {}, "apply": keep}, "do you mean 'slots'"),
    "scalars misspelt": ({"scalar": lambda self: {}, "apply": keep}, "do you mean 'scalars'"),
    "accumulates misspelt": ({"acumulates": True, "apply": keep}, "do you mean 'accumulates'"),
    "needs_params misspelt": ({"need_params": True, "apply": keep}, "do you mean 'needs_params'"),
    "equation misspelt": ({"equations": "u", "apply": keep}, "do you mean 'equation'"),
    "second_moment": (
        {"second_moment": "make", "apply": keep},
        "must be 'makes', 'edits', 'uses' or None, found 'make'",
    ),
    "scope": ({"scope": "leafs", "apply": keep}, "scope must be 'leaf', 'tree' or None, found 'leafs'"),
    "accumulates a word": (
        {"accumulates": "yes", "apply": keep},
        "accumulates must be True, False or None, found 'yes'",
    ),
    "holds a word": ({"holds": "average", "apply": keep}, "holds must be a dict, from slots to 'average', 'trace', "),
    "holds of no kind": ({"holds": {"m": "mean"}, "apply": keep}, "or 'maximum', found {'m': 'mean'}"),
    "holds misspelt": ({"hold": {"m": "average"}, "apply": keep}, "do you mean 'holds'"),
    "steady_weight of nothing": (
        {"steady_weight": lambda self: 1.0, "apply": keep},
        "def steady_weight(self, h)",
    ),
    "last a method": ({"last": lambda self: True, "apply": keep}, "last must be True or False, found a function"),
    "equation a list": ({"equation": ["u"], "apply": keep}, "equation must be LaTeX in a string"),
    "a declaration annotated": (
        {"fields": {"accumulates": bool}, "accumulates": True, "apply": keep},
        "accumulates is annotated, which makes it an argument: declare it as accumulates = True",
    ),
    "too few arguments": (
        {"apply": lambda self, signal, slots: (signal, {})},
        "def apply(self, signal, slots, param, c)",
    ),
    "no self": (
        {"slots": lambda param: {}, "apply": keep},
        "slots(param) cannot be called as it will be: def slots(self, param)",
    ),
    "slots a tuple": ({"slots": ("m",), "apply": keep}, "slots is a tuple of 1, and must be a method"),
    "hyper without annotation": (
        {"delta": gx.hyper(default=1.0), "apply": keep},
        "delta: gradtx.Hyper = gradtx.hyper()",
    ),
    "a hyperparameter without hyper": (
        {"fields": {"delta": gx.Hyper}, "delta": 1.0, "apply": keep},
        "delta: gradtx.Hyper = gradtx.hyper(default=1.0)",
    ),
    "the same as a string": ({"fields": {"delta": "gx.Hyper | None"}, "delta": None, "apply": keep}, "is no hyper()"),
    "a default that is a list": (
        {"fields": {"sizes": list}, "sizes": [], "apply": keep},
        "take a number or a tuple instead",
    ),
    "a default first": (
        {"fields": {"a": gx.Hyper, "b": gx.Hyper}, "a": gx.hyper(default=1.0), "b": gx.hyper(), "apply": keep},
        "non-default argument 'b' follows default argument",
    ),
    "a field called name": ({"fields": {"name": str}, "name": "x", "apply": keep}, "the field 'name' would hide"),
    "a field called tick": ({"fields": {"tick": gx.Hyper}, "tick": gx.hyper(), "apply": keep}, "'tick' would hide"),
    "__init__": ({"__init__": lambda self, delta: None, "apply": keep}, "defines __init__, which its fields make"),
    "update": (
        {"update": lambda self, updates, state, params=None: updates},
        "defines update, which is the same for all",
    ),
}


@pytest.mark.parametrize("mistake", CLASSES)
def test_a_class_is_refused_when_it_is_made(mistake):
    members, message = CLASSES[mistake]
    with pytest.raises((TypeError, ValueError)) as refusal:
        rule(**members)
    assert "'mine'" in str(refusal.value)
    assert message in str(refusal.value)


def test_a_default_changed_without_an_annotation_is_refused():
    with pytest.raises(TypeError, match=r"rule 'mine': decay = 0.5 changes no field, .* decay: gradtx.Hyper = "):
        rule(gx.momentum, decay=0.5)


def test_a_default_is_given_by_name():
    with pytest.raises(TypeError, match=r"hyper takes its default by name, .*: hyper\(default=0.9\)"):
        gx.hyper(0.9)  # pyright: ignore[reportArgumentType] - as a user may write it


def test_an_attribute_set_in_post_init_is_refused_in_words():
    class mine(gx.Rule):
        def __post_init__(self):
            super().__post_init__()
            self.ready = 1  # pyright: ignore[reportAttributeAccessIssue] - as a user may write it

    with pytest.raises(AttributeError, match=r"'ready' cannot be set: a mine is a value.*object.__setattr__\(self"):
        mine()


def test_a_post_init_that_skips_that_of_all_rules_is_refused():
    with pytest.raises(TypeError, match="does not call super"):

        class mine(gx.Rule):
            def __post_init__(self):
                pass


RULES = {
    "apply forgotten": ({"forward": halved}, "rule 'mine' does nothing: it has no apply. It defines forward"),
    "return forgotten": (returning(lambda s, *_: None), "must return a signal and a dict of slots, found nothing"),
    "a signal alone": (
        returning(lambda s, *_: s),
        "found a Signal alone: return signal._replace(direction=...), {...}",
    ),
    "an array alone": (returning(lambda s, *_: s.direction), "found an array of shape (2, 3)"),
    "an array for the signal": (returning(lambda s, *_: (s.direction, {})), "must return a signal first"),
    "the other way round": (returning(lambda s, *_: ({}, s)), "must return a signal first, found a dict"),
    "a slot not declared, read": (
        returning(lambda s, slots, *_: (s, {"m": slots.m})),
        "reads slots.m, and the method slots declares none; declare it there",
    ),
    "a slot not declared, returned": (
        returning(lambda s, *_: (s, {"m": s.direction})),
        "with 'm', which would be lost",
    ),
    "a slot not returned": (M | {"apply": keep}, "returns the slots without 'm'"),
    "a slot assigned": (
        M | returning(lambda s, slots, *_: (setattr(slots, "m", s.direction), (s, {}))[1]),
        "without 'm'",
    ),
    "slots as they came": (M | returning(lambda s, slots, *_: (s, slots)), "as a SimpleNamespace: return a dict"),
    "a slot of another shape": (
        M | returning(lambda s, *_: (s, {"m": s.direction[None]})),
        "the slot m as an array of shape (1, 2, 3), for a leaf of shape (2, 3)",
    ),
    "a slot of truths": (M | returning(lambda s, *_: (s, {"m": s.direction > 0})), "the slot m in bool"),
    "a complex slot": (
        M | returning(lambda s, *_: (s, {"m": s.direction * 1j})),
        "the slot m in complex64, and it must be real",
    ),
    "slots a list": ({"slots": lambda self, param: [param], "apply": keep}, "slots must return arrays by their names"),
    "a slot that is a number": (
        {"slots": lambda self, param: {"m": 0.0}, "apply": keep},
        "returns m as 0.0, for a leaf",
    ),
    "a slot of one number": (
        {"slots": lambda self, param: {"m": jnp.zeros(())}, "apply": keep},
        "One number for all leaves belongs into scalars",
    ),
    "a slot of integers": (
        {"slots": lambda self, param: {"t": jnp.zeros(param.shape, int)}, "apply": keep},
        "returns t in int32",
    ),
    "a slot no attribute": ({"slots": lambda self, param: {"my m": param}, "apply": keep}, "by the name 'my m'"),
    "a slot and a scalar": (
        M | {"scalars": lambda self: {"m": 0.0}, "apply": keep},
        "returns 'm', and scalars does too",
    ),
    "a scalar read as a slot": (
        W
        | {"tick": lambda self, h, s, weights, n: gx.Tick({}, vars(s), weights)}
        | returning(lambda s, slots, *_: (s, {"x": slots.weight})),
        "a scalar is for tick, which hands it on",
    ),
    "param without needs_params": (
        returning(lambda s, slots, p, c: (s._replace(direction=s.direction + 0.1 * p), {})),
        "reads param, which is None for a rule that does not declare it: write needs_params = True",
    ),
    "its shape": (
        returning(lambda s, slots, p, c: (s._replace(direction=s.direction * p.shape[0]), {})),
        "needs_params = True",
    ),
    "second moment undeclared": (
        returning(lambda s, *_: (s._replace(direction=s.direction / jnp.sqrt(s.second_moment)), {})),
        "apply reads signal.second_moment, which is None",
    ),
    "both": (
        returning(lambda s, slots, p, c: (s._replace(direction=p / s.second_moment, second_moment=None), {})),
        None,
    ),
    "second moment made, undeclared": (
        returning(lambda s, *_: (s._replace(second_moment=s.direction**2), {})),
        "returns a second moment, and there was none",
    ),
    "second moment not made": ({"second_moment": "makes", "apply": keep}, "declares second_moment = 'makes'"),
    "the gradient edited": (
        returning(lambda s, *_: (s._replace(gradient=0.5 * s.gradient), {})),
        "changes the gradient, which would be lost",
    ),
    "one number for all": (
        direction(jnp.mean),
        "the direction as an array of shape (), for a leaf of shape (2, 3). Nothing is broadcast",
    ),
    "a number": (direction(lambda u: 0.0), "the direction as 0.0, for a leaf"),
    "a row": (direction(lambda u: u[:1]), "the direction as an array of shape (1, 3)"),
    "truths": (direction(lambda u: u > 0), "the direction in bool"),
    "numpy": (direction(np.sqrt), "apply gives an array to numpy"),
    "if": (direction(lambda u: u if u[0, 0] > 0 else -u), "apply decides by a number of the step"),
    "float": (direction(lambda u: u * float(u[0, 0])), "makes a number of Python of an array"),
    "replace": (
        returning(lambda s, *_: (s.replace(direction=s.direction), {})),
        "reads signal.replace, and a signal has gradient",
    ),
    "the lane in place": (returning(lambda s, *_: (setattr(s, "direction", 0), {})), "sets a lane in place"),
    "a lane that is none": (returning(lambda s, *_: (s._replace(update=s.direction), {})), "update"),
    "self.m": (
        M | {"apply": lambda self, s, slots, p, c: (s, {"m": self.m})},
        "reads self.m, which the rule does not have; is slots.m meant?",
    ),
    "self.m set": (
        {"apply": lambda self, s, slots, p, c: (setattr(self, "m", s.direction), {})},
        "sets an attribute of the rule",
    ),
    "an error of Python": (
        {"apply": lambda self, s, slots, p, c: (s, [][0])},
        "rule 'mine': apply: list index out of range",
    ),
    "c of a plain field": (
        {"fields": {"beta": float}, "beta": 0.9}
        | returning(lambda s, sl, p, c: (s._replace(direction=c.beta * s.direction), {})),
        "the field beta is no hyper(), and is read as self.beta",
    ),
    "c of what tick keeps": (
        HYPER
        | returning(lambda s, sl, p, c: (s._replace(direction=c.delta * s.direction), {}))
        | {"tick": lambda self, h, scalars, weights, count: gx.Tick({"half": h.delta / 2}, {}, weights)},
        "reads c.delta, and the coefficients that tick returns are 'half'; hand delta on",
    ),
    "h of nothing": (
        ticking(lambda h, s, weights, n: gx.Tick({"d": h.decay}, {}, weights)),
        "tick reads h.decay, and the hyperparameters",
    ),
    "tick a dict": (
        ticking(lambda h, s, weights, n: vars(h)),
        "tick must return gradtx.Tick(coefficients, scalars, weights), found a dict",
    ),
    "tick a tuple": (ticking(lambda h, s, weights, n: ({}, {}, weights)), "found a tuple of 3"),
    "tick nothing": (ticking(lambda h, s, weights, n: None), "found nothing (is there a return?)"),
    "tick h itself": (
        ticking(lambda h, s, weights, n: gx.Tick(h, {}, weights)),
        "must return coefficients by their names, found a SimpleNamespace",
    ),
    "no weights": (ticking(lambda h, s, weights, n: gx.Tick({}, {}, OTHER)), "must return the weights it got"),
    "a weight of several": (
        ticking(lambda h, s, weights, n: gx.Tick({}, {}, weights._replace(direction=jnp.ones(2)))),
        "the weight direction as an array of shape (2,)",
    ),
    "a coefficient of several": (
        ticking(lambda h, s, weights, n: gx.Tick({"x": jnp.ones(3)}, {}, weights)),
        "the coefficient x as an array of shape (3,)",
    ),
    "a scalar not returned": (
        W | ticking(lambda h, s, weights, n: gx.Tick({}, {}, weights)),
        "tick returns the scalars without 'weight'",
    ),
    "a scalar forgotten altogether": (W | {"apply": keep}, "tick returns the scalars without 'weight'"),
    "a scalar not declared": (
        ticking(lambda h, s, weights, n: gx.Tick({}, {"w": OTHER}, weights)),
        "with 'w', which would be lost",
    ),
    "a scalar not declared, read": (
        ticking(lambda h, s, weights, n: gx.Tick({}, {"w": s.w}, weights)),
        "tick reads scalars.w",
    ),
    "scalars not returned": (
        {"scalars": lambda self: None, "apply": keep},
        "scalars must return numbers by their names, as {'weight': 0.0}, found nothing",
    ),
    "slots by their keys": (
        M | returning(lambda s, slots, *_: (s, {"m": slots["m"]})),
        "what is an attribute: slots.m",
    ),
    "the signal times a number": (returning(lambda s, *_: (0.5 * s, {})), "computes with the signal as a whole"),
    "a slot of half precision": (
        {"slots": lambda self, param: {"m": jnp.zeros(param.shape, "float16")}, "apply": keep},
        "returns m in float16, for a leaf in float32",
    ),
    "scalars that are arrays": (
        {"scalars": lambda self: {"w": jnp.zeros(2)}, "apply": keep},
        "scalars must return numbers by their names",
    ),
    "a moment in no slot": (
        M | {"holds": {"s": "square"}} | returning(lambda s, slots, *_: (s, vars(slots))),
        "declares that it holds a moment in 's', and the method slots declares 'm'",
    ),
    "measure without scope": (
        {"measure": lambda self, groups, total: jnp.ones(len(groups)), "apply": keep},
        "defines measure, which nothing calls, since it declares no scope",
    ),
    "settle without scope": (
        {"settle": lambda self, c, measured: {}, "apply": keep},
        "defines settle, which nothing calls",
    ),
    "scope without measure": ({"scope": "leaf", "apply": keep}, "declares scope = 'leaf', so it must define measure"),
    "reads without scope": ({"reads": ("gradient",), "apply": keep}, "and no scope, so that nothing is measured"),
    "reads param": (
        {"reads": ("param",), "scope": "leaf", "measure": lambda self, g, total: jnp.ones(len(g)), "apply": keep},
        "so it must declare needs_params = True",
    ),
    "total of no function": (
        {"scope": "leaf", "measure": lambda self, g, total: jnp.stack([total(x) for x in g]), "apply": keep},
        "measure: total takes a function and the arrays to sum it over",
    ),
    "measure one number": (
        {"scope": "leaf", "measure": lambda self, groups, total: total(jnp.square, groups[0]), "apply": keep},
        "measure must return a vector with one number for each of 2 groups",
    ),
    "settle a number": (
        {
            "scope": "tree",
            "measure": lambda self, g, total: jnp.ones(len(g)),
            "settle": lambda self, c, m: m,
            "apply": keep,
        },
        "settle must return coefficients by their names",
    ),
    "settle keeps to itself": (
        HYPER
        | {"scope": "tree", "measure": lambda self, g, total: jnp.ones(len(g)), "settle": lambda self, c, m: {"f": m}}
        | returning(lambda s, sl, p, c: (s._replace(direction=c.delta * s.direction), {})),
        "the coefficients that settle returns are 'f'; hand delta on",
    ),
    "a number that nothing settles": (
        {"scope": "leaf", "measure": lambda self, groups, total: [total(jnp.abs, group) for group in groups]}
        | {"apply": keep},
        "rule 'mine' defines measure, and no settle(self, c, measured): what it measures would be lost",
    ),
    "a gradient of another shape": (
        {"filters": True} | returning(lambda s, *_: (s._replace(gradient=s.gradient[0]), {})),
        "apply returns the gradient as an array of shape",
    ),
    "whole and apply": (
        {"maps_trees": True, "apply": keep, "apply_tree": lambda self, trees, state: (trees.direction, state)},
        "defines apply, which nothing calls, since it declares maps_trees = True",
    ),
    "whole and terms": (
        {"maps_trees": True, "terms": keep, "apply_tree": lambda self, trees, state: (trees.direction, state)},
        "defines terms, which nothing calls, since it declares maps_trees = True",
    ),
    "factors of nothing": (
        {"scales": True, "maps_trees": True, "apply_tree": lambda self, trees, state: (trees.direction, state)},
        "declares scales = True, so it must declare maps_trees = True, and with scope = 'tree' give one factor",
    ),
    "apply_tree alone": (
        {"apply": keep, "apply_tree": lambda self, trees, state: (trees.direction, state)},
        "defines apply_tree, which nothing calls",
    ),
    "silent on accumulating": (
        M | {"accumulates": None} | returning(lambda s, slots, *_: (s._replace(direction=slots.m), {"m": s.direction})),
        "the rule has to say whether it accumulates",
    ),
    "silent, of the second moment": (
        {"second_moment": "makes", "slots": M["slots"]}
        | returning(lambda s, slots, *_: (s._replace(second_moment=slots.m**2), {"m": s.direction})),
        "the rule has to say whether it accumulates",
    ),
    "an error of the author": (direction(lambda u: u[3, "x"]), "rule 'mine'"),
    "a field that is a list": (
        {"fields": {"sizes": object}, "apply": keep},
        "the field sizes is a list of 2, which has no hash",
    ),
    "a field that is an array": (
        {"fields": {"array": object}, "apply": keep},
        "the field array is an array of shape (2,), which has no hash",
    ),
    "a field that is a dict": (
        {"fields": {"table": object}, "apply": keep},
        "the field table is a dict, which has no hash",
    ),
}
LEAF = {"w": jnp.zeros((2, 3))}
FIELDS = {"sizes": [1, 2], "array": np.ones(2), "table": {}}


@pytest.mark.parametrize("mistake", RULES)
def test_a_rule_is_refused_at_init(mistake):
    members, message = RULES[mistake]
    made = rule(**members)
    tx = made(*(FIELDS[name] for name in members.get("fields", {}) if name in FIELDS))
    tx = gx.chain(tx, gx.precondition()) if tx.second_moment == "makes" else tx
    tx = gx.chain(gx.rms(), tx) if message is None else tx
    with pytest.raises(Exception) as refusal:
        tx.init(LEAF)
    assert str(refusal.value).startswith("gradtx: ") and "'mine'" in str(refusal.value)
    assert (message or "apply reads param and signal.second_moment") in str(refusal.value)
    assert type(refusal.value) in (TypeError, ValueError, IndexError)
    with pytest.raises(type(refusal.value)):
        jax.eval_shape(tx.init, LEAF)


def test_a_mistake_that_only_another_leaf_shows_is_refused_in_the_step():
    tx = rule(**direction(lambda u: u[:2]))()
    state = tx.init({"w": jnp.zeros(2)})
    with pytest.raises(
        ValueError, match=r"rule 'mine': apply returns the direction as an array of shape \(2,\), for a leaf of"
    ):
        tx.update(jnp.ones(3), tx.init(jnp.zeros(2)))
    assert tx.update({"w": jnp.ones(2)}, state)[0]["w"].shape == (2,)


def test_a_rule_that_maps_whole_trees_returns_trees_like_those_it_got():
    for wrong, message in (
        (lambda u: None, "must return the directions and the state"),
        (lambda u: (u[:1], ()), "other shapes"),
    ):
        tx = rule(maps_trees=True, apply_tree=lambda self, trees, state, wrong=wrong: wrong(trees.direction))()
        with pytest.raises((TypeError, ValueError), match=f"rule 'mine': apply_tree .*{message}"):
            tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


@pytest.mark.parametrize("scope", ["tree", "leaf"])
def test_a_rule_that_scales_returns_factors(scope):
    g = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    right = {"tree": jnp.float32(2.0), "leaf": {"a": jnp.float32(2.0), "b": jnp.float32(3.0)}}

    def scaling(factors):
        return rule(maps_trees=True, scales=True, scope=scope, apply_tree=lambda *_: (factors, ()))()

    updates, _ = scaling(right.pop(scope)).update(g, scaling(0.0).init(g))
    assert updates["a"].tolist() == [2.0, -4.0] and updates["b"].tolist() == [6.0 if scope == "tree" else 9.0]
    for wrong in (*right.values(), g):
        with pytest.raises(ValueError, match=f"rule 'mine': apply_tree must return .* scope = '{scope}'"):
            scaling(wrong).update(g, scaling(0.0).init(g))


# -- What is right ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RULES_OF_GRADTX if name not in ("monitor", "monitor(2)", "seal")])
def test_rules_say_of_themselves_what_a_trace_finds(name):
    for one in (rule for rule in RULES_OF_GRADTX[name].rules if not rule.maps_trees):
        leaf = jax.ShapeDtypeStruct((2, 3), jnp.dtype("float32"))
        remembers = verification._remembers(one, leaf, leaf, leaf if one.second_moment in ("edits", "uses") else None)
        if type(one) is not gx.skip_first:  # which accumulates without slots
            assert one.accumulates is not None if remembers else not one.accumulates
            assert (one.accumulates is None) == (not one.slots(jnp.ones(2)))


class fitted(gx.Rule):
    """All that one may do, and seldom does."""

    accumulates = False
    decay: gx.Hyper = gx.hyper(default=0.9, low=0, below=1)
    power: int = 2

    @property
    def equation(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on a field
        return rf"u \leftarrow u^{{{self.power}}}"

    def __post_init__(self):
        super().__post_init__()
        assert self.power > 0

    @staticmethod
    def slots(param):  # pyright: ignore[reportIncompatibleMethodOverride] - called all the same
        return {"m": jnp.zeros_like(param.real)}

    def scalars(self):
        return {"steps": 0.0}

    def tick(self, h, scalars, weights, count):
        ahead = self.upcoming("decay", h, count)
        numbers: Any = {"two": 2, "half": np.float32(0.5)}
        return gx.Tick({"decay": ahead} | numbers, {"steps": scalars.steps + 1}, weights)

    def _helper(self, u):
        return u * u.conj()

    def powers(self, u):
        return u

    def apply(self, signal, slots, param, c):
        if param is not None:
            raise AssertionError("not declared")
        u = signal.direction
        return signal._replace(direction=c.half * c.two * u), {"m": c.decay * slots.m + self._helper(u).real}


def test_no_rule_is_refused_that_is_right():
    def in_python(count):
        return 0.5 if int(count) < 3 else 0.1

    for tx in (
        fitted(),
        fitted(0.5, power=3),
        gx.chain(fitted(), gx.add_decayed_weights(0.1)),
        fitted(state_dtype="bfloat16"),
    ):
        state = tx.init(PARAMS)
        gx.step(tx, PARAMS, PARAMS, state)
        jax.eval_shape(tx.init, jnp.ones(3, jnp.complex64))
    verification.check(fitted(in_python), jax.ShapeDtypeStruct((3,), jnp.dtype("float32")))  # calls no schedule
    matrices = rule(**direction(lambda u: u @ jnp.eye(3)))()
    gx.where(lambda path, leaf: leaf.ndim == 2, matrices).init(PARAMS)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        rule(**direction(lambda u: -u))().init(PARAMS)


def test_a_rule_is_traced_once_for_all_its_numbers(monkeypatch):
    traces = []
    made = rule(
        **HYPER
        | {"apply": keep, "tick": lambda self, h, s, weights, n: (traces.append(n), gx.Tick({}, {}, weights))[1]}
    )
    for delta in (1.0, 2.0, jnp.array(3.0)):
        jax.eval_shape(made(delta).init, PARAMS)
    assert len(traces) == 1


def test_the_parameter_is_for_rules_that_declare_it():
    """Alone, in front of a rule that reads it, and in a step, which has it at hand."""
    seen = []
    tx = rule(apply=lambda self, signal, slots, param, c: (seen.append(param), (signal, {}))[1])()
    for whole in (tx, gx.chain(tx, gx.add_decayed_weights(0.1))):
        state = whole.init(PARAMS)
        jax.eval_shape(whole.update, PARAMS, state, PARAMS)
        jax.eval_shape(lambda p, s, whole=whole: gx.step(whole, p, p, s), PARAMS, state)
    assert seen and all(param is None for param in seen)


@pytest.mark.parametrize("decorator", [dataclasses.dataclass, dataclasses.dataclass(frozen=True)])
def test_deriving_makes_the_dataclass(decorator):
    with pytest.raises(TypeError, match=r"class 'mine': deriving makes the dataclass\. Take the decorator @dataclass"):
        decorator(rule(apply=keep))

    class of_two_bases(gx.Rule, abc.ABC):  # by another metaclass
        apply = keep

    assert of_two_bases() == of_two_bases()
