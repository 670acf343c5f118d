"""The sweep of Figure 1: a network of it is a run, whatever trains next to it."""

import json
import sys
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from types import SimpleNamespace
from typing import Literal

import chex
import jax
import numpy as np
import pytest

import train
from bop_optax import flip_ratio
from experiments import sweep as sweeps
from experiments.presets import PRESETS
from experiments.sweep import Lane, Sweep
from training.config import BinaryNet, Experiment, ImageNet, LatentAdam, Schedule, from_json
from training.data.memory import digits
from training.devices import device_mesh, replicated
from training.interrupt import Interrupt
from training.network import (
    compile_steps,
    epoch_means,
    first_state,
    make_network,
)
from training.records import check_record

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
SMALL = Sweep(
    replace(
        PRESETS["digits-bop"][1],
        model=BinaryNet(width=4, units=16, stages=1, first_padding="SAME"),
        epochs=2,
        batch_size=64,
    ),
    gammas=(1e-2, 1e-3),
    thresholds=(0.0,),
    seeds=(3, 4),
    vmap=True,
)
DATA = digits()


@cache
def program_of(order: Literal["shared", "separate"]) -> sweeps.Program:
    """The program of the miniature sweep, compiled once for several tests."""
    return sweeps.make_program(replace(SMALL, order=order), DATA)


def lane(gamma: float, threshold: float, seed: int) -> Lane:
    return Lane({"gamma": gamma, "threshold": threshold}, seed)


def train_steps(sweep: Sweep, program, lanes, steps: int):
    """The states after some steps, and the losses, (steps, networks)."""
    states, *rest = sweeps.first_arguments(program, lanes)
    losses = []
    with closing(sweeps.training_batches(sweep, program.source, lanes, 0)) as batches:
        for batch in islice(batches, steps):
            states, extremes = program.train_steps(states, batch, *rest)
            losses.append(extremes.loss)
    return states, np.stack(losses)


def train_alone(experiment: Experiment, order_seed: int, steps: int):
    """The state after some steps of a run, the losses, the metrics and the labels."""
    mesh = device_mesh()
    source = DATA.batches(experiment.batch_size, mesh)
    network = make_network(experiment, DATA)
    optimizer = train.make_optimizer(experiment, network.labels, source.steps_per_epoch)
    first = jax.jit(partial(first_state, network, optimizer))(np.uint32(experiment.seed))
    state = jax.device_put(first, replicated(mesh))
    step = compile_steps(train.make_train_step(experiment, network, source), False)
    losses = []
    with closing(source.training(order_seed)) as batches:
        for batch in islice(batches, steps):
            state, extremes = step(state, batch, jax.random.key(experiment.seed), {})
            losses.append(extremes.loss)
    evaluated = jax.jit(network.eval_state)(state)
    count = jax.jit(train.make_count_correct(network))
    accuracies = train.evaluate(count, evaluated, source.evaluation())
    means = epoch_means(state.sums, steps, experiment.batch_size)
    return state, np.stack(losses), means | {"accuracies": accuracies.tolist()}, network.labels


def test_figure_1_is_the_default():
    assert Sweep(PRESETS["cifar10-bop-sweep"][1]).lanes() == [
        lane(1e-2, 1e-6, 0),
        lane(1e-3, 1e-6, 0),  # once, though it is a point of both panels
        lane(1e-4, 1e-6, 0),
        lane(1e-3, 0.0, 0),
        lane(1e-3, 1e-5, 0),
    ]
    assert not Sweep(Experiment()).vmap  # on a CPU


def test_a_value_replaces_the_first_of_its_schedule():
    experiment = lane(1e-2, 0.0, 7).experiment(SMALL.experiment)
    assert experiment.optimizer.gamma == Schedule(1e-2, factor=0.1, every=15)
    assert experiment.optimizer.threshold == Schedule(0.0)
    assert replace(experiment, seed=0, optimizer=SMALL.experiment.optimizer) == SMALL.experiment


SLOW = pytest.mark.slow


@pytest.mark.parametrize("order", [pytest.param("shared", marks=SLOW), "separate"])
def test_a_lane_is_the_single_run(order):
    """Three steps of all networks in one program, and of each by train.py's own step."""
    sweep = replace(SMALL, order=order)
    lanes = sweep.lanes()
    assert len(lanes) == 6
    program = program_of(order)
    with closing(sweeps.training_batches(sweep, program.source, lanes, 0)) as batches:
        shape = (64, 8, 8, 1) if order == "shared" else (6, 64, 8, 8, 1)
        assert next(batches).images.shape == shape
    states, losses = train_steps(sweep, program, lanes, 3)
    means = epoch_means(states.sums, 3, 64)
    evaluated = program.eval_states(states)
    accuracies = train.evaluate(program.count_correct, evaluated, program.source.evaluation())
    assert accuracies.shape == (6, 2)
    for i in (0, 5):  # they share no number
        experiment = lanes[i].experiment(sweep.experiment)
        order_seed = lanes[i].seed if order == "separate" else 0
        state, own_losses, own_metrics, labels = train_alone(experiment, order_seed, 3)
        np.testing.assert_allclose(losses[:, i], own_losses, rtol=1e-3)
        ours = jax.tree.map(lambda x, i=i: x[i], states.params)
        assert flip_ratio(ours, state.params, labels=labels) < 5e-3
        metrics = sweeps._of_network(means, i) | {"accuracies": accuracies[i].tolist()}
        chex.assert_trees_all_close(metrics, own_metrics, rtol=0.02, atol=5e-3)


def test_lanes_differ_by_gamma_threshold_and_seed():
    lanes = SMALL.lanes()
    program = program_of("shared")
    states, _ = train_steps(SMALL, program, lanes, 22)
    ratios = epoch_means(states.sums, 22, 64)["flip_ratio"]["all"]
    flips = {lane.name: ratio for lane, ratio in zip(lanes, ratios, strict=True)}
    for seed in (3, 4):  # higher γ and lower τ flip more: the paper's section 5.1
        base = flips[lane(1e-3, 1e-7, seed).name]
        assert flips[lane(1e-2, 1e-7, seed).name] > base
        assert flips[lane(1e-3, 0.0, seed).name] > base
    assert len(set(flips.values())) == 6


# ---- The command ---------------------------------------------------------------------------------

OPTIONS = "--width 4 --units 16 --stages 1 --batch-size 64 --gammas 1e-2 --thresholds 0"


def main(monkeypatch, *options: object) -> None:
    arguments = " ".join([OPTIONS, "--seeds 3", *map(str, options)]).split()
    monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
    sweeps.main()


def without_times(record: dict) -> list[dict]:
    return [{k: v for k, v in m.items() if "second" not in k} for m in record["metrics"]]


@pytest.mark.parametrize("vmap", ["vmap", pytest.param("no-vmap", marks=SLOW)])
def test_the_command_writes_the_figure_and_resumes(vmap, tmp_path, monkeypatch, capsys):
    folder, records = tmp_path / "sweep", []
    for epochs, resume in ((1, ""), (2, "--resume")):
        main(monkeypatch, f"--{vmap} --epochs {epochs} --run-dir {folder} {resume}")
        out, err = capsys.readouterr()
        result = json.loads(out.splitlines()[-1])
        assert (result["networks"], result["epochs"]) == (2, epochs)
        assert ("MiB a network" in err) == (vmap == "vmap")
        records.append(json.loads((folder / "records.json").read_text()))
        accuracies = [record["result"]["test_accuracy"] for record in records[-1]]
        assert result["test_accuracy"] == max(accuracies)
        best = SMALL_LANES[accuracies.index(max(accuracies))]
        assert result["best"] == {**best.initial, "seed": 3}
        assert (folder / "figure1.png").read_bytes().startswith(b"\x89PNG")
    for lane, one, two in zip(SMALL_LANES, *records, strict=True):
        experiment = check_record(two)
        assert experiment.optimizer.gamma == Schedule(lane.initial["gamma"], factor=0.1, every=15)
        assert experiment.optimizer.threshold == Schedule(lane.initial["threshold"])
        assert experiment.seed == 3
        assert [m["epoch"] for m in two["metrics"]] == [1, 2]
        assert without_times(two)[:1] == without_times(one)
        assert two["metrics"][1]["loss"] < two["metrics"][0]["loss"]
        assert two["metrics"][0]["hyperparameters"] == {
            **{k: pytest.approx(v) for k, v in lane.initial.items()},
            "learning_rate": 0.01,
        }
        assert two["result"]["test_accuracy"] == two["metrics"][1]["test_accuracy"]
        assert len(two["networks"]) == (2 if vmap == "vmap" else 1)
        assert two["varied_at"] == {"gamma": 1e-3, "threshold": 1e-7}
    with pytest.raises(SystemExit, match=r"order=shared, of seed 0 \(now separate\)"):
        main(monkeypatch, f"--{vmap} --epochs 2 --order separate --run-dir {folder} --resume")
    other = "--no-vmap" if vmap == "vmap" else "--vmap"
    with pytest.raises(SystemExit, match=rf"holds no sweep to resume with {other}"):
        main(monkeypatch, f"{other} --epochs 2 --run-dir {folder} --resume")


SMALL_LANES = [lane(1e-2, 1e-7, 3), lane(1e-3, 0.0, 3)]


@SLOW
def test_a_sweep_on_an_accelerator(tmp_path, monkeypatch):
    """--vmap is the default there, and the program scans a stack of batches."""
    options = "--gammas --thresholds --seeds 3 4 --order separate --epochs 1 --run-dir"
    main(monkeypatch, f"{options} {tmp_path / 'cpu'} --vmap")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(sweeps, "all_devices", lambda: [SimpleNamespace(platform="gpu")])
    main(monkeypatch, f"{options} {tmp_path / 'gpu'}")
    assert (tmp_path / "gpu" / "vmapped").is_dir()
    cpu, gpu = (json.loads((tmp_path / f / "records.json").read_text()) for f in ("cpu", "gpu"))
    for one, two in zip(cpu, gpu, strict=True):
        [one], [two] = one["metrics"], two["metrics"]
        assert one["step"] == two["step"] == 22
        assert one["loss"] == pytest.approx(two["loss"], rel=0.02)
        assert one["flip_ratio"]["all"] == pytest.approx(two["flip_ratio"]["all"], rel=0.02)


def test_a_resumed_sweep_is_bit_identical(tmp_path, monkeypatch):
    options = "--gammas --thresholds --seeds 3 4 --vmap --run-dir"
    main(monkeypatch, f"{options} {tmp_path / 'whole'} --epochs 2")
    main(monkeypatch, f"{options} {tmp_path / 'resumed'} --epochs 1")
    main(monkeypatch, f"{options} {tmp_path / 'resumed'} --epochs 2 --resume")
    assert (tmp_path / "whole" / "figure2.png").exists()  # seeds alone
    whole, resumed = (
        json.loads((tmp_path / f / "records.json").read_text()) for f in ("whole", "resumed")
    )
    assert [from_json(record["config"]).seed for record in whole] == [3, 4]
    for one, two in zip(whole, resumed, strict=True):
        assert without_times(one) == without_times(two)


def test_a_stopped_sweep_prints_the_command_that_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeps, "INTERRUPT", Interrupt())
    monkeypatch.setattr(sweeps.INTERRUPT, "number", 15)
    with pytest.raises(SystemExit) as stopped:
        main(monkeypatch, f"--no-vmap --epochs 1 --run-dir {tmp_path / 's'}")
    assert stopped.value.code == 143
    err = capsys.readouterr().err
    assert "Stopped at step 1 (epoch 1)." in err
    assert err.rstrip().endswith(f"--run-dir {tmp_path / 's'} --resume")
    assert "python -m experiments.sweep --width 4" in err
    monkeypatch.setattr(sweeps.INTERRUPT, "number", 0)
    main(monkeypatch, f"--no-vmap --epochs 1 --run-dir {tmp_path / 's'} --resume")
    assert len(json.loads((tmp_path / "s" / "records.json").read_text())) == 2


def test_nothing_to_resume(tmp_path, monkeypatch):
    (tmp_path / "notes").touch()
    with pytest.raises(SystemExit, match="holds no sweep to resume"):
        main(monkeypatch, f"--run-dir {tmp_path} --resume")
    with pytest.raises(SystemExit, match="holds no run to resume: there is no such folder"):
        main(monkeypatch, f"--run-dir {tmp_path / 'none'} --resume")


@pytest.mark.parametrize("resume", ["", "--resume"], ids=["new", "resumed"])
def test_a_sweep_that_was_killed_at_its_start_begins_anew(resume, tmp_path, monkeypatch):
    (tmp_path / "vmapped").mkdir()
    (tmp_path / "vmapped" / ".lock").touch()
    (tmp_path / "vmapped" / "config.tmp").write_text("{")
    main(monkeypatch, f"--vmap --epochs 1 --run-dir {tmp_path} {resume}")
    assert len(json.loads((tmp_path / "records.json").read_text())) == 2


def test_a_sweep_too_large_for_the_memory(tmp_path, monkeypatch, capsys):
    """It prints how many networks fit; a refused sweep leaves no folder."""
    sweeps.check_memory(200, 250, 4)
    assert "5 fit" in capsys.readouterr().err
    monkeypatch.setattr(sweeps, "step_memory", lambda sweep, program, lanes: 50 * len(lanes))
    monkeypatch.setattr(sweeps, "free_memory", lambda: 250)
    with pytest.raises(SystemExit, match=r"6 networks are too many .* 5 fit\): .* or --no-vmap"):
        main(monkeypatch, f"--seeds 1 2 3 --vmap --run-dir {tmp_path / 'sweep'}")
    assert not (tmp_path / "sweep").exists()


def test_memory_grows_with_the_networks():
    program = program_of("shared")
    needed = [sweeps.step_memory(SMALL, program, SMALL.lanes()[:n]) for n in (1, 3)]
    assert 0 < needed[0] < needed[1] < sweeps.free_memory()


def test_seeds_alone_are_a_sweep_of_any_optimizer():
    adam = Experiment(optimizer=LatentAdam())
    sweep = Sweep(adam, gammas=(), thresholds=(), seeds=(1, 2))
    assert [lane.name for lane in sweep.lanes()] == ["seed=1", "seed=2"]
    assert sweep.lanes()[1].experiment(adam) == replace(adam, seed=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gammas": (1e-3, 1e-3)}, "--gammas must be different values"),
        ({"seeds": ()}, "and at least one"),
        ({"gammas": (2.0,)}, r"--gamma must be in \(0, 1\], got 2.0"),
        ({"thresholds": (-1.0,)}, "--threshold must be at least 0"),
        (
            {"experiment": Experiment(optimizer=LatentAdam())},
            "LatentAdam lacks γ or τ: give --gammas and --thresholds without values",
        ),
        ({"experiment": Experiment(data=ImageNet())}, "imagenet2012 does not fit into memory"),
    ],
)
def test_bad_sweeps(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change).lanes()


def test_images_that_stream_are_not_swept(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep.py", "imagenet-birealnet-bop"])
    with pytest.raises(
        SystemExit, match=r"experiments.sweep: imagenet2012 does not fit into memory"
    ):
        sweeps.main()
