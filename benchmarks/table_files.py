"""Read CSV files and append to them."""

import csv
import fcntl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Append rows to a file, which is created with the given columns or those of the rows.

    Rows may lack columns, and further columns are added to the file. Several processes may append at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = read(path)
        header = list(before[0] if before else columns)
        header += dict.fromkeys(name for row in (*before, *rows) for name in row if name not in header)
        unfinished = path.with_name(f".{path.name}.partial")
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows([*before, *rows])
        unfinished.replace(path)  # whole, also after an interruption


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of a file, none if there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_results(path: Path) -> list[dict[str, str]]:
    """Read the rows of a file; exit if there are none."""
    return read(path) or sys.exit(f"error: there are no results in {path}.")
