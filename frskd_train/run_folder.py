"""A run's folder: whose it is, and the small files in it. Only the main process writes."""

import csv
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError
from frskd_train.checkpoint import all_checkpoints, find_damage, latest_checkpoint
from frskd_train.disk import disk_errors, write_atomically

LOCK = ".lock"


@dataclass(frozen=True)
class Resume:
    """What a run goes on from.

    Attributes:
        run: The run's folder.
        checkpoint: The checkpoint; None where the run was stopped before it had saved one, so that it begins again.
        notes: What the user should know about the choice.
    """

    run: Path
    checkpoint: Path | None
    notes: tuple[str, ...] = ()


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
        except OSError as error:
            raise UserError(f"The run's folder {self.path} cannot be written: {error.strerror}.") from error
        try:
            _lock(self._lock)
        except OSError as error:
            raise UserError(f"Another process is training in {self.path}; name another --output-dir.") from error
        if not resuming:
            self.refuse_if_taken()  # by a run that began, and ended, in between

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is written in this folder meanwhile either gets there, or a sentence says why not.

        Raises:
            UserError: The disk is full or cannot be written.
        """
        with disk_errors(self.path, lambda: latest_checkpoint(self.checkpoints)):
            yield

    def write(self, name: str, text: str) -> None:
        """Replaces one small text file.

        Raises:
            UserError: The disk is full or cannot be written; the file is as it was.
        """
        with self.writing():
            write_atomically(self.path / name, text)

    def write_summary(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replaces `summary.csv`, one row an epoch."""
        text = StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("summary.csv", text.getvalue())


def choose_folder(output_dir: str | None, model: str, dataset: str) -> Path:
    """--output-dir, or runs/MODEL-DATASET-TIME, with a number where that exists already."""
    if output_dir is not None:
        return Path(output_dir)
    slug = "".join(c if c.isalnum() or c in "._-" else "_" for c in model.split(":")[-1].strip("/").split("/")[-1])
    name = f"{slug}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    return next(path for path in (Path("runs") / f"{name}{end}" for end in _endings()) if not path.exists())


def _endings() -> Iterator[str]:
    yield ""
    yield from (f"-{number}" for number in range(2, 1000))


def find_resume(resume: str | None, output_dir: str | None) -> Resume | None:
    """What `--resume` means.

    Returns:
        What to go on from: the newest whole checkpoint of a run, or the one that is named; None to start anew.

    Raises:
        UserError: There is nothing to go on from, where something was asked for.
    """
    if resume is None:
        return None
    if resume == "auto":
        if output_dir is None:
            raise UserError("--resume auto looks for a run in --output-dir, which is missing.")
        run = Path(output_dir)
        is_run = (run / "config.yaml").is_file() or all_checkpoints(run / "checkpoints")
        return _newest(run, resume) if is_run else None
    path = Path(resume)
    if not path.exists():
        raise UserError(f"--resume {resume}: there is no such run or checkpoint.")
    is_checkpoint = (path / "state.json").is_file()
    run = path.parent.parent if is_checkpoint else path
    if output_dir is not None and Path(output_dir).resolve() != run.resolve():
        raise UserError(f"--resume goes on in {run}; leave --output-dir {output_dir} out, or copy the run there first.")
    if not is_checkpoint:
        return _newest(run, resume)
    damage = find_damage(path)
    if damage is not None:
        raise UserError(f"--resume {path}: {damage.rstrip('.')}.")
    return Resume(run, path)


def _newest(run: Path, resume: str) -> Resume:
    """A run's newest whole checkpoint, or the run's beginning where it never came to save one."""
    notes: list[str] = []
    for checkpoint in reversed(all_checkpoints(run / "checkpoints")):
        damage = find_damage(checkpoint)
        if damage is None:
            return Resume(run, checkpoint, tuple(notes))
        notes.append(f"{damage.rstrip('.')}; looking for an older checkpoint")
    if notes:
        raise UserError(f"--resume {resume}: no checkpoint in {run / 'checkpoints'} is whole. {notes[0]}.")
    finished = next((name for name in ("summary.csv", "metrics.json", "student") if (run / name).exists()), None)
    if finished is not None:
        raise UserError(f"--resume {resume}: {run} has {finished} but no checkpoint to go on from; name a new folder.")
    if not (run / "config.yaml").is_file():
        raise UserError(f"--resume {resume}: there is no checkpoint in {run / 'checkpoints'}.")
    return Resume(run, None, (f"{run} was stopped before its first checkpoint: beginning again",))


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        # Not flock: processes that decode images would inherit that one, and hold it after this process was killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
