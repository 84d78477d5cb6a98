"""The table in docs/frameworks.md.

python -m tests.frameworks.table    # trains everything, and writes it anew
"""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .cases import CASES, Case
from .loops import STEPS, Run, run, training

PAGE = Path(__file__).parent.parent.parent / "docs" / "frameworks.md"
HEAD = """| framework | what was run | steps | loss with optax | loss with gradtx | largest difference |
|---|---|---:|---:|---:|---:|
"""


class Compared(NamedTuple):
    """A run with gradtx and one with optax, and how often the step of the first was traced in it."""

    ours: Run
    theirs: Run
    traces: int

    @property
    def difference(self) -> float:
        """The largest difference between parameters after the last step."""
        gaps: Any = jax.tree.map(lambda a, b: float(abs(a - b).max()), self.ours.params, self.theirs.params)
        return max(jax.tree.leaves(gaps))


def compare(case: Case) -> Compared:
    """Train with both."""
    ours, theirs = (training(case.train, tx) for tx in case.pair)
    before = len(ours.traces)
    return Compared(run(ours), run(theirs), len(ours.traces) - before)


def row(case: Case) -> str:
    """A case and what came of it."""
    compared = compare(case)
    losses = [f"{float(np.round(one.losses[-1], 4)):.4f}" for one in (compared.theirs, compared.ours)]
    cells = [f"{case.framework} {version(case.package)}", case.what, str(STEPS), *losses]
    return f"| {' | '.join(cells)} | {compared.difference:.0e} |"


def listed(page: str) -> list[tuple[str, str]]:
    """The framework and what was run, of each row in a page."""
    return re.findall(r"^\| ([^|]+) \d\S* \| (.*?) \| \d+ \|", page, re.MULTILINE)


def main() -> None:
    """Write the table anew, and leave the words around it."""
    rows = "\n".join(map(row, CASES))
    before, _, after = PAGE.read_text().partition(HEAD)
    _, _, after = after.partition("\n\n")
    PAGE.write_text(f"{before}{HEAD}{rows}\n\n{after}")


if __name__ == "__main__":
    main()
