"""The comparison of runs on different numbers of devices."""

import subprocess
import sys
import time

import numpy as np
import pytest

from bop_optax.saving import save
from experiments.devices import ROOT, Options, compare, differing
from training.interrupt import Interrupt


def test_the_share_of_weights_that_differ(tmp_path):
    """Only arrays of ±1 count: 3 of 6 weights differ; biases and scales are left out."""
    for name, kernel in (("a", [[1, -1, 1], [1, 1, 1]]), ("b", [[1, 1, -1], [1, -1, 1]])):
        (tmp_path / name).mkdir()
        bias = np.float32([1, -1]) if name == "a" else np.float32([-1, 1])
        arrays = {"kernel": np.float32(kernel), "bias": bias, "real": np.ones((2, 2)) * 0.5}
        save(arrays, tmp_path / name / "weights.safetensors")
    assert differing(tmp_path / "a", tmp_path / "b") == 0.5
    assert differing(tmp_path / "a", tmp_path / "a") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "none"}, "--preset must be one of digits-bop"),
        ({"devices": (1,)}, "--devices must be two different numbers or more"),
        ({"devices": (2, 2)}, "--devices must be two different numbers or more"),
        ({"seeds": (1, 1)}, "--seeds must be different"),
        ({"devices": (1, 5)}, "--devices must be divisors of the batch size 96, got 5"),
        ({"devices": (0, 1)}, "--devices must be divisors of the batch size 96, got 0"),
        ({"seeds": ()}, "--seeds must be different, at least one"),
        ({"preset": "imagenet-birealnet-bop"}, "--preset must be of images that fit into memory"),
        ({"epochs": 0}, "--epochs must be at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


@pytest.mark.slow
def test_two_numbers_of_devices(tmp_path, capsys):
    options = Options(devices=(1, 2), seeds=(1,), epochs=1, folder=tmp_path)
    first, second = compare(options, Interrupt())
    assert (first["differing"], first["devices"], second["devices"]) == (0, 1, 2)
    assert 0 <= second["differing"] < 0.1
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-2)
    assert "2 devices, seed 1: " in capsys.readouterr().out
    assert compare(options, Interrupt())[1] == second  # not trained again


@pytest.mark.slow
def test_a_signal_reaches_the_run_and_the_same_command_resumes(tmp_path):
    options = ["--devices=1", "2", "--seeds=1", "--epochs=40", f"--folder={tmp_path}"]
    command = [sys.executable, "-m", "experiments.devices", *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        while not any(path.read_text() for path in tmp_path.rglob("metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert errors.endswith("Stopped.\nThe same command resumes.\n")
    assert list(tmp_path.rglob("checkpoints/*"))
    assert not list(tmp_path.rglob("result.json"))
    same = Options(devices=(1, 2), seeds=(1,), epochs=40, folder=tmp_path)
    first, second = compare(same, Interrupt())
    assert len(first["loss"]) == len(second["loss"]) == 40
