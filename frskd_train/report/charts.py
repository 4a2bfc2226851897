"""Charts of the report as positions in percent, which `page_template.html` draws as SVG below labels of plain HTML."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Line:
    """One line of a chart; `colour` is the number of a colour in `page_style.css`."""

    label: str
    colour: int
    points: Sequence[tuple[float, float]]
    style: str = ""  # classes of the line: dashed, thin


@dataclass(frozen=True)
class Chart:
    """A line chart; all places are in percent of its area, those of points from the left and from the top."""

    title: str
    alt: str
    x_label: str
    x_ticks: list[tuple[float, str]]  # place from the left, and label
    y_ticks: list[tuple[float, str]]  # place from the bottom, and label
    lines: list[Line]
    bars: list[tuple[float, float]] = field(default_factory=list)  # right edge and height of each
    square: bool = False


def line_chart(title: str, lines: Sequence[Line], unit: str = "", log: bool = False) -> Chart | None:
    """Lay out a chart of lines over epochs; None if no line has a point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs, ys = ([point[axis] for line in lines for point in line.points] for axis in (0, 1))
    low, high = min(ys), max(ys)
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
    return Chart(
        title,
        f"{title} by epoch. At the end: {last}.",
        "epoch",
        [(across(x), f"{x:g}") for x in x_values],
        [(up(y), f"{y:g}{unit}") for y in y_values],
        [replace(line, points=[(across(x), 100 - up(y)) for x, y in line.points]) for line in lines],
    )


def reliability_chart(lines: Sequence[Line], shares: Sequence[float]) -> Chart:
    """Lay out accuracy over confidence, both in 0..1, over bars with the share of the images in each bin."""
    title = "Accuracy over confidence"
    alt = f"{title}: {'; '.join(line.label for line in lines if line.style != 'dashed')}."
    ticks: list[tuple[float, str]] = [(percent, f"{percent}%") for percent in range(0, 101, 20)]
    scaled = [replace(line, points=[(100 * x, 100 - 100 * y) for x, y in line.points]) for line in lines]
    bars = [(100 * (place + 1) / len(shares), round(100 * share, 2)) for place, share in enumerate(shares)]
    return Chart(title, alt, "confidence", ticks, ticks, scaled, bars, square=True)


def heatmap(counts: NDArray[np.float64]) -> str:
    """Return a picture of shares in 0..1 [K, K], one pixel per cell, as a data URI; only its opacity varies."""
    opacity = (255 * np.sqrt(counts)).round().astype(np.uint8)  # the root keeps rare confusions visible
    picture = np.empty((*opacity.shape, 4), np.uint8)
    picture[..., :3], picture[..., 3] = (0, 114, 178), opacity
    return data_uri(Image.fromarray(picture), "PNG")


def data_uri(picture: Image.Image, kind: str) -> str:
    """Return a picture as a data URI, in the format `PNG` or `JPEG`."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True, **({"quality": 88, "subsampling": 0} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
