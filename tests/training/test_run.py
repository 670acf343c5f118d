"""Whole runs through the command line: what they leave, how they stop, how they resume."""

import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from bop_optax.saving import load
from experiments.presets import PRESETS
from tests.test_train import TINY
from tests.training.data.test_tfds import REAL
from training.config import Arrays, RunConfig
from training.data import memory
from training.folder import differing, flat_options
from training.run import Run

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
ROOT = Path(__file__).parents[2]
TINY_OPTIONS = ["--width", "8", "--units", "32", "--batch-size", "24"]


def run(*options: object, devices: int = 1, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train.py", *map(str, options)],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        **kwargs,
    )


def start(*options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *map(str, options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    return load(run_dir / "weights.safetensors")


def metrics(run_dir: Path) -> list[dict]:
    """The records of a run without what differs between two equal runs: its speed."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if "second" not in k and k != "crc32"} for r in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Ten epochs never stopped."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    return run_dir, run(*TINY_OPTIONS, "--epochs", 10, "--run-dir", run_dir)


def test_a_run_learns_and_leaves_everything_behind(whole):
    run_dir, process = whole
    assert process.returncode == 0, process.stderr
    header, size, compiled, *epochs, last = process.stdout.splitlines()
    assert header == f"digits-bop: 7,496 binary + 122 real, 1 cpu, {run_dir}"
    assert size == "1.87 KiB (30.23 KiB in float32), 100 k MACs (95.4% of them 1-bit)"
    assert re.fullmatch(r"compiled in \d+\.\d s", compiled)
    assert max(map(len, epochs)) <= 80
    assert [line.split(":")[0] for line in epochs] == [f"epoch {i}/10" for i in range(1, 11)]
    result = json.loads(last)
    assert result["test_accuracy"] > 0.5  # chance is 0.1
    assert (result["preset"], result["epochs"]) == ("digits-bop", 10)
    assert result["binary_parameters"] == 72 + 576 + 1152 + 2304 + 2048 + 1024 + 320
    assert Path(result["run_dir"]) == run_dir
    assert result["seconds"] > result["compile_seconds"] > 0
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    first, *later = [json.loads(line)["compile_seconds"] for line in lines]
    assert first == pytest.approx(result["compile_seconds"], abs=0.01)
    assert not any(later)

    config = json.loads((run_dir / "config.json").read_text())
    assert config["config"]["model"]["width"] == 8
    assert config["images"] == {
        "shape": [8, 8, 1],
        "num_classes": 10,
        "class_names": list("0123456789"),
        "mean": 127.5,
        "std": 127.5,
        **memory.digits().identity(),
    }
    assert (config["images"]["train"], config["images"]["test"]) == (1437, 360)
    assert config["device"] == {"platform": "cpu", "kind": "cpu", "count": 1}
    assert config["versions"]["jax"] == jax.__version__

    records = metrics(run_dir)
    assert [r["epoch"] for r in records] == list(range(1, 11))
    assert records[-1]["test_accuracy"] == result["test_accuracy"]
    assert records[-1]["loss"] < records[0]["loss"]
    for record in records:
        assert 0 < record["flip_ratio"]["all"] < 1
        assert -9 <= record["log_flip_ratio"]["denses/2"] < 0
        names = {"gamma": 1e-3, "threshold": 1e-7, "learning_rate": 1e-2}
        assert record["hyperparameters"] == pytest.approx(names)

    record = json.loads((run_dir / "result.json").read_text())
    assert record["result"]["test_accuracy"] == result["test_accuracy"]
    assert [m["epoch"] for m in record["metrics"]] == list(range(1, 11))
    assert str(run_dir) not in json.dumps(record)

    binary = [name for name, w in weights(run_dir).items() if np.all(np.abs(w) == 1)]
    assert len(binary) == 7
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(run_dir.glob("events.out.tfevents.*"))
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["531", "590"]


@pytest.mark.slow
def test_the_default_preset_reaches_its_accuracy(tmp_path):
    process = run("--run-dir", tmp_path / "run")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1])["test_accuracy"] >= 0.97


def assert_same_run(run_dir: Path, whole: Path) -> None:
    assert metrics(run_dir) == metrics(whole)
    ours, theirs = weights(run_dir), weights(whole)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def newest_checkpoint(run_dir: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(run_dir / "checkpoints") as manager:
        flat = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore())
    return {name: np.asarray(array) for name, array in flat.items()}


def test_a_resumed_run_is_bit_identical(whole, tmp_path):
    options = (*TINY_OPTIONS, "--run-dir", tmp_path / "run")
    run(*options, "--epochs", 2, check=True)
    run(*options, "--epochs", 10, "--resume", check=True)
    assert_same_run(tmp_path / "run", whole[0])
    ours, theirs = newest_checkpoint(tmp_path / "run"), newest_checkpoint(whole[0])
    assert sum("ema" in name for name in ours) == 7
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


SLOW_SIGTERM = pytest.param(signal.SIGTERM, marks=pytest.mark.slow)


@pytest.mark.parametrize("number", [signal.SIGINT, SLOW_SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_bit_identical(whole, tmp_path, number):
    """Ctrl-C and SIGTERM save and print how to resume; SIGKILL leaves the last checkpoint."""
    options = (*TINY_OPTIONS, "--epochs", 10, "--run-dir", tmp_path / "run")
    process = start(*options)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("digits-bop: ")
    assert "1-bit" in process.stdout.readline()
    assert process.stdout.readline().startswith("compiled in ")
    assert process.stdout.readline().startswith("epoch 1/10")
    if number == signal.SIGKILL:  # which does not wait for the checkpoint
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run" / "checkpoints").glob("[0-9]*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    process.send_signal(number)
    output = process.communicate()[0]
    if number == signal.SIGKILL:
        command = ["train.py", *options, "--resume"]
    else:
        assert process.returncode == 128 + number
        assert "Stopped at step" in output
        command = output.splitlines()[-1].split()[1:]
        assert command == ["train.py", *map(str, options), "--resume"]
    resumed = run(*command[1:])
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no-such-preset"], "unknown preset 'no-such-preset': choose from digits-bop, cifar10"),
        (["--batch-size", 1440], "--batch-size must be at most the 1437 training images, got 1440"),
        (["--batch-size", 9], "--batch-size must be a multiple of the 8 devices, got 9"),
        (["--stages", 4], "stages=4 poolings leave nothing of images of 8×8"),
        (["cifar10-bop", "--data-dir", "/nowhere"], "cifar10 is not prepared in /nowhere"),
        (["--data", "/nowhere.npz"], "/nowhere.npz is not a data set"),
        (["cifar10-adam", "--gamma", 0.1], "cifar10-adam has LatentAdam"),
    ],
)
def test_bad_arguments_end_before_anything_is_written(
    options, message, tmp_path, monkeypatch, capsys
):
    run_dir = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(monkeypatch, *options, "--run-dir", run_dir)
    assert message in str(stop.value.code)
    assert not run_dir.exists()


def main(monkeypatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, options)])
    train.main()


def test_a_folder_with_another_run_is_left_alone(whole, monkeypatch):
    before = sorted(p.stat().st_mtime_ns for p in whole[0].rglob("*"))
    with pytest.raises(SystemExit, match="is not empty: resume that run with --resume"):
        main(monkeypatch, *TINY_OPTIONS, "--run-dir", whole[0])
    with pytest.raises(SystemExit, match=r"was run with seed=0 \(now 1\)"):
        main(monkeypatch, *TINY_OPTIONS, "--seed", 1, "--run-dir", whole[0], "--resume")
    with pytest.raises(SystemExit, match="has done 10 epochs already, but --epochs is 3"):
        main(monkeypatch, *TINY_OPTIONS, "--epochs", 3, "--run-dir", whole[0], "--resume")
    assert sorted(p.stat().st_mtime_ns for p in whole[0].rglob("*")) == before


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_a_run_killed_in_its_last_evaluation_only_evaluates(whole, copied):
    """The checkpoint comes before the evaluation: no epoch is trained again."""
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:-1]))
    resumed = run(*TINY_OPTIONS, "--epochs", 10, "--run-dir", copied, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "trained again" not in resumed.stderr
    assert_same_run(copied, whole[0])
    last = json.loads((copied / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["images_per_second"] == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), "lacks records of the 10 epochs"),
        (
            lambda run: (run / "metrics.jsonl").write_text("{\n" * 10),
            "lacks records of the 10 epochs",
        ),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\n"), "lacks records of"),
        (lambda run: (run / "metrics.jsonl").write_text("[" * 10**5), "lacks records of"),
        (lambda run: edit(run / "metrics.jsonl", '"loss"', '"lost"'), "lacks records of"),
        (lambda run: (run / "config.json").unlink(), "holds no run to resume"),
        (lambda run: (run / "config.json").write_text("{"), "holds no run to resume"),
        (lambda run: (run / "config.json").write_bytes(b"\xff"), "holds no run to resume"),
        (lambda run: (run / "config.json").write_text('{"config": 1}'), "holds no run to resume"),
        (lambda run: edit(run / "config.json", "127.5", "127.6"), "changed since it was written"),
        (
            lambda run: [shutil.rmtree(run / f"checkpoints/{n}/default") for n in (531, 590)],
            "There is no other checkpoint: train again in another --run-dir",
        ),
    ],
)
def test_damaged_runs_do_not_resume(copied, monkeypatch, damage, message):
    damage(copied)
    with pytest.raises(SystemExit, match=message):
        main(monkeypatch, *TINY_OPTIONS, "--epochs", 11, "--run-dir", copied, "--resume")


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def flip_bits(run_dir: Path) -> None:
    """Flips a bit in each file of the newest checkpoint's arrays.

    A bit of one file may be unharmed: how Orbax spreads the arrays over files differs from run to
    run, and a file may be a version of a node that nothing refers to.
    """
    for path in (run_dir / "checkpoints/590/default").rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)


def rename(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints/590")
    shutil.copytree(run_dir / "checkpoints/531", run_dir / "checkpoints/590")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints/590/default"), ""),
        (flip_bits, ""),
        (rename, "it is the state of step 531"),
        (lambda run: keep_lines(run, 8), "metrics.jsonl lacks records of the 10 epochs"),
    ],
    ids=["missing", "bits", "renamed", "records"],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, copied, damage, reason):
    damage(copied)
    resumed = run(*TINY_OPTIONS, "--epochs", 10, "--run-dir", copied, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(
        rf"{copied}/checkpoints/590 cannot be resumed: .*{reason}.*\n"
        "Resuming from checkpoints/531; the other is now damaged-590.\n",
        resumed.stderr,
    )
    assert_same_run(copied, whole[0])
    names = {p.name for p in (copied / "checkpoints").iterdir()}
    assert names == {"531", "590", "damaged-590"}


def keep_lines(run_dir: Path, number: int) -> None:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:number]))


def test_an_empty_folder_among_the_checkpoints_is_no_checkpoint(whole, copied):
    (copied / "checkpoints/99999").mkdir()
    resumed = run(*TINY_OPTIONS, "--epochs", 10, "--run-dir", copied, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(copied, whole[0])


def test_a_torn_last_record_is_evaluated_again(whole, copied):
    content = (copied / "metrics.jsonl").read_bytes()
    (copied / "metrics.jsonl").write_bytes(content[:-40])
    resumed = run(*TINY_OPTIONS, "--epochs", 10, "--run-dir", copied, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(copied, whole[0])


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["new", "resumed"])
def test_a_run_that_was_killed_at_its_start_begins_anew(tmp_path, monkeypatch, capsys, resume):
    """Nothing but the lock and half of config.json is left."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").touch()
    (tmp_path / "run/config.tmp").write_text("{")
    main(monkeypatch, *TINY_OPTIONS, "--epochs", 1, "--run-dir", tmp_path / "run", *resume)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["epochs"] == 1


def test_a_resumed_run_keeps_its_original_description(whole, copied, monkeypatch, capsys):
    main(monkeypatch, *TINY_OPTIONS, "--epochs", 11, "--run-dir", copied, "--resume")
    original = json.loads((whole[0] / "config.json").read_text())
    config = json.loads((copied / "config.json").read_text())
    assert config["config"] == original["config"] | {"epochs": 11}
    assert (config["device"]["count"], config["resumed"][0]["device"]["count"]) == (1, 8)
    assert [m["epoch"] for m in metrics(copied)] == list(range(1, 12))
    assert metrics(copied)[:10] == metrics(whole[0])
    assert str(copied) not in (copied / "result.json").read_text()


def test_other_images_do_not_resume_a_run(tmp_path, monkeypatch):
    """Neither other ones of the same number, nor more of them."""
    data = memory.digits()
    names = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = {name: getattr(data, name)[:96] for name in names}
    options = ("--data", tmp_path / "own.npz", *TINY_OPTIONS, "--run-dir", tmp_path / "run")
    np.savez(tmp_path / "own.npz", **arrays)
    main(monkeypatch, *options, "--epochs", 1)
    before = metrics(tmp_path / "run")
    more = {name: getattr(data, name)[:120] for name in names}
    for other in (arrays | {"train_images": 255 - arrays["train_images"]}, more):
        np.savez(tmp_path / "own.npz", **other)
        with pytest.raises(
            SystemExit, match=r"run was run with images\..*crc32=\w{8} \(now \w{8}\)"
        ):
            main(monkeypatch, *options, "--epochs", 2, "--resume")
    assert metrics(tmp_path / "run") == before
    np.savez(tmp_path / "own.npz", **arrays)
    main(monkeypatch, *options, "--epochs", 2, "--resume")
    assert metrics(tmp_path / "run")[:1] == before


def test_only_one_process_writes_to_a_run(copied, monkeypatch):
    with (copied / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another process is writing to"):
            main(monkeypatch, *TINY_OPTIONS, "--epochs", 11, "--run-dir", copied, "--resume")


def test_two_runs_of_the_same_second_have_their_own_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    folders = []
    for _ in range(3):
        with Run(TINY, RunConfig(), "digits-bop") as run:
            folders.append(run.folder)
    assert [f.name for f in folders] == [f"digits-bop-now{n}" for n in ("", "-2", "-3")]


def test_nothing_to_resume(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="holds no run to resume"):
        main(monkeypatch, "--run-dir", tmp_path / "none", "--resume")
    assert not (tmp_path / "none").exists()


def test_a_loss_that_explodes_stops_the_run(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        main(
            monkeypatch,
            *TINY_OPTIONS,
            *("--epochs", 1, "--learning-rate", 1e38, "--run-dir", tmp_path / "run"),
        )
    assert stop.value.code == 1
    assert "The loss is inf at step" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason=f"no prepared CIFAR-10 in {REAL}")
def test_real_cifar10_a_few_hundred_images(monkeypatch, tmp_path, capsys):
    data = PRESETS["cifar10-bop"][1].data
    few = replace(data, data_dir=REAL).load()
    few = replace(
        few,
        train_images=few.train_images[:400],
        train_labels=few.train_labels[:400],
        test_images=few.test_images[:100],
        test_labels=few.test_labels[:100],
    )
    monkeypatch.setattr(type(data), "load", lambda _: few)
    options = ("--width", 8, "--units", 32, "--batch-size", 80, "--epochs", 6)
    main(monkeypatch, "cifar10-bop-sweep", *options, "--run-dir", tmp_path / "run")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["binary_parameters"] > 0
    records = metrics(tmp_path / "run")
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["train_accuracy"] > 0.2  # chance is 0.1


def test_images_in_an_archive(tmp_path, monkeypatch, capsys):
    """The digits as a user's own file give the run of the digits."""
    data = memory.digits()
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "own.npz", **{name: getattr(data, name) for name in names})
    options = (*TINY_OPTIONS, "--epochs", 1, "--run-dir")
    main(monkeypatch, "--data", tmp_path / "own.npz", *options, tmp_path / "own")
    main(monkeypatch, *options, tmp_path / "digits")
    assert metrics(tmp_path / "own") == metrics(tmp_path / "digits")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["config"]["data"]["type"] == Arrays.__name__
    assert config["images"]["class_names"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_step_compiles_ends_at_once(tmp_path, number):
    """One line, the status of the signal, no traceback."""
    options = ("--width", 96, "--run-dir", tmp_path / "run")  # a program that no test compiles
    process = start(*options)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("digits-bop: ")
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert output.split("\n")[-2:] == ["Stopped at once, without a checkpoint.", ""]
    assert "Traceback" not in output


# ---- Options -------------------------------------------------------------------------------------


def test_options_that_are_the_same():
    """In Python, and as JSON gives them back."""
    ours = flat_options({"a": {"b": (1, 2), 3: math.nan}, "c": 1, "d": None})
    assert ours == {"a.b": (1, 2), "a.3": math.nan, "c": 1, "d": None}
    theirs = flat_options({"a": {"b": [1, 2], "3": math.nan}, "c": 1.0})
    assert differing(theirs, ours, "now") == ""


def test_options_that_differ():
    ours, theirs = {"a": [1, 2], "b": 1, "data.workers": 2}, {"a": [1], "c": 3, "data.workers": 9}
    message = "a=[1] (here [1, 2]), b=None (here 1), c=3 (here None)"
    assert differing(theirs, ours, "here") == message
    assert differing(theirs, ours, "here", may=("a", "c")) == "b=None (here 1)"
