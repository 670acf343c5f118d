"""The sweep of Figure 1: a lane is a run, whatever trains beside it."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import datasets
import sweep as sweeps
import train
from bop_optax import flip_ratio
from experiments import Experiment
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
    program, carry = sweeps.build_lanes(sweep, digits, lanes)
    data, _ = train.on_devices(digits, program.mesh)
    batches = sweeps.epoch_batches(sweep, lanes, len(data[0]), 1)[:3]
    assert batches.shape == ((3, 64) if order == "shared" else (3, 6, 64))
    step = train.make_train_steps(program, sweeps.make_step(sweep, program))
    (_, states), losses = step(carry, data, batches)
    for i, lane in ((0, lanes[0]), (5, lanes[5])):  # they share no number
        config = dataclasses.replace(sweep.experiment, **lane._asdict())
        program, state = train.build(config, digits)
        steps = train.make_train_steps(program, train.make_train_step(program, config))
        own = batches if order == "shared" else train.epoch_batches(config, len(data[0]), 1)[:3]
        state, own_losses = steps(state, data, own)
        np.testing.assert_allclose(losses[:, i], own_losses, rtol=1e-3)
        ours = jax.tree.map(lambda x, i=i: x[i], states.params)
        assert flip_ratio(ours, state.params, labels=program.labels) < 5e-3


def test_lanes_differ_by_gamma_threshold_and_seed(digits):
    lanes = SMALL.lanes()
    program, carry = sweeps.build_lanes(SMALL, digits, lanes)
    data, _ = train.on_devices(digits, program.mesh)
    batches = sweeps.epoch_batches(SMALL, lanes, len(data[0]), 1)
    step = train.make_train_steps(program, sweeps.make_step(SMALL, program))
    (_, states), _ = step(carry, data, batches)
    flips = dict(zip(lanes, np.asarray(states.sums["flip_ratio"]["all"]), strict=True))
    for seed in (3, 4):  # higher γ and lower τ flip more: the paper's section 5.1
        assert flips[Lane(1e-2, 1e-7, seed)] > flips[Lane(1e-3, 1e-7, seed)]
        assert flips[Lane(1e-3, 0.0, seed)] > flips[Lane(1e-3, 1e-7, seed)]
    assert len(set(flips.values())) == 6


@pytest.mark.parametrize("together", ["yes", "no"])
def test_the_command_writes_the_figure_and_every_curve(together, tmp_path, monkeypatch, capsys):
    options = "--width 4 --units 16 --stages 1 --epochs 2 --batch-size 64 --gammas 1e-2 1e-3"
    options += f" --thresholds 0 --seeds 3 --together {together} --run-dir {tmp_path / 'sweep'}"
    monkeypatch.setattr(sys, "argv", ["sweep.py", *options.split()])
    sweeps.main()
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert (result["networks"], result["epochs"]) == (3, 2)
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [(x["gamma"], x["threshold"]) for x in record["lanes"]] == [
        (1e-2, 1e-7),
        (1e-3, 1e-7),
        (1e-3, 0.0),
    ]
    for lane in record["lanes"]:
        assert [m["epoch"] for m in lane["metrics"]] == [1, 2]
        assert lane["metrics"][1]["loss"] < lane["metrics"][0]["loss"]
    assert (tmp_path / "sweep" / "figure1.png").read_bytes().startswith(b"\x89PNG")
    assert ("MiB a network" in err) == (together == "yes")


@pytest.mark.parametrize(("times", "faster"), [((1.0, 0.3), True), ((2.0, 0.3), False)])
def test_the_faster_way_is_taken_and_named(times, faster, monkeypatch, capsys):
    given = iter(times)
    monkeypatch.setattr(sweeps, "seconds_per_step", lambda *_: next(given))
    assert sweeps.faster_together(SMALL, jnp.zeros(()), SMALL.lanes()) == faster
    assert f"training {'together' if faster else 'one after another'}." in capsys.readouterr().err


def test_a_sweep_too_large_for_the_memory_says_how_many_fit(digits, monkeypatch):
    images = digits.train_images.nbytes + digits.test_images.nbytes
    monkeypatch.setattr(sweeps, "memory_needed", lambda *args: {1: 100, 2: 140}[len(args[2])])
    monkeypatch.setattr(sweeps, "memory_there", lambda: images + 250)
    assert "about 4 fit" in sweeps.check_memory(SMALL, digits, SMALL.lanes()[:3])
    with pytest.raises(ValueError, match=r"6 networks need .* 4 fit together"):
        sweeps.check_memory(SMALL, digits, SMALL.lanes())


def test_memory_grows_with_the_lanes(digits):
    needed = [sweeps.memory_needed(SMALL, digits, SMALL.lanes()[:n]) for n in (1, 3)]
    assert 0 < needed[0] < needed[1] < sweeps.memory_there()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gammas": (1e-3, 1e-3)}, "--gammas must be different values"),
        ({"seeds": ()}, "at least one seed"),
        ({"gammas": (), "thresholds": ()}, "both empty: nothing to train"),
        ({"gammas": (2.0,)}, r"--gamma must be in \(0, 1\], got 2.0"),
        ({"thresholds": (-1.0,)}, "--threshold must be at least 0"),
        ({"experiment": Experiment(resume=True)}, "--resume is not for sweeps"),
        ({"experiment": Experiment(optimizer="adam")}, "--optimizer must be bop, got adam"),
    ],
)
def test_bad_sweeps(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change).lanes()
