"""Makes weights that ship with the package from a finished run: `python hub/ship.py RUN --baseline RUN_CE`."""

import argparse
from pathlib import Path

from frskd_train.errors import fail


def main() -> None:
    """Parses the arguments and writes weights, results and documents."""
    parser = argparse.ArgumentParser(description="From a finished run to frskd_timm/weights/, results and tables.")
    parser.add_argument("run", type=Path, help="folder of the finished run")
    parser.add_argument(
        "--baseline",
        type=Path,
        nargs="+",
        default=[],
        help="runs of --method ce, the same recipe; without it, that of the weights replaced if it is this recipe's",
    )
    parser.add_argument("--dataset", help="where the data are now, if not where the run found them")
    parser.add_argument("--dataset-name", help="readable name of the data, for card and results")
    parser.add_argument("--hub-dataset", metavar="OWNER/NAME", help="the data's id on the Hub, for the card")
    parser.add_argument("--threads", type=int, help="CPU threads; all cores by default")
    arguments = parser.parse_args()

    # only now, so that --help and a wrong flag answer at once
    from frskd_timm.errors import UserError
    from frskd_train.ship import ship

    try:
        ship(**vars(arguments))
    except UserError as error:
        fail(error)


if __name__ == "__main__":
    main()
