"""ImageNet (ILSVRC 2012): the files that TFDS prepared, and the uint8 crop of one image.

    data = open_imagenet(data_dir)
    record = data.validation[0]
    image, label = validation_image(record.jpeg), record.label

feed.py makes batches of them. Mirroring and normalization belong into the compiled step, since
uint8 travels at a quarter of float32: `datasets.augment(key, images, pad=0, flip=True)`, then
`datasets.scale` with MEAN, STD.
"""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

import datasets

MEAN = (123.675, 116.28, 103.53)  # red, green, blue of the training images, from 0 to 255
STD = (58.395, 57.12, 57.375)


# ---- The prepared files -----------------------------------------------------------------------


class Record(NamedTuple):
    """One image file as it was prepared, not decoded. Labels run from 0 to 999."""

    jpeg: bytes
    label: int
    file_name: str


class Records:
    """A split as TFDS prepared it: the number of a record → `Record`. Goes to worker processes."""

    def __init__(self, folder: Path, split: str):
        import absl.logging
        import tensorflow_datasets as tfds

        absl.logging.set_verbosity("error")  # TFDS advises OpenCV at every start
        self._folder, self._split = folder, split
        builder: Any = tfds.builder_from_directory(str(folder))
        self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> Record:
        try:
            record = self._source[number]
        except Exception as error:  # array_record raises its own
            raise OSError(
                f"{self._split} record {number} is damaged ({error}): delete {self._folder} and "
                "prepare ImageNet again"
            ) from error
        return Record(record["image"], record["label"], record["file_name"].decode())


class ImageNet(NamedTuple):
    """The two splits, and what a network and `datasets.scale` need to know of them."""

    train: Records
    validation: Records
    num_classes = 1000
    image_shape = (224, 224, 3)
    mean, std = MEAN, STD

    @property
    def num_train(self) -> int:
        return len(self.train)


def open_imagenet(data_dir: Path | None = None) -> ImageNet:
    """Opens ImageNet where TFDS has prepared it; every shard is opened and its records counted.

    Args:
        data_dir: the TFDS directory that holds it; default `$TFDS_DATA_DIR`, else
            ~/tensorflow_datasets.

    Returns:
        Its two splits: 1,281,167 images to train, 50,000 to validate.

    Raises:
        FileNotFoundError: where the data is missing, only half there, damaged, or of a format that
            does not read without TensorFlow; the message says how to prepare it.
    """
    data_dir = datasets.data_directory(data_dir)
    folder, numbers = datasets.find("imagenet2012", data_dir)
    try:
        for split, number in numbers.items():
            there = sum(map(_count_records, folder.glob(f"imagenet2012-{split}.array_record-*")))
            if there != number:
                raise ValueError(f"{there} {split} records, dataset_info.json says {number}")
        return ImageNet(*(Records(folder, split) for split in numbers))
    except Exception as error:  # array_record and TFDS each raise their own
        raise FileNotFoundError(
            f"{folder} is damaged ({error}): delete it."
            + datasets.how_to_prepare("imagenet2012", data_dir)
        ) from error


def _count_records(path: Path) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        number = reader.num_records()
        reader.close()
        return number
    except RuntimeError as error:  # does not name the file
        raise OSError(f"{path.name}: {error}") from error


# ---- One image --------------------------------------------------------------------------------


class BadImage(ValueError):
    """An image file that does not decode."""


def decode(jpeg: bytes) -> Image.Image:
    """Decodes an image file to RGB, be it grey, CMYK, of a palette, or 16-bit; drops transparency.

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

    Where ten draws do not fit into the image: the largest centred crop of such a ratio.

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
