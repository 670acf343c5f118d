"""ImageNet's batches on their way to the devices: `Feed` works ahead, `Streamed` is the source.

data = open_imagenet(data_dir)
with Feed(training_batches(data.train, 256, seed=0, workers=16), jax.device_put) as feed:
    for batch in feed:
        state = train_step(state, batch)
"""

import gc
import signal
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any, Self

import grain
import jax
from grain.experimental import ThreadPrefetchIterDataset
from grain.multiprocessing import SharedMemoryArray
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training import hosts
from training.data import Batch, in_flight
from training.data.imagenet import BadImage, ImageNet
from training.data.pipeline import BadImages, training_batches, validation_batches


class Feed(Iterator[Any]):
    """Keeps batches ready for the consumer: a thread takes them and puts them onto the device.

    Use it as a context manager, or call `close`, which ends the thread and the workers.

    Args:
        batches: as from `training_batches`.
        put: maps a batch to the consumer's; runs in the thread. On one device `jax.device_put`,
            on many hosts `jax.make_array_from_process_local_data`.
        ahead: batches to keep ready, in addition to the one in use and the one being made.

    Attributes:
        waited: seconds for which the consumer has waited, the first batch's included.

    Raises:
        BadImage, OSError: while iterating, as the workers or `put` raised it.
        RuntimeError: while iterating, if a worker was killed.
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
        """The next batch."""
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
        """The feed itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the feed."""
        self.close()


def _close(iterators: list[grain.DatasetIterator[Any]]) -> None:
    """Closes and deletes: an iterator alive at the interpreter's end prints tracebacks there."""
    while iterators:
        iterators.pop().close()
    gc.collect()  # Grain's exceptions hold shared memory in cycles
    _wait_for_freed_memory()


def _wait_for_freed_memory() -> None:
    """Waits for Grain's thread that frees shared memory; at exit it would print tracebacks.

    Reaches into a private name: Grain has no public way, https://github.com/google/grain/issues/398
    """
    if pool := getattr(SharedMemoryArray, "_del_thread_pool", None):
        pool.apply(int)  # returns after all that the thread had to free


class Streamed:
    """Batches of ImageNet that worker processes make, on a mesh.

    Attributes:
        steps_per_epoch: batches in an epoch; an incomplete last batch is dropped.
        stacked: False: a training batch is one step.
        in_flight: as that of `InMemory`.
        dispatched: 1: the loop reads each loss before the next step, so that the seconds waited are
            idle time of the device.
        evaluated_on: "validation".
    """

    stacked = False
    dispatched = 1

    def __init__(self, data: ImageNet, batch_size: int, mesh: Mesh, accumulate: int = 1):
        self.steps_per_epoch = data.num_train // (batch_size * accumulate) * accumulate
        self._accumulate = accumulate
        self.evaluated_on = data.evaluated_on
        self.in_flight = in_flight(mesh)
        self._data, self._batch_size = data, batch_size
        self._sharding = NamedSharding(mesh, PartitionSpec("batch"))
        self._bad_images = BadImages() if data.bad_images == "skip" else None
        self._seconds_waited = 0.0

    def training(self, seed: int, step: int = 0) -> Generator[Batch]:
        """Yields training batches without end, from a step on.

        Raises:
            OSError: while iterating, for images that do not decode and if the workers end.
        """
        options = {"seed": seed, "first_step": step, "accumulate": self._accumulate}
        make_batches = partial(training_batches, self._data.train, **options)
        with closing(self._stream(make_batches)) as batches:
            for batch, seconds in batches:
                self._seconds_waited += seconds
                yield batch

    def evaluation(self) -> Generator[Batch]:
        """Yields each validation image once; the last batch is padded. Raises as `training`."""
        make_batches = partial(validation_batches, self._data.validation)
        with closing(self._stream(make_batches)) as batches:
            for batch, _ in batches:
                yield batch

    def measurements(self) -> dict[str, float]:
        """Seconds that the slowest host waited since the last call; all bad images, once each."""
        names = sorted(self._bad_images.names) if self._bad_images else []
        seconds, names = zip(*hosts.gather([self._seconds_waited, names]), strict=True)
        self._seconds_waited = 0.0
        return {"seconds_waited": max(seconds), "bad_images": len(set().union(*names))}

    def _stream(self, make_batches: Callable[..., Any]) -> Generator[tuple[Batch, float]]:
        """Batches on the mesh, and the seconds waited for each."""
        try:
            batches = make_batches(
                batch_size=self._batch_size,
                image_size=self._data.image_shape[0],
                workers=self._data.workers,
                host=jax.process_index(),
                hosts=jax.process_count(),
                bad_images=self._bad_images,
            )
            with Feed(batches, self._put) as feed:
                waited = 0.0
                for batch in feed:
                    yield batch, feed.waited - waited
                    waited = feed.waited
        except BadImage as error:
            hint = "" if self._bad_images else ": --bad-images skip leaves such images out"
            raise BadImage(f"{error}{hint}") from error
        except RuntimeError as error:  # Grain's, if a worker was killed
            raise OSError(f"The image workers ended: {error}") from error

    def _put(self, batch: Batch) -> Batch:
        make_array = partial(jax.make_array_from_process_local_data, self._sharding)
        return jax.tree.map(make_array, batch)
