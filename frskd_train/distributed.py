"""Several processes on a CPU, as `accelerate launch --cpu --num_processes N` promises.

Accelerate starts them itself only through MPI; without it, it starts one and says nothing. Then this process becomes
torch's launcher, which Accelerate understands.
"""

import os
import signal
import sys
from contextlib import suppress

from frskd_train.errors import SettingsError

_STARTED = ("WORLD_SIZE", "RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def start_requested_processes() -> None:
    """Replaces this process by torch's launcher where Accelerate was asked for several CPU processes and started one.

    Raises:
        SettingsError: The number of processes cannot be found out.
    """
    # Accelerate sets a meeting point only for more than one process.
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in os.environ
    if not asked or any(name in os.environ for name in _STARTED):
        return
    command = [sys.executable, "-m", __name__, "--standalone", "--nproc_per_node", str(_requested())]
    hear_of_launchers_end(signal.SIGTERM)
    os.execv(sys.executable, [*command, *sys.argv])


def _requested() -> int:
    """`--num_processes` of the `accelerate launch` that started this process."""
    import psutil  # Accelerate needs it anyway

    parent = psutil.Process().parent()
    words = parent.cmdline() if parent is not None else []
    for i, word in enumerate(words):
        name, _, value = word.replace("-", "_").partition("=")
        if name == "__num_processes":
            number = value or (words[i + 1] if i + 1 < len(words) else "")
            if number.isdigit():
                return int(number)
    raise SettingsError("Give accelerate launch the number of CPU processes: --num_processes 2.")


def _main() -> None:
    """torch's launcher, without its logs and tracebacks: the process that failed has said why, if it could."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main()
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        # Those that this launcher ended itself are in the list, too.
        rank, failure = min(error.failures.items(), key=lambda it: (it[1].exitcode == -signal.SIGTERM, it[1].exitcode))
        if failure.exitcode >= 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        print(
            f"error: process {rank} of the run was ended by {name}, so the others were ended too; go on with --resume.",
            file=sys.stderr,
        )
        sys.exit(128 - failure.exitcode)


def hear_of_launchers_end(number: int) -> None:
    """Lets the system send this process a signal when the launcher that started it dies; Linux only."""
    if sys.platform == "linux" and has_launcher():
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def has_launcher() -> bool:
    """Whether Accelerate's or torch's launcher started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or has_torch_launcher()


def has_torch_launcher() -> bool:
    """Whether torch's launcher started this process: it hands signals on, and reports processes that die."""
    return "TORCHELASTIC_RUN_ID" in os.environ


if __name__ == "__main__":
    _main()
