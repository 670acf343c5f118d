"""The sweep of Figure 1: a lane is a run, whatever trains beside it."""

import dataclasses
import json
import sys

import chex
import jax
import numpy as np
import pytest

import datasets
import sweep as sweeps
import train
from bop_optax import flip_ratio
from experiments import Experiment
from runs import read_result
from sweep import Lane, Sweep
from tests.test_train import TINY

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
SMALL = Sweep(
    dataclasses.replace(TINY, width=4, units=16, stages=1, epochs=2, batch_size=64),
    gammas=(1e-2, 1e-3),
    thresholds=(0.0,),
    seeds=(3, 4),
)


@pytest.fixture(scope="module")
def digits() -> datasets.Dataset:
    return datasets.load("digits")


def test_figure_1_is_the_default():
    lanes = Sweep(Experiment()).lanes()
    assert lanes == [
        Lane(1e-2, 1e-6, 0),
        Lane(1e-3, 1e-6, 0),  # once, though it is a point of both panels
        Lane(1e-4, 1e-6, 0),
        Lane(1e-3, 0.0, 0),
        Lane(1e-3, 1e-5, 0),
    ]


@pytest.mark.parametrize("order", ["shared", "separate"])
def test_a_lane_is_the_single_run(digits, order):
    """Three steps of all lanes in one program, and of each network by train.py's own step."""
    sweep = dataclasses.replace(SMALL, order=order)
    lanes = sweep.lanes()
    assert len(lanes) == 6
    compiled = sweeps.compile_sweep(sweep, digits)
    trainee = sweeps.several_networks(sweep, compiled, lanes)
    batches = next(trainee.chunks(0))[:3]
    assert batches.shape == ((3, 64) if order == "shared" else (3, 6, 64))
    stacked, losses = trainee.train_steps(sweeps.build_lanes(compiled, lanes), batches)
    networks = trainee.metrics(stacked, 3, True)["networks"]
    for i, lane in ((0, lanes[0]), (5, lanes[5])):  # they share no number
        config = dataclasses.replace(sweep.experiment, **lane._asdict())
        program, state = train.build(config, digits)
        alone = train.one_network(config, digits, program)
        own = batches if order == "shared" else next(alone.chunks(0))[:3]
        state, own_losses = alone.train_steps(state, own)
        np.testing.assert_allclose(losses[:, i], own_losses, rtol=1e-3)
        ours = jax.tree.map(lambda x, i=i: x[i], stacked.states.params)
        assert flip_ratio(ours, state.params, labels=program.labels) < 5e-3
        chex.assert_trees_all_close(
            networks[i], alone.metrics(state, 3, True), rtol=0.02, atol=5e-3
        )


def test_lanes_differ_by_gamma_threshold_and_seed(digits):
    lanes = SMALL.lanes()
    compiled = sweeps.compile_sweep(SMALL, digits)
    trainee = sweeps.several_networks(SMALL, compiled, lanes)
    batches = sweeps.epoch_batches(SMALL, lanes, len(digits.train_images), 1)
    stacked, _ = trainee.train_steps(sweeps.build_lanes(compiled, lanes), batches)
    metrics = trainee.metrics(stacked, len(batches), False)
    flips = {
        lane: network["flip_ratio"]["all"]
        for lane, network in zip(lanes, metrics["networks"], strict=True)
    }
    for seed in (3, 4):  # higher γ and lower τ flip more: the paper's section 5.1
        assert flips[Lane(1e-2, 1e-7, seed)] > flips[Lane(1e-3, 1e-7, seed)]
        assert flips[Lane(1e-3, 0.0, seed)] > flips[Lane(1e-3, 1e-7, seed)]
    assert len(set(flips.values())) == 6
    assert metrics["flip_ratio"]["all"] == pytest.approx(np.mean(list(flips.values())))


OPTIONS = "--width 4 --units 16 --stages 1 --batch-size 64 --gammas 1e-2 --thresholds 0"


def main(monkeypatch, *options: object) -> None:
    arguments = " ".join([OPTIONS, "--seeds 3", *map(str, options)]).split()
    monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
    sweeps.main()


def without_times(record: dict) -> list[dict]:
    return [{k: v for k, v in m.items() if "second" not in k} for m in record["metrics"]]


@pytest.mark.parametrize("together", ["yes", "no"])
def test_the_command_writes_the_figure_and_goes_on(together, tmp_path, monkeypatch, capsys):
    folder, records = tmp_path / "sweep", []
    for epochs, more in ((1, ""), (2, "--resume")):
        main(monkeypatch, f"--together {together} --epochs {epochs} --run-dir {folder} {more}")
        out, err = capsys.readouterr()
        result = json.loads(out.splitlines()[-1])
        assert (result["networks"], result["epochs"]) == (2, epochs)
        assert ("MiB a network" in err) == (together == "yes" and not more)
        names = ("gamma=0.01-threshold=1e-07-seed=3.json", "gamma=0.001-threshold=0.0-seed=3.json")
        records.append([read_result(folder / name) for name in names])
        assert (folder / "figure1.png").read_bytes().startswith(b"\x89PNG")
    for (_, one), (config, two) in zip(*records, strict=True):
        assert (config.gamma, config.threshold, config.seed) in ((1e-2, 1e-7, 3), (1e-3, 0.0, 3))
        assert [m["epoch"] for m in two["metrics"]] == [1, 2]
        assert without_times(two)[:1] == without_times(one)
        assert two["metrics"][1]["loss"] < two["metrics"][0]["loss"]
        assert two["result"]["test_accuracy"] == two["metrics"][1]["test_accuracy"]
        assert len(two["networks"]) == (2 if together == "yes" else 1)
    with pytest.raises(SystemExit, match=r"order=shared, of seed 0 \(now separate\)"):
        main(monkeypatch, f"--epochs 2 --order separate --run-dir {folder} --resume")


def test_a_resumed_sweep_is_bit_identical(tmp_path, monkeypatch):
    options = "--gammas --thresholds --seeds 3 4 --together yes --run-dir"
    main(monkeypatch, f"{options} {tmp_path / 'whole'} --epochs 2")
    main(monkeypatch, f"{options} {tmp_path / 'resumed'} --epochs 1")
    main(monkeypatch, f"{options} {tmp_path / 'resumed'} --epochs 2 --resume")
    assert (tmp_path / "whole" / "figure2.png").exists()  # seeds alone
    for seed in (3, 4):
        name = f"gamma=0.001-threshold=1e-07-seed={seed}.json"
        whole, resumed = (read_result(tmp_path / f / name)[1] for f in ("whole", "resumed"))
        assert without_times(whole) == without_times(resumed)


def test_nothing_to_resume(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="holds no sweep to resume"):
        main(monkeypatch, f"--run-dir {tmp_path} --resume")


@pytest.mark.parametrize(("times", "faster"), [((1.0, 0.3), True), ((2.0, 0.3), False)])
def test_the_faster_way_is_taken_and_named(times, faster, digits, monkeypatch, capsys):
    given = iter(times)
    monkeypatch.setattr(sweeps, "seconds_per_step", lambda *_: next(given))
    monkeypatch.setattr(sweeps, "compile_step", lambda *args: (None, 100))
    compiled = sweeps.compile_sweep(SMALL, digits)
    assert sweeps.all_together(SMALL, compiled, SMALL.lanes()) == faster
    assert f"training {'together' if faster else 'one after another'}." in capsys.readouterr().err


def test_a_sweep_too_large_for_the_memory(digits, tmp_path, monkeypatch, capsys):
    """It says how many fit; asked to choose, it takes turns; refused, it leaves no folder."""
    monkeypatch.setattr(sweeps, "compile_step", lambda *args: (None, 50 * len(args[2])))
    compiled = sweeps.compile_sweep(SMALL, digits)
    data = jax.tree.leaves((compiled.train_data, compiled.test_data))
    monkeypatch.setattr(sweeps, "memory_there", lambda: sum(x.nbytes for x in data) + 250)
    assert not sweeps.all_together(SMALL, compiled, SMALL.lanes())
    assert "5 fit together" in capsys.readouterr().err
    together = dataclasses.replace(SMALL, together="yes")
    with pytest.raises(ValueError, match=r"6 networks are too many .* 5 fit together"):
        sweeps.all_together(together, compiled, SMALL.lanes())
    assert sweeps.all_together(together, compiled, SMALL.lanes()[:5])
    with pytest.raises(SystemExit, match="are too many"):
        main(monkeypatch, f"--seeds 1 2 3 --together yes --run-dir {tmp_path / 'sweep'}")
    assert not (tmp_path / "sweep").exists()


def test_memory_grows_with_the_lanes(digits):
    compiled = sweeps.compile_sweep(SMALL, digits)
    needed = [sweeps.compile_step(SMALL, compiled, SMALL.lanes()[:n])[1] for n in (1, 3)]
    assert 0 < needed[0] < needed[1] < sweeps.memory_there()


def test_seeds_alone_are_a_sweep_of_any_optimizer():
    sweep = Sweep(Experiment(optimizer="adam"), gammas=(), thresholds=(), seeds=(1, 2))
    assert [sweep.name(lane) for lane in sweep.lanes()] == ["seed=1", "seed=2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gammas": (1e-3, 1e-3)}, "--gammas must be different values"),
        ({"seeds": ()}, "and at least one"),
        ({"gammas": (2.0,)}, r"--gamma must be in \(0, 1\], got 2.0"),
        ({"thresholds": (-1.0,)}, "--threshold must be at least 0"),
        (
            {"experiment": Experiment(optimizer="adam")},
            "give both without values for --optimizer adam",
        ),
    ],
)
def test_bad_sweeps(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change).lanes()


def test_images_that_stream_are_not_swept(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep.py", "imagenet-birealnet-bop"])
    with pytest.raises(SystemExit, match=r"sweep.py: imagenet2012 does not fit into memory"):
        sweeps.main()
