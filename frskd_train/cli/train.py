"""`frskd train` and `train.py`: from flags to a finished run."""

import os
import signal
import sys
from collections.abc import Sequence

from frskd_train.errors import SettingsError
from frskd_train.settings.parse import parse_settings
from frskd_train.system.exits import exit_process


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one training with these flags, by default those of the command line, and end the process.

    The exit code is 0 for a finished run, 130 after a signal that stopped the run with a checkpoint, and 141 if the
    reader of the output is gone.

    Raises:
        SettingsError: A flag or a recipe is wrong.
        UserError: The run is impossible or failed.
    """
    # Before training starts, Ctrl-C ends the process without a traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        settings = parse_settings(sys.argv[1:] if arguments is None else arguments)
        if os.name == "nt":
            raise SettingsError("Training needs Linux or macOS: on Windows, use WSL.")
        # Imported here, so that --help and a wrong flag answer at once.
        from frskd_train.system.lost_processes import reporting_lost_processes
        from frskd_train.trainer import Trainer

        with reporting_lost_processes():
            trainer = Trainer(settings)  # kept until the end, because freeing a DDP model tears down communication
            trainer.run()
        exit_process(0)
    finally:
        signal.signal(signal.SIGINT, before)  # for a notebook
