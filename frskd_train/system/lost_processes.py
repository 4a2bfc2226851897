"""What happens when another process of a run, or a process that decodes its images, ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from frskd_timm.errors import first_line
from frskd_train.data.batches import is_loss_of_a_worker, loss_of_a_worker
from frskd_train.system.exits import exit_after_another, exit_with_error

# Parts of the messages of gloo, NCCL and torch's store if a process is gone.
_GONE = (
    "connection closed by peer", "connection reset", "connection was likely closed", "broken pipe", "socket closed",
    "remote process exited", "ncclremoteerror", "pair closure",
)  # fmt: skip


def _is_failed_communication(error: Exception) -> bool:
    """Return whether processes of the run could not communicate."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return False
    words = ("gloo", "nccl", *_GONE)
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


@contextmanager
def reporting_lost_processes() -> Iterator[None]:
    """End this process with a message of one sentence, if its work failed because another process ended."""
    try:
        try:
            yield
        except RuntimeError as error:
            if not _is_failed_communication(error):
                raise
            if any(word in str(error).lower() for word in _GONE):
                exit_after_another(f"Another process of this run ended ({first_line(error)}).")
            exit_with_error(f"The processes could not communicate ({first_line(error)}).")
    except RuntimeError as error:  # a signal handler of torch raises it anywhere, even while another error is handled
        if not is_loss_of_a_worker(error):
            raise
        exit_with_error(loss_of_a_worker(error))
