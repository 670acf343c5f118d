"""The example for OpenVINO against JAX, in an environment with `pip install openvino`."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax.folding import Threshold, fold
from bop_optax.models.binarynet import BinaryNet
from bop_optax.models.pooling import max_pool

ov = pytest.importorskip("openvino")
op = pytest.importorskip("openvino.opset1")
pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parents[1] / "docs/examples/openvino_binarynet.py"
SPEC = importlib.util.spec_from_file_location("openvino_binarynet", EXAMPLE)
engine = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(engine)

NETWORKS = [
    {"width": 8, "units": 16},
    {"width": 16, "units": 64, "stages": 2, "shape": (8, 8, 1)},
    {"width": 32, "units": 40, "shape": (28, 36, 3), "num_classes": 7},
    {"width": 8, "units": 24, "stages": 1, "shape": (9, 11, 2), "first_padding": "SAME"},
    {"width": 8, "units": 16, "stages": 4, "shape": (18, 34, 4)},
]
OPTIONS = {"INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "f32"}


def folded_model(shape=(32, 32, 3), **options):
    model = random_model(image_shape=shape, **options)
    return fold(model, jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def random_model(seed=0, **options):
    """A BinaryNet with random kernels and random statistics, in evaluation mode."""
    model = BinaryNet(rngs=nnx.Rngs(seed), **options)
    rng = np.random.default_rng(seed)
    for layer, norm in zip([*model.convs, *model.denses], model.norms, strict=True):
        spread, shape = np.sqrt(np.prod(layer.kernel_shape[:-1])), norm.mean.shape
        norm.mean[...] = jnp.asarray(rng.normal(0, spread, shape), jnp.float32)
        norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, shape) * spread**2, jnp.float32)
        norm.bias[...] = jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32)
    model.eval()
    return model


def turn_half(folded, seed=1):
    """Gives half of the thresholds direction −1, and makes them integers, so that sums hit them."""
    rng = np.random.default_rng(seed)
    for norm in folded.norms[:-1]:
        direction = jnp.asarray(rng.choice([-1, 1], norm.direction.shape), jnp.int8)
        whole = jnp.round(norm.threshold[...] / 2) * 2 * direction.astype(jnp.float32)
        norm.threshold[...] = whole.astype(norm.threshold.dtype)
        norm.direction[...] = direction
    return folded


def random_images(shape, batch, seed=0):
    """Images of multiples of 1/128, whose sums float32 holds exactly."""
    steps = np.random.default_rng(seed).integers(-128, 129, (batch, *shape))
    return (steps / 128).astype(np.float32)


@nnx.jit
def products(model, images):
    """The products of all layers before pooling, (batch, channels, …), and the logits, in JAX."""
    x, sums = images, []
    for i, layer in enumerate([*model.convs, *model.denses]):
        x = jax.lax.collapse(x, 1) if i == len(model.convs) else x
        x = layer(x)
        sums.append(jnp.moveaxis(x, -1, 1))
        x = model.norms[i](max_pool(x, 2) if i < len(model.convs) and i % 2 else x)
    return sums, x


def run(ov_model, images):
    compiled = ov.compile_model(ov_model, "CPU", OPTIONS)
    return [np.array(value) for value in compiled(images).values()]


def layer_types(ov_model):
    """(layerType, kernel, output precision) of the products in the compiled model."""
    compiled = ov.compile_model(ov_model, "CPU", OPTIONS)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    keys = ("layerType", "primitiveType", "outputPrecisions", "originalLayersNames")
    return [tuple(str(info[key].value) for key in keys) for info in infos]


@pytest.mark.parametrize("turned", [False, True], ids=["direction +1", "mixed directions"])
@pytest.mark.parametrize("options", NETWORKS)
def test_sums_and_logits_are_those_of_jax(options, turned):
    shape = options.get("shape", (32, 32, 3))
    folded = folded_model(**options)
    folded = turn_half(folded) if turned else folded
    images = random_images(shape, 5)
    sums, logits = products(folded, images)
    np.testing.assert_allclose(run(engine.build(folded, shape, 5), images)[0], logits, 1e-6, 1e-6)
    model = engine.build(folded, shape, 5)
    model.add_outputs([(f"product_{i}", 0) for i in range(len(sums))])
    _, *results = run(model, images)
    for result, expected in zip(results, sums, strict=True):
        np.testing.assert_array_equal(result.reshape(expected.shape), expected)


def test_logits_are_those_of_the_network_with_batch_norm():
    model, images = random_model(width=16, units=64), random_images((32, 32, 3), 8)
    folded = fold(model, images)
    logits = run(engine.build(folded, (32, 32, 3), 8), images)[0]
    np.testing.assert_allclose(logits, model(images), 1e-5, 1e-5)


def test_all_layers_but_the_first_run_in_one_bit():
    folded = folded_model(width=16, units=64)
    types = layer_types(engine.build(folded, (32, 32, 3)))
    kernels = [t for t in types if "onvolution" in t[0] or "Connected" in t[0] or "MatMul" in t[0]]
    assert [t[0] for t in kernels] == ["Convolution"] + 8 * ["BinaryConvolution"]
    assert all(kernel.endswith("_u1") for _, kernel, *_ in kernels[1:])
    # Products before a pooling, and the last one, give sums; the others give bits.
    assert [t[2] for t in kernels[1:]] == ["f32", "u1", "f32", "u1", "f32", "u1", "u1", "f32"]


@pytest.mark.parametrize("direction", [1, -1])
def test_a_value_equal_to_the_threshold_counts_as_above(direction):
    limits = np.float32([0, 1, -3, 0.1, 1e-38, -2.5e7, np.inf, -np.inf])
    x = np.stack([np.nextafter(limits, -np.inf), limits, np.nextafter(limits, np.inf)])
    x = np.where(np.abs(x) < engine.TINY, np.sign(x) * engine.TINY, x) * direction
    x = np.clip(x, np.finfo(np.float32).min, np.finfo(np.float32).max)  # no sum is infinite
    norm = Threshold(jnp.asarray(limits), jnp.full(8, direction, jnp.int8), jnp.float32)
    values = op.parameter([3, 8, 1, 1], np.float32)
    identity = engine.one_bit(np.where(np.eye(8), 1, -1).reshape(8, 8, 1, 1))
    ones = [1, 1]
    y = op.binary_convolution(
        engine.bits(values, norm), identity, ones, [0, 0], [0, 0], ones, "xnor-popcount", 0
    )
    signs = np.where(direction * x >= limits, 1, -1)
    result = run(ov.Model([y], [values]), x.astype(np.float32).reshape(3, 8, 1, 1))[0]
    expected = 2 * signs - signs.sum(1, keepdims=True)
    np.testing.assert_array_equal(result.reshape(3, 8), expected)


def test_a_saved_model_holds_bits_and_gives_the_same_logits(tmp_path):
    folded, images = folded_model(width=16, units=64), random_images((32, 32, 3), 2)
    model = engine.build(folded, (32, 32, 3), 2)
    ov.save_model(model, tmp_path / "network.xml", compress_to_fp16=False)
    read = ov.Core().read_model(tmp_path / "network.xml")
    np.testing.assert_array_equal(run(read, images)[0], run(model, images)[0])
    binary = [layer.kernel.size for layer in [*folded.convs[1:], *folded.denses]]
    constants = [node for node in read.get_ops() if node.get_type_name() == "Constant"]
    kernels = [node for node in constants if node.get_element_type() == ov.Type.u1]
    assert sum(kernel.get_byte_size() for kernel in kernels) == sum(binary) // 8


def test_channels_that_are_no_multiple_of_8_are_refused():
    folded = folded_model(width=12, units=16)
    with pytest.raises(ValueError, match="channels=12"):
        engine.build(folded, (32, 32, 3))
