"""BinaryNet against the authors' network: golden counts, and a plain float computation of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax.layers import BinaryParam
from bop_optax.models.binarynet import BinaryNet
from tests.bop_optax.models.references import sign


def count(model: nnx.Module, kind: type) -> int:
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, kind)))


def test_golden_counts_of_the_authors_network():
    model = nnx.eval_shape(lambda: BinaryNet(rngs=nnx.Rngs(0)))
    assert count(model, BinaryParam) == 10_352_000
    assert model.denses[0].in_features == 4_608
    # Larq counts β and the mean as one, and the variance: 7,700 for these 3,850 channels.
    assert count(model, nnx.Param) - count(model, BinaryParam) == 3_850
    assert count(model, nnx.BatchStat) == 7_700


def test_the_papers_first_convolution_is_same():
    model = nnx.eval_shape(lambda: BinaryNet(first_padding="SAME", rngs=nnx.Rngs(0)))
    assert model.denses[0].in_features == 8_192


def reference(model: BinaryNet, x: np.ndarray) -> np.ndarray:
    """The network in evaluation, in float64 NumPy: loops over windows, no JAX."""

    def conv(x, w, same):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))) if same else x
        height, width = x.shape[1] - 2, x.shape[2] - 2
        return sum(
            x[:, i : i + height, j : j + width] @ w[i, j] for i in range(3) for j in range(3)
        )

    def pool(x):
        h, w = x.shape[1] // 2, x.shape[2] // 2
        return x[:, : 2 * h, : 2 * w].reshape(len(x), h, 2, w, 2, -1).max((2, 4))

    def norm(x, bn):
        mean, var, bias = (np.float64(v[...]) for v in (bn.mean, bn.var, bn.bias))
        return (x - mean) / np.sqrt(var + 1e-3) + bias

    x, norms = np.float64(x), iter(model.norms)
    for i, layer in enumerate(model.convs):
        x = conv(sign(x) if i else x, np.float64(layer.kernel[...]), i > 0)
        x = norm(pool(x) if i % 2 else x, next(norms))
    x = x.reshape(len(x), -1)
    for layer in model.denses:
        x = norm(sign(x) @ np.float64(layer.kernel[...]), next(norms))
    return x


def test_equals_a_float64_reference():
    model = BinaryNet(4, 8, image_shape=(30, 32, 2), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for norm in model.norms:  # as after training: statistics and biases that are not 0 and 1
        for variable, low, high in ((norm.mean, -1, 1), (norm.var, 0.01, 2), (norm.bias, -1, 1)):
            variable[...] = jnp.asarray(rng.uniform(low, high, variable.shape), jnp.float32)
    x = rng.standard_normal((3, 30, 32, 2)).astype(np.float32)
    model.eval()
    logits = nnx.jit(lambda model, x: model(x))(model, x)
    np.testing.assert_allclose(logits, reference(model, x), rtol=1e-4, atol=1e-4)


def test_batch_norm_is_keras_s():
    model = BinaryNet(4, 8, image_shape=(12, 12, 3), stages=1, rngs=nnx.Rngs(0))
    norm = model.norms[0]
    assert (norm.momentum, norm.epsilon, norm.scale) == (0.99, 1e-3, None)
    model.train()
    x = jax.random.normal(jax.random.key(1), (8, 12, 12, 3))
    logits = nnx.jit(lambda model, x: model(x))(model, x)
    np.testing.assert_allclose(logits.mean(0), jnp.zeros(10), atol=1e-5)
    mean = model.convs[0](x).mean((0, 1, 2))
    np.testing.assert_allclose(norm.mean[...], 0.01 * mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("side", "stages", "padding"), [(8, 2, "SAME"), (8, 1, "VALID")])
def test_small_images(side, stages, padding):
    shape = (side, side, 1)

    def logits():
        options = {"stages": stages, "first_padding": padding, "rngs": nnx.Rngs(0)}
        return BinaryNet(4, 8, image_shape=shape, **options)(jnp.zeros((2, *shape)))

    assert jax.eval_shape(logits).shape == (2, 10)


def test_too_many_stages_for_the_image():
    with pytest.raises(ValueError, match="stages=3 poolings leave nothing of images of 8×8"):
        BinaryNet(4, 8, image_shape=(8, 8, 1), rngs=nnx.Rngs(0))
