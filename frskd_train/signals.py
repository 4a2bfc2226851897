"""Interruptions of the loop: Ctrl-C and SIGTERM (finish the step, save, stop), and checkpoints by the clock."""

import signal
import time
from types import FrameType

import torch
from accelerate import Accelerator

from frskd_train.distributed import has_torch_launcher, hear_of_launchers_end

# Processes have to agree on the step at which they stop. Asking costs a round trip, so they ask about once in so many
# seconds. Launchers wait for 30 before they kill.
_SECONDS_BETWEEN_AGREEMENTS = 0.5
_MOST_UPDATES_BETWEEN = 64
# A terminal's Ctrl-C reaches the processes by itself and again through torch's launcher: one request.
_ECHO_SECONDS = 2.0
# What schedulers send as a warning, and what a process gets here when its launcher dies.
_WARNING: int | None = getattr(signal, "SIGUSR1", None)


class Interruptions:
    """Turns the first signal into a request that the loop sees; a second one ends the process at once.

    SIGUSR1 is such a request too, but never a second one.

    Args:
        accelerator: Tells how many processes have to agree.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received = ""
        self._received_at = 0.0
        self._next, self._last, self._last_time = 0, 0, time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM, _WARNING):
            if number is not None:
                signal.signal(number, self._receive)
        if _WARNING is not None:
            hear_of_launchers_end(_WARNING)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received:
            if number == _WARNING or (has_torch_launcher() and now - self._received_at < _ECHO_SECONDS):
                return
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received, self._received_at = signal.Signals(number).name, now

    def due(self, updates: int, checkpoint: bool) -> tuple[bool, bool]:
        """What has to happen after this update; all processes call it at the same one and get the same answer.

        Args:
            updates: Updates so far.
            checkpoint: Whether this process's clock asks for a checkpoint.

        Returns:
            Whether to stop, and whether to save (stopping saves too).
        """
        stop = bool(self.received)
        if self.accelerator.num_processes > 1:
            if updates < self._next:
                return False, False
            now = time.monotonic()
            pace = (now - self._last_time) / max(1, updates - self._last)
            flags = torch.tensor([float(stop), float(checkpoint), pace], device=self.accelerator.device)
            flags = self.accelerator.reduce(flags, reduction="sum")
            pace = float(flags[2]) / self.accelerator.num_processes
            stop, checkpoint = bool(flags[0]), bool(flags[1])
            self._last, self._last_time = updates, now
            wait = min(_MOST_UPDATES_BETWEEN, int(_SECONDS_BETWEEN_AGREEMENTS / max(pace, 1e-6)))
            self._next = updates + max(1, wait)
        return stop, stop or checkpoint
