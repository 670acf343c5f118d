"""Real-to-Binary Net, MeliusNet22 and ReActNet-A: parameters and MACs as published, blocks against
NumPy, a step of training. tests/larq/test_zoo.py compares the first two with the Zoo itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bop_optax import binarize, binary_labels, bop
from bop_optax.layers import BinaryConv, BinaryParam, LatentParam, Product
from bop_optax.models import meliusnet, reactnet, real_to_binary
from bop_optax.models.meliusnet import MeliusBlock, MeliusNet22
from bop_optax.models.reactnet import ReActBlock, ReActNet
from bop_optax.models.real_to_binary import PReLU, RealToBinaryBlock, RealToBinaryNet
from bop_optax.summary import summary
from tests.bop_optax.models.references import conv, dense, norm, relu, shifted, sign
from tests.networks import count, modules, output

NETWORKS = [RealToBinaryNet, MeliusNet22, ReActNet]
# Parameters and MACs of 1 and of 32 bits, and all weights. The first two: larq.models.summary and
# Keras's count_params of larq-zoo 2.4.0 with larq 0.13.3. Of BatchNorm's four weights a channel
# Larq counts two. ReActNet: parameters and running statistics of mobilenet/2_step2/reactnet.py in
# the authors' github.com/liuzechun/ReActNet at a6cd08d; `test_operations_of_reactnet` has its MACs.
PUBLISHED = {
    RealToBinaryNet: ((10_985_472, 1_001_448), (1_676_279_808, 138_087_936), 11_995_624),
    MeliusNet22: ((6_119_424, 825_160), (4_624_220_160, 136_388_608), 6_969_672),
    ReActNet: ((28_253_184, 1_090_408), (4_816_896_000, 11_862_016), 29_365_480),
}


# ---- At full size, from shapes alone -----------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_parameters_and_macs_as_published(network):
    model = nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0)))
    parameters, macs, weights = PUBLISHED[network]
    assert count(model, BinaryParam) == parameters[0]
    assert count(model, nnx.Param) + count(model, nnx.BatchStat) == weights
    totals = summary(model, (1, 224, 224, 3)).totals
    assert totals.parameters == dict(zip((1, 32), parameters, strict=True))
    assert totals.macs == dict(zip((1, 32), macs, strict=True))
    assert output(model, (2, 224, 224, 3)).shape == (2, 1000)


def test_operations_of_reactnet():
    """0.87 · 10⁸ in the authors' README, which counts 64 one-bit operations as one."""
    layers = zip(  # side of the output, channels of the input and of the output
        [112, 56, 56, 28, 28, *[14] * 6, 7, 7],
        [32, 64, 128, 128, 256, 256, *[512] * 6, 1024],
        [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024],
        strict=True,
    )
    binary = sum(side**2 * (9 * n * n + n * out) for side, n, out in layers)
    real = 112**2 * 27 * 32 + 1024 * 1000
    assert (binary, real) == PUBLISHED[ReActNet][1]
    assert round((binary / 64 + real) / 1e8, 2) == 0.87


@pytest.mark.parametrize(
    ("network", "momentum", "epsilon"),
    [(RealToBinaryNet, 0.99, 1e-3), (MeliusNet22, 0.9, 1e-5), (ReActNet, 0.9, 1e-5)],
)
def test_batch_norms_as_published(network, momentum, epsilon):
    norms = modules(nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0))), nnx.BatchNorm)
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(momentum, epsilon)}
    assert all(norm.scale is not None and norm.bias is not None for norm in norms)


@pytest.mark.parametrize("network", NETWORKS)
def test_options_reach_every_binary_layer(network):
    drawn = []

    def init(key, shape, dtype):
        drawn.append(shape)
        return jnp.ones(shape, dtype)

    model = nnx.eval_shape(
        lambda: network(kernel_quantizer=binarize, kernel_init=init, rngs=nnx.Rngs(0))
    )
    assert count(model, BinaryParam) == 0
    assert count(model, LatentParam) == PUBLISHED[network][0][0]
    assert sorted(drawn) == sorted(layer.kernel.shape for layer in modules(model, BinaryConv))


@pytest.mark.usefixtures("standard_promotion")  # which Flax's BatchNorm needs in bfloat16
@pytest.mark.parametrize("network", NETWORKS)
def test_bfloat16(network):
    model = nnx.eval_shape(lambda: network(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert output(model, (2, 224, 224, 3)).dtype == jnp.bfloat16


# ---- Small networks ----------------------------------------------------------------------------

SMALL = {
    "real_to_binary": partial(RealToBinaryNet, 8, 10),
    "meliusnet": partial(MeliusNet22, 16, 10),
    "reactnet": partial(ReActNet, 2, 10),
}


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_images_too_small(make):
    model = nnx.eval_shape(lambda: make(image_shape=(32, 45, 1), rngs=nnx.Rngs(0)))
    assert output(model, (2, 32, 45, 1)).shape == (2, 10)
    with pytest.raises(ValueError, match="images must be 32×32 or larger, got 32×31"):
        make(image_shape=(32, 31, 1), rngs=nnx.Rngs(0))


def test_width_of_meliusnet():
    with pytest.raises(ValueError, match="width must be a multiple of 16, got width=8"):
        MeliusNet22(8, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("standard_promotion")  # of Adam
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_a_training_step(make, monkeypatch):
    monkeypatch.setattr(real_to_binary, "BLOCKS", 1)
    monkeypatch.setattr(meliusnet, "SECTIONS", ((1, 2.5), (1, None)))
    monkeypatch.setattr(reactnet, "BLOCKS", ((2, 1), (4, 2), (4, 1)))
    key = jax.random.key(0, impl="rbg")  # compiles in a fraction of the default's time
    model = make(image_shape=(32, 32, 3), product=Product("float"), rngs=nnx.Rngs(key))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.partition(
        {"binary": bop(gamma=1e-2, threshold=0.0), "real": optax.adam(1e-2)}, binary_labels(params)
    )
    images = jax.random.normal(key, (4, 32, 32, 3))

    @jax.jit
    def step(params, opt_state):
        def loss_fn(params):
            logits = nnx.merge(graph, params, rest, copy=True)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, _ = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), loss

    updated, loss = step(params, optimizer.init(params))
    assert jnp.isfinite(loss)
    before = jax.tree_util.tree_leaves_with_path(params)
    for (path, old), new in zip(before, jax.tree.leaves(updated), strict=True):
        assert jnp.isfinite(new).all(), path
        assert jnp.any(old != new), path
    for kernel in jax.tree.leaves(nnx.filter_state(updated, BinaryParam)):
        assert set(np.unique(kernel)) == {-1, 1}


# ---- Blocks against NumPy in float64 -----------------------------------------------------------


def as_if_trained(block):
    """In evaluation mode; no parameter but the kernels is 0 or 1."""
    rng = np.random.default_rng(0)
    for _, variable in nnx.iter_graph(block):
        if isinstance(variable, nnx.BatchStat) or type(variable) is nnx.Param:
            low = 0.3 if variable[...].min() == 1 else -1  # a variance or a scale
            variable[...] = jnp.asarray(rng.uniform(low, 1.5, variable.shape), jnp.float32)
    block.eval()
    return block


def normed(x, layer):
    return norm(x, layer, layer.epsilon)


def halved(x):
    return np.nanmean(shifted(x, 2, 2, fill=np.nan), axis=0)


def prelu(x, layer):
    return np.where(x > 0, x, np.float64(layer.slope[...]) * x)


def real_to_binary_reference(block, x):
    halves = len(block.shortcut.layers) > 0
    y = normed(x, block.norm)
    gate = relu(dense(y.mean((1, 2)), block.squeeze))
    gate = 1 / (1 + np.exp(-dense(gate, block.excite)))
    y = prelu(conv(sign(y), block.conv, 1 + halves) * gate[:, None, None], block.prelu)
    if halves:
        _, real, batch_norm = block.shortcut.layers
        x = normed(conv(halved(x), real), batch_norm)
    return y + x


def melius_reference(block, x):
    y = conv(sign(normed(x, block.dense_norm)), block.dense)
    x = np.concatenate([x, y], -1)
    y = conv(sign(normed(x, block.improvement_norm)), block.improvement)
    x[..., -y.shape[-1] :] += y
    return x


def shift(x, layer):
    return x + np.float64(layer.bias[...])


def rprelu_reference(x, layer):
    first, slope, last = layer.layers
    return shift(prelu(shift(x, first), slope), last)


def padded_conv(x, layer, stride):
    """PyTorch's padding=1: each edge has one zero, whatever the size."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = shifted(x, 3, stride, same=False)
    return sum(map(np.matmul, windows, np.float64(layer.kernel[...]).reshape(9, *x.shape[3:], -1)))


def react_reference(block, x, stride):
    y = normed(padded_conv(sign(shift(x, block.shift3)), block.conv3, stride), block.norm3)
    y = rprelu_reference(y + (halved(x) if stride == 2 else x), block.rprelu3)
    z = normed(conv(sign(shift(y, block.shift1)), block.conv1), block.norm1)
    y = np.concatenate([y, y], -1) if z.shape[-1] == 2 * y.shape[-1] else y
    return rprelu_reference(z + y, block.rprelu1)


BLOCKS = {
    "real to binary": (partial(RealToBinaryBlock, 8, 8), real_to_binary_reference, 6),
    "real to binary, halving": (partial(RealToBinaryBlock, 8, 16), real_to_binary_reference, 7),
    "melius": (partial(MeliusBlock, 8, 4), melius_reference, 6),
    "react": (partial(ReActBlock, 8, 8), partial(react_reference, stride=1), 6),
    "react, doubling": (partial(ReActBlock, 8, 16), partial(react_reference, stride=1), 6),
    "react, halving": (partial(ReActBlock, 8, 16, 2), partial(react_reference, stride=2), 6),
    "react, odd": (partial(ReActBlock, 8, 16, 2), partial(react_reference, stride=2), 7),
}


@pytest.mark.parametrize(("make", "reference", "side"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_equal_a_float64_reference(make, reference, side):
    rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
    block = as_if_trained(make(product=Product("float"), rngs=rngs))
    x = np.float32(np.random.default_rng(0).standard_normal((2, side, side, 8)))
    expected = reference(block, np.float64(x))
    result = nnx.jit(lambda block, x: block(x))(block, jnp.asarray(x))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_prelu_keeps_its_dtype_and_has_the_papers_gradient():
    layer, x = PReLU(2, slope=0.25), jnp.array([[-2.0, 3.0], [-5.0, -1.0]])
    assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    gradient = nnx.grad(lambda layer: layer(x).sum())(layer)
    np.testing.assert_array_equal(gradient.slope[...], [-7, -1])
