"""Kernels of ±α in an ONNX graph: packed bits with nodes that unpack them, or QONNX's nodes."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportAttributeAccessIssue=false
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bop_optax._scale import are_binary, output_scale

QONNX = "qonnx.custom_op.general"

Made = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]


def replace_kernels(graph: onnx.GraphProto, make: Callable[..., Made]) -> None:
    """Replaces each kernel of ±α by nodes that make it, and by their arrays."""
    transposed = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose"}
    products = [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    users = {transposed.get(n.input[1], n.input[1]): n for n in products}
    nodes, tensors = [], {}
    for tensor in graph.initializer:
        name, array, user = tensor.name, numpy_helper.to_array(tensor), users.get(tensor.name)
        tensors[name] = tensor
        if user is None:
            continue
        if user.op_type == "Conv" and user.input[1] in transposed:  # qonnx counts by it
            user.attribute.append(helper.make_attribute("kernel_shape", array.shape[:-2]))
        if not are_binary(array).all():
            continue
        scale = output_scale(array)
        made, arrays = make(name, array, scale if (scale != 1).any() else scale[:1])
        nodes += made
        del tensors[name]
        tensors |= {key: numpy_helper.from_array(value, key) for key, value in arrays.items()}
    nodes += graph.node
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors.values())


def bipolar_kernel(name: str, kernel: np.ndarray, scale: np.ndarray) -> Made:
    """A node `BipolarQuant` of the kernel's signs."""
    inputs = [f"{name}_sign", f"{name}_scale"]
    node = helper.make_node("BipolarQuant", inputs, [name], domain=QONNX)
    scale = scale.reshape(*[1] * (kernel.ndim - 1), -1)  # qonnx transposes it like the kernel
    return [node], dict(zip(inputs, (np.sign(kernel), scale), strict=True))


def packed_kernel(name: str, kernel: np.ndarray, scale: np.ndarray) -> Made:
    """Nodes that shift and mask the bytes, then choose −α or α."""
    arrays = {
        f"{name}_bytes": np.packbits((kernel < 0).ravel(), bitorder="little")[:, None],
        f"{name}_size": np.array([kernel.size]),
        f"{name}_shape": np.array(kernel.shape),
        f"{name}_negative": -scale,
        f"{name}_positive": scale,
        "shifts": np.arange(8, dtype=np.uint8),
        "one": np.ones(1, np.uint8),
        "flat": np.array([-1]),
        "zero": np.array([0]),
    }
    steps = (
        ("BitShift", ["shifts"], {"direction": "RIGHT"}),
        ("BitwiseAnd", ["one"], {}),
        ("Reshape", ["flat"], {}),
        ("Slice", ["zero", f"{name}_size"], {}),
        ("Reshape", [f"{name}_shape"], {}),
        ("Cast", [], {"to": onnx.TensorProto.BOOL}),
        ("Where", [f"{name}_negative", f"{name}_positive"], {}),
    )
    values = [f"{name}_bytes", *(f"{name}_{i}" for i in range(len(steps) - 1)), name]
    nodes = [
        helper.make_node(op, [values[i], *inputs], [values[i + 1]], **attributes)
        for i, (op, inputs, attributes) in enumerate(steps)
    ]
    return nodes, arrays
