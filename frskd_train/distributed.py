"""How this process was started: by Accelerate's launcher, by torch's, or directly."""

import os
import sys
from contextlib import suppress

from frskd_timm.errors import UserError

_STARTED = ("WORLD_SIZE", "RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def refuse_missing_processes() -> None:
    """Refuse a run on the CPU for which `accelerate launch` was asked for several processes but started one.

    Raises:
        UserError: This is the only process; the message names the command that starts several.
    """
    # Accelerate sets a meeting point only for more than one process, and starts them on CPUs only through MPI.
    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if asked and not any(name in os.environ for name in _STARTED):
        raise UserError(
            "accelerate launch starts only one process on a CPU; start N processes with torchrun --nproc_per_node N "
            "train.py."
        )


def on_launcher_death(number: int) -> None:
    """Let the system send this process a signal when the launcher that started it dies; Linux only."""
    if sys.platform == "linux" and ("ACCELERATE_MIXED_PRECISION" in os.environ or has_torch_launcher()):
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def has_torch_launcher() -> bool:
    """Return whether torch's launcher started this process: it passes signals on and reports processes that die."""
    return "TORCHELASTIC_RUN_ID" in os.environ
