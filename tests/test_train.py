"""train.py: steps against their parts, and whole runs through the command line."""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import datasets
import train
from bop_optax import flip_ratio, log_flip_ratio
from experiments import PRESETS, Experiment
from models.binarynet import BinaryNet
from runs import Run, load_weights, save_weights
from tests.test_datasets import REAL

ROOT = Path(__file__).parents[1]
TINY = dataclasses.replace(PRESETS["digits-bop"][1], width=8, units=32, batch_size=24)
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


def metrics(run_dir: Path) -> list[dict]:
    """The records of a run without what differs between two equal runs: its speed."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if "second" not in k} for r in records]


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    with np.load(run_dir / "weights.npz") as stored:
        return {name: stored[name] for name in stored.files}


# ---- Parts ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    """Optax's Adam raises a float to an integer power, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def digits() -> datasets.Dataset:
    return datasets.load("digits")


@pytest.fixture(scope="module")
def one_epoch(digits):
    """Eight devices, one epoch: the state before, the state after, the losses."""
    program, state = train.build(TINY, digits)
    before = jax.tree.map(np.array, state)
    batches = train.epoch_batches(TINY, len(digits.train_images), 1)
    data = (jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels))
    after, losses = train.make_train_steps(program, TINY)(state, data, batches)
    return program, before, after, losses


def test_one_step_by_hand(digits, one_epoch):
    """The compiled, sharded first step equals the gradient step written out with nnx."""
    _, before, _, losses = one_epoch
    indices = train.epoch_batches(TINY, len(digits.train_images), 1)[0]
    model = BinaryNet(
        8, 32, image_shape=(8, 8, 1), stages=2, first_padding="SAME", rngs=nnx.Rngs(0)
    )
    key = jax.random.fold_in(jax.random.key(0), 0)
    x = datasets.scale(datasets.augment(key, jnp.asarray(digits.train_images[indices]), 1, False))
    y = digits.train_labels[indices]
    loss = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
    np.testing.assert_allclose(losses[0], loss, rtol=1e-4)
    for ours, theirs in zip(
        jax.tree.leaves(before.params), jax.tree.leaves(nnx.state(model, nnx.Param)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_an_epoch_learns_flips_binary_weights_and_moves_real_ones(one_epoch):
    program, before, after, losses = one_epoch
    assert losses.shape == (1437 // 24,)
    assert losses[-5:].mean() < losses[:5].mean()
    for layer, kernel in train.binary_layers(after.params, program.labels).items():
        assert set(np.unique(kernel[...])) == {-1, 1}, layer
    flipped = flip_ratio(before.params, after.params, labels=program.labels)
    assert 0 < flipped < 0.5
    assert not np.array_equal(before.params["norms"][0]["bias"], after.params["norms"][0]["bias"])


def test_sums_start_anew_with_each_epoch(digits, one_epoch):
    program, _, after, losses = one_epoch
    np.testing.assert_allclose(after.sums["loss"], losses.sum(), rtol=1e-5)
    data = (jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels))
    copy = jax.tree.map(jnp.copy, after)
    batch = train.epoch_batches(TINY, len(digits.train_images), 2)[:1]
    state, losses = train.make_train_steps(program, TINY)(copy, data, batch)
    assert state.sums["loss"] == losses[0]


def test_flip_metrics_are_of_each_layer_and_of_all(one_epoch):
    program, before, after, _ = one_epoch
    result = train.flip_metrics(before.params, after.params, program.labels)
    layers = ["convs/0", "convs/1", "convs/2", "convs/3", "denses/0", "denses/1", "denses/2"]
    assert list(result["flip_ratio"]) == [*layers, "all"]
    updates = jax.tree.map(lambda a, b: np.asarray(b) - a, before.params, after.params)
    assert result["flip_ratio"]["all"] == flip_ratio(updates, labels=program.labels)
    last = updates["denses"][2]["kernel"]
    assert result["log_flip_ratio"]["denses/2"] == log_flip_ratio(last)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_latent_weights_learn_and_their_signs_flip(digits, optimizer):
    config = dataclasses.replace(
        TINY, optimizer=optimizer, momentum=0.9, latent_learning_rate=1e-3, latent_scale=0.5
    )
    program, state = train.build(config, digits)
    before = jax.tree.map(np.array, state.params)
    data = (jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels))
    batches = train.epoch_batches(config, len(digits.train_images), 1)
    state, losses = train.make_train_steps(program, config)(state, data, batches)
    assert losses[-5:].mean() < losses[:5].mean()
    kernels = [k[...] for k in train.binary_layers(state.params, program.labels).values()]
    assert len(kernels) == 7
    assert all(np.abs(k).max() <= 1 + 1e-6 for k in kernels)
    assert len(np.unique(kernels[1])) > 2
    assert 0 < flip_ratio(before, state.params, labels=program.labels) < 0.5
    assert state.sums["flip_ratio"]["all"] > 0


@pytest.mark.parametrize("batch_size", [8, 24, 104, 360, 400])
def test_every_test_image_counts_exactly_once(digits, one_epoch, batch_size):
    program, _, state, _ = one_epoch
    model = nnx.merge(program.eval_graph, state.params, state.batch_stats)
    predictions = model(datasets.scale(jnp.asarray(digits.test_images))).argmax(-1)
    data = (jnp.asarray(digits.test_images), jnp.asarray(digits.test_labels))
    accuracy = train.make_evaluate(program)(state, data, batch_size)
    assert accuracy == np.mean(predictions == digits.test_labels)


def test_one_device_and_eight_agree(digits):
    """The same step on one device and on eight: losses to rounding, flips all but a few."""
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        program, state = train.build(TINY, digits, devices)
        data = (digits.train_images, digits.train_labels)
        batches = train.epoch_batches(TINY, len(digits.train_images), 1)[:2]
        results.append(train.make_train_steps(program, TINY)(state, data, batches))
    (one, losses), (eight, losses_8) = results
    assert len(eight.params["denses"][0]["kernel"].sharding.device_set) == 8
    np.testing.assert_allclose(losses, losses_8, rtol=1e-4)
    ones, eights = (jax.tree.map(np.asarray, s.params) for s in (one, eight))
    assert flip_ratio(ones, eights, labels=program.labels) < 1e-3


def test_the_scan_of_accelerators_equals_steps_one_by_one(digits, one_epoch, monkeypatch):
    program, before, _, losses = one_epoch
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    batches = train.epoch_batches(TINY, len(digits.train_images), 1)[:3]
    data = (jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels))
    state = jax.tree.map(jnp.asarray, before)
    state, scanned = train.make_train_steps(program, TINY)(state, data, batches)
    assert state.step == 3
    np.testing.assert_allclose(scanned, losses[:3], rtol=1e-3)


def test_batches_are_a_shuffle_that_depends_on_seed_and_epoch():
    batches = train.epoch_batches(TINY, 100, 1)
    assert batches.shape == (4, 24)
    assert len(np.unique(batches)) == 96
    assert np.array_equal(batches, train.epoch_batches(TINY, 100, 1))
    assert not np.array_equal(batches, train.epoch_batches(TINY, 100, 2))
    other = dataclasses.replace(TINY, seed=1)
    assert not np.array_equal(batches, train.epoch_batches(other, 100, 1))


def test_gamma_decays_in_stairs(digits):
    config = dataclasses.replace(TINY, gamma=1e-2, decay=0.1, decay_epochs=2)
    program, state = train.build(config, digits)
    grads = jax.tree.map(jnp.ones_like, state.params)
    for epoch, gamma in ((1, 1e-2), (2, 1e-3), (3, 1e-3)):
        count = jnp.asarray(epoch * program.steps_per_epoch)
        opt_state = jax.tree_util.tree_map_with_path(
            lambda path, x, count=count: count.astype(x.dtype) if "count" in str(path) else x,
            program.optimizer.init(state.params),
        )
        _, new = program.optimizer.update(grads, opt_state, state.params)
        ema = optax.tree.get(new, "ema")["convs"][0]["kernel"]
        np.testing.assert_allclose(jax.tree.leaves(ema)[0].ravel()[0], gamma, rtol=1e-5)


def test_weights_are_saved_small_and_load_into_a_model(one_epoch, tmp_path):
    _, _, state, _ = one_epoch
    save_weights(nnx.merge_state(state.params, state.batch_stats), tmp_path / "weights.npz")
    stored = weights(tmp_path)
    assert stored["convs/0/kernel"].dtype == np.int8
    assert stored["norms/0/var"].dtype == np.float32

    def fresh(width):
        return BinaryNet(
            width, 32, image_shape=(8, 8, 1), stages=2, first_padding="SAME", rngs=nnx.Rngs(7)
        )

    model = fresh(8)
    load_weights(model, tmp_path / "weights.npz")
    trained = nnx.merge_state(state.params, state.batch_stats)
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(trained), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"does not fit the model: convs/0/kernel"):
        load_weights(fresh(9), tmp_path / "weights.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": -1}, "--batch-size must be at least 1, got -1"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"gamma": 0.0}, r"--gamma must be in \(0, 1\], got 0.0"),
        ({"gamma": float("nan")}, r"--gamma must be in \(0, 1\], got nan"),
        ({"decay": 2.0}, r"--decay must be in \(0, 1\]"),
        ({"threshold": -1e-8}, "--threshold must be at least 0, got -1e-08"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"momentum": 1.0}, r"--momentum must be in \[0, 1\), got 1.0"),
        ({"latent_limit": 0.0}, "--latent-limit must be above 0"),
        ({"units": 0}, "--units must be at least 1"),
        ({"pad": -1}, "--pad must be at least 0"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"resume": True}, "--run-dir must be given to --resume"),
    ],
)
def test_fields_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Experiment(), **change).check()


def test_every_preset_is_in_range():
    for _, config in PRESETS.values():
        config.check()


def test_a_loss_that_is_not_finite_names_its_step():
    train.check_finite(np.array([1.0, 2.0]), 0, 1)
    with pytest.raises(train.Stopped, match=r"The loss is nan at step 12 \(epoch 3\)"):
        train.check_finite(np.array([1.0, np.nan, np.inf]), 10, 3)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_epoch_is_a_bar_on_a_terminal_and_a_line_elsewhere(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    means = {"loss": 1.5, "train_accuracy": 0.5, "flip_ratio": {"all": 1e-3}}
    record = means | {"test_accuracy": 0.25, "images_per_second": 1234.5}
    with train.EpochBar(2, TINY, 10, 0) as bar:
        bar.show(means, 10)
        bar.show(record, 0)
    bar.report(record)
    out, err = capsys.readouterr()
    summary = "loss 1.500, train 50.00%, test 25.00%, flips 1.0e-03"
    assert out == ("" if terminal else f"epoch 2/30: {summary}, 1,234 images/s\n")
    assert err.rstrip().endswith(summary + "]") == terminal


# ---- Whole runs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Four epochs never stopped."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    return run_dir, run(*TINY_OPTIONS, "--epochs", 4, "--run-dir", run_dir)


def test_a_run_learns_and_leaves_everything_behind(whole):
    run_dir, process = whole
    assert process.returncode == 0, process.stderr
    *epochs, last = process.stdout.splitlines()
    assert [line.split(":")[0] for line in epochs] == [f"epoch {i}/4" for i in (1, 2, 3, 4)]
    result = json.loads(last)
    assert result["test_accuracy"] > 0.5  # chance is 0.1
    assert (result["preset"], result["epochs"]) == ("digits-bop", 4)
    assert result["binary_parameters"] == 72 + 576 + 1152 + 2304 + 2048 + 1024 + 320
    assert Path(result["run_dir"]) == run_dir
    assert result["seconds"] > 0

    config = json.loads((run_dir / "config.json").read_text())
    assert config["config"]["width"] == 8
    assert config["device"] == {"platform": "cpu", "kind": "cpu", "count": 1}
    assert config["versions"]["jax"] == jax.__version__

    records = metrics(run_dir)
    assert [r["epoch"] for r in records] == [1, 2, 3, 4]
    assert records[-1]["test_accuracy"] == result["test_accuracy"]
    assert records[-1]["loss"] < records[0]["loss"]
    for record in records:
        assert 0 < record["flip_ratio"]["all"] < 1
        assert -9 <= record["log_flip_ratio"]["denses/2"] < 0

    record = json.loads((run_dir / "result.json").read_text())
    assert record["result"]["test_accuracy"] == result["test_accuracy"]
    assert [m["epoch"] for m in record["metrics"]] == [1, 2, 3, 4]
    assert str(run_dir) not in json.dumps(record)

    binary = [name for name, w in weights(run_dir).items() if w.dtype == np.int8]
    assert len(binary) == 7
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(run_dir.glob("events.out.tfevents.*"))
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["177", "236"]


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
    run(*options, "--epochs", 4, "--resume", check=True)
    assert_same_run(tmp_path / "run", whole[0])
    ours, theirs = newest_checkpoint(tmp_path / "run"), newest_checkpoint(whole[0])
    assert sum("ema" in name for name in ours) == 7
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_bit_identical(whole, tmp_path, number):
    """Ctrl-C and SIGTERM save and say how to go on; SIGKILL leaves the last epoch's checkpoint."""
    options = (*TINY_OPTIONS, "--epochs", 4, "--run-dir", tmp_path / "run")
    process = start(*options)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/4")
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
        assert command[-2:] == [f"--run-dir={tmp_path / 'run'}", "--resume"]
    resumed = run(*command[1:])
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no-such-preset"], "unknown preset 'no-such-preset': choose from digits-bop, cifar10"),
        (["--batch-size", -8], "--batch-size must be at least 1, got -8"),
        (["--batch-size", 1440], "--batch-size must be at most the 1437 training images, got 1440"),
        (["--stages", 4], "stages=4 poolings leave nothing of images of 8×8"),
        (["cifar10-bop", "--data-dir", "/nowhere"], "cifar10 is not prepared in /nowhere"),
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


def test_batch_must_divide_among_the_devices(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="--batch-size must be a multiple of the 8 devices, got 9"):
        main(monkeypatch, "--batch-size", 9, "--run-dir", tmp_path / "run")


def test_a_folder_with_another_run_is_left_alone(whole, monkeypatch):
    before = sorted(p.stat().st_mtime_ns for p in whole[0].rglob("*"))
    with pytest.raises(SystemExit, match="is not empty: go on with that run by --resume"):
        main(monkeypatch, *TINY_OPTIONS, "--run-dir", whole[0])
    with pytest.raises(SystemExit, match=r"was run with seed=0 \(now 1\)"):
        main(monkeypatch, *TINY_OPTIONS, "--seed", 1, "--run-dir", whole[0], "--resume")
    with pytest.raises(SystemExit, match="has done 4 epochs already, --epochs asks for 3"):
        main(monkeypatch, *TINY_OPTIONS, "--epochs", 3, "--run-dir", whole[0], "--resume")
    assert sorted(p.stat().st_mtime_ns for p in whole[0].rglob("*")) == before


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), "lacks records of the 4 epochs"),
        (
            lambda run: (run / "metrics.jsonl").write_text("{\n" * 4),
            "lacks records of the 4 epochs",
        ),
        (lambda run: (run / "config.json").write_text("{"), "holds no run to resume"),
        (lambda run: (run / "config.json").write_text('{"config": 1}'), "holds no run to resume"),
        (
            lambda run: shutil.rmtree(run / "checkpoints/236/default"),
            "checkpoints/236 is damaged .* delete that folder",
        ),
    ],
)
def test_damaged_runs_do_not_resume(copied, monkeypatch, damage, message):
    damage(copied)
    with pytest.raises(SystemExit, match=message):
        main(monkeypatch, *TINY_OPTIONS, "--epochs", 5, "--run-dir", copied, "--resume")


def test_a_resumed_run_keeps_what_it_was_begun_with(whole, copied, monkeypatch, capsys):
    main(monkeypatch, *TINY_OPTIONS, "--epochs", 5, "--run-dir", copied, "--resume")
    begun = json.loads((whole[0] / "config.json").read_text())
    config = json.loads((copied / "config.json").read_text())
    assert config["config"] == begun["config"] | {"epochs": 5}
    assert (config["device"]["count"], config["resumed"][0]["device"]["count"]) == (1, 8)
    assert [m["epoch"] for m in metrics(copied)] == [1, 2, 3, 4, 5]
    assert metrics(copied)[:4] == metrics(whole[0])


def test_only_one_process_writes_to_a_run(copied, monkeypatch):
    with (copied / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another process is writing to"):
            main(monkeypatch, *TINY_OPTIONS, "--epochs", 5, "--run-dir", copied, "--resume")


def test_two_runs_of_the_same_second_have_their_own_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    folders = []
    for _ in range(3):
        with Run(TINY, "digits-bop") as run:
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


def test_help_explains_every_field(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        main(monkeypatch, "cifar10-bop", "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Experiment):
        assert "--" + field.name.replace("_", "-") in text
    for preset in PRESETS:
        assert preset in text


@pytest.mark.skipif(not REAL.exists(), reason=f"no prepared CIFAR-10 in {REAL}")
def test_real_cifar10_a_few_hundred_images(monkeypatch, tmp_path, capsys):
    data = datasets.load("cifar10", REAL)
    few = dataclasses.replace(
        data,
        train_images=data.train_images[:400],
        train_labels=data.train_labels[:400],
        test_images=data.test_images[:100],
        test_labels=data.test_labels[:100],
    )
    monkeypatch.setattr(datasets, "load", lambda *_: few)
    options = ("--width", 8, "--units", 32, "--batch-size", 80, "--epochs", 6)
    main(monkeypatch, "cifar10-bop-sweep", *options, "--run-dir", tmp_path / "run")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["binary_parameters"] > 0
    records = metrics(tmp_path / "run")
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["train_accuracy"] > 0.2  # chance is 0.1
