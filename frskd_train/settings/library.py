"""What the settings take from `frskd_timm`, read without importing that package, which would import torch."""

import re
from pathlib import Path
from runpy import run_path

_FOLDER = Path(__file__).parents[2] / "frskd_timm"
_defaults = run_path(str(_FOLDER / "defaults.py"))
DEFAULT, SEGMENTATION_DEFAULT = _defaults["CLASSIFICATION"], _defaults["SEGMENTATION"]


def registered(folder: str) -> tuple[str, ...]:
    """List the names that the files of a folder of `frskd_timm` register."""
    decorator = re.compile(r"""^@\w+\.register\(["']([\w-]+)["']\)""", re.MULTILINE)
    names = {name for file in (_FOLDER / folder).glob("*.py") for name in decorator.findall(file.read_text("utf-8"))}
    return tuple(sorted(names))
