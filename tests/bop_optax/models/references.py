"""The networks for ImageNet in evaluation, in float64 NumPy: no JAX, loops over windows."""

from functools import partial

import numpy as np


def sign(x):
    assert np.abs(x).min() > 1e-4  # else rounding could turn a sign; then choose other inputs
    return np.where(x >= 0, 1.0, -1.0)


def shifted(x, side, stride=1, same=True, fill=0.0):
    """The input under each position of a side × side window; padding as TensorFlow's "SAME"."""
    if same:
        lost = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[1:3]]
        edges = [(0, 0), *((n // 2, n - n // 2) for n in lost), (0, 0)]
        x = np.pad(x, edges, constant_values=fill)
    rows, columns = (n - side + 1 for n in x.shape[1:3])
    return [
        x[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(side)
        for j in range(side)
    ]


def conv(x, layer, stride=1):
    w = np.float64(layer.kernel[...])
    side, _, *channels = w.shape
    return sum(map(np.matmul, shifted(x, side, stride), w.reshape(-1, *channels)))


def max_pool(x, same=False):
    return np.max(shifted(x, 3, 2, same, fill=-np.inf), axis=0)


def dense(x, layer):
    return x @ np.float64(layer.kernel[...])


def norm(x, layer, epsilon):
    mean, var, scale, bias = (
        np.float64(v[...]) for v in (layer.mean, layer.var, layer.scale, layer.bias)
    )
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
    x = np.maximum(norm(conv(x, model.stem, 4), model.stem_norm, 1e-5), 0)
    x = norm(max_pool(x), next(norms), 1e-4)
    x = norm(max_pool(conv(sign(x), model.convs[0])), next(norms), 1e-4)
    x = norm(conv(sign(x), model.convs[1]), next(norms), 1e-4)
    x = norm(conv(sign(x), model.convs[2]), next(norms), 1e-4)
    x = norm(max_pool(conv(sign(x), model.convs[3])), next(norms), 1e-4)
    x = x.reshape(len(x), -1)
    x = norm(dense(sign(x), model.denses[0]), next(norms), 1e-4)
    x = norm(dense(sign(x), model.denses[1]), next(norms), 1e-3)
    return dense(np.maximum(x, 0), model.head)


REFERENCES = {
    "birealnet": birealnet_reference,
    "birealnet, small images": partial(birealnet_reference, small_images=True),
    "binary_alexnet": binary_alexnet_reference,
    "xnornet": xnornet_reference,
}
