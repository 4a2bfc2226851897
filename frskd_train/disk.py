"""Files that are either whole or not there, and what to say when a disk takes no more."""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from frskd_timm.errors import UserError


@contextmanager
def disk_errors(place: Path, last: Callable[[], Path | None]) -> Iterator[None]:
    """Turns what a full or broken disk raises into a sentence.

    Args:
        place: What is written.
        last: Finds the last good checkpoint, for the sentence.

    Raises:
        UserError: Something could not be written.
    """
    try:
        yield
    except Exception as error:
        # safetensors has its own error type, and its number stands in the text alone.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        checkpoint = last()
        kept = f" The last good checkpoint is {checkpoint}; make room and go on with --resume." if checkpoint else ""
        raise UserError(f"{place} could not be written ({reason}).{kept}") from error


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small file in one step, UTF-8."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file or a folder's entries to the disk, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_and_checksum(path: Path) -> list[int]:
    """Length in bytes and CRC-32 of a file."""
    checksum, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return [size, checksum]
