"""Interruptions of the loop: Ctrl-C and SIGTERM (finish the step, save, stop), and checkpoints by the clock."""

import signal
from types import FrameType

import torch
from accelerate import Accelerator

# Processes have to agree on the step at which they stop; asking at every step would cost a round trip each.
_UPDATES_BETWEEN_AGREEMENTS = 8


class Interruptions:
    """Turns the first signal into a request that the loop sees; a second one ends the process at once.

    Args:
        accelerator: Tells how many processes have to agree.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received = ""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = signal.Signals(number).name

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
            if updates % _UPDATES_BETWEEN_AGREEMENTS:
                return False, False
            flags = torch.tensor([float(stop), float(checkpoint)], device=self.accelerator.device)
            stop, checkpoint = (bool(flag) for flag in self.accelerator.reduce(flags, reduction="sum").tolist())
        return stop, stop or checkpoint
