"""Charts of the report as positions in percent, which `page_template.html` draws as SVG below labels of plain HTML."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator
from PIL import Image

from frskd_train.data.images import open_image


@dataclass(frozen=True)
class Line:
    """One line of a chart; `colour` is the number of a colour in `page_style.css`."""

    label: str
    colour: int
    points: Sequence[tuple[float, float]]
    style: str = ""  # classes of the line: dashed, thin


def line_chart(title: str, lines: Sequence[Line], unit: str = "", log: bool = False) -> dict[str, Any] | None:
    """Lay out a chart of lines over epochs: the variables of the macro `plot`, or None if no line has a point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs, ys = ([point[axis] for line in lines for point in line.points] for axis in (0, 1))
    low, high = min(ys), max(ys)
    if high - low <= 1e-6 * abs(high):  # the ticks would all have the same text
        margin = 0.05 * abs(high) or 1.0
        low, high = low - margin, high + margin
    log = log and low > 0 and high > 10 * low
    if log:
        y_values = [value for value in LogLocator(subs=(1, 2, 5)).tick_values(low, high) if low <= value <= high]
        y_low, y_high = math.log10(low / 1.1), math.log10(high * 1.1)
    else:
        y_values = [float(value) for value in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)]
        y_low, y_high = min(low, y_values[0]), max(high, y_values[-1])
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (xs[0] - 1, xs[0] + 1)
    x_values = [value for value in MaxNLocator(6, integer=True).tick_values(x_low, x_high) if x_low <= value <= x_high]

    def across(x: float) -> float:
        return round(100 * (x - x_low) / (x_high - x_low), 2)

    def up(y: float) -> float:
        return round(100 * ((math.log10(y) if log else y) - y_low) / max(y_high - y_low, 1e-9), 2)

    last = ", ".join(f"{line.label} {line.points[-1][1]:.4g}{unit}" for line in lines if line.style != "thin")
    return {
        "title": title,
        "alt": f"{title} by epoch. At the end: {last}.",
        "x_label": "epoch",
        "x_ticks": [(across(x), f"{x:g}") for x in x_values],
        "y_ticks": [(up(y), f"{y + 0.0:g}{unit}") for y in y_values],
        "lines": [replace(line, points=[(across(x), 100 - up(y)) for x, y in line.points]) for line in lines],
    }


def read_picture(path: Path) -> Image.Image | None:
    """Read a picture of a run, whose formats are those of training images; None if there is none, or it is damaged."""
    try:
        return open_image(None, str(path)).convert("RGB")
    except Exception:  # Pillow's plugins raise nearly any exception for damaged files
        return None


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", optimize=True, quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def describe(value: Any) -> str:
    """Return a setting's value for people, on one line."""
    if isinstance(value, Mapping):
        value = [f"{name}={each}" for name, each in value.items()]
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)
