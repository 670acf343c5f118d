"""train.py: its steps, one by one, against their parts."""

import dataclasses
import sys
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
from runs import load_weights, save_weights

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
TINY = dataclasses.replace(PRESETS["digits-bop"][1], width=8, units=32, batch_size=24)


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    with np.load(run_dir / "weights.npz") as stored:
        return {name: stored[name] for name in stored.files}


def train_steps(program, config):
    return train.make_train_steps(program, train.make_train_step(program, config))


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
    after, losses = train_steps(program, TINY)(state, data, batches)
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
    state, losses = train_steps(program, TINY)(copy, data, batch)
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
    state, losses = train_steps(program, config)(state, data, batches)
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
    logits = model(datasets.scale(jnp.asarray(digits.test_images)))
    data = (jnp.asarray(digits.test_images), jnp.asarray(digits.test_labels))
    images = train.every_image(data, batch_size, program.mesh)
    top1, top5 = train.make_evaluate(program)(state, images)
    ranks = np.argsort(-np.asarray(logits), -1, kind="stable")
    assert top1 == np.mean(ranks[:, 0] == digits.test_labels)
    assert top5 == np.mean(np.any(ranks[:, :5] == digits.test_labels[:, None], -1))
    assert top1 < top5 < 1


def test_one_device_and_eight_agree(digits):
    """The same step on one device and on eight: losses to rounding, flips all but a few."""
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        program, state = train.build(TINY, digits, devices)
        data = (digits.train_images, digits.train_labels)
        batches = train.epoch_batches(TINY, len(digits.train_images), 1)[:2]
        results.append(train_steps(program, TINY)(state, data, batches))
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
    state, scanned = train_steps(program, TINY)(state, data, batches)
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
    optimizer = train.make_optimizer(config, program.labels, program.steps_per_epoch)
    grads = jax.tree.map(jnp.ones_like, state.params)
    for epoch, gamma in ((1, 1e-2), (2, 1e-3), (3, 1e-3)):
        count = jnp.asarray(epoch * program.steps_per_epoch)
        opt_state = jax.tree_util.tree_map_with_path(
            lambda path, x, count=count: count.astype(x.dtype) if "count" in str(path) else x,
            optimizer.init(state.params),
        )
        _, new = optimizer.update(grads, opt_state, state.params)
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
    with pytest.raises(train.Stopped, match="The loss of network 2 is inf at step 1 "):
        train.check_finite(np.array([[1.0, np.inf]]), 0, 1)


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
