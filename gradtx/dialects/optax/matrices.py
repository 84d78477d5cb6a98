"""optax's optimizers that see weights as matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx._wrappers.partition import partition
from gradtx.dialects.optax._parts import adam_direction, first_moment, unmasked
from gradtx.optimizers._parts import decoupled
from gradtx.rules.base import Hyper
from gradtx.rules.matrices import is_pure

__all__ = ["galore", "muon"]


_COEFFICIENTS = {
    "standard": (3.4445, -4.7750, 2.0315),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}


def _matrix(path: str, leaf: jax.ShapeDtypeStruct) -> bool:
    del path
    return len(leaf.shape) == 2


@dataclasses.dataclass(frozen=True, eq=False)
class Numbered:
    """optax's dimension numbers of all leaves: one, a tree of them or a prefix of it, or a function of the tree.

    One alone is for all leaves of at least so many axes.
    """

    given: Any
    least: int = 0

    def __call__(self, tree: Any) -> list[Any]:
        """The dimension numbers of each leaf; None where it has none."""
        given = self.given(tree) if callable(self.given) else self.given
        prefix, treedef = jax.tree.flatten(given, is_leaf=lambda x: x is None or hasattr(x, "reduction_axis"))
        subtrees = zip(prefix, treedef.flatten_up_to(tree), strict=True)
        numbers = [(one, leaf) for one, subtree in subtrees for leaf in jax.tree.leaves(subtree)]
        return [None if one is given and len(leaf.shape) < self.least else one for one, leaf in numbers]

    def mask(self, tree: Any) -> Any:
        """A tree of True where a leaf has dimension numbers."""
        return jax.tree.unflatten(jax.tree.structure(tree), [one is not None for one in self(tree)])


class in_dimensions(rules.as_matrices):
    """``as_matrices`` by optax's dimension numbers; with ``dual``, times the inner product of a leaf before and after.

    >>> import jax.numpy as jnp
    >>> from gradtx import scale_by_shape
    >>> from gradtx.dialects.optax.matrices import Numbered, in_dimensions
    >>> from optax.contrib import MuonDimensionNumbers
    >>> tx = in_dimensions(scale_by_shape(stacked=1), Numbered({"query": MuonDimensionNumbers(0, (1, 2))}))
    >>> g = {"query": jnp.ones((1, 2, 2))}
    >>> print(tx.update(g, tx.init(g))[0]["query"][0, 0])
    [2. 2.]
    """

    axes: Numbered  # pyright: ignore[reportIncompatibleVariableOverride] - of whole trees
    dual: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def pure(self):
        return not callable(self.axes.given) and is_pure(self.tx)

    def sides(self, tree):
        return self.axes(tree)

    def apply_tree(self, trees, state):
        updates, state = super().apply_tree(trees, state)
        if self.dual:
            updates = jax.tree.map(lambda u, x: jnp.sum(u.conj() * x) * x, trees.direction, updates)
        return updates, state


def muon(
    learning_rate: Hyper,
    ns_coeffs: Any = "standard",
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: float = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Select = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: Hyper = 0.9,
    adam_b2: Hyper = 0.999,
    adam_eps_root: Hyper = 0.0,
    adam_weight_decay: Hyper = 0.0,
    adam_learning_rate: Hyper | None = None,
    muon_weight_dimension_numbers: Any | Callable[[Any], Any] = None,
    consistent_rms: Hyper | None = None,
) -> Chain:
    """optax.contrib.muon: Nadam's momentum, orthogonalized, for the leaves of two axes; AdamW for the others.

    Args:
        learning_rate: η.
        ns_coeffs: (a, b, c) of each iteration, several of them for one each, or "standard" or "dion".
        ns_steps: the number of iterations, or with several coefficients the most that there may be.
        beta: β of the momentum.
        eps: added to the norm of a matrix; and ε of AdamW.
        weight_decay, weight_decay_mask: λ of the matrices, and which of them decay.
        mu_dtype: the dtype that first moments are held in; None: the parameters'.
        nesterov: whether momentum is Nadam's, also for the other leaves.
        adaptive: whether steps are as long as the sum of the singular values of what is orthogonalized.
        preconditioning: "frobenius", "spectral", "schatten" or "aol": what a matrix is divided by at first.
        muon_weight_dimension_numbers: which axes of a leaf are inputs and outputs, as optax's ``MuonDimensionNumbers``:
            one for all leaves, a tree of them or a prefix of it, with None for AdamW, or a function that makes one of
            the parameters (and of what has None for other leaves). None: the leaves of two axes, inputs by outputs.
        adam_b1, adam_b2, adam_eps_root, adam_weight_decay, adam_learning_rate: AdamW's.
        consistent_rms: None to scale by √max(1, out/in), or the root mean square to scale to.

    Raises:
        ValueError: for more coefficients than steps, another ``preconditioning``, and numbers that do not fit a leaf.

    >>> from gradtx.dialects import optax
    >>> import jax.numpy as jnp
    >>> tx, params = optax.muon(0.1), {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print(updates["kernel"].round(4)[0], updates["bias"].round(4))
    [-0.0348 -0.0348] [-0.1474 -0.1474]
    """
    coefficients = _COEFFICIENTS[ns_coeffs] if isinstance(ns_coeffs, str) else ns_coeffs
    if isinstance(coefficients[0], int | float):
        coefficients = (coefficients,) * ns_steps
    if len(coefficients) > ns_steps:
        raise ValueError(f"optax.muon: ns_coeffs for {len(coefficients)} iterations, and ns_steps={ns_steps}")
    coefficients = tuple((float(a), float(b), float(c)) for a, b, c in coefficients)
    average = [first_moment(beta, mu_dtype, nesterov), *([] if nesterov else [rules.debias()])]
    added = preconditioning in ("frobenius", "spectral")
    guard: dict[str, Any] = {"eps": eps} if added else {"eps": 1e-4, "form": "max"}  # of squares, optax's own 1e-8
    iterated: dict[str, Any] = {"coefficients": coefficients, "norm": preconditioning, **guard}
    if muon_weight_dimension_numbers is None:
        which: Any = _matrix
        scaled = chain(rules.orthogonalize(**iterated, dual=adaptive), rules.scale_by_shape(consistent_rms))
    else:
        numbers = Numbered(muon_weight_dimension_numbers)
        which, shape = numbers.mask, rules.scale_by_shape(consistent_rms, stacked=1)
        orthogonal = in_dimensions(rules.orthogonalize(**iterated, stacked=1), numbers, dual=adaptive)
        scaled = chain(orthogonal, in_dimensions(shape, numbers))
    direction = chain(*average, scaled)
    decay = decoupled(weight_decay, unmasked(weight_decay_mask))
    matrices = chain(direction, *decay, rules.scale_by_learning_rate(learning_rate))
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adam = adam_direction(adam_b1, adam_b2, eps, adam_eps_root, mu_dtype, nesterov)
    others = chain(adam, *decoupled(adam_weight_decay, None), rules.scale_by_learning_rate(rate))
    return chain(partition([(which, matrices)], default=others))


def galore(
    learning_rate: Hyper,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Hyper = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: Hyper = 0.0,
    mask: Select = None,
    weight_dimension_numbers: Any | Callable[[Any], Any] = None,
) -> Chain:
    """optax.contrib.galore: Adam, or another, in a subspace of the longer side of each matrix.

    Args:
        learning_rate: η.
        rank: the number of directions.
        update_proj_gap: how many steps they stay.
        scale: the factor of the matrices.
        base_optimizer: a gradtx chain or an optax transformation that needs no parameters; None: Adam's direction.
        weight_decay: λ, decoupled.
        mask: which leaves decay; None: all.
        weight_dimension_numbers: which axes of a leaf are the sides of a matrix, as optax's ``GaLoreDimensionNumbers``:
            one for all leaves of two and more axes, a tree of them, with None for what is no matrix, or a function that
            makes one of the parameters. None: the leaves of two axes.

    Where a basis takes the place of another, its columns have the signs that turn them towards those of before; in
    optax those that the decomposition has, which is one in float32.

    Raises:
        ValueError: for dimension numbers that do not fit.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.galore(0.1).rules]
    ['in_subspace', 'scale_by_learning_rate']
    """
    inside = adam_direction(0.9, 0.999, 1e-8, 0.0, None, False) if base_optimizer is None else chain(base_optimizer)
    stacked = 0 if weight_dimension_numbers is None else 1
    subspace = rules.in_subspace(inside, rank, scale, every=update_proj_gap, side="long", stacked=stacked)
    if stacked:
        subspace = in_dimensions(subspace, Numbered(weight_dimension_numbers, least=2))
    return chain(subspace, *decoupled(weight_decay, unmasked(mask)), rules.scale_by_learning_rate(learning_rate))
