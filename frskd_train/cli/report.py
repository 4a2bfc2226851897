"""`frskd report`: one page about finished runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from frskd_train.errors import exit_with_error


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and write the page; exit with status 2 after an error that the user can fix."""
    parser = argparse.ArgumentParser(
        "frskd report",
        description="Write one self-contained HTML page about finished runs. Runs that differ only in the seed are "
        "shown as one, with mean and spread; several runs are compared.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page; report.html, in RUN if it is one run")
    options = parser.parse_args(arguments)
    # Imported here, so that --help and a wrong flag answer at once.
    from frskd_timm.errors import UserError
    from frskd_train.report.page import PAGE, write_report

    output = options.output or (options.runs[0] / PAGE if len(options.runs) == 1 else Path(PAGE))
    try:
        print(f"Stored in {write_report(options.runs, output)}.")
    except UserError as error:
        exit_with_error(error)
