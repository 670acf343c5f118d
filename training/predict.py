"""Classifies image files with a finished run: `python -m training.predict RUN image.png ...`."""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from training.data.imagenet import BadImage, decode
from training.hosts import all_devices
from training.machine import expanded
from training.trained import TrainedModel, load_run


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Decodes an image file and resizes its centre to what a model takes.

    Args:
        path: an image file of any format that Pillow reads.
        shape: (height, width, channels), 1 channel for grey or 3 for red, green, blue.

    Returns:
        uint8 of that shape.

    Raises:
        OSError: for a file that cannot be read or decoded.
        ValueError: for another number of channels.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise ValueError(f"an image file has 1 or 3 channels, the model takes {channels}")
    image = decode(expanded(path).read_bytes()).convert("L" if channels == 1 else "RGB")
    # The largest centre of the model's aspect ratio; of ImageNet's images its inner 224/256.
    scale = min(image.width / width, image.height / height)
    scale *= 224 / 256 if min(height, width) >= 224 else 1
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box))
    return pixels.reshape(shape)


def describe(trained: TrainedModel, probabilities: np.ndarray, top: int) -> str:
    """The likeliest classes and their probabilities."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    names = trained.class_names or [f"class {i}" for i in range(len(probabilities))]
    return ", ".join(f"{names[i]} {probabilities[i]:.1%}" for i in best)


def main(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")],
    /,
    top: int = 3,
) -> None:
    """Classifies image files with the model of a finished run.

    Args:
        run: Folder of a finished run of train.py.
        images: Image files. Each is cropped and resized to the size that the model takes.
        top: Number of classes to print, the likeliest ones.
    """
    try:
        if not images:
            raise ValueError("name at least one image file")
        if top < 1:
            raise ValueError(f"--top must be at least 1, got {top}")
        all_devices()  # or an error that names what is missing
        trained = load_run(run)
        pixels = []
        for path in images:
            try:
                pixels.append(read_image(path, trained.image_shape))
            except BadImage as error:
                raise OSError(f"{path} {error}") from error
    except (ValueError, OSError) as error:
        sys.exit(f"training.predict: {error}")
    for path, row in zip(images, trained.probabilities(np.stack(pixels)), strict=True):
        print(f"{path}: {describe(trained, row, top)}")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m training.predict")
