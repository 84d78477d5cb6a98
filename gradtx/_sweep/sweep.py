"""Sweeps: hyperparameters are data in the state, so that many runs are one compiled program."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._core.numerics import split
from gradtx._sweep.run import Point, Run, Train, one_run, result_names, traced
from gradtx._sweep.table import SEED, SweepTable

__all__ = ["sweep"]

Progress = Callable[[SweepTable, int], Any]
"""A function that is called after each chunk with the table so far, and how many rows it will have."""


def sweep(
    train: Train,
    tx: optax.GradientTransformation,
    grid: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    seeds: int | Iterable[int] = 1,
    *,
    chunk: int | None = None,
    memory: int | None = None,
    progress: Progress | bool = False,
) -> SweepTable:
    """Trains with every combination of hyperparameters and seeds, in one compiled program: the table of what came out.

    ``train`` is a training as you write it for one run. It gets ``tx``, but with a state that ``init`` starts at the
    hyperparameters of its row, so that it is traced and compiled once for all.

    Args:
        train: ``train(tx, key)``, where key is ``jax.random.key(seed)``, for initial parameters and whatever else is
            random. It returns a scalar, or a dict, tuple or other tree of scalars, which are the columns of results.
            It must be such that ``jax.jit`` compiles it: loops by ``lax.scan``, no Python ``if`` on values.
        tx: a gradtx chain, rule or wrapper; or any optax transformation in which such a one stands, or with
            ``optax.inject_hyperparams``.
        grid: ``{name: values}``, for all combinations, the last name varying fastest. Or a list of ``{name: value}``,
            one for each point, for a random search. Names as in ``set_hyperparams``: ``"learning_rate"``, or
            ``"rms.decay"`` where several rules have one of that name; and ``"first.rms.decay"`` for one of several
            chains in a wrapper, whose names in its state stand in front.
        seeds: how many, 0, 1, ...; or which. Each point is run with each seed.
        chunk: how many rows run side by side, under ``vmap``, at most. With 1 there is no ``vmap``: the program is that
            of one run, and runs for one row after the other. None, the default: 1 on a CPU, else by ``memory``.
        memory: bytes that the arrays of a chunk may take, by XLA's own analysis of the compiled program: as many rows
            run side by side as fit. Arrays that ``train`` closes over, such as data, are not counted. None, the
            default: 1 GiB where it is asked for.
        progress: called after each chunk as ``progress(table, rows)`` with the table of what is done and the number of
            rows that it will have: raise in it to stop early. True draws a bar, for which ``rich`` has to be
            installed. It moves by chunks.

    Returns:
        A ``SweepTable``. Each row is what a single run with these hyperparameters gives, to rounding. With ``chunk=1``
        one program runs for each row alone, so that a row is the same to the bit whatever else is swept. Runs that
        diverge hinder nobody.

    Side by side pays on accelerators. On a CPU it takes twice as long to compile, and runs no faster once a step is
    more than some 20 µs of work: there it is for thousands of tiny runs (see ``docs/sweep.md``).

    Raises:
        ValueError: before anything is compiled, for hyperparameters that are unknown (the known ones are listed),
            ambiguous, given twice, outside of their limits, or overwritten in each step, as scheduled ones are; for an
            empty grid, no seeds, and columns of the same name; if ``train`` never calls ``init`` of what it gets; if
            one row alone does not fit into ``memory``.
        TypeError: for values or results that are no scalars, and arguments of other types.
        ModuleNotFoundError: for ``progress=True`` without ``rich``.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> def train(tx, key):
    ...     params = jax.random.normal(key, (10,))
    ...     def one(carry, _):
    ...         params, state = carry
    ...         return gradtx.step(tx, params, 2 * params, state), None  # the gradient of |params|²
    ...     (params, _), _ = jax.lax.scan(one, (params, tx.init(params)), length=20)
    ...     return {"loss": jnp.sum(params**2)}
    >>> grid = {"learning_rate": [0.01, 0.1, 1.0], "decay": [0.0, 0.9]}
    >>> table = gradtx.sweep(train, gradtx.momentum_sgd(0.1), grid, seeds=5)
    >>> len(table), table.over_seeds().best("loss")["learning_rate"]
    (30, 0.1)
    """
    if not callable(train) or not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"sweep: expected sweep(train, tx, grid), a function and a transformation, found {train!r} and {tx!r}"
        )
    points, numbers, limit = _points(grid), _seeds(seeds), _limit(chunk, memory)
    rows = [(point, seed) for point in points for seed in numbers]
    columns = {name: np.array([point[name] for point, _ in rows]) for name in points[0]}
    columns[SEED] = np.array([seed for _, seed in rows])
    inputs = _inputs(points, numbers)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
    with _reporting(progress) as report:
        results = traced(train, tx, points, shapes)
        names = result_names(results, tuple(columns))
        columns |= {name: np.empty(len(rows), x.dtype) for name, x in zip(names, jax.tree.leaves(results), strict=True)}
        done = 0
        for outputs in _chunks(one_run(train, tx, tuple(points[0])), inputs, shapes, limit, memory or 2**30):
            for name, values in zip(names, outputs, strict=True):
                columns[name][done : done + len(values)] = values
            done += len(outputs[0])
            report(SweepTable({name: column[:done] for name, column in columns.items()}, names), len(rows))
    return SweepTable(columns, names)


# ---------------------------------------------------------------------------------------------------------------------
# The arguments
# ---------------------------------------------------------------------------------------------------------------------


def _points(grid: Any) -> list[Point]:
    """The points of a grid, as plain numbers."""
    if isinstance(grid, Mapping):
        values = [np.atleast_1d(np.asarray(value)).tolist() for value in grid.values()]
        points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*values)] if values else []
    elif isinstance(grid, Sequence) and all(isinstance(point, Mapping) for point in grid):
        points = [dict(point) for point in grid]
    else:
        raise TypeError(f"sweep: grid must be {{name: values}} or a list of {{name: value}}, found {grid!r}")
    if not points or not points[0]:
        raise ValueError(f"sweep: the grid {grid!r} has no points; give each hyperparameter one value at least")
    for point in points:
        if point.keys() != points[0].keys():
            raise ValueError(f"sweep: points must have the same names, found {list(points[0])} and {list(point)}")
    return [{name: _number(name, point[name]) for name in points[0]} for point in points]


def _number(name: Any, value: Any) -> float:
    if not isinstance(name, str):
        raise TypeError(f"sweep: names of hyperparameters are strings, found {name!r}")
    if np.shape(value) != () or np.asarray(value).dtype.kind not in "iuf":
        hint = " Build one chain for each schedule, and sweep each." if callable(value) else ""
        raise TypeError(f"sweep: {name} must have numbers as values, found {value!r}.{hint}")
    return float(value)


def _seeds(seeds: Any) -> list[int]:
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    try:
        numbers = [operator.index(seed) for seed in numbers]
    except TypeError:
        raise TypeError(f"sweep: seeds must be whole numbers, or how many, found {seeds!r}") from None
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"sweep: seeds must be different numbers, one at least, found {seeds!r}")
    return numbers


def _limit(chunk: Any, memory: Any) -> int | None:
    """How many rows may run side by side; None if memory decides."""
    for name, value in (("chunk", chunk), ("memory", memory)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"sweep: {name} must be a whole number, 1 or more, or None, found {value!r}")
    return 1 if chunk is memory is None and jax.default_backend() == "cpu" else chunk


def _inputs(points: Sequence[Point], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each row the values, in the widest float there is, each with its residual, and the data of the key."""
    exact = np.array([list(point.values()) for point in points], np.float64)
    values = np.stack(split(exact, jax.dtypes.canonicalize_dtype(np.float64)), axis=-1)
    keys = np.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds])
    return np.repeat(values, len(seeds), axis=0), np.tile(keys, (len(points), 1))


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def _chunks(run: Run, inputs: Any, shapes: Any, limit: int | None, memory: int) -> Iterator[list[np.ndarray]]:
    """The results of all rows, in order, by chunks of one size, of which the last may give fewer."""
    rows = len(inputs[0])
    program, size = _compiled(run, shapes, rows, limit, memory)
    for start in range(0, rows, size):
        these = np.minimum(np.arange(start, start + size), rows - 1)  # the last chunk is filled with the last row
        outputs = jax.device_get(program(*(x[these] for x in inputs)))
        yield [x[: rows - start] for x in outputs]


def _compiled(run: Run, shapes: Any, rows: int, limit: int | None, memory: int) -> tuple[Callable[..., Any], int]:
    """The program for a chunk, and how many rows that is."""
    size = _even(rows, limit or rows)
    while True:
        program = jax.jit(_side_by_side(run, size)).lower(*_chunk_of(shapes, size)).compile()
        need = _bytes(program)
        if limit is not None or need <= memory:
            return program, size
        if size == 1:
            raise ValueError(
                f"sweep: one run needs {need:,} bytes, more than memory={memory:,}. Give more memory; or chunk=1, to "
                "run row by row without being asked."
            )
        size = _even(rows, max(1, min(size - 1, size * memory // need)))


def _side_by_side(run: Run, size: int) -> Callable[..., list[jax.Array]]:
    """The run for a chunk of rows. For one row it is the run itself: ``vmap`` would compute it otherwise."""

    def leaves(values: jax.Array, key: jax.Array) -> list[jax.Array]:
        return [jnp.asarray(x) for x in jax.tree.leaves(run(values, key))]

    return jax.vmap(leaves) if size > 1 else lambda values, keys: [x[None] for x in leaves(values[0], keys[0])]


def _chunk_of(shapes: Any, size: int) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), shapes)


def _even(rows: int, limit: int) -> int:
    """The size of chunks, at most ``limit``, that leaves the last one least empty."""
    return math.ceil(rows / math.ceil(rows / limit))


def _bytes(program: Any) -> int:
    """The memory that the arrays of a compiled program take; 0 where XLA does not say."""
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes


@contextmanager
def _reporting(progress: Progress | bool) -> Iterator[Progress]:
    """The function to call after each chunk: the given function, one that moves a bar, or one that does nothing."""
    if progress is not True:
        yield progress or (lambda table, rows: None)
        return
    try:
        from rich.progress import Progress as Bar
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'sweep: the bar needs rich: pip install rich, or "gradtx[demo]". Or give a function as progress.',
            name="rich",
        ) from error
    with Bar(*Bar.get_default_columns(), transient=True) as bar:
        task = bar.add_task("compiling", total=None)
        yield lambda table, rows: bar.update(task, description="sweep", completed=len(table), total=rows)
