"""Gradient health: a rule that watches, the numbers it saw, and what they mean."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from gradtx._core.contract import Named
from gradtx._core.counts import incremented, zero
from gradtx._core.dtypes import promoted
from gradtx._core.limits import integer
from gradtx._core.mesh import size_of
from gradtx._core.numerics import Numbers, is_complex, l2_norm, real_dtype, safe_divide, stacked
from gradtx._core.selectors import flatten_with_keys, path_of
from gradtx._core.walk import walk, words
from gradtx.rules.base import Rule


class MonitorState(NamedTuple):
    """The state of ``monitor``, to be read with ``metrics``: "vector" has one number for each leaf, in their order.

    Real numbers are float32 (float64 beside float64 and complex128 parameters), counts int32 and saturating. Norms and
    zeros are those of the last measured step, 0 before the first; counts are of all measured steps.

    Attributes:
        steps: measured steps.
        wait: steps to go until the next measured one.
        nonfinite_steps: steps with an inf or NaN in the gradient of any leaf.
        clipped_steps: steps in which the gradient of any leaf was clipped.
        size: a tree like the parameters, the number of elements of each leaf, as a real number.
        gradient_norm: a vector, the L2 norm of the gradient as it came into the chain.
        update_norm: a vector, the L2 norm of the direction where the monitor stands.
        param_norm: a vector, the L2 norm of the parameters; NaN where ``update`` got none.
        zeros: a vector, the share of elements of the gradient that are 0.
        nonfinite: a vector, the number of steps with an inf or NaN in the gradient.
        clipped: a vector, the number of steps in which the gradient was clipped.
    """

    steps: jax.Array
    wait: jax.Array
    nonfinite_steps: jax.Array
    clipped_steps: jax.Array
    size: Any
    gradient_norm: Any
    update_norm: Any
    param_norm: Any
    zeros: Any
    nonfinite: Any
    clipped: Any


_VECTORS = ("gradient_norm", "update_norm", "param_norm", "zeros", "nonfinite", "clipped")


def as_trees(state: MonitorState) -> MonitorState:
    """The state as files hold it: trees of one number for each leaf, in the dtype of its size."""
    sizes, treedef = jax.tree.flatten(state.size)

    def tree(name: str) -> Any:
        vector = getattr(state, name)
        vector = vector if isinstance(vector, jax.core.Tracer) else np.asarray(vector)
        numbers = [vector[..., i] for i in range(len(sizes))]
        if jnp.issubdtype(vector.dtype, jnp.floating):
            numbers = [x.astype(size.dtype) for x, size in zip(numbers, sizes, strict=True)]
        return treedef.unflatten(numbers)

    return state._replace(**{name: tree(name) for name in _VECTORS})


def as_vectors(state: MonitorState) -> MonitorState:
    """The state from that by leaf."""
    sizes = jax.tree.leaves(state.size)

    def vector(name: str) -> jax.Array:
        numbers = jax.tree.leaves(getattr(state, name))
        dtype = jnp.dtype(jnp.int32) if name in ("nonfinite", "clipped") else _widest(sizes)
        return jnp.stack([jnp.asarray(x, dtype) for x in numbers]) if numbers else jnp.zeros(0, dtype)

    return state._replace(**{name: vector(name) for name in _VECTORS})


def _widest(leaves: Sequence[Any]) -> jnp.dtype:
    return promoted(jnp.float32, *(real_dtype(x.dtype) for x in leaves))


class monitor(Rule):
    r"""Watch gradients and updates, change nothing: u ← u.

    Put it at the end of a chain, where the direction is the update (behind a rule that must be last itself, seal that:
    ``chain(..., seal(nag_lookahead()), monitor())``), and read it with ``metrics`` and ``diagnose``. Per leaf it
    measures, of the gradient g as it came in, the gradient lane ḡ and the direction u where it stands:

        ‖g‖, ‖u‖, ‖p‖,    the share of zeros in g,    steps with an inf or NaN in g,    steps with g clipped

    A leaf counts as **clipped** in a step if each element of ḡ lies between 0 and that of g, and not all are equal.
    That is what a clip by norm or by value in front of the first accumulator does (and a ``scale`` below 1), and what
    weight decay does not. Not counted are clips behind an accumulator: of the direction, nobody knows how long it
    should be. Nor those of plain SGD seen from behind its learning rate, which turns ḡ round: there, put another
    monitor right behind the clip.

    Args:
        every: n ≥ 1: measure the first step and every n-th from there. The others only count down (``lax.cond``).

    State: ``MonitorState``, five real numbers and two counts for each leaf, in the slot ``state``: few arrays, however
    many leaves there are, but for their sizes. Norms are taken in float32 or wider, and do not overflow.

    Inf and NaN: pass, and are counted; the norm of such a leaf is inf or NaN in that step. Inside ``skip_nonfinite``
    or ``loss_scale`` there are none; a monitor in front of those (``chain(monitor(), skip_nonfinite(tx))``) sees them.
    Complex leaves: the norm of their absolute values. A leaf of size 0 has norm 0 and no zeros.

    Raises:
        TypeError: if ``every`` is no integer.
        ValueError: if it is below 1, or more than int32 holds.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.clip_by_norm(1.0), gradtx.momentum_sgd(0.5), gradtx.monitor())
    >>> params = {"w": jnp.array([1.0, 2.0, 2.0])}
    >>> updates, state = tx.update({"w": jnp.array([3.0, 4.0, 0.0])}, tx.init(params), params)
    >>> seen = gradtx.metrics(state)
    >>> print(seen["gradient_norm/w"], seen["update_norm/w"], seen["update_ratio/w"], seen["clipped"])
    5.0 0.05 0.0166 1.0
    """

    equation = r"u \leftarrow u"
    observes = ("incoming", "gradient", "direction", "param")
    nonnegative = ("state",)

    every: int = 1

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "every", integer(self.label, "every", self.every, low=1))

    def init_tree(self, params: Any) -> MonitorState:
        """The numbers before the first step: zeros."""

        leaves = jax.tree.leaves(params)
        dtype = _widest(leaves)
        return MonitorState(
            steps=zero(),
            wait=zero(),
            nonfinite_steps=zero(),
            clipped_steps=zero(),
            size=jax.tree.map(lambda p: jnp.array(size_of(p), real_dtype(p.dtype)), params),
            gradient_norm=jnp.zeros(len(leaves), dtype),
            update_norm=jnp.zeros(len(leaves), dtype),
            param_norm=jnp.zeros(len(leaves), dtype),
            zeros=jnp.zeros(len(leaves), dtype),
            nonfinite=jnp.zeros(len(leaves), jnp.int32),
            clipped=jnp.zeros(len(leaves), jnp.int32),
        )

    def terms(self, lanes: Named) -> dict[str, tuple[Any, jax.Array]]:
        """The norms of gradient, update and parameters; zeros; what a clip has shortened."""
        terms = {
            "gradient": ("norm", lanes.incoming),
            "update": ("norm", lanes.direction),
            "zeros": ("sum", _is_zero(lanes.incoming)),
        }
        if lanes.param is not None:
            terms["param"] = ("norm", lanes.param)
        if lanes.gradient is not lanes.incoming:  # else no rule has touched it: there is nothing to compute
            terms["clipped"] = ("sum", _shrinking(lanes.incoming, lanes.gradient))
        return terms

    def due(self, state: MonitorState) -> jax.Array | None:
        """Every n-th step."""
        return None if self.every == 1 else state.wait == 0

    def observe(self, numbers: Mapping[str, Numbers] | None, state: MonitorState, executor: Any) -> MonitorState:
        """The state with the numbers of this step, if it is measured."""
        del executor
        if self.every == 1 and numbers is not None:
            return _measured(numbers, state)
        due = state.wait == 0
        if numbers is not None:  # for another monitor, if not for this one
            after, size = _measured(numbers, state), state.size
            state = MonitorState(*(x if x is size else jnp.where(due, x, y) for x, y in zip(after, state, strict=True)))
        return state._replace(wait=jnp.where(due, self.every - 1, state.wait - 1))


def _measured(numbers: Mapping[str, Numbers], state: MonitorState) -> MonitorState:
    like = state.gradient_norm
    terms = {**numbers, "size": [x.astype(like.dtype) for x in jax.tree.leaves(state.size)]}

    def vector(name: str) -> jax.Array:
        return stacked(terms[name]).astype(like.dtype) if name in terms and like.size else jnp.zeros_like(like)

    gradients, clipped = vector("gradient"), vector("clipped") > 0
    nonfinite = ~jnp.isfinite(gradients)
    return MonitorState(
        steps=incremented(state.steps),
        wait=state.wait,
        nonfinite_steps=_counted(nonfinite.any(), state.nonfinite_steps),
        clipped_steps=_counted(clipped.any(), state.clipped_steps),
        size=state.size,
        gradient_norm=gradients,
        update_norm=vector("update"),
        param_norm=vector("param") if "param" in numbers else jnp.full_like(state.param_norm, jnp.nan),
        zeros=safe_divide(vector("zeros"), vector("size")),
        nonfinite=_counted(nonfinite, state.nonfinite),
        clipped=_counted(clipped, state.clipped),
    )


def _counted(flags: jax.Array, counts: jax.Array) -> jax.Array:
    return jnp.where(flags, incremented(counts), counts)


def _is_zero(g: jax.Array) -> jax.Array:
    return (g == 0).astype(real_dtype(g.dtype))


def _shrinking(g: jax.Array, lane: jax.Array) -> jax.Array:
    """Numbers whose sum is above 0 if each element was moved towards 0, or not at all, and some were."""
    parts = [(g.real, lane.real), (g.imag, lane.imag)] if is_complex(g.dtype) else [(g, lane)]
    between = [(to >= jnp.minimum(x, 0)) & (to <= jnp.maximum(x, 0)) for x, to in parts]
    moved = (lane != g).astype(real_dtype(g.dtype))
    return jnp.where(functools.reduce(jnp.logical_and, between), moved, -jnp.inf)


def metrics(state: Any, name: str | None = None) -> dict[str, jax.Array]:
    """The numbers that the monitors in a state have seen: named scalars, for any logger. Works inside ``jit`` as well.

    Args:
        state: of a chain with a ``monitor`` in it, or any state that holds one: of a wrapper, of an optax chain.
        name: the rule to read, as it is called in its chain, if there are several.

    Returns:
        A flat dict of scalars. For each leaf, by its path, as in ``"gradient_norm/layer_0/w"``, and under the bare name
        for all leaves together:

        - ``gradient_norm``: ‖g‖ as it came into the chain;
        - ``gradient_rms``: ‖g‖/√n, the root mean square of its n elements, which does not grow with the layer;
        - ``update_norm``: ‖u‖ where the monitor stands;
        - ``param_norm``: ‖p‖; NaN where there are no parameters;
        - ``update_ratio``: ‖u‖/‖p‖; NaN where there are no parameters or all are 0, for then there is no such ratio;
        - ``zeros``: the share of elements of g that are 0;
        - ``nonfinite``: measured steps with an inf or NaN in g, a count (of all leaves: in any of them);
        - ``clipped``: the share of measured steps in which g was clipped (of all leaves: any of them).

        And ``steps``, how many were measured. A tree that is one array has the path ``params``. With several monitors,
        each name stands behind that of the rule, ``"monitor_1/steps"``; behind its place in the state where two rules
        have the same name, ``"first/monitor/steps"``.

    A state with more axes, stacked by ``vmap`` or ``scan``, gives arrays with those axes.

    Raises:
        ValueError: if the state holds no monitor, or none of this name, or several of it.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.sgd(0.1), gradtx.monitor())
    >>> params = {"a": jnp.array([3.0]), "b": jnp.array([0.0, 4.0])}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> seen = gradtx.metrics(state)
    >>> print(seen["gradient_norm"], seen["gradient_norm/b"], seen["update_ratio"], seen["zeros/b"], seen["steps"])
    5.0 4.0 0.1 0.5 1
    """
    monitors = _monitors(state)
    if name is not None:
        named = {path: x for path, x in monitors.items() if path == name or path.endswith(f"/{name}")}
        if len(named) != 1:
            listing = ", ".join(map(repr, monitors)) or "none"
            raise ValueError(f"metrics: {len(named) or 'no'} monitors are named {name!r}; this state has: {listing}")
        monitors = {"": next(iter(named.values()))}
    if not monitors:
        raise ValueError(
            f"metrics: this {type(state).__name__} holds no MonitorState. Put monitor() into the chain, and give the "
            "state that init or update returned."
        )
    if len(monitors) == 1:
        return _metrics(as_trees(*monitors.values()))
    numbers = {path: _metrics(as_trees(monitor_state)) for path, monitor_state in monitors.items()}
    return {f"{path}/{key}": value for path, of_monitor in numbers.items() for key, value in of_monitor.items()}


def _monitors(state: Any) -> dict[str, MonitorState]:
    """The monitors' states by the names of the rules; by their places in the state where those are not unique."""
    states = list(walk(state, MonitorState))
    places = [words(keys) for keys, _ in states]
    names = [place[-1] if place else "" for place in places]
    if len(set(names)) < len(names):
        names = ["/".join(place) for place in places]
    return {name: node for name, (_, node) in zip(names, states, strict=True)}


@jax.jit
def _metrics(state: MonitorState) -> dict[str, jax.Array]:
    if state.steps.ndim:
        return jax.vmap(_metrics)(state)
    paths, _ = flatten_with_keys(state.size)
    names = [path_of(path) or "params" for path, _ in paths]
    if len(set(names)) < len(names):  # keys with a slash in them
        names = [jax.tree_util.keystr(path) for path, _ in paths]
    numbers: dict[str, jax.Array] = {"steps": state.steps}

    def add(quantity: str, of_all: jax.Array, of_leaves: list[jax.Array]) -> None:
        numbers[quantity] = of_all
        numbers.update({f"{quantity}/{name}": value for name, value in zip(names, of_leaves, strict=True)})

    sizes, gradients, updates, params, zeros, nonfinite, clipped = map(jax.tree.leaves, state[4:])
    size = sum(sizes, start=jnp.zeros((), jnp.float32))
    gradient, update, param = map(l2_norm, (gradients, updates, params))
    add("gradient_norm", gradient, gradients)
    add("gradient_rms", _rms(gradient, size), [_rms(g, n) for g, n in zip(gradients, sizes, strict=True)])
    add("update_norm", update, updates)
    add("param_norm", param, params)
    add("update_ratio", _ratio(update, param), [_ratio(u, p) for u, p in zip(updates, params, strict=True)])
    in_all = sum((z * n for z, n in zip(zeros, sizes, strict=True)), start=jnp.zeros_like(size))
    add("zeros", safe_divide(in_all, size), zeros)
    add("nonfinite", state.nonfinite_steps, nonfinite)
    steps = state.steps.astype(jnp.float32)
    add("clipped", safe_divide(state.clipped_steps, steps), [safe_divide(count, steps) for count in clipped])
    return {name: jnp.asarray(number) for name, number in numbers.items()}  # out of the boxes of an NNX Optimizer


def _rms(norm: jax.Array, size: jax.Array) -> jax.Array:
    return safe_divide(norm, jnp.sqrt(size))


def _ratio(update: jax.Array, param: jax.Array) -> jax.Array:
    return jnp.where(param == 0, jnp.nan, safe_divide(update, param))
