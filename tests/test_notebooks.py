"""The notebooks: each runs in a fresh kernel, and is stored with its outputs and figures."""

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
def test_is_stored_with_its_outputs(name):
    """Every cell ran, in order, without an error or a warning."""
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
    for cell in code:
        if "print(" in cell.source:
            assert cell.outputs


@pytest.mark.parametrize("name", NAMES)
def test_outputs_hold_no_absolute_path(name):
    for cell in read(name).cells:
        for output in cell.get("outputs", []):
            texts = [v for k, v in output.get("data", {}).items() if not k.startswith("image/")]
            assert not re.search(r"/(tmp|work|root|home)\b", f"{output.get('text')} {texts}")


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_stored(name):
    for cell in read(name).cells:
        if cell.cell_type == "code" and re.search(r"plt\.show\(|\bImage\(", cell.source):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_is_small(name):
    assert (FOLDER / name).stat().st_size < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_asks_a_question_and_explains_the_code(name):
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
