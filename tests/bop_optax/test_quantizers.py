"""The quantizers: a sign forward, the stated pseudo-gradient backward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bop_optax import (
    approx_sign,
    binarize,
    dorefa,
    magnitude_aware_sign,
    ste_heaviside,
    ste_sign,
    ste_tern,
    swish_sign,
)
from bop_optax.quantizers import is_scaled_sign, is_sign, precision

inf, nan = float("inf"), float("nan")
unclipped = partial(ste_sign, clip=None)
half = partial(ste_sign, clip=0.5)
QUANTIZERS = {
    "binarize": binarize,
    "ste_sign": ste_sign,
    "half": half,
    "unclipped": unclipped,
    "approx_sign": approx_sign,
}
OTHERS = {
    "swish_sign": swish_sign,
    "magnitude_aware_sign": magnitude_aware_sign,
    "ste_tern": ste_tern,
    "ternary_weight_networks": partial(ste_tern, threshold=None),
    "ste_heaviside": ste_heaviside,
    "dorefa": dorefa,
    "dorefa_weights": partial(dorefa, mode="weights"),
}  # tests/larq compares their values with Larq's
# Both sides of 0, of 0.5 and of 1, to the last bit.
EDGES = np.float32([0.0, 0.5, 1.0])
GRID = np.concatenate([EDGES, np.nextafter(EDGES, 9), np.nextafter(EDGES, -9), [0.3, 2.0, 3e4]])
GRID = np.concatenate([GRID, -GRID]).astype(np.float32)


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_forward(quantizer, dtype):
    x = jnp.asarray([-inf, -2.0, -1e-3, -0.0, 0.0, 1e-3, 2.0, inf, nan], dtype)
    for f in (quantizer, jax.jit(quantizer), jax.vmap(quantizer)):
        y = f(x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, jnp.asarray([-1, -1, -1, 1, 1, 1, 1, 1, -1], dtype))


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("shape", [(), (0,), (2, 1, 3)])
def test_shapes(quantizer, shape):
    assert quantizer(jnp.zeros(shape)).shape == shape
    assert quantizer(0.5) == 1


def test_binarize_integers():
    y = binarize(jnp.asarray([-3, 0, 7], jnp.int8))
    assert y.dtype == jnp.int8
    np.testing.assert_array_equal(y, [-1, 1, 1])


SPECIAL = [-inf, -2.0, -0.05, -0.0, 0.0, 0.05, 0.5, 2.0, inf, nan]


@pytest.mark.parametrize(
    ("quantizer", "expected"),
    [
        (swish_sign, [-1, -1, -1, 1, 1, 1, 1, 1, 1, -1]),
        (ste_tern, [-1, -1, -1, 0, 0, 1, 1, 1, 1, 0]),
        (partial(ste_tern, threshold=0.5), [-1, -1, 0, 0, 0, 0, 1, 1, 1, 0]),
        (partial(ste_tern, threshold=0.0), [-1, -1, -1, 0, 0, 1, 1, 1, 1, 0]),
        (ste_heaviside, [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]),
        (dorefa, [0, 0, 0, 0, 0, 0, 2 / 3, 1, 1, nan]),
        (partial(dorefa, bits=1), [0, 0, 0, 0, 0, 0, 0, 1, 1, nan]),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values(quantizer, expected, dtype):
    for f in (quantizer, jax.jit(quantizer), jax.vmap(quantizer)):
        y = f(jnp.asarray(SPECIAL, dtype))
        assert y.dtype == dtype
        np.testing.assert_allclose(y, jnp.asarray(expected, dtype), rtol=1e-7)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_are_finite(name, dtype):
    x = jnp.asarray([-inf, -30.0, -1.0, 0.0, 0.3, 1.0, 30.0, inf], dtype)
    if OTHERS[name] is magnitude_aware_sign or name == "ternary_weight_networks":
        x = x[1:-1]  # their mean would be infinite
    slopes = jax.grad(lambda x: OTHERS[name](x).sum())(x)
    assert slopes.dtype == dtype
    assert jnp.isfinite(slopes).all()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 1, 3)])
def test_shapes_of_the_others(name, shape):
    if name == "ternary_weight_networks" and 0 in shape:
        return  # the mean of nothing
    assert OTHERS[name](jnp.zeros(shape)).shape == shape


def test_magnitude_aware_sign_scales_each_output():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    scaled, mean = magnitude_aware_sign(kernel), np.abs(kernel).mean((0, 1, 2))
    np.testing.assert_allclose(scaled, np.sign(kernel) * mean, rtol=1e-6)
    # The scale has no gradient.
    slopes = jax.grad(lambda w: magnitude_aware_sign(w).sum())(kernel)
    np.testing.assert_allclose(slopes, np.where(np.abs(kernel) <= 1, mean, 0), rtol=1e-6)


def test_dorefa_of_zero_weights_is_larqs():
    np.testing.assert_allclose(dorefa(jnp.zeros(3), mode="weights"), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("options", [{"bits": 0}, {"mode": "inputs"}])
def test_dorefa_rejects(options):
    with pytest.raises(ValueError, match="bits must be at least 1 and mode"):
        dorefa(jnp.zeros(3), **options)


@pytest.mark.parametrize(
    ("quantizer", "sign", "scaled_sign", "bits"),
    [
        (ste_sign, True, True, 1),
        (partial(partial(ste_sign, clip=2.0)), True, True, 1),
        (swish_sign, True, True, 1),
        (magnitude_aware_sign, False, True, 1),
        (ste_heaviside, False, False, 1),
        (ste_tern, False, False, 2),
        (partial(dorefa, bits=1), False, False, 1),
        (partial(partial(dorefa, bits=1), bits=3), False, False, 3),
        (jnp.tanh, False, False, None),
        (None, False, False, None),
    ],
)
def test_attributes(quantizer, sign, scaled_sign, bits):
    assert is_sign(quantizer) == sign
    assert is_scaled_sign(quantizer) == scaled_sign
    assert precision(quantizer) == bits


FORMULAS = {
    "binarize": lambda x: 0 * x,
    "ste_sign": lambda x: np.where(np.abs(x) <= 1, 1, 0),
    "half": lambda x: np.where(np.abs(x) <= 0.5, 1, 0),
    "unclipped": lambda x: np.ones_like(x),
    "approx_sign": lambda x: np.where(np.abs(x) <= 1, 2 * (1 - np.abs(x)), 0),
}


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_pseudo_gradient(name, dtype):
    q, x = QUANTIZERS[name], jnp.asarray(GRID, dtype)
    expected = FORMULAS[name](np.asarray(x)).astype(dtype)
    tangent = jnp.full_like(x, -3)
    grad = jax.grad(lambda x: jnp.sum(q(x)))
    for slope in (grad(x), jax.jit(grad)(x), jax.vmap(jax.grad(q))(x)):
        assert slope.dtype == dtype
        np.testing.assert_array_equal(slope, expected)
    y, dy = jax.jvp(q, (x,), (tangent,))
    np.testing.assert_array_equal(y, q(x))
    np.testing.assert_array_equal(dy, expected * tangent)
    np.testing.assert_array_equal(jax.vjp(q, x)[1](tangent)[0], expected * tangent)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradient_at_infinity(name):
    slopes = jax.vmap(jax.grad(QUANTIZERS[name]))(jnp.asarray([-inf, inf]))
    np.testing.assert_array_equal(slopes, [1, 1] if name == "unclipped" else [0, 0])


def test_ste_blocks_even_an_infinite_gradient():
    backward = jax.vjp(ste_sign, jnp.asarray([-2.0, 0.5, nan]))[1]
    np.testing.assert_array_equal(backward(jnp.full(3, inf))[0], [0, inf, 0])


@pytest.mark.parametrize(
    ("name", "curvature"),
    [("binarize", 0), ("ste_sign", 0), ("half", 0), ("unclipped", 0), ("approx_sign", 2)],
)
def test_second_order(name, curvature):
    x = jnp.asarray([-1.5, -0.75, -0.25, 0.25, 0.75, 1.5])
    second = jax.vmap(jax.grad(jax.grad(QUANTIZERS[name])))(x)
    inside = jnp.abs(x) < 1
    np.testing.assert_array_equal(second, jnp.where(inside, -curvature * jnp.sign(x), 0.0))
