"""The network of a finished run in other formats, by the command line."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from flax import nnx

import train
from bop_optax.folding import Threshold, fold
from bop_optax.saving import load
from tests.test_train import TINY
from training import export
from training.config import RunConfig
from training.data.augment import scale
from training.data.memory import digits
from training.trained import load_run

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
IMAGES = scale(jnp.asarray(digits().test_images))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train.run(replace(TINY, epochs=3), RunConfig(folder), "digits-bop")
    return folder


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["training.export", *map(str, arguments)])
    tyro.cli(export.main)


@nnx.jit
def logits(model):
    return model(IMAGES)


def test_bits(finished, monkeypatch, capsys):
    run_command(monkeypatch, finished, "--to", "bits")
    path = finished / "folded.safetensors"
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size:,} bytes\n"
    model = load_run(finished).model
    folded = fold(model, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    for _, threshold in nnx.iter_modules(folded):
        if isinstance(threshold, Threshold):
            threshold.threshold[...] *= 0  # the file replaces it
    load(path, folded)
    np.testing.assert_array_equal(logits(folded), logits(model))


def test_another_file(finished, monkeypatch, tmp_path):
    run_command(monkeypatch, finished, "--to", "bits", "--output", tmp_path / "network")
    assert (tmp_path / "network").read_bytes() == (finished / "folded.safetensors").read_bytes()


def test_a_folder_without_a_run(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"training\.export: .* holds no finished run"):
        run_command(monkeypatch, tmp_path, "--to", "bits")


@pytest.mark.slow
def test_onnx_gives_the_classes_of_all_test_images(finished, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    run_command(monkeypatch, finished, "--to", "onnx")
    session = onnxruntime.InferenceSession(str(finished / "model.onnx"))
    (found,) = session.run(["logits"], {"images": np.asarray(IMAGES)})
    expected = np.asarray(logits(load_run(finished).model))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.slow
def test_qonnx_counts_the_bits(finished, monkeypatch):
    pytest.importorskip("jax2onnx")
    inference_cost = pytest.importorskip("qonnx.util.inference_cost").inference_cost
    cleanup = pytest.importorskip("qonnx.util.cleanup").cleanup
    run_command(monkeypatch, finished, "--to", "qonnx")
    cleanup(str(finished / "qonnx.onnx"), out_file=str(finished / "clean.onnx"))
    cost = inference_cost(str(finished / "clean.onnx"))["total_cost"]
    result = json.loads((finished / "result.json").read_text())
    assert cost["mem_w_BIPOLAR"] == result["result"]["binary_parameters"]


@pytest.mark.slow
def test_tflite(finished, monkeypatch):
    pytest.importorskip("larq_compute_engine")
    pytest.importorskip("tensorflow")
    run_command(monkeypatch, finished, "--to", "tflite")
    assert (finished / "model.tflite").read_bytes()[4:8] == b"TFL3"


@pytest.mark.skipif(find_spec("larq_compute_engine") is not None, reason="tests the error")
def test_a_missing_package(finished, monkeypatch):
    with pytest.raises(SystemExit, match=r"training\.export: No module .* \'.\[tflite\]"):
        run_command(monkeypatch, finished, "--to", "tflite")
