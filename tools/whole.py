"""Datasets and files that are there completely or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frskd_timm.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`, where a folder or file is created that takes its place if the block succeeds.

    Raises:
        UserError: `path` is a folder that is not empty, or a file.
    """
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"The folder {path} is not empty.")
    if path.is_file():
        raise UserError(f"There is a file {path} already.")
    unfinished = path.with_name(f"{path.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an interrupted attempt
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    yield unfinished
    unfinished.rename(path)
