"""What happens when another process of a run, or a process that decodes its images, ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from frskd_timm.errors import first_line
from frskd_train.data.batches import is_loss_of_a_worker, loss_of_a_worker
from frskd_train.errors import exit_after_another, exit_with_error


def is_loss_of_a_process(error: Exception) -> bool:
    """Return whether an error was caused by the end of another process of the run."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    words = ("gloo", "connection closed by peer", "connection reset", "broken pipe", "nccl")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


@contextmanager
def reporting_lost_processes() -> Iterator[None]:
    """End this process with a message of one sentence, if its work failed because another process ended."""
    try:
        try:
            yield
        except RuntimeError as error:
            if not is_loss_of_a_process(error):
                raise
            exit_after_another(f"Another process of this run ended ({first_line(error)}).")
    except RuntimeError as error:  # a signal handler of torch raises it anywhere, even while another error is handled
        if not is_loss_of_a_worker(error):
            raise
        exit_with_error(loss_of_a_worker(error))
