"""The training command, `train.py` or `accelerate launch -m frskd_train.train`: from flags to an exit code."""

import sys
from collections.abc import Sequence

from frskd_train.distributed import start_requested_processes
from frskd_train.errors import SettingsError, exit_after_another, exit_process, exit_with_error
from frskd_train.parse import parse_settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one training; ends the process with status 2 after an error that the user can fix, 130 after Ctrl-C.

    Args:
        arguments: Flags; those of the command line by default.
    """
    try:
        settings = parse_settings(sys.argv[1:] if arguments is None else arguments)
        start_requested_processes()
    except SettingsError as error:
        exit_with_error(error)
    # Imported here, so that --help and a wrong flag answer at once.
    from frskd_timm.errors import UserError, first_line
    from frskd_train.device import is_loss_of_a_process
    from frskd_train.trainer import Trainer

    try:
        Trainer(settings).run()
    except UserError as error:
        exit_with_error(error)
    except KeyboardInterrupt:
        exit_process(130)
    except RuntimeError as error:
        if not is_loss_of_a_process(error):
            raise
        exit_after_another(f"another process of this run ended ({first_line(error)}).")
    exit_process(0)


if __name__ == "__main__":
    main()
