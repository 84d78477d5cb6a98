"""One run of a sweep: what it gets as its optimizer, and whether that can be swept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradtx._core.dataflow import Flow, flows
from gradtx._core.hyperparams import Entry, find, find_name, with_values
from gradtx._core.limits import checked
from gradtx._core.numerics import split
from gradtx._core.selectors import path_of
from gradtx._engine.backends import executor
from gradtx._engine.transformation import run
from gradtx._wrappers.base import Wrapper

__all__ = ["Point", "Run", "Train", "one_run", "result_names", "traced"]

Point = Mapping[str, float]
"""Hyperparameters by name."""

Train = Callable[[Any, jax.Array], Any]
"""A training as the user writes it: transformation and key to a tree of scalars."""

Swept = dict[str, tuple[str, Entry]]
"""Hyperparameters by the names that were given, with their full names."""

Run = Callable[[jax.Array, jax.Array], Any]
"""The same as a function of the hyperparameters' values, in order, each with its residual, and the key's data."""


def one_run(train: Train, tx: optax.GradientTransformation, names: Sequence[str], swept: Any = None) -> Run:
    """A run of ``train`` as a function of arrays only; ``swept`` as in ``_Row``."""

    def run(values: jax.Array, key: jax.Array) -> Any:
        row = _Row(tx, dict(zip(names, values, strict=True)), swept)
        return train(row, jax.random.wrap_key_data(key))

    return run


def traced(train: Train, tx: optax.GradientTransformation, points: Sequence[Point], shapes: Any) -> Any:
    """The shapes of the results of a run, after all is refused that cannot be swept.

    Args:
        train: the training.
        tx: its transformation.
        points: all that it is to be run with.
        shapes: of the arguments of a ``Run``.

    Raises:
        ValueError: see ``sweep``.
    """
    swept: Swept = {}
    try:
        results = jax.eval_shape(one_run(train, tx, tuple(points[0]), swept), *shapes)
    except jax.errors.JAXTypeError as error:
        error.add_note("sweep: train is compiled, for all runs at once: see what the documentation says of train.")
        raise
    if not swept:
        raise ValueError("sweep: train never called init of the transformation it was given, so all rows would be one")
    for name, (full, entry) in swept.items():
        other = next(short for short in swept if swept[short][0] == full)
        if other != name:
            raise ValueError(f"sweep: {full} is given twice, as {other!r} and {name!r}")
        rule, field = full.split(".")[-2:] if "." in full else (full, full)
        checked(f"sweep: {rule}: {field}", [point[name] for point in points], entry.facts.limits, entry.value.dtype)
    return results


class _Row(Wrapper[Any]):
    """The transformation that a run gets: its state starts at the hyperparameters of the row.

    Args:
        tx: the transformation itself.
        values: of the hyperparameters, by name; under trace.
        swept: if given, the full names are noted in it, and steps are checked to keep what they start with.
    """

    tx: optax.GradientTransformation
    values: Any
    swept: Any = None

    def _key(self) -> tuple[Any, ...]:
        return (id(self),)  # values under trace: another run is another transformation

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        state = self.tx.init(params)
        entries = find(state)
        full = {name: find_name("sweep", entries, name) for name in self.values}
        if self.swept is not None:
            self.swept.update({name: (path, entries[path]) for name, path in full.items()})
        return with_values(
            state, {full[name]: _split(value, entries[full[name]].value.dtype) for name, value in self.values.items()}
        )

    def run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any], apply_updates: bool) -> tuple[Any, Any]:
        """One step of the transformation itself."""
        if self.swept is not None:
            _check_kept(lambda u, s: run(self.tx, u, s, params, extra, False), updates, state, self.swept)
        return run(self.tx, updates, state, params, extra, apply_updates)


def _split(value: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """A value and its residual in the dtype of the hyperparameter."""
    rounded, residual = split(value[0], dtype)
    return rounded, residual + value[1].astype(dtype)


def _check_kept(update: Callable[..., Any], updates: Any, state: Any, names: Swept) -> None:
    """Refuses hyperparameters that a step does not leave in the state, or does not read there."""
    entries, updated = find(state), len(jax.tree.leaves(updates))
    for name, (full, _) in names.items():
        place = updated + entries[full].leaf  # on both sides: updates, then state
        with executor("reference"):  # a call of the kernel would hide what it does not read
            outputs = flows(update, updates, state, follow=place)
        kept = outputs.pop(place)
        if kept is not Flow.SAME:
            raise ValueError(
                f"sweep: {name!r} is overwritten in each step, as by a schedule: what a row starts with would be lost. "
                f"Build the optimizer with a number for {full}. To sweep the height of a schedule, put "
                "gradtx.scale(1.0) at the end of the chain, and sweep its factor."
            )
        if all(flow is Flow.NONE for flow in outputs):
            raise ValueError(f"sweep: {name!r} changes nothing: no step of this optimizer reads {full} in the state")


def result_names(results: Any, names: Sequence[str]) -> list[str]:
    """The columns of the results of a run.

    Args:
        results: their shapes, as a tree.
        names: of the other columns.

    Raises:
        TypeError: for results that are no scalars.
        ValueError: for none, or names that other columns have.
    """
    columns = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(results)[0]:
        name = path_of(path) or "result"
        if leaf.shape != () or not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool):
            raise TypeError(
                f"sweep: train returned {name!r} of shape {leaf.shape} and dtype {leaf.dtype}; results are scalars. "
                "Return its last element or its mean, or its elements one by one, as in list(x)."
            )
        if name in names:
            raise ValueError(f"sweep: the result {name!r} has the name of another column; give it another name")
        columns.append(name)
    if not columns:
        raise ValueError("sweep: train returned nothing; return a scalar, or a dict of scalars, for each run")
    return columns
