"""The folder of a run: its lock and its small files. Only the main process writes."""

import csv
import errno
import itertools
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from io import StringIO
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError
from frskd_timm.export.folder import BACKBONE, STUDENT, refuse_foreign
from frskd_train.run.checkpoint import latest_checkpoint
from frskd_train.settings.parse import program
from frskd_train.settings.recipe import SETTINGS
from frskd_train.system.disk import disk_errors, reason, refuse_links, write_atomically

LOCK = ".lock"
# What a killed run may leave beside its files: the lock, and files and folders that were being replaced.
_LEFTOVER = re.compile(
    r"\.(lock|(config\.yaml|summary\.csv|(metrics|evaluation)\.json|report\.html)\.\d+|.+\.(partial|previous))"
)


class RunFolder:
    """`config.yaml`, `summary.csv`, `metrics.json`, `evaluation.json`, `report.html`, `checkpoints/`, `student/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.student = path / STUDENT
        self._lock: int | None = None

    @property
    def quoted(self) -> str:
        """The path as a shell needs it."""
        return shlex.quote(str(self.path))

    def continuing(self, processes: int) -> str:
        """Return how to continue the run after it was stopped."""
        how = f" in {processes} processes, as before," if processes > 1 else ""
        return f"Continue{how} with: {program('train')} --resume {self.quoted}"

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
                f"{self.path} holds another run; resume it with --resume {self.quoted}, or choose another --output-dir."
            )
        if present:
            raise UserError(f"--output-dir {self.path} is not empty (it holds {present[0]}); choose a new folder.")

    def claim(self, resuming: bool) -> None:
        """Create the folder and lock it until this process ends; raise UserError if it cannot be used."""
        import fcntl  # which Windows lacks; reading runs works there

        if not resuming:
            self.refuse_if_taken()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
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
            refuse_links(p for p in self.path.iterdir() if p.name in (STUDENT, BACKBONE) or not p.is_dir())
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
