"""The README's Python blocks run, one after another in one namespace."""

import re
import shutil
from pathlib import Path

import pytest

import report

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.usefixtures("standard_promotion")
def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)


def test_the_results_table_is_that_of_results():
    results = report.load_results(README.parent / "results")
    assert report.with_table(README.read_text(), results) == README.read_text()


def test_malformed_results(tmp_path):
    folder = tmp_path / "digits-bop"
    shutil.copytree(README.parent / "results" / "digits-bop", folder)
    other = README.parent / "results" / "cifar10-bop-sweep-width64" / "seed0.json"
    shutil.copy(other, folder / "seed98.json")
    with pytest.raises(ValueError, match=r"seed98.json is of another experiment"):
        report.load_results(tmp_path)
    for text in ("{", "{}", "[]", '{"preset": "gone", "config": {}, "result": {}}'):
        (folder / "seed98.json").write_text(text)
        with pytest.raises(ValueError, match=r"seed98.json is not the result.json of a run"):
            report.load_results(tmp_path)


def test_commands_name_what_exists():
    text = README.read_text()
    for script in re.findall(r"python ([\w/]+\.py)", text):
        assert (README.parent / script).is_file(), script
    from experiments import PRESETS

    for preset in re.findall(r"(?:train|sweep)\.py ([a-z][\w-]*)", text):
        assert preset in PRESETS
