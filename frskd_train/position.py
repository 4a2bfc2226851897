"""Where a run is, what it has seen, and whether a resumed one may go on."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError
from frskd_train.checkpoint import checkpoint_name

# What makes a run the run it is: with other values the checkpoint's numbers mean something else.
_FIXED = (
    "model", "model_kwargs", "num_classes", "method", "self_teacher", "teacher_width", "teacher_depth",
    "teacher_repeats", "feature_loss", "feature_levels", "sla", "img_size", "in_chans", "opt", "filter_bias_and_bn",
    "layer_decay",
    "teacher_detach", "model_ema", "seed", "grad_accum_steps",
)  # fmt: skip
# What says nothing of the numbers: changed without a word.
_FREE = (
    "config", "output_dir", "resume", "batch_size", "checkpoint_hist", "checkpoint_minutes", "log_interval",
    "report_to", "threads", "workers", "validation_batch_size", "memory_limit",
)  # fmt: skip


@dataclass
class Position:
    """A place in a run, as a checkpoint keeps it.

    Attributes:
        epoch: Epochs that are over.
        step: Steps of the current epoch that are over.
        updates: Optimizer updates since the start.
        history: One row for each epoch that is over.
        best: Top-1 in percent of the best epoch, and the checkpoint that holds it.
        earlier_seconds: Time that earlier parts of the run took.
    """

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
    def from_state(cls, state: Mapping[str, Any], checkpoint: Path) -> "Position":
        """The place that a checkpoint was made at."""
        kept = {name: state[name] for name in ("epoch", "step", "updates", "history", "best")}
        return cls(**kept, earlier_seconds=state["seconds"], last_checkpoint=checkpoint)

    def to_state(self) -> dict[str, Any]:
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
    def seconds(self) -> float:
        """Time that the run has taken, all parts together."""
        return self.earlier_seconds + time.perf_counter() - self._began

    def minutes_since_checkpoint(self) -> float:
        """Time since the last checkpoint of this process."""
        return (time.perf_counter() - self._saved) / 60

    def saved(self, checkpoint: Path) -> None:
        """Notes that a checkpoint was written."""
        self._saved = time.perf_counter()
        self.last_checkpoint = checkpoint

    def finish_epoch(self, row: Mapping[str, Any]) -> None:
        """Closes the current epoch with its row of figures."""
        self.epoch += 1
        self.step = 0
        self.history.append({"epoch": self.epoch, **row})
        if "top1" in row and (self.best is None or row["top1"] > self.best["top1"]):
            # The checkpoint that is written next.
            self.best = {"top1": row["top1"], "epoch": self.epoch, "checkpoint": checkpoint_name(self.updates)}


def check_resume(
    state: Mapping[str, Any], settings: Mapping[str, Any], fingerprint: str, global_batch: int, processes: int
) -> list[str]:
    """Compares a checkpoint's run with the one that is asked for now.

    Args:
        state: The checkpoint's JSON part.
        settings: All settings now, by name.
        fingerprint: Of the data now.
        global_batch: Images in a step over all processes, now.
        processes: Number of processes now.

    Returns:
        A sentence for each change that is honoured.

    Raises:
        UserError: A change that cannot be honoured; both values are named.
    """
    before = state["settings"]
    for name in _FIXED:
        if name in before and before[name] != settings[name]:
            raise UserError(
                f"--{name.replace('_', '-')} is {settings[name]} now but was {before[name]} in this run; "
                "a run goes on with the value that it began with."
            )
    if state["fingerprint"] != fingerprint:
        raise UserError(
            f"The data are not those that this run began with (fingerprint {fingerprint}, was {state['fingerprint']})."
        )
    if state["global_batch"] != global_batch:
        raise UserError(
            f"A step takes {global_batch} images now ({processes} process(es)) but took {state['global_batch']}; "
            f"set --batch-size {state['global_batch'] // processes}."
        )
    notes = [
        f"--{name.replace('_', '-')} is {settings[name]} from here on (was {value})"
        for name, value in before.items()
        if name in settings and name not in _FIXED and name not in _FREE and settings[name] != value
    ]
    if state["processes"] != processes:
        notes.append(f"going on with {processes} process(es) (was {state['processes']})")
    return notes
