"""The notebooks: each runs in a fresh kernel, and is stored with its outputs and figures."""

import ast
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient

OURS = ("bop_optax", "experiments", "train", "training")
FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
ABSOLUTE_PATH = re.compile(r"(?<![\w.])(?:~?/[\w.-]|[A-Za-z]:\\)")


def read(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs(name):
    """The notebook's own assertions hold, too."""
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(read(name), timeout=300, kernel_name="python3", resources=resources)
    client.execute()


@pytest.mark.parametrize("name", NAMES)
def test_names_of_this_repository_exist(name):
    """What a cell imports from it, and what it takes of an imported module."""
    source = "\n".join(cell.source for cell in code_cells(name))
    tree, modules = ast.parse(re.sub(r"^( *)!.*", r"\1pass", source, flags=re.MULTILINE)), {}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imports:
        for alias in node.names:
            of = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            if f"{of}{alias.name}".split(".")[0] in OURS:
                modules[alias.asname or alias.name] = pkgutil.resolve_name(f"{of}{alias.name}")
    assert modules
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert not isinstance(module, ModuleType) or hasattr(module, node.attr), node.attr


@pytest.mark.parametrize("name", NAMES)
def test_is_stored_with_its_outputs(name):
    """Every cell ran, in order, without an error or a warning."""
    code = code_cells(name)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any("execution" in cell.metadata for cell in code)  # times of the author's machine
    for cell in code:
        assert cell.outputs or "print(" not in cell.source
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_hold_no_absolute_path(name):
    for cell in code_cells(name):
        for output in cell.outputs:
            texts = [v for k, v in output.get("data", {}).items() if not k.startswith("image/")]
            assert not ABSOLUTE_PATH.search(f"{output.get('text')} {texts}")


@pytest.mark.parametrize("text", ["/tmp/x", "in /home/a/b.py", "'/data/x'", "C:\\x", "~/x"])
def test_absolute_paths_are_found(text):
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("text", ["convs/0", "60 / 2", "τ/γ", "1/γ", "conv1/kernel  binary"])
def test_names_of_layers_are_no_absolute_paths(text):
    assert not ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_stored(name):
    for cell in code_cells(name):
        draws = re.search(r"\bplt\.show\(|\bdisplay\(|\bsubplots\(", cell.source)
        is_drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        assert bool(draws) == is_drawn


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
    first = [code_cells(name)[0].source for name in NAMES]
    assert 'REPOSITORY = ""' in first[0]
    assert set(first) == {first[0]}
