"""Run a script, such as timm's `validate.py`, with the students registered: `python -m frskd_timm validate.py ...`."""

import runpy
import sys
from pathlib import Path

import frskd_timm  # noqa: F401

if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
    found = f"{sys.argv[1]} is not a file. " if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    sys.exit(f"{found}Give a script and its arguments, such as: python -m frskd_timm validate.py --model NAME.")
sys.argv.pop(0)
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as for `python SCRIPT`
runpy.run_path(sys.argv[0], run_name="__main__")
