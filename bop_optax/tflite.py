"""TensorFlow Lite files of trained networks, for Larq Compute Engine, which multiplies in one bit.

JAX traces the forward pass, and each of its operations becomes one of TensorFlow. Larq Compute
Engine's converter finds the one-bit products: convolutions of a sign by a kernel of ±α.

`import bop_optax` does not import this module, which needs `larq-compute-engine` and TensorFlow.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import larq_compute_engine as lce
import numpy as np
import tensorflow as tf
from flax import nnx
from jax import lax

from bop_optax._convolution import Geometry, explicit_pads, output_sizes
from bop_optax._forward import bind, evaluate, forward_jaxpr
from bop_optax._scale import are_binary

Value = Any  # an array of weights, or a TensorFlow tensor, which depends on the image


def to_tflite(model: nnx.Module, image_shape: Sequence[int], path: Path | str) -> None:
    """Writes a trained network for Larq Compute Engine, which classifies one image at a time.

    A binary layer becomes a one-bit product if its input is a sign, its kernel is ±α, and its
    padding is "SAME" or "VALID"; with other paddings it becomes a float product. BatchNorm becomes
    part of a product before it. A binary layer writes bits for the next one if it pads with +1 or
    not at all; behind zeros the file has one more operation, which packs them.

    Logits are those of JAX up to rounding. Where real numbers are added before a sign, as in a
    first layer or before a shortcut, another order of the sum may change the sign of a number
    near 0.

    Args:
        model: maps images, `(batch, *image_shape)`, to logits, in float32. Latent weights are
            quantized; packed and folded networks serve as well.
        image_shape: (height, width, channels) of one image, or (features,).
        path: the file. It maps `(1, *image_shape)` to (1, classes), in float32.

    Raises:
        NotImplementedError: for an operation without a translation to TensorFlow, as one-bit
            products of groups of channels.

    Example:
        >>> to_tflite(model, (32, 32, 3), "model.tflite")  # doctest: +SKIP

    References:
        Bannink et al. Larq Compute Engine: Design, Benchmark, and Deploy State-of-the-Art Binarized
        Neural Networks. MLSys 2021, arXiv:2011.09398.
    """
    closed = forward_jaxpr(model, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    if [aval.dtype for aval in closed.out_avals] != [jnp.float32]:
        raise NotImplementedError("a network has one output, in float32")
    spec = tf.TensorSpec((1, *image_shape), tf.float32, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def forward(images: tf.Tensor) -> tf.Tensor:
        (logits,) = evaluate(
            closed.jaxpr, closed.consts, [_reshape(images, spec.shape)], _translate
        )
        return tf.reshape(logits, closed.out_avals[0].shape)

    module = tf.Module()
    module.forward = forward
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=forward.get_concrete_function())
        Path(path).write_bytes(lce.convert_saved_model(folder))


def _translate(eqn: Any, operands: list[Value]) -> list[Value]:
    """Evaluates in TensorFlow what depends on the image, and in JAX what depends on weights alone.

    Tensors have four dimensions: a vector is an image of one pixel, since one-bit products are
    convolutions.
    """
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if not any(map(tf.is_tensor, operands)):
        return bind(eqn, operands)
    if 0 in shape:  # padding of no width
        return [np.zeros(shape, np.float32)]
    if name in OPERATIONS:
        operands = [v if tf.is_tensor(v) else np.asarray(v) for v in operands]
        result = OPERATIONS[name](*operands, **eqn.params)
        if tuple(result.shape) == _four_dimensions(shape):
            return [result]
    raise NotImplementedError(f"{name} to {shape} has no translation to TensorFlow")


def _four_dimensions(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[:1], *(1,) * (4 - len(shape)), *shape[1:])


# ---- Operations ----------------------------------------------------------------------------------


def _elementwise(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    return lambda *operands, **_: function(*map(_narrow, operands))


def _narrow(value: Value) -> Value:
    """Weights without leading dimensions of 1, or one number; these become part of a product."""
    if tf.is_tensor(value):
        return value
    if (value == value.flat[0]).all():
        return value.flat[0]
    return value.reshape(value.shape[np.argmax(np.array(value.shape) > 1) :])


def _before_pool(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """An operation on a tensor and weights; if it is increasing, and follows a max-pool, before it.

    There it becomes part of a product, and the pool a cheap one of signs.
    """

    def operation(a: Value, b: Value) -> tf.Tensor:
        x, weights = (a, b) if tf.is_tensor(a) else (b, a)
        increasing = not tf.is_tensor(weights) and (function is tf.add or np.all(weights > 0))
        if x.op.type != "MaxPool" or not increasing:
            return function(x, weights)
        weights = np.asarray(weights)
        if weights.size not in (1, *weights.shape[-1:]):  # they differ between pixels
            return function(x, weights)
        window, strides, padding = map(x.op.get_attr, ("ksize", "strides", "padding"))
        y = function(x.op.inputs[0], weights)
        return tf.nn.max_pool2d(y, window, strides, padding.decode())

    return operation


_add = _before_pool(tf.add)


def _subtract(a: Value, b: Value) -> tf.Tensor:
    return tf.subtract(a, b) if tf.is_tensor(b) else _add(a, -b)


def _at_least(a: Value, b: Value) -> tf.Tensor:
    if tf.is_tensor(b) or not np.any(b):
        return tf.greater_equal(a, b)
    return tf.greater_equal(_subtract(a, b), 0.0)


def _select(which: tf.Tensor, no: Value, yes: Value) -> tf.Tensor:
    """A selection; of the sign of a sign it is the sign itself."""
    x, zero = which.op.inputs if which.op.type == "GreaterEqual" else (which, which)
    if x.op.type == "SelectV2" and _is_number(zero, 0):
        one, minus_one = x.op.inputs[1:]
        pairs = ((one, 1), (minus_one, -1), (yes, 1), (no, -1))
        if all(_is_number(value, number) for value, number in pairs):
            return x
    return tf.where(which, yes, no)


def _is_number(value: Value, number: float) -> bool:
    static = tf.get_static_value(value) if tf.is_tensor(value) else value
    return static is not None and np.size(static) == 1 and np.asarray(static).item() == number


def _dense(x: tf.Tensor, kernel: Value, *, dimension_numbers: Any, **_: Any) -> tf.Tensor:
    contracted, batch = dimension_numbers
    if tf.is_tensor(kernel) or contracted[1] != (0,) or any(batch) or kernel.ndim != 2:
        raise NotImplementedError("only products by a matrix have a translation to TensorFlow")
    if list(x.shape[1:3]) != [1, 1]:
        raise NotImplementedError("only products of vectors have a translation to TensorFlow")
    return tf.nn.conv2d(x, kernel[None, None], 1, "VALID")


def _reduce_sum(x: tf.Tensor, *, axes: Sequence[int], **_: Any) -> tf.Tensor:
    if tuple(axes) != (1, 2):
        raise NotImplementedError("only sums over pixels have a translation to TensorFlow")
    return tf.reduce_sum(x, axes, keepdims=True)


def _convolve(
    x: tf.Tensor,
    kernel: np.ndarray,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    **params: Any,
) -> tf.Tensor:
    """A convolution without what its window does not reach, which the converter misunderstands."""
    if kernel.ndim != 4 or params["batch_group_count"] > 1 or set(params["lhs_dilation"]) != {1}:
        raise NotImplementedError("only convolutions of images have a translation to TensorFlow")
    sizes, window = [*x.shape[1:-1]], kernel.shape[:2]
    spans = [(k - 1) * d + 1 for k, d in zip(window, rhs_dilation, strict=True)]
    geometry = Geometry(window_strides, padding, 0.0, rhs_dilation, feature_group_count)
    steps = zip(output_sizes(sizes, window, geometry), window_strides, spans, strict=True)
    reach = [(out - 1) * stride + span for out, stride, span in steps]
    edges = tuple(
        (low, max(0, end - size - low))
        for end, size, (low, _) in zip(reach, sizes, padding, strict=True)
    )
    is_binary = are_binary(kernel).all()
    if feature_group_count > 1 and is_binary:
        raise NotImplementedError("Larq Compute Engine has no binary products of groups")
    conv = partial(tf.nn.conv2d, filters=kernel, strides=window_strides, dilations=rhs_dilation)
    if not any(map(any, edges)):
        if x.op.type == "PadV2" and reach != sizes:
            x = x[:, : reach[0], : reach[1]]
        return conv(x, padding="VALID")
    if edges != explicit_pads("SAME", sizes, window, window_strides, rhs_dilation):
        return conv(tf.pad(x, [(0, 0), *edges, (0, 0)]), padding="VALID")
    if not is_binary or all(size >= span for size, span in zip(sizes, spans, strict=True)):
        return conv(x, padding="SAME")
    # Larq Compute Engine's zeros around an image smaller than the window are wrong (0.16): take
    # ones, and subtract what they add.
    outside = np.pad(np.zeros(x.shape, np.float32), [(0, 0), *edges, (0, 0)], constant_values=1)
    params |= {"window_strides": window_strides, "rhs_dilation": rhs_dilation}
    params |= {"padding": ((0, 0), (0, 0)), "feature_group_count": 1}
    added = np.asarray(lax.conv_general_dilated_p.bind(outside, kernel, **params))
    y = conv(tf.pad(x, [(0, 0), *edges, (0, 0)], constant_values=1.0), padding="VALID")
    # The converter would take y - added for a product with a bias.
    return tf.negative(tf.subtract(added, y))


def _pad(x: tf.Tensor, value: np.ndarray, *, padding_config: Sequence[Any]) -> tf.Tensor:
    if not any(map(any, padding_config)):
        return x
    return tf.pad(x, [(low, high) for low, high, _ in padding_config], constant_values=value)


def _max_pool(
    x: tf.Tensor, *, window_dimensions: Any, window_strides: Any, padding: Any, **params: Any
) -> tf.Tensor:
    if (
        set(params["window_dilation"]) | set(params["base_dilation"]) != {1}
        or len(window_dimensions) != 4
    ):
        raise NotImplementedError("only max-pools of images have a translation to TensorFlow")
    for name in ("VALID", "SAME"):
        pads = lax.padtype_to_pads(x.shape, window_dimensions, window_strides, name)
        if tuple(padding) == tuple(pads):
            return tf.nn.max_pool2d(x, window_dimensions, window_strides, name)
    raise NotImplementedError(f"a max-pool with {padding=} has no translation to TensorFlow")


def _slice(x: tf.Tensor, *, start_indices: Any, limit_indices: Any, strides: Any) -> tf.Tensor:
    return tf.strided_slice(x, start_indices, limit_indices, strides)


def _reshape(x: tf.Tensor, new_sizes: Sequence[int], **_: Any) -> tf.Tensor:
    return tf.reshape(x, _four_dimensions(new_sizes))


OPERATIONS: dict[str, Callable[..., tf.Tensor]] = {
    "add": _elementwise(_add),
    "sub": _elementwise(_subtract),
    "mul": _elementwise(_before_pool(tf.multiply)),
    "div": _elementwise(tf.divide),
    "max": _elementwise(tf.maximum),
    "logistic": _elementwise(tf.sigmoid),
    "ge": _elementwise(_at_least),
    "select_n": _elementwise(_select),
    "conv_general_dilated": _convolve,
    "dot_general": _dense,
    "pad": _pad,
    "reduce_window_max": _max_pool,
    "reduce_sum": _reduce_sum,
    "slice": _slice,
    "reshape": _reshape,
    "broadcast_in_dim": lambda x, *, shape, **_: _reshape(x, shape),
    "concatenate": lambda *x, dimension: tf.concat([v for v in x if 0 not in v.shape], dimension),
}
