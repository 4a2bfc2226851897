"""Where a run is and what it has seen."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frskd_train.checkpoint import checkpoint_name


@dataclass
class RunState:
    """A place in a run, as a checkpoint keeps it.

    Attributes:
        score: Name of the score, in percent, that says which epoch is the best.
        epoch: Epochs that are over.
        step: Steps of the current epoch that are over.
        updates: Optimizer updates since the start.
        history: One row for each epoch that is over.
        best: Score of the best epoch, and the checkpoint that holds it.
        earlier_seconds: Time that earlier parts of the run took.
    """

    score: str
    epoch: int = 0
    step: int = 0
    updates: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    earlier_seconds: float = 0.0
    _began: float = field(default_factory=time.perf_counter, repr=False)
    _saved: float = field(default_factory=time.perf_counter, repr=False)
    last_checkpoint: Path | None = field(default=None, repr=False)

    @classmethod
    def from_saved(cls, state: Mapping[str, Any], checkpoint: Path, score: str) -> "RunState":
        """The place that a checkpoint was made at."""
        kept = {name: state[name] for name in ("epoch", "step", "updates", "history", "best")}
        if kept["best"] and not (checkpoint.parent / kept["best"]["checkpoint"]).is_dir():
            kept["best"] = None  # deleted when a better one came, which this run has now turned its back on
        return cls(score, **kept, earlier_seconds=state["seconds"], last_checkpoint=checkpoint)

    def to_saved(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "updates": self.updates,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
        }

    @property
    def place(self) -> str:
        """The place in words, the epoch counted from 1."""
        return f"epoch {self.epoch + 1}, step {self.step}"

    @property
    def seconds(self) -> float:
        """Time that the run has taken, all parts together."""
        return self.earlier_seconds + time.perf_counter() - self._began

    def minutes_since_checkpoint(self) -> float:
        """Time since the last checkpoint of this process."""
        return (time.perf_counter() - self._saved) / 60

    def note_checkpoint(self, checkpoint: Path) -> None:
        """Notes that a checkpoint was written."""
        self._saved = time.perf_counter()
        self.last_checkpoint = checkpoint

    def finish_epoch(self, row: Mapping[str, Any]) -> None:
        """Closes the current epoch with its row of figures."""
        self.epoch += 1
        self.step = 0
        self.history.append({"epoch": self.epoch, **row})
        if self.score in row and (self.best is None or row[self.score] > self.best[self.score]):
            # The checkpoint that is written next.
            self.best = {self.score: row[self.score], "epoch": self.epoch, "checkpoint": checkpoint_name(self.updates)}
