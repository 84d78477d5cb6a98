"""The dialects beside the oracles: trajectories of gradtx, and a table of the largest differences.

python -m tests.oracles.compare > docs/dialects.md
"""

import functools
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import gradtx as gx
from gradtx import dialects

from .cases import CASES, LR_NAME, OPTAX, PROBLEMS, SCHEDULES, STEPS, Case, flat

GOLDENS = {name: np.load(Path(__file__).parent / f"{name}.npz") for name in ("torch", "keras")}


SCHEDULED = {"asgd", "adafactor", "lamb", "muon", "schedule_free_adamw"}
"""Optimizers that read the learning rate in more than one place: it is a schedule, and not set in the state."""


def make(case: Case) -> gx.Chain:
    """The dialect's chain, under the framework's own arguments."""
    module, kwargs = getattr(dialects, case.framework), dict(case.kwargs)
    if case.optimizer in SCHEDULED:
        kwargs[LR_NAME[case.framework]] = lambda count: case.lr * SCHEDULES[case.schedule](count)
    tx = getattr(module, case.optimizer)(**kwargs)
    if case.clip is not None:
        kind, limit = case.clip
        clip = {"value": dialects.torch.clip_grad_value, "norm": dialects.torch.clip_grad_norm}[kind]
        tx = gx.chain(clip(limit), tx)
    return tx


@functools.partial(jax.jit, static_argnums=0)
def update(tx, grads, state, params):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def trajectory(case: Case, tx: gx.Chain) -> np.ndarray:
    """The parameters after each step, the learning rate set in the state before each, as one does in the frameworks."""
    problem = PROBLEMS[case.problem]
    params = problem.leaves(jnp.asarray(problem.x0))
    state = tx.init(params)
    rates = [f"{rule}.learning_rate" for rule, names in state.hyperparams.items() if "learning_rate" in names]
    rates = [] if case.optimizer in SCHEDULED else rates
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


def of_optax(name: str):
    """A function of optax or optax.contrib."""
    if name == "sm3":  # optax's own takes no schedule
        return lambda rate, momentum=0.9: optax.chain(optax.scale_by_sm3(momentum), optax.scale_by_learning_rate(rate))
    return getattr(optax, name, None) or getattr(optax.contrib, name)


def optax_difference(name: str, kwargs: dict[str, Any]) -> float:
    """The largest difference to optax on the noisy problems together, at a falling rate, as in ``difference``."""
    problems = PROBLEMS["stochastic"], PROBLEMS["matrices"]
    makers = getattr(dialects.optax, name), of_optax(name)
    runs = []
    for make_tx in makers:
        tx = make_tx(lambda count: 0.02 * SCHEDULES["decaying"](count), **kwargs)
        params = [problem.leaves(jnp.asarray(problem.x0)) for problem in problems]
        state, rows = tx.init(params), []
        for k in range(STEPS):
            both = zip(problems, params, strict=True)
            grads = [problem.leaves(jnp.asarray(problem.grad(flat(leaves), k))) for problem, leaves in both]
            params, state = update(tx, grads, state, params)
            rows.append(np.concatenate([flat(leaves) for leaves in params]))
        runs.append(np.stack(rows))
    ours, theirs = runs
    return float((abs(ours - theirs) / np.maximum(1, abs(theirs))).max())


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
        lines.append(row("optax", name, getattr(dialects.optax, name)(0.001), len(arguments), largest))
    return "\n".join(lines)


def row(framework: str, optimizer: str, tx: gx.Chain, number: int, largest: str) -> str:
    """A line of the table; of a chain whose rate falls by itself, the schedule has no name."""
    inner = getattr(tx.rules[-1], "tx", None)
    parts = inner.named_parts.values() if isinstance(inner, gx.partition) else [tx]
    shown = re.sub(r"<function .*?>", "a schedule", "; others: ".join(map(str, parts)))
    shown = re.sub(r"orthogonalize\(.*?\)\), ", "orthogonalize(…, ", shown)
    return f"| {framework} | `{optimizer}` | {shown} | {number} | {largest} |"


PAGE = """# Dialects beside the real frameworks

`gradtx.dialects.torch` and `gradtx.dialects.keras` against trajectories of the real torch 2.13 and Keras 3.15 in
float64: a parabola, Rosenbrock's function, a noisy problem in two leaves, or one of two matrices, with default and
with other arguments, at a constant and at a falling learning rate, 60 steps each. `gradtx.dialects.optax` against
optax 0.2.8 on the last two together, at a falling rate. Differences are relative to parameters greater than 1. Where a
framework evaluates an average of the parameters, that is compared too. Written by `python -m tests.oracles.compare`.

{table}

What the frameworks keep in float32 even then: Keras the means of squares in Adafactor and a norm in Muon; optax the
decay of Adafactor. torch's NAdam keeps its momentum product, and ASGD its step size, in the
default dtype, and Keras its learning rate in `floatx`; all were float64 here. In float32 they shift trajectories by
1e-7 and 3e-7. torch's Muon iterates in bfloat16; here it was made to iterate in float64, so that all else shows.
"""


def main() -> None:
    """Write the page."""
    with jax.enable_x64(True):
        sys.stdout.write(PAGE.format(table=table()))


if __name__ == "__main__":
    main()
