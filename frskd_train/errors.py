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
