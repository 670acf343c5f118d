"""How fast one core, and several, make ImageNet's training batches; how long a device waits.

    python -m benchmarks.imagenet_pipeline --data-dir DIR [--workers 0 1 2] [--out FILE.json]

Prints Markdown tables: medians, and in brackets least and most, over `--repeats`. Run it on a
machine that does nothing else. The first pass reads the files into the page cache.
"""

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import features

from training.config.data import MOST_WORKERS
from training.config.ranges import require
from training.data.imagenet import Records, decode, open_imagenet, training_image
from training.data.pipeline import training_batches
from training.data.stream import Feed

PACKAGES = ("grain", "tensorflow-datasets", "array_record", "pillow", "numpy")
STEPS = 20  # of each repeat
PACES = {"the cores can keep up": 1.3, "the cores cannot": 0.5}


def main(
    data_dir: Path | None = None,
    workers: tuple[int, ...] = (0, 1, 2),
    batch_size: int = 32,
    repeats: int = 5,
    out: Path | None = None,
) -> None:
    """Measures ImageNet's input pipeline.

    Args:
        data_dir: TFDS directory. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        workers: Numbers of worker processes to measure.
        batch_size: Images in a batch.
        repeats: How often each measurement is repeated.
        out: JSON file to write.
    """
    try:
        in_range = bool(workers) and 0 <= min(workers) <= max(workers) <= MOST_WORKERS
        require(in_range, "workers", f"from 0 to {MOST_WORKERS}, at least one", workers)
        require(batch_size >= 1, "batch_size", "at least 1", batch_size)
        require(repeats >= 1, "repeats", "at least 1", repeats)
        in_folder = out is None or out.absolute().parent.is_dir()
        require(in_folder, "out", "a file in a folder that exists", out)
        records: Any = open_imagenet(data_dir).train
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.imagenet_pipeline: {error}")
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.imagenet_pipeline", *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "images": min(len(records), 240),
        "batch_size": batch_size,
        "one_core": one_core(records, repeats),
    }
    show_one_core(result["one_core"])

    print("\n| workers | images/s |\n|---|---|")
    result["pipeline"] = {}
    for number in workers:
        rates = pipeline(records, batch_size, number, repeats)
        result["pipeline"][number] = rates
        print(f"| {number} | {summary(rates, '.0f')} |", flush=True)

    most = max(workers)
    seconds = batch_size / statistics.median(result["pipeline"][most])
    print(f"\n| a step, with {most} workers | s | share of it spent waiting |\n|---|---|---|")
    result["waiting"] = {}
    for name, pace in PACES.items():
        shares = waiting(records, batch_size, most, pace * seconds, repeats)
        result["waiting"][name] = {"step_seconds": pace * seconds, "shares": shares}
        print(f"| {name} | {pace * seconds:.3f} | {summary(shares, '.1%')} |", flush=True)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


def one_core(records: Records, repeats: int) -> dict[str, list[float]]:
    """Seconds of one core for an image: CPU time, so that what else runs counts for little."""

    def per_image(work: Callable[[int], Any]) -> float:
        start = time.process_time()
        for number in range(images):
            work(number)
        return (time.process_time() - start) / images

    def crop(number: int) -> None:
        training_image(files[number], np.random.default_rng(number))

    images = min(len(records), 240)
    files = [records[i].jpeg for i in range(images)]
    work = {"read": records.__getitem__, "decode": lambda i: decode(files[i]), "decode_crop": crop}
    rounds = [{name: per_image(part) for name, part in work.items()} for _ in range(repeats)]
    return {name: [each[name] for each in rounds] for name in work}


def show_one_core(seconds: dict[str, list[float]]) -> None:
    read, decoding, both = (np.array(seconds[name]) for name in ("read", "decode", "decode_crop"))
    rows = {"read": read, "decode": decoding, "crop, resize": both - decoding, "all": read + both}
    print("| one core | ms per image | images/s | share |\n|---|---|---|---|")
    for name, part in rows.items():
        milliseconds, rate = summary(1000 * part, ".2f"), summary(1 / part, ".0f")
        print(f"| {name} | {milliseconds} | {rate} | {summary(part / (read + both), '.0%')} |")


def pipeline(records: Records, batch_size: int, workers: int, repeats: int) -> list[float]:
    """Images per second, once what was made ahead is used up."""
    rates = []
    with Feed(training_batches(records, batch_size, 0, workers=workers)) as feed:
        consume(feed, 4 * workers + 3)
        for _ in range(repeats):
            start = time.perf_counter()
            consume(feed, STEPS)
            rates.append(STEPS * batch_size / (time.perf_counter() - start))
    return rates


def waiting(
    records: Records, batch_size: int, workers: int, step: float, repeats: int
) -> list[float]:
    """The share of the time for which a consumer waits that is busy for `step` with each batch."""
    shares = []
    with Feed(training_batches(records, batch_size, 0, workers=workers)) as feed:
        consume(feed, 8 * workers + 6, step)
        for _ in range(repeats):
            start, before = time.perf_counter(), feed.waited
            consume(feed, STEPS, step)
            shares.append((feed.waited - before) / (time.perf_counter() - start))
    return shares


def consume(feed: Feed, number: int, step: float = 0) -> None:
    for _ in islice(feed, number):
        time.sleep(step)


def summary(values: Any, form: str) -> str:
    least, middle, most = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({least:{form}} to {most:{form}})"


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.imagenet_pipeline")
