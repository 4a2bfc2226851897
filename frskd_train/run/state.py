"""Progress of a run and its results so far."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frskd_train.run.checkpoint import checkpoint_name

_KEPT = ("epoch", "step", "updates", "history", "best", "changes", "seconds")


@dataclass
class RunState:
    """The progress of a run, as a checkpoint stores it."""

    score: str  # name of the score, in percent, that determines the best epoch
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    updates: int = 0  # of the optimizer so far
    history: list[dict[str, Any]] = field(default_factory=list)  # one row per finished epoch
    best: dict[str, Any] | None = None  # score and checkpoint of the best epoch
    changes: list[str] = field(default_factory=list)  # of settings and circumstances during the run, in sentences
    seconds: float = 0.0  # duration of the run until its last checkpoint
    last_checkpoint: Path | None = None  # written or loaded
    _counted: float = field(default_factory=time.perf_counter)  # when `seconds` was counted

    @classmethod
    def from_saved(cls, state: Mapping[str, Any], checkpoint: Path, score: str) -> "RunState":
        """Restore the state that a checkpoint holds."""
        kept = {name: state[name] for name in _KEPT}
        if kept["best"] and not (checkpoint.parent / kept["best"]["checkpoint"]).is_dir():
            kept["best"] = None  # pruned in favour of a better one that this run has now abandoned
        return cls(score, **kept, last_checkpoint=checkpoint)

    def to_saved(self) -> dict[str, Any]:
        """Return the state to store in a checkpoint."""
        return {name: getattr(self, name) for name in _KEPT}

    @property
    def scores(self) -> dict[int, float]:
        """The score after each validated epoch so far, counted from 1."""
        return {row["epoch"]: row[self.score] for row in self.history if self.score in row}

    @property
    def changed_settings(self) -> list[str]:
        """The `changes` that are of settings, not of the machine or the data."""
        return [change for change in self.changes if ": --" in change]

    @property
    def best_checkpoint(self) -> str | None:
        """Name of the checkpoint of the best epoch so far."""
        return self.best["checkpoint"] if self.best else None

    @property
    def place(self) -> str:
        """Epoch (counted from 1) and step in words."""
        return f"epoch {self.epoch + 1}, step {self.step}"

    def minutes_since_checkpoint(self) -> float:
        """Return the minutes since the last checkpoint of this process."""
        return (time.perf_counter() - self._counted) / 60

    def count_time(self) -> None:
        """Add the time since the last checkpoint to `seconds`; to be called before the next one."""
        now = time.perf_counter()
        self.seconds += now - self._counted
        self._counted = now

    def finish_epoch(self, row: Mapping[str, Any]) -> None:
        """Complete the current epoch with its row of results."""
        self.epoch += 1
        self.step = 0
        self.history.append({"epoch": self.epoch, **row})
        if self.score in row and (self.best is None or row[self.score] > self.best[self.score]):
            # Name of the next checkpoint.
            self.best = {self.score: row[self.score], "epoch": self.epoch, "checkpoint": checkpoint_name(self.updates)}
