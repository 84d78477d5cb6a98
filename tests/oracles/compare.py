"""The dialects beside the oracles: trajectories of gradtx, and a table of the largest differences.

python -m tests.oracles.compare > docs/dialects.md
"""

import contextlib
import functools
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from optax._src import factorized
from optax.contrib import _galore, _madgrad

import gradtx as gx
from gradtx import dialects, rules

from . import authors
from .cases import CASES, LR_NAME, NEED_THE_LOSS, OPTAX, PROBLEMS, SCHEDULES, STEPS, Case, flat

GOLDENS = {name: np.load(Path(__file__).parent / f"{name}.npz") for name in ("torch", "keras")}


SCHEDULED = {"asgd", "adafactor", "lamb", "muon", "schedule_free_adamw"}
"""Optimizers that read the learning rate in more than one place: it is a schedule, and not set in the state."""


def is_scheduled(case: Case) -> bool:
    """True where the learning rate is a schedule; of gradients that are accumulated, it is that of a chain inside."""
    return case.optimizer in SCHEDULED or "gradient_accumulation_steps" in case.kwargs


def make(case: Case) -> gx.Chain:
    """The dialect's chain, under the framework's own arguments."""
    module, kwargs = getattr(dialects, case.framework), dict(case.kwargs)
    if is_scheduled(case):
        kwargs[LR_NAME[case.framework]] = lambda count: case.lr * SCHEDULES[case.schedule](count)
    tx = getattr(module, case.optimizer)(**kwargs)
    if case.clip is not None:
        kind, limit = case.clip
        clip = {"value": dialects.torch.clip_grad_value, "norm": dialects.torch.clip_grad_norm}[kind]
        tx = gx.chain(clip(limit), tx)
    return tx


@functools.partial(jax.jit, static_argnums=0)
def update(tx, grads, state, params, **extra):
    updates, state = tx.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state


def trajectory(case: Case, tx: gx.Chain) -> np.ndarray:
    """The parameters after each step, the learning rate set in the state before each, as one does in the frameworks."""
    problem = PROBLEMS[case.problem]
    params = problem.leaves(jnp.asarray(problem.x0))
    state = tx.init(params)
    rates = [f"{rule}.learning_rate" for rule, names in state.hyperparams.items() if "learning_rate" in names]
    rates = [] if is_scheduled(case) else rates
    out = []
    for k, lr in enumerate(case.learning_rates()):
        # In numpy, so that what is exactly zero in the oracle is exactly zero here.
        grads = problem.leaves(jnp.asarray(problem.grad(flat(params), k)))
        state = gx.set_hyperparams(state, {rate: lr for rate in rates})
        params, state = update(tx, grads, state, params)
        averages = gx.evaluation_point(state, params) if case.averages else []
        out.append(flat([*params, *averages]))
    return np.stack(out)


def difference(case: Case) -> float:
    """The largest difference to the stored trajectory, relative to the parameters where they exceed 1."""
    golden = GOLDENS[case.framework][case.id]
    return float((abs(trajectory(case, make(case)) - golden) / np.maximum(1, abs(golden))).max())


ESTIMATES = {"prodigy", "dadapt_adamw", "dog", "dowg"}
"""Optimizers whose learning rate is about 1: at that of others no distance that they estimate would grow."""


def of_dialect(name: str):
    """A function of the dialect, as one of the learning rate."""
    return _of_rate(name, dialects.optax)


def of_optax(name: str):
    """A function of optax or optax.contrib, as one of the learning rate."""
    if name == "sm3":  # optax's own takes no schedule, and its Rprop neither: what that starts with is the first rate
        return lambda rate, momentum=0.9: optax.chain(optax.scale_by_sm3(momentum), optax.scale_by_learning_rate(rate))
    if name == "rprop":
        return lambda rate, **kwargs: optax.rprop(np.asarray(rate(jnp.int32(0)) if callable(rate) else rate), **kwargs)
    return _of_rate(name, optax if hasattr(optax, name) else optax.contrib)


def _thirtyfold(rate: Any) -> Any:
    return 30 * rate if isinstance(rate, float) else lambda count: 30 * rate(count)


def _of_rate(name: str, module: Any):
    """As one of the learning rate, where something else comes first."""
    if name == "mechanize":
        sgd = {dialects.optax: dialects.optax.sgd}.get(module, optax.sgd)
        return lambda rate, **kwargs: module.mechanize(sgd(rate), **kwargs)
    if name in ESTIMATES:
        make_tx = getattr(module, name)
        return lambda rate, **kwargs: make_tx(_thirtyfold(rate), **kwargs)
    if name == "polyak_sgd":
        return lambda rate, max_learning_rate=0.3, **kwargs: module.polyak_sgd(max_learning_rate, rate, **kwargs)
    return getattr(module, name)


class Wide:
    """``jax.numpy`` for modules of optax that compute in float32 whatever the parameters are: float64 instead."""

    float32 = jnp.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    @staticmethod
    def sqrt(x: Any) -> jax.Array:
        """The root, of a count too."""
        return jnp.sqrt(jnp.asarray(x, jnp.float64))


@contextlib.contextmanager
def optax_in_float64() -> Iterator[None]:
    """Adafactor's decay, MADGRAD's root of the count, and GaLore's decomposition in float64, as all else is."""
    with contextlib.ExitStack() as patches:
        for module in (factorized, _madgrad, _galore):
            patches.enter_context(mock.patch.object(module, "jnp", Wide()))
        yield


def loss(params: Any, grads: Any) -> jax.Array:
    """The one that the gradients are of, which pull by a tenth of the parameters."""
    return sum(jnp.sum(p * g - 0.05 * p * p) for p, g in zip(*map(jax.tree.leaves, (params, grads)), strict=True))  # pyright: ignore[reportReturnType] - not of nothing


@optax_in_float64()
def optax_difference(name: str, kwargs: dict[str, Any]) -> float:
    """The largest difference to optax on the noisy problems together, at a falling rate, as in ``difference``."""
    problems = PROBLEMS["stochastic"], PROBLEMS["matrices"]
    makers = of_dialect(name), of_optax(name)
    runs = []
    for make_tx in makers:
        tx = make_tx(lambda count: 0.02 * SCHEDULES["decaying"](count), **kwargs)
        params = [problem.leaves(jnp.asarray(problem.x0)) for problem in problems]
        state, rows = tx.init(params), []
        for k in range(STEPS):
            both = zip(problems, params, strict=True)
            grads = [problem.leaves(jnp.asarray(problem.grad(flat(leaves), k))) for problem, leaves in both]
            extra = {"value": loss(params, grads)} if name in NEED_THE_LOSS else {}
            params, state = update(tx, grads, state, params, **extra)
            rows.append(np.concatenate([flat(leaves) for leaves in params]))
        runs.append(np.stack(rows))
    ours, theirs = runs
    return float((abs(ours - theirs) / np.maximum(1, abs(theirs))).max())


def limit(count):
    """timm clips from the second step on."""
    return jnp.where(count == 0, jnp.inf, 1.0)


def a_matrix(path, leaf):
    return len(leaf.shape) == 2


def projected(rate, *averages, every):
    """GaLore as galore-torch has it: Adam with epsilon hat."""
    adam = gx.chain(*averages, gx.precondition(1e-6), gx.debias())
    return gx.chain(gx.in_subspace(adam, 2, 0.25, every=every), gx.scale_by_learning_rate(rate))


def angle(scale, width):
    """Adam as an angle."""
    averages = gx.chain(gx.momentum(0.9), gx.rms(0.99), gx.debias())
    return gx.chain(averages, gx.precondition(0.0), gx.arctan(scale, width))


DION = (
    *((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037)),
    *((2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012)),
)
CORRECTED = gx.seal(gx.chain(gx.extrapolate(0.025 * 0.95 / 0.05, "same"), gx.clip_by_norm(limit)))
AUTHORS = {
    "prodigy": lambda rate: gx.prodigy(rate, initial=0.01, weight_decay=0.1),
    "prodigy, slow": lambda rate: gx.prodigy(rate, 0.8, 0.95, 1e-2, 0.1, 3.0),
    "schedule-free": gx.schedule_free_adamw,
    "schedule-free sgd": gx.schedule_free_sgd,
    "adan": gx.adan,
    "laprop": lambda rate: gx.laprop(rate, eps=1e-15),
    "mars": lambda rate: gx.chain(CORRECTED, gx.adam(rate, 0.95, 0.99)),
    "lamb": lambda rate: gx.lamb(rate, weight_decay=0.1),
    "lars": lambda rate: gx.chain(gx.scale_by_trust_ratio(1e-3), gx.trace(0.9), gx.scale_by_learning_rate(rate)),
    "novograd": lambda rate: gx.novograd(rate, weight_decay=0.1),
    "madgrad": lambda rate: gx.dialects.optax.madgrad(rate, eps=1e-3),
    "cautious adamw": lambda rate: gx.cautious_adamw(rate, weight_decay=0.1),
    "lion": lambda rate: gx.lion(rate, weight_decay=0.1),
    "adabelief": lambda rate: gx.adabelief(rate, eps=1e-8),
    "galore": lambda rate: projected(rate, gx.momentum(0.9), gx.rms(0.999), every=1000),
    "galore, turning": lambda rate: projected(rate, gx.rms(0.9), every=7),
    "dadapt_adam": lambda rate: gx.chain(
        gx.rms(0.95),
        gx.scale_by_distance_bound(rate, 0.02, 0.95**0.5, 1e-3, lagged=True),
        *(gx.momentum(0.9), gx.precondition(1e-3), gx.scale(-1.0)),
    ),
    "shampoo": lambda rate: gx.chain(gx.partition([(a_matrix, gx.shampoo(rate, 0.0, 1e-2))], default="freeze")),
    "lion_pytorch": lambda rate: gx.lion(rate, 0.8, 0.95, 0.1),
    "adam_atan2": lambda rate: gx.chain(angle(1.27, 1.0), gx.add_decayed_weights(0.1), gx.scale_by_learning_rate(rate)),
    "adam_atan2, cautious decay": lambda rate: gx.chain(
        angle(1.0, 2.0), gx.add_cautious_decay(0.3), gx.scale_by_learning_rate(rate)
    ),
    "adafactor": lambda rate: gx.chain(
        *(gx.scale_by_factored_rms(least=1, axes="last"), gx.clip_by_rms(), gx.add_decayed_weights(0.1)),
        *(gx.scale_by_parameter_rms(), gx.scale_by_learning_rate(rate)),
    ),
    "heavyball muon": lambda rate: gx.chain(
        *(gx.momentum(0.9), gx.quasi_hyperbolic(0.5), gx.scale(2.0)),
        *(gx.orthogonalize(coefficients=DION, output=0, where=a_matrix), gx.scale_by_shape(output=0, where=a_matrix)),
        gx.scale_by_learning_rate(rate),
    ),
    "heavyball laprop": lambda rate: gx.laprop(rate, b2=0.99, eps=1e-15, weight_decay=0.1),
    "heavyball ademamix": lambda rate: gx.ademamix(rate, alpha=2.0, eps=1e-15),
}
"""Chains that are what ``oracles/authors.py`` runs."""

OF_A_DECOMPOSITION = {"galore", "galore, turning", "shampoo"}
"""Those that hold what one program's decomposition of a matrix rounds to, which another's does not."""


def trajectory_of_authors(name: str) -> np.ndarray:
    """The parameters after each step, as ``authors.run`` has them."""
    tx = AUTHORS[name](authors.schedule(name))

    def one(carry, noise):
        p, state = carry
        updates, state = tx.update(jax.tree.map(lambda n, x: n + 0.1 * x, noise, p), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), jnp.concatenate([x.ravel() for x in jax.tree.leaves(p)])

    p = [jnp.asarray(x) for x in authors.start()]
    return np.asarray(jax.jit(lambda: jax.lax.scan(one, (p, tx.init(p)), authors.noise())[1])())


def table(run: bool = True) -> str:
    """Markdown: each optimizer's chain with default arguments, how many trajectories, and the largest difference."""
    lines = ["| framework | optimizer | chain with default arguments | trajectories | largest difference |"]
    lines.append("|---|---|---|---:|---:|")
    for framework, optimizer in dict.fromkeys((case.framework, case.optimizer) for case in CASES):
        cases = [case for case in CASES if (case.framework, case.optimizer) == (framework, optimizer)]
        largest = f"{max(map(difference, cases)):.0e}" if run else ""
        lines.append(row(framework, optimizer, getattr(getattr(dialects, framework), optimizer)(), len(cases), largest))
    for name, arguments in OPTAX.items():
        largest = f"{max(optax_difference(name, kwargs) for kwargs in arguments):.0e}" if run else ""
        lines.append(row("optax", name, of_dialect(name)(0.001), len(arguments), largest))
    stored = np.load(authors.STORED)
    for name, tx in AUTHORS.items():
        largest = f"{abs(trajectory_of_authors(name) - stored[name]).max():.0e}" if run else ""
        lines.append(row(authors.package(name), name, tx(authors.schedule(name)), 1, largest))
    return "\n".join(lines)


def counted(lines: str) -> dict[str, int]:
    """How many packages and optimizers the table has, and how many rules there are."""
    cells = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in lines.splitlines()[2:]]
    packages = {package for package, _ in cells}
    return {"frameworks": len(packages), "optimizers": len(cells), "rules": len(rules.__all__)}


def row(framework: str, optimizer: str, tx: gx.Chain, number: int, largest: str) -> str:
    """A line of the table; of a chain whose rate falls by itself, the schedule has no name."""
    return f"| {framework} | `{optimizer}` | {shown(tx)} | {number} | {largest} |"


def shown(tx: gx.Chain) -> str:
    """A chain, or the chains of its parts, without coefficients and the names of functions."""
    inner = getattr(tx.rules[-1], "tx", None)
    parts = inner.named_parts.values() if isinstance(inner, gx.partition) else [tx]
    text = re.sub(r" where <function .*?>", " of matrices", "; others: ".join(map(str, parts)))
    text = re.sub(r"<function .*?>", "a schedule", text)
    return re.sub(r"orthogonalize\(.*?\)\), ", "orthogonalize(…, ", text)


PAGE = """# Dialects beside the real frameworks

`gradtx.dialects.torch` and `gradtx.dialects.keras` against trajectories of the real torch 2.13 and Keras 3.15 in
float64: a parabola, Rosenbrock's function, a noisy problem in two leaves, one of two matrices, or one of a tree with
a scalar, a vector, a matrix and a leaf of four axes, with default and with all other arguments, at a constant and at
a falling learning rate, 60 steps each. `gradtx.dialects.optax` against optax 0.2.8 on the last two together, at a
falling rate; likewise chains of rules against timm and the packages of authors, with the arguments that
`tests/oracles/authors.py` has. Differences are relative to parameters greater than 1. Where a framework evaluates an
average of the parameters, that is compared too. Written by `python -m tests.oracles.compare`.

{table}

The table has {optimizers} optimizers in {frameworks} packages, made of {rules} rules.

## Each optimizer of gradtx

Each of the {own} optimizers, with the arguments that the chain shows, beside whom a test compares it with: 60 steps in
float64, or as many as the test has. The tests are `tests/rules/test_every_optimizer.py`, `tests/rules/test_zoo.py` and
`tests/optimizers/test_against_optax.py`. {identities} identities between optimizers are laws over random gradients, in
`tests/optimizers/test_identities.py`.

{evidence}

What the frameworks keep in float32 even then, and what was made float64 here, so that all else shows: Keras's means
of squares in Adafactor and a norm in Muon; optax's decay of Adafactor, MADGRAD's root of the count, and GaLore's
decomposition, as that of galore-torch; the momentum product of torch's NAdam, the step size of its ASGD, and Keras's
learning rate. In float32 they shift trajectories by 1e-8 to 3e-7. torch's Muon iterates in bfloat16, which shifts them
by hundredths; that, too, was float64.
"""


def main() -> None:
    """Write the page."""
    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests), *(str(tests / folder) for folder in ("rules", "optimizers"))]
    every = importlib.import_module("test_every_optimizer")
    laws = importlib.import_module("test_identities")
    alone = [name for name in vars(laws) if name.startswith("test_")]
    identities = len(laws.IDENTITIES) + len(laws.LAWS) + len(alone) - 2  # which are those of the two tables
    with jax.enable_x64(True):
        numbers = {"own": len(every.evidence()), "evidence": every.table(), "identities": identities}
        sys.stdout.write(PAGE.format(table=(lines := table()), **counted(lines), **numbers))


if __name__ == "__main__":
    main()
