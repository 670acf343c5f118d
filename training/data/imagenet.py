"""ImageNet (ILSVRC 2012): the files that TFDS prepared, and the uint8 crop of one image.

    data = open_imagenet(data_dir)
    record = data.validation[0]
    image, label = validation_image(record.jpeg), record.label

pipeline.py makes batches of them. Mirroring and scaling belong in the compiled step, since uint8
takes a quarter of float32's bandwidth: `augment(key, images, pad=0, flip=True)`, then `scale`.
"""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh
from PIL import Image, UnidentifiedImageError

from training.data import check_batch_size, tfds

if TYPE_CHECKING:
    from training.data.stream import Streamed

MEAN = (123.675, 116.28, 103.53)  # red, green, blue of the training images, from 0 to 255
STD = (58.395, 57.12, 57.375)


# ---- The prepared files -----------------------------------------------------------------------


class Record(NamedTuple):
    """One image file as it was prepared, not decoded. Labels run from 0 to 999."""

    jpeg: bytes
    label: int
    file_name: str


class Records:
    """A split as TFDS prepared it: the number of a record → `Record`. Pickled into the workers."""

    def __init__(self, folder: Path, split: str):
        import absl.logging
        import tensorflow_datasets

        absl.logging.set_verbosity("error")  # TFDS advises OpenCV at every start
        self._folder, self._split = folder, split
        builder: Any = tensorflow_datasets.builder_from_directory(str(folder))
        encoded = {"image": tensorflow_datasets.decode.SkipDecoding()}
        self._source = builder.as_data_source(split, decoders=encoded)

    def __len__(self) -> int:
        """The number of records."""
        return len(self._source)

    def __getitem__(self, number: int) -> Record:
        """Reads a record; raises an OSError if it is damaged."""
        try:
            record = self._source[number]
        except Exception as error:  # array_record raises its own
            raise OSError(
                f"{self._split} record {number} is damaged ({error}): delete {self._folder} and "
                "prepare ImageNet again"
            ) from error
        return Record(record["image"], record["label"], record["file_name"].decode())


@dataclass(frozen=True)
class ImageNet:
    """The two splits, and how to make batches of them.

    Attributes:
        train: 1,281,167 records.
        validation: 50,000 records; the test images have no public labels.
        workers: processes that decode, about one for each core. 0: the training process decodes.
        bad_images: "stop" ends a run at an image that does not decode; "skip" lets the next record
            take its place in training, and masks it in the evaluation.
        class_names: WordNet's numbers, as in "n01440764", or None.
        image_shape: height, width and channels of the crops, which are square.
    """

    train: Records | Sequence[Record]
    validation: Records | Sequence[Record]
    workers: int = 0
    bad_images: Literal["stop", "skip"] = "stop"
    class_names: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int] = (224, 224, 3)
    num_classes: ClassVar[int] = 1000
    mean: ClassVar[tuple[float, ...]] = MEAN
    std: ClassVar[tuple[float, ...]] = STD
    evaluated_on: ClassVar[str] = "validation"

    @property
    def num_train(self) -> int:
        """The number of training images."""
        return len(self.train)

    def identity(self) -> dict[str, Any]:
        """What tells these images from others: their numbers."""
        return {"train": self.num_train, "test": len(self.validation)}

    def batches(self, batch_size: int, mesh: Mesh, accumulate: int = 1) -> "Streamed":
        """Streams the images to the mesh; arguments and errors are those of `Dataset.batches`."""
        from training.data.stream import Streamed  # Grain takes seconds to import

        check_batch_size(batch_size, self.num_train, mesh, accumulate)
        return Streamed(self, batch_size, mesh, accumulate)


def open_imagenet(
    data_dir: Path | None = None,
    workers: int | None = None,
    bad_images: Literal["stop", "skip"] = "stop",
) -> ImageNet:
    """Opens the ImageNet that TFDS prepared; opens every shard and counts its records.

    Args:
        data_dir: the TFDS directory that holds it; default `$TFDS_DATA_DIR`, else
            ~/tensorflow_datasets.
        workers: processes that decode. Default: one for each core.
        bad_images: "stop" or "skip", as in `ImageNet`.

    Raises:
        FileNotFoundError: if the data is missing, incomplete, damaged, or of a format that does not
            read without TensorFlow; the message names the steps that prepare it.
    """
    data_dir = tfds.data_directory(data_dir)
    folder, numbers = tfds.find("imagenet2012", data_dir)
    try:
        tfds.count_records("imagenet2012", folder, numbers)
        train, validation = (Records(folder, split) for split in numbers)
    except Exception as error:  # array_record and TFDS each raise their own
        raise FileNotFoundError(
            f"{folder} is damaged ({error}): delete it."
            + tfds.how_to_prepare("imagenet2012", data_dir)
        ) from error
    workers = os.cpu_count() or 1 if workers is None else workers
    return ImageNet(train, validation, workers, bad_images, tfds.class_names(folder))


# ---- One image --------------------------------------------------------------------------------


class BadImage(OSError):
    """An image file that does not decode."""


def decode(jpeg: bytes) -> Image.Image:
    """Decodes an image file to RGB: grey, CMYK, palette and 16-bit images, too. Drops transparency.

    Raises:
        BadImage: for a file that does not decode, or of a mode without a range of colours.
    """
    try:
        image = Image.open(io.BytesIO(jpeg))
        image.load()
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"mode {image.mode} has no range of colours")
        elif "transparency" in image.info:
            image = image.convert("RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError as error:
        raise BadImage("does not decode: no known image format") from error
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ...
        raise BadImage(f"does not decode: {error or type(error).__name__}") from error


def training_image(jpeg: bytes, rng: np.random.Generator, size: int = 224) -> np.ndarray:
    """Decodes an image and resizes a random crop of it, as `random_box` draws it.

    Returns:
        uint8, (size, size, 3), by bicubic interpolation with antialiasing.

    Raises:
        BadImage: as `decode` does.
    """
    image = decode(jpeg)
    return _resize(image, random_box(rng, *image.size), size)


def validation_image(jpeg: bytes, size: int = 224) -> np.ndarray:
    """Decodes an image and resizes its centre, the square of 224/256 of its shorter side.

    This is resizing the shorter side to 256 and cropping 224, in one interpolation.

    Returns:
        uint8, (size, size, 3), by bicubic interpolation with antialiasing.

    Raises:
        BadImage: as `decode` does.
    """
    image = decode(jpeg)
    width, height = image.size
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return _resize(image, (left, top, left + side, top + side), size)


def random_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Draws a crop of 8 to 100 % of the area, its sides' ratio from 3/4 to 4/3, log-uniformly.

    If ten draws do not fit into the image, takes the largest centred crop of such a ratio.

    Returns:
        left, top, right, bottom, in pixels.

    References:
        Szegedy et al. Going Deeper with Convolutions. 2014. arXiv 1409.4842, section 6.
    """
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _resize(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))
