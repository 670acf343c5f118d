"""Latent weights (Algorithm 1): the transforms, and Theorem 1 on real training runs."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from bop_optax import approx_sign, binarize, binary_labels, ste_sign
from bop_optax.latent import clip_latent, scale_by_glorot
from bop_optax.layers import BinaryConv, BinaryLinear, BinaryParam, LatentParam


@pytest.mark.parametrize("shape", [(4, 2), (3, 3, 16, 32), (5, 2, 7)])
def test_scale_by_glorot_is_courbariauxs_formula(shape):
    updates = {"kernel": jnp.ones(shape), "bias": jnp.ones(shape[-1:])}
    transform = scale_by_glorot()
    scaled, _ = transform.update(updates, transform.init(updates))
    window = np.prod(shape[:-2])
    coefficient = np.sqrt(1.5 / (window * shape[-2] + window * shape[-1]))
    np.testing.assert_allclose(scaled["kernel"], np.full(shape, 1 / coefficient), rtol=1e-6)
    np.testing.assert_array_equal(scaled["bias"], updates["bias"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("limit", [1.0, 0.25, float("inf")])
def test_clip_latent(limit, dtype):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.uniform(-0.25, 0.25, 500), dtype)
    updates = jnp.asarray(rng.standard_normal(500), dtype)
    transform = optax.chain(optax.identity(), clip_latent(limit))
    clipped, _ = jax.jit(transform.update)(updates, transform.init(weights), weights)
    assert clipped.dtype == weights.dtype
    new = optax.apply_updates(weights, clipped)
    expected = np.clip(np.float64(weights) + np.float64(updates), -limit, limit)
    np.testing.assert_allclose(
        np.float64(new), expected, rtol=0, atol=4 * float(jnp.finfo(dtype).eps)
    )


def test_clip_latent_by_several_limits_at_once():
    limits, weights = jnp.array([0.25, 1.0]), jnp.array([0.5, -2.0])
    zeros, state = jnp.zeros(2), optax.EmptyState()
    updates = jax.vmap(lambda limit: clip_latent(limit).update(zeros, state, weights)[0])(limits)
    np.testing.assert_array_equal(weights + updates, [[0.25, -0.25], [0.5, -1.0]])
    half = weights.astype(jnp.bfloat16)
    updates, _ = clip_latent(limits[0]).update(jnp.zeros_like(half), state, half)
    assert updates.dtype == jnp.bfloat16


def test_clip_latent_errors():
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="limit must be above 0, got limit="):
            clip_latent(limit)
    with pytest.raises(ValueError, match=r"params=None: call update\(grads, state, params\)"):
        clip_latent().update(jnp.ones(2), optax.EmptyState())


def test_layers_with_a_kernel_quantizer_compute_with_its_signs_and_learn_its_latents():
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 3))
    latent = BinaryConv(3, 4, (3, 3), kernel_quantizer=ste_sign, rngs=nnx.Rngs(0))
    binary = BinaryConv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    assert type(latent.kernel) is LatentParam
    assert type(binary.kernel) is BinaryParam
    assert 0 < np.abs(latent.kernel[...]).max() < 1  # Glorot
    binary.kernel[...] = binarize(latent.kernel[...])
    np.testing.assert_array_equal(latent(x), binary(x))
    ours, theirs = (nnx.grad(lambda m: (m(x) ** 3).sum())(m) for m in (latent, binary))
    np.testing.assert_array_equal(ours.kernel[...], theirs.kernel[...])
    assert nnx.to_pure_dict(binary_labels(nnx.state(latent, nnx.Param))) == {"kernel": "latent"}


def test_kernel_init_is_the_users():
    layer = BinaryLinear(4, 2, kernel_init=nnx.initializers.constant(-0.5), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.kernel[...], np.full((4, 2), -0.5))


# ---- Theorem 1 --------------------------------------------------------------------------------


DIGITS = load_digits()
IMAGES, LABELS = np.float32(DIGITS.data / 8 - 1), np.int32(DIGITS.target)  # pixels from 0 to 16


@cache
def latent_weights(quantizer, scale, momentum=None, limit=None, steps=80):
    """Trains a two-layer network on the digits; the latent weights after each step.

    `scale` multiplies the learning rate of SGD and the initial latent weights.
    """
    transform = optax.sgd(0.125 * scale, momentum)
    if limit is not None:
        transform = optax.chain(transform, clip_latent(limit))
    layer = partial(BinaryLinear, kernel_quantizer=quantizer)
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        layer(64, 32, rngs=rngs),
        nnx.BatchNorm(32, use_scale=False, rngs=rngs),
        layer(32, 10, input_quantizer=ste_sign, rngs=rngs),
        nnx.BatchNorm(10, use_scale=False, rngs=rngs),
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    labels = binary_labels(params, lambda _, v: isinstance(v, LatentParam))
    params = jax.tree.map(
        lambda k, p: jax.tree.map(lambda w: w * scale, p) if k == "binary" else p, labels, params
    )
    optimizer = optax.partition({"binary": transform, "real": optax.sgd(0.01)}, labels)

    @jax.jit
    def step(params, rest, opt_state, x, y):
        def loss_fn(params):
            model = nnx.merge(graph, params, rest, copy=True)
            loss = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
            return loss, nnx.state(model, nnx.Not(nnx.Param))

        grads, rest_ = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), rest_, opt_state

    trajectory, opt_state = [], optimizer.init(params)
    for i in range(steps):
        batch = slice(i % 20 * 64, i % 20 * 64 + 64)
        params, rest, opt_state = step(params, rest, opt_state, IMAGES[batch], LABELS[batch])
        layers = params["layers"]
        trajectory.append(np.concatenate([layers[i]["kernel"][...].ravel() for i in (0, 2)]))
    return np.stack(trajectory)


unclipped = partial(ste_sign, clip=None)


@pytest.mark.parametrize("momentum", [None, 0.9], ids=["sgd", "momentum"])
@pytest.mark.parametrize("scale", [64.0, 1 / 1024])
def test_theorem_1_scaling_rate_and_weights_changes_no_binary_weight(momentum, scale):
    """By a power of two, so that scaling is exact and "invariant" means to the bit."""
    one = latent_weights(unclipped, 1.0, momentum)
    other = latent_weights(unclipped, scale, momentum)
    np.testing.assert_array_equal(other, scale * one)
    np.testing.assert_array_equal(np.sign(other), np.sign(one))
    flips = np.sum(np.sign(one[1:]) != np.sign(one[:-1]))
    assert flips > 200  # there was something to disagree about


@pytest.mark.parametrize(
    ("quantizer", "limit"),
    [(unclipped, 1.0), (approx_sign, float("inf"))],
    ids=["clipping", "approx_sign"],
)
def test_theorem_1_breaks_with_clipping_and_with_approx_sign(quantizer, limit):
    """As the paper says: once something depends on the magnitude of the latent weights."""

    one = latent_weights(quantizer, 1.0, limit=limit)
    other = latent_weights(quantizer, 64.0, limit=limit)
    assert np.mean(np.sign(other) != np.sign(one)) > 0.01
