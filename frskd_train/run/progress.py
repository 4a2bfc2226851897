"""Progress output of a training run."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from frskd_train.system.exits import discard_output


class Progress:
    """Print progress if `enabled`, on the main process; on a terminal the current line is overwritten.

    There are `epochs` of `steps` steps, each with `images` images over all processes; `shown` has the names of the
    scores by column, of which the first one is printed.
    """

    def __init__(self, enabled: bool, epochs: int, steps: int, images: int, shown: Mapping[str, str]) -> None:
        self.enabled, self.closed = enabled, False  # closed: the reader of standard output is gone
        self.score, self.score_name = next(iter(shown.items()))
        self.epochs, self.steps, self.images = epochs, steps, images
        self._live = enabled and sys.stdout.isatty()
        self.done_before = 0  # steps of an earlier part of the run
        self._start, self._step_count = time.perf_counter(), 0
        self._epoch_steps, self._training, self._last = 0, 0.0, 0.0  # seconds of training; when the last step began

    def start_epoch(self) -> None:
        """Start the timer of an epoch; validation does not count as training."""
        self._epoch_steps, self._training, self._last = 0, 0.0, time.perf_counter()

    def step(self) -> None:
        """Count a step and its time."""
        self.add_time()
        self._step_count, self._epoch_steps = self._step_count + 1, self._epoch_steps + 1

    def add_time(self) -> None:
        """Count the time since the last step as training."""
        now = time.perf_counter()
        self._training, self._last = self._training + now - self._last, now

    @property
    def images_per_second(self) -> float:
        """Training images per second in the present epoch."""
        return self._epoch_steps * self.images / self._training if self._epoch_steps else 0.0

    def show(self, epoch: int, step: int, terms: Mapping[str, float], lr: float) -> None:
        """Print a progress line within an epoch."""
        line = self._line(f"{epoch + 1}/{self.epochs} step {step}/{self.steps}", terms, lr, self.images_per_second)
        if self._live:
            self._print(f"\r\033[K{line}", end="")
        else:
            self.say(line)

    def close_epoch(self, row: Mapping[str, Any], note: str | None) -> None:
        """Print the line at the end of an epoch, and the note if there is one."""
        terms = {name: value for name, value in row.items() if name.startswith("loss")}
        teacher = f" (self-teacher {row[f'teacher_{self.score}']:.2f}%)" if f"teacher_{self.score}" in row else ""
        scores = f"{self.score_name} {row[self.score]:.2f}%{teacher}  " if self.score in row else ""
        self.say(self._line(f"{row['epoch']}/{self.epochs}", terms, row["lr"], row["images_per_second"], scores))
        if note:
            self.say(note)

    def _line(self, place: str, terms: Mapping[str, float], lr: float, speed: float, scores: str = "") -> str:
        left = "?"
        if self._step_count:
            per_step = (time.perf_counter() - self._start) / self._step_count
            left = duration(per_step * (self.epochs * self.steps - self.done_before - self._step_count))
        return f"epoch {place}  {format_terms(terms)}  {scores}lr {lr:.4g}  {speed:.0f} images/s  {left} left"

    def say(self, *lines: str) -> None:
        """Print lines that are not overwritten."""
        for line in lines if self.enabled else ():
            self._print(f"\r\033[K{line}" if self._live else line)

    def _print(self, text: str, end: str = "\n") -> None:
        try:
            print(text, end=end, flush=True)
        except OSError:
            self.closed = True
            discard_output()


def format_terms(terms: Mapping[str, float]) -> str:
    """Format losses as 'loss 2.31 (ce 0.90, ce_teacher 0.80, ...)'."""
    parts = [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in terms.items() if name != "loss"]
    total = f"loss {terms['loss']:.3f}" if "loss" in terms else ""
    return f"{total} ({', '.join(parts)})" if len(parts) > 1 else total


def duration(seconds: float) -> str:
    """Format seconds as 1:02:03, 4:05 or 0:07."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
