"""Wrong arguments of layers, networks and what is made of them: packed, folded, summarized."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from bop_optax import approx_sign, magnitude_aware_sign, models, ste_sign
from bop_optax.layers import (
    BinaryConv,
    BinaryConvTranspose,
    BinaryLinear,
    Product,
    convolution,
    glorot_uniform,
    rademacher,
    with_binary_kernels,
)
from bop_optax.linen import with_binary
from bop_optax.models.pooling import max_pool
from tests.bad_input.table import refuse, rows

RNGS = nnx.Rngs(0)
IMAGES = jnp.ones((1, 5, 5, 4))
KEY = jax.random.key(0)
linear = partial(BinaryLinear, rngs=RNGS)
conv = partial(BinaryConv, rngs=RNGS)
transposed = partial(BinaryConvTranspose, rngs=RNGS)
constant = nnx.initializers.constant


def returns(value):
    def init(key, shape, dtype):
        return value

    return init


def network(cls, *sizes, images=None, **options):
    """A network of shapes alone."""
    return nnx.eval_shape(lambda: cls(*sizes, rngs=nnx.Rngs(0), **options))


def forward(cls, shape):
    return jax.eval_shape(lambda: cls(rngs=nnx.Rngs(0))(jnp.ones(shape)))


def images_of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolve(images, kernel, strides=(1, 1), padding="SAME", **options):
    return convolution(
        images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


TABLE = [
    # Sizes
    (
        "features of a fraction",
        lambda: linear(2.5, 2),
        "TypeError: features and window must be integers, got (2.5, 2)",
    ),
    (
        "features of a string",
        lambda: linear("4", 2),
        "TypeError: features and window must be integers, got ('4', 2)",
    ),
    (
        "no features",
        lambda: linear(4, None),
        "TypeError: features and window must be integers, got (4, None)",
    ),
    (
        "features in a tuple",
        lambda: linear((4,), 2),
        "TypeError: features and window must be integers, got ((4,), 2)",
    ),
    (
        "negative features",
        lambda: linear(4, -1),
        "ValueError: features and window must be at least 1, got (4, -1)",
    ),
    (
        "10⁹ by 10⁹ features",
        lambda: linear(10**9, 10**9),
        "ValueError: a kernel has fewer than 2³¹ weights, got (1000000000, 1000000000)",
    ),
    (
        "a window of 10⁵ by 10⁵",
        lambda: conv(4, 2, (10**5, 10**5)),
        "ValueError: a kernel has fewer than 2³¹ weights, got (100000, 100000, 4, 2)",
    ),
    (
        "a window of 10¹⁰",
        lambda: conv(1, 1, (10**10,)),
        "ValueError: a kernel has fewer than 2³¹ weights, got (10000000000, 1, 1)",
    ),
    (
        "channels of a fraction",
        lambda: conv(2.5, 2, (3, 3)),
        "TypeError: features and window must be integers, got (2.5, 2)",
    ),
    (
        "channels of a string",
        lambda: conv("4", 2, (3, 3)),
        "TypeError: features and window must be integers, got ('4', 2)",
    ),
    (
        "no output channels",
        lambda: conv(4, None, (3, 3)),
        "TypeError: features and window must be integers, got (4, None)",
    ),
    (
        "0 channels",
        lambda: conv(0, 2, (3, 3)),
        "ValueError: features and window must be at least 1, got (0, 2)",
    ),
    (
        "0 output channels of a transposed convolution",
        lambda: transposed(4, 0, (3, 3)),
        "ValueError: features and window must be at least 1, got (3, 3, 4, 0)",
    ),
    (
        "channels of a fraction of a transposed convolution",
        lambda: transposed(4.5, 2, (3, 3)),
        "TypeError: features and window must be integers, got (3, 3, 4.5, 2)",
    ),
    (
        "0 groups",
        lambda: conv(4, 4, (3, 3), feature_group_count=0),
        (
            "ValueError: feature_group_count must divide in_features and out_features, got "
            "feature_group_count=0, in_features=4, out_features=4"
        ),
    ),
    (
        "groups of a fraction",
        lambda: conv(4, 4, (3, 3), feature_group_count=2.0),
        "TypeError: feature_group_count must be an integer, got feature_group_count=2.0",
    ),
    (
        "groups of a string",
        lambda: conv(4, 4, (3, 3), feature_group_count="2"),
        "TypeError: feature_group_count must be an integer, got feature_group_count='2'",
    ),
    (
        "no groups",
        lambda: conv(4, 4, (3, 3), feature_group_count=None),
        "TypeError: feature_group_count must be an integer, got feature_group_count=None",
    ),
    (
        "groups that divide the input channels alone",
        lambda: conv(4, 6, (3, 3), feature_group_count=4),
        (
            "ValueError: feature_group_count must divide in_features and out_features, got "
            "feature_group_count=4, in_features=4, out_features=6"
        ),
    ),
    (
        "a window without dimensions",
        lambda: conv(4, 2, ()),
        "ValueError: kernel_size must be at least 1, got ()",
    ),
    (
        "a window of a negative size",
        lambda: transposed(4, 2, (3, -3)),
        "ValueError: kernel_size must be at least 1, got (3, -3)",
    ),
    (
        "a stride of 0 in a transposed convolution",
        lambda: transposed(4, 2, (3, 3), strides=0),
        "ValueError: strides must be at least 1, got 0",
    ),
    (
        "a stride of 0 in one dimension",
        lambda: conv(4, 2, (3, 3), strides=(1, 0)),
        "ValueError: strides must be at least 1, got (1, 0)",
    ),
    (
        "strides of a string",
        lambda: transposed(4, 2, (3, 3), strides="2"),
        "TypeError: strides must be an integer or a sequence of integers, got 2",
    ),
    (
        "three strides for two dimensions",
        lambda: transposed(4, 2, (3, 3), strides=(1, 1, 1)),
        "ValueError: strides must be one integer or 2 of them, got (1, 1, 1)",
    ),
    (
        "a negative dilation",
        lambda: transposed(4, 2, (3, 3), kernel_dilation=-1),
        "ValueError: kernel_dilation must be at least 1, got -1",
    ),
    (
        "a dilation of a fraction",
        lambda: conv(4, 2, (3, 3), kernel_dilation=1.5),
        "TypeError: kernel_dilation must be an integer or a sequence of integers, got 1.5",
    ),
    # Paddings
    (
        "a negative padding",
        lambda: conv(4, 2, (3, 3), padding=-1),
        "ValueError: padding must be at least 0, got -1: crop the input before",
    ),
    (
        "a negative padding at one edge",
        lambda: conv(4, 2, (3, 3), padding=((0, 0), (0, -1))),
        "ValueError: padding must be at least 0, got ((0, 0), (0, -1)): crop the input before",
    ),
    (
        "a negative padding of a dimension",
        lambda: conv(4, 2, (3, 3), padding=(-1, 0)),
        "ValueError: padding must be at least 0, got (-1, 0): crop the input before",
    ),
    (
        "a negative padding of a transposed convolution",
        lambda: transposed(4, 2, (3, 3), padding=-10),
        "ValueError: padding must be at least 0, got -10: crop the input before",
    ),
    (
        "an unknown padding",
        lambda: transposed(4, 2, (3, 3), padding="FULL"),
        (
            'ValueError: padding must be "SAME", "VALID", an integer, or an integer or a (low, '
            "high) pair for each of 2 spatial dimensions, got 'FULL'"
        ),
    ),
    (
        "an empty padding",
        lambda: conv(4, 2, (3, 3), padding=""),
        (
            'ValueError: padding must be "SAME", "VALID", an integer, or an integer or a (low, '
            "high) pair for each of 2 spatial dimensions, got ''"
        ),
    ),
    (
        "a padding for each edge by name",
        lambda: conv(4, 2, (3, 3), padding=("SAME", "SAME")),
        (
            'ValueError: padding must be "SAME", "VALID", an integer, or an integer or a (low, '
            "high) pair for each of 2 spatial dimensions, got ('SAME', 'SAME')"
        ),
    ),
    (
        "no padding of a transposed convolution",
        lambda: transposed(4, 2, (3, 3), padding=None),
        (
            'ValueError: padding must be "SAME", "VALID", an integer, or an integer or a (low, '
            "high) pair for each of 2 spatial dimensions, got None"
        ),
    ),
    (
        "a padded value of NaN",
        lambda: conv(4, 2, (3, 3), padding_value=float("nan")),
        "ValueError: padding_value must be finite, got padding_value=nan",
    ),
    (
        "an infinite padded value",
        lambda: conv(4, 2, (3, 3), padding_value=float("inf")),
        "ValueError: padding_value must be finite, got padding_value=inf",
    ),
    (
        "a padded value of a string",
        lambda: conv(4, 2, (3, 3), padding_value="0"),
        "TypeError: padding_value must be a number, got padding_value='0'",
    ),
    (
        "a complex padded value",
        lambda: conv(4, 2, (3, 3), padding_value=1j),
        "TypeError: padding_value must be a number, got padding_value=1j",
    ),
    (
        "several padded values",
        lambda: conv(4, 2, (3, 3), padding_value=[0]),
        "TypeError: padding_value must be a number, got padding_value=[0]",
    ),
    # Dtypes, products, random numbers
    (
        "an unknown dtype",
        lambda: linear(4, 2, dtype="foo"),
        "TypeError: dtype must be a floating dtype, got 'foo'",
    ),
    (
        "a dtype of integers",
        lambda: conv(4, 2, (3, 3), dtype="int32"),
        "TypeError: dtype must be a floating dtype, got 'int32'",
    ),
    (
        "an unknown dtype of the parameters",
        lambda: linear(4, 2, param_dtype="foo"),
        "TypeError: param_dtype must be a floating dtype, got 'foo'",
    ),
    (
        "integer parameters",
        lambda: linear(4, 2, param_dtype="int32"),
        "TypeError: param_dtype must be a floating dtype, got 'int32'",
    ),
    (
        "unsigned parameters",
        lambda: linear(4, 2, param_dtype=jnp.uint8),
        "TypeError: param_dtype must be a floating dtype, got ...uint8...",
    ),
    (
        "complex parameters",
        lambda: conv(4, 2, (3, 3), param_dtype="complex64"),
        "TypeError: param_dtype must be a floating dtype, got 'complex64'",
    ),
    (
        "no dtype of the parameters",
        lambda: transposed(4, 2, (3, 3), param_dtype=None),
        "TypeError: param_dtype must be a floating dtype, got None",
    ),
    (
        "integer latent weights",
        lambda: linear(4, 2, param_dtype="int32", kernel_quantizer=ste_sign),
        "TypeError: param_dtype must be a floating dtype, got 'int32'",
    ),
    (
        "no random numbers",
        lambda: BinaryLinear(4, 2, rngs=None),
        "TypeError: rngs must be flax.nnx.Rngs, as nnx.Rngs(0), got None",
    ),
    (
        "a seed for random numbers",
        lambda: BinaryConv(4, 2, (3, 3), rngs=0),
        "TypeError: rngs must be flax.nnx.Rngs, as nnx.Rngs(0), got 0",
    ),
    (
        "a key for random numbers",
        lambda: BinaryLinear(4, 2, rngs=KEY),
        "TypeError: rngs must be flax.nnx.Rngs, as nnx.Rngs(0), got ...",
    ),
    (
        "a product by its name",
        lambda: linear(4, 2, product="popcount")(jnp.ones((1, 4))),
        "TypeError: product must be as Product('popcount'), got 'popcount'",
    ),
    (
        "no product",
        lambda: conv(4, 2, (3, 3), input_quantizer=ste_sign, product=None)(IMAGES),
        "TypeError: product must be as Product('popcount'), got None",
    ),
    (
        "an unknown product",
        lambda: Product("fast"),
        'ValueError: forward must be "auto", "popcount" or "float", got \'fast\'',
    ),
    (
        "a product in a list",
        lambda: Product(["popcount"]),
        'ValueError: forward must be "auto", "popcount" or "float", got [\'popcount\']',
    ),
    (
        "a backward pass of 1 bit",
        lambda: Product(backward=1),
        (
            'ValueError: backward must be "float32", "bfloat16" or a number of bits from 2 to 8, '
            "got 1"
        ),
    ),
    (
        "a backward pass of 9 bits",
        lambda: Product(backward=9),
        (
            'ValueError: backward must be "float32", "bfloat16" or a number of bits from 2 to 8, '
            "got 9"
        ),
    ),
    (
        "a backward pass of 2.0 bits",
        lambda: Product(backward=2.0),
        (
            'ValueError: backward must be "float32", "bfloat16" or a number of bits from 2 to 8, '
            "got 2.0"
        ),
    ),
    (
        "a backward pass of float16",
        lambda: Product(backward="float16"),
        (
            'ValueError: backward must be "float32", "bfloat16" or a number of bits from 2 to 8, '
            "got 'float16'"
        ),
    ),
    (
        "no backward pass",
        lambda: Product(backward=None),
        (
            'ValueError: backward must be "float32", "bfloat16" or a number of bits from 2 to 8, '
            "got None"
        ),
    ),
    # Kernels at the start
    (
        "an initializer by its name",
        lambda: linear(4, 2, kernel_init="ones"),
        "TypeError: kernel_init must be a function, got 'ones'",
    ),
    (
        "a constant as initializer",
        lambda: linear(4, 2, kernel_init=1.0),
        "TypeError: kernel_init must be a function, got 1.0",
    ),
    (
        "a kernel of 0",
        lambda: linear(4, 2, kernel_init=constant(0)),
        (
            "ValueError: kernel_init must return −α or +α, with one α for each output: a binary "
            "layer has no latent weights; real weights need a kernel_quantizer; "
            "got magnitudes of 0 to 0"
        ),
    ),
    (
        "a kernel of NaN",
        lambda: linear(4, 2, kernel_init=constant(jnp.nan)),
        (
            "ValueError: kernel_init must return −α or +α, with one α for each output: a binary "
            "layer has no latent weights; real weights need a kernel_quantizer; "
            "got magnitudes of nan to nan"
        ),
    ),
    (
        "an infinite kernel",
        lambda: conv(4, 2, (3, 3), kernel_init=constant(jnp.inf)),
        (
            "ValueError: kernel_init must return −α or +α, with one α for each output: a binary "
            "layer has no latent weights; real weights need a kernel_quantizer; "
            "got magnitudes of inf to inf"
        ),
    ),
    (
        "a kernel of normal numbers",
        lambda: conv(4, 2, (3, 3), kernel_init=nnx.initializers.normal()),
        (
            "ValueError: kernel_init must return −α or +α, with one α for each output: a binary "
            "layer has no latent weights; real weights need a kernel_quantizer; "
            "got magnitudes of ..."
        ),
    ),
    (
        "a kernel of uniform numbers",
        lambda: transposed(4, 2, (3, 3), kernel_init=glorot_uniform),
        (
            "ValueError: kernel_init must return −α or +α, with one α for each output: a binary "
            "layer has no latent weights; real weights need a kernel_quantizer; "
            "got magnitudes of ..."
        ),
    ),
    (
        "latent weights of NaN",
        lambda: linear(4, 2, kernel_init=constant(jnp.nan), kernel_quantizer=ste_sign),
        (
            "ValueError: kernel_init must return finite numbers, got magnitudes of nan to nan: "
            "draw smaller ones"
        ),
    ),
    (
        "infinite latent weights",
        lambda: conv(4, 2, (3, 3), kernel_init=constant(-jnp.inf), kernel_quantizer=ste_sign),
        (
            "ValueError: kernel_init must return finite numbers, got magnitudes of inf to inf: "
            "draw smaller ones"
        ),
    ),
    (
        "a transposed kernel",
        lambda: linear(4, 2, kernel_init=returns(jnp.ones((2, 4)))),
        (
            "ValueError: kernel_init must return floating numbers of shape (4, 2), got float32 of"
            " shape (2, 4)"
        ),
    ),
    (
        "a kernel of one number",
        lambda: linear(4, 2, kernel_init=returns(jnp.ones(()))),
        (
            "ValueError: kernel_init must return floating numbers of shape (4, 2), got float32 of"
            " shape ()"
        ),
    ),
    (
        "a kernel of integers",
        lambda: linear(4, 2, kernel_init=returns(jnp.ones((4, 2), int))),
        (
            "ValueError: kernel_init must return floating numbers of shape (4, 2), got int32 of "
            "shape (4, 2)"
        ),
    ),
    (
        "metadata in a list",
        lambda: linear(4, 2, kernel_metadata=[("role", "query")]),
        "TypeError: kernel_metadata must be a dictionary, got [('role', 'query')]",
    ),
    (
        "a constraint of a transposed kernel",
        lambda: transposed(4, 2, (3, 3), kernel_constraint="weight_clip"),
        (
            "ValueError: a layer constrains no kernel, got kernel_constraint='weight_clip': Bop "
            "needs no constraint; for latent weights chain bop_optax.latent.clip_latent() after "
            "the optimizer"
        ),
    ),
    (
        "the result of a quantizer",
        lambda: linear(4, 2, kernel_quantizer=ste_sign(jnp.ones(1))),
        (
            "TypeError: kernel_quantizer must be a function, got Array([1.], dtype=float32): pass"
            " bop_optax.quantizers.ste_sign"
        ),
    ),
    (
        "a quantizer that is True",
        lambda: conv(4, 2, (3, 3), input_quantizer=True),
        (
            "TypeError: input_quantizer must be a function, got True: pass "
            "bop_optax.quantizers.ste_sign"
        ),
    ),
    (
        "draws of −1 in unsigned integers",
        lambda: rademacher(KEY, (2, 2), "uint8"),
        "TypeError: dtype must be a floating dtype, got 'uint8'; use jnp.float32",
    ),
    (
        "scaled signs of latent weights of 0",
        lambda: with_binary_kernels(
            linear(4, 2, kernel_init=constant(0), kernel_quantizer=magnitude_aware_sign)
        ),
        (
            "ValueError: a kernel of shape (4, 2) is not −α or +α, with one α > 0 for each output: "
            "its magnitudes are 0 to 0"
        ),
    ),
    (
        "draws of a negative size",
        lambda: rademacher(KEY, (-1, 2)),
        "ValueError: shape must be of sizes ≥ 0, got (-1, 2)",
    ),
    (
        "draws of a number of weights",
        lambda: rademacher(KEY, 3),
        "TypeError: shape must be a tuple of integers, got 3",
    ),
    (
        "draws of a string",
        lambda: rademacher(KEY, "ab"),
        "TypeError: shape must be a tuple of integers, got 'ab'",
    ),
    (
        "uniform integers",
        lambda: glorot_uniform(KEY, (2, 2), "int32"),
        "TypeError: dtype must be a floating dtype, got 'int32'; use jnp.float32",
    ),
    (
        "a Glorot kernel of one dimension",
        lambda: glorot_uniform(KEY, (2,)),
        "ValueError: shape must be (*window, in, out), of sizes ≥ 1, got (2,)",
    ),
    (
        "a Glorot kernel without inputs",
        lambda: glorot_uniform(KEY, (0, 2)),
        "ValueError: shape must be (*window, in, out), of sizes ≥ 1, got (0, 2)",
    ),
    (
        "draws of integers for Linen",
        lambda: with_binary()(KEY, (2, 2), "int32"),
        "TypeError: dtype must be a floating dtype, got 'int32'; use jnp.float32",
    ),
    # Inputs
    (
        "an input of other features",
        lambda: linear(4, 2)(jnp.ones((1, 5))),
        "ValueError: BinaryLinear takes (..., 4), got an input of shape (1, 5)",
    ),
    (
        "an input of one number",
        lambda: linear(4, 2)(jnp.float32(1)),
        "ValueError: BinaryLinear takes (..., 4), got an input of shape ()",
    ),
    (
        "channels first",
        lambda: conv(4, 2, (3, 3))(jnp.ones((1, 4, 5, 5))),
        (
            "ValueError: BinaryConv takes (..., spatial, spatial, 4), got an input of shape (1, "
            "4, 5, 5)"
        ),
    ),
    (
        "a vector for a convolution",
        lambda: conv(4, 2, (3, 3))(jnp.ones(4)),
        "ValueError: BinaryConv takes (..., spatial, spatial, 4), got an input of shape (4,)",
    ),
    (
        "an input of too few dimensions for the window",
        lambda: conv(4, 4, (3,) * 5)(IMAGES),
        (
            "ValueError: BinaryConv takes (..., spatial, spatial, spatial, spatial, spatial, 4), "
            "got an input of shape (1, 5, 5, 4)"
        ),
    ),
    (
        "other channels in a transposed convolution",
        lambda: transposed(4, 2, (3, 3))(jnp.ones((1, 5, 5, 3))),
        (
            "ValueError: BinaryConvTranspose takes (..., spatial, spatial, 4), got an input of "
            "shape (1, 5, 5, 3)"
        ),
    ),
    (
        "an image without rows",
        lambda: conv(4, 2, (3, 3))(jnp.ones((1, 0, 5, 4))),
        "ValueError: BinaryConv got an image without pixels, (1, 0, 5, 4)",
    ),
    (
        "a window larger than the image",
        lambda: conv(4, 2, (7, 7), padding="VALID")(IMAGES),
        (
            "ValueError: the window (7, 7) is larger than the padded image, got an input of shape"
            " (1, 5, 5, 4)"
        ),
    ),
    (
        "a window larger than the image of one bit",
        lambda: conv(4, 2, (7, 7), padding="VALID", input_quantizer=ste_sign)(IMAGES),
        (
            "ValueError: the window (7, 7) is larger than the padded image, got an input of shape"
            " (1, 5, 5, 4)"
        ),
    ),
    (
        "a dilated window larger than the image",
        lambda: conv(4, 2, (3, 3), padding="VALID", kernel_dilation=4)(IMAGES),
        (
            "ValueError: the window (3, 3) is larger than the padded image, got an input of shape"
            " (1, 5, 5, 4)"
        ),
    ),
    (
        "a window higher than the image",
        lambda: conv(4, 2, (6, 1), padding="VALID")(IMAGES),
        (
            "ValueError: the window (6, 1) is larger than the padded image, got an input of shape"
            " (1, 5, 5, 4)"
        ),
    ),
    (
        "a sign of unsigned integers in a layer",
        lambda: linear(4, 2, input_quantizer=ste_sign)(jnp.ones((1, 4), jnp.uint8)),
        "TypeError: a sign needs a signed dtype, got uint8: cast to float32 before",
    ),
    (
        "a sign of Booleans in a layer",
        lambda: linear(4, 2, input_quantizer=approx_sign)(jnp.ones((1, 4), bool)),
        "TypeError: a sign needs a signed dtype, got bool: cast to float32 before",
    ),
    (
        "a quantizer that sums",
        lambda: linear(4, 2, input_quantizer=jnp.sum)(jnp.ones((1, 4))),
        "ValueError: input_quantizer must keep the shape (1, 4), got ()",
    ),
    (
        "a negative clip in a layer",
        lambda: linear(4, 2, input_quantizer=partial(ste_sign, clip=-1))(jnp.ones((1, 4))),
        "ValueError: clip must be above 0, got clip=-1",
    ),
    # Convolutions and pooling
    (
        "a real convolution of other channels",
        lambda: convolve(IMAGES, jnp.ones((3, 3, 3, 2))),
        "ValueError: a kernel (3, 3, 3, 2) takes 3 channels, got images of shape (1, 5, 5, 4)",
    ),
    (
        "a real convolution of groups of other channels",
        lambda: convolve(IMAGES, jnp.ones((3, 3, 3, 2)), feature_group_count=2),
        "ValueError: a kernel (3, 3, 3, 2) takes 6 channels, got images of shape (1, 5, 5, 4)",
    ),
    (
        "a real convolution of stride 0",
        lambda: convolve(IMAGES, jnp.ones((3, 3, 4, 2)), (0, 1)),
        "ValueError: window_strides must be at least 1, got (0, 1)",
    ),
    (
        "a real convolution of a negative stride",
        lambda: convolve(IMAGES, jnp.ones((3, 3, 4, 2)), (1, -1)),
        "ValueError: window_strides must be at least 1, got (1, -1)",
    ),
    (
        "a pool of size 0",
        lambda: max_pool(IMAGES, 0),
        "ValueError: size and stride must be at least 1, got size=0 and stride=2",
    ),
    (
        "a pool of a fraction",
        lambda: max_pool(IMAGES, 2.5),
        "TypeError: size and stride must be integers, got size=2.5 and stride=2",
    ),
    (
        "a pool of a tuple",
        lambda: max_pool(IMAGES, (2, 2)),
        "TypeError: size and stride must be integers, got size=(2, 2) and stride=2",
    ),
    (
        "a pool larger than the image",
        lambda: max_pool(IMAGES, 6),
        "ValueError: a window of 6×6 does not fit into images of (1, 5, 5, 4)",
    ),
    (
        "a pool of stride 0",
        lambda: max_pool(IMAGES, 2, stride=0),
        "ValueError: size and stride must be at least 1, got size=2 and stride=0",
    ),
    (
        "an unknown padding of a pool",
        lambda: max_pool(IMAGES, 2, "FULL"),
        'ValueError: padding must be "SAME" or "VALID", got padding=\'FULL\'',
    ),
    (
        "a pool of integers",
        lambda: max_pool(jnp.ones((1, 4, 4, 1), int), 2),
        "TypeError: max_pool takes floating numbers, got int32: cast to float32 before",
    ),
    (
        "a pool of one image",
        lambda: max_pool(jnp.ones((4, 4, 1)), 2),
        "ValueError: images must be (batch, height, width, channels), got (4, 4, 1)",
    ),
    (
        "a pool of an image without rows",
        lambda: max_pool(jnp.ones((1, 0, 4, 1)), 2, "SAME"),
        "ValueError: a window of 2×2 does not fit into images of (1, 0, 4, 1)",
    ),
    # Networks
    (
        "a network of width 0",
        lambda: network(models.BinaryNet, 0),
        "ValueError: width must be at least 1, got width=0",
    ),
    (
        "a network of width −1",
        lambda: network(models.BiRealNet, -1),
        "ValueError: width must be at least 1, got width=-1",
    ),
    (
        "a network of width 10⁹",
        lambda: network(models.BinaryNet, 10**9),
        "ValueError: a kernel has fewer than 2³¹ weights, got (3, 1000000000)",
    ),
    (
        "a network of a fraction",
        lambda: network(models.XNORNet, 2.5),
        "TypeError: width must be an integer, got width=2.5",
    ),
    (
        "a network of a string",
        lambda: network(models.BinaryAlexNet, "64"),
        "TypeError: width must be an integer, got width='64'",
    ),
    (
        "a network of no width",
        lambda: network(models.ReActNet, None),
        "TypeError: width must be an integer, got width=None",
    ),
    (
        "a network of a tuple",
        lambda: network(models.MeliusNet22, (64,)),
        "TypeError: width must be an integer, got width=(64,)",
    ),
    (
        "a ResNet of width 0",
        lambda: network(models.BinaryResNetE18, 0),
        "ValueError: width must be at least 1, got width=0",
    ),
    (
        "a Real-to-Binary network of width 0",
        lambda: network(models.RealToBinaryNet, 0),
        "ValueError: width must be at least 1, got width=0",
    ),
    (
        "a network of 0 units",
        lambda: network(models.BinaryAlexNet, units=0),
        "ValueError: units must be at least 1, got units=0",
    ),
    (
        "a network of negative units",
        lambda: network(models.XNORNet, units=-5),
        "ValueError: units must be at least 1, got units=-5",
    ),
    (
        "a network of 10⁹ units",
        lambda: network(models.BinaryAlexNet, units=10**9),
        "ValueError: a kernel has fewer than 2³¹ weights, got (9216, 1000000000)",
    ),
    (
        "a network of 0 stages",
        lambda: network(models.BinaryNet, stages=0),
        "ValueError: stages must be at least 1, got stages=0",
    ),
    (
        "a network of 30 stages",
        lambda: network(models.BinaryNet, stages=30),
        "ValueError: stages=30 poolings leave nothing of images of 32×32; use fewer",
    ),
    (
        "a network of negative stages",
        lambda: network(models.BinaryNet, stages=-1),
        "ValueError: stages must be at least 1, got stages=-1",
    ),
    (
        "an unknown first padding",
        lambda: network(models.BinaryNet, first_padding="FULL"),
        (
            'ValueError: padding must be "SAME", "VALID", an integer, or an integer or a (low, '
            "high) pair for each of 2 spatial dimensions, got 'FULL'"
        ),
    ),
    (
        "a number of classes as a string",
        lambda: network(models.BinaryNet, num_classes="10"),
        "TypeError: num_classes must be an integer, got num_classes='10'",
    ),
    (
        "a fraction of a class",
        lambda: network(models.QuickNet, num_classes=2.5),
        "TypeError: num_classes must be an integer, got num_classes=2.5",
    ),
    (
        "no number of classes",
        lambda: network(models.BinaryDenseNet28, num_classes=None),
        "TypeError: num_classes must be an integer, got num_classes=None",
    ),
    (
        "images without a channel",
        lambda: network(models.BiRealNet, image_shape=(32, 32)),
        "ValueError: image_shape must be (height, width, channels), got (32, 32)",
    ),
    (
        "images of a number",
        lambda: network(models.QuickNet, image_shape=224),
        "ValueError: image_shape must be (height, width, channels), got 224",
    ),
    (
        "images of fractions",
        lambda: network(models.ReActNet, image_shape=(32, 32, 3.0)),
        "ValueError: image_shape must be (height, width, channels), got (32, 32, 3.0)",
    ),
    (
        "images of strings",
        lambda: network(models.MeliusNet22, image_shape=(32, "32", 3)),
        "ValueError: image_shape must be (height, width, channels), got (32, '32', 3)",
    ),
    (
        "images of no shape",
        lambda: network(models.BinaryNet, image_shape=None),
        "ValueError: image_shape must be (height, width, channels), got None",
    ),
    (
        "images of a negative size",
        lambda: network(models.BinaryNet, image_shape=(-32, -32, 3)),
        "ValueError: images must be 1×1 or larger, got -32×-32",
    ),
    (
        "images too small to halve",
        lambda: network(models.BiRealNet, image_shape=(8, 8, 3)),
        "ValueError: images must be 32×32 or larger with small_images=False, got 8×8",
    ),
    (
        "images too small for AlexNet",
        lambda: network(models.XNORNet, image_shape=(32, 32, 3)),
        (
            "ValueError: images of 32×32 are too small for AlexNet's stride of 4 and its three "
            "3×3 max-pools; resize them to 57×57 or more"
        ),
    ),
    (
        "sections of one number",
        lambda: network(models.QuickNet, 4),
        "ValueError: sections must be tuples (blocks, channels) of integers ≥ 1, got 4",
    ),
    (
        "no sections",
        lambda: network(models.QuickNet, ()),
        "ValueError: sections must be tuples (blocks, channels) of integers ≥ 1, got ()",
    ),
    (
        "sections of numbers",
        lambda: network(models.QuickNet, (4, 4)),
        "ValueError: sections must be tuples (blocks, channels) of integers ≥ 1, got (4, 4)",
    ),
    (
        "sections without a dilation",
        lambda: network(models.BinaryDenseNet, ((1, 8),)),
        (
            "ValueError: sections must be tuples (blocks, channels, dilation) of integers ≥ 1, "
            "got ((1, 8),)"
        ),
    ),
    (
        "sections of 0 channels",
        lambda: network(models.BinaryDenseNet, ((1, 0, 1),)),
        (
            "ValueError: sections must be tuples (blocks, channels, dilation) of integers ≥ 1, "
            "got ((1, 0, 1),)"
        ),
    ),
    (
        "sections of an odd number of channels",
        lambda: network(models.QuickNet, ((1, 6),)),
        "ValueError: the first section needs a multiple of 4 channels, got 6",
    ),
    (
        "a growth of 0",
        lambda: network(models.BinaryDenseNet, ((1, 8, 1),), 0),
        "ValueError: growth must be at least 1, got growth=0",
    ),
    (
        "images of other channels for a network",
        lambda: forward(models.QuickNetSmall, (1, 32, 32, 7)),
        ("ValueError: a kernel (3, 3, 3, 8) takes 3 channels, got images of shape (1, 32, 32, 7)"),
    ),
    (
        "images of other channels for BinaryNet",
        lambda: forward(models.BinaryNet, (1, 32, 32, 4)),
        (
            "ValueError: BinaryConv takes (..., spatial, spatial, 3), got an input of shape (1, "
            "32, 32, 4)"
        ),
    ),
    (
        "a binary first layer without images",
        lambda: forward(models.BinaryNet, (1, 0, 0, 3)),
        "ValueError: BinaryConv got an image without pixels, (1, 0, 0, 3)",
    ),
]


@rows(TABLE)
def test_a_wrong_layer(call, message):
    refuse(call, message)
