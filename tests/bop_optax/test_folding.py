"""Folded networks: thresholds in place of BatchNorm, the same signs for every sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from bop_optax import ste_sign
from bop_optax.folding import Threshold, fold
from bop_optax.layers import BinaryConv, BinaryLinear, Product
from bop_optax.models.binary_alexnet import BinaryAlexNet
from bop_optax.models.binarynet import BinaryNet
from bop_optax.models.birealnet import BiRealNet
from bop_optax.models.xnornet import XNORNet
from bop_optax.packing import pack
from bop_optax.quantizers import binarize, is_sign
from bop_optax.saving import load, save
from tests.networks import set_norms, shape_of

INPUTS = 64  # of a layer whose sums are tried one by one


class Hidden(nnx.Module):
    """One layer, BatchNorm, one layer."""

    def __init__(self, features, *, one_bit=True, dtype=None, **norm):
        rngs = nnx.Rngs(0)
        sign = ste_sign if one_bit else None
        first = {"input_quantizer": sign, "kernel_init": nnx.initializers.ones, "dtype": dtype}
        self.first = BinaryLinear(INPUTS, features, **first, rngs=rngs)
        self.norm = nnx.BatchNorm(features, dtype=dtype, **norm, rngs=rngs)
        self.last = BinaryLinear(features, 3, input_quantizer=ste_sign, dtype=dtype, rngs=rngs)

    def signs(self, x):
        return binarize(self.norm(x))

    def __call__(self, x):
        return self.last(self.norm(self.first(x)))


@nnx.jit
def signs(model, x):
    return model.signs(x)


SPECIAL = [  # mean, variance, scale, bias: exact zeros, constant channels, tiny and huge numbers
    (3.0, 1.0, 1.0, 0.0),
    (3.0, 1.0, -1.0, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (-64.0, 2.0, 0.5, 0.0),
    (64.0, 2.0, -0.5, 0.0),
    (2.5, 1.0, 0.0, 0.0),
    (2.5, 1.0, 0.0, -1e-30),
    (0.0, 1.0, 1.0, 1e4),
    (0.0, 1.0, 1.0, -1e4),
    (0.0, 1.0, -1.0, -1e4),
    (1.0, 1e30, 1.0, 0.0),
    (1e6, 1e-12, 1.0, 3e6),
    (1.0, 3.0, 1e-38, -1e-38),
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_signs_of_every_sum_are_the_same(dtype):
    rng = np.random.default_rng(0)
    random = np.stack(
        [rng.normal(0, 8, 200), rng.uniform(0, 50, 200), rng.normal(size=200), rng.normal(size=200)]
    )
    integers = np.stack(  # BatchNorm's result is 0 at an integer
        [rng.integers(-9, 9, 87), np.ones(87), rng.choice([-1, 1], 87), np.zeros(87)]
    )
    mean, var, scale, bias = np.concatenate([np.transpose(SPECIAL), random, integers], 1)
    model = Hidden(mean.size, dtype=dtype)
    for name, values in {"mean": mean, "var": var, "scale": scale, "bias": bias}.items():
        getattr(model.norm, name)[...] = jnp.asarray(values, jnp.float32)
    model.eval()
    folded = fold(model, shape_of(1, INPUTS, dtype=dtype))
    assert folded.norm.threshold.dtype == jnp.int32
    sums = jnp.arange(-INPUTS, INPUTS + 1, dtype=dtype)[:, None] * jnp.ones(mean.size, dtype)
    expected = signs(model, sums)
    np.testing.assert_array_equal(folded.norm(sums), expected)
    assert folded.norm(sums).dtype == dtype
    normalized = nnx.jit(lambda norm, x: norm(x))(model.norm, sums)
    assert jnp.sum(normalized == 0) > 80  # exact zeros were among them
    both = (expected == 1).any(0) & (expected == -1).any(0)
    assert 150 < both.sum() < mean.size  # and constant channels


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_signs_of_real_sums_are_the_same(dtype):
    model = set_norms(Hidden(500, one_bit=False, dtype=dtype))
    folded = fold(model, shape_of(1, INPUTS, dtype=dtype))
    assert folded.norm.threshold.dtype == dtype
    threshold, direction = folded.norm.threshold[...], folded.norm.direction[...].astype(dtype)
    at = direction * threshold
    below = direction * jnp.nextafter(threshold, jnp.asarray(-jnp.inf, dtype))
    np.testing.assert_array_equal(signs(model, at), np.ones(500))
    np.testing.assert_array_equal(signs(model, below), -np.ones(500))
    for x in (at, below, jnp.asarray(np.random.default_rng(0).normal(0, 5, (99, 500)), dtype)):
        np.testing.assert_array_equal(folded.norm(x), signs(model, x))


def test_threshold_of_constant_channels_and_nan():
    model = Hidden(2, one_bit=False)
    model.norm.scale[...] = jnp.zeros(2)
    model.norm.bias[...] = jnp.array([1.0, -1.0])
    folded = fold(model, shape_of(1, INPUTS))
    np.testing.assert_array_equal(folded.norm.threshold[...], [-np.inf, np.inf])
    x = jnp.array([[-3e38, -3e38], [3e38, 3e38], [jnp.nan, jnp.nan]])
    np.testing.assert_array_equal(folded.norm(x), [[1, -1], [1, -1], [-1, -1]])


NETWORKS = {
    "BinaryNet": (lambda **o: BinaryNet(8, 16, stages=2, image_shape=(16, 16, 3), **o), 16, 6),
    "BinaryAlexNet": (lambda **o: BinaryAlexNet(2, 8, 10, image_shape=(64, 64, 3), **o), 64, 7),
    "XNORNet": (lambda **o: XNORNet(2, 8, 10, image_shape=(64, 64, 3), **o), 64, 6),
    "BiRealNet": (lambda **o: BiRealNet(2, 10, image_shape=(32, 32, 3), **o), 32, 0),
}


@pytest.mark.parametrize("quantizer", [None, ste_sign], ids=["binary", "latent"])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_the_networks_are_the_same(name, quantizer, tmp_path):
    build, side, number = NETWORKS[name]
    product = Product("float")  # which compiles sooner
    model = set_norms(build(kernel_quantizer=quantizer, product=product, rngs=nnx.Rngs(0)))
    images = np.random.default_rng(1).normal(size=(3, side, side, 3)).astype(np.float32)
    folded = fold(model, shape_of(1, side, side, 3))
    thresholds = [m for _, m in nnx.iter_modules(folded) if isinstance(m, Threshold)]
    assert len(thresholds) == number
    assert sum(t.threshold.dtype == jnp.int32 for t in thresholds) == max(number - 1, 0)
    logits = nnx.jit(lambda model: model(images))
    np.testing.assert_array_equal(logits(folded), logits(model))
    save(folded, tmp_path / "folded.safetensors")
    load(tmp_path / "folded.safetensors", folded)
    np.testing.assert_array_equal(logits(folded), logits(model))


def test_a_folded_network_can_be_packed():
    model = set_norms(BinaryNet(8, 16, stages=1, image_shape=(8, 8, 1), rngs=nnx.Rngs(0)))
    images = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
    logits = nnx.jit(lambda model: model(images))
    packed = pack(fold(model, images))
    np.testing.assert_array_equal(logits(packed), logits(model))
    assert isinstance(packed.norms[0], Threshold)


class Two(nnx.Module):
    """BatchNorm whose output goes to a sign and, by `use`, elsewhere."""

    def __init__(self, use):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.last = BinaryConv(8, 4, 1, input_quantizer=ste_sign, rngs=rngs)
        self.use = use

    def __call__(self, x):
        return self.use(self, x)


def negated_at_zero(x):
    return jnp.where(x > 0, 1.0, -1.0)


negated_at_zero.is_sign = True


class OwnNorm(nnx.BatchNorm):
    def __call__(self, x):
        return super().__call__(x) + 1


KEPT = {
    "a shortcut": lambda m, x: m.last(m.norm(x)) + m.norm.num_features + m.norm(x)[..., :4],
    "a sum before the sign": lambda m, x: m.last(m.norm(x) + x),
    "an output": lambda m, x: (y := m.norm(x), m.last(y)),
    "a relu": lambda m, x: m.last(nnx.relu(m.norm(x))),
    "another argument": lambda m, x: m.last(m.norm(x, use_running_average=True)),
    "a second call": lambda m, x: m.last(m.norm(m.norm(x))),
    "remat": lambda m, x: jax.checkpoint(lambda x: m.last(m.norm(x)))(x),
    "a name of the user's own": lambda m, x: m.last(nnx.relu(checkpoint_name(m.norm(x), "sign"))),
    "a call in a loop": lambda m, x: (
        m.last(m.norm(x)) + jax.lax.map(lambda y: m.norm(y).sum(), x).sum()
    ),
}


@pytest.mark.parametrize("use", KEPT)
def test_norms_of_which_more_than_the_sign_is_used_are_kept(use):
    folded = fold(Two(KEPT[use]), shape_of(1, 5, 8))
    assert type(folded.norm) is nnx.BatchNorm


@pytest.mark.parametrize("transform", [nnx.remat, nnx.jit])
def test_models_with_transforms_of_nnx(transform):
    model = Two(lambda m, x: transform(lambda m, x: m.last(m.norm(x)))(m, x))
    assert type(fold(model, shape_of(1, 5, 8)).norm) in (nnx.BatchNorm, Threshold)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(9, 5, 8)), jnp.float32)
    model.eval()
    np.testing.assert_array_equal(fold(model, x)(x), model(x))


class ScaledByActivations(BinaryLinear):
    """A layer that asks for its quantizer and uses its input, too, as XNOR-Net's do."""

    def __call__(self, x):
        y = super().__call__(x)
        return y * jnp.abs(x).mean() if is_sign(self.input_quantizer) else y


def test_a_layer_that_uses_its_input_too():
    model = Hidden(8)
    model.last = ScaledByActivations(8, 3, input_quantizer=ste_sign, rngs=nnx.Rngs(0))
    assert type(fold(model, shape_of(1, INPUTS)).norm) is nnx.BatchNorm


def median_sign(x):
    return ste_sign(x - jnp.median(x))


def shifted_sign(x):
    return ste_sign(x - jnp.zeros(8))


median_sign.is_sign = shifted_sign.is_sign = True


@pytest.mark.parametrize("quantizer", [median_sign, shifted_sign])
def test_quantizers_of_the_user_are_not_folded(quantizer):
    model = Hidden(8)
    model.last.input_quantizer = quantizer
    assert type(fold(model, shape_of(1, INPUTS)).norm) is nnx.BatchNorm


def test_integers_beyond_float32_keep_a_real_threshold():
    class Large(Hidden):
        def __call__(self, x):
            return self.last(self.norm(self.first(x) * 5e6))

    model = Large(4)
    model.norm.mean[...] = jnp.full(4, 3e7)
    model.eval()
    folded = fold(model, shape_of(1, INPUTS))
    assert folded.norm.threshold.dtype == jnp.float32
    x = jnp.asarray([[2.9e7], [3e7], [3.1e7]]) * jnp.ones(4)
    np.testing.assert_array_equal(folded.norm(x), signs(model, x))


def test_a_loop_with_a_condition_makes_no_integers():
    class Looped(Hidden):
        def __call__(self, x):
            start = (jnp.sum(x) < 1e9, self.first(x))
            _, y = jax.lax.while_loop(
                lambda c: c[0], lambda c: (jnp.sum(c[1]) > 1e9, c[1] + 0.3), start
            )
            return self.last(self.norm(y))

    assert fold(Looped(4), shape_of(1, INPUTS)).norm.threshold.dtype == jnp.float32


def test_float64():
    with jax.enable_x64(True):
        model = set_norms(Hidden(50, one_bit=False, dtype=jnp.float64))
        folded = fold(model, shape_of(1, INPUTS, dtype=jnp.float64))
        threshold = folded.norm.threshold[...]
        assert threshold.dtype == jnp.float64
        assert jnp.isfinite(threshold).all()
        x = jnp.asarray(np.random.default_rng(0).normal(0, 5, (99, 50)))
        np.testing.assert_array_equal(folded.norm(x), signs(model, x))


def test_a_norm_of_integers_is_kept():
    model = Two(lambda m, x: m.last(m.norm(x.astype(jnp.int32))))
    with jax.numpy_dtype_promotion("standard"):
        assert type(fold(model, shape_of(1, 5, 8)).norm) is nnx.BatchNorm


def test_shapes_between_norm_and_sign_may_change():
    model = Two(lambda m, x: m.last(m.norm(x).swapaxes(0, 1).reshape(-1, 1, 8)[::2]))
    assert isinstance(fold(model, shape_of(2, 6, 8)).norm, Threshold)


def test_other_norms_and_signs_are_kept():
    model = Two(lambda m, x: m.last(m.norm(x)))
    model.last.input_quantizer = negated_at_zero
    assert type(fold(model, shape_of(1, 5, 8)).norm) is nnx.BatchNorm
    model = Two(lambda m, x: m.last(m.norm(x)))
    model.norm = OwnNorm(8, rngs=nnx.Rngs(0))
    assert type(fold(model, shape_of(1, 5, 8)).norm) is OwnNorm
    model.norm = nnx.BatchNorm(8, axis=0, rngs=nnx.Rngs(0))
    assert type(fold(model, shape_of(8, 8)).norm) is nnx.BatchNorm


def test_sums_with_a_real_summand_are_no_integers():
    class Biased(Hidden):
        def __call__(self, x):
            return self.last(self.norm(self.first(x) + 0.5))

    folded = fold(Biased(4), shape_of(1, INPUTS))
    assert folded.norm.threshold.dtype == jnp.float32
    scaled = Hidden(4)
    scaled.first.kernel[...] = 0.25 * scaled.first.kernel[...]
    assert fold(scaled, shape_of(1, INPUTS)).norm.threshold.dtype == jnp.float32


def test_the_model_itself_is_not_changed():
    model = Hidden(4)
    model.train()
    fold(model, shape_of(1, INPUTS))
    assert type(model.norm) is nnx.BatchNorm
    assert model.norm.use_running_average is False
    assert model.last.input_quantizer is ste_sign


def test_a_norm_in_two_places_is_replaced_in_both():
    class Shared(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.body = nnx.Sequential(
                self.norm, BinaryLinear(8, 4, input_quantizer=ste_sign, rngs=rngs)
            )

        def __call__(self, x):
            return self.body(x)

    folded = fold(Shared(), shape_of(2, 8))
    assert folded.norm is folded.body.layers[0]
    assert isinstance(folded.norm, Threshold)
