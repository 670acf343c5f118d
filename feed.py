"""ImageNet's batches, which worker processes make while the device computes.

    data = open_imagenet(data_dir)
    with Feed(training_batches(data.train, 256, seed=0, workers=16), jax.device_put) as feed:
        for batch in feed:
            state = train_step(state, batch["image"], batch["label"])

The workers (Grain) read the image files, decode them, crop and resize, as imagenet.py does.
"""

import gc
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset
from grain.multiprocessing import SharedMemoryArray

from imagenet import BadImage, Record, Records, training_image, validation_image

Batch = dict[str, Any]  # of NumPy arrays, or what `Feed` makes of them


class BadImages:
    """Counts the images that did not decode and were left out; names each, once, on stderr.

    Attributes:
        names: "train record 17 (n01440764_8.JPEG)" → what is wrong with it, for each of them.
    """

    def __init__(self):
        self.names: dict[str, str] = {}

    def _note(self, batch: Batch) -> Batch:
        """Runs in the main process; copies what a worker shared, so that its memory is free."""
        for name, fault in batch.pop("bad").items():
            if name not in self.names:
                self.names[name] = fault
                print(f"Left out: {name} {fault}", file=sys.stderr)
        return {k: np.array(v) if isinstance(v, SharedMemoryArray) else v for k, v in batch.items()}


def training_batches(
    records: Records | Sequence[Record],
    batch_size: int,
    seed: int,
    *,
    first_step: int = 0,
    image_size: int = 224,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
    bad_images: BadImages | None = None,
) -> grain.IterDataset[Batch]:
    """Batches of random crops for ever; each epoch has its own order and drops a last part batch.

    Batch number k depends on `seed`, `batch_size` and k alone: not on the number of workers, not on
    where the iteration began, and the hosts' shares one after another are the batch of one host.
    The order depends on seed and epoch, an image's crop on seed, epoch and image.

    Args:
        records: as from `open_imagenet`, or any sequence of `Record`.
        batch_size: images of all hosts together.
        seed: from 0.
        first_step: number of the first batch: to resume, how many batches were used before.
        image_size: height and width of the crops.
        workers: processes that make them, about one per core; each has up to 4 batches in shared
            memory. 0: the process that iterates.
        host, hosts: this host's number, from 0, and how many share the batches:
            `jax.process_index()`, `jax.process_count()`.
        bad_images: what to do with an image that does not decode. None: stop. A `BadImages`: the
            next record takes its place, and the image is named and counted there.

    Returns:
        An iterable of dictionaries: "image", uint8, (batch_size / hosts, size, size, 3), and
        "label", int32, (batch_size / hosts,). Iterate it through `Feed`, or close its iterator.

    Raises:
        ValueError: for a batch that is larger than the data or that the hosts cannot share, and for
            a negative `first_step`.
        OSError: where shared memory is too small for the workers; while iterating, for a record
            that is damaged.
        BadImage: while iterating, naming the record and the file.

    Example:
        >>> batches = training_batches(open_imagenet().train, 256, seed=0)  # doctest: +SKIP
        >>> next(iter(batches))["image"].shape  # doctest: +SKIP
        (256, 224, 224, 3)
    """
    if first_step < 0:
        raise ValueError(f"first_step must be at least 0, got {first_step}")
    if not 0 < batch_size <= len(records):
        raise ValueError(
            f"batch_size must be from 1 to the {len(records)} training images, got {batch_size}"
        )
    common = (records, batch_size, image_size, host, hosts, bad_images is not None)
    return _stream(_Training(*common, seed, first_step), workers, bad_images)


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
    """Each image's centre exactly once; black images that do not count fill up the last batch.

    All hosts get equally many batches. Arguments and errors are those of `training_batches`, but a
    batch may be larger than the data; an image that `bad_images` leaves out is black and does not
    count.

    Returns:
        An iterable of dictionaries as of `training_batches`, with "counted", bool,
        (batch_size / hosts,): which of the images to count.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    common = (records, batch_size, image_size, host, hosts, bad_images is not None)
    return _stream(_Validation(*common), workers, bad_images)


@dataclass(frozen=True)
class _Batches:
    """Random access: the number of a batch → this host's share of it. Runs in the workers."""

    records: Records | Sequence[Record]
    batch_size: int
    image_size: int
    host: int
    hosts: int
    leave_out: bool
    split: ClassVar[str]
    room: ClassVar[int]  # batches of shared memory to find free for each worker

    def __post_init__(self):
        if self.batch_size % self.hosts or not 0 <= self.host < self.hosts:
            raise ValueError(
                f"batch_size must be a multiple of the hosts, and host one of them, from 0; "
                f"got batch_size={self.batch_size}, hosts={self.hosts}, host={self.host}"
            )

    def empty(self) -> Batch:
        share = self.batch_size // self.hosts
        image = np.zeros((share, self.image_size, self.image_size, 3), np.uint8)
        return {"image": image, "label": np.zeros(share, np.int32), "bad": {}}

    def put(
        self, batch: Batch, place: int, number: int, decode: Callable[[bytes], np.ndarray]
    ) -> bool:
        """Puts an image into a batch; False where it is bad and to be left out."""
        record: Record = self.records[number]
        try:
            batch["image"][place] = decode(record.jpeg)
        except BadImage as error:
            name = f"{self.split} record {number} ({record.file_name})"
            if not self.leave_out:
                raise BadImage(f"{name} {error}") from error
            batch["bad"][name] = str(error)
            return False
        batch["label"][place] = record.label
        return True


@dataclass(frozen=True)
class _Training(_Batches):
    seed: int
    first_step: int
    split = "train"
    room = 8  # 4 of its own, and 4 of the worker that validates beside it

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        epoch, step = divmod(self.first_step + index, len(self.records) // self.batch_size)
        order = _epoch_order(self.seed, epoch + 1, len(self.records))
        batch = self.empty()
        share = len(batch["label"])
        start = step * self.batch_size + self.host * share
        for place, number in enumerate(order[start : start + share]):
            tries = min(100, len(self.records))
            for candidate in range(number, number + tries):
                record = int(candidate % len(self.records))
                # 1 + record: a seed is padded with zeros, and [seed, epoch] draws the order
                rng = np.random.default_rng([self.seed, epoch + 1, 1 + record])
                crop = partial(training_image, rng=rng, size=self.image_size)
                if self.put(batch, place, record, crop):
                    break
            else:
                raise BadImage(f"{tries} records in a row do not decode, from {number} on")
        return batch


@dataclass(frozen=True)
class _Validation(_Batches):
    split = "validation"
    room = 4

    def __len__(self) -> int:
        return math.ceil(len(self.records) / self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        batch = self.empty()
        share = len(batch["label"])
        crop = partial(validation_image, size=self.image_size)
        counted = np.zeros(share, bool)
        start = index * self.batch_size + self.host * share
        for place, number in enumerate(range(start, min(start + share, len(self.records)))):
            counted[place] = self.put(batch, place, number, crop)
        return batch | {"counted": counted}


@lru_cache(maxsize=2)  # a batch may follow those of the epoch before
def _epoch_order(seed: int, epoch: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(number)


def _stream(
    batches: _Training | _Validation, workers: int, bad_images: BadImages | None
) -> grain.IterDataset[Batch]:
    workers = min(workers, len(batches))
    # An element is a batch: Grain's default, 500 elements read ahead, would take 20 GB.
    one_by_one = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    stream = grain.MapDataset.source(batches).to_iter_dataset(one_by_one)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
        _check_shared_memory(batches.room * workers * batches.empty()["image"].nbytes)
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_begin_worker
        )
    return stream.map((bad_images or BadImages())._note)  # in this process, not in the workers


def _check_shared_memory(needed: int) -> None:
    """Where it ends, a worker dies of a bus error, as in a container that has the usual 64 MB."""
    folder = Path("/dev/shm")
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"the workers need {needed / 1e6:,.0f} MB of shared memory, {folder} has "
            f"{free / 1e6:,.0f} MB free: enlarge it (docker run --shm-size), or use fewer workers"
        )


def _begin_worker(index: int, number: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Where the main process is killed, its workers would wait for it for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


# ---- To the device ----------------------------------------------------------------------------


class Feed(Iterator[Any]):
    """Keeps batches ready for the consumer: a thread takes them and puts them onto the device.

    Use it as a context manager, or call `close`, which ends the thread and the workers.

    Args:
        batches: as from `training_batches`.
        put: batch → what the consumer gets; runs in the thread. On one device `jax.device_put`,
            on many hosts `jax.make_array_from_process_local_data`.
        ahead: how many batches to keep, beside the one in use and the one in the making.

    Attributes:
        waited: seconds for which the consumer has waited, the first batch's included.

    Raises:
        BadImage, OSError: while iterating, what the workers, or `put`, raised.
        RuntimeError: while iterating, where a worker was killed.
        ValueError: while iterating, once it is closed.

    Example:
        >>> import grain
        >>> with Feed(grain.MapDataset.range(3).to_iter_dataset(), lambda x: 10 * x) as feed:
        ...     list(feed)
        [0, 10, 20]
    """

    def __init__(
        self,
        batches: grain.IterDataset[Any],
        put: Callable[[Any], Any] = lambda batch: batch,
        ahead: int = 2,
    ):
        stream = ThreadPrefetchIterDataset(batches.map(put), prefetch_buffer_size=ahead)
        self._iterators = [iter(stream)]
        self._finalizer = weakref.finalize(self, _close, self._iterators)
        # Ctrl-C and SIGTERM, which a terminal and a scheduler send to every process, are for the
        # main process, whose loop may need some more batches to end well: workers inherit the mask.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        self._iterators[0].start_prefetch()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.waited = 0.0

    def __next__(self) -> Any:
        if not self._iterators:
            raise ValueError("this Feed is closed")
        start = time.perf_counter()
        try:
            return next(self._iterators[0])
        finally:
            self.waited += time.perf_counter() - start

    def close(self) -> None:
        """Ends the thread and the workers, which takes about half a second for each of them."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(iterators: list[grain.DatasetIterator[Any]]) -> None:
    """Closes and forgets: one that lives until the interpreter's end prints tracebacks there."""
    while iterators:
        iterators.pop().close()
    gc.collect()  # Grain's exceptions hold shared memory in cycles, and one thread frees it:
    if deleter := getattr(SharedMemoryArray, "_del_thread_pool", None):
        deleter.apply(int)  # returns when that thread has done what came before
