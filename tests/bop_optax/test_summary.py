"""Summaries: Larq's totals, hand tables, and products counted by adding up ones."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax import (
    approx_sign,
    dorefa,
    magnitude_aware_sign,
    ste_heaviside,
    ste_sign,
    ste_tern,
)
from bop_optax.folding import fold
from bop_optax.layers import (
    BinaryConv,
    BinaryConvTranspose,
    BinaryLinear,
    BinaryParam,
    Product,
)
from bop_optax.models.binary_alexnet import BinaryAlexNet
from bop_optax.models.binarynet import BinaryNet
from bop_optax.models.birealnet import BiRealNet
from bop_optax.models.xnornet import XNORNet
from bop_optax.packing import pack
from bop_optax.quantizers import precision
from bop_optax.summary import Row, Summary, Totals, summary
from tests.networks import shape_of

SIGN = {"input_quantizer": ste_sign}


def two_bits(x):
    return jnp.clip(jnp.round(x), -1, 1)


def scaled(x):  # whose bits follow from what it returns
    return 2 * ste_sign(x)


two_bits.precision = 2
scaled.is_scaled_sign = True


def small(**options):
    return BinaryNet(8, 16, stages=1, image_shape=(8, 8, 3), rngs=nnx.Rngs(0), **options)


class Net(nnx.Module):
    """A function of some layers."""

    def __init__(self, call, **layers):
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, *inputs):
        return self.call(self, *inputs)


# ---- Larq ----------------------------------------------------------------------------------------

# As larq.models.summary prints them: parameters and MACs of 1 and of 32 bits; kB of 1024 bytes.
LARQ = [
    (BinaryNet, 32, (10_352_000, 7_700), (510_961_664, 3_110_400), 1293.75, 40467.578125),
    (BiRealNet, 224, (10_985_472, 704_040), (1_676_279_808, 137_793_536), 4091.15625, 45662.15625),
    (
        BinaryAlexNet,
        224,
        (61_827_776, 20_944),
        (768_512_000, 72_855_552),
        7629.1484375,
        241596.5625,
    ),
    (XNORNet, 224, (58_236_928, 4_150_176), (1_025_744_896, 113_379_328), 23320.625, 243699.625),
]


@pytest.mark.parametrize(("build", "side", "parameters", "macs", "size", "float32_size"), LARQ)
def test_totals_are_those_of_larq(build, side, parameters, macs, size, float32_size):
    model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    totals = summary(model, (1, side, side, 3)).totals
    assert totals.parameters == {1: parameters[0], 32: parameters[1]}
    assert totals.macs == {1: macs[0], 32: macs[1]}
    assert totals.size == 8192 * size
    assert totals.float32_size == 8192 * float32_size
    assert totals.compression == float32_size / size
    assert totals.binary_share == macs[0] / sum(macs)


def test_rows_of_binarynet_in_the_order_of_the_calls():
    model = nnx.eval_shape(lambda: BinaryNet(rngs=nnx.Rngs(0)))
    rows = summary(model, (1, 32, 32, 3)).rows
    assert rows[:4] == (
        Row("convs/0", "BinaryConv", None, (1, 30, 30, 128), {1: 3_456}, {32: 3_110_400}),
        Row("norms/0", "BatchNorm", None, (1, 30, 30, 128), {32: 256}, {}),
        Row("convs/1", "BinaryConv", 1, (1, 30, 30, 128), {1: 147_456}, {1: 132_710_400}),
        Row("norms/1", "BatchNorm", None, (1, 15, 15, 128), {32: 256}, {}),
    )
    assert rows[-1] == Row("norms/8", "BatchNorm", None, (1, 10), {32: 20}, {})
    assert len(rows) == 18
    assert rows[2].size == 147_456


# ---- Products ------------------------------------------------------------------------------------


ONES = {"kernel_init": nnx.initializers.ones, "rngs": nnx.Rngs(0)}
conv = partial(BinaryConv, **SIGN, **ONES, product=Product("float"))  # which compiles sooner
transposed = partial(nnx.ConvTranspose, **ONES)


PRODUCTS = {  # padded by ones, so that each multiply-accumulate adds 1 to the sum of the outputs
    "linear": (BinaryLinear(5, 7, **ONES), (2, 3, 5)),
    "no batch": (BinaryLinear(5, 7, **ONES), (5,)),
    "valid": (conv(3, 4, (3, 2), padding="VALID"), (2, 8, 9, 3)),
    "same": (conv(3, 4, (3, 3), padding_value=1), (1, 8, 9, 3)),
    "strides": (conv(3, 4, (3, 3), strides=(2, 3), padding=1, padding_value=1), (1, 8, 9, 3)),
    "dilation": (conv(3, 4, (3, 3), kernel_dilation=(2, 1), padding="VALID"), (1, 8, 9, 3)),
    "groups": (conv(6, 4, (3, 3), feature_group_count=2, padding="VALID"), (1, 8, 9, 6)),
    "depthwise": (conv(6, 6, (3, 3), feature_group_count=6, padding="VALID"), (1, 8, 9, 6)),
    "one dimension": (conv(3, 4, 3, padding=((0, 2),), padding_value=1), (5, 8, 3)),
    "three dimensions": (conv(2, 3, (2, 2, 2), padding="VALID"), (1, 4, 5, 6, 2)),
    "more batch dimensions": (conv(3, 4, (3, 3), padding="VALID"), (2, 5, 8, 9, 3)),
    "transposed": (transposed(3, 4, (3, 3), padding="VALID"), (1, 5, 5, 3)),
    "transposed, strides": (transposed(3, 4, (2, 3), (2, 3), padding="VALID"), (2, 5, 5, 3)),
    "transposed, one stride": (transposed(3, 4, (1, 3), (1, 2), padding="VALID"), (2, 5, 5, 3)),
    "binary transposed": (
        BinaryConvTranspose(3, 4, (3, 3), 2, padding="VALID", **SIGN, **ONES),
        (1, 5, 5, 3),
    ),
    "real": (nnx.Linear(5, 7, **ONES), (2, 5)),
    "einsum": (nnx.Einsum("abc,cde->dbae", (5, 2, 4), rngs=nnx.Rngs(0)), (2, 3, 5)),
}


@pytest.mark.parametrize("name", sorted(set(PRODUCTS) - {"einsum", "transposed"}))
def test_macs_are_the_ones_that_a_layer_adds_up(name):
    layer, shape = PRODUCTS[name]
    (row,) = summary(layer, shape).rows
    y = layer(jnp.ones(shape))
    assert sum(row.macs.values()) == float(y.sum())
    assert row.output_shape == y.shape
    assert row.path == "."


def test_macs_by_hand():
    def macs(name):
        return summary(*PRODUCTS[name]).totals.macs

    assert macs("linear") == {32: 2 * 3 * 5 * 7}
    assert macs("same") == {1: 8 * 9 * 9 * 3 * 4}
    assert macs("einsum") == {32: 2 * 3 * 5 * 2 * 4}
    # Stride 1 spreads no input: padded zeros count, as in any convolution.
    assert macs("transposed") == {32: 7 * 7 * 9 * 3 * 4}


def test_padded_zeros_count():
    zeros = summary(conv(3, 4, (3, 3), padding_value=0), (1, 8, 9, 3))
    assert zeros.totals == summary(conv(3, 4, (3, 3), padding_value=1), (1, 8, 9, 3)).totals


def test_products_outside_of_layers():
    embed = nnx.Embed(11, 8, rngs=nnx.Rngs(0))
    model = Net(lambda m, x: m.embed.attend(m.embed(x)) @ jnp.ones((11, 2)), embed=embed)
    rows = summary(model, shape_of(3, 5, dtype=jnp.int32)).rows
    assert rows == (
        Row("embed", "Embed", None, (3, 5, 8), {32: 88}, {}),
        Row(".", "Net", None, (3, 5, 2), {}, {32: 15 * 8 * 11 + 15 * 11 * 2}),
    )


def test_attention():
    model = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    rows = {row.path: row for row in summary(model, (3, 5, 8)).rows}
    assert set(rows) == {".", "query", "key", "value", "out"}
    assert rows["query"].macs == {32: 15 * 8 * 8}
    assert rows["."].macs == {32: 2 * 3 * 5 * 5 * 8}  # scores, and weighted values


# ---- Precisions ----------------------------------------------------------------------------------

PRECISIONS = [  # input_quantizer, kernel_quantizer, dtype → bits of input, kernel, MACs
    (ste_sign, None, None, (1, 1, 1)),
    (partial(ste_sign, clip=2.0), approx_sign, None, (1, 1, 1)),
    (None, None, None, (None, 1, 32)),
    (None, None, jnp.bfloat16, (None, 1, 16)),
    (ste_sign, None, jnp.bfloat16, (1, 1, 1)),
    (two_bits, None, None, (2, 1, 2)),
    (ste_sign, partial(two_bits), None, (1, 2, 2)),
    (None, two_bits, None, (None, 2, 32)),
    (partial(dorefa, bits=4), partial(dorefa, bits=3, mode="weights"), None, (4, 3, 4)),
    (ste_heaviside, magnitude_aware_sign, None, (1, 1, 1)),
    (ste_tern, ste_heaviside, None, (2, 1, 2)),
    (ste_sign, scaled, None, (1, 1, 1)),
    (ste_sign, jnp.tanh, None, (1, 32, 32)),
    (jnp.tanh, ste_sign, None, (None, 1, 32)),
]


LAYERS = [BinaryLinear, partial(BinaryConv, kernel_size=3)]
LAYERS += [partial(BinaryConvTranspose, kernel_size=3, strides=2)]


@pytest.mark.parametrize(("inputs", "kernel", "dtype", "expected"), PRECISIONS)
@pytest.mark.parametrize("build", LAYERS)
def test_precisions(build, inputs, kernel, dtype, expected):
    options = {"input_quantizer": inputs, "kernel_quantizer": kernel, "dtype": dtype}
    model = build(8, 4, use_bias=True, rngs=nnx.Rngs(0), **options)
    (row,) = summary(model, (1, 6, 8)).rows
    bits, (macs,) = set(row.parameters), row.macs
    assert (row.input_precision, bits, macs) == (expected[0], {expected[1], 32}, expected[2])
    assert precision(inputs) == expected[0]


def test_dtypes():
    layer = nnx.Linear(8, 4, dtype=jnp.bfloat16, param_dtype=jnp.float16, rngs=nnx.Rngs(0))
    (row,) = summary(layer, shape_of(1, 8, dtype=jnp.bfloat16)).rows
    assert (row.parameters, row.macs) == ({16: 36}, {16: 32})


def test_only_the_product_of_a_layer_has_its_precision():
    class Scaled(BinaryLinear):
        def __call__(self, x):
            return super().__call__(x) + x @ jnp.ones((8, 1))

    (row,) = summary(Scaled(8, 4, **SIGN, rngs=nnx.Rngs(0)), (1, 8)).rows
    assert row.macs == {1: 32, 32: 8}
    assert row.type == "Scaled"


# ---- Parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("use_scale", [True, False])
def test_batch_norm_has_two_parameters_a_channel(use_bias, use_scale):
    norm = nnx.BatchNorm(5, use_bias=use_bias, use_scale=use_scale, rngs=nnx.Rngs(0))
    assert summary(norm, (2, 5)).totals == Totals({32: 10}, {})


def test_other_parameters():
    class Own(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.shift = nnx.data({"a": nnx.Param(jnp.ones(3)), "b": BinaryParam(jnp.ones(4))})
            self.scales = nnx.List([nnx.Param(jnp.ones(5, jnp.int8))])
            self.norm = nnx.LayerNorm(6, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)  # has the state of a generator
            self.unused = BinaryLinear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dropout(x))

    rows = {row.path: (row.output_shape, row.parameters) for row in summary(Own(), (2, 6)).rows}
    assert rows == {
        "norm": ((2, 6), {32: 12}),
        ".": ((2, 6), {32: 3, 1: 4}),
        "scales": (None, {8: 5}),
        "unused": (None, {1: 32}),
    }


def test_shared_parameters_count_once():
    first, tied = (BinaryLinear(8, 8, **SIGN, rngs=nnx.Rngs(0)) for _ in range(2))
    tied.kernel = first.kernel
    totals = summary(nnx.Sequential(first, tied, first), (1, 8)).totals
    assert totals == Totals({1: 64}, {1: 3 * 64})


def two_layers(**options):
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        BinaryLinear(40, 6, **options, rngs=rngs),
        nnx.BatchNorm(6, rngs=rngs),
        BinaryLinear(6, 4, **SIGN, **options, rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
    )


def test_latent_packed_and_folded_networks():
    binary = summary(two_layers(), (1, 40))
    assert binary.totals == Totals({1: 264, 32: 20}, {1: 24, 32: 240})
    assert summary(two_layers(kernel_quantizer=ste_sign), (1, 40)) == binary
    packed = summary(pack(two_layers()), (1, 40))
    assert packed.totals == binary.totals._replace(parameters={1: 264, 32: 30})  # α of ten outputs
    folded = summary(fold(two_layers(), shape_of(1, 40)), (1, 40))
    assert folded.rows[1] == Row("layers/1", "Threshold", None, (1, 6), {32: 6, 8: 6}, {})
    assert folded.totals == binary.totals._replace(parameters={1: 264, 8: 6, 32: 14})


def test_networks_packed_inside_vmap():
    @nnx.vmap
    def build(key):
        return pack(BinaryLinear(40, 8, **SIGN, rngs=nnx.Rngs(key)))

    layer = nnx.eval_shape(lambda: build(jax.random.split(jax.random.key(0), 3)))
    model = Net(nnx.vmap(lambda m, x: m.layer(x)), layer=layer)
    assert summary(model, (3, 2, 40)).totals == Totals({1: 3 * 320, 32: 3 * 8}, {1: 3 * 2 * 320})


# ---- What is executed ----------------------------------------------------------------------------


def stacked(number):
    @nnx.vmap
    def build(key):
        return BinaryLinear(8, 8, **SIGN, rngs=nnx.Rngs(key))

    return build(jax.random.split(jax.random.key(0), number))


def repeat(call, x, times):
    return jax.lax.scan(lambda x, _: (call(x), None), x, length=times)[0]


jitted = nnx.jit(lambda layer, x: layer(x))
by_vmap = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
by_scan = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
EXECUTED = {  # call, networks in the layer, times that a product of 1×8 by 8×8 runs
    "once": (lambda m, x: m.layer(x), 0, 1),
    "twice": (lambda m, x: m.layer(m.layer(x)), 0, 2),
    "jit": (lambda m, x: jitted(m.layer, x), 0, 1),
    "jit, twice": (lambda m, x: jitted(m.layer, jitted(m.layer, x)), 0, 2),
    "jit in jit": (lambda m, x: jitted(m.layer, jax.jit(lambda x: m.layer(x))(x)), 0, 2),
    "remat": (lambda m, x: nnx.remat(lambda layer, x: layer(x))(m.layer, x), 0, 1),
    "vmap over images": (lambda m, x: jax.vmap(m.layer)(x), 0, 1),
    "vmap": (lambda m, x: by_vmap(m.layer, x), 3, 3),
    "scan": (lambda m, x: by_scan(x, m.layer), 3, 3),
    "scan in scan": (lambda m, x: repeat(lambda x: repeat(m.layer, x, 3), x, 5), 0, 15),
    "vmap in scan": (lambda m, x: repeat(jax.vmap(m.layer), x, 5), 0, 5),
    "fori_loop": (lambda m, x: jax.lax.fori_loop(0, 7, lambda _, x: m.layer(x), x), 0, 7),
}


@pytest.mark.parametrize("name", EXECUTED)
def test_each_execution_counts(name):
    call, networks, times = EXECUTED[name]
    layer = stacked(networks) if networks else BinaryLinear(8, 8, **SIGN, rngs=nnx.Rngs(0))
    shown = summary(Net(call, layer=layer), (1, 8))
    (row,) = shown.rows
    assert (row.path, row.type, row.input_precision) == ("layer", "BinaryLinear", 1)
    assert shown.totals == Totals({1: 64 * max(1, networks)}, {1: 64 * times})


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat])
def test_calls_that_are_transformed_themselves(transform):
    class Twice(nnx.Module):
        def __init__(self):
            self.layer = BinaryLinear(8, 8, **SIGN, rngs=nnx.Rngs(0))
            self.shift = jnp.ones(8)  # an array, no variable

        @transform
        def __call__(self, x):
            return self.layer(self.layer(x)) + self.shift

    assert summary(Twice(), (1, 8)).totals == Totals({1: 64, 32: 8}, {1: 128})


def test_counting_on_packed_bits_changes_nothing():
    layer = BinaryLinear(64, 8, **SIGN, product=Product("popcount"), rngs=nnx.Rngs(0))
    assert summary(layer, (3, 64)).totals == Totals({1: 512}, {1: 3 * 512})


@pytest.mark.parametrize(
    ("primitive", "call"),
    [
        ("while", lambda m, x: jax.lax.while_loop(lambda x: x.sum() < 9, m.layer, x)),
        ("cond", lambda m, x: jax.lax.cond(x.sum() > 0, m.layer, lambda x: x, x)),
        (
            "while",
            lambda m, x: jax.jit(
                lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, jax.jit(m.layer), x)
            )(x),
        ),
    ],
)
def test_products_that_run_an_unknown_number_of_times_are_left_out_aloud(primitive, call):
    model = Net(call, layer=BinaryLinear(8, 8, **SIGN, rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match=f"the products inside a `{primitive}` are not counted"):
        shown = summary(model, (1, 8))
    assert shown.totals == Totals({1: 64}, {})
    assert shown.totals.binary_share == 0


def test_loops_without_products_are_silent():
    def call(m, x):
        return m.layer(jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x))

    model = Net(call, layer=BinaryLinear(8, 8, **SIGN, rngs=nnx.Rngs(0)))
    assert summary(model, (1, 8)).totals.macs == {1: 64}


def test_several_shapes_and_results():
    layer = BinaryLinear(8, 8, **SIGN, rngs=nnx.Rngs(0))
    model = Net(lambda m, x: {"a": m.layer(x), "b": m.layer(x[0])}, layer=layer)
    (row,) = summary(model, (3, 8)).rows
    assert (row.output_shape, row.macs) == (None, {1: 4 * 64})


# ---- Models and inputs ---------------------------------------------------------------------------


def test_forms_of_the_inputs():
    model = Net(
        lambda m, x, y: m.layer(x["images"]) + y, layer=BinaryLinear(8, 4, rngs=nnx.Rngs(0))
    )
    expected = summary(model, {"images": shape_of(2, 8)}, (2, 4))
    assert expected.totals.macs == {32: 64}
    assert summary(model, {"images": jnp.ones((2, 8))}, shape_of(2, 4)) == expected
    assert summary(model, {"images": np.ones((2, 8), np.float32)}, (2, 1)) == expected


def test_a_model_of_shapes_gives_the_same():
    assert summary(nnx.eval_shape(small), (1, 8, 8, 3)) == summary(small(), (1, 8, 8, 3))


def test_the_model_does_not_change():
    model = small()
    model.train()
    before = nnx.split(model)
    summary(model, (1, 8, 8, 3))
    graphdef, state = nnx.split(model)
    assert graphdef == before[0]
    assert type(model.convs[0]) is BinaryConv
    assert model.norms[0].use_running_average is False
    jax.tree.map(np.testing.assert_array_equal, state, before[1])


def test_modules_that_are_no_pytrees():
    class Plain(nnx.Module, pytree=False):
        def __init__(self):
            self.layers = [BinaryLinear(8, 8, rngs=nnx.Rngs(0)) for _ in range(2)]

        def __call__(self, x):
            return self.layers[1](self.layers[0](x))

    shown = summary(Plain(), (1, 8))
    assert [row.path for row in shown.rows] == ["layers/0", "layers/1"]
    assert shown.totals.macs == {32: 128}


def test_a_module_with_nothing_to_count():
    shown = summary(Net(lambda m, x: nnx.relu(x)), (1, 8))
    assert shown == Summary((), Totals({}, {}))
    assert str(shown).endswith("0.00 KiB (0.00 KiB in float32), 0 MACs (0.0% of them 1-bit)")


def test_a_wrong_shape_is_the_layers_error():
    with pytest.raises(ValueError, match=r"BinaryConv takes \(..., spatial, spatial, 3\)"):
        summary(small(), (1, 8, 8, 1))


# ---- Print ---------------------------------------------------------------------------------------


def test_the_table_lines_up():
    rows = (
        Row("a", "BinaryConv", 1, (1, 8, 8, 64), {1: 36_864}, {1: 2_359_296}),
        Row("b/norm", "BatchNorm", None, None, {32: 128}, {}),
        Row("c", "Linear", None, (1, 1000), {32: 64_000}, {32: 64_000}),
    )
    totals = Totals({1: 36_864, 32: 64_128}, {1: 2_359_296, 32: 64_000})
    lines = str(Summary(rows, totals)).splitlines()
    assert lines == [
        "                    input             1-bit  32-bit           1-bit  32-bit",
        "layer   type         bits    output  params  params     KiB    MACs    MACs",
        "─" * 75,
        "a       BinaryConv      1  1×8×8×64  36,864       -    4.50  2.36 M       -",
        "b/norm  BatchNorm       -         -       -     128    0.50       -       -",
        "c       Linear          -    1×1000       -  64,000  250.00       -    64 k",
        "─" * 75,
        "total                                36,864  64,128  255.00  2.36 M    64 k",
        "255.00 KiB (394.50 KiB in float32), 2.42 M MACs (97.4% of them 1-bit)",
    ]


def test_the_page_shows_what_is_printed():
    page = (Path(__file__).parents[2] / "docs" / "your_own_model.md").read_text()
    model = nnx.eval_shape(lambda: BinaryNet(rngs=nnx.Rngs(0)))
    shown = summary(model, (1, 32, 32, 3))
    assert f"```text\n{shown}\n```" in page
    assert f"`{shown.totals.macs}`" in page


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1 k"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (1_676_279_808, "1.68 G"),
        (2 * 10**12, "2 T"),
    ],
)
def test_numbers_of_macs(number, expected):
    assert f" {expected} MACs (100.0%" in str(Totals({1: 8}, {1: number})).replace(
        "(0.0%", "(100.0%"
    )


def test_sizes():
    assert str(Totals({1: 2**23}, {})).startswith("1.00 MiB (32.00 MiB in float32)")
    assert str(Totals({1: 2**23 - 8}, {})).startswith("1024.00 KiB (32.00 MiB in float32)")


@pytest.mark.parametrize("shape", [[1, 3], (np.int64(1), np.int64(3))])
def test_shapes_of_other_types(shape):
    model = BinaryLinear(3, 2, rngs=nnx.Rngs(0))
    assert summary(model, shape) == summary(model, (1, 3))


def test_wrong_models_and_shapes():
    with pytest.raises(ValueError, match=r"no negative size, got \(-1, 3\): give the batch as 1"):
        summary(BinaryLinear(3, 2, rngs=nnx.Rngs(0)), (-1, 3))
    with pytest.raises(TypeError, match="summary takes an NNX module, got NoneType"):
        summary(None, (1, 3))  # pyright: ignore[reportArgumentType]
