"""The outcome of a migration, name by name."""

from __future__ import annotations

from typing import NamedTuple


class MigrationReport(NamedTuple):
    """The outcome of ``migrate``, by ``rule.slot`` (and ``rule.slot/leaf`` for single leaves); it prints as a list.

    Attributes:
        kept: what was carried, and as what.
        fresh: what the new state has as its ``init`` made it, and why.
        dropped: what only the old state has, and why it went.
    """

    kept: dict[str, str]
    fresh: dict[str, str]
    dropped: dict[str, str]

    def __str__(self) -> str:
        lines = []
        for title, entries in self._asdict().items():
            lines += [f"{title}:"] + [f"  {name}{reason and f': {reason}'}" for name, reason in entries.items()]
        return "\n".join(lines)


def empty_report() -> MigrationReport:
    """A report of nothing yet."""
    return MigrationReport({}, {}, {})


def extend(report: MigrationReport, other: MigrationReport) -> None:
    """Adds the entries of another report."""
    for entries, more in zip(report, other, strict=True):
        entries.update(more)
