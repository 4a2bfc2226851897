"""Colours, and text in pictures drawn with Pillow: every run makes them, and matplotlib takes half a second each."""

from functools import cache
from typing import Any

from matplotlib.font_manager import findfont
from PIL import ImageFont

# The first two are of Okabe and Ito, whose colours colour-blind readers can distinguish.
BLUE, ORANGE, GREY, LIGHT, TEXT = "#0072B2", "#E69F00", "#777777", "#d9d9d9", "#333333"
_LONGEST = 24  # characters of a name


@cache
def font(size: int) -> Any:
    """Return the font of all pictures."""
    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def short(name: str, size: int = 0, width: float = 0) -> str:
    """Return a name without control characters and with at most 24 characters, or as many as fit a width in pixels."""
    name = "".join(character if character.isprintable() else " " for character in name)
    count = _LONGEST
    while count > 1 and size and font(size).getlength(_cut(name, count)) > width:
        count -= 1
    return _cut(name, count)


def _cut(name: str, count: int) -> str:
    return name if len(name) <= count else name[: count - 1] + "…"
