"""ImageNet's batches, which worker processes make.

Grain shuffles, repeats, batches, shares among hosts and runs the workers, which read, decode, crop
and resize images as imagenet.py does. The batches keep these promises:

1. A batch depends on the seed and its number alone, not on the workers nor on the first step.
2. The hosts' shares joined are the batch of one host, and all hosts have equally many.
3. No seed repeats another's order; a crop depends on seed, epoch and image.
4. A bad image is replaced in training and masked in validation, named once, and counted.
"""

import math
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from training.data import Batch
from training.data.imagenet import BadImage, Record, Records, training_image, validation_image
from training.messages import warn


class BadImages:
    """Counts the images that could not be decoded; names each, once, on stderr.

    Attributes:
        names: "train record 17 (n01440764_8.JPEG)" → its fault, for each of them.
    """

    def __init__(self):
        self.names: dict[str, str] = {}

    def _note(self, batch_and_faults: tuple[Batch, dict[str, str]]) -> Batch:
        """Runs in the main process; copies shared memory, so that the worker can use it again."""
        batch, faults = batch_and_faults
        for name, fault in faults.items():
            if name not in self.names:
                self.names[name] = fault
                warn(f"Left out: {name} {fault}")
        return Batch(*(np.array(x) if isinstance(x, SharedMemoryArray) else x for x in batch))


def training_batches(
    records: Records | Sequence[Record],
    batch_size: int,
    seed: int,
    *,
    first_step: int = 0,
    accumulate: int = 1,
    image_size: int = 224,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
    bad_images: BadImages | None = None,
) -> grain.IterDataset[Batch]:
    """Batches of random crops, for ever. An epoch has its own order and drops an incomplete batch.

    The order depends on seed and epoch, an image's crop on seed, epoch and image.

    Args:
        records: as from `open_imagenet`, or any sequence of `Record`.
        batch_size: images of all hosts together.
        seed: from 0.
        first_step: number of the first batch: to resume, how many batches were used before.
        accumulate: an epoch has a multiple of so many batches.
        image_size: height and width of the crops.
        workers: processes that make them, about one for each core; each has up to 4 batches in
            shared memory. 0: the process that iterates.
        host: this host's number, from 0: `jax.process_index()`.
        hosts: how many hosts share the batches: `jax.process_count()`.
        bad_images: None stops at an image that does not decode. A `BadImages` lets the next record
            take its place, and names and counts the image.

    Returns:
        An iterable of `Batch`es of NumPy arrays, of batch_size / hosts images. Iterate it through
        `Feed`, or close its iterator.

    Raises:
        ValueError: for a batch that is larger than the data or that the hosts cannot share, and for
            a negative `first_step`.
        OSError: if shared memory is too small for the workers; while iterating, for a record that
            is damaged.
        BadImage: while iterating, naming the record and the file.

    Example:
        >>> batches = training_batches(open_imagenet().train, 256, seed=0)  # doctest: +SKIP
        >>> next(iter(batches)).images.shape  # doctest: +SKIP
        (256, 224, 224, 3)
    """
    if first_step < 0:
        raise ValueError(f"first_step must be at least 0, got {first_step}")
    if not 0 < batch_size * accumulate <= len(records):
        raise ValueError(
            f"batch_size must be from 1 to the {len(records)} training images, got "
            f"{batch_size * accumulate}"
        )
    images = _Images(records, "train", image_size, bad_images is not None)
    # `seed` hashes: with shuffle(seed), epoch 2 of seed 1 would be epoch 1 of seed 2. Grain's
    # permutation is not quite uniform (neighbours correlate by 0.02); TFDS shuffled the files, too.
    order = grain.MapDataset.range(len(records)).seed(seed).random_map(images.crop).shuffle()
    at_once = batch_size * accumulate
    whole = order[: len(records) // at_once * at_once]
    batches = _to_share(whole, batch_size, host, hosts).repeat()[first_step:]
    # 8 batches of each worker: 4 of its own, and 4 of the one that evaluates at the same time
    return _stream(batches, workers, 8 * batch_size // hosts * image_size**2 * 3, bad_images)


def validation_batches(
    records: Records | Sequence[Record],
    batch_size: int,
    *,
    image_size: int = 224,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
    bad_images: BadImages | None = None,
) -> grain.IterDataset[Batch]:
    """Each image's centre exactly once; the last batch is padded with black images.

    All hosts get equally many batches. Arguments and errors are those of `training_batches`, but a
    batch may be larger than the data; an image that `bad_images` leaves out is black. The mask is
    False on it and on the padding.

    Returns:
        An iterable as of `training_batches`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    images = _Images(records, "validation", image_size, bad_images is not None)
    padded = math.ceil(len(records) / batch_size) * batch_size
    centres = grain.MapDataset.range(padded).map(images.centre)
    batches = _to_share(centres, batch_size, host, hosts)
    return _stream(batches, workers, 4 * batch_size // hosts * image_size**2 * 3, bad_images)


# ---- In the workers ---------------------------------------------------------------------------


class _Image(NamedTuple):
    image: np.ndarray
    label: int
    mask: bool
    faults: dict[str, str]


# Our own code for promise 4: Grain's `filter` puts nothing in an image's place, and its `batch`
# refuses to follow it. And for promise 2, `Streamed` puts a host's share on its devices: Grain's
# `device_put` needs the whole batch on every host.
@dataclass(frozen=True)
class _Images:
    """The number of a record → its image, or a black one with the mask False."""

    records: Records | Sequence[Record]
    split: str
    size: int
    skip_bad: bool

    def crop(self, number: int, rng: np.random.Generator) -> _Image:
        """A random crop of a record, or of the next one that decodes."""
        faults, tries = {}, min(100, len(self.records))
        for candidate in range(number, number + tries):
            image = self._read(candidate % len(self.records), partial(training_image, rng=rng))
            faults |= image.faults
            if image.mask:
                return image._replace(faults=faults)
        raise BadImage(f"{tries} records in a row do not decode, from {number} on")

    def centre(self, number: int) -> _Image:
        if number >= len(self.records):
            return self._black({})
        return self._read(number, validation_image)

    def _read(self, number: int, decode: Callable[..., np.ndarray]) -> _Image:
        record: Record = self.records[number]
        try:
            return _Image(decode(record.jpeg, size=self.size), record.label, True, {})
        except BadImage as error:
            name = f"{self.split} record {number} ({record.file_name})"
            if not self.skip_bad:
                raise BadImage(f"{name} {error}") from error
            return self._black({name: str(error)})

    def _black(self, faults: dict[str, str]) -> _Image:
        return _Image(np.zeros((self.size, self.size, 3), np.uint8), 0, False, faults)


def _to_share(
    images: grain.MapDataset[_Image], batch_size: int, host: int, hosts: int
) -> grain.MapDataset[tuple[Batch, dict[str, str]]]:
    """This host's share of each batch; the images fill batches of all hosts."""
    if batch_size % hosts or not 0 <= host < hosts:
        raise ValueError(
            f"batch_size must be a multiple of the hosts, and host one of them, from 0; "
            f"got batch_size={batch_size}, hosts={hosts}, host={host}"
        )
    return images.batch(batch_size // hosts, batch_fn=_collate)[host::hosts]


def _collate(images: Sequence[_Image]) -> tuple[Batch, dict[str, str]]:
    pixels, labels, mask, faults = zip(*images, strict=True)
    batch = Batch(np.stack(pixels), np.array(labels, np.int32), np.array(mask))
    return batch, {name: fault for each in faults for name, fault in each.items()}


def _stream(
    batches: grain.MapDataset[Any], workers: int, worker_bytes: int, bad_images: BadImages | None
) -> grain.IterDataset[Batch]:
    workers = min(workers, len(batches))
    # An element is a batch: Grain's default, 500 elements read ahead, would take 20 GB.
    one_by_one = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    stream = batches.to_iter_dataset(one_by_one)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
        _check_shared_memory(workers * worker_bytes)
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_start_worker
        )
    return stream.map((bad_images or BadImages())._note)  # in this process, not in the workers


def _check_shared_memory(needed: int) -> None:
    """If it is too small, a worker dies of a bus error, as in a container with the usual 64 MB."""
    folder = Path("/dev/shm")
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"the workers need {needed / 1e6:,.0f} MB of shared memory, {folder} has "
            f"{free / 1e6:,.0f} MB free: enlarge it (docker run --shm-size), or use fewer workers"
        )


def _start_worker(index: int, number: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose main process was killed; it would wait for that process for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
