"""Atomic writing of files, and clear messages for disk errors."""

import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from frskd_timm.errors import UserError


@contextmanager
def disk_errors(place: Path, find_checkpoint: Callable[[], Path | None] = lambda: None) -> Iterator[None]:
    """Turn errors of a full or broken disk into a UserError about `place`, with the last good checkpoint, if any."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter contains the system's reason only as text
        checkpoint = find_checkpoint()
        kept = f" The last good checkpoint is {checkpoint}; free some space and use --resume." if checkpoint else ""
        raise UserError(f"{place} could not be written ({reason(error)}).{kept}") from error


def reason(error: Exception) -> str:
    """Return the reason of a failed file operation on one line."""
    return error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())


def write_atomically(path: Path, text: str) -> None:
    """Replace a small UTF-8 text file atomically."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def refuse_links(paths: Iterable[Path]) -> None:
    """Raise UserError if one of the files or folders to write is a link that leads out of the folder that it is in."""
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(f"{path} is a link to {path.resolve()}, which would be overwritten: remove the link.")


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):  # some file systems
            raise
    finally:
        os.close(descriptor)


def size_and_checksum(path: Path) -> list[int]:
    """Return the length in bytes and the CRC-32 of a file."""
    checksum, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return [size, checksum]
