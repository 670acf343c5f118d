"""Packed networks: the same logits, in a 32nd of the memory, without derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax import approx_sign, check_binary, magnitude_aware_sign, ste_sign
from bop_optax.layers import (
    BinaryConv,
    BinaryLinear,
    LatentParam,
    PackedParam,
    Product,
    with_binary_kernels,
)
from bop_optax.models.binarynet import BinaryNet
from bop_optax.models.birealnet import BiRealBlock
from bop_optax.packing import pack

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
SMALL = {"image_shape": (8, 8, 3), "rngs": nnx.Rngs(0)}


def trained(model):
    """BatchNorm's statistics and biases as after some steps."""
    model.train()
    nnx.jit(lambda model: model(IMAGES))(model)
    for variable in jax.tree.leaves(
        nnx.state(model, nnx.BatchStat), is_leaf=lambda v: isinstance(v, nnx.Variable)
    ):
        assert jnp.any(variable[...] != 0)
    model.eval()
    return model


def logits(model):
    return nnx.jit(lambda model: model(IMAGES))(model)


@pytest.mark.parametrize("forward", ["popcount", "float"])
@pytest.mark.parametrize(
    "build",
    [
        lambda **o: BinaryNet(40, 48, stages=1, **SMALL, **o),
        lambda **o: BinaryNet(8, 16, stages=1, kernel_quantizer=ste_sign, **SMALL, **o),
        lambda **o: BiRealBlock(
            3, 6, kernel_quantizer=None, kernel_init=None, dtype=None, rngs=nnx.Rngs(0), **o
        ),
    ],
    ids=["BinaryNet", "latent BinaryNet", "block of Bi-Real Net"],
)
def test_logits_are_the_same_to_the_bit(build, forward):
    model = trained(build(product=Product(forward)))
    packed = pack(model)
    np.testing.assert_array_equal(logits(packed), logits(model))
    np.testing.assert_array_equal(logits(pack(packed)), logits(model))
    for source in (model, packed):
        binary = with_binary_kernels(source)
        np.testing.assert_array_equal(logits(binary), logits(model))
        check_binary(nnx.state(binary, nnx.Param))
        assert not jax.tree.leaves(nnx.state(binary, nnx.Any(PackedParam, LatentParam)))
        names = [dict(nnx.to_flat_state(nnx.state(m))).keys() for m in (binary, build())]
        assert names[0] == names[1]
    assert {k.dtype for k in jax.tree.leaves(nnx.state(packed, PackedParam))} == {
        jnp.dtype("uint32")
    }


def test_binary_kernels_keep_scales_and_metadata():
    options = {"kernel_quantizer": magnitude_aware_sign, "kernel_metadata": {"role": "query"}}
    layer = BinaryLinear(40, 5, rngs=nnx.Rngs(0), **options)
    binary = with_binary_kernels(layer)
    np.testing.assert_array_equal(binary.kernel[...], magnitude_aware_sign(layer.kernel[...]))
    assert binary.kernel.get_metadata("role") == "query"
    assert isinstance(layer.kernel, LatentParam)
    tanh = BinaryLinear(4, 3, kernel_quantizer=jnp.tanh, rngs=nnx.Rngs(0))
    assert isinstance(with_binary_kernels(tanh).kernel, LatentParam)


@pytest.mark.parametrize("quantizer", [None, ste_sign])
def test_layers_that_share_a_kernel_share_its_binary_one(quantizer):
    class Tied(nnx.Module):
        def __init__(self):
            self.a, self.b, self.c = (
                BinaryLinear(4, 4, kernel_quantizer=quantizer, rngs=nnx.Rngs(i)) for i in range(3)
            )
            self.b.kernel = self.a.kernel

    binary = with_binary_kernels(Tied())
    assert binary.a.kernel is binary.b.kernel
    assert binary.a.kernel is not binary.c.kernel
    assert len(jax.tree.leaves(nnx.state(binary, nnx.Param))) == 2


def test_memory_of_a_packed_kernel():
    layer = BinaryConv(64, 32, (3, 3), rngs=nnx.Rngs(0))
    packed = pack(layer)
    assert packed.kernel.nbytes * 32 == layer.kernel.nbytes
    assert packed.kernel_scale.shape == (32,)
    assert layer.kernel.dtype == jnp.float32  # the model itself stays


def test_real_kernels_stay():
    model = BinaryLinear(4, 2, kernel_quantizer=jnp.tanh, rngs=nnx.Rngs(0))
    packed = pack(model)
    np.testing.assert_array_equal(packed.kernel[...], model.kernel[...])
    x = jnp.ones((3, 4))
    np.testing.assert_array_equal(packed(x), model(x))


def test_other_dtypes_and_a_bias():
    layer = BinaryLinear(
        40, 8, input_quantizer=approx_sign, use_bias=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    layer.bias[...] = jnp.linspace(-1, 1, 8)
    x = jnp.asarray(IMAGES[:, 0, :, 0]).repeat(5, -1)
    y = pack(layer)(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, layer(x))


def test_transformations():
    layer = BinaryLinear(40, 8, input_quantizer=ste_sign, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    packed = jax.jit(lambda state: nnx.state(pack(nnx.merge(graph, state))))
    packed_graph = nnx.graphdef(pack(layer))
    x = jnp.asarray(IMAGES[:, :5, :, 0]).reshape(3, -1)
    stacked = jax.tree.map(lambda a: jnp.stack([a, -a]), state)
    y = jax.vmap(lambda state: nnx.merge(packed_graph, packed(state))(x))(stacked)
    np.testing.assert_array_equal(y, [layer(x), -layer(x)])


def test_derivatives_are_refused():
    layer = pack(BinaryLinear(40, 8, input_quantizer=ste_sign, rngs=nnx.Rngs(0)))
    with pytest.raises(NotImplementedError, match="a packed kernel has no gradients"):
        jax.grad(lambda x: layer(x).sum())(jnp.ones((2, 40)))


def test_no_input_and_wrong_inputs():
    layer = pack(BinaryConv(3, 5, 3, input_quantizer=ste_sign, rngs=nnx.Rngs(0)))
    assert layer(jnp.zeros((0, 7, 3))).shape == (0, 7, 5)
    with pytest.raises(ValueError, match="BinaryConv takes"):
        layer(jnp.zeros((2, 7, 4)))


def test_networks_that_are_stacked_are_packed_inside_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = nnx.vmap(lambda key: BinaryLinear(40, 8, rngs=nnx.Rngs(key)))(keys)
    with pytest.raises(ValueError, match="pack networks that nnx"):
        pack(stacked)
    packed, x = nnx.vmap(pack)(stacked), jnp.ones((2, 40))
    y = nnx.vmap(lambda layer: layer(x))(packed)
    np.testing.assert_array_equal(y, nnx.vmap(lambda layer: layer(x))(stacked))


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_kernels_that_are_not_binary_are_refused(value):
    layer = BinaryLinear(40, 8, rngs=nnx.Rngs(0))
    layer.kernel[...] = layer.kernel[...].at[3, 2].set(value)
    with pytest.raises(ValueError, match=r"\(40, 8\) is not −α or \+α"):
        pack(layer)


class Doubled(BinaryLinear):
    """Reads the kernel itself."""

    def __call__(self, inputs):
        return 2 * inputs @ self.kernel[...]


class Wide(BinaryLinear):
    """Changes the construction alone."""

    def __init__(self, features, **options):
        super().__init__(features, 2 * features, **options)


def test_subclasses():
    x = jnp.ones((2, 40))
    doubled, wide = Doubled(40, 8, rngs=nnx.Rngs(0)), Wide(40, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(pack(doubled)(x), doubled(x))
    np.testing.assert_array_equal(pack(wide)(x), wide(x))
    assert isinstance(pack(wide).kernel, PackedParam)


@pytest.mark.parametrize("packs", [lambda layer: layer, pack], ids=["as trained", "packed"])
def test_batches_of_any_size_are_exported(packs):
    model = nnx.Sequential(
        BinaryConv(3, 40, (3, 3), rngs=nnx.Rngs(0)),
        BinaryConv(40, 8, (3, 3), input_quantizer=ste_sign, rngs=nnx.Rngs(1)),
        lambda x: x.mean((1, 2)),
        BinaryLinear(8, 4, input_quantizer=ste_sign, rngs=nnx.Rngs(2)),
    )
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 5, 6, 3), "float32")
    exported = jax.export.export(jax.jit(lambda x: packs(model)(x)))(images)
    x = jax.random.normal(jax.random.key(0), (7, 5, 6, 3))
    np.testing.assert_allclose(exported.call(x), model(x), rtol=1e-6)


def test_shares_of_a_batch_under_shard_map():
    layer = BinaryConv(40, 8, (3, 3), input_quantizer=ste_sign, rngs=nnx.Rngs(1))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (8, 5, 6, 40))
    for model in (layer, pack(layer)):
        spec = jax.P("batch")
        shares = jax.shard_map(lambda x, m=model: m(x), mesh=mesh, in_specs=spec, out_specs=spec)
        np.testing.assert_array_equal(jax.jit(shares)(x), layer(x))
