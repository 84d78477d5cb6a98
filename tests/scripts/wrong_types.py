"""Misuse that a type checker finds: see ``strict_types.py``, which runs this file by no other means."""

import jax
import jax.numpy as jnp

import gradtx as gx


class steps_of_sign(gx.Rule):
    """A rule that is right."""

    size: gx.Hyper = gx.hyper(low=0)
    smooth: bool = False

    def apply(self, signal: gx.Signal, slots: gx.Named, param: jax.Array, c: gx.Named) -> tuple[gx.Signal, gx.Arrays]:
        return signal._replace(direction=c.size * jnp.sign(signal.direction)), {}


params = {"w": jnp.zeros(3)}
tx = gx.chain(steps_of_sign(0.1), gx.sgd(0.1))
state = tx.init(params)
updates, state = tx.update(params, state, params)

steps_of_sign()  # wrong: size has no default
steps_of_sign(size="much")  # wrong: no number
steps_of_sign(0.1, smooth="yes")  # wrong: no bool
steps_of_sign(0.1, width=3)  # wrong: no such hyperparameter
steps_of_sign(0.1).size = 0.2  # wrong: rules are values
gx.adam()  # wrong: no learning rate
gx.adam(0.1, b3=0.9)  # wrong: no such argument
gx.momentum("0.9")  # wrong: no number
gx.adamw(0.1, decay_mask=lambda path, leaf: leaf.dims > 1)  # wrong: ndim
gx.step(tx, params, state)  # wrong: no gradients
gx.set_hyperparams(state, learning_rate="small")  # wrong: no number
print(gx.set_hyperparams(state, learning_rate=0.1).rates)  # wrong: no such field
print(state.slot)  # wrong: slots
with gx.executor("fast"):  # wrong: no such executor
    pass


class unsized(gx.Rule):
    """A rule that is wrong."""

    def apply(self, signal: gx.Signal, slots: gx.Named, param: jax.Array, c: gx.Named) -> gx.Signal:  # wrong: and slots
        return signal

    def slots(self, param: jax.Array) -> jax.Array:  # wrong: by name
        return jnp.zeros_like(param)


class unsettled(gx.Rule):
    """A rule that is wrong."""

    def tick(self, h: gx.Named) -> gx.Tick:  # wrong: too few arguments
        return gx.Tick({"rate": h.rate}, {}, gx.Weights(jnp.ones(()), jnp.ones(())))

    scope = "world"  # wrong: no such scope
