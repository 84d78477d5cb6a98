"""The compiled kernel: elementwise functions over many leaves in one pass over memory.

A function of one array (a whole optimizer and the step it takes, say) becomes a small program, which the kernel runs
block by block in the cache, on all cores and in place. Without the kernel, on other devices, over several devices, in
derivatives and under ``vmap``, and for a function that the kernel does not know all of, the result is what JAX makes
of the function itself. Chains run so by themselves, see ``gradtx.executor``; here one can ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradtx.native import _library
from gradtx.native._compiler import compile_jaxpr
from gradtx.native._library import Availability
from gradtx.native._program import Reduce, Unsupported

__all__ = ["Availability", "available", "supports"]


def available() -> Availability:
    """True if the compiled kernel is there; as a string: which, or why not.

    >>> from gradtx import native
    >>> native.available() is native.available()
    True
    """
    return _library.load()


def supports(
    fn: Callable[..., Any], avals: Sequence[Any], n_scalars: int = 0, reduces: Sequence[str] = ()
) -> str | None:
    """None if the kernel can run ``fn`` on arrays like these and float32 scalars, else the reason why not.

    Args:
        fn: elementwise in the arrays; returns an array of their shape, or several.
        avals: the arrays, or abstract ones.
        n_scalars: the number of scalars that it takes behind them.
        reduces: how its last outputs are reduced to one number for each leaf: "sum", "norm" or "max".

    >>> from gradtx import native
    >>> import jax, jax.numpy as jnp
    >>> reason = native.supports(jnp.cumsum, [jax.ShapeDtypeStruct((8,), jnp.float32)])
    >>> isinstance(reason, str)
    True
    """
    if not available():
        return str(available())
    scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * n_scalars
    closed = jax.make_jaxpr(fn)(*avals, *scalars)
    try:
        compile_jaxpr(closed.jaxpr, len(avals), available().ops, {}, [Reduce(kind) for kind in reduces])
    except Unsupported as error:
        return str(error)
    return None


available()  # at import, so that what was compiled before, and is read from a file, finds the kernel
