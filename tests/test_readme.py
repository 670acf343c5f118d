"""The README's Python blocks run, one after another in one namespace."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.usefixtures("standard_promotion")
def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)


def test_commands_name_what_exists():
    text = README.read_text()
    for script in re.findall(r"python ([\w/]+\.py)", text):
        assert (README.parent / script).is_file(), script
    from experiments import PRESETS

    for preset in re.findall(r"(?:train|sweep)\.py ([a-z][\w.-]*\w)", text):
        assert preset in PRESETS
