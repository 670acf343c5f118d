"""A run's folder: configuration, metrics, checkpoints, weights; and what it takes to go on."""

import json
import platform
import shlex
import subprocess
import time
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

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
MAY_CHANGE = {"epochs", "data_dir", "run_dir", "checkpoint_epochs", "keep", "resume"}


class Run:
    """The folder of one run, open for writing.

    Attributes:
        folder: where everything goes.
        metrics: one record per finished epoch, as in metrics.jsonl.

    Raises:
        ValueError: for a folder that holds another run, or, to resume, holds none or one with
            another configuration. Nothing is written then.
    """

    def __init__(self, config: Experiment, preset: str):
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.folder = (config.run_dir or Path("runs", f"{preset}-{stamp}")).absolute()
        self.metrics: list[dict[str, Any]] = []
        self._command = _command(config, preset, config.run_dir or self.folder)
        if config.resume:
            self._check_same(config)
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(
                f"{self.folder} is not empty: go on with that run by --resume, or choose another "
                "--run-dir"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / "config.json", json.dumps(_describe(config, preset), indent=2) + "\n")
        self._checkpoints = ocp.CheckpointManager(
            self.folder / "checkpoints",
            options=ocp.CheckpointManagerOptions(max_to_keep=config.keep),
        )
        self._events: SummaryWriter | None = None

    def _check_same(self, config: Experiment) -> None:
        path = self.folder / "config.json"
        try:
            saved = json.loads(path.read_text())["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.folder} holds no run to resume: {path} ({error})") from error
        ours = _jsonable(config)
        differing = [k for k in ours if k not in MAY_CHANGE and ours[k] != saved.get(k)]
        if differing:
            raise ValueError(
                f"{self.folder} was run with "
                + ", ".join(f"{k}={saved.get(k)} (now {ours[k]})" for k in differing)
                + ": resume with the same preset and options"
            )
        done = len(self._metric_lines())
        if done > config.epochs:
            raise ValueError(
                f"{self.folder} has done {done} epochs already, --epochs asks for {config.epochs}"
            )

    def _metric_lines(self) -> list[str]:
        path = self.folder / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def restore(self, state: Tree, steps_per_epoch: int) -> tuple[Tree, int]:
        """The newest checkpoint's state and step, or `state` and 0 for a run without one."""
        step = self._checkpoints.latest_step()
        if step is None:
            self._keep_metrics(0)
            return state, 0
        flat, treedef = _flat(state)
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, flat)
        restored = self._checkpoints.restore(step, args=ocp.args.StandardRestore(template))
        self._keep_metrics(step // steps_per_epoch)
        return treedef.unflatten([restored[name] for name in flat]), step

    def _keep_metrics(self, epochs: int) -> None:
        """Drops the records of epochs that came after the checkpoint: they are trained again."""
        # A process killed while writing may leave half a line, of an epoch without a checkpoint.
        lines = self._metric_lines()[:epochs]
        self.metrics = [json.loads(line) for line in lines]
        _write(self.folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
        self._events = SummaryWriter(str(self.folder), purge_step=epochs + 1)

    def log(self, metrics: dict[str, Any]) -> None:
        """Adds one epoch's record to metrics.jsonl and to the TensorBoard events."""
        self.metrics.append(metrics)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._events is not None:
            for name, value in metrics.items():
                values = value if isinstance(value, dict) else {"": value}
                for layer, number in values.items():
                    tag = f"{name}/{layer}".rstrip("/")
                    self._events.add_scalar(tag, number, metrics["epoch"])

    def save(self, state: Any, step: int) -> None:
        """Starts to write a checkpoint; returns when `state` may be donated to the next step."""
        if step != self._checkpoints.latest_step():
            copies = jax.tree.map(jnp.copy, _flat(state)[0])
            self._checkpoints.save(step, args=ocp.args.StandardSave(copies), force=True)

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json: the whole run in one file that names no folder, as in results/."""
        record = json.loads((self.folder / "config.json").read_text())
        record |= {"result": result, "metrics": self.metrics}
        for part, names in (
            ("config", ("data_dir", "run_dir", "resume")),
            ("result", ("run_dir",)),
        ):
            record[part] = {k: v for k, v in record[part].items() if k not in names}
        _write(self.folder / "result.json", json.dumps(record, indent=1) + "\n")

    def how_to_resume(self) -> str:
        return f"go on with\n  {self._command}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for the checkpoints under way, and draws what there is."""
        self._checkpoints.close()
        if self._events is not None:
            self._events.close()
        if self.metrics:
            plot_curves(self.metrics, self.folder / "curves.png")


# ---- Weights ----------------------------------------------------------------------------------


def save_weights(model_state: nnx.State, path: Path) -> None:
    """Writes parameters and batch statistics as a NumPy archive: `"convs/0/kernel"` and so on.

    Binary weights are int8, everything else keeps its dtype.
    """
    np.savez(
        path,
        allow_pickle=False,
        **{
            name: np.asarray(v[...], np.int8 if isinstance(v, BinaryParam) else None)
            for name, v in _variables(model_state).items()
        },
    )


def load_weights(model: nnx.Module, path: Path) -> None:
    """Puts what `save_weights` wrote into a model of the same shape.

    Raises:
        ValueError: where names or shapes differ from the model's.
    """
    state = nnx.state(model)
    variables = _variables(state)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        weights = {name: stored[name] for name in stored.files}
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


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(text)
    partial.replace(path)


def _jsonable(config: Experiment) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}


def _describe(config: Experiment, preset: str) -> dict[str, Any]:
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
        "git_dirty": bool(_git("status", "--porcelain")),
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


def _command(config: Experiment, preset: str, run_dir: Path) -> str:
    """The command line that resumes this run."""
    default, options = PRESETS[preset][1], []
    for field in fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if field.name in ("run_dir", "resume") or value == getattr(default, field.name):
            continue
        if isinstance(value, bool):
            options.append(f"--{name}" if value else f"--no-{name}")
        else:
            options += [f"--{name}", str(value)]
    return shlex.join(
        ["python", "train.py", preset, *options, "--run-dir", str(run_dir), "--resume"]
    )
