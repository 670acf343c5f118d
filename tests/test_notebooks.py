"""The notebooks: each runs from top to bottom in a fresh kernel, and is stored without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def read(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs(name):
    """The notebook's own assertions hold, too."""
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(read(name), timeout=300, kernel_name="python3", resources=resources)
    client.execute()


@pytest.mark.parametrize("name", NAMES)
def test_is_stored_without_outputs(name):
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_asks_and_explains_what_it_does(name):
    cells = read(name).cells
    kinds = [cell.cell_type for cell in cells]
    assert kinds[0] == "markdown"
    assert re.match(r"# .*\?\n", cells[0].source)
    assert kinds.count("markdown") >= 0.45 * len(kinds)


def test_all_begin_alike():
    """One cell, the same in all, finds the repository or clones it in Colab."""
    assert len(NAMES) >= 4
    first = [next(c.source for c in read(n).cells if c.cell_type == "code") for n in NAMES]
    assert 'REPOSITORY = ""' in first[0]
    assert set(first) == {first[0]}
