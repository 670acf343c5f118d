"""The JSON files of a run: what it is, on what it ran, and what it reached."""

import json
import platform
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import jax

from training import hosts
from training.config import Experiment, from_json, to_json
from training.machine import expanded

FORMAT = 2  # of result.json
WEIGHTS = "weights.safetensors"
MACHINE = ("data_dir", "workers", "bad_images")  # options of the data that change no image
PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "bop_optax")


def describe(experiment: Experiment, preset: str, data: Any = None) -> dict[str, Any]:
    """What config.json holds: the experiment, its images, versions, device, commit.

    Args:
        experiment: the configuration.
        preset: name of the preset that it started from.
        data: what `experiment.data.load()` returned.
    """
    return {
        "preset": preset,
        "config": to_json(experiment),
        "images": None if data is None else describe_images(data),
        "teacher": describe_teacher(experiment),
        **describe_origin(),
    }


def describe_origin() -> dict[str, Any]:
    """What a record was made with: versions, device, commit."""
    device = hosts.all_devices()[0]
    # Records that earlier commands wrote change nothing that is run.
    status = _git("status", "--porcelain", "--", ":/", ":(exclude,top)experiments/results")
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
    }


def describe_images(data: Any) -> dict[str, Any]:
    """What a network needs to know of its images: shape, classes, scaling; and which they are."""
    return {
        "shape": list(data.image_shape),
        "num_classes": data.num_classes,
        "class_names": None if data.class_names is None else list(data.class_names),
        "mean": to_json(data.mean),
        "std": to_json(data.std),
        **data.identity(),
    }


def describe_teacher(experiment: Experiment) -> str | None:
    """The CRC-32 of the weights of `--teacher`; None without them."""
    weights = experiment.teacher and expanded(experiment.teacher) / WEIGHTS
    if not weights or not weights.is_file():
        return None
    return f"{zlib.crc32(weights.read_bytes()):08x}"


def result_of(preset: str, metrics: list[dict[str, Any]], top5: bool = False) -> dict[str, Any]:
    """The result of a run: the last accuracies, and the seconds of its epochs.

    Args:
        preset: name of the preset.
        metrics: a record for each epoch.
        top5: whether the top-5 accuracy is a part of it.
    """
    kinds = ("_accuracy", "_top5") if top5 else ("_accuracy",)
    last = metrics[-1]
    accuracies = {k: v for k, v in last.items() if k != "train_accuracy" and k.endswith(kinds)}
    seconds, compiling = (
        round(sum(m.get(name, 0) for m in metrics), 2) for name in ("seconds", "compile_seconds")
    )
    times = {"epochs": last["epoch"], "seconds": seconds, "compile_seconds": compiling}
    return {"preset": preset} | accuracies | times


def result_record(
    description: dict[str, Any], result: dict[str, Any], metrics: list[dict[str, Any]]
) -> dict[str, Any]:
    """A finished run in one record that names no folder, as in experiments/results."""
    record = {"format": FORMAT, **deepcopy(description), "result": result, "metrics": metrics}
    for part in (record, *record.get("resumed", [])):
        part["config"]["data"].pop("data_dir", None)
    record["result"] = {k: v for k, v in result.items() if k != "run_dir"}
    return record


# ---- Files ---------------------------------------------------------------------------------------


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a checksum of it."""
    return record | {"crc32": _checksum(record)}


def unsealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record that `sealed` got; raises ValueError for one that was changed since."""
    record = dict(record)
    if record.pop("crc32", None) != _checksum(record):
        raise ValueError("it was changed since it was written")
    return record


def _checksum(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record).encode()):08x}"


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object with a checksum.

    Raises:
        ValueError: for another file, and for an object that was changed since it was written.
        OSError: for a file that cannot be read.
    """
    try:
        record = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("it holds no JSON object")
    return unsealed(record)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl up to the first line that is not as it was written."""
    records = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            record = unsealed(json.loads(line))
            if record["epoch"] != number:
                break
        except (ValueError, LookupError, TypeError, RecursionError):
            break
        records.append(record)
    return records


def read_record(path: Path) -> tuple[Experiment, dict[str, Any]]:
    """Reads a result.json: the experiment, and the whole record.

    Raises:
        ValueError: for a file that is no such record, or of another version; it names the file.
    """
    try:
        record = read_json(path)
        return check_record(record), record
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the result.json of a run ({error!r})") from error


def check_record(record: dict[str, Any]) -> Experiment:
    """The experiment of a record.

    Raises:
        ValueError: for a record of another format, or without an accuracy.
        KeyError, TypeError: for missing or unknown keys.
    """
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
    experiment = from_json(record["config"])
    accuracy_name(record["result"])
    return experiment


def accuracy_name(result: dict[str, Any]) -> str:
    """The name of a result's accuracy, as "test_accuracy"; ValueError if it has none."""
    for name in result:
        if name.endswith("_accuracy"):
            return name
    raise ValueError("no accuracy")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the path into an error that has none, as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Writes to a second file and renames it, so that a killed process leaves no half of a file."""
    partial = path.with_suffix(".tmp")
    with naming(path):
        with partial.open(mode) as file:
            yield file
        partial.replace(path)


def write_json(path: Path, record: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with replacing(path, "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
