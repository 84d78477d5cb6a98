"""Problems of training, found in the numbers that a monitor saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np


class Finding(NamedTuple):
    """One problem that ``diagnose`` found; prints as a line.

    Attributes:
        problem: "nonfinite", "exploding", "vanishing", "dead", "large updates", "small updates" or "clipped".
        leaves: the paths of the leaves that have it, the worst first.
        values: what was measured of each of them.
        measure: what these values are, and the limit, in words.
        advice: what to try.
    """

    problem: str
    leaves: tuple[str, ...]
    values: tuple[float, ...]
    measure: str
    advice: str

    def __str__(self) -> str:
        shown = [f"{leaf} ({value:.2g})" for leaf, value in zip(self.leaves[:4], self.values, strict=False)]
        more = f" and {len(self.leaves) - 4} more" if len(self.leaves) > 4 else ""
        return f"{self.problem}: {', '.join(shown)}{more}: {self.measure}. {self.advice}"


class Diagnosis(tuple[Finding, ...]):
    """The findings of ``diagnose``: a tuple of ``Finding``, empty if nothing is wrong. Prints one line for each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "healthy"

    __repr__ = __str__


class _Leaf(NamedTuple):
    """The numbers of one leaf that problems are seen in; shares and ratios, but for the norm."""

    nonfinite: float
    norm: float
    rms_to_largest: float
    zeros: float
    step: float
    update_ratio: float
    clipped: float


class _Limits(NamedTuple):
    """The limits of what is healthy: the keyword arguments of ``diagnose``."""

    vanishing: float
    exploding: float
    dead: float
    large_update: float
    small_update: float
    nonfinite: float
    clipped: float


class _Check(NamedTuple):
    """A problem that a leaf may have.

    Attributes:
        problem: its name.
        number: the attribute of ``_Leaf`` that shows it.
        is_ill: of a leaf and the limits, whether the leaf has the problem; False for NaN.
        measure: the number in words, with the limit.
        advice: what to try.
        low_is_bad: whether the lowest number is the worst.
    """

    problem: str
    number: str
    is_ill: Callable[[_Leaf, _Limits], bool]
    measure: str
    advice: str
    low_is_bad: bool = False


_CHECKS = (
    _Check(
        "nonfinite",
        "nonfinite",
        lambda leaf, limits: leaf.nonfinite > limits.nonfinite,
        "the gradient held inf or NaN in this share of the steps",
        "Try a smaller step, or clip_by_global_norm; skip_nonfinite drops such steps, loss_scale for float16.",
    ),
    _Check(
        "exploding",
        "norm",
        lambda leaf, limits: leaf.norm > limits.exploding and leaf.clipped < limits.clipped,
        "the norm of the gradient is above {exploding:g}",
        "Try clip_by_norm or clip_by_global_norm, smaller initial weights, or a smaller step.",
    ),
    _Check(
        "vanishing",
        "rms_to_largest",
        lambda leaf, limits: leaf.rms_to_largest < limits.vanishing and leaf.zeros < limits.dead,
        "the gradient is less than {vanishing:g} times the largest leaf's",
        "Try ReLU or maxout, an initialisation that keeps the scale (He's), fewer layers, or rms scaling. (A bias in "
        "front of a batch norm has no gradient, and needs none.)",
        low_is_bad=True,
    ),
    _Check(
        "dead",
        "zeros",
        lambda leaf, limits: leaf.zeros >= limits.dead,
        "this share of the gradient is zero; {dead:g} or more is too much",
        "Try a smaller step, smaller initial weights, or maxout. (Rows of an embedding that no example used are "
        "zero as they should be.)",
    ),
    _Check(
        "large updates",
        "step",
        lambda leaf, limits: leaf.step > limits.large_update,
        "a step changes the leaf by more than {large_update:g} of its norm",
        "Try a smaller learning rate, or one that warms up.",
    ),
    _Check(
        "small updates",
        "update_ratio",
        lambda leaf, limits: leaf.update_ratio < limits.small_update,
        "a step changes the leaf by less than {small_update:.2g} of its norm",
        "Try a larger learning rate, or parameters in a wider dtype.",
        low_is_bad=True,
    ),
    _Check(
        "clipped",
        "clipped",
        lambda leaf, limits: leaf.clipped >= limits.clipped,
        "the gradient was clipped in this share of the steps; {clipped:g} or more is too often",
        "Then the limit sets the length of the step, not the gradient. Try a higher limit, or smaller initial weights.",
    ),
)
"""All problems, the worst first."""


def diagnose(
    metrics: Mapping[str, Any],
    *,
    vanishing: float = 1e-3,
    exploding: float = 30.0,
    dead: float = 0.9,
    large_update: float = 0.1,
    small_update: float = 2.0**-24,
    nonfinite: float = 0.0,
    clipped: float = 0.9,
) -> Diagnosis:
    """The problems of the gradients and updates that a monitor at the end of a chain saw, and what to try.

    Args:
        metrics: from ``metrics(state)``, or those names with plain numbers; others are ignored.
        vanishing: a leaf's gradient has vanished if its root mean square is below this part of the largest leaf's:
            it learns a thousand times slower. By the element and not by the norm, so that the verdict does not depend
            on how wide a layer is, and biases compare with weights. Leaves that explode are no measure for others.
        exploding: a leaf's gradient explodes if its norm is above this. For a loss near 1 norms near 1 are usual, and
            so are clips at 1. A leaf that is clipped all the time (see ``clipped``) does not count.
        dead: a leaf is dead if this share of its gradient is 0, or more. With one image in a batch half of a ReLU
            layer is zero rightly; nine tenths are not.
        large_update: updates are too large above this part of the parameters (in norm): ten steps move a leaf by as
            much as it is. A thousandth is usual. A leaf of small norm, as biases that start at 0 are, counts as a tenth
            of a leaf of mean size: its first steps are large against nothing but itself.
        small_update: updates are too small below this part: float32 rounds them away. Pass 2⁻⁸ for bfloat16.
            A ratio that is NaN is not judged.
        nonfinite: the share of steps with an inf or NaN in the gradient that is put up with. With a loss scale, allow
            a few.
        clipped: a leaf is nearly always clipped from this share of steps on.

    Returns:
        A ``Diagnosis``, the worst problem first; empty if all is well. Counts and shares of steps are those of all
        measured steps, everything else is of the last one: a single mini-batch, so look more than once.

    Raises:
        ValueError: for metrics of several monitors (choose one: ``metrics(state, name)``), of several steps or runs, or
            of none.
        TypeError: inside ``jit``, where the numbers are not known.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.sgd(0.01), gradtx.monitor())
    >>> params = {"first": jnp.ones(3), "last": jnp.ones(3)}
    >>> _, state = tx.update({"first": jnp.full(3, 1e-7), "last": jnp.ones(3)}, tx.init(params), params)
    >>> for finding in gradtx.diagnose(gradtx.metrics(state)):
    ...     print(finding.problem, finding.leaves)
    vanishing ('first',)
    small updates ('first',)
    >>> gradtx.diagnose(gradtx.metrics(state), vanishing=1e-8, small_update=0)
    healthy
    """
    _check_metrics(metrics)
    leaves = _leaves(metrics, exploding)
    limits = _Limits(vanishing, exploding, dead, large_update, small_update, nonfinite, clipped)
    findings = (_finding(check, leaves, limits) for check in _CHECKS)
    return Diagnosis(finding for finding in findings if finding.leaves)


def _finding(check: _Check, leaves: Mapping[str, _Leaf], limits: _Limits) -> Finding:
    """The leaves that have a problem, which may be none."""
    ill = {path: getattr(leaf, check.number) for path, leaf in leaves.items() if check.is_ill(leaf, limits)}
    paths = sorted(ill, key=lambda path: ill[path] if check.low_is_bad else -ill[path])
    measure = check.measure.format(**limits._asdict())
    return Finding(check.problem, tuple(paths), tuple(ill[path] for path in paths), measure, check.advice)


def _leaves(metrics: Mapping[str, Any], exploding: float) -> dict[str, _Leaf]:
    """The numbers of each leaf, by its path."""
    paths = [key.removeprefix("gradient_norm/") for key in metrics if key.startswith("gradient_norm/")]

    def each(quantity: str) -> dict[str, float]:
        values = {path: metrics[f"{quantity}/{path}"] for path in paths}
        return {path: math.nan if value is None else float(value) for path, value in values.items()}

    norms, rms, updates, params = map(each, ("gradient_norm", "gradient_rms", "update_norm", "param_norm"))
    ratios, zeros, clipped, nonfinite = map(each, ("update_ratio", "zeros", "clipped", "nonfinite"))
    largest = max((rms[path] for path in paths if norms[path] <= exploding), default=0.0)
    least = 0.1 * math.sqrt(sum(p**2 for p in params.values()) / max(len(params), 1))
    return {
        path: _Leaf(
            nonfinite=nonfinite[path] / float(metrics["steps"]),
            norm=norms[path],
            rms_to_largest=rms[path] / largest if largest else math.nan,
            zeros=zeros[path],
            step=updates[path] / (max(params[path], least) or math.nan),
            update_ratio=ratios[path],
            clipped=clipped[path],
        )
        for path in paths
    }


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    """Refuse what has no numbers of one monitor at one time."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"diagnose: expected the dict that metrics returned, found {type(metrics).__name__}")
    if "steps" not in metrics:
        several = any(key.endswith("/steps") for key in metrics)
        hint = "several monitors: choose one by metrics(state, name)" if several else "no monitor"
        raise ValueError(f"diagnose: these are the metrics of {hint}")
    steps = metrics["steps"]
    if isinstance(steps, jax.core.Tracer):
        raise TypeError("diagnose: inside jit the numbers are not known; return the metrics, and diagnose outside")
    if np.shape(steps):
        raise ValueError(f"diagnose: these metrics have shape {np.shape(steps)}: diagnose one step or run at a time")
    if not steps:
        raise ValueError("diagnose: nothing has been measured yet")
