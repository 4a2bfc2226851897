"""Complaints to the user, before anything heavy is imported."""

import os
import signal
import sys
import time
from typing import NoReturn


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one sentence for the user."""


def fail(message: object) -> NoReturn:
    """Ends the process with one sentence and status 2.

    Where several processes have the same complaint the main one speaks: the others wait for the launcher to end them,
    and speak only if it does not, because the trouble is theirs alone.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def fail_after_another(message: object) -> NoReturn:
    """Ends a process that cannot go on because another one ended, quietly where the launcher says which one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(2)  # so that the launcher finds the other one first
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)  # communication that waits for the other would hold up an orderly end
