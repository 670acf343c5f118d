"""Configurations: which transform trains what, by which schedules; ranges; JSON."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bop_optax import (
    BoldState,
    Bop2ndOrderState,
    BopState,
    CemaState,
    ProbBopState,
    models,
    ste_sign,
)
from bop_optax.models import QuickNetLarge, QuickNetSmall
from experiments.presets import PRESETS
from train import make_optimizer
from training.config import (
    Adam,
    Arrays,
    BinaryAlexNet,
    BinaryNet,
    BiRealNet,
    Bold,
    Bop,
    Bop2ndOrder,
    BopLayerwise,
    Cema,
    Cifar10,
    Digits,
    Experiment,
    ImageNet,
    LatentAdam,
    LatentSGD,
    ProbBop,
    QuickNet,
    ReActNet,
    RunConfig,
    Schedule,
    XNORNet,
    from_json,
    to_json,
)

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
LABELS = {"kernel": "binary", "dense": "real", "bias": "real"}
PARAMS = {"kernel": jnp.ones((2, 3)), "dense": jnp.full((3, 2), 0.5), "bias": jnp.ones(2)}
RULES = [Bop, BopLayerwise, Bop2ndOrder, ProbBop, Cema]
LINEAR = Schedule(0.5, end=0.25)
STAIRS = Schedule(0.5, factor=0.5, every=1)


def optimizer_of(**parts) -> optax.GradientTransformationExtraArgs:
    return make_optimizer(Experiment(epochs=4, **parts), LABELS, 10)


def updated(rule, step: int):
    """The updates and the kernels' state after a step, the first at which gradients are seen."""
    optimizer = optimizer_of(optimizer=rule)
    state = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(step, x.dtype) if "count" in str(path[-1]) else x,
        optimizer.init(PARAMS),
    )
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    return updates, state.inner_states["binary"].inner_state


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("step", "gamma"), [(0, 0.5), (20, 0.375), (40, 0.25), (99, 0.25)])
def test_gamma_falls_linearly_to_its_end(rule, step, gamma):
    _, state = updated(rule(gamma=LINEAR), step)
    assert isinstance(state, BopState | Bop2ndOrderState | CemaState | ProbBopState)
    np.testing.assert_allclose(state.ema["kernel"], gamma, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_stairs_of_gamma_are_optax(rule):
    schedule = optax.exponential_decay(0.5, 10, 0.5, staircase=True)
    for step in (0, 9, 10, 39):
        _, state = updated(rule(gamma=STAIRS), step)
        np.testing.assert_allclose(state.ema["kernel"], schedule(step), rtol=1e-6)


@pytest.mark.parametrize(("step", "flips"), [(0, False), (19, False), (21, True), (40, True)])
def test_the_threshold_falls_linearly_to_its_end(step, flips):
    """From 1 to 0 over 40 steps: an average of 0.5 passes it halfway."""
    updates, _ = updated(Bop(Schedule(0.5), Schedule(1.0, end=0.0)), step)
    assert np.all(updates["kernel"] == (-2 if flips else 0))


def test_sigma_rises_linearly_to_its_end():
    for step, sigma in ((0, 0.25), (20, 0.5), (40, 0.75)):
        _, state = updated(Bop2ndOrder(sigma=Schedule(0.25, end=0.75)), step)
        assert isinstance(state, Bop2ndOrderState)
        np.testing.assert_allclose(state.ema_sq["kernel"], sigma, rtol=1e-6)


def test_alpha_falls_linearly_to_0():
    for step, alpha in ((0, 0.5), (20, 0.25), (40, 0.0)):
        _, state = updated(Cema(Schedule(1.0), Schedule(0.5, end=0.0)), step)
        assert isinstance(state, CemaState)
        np.testing.assert_allclose(state.ema_of_ema["kernel"], alpha, rtol=1e-6)


def test_eta_falls_linearly_to_0():
    """The gradients are 1, and sums below 1 flip nothing."""
    for step, eta in ((20, 0.5), (30, 0.25), (40, 0.0)):
        _, state = updated(Bold(Schedule(1.0, end=0.0)), step)
        assert isinstance(state, BoldState)
        np.testing.assert_allclose(state.accumulator["kernel"], eta, rtol=1e-6)


def test_the_band_narrows_in_each_epoch():
    """Averages of 1.2 thresholds: in the band 0.75 to 1.33 at first, above 0.94 to 1.07 later."""
    for step, flips in ((0, range(1, 6)), (9, range(1, 6)), (20, [6])):
        updates, _ = updated(ProbBop(Schedule(1.0), Schedule(1 / 1.2)), step)
        assert np.sum(updates["kernel"] == -2) in flips


def test_adams_rate_falls_linearly_to_its_end():
    """After a first gradient Adam makes a step as large as its rate."""
    optimizer = optimizer_of(real=Adam(LINEAR))
    state, grads = optimizer.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    for step in range(45):
        updates, state = optimizer.update(grads, state, PARAMS)
        rate = 0.5 - 0.25 * min(step, 40) / 40
        np.testing.assert_allclose(updates["bias"], -rate, rtol=1e-4)


@pytest.mark.parametrize("latent", [LatentAdam, LatentSGD])
@pytest.mark.parametrize(
    ("rate", "schedule"),
    [
        (LINEAR, optax.linear_schedule(0.5, 0.25, 40)),
        (STAIRS, optax.exponential_decay(0.5, 10, 0.5, staircase=True)),
    ],
    ids=["linear", "stairs"],
)
def test_the_schedules_of_the_latent_rate_are_optax(latent, rate, schedule):
    """If gradients are always 1, Adam and SGD make steps as large as their rate."""
    optimizer = optimizer_of(optimizer=latent(rate, glorot_scaling=False, latent_limit=9.0))
    state, grads = optimizer.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    for step in range(45):
        updates, state = optimizer.update(grads, state, PARAMS)
        np.testing.assert_allclose(updates["kernel"], -schedule(step), rtol=1e-4)


def test_the_penalty_is_of_real_kernels_alone():
    """As if the loss had l2 · Σ w²: its gradient, 2 · l2 · w, outweighs a gradient of −1."""
    grads = jax.tree.map(lambda w: -jnp.ones_like(w), PARAMS)
    for l2, sign in ((0.9, 1), (1.1, -1)):  # the dense kernel is 0.5
        optimizer = optimizer_of(real=Adam(l2=l2))
        updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
        assert np.all(np.sign(updates["dense"]) == sign)
        assert np.all(np.sign(updates["bias"]) == 1)


def test_epochs_can_not_be_added_if_a_schedule_ends_with_them():
    assert not PRESETS["cifar10-bop"][1].depends_on_epochs
    for name in ("imagenet-birealnet-bop", "cifar10-bop-threshold-decay", "cifar10-bop-2nd-order"):
        assert PRESETS[name][1].depends_on_epochs
    assert Experiment(optimizer=Cema()).depends_on_epochs
    assert Experiment(optimizer=Bold()).depends_on_epochs
    assert Experiment(optimizer=LatentAdam(Schedule(1e-3, end=0.0))).depends_on_epochs
    assert Experiment(real=Adam(Schedule(1e-3, end=0.0))).depends_on_epochs


def rates(make, name):
    return [
        (lambda: make(**{name: Schedule(0.0)}), rf"--{name} must be in \(0, 1\], got 0.0"),
        (lambda: make(**{name: Schedule(float("nan"))}), rf"--{name} must be in \(0, 1\], got nan"),
        (lambda: make(**{name: Schedule(2.0)}), rf"--{name} must be in \(0, 1\], got 2.0"),
        (
            lambda: make(**{name: Schedule(0.5, end=-1.0)}),
            rf"--{name} must be in \[0, 1\] at its end, got 0.5:-1.0",
        ),
    ]


OUT_OF_RANGE = [
    *(case for rule in RULES for case in rates(rule, "gamma")),
    *rates(Bop2ndOrder, "sigma"),
    *rates(Cema, "alpha"),
    *rates(ProbBop, "alpha"),
    (lambda: Bold(Schedule(0.0)), "--eta must be above 0 and finite, got 0.0"),
    (lambda: Bold(Schedule(1.0, end=-1.0)), "--eta must be at least 0 and finite at its end"),
    *(
        case
        for rule in RULES[:4]
        for case in (
            (
                lambda rule=rule: rule(threshold=Schedule(-1e-8)),
                "--threshold must be at least 0, got -1e-08",
            ),
            (
                lambda rule=rule: rule(threshold=Schedule(1.0, end=-1e-9)),
                "--threshold must be at least 0 at its end",
            ),
            (
                lambda rule=rule: rule(threshold=Schedule(float("inf"), end=0.0)),
                "--threshold must be finite if it changes",
            ),
        )
    ),
    (lambda: Adam(Schedule(0.0)), "--learning-rate must be above 0"),
    (
        lambda: Adam(Schedule(1.0, end=float("inf"))),
        "--learning-rate must be at least 0 and finite",
    ),
    (lambda: Adam(l2=-1.0), "--l2 must be at least 0"),
    (lambda: Adam(l2=float("inf")), "--l2 must be at least 0 and finite, got inf"),
    (
        lambda: LatentAdam(Schedule(float("inf"))),
        "--latent-learning-rate must be above 0 and finite, got inf",
    ),
    (
        lambda: LatentSGD(Schedule(1.0, end=-1.0)),
        "--latent-learning-rate must be at least 0 and finite at its end",
    ),
    (lambda: LatentSGD(momentum=1.0), r"--momentum must be in \[0, 1\), got 1.0"),
    (lambda: LatentAdam(b1=1.0), r"--b1 must be in \[0, 1\), got 1.0"),
    (lambda: LatentAdam(latent_limit=0.0), "--latent-limit must be above 0"),
    (
        lambda: LatentSGD(latent_scale=float("inf")),
        "--latent-scale must be above 0 and finite, got inf",
    ),
    (lambda: BinaryNet(width=0), "--width must be at least 1"),
    (lambda: BinaryNet(units=0), "--units must be at least 1"),
    (lambda: BinaryNet(stages=0), "--stages must be at least 1"),
    (lambda: BiRealNet(width=0), "--width must be at least 1"),
    (lambda: BinaryAlexNet(units=0), "--units must be at least 1"),
    (lambda: ReActNet(width=0), "--width must be at least 1, got 0"),
    (lambda: XNORNet(width=-1), "--width must be at least 1, got -1"),
    (lambda: ImageNet(workers=-1), "--workers must be at least 0, got -1"),
    (lambda: Experiment(batch_size=-1), "--batch-size must be at least 1, got -1"),
    (lambda: Experiment(epochs=0), "--epochs must be at least 1, got 0"),
    (lambda: Experiment(pad=-1), "--pad must be at least 0"),
    (lambda: Experiment(seed=-1), "--seed must be from 0"),
    (lambda: RunConfig(resume=True), "--run-dir must be given with --resume"),
    (lambda: RunConfig(checkpoint_epochs=0), "--checkpoint-epochs must be at least 1"),
    (lambda: RunConfig(keep=0), "--keep must be at least 1"),
]


@pytest.mark.parametrize(("make", "message"), OUT_OF_RANGE, ids=[m for _, m in OUT_OF_RANGE])
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_and_texts_are_schedules():
    assert Bop(1e-3, "1e-6:1e-8") == Bop(Schedule(1e-3), Schedule(1e-6, end=1e-8))
    assert LatentAdam(1) == LatentAdam(Schedule(1.0))
    with pytest.raises(ValueError, match=r"--gamma must be in \(0, 1\], got 2.0"):
        Bop(2)
    with pytest.raises(ValueError, match="'fast' is none of VALUE"):
        Adam("fast")


def test_an_infinite_threshold_never_flips():
    updates, _ = updated(Bop(Schedule(0.5), Schedule(float("inf"))), 0)
    assert not np.any(updates["kernel"])


@pytest.mark.parametrize("name", PRESETS)
def test_json_keeps_every_preset(name):
    experiment = PRESETS[name][1]
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


@pytest.mark.parametrize(
    "change",
    [
        {"data": Arrays(Path("/some/where.npz"), held_out=3)},
        {"data": ImageNet(Path("/data"), workers=0, bad_images="skip")},
        {"data": Cifar10(Path("/data"))},
        {"teacher": Path("/runs/wide")},
        {"model": XNORNet(), "optimizer": Bop2ndOrder(unbiased=True)},
        {"model": QuickNet("large")},
        {"model": ReActNet(width=16), "optimizer": Cema()},
        {"model": BinaryAlexNet(), "optimizer": LatentSGD(Schedule(1.0, end=0.5), momentum=0.9)},
        {"optimizer": Bop(Schedule(0.1), Schedule(float("inf")))},
        {"optimizer": Bold(Schedule(1e4))},
        {"optimizer": ProbBop(Schedule(0.1), alpha=Schedule(0.9))},
    ],
)
def test_json_keeps_every_option(change):
    experiment = replace(Experiment(), **change)
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


@pytest.mark.parametrize(
    ("variant", "network"),
    [("small", QuickNetSmall), ("medium", models.QuickNet), ("large", QuickNetLarge)],
)
def test_variants_of_quicknet(variant, network):
    build = partial(QuickNet(variant).build, (32, 32, 3), 10)
    model = nnx.eval_shape(lambda: build(kernel_quantizer=ste_sign, rngs=nnx.Rngs(0)))
    assert type(model) is network
    assert model.head.out_features == 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"type": "Digits"}, ValueError, "Digits is none of Experiment"),
        ({"data": {"type": "Bop"}}, ValueError, "Bop is none of Digits, Cifar10, Arrays"),
        ({"warmup": 3}, TypeError, "warmup"),
        ({"epochs": 0}, ValueError, "--epochs must be at least 1"),
        ({"real": {"type": "Adam", "learning_rate": "fast"}}, ValueError, "'fast' is none of"),
    ],
)
def test_json_of_another_version(change, error, message):
    with pytest.raises(error, match=message):
        from_json(to_json(Experiment(data=Digits())) | change)
