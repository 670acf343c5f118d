"""The product of the binary layers: by hand, by bits against floats, its gradients."""

import itertools
import logging
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax import _convolution, ste_sign
from bop_optax._popcount import pack_kernel
from bop_optax._product import Product, _round_to_bits, binary_product
from bop_optax.layers import BinaryConv, BinaryLinear, BinaryParam, rademacher
from bop_optax.processor import traced_for

rng = np.random.default_rng(0)


def signs(*shape):
    return jnp.asarray(rng.choice([-1.0, 1.0], shape), jnp.float32)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_product_of_a_matrix():
    x, kernel = jax.random.normal(jax.random.key(1), (5, 6)), rademacher(jax.random.key(0), (6, 4))
    np.testing.assert_allclose(binary_product(x, kernel), x @ kernel, rtol=1e-6)


@pytest.mark.parametrize("one_bit", [False, True])
def test_product_by_hand(one_bit):
    x, kernel = jnp.asarray([1.0, -1.0, 1.0]), jnp.asarray([1.0, 1.0, -1.0])

    def product(**options):
        y = binary_product(
            x[None, :, None],
            kernel[:, None, None],
            strides=(1,),
            kernel_dilation=(1,),
            one_bit=one_bit,
            **options,
        )
        return y[0, :, 0]

    np.testing.assert_array_equal(product(), [-1])
    np.testing.assert_array_equal(product(padding="SAME"), [2, -1, 0])
    np.testing.assert_array_equal(product(padding="SAME", padding_value=1.0), [3, -1, -1])
    np.testing.assert_array_equal(product(padding=[(0, 1)], padding_value=-1.0), [-1, 1])


# ---- One bit against floats ----------------------------------------------------------------------

GEOMETRIES = {
    "linear": ((), (5,), {}),
    "rank 1": ((3,), (33, 9), {"padding": "SAME"}),
    "same": ((3, 3), (4, 7, 6), {"padding": "SAME"}),
    "strided": ((3, 2), (4, 7, 6), {"strides": (2, 1)}),
    "pairs, +1": (
        (3, 2),
        (35, 8, 7),
        {"padding": [(0, 2), (3, 1)], "strides": (3, 2), "padding_value": 1.0},
    ),
    "dilated, -1": (
        (3, 3),
        (2, 9, 8),
        {"padding": "SAME", "kernel_dilation": (1, 2), "padding_value": -1.0},
    ),
    "rank 3, half": (
        (2, 3, 1),
        (2, 4, 5, 3),
        {"strides": (1, 2, 1), "padding": "SAME", "padding_value": 0.5},
    ),
    "rank 3, pairs": ((2, 3, 2), (2, 4, 5, 3), {"padding": [(1, 0), (0, 2), (1, 1)]}),
    "one image": ((3, 3), (1, 5, 5), {"padding": "SAME", "strides": (2, 2)}),
    "no image": ((3, 3), (0, 5, 5), {"padding": "SAME"}),
    "no pixel": ((3, 3), (2, 2, 5), {}),
    "cropped": ((2, 3), (2, 7, 6), {"padding": [(-1, 2), (1, -2)], "padding_value": -1.0}),
    "groups": ((3, 3), (2, 5, 5), {"padding": "SAME", "feature_group_count": 2}),
    "many pixels": ((3, 3), (3, 15, 15), {"padding": "SAME"}),
}


def operands(name, channels, dtype=jnp.float32):
    window, shape, options = GEOMETRIES[name]
    groups = options.get("feature_group_count", 1)
    kernel = signs(*window, channels, 38) * jnp.asarray(2.0 ** rng.integers(-2, 2, 38), jnp.float32)
    return signs(*shape, channels * groups).astype(dtype), kernel.astype(dtype), options


@pytest.mark.parametrize("channels", [1, 40])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_one_bit_equals_float(name, channels):
    """The forward pass to the bit; the gradients are those of the rounded incoming gradient."""
    x, kernel, options = operands(name, channels)
    float_product = partial(binary_product, **options)
    expected, float_vjp = jax.vjp(float_product, x, kernel)
    g = normal(*expected.shape)
    bits = 8 if name in ("linear", "same") else 2 if channels == 1 else 4
    ways = list(itertools.product(("popcount", "float"), ("float32", "bfloat16", bits)))

    @jax.jit
    def each_way(x, kernel):
        products = (partial(float_product, one_bit=True, product=Product(*way)) for way in ways)
        vjps = (jax.vjp(product, x, kernel) for product in products)
        return [(y, vjp(g)) for y, vjp in vjps]

    for (_, backward), (y, gradients) in zip(ways, each_way(x, kernel), strict=True):
        np.testing.assert_array_equal(y, expected)
        assert y.dtype == expected.dtype
        rounded = g
        if backward == "bfloat16":
            rounded = g.astype(jnp.bfloat16).astype(jnp.float32)
        elif backward != "float32" and g.size:
            alpha = jnp.abs(kernel.reshape(-1, 38)[0])
            integers, scale = _round_to_bits(g * alpha, backward)
            rounded = integers.astype(jnp.float32) * scale / alpha
        for ours, theirs in zip(gradients, float_vjp(rounded), strict=True):
            assert ours.dtype == theirs.dtype
            size = float(jnp.max(jnp.abs(theirs))) if theirs.size else 1.0
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-6 * size)


@pytest.mark.parametrize("channels", [1, 40])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_packed_kernels(name, channels):
    x, kernel, options = operands(name, channels)
    packed = pack_kernel(kernel)
    assert packed.words.size == kernel.size // channels * -(-channels // 32)
    np.testing.assert_array_equal(packed.unpack(), kernel)
    expected = binary_product(x, kernel, **options)
    for product in (Product("popcount"), Product("float")):
        y = binary_product(x, packed, **options, one_bit=True, product=product)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", ["linear", "rank 1", "same", "rank 3, pairs", "many pixels"])
def test_kernel_gradient_in_parts(name, monkeypatch):
    """The batch is divided into parts, the last of which may be smaller."""
    monkeypatch.setattr(_convolution, "UNPACKED", 2**12)
    x, kernel, options = operands(name, 40)
    product = partial(binary_product, **options)
    one_bit = partial(product, one_bit=True, product=Product("popcount"))
    g = normal(*product(x, kernel).shape)
    program = jax.make_jaxpr(lambda g: jax.vjp(one_bit, x, kernel)[1](g)[1])(g)
    assert ("scan" in str(program)) == (name != "linear")
    ours, theirs = (jax.vjp(f, x, kernel)[1](g)[1] for f in (one_bit, product))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-6 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(dtype):
    x, kernel, options = operands("same", 20, dtype)
    expected = binary_product(x, kernel, **options)
    y = binary_product(x, kernel, **options, one_bit=True, product=Product("popcount"))
    assert y.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("forward", ["popcount", "float"])
def test_gradients_of_few_bits_in_float16(forward):
    """Sums of the integers exceed the range of float16, tiny scales its precision."""
    x, kernel = signs(600, 40), signs(40, 38)
    g = 1e-4 * jnp.abs(normal(600, 38))
    results = []
    for dtype in (jnp.float16, jnp.float32):
        product = partial(binary_product, one_bit=True, product=Product(forward, 8))
        _, vjp = jax.vjp(product, jnp.abs(x).astype(dtype), jnp.abs(kernel).astype(dtype))
        results.append(vjp(g.astype(jnp.float16).astype(dtype)))
    for half, single in zip(*results, strict=True):
        assert half.dtype == jnp.float16
        np.testing.assert_allclose(half.astype(jnp.float32), single, rtol=2e-3)


def layer_and_images(**options):
    layer = BinaryConv(
        33, 20, (3, 3), input_quantizer=ste_sign, product=Product(**options), rngs=nnx.Rngs(0)
    )
    return layer, normal(8, 9, 9, 33)


@pytest.mark.parametrize("backward", ["float32", pytest.param(4, marks=pytest.mark.slow)])
def test_transformations(backward):
    """vmap, scan and remat compute what plain calls do."""
    layer, x = layer_and_images(forward="popcount", backward=backward)
    graph, params = nnx.split(layer)

    def gradients(params, x):
        return jax.grad(lambda p, x: jnp.sum(jnp.sin(nnx.merge(graph, p)(x))), (0, 1))(params, x)

    expected = jax.tree.leaves(jax.jit(gradients)(params, x))
    stacked = jnp.stack([x, x])
    ways = {
        "vmap": jax.vmap(gradients, (None, 0))(params, stacked),
        "scan": jax.lax.scan(lambda _, x: (None, gradients(params, x)), None, stacked)[1],
    }
    for results in ways.values():
        for ours, theirs in zip(jax.tree.leaves(results), expected, strict=True):
            np.testing.assert_allclose(ours[1], theirs, rtol=1e-5, atol=1e-4)
    remat = jax.grad(jax.checkpoint(lambda p, x: jnp.sum(jnp.sin(nnx.merge(graph, p)(x)))), (0, 1))
    for ours, theirs in zip(jax.tree.leaves(remat(params, x)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backward", ["float32", 4])
def test_networks_under_vmap(backward):
    """Several kernels are multiplied one after another, also under a second vmap over examples."""
    graph, params = nnx.split(layer_and_images(forward="popcount", backward=backward)[0])
    kernels, x = signs(3, 3, 3, 33, 20), normal(2, 2, 5, 5, 33)
    params = jax.tree.map(lambda _: kernels, params)

    def gradients(params, x):
        return jax.value_and_grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graph, p)(x))))(params)

    networks = jax.jit(jax.vmap(gradients, (0, None)))
    both = jax.jit(jax.vmap(jax.vmap(gradients, (None, 0)), (0, None)))(params, x)
    for i in range(3):
        one = jax.tree.map(lambda p, i=i: p[i], params)
        expected = jax.tree.leaves(jax.jit(gradients)(one, x[1]))
        for ours, theirs in zip(jax.tree.leaves(networks(params, x[1])), expected, strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-5, atol=1e-4)
        for ours, theirs in zip(jax.tree.leaves(both), expected, strict=True):
            np.testing.assert_allclose(ours[i, 1], theirs, rtol=1e-5, atol=1e-4)
    lowered = networks.lower(params, x[1]).as_text()
    assert "stablehlo.while" in lowered
    assert all("feature_group_count = 1 " in c for c in lowered.split("stablehlo.convolution")[1:])


@pytest.mark.parametrize(("platform", "counts"), [("cpu", True), ("cuda", False)])
def test_products_for_a_device_that_need_not_be_here(platform, counts):
    model = nnx.Sequential(
        BinaryConv(3, 33, (3, 3), rngs=nnx.Rngs(0)),
        BinaryConv(33, 8, (3, 3), input_quantizer=ste_sign, rngs=nnx.Rngs(1)),
    )
    with traced_for(platform):
        export = jax.export.export(jax.jit(lambda x: model(x)), platforms=[platform])
        text = export(jax.ShapeDtypeStruct((2, 9, 9, 3), "float32")).mlir_module()
    assert ("stablehlo.popcnt" in text) == counts
    assert text.count("stablehlo.convolution") == (0 if counts else 2)


def test_eight_devices_share_a_batch():
    layer, x = layer_and_images(forward="popcount", backward=8)
    graph, params = nnx.split(layer)

    @jax.jit
    def step(params, x):
        return jax.value_and_grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graph, p)(x))))(params)

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    shared = jax.device_put(x, jax.NamedSharding(mesh, jax.P("batch")))
    everywhere = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    for ours, theirs in zip(
        jax.tree.leaves(step(everywhere, shared)), jax.tree.leaves(step(params, x)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_the_backward_pass_keeps_bits():
    """No float of the size of the activations is kept but zeros, which XLA folds."""
    layer, x = layer_and_images(forward="popcount")
    _, vjp = jax.vjp(jax.jit(layer), x)
    kept = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size >= x.size]
    floats = [leaf for leaf in kept if leaf.dtype != bool]
    assert len(kept) - len(floats) == 1  # the mask of the estimator, a byte each
    assert not any(np.any(leaf) for leaf in floats)


def test_second_derivatives_are_refused():
    layer, x = layer_and_images()
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        jax.hessian(lambda x: jnp.sum(layer(x) ** 2))(x[:1])


# ---- Choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "backward", "instructions", "chosen"),
    [
        ("auto", "float32", ["avx2"], "backward float32"),
        ("auto", "bfloat16", ["avx2"], "backward bfloat16 in float32"),
        ("auto", "bfloat16", ["avx2", "avx512_bf16"], "backward bfloat16"),
        ("popcount", "bfloat16", ["avx2"], "backward bfloat16"),
        ("auto", 8, ["avx2"], "backward 8 in float32"),
        ("auto", 8, ["avx2", "avx512_vpopcntdq"], "backward 8"),
        ("auto", 4, [], "backward 4"),
        ("popcount", 8, [], "backward 8"),
    ],
)
def test_the_processor_decides(caplog, use_instructions, forward, backward, instructions, chosen):
    use_instructions(instructions)
    caplog.set_level(logging.DEBUG, "bop_optax.product")
    layer, x = layer_and_images(forward=forward, backward=backward)
    reference, _ = layer_and_images(forward="popcount", backward=backward)

    def gradient(layer):
        return nnx.grad(lambda layer, x: jnp.sum(jnp.sin(layer(x))))(layer, x)

    gradients = gradient(layer)
    assert caplog.messages[-1] == (f"(8, 9, 9, 33) by (3, 3, 33, 20): forward popcount, {chosen}")
    chex.assert_trees_all_close(
        nnx.state(gradients), nnx.state(gradient(reference)), rtol=1e-4, atol=1e-4
    )


def test_only_one_bit_operands_are_packed():
    real, bits = jnp.full((2, 3), 0.3), partial(ste_sign, clip=2.0)
    by_quantizer = {
        q: BinaryLinear(3, 2, input_quantizer=q, rngs=nnx.Rngs(0))(real)
        for q in (None, jnp.tanh, bits)
    }
    kernel = BinaryLinear(3, 2, rngs=nnx.Rngs(0)).kernel[...]
    np.testing.assert_allclose(by_quantizer[None], real @ kernel, rtol=1e-6)
    np.testing.assert_allclose(by_quantizer[jnp.tanh], jnp.tanh(real) @ kernel, rtol=1e-6)
    np.testing.assert_array_equal(by_quantizer[bits], jnp.ones_like(real) @ kernel)
    latent = BinaryLinear(
        3, 2, input_quantizer=ste_sign, kernel_quantizer=jnp.tanh, rngs=nnx.Rngs(0)
    )
    assert not isinstance(latent.kernel, BinaryParam)
    expected = jnp.ones_like(real) @ jnp.tanh(latent.kernel[...])
    np.testing.assert_allclose(latent(real), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forward": "fast"}, "forward must be .* got 'fast'"),
        ({"backward": 1}, "from 2 to 8, got 1"),
        ({"backward": 9}, "from 2 to 8, got 9"),
        ({"backward": "float16"}, "got 'float16'"),
    ],
)
def test_wrong_products(options, message):
    with pytest.raises(ValueError, match=message):
        Product(**options)


def test_latent_weights_without_a_quantizer_stay_real():
    """A trained layer whose kernel_quantizer is taken away computes with its real weights."""
    layer = BinaryLinear(
        3, 2, input_quantizer=ste_sign, kernel_quantizer=ste_sign, rngs=nnx.Rngs(0)
    )
    layer.kernel_quantizer = None
    expected = jnp.ones((2, 3)) @ layer.kernel[...]
    np.testing.assert_allclose(layer(jnp.ones((2, 3))), expected, rtol=1e-5)
