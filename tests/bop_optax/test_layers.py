"""The layers against Flax's own, with the same ±1 kernel put in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from bop_optax import (
    approx_sign,
    binarize,
    binary_labels,
    bop,
    flips,
    magnitude_aware_sign,
    ste_heaviside,
    ste_sign,
)
from bop_optax.layers import (
    BinaryConv,
    BinaryConvTranspose,
    BinaryLinear,
    BinaryParam,
    glorot_uniform,
    rademacher,
)

rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def assert_close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-4)


def signs(key, shape, dtype):
    """An initializer that needs no compilation."""
    return jnp.asarray(rng.choice([-1, 1], shape), dtype)


def assert_same_function(layer, reference, x):
    """Equal outputs, and equal gradients of the input, of the kernel and of the bias."""
    reference.kernel[...] = layer.kernel[...]
    if layer.bias is not None:
        layer.bias[...] = reference.bias[...] = normal(*layer.bias.shape)
    probe = normal(*jax.eval_shape(lambda: reference(x)).shape)

    @nnx.value_and_grad(argnums=(0, 1), has_aux=True)
    def outputs(model, x):
        y = model(x)
        return jnp.sum(probe * y), y

    @nnx.jit
    def both(layer, reference, x):
        return outputs(layer, x), outputs(reference, x)

    ((_, ours), ours_grads), ((_, theirs), theirs_grads) = both(layer, reference, x)
    assert ours.dtype == theirs.dtype
    assert_close(ours, theirs)
    assert_close(ours_grads[1], theirs_grads[1])
    for name in ("kernel", "bias") if layer.bias is not None else ("kernel",):
        assert_close(ours_grads[0][name][...], theirs_grads[0][name][...])


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("use_bias", [False, True])
def test_linear(batch, use_bias):
    options = {"use_bias": use_bias, "kernel_init": signs, "rngs": nnx.Rngs(0)}
    assert_same_function(
        BinaryLinear(6, 4, **options), nnx.Linear(6, 4, **options), normal(*batch, 6)
    )


CONVS = {
    "integer-window": (3, (2, 9), {}),
    "rank-1": ((4,), (2, 9), {"strides": 2, "use_bias": True}),
    "rank-2": ((3, 3), (2, 7, 6), {}),
    "rank-3": ((2, 3, 1), (2, 4, 5, 3), {"strides": (1, 2, 1)}),
    "valid": ((3, 2), (2, 7, 6), {"padding": "VALID", "strides": (2, 1)}),
    "same-strided-dilated": ((3, 3), (2, 9, 8), {"strides": 2, "kernel_dilation": (1, 2)}),
    "dilated": ((3, 3), (2, 9, 8), {"kernel_dilation": 2, "use_bias": True}),
    "padding-integer": ((3, 3), (2, 7, 6), {"padding": 2}),
    "padding-integers": ((3, 3), (2, 7, 6), {"padding": (0, 2)}),
    "padding-pairs": ((3, 3), (2, 7, 6), {"padding": ((0, 2), (3, 1)), "strides": 3}),
    "groups": ((3, 3), (2, 7, 6), {"feature_group_count": 2}),
    "depthwise": ((3, 3), (2, 7, 6), {"feature_group_count": 4}),
    "no-batch": ((3, 3), (7, 6), {}),
    "two-batch-dimensions": ((3, 3), (2, 3, 7, 6), {"use_bias": True}),
}


@pytest.mark.parametrize(("window", "shape", "options"), CONVS.values(), ids=CONVS)
def test_conv(window, shape, options):
    options = {"use_bias": False, "kernel_init": signs, **options, "rngs": nnx.Rngs(0)}
    layer, reference = BinaryConv(4, 8, window, **options), nnx.Conv(4, 8, window, **options)
    assert_same_function(layer, reference, normal(*shape, 4))


@pytest.mark.parametrize("value", [1.0, -1.0])
@pytest.mark.parametrize(
    ("options", "pads"),
    [
        ({}, ((1, 1), (1, 1))),
        ({"strides": 2}, ((1, 1), (0, 1))),
        ({"kernel_dilation": 2}, ((2, 2), (2, 2))),
        ({"padding": ((0, 2), (3, 1))}, ((0, 2), (3, 1))),
        ({"padding": 1, "feature_group_count": 2}, ((1, 1), (1, 1))),
        ({"padding": "VALID"}, ((0, 0), (0, 0))),
    ],
    ids=["same", "same-strided", "same-dilated", "pairs", "groups", "valid"],
)
def test_padding_value(value, options, pads):
    """The quantized input is padded, so that the whole product is of ±1."""
    layer = BinaryConv(
        4, 8, (3, 3), padding_value=value, input_quantizer=ste_sign, rngs=nnx.Rngs(0), **options
    )
    x = normal(2, 7, 6, 4)
    signs = jnp.pad(binarize(x), ((0, 0), *pads, (0, 0)), constant_values=value)
    reference = nnx.Conv(
        4, 8, (3, 3), use_bias=False, rngs=nnx.Rngs(1), **{**options, "padding": "VALID"}
    )
    reference.kernel[...] = layer.kernel[...]
    y = layer(x)
    np.testing.assert_array_equal(y, reference(signs))
    # Sums of ±1, one per input of the window: their parity is that of their number.
    assert jnp.all(y % 2 == layer.kernel[..., 0].size % 2)


@pytest.mark.parametrize("quantizer", [ste_sign, approx_sign])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_input_quantizer(quantizer, kind):
    if kind == "linear":
        layer = BinaryLinear(6, 4, input_quantizer=quantizer, rngs=nnx.Rngs(0))
        plain, x = BinaryLinear(6, 4, rngs=nnx.Rngs(0)), normal(5, 6)
    else:
        layer = BinaryConv(6, 4, (3, 3), input_quantizer=quantizer, rngs=nnx.Rngs(0))
        plain, x = BinaryConv(6, 4, (3, 3), rngs=nnx.Rngs(0)), normal(2, 5, 5, 6)
    np.testing.assert_array_equal(layer(x), plain(binarize(x)))
    passed = jax.grad(lambda x: plain(x).sum())(binarize(x))
    slope = jax.vjp(quantizer, x)[1](passed)[0]
    np.testing.assert_allclose(jax.grad(lambda x: layer(x).sum())(x), slope, rtol=1e-6)


def new_layer(kind, **options):
    if kind == "linear":
        return BinaryLinear(4, 2, **options, rngs=nnx.Rngs(0)), jnp.ones((3, 4))
    return BinaryConv(4, 2, (3, 3), **options, rngs=nnx.Rngs(0)), jnp.ones((3, 5, 5, 4))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize(
    ("dtype", "param_dtype", "x_dtype", "expected"),
    [
        (None, "float32", "float32", "float32"),
        ("bfloat16", "float32", "float32", "bfloat16"),
        ("bfloat16", "float32", "bfloat16", "bfloat16"),
        (None, "bfloat16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "bfloat16", "float32"),
    ],
)
def test_dtypes(kind, dtype, param_dtype, x_dtype, expected):
    layer, x = new_layer(kind, dtype=dtype, param_dtype=param_dtype, use_bias=True)
    assert layer.kernel.dtype == layer.bias.dtype == param_dtype
    assert layer(x.astype(x_dtype)).dtype == expected
    grads = nnx.grad(lambda layer: layer(x.astype(x_dtype)).astype(jnp.float32).sum())(layer)
    assert grads["kernel"].dtype == grads["bias"].dtype == param_dtype


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_precision_reaches_the_product(kind):
    layer, x = new_layer(kind, precision=jax.lax.Precision.HIGHEST)
    assert "HIGHEST" in str(jax.make_jaxpr(lambda x: layer(x))(x))


def test_fair_initialization():
    layers = [BinaryConv(32, 64, (3, 3), rngs=nnx.Rngs(seed)) for seed in (0, 0, 1)]
    first, again, other = (np.asarray(layer.kernel[...]) for layer in layers)
    np.testing.assert_array_equal(np.unique(first), [-1, 1])
    assert abs(first.mean()) < 4 / np.sqrt(first.size)  # four standard errors
    np.testing.assert_array_equal(first, again)
    assert 0.4 < np.mean(first != other) < 0.6
    twins = nnx.Rngs(params=0)
    assert np.any(
        BinaryLinear(8, 8, rngs=twins).kernel[...] != BinaryLinear(8, 8, rngs=twins).kernel[...]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rademacher(dtype):
    weights = rademacher(jax.random.key(0), [1000, 10], dtype)
    assert (weights.shape, weights.dtype) == ((1000, 10), dtype)
    weights = np.asarray(weights, np.float32)
    assert np.all(np.abs(weights) == 1)
    assert abs(weights.mean()) < 0.04


def test_bias_starts_at_0():
    layer, _ = new_layer("linear", use_bias=True)
    np.testing.assert_array_equal(layer.bias[...], [0, 0])
    assert new_layer("linear")[0].bias is None


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("linear", (3, 5), r"BinaryLinear takes \(\.\.\., 4\), got an input of shape \(3, 5\)"),
        ("linear", (), r"got an input of shape \(\)"),
        ("conv", (5, 4), r"BinaryConv takes \(\.\.\., spatial, spatial, 4\).*\(5, 4\)"),
        ("conv", (1, 5, 5, 3), r"got an input of shape \(1, 5, 5, 3\)"),
    ],
)
def test_wrong_input(kind, shape, message):
    with pytest.raises(ValueError, match=message):
        new_layer(kind)[0](jnp.ones(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (1,)}, r"strides must be one integer or 2 of them, got \(1,\)"),
        ({"kernel_dilation": (1, 1, 1)}, r"kernel_dilation must be one integer or 2.*\(1, 1, 1\)"),
        ({"strides": 0}, "strides must be at least 1, got 0"),
        ({"strides": (2, -1)}, r"strides must be at least 1, got \(2, -1\)"),
        ({"kernel_dilation": 0}, "kernel_dilation must be at least 1, got 0"),
        ({"feature_group_count": 0}, r"must divide .*feature_group_count=0, in_features=4"),
        ({"feature_group_count": -2}, r"must divide .*feature_group_count=-2, in_features=4"),
        ({"padding": None}, "padding must be .*got None"),
        ({"padding": 1.5}, "padding must be .*got 1.5"),
        ({"padding": ((1, 0.5), 1)}, "padding must be .*got"),
        ({"feature_group_count": 3}, r"must divide .*feature_group_count=3, in_features=4"),
        ({"padding": "CIRCULAR"}, r"padding must be .* 2 spatial dimensions, got 'CIRCULAR'"),
        ({"padding": ((1, 1),)}, r"padding must be .*got \(\(1, 1\),\)"),
        ({"padding": ((1, 2), (3,))}, r"padding must be .*got \(\(1, 2\), \(3,\)\)"),
        ({"padding": ((1, 2), (3, 4, 5))}, r"padding must be .*got \(\(1, 2\), \(3, 4, 5\)\)"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        new_layer("conv", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": None}, "strides must be an integer or a sequence of integers, got None"),
        ({"strides": 1.0}, "strides must be an integer or a sequence of integers, got 1.0"),
        ({"strides": "2"}, "strides must be an integer or a sequence of integers, got 2"),
        ({"padding_value": None}, "padding_value must be a number, got padding_value=None"),
        ({"kernel_metadata": None}, "kernel_metadata must be a dictionary, got None"),
    ],
)
def test_options_of_a_wrong_type(options, message):
    with pytest.raises(TypeError, match=message):
        new_layer("conv", **options)


@pytest.mark.parametrize("size", [3.0, (3, 3.0), None])
@pytest.mark.parametrize("cls", [BinaryConv, BinaryConvTranspose])
def test_windows_of_a_wrong_type(cls, size):
    with pytest.raises(TypeError, match="kernel_size must be an integer or a sequence of integers"):
        cls(3, 4, size, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(2, 0, 8, 4), (2, 8, 0, 4)])
@pytest.mark.parametrize("cls", [BinaryConv, BinaryConvTranspose])
def test_images_without_pixels(cls, shape):
    with pytest.raises(ValueError, match="got an image without pixels"):
        cls(4, 3, (3, 3), rngs=nnx.Rngs(0))(jnp.ones(shape))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", ["input_quantizer", "kernel_quantizer"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("approx_sign", "got 'approx_sign': pass bop_optax.quantizers.approx_sign$"),
        ("dorefa_quantizer", "got 'dorefa_quantizer': pass bop_optax.quantizers.ste_sign$"),
        (1, "got 1: pass bop_optax.quantizers.ste_sign$"),
    ],
)
def test_quantizers_are_functions(kind, name, value, message):
    with pytest.raises(TypeError, match=f"{name} must be a function, {message}"):
        new_layer(kind, **{name: value})


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_kernel_constraints_belong_to_the_optimizer(kind):
    with pytest.raises(ValueError, match=r"kernel_constraint='weight_clip'.*clip_latent\(\)"):
        new_layer(kind, kernel_constraint="weight_clip")


@pytest.mark.parametrize("quantizer", [None, ste_sign])
def test_kernel_metadata_shards_the_kernel(quantizer):
    mesh = jax.make_mesh((2,), ("model",), (AxisType.Auto,), devices=jax.devices()[:2])
    metadata, x = {"out_sharding": (None, "model"), "role": "query"}, normal(3, 4)
    options = {"kernel_quantizer": quantizer, "input_quantizer": ste_sign}
    with jax.set_mesh(mesh):
        layer = BinaryLinear(4, 2, kernel_metadata=metadata, rngs=nnx.Rngs(0), **options)
        outputs = layer(x)
    assert layer.kernel.get_metadata("role") == "query"
    assert layer.kernel[...].sharding.spec == PartitionSpec(None, "model")
    whole = BinaryLinear(4, 2, rngs=nnx.Rngs(0), **options)
    np.testing.assert_array_equal(outputs, whole(x))


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ((0, 2, (3, 3)), "features and window"),
        ((4, 0, (3, 3)), "features and window"),
        ((4, 2, (3, 0)), "kernel_size"),
    ],
)
def test_empty_kernels_are_refused(sizes, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got"):
        BinaryConv(*sizes, rngs=nnx.Rngs(0))


def test_real_kernels_need_a_quantizer():
    real = nnx.initializers.glorot_uniform()
    with pytest.raises(ValueError, match="real weights need a kernel_quantizer"):
        new_layer("conv", kernel_init=real)
    new_layer("conv", kernel_init=real, kernel_quantizer=ste_sign)
    new_layer("conv", kernel_init=lambda *args: 0.1 * rademacher(*args))


def test_padding_names_ignore_case():
    x = normal(1, 5, 5, 4)
    for name in ("same", "valid"):
        layers = [
            BinaryConv(4, 2, (3, 3), padding=p, rngs=nnx.Rngs(0)) for p in (name, name.upper())
        ]
        np.testing.assert_array_equal(layers[0](x), layers[1](x))


@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"padding": ((1, 2), (2, 1))}])
@pytest.mark.parametrize("use_bias", [False, True])
def test_conv_transpose(options, use_bias):
    options |= {"use_bias": use_bias, "kernel_init": signs, "rngs": nnx.Rngs(0)}
    layer = BinaryConvTranspose(3, 4, (3, 2), kernel_dilation=2, **options)
    reference = nnx.ConvTranspose(3, 4, (3, 2), kernel_dilation=2, **options)
    assert_same_function(layer, reference, normal(2, 5, 6, 3))


@pytest.mark.parametrize(
    ("input_quantizer", "kernel_quantizer"),
    [(ste_heaviside, None), (ste_sign, magnitude_aware_sign), (magnitude_aware_sign, ste_sign)],
)
def test_one_bit_without_signs_is_multiplied_as_it_is(input_quantizer, kernel_quantizer):
    layer = BinaryLinear(
        40,
        3,
        input_quantizer=input_quantizer,
        kernel_quantizer=kernel_quantizer,
        rngs=nnx.Rngs(0),
    )
    x, kernel = normal(5, 40), layer.kernel[...]
    kernel = kernel_quantizer(kernel) if kernel_quantizer else kernel
    assert_close(layer(x), input_quantizer(x) @ kernel)


# --- in Flax ----------------------------------------------------------------------------------


def test_split_and_merge():
    layer, x = new_layer("conv", input_quantizer=ste_sign, use_bias=True)
    graphdef, binary, rest = nnx.split(layer, BinaryParam, ...)
    assert (list(binary), list(rest)) == (["kernel"], ["bias"])
    merged = nnx.merge(graphdef, binary, rest)
    assert type(merged.kernel) is BinaryParam
    np.testing.assert_array_equal(merged(x), layer(x))
    doubled = jax.jit(lambda state: jax.tree.map(lambda w: 2 * w, state))(
        nnx.state(layer, nnx.Param)
    )
    assert type(doubled["kernel"]) is BinaryParam


@pytest.mark.usefixtures("standard_promotion")
def test_training_keeps_kernels_binary():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = BinaryConv(1, 8, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.head = BinaryLinear(72, 2, input_quantizer=ste_sign, use_bias=True, rngs=rngs)

        def __call__(self, x):
            x = self.norm(self.conv(x))
            return self.head(x.reshape(len(x), -1)) / 8

    x = normal(32, 6, 6, 1)
    labels = jnp.where(jnp.mean(x, (1, 2, 3)) > 0, 1, 0)
    net = Net(nnx.Rngs(0))
    params = nnx.state(net, nnx.Param)
    start, kinds = jax.tree.map(np.asarray, params), binary_labels(params)
    transform = optax.partition({"binary": bop(0.1, 1e-3), "real": optax.adam(1e-2)}, kinds)
    optimizer = nnx.Optimizer(net, transform, wrt=nnx.Param)

    @nnx.jit
    def train_step(net, optimizer):
        def loss(net):
            return optax.softmax_cross_entropy_with_integer_labels(net(x), labels).mean()

        value, grads = nnx.value_and_grad(loss)(net)
        optimizer.update(net, grads)
        return value

    losses = []
    for _ in range(20):
        losses.append(float(train_step(net, optimizer)))
        for kernel in (net.conv.kernel, net.head.kernel):
            np.testing.assert_array_equal(jnp.abs(kernel[...]), jnp.ones_like(kernel[...]))
    assert losses[-1] < 0.7 * losses[0]
    assert flips(start, nnx.state(net, nnx.Param), labels=kinds) > 0
    assert np.any(net.norm.scale[...] != 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (5, 4, 3), (16, 10)])
def test_initializers_draw_the_numbers_of_jax_and_flax(shape, dtype):
    key = jax.random.key(3)
    signs = rademacher(key, shape, dtype)
    np.testing.assert_array_equal(signs, jax.random.rademacher(key, shape, dtype))
    weights = glorot_uniform(key, shape, dtype)
    expected = nnx.initializers.glorot_uniform()(key, shape, dtype)
    np.testing.assert_array_equal(weights, expected)
    assert signs.dtype == weights.dtype == dtype
