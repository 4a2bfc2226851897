"""Errors in settings, and parts of their sentences. Needs no heavy imports."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


class SettingsError(ValueError):
    """An unusable setting; the message is one sentence for the user."""


def either(names: Iterable[object]) -> str:
    """Return names for a sentence: `A`, `A or B`, `A, B or C`."""
    *others, last = map(str, names)
    return f"{', '.join(others)} or {last}" if others else last


def listed(names: Sequence[str]) -> str:
    """Return the first names, for a sentence."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def printable(text: str) -> str:
    """Return text that can always be printed.

    Bytes of file names that are not UTF-8, and characters that control a terminal, become escapes such as `\\xff`.
    """
    text = re.sub(r"[\ud800-\udc7f\udd00-\udfff]", "?", text)
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def size_text(height: int, width: int) -> str:
    """Return a size for a sentence: `64x64 pixels`, or `48x96 pixels (height x width)`."""
    return f"{height}x{width} pixels" + (" (height x width)" if height != width else "")


def after_divergence(checkpoint: Path | None) -> str:
    """Return what to do after training has diverged, as part of a sentence."""
    if checkpoint is None:
        return "there is no checkpoint yet, so start again with a lower --lr"
    return f"resume from the last good checkpoint, {checkpoint}, with a lower --lr"


def suggest(name: str, known: Iterable[str], otherwise: str = "", within: Path = Path()) -> str:
    """Return the end of a sentence about an unknown name: `; did you mean A or B?`, else `; OTHERWISE.` or `.`.

    `within` is the folder of the names if they are files.
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    if close:
        return f"; did you mean {either(within / match for match in close)}?"
    return f"; {otherwise}." if otherwise else "."
