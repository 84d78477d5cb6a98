"""One small regression, trained in each framework in the way its users train."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

STEPS = 30
HIDDEN = 16

_rng = np.random.default_rng(0)
X = _rng.normal(size=(32, 8)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))


class Training(NamedTuple):
    """How to train.

    Attributes:
        start: makes what a step changes, the carry: model or parameters, and the optimizer's state.
        step: compiled: a carry to the next, and the loss before.
        params: the parameters in a carry, as a tree of arrays.
        traces: one entry for each time that the step was traced.
    """

    start: Callable[[], Any]
    step: Callable[[Any], tuple[Any, jax.Array]]
    params: Callable[[Any], Any]
    traces: list[None]


class Run(NamedTuple):
    """A training: the loss before each step, and after all of them the carry and the parameters."""

    losses: np.ndarray
    carry: Any
    params: Any


def run(training: Training, steps: int = STEPS, carry: Any = None) -> Run:
    """So many steps, from the start or from another carry."""
    carry, losses = training.start() if carry is None else carry, []
    for _ in range(steps):
        carry, loss = training.step(carry)
        losses.append(float(loss))
    return Run(np.array(losses), carry, training.params(carry))


@functools.cache
def training(train: Callable[[optax.GradientTransformation], Training], tx: optax.GradientTransformation) -> Training:
    """``train(tx)``, made and compiled once for all tests."""
    return train(tx)


def _error(predicted: Any, traces: list[None]) -> jax.Array:
    traces.append(None)
    return jnp.mean((predicted - Y) ** 2)


def plain(
    tx: optax.GradientTransformation, params: Any, predict: Callable[[Any], jax.Array], seen: Any = lambda p: p
) -> Training:
    """``jax.jit``, carry donated. ``seen`` says where among the parameters the gradient is taken."""
    update, traces = optax.with_extra_args_support(tx).update, []

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: _error(predict(p), traces))(seen(params))
        updates, state = update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    def start():
        own = jax.tree.map(jnp.array, params)  # a copy, since the first step gives it away
        return own, tx.init(own)

    return Training(start, step, lambda carry: carry[0], traces)


def _dense(fan_in: int, fan_out: int) -> dict[str, np.ndarray]:
    kernel = _rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)
    return {"kernel": kernel.astype(np.float32), "bias": np.zeros(fan_out, np.float32)}


PARAMS = {"hidden": _dense(8, HIDDEN), "out": _dense(HIDDEN, 1)}


def _network(params: Any) -> jax.Array:
    hidden = jnp.tanh(X @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def nested_dicts(tx: optax.GradientTransformation, params: Any = PARAMS) -> Training:
    """The parameters as dicts of dicts, the network as a function."""
    return plain(tx, params, _network)


def fast_and_slow(tx: optax.GradientTransformation) -> Training:
    """The parameters in pairs, as ``optax.lookahead`` has them."""
    return plain(tx, optax.LookaheadParams.init_synced(PARAMS), _network, seen=lambda params: params.fast)


def haiku(tx: optax.GradientTransformation) -> Training:
    """The dicts of dicts that Haiku makes, with names like ``mlp/~/linear_0``."""
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([HIDDEN, 1], activation=jnp.tanh)(x)))
    return plain(tx, network.init(jax.random.key(0), X), lambda params: network.apply(params, X))


class _NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8, HIDDEN, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, 1, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))  # no parameter: not to be trained

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))


def flax_nnx(tx: optax.GradientTransformation, wrt: Any = nnx.Param) -> Training:
    """``nnx.Optimizer`` under ``nnx.jit``, both donated."""
    traces = []

    def start():
        model = _NNX(nnx.Rngs(0))
        return model, nnx.Optimizer(model, tx, wrt=wrt)

    @functools.partial(nnx.jit, donate_argnums=(0, 1))
    def step(model, optimizer):
        value_and_grad = nnx.value_and_grad(lambda m: _error(m(X), traces), argnums=nnx.DiffState(0, wrt))
        value, grads = value_and_grad(model)
        optimizer.update(model, grads)
        return value

    return Training(start, lambda c: (c, step(*c)), lambda c: nnx.as_pure(nnx.state(c[0], nnx.Param)), traces)


class _Linen(nn.Module):
    boxed: bool

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        init = nn.with_partitioning(init, (None, None)) if self.boxed else init
        return nn.Dense(1, kernel_init=init)(jnp.tanh(nn.Dense(HIDDEN, kernel_init=init)(x)))


def flax_linen(tx: optax.GradientTransformation, boxed: bool = False) -> Training:
    """``TrainState`` under ``jax.jit``, donated; ``boxed``: with kernels in boxes that name their axes."""
    model, traces = _Linen(boxed), []

    def start():
        state = TrainState.create(apply_fn=model.apply, params=model.init(jax.random.key(0), X), tx=tx)
        return state.replace(step=jnp.zeros((), jnp.int32))  # not Python's 0, which a file does not give back

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        value, grads = jax.value_and_grad(lambda p: _error(state.apply_fn(p, X), traces))(state.params)
        return state.apply_gradients(grads=grads), value

    return Training(start, step, lambda state: nn.unbox(state.params), traces)


class _Equinox(eqx.Module):
    """With all that may stand in a module: a None where there is no bias, a function, an array that is not trained."""

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear
    activation: Callable[[Any], Any]
    calls: jax.Array

    def __init__(self, key):
        keys = jax.random.split(key)
        self.hidden = eqx.nn.Linear(8, HIDDEN, use_bias=False, key=keys[0])
        self.out = eqx.nn.Linear(HIDDEN, 1, key=keys[1])
        self.activation, self.calls = jnp.tanh, jnp.zeros((), jnp.int32)

    def __call__(self, x):
        return self.out(self.activation(self.hidden(x)))


def trained(model: Any) -> Any:
    """The parameters of an Equinox model, None in place of all else."""
    return eqx.filter(model, eqx.is_inexact_array)


def equinox(tx: optax.GradientTransformation) -> Training:
    """``eqx.filter_jit``, everything donated, and ``eqx.apply_updates``."""
    traces = []

    def start():
        model = _Equinox(jax.random.key(0))
        return model, tx.init(trained(model))

    @eqx.filter_jit(donate="all")
    def step(carry):
        model, state = carry
        value, grads = eqx.filter_value_and_grad(lambda m: _error(jax.vmap(m)(X), traces))(model)
        updates, state = tx.update(grads, state, trained(model))
        return (eqx.apply_updates(model, updates), state), value

    return Training(start, step, lambda carry: trained(carry[0]), traces)
