"""A run's folder: whose it is, and the small files in it. Only the main process writes."""

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError
from frskd_train.checkpoint import latest_checkpoint, load_state, write_atomically

LOCK = ".lock"


class RunFolder:
    """`config.yaml`, `summary.csv`, `metrics.json`, `curves.png`, `checkpoints/`, `student/`.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.student = path / "student"
        self._lock: int | None = None

    def refuse_if_taken(self) -> None:
        """Makes sure that the folder is free for a new run.

        Raises:
            UserError: It holds another run, or something else.
        """
        present = [entry.name for entry in self.path.iterdir() if entry.name != LOCK] if self.path.exists() else []
        if "config.yaml" in present:
            raise UserError(
                f"{self.path} holds another run; go on with it by --resume {self.path}, or name another --output-dir."
            )
        if present:
            raise UserError(f"--output-dir {self.path} is not empty (it holds {present[0]}); name a new folder.")

    def claim(self, resuming: bool) -> None:
        """Makes the folder and takes it for this process; the lock falls with the process.

        Raises:
            UserError: It holds another run, or something else, or a run is in it right now.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The run's folder {self.path} cannot be made: {error.strerror}.") from error
        if not resuming:
            self.refuse_if_taken()
        try:
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR)
            _lock(self._lock)
        except OSError as error:
            raise UserError(f"Another process is training in {self.path}; name another --output-dir.") from error

    def write(self, name: str, text: str) -> None:
        """Replaces one small text file."""
        write_atomically(self.path / name, text)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replaces `metrics.json`."""
        self.write("metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")

    def write_summary(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replaces `summary.csv`, one row an epoch."""
        text = StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("summary.csv", text.getvalue())


def choose_folder(output_dir: str | None, model: str, dataset: str) -> Path:
    """--output-dir, or runs/MODEL-DATASET-TIME."""
    if output_dir is not None:
        return Path(output_dir)
    slug = "".join(c if c.isalnum() or c in "._-" else "_" for c in model.split(":")[-1].strip("/").split("/")[-1])
    return Path("runs") / f"{slug}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"


def find_resume(resume: str | None, output_dir: str | None) -> tuple[Path, Path] | None:
    """What `--resume` means.

    Returns:
        The run's folder and the checkpoint to go on from, or None to start anew.

    Raises:
        UserError: There is nothing to go on from, where something was asked for.
    """
    if resume is None:
        return None
    if resume == "auto":
        if output_dir is None:
            raise UserError("--resume auto looks for a run in --output-dir, which is missing.")
        checkpoint = latest_checkpoint(Path(output_dir) / "checkpoints")
        return (Path(output_dir), checkpoint) if checkpoint else None
    path = Path(resume)
    if (path / "state.json").is_file():
        run, checkpoint = path.parent.parent, path
    else:
        run, checkpoint = path, latest_checkpoint(path / "checkpoints")
    if checkpoint is None:
        raise UserError(f"--resume {resume}: there is no checkpoint in {path / 'checkpoints'}.")
    if output_dir is not None and Path(output_dir).resolve() != run.resolve():
        raise UserError(f"--resume goes on in {run}; leave --output-dir {output_dir} out, or copy the run there first.")
    load_state(checkpoint)  # refused early if damaged
    return run, checkpoint


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
