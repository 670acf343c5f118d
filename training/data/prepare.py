"""Prepares a data set once, with TensorFlow Datasets: python -m training.data.prepare cifar10."""

import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from training.data.tfds import data_directory, find, how_to_prepare

ARCHIVES = {"ILSVRC2012_img_train.tar": 147_897_477_120, "ILSVRC2012_img_val.tar": 6_744_924_160}


def prepare(name: Literal["cifar10", "imagenet2012"], /, data_dir: Path | None = None) -> None:
    """Prepares a data set, once. Needs TensorFlow (extra `prepare`).

    Args:
        name: The data set. CIFAR-10: 170 MB to download, 140 MB prepared, about 3 minutes.
            ImageNet: 155 GB to fetch by hand, 155 GB prepared, 1 to 3 hours (an estimate).
        data_dir: TFDS directory to write to. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """
    data_dir = data_directory(data_dir)
    try:
        find(name, data_dir)
    except FileNotFoundError as missing:
        print(missing.args[0].splitlines()[0], file=sys.stderr)
    else:
        print(f"{name} is in {data_dir} already.")
        return
    if name == "imagenet2012":
        _check_archives(data_dir)
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    builder: Any = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    reuse_downloads = tfds.download.DownloadConfig(
        download_mode=tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS
    )
    try:
        builder.download_and_prepare(download_config=reuse_downloads)
    except (DownloadError, NonMatchingChecksumError) as error:
        raise OSError(f"{name} cannot be downloaded ({error}): run the command again") from error
    print(f"{name} is in {builder.data_dir}.")


def _check_archives(data_dir: Path) -> None:
    """TFDS leaves out the split whose archive is missing, with no more than a warning."""
    for archive, size in ARCHIVES.items():
        path = data_dir / "downloads" / "manual" / archive
        present = path.stat().st_size if path.is_file() else 0
        if present < size:
            state = f"has {present:,} of {size:,} bytes" if present else "is missing"
            raise FileNotFoundError(f"{path} {state}." + how_to_prepare("imagenet2012", data_dir))


def main() -> None:
    """Prepares what the command line names."""
    try:
        tyro.cli(prepare, prog="python -m training.data.prepare")
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"training.data.prepare: {error}")


if __name__ == "__main__":
    main()
