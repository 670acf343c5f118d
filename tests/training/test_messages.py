"""Lines on standard output and standard error, whatever these are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from training.messages import say, warn
for i in range(3):
    say(f"out {i} γ")
    warn(f"err {i} γ")
open(sys.argv[1], "w").write("reached the end")
"""


def run(tmp_path, redirection: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'"$@" {redirection}', "bash"]
    command += [sys.executable, "-c", PROGRAM, str(tmp_path / "end")]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True
    )
    assert (tmp_path / "end").read_text() == "reached the end"
    assert process.returncode == 0
    return process


def test_open_streams(tmp_path):
    process = run(tmp_path, "")
    assert process.stdout == "out 0 γ\nout 1 γ\nout 2 γ\n"
    assert process.stderr == "err 0 γ\nerr 1 γ\nerr 2 γ\n"


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_streams_that_take_nothing(tmp_path, redirection):
    """What is for one of them never goes to the other."""
    process = run(tmp_path, redirection)
    assert "err" not in process.stdout
    assert "out" not in process.stderr
    assert ("out 2" in process.stdout) == redirection.startswith("2")
    assert ("err 2" in process.stderr) == ("2" not in redirection)


def test_streams_of_ascii(tmp_path):
    process = run(tmp_path, "", PYTHONIOENCODING="ascii")
    assert process.stdout == "out 0 \\u03b3\nout 1 \\u03b3\nout 2 \\u03b3\n"
