"""States as flat dicts of arrays, for files that hold arrays and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._chain import seal
from gradtx._core.contract import AbstractRule
from gradtx._core.control import types_of
from gradtx._core.limits import checked
from gradtx._core.numerics import is_complex, real_dtype, residual_of
from gradtx._core.selectors import flatten_with_keys
from gradtx._core.state import ChainState, PackedState, known_to
from gradtx._core.walk import check_state, rebuilt, walk, word
from gradtx._engine.transformation import Transformation
from gradtx._inspect.monitor import MonitorState, as_trees, as_vectors
from gradtx._wrappers.base import Wrapper
from gradtx._wrappers.loss_scale import LossScaleState
from gradtx._wrappers.packed import PackedSlot

FORMAT = 1
"""The number of the format that is written. Every one that ever was is read."""


def state_dict(state: Any) -> dict[str, Any]:  # of arrays; but numpy.savez(file, **of_arrays) is an error of types
    """A state as a flat dict of numpy arrays: to be saved as npz, as safetensors, or in whatever else holds arrays.

    Args:
        state: of a chain, a rule, a wrapper or an optax transformation, whatever stands in it. Not under ``jax.jit``.

    Returns:
        Copies of the arrays by path, as ``state/slots/momentum/m/encoder/kernel``, and the number of the format as
        ``format``. Only numbers and bools that every file format has: bfloat16 and other dtypes that numpy lacks are
        unsigned integers of the same bits under ``path:bfloat16``; complex numbers are real ones with a last axis of
        2 under ``path:complex64``, random keys their data under ``path:key<fry>``. In a path, of a key that has one
        of them, ``/``, ``:``, backslash, ``%``, and control characters are written as ``%2F`` and so on.

    The slots of ``packed`` are written leaf by leaf, as those of its chain are: either goes on from the other's file.

    A sharded array is written whole, so all its shards must be on this process's devices. For runs of many processes
    take Orbax, which saves a state as it is.

    Raises:
        TypeError: for a leaf that is no array of numbers.
        ValueError: if two leaves have the same path, as custom containers might.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.sgd(0.1, momentum=0.9).init({"w": jnp.zeros(3)})
    >>> for path, array in gradtx.state_dict(state).items():
    ...     print(path, array)
    format 1
    state/count 0
    state/hyperparams/scale_by_learning_rate/learning_rate 0.1
    state/hyperparams/trace/decay 0.9
    state/hyperparams/trace/decay_residual 2.3841858e-08
    state/slots/trace/b/w [0. 0. 0.]
    state/slots/trace/weight 0.0
    """
    check_state("state_dict", state)
    arrays = {"format": np.array(FORMAT, np.int32)}
    for path, leaf in _leaves(rebuilt(state, MonitorState, as_trees)).items():
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        stored = _stored(path, leaf)
        key = f"{path}:{stored.label}" if stored.label else path
        arrays[key] = _plain(leaf, stored)
    return arrays


def load_state_dict(tx: optax.GradientTransformation, params: Any, arrays: Mapping[str, Any]) -> Any:
    """The state that ``state_dict`` wrote, bit for bit, for the transformation it belongs to.

    Args:
        tx: the transformation, built as it was. Hyperparameters that are numbers are in the state, and are restored;
            schedules are code, and are those of ``tx``.
        params: parameters, or ``jax.ShapeDtypeStruct`` objects, of the shapes and dtypes they had.
        arrays: what ``state_dict`` returned, or a file of it: what ``numpy.load`` or
            ``safetensors.numpy.load_file`` gives.

    Returns:
        The state, on the default device; ``jax.device_put`` takes it elsewhere. Nothing in a file is ever executed, and
        no structure is read from it: that is what ``tx.init`` makes of ``params``.

    For a state of another chain see ``migrate``.

    Raises:
        ValueError: listing every entry that is missing, superfluous, there twice, or of another shape or dtype, before
            what it holds is read; and every value that no run could have left: a negative count, weight or square,
            NaN or another number that a hyperparameter may not be. For a file of no known format.

    >>> import gradtx, io, jax.numpy as jnp, numpy as np
    >>> tx, params, file = gradtx.adam(0.1), jnp.array([1.0, -2.0]), io.BytesIO()
    >>> params, state = gradtx.step(tx, params, params, tx.init(params))
    >>> np.savez(file, **gradtx.state_dict(state))
    >>> _ = file.seek(0)
    >>> state = gradtx.load_state_dict(tx, params, np.load(file))
    >>> print(state.count, state.slots["momentum"]["m"])
    1 [ 0.1 -0.2]
    """
    _check_format(arrays)
    abstract = types_of(lambda params: rebuilt(tx.init(params), MonitorState, as_trees), params)
    names = [key for key in arrays if key != "format"]
    by_leaf = not _is_flat(abstract, names)
    nodes, treedef = _nodes(abstract, by_leaf)
    expected = {path: (leaf, _stored(path, leaf)) for path, leaf in _leaves(abstract, by_leaf).items()}
    known = {f"{path}:{stored.label}" if stored.label else path: path for path, (_, stored) in expected.items()}
    problems = _misnamed(names, known)
    read: dict[str, np.ndarray] = {}
    for name in names:
        header = _header(arrays, name) if name in known or name.partition(":")[0] in expected else None
        if header is not None:
            path, _, label = name.partition(":")
            differences = _differences(path, *expected[path], label, *header)
            problems += differences
            if name in known and not differences and not problems:
                read[known[name]] = np.asarray(arrays[name])
    if not problems:
        late = expected.keys() - read.keys()
        read |= {path: np.zeros(expected[path][1].shape, expected[path][1].dtype) for path in late}
        problems = _impossible(tx, abstract, read, expected)
    if problems:
        raise ValueError(
            "load_state_dict: these entries are not the state of this transformation for these parameters; build both "
            "as they were, or see migrate:\n  " + "\n  ".join(sorted(problems))
        )
    restored = {path: _restored(read[path], *expected[path]) for path in expected}
    state = treedef.unflatten([_filled(path, node, restored) for path, node in nodes])
    return rebuilt(state, MonitorState, as_vectors)


def _misnamed(names: list[str], known: Mapping[str, str]) -> list[str]:
    """The entries that are missing, superfluous, or there twice, by their names alone."""
    paths = set(known.values())
    times_by_path = Counter(name.partition(":")[0] for name in names)
    late = {residual_of(path) for path in paths if "/hyperparams/" in path}  # older states have none
    problems = [f"missing: {path}" for path in paths if path not in times_by_path and path not in late]
    problems += [f"not in this state: {path}" for path in times_by_path if path not in paths]
    problems += [f"there {times} times: {path}" for path, times in times_by_path.items() if times > 1]
    return problems + [f"not in this state: {name}" for name in names if name.endswith(":")]


def _header(arrays: Mapping[str, Any], name: str) -> tuple[np.dtype, tuple[int, ...]]:
    """The dtype and the shape of an entry; of an npz, from its first bytes, whatever follows."""
    if isinstance(arrays, np.lib.npyio.NpzFile) and arrays.zip is not None:
        member = name if name in arrays.zip.namelist() else f"{name}.npy"
        with arrays.zip.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version in read:
                shape, _, dtype = read[version](file)
                if not dtype.hasobject:  # which numpy refuses in words of its own
                    return dtype, shape
    array = np.asarray(arrays[name])
    return array.dtype, array.shape


def _impossible(
    tx: Any, abstract: Any, read: Mapping[str, np.ndarray], expected: Mapping[str, tuple[Any, _Stored]]
) -> list[str]:
    """The values that no run leaves in a state: negative counts, hyperparameters out of range, negative squares."""
    problems = []
    for path, array in read.items():
        field = path.rpartition("/")[2]
        if array.dtype.kind == "i" and not array.shape and field in _COUNTS and array < _COUNTS[field]:
            problems.append(f"impossible: {path} is {array}, and a count must be at least {_COUNTS[field]}")
    for keys, state in walk(abstract, (ChainState, PackedState, LossScaleState)):
        at = _path(keys)
        if isinstance(state, LossScaleState):
            scale = read[f"{at}/scale"]
            if not 0 < scale < np.inf:
                problems.append(f"impossible: {at}/scale is {scale}, and must be above 0")
            continue
        for name, hyperparameter in known_to(state):
            rule, _, field = name.rpartition(".")
            path = f"{at}/hyperparams/{_escaped(rule)}/{_escaped(field)}"
            if not hyperparameter.scheduled:
                try:
                    checked(path, read[path], hyperparameter.limits)
                except ValueError as error:
                    problems.append(f"impossible: {error}")
            lost = read.get(residual_of(path), np.zeros(()))
            if not np.all(np.abs(lost) <= np.finfo(lost.dtype).eps * np.maximum(1, np.abs(read[path]))):
                problems.append(f"impossible: {residual_of(path)} is {lost}, and rounding loses less")
    for at, rule, name in _rules(tx, abstract, ""):
        for slot in rule.nonnegative:
            start = "/".join([f"{at}/slots/{_escaped(name)}", *map(_escaped, slot.split("/"))])
            for path, array in read.items():
                inside = path == start or path.startswith(f"{start}/")
                if not inside:
                    continue
                values = array.reshape(-1).view(expected[path][0].dtype)
                with np.errstate(invalid="ignore"):  # numpy's word on a NaN in bfloat16
                    negative = values[values < 0]
                if negative.size:
                    problems.append(f"impossible: {path} has {float(negative[0]):g}, and must not be negative")
                elif slot in rule.scalars() and np.isnan(values).any():  # it depends on no gradient
                    problems.append(f"impossible: {path} is NaN")
    return problems


_COUNTS = dict.fromkeys(
    ("count", "skipped", "consecutive", "good_steps", "held", "micro_steps", "emitted", "at", "mini_step"), 0
) | {"switched_at": -1}
"""The counts in states, of gradtx and of optax, and the least that each can be."""


def _rules(tx: Any, state: Any, at: str) -> Iterator[tuple[str, AbstractRule, str]]:
    """Each rule in a transformation, with the path of its chain's state and its name there."""
    at = at or "state"
    if isinstance(tx, Wrapper):
        places = {id(inner): keys for keys, inner in walk(state, tuple)}
        for member, inner in tx._members(state).values():
            if id(inner) in places:
                yield from _rules(member, inner, "/".join([at, *map(_part, places[id(inner)])]))
    elif isinstance(tx, Transformation):
        for rule, name in zip(tx.rules, tx.names, strict=True):
            yield at, rule, name
            if (inner := getattr(rule, "tx", None)) is not None:
                held, place = state.slots[name]["state"], f"{at}/slots/{_escaped(name)}/state"
                if not isinstance(rule, seal) and not isinstance(held, ChainState):
                    held, place = held["inner"], f"{place}/inner"
                yield from _rules(inner, held, place)


class _Stored(NamedTuple):
    """An array as it is stored: the name of its dtype if that is not its own, the dtype it has, and its shape."""

    label: str
    dtype: np.dtype
    shape: tuple[int, ...]


def _stored(path: str, leaf: Any) -> _Stored:
    dtype, shape = leaf.dtype, tuple(leaf.shape)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return _Stored(str(dtype), np.dtype(data.dtype), data.shape)
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise TypeError(f"state_dict: {path} is no array of numbers; its dtype is {dtype}")
    if is_complex(dtype):
        return _Stored(dtype.name, np.dtype(real_dtype(dtype)), (*shape, 2))
    if dtype.isbuiltin == 2:  # of ml_dtypes, and unknown to files
        return _Stored(dtype.name, np.dtype(f"u{dtype.itemsize}"), shape)
    return _Stored("", np.dtype(dtype), shape)


def _plain(leaf: Any, stored: _Stored) -> np.ndarray:
    """The array as it is stored; a copy, in C order."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.array(leaf, order="C")
    return array if array.dtype == stored.dtype else array.reshape(-1).view(stored.dtype).reshape(stored.shape)


def _restored(array: np.ndarray, leaf: Any, stored: _Stored) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.array(array), impl=_implementation(leaf))
    if stored.label:
        array = np.array(array, order="C").reshape(-1).view(leaf.dtype).reshape(leaf.shape)
    return jnp.array(array, leaf.dtype)


def _implementation(key: jax.ShapeDtypeStruct) -> Any:
    implementations = []
    jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), key)
    return implementations[0]


def _differences(
    path: str, leaf: Any, stored: _Stored, label: str, dtype: np.dtype, shape: tuple[int, ...]
) -> list[str]:
    if (label, dtype) != (stored.label, stored.dtype):
        return [f"dtype: {path} is {label or dtype}, and must be {leaf.dtype}"]
    if shape != stored.shape:
        of_leaf = shape[: len(shape) - (len(stored.shape) - len(leaf.shape))]
        return [f"shape: {path} has {of_leaf}, and must have {tuple(leaf.shape)}"]
    return []


def _check_format(arrays: Mapping[str, Any]) -> None:
    if others := [name for name in arrays if not isinstance(name, str)]:
        raise ValueError(
            f"load_state_dict: entries have names, and {others[0]!r} is none: expected what state_dict gives"
        )
    if "format" not in arrays:
        raise ValueError("load_state_dict: there is no entry 'format': this was not written by state_dict")
    number = np.asarray(arrays["format"])
    if number.shape != () or number.dtype.kind not in "iu" or not 1 <= number <= FORMAT:
        raise ValueError(
            f"load_state_dict: format {number} is unknown; this version of gradtx reads 1 to {FORMAT}. A newer one "
            "may have written it."
        )


def _is_flat(state: Any, names: list[str]) -> bool:
    """True if names are those of a packed state as it once was written, with its flat arrays as they are."""
    paths = {name.partition(":")[0] for name in names}
    flat = _leaves(state, by_leaf=False).keys() - _leaves(state).keys()
    return bool(flat) and flat <= paths


def _leaves(tree: Any, by_leaf: bool = True) -> dict[str, Any]:
    """The leaves by path, in order; those that are packed by their own paths, as if they were not."""
    entries = [entry for path, node in _nodes(tree, by_leaf)[0] for entry in _entries(path, node).items()]
    if len(dict(entries)) != len(entries):
        raise ValueError("state_dict: two leaves of this state have the same path; give their containers keys")
    return dict(entries)


def _nodes(tree: Any, by_leaf: bool = True) -> tuple[list[tuple[str, Any]], Any]:
    """The leaves, and the packed slots in their place, with their paths; and the structure."""
    is_packed = lambda x: isinstance(x, PackedSlot)  # noqa: E731
    nodes, treedef = flatten_with_keys(tree, is_packed if by_leaf else None)
    return [(_path(keys), node) for keys, node in nodes], treedef


def _entries(path: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, PackedSlot):
        return {path: node}
    return {"/".join([path, *map(_escaped, keys)]): leaf for keys, leaf in node.by_keys().items()}


def _filled(path: str, node: Any, restored: Mapping[str, jax.Array]) -> Any:
    if not isinstance(node, PackedSlot):
        return restored[path]
    return node.with_arrays({keys: restored["/".join([path, *map(_escaped, keys)])] for keys in node.by_keys()})


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(["state", *map(_part, keys)])


def _part(key: Any) -> str:
    return _escaped(word(key))


def _escaped(part: str) -> str:
    """One key of a path, without what separates keys or means something in files (numpy cuts off ``.npy``)."""
    return re.sub(r"[%/:\\\x00-\x1f\x7f]|\.(?=npy$)", lambda match: f"%{ord(match[0]):02X}", part)
