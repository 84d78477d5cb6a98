"""State, memory and traffic of a step over eight devices, and times of formats, as ``docs/guide/devices.md`` has them.

    python docs/measure_devices.py [times]

writes both tables there, or the second alone. Programs are compiled for eight devices of the CPU; those of the second
are run.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import gradtx as gx

N, WIDTH, LAYERS = 8, 1024, 3
PARAMS = {f"layer{i}": {"w": jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)} for i in range(LAYERS)}
SIZE = LAYERS * WIDTH**2
BATCH = jax.ShapeDtypeStruct((2 * N, WIDTH), jnp.float32)

ADAM = gx.adam(1e-3)
OPTIMIZERS = {
    "momentum": gx.sgd(1e-2, momentum=0.9),
    "Adam": ADAM,
    "Adam, clipped, monitored": gx.chain(gx.clip_by_global_norm(1.0), ADAM, gx.monitor()),
    "`skip_nonfinite` of Adam": gx.skip_nonfinite(ADAM),
    "`accumulate` of Adam": gx.accumulate(ADAM, 2),
    "Adam in bfloat16": gx.chain(ADAM, state_dtype="bfloat16_stochastic"),
    "Adam in 8 bits": gx.chain(ADAM, state_dtype="root8"),
    "Adafactor": gx.adafactor(1e-2),
    "Muon": gx.muon(1e-2, otherwise=ADAM),
    "SOAP": gx.soap(1e-3),
}
FORMATS = ("Adam", "Adam in bfloat16", "Adam in 8 bits")
TURNS = 15
SHARDINGS = ("whole", "sharded, as parameters", "divided by XLA", "divided by `zero1`")


class Row(NamedTuple):
    """What a step takes, in bytes for each parameter of the network.

    Attributes:
        state: all of the state, each array counted once.
        held: of the state, on each device.
        peak: arguments and temporaries on each device, less what is donated.
        collectives: how many of which kind.
        sent: by each device in a ring.
    """

    state: float
    held: float
    peak: float
    collectives: Counter[str]
    sent: float


def loss(params: Any, x: Any) -> Any:
    """Of a network of equal layers."""
    for layer in params.values():
        x = jnp.tanh(x @ layer["w"])
    return jnp.mean(x**2)


def compiled(tx: Any, sharding: str) -> tuple[Any, gx.Placement]:
    """The program of a training step, and where its state is."""
    mesh = jax.make_mesh((N,), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    of_params = rows if sharding == SHARDINGS[1] else whole
    inside = sharding == SHARDINGS[3]
    tx = gx.zero1(tx, "data") if inside else tx
    places = gx.placement(tx, PARAMS, of_params, axis="data" if sharding == SHARDINGS[2] else None)

    def train(params: Any, state: Any, x: Any) -> Any:
        own = jax.lax.pcast(params, "data", to="varying") if inside else params
        return gx.step(tx, params, jax.grad(loss)(own, x), state)

    step: Any = train
    if inside:
        specs = jax.tree.map(lambda s: s.spec, places.shardings)
        step = jax.shard_map(train, mesh=mesh, in_specs=(P(), specs, P("data")), out_specs=(P(), specs))
    given = (jax.tree.map(lambda _: of_params, PARAMS), places.shardings)
    run = jax.jit(step, in_shardings=(*given, rows), out_shardings=given, donate_argnums=(0, 1))
    return run.lower(PARAMS, places.state, BATCH).compile(), places


def measured(tx: Any, sharding: str) -> Row:
    """The program of a step, read."""
    program, places = compiled(tx, sharding)
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    kinds, sent = collectives(program.as_text())
    return Row(places.nbytes / SIZE, places.nbytes_per_device / SIZE, peak / SIZE, kinds, sent / SIZE)


def collectives(text: str) -> tuple[Counter[str], float]:
    """The collectives of more than numbers in a program, and the bytes that a device sends for them in a ring."""
    kinds: Counter[str] = Counter()
    sent = 0.0
    of = {"all-reduce": 2 * (N - 1) / N, "all-gather": (N - 1) / N, "reduce-scatter": N - 1}
    of |= {"all-to-all": (N - 1) / N, "collective-permute": 1}
    for result, kind in re.findall(rf"= (.*?) ({'|'.join(of)})(?:-start)?\(", text):
        arrays = re.findall(r"(f32|bf16|s32|u8|s8|pred)\[([\d,]*)\]", result)
        nbytes = sum(_bytes(dtype) * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in arrays)
        sent += of[kind] * nbytes
        if nbytes > 1024:
            kinds[kind] += 1
    return kinds, sent


def _bytes(dtype: str) -> int:
    return {"f32": 4, "s32": 4, "bf16": 2}.get(dtype, 1)


def line(name: str, sharding: str, row: Row) -> str:
    """A line of the table."""
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(row.collectives.items())) or "none"
    numbers = f"{row.state:.2f} | {row.held:.2f} | {row.peak:.1f} | {row.sent:.1f}"
    return f"| {name} | {sharding} | {numbers} | {kinds} |"


def times(sharding: str) -> dict[str, float]:
    """Of each format the least processor time of a step of all eight devices, in that of float32; taken in turns."""
    runs = {}
    for name in FORMATS:
        program, places = compiled(OPTIMIZERS[name], sharding)
        given, batch = program.input_shardings[0][:2], program.input_shardings[0][2]
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), (PARAMS, places.state))
        runs[name] = [program, jax.device_put(ones, given), jax.device_put(jnp.ones(BATCH.shape, BATCH.dtype), batch)]
    least = dict.fromkeys(FORMATS, math.inf)
    for _ in range(TURNS):
        for name, run in runs.items():
            program, (params, state), batch = run
            start = time.process_time()
            run[1] = jax.block_until_ready(program(params, state, batch))
            least[name] = min(least[name], time.process_time() - start)
    return {name: seconds / least[FORMATS[0]] for name, seconds in least.items()}


PAGE = Path(__file__).parent / "guide" / "devices.md"
HEAD = """| optimizer | its state | bytes of it | on a device | peak | sent | collectives |
|---|---|---:|---:|---:|---:|---|"""


def write(mark: str, lines: list[str]) -> None:
    """Puts a table in its place on the page."""
    before, rest = PAGE.read_text().split(f"<!-- {mark} -->")
    after = rest.split("<!-- end -->", 1)[1]
    PAGE.write_text("\n".join([f"{before}<!-- {mark} -->", *lines, f"<!-- end -->{after}"]))


def main() -> None:
    """Writes the table of bytes."""
    lines = [HEAD]
    for name, tx in OPTIMIZERS.items():
        for sharding in SHARDINGS:
            try:
                lines.append(line(name, sharding, measured(tx, sharding)))
            except ValueError as error:
                assert "needs whole leaves" in str(error)
                lines.append(f"| {name} | {sharding} | | | | | refused: it needs whole leaves |")
            print(lines[-1], flush=True)
    write("table", lines)


def main_of_times() -> None:
    """Writes the table of times."""
    lines = ["| its state | " + " | ".join(FORMATS) + " |", "|---|" + "---:|" * len(FORMATS)]
    for sharding in SHARDINGS:
        lines.append(f"| {sharding} | {' | '.join(f'{ratio:.2f}' for ratio in times(sharding).values())} |")
        print(lines[-1], flush=True)
    write("times", lines)


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={N}"
    if "times" not in sys.argv:
        main()
    main_of_times()
