"""Read CSV files and append to them."""

import csv
import fcntl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Append rows to a file, which is created with the given columns or those of the rows.

    Rows may lack columns, and further columns are added to the file. Several processes may append at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        reader = csv.DictReader(file)
        before, header = list(reader), list(reader.fieldnames or columns)
        header += dict.fromkeys(name for row in rows for name in row if name not in header)
        writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
        if header != reader.fieldnames:
            file.truncate(0)
            writer.writeheader()
            writer.writerows(before)
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of a file, none if there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
