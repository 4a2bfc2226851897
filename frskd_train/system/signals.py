"""Interruptions of the training loop: signals that save and stop, and time-based checkpoints."""

import ctypes
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from frskd_train.system.launcher import was_launched

# Processes have to agree on the step at which they stop. This takes a communication, so they do it about this often.
# Launchers wait 30 seconds before they kill processes.
_SECONDS_BETWEEN_AGREEMENTS = 0.5
_MAX_UPDATES_BETWEEN = 64
# A signal to all processes of a terminal or a job also ends their launcher, which sends another one (torch's), or whose
# end sends SIGUSR1 (below). Signals that follow each other so closely count as one request.
_ECHO_SECONDS = 2.0


class Interruptions:
    """Convert the first signal into a request that the loop checks for; a second one ends the process immediately.

    SIGUSR1, which schedulers send as a warning, never counts as a second signal. SIGHUP stays ignored under `nohup`.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.exit_code = accelerator, 130
        self.requested, self._requested_at = False, 0.0
        self._next, self._last, self._last_time = 0, -1, time.monotonic()  # the last agreement; -1 before the first
        self._before: dict[signal.Signals, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        self._launched = was_launched()
        if sys.platform == "linux" and self._launched:
            with suppress(OSError, AttributeError):  # send it also when the launcher of this process dies
                ctypes.CDLL(None).prctl(1, signal.SIGUSR1)  # PR_SET_PDEATHSIG

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested:
            if number == signal.SIGUSR1 or (self._launched and now - self._requested_at < _ECHO_SECONDS):
                return
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested, self._requested_at = True, now

    def __enter__(self) -> "Interruptions":
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back to whoever received them before, such as a notebook."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def output_closed(self) -> None:
        """Request a stop because the reader of the output is gone, as after `| head`."""
        if not self.requested:
            self.requested, self.exit_code = True, 141  # the status of a process ended by SIGPIPE

    def due(self, updates: int, checkpoint: bool) -> tuple[bool, bool]:
        """Return whether to stop and whether to save after this update; the answer is the same in all processes.

        All processes call it after the same update; `checkpoint` is whether this process's clock requests a checkpoint.
        """
        stop = self.requested
        if self.accelerator.num_processes > 1:
            if updates < self._next:
                return False, False
            now = time.monotonic()
            pace = (now - self._last_time) / max(1, updates - self._last)
            if self._last < 0:  # a resumed run has not made these updates since it started
                pace = _SECONDS_BETWEEN_AGREEMENTS
            flags = torch.tensor([float(stop), float(checkpoint), pace], device=self.accelerator.device)
            flags = self.accelerator.reduce(flags, reduction="sum")
            pace = float(flags[2]) / self.accelerator.num_processes
            stop, checkpoint = bool(flags[0]), bool(flags[1])
            self._last, self._last_time = updates, now
            wait = min(_MAX_UPDATES_BETWEEN, int(_SECONDS_BETWEEN_AGREEMENTS / max(pace, 1e-6)))
            self._next = updates + max(1, wait)
        return stop, stop or checkpoint
