"""Read and write CSV files of results."""

import csv
import fcntl
import sys
from collections.abc import Iterable, Mapping, Sequence
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
        write(path, [*before, *rows], header)


def write(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Replace a file as a whole, with these columns of the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.partial")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)  # whole, also after an interruption


def read(path: Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """Read the rows of a file, none if there is no file; exit if it lacks one of the columns."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        missing = [name for name in columns if name not in (table.fieldnames or ())]
        if missing:
            sys.exit(f"error: {path} is a file of other results: it has no column {missing[0]}.")
        return list(table)


def read_results(path: Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """Read the rows of a file like `read`; exit if there are none."""
    return read(path, columns) or sys.exit(f"error: there are no results in {path}.")
