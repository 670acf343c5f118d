"""A hyperparameter over a run: constant, a staircase, or linear to an end."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

import optax
import tyro

NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?inf|nan"
SPELLING = re.compile(rf"({NUMBER})(?::({NUMBER})|\*({NUMBER})/([0-9]+))?")


@dataclass(frozen=True)
class Schedule:
    """The value of a hyperparameter at each step of a run.

    It has a short spelling: ``1e-3`` is constant, ``1e-3:0`` falls linearly to 0 over the run, and
    ``1e-4*0.1/100`` is multiplied by 0.1 after every 100 epochs.

    Args:
        initial: value at the first step.
        end: value after the last step, reached linearly. None: not linear.
        factor: factor in (0, 1] of the staircase.
        every: epochs from one stair to the next, at least 1. None: no staircase.

    Raises:
        ValueError: both an `end` and a staircase; a factor or a number of epochs out of range.

    Example:
        >>> str(Schedule(1e-4, factor=0.1, every=100))
        '0.0001*0.1/100'
        >>> Schedule.parse("1e-3:0")
        Schedule(initial=0.001, end=0.0, factor=1.0, every=None)
    """

    initial: float
    end: float | None = None
    factor: float = 1.0
    every: int | None = None

    def __post_init__(self):
        for name in ("initial", "end", "factor"):  # 1 and 1.0 are one schedule
            if isinstance(value := getattr(self, name), int):
                object.__setattr__(self, name, float(value))
        if self.every is None and self.factor != 1:
            raise ValueError(f"a staircase needs the epochs between its stairs, got {self!r}")
        if self.every is not None and self.end is not None:
            raise ValueError(f"a schedule is a staircase or linear, not both, got {self!r}")
        if not 0 < self.factor <= 1:
            raise ValueError(f"the factor of a staircase must be in (0, 1], got {self}")
        if self.every is not None and self.every < 1:
            raise ValueError(f"a stair must be at least 1 epoch long, got {self}")

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Reads the short spelling.

        Raises:
            ValueError: for any other text.
        """
        match = SPELLING.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is none of VALUE, VALUE:END and VALUE*FACTOR/EPOCHS")
        initial, end, factor, every = match.groups()
        return cls(
            float(initial),
            None if end is None else float(end),
            1.0 if factor is None else float(factor),
            None if every is None else int(every),
        )

    def __str__(self) -> str:
        if self.end is not None:
            return f"{self.initial}:{self.end}"
        return f"{self.initial}" + ("" if self.every is None else f"*{self.factor}/{self.every}")

    def over(self, epochs: int, steps_per_epoch: int, initial: Any = None) -> Any:
        """The number, or the Optax schedule, for a run.

        Args:
            epochs: epochs of the whole run.
            steps_per_epoch: steps in each of them.
            initial: replaces `self.initial`; it may be traced, as in a vmapped sweep.

        Returns:
            A number if the value is constant, else a function of the step.
        """
        initial = self.initial if initial is None else initial
        if self.end is not None:
            return optax.linear_schedule(initial, self.end, _steps(epochs, steps_per_epoch))
        if self.every is not None:
            steps = _steps(self.every, steps_per_epoch)
            return optax.exponential_decay(initial, steps, self.factor, staircase=True)
        return initial


def _steps(epochs: int, steps_per_epoch: int) -> int:
    return min(epochs * steps_per_epoch, 2**31 - 1)  # Optax counts in int32


# The same type for a field that tyro shows on the command line.
ScheduleField = Annotated[
    Schedule,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SCHEDULE",
        instance_from_str=lambda texts: Schedule.parse(texts[0]),
        is_instance=lambda value: isinstance(value, Schedule),
        str_from_instance=lambda schedule: [str(schedule)],
    ),
]
