"""The least that an installed gradtx must do, without any extra: run by ``wheels.py`` in each environment.

    python -W error -I smoke.py README.md

prints the cells of one row of a table: versions of Python, jax, optax and numpy, and what runs a step.
"""

import importlib.resources
import io
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gradtx as gx

GRADIENTS = ([0.5, -1.0], [0.25, 2.0], [-1.0, 0.125])
ADAM = [0.8274177428854115, -1.9684337378859402]  # torch 2.13: Adam(lr=0.1) from (1, -2) with these, in float64


def adam(step, tx):
    """The parameters after those gradients, by way of a file after the second, and the last state."""
    params = jnp.array([1.0, -2.0])
    state = tx.init(params)
    for i, gradient in enumerate(GRADIENTS):
        if i == 2:
            file = io.BytesIO()
            np.savez(file, **gx.state_dict(state))
            file.seek(0)
            state = gx.load_state_dict(tx, params, np.load(file))
        params, state = step(params, jnp.array(gradient), state)
    return params


def main(readme):
    assert importlib.resources.files("gradtx").joinpath("py.typed").is_file()
    tx = gx.adam(0.1)
    runs = {}
    for name in ("reference", "native", "auto"):
        with gx.executor(name):
            step = jax.jit(lambda params, grads, state: gx.step(tx, params, grads, state))
            for run in (step, lambda params, grads, state: gx.step(tx, params, grads, state)):
                np.testing.assert_allclose(adam(run, tx), ADAM, rtol=2e-7)  # float32
            params = jnp.array(GRADIENTS[0])
            runs[name] = "gradtx_native" in step.lower(params, params, tx.init(params)).as_text()
    assert runs == {"reference": False, "native": bool(gx.native.available()), "auto": bool(gx.native.available())}
    example = {}
    exec(re.findall(r"```python\n(.*?)```", Path(readme).read_text(encoding="utf-8"), re.DOTALL)[0], example)
    assert float(jnp.linalg.norm(example["params"])) < 0.1
    runner = f"kernel for {gx.native.available().target}" if runs["auto"] else str(gx.native.available())
    print(platform.python_version(), *map(version, ("jax", "optax", "numpy")), runner, sep=" | ")


if __name__ == "__main__":
    main(sys.argv[1])
