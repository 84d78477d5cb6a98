"""The states of other frameworks' optimizers, to go on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from gradtx._chain import Chain
from gradtx._core.codecs import is_encoded, stored_as
from gradtx._core.contract import AbstractRule, MomentKind
from gradtx._core.numerics import is_complex
from gradtx._core.selectors import flatten_with_paths
from gradtx._core.state import ChainState
from gradtx._core.verification import depends_on_count
from gradtx._engine.inputs import FlatTree
from gradtx._wrappers.partition import PartitionState, partition
from gradtx.rules.base import Rule


def from_optax(tx: Chain | Rule, optax_state: Any, params: Any, count: int | None = None) -> ChainState:
    r"""The state of a chain that goes on where an optax optimizer stands.

    Args:
        tx: the same optimizer as a chain of gradtx: what ``gradtx.dialects.optax`` gives for the same arguments.
            Hyperparameters and schedules are its own.
        optax_state: the optimizer's state: ``sgd``, ``adam``, ``adamw``, ``amsgrad``, ``nadam``, ``nadamw``,
            ``lion``, ``rmsprop``, ``adagrad`` and ``ema``, also in ``optax.chain``, ``optax.masked`` (for rules with
            the same ``where``) or ``optax.inject_hyperparams``, beside clips, decay, schedules and whatever has no
            state.
        params: the parameters.
        count: steps taken. None, the default: what the state's counters say. SGD, RMSProp and AdaGrad at a constant
            learning rate count nothing; nor do their steps depend on it, and 0 is taken.

    The conversion: optax keeps the sum of AdaGrad with what it started from, :math:`s = S - s_0`; for a centered
    RMSProp two raw moments, :math:`d = \nu - |\mu|^2`; and instead of the weights of averages a count, t: weights are
    those that ``tx`` has after t steps, with its own decays and schedules (:math:`1 - \beta^t` for a constant one).

    The trajectory is the one optax would have continued, to rounding, if ``tx`` is the same optimizer. That is not
    checked further than that each part of the state has a rule that holds such a thing, in order.

    Raises:
        TypeError: if ``tx`` is no chain or rule. Make the state of a wrapper from that of the chain in it.
        ValueError: for a state, or a rule of ``tx``, that has no counterpart on the other side; if counters differ,
            or there is none and a rule needs it; if trees or shapes differ.

    >>> import gradtx, jax.numpy as jnp, optax
    >>> params, theirs = jnp.zeros(2), optax.adam(0.1)
    >>> updates, their_state = theirs.update(jnp.array([1.0, -2.0]), theirs.init(params))
    >>> state = gradtx.from_optax(gradtx.dialects.optax.adam(0.1), their_state, params)
    >>> print(state.count, state.slots["momentum"]["m"], state.slots["momentum"]["weight"])
    1 [ 0.1 -0.2] 0.1
    """
    parts = list(_optax_parts(optax_state))
    counts = {_count("from_optax", "count", tree) for kind, tree in parts if kind is None}
    offers = [(kind, tree) for kind, tree in parts if kind is not None]
    return _ported("from_optax", tx, params, offers, counts, count, maximum="debiased")


_OPTAX: dict[str, tuple[MomentKind | None, ...]] = {
    # The kinds of the fields of a state, None for a count; by name, since not all of them are public.
    "ScaleByAdamState": (None, MomentKind.AVERAGE, MomentKind.SQUARE),
    "ScaleByAmsgradState": (None, MomentKind.AVERAGE, MomentKind.SQUARE, MomentKind.MAXIMUM),
    "ScaleByLionState": (None, MomentKind.AVERAGE),
    "ScaleByRmsState": (MomentKind.SQUARE,),
    "ScaleByRmsWithCountState": (None, MomentKind.SQUARE),
    "ScaleByRStdDevState": (MomentKind.CENTER, MomentKind.VARIANCE),
    "ScaleByRStdDevWithCountState": (None, MomentKind.CENTER, MomentKind.VARIANCE),
    "ScaleByRssState": (MomentKind.SUM,),
    "TraceState": (MomentKind.TRACE,),
    "EmaState": (None, MomentKind.AVERAGE),
    "ScaleByScheduleState": (None,),
}

_OPTAX_WRAPPERS = ("MaskedState", "InjectHyperparamsState", "InjectStatefulHyperparamsState")


def _optax_parts(state: Any) -> Iterator[tuple[MomentKind | None, Any]]:
    """Moments with their kinds, and counts with None, in order."""
    kind = type(state).__name__
    if kind in _OPTAX:
        yield from zip(_OPTAX[kind], map(_unmasked, state), strict=False)  # what is behind is no moment
    elif kind in _OPTAX_WRAPPERS:
        if "count" in state._fields:
            yield None, state.count
        yield from _optax_parts(state.inner_state)
    elif type(state) in (tuple, list):
        for inner in state:
            yield from _optax_parts(inner)
    elif jax.tree.leaves(state):
        raise ValueError(
            f"from_optax: a {kind} has no counterpart. Known are {', '.join(_OPTAX)}, in tuples and in "
            f"{', '.join(_OPTAX_WRAPPERS)}."
        )


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
        return _torch_parts(tx, state_dict, params, names, count)
    missing = [key for key in ("state", "param_groups") if not isinstance(state_dict, Mapping) or key not in state_dict]
    missing += ["param_groups/params"] * (not missing and any("params" not in g for g in state_dict["param_groups"]))
    if missing:
        raise ValueError(f"from_torch: there is no {', '.join(missing)}: give it what optimizer.state_dict() returns")
    leaves, treedef = flatten_with_paths(params)
    numbers = _torch_numbers(names, [path for path, _ in leaves], state_dict["param_groups"])
    _check_groups(tx, state_dict, set(numbers.values()))
    shapes = {path: np.shape(leaf) for path, leaf in leaves}
    states = {path: state_dict["state"].get(number, {}) for path, number in numbers.items()}
    states = {path: {k: _numpy(x) for k, x in entries.items() if x is not None} for path, entries in states.items()}
    kinds = {kind for entries in states.values() for kind in entries}
    if not kinds and state_dict["state"]:  # none of them took a step: its steps begin when it does
        return _ported("from_torch", tx, params, [], set(), count or 0, maximum="raw", fresh=True)
    if kinds == {"momentum_buffer"} and not _counting(tx):
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
    counts = {_count("from_torch", "step", step) for step in jax.tree.leaves(trees.pop("step", None))}
    trees.pop("mu_product", None)
    square = MomentKind.VARIANCE if "grad_avg" in trees else MomentKind.SQUARE
    kinds_of = _TORCH | {"square_avg": square}
    offers = [(kind, trees.pop(entry)) for entry, kind in kinds_of.items() if entry in trees]
    if trees:
        raise ValueError(f"from_torch: {', '.join(map(repr, sorted(trees)))} of torch's state has no counterpart")
    return _ported("from_torch", tx, params, offers, counts, count, maximum="raw")


_TORCH = {
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
    return _numpy(value).tolist() if hasattr(value, "detach") else value


def _torch_parts(tx: partition, state_dict: Any, params: Any, names: Any, count: int | None) -> PartitionState:
    """The state of a partition, part by part; what is frozen needs no name, and has no state."""
    leaves, treedef = flatten_with_paths(params)
    parts = tx.part_of(leaves, treedef)
    given = dict(names) if isinstance(names, Mapping) else {path: i for i, path in enumerate(names)}
    states = {}
    for part, inside in tx.named_parts.items():
        paths = [path for (path, _), other in zip(leaves, parts, strict=True) if other == part]
        pruned = treedef.unflatten([x if other == part else None for (_, x), other in zip(leaves, parts, strict=True)])
        if not set(paths) & given.keys():
            states[part] = inside.init(pruned)
        else:
            names_here = {path: given[path] for path in paths if path in given}
            states[part] = from_torch(inside, state_dict, pruned, names_here, count)
    return PartitionState(states)


def _count(who: str, what: str, value: Any) -> int:
    """A number of steps."""
    number = _numpy(value)
    if number.dtype.kind not in "iuf" or number.size != 1 or not number.reshape(()) >= 0 or number % 1:
        raise ValueError(f"{who}: {what} must be a number of steps, 0 or more, found {value!r}")
    return int(number.reshape(()))


def _torch_numbers(
    names: Mapping[str, int | str] | Sequence[str], paths: list[str], groups: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """The number that each parameter has in torch's state."""
    given = dict(names) if isinstance(names, Mapping) else {path: i for i, path in enumerate(names)}
    if set(given) != set(paths):
        raise ValueError(f"from_torch: names has {sorted(given)}, the parameters are {sorted(paths)}")
    known = {number: number for group in groups for number in group["params"]}
    for group in groups:
        known |= dict(zip(group.get("param_names", ()), group["params"], strict=False))
    unknown = [f"{path!r}: {name!r}" for path, name in given.items() if name not in known]
    if unknown:
        raise ValueError(f"from_torch: torch's optimizer has no {', '.join(unknown)}; it has {list(known)}")
    numbers = {path: known[name] for path, name in given.items()}
    if len(set(numbers.values())) != len(numbers):
        raise ValueError(f"from_torch: names gives one parameter of torch to several: {given}")
    return numbers


def _numpy(value: Any) -> np.ndarray:
    """A tensor of torch, which need not be installed, or an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    return np.asarray(value)


def _ported(
    who: str,
    tx: Chain | Rule,
    params: Any,
    offers: Sequence[tuple[MomentKind, Any]],
    counts: set[int],
    count: int | None,
    maximum: str,
    fresh: bool = False,
) -> ChainState:
    """The state of a chain with these moments, each taken by the next rule that holds such a one."""
    if not isinstance(tx, Chain | Rule):
        raise TypeError(f"{who}: tx must be a chain or a rule, found {type(tx).__name__}; give the chain inside it")
    engine = tx._engine
    start = engine.init(params)
    if fresh and not _steps(who, tx, counts, count):
        return start
    left, unfed, moments = list(offers), [], {}
    for name, rule in zip(engine.names, engine.rules, strict=True):
        if not jax.tree.leaves(start.slots.get(name)):
            continue
        places = {slot: _first_of(kind, left) for slot, kind in rule.holds.items()}
        if not places or None in places.values():
            unfed.append(name)
            continue
        if MomentKind.MAXIMUM in rule.holds.values():
            _check_maximum(who, tx.rules, rule, maximum)
        moments[name] = {slot: left[place] for slot, place in places.items() if place is not None}
        left = [offer for i, offer in enumerate(left) if i not in places.values()]
    if unfed or left:
        raise ValueError(
            f"{who}: tx is not the optimizer that made this state."
            + (f" It has nothing for the rules {', '.join(unfed)}." if unfed else "")
            + (f" It has, and no rule takes: {', '.join(kind for kind, _ in left)}." if left else "")
        )
    state = engine.after(start, params, _steps(who, tx, counts, count))
    flat = FlatTree.of(params, "parameters").checked()
    slots = dict(state.slots)
    for name, rule, acts in zip(engine.names, engine.rules, engine.mask(flat), strict=True):
        h = rule.hyperparameters_from(jax.tree.map(_wide, state.hyperparams.get(name, {})))
        given = {
            slot: (kind, flat.like(tree, f"state for {name}", acts))
            for slot, (kind, tree) in moments.get(name, {}).items()
        }
        for slot, arrays in _from_moments(rule, given, h).items():
            like = _like(who, f"{name}.{slot}")
            filled = jax.tree.map(like, slots[name][slot], flat.unflatten(arrays), is_leaf=is_encoded)
            slots[name] = slots[name] | {slot: filled}
    return state._replace(slots=slots)


def _first_of(kind: str, offers: Sequence[tuple[MomentKind, Any]]) -> int | None:
    """The place of the first moment of a kind."""
    return next((i for i, (offered, _) in enumerate(offers) if offered == kind), None)


def _from_moments(
    rule: AbstractRule, moments: Mapping[str, tuple[MomentKind, list[Any]]], h: Any
) -> dict[str, list[Any]]:
    """The slots of a rule, one array for each leaf, from the moments that another framework holds."""
    wide = {slot: [None if x is None else _wide(x) for x in arrays] for slot, (_, arrays) in moments.items()}
    slots = {kind: slot for slot, (kind, _) in moments.items()}
    if MomentKind.VARIANCE in slots:  # there, a raw moment beside its center
        variance, center = slots[MomentKind.VARIANCE], slots[MomentKind.CENTER]
        pairs = zip(wide[variance], wide[center], strict=True)
        wide[variance] = [
            None if x is None or mean is None else np.maximum(x - np.abs(mean) ** 2, 0) for x, mean in pairs
        ]
    return {slot: [None if x is None else rule.from_moment(slot, x, h) for x in xs] for slot, xs in wide.items()}


def _wide(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _like(who: str, name: str) -> Any:
    """Puts a value where a slot is, in its dtype."""

    def like(slot: Any, value: np.ndarray) -> Any:
        if is_encoded(slot):
            return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), stored_as(value, slot), slot)
        if np.iscomplexobj(value) and not is_complex(slot.dtype):
            raise ValueError(f"{who}: {name} is real, and complex in the state that was given")
        return jax.device_put(value.astype(slot.dtype), slot.sharding)

    return like


def _check_maximum(who: str, rules: Sequence[AbstractRule], rule: AbstractRule, maximum: str) -> None:
    """Refuses a maximum of raw second moments where the other side has one of debiased ones, or the reverse."""
    debiases = [i for i, other in enumerate(rules) if other.debiases and not other.holds]
    if debiases and (debiases[0] < rules.index(rule)) != (maximum == "debiased"):
        order = "before" if maximum == "debiased" else "after"
        raise ValueError(
            f"{who}: the maximum there is of the {maximum} second moment, so {rules[debiases[0]].label} must stand "
            f"{order} {rule.label}: see gradtx.dialects."
        )


def _unmasked(tree: Any) -> Any:
    """The tree with None where optax has a ``MaskedNode``."""
    return jax.tree.map(lambda x: None if _is_hole(x) else x, tree, is_leaf=_is_hole)


def _is_hole(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _steps(who: str, tx: Chain | Rule, counts: set[int], count: int | None) -> int:
    """The number of steps that were taken: as given, or as counted."""
    if count is not None:
        return _count(who, "count", count)
    if len(counts) > 1:
        raise ValueError(f"{who}: the counters differ, {sorted(counts)}; say which it is: count=...")
    if counts:
        return counts.pop()
    for rule in _counting(tx):
        raise ValueError(f"{who}: there is no counter in this state, and {rule} needs one; say it: count=...")
    return 0


def _counting(tx: Chain | Rule) -> list[Rule]:
    """The rules whose steps depend on how many there were."""
    return [rule for rule in tx.rules if depends_on_count(rule)]
