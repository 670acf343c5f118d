"""Layers of a weights file that Flax holds in another form."""

import h5py
import numpy as np
import pytest
from flax import nnx

from bop_optax import ste_sign
from bop_optax.larq import from_larq
from bop_optax.layers import BinaryLinear
from bop_optax.models.real_to_binary import PReLU
from bop_optax.packing import pack


class Grouped(nnx.Module):
    larq_quantizer = staticmethod(ste_sign)

    def __init__(self):
        self.conv = nnx.Conv(4, 6, (3, 3), feature_group_count=2, use_bias=False, rngs=nnx.Rngs(0))
        self.prelu = PReLU(6)

    def larq_layers(self):
        return (self.conv, self.conv, self.prelu)


def write(path, layers):
    """A file as Keras's `save_weights` writes it."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = list(layers)
        for layer, (name, array) in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}:0"]
            group[f"{layer}/{name}:0"] = array


def test_groups_of_a_convolution_and_the_slopes_of_a_prelu(tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 3, 3, 2, 3)).astype(np.float32)
    slopes = rng.normal(size=(1, 1, 6)).astype(np.float32)
    layers = {"a": ("kernel", first), "b": ("kernel", second), "c": ("alpha", slopes)}
    write(tmp_path / "weights.h5", layers)
    model = from_larq(Grouped(), tmp_path / "weights.h5")
    np.testing.assert_array_equal(model.conv.kernel[..., :3], first)
    np.testing.assert_array_equal(model.conv.kernel[..., 3:], second)
    np.testing.assert_array_equal(model.prelu.slope[...], slopes[0, 0])


def test_a_group_of_another_shape(tmp_path):
    kernel = np.zeros((3, 3, 2, 3))
    layers = {
        "a": ("kernel", kernel),
        "b": ("kernel", kernel[..., :2]),
        "c": ("alpha", np.zeros((1, 1, 6))),
    }
    write(tmp_path / "weights.h5", layers)
    with pytest.raises(ValueError, match=r"a has a kernel of \(3, 3, 2, 5\), not \(3, 3, 2, 6\)"):
        from_larq(Grouped(), tmp_path / "weights.h5")


@pytest.mark.parametrize("content", [b"", b"weights", None])
def test_files_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "weights.h5").write_bytes(content)
    with pytest.raises(OSError, match=r"weights\.h5 cannot be read"):
        from_larq(Grouped(), tmp_path / "weights.h5")


def test_hdf5_files_of_another_kind(tmp_path):
    path = tmp_path / "keras3.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_group("layers/conv2d/vars")["0"] = np.ones(3)
    with pytest.raises(ValueError, match=r"keras3.weights.h5 is no file of Keras 2's save_weights"):
        from_larq(Grouped(), path)
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = ["absent"]
    with pytest.raises(ValueError, match=r"keras3.weights.h5 is no file of Keras 2's save_weights"):
        from_larq(Grouped(), path)


class Dense(nnx.Module):
    larq_quantizer = staticmethod(ste_sign)

    def __init__(self):
        self.dense = BinaryLinear(2, 2, rngs=nnx.Rngs(0))

    def larq_layers(self):
        return (self.dense,)


def test_weights_that_are_not_finite(tmp_path):
    model, path = Dense(), tmp_path / "weights.h5"
    before = model.dense.kernel[...]
    write(path, {"a": ("kernel", np.array([[0.5, np.nan], [1, -1]]))})
    with pytest.raises(ValueError, match="a has a kernel that is not finite"):
        from_larq(model, path)
    np.testing.assert_array_equal(model.dense.kernel[...], before)


def test_packed_networks_are_not_read_into(tmp_path):
    write(tmp_path / "weights.h5", {"a": ("kernel", np.ones((2, 2)))})
    with pytest.raises(ValueError, match="the network is packed: read the weights first"):
        from_larq(pack(Dense()), tmp_path / "weights.h5")


def test_files_that_refer_to_others(tmp_path):
    """An HDF5 file can take its data from any file that the process may read."""
    path, other = tmp_path / "weights.h5", tmp_path / "other.h5"
    write(other, {"a": ("kernel", np.ones((2, 2)))})
    write(path, {"a": ("kernel", np.ones((2, 2)))})
    with h5py.File(path, "a") as file:
        del file["a/a/kernel:0"]
        file["a/a/kernel:0"] = h5py.ExternalLink("other.h5", "/a/a/kernel:0")
    with pytest.raises(ValueError, match=r"a/a/kernel:0 is a link"):
        from_larq(Dense(), path)
    (tmp_path / "raw").write_bytes(np.ones((2, 2)).tobytes())
    with h5py.File(path, "a") as file:
        del file["a/a/kernel:0"]
        external = [(str(tmp_path / "raw"), 0, 32)]
        file["a"].create_dataset("a/kernel:0", (2, 2), "f8", external=external)
    with pytest.raises(ValueError, match=r"/a/a/kernel:0 lies in another file"):
        from_larq(Dense(), path)
