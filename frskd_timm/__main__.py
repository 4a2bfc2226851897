"""Run a script, such as timm's `validate.py`, with the students registered: `python -m frskd_timm validate.py ...`."""

import runpy
import sys
from pathlib import Path

import frskd_timm  # noqa: F401

if len(sys.argv) < 2:
    sys.exit("Give the path of a script and its arguments, such as: python -m frskd_timm validate.py --model NAME.")
sys.argv.pop(0)
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as for `python SCRIPT`
runpy.run_path(sys.argv[0], run_name="__main__")
