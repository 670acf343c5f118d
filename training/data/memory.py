"""Data sets that fit into memory, and their batches, gathered on the devices."""

import itertools
import math
import zipfile
import zlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training.data import Batch, check_batch_size, in_flight
from training.devices import replicated
from training.machine import expanded

_LARGEST_LABEL: Any = None  # `Dataset` replaces it by an int
STEPS_AT_ONCE = 200  # at most, in a stack of batches


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, checked when it is made.

    Attributes:
        train_images: uint8, (number, height, width, channels).
        train_labels: integers, (number,), from 0 to `num_classes` − 1; kept as int32.
        test_images: as `train_images`; the images to evaluate on.
        test_labels: as `train_labels`.
        num_classes: number of classes. Default: the largest label + 1.
        class_names: a name for each class, or None.
        mean: `scale` subtracts it: a number, or one for each channel, from 0 to 255.
        std: `scale` divides by it, as `mean`.
        evaluated_on: the name of the split that the test images are.

    Raises:
        ValueError: for arrays of another dtype or shape, labels out of range and empty splits; the
            message names the array, its value and the remedy.

    Example:
        >>> images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)
        >>> data = Dataset(images, labels, images, labels)
        >>> data.num_train, data.num_classes, data.image_shape
        (4, 4, (8, 8, 1))
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int = _LARGEST_LABEL
    class_names: tuple[str, ...] | None = None
    mean: float | tuple[float, ...] = 127.5
    std: float | tuple[float, ...] = 127.5
    evaluated_on: Literal["test", "validation"] = "test"

    def __post_init__(self):
        """Checks the arrays and fills in `num_classes`."""
        for split in ("train", "test"):
            images = np.asarray(getattr(self, f"{split}_images"))
            labels = np.asarray(getattr(self, f"{split}_labels"))
            _check_split(split, images, labels)
            object.__setattr__(self, f"{split}_images", images)
            object.__setattr__(self, f"{split}_labels", labels.astype(np.int32))
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"train_images and test_images must be of one shape, got images of "
                f"{self.train_images.shape[1:]} and {self.test_images.shape[1:]}: resize one split"
            )
        mean, std = check_scaling(self.mean, self.std, self.image_shape[-1])
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        if self.evaluated_on not in ("test", "validation"):
            given = f"got {self.evaluated_on!r}"
            raise ValueError(f'evaluated_on must be "test" or "validation", {given}')
        largest = int(max(self.train_labels.max(), self.test_labels.max()))
        if self.num_classes is None:
            object.__setattr__(self, "num_classes", largest + 1)
        if not isinstance(self.num_classes, int | np.integer):
            raise ValueError(f"num_classes must be an integer, got {self.num_classes!r}")
        object.__setattr__(self, "num_classes", int(self.num_classes))
        if largest >= self.num_classes:
            raise ValueError(
                f"labels must be from 0 to {self.num_classes - 1} (num_classes is "
                f"{self.num_classes}), got {largest}: give the true number of classes"
            )
        check_names(self.class_names, self.num_classes)

    @property
    def num_train(self) -> int:
        """The number of training images."""
        return len(self.train_images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train_images.shape[1:]

    def identity(self) -> dict[str, Any]:
        """What tells these images and labels from others: numbers, and a CRC-32 of all."""
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        crc32 = 0
        for array in arrays:
            crc32 = zlib.crc32(np.ascontiguousarray(array).data, crc32)
        return {"train": self.num_train, "test": len(self.test_images), "crc32": f"{crc32:08x}"}

    def hold_out(self, number: int) -> "Dataset":
        """Replaces the test images by `number` training images: a validation split.

        Hyperparameters are chosen on it; the test images are left for the report. The split is the
        start of one fixed permutation.

        Raises:
            ValueError: unless some training images are held out and some are left.
        """
        if not isinstance(number, int) or not 0 < number < self.num_train:
            raise ValueError(
                f"--held-out must be from 1 to {self.num_train - 1}, fewer than the training "
                f"images, got {number!r}"
            )
        order = np.random.default_rng(0).permutation(self.num_train)
        held, kept = order[:number], np.sort(order[number:])
        return replace(
            self,
            train_images=self.train_images[kept],
            train_labels=self.train_labels[kept],
            test_images=self.train_images[held],
            test_labels=self.train_labels[held],
            evaluated_on="validation",
        )

    def batches(self, batch_size: int, mesh: Mesh, accumulate: int = 1) -> "InMemory":
        """Puts the data on the mesh.

        Args:
            batch_size: images in a batch, over all devices.
            mesh: devices with the axis "batch".
            accumulate: an epoch has a multiple of so many batches.

        Raises:
            ValueError: for a batch that the training images do not fill, or that the devices cannot
                share.
        """
        check_batch_size(batch_size, self.num_train, mesh, accumulate)
        return InMemory(self, batch_size, mesh, accumulate)


def check_scaling(mean: Any, std: Any, channels: int) -> tuple[Any, Any]:
    """Returns the numbers that images are scaled by; ValueError for those that cannot scale."""
    mean, std = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    if not np.isfinite(mean).all():
        raise ValueError(f"mean must be finite, got {mean}")
    if not 0 < np.min(std) <= np.max(std) < np.inf:
        raise ValueError(f"std must be above 0 and finite, got {std}")
    return mean, std


def check_names(names: Any, num_classes: int) -> tuple[str, ...] | None:
    """Returns the names of the classes; ValueError for other than one for each class."""
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be several names, got {names!r}")
    if len(names) != num_classes:
        raise ValueError(
            f"class_names must have a name for each of the {num_classes} classes, got "
            f"{len(names)} names: add the missing ones, or leave class_names out"
        )
    return tuple(names)


def _per_channel(name: str, value: Any, channels: int) -> float | tuple[float, ...]:
    try:
        numbers: Any = np.asarray(value, float)
    except (ValueError, TypeError):
        numbers = np.zeros((0, 0))
    if numbers.shape not in ((), (channels,)) or isinstance(value, str):
        raise ValueError(
            f"{name} must be a number, or one for each of the {channels} channels, got {value!r}"
        )
    return float(numbers) if numbers.ndim == 0 else tuple(numbers.tolist())


def _check_split(split: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise ValueError(
            f"{split}_images must be uint8, from 0 to 255, got {images.dtype}: scale the images to "
            "that range and convert them with .astype(np.uint8)"
        )
    if images.ndim != 4:
        raise ValueError(
            f"{split}_images must have the shape (number, height, width, channels), got "
            f"{images.shape}: reshape them; grey images have one channel, images[..., None]"
        )
    if not images.size:
        raise ValueError(f"{split}_images is empty, of shape {images.shape}: add images")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{split}_labels must have the shape {images.shape[:1]}, a class number for each "
            f"image, got {labels.shape}: add or drop labels; one-hot rows become numbers by "
            ".argmax(-1)"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{split}_labels must be integers, got {labels.dtype}: convert them with "
            ".astype(np.int32)"
        )
    if labels.min() < 0 or labels.max() >= 2**31:
        raise ValueError(
            f"{split}_labels must be from 0 to the number of classes − 1, got {labels.min()} to "
            f"{labels.max()}: number the classes from 0"
        )


# ---- Digits and NumPy archives -----------------------------------------------------------------


def digits() -> Dataset:
    """The 1,797 handwritten digits, 8×8, of scikit-learn: 1,437 to train, 360 to test.

    The split is one fixed permutation. Grey levels 0 to 16 are scaled to 0 to 255.

    References:
        Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. UCI, 1998.
    """
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = np.rint(data.images[..., None] * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    arrays = (images[train], data.target[train], images[test], data.target[test])
    return Dataset(*arrays, class_names=tuple("0123456789"))


def load_npz(path: Path) -> Dataset:
    """Loads a data set from a file that `numpy.savez` or `numpy.savez_compressed` wrote.

    Args:
        path: .npz file of the arrays train_images, train_labels, test_images, test_labels and, if
            the classes have names, class_names.

    Raises:
        ValueError: if the file is missing or damaged, or if its arrays are not a data set.
    """
    names = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        with (
            expanded(path).open("rb") as file,
            zipfile.ZipFile(file),  # NumPy reads other files as pickles
            np.load(file, allow_pickle=False) as stored,
        ):
            arrays = [stored[name] for name in names]
            class_names = stored["class_names"].astype(str) if "class_names" in stored else None
        if class_names is None:
            return Dataset(*arrays)
        if class_names.ndim != 1:
            raise ValueError(f"class_names must have one dimension, got {class_names.ndim}")
        return Dataset(*arrays, class_names=tuple(class_names.tolist()))
    except Exception as error:  # NumPy, zipfile and zlib each raise their own
        raise ValueError(
            f"{path} is not a data set ({error}): write it with "
            f"np.savez(path, {', '.join(f'{name}=...' for name in names)}), images as uint8 "
            "(number, height, width, channels), labels as integers (number,)"
        ) from error


# ---- Batches ----------------------------------------------------------------------------------


class InMemory:
    """Batches of a data set that lies in the memory of every device.

    Attributes:
        steps_per_epoch: batches in an epoch; an incomplete last batch is dropped.
        stacked: True if a training batch is a stack of steps, to be scanned, as on an accelerator.
            On a CPU it is one step: XLA's convolutions are many times slower inside a loop there.
        in_flight: evaluation batches that may be dispatched before the first of them is done.
        dispatched: training batches that the loop may dispatch before it reads their losses.
        evaluated_on: the split that `evaluation` yields: "test" or "validation".
    """

    def __init__(self, data: Dataset, batch_size: int, mesh: Mesh, accumulate: int = 1):
        """Copies the data to every device of the mesh."""
        self.steps_per_epoch = data.num_train // (batch_size * accumulate) * accumulate
        self.stacked = jax.default_backend() != "cpu"
        self.in_flight = in_flight(mesh)
        self.dispatched = 1 if self.stacked else self.in_flight
        self.evaluated_on = data.evaluated_on
        self._batch_size = batch_size
        everywhere = replicated(mesh)

        def put(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_process_local_data(everywhere, array, array.shape)

        self._train = put(data.train_images), put(data.train_labels)
        self._test = put(data.test_images), put(data.test_labels)
        one = NamedSharding(mesh, PartitionSpec("batch"))
        stack = NamedSharding(mesh, PartitionSpec(None, "batch"))
        self._gather = jax.jit(_gather, out_shardings=one)
        self._gather_training = jax.jit(_gather, out_shardings=stack if self.stacked else one)

    def training(self, seed: int, step: int = 0) -> Generator[Batch]:
        """Yields training batches without end.

        Args:
            seed: draws each epoch's order.
            step: number of the first batch, from 0: a resumed run has the batches of a whole one.

        Yields:
            A batch; if `stacked`, up to 200 of one epoch, (steps, batch, ...).
        """
        epoch, offset = divmod(step, self.steps_per_epoch)
        for number in itertools.count(epoch + 1):
            batches = epoch_batches(seed, number, len(self._train[0]), self._batch_size)
            batches = batches[offset : self.steps_per_epoch]
            if self.stacked:
                batches = np.array_split(batches, math.ceil(len(batches) / STEPS_AT_ONCE))
            for positions in batches:
                yield self._gather_training(*self._train, positions)
            offset = 0

    def evaluation(self) -> Generator[Batch]:
        """Yields each test image once; the last batch is padded."""
        steps = math.ceil(len(self._test[0]) / self._batch_size)
        positions = np.arange(steps * self._batch_size, dtype=np.int32)
        for batch in positions.reshape(steps, -1):
            yield self._gather(*self._test, batch)

    def measurements(self) -> dict[str, float]:
        """Returns an empty dictionary: batches in memory cause no wait."""
        return {}


def epoch_batches(seed: int, epoch: int, number: int, batch_size: int) -> np.ndarray:
    """The shuffled positions of an epoch's images, (steps, batch_size), int32.

    They depend on the seed and the epoch alone. An incomplete last batch is dropped.

    Args:
        seed: from 0.
        epoch: from 1.
        number: training images.
        batch_size: images in a batch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(number).astype(np.int32)
    steps = number // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def _gather(images: jax.Array, labels: jax.Array, positions: jax.Array) -> Batch:
    """The images at the positions; a position behind the last image is padding."""
    nearest = jnp.minimum(positions, len(images) - 1)
    return Batch(images[nearest], labels[nearest], positions < len(images))
