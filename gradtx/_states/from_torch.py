"""The states of torch's optimizers, to go on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gradtx._chain import Chain
from gradtx._core.contract import MomentKind
from gradtx._core.selectors import flatten_with_paths
from gradtx._states.moments import Maximum, as_numpy, count_of, counting, ported
from gradtx._wrappers.partition import PartitionState, partition
from gradtx.rules.base import Rule


def from_torch(
    tx: Any,  # a chain or a rule; or a partition, of which the state is a PartitionState
    state_dict: Mapping[str, Any],
    params: Any,
    names: Mapping[str, int | str] | Sequence[str],
    count: int | None = None,
) -> Any:
    r"""The state of a chain that goes on where an optimizer of torch stands.

    Args:
        tx: the same optimizer as a chain of gradtx: what ``gradtx.dialects.torch`` gives for the same arguments.
            Hyperparameters are its own; a learning rate that a scheduler of torch has changed is to be given to it.
        state_dict: what ``optimizer.state_dict()`` gives, with tensors or numpy arrays: of ``SGD``, ``Adam``,
            ``AdamW`` (``amsgrad`` too), ``NAdam``, ``RMSprop`` or ``Adagrad``.
        params: the parameters.
        names: which parameter of torch each one is: ``{path: number}`` by the order in which the optimizer got them, or
            ``{path: name}`` where it got names; or just the paths in torch's order. A path is the keys from the root
            with slashes between, as ``encoder/0/kernel``.
        count: steps taken. None, the default: what the state says. SGD counts nothing; nor do its steps depend on it,
            unless damped or scheduled, and 0 is taken.

    Layouts are yours to convert. Slots must have the shapes of the parameters: where torch's weight is transposed (that
    of ``torch.nn.Linear`` is, against a kernel of Flax), transpose the arrays in ``state_dict`` too. A square one in
    the wrong layout cannot be told from the right one.

    Groups of other learning rates, and parameters that took no step yet, are parts of a ``partition``: with one for
    ``tx`` the state is a ``PartitionState``, whose parts are filled each by itself, and names are needed only for what
    torch has a state of. A chain whose rules say ``where`` they act may stand for groups that differ.

    The conversion: as in ``from_optax``; torch's product of Nadam's momenta, :math:`P_t`, is found anew from t.

    Raises:
        TypeError: if ``tx`` is no chain or rule.
        ValueError: for names that fit neither side; if a parameter has no state, or some have taken more steps than
            others; for groups with other arguments, and states of other optimizers, as RAdam's; and as ``from_optax``.

    >>> import gradtx, jax.numpy as jnp, numpy as np
    >>> theirs = {"state": {0: {"momentum_buffer": np.array([1.0, 2.0])}}, "param_groups": [{"params": [0]}]}
    >>> tx = gradtx.dialects.torch.sgd(0.1, momentum=0.9)
    >>> state = gradtx.from_torch(tx, theirs, {"w": jnp.zeros(2)}, names=["w"])
    >>> print(state.slots["trace"]["b"]["w"])
    [1. 2.]
    """
    if isinstance(tx, partition):
        return _of_parts(tx, state_dict, params, names, count)
    missing = [key for key in ("state", "param_groups") if not isinstance(state_dict, Mapping) or key not in state_dict]
    missing += ["param_groups/params"] * (not missing and any("params" not in g for g in state_dict["param_groups"]))
    if missing:
        raise ValueError(f"from_torch: there is no {', '.join(missing)}: give it what optimizer.state_dict() returns")
    leaves, treedef = flatten_with_paths(params)
    numbers = _numbers(names, [path for path, _ in leaves], state_dict["param_groups"])
    _check_groups(tx, state_dict, set(numbers.values()))
    shapes = {path: np.shape(leaf) for path, leaf in leaves}
    states = {path: state_dict["state"].get(number, {}) for path, number in numbers.items()}
    states = {path: {k: as_numpy(x) for k, x in entries.items() if x is not None} for path, entries in states.items()}
    kinds = {kind for entries in states.values() for kind in entries}
    if not kinds and state_dict["state"]:  # none of them took a step: its steps begin when it does
        return ported("from_torch", tx, params, [], set(), count or 0, maximum=Maximum.RAW, fresh=True)
    if kinds == {"momentum_buffer"} and not counting(tx):
        states = {
            path: entries or {"momentum_buffer": np.zeros(shapes[path])} for path, entries in states.items()
        }  # as torch begins
    lacking = [f"{path!r} has no {kind}" for path, entries in states.items() for kind in sorted(kinds - entries.keys())]
    if lacking:
        raise ValueError(
            f"from_torch: {'; '.join(lacking)}, as others have. A parameter that never had a gradient has no state in "
            "torch: put it into a part of its own (from_torch takes a partition), or leave it out of params."
        )
    trees = {kind: treedef.unflatten([states[path][kind] for path, _ in leaves]) for kind in kinds}
    counts = {count_of("from_torch", "step", step) for step in jax.tree.leaves(trees.pop("step", None))}
    trees.pop("mu_product", None)
    square = MomentKind.VARIANCE if "grad_avg" in trees else MomentKind.SQUARE
    kinds_of = _MOMENTS | {"square_avg": square}
    offers = [(kind, trees.pop(entry)) for entry, kind in kinds_of.items() if entry in trees]
    if trees:
        raise ValueError(f"from_torch: {', '.join(map(repr, sorted(trees)))} of torch's state has no counterpart")
    return ported("from_torch", tx, params, offers, counts, count, maximum=Maximum.RAW)


_MOMENTS = {
    "exp_avg": MomentKind.AVERAGE,
    "exp_avg_sq": MomentKind.SQUARE,
    "max_exp_avg_sq": MomentKind.MAXIMUM,
    "grad_avg": MomentKind.CENTER,
    "square_avg": MomentKind.SQUARE,
    "momentum_buffer": MomentKind.TRACE,
    "sum": MomentKind.SUM,
}
"""The kinds of the entries of a parameter's state."""


_NOT_OF_THE_STEP = frozenset(
    ("params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable", "maximize")
)


def _check_groups(tx: Chain | Rule, state_dict: Mapping[str, Any], numbers: set[Any]) -> None:
    """Refuses what is told by the groups' arguments only: another optimizer's state, and groups of other rates."""
    groups = [group for group in state_dict["param_groups"] if numbers & set(group["params"])]
    states = [entries for number, entries in state_dict["state"].items() if number in numbers and entries]
    moments = any("exp_avg_sq" in entries for entries in states)
    for group in groups:
        if moments and "betas" in group and not {"amsgrad", "momentum_decay"} & group.keys():
            raise ValueError(
                "from_torch: this is the state of RAdam or SparseAdam, whose groups have betas and neither amsgrad nor "
                "momentum_decay; its moments are Adam's, its steps are not."
            )
    nadam = any("mu_product" in entries for entries in states)
    debiases_its_average = any(rule.debiases and MomentKind.AVERAGE in rule.holds.values() for rule in tx.rules)
    if moments and nadam != debiases_its_average:
        made, is_for = ("NAdam", "nadam") if nadam else ("Adam", "adam")
        raise ValueError(f"from_torch: this is a state of {made}, and {tx} is none: see gradtx.dialects.torch.{is_for}")
    differing = [
        f"{key} ({', '.join(str(group.get(key)) for group in groups)})"
        for key in sorted({key for group in groups for key in group} - _NOT_OF_THE_STEP)
        if len({repr(_plain(group.get(key))) for group in groups}) > 1
    ]
    if differing and all(rule.where is None for rule in tx.rules):
        raise ValueError(
            f"from_torch: the groups differ in {', '.join(differing)}, and {tx} is one for all. Give it a partition "
            "with a chain for each group."
        )


def _plain(value: Any) -> Any:
    return as_numpy(value).tolist() if hasattr(value, "detach") else value


def _of_parts(tx: partition, state_dict: Any, params: Any, names: Any, count: int | None) -> PartitionState:
    """The state of a partition, part by part; what is frozen needs no name, and has no state."""
    leaves, treedef = flatten_with_paths(params)
    parts = tx.part_of(leaves, treedef)
    numbered = _by_path(names)
    states = {}
    for part, inside in tx.named_parts.items():
        paths = [path for (path, _), of_leaf in zip(leaves, parts, strict=True) if of_leaf == part]
        members = [x if of_leaf == part else None for (_, x), of_leaf in zip(leaves, parts, strict=True)]
        pruned = treedef.unflatten(members)
        if not set(paths) & numbered.keys():
            states[part] = inside.init(pruned)
        else:
            of_part = {path: numbered[path] for path in paths if path in numbered}
            states[part] = from_torch(inside, state_dict, pruned, of_part, count)
    return PartitionState(states)


def _numbers(
    names: Mapping[str, int | str] | Sequence[str], paths: list[str], groups: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """The number that each parameter has in torch's state."""
    numbered = _by_path(names)
    if set(numbered) != set(paths):
        raise ValueError(f"from_torch: names has {sorted(numbered)}, the parameters are {sorted(paths)}")
    by_name: dict[Any, int] = {number: number for group in groups for number in group["params"]}
    for group in groups:
        by_name |= dict(zip(group.get("param_names", ()), group["params"], strict=False))
    unknown = [f"{path!r}: {name!r}" for path, name in numbered.items() if name not in by_name]
    if unknown:
        raise ValueError(f"from_torch: torch's optimizer has no {', '.join(unknown)}; it has {list(by_name)}")
    numbers = {path: by_name[name] for path, name in numbered.items()}
    if len(set(numbers.values())) != len(numbers):
        raise ValueError(f"from_torch: names gives one parameter of torch to several: {numbered}")
    return numbers


def _by_path(names: Mapping[str, int | str] | Sequence[str]) -> dict[str, int | str]:
    """The number or the name of each parameter, by its path."""
    return dict(names) if isinstance(names, Mapping) else {path: i for i, path in enumerate(names)}
