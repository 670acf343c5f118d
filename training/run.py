"""A run's folder: configuration, metrics, checkpoints, logs, result; and how to resume it."""

import fcntl
import itertools
import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from tensorboardX import SummaryWriter

from training.config import Experiment, RunConfig
from training.records import MACHINE, describe, replacing, result_record, write_json

Tree = TypeVar("Tree")
WEIGHTS = "weights.safetensors"


class RunError(Exception):
    """A run that cannot be resumed from the files in its folder."""


class Run:
    """The folder of one run, open for writing.

    Args:
        experiment: what is trained; `restore` checks a resumed run against it.
        config: the folder, and how often the run is saved.
        preset: the preset's name; it names a default folder.
        data: what `experiment.data.load()` returned; its images are described in config.json.
        extra_metadata: JSON values that belong to the identity of the run too.

    Attributes:
        folder: where everything goes.
        description: what config.json holds: preset, config, images, versions, device, commit.
        metrics: one record per finished epoch, as in metrics.jsonl.

    Raises:
        ValueError: if a new run's folder is not empty, if a folder to resume holds no run or one
            with another configuration, or if another process writes to it. Nothing is written then.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: RunConfig,
        preset: str,
        data: Any = None,
        extra_metadata: dict[str, Any] | None = None,
    ):
        self.metrics: list[dict[str, Any]] = []
        self.description = describe(experiment, preset, data) | (extra_metadata or {})
        self.folder = new_folder(config, preset)
        self._epochs, self._config = experiment.epochs, config
        if config.resume:
            self._check_same(experiment, extra_metadata or {})
        self._lock = (self.folder / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ValueError(f"another process is writing to {self.folder}") from error
        self._checkpoints: ocp.CheckpointManager | None = None
        self._events: SummaryWriter | None = None

    def _check_same(self, experiment: Experiment, extra_metadata: dict[str, Any]) -> None:
        path = self.folder / "config.json"
        try:
            description = json.loads(path.read_text())
            saved = _flat_options(description["config"])
            saved |= {k: description.get(k) for k in extra_metadata}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.folder} holds no run to resume: {path} ({error})") from error
        ours = _flat_options(self.description["config"]) | extra_metadata
        may_change = {f"data.{name}" for name in MACHINE}
        may_change |= set() if experiment.depends_on_epochs else {"epochs"}
        keys = [k for k in (ours | saved) if k not in may_change and ours.get(k) != saved.get(k)]
        if keys:
            differing = (f"{k}={saved.get(k)} (now {ours.get(k)})" for k in keys)
            raise ValueError(
                f"{self.folder} was run with {', '.join(differing)}: "
                "resume with the same preset and options"
            )
        # The original description stays; each resume is appended to it.
        resumed = {k: v for k, v in self.description.items() if k not in extra_metadata}
        del resumed["preset"]
        description["resumed"] = [*description.get("resumed", []), resumed]
        description["config"]["epochs"] = experiment.epochs
        self.description = description

    def restore(self, state: Tree, steps_per_epoch: int) -> tuple[Tree, int]:
        """Returns the newest checkpoint's state and step, or `state` and 0 if there is none.

        Raises:
            RunError: for a checkpoint or metrics that are damaged, or further than `epochs`.
        """
        self._checkpoints = ocp.CheckpointManager(
            self.folder / "checkpoints",
            options=ocp.CheckpointManagerOptions(max_to_keep=self._config.keep),
        )
        step = self._checkpoints.latest_step() or 0
        epochs = step // steps_per_epoch
        if step > self._epochs * steps_per_epoch:
            raise RunError(
                f"{self.folder} has done {step / steps_per_epoch:.4g} epochs already, "
                f"but --epochs is {self._epochs}"
            )
        self._read_metrics(epochs, step % steps_per_epoch == 0)
        if step:
            flat, treedef = leaves_by_name(state)
            template = jax.tree.map(ocp.utils.to_shape_dtype_struct, flat)
            try:
                restored = self._checkpoints.restore(step, args=ocp.args.StandardRestore(template))
            except Exception as error:  # Orbax and TensorStore raise their own
                raise RunError(
                    f"{self.folder}/checkpoints/{step} is damaged ({str(error).splitlines()[0]}): "
                    "delete that folder to resume from the checkpoint before it"
                ) from error
            state = treedef.unflatten([restored[name] for name in flat])
        write_json(self.folder / "config.json", self.description)
        with replacing(self.folder / "metrics.jsonl", "w") as file:
            file.writelines(json.dumps(m) + "\n" for m in self.metrics)
        self._events = SummaryWriter(str(self.folder), purge_step=epochs + 1)
        return state, step

    def _read_metrics(self, epochs: int, at_end: bool) -> None:
        """Reads the records up to the checkpoint; epochs after it are trained again.

        At an epoch's end that epoch's own record may be missing: the epoch is then evaluated.
        """
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
            print(
                f"The last checkpoint ends before epoch {epochs + 1}, which is trained again.",
                file=sys.stderr,
            )

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
            copies = jax.tree.map(jnp.copy, leaves_by_name(state)[0])
            self._checkpoints.save(step, args=ocp.args.StandardSave(copies), force=True)

    def saves_after(self, epoch: int) -> bool:
        """True for the epochs after which `save` is due."""
        return epoch % self._config.checkpoint_epochs == 0 or epoch == self._epochs

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
        """Waits for unfinished checkpoints and releases the folder."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self._events is not None:
            self._events.close()
        self._lock.close()


def leaves_by_name(state: Any) -> tuple[dict[str, jax.Array], Any]:
    """Leaves by name: a checkpoint's format, which needs neither Flax nor Optax to be read."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in flat}, treedef


def _flat_options(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options of a nested configuration by name, as in {"optimizer.gamma": "0.001"}."""
    options: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        options |= _flat_options(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return options


def new_folder(config: RunConfig, name: str) -> Path:
    """Makes the folder that `run_dir` names, or one in runs/ by name and time.

    Raises:
        ValueError: for a `run_dir` that is not empty, unless it is to be resumed.
    """
    if config.run_dir is not None:
        folder = config.run_dir.expanduser().absolute()
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is no folder: choose another --run-dir")
        if not config.resume and _holds_something(folder):
            raise ValueError(
                f"{folder} is not empty: resume that run with --resume, or choose another --run-dir"
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
    return folder.is_dir() and any(
        p.suffix != ".tmp" and p.name != ".lock" for p in folder.iterdir()
    )
