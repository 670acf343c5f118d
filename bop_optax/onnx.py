"""ONNX files of trained networks, with one bit for each binary weight; for QONNX, too.

JAX traces the forward pass, `jax2onnx` writes the graph. Signs become one node each. So do slices,
paddings, reshapes and max-pools of a batch of unknown size, for which jax2onnx 0.17 writes many
nodes or wrong ones.

`import bop_optax` does not import this module, which needs `jax2onnx`.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportAttributeAccessIssue=false
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax2onnx
import numpy as np
import onnx
from flax import nnx
from jax import lax
from jax.core import ShapedArray, Tracer
from jax.extend import core
from jax2onnx.plugins.plugin_system import PrimitiveLeafPlugin, register_primitive

from bop_optax._forward import bind, evaluate, forward_jaxpr
from bop_optax._onnx_kernels import QONNX, bipolar_kernel, packed_kernel, replace_kernels

OPSET = 21  # of ONNX 1.16, which onnxruntime 1.18 and later read
END = np.iinfo(np.int64).max  # the end of a slice


def to_onnx(
    model: nnx.Module, image_shape: Sequence[int], path: Path | str, *, qonnx: bool = False
) -> None:
    """Writes an ONNX file of a trained network, for batches of any size.

    The file has one input, `images`, and one output, `logits`. BatchNorm uses its running
    statistics. Kernels of ±α have one bit for each weight: bytes of the bits w < 0 as in
    `bop_optax.saving`. The graph unpacks them, which onnxruntime does once, when it loads the file.
    Engines without one-bit products multiply floats.

    Args:
        model: an NNX module that maps images to logits; it may hold latent weights or packed
            kernels, see `bop_optax.packing`. It is not changed.
        image_shape: shape of one image, such as (32, 32, 3).
        path: the file.
        qonnx: True to write kernels and signs as QONNX's `BipolarQuant`, which tools for FPGAs
            read. The kernels then take 32 bits for each weight.

    Raises:
        NotImplementedError: for an operation that jax2onnx does not know.

    Example:
        >>> import tempfile
        >>> layer = BinaryLinear(64, 8, rngs=nnx.Rngs(0))
        >>> path = Path(tempfile.mkdtemp(), "layer.onnx")
        >>> to_onnx(layer, (64,), path)
        >>> [value.name for value in onnx.load(path).graph.input]
        ['images']

    References:
        Pappalardo et al. QONNX: Representing Arbitrary-Precision Quantized Neural Networks. 2022,
        arXiv:2206.07527.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    forward = forward_jaxpr(model, images)
    dtypes = {v.aval.dtype for eqn in forward.jaxpr.eqns for v in eqn.outvars}
    if len(forward.out_avals) != 1 or dtypes & {jnp.bfloat16, jnp.float16}:
        raise NotImplementedError("a network has one output and computes in float32")
    translation = _Translation(qonnx)
    proto = jax2onnx.to_onnx(
        lambda x: evaluate(forward.jaxpr, forward.consts, [x], translation)[0],
        [images],
        model_name=type(model).__name__,
        opset=OPSET,
        input_names=["images"],
        output_names=["logits"],
    )
    replace_kernels(proto.graph, bipolar_kernel if qonnx else packed_kernel)
    if qonnx:
        proto.opset_import.append(onnx.helper.make_opsetid(QONNX, 1))
    onnx.save_model(proto, path)


# ---- The traced operations -----------------------------------------------------------------------

node_p = core.Primitive("bop_optax_onnx_node")
node_p.def_abstract_eval(lambda *_, aval, **__: aval)


@register_primitive(jaxpr_primitive=node_p.name)
class _NodePlugin(PrimitiveLeafPlugin):
    """Lowers `node_p` to one ONNX node."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        (out,), params = eqn.outvars, eqn.params
        inputs = [ctx.get_value_for_var(x) for x in eqn.invars]
        for constant in params["constants"]:
            dtype = np.int64 if isinstance(constant, tuple) else params["aval"].dtype
            name, array = ctx.fresh_name("constant"), np.asarray(constant, dtype)
            inputs.append(ctx.builder.add_initializer_from_array(name=name, array=array))
        result = getattr(ctx.builder, params["op"])(*inputs, **dict(params["attributes"]))
        value = ctx.get_value_for_var(out)
        result.type, result.shape = value.type, value.shape
        ctx.bind_value_for_var(out, result)


def _node(op: str, x: Any, *constants: Any, aval: Any, **attributes: Any) -> Any:
    """One ONNX node; tuples among the constants are integers, numbers have the dtype of `aval`."""
    aval, items = ShapedArray(aval.shape, aval.dtype), tuple(attributes.items())
    return node_p.bind(x, op=op, constants=constants, aval=aval, attributes=items)


class _Translation:
    """Computes constants; gives jax2onnx an operation of JAX, or the node of a method here.

    A number that is broadcast over the batch stays an array of size 1. An array without entries is
    None.
    """

    def __init__(self, qonnx: bool):
        self.qonnx = qonnx
        self.comparisons: dict[int, tuple[Any, Any, Any]] = {}  # x >= y, x, y by id(x >= y)

    def __call__(self, eqn: Any, operands: list[Any]) -> list[Any]:
        name, aval = eqn.primitive.name, eqn.outvars[0].aval
        if 0 in aval.shape:
            return [None]
        if not any(isinstance(x, Tracer) for x in operands):
            symbolic = not all(isinstance(size, int) for size in aval.shape)
            if symbolic and name == "broadcast_in_dim" and np.size(operands[0]) == 1:
                return [np.asarray(operands[0]).reshape((1,) * aval.ndim)]
            if not symbolic or all(np.size(x) == 1 for x in operands):
                with jax.ensure_compile_time_eval():
                    return bind(eqn, operands)
        method = getattr(self, f"_{name}", None)
        result = None if method is None else method(aval, *operands, **eqn.params)
        if result is not None:
            return [result]
        shapes = [x.aval.shape for x in eqn.invars]
        results = bind(eqn, [_broadcast(x, s) for x, s in zip(operands, shapes, strict=True)])
        if name == "ge":
            self.comparisons[id(results[0])] = (results[0], *operands)
        return results

    def _select_n(self, aval: Any, which: Any, *cases: Any) -> Any:
        """A sign."""
        _, x, y = self.comparisons.get(id(which), (None, None, None))
        if x is None or [_number(c) for c in cases] != [-1, 1] or aval.dtype != x.dtype:
            return None
        if not self.qonnx:
            return _node("Where", which, 1.0, -1.0, aval=aval)
        difference = x if _number(y) == 0 else x - y
        return _node("BipolarQuant", difference, 1.0, aval=aval, _domain=QONNX)

    def _pad(self, aval: Any, x: Any, value: Any, *, padding_config: Any) -> Any:
        low, high, between = zip(*padding_config, strict=True)
        if _number(value) is None or any(between) or min(*low, *high) < 0:
            return None
        pads = tuple(int(size) for size in (*low, *high))
        return _node("Pad", x, pads, _number(value), aval=aval) if any(pads) else x

    def _slice(self, aval: Any, x: Any, *, start_indices: Any, limit_indices: Any, strides: Any):
        if start_indices[0] != 0 or limit_indices[0] != x.shape[0]:
            return None
        steps, axes = tuple(strides or [1] * x.ndim), tuple(range(x.ndim))
        ends = (END, *limit_indices[1:])
        return _node("Slice", x, tuple(start_indices), ends, axes, steps, aval=aval)

    def _reshape(self, aval: Any, x: Any, **_: Any) -> Any:
        sizes = tuple(size if isinstance(size, int) else -1 for size in aval.shape)
        return _node("Reshape", x, sizes, aval=aval) if sizes.count(-1) == 1 else None

    def _concatenate(self, aval: Any, *operands: Any, dimension: int) -> Any:
        operands = tuple(x for x in operands if x is not None)
        return operands[0] if len(operands) == 1 else lax.concatenate(operands, dimension)

    def _reduce_window_max(self, aval: Any, x: Any, **window: Any) -> Any:
        """`nnx.max_pool` of channels-last images."""
        sizes, last = window["window_dimensions"], x.ndim - 1
        dilated = {*window["base_dilation"], *window["window_dilation"]} != {1}
        if dilated or x.ndim < 3 or sizes[0] * sizes[-1] != 1:
            return None
        low, high = zip(*window["padding"][1:-1], strict=True)
        x = lax.transpose(x, (0, last, *range(1, last)))
        aval = aval.update(shape=(aval.shape[0], aval.shape[-1], *aval.shape[1:-1]))
        options = {"kernel_shape": sizes[1:-1], "strides": window["window_strides"][1:-1]}
        x = _node("MaxPool", x, aval=aval, pads=(*low, *high), **options)
        return lax.transpose(x, (0, *range(2, x.ndim), 1))


def _broadcast(x: Any, shape: Sequence[Any]) -> Any:
    if x is None or np.shape(x) == tuple(shape):
        return x
    return lax.broadcast_in_dim(x, shape, range(len(shape)))


def _number(x: Any) -> float | None:
    """The value of a constant that holds only one."""
    values = [] if isinstance(x, Tracer) else np.unique(np.asarray(x, np.float64))
    return float(values[0]) if len(values) == 1 else None
