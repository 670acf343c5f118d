"""The data of a run. A class of your own needs a method `load` alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.config.ranges import require

MOST_WORKERS = 1000
MANY = f"at most {MOST_WORKERS}, about one for each core"


@dataclass(frozen=True)
class Digits:
    """The 8×8 handwritten digits of scikit-learn."""

    held_out: int = 0
    """Training images for a validation split that replaces the test images. 0: none."""

    def load(self) -> Any:
        """Returns a `training.data.memory.Dataset`."""
        from training.data import memory

        return _validation_split(memory.digits(), self.held_out)


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10, as TensorFlow Datasets prepares it."""

    data_dir: Path | None = None
    """TFDS directory. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    held_out: int = 0
    """Training images for a validation split that replaces the test images. 0: none."""

    def load(self) -> Any:
        """Returns a `training.data.memory.Dataset`."""
        from training.data import tfds

        return _validation_split(tfds.load_cifar10(self.data_dir), self.held_out)


@dataclass(frozen=True)
class Arrays:
    """Images and labels in a NumPy archive."""

    path: Path
    """Archive with train_images, train_labels, test_images and test_labels."""
    held_out: int = 0
    """Training images for a validation split that replaces the test images. 0: none."""

    def load(self) -> Any:
        """Returns a `training.data.memory.Dataset`."""
        from training.data import memory

        return _validation_split(memory.load_npz(self.path), self.held_out)


@dataclass(frozen=True)
class ImageNet:
    """ImageNet (ILSVRC 2012), as TensorFlow Datasets prepares it, read from files."""

    data_dir: Path | None = None
    """TFDS directory. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    workers: int | None = None
    """Processes that read and decode images. None: one for each core. 0: the training process."""
    bad_images: Literal["stop", "skip"] = "stop"
    """Action at an image that cannot be decoded: stop the run; or name, count and skip it."""

    def __post_init__(self):
        require((self.workers or 0) >= 0, "workers", "at least 0", self.workers)
        require((self.workers or 0) <= MOST_WORKERS, "workers", MANY, self.workers)

    def load(self) -> Any:
        """Returns a `training.data.imagenet.ImageNet`."""
        from training.data import imagenet

        return imagenet.open_imagenet(self.data_dir, self.workers, self.bad_images)


def _validation_split(data: Any, held_out: int) -> Any:
    return data.hold_out(held_out) if held_out else data


NAMED = {"digits": Digits, "cifar10": Cifar10, "imagenet2012": ImageNet}


def data_from_name(name: str) -> Digits | Cifar10 | Arrays | ImageNet:
    """The data that `--data` names: a member of `NAMED`, or an archive FILE.npz.

    Raises:
        ValueError: for another name.
    """
    if name in NAMED:
        return NAMED[name]()
    if not name.lower().endswith(".npz"):
        raise ValueError(f"--data must be one of {', '.join(NAMED)}, or FILE.npz, got {name}")
    return Arrays(Path(name))
