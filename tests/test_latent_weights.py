"""Section 3: a network evaluated with its latent weights, and with new batch statistics."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import datasets
import latent_weights
from bop_optax import ste_sign
from bop_optax.layers import BinaryLinear
from tests.test_runs import TINY_OPTIONS
from tests.test_runs import main as train_main

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")


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


@pytest.fixture(scope="module")
def digits() -> datasets.Dataset:
    return datasets.load("digits")


@pytest.fixture
def clear(model, digits) -> tuple[np.ndarray, np.ndarray]:
    """Test images, with labels, of which rounding turns no sign: no sum of theirs is near 0."""
    pixels = digits.test_images.reshape(-1, 64) / np.float64(127.5) - 1
    kernel = np.float64(model.first.kernel[...])
    sums = np.concatenate([pixels @ kernel, pixels @ np.sign(kernel)], axis=1)
    keep = np.all(np.abs(sums) > 1e-3, axis=1)
    return digits.test_images[keep], digits.test_labels[keep]


def expected(images: np.ndarray, model: Small, quantize, mean=0.0, var=1.0) -> np.ndarray:
    """The network in NumPy; activations binary, kernels as `quantize` leaves them."""
    x = images.reshape(len(images), -1) / np.float64(127.5) - 1
    x = (x @ quantize(np.float64(model.first.kernel[...])) - mean) / np.sqrt(var + 1e-5)
    return np.where(x >= 0, 1.0, -1.0) @ quantize(np.float64(model.second.kernel[...]))


def test_with_latent_weights(model, clear):
    images = clear[0][:50]
    assert len(images) == 50
    inputs = datasets.scale(jnp.asarray(images))
    real = latent_weights.with_latent_weights(model)
    np.testing.assert_allclose(real(inputs), expected(images, model, lambda w: w), atol=1e-5)
    np.testing.assert_allclose(model(inputs), expected(images, model, np.sign), atol=1e-4)


def test_with_new_statistics(model, digits):
    """Means over the batches of each batch's mean and variance; an incomplete batch is dropped."""
    images = digits.train_images[:110]
    again = latent_weights.with_new_statistics(model, images, 50)
    x = images[:100].reshape(2, 50, 64) / np.float64(127.5) - 1
    sums = x @ np.sign(np.float64(model.first.kernel[...]))
    np.testing.assert_allclose(again.norm.mean[...], sums.mean(1).mean(0), atol=1e-4)
    np.testing.assert_allclose(again.norm.var[...], sums.var(1).mean(0), rtol=1e-4)
    np.testing.assert_array_equal(model.norm.mean[...], 0)  # the model itself is left as it was
    first = again(datasets.scale(images[:1]))  # in the mode of the model: each image by itself
    np.testing.assert_allclose(again(datasets.scale(images))[:1], first, atol=1e-4)
    with pytest.raises(ValueError, match="49 images are less than a batch of 50"):
        latent_weights.with_new_statistics(model, images[:49], 50)


def test_evaluate_uses_every_image_once(model, clear):
    images, labels = clear
    assert len(images) > 250
    logits = expected(images, model, np.sign)
    assert latent_weights.accuracy(model, images, labels) == np.mean(logits.argmax(-1) == labels)


def main(monkeypatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["latent_weights.py", *map(str, options)])
    latent_weights.cli()


def test_the_command(tmp_path, monkeypatch, capsys):
    """With signs and the statistics of training, the accuracy is the run's own."""
    run = tmp_path / "run"
    options = (*TINY_OPTIONS, "--optimizer", "adam", "--epochs", 4, "--held-out", 200)
    train_main(monkeypatch, *options, "--run-dir", run)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    main(monkeypatch, run)
    accuracies = json.loads(capsys.readouterr().out)
    assert accuracies["binary"]["validation"] == pytest.approx(result["validation_accuracy"])
    assert accuracies["binary"]["train"] > 0.3 > accuracies["latent"]["train"]  # chance is 0.1
    assert accuracies["latent, new statistics"]["train"] > accuracies["latent"]["train"]
    record = json.loads((run / "latent_weights.json").read_text())
    assert record["latent_weights"] == accuracies


def test_runs_that_cannot_be_evaluated(tmp_path, monkeypatch):
    result = Path(__file__).parents[1] / "results" / "digits-bop" / "seed0.json"
    (tmp_path / "result.json").write_text(result.read_text())
    with pytest.raises(SystemExit, match="trained by Bop: it has no latent weights"):
        main(monkeypatch, tmp_path)
    record = json.loads(result.read_text())
    record["config"] |= {"optimizer": "adam", "dataset": "imagenet2012"}
    last, accuracy = record["metrics"][-1], {"validation_accuracy": 0.5}
    record |= {"metrics": [last | accuracy], "result": record["result"] | accuracy}
    (tmp_path / "result.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="imagenet2012 does not fit into memory"):
        main(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match=r"latent_weights.py: .*No such file"):
        main(monkeypatch, tmp_path / "none")
