"""README and docs: Python blocks run, commands and presets exist, links point somewhere."""

import doctest
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from experiments.presets import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text()]
MODULES = ["training.config", "training.config.schedule", "training.data.memory", "training.run"]
MODULES += ["training.trained", "training.data.stream", "training.data.imagenet"]
MODULES += ["training.data.pipeline"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """One after another, in one namespace a page, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, name(page), "exec"), namespace)


def commands(text: str) -> list[list[str]]:
    """What `python ...` stands for in a text, in code blocks and in backticks."""
    found = re.findall(r"python ((?:-m )?[\w./]+(?: [^\n`|#&]*)?)", text)
    return [shlex.split(command.rstrip(" …."), posix=True) for command in found]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_name_what_exists(page):
    for first, *rest in commands(page.read_text().replace("'", "")):
        if first == "-m":
            module, *rest = rest
            assert importlib.util.find_spec(module.rstrip(".,")) is not None, module
        else:
            module = first
            assert not first.endswith(".py") or (ROOT / first).is_file(), first
        if module in ("train.py", "experiments.sweep") and rest and re.match("[a-z]", rest[0]):
            assert rest[0] in PRESETS, rest[0]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_point_to_files(page):
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not link.startswith(("http", "mailto")):
            # docs/notebooks is a copy of notebooks, made when the documentation is built
            places = (page.parent / link, ROOT / link)
            assert any(place.exists() for place in places), link


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_of_training(module):
    loaded = importlib.import_module(module)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(loaded, optionflags=flags).failed == 0


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert "PLACEHOLDER" not in text
