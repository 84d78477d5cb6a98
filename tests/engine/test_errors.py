"""Wrong use fails at the first call, and the message says which rule, which leaf, what was found and what to do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx as gx

W = jnp.ones((3, 1))


def raises(error, *parts):
    return pytest.raises(error, match="(?s)" + ".*".join(parts))


def test_a_transformation_is_no_state():
    """In place of one it has no arrays: nothing would be saved, found or carried over, without a word."""
    tx, params = gx.adam(0.1), jnp.ones(2)
    calls = {
        "state_dict": lambda: gx.state_dict(tx),
        "hyperparams": lambda: gx.hyperparams(tx),
        "migrate": lambda: gx.migrate(tx, tx, params),
    }
    for name, call in calls.items():
        with raises(TypeError, f"{name}: state is a transformation. Pass the state that its init or update returned."):
            call()


class TestOrder:
    """A chain is checked at init, not when it is built: half a chain may be named and reused."""

    def refused(self, tx, *parts):
        with raises(ValueError, *parts):
            tx.init(W)

    def test_second_moment_never_used(self):
        self.refused(gx.chain(gx.momentum(), gx.rms(), LR), "second moment of rule 'rms' is never used", "precondition")
        self.refused(gx.rms(), "'rms' is never used")
        self.refused(gx.chain(gx.adagrad_sum(name="mine")), "'mine' is never used")

    def test_nothing_to_use(self):
        self.refused(gx.precondition(), r"'precondition' \(position 0", "needs a second moment", r"rms\(\)")
        self.refused(gx.chain(LR, gx.max_v()), r"'max_v' \(position 1", "needs a second moment")
        used_up = gx.chain(gx.rms(), gx.precondition(), gx.precondition())
        self.refused(used_up, r"'precondition_1' \(position 2")

    def test_replaced_before_use(self):
        self.refused(gx.chain(gx.rms(), gx.rms(), gx.precondition()), "'rms_1'", "replaces the second moment of 'rms'")

    def test_not_last(self):
        for rule in (gx.nag_lookahead(), gx.two_point_lookahead()):
            self.refused(gx.chain(rule, LR), f"'{rule.label}' must be the last", "'scale_by_learning_rate'")

    def test_halves_can_be_built(self):
        half = gx.chain(gx.momentum(), gx.rms(), name="averages")
        assert gx.chain(half, gx.precondition()).init(W).count == 0

    def test_names(self):
        with raises(ValueError, "2 rules of one chain are named 'same'"):
            gx.chain(gx.scale(1.0, name="same"), gx.scale(2.0, name="same"))
        with raises(ValueError, "name must be a non-empty string", "''"):
            gx.scale(1.0, name="")

    def test_members(self):
        with raises(TypeError, "chain: argument 1 must be a gradtx chain or rule", r"rms.> \(call it"):
            gx.chain(gx.momentum(), gx.rms)  # pyright: ignore[reportArgumentType] - the mistake under test
        with raises(TypeError, "chain: argument 0 must be .*, found 0.1"):
            gx.chain(0.1)  # pyright: ignore[reportArgumentType] - the mistake under test
        with raises(TypeError, "seal: tx must be a gradtx chain or rule, or an optax transformation, found None"):
            gx.seal(None)  # pyright: ignore[reportArgumentType] - the mistake under test


LR = gx.scale_by_learning_rate(0.1)


class TestTrees:
    def test_params_missing(self):
        for tx, rule in ((gx.adamw(0.1), "add_decayed_weights"), (gx.decay_weights(0.1, 0.1), "decay_weights")):
            with raises(ValueError, f"'{rule}' reads the parameters", r"update\(updates, state, params\)"):
                tx.update(W, tx.init(W))

    def test_never_a_silent_broadcast(self):
        tx = gx.sgd(0.1)
        with raises(ValueError, r"leaf 'w'", r"parameters have shape \(3, 1\)", r"updates \(3,\)", "nothing is broad"):
            tx.update({"w": jnp.ones(3)}, tx.init({"w": W}), {"w": W})

    def test_slots_of_other_shapes(self):
        tx = gx.sgd(0.1, momentum=0.9)
        with raises(ValueError, r"leaf 'w'", r"slots trace.b have shape \(3, 1\)", r"updates \(3,\)"):
            tx.update({"w": jnp.ones(3)}, tx.init({"w": W}))

    def test_trees_that_differ(self):
        tx = gx.sgd(0.1)
        with raises(ValueError, "parameters and the updates are different trees", r"missing 'b'; unexpected 'a'"):
            tx.update({"w": W, "b": W}, tx.init({"w": W, "b": W}), {"w": W, "a": W})
        with raises(ValueError, "different trees"):
            tx.update([W, W], tx.init([W, W]), (W, W))
        with raises(
            ValueError, r"leaf 'n' .* no gradient \(None\)", "or filter the parameters as the updates are: None in"
        ):
            tx.update({"w": W, "n": None}, tx.init({"w": W}), {"w": W, "n": 3})
        tx = gx.sgd(0.1, momentum=0.9)
        with raises(ValueError, "slots trace.b and the updates are different trees", r"unexpected 'w'"):
            tx.update({"v": W}, tx.init({"w": W}))

    @pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.array([True]), np.arange(3), 3, True])
    def test_integer_leaves(self, leaf):
        with raises(TypeError, r"leaf 'n' of the parameters has dtype (int|bool)", "filter it out"):
            gx.adam(0.1).init({"w": W, "n": leaf})
        tx = gx.sgd(0.1)
        with raises(TypeError, r"leaf 'n' of the updates has dtype"):
            tx.update({"n": leaf}, tx.init({"n": jnp.ones(3)}))

    @pytest.mark.parametrize("leaf", ["text", object(), len])
    def test_leaves_that_are_no_arrays(self, leaf):
        with raises(TypeError, r"leaf 'n' of the parameters is a", "not an array"):
            gx.adam(0.1).init({"w": W, "n": leaf})

    def test_keys_are_no_numbers(self):
        with raises(TypeError, "leaf", "dtype key"):
            gx.adam(0.1).init({"key": jax.random.key(0)})

    def test_complex_where_it_has_no_meaning(self):
        z = {"z": jnp.ones(2, jnp.complex64)}
        for rule in (gx.sign(), gx.clip_by_value(1.0)):
            with raises(TypeError, f"'{rule.label}' has no meaning for complex", r"leaf 'z'", "two leaves"):
                rule.init(z)

    def test_complex_and_real_do_not_mix(self):
        tx, z = gx.sgd(0.1), jnp.ones(2, jnp.complex64)
        with raises(TypeError, "the update is complex", "the parameter is real"):
            tx.update(z, tx.init(z.real), z.real)
        with raises(TypeError, "the update is real", "the parameter is complex"):
            tx.update(z.real, tx.init(z), z)
        tx = gx.sgd(0.1, 0.9)
        with raises(TypeError, "the update is complex", "slot trace.b is real"):
            tx.update(z, tx.init(z.real))

    def test_inside_jit_the_error_is_the_same(self):
        tx = gx.sgd(0.1)
        with raises(ValueError, "nothing is broadcast"):
            jax.jit(tx.update)({"w": jnp.ones(3)}, tx.init({"w": W}), {"w": W})


class TestState:
    def test_of_another_chain(self):
        with raises(
            ValueError, "made by another chain", "missing 'hyperparams", "unexpected", "Call init of this chain"
        ):
            gx.adam(0.1).update(W, gx.sgd(0.1, 0.9).init(W))
        with raises(ValueError, r"missing 'slots.max_v.s'"):
            gx.amsgrad(0.1).update(W, gx.adam(0.1).init(W))

    def test_of_another_library(self):
        with raises(TypeError, "needs the ChainState", "found tuple"):
            gx.adam(0.1).update(W, optax.adam(0.1).init(W))  # pyright: ignore[reportArgumentType] - the mistake under test
        with raises(TypeError, "needs the ChainState", r"update\(updates, state, params\)"):
            gx.adam(0.1).update(W, W, gx.adam(0.1).init(W))  # pyright: ignore[reportArgumentType] - arguments swapped

    def test_optax_members_that_change_their_state(self):
        def grow(updates: Any, state: Any, params: Any = None) -> Any:
            return updates, [*state, 1.0]

        def cut(updates: Any, state: Any, params: Any = None) -> Any:
            return updates[:1], state

        growing = optax.GradientTransformation(lambda params: [], grow)
        tx = gx.chain(growing)
        with raises(TypeError, "changed the structure or the shapes of its state"):
            tx.update(W, tx.init(W))
        cutting = optax.GradientTransformation(optax.init_empty_state, cut)
        tx = gx.chain(cutting)
        with raises(ValueError, "changed the structure or the shapes of the updates"):
            tx.update(W, tx.init(W))


class TestHyperparameters:
    @pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan"), float("inf"), jnp.array(2.0), np.float32(1)])
    def test_decay(self, decay):
        for rule in (gx.momentum, gx.trace, gx.nesterov, gx.rms, gx.monotone_rms):
            with raises(ValueError, f"{rule.__name__}: decay must be at least 0 and less than 1, found"):
                rule(decay)

    def test_negative(self):
        with raises(ValueError, "precondition: eps must be at least 0, found -1"):
            gx.precondition(-1.0)
        with raises(ValueError, "precondition: eps_root must be at least 0, found -1"):
            gx.adam(0.1, eps_root=-1.0)
        with raises(ValueError, "average_iterates: rate must be at least 0 and at most 1, found 1.5"):
            gx.average_iterates(1.5)
        with raises(ValueError, "average_iterates: pull must be at least 0 and at most 1, found 2"):
            gx.schedule_free_sgd(0.1, b1=2)
        with raises(ValueError, "lookahead: share must be at least 0 and at most 1, found 1.1"):
            gx.lookahead(5, 1.1)
        with raises(ValueError, "asgd|learning_rate must be a number"):
            gx.asgd(float("nan"))
        for rule in (gx.clip_by_value, gx.clip_by_norm, gx.clip_by_global_norm):
            with raises(ValueError, f"{rule.__name__}: limit must be at least 0, found -1"):
                rule(-1.0)
        with raises(ValueError, "add_decayed_weights: rate must be at least 0"):
            gx.adamw(0.1, weight_decay=-0.1)
        with raises(ValueError, "adagrad_sum: initial"):
            gx.adagrad(0.1, initial=-1.0)
        with raises(ValueError, "nag_lookahead: factor"):
            gx.nag(0.1, lookahead=-1.0)

    @pytest.mark.parametrize("value", [None, "0.1", True, 1j, [0.1], jnp.ones(3)])
    def test_not_a_number(self, value):
        with raises((TypeError, ValueError), "learning_rate must be a number, a scalar array or a schedule"):
            gx.sgd(value)

    def test_a_schedule_that_is_no_scalar(self):
        tx = gx.sgd(lambda count: jnp.ones(3))
        with raises(ValueError, r"scale_by_learning_rate.learning_rate has shape \(3,\)", "must be a scalar", "vmap"):
            tx.init(W)

    def test_nesterov_without_momentum(self):
        for make in (gx.sgd, gx.rmsprop):
            with raises(ValueError, "nesterov=True needs a momentum"):
                make(0.1, nesterov=True)

    def test_state_dtype(self):
        with raises(TypeError, "state_dtype must be a floating dtype, found int32"):
            gx.chain(gx.momentum(), state_dtype=jnp.int32)
        with raises(TypeError, "state_dtype must be a floating dtype, found 'float17'"):
            gx.momentum(state_dtype="float17")

    def test_set(self):
        pair = (gx.rms(), gx.precondition())
        state = gx.chain(*pair, *pair, LR).init(W)
        with raises(ValueError, "no hyperparameter 'lr'", "precondition.eps", "scale_by_learning_rate.learning_rate"):
            gx.set_hyperparams(state, lr=1.0)
        with raises(ValueError, "'decay' is ambiguous", "rms.decay, rms_1.decay"):
            gx.set_hyperparams(state, decay=0.5)
        with raises(ValueError, "learning_rate is given twice"):
            gx.set_hyperparams(state, {"scale_by_learning_rate.learning_rate": 1.0}, learning_rate=1.0)
        with raises(ValueError, r"learning_rate has shape \(2,\)"):
            gx.set_hyperparams(state, learning_rate=jnp.ones(2))
        with raises(TypeError, "expected the ChainState of a gradtx chain, found tuple"):
            gx.set_hyperparams(optax.adam(0.1).init(W), learning_rate=1.0)  # pyright: ignore[reportArgumentType] - mistake

    @pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["", "jit"])
    def test_injected(self, wrap):
        """In update each would be read from the state, whatever was injected: silently nothing."""
        for factory, values, what in (
            (gx.adam, {"learning_rate": 0.1}, "momentum: decay"),
            (lambda lr: gx.sgd(lr), {"lr": optax.linear_schedule(0.1, 0.0, 3)}, "learning_rate: learning_rate"),
            (lambda at: gx.switch(at, gx.sgd(1.0), gx.sgd(0.1)), {"at": 3}, "switch: at"),
        ):
            injected = optax.inject_hyperparams(factory)(**values)
            with raises(TypeError, f"{what} comes from optax.inject_hyperparams", "set_hyperparams"):
                wrap(injected.init)(W)
        around = optax.inject_hyperparams(lambda lr: optax.chain(gx.momentum(), optax.scale(-lr)))(lr=0.1)
        wrap(around.init)(W)  # what is injected there is optax's own

    def test_rules_are_frozen(self):
        with raises(AttributeError, "'decay' cannot be set"):
            gx.momentum().decay = 0.5  # pyright: ignore[reportAttributeAccessIssue] - the mistake under test


def test_describe():
    with raises(TypeError, "describe: expected a gradtx chain or rule, found"):
        gx.describe(optax.adam(0.1), W)  # pyright: ignore[reportArgumentType] - the mistake under test


def test_maxout():
    with raises(ValueError, r"last axis of shape \(2, 5\) cannot be divided into groups of 2"):
        gx.maxout(jnp.ones((2, 5)), 2)
    with raises(ValueError, "group_size must be at least 1, found 0"):
        gx.maxout(jnp.ones(2), 0)
    with raises(ValueError, r"last axis of shape \(\)"):
        gx.maxout(jnp.array(1.0), 1)


class TestStatesThatDoNotFit:
    """A state that a cast, or another program, made something else of is refused by name, and not computed with."""

    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(3)}

    @pytest.mark.parametrize(
        ("rule", "changed", "error", "message"),
        [
            ("momentum", {"weight": jnp.zeros(1)}, ValueError, r"slot momentum.weight of this state has shape \(1,\)"),
            ("momentum", {"weight": jnp.zeros((), int)}, TypeError, "slot momentum.weight .* dtype int32, .* floating"),
            ("momentum", {"weight": "1"}, TypeError, "slot momentum.weight of this state is str"),
            ("rms", {"s": {"w": jnp.ones((2, 2), int), "b": jnp.ones(3)}}, TypeError, "slot rms.s, leaf 'w', .* int32"),
            (
                "rms",
                {"s": {"w": jnp.ones((2, 2)), "b": jnp.ones(3, complex)}},
                TypeError,
                "rms.s, leaf 'b', .* complex",
            ),
        ],
    )
    def test_slots(self, rule, changed, error, message):
        tx = gx.adam(0.1)
        state = tx.init(self.params)
        wrong = state._replace(slots=state.slots | {rule: state.slots[rule] | changed})
        with pytest.raises(error, match=message):
            tx.update(self.params, wrong)

    def test_counts_hyperparameters_and_packed_slots(self):
        tx = gx.adam(0.1)
        state = tx.init(self.params)
        with pytest.raises(TypeError, match="count of this state is of dtype float32, and must be integer"):
            tx.update(self.params, state._replace(count=jnp.float32(1)))
        with pytest.raises(TypeError, match=r"hyperparameter \S+ of this state is of dtype int32"):
            tx.update(self.params, jax.tree.map(lambda x: x.astype(int), state))
        tx = gx.packed(tx)
        state = tx.init(self.params)
        with pytest.raises(TypeError, match=r"slot momentum\.m, leaf 'b', of this state is of dtype int32"):
            tx.update(self.params, state._replace(slots=jax.tree.map(lambda x: x.astype(int), state.slots)))

    @pytest.mark.parametrize(
        ("wrapper", "field", "value"),
        [
            (lambda tx: gx.skip_nonfinite(tx), "skipped", 0.0),
            (lambda tx: gx.skip_nonfinite(tx), "consecutive", [0]),
            (lambda tx: gx.loss_scale(tx), "good_steps", 0.5),
            (lambda tx: gx.loss_scale(tx), "scale", 1),
            (lambda tx: gx.accumulate(tx, 2), "held", 1.0),
            (lambda tx: gx.switch(5, tx, tx), "at", 5.0),
            (lambda tx: gx.switch(5, tx, tx), "switched_at", -1.0),
            (lambda tx: gx.swats(0.1), "average", [0.0]),
            (lambda tx: gx.swats(0.1), "count", 1.0),
        ],
    )
    def test_wrappers(self, wrapper, field, value):
        tx = wrapper(gx.adam(0.1))
        state = tx.init(self.params)._replace(**{field: jnp.array(value)})
        with pytest.raises((TypeError, ValueError), match=rf"{type(tx).__name__}: {field} of this state"):
            tx.update(self.params, state)

    def test_sums_of_accumulated_gradients(self):
        tx = gx.accumulate(gx.sgd(0.1), 2)
        state = tx.init(self.params)
        state = state._replace(sums=jax.tree.map(lambda x: x.astype(int), state.sums))
        with pytest.raises(TypeError, match="accumulate: sums, leaf 'b', of this state is of dtype int32"):
            tx.update(self.params, state)
