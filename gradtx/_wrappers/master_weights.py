"""Parameters in few bits, trained as if they had more."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from gradtx._chain import Chain
from gradtx._core.codecs import decoded, seeds
from gradtx._core.control import either
from gradtx._core.counts import incremented, zero
from gradtx._core.limits import check_choice
from gradtx._core.mesh import like_parameters, puts_constants, spread_as, starts
from gradtx._core.numerics import added, widened
from gradtx._core.weights import Kept, Weight
from gradtx._engine import inputs
from gradtx._engine.backends import NATIVE, current
from gradtx._engine.transformation import check_transformation, run_inside, started
from gradtx._wrappers.base import Wrapper, checked_state
from gradtx._wrappers.packed import packed
from gradtx.rules.base import Rule

_Keep = Literal["float32", "int16", "int8"]


class MasterWeightsState(NamedTuple):
    """The state of ``master_weights``.

    Attributes:
        inner: the state of the transformation inside.
        kept: like the parameters, what is kept beside each one of low precision; None for the others, and for all where
            nothing is kept.
        count: steps taken, int32, saturating. (It hides ``tuple.count``.)
    """

    inner: Any
    kept: Any
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, as states do


class master_weights(Wrapper[MasterWeightsState]):
    r"""Parameters in bfloat16 or float16, trained as if they were in float32.

    A digit of bfloat16 is 1/128 of a number or less, and an update of less than half of it, rounded to nearest, is
    lost: a weight of 1 stays 1 through any number of steps of 0.001. The wrapper keeps what rounding loses::

        w ← decode(p, k)          in float32
        u, s ← tx(g, s, w)
        p, k ← encode(w + u)      p in the dtype of the parameter

    =============  =====================================  ========================  ================================
    ``keep``       k                                      bytes of p and k          bits of w
    =============  =====================================  ========================  ================================
    "float32"      w                                      6                         24
    "int16"        the lower 16 bits of w: p is the rest  4                         24
    "int8"         8 bits of these                        3                         16, the last at random
    None           nothing                                2                         8, the last at random
    =============  =====================================  ========================  ================================

    With the first two p is w rounded to nearest, and steps are those of float32. At random is: up as often as w is near
    to the number above, so that the mean is w, and no update is too small. Random bits are a hash of the count, the
    leaf's path and the element's place: no key is kept, and a step that is taken again rounds alike. An update of 0
    moves nothing.

    Parameters of other dtypes, as float32 ones beside, stay as they are, with nothing kept; ``tx`` sees them and their
    gradients as they come in. Those of low precision, and their gradients, it sees in float32, so that its slots are
    float32 unless a ``state_dtype`` says otherwise.

    Args:
        tx: a gradtx chain, rule or wrapper, or any optax transformation: the whole optimizer.
        keep: see above. "float32", the default, can be looked at in the state, and is the only one for float16, whose
            bits are not among those of float32. "int16" makes the same steps with less.

    It works inside of guards and around them. ``step`` gives p itself. ``update`` gives p after the step minus p
    before, in float32, from which ``optax.apply_updates`` makes p after the step. Another rule may not stand behind it
    in a chain. A ``chain`` around it rounds updates to the dtype of the gradients: let the chain be inside. Inside of
    ``zero1`` each device keeps k of its part alone, and the parts of p are gathered, in its own dtype.

    State: ``MasterWeightsState``. p and k belong together: where you put other parameters in place of p, call ``init``
    again.

    Inf and NaN: p gets them.

    Raises:
        TypeError: if ``tx`` is no transformation; for float16 parameters where ``keep`` is not "float32"; in
            ``update``, for a state that ``init`` did not make.
        ValueError: for an unknown ``keep``; in ``update``, without parameters, and for a state of another ``keep``.

    Source: Micikevicius et al. (2018), "Mixed precision training", section 3.1; Zamirai et al. (2020), "Revisiting
    bfloat16 training", for rounding at random, and for Kahan's compensation, which "int16" stands for: it keeps w − p,
    in bfloat16, of the same size.

    >>> import gradtx, jax.numpy as jnp
    >>> p = g = jnp.ones(2, jnp.bfloat16)
    >>> for tx in (gradtx.sgd(-1e-3), gradtx.master_weights(gradtx.sgd(-1e-3), keep="int8")):
    ...     params, state = p, tx.init(p)
    ...     for _ in range(100):
    ...         params, state = gradtx.step(tx, params, g, state)
    ...     print(params)
    [1 1]
    [1.10156 1.10156]
    """

    tx: optax.GradientTransformation
    keep: _Keep | None = "float32"

    def __post_init__(self):
        check_transformation(self.label, "tx", self.tx)
        check_choice(self.label, "keep", self.keep, (*get_args(_Keep), None))

    @property
    def takes_stored(self) -> bool:
        """True: it is about how parameters are stored."""
        return True

    def _members(self, state: MasterWeightsState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state.inner)}

    @starts
    def init(self, params: Any) -> MasterWeightsState:
        """The state before the first step: nothing lost yet."""
        flat = inputs.FlatTree.of(params, "parameters")
        kept = [self._first(p) if low else None for p, low in zip(flat.leaves, self._are_low(flat), strict=True)]
        inner = started(self.tx, flat.unflatten(map(_widened_if_low, flat.leaves)))
        return MasterWeightsState(inner, like_parameters(flat.unflatten(kept), params), zero())

    @puts_constants
    def run(
        self, updates: Any, state: MasterWeightsState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, MasterWeightsState]:
        """One step in float32; parameters rounded, or the way to them."""
        state = checked_state(self.label, state, MasterWeightsState, "count")
        if params is None:
            raise ValueError("master_weights: it rounds the parameters: call update(updates, state, params).")
        flat = inputs.FlatTree.of(params, "parameters")
        low = self._are_low(flat)
        weights: list[Any] = [
            Weight(p, k, Kept(self.keep, str(p.dtype))) if is_low else p
            for p, k, is_low in zip(flat.leaves, self._kept(state, flat, low), low, strict=True)
        ]
        gradients = inputs.leaves_like(flat.treedef, updates)
        if not (apply_updates and self._is_one_pass()) or gradients is None:
            as_stored = [False] * len(low)
        else:
            as_stored = [is_low and not inputs.has_no_gradient(g) for g, is_low in zip(gradients, low, strict=True)]
        seen: list[Any] = [w if stays else decoded(w) for w, stays in zip(weights, as_stored, strict=True)]
        if gradients is not None:
            lifts = [is_low and not stays for is_low, stays in zip(low, as_stored, strict=True)]
            updates = flat.unflatten([widened(g) if lift else g for g, lift in zip(gradients, lifts, strict=True)])
        after, inner = run_inside(self.tx, updates, state.inner, flat.unflatten(seen), extra, apply_updates)
        out = flat.treedef.flatten_up_to(after)
        seed = self._seeds(state, flat)
        for i, before in enumerate(weights):
            if not low[i] or inputs.has_no_gradient(out[i]):
                continue
            if not as_stored[i]:
                w = out[i] if apply_updates else added(seen[i], out[i])
                out[i] = _computed_once(functools.partial(before.codec.encode, w, seed[i]), state.count, before)
            weights[i] = out[i]
            rounded = out[i].param  # where what is kept is, which may be divided over an axis as slots are
            if apply_updates:
                out[i] = spread_as(rounded, jax.typeof(before.param))
            else:
                out[i] = widened(rounded) - widened(before.param)
        kept = flat.unflatten([w.kept if is_low else None for w, is_low in zip(weights, low, strict=True)])
        return flat.unflatten(out), MasterWeightsState(inner, kept, incremented(state.count))

    def _is_one_pass(self) -> bool:
        """True if ``tx`` reads and writes weights as they are stored: where the kernel takes the step of a chain.

        XLA on a CPU makes a loop for each of the arrays that a weight is stored in.
        """
        return isinstance(self.tx, Chain | Rule | packed) and current(traced=True) is NATIVE

    def _are_low(self, flat: inputs.FlatTree) -> list[bool]:
        """True for each parameter of low precision."""
        for path, p in flat.named:
            if self.keep != "float32" and _is_low(p) and p.dtype != jnp.bfloat16:
                raise TypeError(
                    f"master_weights: keep={self.keep!r} is for bfloat16, and parameter {path!r} is {p.dtype}, whose "
                    "bits are not among those of float32. Take keep='float32'."
                )
        return [_is_low(p) for p in flat.leaves]

    def _first(self, param: Any) -> jax.Array | None:
        if self.keep is None:
            return None
        return widened(param) if self.keep == "float32" else jnp.zeros_like(param, self.keep)

    def _kept(self, state: MasterWeightsState, flat: inputs.FlatTree, low: Sequence[bool]) -> list[Any]:
        """The kept arrays of each parameter.

        Raises:
            ValueError: for a state of another ``keep``, or of other parameters.
        """
        dtypes = {str(jnp.result_type(k)) for k in jax.tree.leaves(state.kept)}
        if dtypes != ({self.keep} if self.keep and any(low) else set()):
            raise ValueError(
                f"master_weights: keep={self.keep!r}, and this state keeps {', '.join(sorted(dtypes)) or 'nothing'}. "
                "Call init of this wrapper, with the parameters in the dtypes that they are trained in."
            )
        return flat.like(state.kept, "kept arrays", [self.keep is not None and one for one in low])

    def _seeds(self, state: MasterWeightsState, flat: inputs.FlatTree) -> Any:
        """The seed of each leaf, where something is rounded at random."""
        if self.keep in ("float32", "int16"):
            return [None] * len(flat.leaves)
        arrays = [p if _is_low(p) else state.count for p in flat.leaves]
        return seeds(state.count, [f"weights/{path}" for path, _ in flat.named], arrays)


def _is_low(param: Any) -> bool:
    return inputs.is_number(param) and jnp.result_type(param) in (jnp.bfloat16, jnp.float16)


def _widened_if_low(param: Any) -> Any:
    return widened(param) if _is_low(param) else param


def _computed_once(encode: Callable[[], Weight], count: jax.Array, before: Weight) -> Weight:
    """``encode()``, on a CPU behind a condition that always holds.

    XLA makes a loop there for each of two results, and would compute the whole step in both, with copies of what it
    reads. In front of a condition it is computed once.
    """
    if jax.default_backend() != "cpu" or before.codec.keep in ("float32", None):
        return encode()
    return either(count >= 0, encode, lambda: before)
