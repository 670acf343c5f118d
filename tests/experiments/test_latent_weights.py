"""Section 3: a network evaluated with its latent weights, and with new batch statistics."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import train
from bop_optax import ste_sign
from bop_optax.layers import BinaryLinear
from experiments import latent_weights
from experiments.presets import PRESETS
from training.config import BinaryNet, Digits, ImageNet, LatentAdam, RunConfig, Schedule, to_json
from training.data.augment import scale
from training.data.memory import digits
from training.records import sealed, write_json

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
SEED = Path(latent_weights.__file__).with_name("results") / "runs" / "digits-bop" / "seed0.json"
DATA = digits()


class Small(nnx.Module):
    """Two layers, the second on binary activations, that see images as rows of pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = BinaryLinear(64, 16, kernel_quantizer=ste_sign, rngs=rngs)
        self.norm = nnx.BatchNorm(16, use_scale=False, rngs=rngs)
        options = {"input_quantizer": ste_sign, "kernel_quantizer": ste_sign}
        self.second = BinaryLinear(16, 10, **options, rngs=rngs)

    def __call__(self, images):
        x = images.reshape(len(images), -1)
        return self.second(self.norm(self.first(x)))


@pytest.fixture
def model() -> Small:
    model = Small(nnx.Rngs(0))
    model.eval()
    return model


def hidden(images: np.ndarray, model: Small, quantize) -> np.ndarray:
    """The first layer's sums in NumPy; its kernel as `quantize` leaves it."""
    x = images.reshape(len(images), -1) / np.float64(127.5) - 1
    return x @ quantize(np.float64(model.first.kernel[...]))


def expected(images: np.ndarray, model: Small, quantize) -> np.ndarray:
    """The network in NumPy; activations binary, kernels as `quantize` leaves them."""
    x = np.where(hidden(images, model, quantize) >= 0, 1.0, -1.0)
    return x @ quantize(np.float64(model.second.kernel[...]))


def first(number: int):
    """The digits with their first training images alone."""
    images, labels = DATA.train_images[:number], DATA.train_labels[:number]
    return replace(DATA, train_images=images, train_labels=labels)


def clear_images(model: Small, quantize) -> np.ndarray:
    """Images that bring no sum of the first layer near 0, so that rounding turns no sign."""
    return DATA.test_images[are_clear(model, quantize)]


def are_clear(model: Small, quantize) -> np.ndarray:
    return np.abs(hidden(DATA.test_images, model, quantize)).min(1) > 1e-3


def test_with_latent_weights(model):
    real = latent_weights.with_latent_weights(model)
    for network, quantize, atol in ((real, lambda w: w, 1e-5), (model, np.sign, 1e-4)):
        images = clear_images(model, quantize)[:50]
        assert len(images) == 50
        logits = network(scale(jnp.asarray(images)))
        np.testing.assert_allclose(logits, expected(images, model, quantize), atol=atol)


def test_with_new_statistics(model):
    """Means over the batches of each batch's mean and variance; an incomplete batch is dropped."""
    updated = latent_weights.with_new_statistics(model, first(110), 50)
    sums = hidden(DATA.train_images[:100], model, np.sign).reshape(2, 50, 16)
    np.testing.assert_allclose(updated.norm.mean[...], sums.mean(1).mean(0), atol=1e-4)
    np.testing.assert_allclose(updated.norm.var[...], sums.var(1).mean(0), rtol=1e-4)
    np.testing.assert_array_equal(model.norm.mean[...], 0)  # the model itself does not change
    images = DATA.train_images[:110]
    alone = updated(scale(images[:1]))  # in the mode of the model: each image by itself
    np.testing.assert_allclose(updated(scale(images))[:1], alone, atol=1e-4)
    with pytest.raises(ValueError, match="49 images are less than a batch of 50"):
        latent_weights.with_new_statistics(model, first(49), 50)


def test_evaluate_uses_every_image_once(model):
    clear = are_clear(model, np.sign)
    images, labels = DATA.test_images[clear], DATA.test_labels[clear]
    assert len(images) > 250
    logits = expected(images, model, np.sign)
    accuracy = latent_weights.accuracy(model, DATA, images, labels)
    assert accuracy == np.mean(logits.argmax(-1) == labels)


def main(monkeypatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["latent_weights.py", *map(str, options)])
    latent_weights.cli()


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    """With binary weights and the statistics of training, the accuracy is the run's own."""
    experiment = replace(
        PRESETS["digits-bop"][1],
        data=Digits(held_out=200),
        model=BinaryNet(width=8, units=32, stages=2, first_padding="SAME"),
        optimizer=LatentAdam(Schedule(1e-3, factor=0.1, every=15)),
        epochs=4,
        batch_size=24,
    )
    result = train.run(experiment, RunConfig(tmp_path / "run"))
    capsys.readouterr()
    main(monkeypatch, tmp_path / "run")
    accuracies = json.loads(capsys.readouterr().out)
    assert accuracies["binary"]["validation"] == pytest.approx(result["validation_accuracy"])
    assert accuracies["binary"]["train"] > 0.3 > accuracies["latent"]["train"]  # chance is 0.1
    assert accuracies["latent, new statistics"]["train"] > accuracies["latent"]["train"]
    record = json.loads((tmp_path / "run" / "latent_weights.json").read_text())
    assert record["latent_weights"] == accuracies
    assert "metrics" not in record


def test_runs_that_cannot_be_evaluated(tmp_path, monkeypatch):
    record = json.loads(SEED.read_text())
    write_json(tmp_path / "result.json", sealed(record))
    with pytest.raises(SystemExit, match="was trained by Bop: it has no latent weights"):
        main(monkeypatch, tmp_path)
    record["config"] |= {"optimizer": to_json(LatentAdam()), "data": to_json(ImageNet())}
    write_json(tmp_path / "result.json", sealed(record))
    with pytest.raises(SystemExit, match="imagenet2012 does not fit into memory"):
        main(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match=r"experiments.latent_weights: .*No such file"):
        main(monkeypatch, tmp_path / "none")
