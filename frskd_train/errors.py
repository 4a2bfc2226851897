"""Complaints to the user, before anything heavy is imported."""

import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one sentence for the user."""


def exit_with_error(message: object) -> NoReturn:
    """Ends the process with one sentence and status 2; of several processes on a machine the first one speaks."""
    if _is_first_to_speak():
        print(f"error: {message}", file=sys.stderr, flush=True)
    exit_process(2)


_KEPT: list[object] = []


def keep_until_exit(wrapped: object) -> None:
    """With several processes, keeps a DDP model alive until `leave`: freeing it takes the communication apart."""
    if "RANK" in os.environ:
        _KEPT.append(wrapped)


def exit_process(status: int) -> NoReturn:
    """Ends the process; one of several without taking its communication apart.

    There torch can hang for good: the main thread joins gloo's threads while it holds the interpreter's lock, which a
    thread of gloo that drops its last tensor waits for.
    """
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _is_first_to_speak() -> bool:
    """Whether no other process of the same launcher has complained; an empty file in the temporary folder tells."""
    if "RANK" not in os.environ:
        return True
    claim = Path(tempfile.gettempdir()) / f"frskd-complaint-{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    with suppress(OSError):
        if time.time() - claim.stat().st_mtime > 60:  # left by an earlier run that had the same numbers
            claim.unlink()
    try:
        claim.open("x").close()
    except FileExistsError:
        return False
    return True


def exit_after_another(message: object) -> NoReturn:
    """Ends a process that cannot go on because another one ended, quietly where the launcher says which one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(2)  # so that the launcher finds the other one first
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)  # communication that waits for the other would hold up an orderly end
