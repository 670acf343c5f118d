"""ONNX files in onnxruntime and qonnx against JAX; needs `pip install -e '.[export]'`."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax import ste_sign
from bop_optax.folding import fold
from bop_optax.layers import BinaryConv, BinaryLinear, Product, rademacher
from bop_optax.models import BinaryResNetE18, MeliusNet22, ReActNet, RealToBinaryNet
from bop_optax.models.binary_alexnet import BinaryAlexNet
from bop_optax.models.binary_densenet import BinaryDenseNet
from bop_optax.models.binarynet import BinaryNet
from bop_optax.models.birealnet import BiRealNet
from bop_optax.models.quicknet import QuickNet
from bop_optax.models.xnornet import XNORNet
from bop_optax.packing import pack
from tests.networks import set_norms, shape_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")
from bop_optax.onnx import to_onnx  # noqa: E402

pytestmark = pytest.mark.slow
QONNX = "qonnx.custom_op.general"
needs_qonnx = pytest.mark.skipif(not find_spec("qonnx"), reason="needs qonnx")

BOUND = 2e-6  # of the largest logit; JAX itself differs so much with and without jit
RGB = (32, 32, 3)


def rngs():
    return nnx.Rngs(0)


def alphas(key, shape, dtype=jnp.float32):
    return rademacher(key, shape, dtype) * jnp.linspace(0.5, 3, shape[-1]).astype(dtype)


def binarynet(**options):
    return BinaryNet(width=8, units=16, rngs=rngs(), **options)


def folded():
    return fold(set_norms(binarynet()), shape_of(1, *RGB))


def padded():
    options = {"input_quantizer": ste_sign, "rngs": rngs()}
    first = BinaryConv(3, 8, (3, 3), padding_value=1, **options)
    return nnx.Sequential(first, BinaryConv(8, 5, (3, 3), strides=2, padding_value=-1, **options))


def pooled():
    conv = BinaryConv(3, 5, (3, 3), rngs=rngs())
    return nnx.Sequential(conv, lambda x: nnx.max_pool(x, (3, 3), (2, 2), "SAME"), nnx.gelu)


NETWORKS = {
    "BinaryNet": (binarynet, RGB),
    "BinaryAlexNet": (
        lambda: BinaryAlexNet(2, 16, 10, image_shape=(64, 64, 3), rngs=rngs()),
        (64, 64, 3),
    ),
    "XNORNet": (lambda: XNORNet(2, 16, 10, image_shape=(64, 64, 3), rngs=rngs()), (64, 64, 3)),
    "QuickNet": (lambda: QuickNet(((1, 8), (1, 16)), 10, image_shape=RGB, rngs=rngs()), RGB),
    "BinaryDenseNet": (
        lambda: BinaryDenseNet(
            ((2, 8, 1), (1, 12, 2)), 4, num_classes=10, image_shape=RGB, rngs=rngs()
        ),
        RGB,
    ),
    "BiRealNet": (lambda: BiRealNet(4, 10, image_shape=RGB, rngs=rngs()), RGB),
    "BiRealNet, small": (
        lambda: BiRealNet(4, 10, image_shape=RGB, small_images=True, rngs=rngs()),
        RGB,
    ),
    "BinaryResNetE18": (lambda: BinaryResNetE18(4, 10, image_shape=RGB, rngs=rngs()), RGB),
    "BiRealNet, odd": (lambda: BiRealNet(4, 10, image_shape=(33, 35, 3), rngs=rngs()), (33, 35, 3)),
}
OTHERS = {
    # qonnx runs the first two in minutes; of ReActNet's concatenation of a map with itself its
    # cleanup renames one operand only.
    "RealToBinaryNet": (lambda: RealToBinaryNet(4, 10, image_shape=RGB, rngs=rngs()), RGB),
    "MeliusNet22": (lambda: MeliusNet22(16, 10, image_shape=RGB, rngs=rngs()), RGB),
    "ReActNet": (lambda: ReActNet(4, 10, image_shape=RGB, rngs=rngs()), RGB),
    "latent": (lambda: binarynet(kernel_quantizer=ste_sign), RGB),
    "alpha": (lambda: binarynet(kernel_init=alphas), RGB),
    "packed": (lambda: pack(binarynet()), RGB),
    "popcount": (lambda: pack(binarynet(product=Product("popcount"))), RGB),
    "folded": (folded, RGB),
    "padded": (padded, RGB),
    "pooled": (pooled, RGB),
    "one dimension": (lambda: BinaryConv(3, 5, 3, rngs=rngs()), (16, 3)),
    "few bits": (lambda: BinaryLinear(5, 3, input_quantizer=ste_sign, rngs=rngs()), (5,)),
}


def made(make, random=True):
    """The model in evaluation mode, with statistics and scales as after training."""
    model = make()
    model.eval()
    return set_norms(model) if random else model


def images(batch, shape):
    return np.random.default_rng(batch).normal(size=(batch, *shape)).astype("f")


def assert_close(logits, model, x):
    expected = np.asarray(model(x))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=BOUND * np.abs(expected).max())


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("random", [True, False], ids=["trained", "initial"])
@pytest.mark.parametrize(("make", "shape"), (NETWORKS | OTHERS).values(), ids=NETWORKS | OTHERS)
def test_onnxruntime_has_the_logits_of_jax(make, shape, random, tmp_path):
    if make is OTHERS["alpha"][0] and not random:
        pytest.skip("float sums of ±α round, so JAX's own products differ at a BatchNorm's 0")
    model, path = made(make, random), tmp_path / "model.onnx"
    to_onnx(model, shape, path)
    onnx.checker.check_model(str(path), full_check=True)
    for batch in (1, 7):
        x = images(batch, shape)
        assert_close(session(path).run(["logits"], {"images": x})[0], model, x)


@pytest.mark.parametrize("make", [binarynet, OTHERS["latent"][0], OTHERS["alpha"][0]])
def test_each_binary_weight_is_one_bit(make, tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(make(), RGB, path)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    packed = [array for name, array in tensors.items() if name.endswith("_bytes")]
    sizes = [x.size for x in jax.tree.leaves(nnx.state(make(), nnx.Param)) if x.ndim > 1]
    assert sorted(array.size for array in packed) == sorted(-(-size // 8) for size in sizes)
    assert all(array.dtype == np.uint8 for array in packed)
    assert max(a.size for a in tensors.values() if a.dtype == np.float32) <= 32  # a BatchNorm's


def test_the_authors_binarynet_takes_1_4_megabytes(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(BinaryNet(rngs=rngs()), RGB, path)
    assert 10_352_000 / 8 < path.stat().st_size < 1.4e6


def test_the_model_is_not_changed(tmp_path):
    model = binarynet()
    model.train()
    to_onnx(model, RGB, tmp_path / "model.onnx")
    assert not model.norms[0].use_running_average
    assert model.convs[0].product == Product()


def read_by_qonnx(path, x):
    """The graph after qonnx's cleanup, the logits, and what its layers cost."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup
    from qonnx.util.inference_cost import inference_cost

    clean = str(path.with_name("clean.onnx"))
    cleanup(str(path), out_file=clean, override_inpsize=len(x))
    wrapper = ModelWrapper(clean)
    logits = execute_onnx(wrapper, {wrapper.graph.input[0].name: x})[wrapper.graph.output[0].name]
    return wrapper.graph, logits, inference_cost(clean, discount_sparsity=False)["total_cost"]


def layers_of(model):
    return [m for _, m in nnx.iter_modules(model) if isinstance(m, BinaryConv | BinaryLinear)]


@needs_qonnx
@pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_qonnx_runs_the_network_and_counts_its_bits(make, shape, tmp_path):
    model, path, x = made(make), tmp_path / "model.onnx", images(3, shape)
    to_onnx(model, shape, path, qonnx=True)
    graph, logits, cost = read_by_qonnx(path, x)
    assert_close(logits, model, x)
    layers = layers_of(model)
    assert cost["mem_w_BIPOLAR"] == sum(layer.kernel.size for layer in layers)
    one_bit = [layer for layer in layers if layer.input_quantizer is not None]
    assert cost["op_mac_BIPOLAR_BIPOLAR"] > 3 * sum(layer.kernel.size for layer in one_bit[:-3])
    signs = [n for n in graph.node if n.op_type == "BipolarQuant"]
    assert len(signs) == len(layers) + len(one_bit)


@needs_qonnx
def test_a_threshold_is_a_bipolar_quant(tmp_path):
    model, path, x = folded(), tmp_path / "model.onnx", images(2, RGB)
    to_onnx(model, RGB, path, qonnx=True)
    nodes = onnx.load(path).graph.node
    assert sum(node.domain == QONNX for node in nodes) == 9 + 8 + 8  # kernels, thresholds, signs
    assert not [node for node in nodes if node.op_type in ("Where", "GreaterOrEqual")]
    _, logits, _ = read_by_qonnx(path, x)
    assert_close(logits, model, x)


@needs_qonnx
def test_qonnx_counts_scaled_kernels_as_float32(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(binarynet(kernel_init=alphas), RGB, path, qonnx=True)
    assert "mem_w_BIPOLAR" not in read_by_qonnx(path, images(1, RGB))[2]
