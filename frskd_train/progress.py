"""What a person sees while a run goes on."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from frskd_train.errors import discard_output


class Progress:
    """One line now and then, on the main process; on a terminal the current line is overwritten.

    Args:
        enabled: Whether this process speaks.
        epochs: Epochs of the run.
        steps: Steps an epoch.
        images: Images in a step, over all processes.
        shown: What scores are called by the name of their column; the first one is shown.

    Attributes:
        closed: Whether nobody reads standard output any more.
    """

    def __init__(self, enabled: bool, epochs: int, steps: int, images: int, shown: Mapping[str, str]) -> None:
        self.enabled, self.closed = enabled, False
        self.score, self.score_name = next(iter(shown.items()))
        self.epochs, self.steps, self.images = epochs, steps, images
        self._live = enabled and sys.stdout.isatty()
        self._start, self._done_before = time.perf_counter(), 0
        self._training = 0.0  # seconds in training steps, for the speed
        self._mark: float | None = None
        self._step_count = 0

    def skip(self, steps: int) -> None:
        """Leaves out steps that an earlier part of the run did."""
        self._done_before = steps

    def start_epoch(self) -> None:
        """Starts the clock of training steps."""
        self._mark = time.perf_counter()

    def step(self) -> None:
        """Counts a step."""
        self._step_count += 1

    def stop_epoch(self) -> None:
        """Stops the clock: validation and saving do not count as training speed."""
        if self._mark is not None:
            self._training += time.perf_counter() - self._mark
            self._mark = None

    @property
    def images_per_second(self) -> float:
        """Training images a second since this process began."""
        seconds = self._training + (time.perf_counter() - self._mark if self._mark is not None else 0.0)
        return self._step_count * self.images / seconds if seconds else 0.0

    def time_left(self) -> str:
        """Minutes and seconds until the last epoch is over, at the pace so far."""
        if not self._step_count:
            return "?"
        per_step = (time.perf_counter() - self._start) / self._step_count
        left = self.epochs * self.steps - self._done_before - self._step_count
        return duration(per_step * left)

    def show(self, epoch: int, step: int, terms: Mapping[str, float], lr: float) -> None:
        """The line within an epoch."""
        line = (
            f"epoch {epoch + 1}/{self.epochs} step {step}/{self.steps}  {format_terms(terms)}  lr {lr:.4g}  "
            f"{self.images_per_second:.0f} images/s  {self.time_left()} left"
        )
        if self._live:
            self._print(f"\r\033[K{line}", end="")
        else:
            self.say(line)

    def close_epoch(self, row: Mapping[str, Any]) -> None:
        """The line after an epoch."""
        terms = {name: value for name, value in row.items() if name.startswith("loss")}
        scores = f"{self.score_name} {row[self.score]:.2f}%" if self.score in row else ""
        if f"teacher_{self.score}" in row:
            scores += f" (self-teacher {row[f'teacher_{self.score}']:.2f}%)"
        self.say(
            f"epoch {row['epoch']}/{self.epochs}  {format_terms(terms)}  {scores}  lr {row['lr']:.4g}  "
            f"{row['images_per_second']:.0f} images/s  {self.time_left()} left"
        )

    def say(self, *lines: str) -> None:
        """Print lines that stay."""
        for line in lines if self.enabled else ():
            self._print(f"\r\033[K{line}" if self._live else line)

    def _print(self, text: str, end: str = "\n") -> None:
        try:
            print(text, end=end, flush=True)
        except OSError:
            self.closed = True
            discard_output()


def format_terms(terms: Mapping[str, float]) -> str:
    """'loss 2.31 (ce 0.90, ce_teacher 0.80, ...)'."""
    parts = [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in terms.items() if name != "loss"]
    total = f"loss {terms['loss']:.3f}" if "loss" in terms else ""
    return f"{total} ({', '.join(parts)})" if len(parts) > 1 else total


def duration(seconds: float) -> str:
    """1:02:03, 4:05 or 0:07."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
