"""compare.py: a search on images held out, then seeds of its best point, each a run of train.py."""

import dataclasses
import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import compare
from compare import METHODS, Comparison, Job
from experiments import PRESETS
from runs import read_result

ROOT = Path(__file__).parents[1]
TINY = [
    "--dataset=digits",
    "--width=4",
    "--units=8",
    "--stages=1",
    "--epochs=1",
    "--batch-size=64",
    "--pad=1",
]


def test_every_method_has_a_grid_of_two_of_its_own_fields():
    """3 × 2 for each, and one value more where the best of three was at an end."""
    sizes = {}
    for preset, grid in METHODS.items():
        assert len(grid) == 2
        for name, values in grid.items():
            for value in values:
                dataclasses.replace(PRESETS[preset][1], **{name: value}).check()
        sizes[preset] = [len(values) for values in grid.values()]
    widened = {
        "cifar10-adam-small",
        "cifar10-sgd-small",
        "cifar10-sgd-falling-rate-small",
        "cifar10-bop-falling-threshold-small",
        "cifar10-bop-2nd-order-falling-gamma-small",
    }
    assert sizes == {preset: [4 if preset in widened else 3, 2] for preset in METHODS}


def test_what_is_compared_differs_in_the_optimizer_alone():
    own = {"optimizer", "gamma", "threshold", "latent_learning_rate", "b1", "momentum"}
    own |= {"gamma_end", "latent_learning_rate_end", "threshold_end"}
    own |= {"alpha", "decay"}  # CEMA's α falls, in place of its γ
    configs = [PRESETS[preset][1] for preset in METHODS]
    for field in dataclasses.fields(configs[0]):
        if field.name not in own:
            assert len({getattr(config, field.name) for config in configs}) == 1, field.name


def test_a_comparison_from_search_to_seeds(tmp_path, monkeypatch, capsys):
    """Two points, then two seeds of the better one; started again, it has nothing to do."""
    monkeypatch.setattr(compare, "METHODS", {"cifar10-bop-small": {"gamma": (1e-2, 1e-5)}})
    place = f"--folder={tmp_path}"
    options = ["--held-out=300", "--seeds", "1", "2", "--jobs=2", place, *TINY]
    monkeypatch.setattr(sys, "argv", ["compare.py", *options])
    compare.main()
    best = json.loads(capsys.readouterr().out.splitlines()[-1])["best"]["cifar10-bop-small"]

    search = tmp_path / "results" / "search" / "cifar10-bop-small"
    points = [read_result(search / f"gamma={gamma:g}.json") for gamma in (1e-2, 1e-5)]
    assert {(c.gamma, c.seed, c.held_out) for c, _ in points} == {(1e-2, 0, 300), (1e-5, 0, 300)}
    accuracies = {c.gamma: r["result"]["validation_accuracy"] for c, r in points}
    assert best == {"gamma": max(accuracies, key=accuracies.__getitem__)}
    for seed in (1, 2):
        path = tmp_path / "results" / "cifar10-bop-small" / f"seed{seed}.json"
        config, record = read_result(path)
        assert (config.gamma, config.seed, config.held_out) == (best["gamma"], seed, 0)
        assert "test_accuracy" in record["result"]

    runs = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*/**/*.json")}
    compare.main()
    first, _ = capsys.readouterr().out.splitlines()  # and the last
    assert first == "2 runs to search, then 2 more."
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*/**/*.json")} == runs
    monkeypatch.setattr(sys, "argv", ["compare.py", *options, "--width=5"])
    with pytest.raises(SystemExit, match="another comparison: choose another --folder"):
        compare.main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--held-out=0"], "--held-out and --jobs must be at least 1"),
        (["--seeds", "1", "1"], "--seeds must be different"),
        (["--gamma=1e-3", "--seed", "7"], "the comparison itself sets --gamma, --seed"),
        (["--gamma-end=0", "--decay=1"], "the comparison itself sets --decay, --gamma-end"),
    ],
)
def test_bad_comparisons(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", f"--folder={tmp_path / 'new'}", *options])
    with pytest.raises(SystemExit, match=message):
        compare.main()
    assert not (tmp_path / "new").exists()


def test_a_best_point_on_the_edge_of_its_grid():
    point = {"latent_learning_rate": 10.0, "momentum": 0.9}
    assert compare.on_edge("cifar10-sgd-small", point) == ["latent_learning_rate"]
    assert compare.on_edge("cifar10-sgd-small", point | {"latent_learning_rate": 0.1}) == []


def test_sigterm_ends_the_runs_under_way_and_the_same_command_goes_on(tmp_path):
    """The comparison's own process: its children save a checkpoint, none is left behind."""
    command = [sys.executable, "compare.py", f"--folder={tmp_path}", "--jobs=1", *TINY]
    command[-1:] = ["--epochs=2000", "--held-out=300"]
    folder = tmp_path / "search" / "cifar10-bop-small" / "gamma=0.01-threshold=1e-06"
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 240
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdout=null, stderr=pipe, text=True) as process:
        try:
            while not (metrics.exists() and metrics.read_text()):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.terminate()
            assert "the same command goes on" in process.communicate(timeout=120)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert list((folder / "checkpoints").iterdir())
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no run holds it


def test_a_run_that_fails_ends_the_comparison(tmp_path):
    comparison = Comparison(folder=tmp_path, jobs=1)
    jobs = [Job(tmp_path / f"{i}", tmp_path / f"{i}.json", ["no-such-preset"]) for i in range(3)]
    with pytest.raises(RuntimeError, match="unknown preset 'no-such-preset'"):
        compare.run_jobs(comparison, jobs, [])
    assert not list(tmp_path.iterdir())


def test_the_best_point_is_that_of_records_of_this_version(tmp_path):
    comparison = Comparison(folder=tmp_path)
    for job in compare.search_jobs(comparison, "cifar10-sgd-small"):
        job.record.parent.mkdir(parents=True, exist_ok=True)
        job.record.write_text("{}")
    with pytest.raises(ValueError, match=r"is not the result.json of a run"):
        compare.best_point(comparison, "cifar10-sgd-small")
