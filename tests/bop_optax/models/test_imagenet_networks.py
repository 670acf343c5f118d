"""The networks for ImageNet: their parameters as Larq Zoo counts them, the forward pass against
NumPy, binary weights and activations, gradients, and one training step at full size."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bop_optax import binarize, binary_labels, bop, ste_sign
from bop_optax.layers import BinaryConv, BinaryLinear, BinaryParam, LatentParam
from bop_optax.models.binary_alexnet import BinaryAlexNet
from bop_optax.models.birealnet import BiRealBlock, BiRealNet, mean_pool
from bop_optax.models.xnornet import XNORNet
from tests.bop_optax.models.references import REFERENCES, block_reference
from tests.networks import count, modules, output

NETWORKS = [BiRealNet, BinaryAlexNet, XNORNet]

# ---- At full size, from shapes alone -----------------------------------------------------------

# One-bit and 32-bit parameters in larq/zoo, tests/snapshots/model_summaries. Larq counts two
# numbers per BatchNorm channel; the authors' β and γ are two as well.
PUBLISHED = {
    BiRealNet: (10_985_472, 704_040),
    BinaryAlexNet: (61_827_776, 20_944),
    XNORNet: (58_236_928, 4_150_176),
}
# The same by hand: binary weights, real weights and biases, normalized channels.
BY_HAND = {
    BiRealNet: (
        9 * (4 * 64 * 64 + 64 * 128 + 3 * 128**2 + 128 * 256 + 3 * 256**2 + 256 * 512 + 3 * 512**2),
        7 * 7 * 3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1000 + 1000,
        64 + 4 * 64 + 5 * (128 + 256 + 512),
    ),
    BinaryAlexNet: (
        11 * 11 * 3 * 64
        + 5 * 5 * 64 * 192
        + 3 * 3 * (192 * 384 + 384 * 384 + 384 * 256)
        + (6 * 6 * 256 * 4096 + 4096 * 4096 + 4096 * 1000),
        0,
        64 + 192 + 384 + 384 + 256 + 4096 + 4096 + 1000,
    ),
    XNORNet: (
        5 * 5 * 96 * 256
        + 3 * 3 * (256 * 384 + 384 * 384 + 384 * 256)
        + (6 * 6 * 256 * 4096 + 4096 * 4096),
        11 * 11 * 3 * 96 + 4096 * 1000,
        96 + 96 + 256 + 384 + 384 + 256 + 4096 + 4096,
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_authors_network(network):
    model = nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0)))
    binary, real, channels = BY_HAND[network]
    assert (binary, real + 2 * channels) == PUBLISHED[network]
    assert count(model, BinaryParam) == binary
    assert count(model, nnx.Param) == binary + real + 2 * channels
    assert count(model, nnx.BatchStat) == 2 * channels
    assert output(model, (2, 224, 224, 3)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("network", "momentum", "epsilons"),
    [
        (BiRealNet, 0.8, [1e-3] * 20),
        (BinaryAlexNet, 0.9, [1e-3] * 8),
        (XNORNet, 0.9, [1e-5, *[1e-4] * 6, 1e-3]),
    ],
)
def test_batch_norms_are_the_authors(network, momentum, epsilons):
    norms = modules(nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0))), nnx.BatchNorm)
    assert sorted(norm.epsilon for norm in norms) == sorted(epsilons)
    assert {norm.momentum for norm in norms} == {momentum}
    assert all(norm.scale is not None and norm.bias is not None for norm in norms)


@pytest.mark.parametrize("network", NETWORKS)
def test_latent_weights_are_real(network):
    model = nnx.eval_shape(lambda: network(kernel_quantizer=ste_sign, rngs=nnx.Rngs(0)))
    assert count(model, BinaryParam) == 0
    assert count(model, LatentParam) == PUBLISHED[network][0]


@pytest.mark.parametrize("network", NETWORKS)
def test_kernel_init_draws_the_binary_kernels(network):
    drawn = []

    def init(key, shape, dtype):
        drawn.append(shape)
        return jnp.ones(shape, dtype)

    model = nnx.eval_shape(lambda: network(kernel_init=init, rngs=nnx.Rngs(0)))
    layers = modules(model, BinaryConv, BinaryLinear)
    assert sorted(drawn) == sorted(layer.kernel.shape for layer in layers)


@pytest.mark.usefixtures("standard_promotion")  # which Flax's BatchNorm needs in bfloat16
@pytest.mark.parametrize("network", NETWORKS)
def test_bfloat16(network):
    model = nnx.eval_shape(lambda: network(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert output(model, (2, 224, 224, 3)).dtype == jnp.bfloat16


# ---- Sizes of images ---------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "small"), [((32, 32, 3), False), ((8, 8, 1), True)])
def test_the_smallest_images_of_birealnet(shape, small):
    make = partial(BiRealNet, 4, 10, image_shape=shape, small_images=small)
    assert output(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), (2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(("shape", "small"), [((31, 32, 3), False), ((32, 7, 3), True)])
def test_images_too_small_for_birealnet(shape, small):
    with pytest.raises(ValueError, match=f"small_images={small}, got {shape[0]}×{shape[1]}"):
        BiRealNet(4, image_shape=shape, small_images=small, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("network", [BinaryAlexNet, XNORNet])
def test_the_smallest_and_too_small_images_of_alexnets(network):
    make = partial(network, 2, 8, 10)
    model = nnx.eval_shape(lambda: make(image_shape=(57, 92, 1), rngs=nnx.Rngs(0)))
    assert output(model, (2, 57, 92, 1)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"images of 57×56 are too small .*; resize them to 57×57"):
        make(image_shape=(57, 56, 1), rngs=nnx.Rngs(0))


# ---- Small networks ----------------------------------------------------------------------------


class Small(NamedTuple):
    """A network with its weights; `merge()` makes a new copy, in training mode."""

    name: str
    graph: nnx.GraphDef
    state: nnx.State
    images: jax.Array

    def merge(self) -> Any:
        return nnx.merge(self.graph, self.state, copy=True)


# Sides that are odd somewhere on the way, and lead to more than one pixel; seeds whose weights and
# images leave no sum so near 0 that rounding could turn its sign.
SMALL = {
    "birealnet": (partial(BiRealNet, 4, 10), (40, 36, 3), 0),
    "birealnet, small images": (partial(BiRealNet, 4, 10, small_images=True), (10, 12, 3), 1),
    "binary_alexnet": (partial(BinaryAlexNet, 2, 16, 10), (64, 92, 3), 0),
    "xnornet": (partial(XNORNet, 2, 16, 10), (64, 92, 3), 13),
}


@pytest.fixture(scope="module", params=["birealnet", "binary_alexnet", "xnornet"])
def small(request):
    make, shape, seed = SMALL[request.param]
    key = jax.random.key(seed, impl="rbg")  # compiles in a fraction of the default's time
    model = make(image_shape=shape, rngs=nnx.Rngs(key))
    return Small(request.param, *nnx.split(model), jax.random.normal(key, (4, *shape)))


def test_kernels_and_inputs_of_binary_layers_are_signs(small):
    layers = modules(small.merge(), BinaryConv, BinaryLinear)
    without = [layer for layer in layers if layer.input_quantizer is None]
    assert len(without) == (small.name == "binary_alexnet")  # its first layer takes the image

    @jax.jit
    def inputs(state, images):
        quantized = []

        def recorded(quantizer, x):
            quantized.append(quantizer(x))
            return quantized[-1]

        model = nnx.merge(small.graph, state, copy=True)
        for layer in modules(model, BinaryConv, BinaryLinear):
            if layer.input_quantizer is not None:
                layer.input_quantizer = partial(recorded, layer.input_quantizer)
        model(images)
        return quantized

    quantized = inputs(small.state, small.images)
    assert len(quantized) == len(layers) - len(without)
    for x in [*quantized, *(layer.kernel[...] for layer in layers)]:
        assert set(np.unique(x)) == {-1, 1}


def test_real_kernels_have_glorot_s_variance(small):
    for layer in modules(small.merge(), nnx.Conv, nnx.Linear):
        *window, inputs, outputs = layer.kernel.shape
        if layer.kernel.size > 300:  # enough to estimate it from
            expected = np.sqrt(2 / (np.prod(window) * (inputs + outputs)))
            np.testing.assert_allclose(layer.kernel[...].std(), expected, rtol=0.1)


def test_every_parameter_has_a_gradient(small):
    graph, params, rest = nnx.split(small.merge(), nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradients(params):
        logits = nnx.merge(graph, params, rest, copy=True)(small.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(params)):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.any(gradient != 0), path


# ---- The forward pass -------------------------------------------------------------------------


def as_if_trained(model):
    """In evaluation mode, with statistics, scales and biases that are not 0 and 1."""
    rng = np.random.default_rng(0)
    for layer in modules(model, nnx.BatchNorm):
        variables = (layer.mean, -1, 1), (layer.var, 0.01, 2), (layer.scale, -2, 2)
        for variable, low, high in (*variables, (layer.bias, -1, 1)):
            variable[...] = jnp.asarray(rng.uniform(low, high, variable.shape), jnp.float32)
    model.eval()
    return model


@pytest.mark.parametrize("small", SMALL, indirect=True)
def test_networks_equal_a_float64_reference(small):
    model = as_if_trained(small.merge())
    graph, state = nnx.split(model)
    logits = jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, small.images)
    expected = REFERENCES[small.name](model, np.float64(small.images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("channels", [4, 8], ids=["same size", "halving"])
def test_blocks_equal_a_float64_reference(side, channels):
    block = as_if_trained(BiRealBlock(4, channels, rngs=nnx.Rngs(jax.random.key(0, impl="rbg"))))
    x = np.random.default_rng(1).standard_normal((2, side, side, 4))
    expected = block_reference(block, np.float64(np.float32(x)), channels == 8)
    np.testing.assert_allclose(block(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-4)


def test_mean_pool_leaves_padding_out_of_the_mean():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(mean_pool(x)[0, ..., 0], [[2, 3.5], [6.5, 8]])


# ---- A step of training at full size -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_of_the_authors_network(network):
    graph, params, batch_stats = nnx.split(network(rngs=nnx.Rngs(0)), nnx.Param, ...)
    optimizer = optax.partition(
        {"binary": bop(gamma=1e-4, threshold=1e-8), "real": optax.adam(2.5e-3)},
        binary_labels(params),
    )
    # Of two images, BatchNorm after a dense layer would make ±1 whatever they are: no gradient.
    images = jax.random.normal(jax.random.key(1), (4, 224, 224, 3))

    @jax.jit
    def step(params, opt_state):
        def loss_fn(params):
            logits = nnx.merge(graph, params, batch_stats, copy=True)(images)
            labels = jnp.array([0, 3, 500, 998])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), loss

    updated, loss = step(params, optimizer.init(params))
    assert jnp.isfinite(loss)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(updated), strict=True):
        assert jnp.isfinite(after).all()
        assert jnp.any(before != after)
    binary = [jax.tree.leaves(nnx.filter_state(p, BinaryParam)) for p in (params, updated)]
    for before, after in zip(*binary, strict=True):
        np.testing.assert_array_equal(after, binarize(after))
        assert (before != after).mean() < 1
