"""TensorFlow Lite files run in Larq Compute Engine's interpreter and agree with JAX.

Needs `pip install -e '.[tflite]'` and, for the interpreter, an environment that benchmarks.peers
makes in $BOP_OPTAX_PEERS.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.contest import Task, Worker
from benchmarks.peers import DEFAULT_FOLDER, prepare
from bop_optax import ste_sign
from bop_optax.folding import fold
from bop_optax.layers import BinaryConv, BinaryLinear
from bop_optax.models import BinaryResNetE18, MeliusNet22, ReActNet, RealToBinaryNet
from bop_optax.models.binary_alexnet import BinaryAlexNet
from bop_optax.models.binary_densenet import BinaryDenseNet
from bop_optax.models.binarynet import BinaryNet
from bop_optax.models.birealnet import BiRealNet
from bop_optax.models.quicknet import QuickNet
from bop_optax.models.xnornet import XNORNet
from bop_optax.packing import pack
from tests.networks import set_norms, shape_of

pytest.importorskip("larq_compute_engine")
pytest.importorskip("tensorflow")
tflite_schema = pytest.importorskip("larq_compute_engine.mlir.python.tflite_schema")
from bop_optax.tflite import to_tflite  # noqa: E402

pytestmark = pytest.mark.slow
BUILTIN = {number: name for name, number in vars(tflite_schema.BuiltinOperator).items()}


# ---- The interpreter, and what a file holds ------------------------------------------------------


def interpret(file: Path, images: np.ndarray) -> np.ndarray:
    """Logits by Larq Compute Engine's interpreter."""
    folder = Path(os.environ.get("BOP_OPTAX_PEERS", DEFAULT_FOLDER)).expanduser()
    arrays, logits = file.with_name("images.npy"), file.with_name("logits.npy")
    np.save(arrays, images)
    options = {"engine": "lce", "file": str(file), "images": str(arrays), "logits": str(logits)}
    with Worker(Task([prepare("lce", folder), "-m", "benchmarks.engine_worker"], None)) as worker:
        worker.ask(job="classify", options=options | {"batch": 1})
    return np.load(logits)


def operations(file: Path) -> Counter[str]:
    content = file.read_bytes()
    model = tflite_schema.ModelT.InitFromObj(tflite_schema.Model.GetRootAs(content, 0))
    codes = [model.operatorCodes[o.opcodeIndex] for o in model.subgraphs[0].operators]
    names = [c.customCode.decode() if c.customCode else BUILTIN[c.builtinCode] for c in codes]
    return Counter(names)


# ---- Models --------------------------------------------------------------------------------------


def with_ones(model: nnx.Module) -> nnx.Module:
    """The model with ones as padding."""
    model = nnx.clone(model)
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, BinaryConv) and layer.input_quantizer is not None:
            layer.padding_value = 1.0
    return model


def folded(model: nnx.Module, side: int) -> nnx.Module:
    return fold(model, shape_of(1, side, side, 3))


def binarynet(**options) -> nnx.Module:
    return set_norms(BinaryNet(32, 64, rngs=nnx.Rngs(0), **options))


def alexnet() -> nnx.Module:
    model = BinaryAlexNet(32, 64, 10, image_shape=(64, 64, 3), rngs=nnx.Rngs(0))
    return set_norms(model)


def xnornet() -> nnx.Module:
    return set_norms(XNORNet(8, 64, 10, image_shape=(64, 64, 3), rngs=nnx.Rngs(0)))


def birealnet(side: int, **options) -> nnx.Module:
    shape = (side, side, 3)
    return set_norms(BiRealNet(8, 10, image_shape=shape, rngs=nnx.Rngs(0), **options))


def network(cls: type, *sizes: Any) -> nnx.Module:
    return set_norms(cls(*sizes, image_shape=(64, 64, 3), rngs=nnx.Rngs(0)))


def check(
    model: nnx.Module, shape: tuple[int, ...], folder: Path, atol: float, agreeing: float = 1
) -> Counter[str]:
    """Compares a file with its model on random images; returns the file's operations."""
    images = np.random.default_rng(1).normal(size=(16, *shape)).astype(np.float32)
    file = folder / "model.tflite"
    to_tflite(model, shape, file)
    ours = np.asarray(nnx.jit(model)(jnp.asarray(images))).reshape(16, -1)
    theirs = interpret(file, images).reshape(16, -1)
    assert np.mean(np.abs(theirs - ours).max(-1) <= atol) >= agreeing
    assert np.mean(theirs.argmax(-1) == ours.argmax(-1)) >= agreeing
    return operations(file)


# ---- Networks ------------------------------------------------------------------------------------


NETWORKS = {  # side of the images, one-bit and real products
    "binarynet": (binarynet, 32, 8, 1),
    "latent": (lambda: binarynet(kernel_quantizer=ste_sign), 32, 8, 1),
    "packed": (lambda: pack(binarynet()), 32, 8, 1),
    "folded": (lambda: folded(binarynet(), 32), 32, 8, 1),
    "ones": (lambda: with_ones(binarynet()), 32, 8, 1),
    "folded ones": (lambda: folded(with_ones(binarynet()), 32), 32, 8, 1),
    "alexnet": (alexnet, 64, 7, 1),
    "folded alexnet": (lambda: folded(alexnet(), 64), 64, 7, 1),
    "alexnet with ones": (lambda: with_ones(alexnet()), 64, 7, 1),
    "xnornet": (xnornet, 64, 6, 2),
    "birealnet": (lambda: birealnet(96), 96, 16, 5),
    "odd birealnet": (lambda: birealnet(33), 33, 16, 5),
    "small birealnet": (lambda: birealnet(32, small_images=True), 32, 16, 5),
    "quicknet": (lambda: network(QuickNet, ((1, 32), (1, 64)), 10), 64, 2, 6),
    "densenet": (lambda: network(BinaryDenseNet, ((2, 8, 1), (1, 12, 2)), 32), 64, 3, 3),
    "resnet e": (lambda: network(BinaryResNetE18, 8, 10), 64, 16, 5),
    "real to binary": (lambda: network(RealToBinaryNet, 8, 10), 64, 16, 37),
    "meliusnet": (lambda: network(MeliusNet22, 32, 10), 64, 34, 7),
    "reactnet": (lambda: network(ReActNet, 8, 10), 64, 22, 6),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree(name, tmp_path):
    build, side, products, real = NETWORKS[name]
    model = build()
    # Another order of a real sum turns a sign near 0, which these have in every block.
    agreeing = 0.9 if isinstance(model, BiRealNet | BinaryResNetE18) else 1
    found = check(model, (side, side, 3), tmp_path, 1e-4, agreeing)
    assert (found["LceBconv2d"], found["CONV_2D"]) == (products, real)
    # A threshold before the image becomes a vector, and ReActNet's four products of stride 2: their
    # border of one zero on each side is not TensorFlow's "SAME", and they are computed in float.
    assert found["LceDequantize"] <= (4 if isinstance(model, ReActNet) else 1)


def test_convolutions_write_bits_for_the_next_one_if_padded_with_ones(tmp_path):
    norms = [set_norms(nnx.BatchNorm(32, rngs=nnx.Rngs(0))) for _ in range(2)]
    conv = [
        BinaryConv(32, 32, (3, 3), padding_value=1, input_quantizer=ste_sign, rngs=nnx.Rngs(i))
        for i in range(3)
    ]
    model = nnx.Sequential(conv[0], norms[0], conv[1], norms[1], conv[2])
    found = check(model, (8, 8, 32), tmp_path, atol=0)
    assert found == {"LceQuantize": 1, "LceBconv2d": 3}


def test_a_max_pool_before_a_sign_pools_bits(tmp_path):
    def pool(x):
        return nnx.max_pool(x, (2, 2), (2, 2))

    norm = set_norms(nnx.BatchNorm(32, use_scale=False, rngs=nnx.Rngs(0)))
    conv = [
        BinaryConv(32, 32, (3, 3), padding_value=1, input_quantizer=ste_sign, rngs=nnx.Rngs(i))
        for i in range(2)
    ]
    model = nnx.Sequential(conv[0], pool, norm, conv[1])
    found = check(model, (8, 8, 32), tmp_path, atol=0)
    assert found == {"LceQuantize": 1, "LceBconv2d": 2, "LceBMaxPool2d": 1}


def test_vectors(tmp_path):
    layers = [
        BinaryLinear(i, o, input_quantizer=ste_sign, rngs=nnx.Rngs(0))
        for i, o in ((40, 64), (64, 7))
    ]
    norm = set_norms(nnx.BatchNorm(64, rngs=nnx.Rngs(0)))
    found = check(nnx.Sequential(layers[0], norm, layers[1]), (40,), tmp_path, atol=0)
    assert found["LceBconv2d"] == 2


# ---- Convolutions --------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_value", [0, 1])
@pytest.mark.parametrize("side", [1, 3, 8])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {}),
        (3, {"strides": 2}),
        (5, {}),
        (4, {"strides": 2}),
        (2, {"use_bias": True}),
        (3, {"kernel_dilation": 2}),
    ],
    ids=["3", "3_stride_2", "5", "4_stride_2", "2", "dilated"],
)
def test_convolutions_are_exact_at_every_edge(kernel, options, side, padding_value, tmp_path):
    layer = BinaryConv(
        16,
        33,
        (kernel, kernel),
        padding_value=padding_value,
        input_quantizer=ste_sign,
        rngs=nnx.Rngs(0),
        **options,
    )
    found = check(layer, (side, 9, 16), tmp_path, atol=0)
    assert found["LceBconv2d"] == 1
    assert not found["CONV_2D"]


@pytest.mark.parametrize("padding_value", [-1, 0, 1])
@pytest.mark.parametrize("padding", [1, 2, ((0, 2), (1, 0))])
@pytest.mark.parametrize("strides", [1, 2])
def test_other_paddings_are_right_too(strides, padding, padding_value, tmp_path):
    options = {"strides": strides, "padding": padding, "padding_value": padding_value}
    layer = BinaryConv(8, 16, (3, 3), input_quantizer=ste_sign, rngs=nnx.Rngs(0), **options)
    check(layer, (8, 9, 8), tmp_path, atol=0)


# ---- Files ---------------------------------------------------------------------------------------


def test_a_weight_takes_one_bit(tmp_path):
    def size(features):
        layer = BinaryLinear(features, 1024, input_quantizer=ste_sign, rngs=nnx.Rngs(0))
        to_tflite(layer, (features,), tmp_path / "model.tflite")
        return (tmp_path / "model.tflite").stat().st_size

    assert size(2048) - size(1024) == pytest.approx(1024 * 1024 / 8, abs=64)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: jnp.sin(x), "sin to .* has no translation"),
        (lambda x: jnp.tile(x, 2), "has no translation"),
        (BinaryConv(64, 64, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0)), "groups"),
    ],
    ids=["sin", "tile", "groups"],
)
def test_what_has_no_translation(model, message, tmp_path):
    with pytest.raises(NotImplementedError, match=message):
        to_tflite(nnx.Sequential(model), (8, 8, 64), tmp_path / "model.tflite")
