"""`frskd report`: one page about finished runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and write the page."""
    parser = argparse.ArgumentParser(
        "frskd report",
        description="Write one self-contained HTML page about finished runs. Runs that differ only in the seed are "
        "shown as one, with mean and spread; several runs are compared.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="HTML file, or folder for report.html; default: the folder of a single run, else the current folder",
    )
    options = parser.parse_args(arguments)
    # Imported here, so that --help and a wrong flag answer at once.
    from frskd_train.report.page import PAGE, write_report

    output = options.output or (options.runs[0] if len(options.runs) == 1 else Path())
    is_folder = not options.output or output.is_dir() or not (output.suffix or output.exists())
    output = output / PAGE if is_folder else output
    if output.suffix.lower() not in (".html", ".htm"):
        parser.error(f"--output {output} is neither a folder nor an HTML file")
    print(f"Stored in {write_report(options.runs, output)}.")
