"""Every notebook runs from the first cell to the last, and is stored with its outputs."""

import re
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # raised while these are imported, not by us
    import nbclient
    import nbformat

pytestmark = pytest.mark.usefixtures("quick_compilation")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
QUICK = ("quickstart",)  # .ci/run runs the others


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.stem in QUICK else [pytest.mark.exhaustive], id=p.stem) for p in NOTEBOOKS],
)
def test_runs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "stored without outputs: run it, then save it"
    assert any(cell.outputs for cell in code)
    stored = [words(cell.outputs) for cell in code]
    assert path.stat().st_size < 500_000, "keep notebooks small"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel's start-up is jupyter's; a cell that warns shows it in its output
        where = {"metadata": {"path": str(path.parent)}}  # as in Jupyter
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    for cell, was in zip(code, stored, strict=True):
        for output in cell.outputs:
            assert output.get("name") != "stderr", output.get("text")
        assert words(cell.outputs) == was, (
            f"cell {cell.execution_count} prints something else now: run it, then save it"
        )


def words(outputs):
    """The text of outputs without its layout, and without numbers, which processors compute a little differently."""
    shown = [
        output.get("text") or "\n{text/plain}\n".format_map(output.get("data", {"text/plain": ""}))
        for output in outputs
    ]
    without = re.sub(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", "#", "".join(shown))
    return re.sub(r"([][])", r" \1 ", without).split()


def test_words_are_all_but_numbers():
    outputs = [
        {"text": "loss  -1.5e-03, 3 st"},
        {"text": "eps\n"},
        {"data": {"text/plain": "[0.1, 2 ]", "image/png": ""}},
    ]
    assert words(outputs) == ["loss", "#,", "#", "steps", "[", "#,", "#", "]"]


def test_there_are_notebooks():
    assert NOTEBOOKS
