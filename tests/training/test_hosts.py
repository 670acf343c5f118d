"""Real processes on this machine train one network, as the hosts of a cluster do."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from tests.training.data.test_tfds import REAL, needs_imagenet
from tests.training.test_run import ROOT, assert_same_run, metrics, run
from training import hosts
from training.hosts import HostConfig

TINY = ["--width", 4, "--units", 16, "--batch-size", 96]
IMAGENET = ["imagenet-alexnet-bop-released", "--width", 2, "--units", 8, "--batch-size", 24]
WAIT = 60  # seconds in which all processes end, as docs/many_devices.md says


CHANGED = """
import sys

from training.interrupt import Interrupt

interrupt = Interrupt().watch()
sys.path.insert(0, ".")
import train

train.INTERRUPT = interrupt
{}
train.main()
"""


class Processes:
    """The processes of one run, two devices each."""

    def __init__(
        self,
        number: int,
        *options: object,
        others: tuple = (),
        launcher: Callable[[int], dict[str, str]] | None = None,
        changes: str = "",
        env_of_others: dict[str, str] | None = None,
    ):
        """Starts them.

        Args:
            number: of the processes.
            *options: of all.
            others: further options of all but the first.
            launcher: environment of each, in place of the options that join them.
            changes: Python code that runs before train.main(), in all but the first.
            env_of_others: environment of all but the first.
        """
        address = f"localhost:{free_port()}"
        others_program = ["-c", CHANGED.format(changes)] if changes else ["train.py"]
        self.all = [
            subprocess.Popen(
                [sys.executable, *(others_program if i else ["train.py"])]
                + [*map(str, [*options, *(others if i else ())])]
                + ([] if launcher else self.joined(address, number, i)),
                cwd=ROOT,
                env=os.environ
                | {"JAX_NUM_CPU_DEVICES": "2"}
                | (launcher(i) if launcher else {})
                | ((env_of_others or {}) if i else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(number)
        ]

    @staticmethod
    def joined(address: str, number: int, process: int) -> list[str]:
        host = [f"--coordinator={address}", f"--num-processes={number}"]
        return [*host, f"--process-id={process}"]

    def wait(self, timeout: float = 300) -> tuple[list[int], list[str], list[str]]:
        """Their statuses, outputs and errors."""
        try:
            outputs = [process.communicate(timeout=timeout) for process in self.all]
        finally:
            for process in self.all:
                process.kill()
        return [p.returncode for p in self.all], *map(list, zip(*outputs, strict=True))

    def wait_for_epoch(self, run_dir: Path, epoch: int) -> None:
        while len(lines(run_dir / "metrics.jsonl")) < epoch:
            assert all(process.poll() is None for process in self.all)
            time.sleep(0.02)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def files(run_dir: Path) -> set[str]:
    return {path.name.partition("events.")[0] for path in run_dir.iterdir()}


# ---- Whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Six epochs of two processes, never stopped."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    processes = Processes(2, *TINY, "--epochs", 6, "--run-dir", run_dir, "--compare-steps", 1)
    statuses, (first, other), errors = processes.wait()
    assert statuses == [0, 0], errors
    assert json.loads(first.splitlines()[-1])["run_dir"] == str(run_dir)
    assert "epoch" not in other
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_processes_train_what_one_device_trains(tmp_path, number):
    """The losses of three steps agree to seven digits; each step's replicas are compared."""
    options = [*TINY[:-1], 360, "--epochs", 1, "--compare-steps", 1]
    alone = run(*options, "--run-dir", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    together = Processes(number, *options, "--run-dir", tmp_path / "together")
    statuses, _, errors = together.wait()
    assert statuses == [0] * number, errors
    (one,), (many,) = metrics(tmp_path / "alone"), metrics(tmp_path / "together")
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-7)
    assert (many["step"], many["epoch"]) == (3, 1)
    assert files(tmp_path / "alone") == files(tmp_path / "together")
    device = json.loads((tmp_path / "together/config.json").read_text())["device"]
    assert device["count"] == 2 * number


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_others_end_if_one_is_killed(whole, tmp_path, killed):
    run_dir = tmp_path / "run"
    options = [*TINY, "--epochs", 6, "--run-dir", run_dir]
    processes = Processes(2, *options)
    processes.wait_for_epoch(run_dir, 2)
    processes.all[killed].kill()
    start = time.monotonic()
    statuses, _, errors = processes.wait()
    assert time.monotonic() - start < WAIT
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] != 0
    ours, of_jax = "another process may have been killed", "another task died"
    assert ours in errors[1 - killed] or of_jax in errors[1 - killed]
    statuses, _, errors = Processes(2, *options, "--resume").wait()
    assert statuses == [0, 0], errors
    assert_same_run(run_dir, whole)


@pytest.mark.slow
def test_all_stop_if_one_is_signalled(whole, tmp_path):
    run_dir = tmp_path / "run"
    options = [*TINY, "--epochs", 6, "--run-dir", run_dir]
    processes = Processes(2, *options)
    processes.wait_for_epoch(run_dir, 2)
    processes.all[1].terminate()
    statuses, _, errors = processes.wait()
    assert statuses == [128 + signal.SIGTERM] * 2
    assert re.search(
        r"Stopped at step \d+ \(epoch \d\)\.\nResume by starting all processes again ", errors[0]
    )
    assert "Resum" not in errors[1]
    assert "Traceback" not in "".join(errors)
    statuses, _, errors = Processes(2, *options, "--resume").wait()
    assert statuses == [0, 0], errors
    assert_same_run(run_dir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_signal_while_the_others_are_awaited(tmp_path, process):
    """Process 0 waits for process 1; process 1 for a coordinator that does not exist."""
    options = [*TINY, "--run-dir", tmp_path / "run"]
    address = f"localhost:{free_port()}"
    arguments = map(str, [*options, *Processes.joined(address, 2, process)])
    command, pipe = [sys.executable, "train.py", *arguments], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "Waiting for the other processes of the run ...\n"
        waiting.terminate()
        _, errors = waiting.communicate(timeout=10)
    assert waiting.returncode == 128 + signal.SIGTERM
    assert errors == "\nStopped at once, without a checkpoint.\n"


WITHOUT_IMAGES = """
from training.config import Digits

def load(data):
    raise OSError("no such disk")

Digits.load = load
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("different", "message"),
    [
        ({"others": ("--threshold", "0")}, "has config.optimizer.threshold=0"),
        ({"others": ("--data", "none.npz")}, "has config.data.type=Arrays (here Digits)"),
        ({"changes": WITHOUT_IMAGES}, "train.py: no such disk"),
    ],
)
def test_an_error_at_one_ends_all(tmp_path, different, message):
    processes = Processes(2, *TINY, "--run-dir", tmp_path / "run", **different)
    start = time.monotonic()
    statuses, _, errors = processes.wait()
    assert time.monotonic() - start < WAIT
    assert statuses == [1, 1]
    for error in errors:
        assert message in error or "process 0 has config" in error
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_without_its_device_ends_all(tmp_path):
    options, absent = [*TINY, "--run-dir", tmp_path / "run"], {"JAX_PLATFORMS": "none"}
    processes = Processes(2, *options, env_of_others=absent)
    start = time.monotonic()
    statuses, _, errors = processes.wait()
    assert time.monotonic() - start < WAIT
    assert statuses == [1, 1]
    assert re.search(r"Process 1 ended: train.py: .*'none'", errors[0])


BROKEN_STDERR = """
import os

reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("error", ["OSError", "MemoryError"])
def test_an_error_that_one_process_cannot_print_ends_all(tmp_path, error):
    changes = BROKEN_STDERR + WITHOUT_IMAGES.replace("OSError", error)
    options = [*TINY, "--run-dir", tmp_path / "run", "--debug"]
    start = time.monotonic()
    statuses, _, errors = Processes(2, *options, changes=changes).wait()
    assert time.monotonic() - start < WAIT
    assert statuses == [1, 1]
    assert re.search(r"Process 1 ended: train.py: (MemoryError: )?no such disk", errors[0])


IN_AN_EVALUATION = """
import os, signal, time
evaluate, calls = train.evaluate, []

def evaluate_and_signal(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
    return evaluate(*arguments)

train.evaluate = evaluate_and_signal
"""


@pytest.mark.slow
def test_a_signal_in_an_evaluation_stops_all(whole, tmp_path):
    run_dir = tmp_path / "run"
    options = [*TINY, "--epochs", 6, "--run-dir", run_dir]
    statuses, _, errors = Processes(2, *options, changes=IN_AN_EVALUATION).wait()
    assert statuses == [128 + signal.SIGTERM] * 2, errors
    assert f"Stopped at step {2 * (1437 // 96)} (epoch 2)." in errors[0]
    assert len(metrics(run_dir)) == 1
    statuses, _, errors = Processes(2, *options, "--resume").wait()
    assert statuses == [0, 0], errors
    assert_same_run(run_dir, whole)


NOT_FINITE = """
find_fault = train.find_fault

def find_one(extremes, step, epoch):
    return f"One copy is nan at step {step}." if step == 20 else find_fault(extremes, step, epoch)

train.find_fault = find_one
"""


@pytest.mark.slow
@pytest.mark.parametrize("then", ["stop", "restore"])
def test_numbers_of_one_process_that_are_not_finite(tmp_path, then):
    options = [*TINY, "--epochs", 3, "--run-dir", tmp_path / "run", "--nonfinite", then]
    statuses, _, errors = Processes(2, *options, changes=NOT_FINITE).wait()
    assert statuses == [1, 1], errors
    assert errors[0].count("One copy is nan at step 20.") == (2 if then == "restore" else 1)
    assert errors[0].count("Training on from the last checkpoint.") == (then == "restore")
    assert "Traceback" not in "".join(errors)
    assert len(metrics(tmp_path / "run")) == 1


UNREADABLE = """
import orbax.checkpoint

def restore(*arguments, **options):
    raise OSError("no such disk")

orbax.checkpoint.CheckpointManager.restore = restore
"""


@pytest.mark.slow
def test_a_checkpoint_that_one_process_alone_cannot_read(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    options = [*TINY, "--epochs", 7, "--run-dir", tmp_path / "run", "--resume"]
    start = time.monotonic()
    statuses, _, errors = Processes(2, *options, changes=UNREADABLE).wait()
    assert time.monotonic() - start < WAIT + 30
    assert statuses == [1, 1]
    for error in errors:
        assert re.search(r"run/checkpoints/\d+ cannot be read here \(no such disk\)", error)
    statuses, _, errors = Processes(2, *options).wait()
    assert statuses == [0, 0], errors
    assert metrics(tmp_path / "run")[:6] == metrics(whole)


@pytest.mark.slow
def test_a_folder_that_is_not_empty(whole, tmp_path):
    statuses, _, errors = Processes(2, *TINY, "--run-dir", whole).wait()
    assert statuses == [1, 1]
    assert f"train.py: {whole} is not empty" in errors[0]
    assert re.search(f"Process 0 ended: .*{whole} is not empty", errors[1])


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_devices(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    options = [*TINY, "--epochs", 7, "--run-dir", tmp_path / "run", "--resume"]
    process = run(*options)
    assert process.returncode == 0, process.stderr
    assert "Resuming a run of 4 devices on 1: sums round in another order" in process.stderr
    assert metrics(tmp_path / "run")[:6] == metrics(whole)
    assert metrics(tmp_path / "run")[6]["step"] == 7 * (1437 // 96)


def slurm(process: int) -> dict[str, str]:
    names = {"JOB_ID": os.getpid(), "STEP_NODELIST": "localhost", "NTASKS": 2}
    names |= {"PROCID": process, "LOCALID": process}
    return {f"SLURM_{name}": str(value) for name, value in names.items()}


def open_mpi(process: int) -> dict[str, str]:
    names = {"SIZE": 2, "RANK": process, "LOCAL_RANK": process}
    server = {"OMPI_MCA_orte_hnp_uri": f"{4096 * os.getpid()}.0;tcp://127.0.0.1:34911"}
    return server | {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize("env", [slurm, open_mpi])
def test_a_launcher_tells_its_processes_all_that_they_need(tmp_path, env):
    options = [*TINY, "--epochs", 1, "--run-dir", tmp_path / "run"]
    statuses, outputs, errors = Processes(2, *options, launcher=env).wait()
    assert statuses == [0, 0], errors
    assert "4 cpu" in outputs[0]


LATE = """
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from training import hosts
from training.devices import device_mesh

hosts.connect(hosts.HostConfig(sys.argv[1], 2, int(sys.argv[2])))
time.sleep(35 * hosts.is_first())
assert hosts.gather(["é", jax.process_index()]) == [["é", 0], ["é", 1]]
assert hosts.from_first(lambda: "first") == "first"
assert hosts.first_fault(None) is None
assert hosts.first_fault(["", "a fault"][jax.process_index()]) == "a fault"
assert hosts.agreed(3 * jax.process_index()) == 3
sharding = jax.NamedSharding(device_mesh(), jax.P("batch"))
shares = jax.make_array_from_process_local_data(sharding, np.ones(2, np.float32))
assert jax.jit(jnp.sum)(shares) == 4
"""


@pytest.mark.slow
def test_a_slow_process_is_waited_for(tmp_path):
    """Longer than the 30 seconds for which Gloo waits when it connects devices."""
    (tmp_path / "late.py").write_text(LATE)
    address = f"localhost:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "late.py", address, str(process)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"},
        )
        for process in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


@pytest.mark.slow
@needs_imagenet
def test_imagenet_on_two_hosts(tmp_path):
    """Each host decodes its share; the loss is that of one process with as many devices."""
    options = [*IMAGENET, "--workers", 1, "--data-dir", REAL, "--epochs", 1]
    alone = run(*options, "--run-dir", tmp_path / "alone", devices=4)
    assert alone.returncode == 0, alone.stderr
    statuses, _, errors = Processes(2, *options, "--run-dir", tmp_path / "together").wait()
    assert statuses == [0, 0], errors
    (one,), (many,) = metrics(tmp_path / "alone"), metrics(tmp_path / "together")
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)


# ---- In this process -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "a:1"}, "--coordinator, --num-processes and --process-id must be given"),
        ({"num_processes": 2, "process_id": 0}, "must be given together"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "must be HOST:PORT, got a"),
        ({"coordinator": "a:x", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": ":80", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "a:65536", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "from 0 to .* got 2 of 2"),
        ({"coordinator": "a:1", "num_processes": 0, "process_id": 0}, "from 0 to .* got 0 of 0"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": -1}, "from 0 to .* got -1 of"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        HostConfig(**options)


LAUNCHERS = (
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "OMPI_MCA_orte_hnp_uri",
    "OMPI_COMM_WORLD_SIZE",
    "JOB_COMPLETION_INDEX",
)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "1"},
        {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"},
        {"JOB_COMPLETION_INDEX": "0"},  # without the package kubernetes
    ],
)
def test_one_process_joins_no_other(monkeypatch, env):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hosts, "find_spec", lambda name: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("joined"))
    hosts.connect()
    assert (hosts.is_first(), hosts.are_several()) == (True, False)
    assert hosts.gather({"a": 1}) == [{"a": 1}]
    assert [hosts.first_fault(None), hosts.first_fault("a fault")] == [None, "a fault"]
    assert hosts.agreed(3) == 3
