"""What the compiled step does to a batch of uint8 images: augmentation, then scaling."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from training.config.ranges import require


def augment(key: jax.Array, images: jax.Array, pad: int, flip: bool) -> jax.Array:
    """Shifts each image by up to `pad` pixels and mirrors half of them (section 5.2).

    Pads with black, crops at random to the old size, then flips left to right at random. Each image
    has its own draw.

    Args:
        key: a PRNG key.
        images: (batch, height, width, channels), uint8.
        pad: pixels on each side; 0 does not shift.
        flip: True mirrors half of the images.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: for a pad that is not smaller than the image.
    """
    crop_key, flip_key = jax.random.split(key)
    if pad:
        check_pad(pad, images.shape[1:3])
        batch, *shape = images.shape
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * pad + 1)
        images = jax.vmap(lambda i, c: jax.lax.dynamic_slice(i, (c[0], c[1], 0), shape))(
            padded, corners
        )
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=images.shape[:1])[:, None, None, None]
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def check_pad(pad: int, sizes: Sequence[int]) -> None:
    """Raises ValueError for a pad that leaves nothing of some crops of an image."""
    height, width = sizes[:2]
    most = f"less than the {height}×{width} pixels of an image"
    require(pad >= 0, "pad", "at least 0", pad)
    require(pad < min(height, width), "pad", most, pad)


def scale(images: jax.Array, mean: Any = 127.5, std: Any = 127.5) -> jax.Array:
    """Maps uint8 images to float32, (x − mean) / std; by default to [−1, 1].

    Args:
        images: (..., channels), uint8.
        mean: a number, or one for each channel, from 0 to 255.
        std: as `mean`.

    Returns:
        float32 images of the same shape.
    """
    mean, std = np.float32(mean), np.float32(std)
    return jnp.asarray(images, jnp.float32) / std - mean / std
