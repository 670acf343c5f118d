"""Full disks, limits, folders that vanish, a closed standard output: one message, or no harm."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import faults

SLOW = pytest.mark.slow
LIMITS = [1, 30, *(pytest.param(k, marks=SLOW) for k in (16, 64, 100))]  # KiB of a file
SIZES = [40, 300, 1100]  # KiB of a disk
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk") / "whole"
    faults.train_to_the_end(folder)
    return folder


def assert_one_message(process: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Status 1, a line that names the file, and the command that resumes if there is a run."""
    lines = process.stderr.splitlines()
    assert process.returncode == 1, process.stderr
    assert str(folder) in lines[0]
    if lines[0].endswith(": stopped."):
        assert lines[1:] == ["Resume with", f"  python {' '.join(resuming(folder))}"]
    else:
        assert len(lines) == 1


def resuming(folder: Path) -> list[str]:
    return ["train.py", *faults.OPTIONS, "--run-dir", str(folder), "--resume"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=faults.ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("kibibytes", LIMITS)
def test_a_limit_of_the_size_of_a_file(kibibytes, whole, tmp_path):
    folder = tmp_path / "run"
    limited = ["bash", "-c", f'ulimit -f {kibibytes}; exec "$@"', "bash"]
    process = run([*limited, *faults.command(folder)])
    assert_one_message(process, folder)
    if kibibytes > 1:
        subprocess.run([sys.executable, *resuming(folder)], cwd=faults.ROOT, check=True)
        assert not faults.differences(folder, whole)


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0,
    reason="no disk can be mounted here",
)
@pytest.mark.parametrize("kibibytes", SIZES)
def test_a_full_disk(kibibytes, whole, tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={kibibytes}k tmpfs {disk}"
    script = f'{mount}; "$@"; status=$?; cp -r {disk} {kept}; exit $status'
    folder = disk / "run"
    process = run([*UNSHARE, "sh", "-c", script, "sh", *faults.command(folder)])
    assert_one_message(process, folder)
    shutil.copytree(kept, disk, dirs_exist_ok=True)
    subprocess.run([sys.executable, *resuming(folder)], cwd=faults.ROOT, check=True)
    assert not faults.differences(folder, whole)


def test_a_folder_that_vanishes(tmp_path):
    folder = tmp_path / "run"
    command = [*faults.command(folder), "--epochs=1000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=faults.ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("epoch 1/"):
            assert process.poll() is None
        shutil.rmtree(folder, ignore_errors=True)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.match(rf".*{folder}.*: stopped\.\nResume with\n  python train.py .*\n$", errors)


@pytest.mark.skipif(
    subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode != 0,
    reason="root may write to a read-only folder",
)
def test_a_folder_that_turns_read_only(tmp_path):
    """In a namespace root has no privilege. The last checkpoint resumes once it can be written."""
    folder = tmp_path / "run"
    command = ["unshare", "--user", *faults.command(folder), "--epochs=1000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=faults.ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("epoch 2/"):
            assert process.poll() is None
        for path in (folder, folder / "checkpoints"):
            path.chmod(0o555)
        _, errors = process.communicate(timeout=120)
    for path in (folder, folder / "checkpoints"):
        path.chmod(0o755)
    assert process.returncode == 1, errors
    message, *resume = errors.splitlines()
    assert resume[0] == "Resume with"
    assert re.fullmatch(rf".*{folder}.*: stopped\.", message)
    assert "Traceback" not in errors
    epochs = len((folder / "metrics.jsonl").read_text().splitlines())
    again = [sys.executable, *resuming(folder), f"--epochs={epochs + 1}"]
    subprocess.run(again, cwd=faults.ROOT, check=True)
    assert (folder / "result.json").exists()


def test_a_closed_standard_output_does_not_end_a_run(whole, tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen(
        faults.command(folder), cwd=faults.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert not faults.differences(folder, whole)


def test_a_checkpoint_that_is_not_written_after_a_signal(tmp_path):
    """The message of the signal would say that it is saved."""
    program = f"""
import resource
from dataclasses import replace
from pathlib import Path
import jax
from experiments.presets import PRESETS
from tests.training.test_checkpoints import state
from training.command import ending
from training.config import RunConfig
from training.interrupt import Stopped
from training.run import Run

folder = Path({str(tmp_path / "run")!r})
with ending("train.py"), Run(PRESETS["digits-bop"][1], RunConfig(folder), "digits-bop") as run:
    before, _ = run.restore(state(big=jax.random.normal(jax.random.key(0), (400, 400))), 5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    run.save(before, 5)
    raise Stopped("Stopped at step 5.", 143, folder)
"""
    process = run([sys.executable, "-c", program])
    assert process.returncode == 1, process.stderr
    assert "Stopped at step 5" not in process.stderr
    first, *resume = process.stderr.splitlines()
    assert re.fullmatch(rf"{tmp_path}/run/checkpoints cannot be written .*: stopped\.", first)
    assert resume[0] == "Resume with"
