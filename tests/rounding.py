"""Numbers of two programs that compute the same.

XLA rounds them differently. It fuses a multiply and an add into one instruction where both end up in one loop, adds in
the order that the width of a vector suggests, and leaves bfloat16 in float32 between two operations where the processor
has nothing better. So the bits of two programs are no contract, on any processor; those of one program, run with other
arguments, are, and so are those of numbers that no operation rounds.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NARROW_ULPS = 2
"""Half precision holds what float32 computed, rounded once: to one of two neighbours."""


def assert_same(found: Any, expected: Any, ulps: int = 16) -> None:
    """The same trees of the same dtypes, and numbers within so many ulps of the largest finite one of each leaf.

    Of the largest, since a difference of numbers has the rounding errors of what it is the difference of.
    """
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            np.testing.assert_array_equal(x, y, err_msg=name)
            continue
        unit = float(jnp.finfo(x.dtype).eps)
        x, y = (np.asarray(a, np.complex128 if np.iscomplexobj(a) else np.float64) for a in (x, y))
        largest = np.abs(y[np.isfinite(y)]).max(initial=0.0)
        atol = (ulps if unit < 1e-6 else NARROW_ULPS) * unit * largest
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=name)
