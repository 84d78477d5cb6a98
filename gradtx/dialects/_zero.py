"""What frameworks mean by an argument that is 0."""

from __future__ import annotations

from gradtx._rule import Hyper


def is_zero(value: Hyper) -> bool:
    """Whether an argument is the number 0, which turns a rule off; arrays and schedules never are."""
    return isinstance(value, int | float) and value == 0
