"""A run's folder: configuration, metrics, checkpoints, logs, result; and how to resume it."""

import fcntl
import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from flax import nnx

from bop_optax.saving import save
from training import hosts
from training.checkpoints import Checkpoints, DamagedCheckpoint, leaves_by_name
from training.config import Experiment, RunConfig
from training.curves import plot_curves
from training.devices import compare_replicas
from training.events import Events
from training.folder import (
    check_visible,
    differing,
    flat_options,
    holds_something,
    new_folder,
)
from training.interrupt import Stopped
from training.messages import warn
from training.records import (
    WEIGHTS,
    describe,
    naming,
    read_json,
    read_metrics,
    replacing,
    result_of,
    result_record,
    sealed,
    write_json,
)

Tree = TypeVar("Tree")


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
        saved_step: the step of the newest checkpoint that this process restored or saved.

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
        self._epochs, self._config = experiment.epochs, config
        self._checkpoints: Checkpoints | None = None
        self._events: Events | None = None
        self._lock: IO[str] | None = None
        self.saved_step = 0
        folder = hosts.from_first(lambda: self._open(experiment, preset, extra_metadata or {}))
        self.folder = Path(folder)
        check_visible(self.folder / "config.json")

    def _open(self, experiment: Experiment, preset: str, extra_metadata: dict[str, Any]) -> str:
        """Makes the folder, or checks the run in it; locks it; returns its path."""
        self.folder = new_folder(self._config, preset)
        if self._config.resume and holds_something(self.folder):
            self._check_same(experiment, extra_metadata)
        self._lock = (self.folder / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ValueError(f"another process is writing to {self.folder}") from error
        if not (self.folder / "config.json").exists():
            write_json(self.folder / "config.json", sealed(self.description))
        return str(self.folder)

    def _check_same(self, experiment: Experiment, extra_metadata: dict[str, Any]) -> None:
        path = self.folder / "config.json"

        def identity(description: dict[str, Any]) -> dict[str, Any]:
            options = flat_options(description["config"])
            options |= flat_options(description["images"] or {}, "images.")
            return options | {k: description.get(k) for k in ("teacher", *extra_metadata)}

        try:
            description = read_json(path)
            saved = identity(description)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.folder} holds no run to resume: {path} ({error})") from error
        epochs = () if experiment.depends_on_epochs else ("epochs",)
        if names := differing(saved, identity(self.description), "now", epochs):
            raise ValueError(
                f"{self.folder} was run with {names}: resume with the same preset and options"
            )
        # The original description stays; each resume is appended to it.
        resumed = {k: v for k, v in self.description.items() if k not in extra_metadata}
        del resumed["preset"]
        before = [description, *description.get("resumed", [])][-1]["device"]
        if before["count"] != resumed["device"]["count"]:
            warn(
                f"Resuming a run of {before['count']} devices on {resumed['device']['count']}: "
                "sums round in another order, so the curves will differ a little."
            )
        description["resumed"] = [*description.get("resumed", []), resumed]
        description["config"]["epochs"] = experiment.epochs
        self.description = description

    def restore(self, state: Tree, steps_per_epoch: int) -> tuple[Tree, int]:
        """Returns the newest sound checkpoint's state and step, or `state` and 0 if there is none.

        Raises:
            RunError: if no checkpoint is sound, or if one is further than `epochs`.
            Stopped: if it is called again, since `state` is gone, and there is no checkpoint.
        """
        again = self._checkpoints is not None
        self._close()
        self._checkpoints = Checkpoints(self.folder / "checkpoints", self._config.keep)
        records = hosts.from_first(lambda: read_metrics(self.folder / "metrics.jsonl"))
        state, step = self._newest_sound(self._checkpoints, state, records, steps_per_epoch)
        if again and not step:
            raise Stopped("There is no checkpoint yet.")
        self.saved_step, epochs = step, step // steps_per_epoch
        self.metrics = records[:epochs]
        if hosts.is_first():
            self._rewrite(len(records))
        return state, step

    def _rewrite(self, records: int) -> None:
        """Writes the description, and the metrics up to the checkpoint.

        Args:
            records: number of records that metrics.jsonl had.
        """
        epochs = len(self.metrics)
        if records > epochs:
            warn(f"The last checkpoint ends before epoch {epochs + 1}, which is trained again.")
        write_json(self.folder / "config.json", sealed(self.description))
        with replacing(self.folder / "metrics.jsonl", "w") as file:
            file.writelines(json.dumps(sealed(m)) + "\n" for m in self.metrics)
        with naming(self.folder):
            self._events = Events(self.folder, epochs + 1)

    def _newest_sound(
        self,
        checkpoints: Checkpoints,
        state: Tree,
        records: list[dict[str, Any]],
        steps_per_epoch: int,
    ) -> tuple[Tree, int]:
        """The newest checkpoint that is sound and has its records; sets newer ones aside."""
        step, reasons = 0, {}
        for step in (steps := checkpoints.steps()):
            restored, reason = state, None
            try:
                check_records(records, step, steps_per_epoch)
                restored = checkpoints.restore(step, state)
            except DamagedCheckpoint as error:
                reason = f"{self.folder}/checkpoints/{step} cannot be resumed: {error}"
            reason = hosts.first_fault(reason)
            if reason is None:
                state = restored
                break
            reasons[step] = reason
        if len(reasons) == len(steps) > 0:
            last = "There is no other checkpoint: train again in another --run-dir"
            raise RunError("\n".join([*reasons.values(), last]))
        if step > self._epochs * steps_per_epoch:
            raise RunError(
                f"{self.folder} has done {step / steps_per_epoch:.4g} epochs already, "
                f"but --epochs is {self._epochs}"
            )
        for newer, reason in reasons.items():
            name = checkpoints.set_aside(newer)
            if hosts.is_first():
                warn(f"{reason}\nResuming from checkpoints/{step}; the other is now {name}.")
        return state, step

    def log(self, metrics: dict[str, Any]) -> None:
        """Adds one epoch's record to metrics.jsonl and to the TensorBoard events."""
        if self._checkpoints is None:
            raise RuntimeError("restore() opens a run for writing: call it before log()")
        self.metrics.append(metrics)
        if self._events is None:  # process 0 writes
            return
        path = self.folder / "metrics.jsonl"
        with naming(path), path.open("a") as file:
            file.write(json.dumps(sealed(metrics)) + "\n")
        with naming(self.folder):
            self._events.add(metrics)

    def save(self, state: Any, step: int) -> None:
        """Starts to write a checkpoint; returns when `state` may be donated to the next step.

        Raises:
            Stopped: as `compare_replicas`, before anything is written.
        """
        if self._checkpoints is None:
            raise RuntimeError("restore() opens a run for writing: call it before save()")
        compare_replicas(leaves_by_name(state)[0], step, self.folder)
        self._checkpoints.save(state, step)
        self.saved_step = step

    def compare(self, state: Any, step: int, steps: int) -> None:
        """Compares the devices' copies of the state, if that is due after the last `steps`."""
        if step // self._config.compare_steps > (step - steps) // self._config.compare_steps:
            compare_replicas(leaves_by_name(state)[0], step, self.folder)

    def saves_after(self, epoch: int) -> bool:
        """True for the epochs after which `save` is due."""
        return epoch % self._config.checkpoint_epochs == 0 or epoch == self._epochs

    def finish(
        self, model: nnx.Module, data: Any, seconds: float, binary_parameters: int
    ) -> dict[str, Any]:
        """Writes the weights, the curves and result.json, the whole run in one file.

        Args:
            model: the trained network.
            data: what it was evaluated on.
            seconds: those of this process; a resumed run gets the sum of its epochs.
            binary_parameters: number of binary weights.

        Returns:
            What result.json holds under "result".
        """
        result = result_of(self.description["preset"], self.metrics, data.num_classes > 10)
        if not self._config.resume:  # else the epochs of all processes, without their start
            result["seconds"] = round(seconds, 2)
        result |= {"binary_parameters": binary_parameters, "run_dir": str(self.folder)}
        if hosts.is_first():
            save(model, self.folder / WEIGHTS)
            plot_curves(self.metrics, self.folder / "curves.png")
            record = result_record(self.description, result, self.metrics)
            write_json(self.folder / "result.json", sealed(record))
        hosts.wait_for_all()  # so that they learn of an error
        return result

    def _close(self) -> None:
        """Waits for unfinished checkpoints, and closes all files but the lock."""
        checkpoints, events = self._checkpoints, self._events
        self._checkpoints = self._events = None
        if checkpoints is not None:
            checkpoints.close()
        if events is not None:
            events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the files and releases the folder.

        Raises:
            Stopped: for a file that could not be written; the run can be resumed.
        """
        try:
            if error is None or isinstance(error, Stopped) or not hosts.are_several():
                self._close()  # the other processes wait, too, unless this one fails alone
        except OSError as failure:
            if error is None or isinstance(error, Stopped):  # which says that a checkpoint is saved
                error = failure
        if self._lock is not None:
            self._lock.close()
        if isinstance(error, OSError):
            raise Stopped(f"{error}: stopped.", folder=self.folder, alone=True) from error


def check_records(records: list[dict[str, Any]], step: int, steps_per_epoch: int) -> None:
    """Raises DamagedCheckpoint if epochs before a checkpoint have no record.

    At an epoch's end that epoch's own record may be missing: the epoch is then evaluated.
    """
    epochs, rest = divmod(step, steps_per_epoch)
    if len(records) < (epochs if rest else epochs - 1):
        raise DamagedCheckpoint(f"metrics.jsonl lacks records of the {epochs} epochs before it")
