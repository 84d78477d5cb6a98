"""Examples that the properties are tried with: parameters of every kind."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    kernel: Any
    bias: Any


def normal(*shape: int, seed: int = 0, dtype: Any = "float32") -> jax.Array:
    """Normal numbers, complex ones for a complex dtype."""
    x = np.random.default_rng(seed).normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * np.random.default_rng(seed + 1).normal(size=shape)
    return jnp.asarray(x, dtype)


def params(dtype: Any = "float32") -> dict[str, jax.Array]:
    """A matrix and a vector."""
    return {"w": normal(3, 2, dtype=dtype), "b": normal(2, seed=1, dtype=dtype)}


@functools.cache
def trees() -> dict[str, Any]:
    """Trees of parameters, by what is special about them."""
    return {
        "empty": {},
        "one array": normal(3),
        "scalar": {"x": normal()},
        "size 0": {"x": jnp.zeros((0, 3)), "y": normal(2)},
        "only size 0": {"x": jnp.zeros((0,))},
        "None leaves": {"x": normal(2), "frozen": None, "deep": (None, normal(1))},
        "nested": {
            "a": [normal(2), (normal(1), {"b": normal()})],
            "c": Pair(normal(2), Block(normal(2, 2), normal(2))),
        },
        "odd keys": {0: normal(2), -1: normal(1), 7: {"a/b": normal(1), "": normal(1), "['x']": normal(1)}},
        "ranks": [normal(*range(1, rank + 1)) for rank in range(6)],
        "1 element": (normal(1, 1, 1),),
    }


DTYPES = {
    # parameters: gradients of the same, a narrower and a wider dtype
    "float32": ("float32", "bfloat16", "float64"),
    "bfloat16": ("bfloat16", "float16", "float32"),
    "float16": ("float16", "bfloat16", "float64"),
    "float64": ("float64", "float32", "bfloat16"),
    "complex64": ("complex64", "complex128"),
}
