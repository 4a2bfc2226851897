"""Ways to end a process. Needs no heavy imports."""

import os
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn


def exit_with_error(message: object) -> NoReturn:
    """End the process with a message and status 2; with torchrun, the first of the failing processes prints it."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" in os.environ:
        _wait_for_launcher()
    _print_error(message)
    exit_process(2)


def exit_interrupted(message: str) -> NoReturn:
    """End the process after Ctrl-C with a message and status 130, without waiting for blocked threads."""
    _print_error(message)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(130)


def discard_output() -> None:
    """Redirect standard output to the null device after its reader has closed it, so that writes do not fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_process(status: int) -> NoReturn:
    """End the process; with several processes, skip the teardown of communication.

    Otherwise torch can hang: the main thread joins gloo's threads while it holds the GIL, which a gloo thread needs to
    free its last tensor.
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
    """End a process that cannot continue because another one ended; silently if the launcher reports which one."""
    _wait_for_launcher()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _print_error(message)
    os._exit(1)  # a regular exit would wait for communication with the other process


def _wait_for_launcher() -> None:
    """Give the launcher time to end this process because another one failed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(2)


def _print_error(message: object) -> None:
    with suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)
