"""The example of a transformer with binary linear layers, at a tiny size."""

import importlib.util
import subprocess
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax.layers import BinaryLinear, BinaryParam, LatentParam
from bop_optax.quantizers import is_sign

EXAMPLE = Path(__file__).parents[1] / "docs/examples/binary_transformer.py"
SPEC = importlib.util.spec_from_file_location("binary_transformer", EXAMPLE)
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)

TINY = {"width": 16, "depth": 1, "heads": 2, "context": 8}
SENTENCE = example.codes([b"def f(x):\n    return x\n" * 40])


def linear_layers(model):
    return [layer for _, layer in nnx.iter_graph(model) if isinstance(layer, BinaryLinear)]


def train(method, steps):
    text = (SENTENCE, SENTENCE)
    return example.train(method, steps, text=text, batch=4, evaluations=2, **TINY)


def learns(history):
    step, _, (before, after), _ = history.T
    return step.tolist() == [60, 120] and after < before < 7 and after < 2


@pytest.mark.parametrize("method", ["bop", "float"])
def test_later_characters_do_not_change_earlier_logits(method):
    model = example.Transformer(example.methods(1)[method][0], rngs=nnx.Rngs(0), **TINY)
    predict = nnx.jit(lambda model, characters: model(characters))
    logits = predict(model, SENTENCE[:8][None])
    assert logits.shape == (1, 8, example.CHARACTERS)
    for place in range(8):
        characters = SENTENCE[:8] + 5 * (np.arange(8) == place)
        same = (predict(model, characters[None]) == logits).all(-1)[0]
        assert same[:place].all()
        assert not same[place]


def test_every_linear_layer_of_a_block_multiplies_one_bit_by_one_bit():
    layers = linear_layers(
        example.Transformer(example.binary, rngs=nnx.Rngs(0), **{**TINY, "depth": 3})
    )
    assert len(layers) == 3 * 4
    for layer in layers:
        assert is_sign(layer.input_quantizer)
        assert layer.has_binary_kernel()
    shapes = [(16, 48), (16, 16), (16, 64), (64, 16)]
    assert sorted(layer.kernel.shape for layer in layers) == sorted(3 * shapes)


@pytest.mark.usefixtures("standard_promotion")
def test_bop_learns_by_flips_and_keeps_kernels_binary():
    start = linear_layers(example.Transformer(example.binary, rngs=nnx.Rngs(0), **TINY))
    model, history = train("bop", 120)
    for before, after in zip(start, linear_layers(model), strict=True):
        assert isinstance(after.kernel, BinaryParam)
        np.testing.assert_array_equal(jnp.abs(after.kernel[...]), 1)
        assert (before.kernel[...] != after.kernel[...]).any()
    assert learns(history)
    assert (history[:, 3] > 0).all()


@pytest.mark.usefixtures("standard_promotion")
def test_latent_weights_learn_within_their_bounds():
    model, history = train("latent", 120)
    for layer in linear_layers(model):
        assert isinstance(layer.kernel, LatentParam)
        assert len(np.unique(layer.kernel[...])) > 2
        assert jnp.abs(layer.kernel[...]).max() <= 1
    assert learns(history)


@pytest.mark.usefixtures("standard_promotion")
def test_float_learns():
    assert learns(train("float", 120)[1])


def test_a_projection_of_signs_has_unit_variance():
    for linear in (example.binary, partial(nnx.Linear, use_bias=False)):
        layer = example.Projection(512, 256, linear, 0.5, rngs=nnx.Rngs(0))
        x = np.random.default_rng(0).normal(3, 2, (64, 512)).astype(np.float32)
        np.testing.assert_allclose(layer(x).std(), 0.5, rtol=0.05)


@pytest.mark.parametrize("method", example.methods(1))
def test_the_step_is_compiled_once(method):
    """An update makes weak types strong, and a step of other types is compiled again."""
    model = example.Transformer(example.methods(1)[method][0], rngs=nnx.Rngs(0), **TINY)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(nnx.state(model)))


def test_bits_are_those_of_the_given_probabilities():
    windows = np.random.default_rng(0).integers(0, 128, (3, 9))
    assert example.bits(lambda x: jnp.zeros((*x.shape, 128)), windows) == pytest.approx(7)
    # Probability 1/2 for the right character, 1/254 for each other one.
    right = np.log(127) * np.float32(np.arange(128) == windows[:, 1:, None])
    assert example.bits(lambda _: right, windows) == pytest.approx(1)


def test_consecutive_windows_cover_the_text_in_order():
    windows = example.consecutive(np.arange(2 * 3 * 5 + 29), 5, batch=3)
    assert windows.shape == (3, 3, 5)
    np.testing.assert_array_equal(windows.ravel(), np.arange(45))


def test_each_module_is_in_one_part_of_the_text():
    parts = [bytes(part.astype(np.uint8)) for part in example.read_text()]
    assert len(parts[0]) > 4 * len(parts[1]) > 200_000
    modules = [m for p in example.PACKAGES for m in files(p).iterdir() if m.name.endswith(".py")]
    texts = [m.read_text("utf-8").encode("ascii", "replace") for m in modules]
    assert sum(map(len, texts)) == sum(map(len, parts))
    counts = [[text in part for part in parts] for text in texts if len(text) > 1000]
    assert all(sum(count) == 1 for count in counts)
    assert 0.05 < np.mean([validates for _, validates in counts]) < 0.15


@pytest.mark.slow
def test_command_line(tmp_path):
    command = [sys.executable, EXAMPLE, "bop", "10", "0"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {s}" for s in (2, 4, 6, 8, 10)]
