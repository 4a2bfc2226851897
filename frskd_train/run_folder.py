"""The folder of a run: its lock and its small files. Only the main process writes."""

import csv
import errno
import itertools
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError
from frskd_timm.export.folder import BACKBONE, METRICS, STUDENT, refuse_foreign
from frskd_train.checkpoint import all_checkpoints, find_damage, latest_checkpoint
from frskd_train.disk import disk_errors, reason, write_atomically
from frskd_train.settings.recipe import SETTINGS

LOCK = ".lock"
# What a killed run may leave beside its files: the lock, and files and folders that were being replaced.
_LEFTOVER = re.compile(
    r"\.(lock|(config\.yaml|summary\.csv|(metrics|evaluation)\.json|report\.html)\.\d+|.+\.(partial|previous))"
)


@dataclass(frozen=True)
class Resume:
    """The point from which the run in a folder is resumed, with sentences for the user about the choice."""

    run: Path
    checkpoint: Path | None  # None if the run was stopped before its first one and starts again
    notes: tuple[str, ...] = ()


class RunFolder:
    """`config.yaml`, `summary.csv`, `metrics.json`, `evaluation.json`, `report.html`, `checkpoints/`, `student/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.student = path / STUDENT
        self._lock: int | None = None

    def refuse_if_taken(self) -> None:
        """Raise UserError if a new run cannot use the folder because it holds other files or is not writable."""
        try:
            present = [name for name in os.listdir(self.path) if not _LEFTOVER.fullmatch(name)]
        except FileNotFoundError:
            present = []
        except (OSError, ValueError) as error:
            raise UserError(f"--output-dir {self.path} cannot be used as a folder: {reason(error)}.") from error
        nearest = next(path for path in (self.path, *self.path.absolute().parents) if path.is_dir())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(f"--output-dir {self.path} cannot be created: {nearest} is not writable.")
        if SETTINGS in present:
            raise UserError(
                f"{self.path} holds another run; resume it with --resume {self.path}, or choose another --output-dir."
            )
        if present:
            raise UserError(f"--output-dir {self.path} is not empty (it holds {present[0]}); choose a new folder.")

    def claim(self, resuming: bool) -> None:
        """Create the folder and lock it until this process ends; raise UserError if it cannot be used."""
        import fcntl  # which Windows lacks; other commands than training work there

        if not resuming:
            self.refuse_if_taken()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise UserError(f"The run's folder {self.path} could not be created: {reason(error)}.") from error
        try:
            # Not flock, which worker processes would inherit and hold after this process is killed.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"Another process is training in {self.path}; choose another --output-dir.") from error
            print(f"Note: {self.path} cannot be locked ({error.strerror}); do not start two runs in it.")
        if resuming:
            for name in (STUDENT, BACKBONE):
                refuse_foreign(self.path / name)  # before training, not when its end replaces the folder
        else:
            self.refuse_if_taken()  # another run may have started and finished in between
        for entry in self.path.iterdir():
            if entry.suffix[1:].isdigit() and _LEFTOVER.fullmatch(entry.name):
                entry.unlink(missing_ok=True)

    def writing(self) -> AbstractContextManager[None]:
        """Convert errors in writing to this folder into a UserError."""
        return disk_errors(self.path, lambda: latest_checkpoint(self.checkpoints))

    def write(self, name: str, text: str) -> None:
        """Replace a small text file; if that fails, raise UserError and keep the old content."""
        with self.writing():
            write_atomically(self.path / name, text)

    def write_summary(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace `summary.csv`, one row per epoch."""
        text = StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("summary.csv", text.getvalue())


def choose_folder(output_dir: str | None, model: str, dataset: str) -> Path:
    """Return --output-dir, or runs/MODEL-DATASET-TIME with a number appended if that exists already."""
    if output_dir is not None:
        return Path(output_dir)
    slug = "".join(c if c.isalnum() or c in "._-" else "_" for c in model.split(":")[-1].strip("/").split("/")[-1])
    name = f"{slug}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def find_resume(resume: str | None, output_dir: str | None) -> Resume | None:
    """Find the checkpoint that `--resume` refers to; None to start a new run. Raises UserError if there is none."""
    if resume is None:
        return None
    if resume == "auto":
        if output_dir is None:
            raise UserError("--resume auto needs --output-dir, the folder of the run to look for.")
        run = Path(output_dir)
        is_run = (run / SETTINGS).is_file() or all_checkpoints(run / "checkpoints")
        return _newest(run, resume) if is_run else None
    path = Path(resume)
    if not os.path.isdir(path):
        raise UserError(f"--resume {resume} is not a run or a checkpoint: there is no such folder.")
    run = place = Path(os.path.realpath(path))
    is_checkpoint = (place / "state.json").is_file()
    if is_checkpoint:
        run = place.parent.parent
        if place.parent.name != "checkpoints" or not place.name.startswith("step-"):
            raise UserError(
                f"--resume {resume} is a checkpoint, but not step-... in the checkpoints/ of a run: move or rename it."
            )
    elif place.name == "checkpoints" and (place.parent / SETTINGS).is_file():
        run = place.parent
    inside = place.relative_to(run)
    if not path.is_absolute():
        run = Path(os.path.relpath(run))
    if output_dir is not None and Path(output_dir).resolve() != run.resolve():
        raise UserError(f"--resume continues in {run}; omit --output-dir {output_dir}, or copy the run there first.")
    if not is_checkpoint:
        return _newest(run, resume)
    checkpoint = run / inside
    damage = find_damage(checkpoint)
    if damage is not None:
        raise UserError(f"--resume {checkpoint}: {damage}")
    return Resume(run, checkpoint)


def refuse_if_continued(found: Resume, resume: str | None, output_dir: str | None) -> None:
    """Raise UserError if another process has continued a run between `find_resume` and the lock of its folder."""
    again = find_resume(resume, output_dir)
    if again is None or again.checkpoint != found.checkpoint:
        raise UserError(f"Another process has just continued the run in {found.run}: give the same command again.")


def _newest(run: Path, resume: str) -> Resume:
    """Return a run's newest intact checkpoint, or the run's start if it was stopped before its first one."""
    notes: list[str] = []
    for checkpoint in reversed(all_checkpoints(run / "checkpoints")):
        damage = find_damage(checkpoint)
        if damage is None:
            return Resume(run, checkpoint, tuple(f"{note} Looking for an older checkpoint." for note in notes))
        notes.append(damage)
    if notes:
        raise UserError(f"--resume {resume}: no checkpoint in {run / 'checkpoints'} is intact. {notes[0]}")
    finished = next((name for name in ("summary.csv", METRICS, STUDENT) if (run / name).exists()), None)
    if finished is not None:
        raise UserError(f"--resume {resume}: {run} has {finished} but no checkpoint to resume; choose a new folder.")
    if not (run / SETTINGS).is_file():
        raise UserError(f"--resume {resume}: there is no checkpoint in {run / 'checkpoints'}.")
    return Resume(run, None, (f"{run} was stopped before its first checkpoint; starting again.",))
