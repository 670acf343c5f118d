"""train.py: its steps, one by one, against their parts."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import train
from bop_optax import flip_ratio, log_flip_ratio
from bop_optax.models.binarynet import BinaryNet
from experiments.presets import PRESETS
from training import network as networks
from training.config import Bop, Experiment, LatentAdam, LatentSGD, Schedule
from training.data import Batch
from training.data.augment import augment, scale
from training.data.memory import Dataset, digits, epoch_batches
from training.devices import device_mesh, replicated
from training.interrupt import Stopped

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
DIGITS = PRESETS["digits-bop"][1]
TINY = replace(DIGITS, model=replace(DIGITS.model, width=8, units=32), batch_size=24)


class Steps(SimpleNamespace):
    """An experiment's compiled step, and what it is compiled from."""

    network: networks.Network
    source: Any
    step: Any
    experiment: Experiment

    def first(self) -> networks.TrainState:
        optimizer = train.make_optimizer(
            self.experiment, self.network.labels, self.source.steps_per_epoch
        )
        state = networks.first_state(self.network, optimizer, self.experiment.seed)
        return jax.device_put(state, replicated(self.mesh))

    def run(self, state, number: int, first: int = 0):
        """Some training steps: the state after them, the losses."""
        key, losses = jax.random.key(self.experiment.seed), []
        for _, batch in zip(
            range(number), self.source.training(self.experiment.seed, first), strict=False
        ):
            state, extremes = self.step(state, batch, key, {})
            losses.append(
                np.asarray(extremes.loss)
            )  # one at a time, as InMemory on several devices
        return state, np.array(losses)


def build(experiment: Experiment, data: Any, devices=None) -> Steps:
    mesh = device_mesh(devices)
    source = data.batches(experiment.batch_size, mesh)
    network = networks.make_network(experiment, data)
    step = networks.compile_steps(
        train.make_train_step(experiment, network, source), source.stacked
    )
    return Steps(mesh=mesh, source=source, network=network, step=step, experiment=experiment)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits()


@pytest.fixture(scope="module")
def one_epoch(data):
    """Eight devices, one epoch: the state before, the state after, the losses."""
    steps = build(TINY, data)
    state = steps.first()
    before = jax.tree.map(np.array, state)
    after, losses = steps.run(state, steps.source.steps_per_epoch)
    return steps, before, after, losses


def test_one_step_by_hand(data, one_epoch):
    """The compiled, sharded first step equals the gradient step written out with nnx."""
    _, before, _, losses = one_epoch
    indices = epoch_batches(0, 1, data.num_train, 24)[0]
    model = BinaryNet(
        8, 32, image_shape=(8, 8, 1), stages=2, first_padding="SAME", rngs=nnx.Rngs(0)
    )
    key = jax.random.fold_in(jax.random.key(0), 0)
    x = scale(augment(key, jnp.asarray(data.train_images[indices]), 1, False))
    y = data.train_labels[indices]
    loss = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
    np.testing.assert_allclose(losses[0], loss, rtol=1e-4)
    for ours, theirs in zip(
        jax.tree.leaves(before.params), jax.tree.leaves(nnx.state(model, nnx.Param)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_an_epoch_learns_flips_binary_weights_and_moves_real_ones(one_epoch):
    steps, before, after, losses = one_epoch
    labels = steps.network.labels
    assert losses.shape == (1437 // 24,)
    assert losses[-5:].mean() < losses[:5].mean()
    for layer, kernel in networks.binary_layers(after.params, labels).items():
        assert set(np.unique(kernel[...])) == {-1, 1}, layer
    flipped = flip_ratio(before.params, after.params, labels=labels)
    assert 0 < flipped < 0.5
    assert not np.array_equal(before.params["norms"][0]["bias"], after.params["norms"][0]["bias"])


def test_the_sums_of_an_epoch_start_at_0(one_epoch):
    steps, _, after, losses = one_epoch
    np.testing.assert_allclose(after.sums["loss"], losses.sum(), rtol=1e-5)
    state, losses = steps.run(jax.tree.map(jnp.copy, after), 1, len(losses))
    assert state.sums["loss"] == losses[0]


def test_the_means_of_an_epoch(one_epoch):
    _, _, after, losses = one_epoch
    means = networks.epoch_means(after.sums, len(losses), 24)
    assert means["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert means["train_accuracy"] == int(after.sums["correct"]) / (59 * 24)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), after.sums)
    both = networks.epoch_means(stacked, len(losses), 24)
    assert both["loss"] == pytest.approx([means["loss"], 2 * means["loss"]])


def test_flip_metrics_are_of_each_layer_and_of_all(one_epoch):
    steps, before, after, _ = one_epoch
    labels = steps.network.labels
    result = networks.flip_metrics(before.params, after.params, labels)
    layers = ["convs/0", "convs/1", "convs/2", "convs/3", "denses/0", "denses/1", "denses/2"]
    assert list(result["flip_ratio"]) == [*layers, "all"]
    updates = jax.tree.map(lambda a, b: np.asarray(b) - a, before.params, after.params)
    assert result["flip_ratio"]["all"] == flip_ratio(updates, labels=labels)
    last = updates["denses"][2]["kernel"]
    assert result["log_flip_ratio"]["denses/2"] == log_flip_ratio(last)


@pytest.mark.parametrize(
    "optimizer",
    [
        LatentAdam(Schedule(1e-3), latent_scale=0.5),
        LatentSGD(Schedule(1e-3), momentum=0.9, latent_scale=0.5),
    ],
    ids=["adam", "sgd"],
)
def test_latent_weights_learn_and_their_signs_flip(data, optimizer):
    steps = build(replace(TINY, optimizer=optimizer), data)
    state, labels = steps.first(), steps.network.labels
    before = jax.tree.map(np.array, state.params)
    state, losses = steps.run(state, steps.source.steps_per_epoch)
    assert losses[-5:].mean() < losses[:5].mean()
    kernels = [k[...] for k in networks.binary_layers(state.params, labels).values()]
    assert len(kernels) == 7
    assert all(np.abs(k).max() <= 1 + 1e-6 for k in kernels)
    assert len(np.unique(kernels[1])) > 2
    assert 0 < flip_ratio(before, state.params, labels=labels) < 0.5
    assert state.sums["flip_ratio"]["all"] > 0


SMALL = pytest.param(8, marks=pytest.mark.slow)


@pytest.mark.parametrize("batch_size", [SMALL, 24, 104, 360, 400])
def test_every_test_image_counts_exactly_once(data, one_epoch, batch_size):
    steps, _, state, _ = one_epoch
    state = steps.network.eval_state(state)
    logits = nnx.merge(steps.network.eval_graph, state)(scale(jnp.asarray(data.test_images)))
    source = data.batches(batch_size, steps.mesh)
    count = jax.jit(train.make_count_correct(steps.network))
    top1, top5 = train.evaluate(count, state, source.evaluation())
    ranks = np.argsort(-np.asarray(logits), -1, kind="stable")
    assert top1 == np.mean(ranks[:, 0] == data.test_labels)
    assert top5 == np.mean(np.any(ranks[:, :5] == data.test_labels[:, None], -1))
    assert top1 < top5 < 1
    later = train.evaluate(count, state, source.evaluation(), source.in_flight)
    np.testing.assert_array_equal(later, [top1, top5])


def test_masked_images_count_neither_in_the_loss_nor_in_the_accuracy(data, one_epoch):
    steps, before, *_ = one_epoch
    step = jax.jit(train.make_train_step(TINY, steps.network, steps.source))
    images, labels = jnp.asarray(data.train_images[:24]), jnp.asarray(data.train_labels[:24])
    mask = jnp.arange(24) < 16
    state = jax.tree.map(jnp.asarray, before)
    losses, correct = [], []
    for wrong in (0, 1):  # the label of a masked image changes nothing
        other = jnp.where(mask, labels, (labels + wrong) % 10)
        after, extremes = step(state, Batch(images, other, mask), jax.random.key(0), {})
        losses.append(float(extremes.loss))
        correct.append(int(after.sums["correct"]))
    assert losses[0] == losses[1]
    assert correct[0] == correct[1] <= 16
    _, whole = step(state, Batch(images, labels, mask | True), jax.random.key(0), {})
    assert float(whole.loss) != losses[0]


def test_a_limited_number_of_evaluation_batches_is_in_flight(monkeypatch):
    """Before a batch is dispatched, all but the newest `in_flight` − 1 are done."""
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", lambda counts: waited.append(int(counts[0][0])))
    batches = [Batch(np.zeros(1), np.zeros(1), np.ones(1, bool)) for _ in range(5)]
    numbers = iter(range(5))
    results = train.evaluate(lambda *_: jnp.full(2, next(numbers)), None, batches, 3)
    assert waited == [0, 1, 2]
    np.testing.assert_array_equal(results, [2, 2])


def test_no_evaluation_image():
    batch = Batch(np.zeros((8, 8, 8, 1), np.uint8), np.zeros(8, np.int32), np.zeros(8, bool))
    with pytest.raises(Stopped, match="No evaluation image could be decoded"):
        train.evaluate(lambda *_: jnp.zeros(2, jnp.int32), None, [batch])


def test_one_device_and_eight_agree(data):
    """The same step on one device and on eight: losses to rounding, flips all but a few."""
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        steps = build(TINY, data, devices)
        results.append(steps.run(steps.first(), 2))
    (one, losses), (eight, losses_8) = results
    assert len(eight.params["denses"][0]["kernel"].sharding.device_set) == 8
    np.testing.assert_allclose(losses, losses_8, rtol=1e-4)
    ones, eights = (jax.tree.map(np.asarray, s.params) for s in (one, eight))
    assert flip_ratio(ones, eights, labels=steps.network.labels) < 1e-3


def test_the_scan_of_accelerators_equals_steps_one_by_one(data, one_epoch, monkeypatch):
    _, before, _, losses = one_epoch
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    steps = build(TINY, data)
    assert steps.source.stacked
    batch = next(steps.source.training(0))
    three = jax.tree.map(lambda x: x[:3], batch)
    state = jax.tree.map(jnp.asarray, before)
    state, scanned = steps.step(state, three, jax.random.key(0), {})
    assert state.step == 3
    np.testing.assert_allclose(scanned.loss, losses[:3], rtol=1e-3)


def test_first_values_of_hyperparameters_can_be_arguments_of_the_step(data, one_epoch):
    """γ = 1 and τ = 0 as traced arguments are those of the configuration."""
    steps, before, *_ = one_epoch
    batch = next(steps.source.training(0))
    step = jax.jit(train.make_train_step(TINY, steps.network, steps.source))
    traced, _ = step(
        jax.tree.map(jnp.asarray, before),
        batch,
        jax.random.key(0),
        {"gamma": 1.0, "threshold": 0.0},
    )
    given = replace(TINY, optimizer=Bop(Schedule(1.0, factor=0.1, every=15), Schedule(0.0)))
    step = jax.jit(train.make_train_step(given, steps.network, steps.source))
    fixed, _ = step(jax.tree.map(jnp.asarray, before), batch, jax.random.key(0), {})
    for ours, theirs in zip(
        jax.tree.leaves(traced.params), jax.tree.leaves(fixed.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert flip_ratio(before.params, fixed.params, labels=steps.network.labels) > 0.2


def test_gamma_decays_in_stairs(data):
    rule = Bop(Schedule(1e-2, factor=0.1, every=2), Schedule(1e-7))
    steps = build(replace(TINY, optimizer=rule), data)
    spe, labels = steps.source.steps_per_epoch, steps.network.labels
    params, _ = steps.network.draw(0)
    optimizer = train.make_optimizer(steps.experiment, labels, spe)
    grads = jax.tree.map(jnp.ones_like, params)
    for epoch, gamma in ((1, 1e-2), (2, 1e-3), (3, 1e-3)):
        count = jnp.asarray(epoch * spe)
        opt_state = jax.tree_util.tree_map_with_path(
            lambda path, x, count=count: count.astype(x.dtype) if "count" in str(path) else x,
            optimizer.init(params),
        )
        _, new = optimizer.update(grads, opt_state, params)
        ema = optax.tree.get(new, "ema")["convs"][0]["kernel"]
        np.testing.assert_allclose(jax.tree.leaves(ema)[0].ravel()[0], gamma, rtol=1e-5)
        values = steps.experiment.hyperparameters(epoch * spe, spe)
        assert values == pytest.approx({"gamma": gamma, "threshold": 1e-7, "learning_rate": 0.01})


def test_a_step_that_is_skipped_changes_nothing(data, one_epoch):
    """NaN parameters make gradients NaN; the sums of the epoch before are dropped all the same."""
    *_, after, _ = one_epoch
    steps = build(replace(TINY, nonfinite="skip"), data)
    batch = next(steps.source.training(0))
    step = jax.jit(train.make_train_step(steps.experiment, steps.network, steps.source))
    sound = jax.tree.map(jnp.asarray, after)
    same, seen = step(sound, batch, jax.random.key(0), {})
    assert seen.are_finite()
    assert (same.sums["skipped"], same.step) == (0, sound.step + 1)
    bad_params = jax.tree.map(lambda x: x * jnp.nan if x.ndim == 1 else x, sound.params)
    bad = sound._replace(params=bad_params)
    kept, seen = step(bad, batch, jax.random.key(0), {})
    assert not seen.are_finite()
    assert (kept.sums["skipped"], kept.sums["correct"], kept.step) == (1, 0, sound.step + 1)
    for name in ("params", "batch_stats", "opt_state"):
        ours, theirs = jax.tree.leaves(getattr(kept, name)), jax.tree.leaves(getattr(bad, name))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


RARER = ("Bop2ndOrder", "Cema", "Bold", "ProbBop", "threshold decay")
VARIANTS = [
    "BopLayerwise",
    *(pytest.param(v, marks=pytest.mark.slow) for v in RARER),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_a_network(variant, data):
    from training.config import Bold, Bop2ndOrder, BopLayerwise, Cema, ProbBop

    stairs = Schedule(1e-3, factor=0.1, every=2)
    optimizer = {
        "BopLayerwise": BopLayerwise(stairs, Schedule(0.3)),
        "Bop2ndOrder": Bop2ndOrder(stairs, Schedule(1e-3)),
        "Cema": Cema(),
        "Bold": Bold(),
        "ProbBop": ProbBop(stairs, Schedule(1e-7)),
        "threshold decay": Bop(Schedule(1e-2, factor=0.1, every=2), Schedule(1e-6, end=1e-8)),
    }[variant]
    model = replace(TINY.model, width=4, units=16, stages=1, first_padding="VALID")
    experiment = replace(
        TINY, model=model, optimizer=optimizer, batch_size=64, pad=1, flip=False, epochs=2
    )
    steps = build(experiment, data)
    state, labels = steps.first(), steps.network.labels
    before = jax.tree.map(jnp.copy, state.params)
    state, losses = steps.run(state, 40)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    for layer, kernel in networks.binary_layers(state.params, labels).items():
        assert set(np.unique(kernel[...])) == {-1, 1}, layer
    assert flip_ratio(before, state.params, labels=labels) > 0
