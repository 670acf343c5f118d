"""Larq Zoo's networks: parameters and MACs as Larq counts them, the forward pass against NumPy, a
step of training. tests/larq/test_zoo.py compares them with the Zoo itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bop_optax import binary_labels, bop
from bop_optax.layers import BinaryConv, BinaryParam, Product
from bop_optax.models import (
    BinaryDenseNet,
    BinaryDenseNet28,
    BinaryDenseNet37,
    BinaryDenseNet37Dilated,
    BinaryDenseNet45,
    BinaryResNetE18,
    QuickNet,
    QuickNetLarge,
    QuickNetSmall,
)
from bop_optax.models.quicknet import BlurPool
from bop_optax.saving import load, save
from bop_optax.summary import summary
from tests.bop_optax.models.references import REFERENCES
from tests.networks import count, modules, output, set_norms

# Parameters and MACs of 1 and of 32 bits by larq.models.summary, weights by Keras's count_params,
# of larq-zoo 2.4.0 with larq 0.13.3. Of BatchNorm's four weights a channel Larq counts two.
LARQ = {
    QuickNetSmall: ((11_980_800, 674_888), (1_156_055_040, 15_941_120), 12_664_344),
    QuickNet: ((12_533_760, 700_328), (1_849_688_064, 29_651_712), 13_243_720),
    QuickNetLarge: ((22_634_496, 707_752), (3_699_376_128, 29_651_712), 23_359_304),
    BinaryResNetE18: ((10_985_472, 704_168), (1_676_279_808, 137_793_536), 11_699_368),
    BinaryDenseNet28: ((4_202_496, 929_000), (3_587_383_296, 202_484_224), 5_150_504),
    BinaryDenseNet37: ((7_593_984, 1_108_264), (4_506_808_320, 199_738_368), 8_734_120),
    BinaryDenseNet37Dilated: ((7_593_984, 1_108_264), (7_774_470_144, 452_625_408), 8_734_120),
    BinaryDenseNet45: ((12_349_440, 1_540_072), (6_430_556_160, 244_103_424), 13_939_240),
}


@pytest.mark.parametrize("network", LARQ)
def test_parameters_and_macs_are_larqs(network):
    model = nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0)))
    parameters, macs, weights = LARQ[network]
    assert count(model, BinaryParam) == parameters[0]
    assert count(model, nnx.Param) + count(model, nnx.BatchStat) == weights
    totals = summary(model, (1, 224, 224, 3)).totals
    assert totals.parameters == dict(zip((1, 32), parameters, strict=True))
    assert totals.macs == dict(zip((1, 32), macs, strict=True))


@pytest.mark.parametrize("network", LARQ)
def test_batch_norms_are_the_zoos(network):
    norms = modules(nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0))), nnx.BatchNorm)
    found = [(norm.momentum, norm.epsilon, norm.use_scale, norm.use_bias) for norm in norms]
    stem = [(0.99, 1e-3, True, True)] * 2 + [(0.99, 1e-3, False, False)]
    for norm in stem if issubclass(network, QuickNet) else []:
        found.remove(norm)
    assert set(found) == {(0.9, 1e-5, True, True)}


# ---- Sizes -------------------------------------------------------------------------------------

DENSENET = partial(BinaryDenseNet, ((2, 8, 1), (2, 12, 1), (2, 12, 2)), 4)


@pytest.mark.parametrize(
    ("network", "side"),
    [
        (partial(QuickNet, ((1, 8), (1, 8), (1, 8), (1, 8))), 29),
        (partial(BinaryResNetE18, 4), 32),
        (DENSENET, 5),
        (partial(DENSENET, small_images=True), 2),
    ],
    ids=["quicknet", "binary_resnet_e", "binary_densenet", "binary_densenet, small images"],
)
def test_the_smallest_images(network, side):
    shape = (side, side + 3, 1)
    model = nnx.eval_shape(lambda: network(image_shape=shape, rngs=nnx.Rngs(0)))
    assert output(model, (2, *shape)).shape == (2, 1000)
    with pytest.raises(ValueError, match=rf"images must be {side}×{side} .*got {side}×{side - 1}"):
        network(image_shape=(side, side - 1, 1), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("network", "side"),
    [(QuickNetLarge, 29), (BinaryDenseNet45, 29), (BinaryDenseNet37Dilated, 5)],
)
def test_images_too_small_for_the_zoos(network, side):
    with pytest.raises(ValueError, match=rf"images must be {side}×{side} .*got {side - 1}×{side}"):
        network(image_shape=(side - 1, side, 3), rngs=nnx.Rngs(0))


def test_small_images_of_binary_resnet_e():
    with pytest.raises(ValueError, match="must be 8×8 or larger with small_images=True, got 7×8"):
        BinaryResNetE18(small_images=True, image_shape=(7, 8, 3), rngs=nnx.Rngs(0))


def test_channels_of_quicknets_first_section():
    with pytest.raises(ValueError, match="needs a multiple of 4 channels, got 6"):
        QuickNet(((1, 6),), rngs=nnx.Rngs(0))


# ---- Small networks ----------------------------------------------------------------------------

# Sides that are odd somewhere on the way; seeds whose weights and images leave no sum so near 0
# that rounding could turn its sign.
SMALL = {
    "quicknet": (partial(QuickNet, ((2, 8), (2, 12))), (25, 30, 3), 0),
    "binary_resnet_e": (partial(BinaryResNetE18, 4), (40, 36, 3), 0),
    "binary_resnet_e, small images": (
        partial(BinaryResNetE18, 4, small_images=True),
        (10, 12, 3),
        0,
    ),
    "binary_densenet": (DENSENET, (22, 18, 3), 2),
    "binary_densenet, small images": (partial(DENSENET, small_images=True), (9, 8, 3), 2),
}


def small(name, **options):
    """A network in training mode, and images."""
    make, shape, seed = SMALL[name]
    key = jax.random.key(seed, impl="rbg")  # compiles in a fraction of the default's time
    product = Product("float")  # which compiles sooner
    model = make(num_classes=10, image_shape=shape, product=product, rngs=nnx.Rngs(key), **options)
    return model, jax.random.normal(key, (2, *shape))


@pytest.mark.parametrize("name", SMALL)
def test_networks_equal_a_float64_reference(name):
    model, images = small(name)
    rng = np.random.default_rng(0)
    for pool in modules(model, BlurPool):  # as of a file with another filter
        pool.kernel[...] = jnp.asarray(rng.normal(size=pool.kernel.shape), jnp.float32)
    graph, state = nnx.split(set_norms(model))
    logits = jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, images)
    expected = REFERENCES[name](model, np.float64(images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.usefixtures("standard_promotion")  # which Flax's BatchNorm needs in bfloat16
@pytest.mark.parametrize("name", SMALL)
def test_bfloat16(name):
    model = nnx.eval_shape(lambda: small(name, dtype=jnp.bfloat16)[0])
    assert output(model, (2, *SMALL[name][1])).dtype == jnp.bfloat16


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["quicknet", "binary_resnet_e", "binary_densenet"])
def test_a_step_of_training(name):
    model, images = small(name)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.partition(
        {"binary": bop(gamma=1.0, threshold=1e-6), "real": optax.adam(1e-3)}, binary_labels(params)
    )

    @jax.jit
    def step(params):
        def loss_fn(params):
            logits = nnx.merge(graph, params, rest, copy=True)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(2)).mean()

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return optax.apply_updates(params, updates), loss

    updated, loss = step(params)
    assert jnp.isfinite(loss)
    paths = jax.tree_util.tree_leaves_with_path(params)
    for (path, before), after in zip(paths, jax.tree.leaves(updated), strict=True):
        assert jnp.isfinite(after).all(), path
        assert jnp.any(before != after), path
    for layer in modules(nnx.merge(graph, updated, rest), BinaryConv):
        assert set(np.unique(layer.kernel[...])) == {-1, 1}


def test_blur_pools_are_saved_but_not_trained(tmp_path):
    pool = BlurPool(3)
    window = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    np.testing.assert_array_equal(pool.kernel[..., 0, :], np.stack([window] * 3, -1))
    assert count(pool, nnx.Param) == 0
    pool.kernel[...] = 2 * pool.kernel[...]
    save(pool, tmp_path / "pool.safetensors")
    loaded = load(tmp_path / "pool.safetensors", BlurPool(3))
    np.testing.assert_array_equal(loaded.kernel[...], pool.kernel[...])
