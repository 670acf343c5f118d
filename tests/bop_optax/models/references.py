"""The networks for ImageNet in evaluation, in float64 NumPy: no JAX, loops over windows."""

from functools import partial

import numpy as np


def sign(x):
    assert np.abs(x).min() > 1e-4  # else rounding could turn a sign; then choose other inputs
    return np.where(x >= 0, 1.0, -1.0)


def shifted(x, side, stride=1, same=True, fill=0.0, dilation=1):
    """The input under each position of a side × side window; padding as TensorFlow's "SAME"."""
    span = (side - 1) * dilation + 1
    if same:
        lost = [max((-(-n // stride) - 1) * stride + span - n, 0) for n in x.shape[1:3]]
        edges = [(0, 0), *((n // 2, n - n // 2) for n in lost), (0, 0)]
        x = np.pad(x, edges, constant_values=fill)
    rows, columns = (n - span + 1 for n in x.shape[1:3])
    return [
        x[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(0, span, dilation)
        for j in range(0, span, dilation)
    ]


def conv(x, layer, stride=1, fill=0.0, dilation=1):
    w = np.float64(layer.kernel[...])
    side, _, *channels = w.shape
    windows = shifted(x, side, stride, fill=fill, dilation=dilation)
    return sum(map(np.matmul, windows, w.reshape(-1, *channels)))


def depthwise(x, layer):
    windows = shifted(x, 3, 2)
    return sum(map(np.multiply, windows, np.float64(layer.kernel[...]).reshape(9, -1)))


def max_pool(x, same=False, side=3, stride=2):
    return np.max(shifted(x, side, stride, same, fill=-np.inf), axis=0)


def relu(x):
    return np.maximum(x, 0)


def dense(x, layer):
    return x @ np.float64(layer.kernel[...])


def norm(x, layer, epsilon):
    mean, var = np.float64(layer.mean[...]), np.float64(layer.var[...])
    scale = 1 if layer.scale is None else np.float64(layer.scale[...])
    bias = 0 if layer.bias is None else np.float64(layer.bias[...])
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias


def block_reference(block, x, halves):
    y = norm(conv(sign(x), block.conv, 1 + halves), block.norm, 1e-3)
    if halves:
        _, real, batch_norm = block.shortcut.layers
        x = np.nanmean(shifted(x, 2, 2, fill=np.nan), axis=0)
        x = norm(conv(x, real), batch_norm, 1e-3)
    return x + y


def birealnet_reference(model, x, small_images=False):
    x = norm(conv(x, model.stem, 1 if small_images else 2), model.stem_norm, 1e-3)
    x = x if small_images else max_pool(x, same=True)
    for i, block in enumerate(model.blocks):
        x = block_reference(block, x, i in (4, 8, 12))
    return dense(x.mean((1, 2)), model.head) + np.float64(model.head.bias[...])


def binary_alexnet_reference(model, x):
    norms = iter(model.norms)
    x = norm(max_pool(conv(x, model.convs[0], 4)), next(norms), 1e-3)
    x = norm(max_pool(conv(sign(x), model.convs[1])), next(norms), 1e-3)
    x = norm(conv(sign(x), model.convs[2]), next(norms), 1e-3)
    x = norm(conv(sign(x), model.convs[3]), next(norms), 1e-3)
    x = norm(max_pool(conv(sign(x), model.convs[4])), next(norms), 1e-3)
    x = x.reshape(len(x), -1)
    for layer in model.denses:
        x = norm(dense(sign(x), layer), next(norms), 1e-3)
    return x


def xnornet_reference(model, x):
    norms = iter(model.norms)
    x = relu(norm(conv(x, model.stem, 4), model.stem_norm, 1e-5))
    x = norm(max_pool(x), next(norms), 1e-4)
    x = norm(max_pool(conv(sign(x), model.convs[0])), next(norms), 1e-4)
    x = norm(conv(sign(x), model.convs[1]), next(norms), 1e-4)
    x = norm(conv(sign(x), model.convs[2]), next(norms), 1e-4)
    x = norm(max_pool(conv(sign(x), model.convs[3])), next(norms), 1e-4)
    x = x.reshape(len(x), -1)
    x = norm(dense(sign(x), model.denses[0]), next(norms), 1e-4)
    x = norm(dense(sign(x), model.denses[1]), next(norms), 1e-3)
    return dense(relu(x), model.head)


def classify(x, head):
    return dense(relu(x).mean((1, 2)), head) + np.float64(head.bias[...])


def quicknet_reference(model, x):
    """Of two sections, each of two blocks."""
    layers = model.larq_layers()
    x = relu(norm(conv(x, next(layers), 2), next(layers), 1e-3))
    x = norm(depthwise(x, next(layers)), next(layers), 1e-3)
    x = norm(conv(x, next(layers)), next(layers), 1e-3)
    for section in range(2):
        if section:
            x = max_pool(relu(x), side=2, stride=1)
            x = depthwise(x, next(layers))
            x = norm(conv(x, next(layers)), next(layers), 1e-5)
        for _ in range(2):
            x = x + norm(relu(conv(sign(x), next(layers), fill=1.0)), next(layers), 1e-5)
    return classify(x, next(layers))


def binary_resnet_e_reference(model, x, small_images=False):
    layers = model.larq_layers()
    x = conv(x, next(layers), 1 if small_images else 2)
    if not small_images:
        x = max_pool(relu(norm(x, next(layers), 1e-5)), same=True)
        x = norm(x, next(layers), 1e-5)
    for i in range(16):
        halves = i in (4, 8, 12)
        y = conv(sign(x), next(layers), 1 + halves)
        if halves:
            x = conv(np.nanmean(shifted(x, 2, 2, fill=np.nan), axis=0), next(layers))
        y = norm(y, next(layers), 1e-5)
        x = y + (norm(x, next(layers), 1e-5) if halves else x)
    return classify(x, next(layers))


def binary_densenet_reference(model, x, small_images=False):
    """Of three sections, each of two layers, with dilations 1, 1 and 2."""
    layers = model.larq_layers()
    x = conv(x, next(layers), 1 if small_images else 2)
    if not small_images:
        x = max_pool(relu(norm(x, next(layers), 1e-5)), same=True)
    for section in range(3):
        if section:
            x = norm(x, next(layers), 1e-5)
            x = max_pool(x, side=2) if section == 1 else x
            x = conv(relu(x), next(layers))
        for _ in range(2):
            y = sign(norm(x, next(layers), 1e-5))
            y = conv(y, next(layers), dilation=2 if section == 2 else 1)
            x = np.concatenate([x, y], -1)
    return classify(norm(x, next(layers), 1e-5), next(layers))


REFERENCES = {
    "birealnet": birealnet_reference,
    "birealnet, small images": partial(birealnet_reference, small_images=True),
    "binary_alexnet": binary_alexnet_reference,
    "xnornet": xnornet_reference,
    "quicknet": quicknet_reference,
    "binary_resnet_e": binary_resnet_e_reference,
    "binary_resnet_e, small images": partial(binary_resnet_e_reference, small_images=True),
    "binary_densenet": binary_densenet_reference,
    "binary_densenet, small images": partial(binary_densenet_reference, small_images=True),
}
