"""Weights in a file: each binary weight one bit, everything read back exactly."""

import hashlib
import json
import os
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import linen, nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bop_optax import binary_labels, ste_sign
from bop_optax.layers import BinaryConv, BinaryLinear, BinaryParam, LatentParam
from bop_optax.linen import with_binary
from bop_optax.models.binarynet import BinaryNet
from bop_optax.packing import pack
from bop_optax.saving import load, save

rng = np.random.default_rng(0)


def signs(*shape, dtype=np.float32):
    return rng.choice([-1, 1], shape).astype(dtype)


def every(name, leaf):
    return True


class Network(nnx.Module):
    """Odd sizes, a bias, statistics, random state, and a kernel that `Kernel` quantizes."""

    def __init__(self, kernel_quantizer=None, kernel_init=None, seed=0):
        rngs = nnx.Rngs(seed)
        options = {"kernel_quantizer": kernel_quantizer, "kernel_init": kernel_init, "rngs": rngs}
        self.conv = BinaryConv(3, 5, (3, 3), use_bias=True, **options)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = BinaryLinear(80, 7, input_quantizer=ste_sign, **options)

    def __call__(self, x):
        return self.dense(self.dropout(self.norm(self.conv(x))).reshape(len(x), -1))


def trained(**options):
    """A network with statistics and biases that are not those of the start."""
    model = Network(**options)
    state = nnx.state(model, (nnx.BatchStat, nnx.Param))
    for variable in jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable)):
        if not isinstance(variable, BinaryParam | LatentParam):
            variable.set_value(jnp.asarray(rng.uniform(0.5, 2, variable.shape), jnp.float32))
    nnx.update(model, state)
    model.eval()
    return model


def alpha(key, shape, dtype=jnp.float32):
    """Weights ±α with another α for each output."""
    scale = jax.random.uniform(key, shape[-1:], dtype, 0.1)
    return jax.random.rademacher(key, shape, dtype) * scale


def per_output(w):
    return jnp.where(w >= 0, 1.0, -1.0) * jnp.max(jnp.abs(w), range(w.ndim - 1))


per_output.is_scaled_sign = True
IMAGES = jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)


# ---- The file ------------------------------------------------------------------------------------


def test_the_file_by_hand(tmp_path):
    w = np.ones((3, 3), np.float32)
    w[0, 1] = w[2, 2] = -1  # entries 1 and 8 in row-major order
    save({"w": w * [1, 2, 1], "b": np.zeros(3)}, tmp_path / "f", lambda name, leaf: name == "w")
    with safetensors.safe_open(tmp_path / "f", "numpy") as file:
        assert sorted(file.keys()) == ["b", "w", "w/scale"]
        np.testing.assert_array_equal(file.get_tensor("w"), np.asarray([2, 1], np.uint8))
        np.testing.assert_array_equal(file.get_tensor("w/scale"), [1, 2, 1])
        metadata = file.metadata()
    one_bit = {"w": {"shape": [3, 3], "dtype": "float64"}}
    content = b'{"w": {"dtype": "float64", "shape": [3, 3]}}'
    content += b"\nb float64 (3,)\n" + np.zeros(3).tobytes()
    content += b"\nw uint8 (2,)\n" + b"\x02\x01"
    content += b"\nw/scale float64 (3,)\n" + np.asarray([1.0, 2.0, 1.0]).tobytes()
    description = {"version": 1, "sha256": hashlib.sha256(content).hexdigest(), "one_bit": one_bit}
    assert json.loads(metadata.pop("bop_optax")) == description
    assert not metadata
    assert os.listdir(tmp_path) == ["f"]


@given(
    arrays.arrays(bool, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)),
    st.sampled_from(["float16", "float32", "float64", "bfloat16", "int8"]),
    st.booleans(),
)
def test_any_shape_and_dtype(tmp_path_factory, negative, dtype, scaled):
    path = tmp_path_factory.mktemp("saved") / "f"
    w = np.where(negative, -1, 1).astype(dtype)
    if scaled:
        w *= np.arange(1, 1 + np.prod(w.shape[-1:], dtype=int)).reshape(w.shape[-1:]).astype(dtype)
    real = rng.normal(size=negative.shape).astype(dtype)
    save({"w": np.asfortranarray(w), "real": real}, path, lambda name, leaf: name == "w")
    back = load(path)
    for name, array in (("w", w), ("real", real)):
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_binarynet_takes_a_bit_a_weight(tmp_path):
    save(BinaryNet(rngs=nnx.Rngs(0)), tmp_path / "f")
    assert 10_352_000 / 8 < (tmp_path / "f").stat().st_size < 1.35e6


# ---- Networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"kernel_init": alpha}], ids=["signs", "alpha"])
def test_modules(tmp_path, options):
    model, other = trained(**options), Network(**options, seed=1)
    other.eval()
    assert jnp.any(model(IMAGES) != other(IMAGES))
    save(model, tmp_path / "f")
    assert load(tmp_path / "f", other) is other
    np.testing.assert_array_equal(model(IMAGES), other(IMAGES))
    assert {name.split("/")[0] for name in load(tmp_path / "f")} == {"conv", "norm", "dense"}
    save(pack(model), tmp_path / "packed")
    assert (tmp_path / "packed").read_bytes() == (tmp_path / "f").read_bytes()


@pytest.mark.parametrize("quantizer", [ste_sign, per_output])
def test_latent_networks_save_the_signs(tmp_path, quantizer):
    model, other = trained(kernel_quantizer=quantizer), Network(quantizer, seed=1)
    other.eval()
    save(model, tmp_path / "f")
    np.testing.assert_array_equal(
        load(tmp_path / "f")["conv/kernel"], quantizer(model.conv.kernel[...])
    )
    load(tmp_path / "f", other)
    np.testing.assert_array_equal(model(IMAGES), other(IMAGES))
    assert isinstance(model.conv.kernel, LatentParam)
    assert jnp.any(jnp.abs(model.conv.kernel[...]) != 1)  # the model itself keeps them


def test_other_quantizers_keep_their_real_weights(tmp_path):
    model = Network(kernel_quantizer=jnp.tanh)
    save(model, tmp_path / "f")
    np.testing.assert_array_equal(load(tmp_path / "f")["conv/kernel"], model.conv.kernel[...])


def test_linen_and_plain_trees(tmp_path):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(9, kernel_init=with_binary())(x)
            return linen.BatchNorm(use_running_average=True)(x)

    boxed = Net().init(jax.random.key(0), jnp.ones((2, 3)))
    save(boxed, tmp_path / "f")
    stored = load(tmp_path / "f")
    assert set(stored) == {
        *("params/Dense_0/kernel", "params/Dense_0/bias"),
        *("params/BatchNorm_0/scale", "params/BatchNorm_0/bias"),
        *("batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"),
    }
    back = load(tmp_path / "f", jax.tree.map(jnp.zeros_like, boxed))
    chex.assert_trees_all_equal(back, boxed)
    assert binary_labels(back) == binary_labels(boxed)
    plain = linen.unbox(boxed)
    save(plain, tmp_path / "g", lambda name, leaf: name == "params/Dense_0/kernel")
    assert (tmp_path / "g").read_bytes() == (tmp_path / "f").read_bytes()
    shapes = jax.eval_shape(lambda: plain)
    chex.assert_trees_all_equal(load(tmp_path / "g", shapes), plain)


def test_any_safetensors_file_is_read(tmp_path):
    safetensors.numpy.save_file({"a": np.arange(3)}, tmp_path / "f")
    np.testing.assert_array_equal(load(tmp_path / "f")["a"], [0, 1, 2])


# ---- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"w": np.asarray([1.0, 0.5])[:, None]}, "w is not −α or \\+α"),
        ({"w": np.asarray([1.0, np.nan])[:, None]}, "w is not −α or \\+α"),
        ({"w": np.asarray([1.0, 0.0])[:, None]}, "w is not −α or \\+α"),
        ({"w": 2 * signs(3, 2), "w/scale": signs(2)}, "two arrays have the name w/scale"),
        ({"a": {"b": signs(2)}, "a/b": signs(2)}, "two arrays have the name a/b"),
    ],
)
def test_trees_that_are_not_saved(tmp_path, tree, message):
    with pytest.raises(ValueError, match=message):
        save(tree, tmp_path / "f", every)
    assert not os.listdir(tmp_path)


def test_a_file_that_does_not_fit(tmp_path):
    save({"w": signs(3, 2), "b": np.zeros(2, np.float32)}, tmp_path / "f", every_kernel)
    like = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    load(tmp_path / "f", like)
    for change, fault in (
        ({"w": jnp.ones((2, 3))}, "w is float32 (3, 2), not float32 (2, 3)"),
        ({"w": jnp.ones((3, 2), jnp.bfloat16)}, "w is float32 (3, 2), not bfloat16 (3, 2)"),
        ({"c": jnp.zeros(2)}, "c is missing, not float32 (2,)"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"f does not fit: {fault}; load it")):
            load(tmp_path / "f", like | change)
    with pytest.raises(ValueError, match=r"f does not fit: b is float32 \(2,\), not missing; load"):
        load(tmp_path / "f", {"w": like["w"]})


def every_kernel(name, leaf):
    return name == "w"


def rewritten(path, tensors=None, **description):
    """The file with other tensors or another description."""
    old = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        description = json.loads(file.metadata()["bop_optax"]) | description
    del description["sha256"]  # which would tell of any change
    metadata = {"bop_optax": json.dumps(description)}
    safetensors.numpy.save_file(old | (tensors or {}), path, metadata)


FLOATS = {"shape": [3, 2], "dtype": "float32"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b"PK" + path.read_bytes()),
        lambda path: path.write_bytes(b""),
        lambda path: rewritten(path, {"w": np.zeros(2, np.uint8)}),
        lambda path: rewritten(path, {"w": np.zeros(1, np.int8)}),
        lambda path: rewritten(path, {"w/scale": np.ones(3, np.float32)}),
        lambda path: rewritten(path, {"w/scale": np.ones(2, np.float64)}),
        lambda path: rewritten(path, {"w/scale": np.float32([1, 0])}),
        lambda path: rewritten(path, {"w/scale": np.float32([1, -1])}),
        lambda path: rewritten(path, {"w/scale": np.float32([1, np.inf])}),
        lambda path: rewritten(path, {"w/scale": np.float32([1, np.nan])}),
        lambda path: rewritten(path, one_bit=[1]),
        lambda path: rewritten(path, one_bit={"v": FLOATS}),
        lambda path: rewritten(path, one_bit={"w": FLOATS | {"shape": [-3, -2]}}),
        lambda path: rewritten(path, one_bit={"w": FLOATS | {"shape": [3.0, 2]}}),
        lambda path: rewritten(path, one_bit={"w": FLOATS | {"dtype": "object"}}),
        lambda path: rewritten(path, one_bit={"w": FLOATS | {"dtype": "uint8"}}),
        lambda path: rewritten(path, one_bit={"w": {"shape": [3, 2]}}),
        lambda path: rewritten(path, version=2),
        lambda path: safetensors.numpy.save_file({}, path, {"bop_optax": "{"}),
        lambda path: safetensors.numpy.save_file({}, path, {"bop_optax": "[]"}),
    ],
)
def test_damaged_files(tmp_path, damage):
    path = tmp_path / "f"
    save({"w": signs(3, 2) * np.float32([1, 2])}, path, every)
    damage(path)
    with pytest.raises(ValueError, match="f is damaged"):
        load(path)


def test_no_flipped_bit_loads(tmp_path):
    """Each bit of a whole file: an error, or the weights as they were."""
    tree = {"w": signs(3, 2) * np.float32([1, 2]), "b": np.float32([3, 4])}
    save(tree, tmp_path / "f", every_kernel)
    content, refused = (tmp_path / "f").read_bytes(), 0
    for byte in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[byte] ^= 1 << bit
            (tmp_path / "f").write_bytes(changed)
            try:
                chex.assert_trees_all_equal(load(tmp_path / "f", tree), tree)
            except ValueError:
                refused += 1
    assert refused > 0.8 * 8 * len(content)  # the rest is spaces and numbers of no meaning


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm/var": np.float32([1, -1])}, "norm/var has negative variances"),
        ({"norm/mean": np.float32([1, np.nan])}, "norm/mean has numbers that are not finite"),
        ({"norm/bias": np.float32([1, np.inf])}, "norm/bias has numbers that are not finite"),
        ({"dense/kernel": np.float32([[1, 1], [1, 0.5]])}, "dense/kernel is not −α or"),
        ({"dense/kernel": np.float32([[1, 0], [1, 0]])}, "dense/kernel is not −α or"),
        ({"dense/kernel": np.float32([[1, np.inf]] * 2)}, "dense/kernel is not −α or"),
        ({"dense/kernel": np.float32([[1, np.nan]] * 2)}, "dense/kernel is not −α or"),
        ({"dense/kernel": np.ones((2, 2), np.float64)}, "does not fit: dense/kernel"),
    ],
)
def test_a_file_with_wrong_values(tmp_path, values, message):
    """A file of floats, as another program may write it."""

    class Net(nnx.Module):
        def __init__(self):
            self.dense = BinaryLinear(2, 2, rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(2, use_scale=False, rngs=nnx.Rngs(0))

    model = Net()
    arrays = {"dense/kernel": signs(2, 2), "norm/var": np.ones(2, np.float32)}
    arrays |= {"norm/bias": np.zeros(2, np.float32), "norm/mean": np.zeros(2, np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "f")
    load(tmp_path / "f", model)
    before = jax.tree.map(jnp.copy, nnx.state(model))
    safetensors.numpy.save_file(arrays | values, tmp_path / "f")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "f", model)
    chex.assert_trees_all_equal(nnx.state(model), before)


def test_a_missing_file(tmp_path):
    with pytest.raises(OSError, match="none"):
        load(tmp_path / "none")


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    save({"w": signs(3, 2)}, tmp_path / "f", every)
    before = (tmp_path / "f").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save({"w": signs(30, 2)}, tmp_path / "f", every)
    assert (tmp_path / "f").read_bytes() == before
