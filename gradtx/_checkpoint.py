"""States as flat dicts of arrays, for files that hold arrays and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._numerics import is_complex, real_dtype, residual_of
from gradtx._select import flatten_with_keys

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
    arrays = {"format": np.array(FORMAT, np.int32)}
    for path, leaf in _leaves(state)[0].items():
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
        params: parameters, or ``jax.ShapeDtypeStruct``s, of the shapes and dtypes they had.
        arrays: what ``state_dict`` returned, or a file of it: what ``numpy.load`` or
            ``safetensors.numpy.load_file`` gives.

    Returns:
        The state, on the default device; ``jax.device_put`` takes it elsewhere. Nothing in a file is ever executed, and
        no structure is read from it: that is what ``tx.init`` makes of ``params``.

    For a state of another chain see ``migrate``.

    Raises:
        ValueError: listing every entry that is missing, superfluous, or of another shape or dtype; for a file of
            no known format.

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
    leaves, treedef = _leaves(jax.eval_shape(tx.init, params))
    expected = {path: (leaf, _stored(path, leaf)) for path, leaf in leaves.items()}
    found: dict[str, tuple[str, np.ndarray]] = {}
    for key in arrays:
        if key != "format":
            path, _, label = key.partition(":")
            found[path] = label, np.asarray(arrays[key])
    for path in [path for path in found if "/hyperparams/" in path]:
        residual = residual_of(path)
        if residual in expected and residual not in found:  # of a state that was written before there were any
            _, stored = expected[residual]
            found[residual] = stored.label, np.zeros(stored.shape, stored.dtype)
    problems = [f"missing: {path}" for path in expected if path not in found]
    problems += [f"not in this state: {path}" for path in found if path not in expected]
    for path in expected.keys() & found.keys():
        problems += _differences(path, *expected[path], *found[path])
    if problems:
        raise ValueError(
            "load_state_dict: these entries are not the state of this transformation for these parameters; build both "
            "as they were, or see migrate:\n  " + "\n  ".join(sorted(problems))
        )
    return treedef.unflatten([_restored(found[path][1], *expected[path]) for path in leaves])


class _Stored(NamedTuple):
    """How an array is stored: the name of its dtype if that is not its own, the dtype it has, and its shape."""

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
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)
    return found[0]


def _differences(path: str, leaf: Any, stored: _Stored, label: str, array: np.ndarray) -> list[str]:
    if (label, array.dtype) != (stored.label, stored.dtype):
        return [f"dtype: {path} is {label or array.dtype}, and must be {leaf.dtype}"]
    if array.shape != stored.shape:
        own = array.shape[: array.ndim - (len(stored.shape) - len(leaf.shape))]
        return [f"shape: {path} has {own}, and must have {tuple(leaf.shape)}"]
    return []


def _check_format(arrays: Mapping[str, Any]) -> None:
    if "format" not in arrays:
        raise ValueError("load_state_dict: there is no entry 'format': this was not written by state_dict")
    number = np.asarray(arrays["format"])
    if number.shape != () or number.dtype.kind not in "iu" or not 1 <= number <= FORMAT:
        raise ValueError(
            f"load_state_dict: format {number} is unknown; this version of gradtx reads 1 to {FORMAT}. A newer one "
            "may have written it."
        )


def _leaves(tree: Any) -> tuple[dict[str, Any], Any]:
    """The leaves by path, in order, and the structure."""
    with_paths, treedef = flatten_with_keys(tree)
    leaves = {"/".join(["state", *map(_part, path)]): leaf for path, leaf in with_paths}
    if len(leaves) != len(with_paths):
        raise ValueError("state_dict: two leaves of this state have the same path; give their containers keys")
    return leaves, treedef


def _part(key: Any) -> str:
    """One key of a path, without what separates keys or means something in files (numpy cuts off ``.npy``)."""
    part = jax.tree_util.keystr((key,), simple=True)
    return re.sub(r"[%/:\\\x00-\x1f\x7f]|\.(?=npy$)", lambda match: f"%{ord(match[0]):02X}", part)
