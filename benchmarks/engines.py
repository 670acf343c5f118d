"""Runs the network of a finished run in one bit and in float32, by several engines.

    pip install -e '.[export,tflite]' openvino qonnx
    python -m benchmarks.engines RUN --data-dir DIR

It exports the network for each engine. The engines take turns on the run's test images, round after
round. Their logits are compared with those of the float32 products under XLA.
"""

import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from benchmarks.__main__ import start_record
from benchmarks.contest import ROOT, Task, interleave
from benchmarks.measure import find_workers
from benchmarks.peers import DEFAULT_FOLDER, Missing
from bop_optax.models.binarynet import BinaryNet
from training.config import Experiment, from_json
from training.config.ranges import require
from training.data.augment import scale
from training.export import export
from training.machine import expanded
from training.records import read_json, write_json
from training.trained import load_run

OPENVINO = ROOT / "docs/examples/openvino_binarynet.py"
RECORDS = ROOT / "experiments/results/benchmarks/engines"
FLOAT32 = "XLA, float32"


class Engine(NamedTuple):
    """A way to run the network.

    Attributes:
        worker: of `benchmarks.peers.PEERS`, or "ours".
        options: of its job `classify`.
        files: what it reads.
    """

    worker: str
    options: Mapping[str, Any]
    files: tuple[Path, ...]


def engines(run: Path, model: nnx.Module, exported: Path, batch: int) -> dict[str, Engine]:
    """The engines for the model of a run and a batch size, and their files."""
    bits, onnx, tflite = (exported / name for name in ("bits", "onnx", "tflite"))
    ours = {"run": str(run)}
    found = {
        FLOAT32: Engine("ours", {"variant": "float32", **ours}, ()),
        "XLA, one bit": Engine("ours", {"variant": "popcount", **ours}, (bits,)),
        "onnxruntime, float32": Engine("engines", {"engine": "onnx", "file": str(onnx)}, (onnx,)),
    }
    if isinstance(model, BinaryNet):  # the network of the example
        file = exported / f"openvino{batch}.xml"
        subprocess.run([sys.executable, OPENVINO, run, file, str(batch)], check=True)
        options = {"engine": "openvino", "file": str(file)}
        found["OpenVINO, one bit"] = Engine("engines", options, (file, file.with_suffix(".bin")))
    if batch == 1:
        options = {"engine": "lce", "file": str(tflite)}
        found["Larq Compute Engine, one bit"] = Engine("lce", options, (tflite,))
    return found


def compare(
    found: Mapping[str, Engine], images: np.ndarray, batch: int, place: Path, **measured: Any
) -> list[dict[str, Any]]:
    """Measures the engines in turn; returns a line of the table for each."""
    np.save(place / "images.npy", images)
    workers = find_workers({engine.worker for engine in found.values()}, measured.pop("peers"))
    tasks = {}
    for i, (name, engine) in enumerate(found.items()):
        command = workers[engine.worker]
        if isinstance(command, Missing):
            raise command
        files = {"images": str(place / "images.npy"), "logits": str(place / f"logits{i}.npy")}
        tasks[name] = Task(command, "classify", {**engine.options, **files, "batch": batch})
    results = interleave(tasks, **measured)
    if errors := [f"{name}: {r.error}" for name, r in results.items() if r.error]:
        raise RuntimeError("; ".join(errors))
    logits = {name: np.load(task.options["logits"]) for name, task in tasks.items()}
    return [
        {
            "engine": name,
            "bytes": sum(file.stat().st_size for file in engine.files),
            "seconds": results[name].seconds,
            "same_classes": int((logits[name].argmax(-1) == logits[FLOAT32].argmax(-1)).sum()),
            "largest_difference": float(np.abs(logits[name] - logits[FLOAT32]).max()),
        }
        for name, engine in found.items()
    ]


def main(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    batches: tuple[int, ...] = (1, 50),
    images: int = 1000,
    data_dir: Path | None = None,
    peers: Path = DEFAULT_FOLDER,
    repeats: int = 7,
    seconds: float = 0.5,
    out: Path = RECORDS,
) -> None:
    """Exports the network of a run, runs it in every engine and writes a record.

    Args:
        run: Folder of a finished run.
        batches: Images of a call.
        images: At most so many test images.
        data_dir: TFDS directory of the run's data. Default: as in the run.
        peers: Folder of the engines' environments.
        repeats: Rounds; the table has the medians.
        seconds: Least time of one measurement.
        out: Folder for the record.
    """
    try:
        require(images >= 1, "images", "at least 1", images)
        require(repeats >= 1, "repeats", "at least 1", repeats)
        require(0 < seconds < float("inf"), "seconds", "above 0 and finite", seconds)
        require(len(batches) > 0, "batches", "at least one", batches)
        require(out.is_dir() or not out.exists(), "out", "a folder", out)
        run = expanded(run)
        trained = load_run(run)
        description = read_json(run / "config.json")
        data = description["config"]["data"] | ({"data_dir": str(data_dir)} if data_dir else {})
        loaded = from_json(data, get_type_hints(Experiment)["data"]).load()
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.engines: {error}")
    scaled = np.asarray(scale(jnp.asarray(loaded.test_images[:images]), trained.mean, trained.std))
    if not (min(batches) > 0 and max(batches) <= len(scaled)):
        most = f"from 1 to the {len(scaled)} images"
        sys.exit(f"benchmarks.engines: --batches must be {most}, got {batches}")
    flags = ["--batches", *map(str, batches), "--images", str(images), "--repeats", str(repeats)]
    record = start_record(shlex.join(["python", "-m", "benchmarks.engines", run.name, *flags]))
    record |= {
        "network": f"{type(trained.model).__name__} of {description['preset']}",
        "run_commit": description["git_commit"],
        "floats": sum(x.nbytes for x in jax.tree.leaves(nnx.state(trained.model))),
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for to in ("bits", "onnx", "tflite"):
            export(trained, to, place / to)
        for batch in batches:
            whole = scaled[: len(scaled) // batch * batch]
            found = engines(run, trained.model, place, batch)
            lines = compare(
                found, whole, batch, place, peers=peers, repeats=repeats, seconds=seconds
            )
            record["cases"].append({"batch": batch, "images": len(whole), "engines": lines})
            for line in lines:
                ms = 1e3 * statistics.median(line["seconds"]) / batch
                print(batch, f"{ms:.3g} ms", {k: v for k, v in line.items() if k != "seconds"})
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{description['preset']}.json", record)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.engines")
