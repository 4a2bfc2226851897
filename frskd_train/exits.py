"""Ways to end a process. Needs no heavy imports."""

import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn


def exit_with_error(message: object) -> NoReturn:
    """End the process with a message and status 2; of several processes on a machine only the first one prints it."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1") or _is_first_to_complain():
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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(2)  # lets the launcher notice the other one first
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _print_error(message)
    os._exit(1)  # a regular exit would wait for communication with the other process


def _print_error(message: object) -> None:
    with suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)


def _is_first_to_complain() -> bool:
    """Return whether this is the first process of its launcher to print an error; an empty file records it."""
    launch = [os.environ.get(name, "") for name in ("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")]
    ids = (os.getuid() if hasattr(os, "getuid") else 0, os.getppid(), *launch)
    claim = Path(tempfile.gettempdir()) / f"frskd-complaint-{'-'.join(map(str, ids))}"
    for other in claim.parent.glob(f"frskd-complaint-{ids[0]}-*"):
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > 15:  # left over from an earlier run, perhaps with the same ids
                other.unlink()
    try:
        claim.open("x").close()
    except FileExistsError:
        return False
    except OSError:  # such as a full disk: better twice than never
        return True
    return True
