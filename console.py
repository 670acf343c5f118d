"""What a run shows and hears while it trains: a progress bar, Ctrl-C."""

import signal
import sys
from types import FrameType
from typing import Any, Self

from tqdm import tqdm

from experiments import Experiment


class Interrupt:
    """Notes Ctrl-C and SIGTERM, so that the loop can end between two steps; a second one raises."""

    signal: int = 0

    def __enter__(self) -> Self:
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        print("\nStopping; once more to stop at once, without a checkpoint.", file=sys.stderr)


class EpochBar:
    """A progress bar on a terminal; elsewhere one line an epoch on standard output."""

    def __init__(self, epoch: int, config: Experiment, steps: int, offset: int):
        self._title = f"epoch {epoch}/{config.epochs}"
        self._batch_size = config.batch_size
        self.on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(
            desc=self._title,
            total=steps * config.batch_size,
            initial=offset * config.batch_size,
            unit="images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self.on_terminal,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, means: dict[str, Any], steps: int) -> None:
        self._bar.set_postfix_str(self._summary(means), refresh=False)
        self._bar.update(steps * self._batch_size)

    def report(self, metrics: dict[str, Any]) -> None:
        if not self.on_terminal:
            rate = f"{metrics['images_per_second']:,.0f} images/s"
            if "seconds_waited" in metrics:
                rate += f", {metrics['seconds_waited']:.1f} s waited for data"
            print(f"{self._title}: {self._summary(metrics)}, {rate}", flush=True)

    @staticmethod
    def _summary(means: dict[str, Any]) -> str:
        flipped = means["flip_ratio"]["all"]
        accuracies = ", ".join(
            f"{split} {means[f'{split}_accuracy']:.2%}"
            for split in ("train", "validation", "test")
            if f"{split}_accuracy" in means
        )
        return f"loss {means['loss']:.3f}, {accuracies}, flips {flipped:.1e}"
