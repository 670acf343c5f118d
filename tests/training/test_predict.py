"""A finished run as a ready model, from Python and from the command line."""

import json
import shutil
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from flax import nnx
from PIL import Image

import train
from bop_optax.layers import BinaryParam, PackedParam
from bop_optax.saving import save
from tests.test_train import TINY
from training import predict
from training.config import LatentAdam, RunConfig, Schedule
from training.data.memory import digits
from training.run import WEIGHTS
from training.trained import load_run

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
DATA = digits()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of ten epochs, and its result."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = train.run(replace(TINY, epochs=10), RunConfig(folder), "digits-bop")
    return folder, result


def test_a_loaded_run_has_the_accuracy_of_the_run(finished):
    folder, result = finished
    trained = load_run(folder)
    assert trained.image_shape == (8, 8, 1)
    assert trained.class_names == tuple("0123456789")
    probabilities = trained.probabilities(DATA.test_images)
    assert (probabilities.shape, probabilities.dtype) == ((360, 10), np.float32)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert trained.probabilities(DATA.test_images[:0]).shape == (0, 10)
    accuracy = np.mean(probabilities.argmax(-1) == DATA.test_labels)
    assert accuracy == pytest.approx(result["test_accuracy"])
    kernel = np.asarray(trained.model.convs[0].kernel[...])
    assert set(np.unique(kernel)) == {-1, 1}
    packed = jax.tree.leaves(nnx.state(trained.evaluated, PackedParam))
    assert [words.dtype for words in packed] == [jnp.uint32] * 7


@pytest.mark.slow
def test_a_run_in_bfloat16(tmp_path):
    bop = replace(TINY.optimizer, ema_dtype="bfloat16")
    experiment = replace(TINY, dtype="bfloat16", optimizer=bop, epochs=1)
    result = train.run(experiment, RunConfig(tmp_path / "run"))
    trained = load_run(tmp_path / "run")
    assert trained.model(jnp.zeros((2, 8, 8, 1))).dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(nnx.state(trained.model))} == {jnp.dtype("float32")}
    accuracy = np.mean(trained.probabilities(DATA.test_images).argmax(-1) == DATA.test_labels)
    assert accuracy == pytest.approx(result["test_accuracy"])
    weights = nnx.state(trained.model, BinaryParam)
    averages = train.make_optimizer(experiment, {"w": "binary"}, 1).init({"w": jnp.ones(3)})
    assert any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(averages))
    assert all(jnp.all(jnp.abs(w) == 1) for w in jax.tree.leaves(weights))


@pytest.mark.slow
def test_latent_weights_are_loaded_too(tmp_path):
    experiment = replace(TINY, optimizer=LatentAdam(Schedule(1e-2)), epochs=3)
    result = train.run(experiment, RunConfig(tmp_path / "run"))
    probabilities = load_run(str(tmp_path / "run")).probabilities(DATA.test_images)
    accuracy = np.mean(probabilities.argmax(-1) == DATA.test_labels)
    assert accuracy == pytest.approx(result["test_accuracy"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), r"holds no finished run: config.json"),
        (lambda run: (run / "config.json").write_text("{}"), r"holds no finished run: config.json"),
        (lambda run: (run / WEIGHTS).unlink(), rf"holds no finished run: {WEIGHTS}"),
        (lambda run: (run / WEIGHTS).write_bytes(b"PK"), rf"{WEIGHTS} is damaged"),
        (lambda run: save({"a": np.ones(1)}, run / WEIGHTS), rf"{WEIGHTS} does not fit: a"),
    ],
)
def test_folders_without_a_finished_run(finished, tmp_path, damage, message):
    shutil.copytree(finished[0], tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path / "copy")


def main(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    tyro.cli(predict.main)


def test_the_command_classifies_image_files(finished, tmp_path, monkeypatch, capsys):
    """A file of the model's own size gives the probabilities of its pixels; others are resized."""
    folder, _ = finished
    image = DATA.test_images[0, ..., 0]
    Image.fromarray(image).save(tmp_path / "grey.png")
    enlarged = np.kron(image, np.ones((5, 5), np.uint8))
    Image.fromarray(np.pad(enlarged, ((0, 0), (20, 20)))).convert("RGB").save(tmp_path / "wide.png")
    main(monkeypatch, folder, tmp_path / "grey.png", tmp_path / "wide.png", "--top", 2)
    lines = capsys.readouterr().out.splitlines()
    expected = load_run(folder).probabilities(DATA.test_images[:1])[0]
    best, second = np.argsort(-expected)[:2]
    assert lines[0] == (
        f"{tmp_path / 'grey.png'}: {best} {expected[best]:.1%}, {second} {expected[second]:.1%}"
    )
    assert lines[1].startswith(f"{tmp_path / 'wide.png'}: {best} ")


def test_images_of_the_wrong_kind(finished, tmp_path, monkeypatch):
    folder, _ = finished
    (tmp_path / "text.png").write_text("no image")
    for name, message in (
        ("text.png", "text.png does not decode: no known image format"),
        ("missing.png", "No such file or directory: .*missing.png"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(monkeypatch, folder, tmp_path / name)
    with pytest.raises(SystemExit, match="holds no finished run"):
        main(monkeypatch, tmp_path, tmp_path / "text.png")
    with pytest.raises(SystemExit, match="name at least one image file"):
        main(monkeypatch, folder)
    with pytest.raises(SystemExit, match="--top must be at least 1, got 0"):
        main(monkeypatch, folder, tmp_path / "text.png", "--top", 0)


def test_only_grey_and_colour_images_have_files(tmp_path):
    Image.new("L", (9, 7)).save(tmp_path / "grey.png")
    assert predict.read_image(tmp_path / "grey.png", (8, 8, 3)).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="has 1 or 3 channels, the model takes 4"):
        predict.read_image(tmp_path / "grey.png", (8, 8, 4))


def test_a_run_of_imagenets_size_takes_the_inner_centre(tmp_path):
    """As `validation_image` does: 224/256 of the shorter side."""
    from training.data.imagenet import validation_image

    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    ours = predict.read_image(tmp_path / "large.png", (224, 224, 3))
    np.testing.assert_array_equal(ours, validation_image((tmp_path / "large.png").read_bytes()))


def test_the_curves_are_drawn(finished):
    folder, _ = finished
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "result.json").read_text())
    assert record["metrics"][-1]["test_accuracy"] == record["result"]["test_accuracy"]
