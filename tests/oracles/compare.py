"""The dialects beside the oracles: trajectories of gradtx, and a table of the largest differences.

python -m tests.oracles.compare > docs/dialects.md
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx as gx
from gradtx import dialects

from .cases import CASES, LR_NAME, OPTAX, PROBLEMS, SCHEDULES, Case, flat

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


def table(run: bool = True) -> str:
    """Markdown: each optimizer's chain with default arguments, how many trajectories, and the largest difference."""
    lines = ["| framework | optimizer | chain with default arguments | trajectories | largest difference |"]
    lines.append("|---|---|---|---:|---:|")
    for framework, optimizer in dict.fromkeys((case.framework, case.optimizer) for case in CASES):
        cases = [case for case in CASES if (case.framework, case.optimizer) == (framework, optimizer)]
        largest = f"{max(map(difference, cases)):.0e}" if run else ""
        chain = getattr(getattr(dialects, framework), optimizer)()
        lines.append(f"| {framework} | `{optimizer}` | {chain} | {len(cases)} | {largest} |")
    return "\n".join(lines)


PAGE = """# Dialects beside the real frameworks

`gradtx.dialects.torch` and `gradtx.dialects.keras` against trajectories of the real torch 2.13 and Keras 3.15 in
float64: a parabola, Rosenbrock's function and a noisy problem in two leaves, with default and with other arguments,
at a constant and at a falling learning rate, 60 steps each. Differences are relative to parameters greater than 1.
`gradtx.dialects.optax` is compared live, to 1e-11. Written by `python -m tests.oracles.compare`.

{table}

What torch and Keras keep in float32 even then: nothing that matters. torch's NAdam keeps its momentum product in
the default dtype, and Keras its learning rate in `floatx`; both were float64 here. In float32 they shift
trajectories by 1e-7 and 3e-7.
"""


def main() -> None:
    """Write the page."""
    with jax.enable_x64(True):
        sys.stdout.write(PAGE.format(table=table()))


if __name__ == "__main__":
    main()
