"""A run's folder: configuration, metrics, checkpoints, logs, result; and how to resume it."""

import fcntl
import itertools
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple, Self, TypeVar, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from tensorboardX import SummaryWriter

from bop_optax.layers import LatentParam
from bop_optax.saving import load
from training.config import Experiment, RunConfig, from_json
from training.data.augment import scale
from training.network import for_inference, layer_options
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
            flat, treedef = _flat(state)
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
            copies = jax.tree.map(jnp.copy, _flat(state)[0])
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


def _flat(state: Any) -> tuple[dict[str, jax.Array], Any]:
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


# ---- A finished run ------------------------------------------------------------------------------


class TrainedModel(NamedTuple):
    """A model with the weights of a run, in evaluation mode, and the images that it takes.

    Attributes:
        model: maps scaled images to logits.
        evaluated: gives the same logits; on a CPU packed, see `bop_optax.packing.pack`.
        image_shape: (height, width, channels) of one image.
        class_names: one for each class, or None.
        mean, std: what the images are scaled by: (x − mean) / std.
    """

    model: nnx.Module
    evaluated: nnx.Module
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    mean: Any
    std: Any

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Classifies images.

        Args:
            images: uint8, `(number, *image_shape)`.

        Returns:
            float32, (number, classes), each row adding up to 1.
        """
        return np.asarray(
            _probabilities(self.evaluated, scale(jnp.asarray(images), self.mean, self.std))
        )


@nnx.jit
def _probabilities(model: Any, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(model(images).astype(jnp.float32))


def load_latent_run(folder: Path | str) -> nnx.Module:
    """Loads the model of a finished run with the latent weights of its last checkpoint.

    Raises:
        ValueError: for a folder without a finished run, and without that checkpoint.
    """
    model = load_run(folder).model
    with ocp.CheckpointManager(Path(folder).expanduser().absolute() / "checkpoints") as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{folder} has no checkpoint, which holds the latent weights")
        stored = manager.restore(step, args=ocp.args.StandardRestore())
    state = nnx.state(model, LatentParam)
    names, treedef = _flat({"params": state})
    nnx.update(model, treedef.unflatten([jnp.asarray(stored[name]) for name in names])["params"])
    return model


def load_run(folder: Path | str, model: Any = None) -> TrainedModel:
    """Loads the model of a finished run.

    Args:
        folder: the run's folder, which holds config.json and weights.safetensors.
        model: the configuration of the network, if it is a class of your own. None: as in
            config.json.

    Raises:
        ValueError: for a folder without a finished run, and for weights that do not fit.

    Example:
        >>> trained = load_run("runs/digits")  # doctest: +SKIP
        >>> trained.probabilities(images).argmax(-1)  # doctest: +SKIP
        array([3, 1, 4])
    """
    folder = Path(folder).expanduser()
    try:
        description = json.loads((folder / "config.json").read_text())
        config, images = description["config"], SimpleNamespace(**description["images"])
        hints = get_type_hints(Experiment)
        optimizer = from_json(config["optimizer"], hints["optimizer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no finished run: config.json ({error})") from error
    try:
        model = model or from_json(config["model"], hints["model"])
    except ValueError as error:
        raise ValueError(
            f"{folder}/config.json: {error}: use load_run(folder, model=...) in Python"
        ) from error
    options = layer_options(optimizer, config.get("dtype", "float32"))
    network = model.build(tuple(images.shape), images.num_classes, rngs=nnx.Rngs(0), **options)
    try:
        load(folder / WEIGHTS, network)
    except OSError as error:
        raise ValueError(f"{folder} holds no finished run: {WEIGHTS} ({error})") from error
    names = None if images.class_names is None else tuple(images.class_names)
    evaluated, shape = for_inference(network), tuple(images.shape)
    return TrainedModel(network, evaluated, shape, names, images.mean, images.std)
