"""The contract, property by property: each function raises an AssertionError if the transformation lacks it.

One that does not apply returns the reason. The docstrings are what ``check`` prints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradtx._engine.transformation import Transformation
from gradtx.testing._declared import says_what_it_holds
from gradtx.testing._modes import (
    compiles_once,
    donates_and_branches,
    keeps_to_strict_types,
    leaks_no_tracers,
    sweeps_by_vmap,
    works_in_shard_map,
    works_on_explicit_meshes,
    works_under_guards,
)
from gradtx.testing._numbers import (
    computes_in_float32,
    does_nothing_at_zero,
    is_odd,
    knows_no_other_values,
    runs_in_every_executor,
    scans_as_it_loops,
    stays_finite,
    stores_slots_as_told,
    turns_with_the_gradient,
)
from gradtx.testing._types import (
    has_one_clock,
    is_a_value,
    is_an_optax_transformation,
    keeps_its_types,
    shows_itself,
    shows_what_is_like_the_parameters,
    takes_any_tree,
    takes_weak_types_for_what_they_say,
)

Property = Callable[[Transformation[Any]], str | None]

ORDERED: tuple[Property, ...] = (
    is_an_optax_transformation,
    takes_any_tree,
    keeps_its_types,
    takes_weak_types_for_what_they_say,
    computes_in_float32,
    does_nothing_at_zero,
    stays_finite,
    compiles_once,
    donates_and_branches,
    scans_as_it_loops,
    sweeps_by_vmap,
    has_one_clock,
    knows_no_other_values,
    shows_what_is_like_the_parameters,
    is_a_value,
    shows_itself,
    is_odd,
    turns_with_the_gradient,
    stores_slots_as_told,
    says_what_it_holds,
    runs_in_every_executor,
    works_in_shard_map,
    works_on_explicit_meshes,
    keeps_to_strict_types,
    works_under_guards,
    leaks_no_tracers,
)
"""The properties, in the order in which they are tried."""
