"""Errors of settings, and how a process ends. Needs no heavy import."""

import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_KEPT: list[object] = []


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one sentence for the user."""


def exit_with_error(message: object) -> NoReturn:
    """End the process with one sentence and status 2; of several processes on a machine only the first one prints."""
    if _is_first_to_complain():
        _print_error(message)
    exit_process(2)


def exit_interrupted(message: str) -> NoReturn:
    """End the process after Ctrl-C with one sentence and status 130, without waiting for threads that are stuck."""
    _print_error(message)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(130)


def keep_until_exit(wrapped: object) -> None:
    """With several processes, keep a DDP model alive until `exit_process`: freeing it tears down communication."""
    if "RANK" in os.environ:
        _KEPT.append(wrapped)


def discard_output() -> None:
    """Send standard output to nowhere after its reader has gone, so that later writes do not fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_process(status: int) -> NoReturn:
    """End the process; one of several without tearing down its communication.

    Otherwise torch can hang: the main thread joins gloo's threads while it holds the interpreter's lock, which a thread
    of gloo that drops its last tensor waits for.
    """
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
    if "RANK" in os.environ:
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def exit_after_another(message: object) -> NoReturn:
    """End a process that cannot go on because another one ended, silently if the launcher reports which one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(2)  # lets the launcher find the other one first
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _print_error(message)
    os._exit(1)  # communication that waits for the other would delay an orderly end


def _print_error(message: object) -> None:
    with suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)


def _is_first_to_complain() -> bool:
    """Return whether no other process of the same launcher has printed an error; an empty file records it."""
    if "RANK" not in os.environ:
        return True
    claim = Path(tempfile.gettempdir()) / f"frskd-complaint-{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    with suppress(OSError):
        if time.time() - claim.stat().st_mtime > 60:  # left by an earlier run with the same numbers
            claim.unlink()
    try:
        claim.open("x").close()
    except FileExistsError:
        return False
    return True
