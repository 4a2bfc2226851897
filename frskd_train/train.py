"""The training command, `train.py` or `accelerate launch -m frskd_train.train`: from flags to an exit code."""

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one training with these flags, by default those of the command line, and end the process.

    The exit code is 0 for a finished run, 2 for an error that the user can fix, 130 after a signal that stopped the run
    with a checkpoint, and 141 if the reader of the output is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before training starts, Ctrl-C ends the process without a traceback
    from frskd_train.errors import SettingsError, discard_output, exit_process, exit_with_error
    from frskd_train.parse import parse_settings

    try:
        settings = parse_settings(sys.argv[1:] if arguments is None else arguments)
    except SettingsError as error:
        exit_with_error(error)
    except BrokenPipeError:  # `--help | head`
        discard_output()
        exit_process(141)
    # Imported here, so that --help and a wrong flag answer at once.
    from frskd_timm.errors import UserError
    from frskd_train.lost_processes import reporting_lost_processes
    from frskd_train.trainer import Trainer

    with reporting_lost_processes():
        try:
            trainer = Trainer(settings)  # kept until the end, because freeing a DDP model tears down communication
            trainer.run()
        except UserError as error:
            exit_with_error(error)
    exit_process(0)


if __name__ == "__main__":
    main()
