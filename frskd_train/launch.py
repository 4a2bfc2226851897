"""Several processes on a CPU, as `accelerate launch --cpu --num_processes N` promises.

Accelerate starts them itself only through MPI; without it, it starts one and says nothing. Then this process becomes
torch's launcher, which Accelerate understands.
"""

import os
import sys

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
    """torch's launcher, without its traceback: the process that failed has said why."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main()
    except ChildFailedError as error:
        sys.exit(abs(error.get_first_failure()[1].exitcode))


if __name__ == "__main__":
    _main()
