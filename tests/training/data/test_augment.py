"""Augmentation and scaling of uint8 batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.data import imagenet
from training.data.augment import augment, scale


def test_scale_maps_bytes_to_plus_minus_one():
    x = scale(np.arange(256, dtype=np.uint8))
    assert (x[0], x[255], x.dtype) == (-1, 1, np.float32)
    np.testing.assert_allclose(x, np.arange(256) / 127.5 - 1, atol=1e-6)


def test_scale_normalizes_each_channel():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8))
    ours = scale(images, imagenet.MEAN, imagenet.STD)
    theirs = (np.asarray(images) - np.array(imagenet.MEAN)) / np.array(imagenet.STD)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("pad", "flip"), [(4, True), (1, False), (0, True), (0, False)])
def test_each_augmented_image_is_its_own_crop_or_mirror_image(pad, flip):
    images = np.random.default_rng(0).integers(1, 256, (64, 9, 7, 2), np.uint8)
    result = np.asarray(
        jax.jit(augment, static_argnums=(2, 3))(jax.random.key(0), images, pad, flip)
    )
    assert (result.shape, result.dtype) == (images.shape, np.uint8)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    drawn = set()
    for image, wide in zip(result, padded, strict=True):
        matches = [
            (y, x, mirrored)
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            for mirrored in (False, True)
            if np.array_equal(image[:, :: -1 if mirrored else 1], wide[y : y + 9, x : x + 7])
        ]
        assert len(matches) == 1
        drawn.add(matches[0])
    assert any(m for *_, m in drawn) == flip
    shifts = {(y, x) for y, x, _ in drawn}
    assert len(shifts) > (30 if pad == 4 else 8 if pad else 0)  # of 81, of 9, of 1
    assert pad or shifts == {(0, 0)}
