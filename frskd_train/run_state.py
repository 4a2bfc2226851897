"""Where a run is, what it has seen, and whether a resumed one may go on."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError
from frskd_train.checkpoint import checkpoint_name
from frskd_train.settings import RENAMED, DataSettings

# What makes a run the run it is: with other values the checkpoint's numbers mean something else.
_FIXED = (
    "task", "model", "model_kwargs", "num_classes", "linear_probe", "decoder_channels", "decoder_layers", "method",
    "self_teacher", "teacher_width", "teacher_depth", "teacher_repeats", "feature_loss", "feature_levels", "sla",
    "img_size", "in_chans", "opt", "filter_bias_and_bn", "layer_decay", "teacher_detach", "model_ema", "seed",
    "grad_accum_steps", "opt_kwargs", "pretrained", "initial_checkpoint",
)  # fmt: skip
# What says nothing of the numbers: changed without a word.
_FREE = (
    "config", "output_dir", "resume", "batch_size", "checkpoint_hist", "checkpoint_minutes", "log_interval",
    "report_to", "threads", "workers", "validation_batch_size", "memory_limit",
)  # fmt: skip


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


def check_resume(state: Mapping[str, Any], settings: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Compares a checkpoint's run with the one that is asked for now.

    Args:
        state: The checkpoint's JSON part.
        settings: All settings now, by name.
        facts: What else a run rests on, now: `fingerprint`, `train_rows` and `data_mode` of the data, `global_batch`
            (images in a step over all processes), `processes`.

    Returns:
        A sentence for each change that is honoured.

    Raises:
        UserError: A change that cannot be honoured; both values are named.
    """
    before = {RENAMED.get(name, name): value for name, value in state["settings"].items()}
    changed = {name: value for name, value in before.items() if name in settings and settings[name] != value}
    for name in _FIXED:
        if name in changed:
            raise UserError(
                f"{_flag(name)} is {settings[name]} now but was {before[name]} in this run; "
                "a run goes on with the value that it began with."
            )
    if state["fingerprint"] != facts["fingerprint"]:
        suspects = [field.name for field in fields(DataSettings) if field.name in changed]
        because = "".join(f"; {_flag(name)} is {settings[name]}, was {before[name]}" for name in suspects)
        raise UserError(
            "The data are not those that this run began with "
            f"(fingerprint {facts['fingerprint']}, was {state['fingerprint']}{because})."
        )
    rows = state.get("train_rows", facts["train_rows"])
    if rows != facts["train_rows"]:
        raise UserError(
            f"There are {facts['train_rows']} training images now but were {rows} in this run: others are left out as "
            "unreadable; give --bad-images and --data-mode as they were, or mend the images."
        )
    if state["global_batch"] != facts["global_batch"]:
        raise UserError(
            f"A step takes {facts['global_batch']} images now ({facts['processes']} process(es)) but took "
            f"{state['global_batch']}; set --batch-size {state['global_batch'] // facts['processes']}."
        )
    if settings["epochs"] < state["epoch"] + (state["step"] > 0):
        raise UserError(f"--epochs is {settings['epochs']} now, but this run is in epoch {state['epoch'] + 1} already.")
    notes = [
        f"{_flag(name)} is {settings[name]} from here on (was {value})"
        for name, value in changed.items()
        if name not in _FREE
    ]
    for name, sentence in (
        ("data_mode", "images are decoded for {now} (were for {was}): other random crops from here on"),
        ("processes", "going on with {now} process(es) (was {was})"),
    ):
        if state.get(name, facts[name]) != facts[name]:
            notes.append(sentence.format(now=facts[name], was=state[name]))
    return notes


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
