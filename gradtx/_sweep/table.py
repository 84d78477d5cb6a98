"""The result of a sweep: a tidy table, one row for each run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gradtx._inspect.tables import aligned, line, markdown

__all__ = ["SEED", "SweepTable"]

SEED = "seed"
"""The column of seeds."""

_ENDS = 20
"""The rows of a longer table that are printed from its start, and from its end."""


class SweepTable:
    """The runs of a ``sweep``: one row for each, columns for its hyperparameters, its seed, and its results.

    It prints as a table, has a length, gives a column by its name, and its rows as dicts when iterated over, so that
    ``pandas.DataFrame(table)`` and others take it as it is. A run that diverged is a row like others, with what it
    ended in.

    Args:
        columns: numpy arrays of one length, by name, in order.
        results: which of them are results.

    >>> columns = {"learning_rate": [0.1, 0.1, 1.0, 1.0], "seed": [0, 1, 0, 1], "loss": [2, 3, 1, 9]}
    >>> table = SweepTable(columns, results=["loss"])
    >>> print(table.over_seeds())
    learning_rate  loss
    ───────────────────
              0.1   2.5
                1     5
    >>> table.over_seeds().best("loss")
    {'learning_rate': 0.1, 'loss': 2.5}
    """

    def __init__(self, columns: Mapping[str, Any], results: Any):
        self._columns = {name: np.asarray(column) for name, column in columns.items()}
        self._results = tuple(results)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, in order."""
        return tuple(self._columns)

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """The names of the columns of hyperparameters."""
        return tuple(name for name in self._columns if name not in self._results and name != SEED)

    @property
    def results(self) -> tuple[str, ...]:
        """The names of the columns of results."""
        return self._results

    def to_dict(self) -> dict[str, np.ndarray]:
        """The columns, by name."""
        return dict(self._columns)

    def rows(self) -> list[dict[str, Any]]:
        """The rows, each a dict of plain numbers."""
        columns = [column.tolist() for column in self._columns.values()]
        return [dict(zip(self._columns, row, strict=True)) for row in zip(*columns, strict=True)]

    def best(self, result: str, largest: bool = False) -> dict[str, Any]:
        """The row with the smallest value of a result, or the largest; rows where it is not finite are no candidates.

        Of several seeds it is the luckiest: ``over_seeds().best(...)`` is the best on average.

        Raises:
            ValueError: for a name that is no result, or if no row has a finite value.
        """
        if result not in self._results:
            raise ValueError(f"best: no result {result!r}; this table has: {', '.join(self._results)}")
        values = np.asarray(self._columns[result], np.float64)
        if not np.isfinite(values).any():
            raise ValueError(f"best: no run has a finite {result}: all of them diverged")
        values = np.where(np.isfinite(values), -values if largest else values, np.inf)
        return self.rows()[int(np.argmin(values))]

    def over_seeds(self, reduce: Callable[[np.ndarray], Any] = np.mean) -> SweepTable:
        """One row for each combination of hyperparameters: each result reduced over its seeds, in float64.

        Args:
            reduce: of the values for each seed to a number: ``np.mean``, the default, ``np.std``, ``np.max``, ...
                A run that ended in NaN makes a mean of NaN, which is never the best.
        """
        points = np.column_stack([self._columns[name] for name in self.hyperparameters])
        _, first, group = np.unique(points, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)  # as the points come in the table
        columns: dict[str, Any] = {name: self._columns[name][first[order]] for name in self.hyperparameters}
        for name in self._results:
            values = np.asarray(self._columns[name], np.float64)
            columns[name] = [reduce(values[group.reshape(-1) == each]) for each in order]
        return SweepTable(columns, self._results)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows())

    def _cells(self) -> list[list[str]]:
        body = [[f"{value:.6g}" for value in row.values()] for row in self.rows()]
        if len(body) > 2 * _ENDS:
            body[_ENDS:-_ENDS] = [["…"] * len(self._columns)]
        return [list(self._columns), *body]

    def __str__(self) -> str:
        head, *body = aligned(self._cells(), 0)
        left_out = [f"({len(self)} rows)"] if len(self) > 2 * _ENDS else []
        return "\n".join([head, line([head, *body]), *body, *left_out])

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return markdown(self._cells(), 0)
