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


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        ({"bits": 0}, "float32", "bits must be an integer from 1 to 24 for float32, got bits=0"),
        ({"bits": 32}, "float32", "bits must be an integer from 1 to 24 for float32, got bits=32"),
        ({"bits": 16}, "float16", "bits must be an integer from 1 to 11 for float16, got bits=16"),
        ({"bits": 1.5}, "float32", "bits must be an integer .*, got bits=1.5"),
        ({"bits": nan}, "float32", "bits must be an integer .*, got bits=nan"),
        ({"mode": "inputs"}, "float32", 'mode must be "activations" or "weights"'),
    ],
)
def test_dorefa_rejects(options, dtype, message):
    with pytest.raises(ValueError, match=message):
        dorefa(jnp.zeros(3, dtype), **options)


def test_dorefa_takes_numbers_of_bits_of_any_integer_type():
    x = jnp.linspace(0, 1, 9)
    np.testing.assert_array_equal(dorefa(x, np.int8(8)), dorefa(x, 8))
    assert len({*dorefa(jnp.linspace(0, 1, 1000), 8).tolist()}) == 256


def test_dorefa_of_weights_that_are_zero_or_nan():
    """Zeros have the gradient of tanh, divided by nothing; a NaN stays visible."""
    zeros, tangents = jnp.zeros(3), jnp.ones(3)
    f = partial(dorefa, mode="weights")
    np.testing.assert_array_equal(jax.grad(lambda x: f(x).sum())(zeros), 2 * tangents)
    np.testing.assert_array_equal(jax.jvp(f, (zeros,), (tangents,))[1], 2 * tangents)
    assert jnp.isnan(f(jnp.array([0.1, -0.9, nan]))[2])


@pytest.mark.parametrize("value", [0, -1.0, nan])
@pytest.mark.parametrize(
    ("quantizer", "name"),
    [(ste_sign, "clip"), (ste_heaviside, "clip"), (ste_tern, "clip"), (swish_sign, "beta")],
)
def test_numbers_that_must_be_above_0(quantizer, name, value):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {name}={value}"):
        quantizer(jnp.zeros(3), **{name: value})


@pytest.mark.parametrize("value", ["1", 1j, [1.0]])
def test_arguments_that_are_no_numbers(value):
    with pytest.raises(TypeError, match="clip must be a number, got clip="):
        ste_sign(jnp.zeros(3), value)
    with pytest.raises(ValueError, match="threshold must be ≥ 0, got threshold=-1"):
        ste_tern(jnp.zeros(3), -1)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "complex64"])
@pytest.mark.parametrize("quantizer", [binarize, ste_sign, approx_sign, swish_sign])
def test_dtypes_without_a_sign(quantizer, dtype):
    with pytest.raises(TypeError, match=f"a sign needs a signed dtype, got {dtype}: cast to"):
        quantizer(jnp.zeros(3, dtype))


@pytest.mark.parametrize("x", [jnp.float16(14000), jnp.float32(3e38), jnp.float32(-3e38)])
def test_swish_sign_of_large_numbers_has_the_gradient_0(x):
    assert jax.grad(swish_sign)(x) == 0


def test_approx_sign_of_nan_has_the_gradient_0():
    x = jnp.float32(nan)
    assert jax.grad(approx_sign)(x) == jax.jvp(approx_sign, (x,), (jnp.float32(1),))[1] == 0


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
