"""A run's folder: configuration, metrics, checkpoints, weights, result; and how to go on."""

import fcntl
import itertools
import json
import math
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from tensorboardX import SummaryWriter

from bop_optax.layers import BinaryParam
from experiments import PRESETS, Experiment
from figures import plot_curves

Tree = TypeVar("Tree")
MAY_CHANGE = {"epochs", "data_dir", "workers", "bad_images", "run_dir", "checkpoint_epochs"}
MAY_CHANGE |= {"keep", "resume"}
FORMAT = 1  # of result.json; what a record lacks, a field of Experiment or this, had its default


class RunError(Exception):
    """A run that cannot go on from what is in its folder."""


class Run:
    """The folder of one run, open for writing.

    Args:
        config: names the folder, and what `restore` checks a resumed run against.
        preset: the preset's name.
        more: what else makes this run what it is; JSON values.

    Attributes:
        folder: where everything goes.
        description: what config.json holds: preset, config, versions, device, commit.
        metrics: one record per finished epoch, as in metrics.jsonl.

    Raises:
        ValueError: for a folder that holds another run, or, to resume, holds none, one with
            another configuration, or one that another process is writing. Nothing is written then.
    """

    def __init__(self, config: Experiment, preset: str, more: dict[str, Any] | None = None):
        self.metrics: list[dict[str, Any]] = []
        self.description = describe(config, preset) | (more or {})
        self.folder = new_folder(config, preset)
        if config.resume:
            self._check_same(config, more or {})
        self._lock = (self.folder / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ValueError(f"another process is writing to {self.folder}") from error
        self._checkpoints: ocp.CheckpointManager | None = None
        self._events: SummaryWriter | None = None

    def _check_same(self, config: Experiment, more: dict[str, Any]) -> None:
        path = self.folder / "config.json"
        try:
            description = json.loads(path.read_text())
            defaults = asdict(Experiment())  # of fields that came after this run
            saved = defaults | description["config"] | {k: description.get(k) for k in more}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.folder} holds no run to resume: {path} ({error})") from error
        ours = _jsonable(config) | more
        may_change = MAY_CHANGE - ({"epochs"} if config.falls_until_the_end else set())
        differing = [k for k in ours if k not in may_change and ours[k] != saved.get(k)]
        if differing:
            raise ValueError(
                f"{self.folder} was run with "
                + ", ".join(f"{k}={saved.get(k)} (now {ours[k]})" for k in differing)
                + ": resume with the same preset and options"
            )
        # What the run was begun with stays on record; what it is resumed with is added.
        ours, self.description = self.description, description
        resumed = description.get("resumed", [])
        description["resumed"] = [*resumed, {k: ours[k] for k in ours.keys() - more - {"preset"}}]
        description["config"]["epochs"] = config.epochs

    def restore(self, state: Tree, config: Experiment, steps_per_epoch: int) -> tuple[Tree, int]:
        """The newest checkpoint's state and step, or `state` and 0 for a run without one.

        Raises:
            RunError: for a checkpoint or metrics that are damaged, or further than `epochs`.
        """
        self._checkpoints = ocp.CheckpointManager(
            self.folder / "checkpoints",
            options=ocp.CheckpointManagerOptions(max_to_keep=config.keep),
        )
        step = self._checkpoints.latest_step() or 0
        epochs = step // steps_per_epoch
        if step > config.epochs * steps_per_epoch:
            raise RunError(
                f"{self.folder} has done {step / steps_per_epoch:.4g} epochs already, "
                f"--epochs asks for {config.epochs}"
            )
        self._read_metrics(epochs, step % steps_per_epoch == 0)
        if step:
            flat, treedef = _flat(state)
            template = jax.tree.map(ocp.utils.to_shape_dtype_struct, flat)
            try:
                restored = self._checkpoints.restore(step, args=ocp.args.StandardRestore(template))
            except Exception as error:  # Orbax and TensorStore raise their own
                raise RunError(
                    f"{self.folder}/checkpoints/{step} is damaged ({str(error).splitlines()[0]}): "
                    "delete that folder to go on from the checkpoint before it"
                ) from error
            state = treedef.unflatten([restored[name] for name in flat])
        write_json(self.folder / "config.json", self.description)
        with _replacing(self.folder / "metrics.jsonl", "w") as file:
            file.writelines(json.dumps(m) + "\n" for m in self.metrics)
        self._events = SummaryWriter(str(self.folder), purge_step=epochs + 1)
        return state, step

    def _read_metrics(self, epochs: int, at_end: bool) -> None:
        """Reads the records up to the checkpoint; epochs after it are trained again. At an epoch's
        end, that epoch's own record may be missing: it is then evaluated."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        least = epochs - 1 if at_end and epochs else epochs
        try:
            metrics = [json.loads(line) for line in lines[:epochs]]
            numbers = [m["epoch"] for m in metrics]
            complete = len(metrics) >= least and numbers == list(range(1, len(metrics) + 1))
        except (ValueError, KeyError, TypeError):
            metrics, complete = [], False
        if not complete:
            raise RunError(f"{path} lacks records of the {epochs} epochs up to the checkpoint")
        self.metrics = metrics
        if len(lines) > epochs:
            print(f"Training again from epoch {epochs + 1}, the last checkpoint.", file=sys.stderr)

    def log(self, metrics: dict[str, Any]) -> None:
        """Adds one epoch's record to metrics.jsonl and to the TensorBoard events."""
        if self._events is None:
            raise RuntimeError("restore() opens a run for writing: call it before log()")
        self.metrics.append(metrics)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        for path, number in jax.tree_util.tree_leaves_with_path(metrics):
            tag = jax.tree_util.keystr(path, simple=True, separator="/")
            self._events.add_scalar(tag, number, metrics["epoch"])
        self._events.flush()

    def save(self, state: Any, step: int) -> None:
        """Starts to write a checkpoint; returns when `state` may be donated to the next step."""
        if self._checkpoints is None:
            raise RuntimeError("restore() opens a run for writing: call it before save()")
        if step != self._checkpoints.latest_step():
            copies = jax.tree.map(jnp.copy, _flat(state)[0])
            self._checkpoints.save(step, args=ocp.args.StandardSave(copies), force=True)

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, the whole run in one file."""
        record = result_record(self.description, result, self.metrics)
        write_json(self.folder / "result.json", record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for the checkpoints under way, and draws what there is."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self._events is not None:
            self._events.close()
        if self.metrics:
            try:
                plot_curves(self.metrics, self.folder / "curves.png")
            except OSError as failure:
                print(f"curves.png cannot be written ({failure}).", file=sys.stderr)
        self._lock.close()


# ---- Results ----------------------------------------------------------------------------------


def result_record(
    description: dict[str, Any], result: dict[str, Any], metrics: list[dict[str, Any]]
) -> dict[str, Any]:
    """A finished run in one record that names no folder, as in results/."""
    record = {"format": FORMAT, **deepcopy(description), "result": result, "metrics": metrics}
    for part in (record, *record.get("resumed", [])):
        kept = part["config"].items()
        part["config"] = {k: v for k, v in kept if k not in ("data_dir", "run_dir", "resume")}
    record["result"] = {k: v for k, v in result.items() if k != "run_dir"}
    return record


def read_result(path: Path) -> tuple[Experiment, dict[str, Any]]:
    """The configuration of a result.json, and the whole record.

    Raises:
        ValueError: for a file that is no such record, or one of another version.
    """
    try:
        record = json.loads(path.read_text())
        found, preset, saved = record.get("format", FORMAT), record["preset"], record["config"]
        _ = record["device"]["kind"], record["device"]["count"], saved.keys()
        _check_number(record["result"]["seconds"])
    except Exception as error:  # whatever is wrong with it, say with which
        raise ValueError(f"{path} is not the result.json of a run ({error!r})") from error
    if found != FORMAT or preset not in list(PRESETS):
        raise ValueError(
            f"{path} is of another version: format {found}, preset {preset} (this version reads "
            f"format {FORMAT} of {', '.join(PRESETS)})"
        )
    try:
        config = Experiment(**saved)
        config.check()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is of another version: {error}") from error
    accuracy = config.accuracy
    try:
        _check_number(record["result"][accuracy])
        if "latent_weights" not in record:
            _ = record["metrics"][-1]
        for m in record.get("metrics", []):
            for value in (m["epoch"], m["train_accuracy"], m[accuracy], m["log_flip_ratio"]["all"]):
                _check_number(value)
    except Exception as error:
        raise ValueError(f"{path} is not the result.json of a run ({error!r})") from error
    return config, record


def _check_number(value: Any) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")


# ---- Weights ----------------------------------------------------------------------------------


def save_weights(model_state: nnx.State, path: Path) -> None:
    """Writes parameters and batch statistics as a NumPy archive: `"convs/0/kernel"` and so on.

    Binary weights are int8, everything else keeps its dtype.
    """
    arrays = {
        name: np.asarray(v[...], np.int8 if isinstance(v, BinaryParam) else None)
        for name, v in _variables(model_state).items()
    }
    with _replacing(path, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_weights(model: nnx.Module, path: Path) -> None:
    """Puts what `save_weights` wrote into a model of the same shape.

    Raises:
        ValueError: where names or shapes differ from the model's, and for a damaged file.
    """
    state = nnx.state(model)
    variables = _variables(state)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            weights = {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    ours, theirs = ({n: a.shape for n, a in tree.items()} for tree in (variables, weights))
    if ours != theirs:
        differing = sorted(n for n, _ in ours.items() ^ theirs.items())
        raise ValueError(f"{path} does not fit the model: {', '.join(dict.fromkeys(differing))}")
    for name, variable in variables.items():
        variable[...] = jnp.asarray(weights[name], variable.dtype)
    nnx.update(model, state)


def _variables(state: nnx.State) -> dict[str, nnx.Variable]:
    flat = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    return {jax.tree_util.keystr(p, simple=True, separator="/"): v for p, v in flat}


# ---- Small parts ------------------------------------------------------------------------------


def _flat(state: Any) -> tuple[dict[str, jax.Array], Any]:
    """Leaves by name: a checkpoint's format, which needs neither Flax nor Optax to be read."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in flat}, treedef


def new_folder(config: Experiment, name: str) -> Path:
    """Makes the folder that `run_dir` names, or one in runs/ by name and time.

    Raises:
        ValueError: for a `run_dir` that holds something, unless it is to be resumed.
    """
    if config.run_dir is not None:
        folder = config.run_dir.expanduser().absolute()
        if not config.resume and _holds_something(folder):
            raise ValueError(
                f"{folder} is not empty: go on with that run by --resume, or choose another "
                "--run-dir"
            )
        if not config.resume:
            folder.mkdir(parents=True, exist_ok=True)
        return folder
    stamped = Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    for number in itertools.count(1):
        folder = stamped if number == 1 else stamped.with_name(f"{stamped.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def _holds_something(folder: Path) -> bool:
    if not folder.is_dir():
        return folder.exists()
    return any(p.suffix != ".tmp" and p.name != ".lock" for p in folder.iterdir())


@contextmanager
def _replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Written aside and renamed, so that a killed process leaves the old file or the new one."""
    partial = path.with_suffix(".tmp")
    with partial.open(mode) as file:
        yield file
    partial.replace(path)


def write_json(path: Path, record: dict[str, Any]) -> None:
    with _replacing(path, "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")


def _jsonable(config: Experiment) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}


def describe(config: Experiment, preset: str) -> dict[str, Any]:
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "optax", "flax", "numpy", "bop_optax")
    return {
        "preset": preset,
        "config": _jsonable(config),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
    }


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
