"""Numbers that are not finite: found in each step, and what a run then does."""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from training import hosts
from training.interrupt import Stopped
from training.messages import warn
from training.network import TrainState

Tree = TypeVar("Tree")
ADVICE = "stopped. Lower --learning-rate, or look at the data."


class NotFinite(Stopped):
    """A run with a number that is not finite."""


class Extremes(NamedTuple):
    """What tells that a step went wrong: the loss, and the largest magnitude of other numbers.

    A sign hides a NaN from the loss; here it stays visible.
    """

    loss: Any
    gradient: Any
    statistic: Any
    weight: Any
    average: Any

    def are_finite(self) -> jax.Array:
        """True if all are."""
        return jnp.isfinite(jnp.stack(self)).all(0)


def largest(tree: Any) -> jax.Array:
    """The largest magnitude in a tree, float32; NaN if a number is NaN, 0 without numbers."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    maxima = [jnp.max(jnp.abs(x)).astype(jnp.float32) for x in leaves if x.size]
    return jnp.max(jnp.stack([jnp.zeros([]), *maxima]))


def skip_unless(finite: jax.Array, before: TrainState, after: TrainState) -> TrainState:
    """The state after a step; if the step is not finite, that before it, with the step counted."""
    kept = jax.tree.map(partial(jnp.where, finite), after, before)
    skipped = before.sums["skipped"] + (~finite).astype(jnp.int32)
    return kept._replace(step=after.step, sums=kept.sums | {"skipped": skipped})


def joined(extremes: Sequence[Extremes], stacked: bool) -> Extremes:
    """The extremes of several calls of the step, (steps,) or (steps, networks), on the host."""
    join = np.concatenate if stacked else np.stack
    return Extremes(*(join(values) for values in zip(*extremes, strict=True)))


def find_fault(extremes: Extremes, step: int, epoch: int) -> str | None:
    """Says which number is not finite at the first step, of (steps,) or (steps, networks)."""
    bad = np.argwhere(~np.isfinite(np.stack(extremes, -1)))
    if not bad.size:
        return None
    number, *network, which = bad[0]
    name = "The loss" if which == 0 else f"The largest {Extremes._fields[which]}"
    of = f" of network {network[0] + 1}" if network else ""
    value = extremes[which][tuple(bad[0][:-1])]
    return f"{name}{of} is {value} at step {step + number + 1} (epoch {epoch}): {ADVICE}"


def check_skipped(skipped: int | list[int], steps: int, epoch: int) -> None:
    """Raises NotFinite if all steps of an epoch were skipped, those of one network at least."""
    if np.max(skipped) == steps:
        raise NotFinite(
            f"All {steps} steps of epoch {epoch} were skipped, since they were not finite: {ADVICE}"
        )


def again_from_checkpoint(train: Callable[..., Tree]) -> Callable[..., Tree]:
    """Lets a training loop resume from its last checkpoint after numbers that are not finite.

    Only if `nonfinite` of its first argument, the experiment, is "restore", and once from each
    checkpoint of its third, the run's folder. A fault of the machine does not come again; one of
    the data or of a learning rate does, and then ends the run.
    """

    @wraps(train)
    def again(experiment: Any, source: Any, folder: Any, *args: Any, **kwargs: Any) -> Tree:
        restored: set[int] = set()
        while True:
            try:
                return train(experiment, source, folder, *args, **kwargs)
            except NotFinite as error:
                if experiment.nonfinite != "restore" or folder.saved_step in restored:
                    raise
                restored.add(folder.saved_step)
                if hosts.is_first():
                    warn(f"{error}\nTraining on from the last checkpoint.")

    return again
