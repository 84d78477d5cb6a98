"""Parts of the parameters, each with a transformation of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import optax

from gradtx._chain import chain
from gradtx._core import selectors
from gradtx._core.mesh import puts_constants, starts
from gradtx._engine import inputs
from gradtx._engine.transformation import Transformation, check_transformation, made_by, run_inside, started
from gradtx._wrappers.base import Wrapper, checked_state
from gradtx.rules import freeze


class PartitionState(NamedTuple):
    """The state of ``partition``.

    Attributes:
        parts: ``{part: state}``, of each part's transformation, which holds None in place of all other leaves.
    """

    parts: dict[str, Any]


class partition(Wrapper[PartitionState]):
    """Parts of the parameters, each with a chain of its own: every leaf goes to the one part that chooses it.

    Args:
        parts: ``{select: tx}``, or pairs of them. ``select`` as in ``where``: a regular expression on the path, a
            predicate, a function of the tree, or (in pairs) a mask. ``tx`` is a gradtx chain or rule, any optax
            transformation, ``"freeze"`` (zero updates, no state) or ``"pass"`` (updates as they come in).
        default: the same for leaves that no part chooses. None, the default: such a leaf is an error.

    A part sees its own leaves only: a global norm is that of the part, and ``count`` is the part's own. To restrict a
    rule in one common chain instead, use ``where``. What is frozen may be of any dtype and have no gradient, as the
    quantized base under adapters that are trained (see ``freeze``).

    State: ``PartitionState``. Parts are called by their regular expression or the name of their predicate, and
    ``default``.

    Inf and NaN: what the parts do.

    Raises:
        ValueError: from ``init`` and ``update``, listing them: leaves that no part chooses, leaves that several parts
            choose, and regular expressions that choose no leaf. For no parts, or two of the same name.
        TypeError: for a part that is no transformation, or a selector that is none.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.partition({"kernel": gradtx.adam(0.1), "bias": gradtx.sgd(0.1)}, default="freeze")
    >>> params = {"kernel": jnp.ones(1), "bias": jnp.ones(1), "embed": jnp.ones(1)}
    >>> updates, state = tx.update({key: 5 * g for key, g in params.items()}, tx.init(params))
    >>> print({key: float(u[0].round(3)) for key, u in updates.items()})
    {'bias': -0.5, 'embed': 0.0, 'kernel': -0.1}
    """

    parts: Any
    default: Any = None

    def __post_init__(self):
        pairs = self.parts.items() if isinstance(self.parts, Mapping) else self.parts
        pairs = list(pairs) if isinstance(pairs, Iterable) else [pairs]
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise TypeError(f"partition: parts must be a dict or pairs, {{select: tx}}, found {self.parts!r}")
        pairs = [(selectors.selector(select), _transformation(tx)) for select, tx in pairs]
        if not pairs:
            raise ValueError("partition: there are no parts")
        object.__setattr__(self, "parts", tuple(pairs))
        if self.default is not None:
            object.__setattr__(self, "default", _transformation(self.default))
        named = self.named_parts
        if len(named) != len(pairs) + (self.default is not None):
            raise ValueError(f"partition: two parts have the same name, among {', '.join(map(repr, named))}")

    @property
    def named_parts(self) -> dict[str, optax.GradientTransformationExtraArgs]:
        """``{part: its transformation}``, the default last."""
        named = {_name(select): tx for select, tx in self.parts}
        return named if self.default is None else named | {"default": self.default}

    def part_of(self, leaves: selectors.Leaves, treedef: Any) -> list[str]:
        """The name of each leaf's part.

        Raises:
            ValueError: for leaves that no part or several parts choose.
        """
        chosen = {_name(s): selectors.chosen(s, leaves, treedef, f"part {_name(s)!r}") for s, _ in self.parts}
        takers = [[part for part in chosen if chosen[part][i]] for i in range(len(leaves))]
        several = [f"{path!r} by {parts}" for (path, _), parts in zip(leaves, takers, strict=True) if len(parts) > 1]
        if several:
            raise ValueError(
                f"partition: chosen by more than one part: {'; '.join(several[:20])}. Narrow the patterns."
                f"{self._near_misses(leaves, takers)}"
            )
        nobody = [leaf for leaf, parts in zip(leaves, takers, strict=True) if not parts]
        if nobody and self.default is None:
            raise ValueError(
                f"partition: chosen by no part: {selectors.listing(nobody)}. Add a part for them, or a default: "
                "a transformation, 'freeze' (zero updates) or 'pass' (updates as they come in)."
            )
        return [parts[0] if parts else "default" for parts in takers]

    def _near_misses(self, leaves: selectors.Leaves, takers: list[list[str]]) -> str:
        """A note on patterns that are found in the middle of a key, as ``layers/1`` in ``layers/10``."""
        for (path, _), parts in zip(leaves, takers, strict=True):
            for part in parts if len(parts) > 1 else ():
                if selectors.within_keys(part, path):
                    return f" {part!r} is found within a key of {path!r}; gradtx.path makes patterns of whole keys."
        return ""

    def _members(self, state: PartitionState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {part: (tx, state.parts[part]) for part, tx in self.named_parts.items()}

    @starts
    def init(self, params: Any) -> PartitionState:
        """The state before the first step."""
        leaves, treedef = selectors.flatten_with_paths(params)
        parts = self.part_of(leaves, treedef)
        values = [leaf for _, leaf in leaves]
        named = self.named_parts
        return PartitionState({part: started(tx, _pruned(treedef, values, parts, part)) for part, tx in named.items()})

    def run(
        self, updates: Any, state: PartitionState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, PartitionState]:
        """One step of each part."""
        return self.run_when(True, updates, state, params, extra, apply_updates)

    @puts_constants
    def run_when(
        self, when: Any, updates: Any, state: PartitionState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, PartitionState]:
        """``run`` where a flag is true."""
        named = self.named_parts
        state = checked_state(self.label, state, PartitionState)
        if set(state.parts) != set(named):
            raise TypeError(
                f"partition: update needs a state of the parts {sorted(named)}, found {sorted(state.parts)}"
            )
        filled, given = inputs.filled(updates, params)
        flat = inputs.FlatTree.of(filled, "updates")
        treedef, parts = flat.treedef, self.part_of(flat.named, flat.treedef)
        values = given or flat.leaves
        others = None if params is None else flat.like(params, "parameters")
        out: list[Any] = list(values)
        after = {}
        for part, tx in named.items():
            own = _pruned(treedef, values, parts, part)
            own_params = None if others is None else _pruned(treedef, others, parts, part)
            own, after[part] = run_inside(tx, own, state.parts[part], own_params, extra, apply_updates, when=when)
            for i, value in enumerate(treedef.flatten_up_to(own)):
                out[i] = value if parts[i] == part else out[i]
        return treedef.unflatten(out), PartitionState(after)


def _pruned(treedef: Any, values: list[Any], parts: list[str], part: str) -> Any:
    return treedef.unflatten([value if own == part else None for value, own in zip(values, parts, strict=True)])


def _name(select: selectors.Selector) -> str:
    """The name of a part, in the state and in checkpoints: the same in each process."""
    if isinstance(select, str):
        return select
    if isinstance(select, tuple):
        return " and ".join(map(_name, select))
    if isinstance(select, selectors.Not):
        return f"not {select.select!r}" if isinstance(select.select, str) else f"not {_name(select.select)}"
    if isinstance(select, selectors.MaskOf):
        return made_by(select.function)
    return made_by(select) if callable(select) else repr(select)


def _transformation(tx: Any) -> optax.GradientTransformationExtraArgs:
    if isinstance(tx, str):
        tx = {"freeze": freeze(), "pass": chain()}.get(tx, tx)
    if isinstance(tx, Transformation):
        return tx
    check_transformation("partition", "a part", tx, ", 'freeze' or 'pass'")
    return optax.with_extra_args_support(tx)
