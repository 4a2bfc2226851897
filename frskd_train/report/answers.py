"""Pictures of a student's answers for its card: the confusion matrix, and a few images with their top classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from frskd_train.report.drawing import BLUE, GREY, LIGHT, TEXT, font, short

_NUMBERED, _NAMED = 20, 50  # largest numbers of classes whose cells have numbers, and whose rows have names
_TOP = 5


def confusion_picture(counts: NDArray[np.int64], class_names: Sequence[str], path: str | Path) -> Path:
    """Draw a confusion matrix, the number of samples by true class (rows) and predicted class; return the path."""
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(counts)
    cell = 44 if classes <= _NUMBERED else max(1000 // classes, 1)
    names = [short(name) for name in class_names] if classes <= _NAMED else []
    label = font(min(cell - 4, 20) if names else 1)
    longest = int(max((label.getlength(name) for name in names), default=0))
    left, side = longest + 30, cell * classes
    title = "Predicted class, in percent of each true class (rows)"
    width = max(left + side, 20 + int(font(20).getlength(title))) + 20
    picture = Image.new("RGB", (width, 40 + side + left), "white")
    cells = (matplotlib.colormaps["Blues"](percent / 100)[..., :3] * 255).round().astype(np.uint8)
    picture.paste(Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST), (left, 40))
    draw = ImageDraw.Draw(picture)
    draw.text((20, 10), title, TEXT, font(20))
    for place, name in enumerate(names):
        middle = round((place + 0.5) * cell)
        draw.text((left - 10, 40 + middle), name, TEXT, label, anchor="rm")
        upright = Image.new("RGB", (longest + 1, cell), "white")
        ImageDraw.Draw(upright).text((longest, cell // 2), name, TEXT, label, anchor="rm")
        picture.paste(upright.rotate(90, expand=True), (left + place * cell, 50 + side))
    if classes <= _NUMBERED:
        for row, column in zip(*np.nonzero(percent > 0.5), strict=True):
            value = percent[row, column]
            centre = (left + (column + 0.5) * cell, 40 + (row + 0.5) * cell)
            draw.text(centre, f"{value:.0f}", "white" if value > 50 else TEXT, font(16), anchor="mm")
    picture.save(path)
    return Path(path)


def examples_picture(
    images: NDArray[np.uint8],
    truth: Sequence[int],
    probabilities: NDArray[Any],
    class_names: Sequence[str],
    path: str | Path,
) -> Path:
    """Draw images with the most probable classes below each, the true class in blue; return the path.

    Args:
        images: [N, H, W, 1 or 3].
        truth: The true classes [N].
        probabilities: [N, K].
        class_names: Names of the K classes.
        path: The PNG file to write.
    """
    top, width, gap, line = min(_TOP, probabilities.shape[1]), 280, 24, 40
    height = max(1, round(width * images.shape[1] / images.shape[2]))
    picture = Image.new("RGB", (gap + (width + gap) * len(images), 44 + height + line * top + gap), "white")
    draw = ImageDraw.Draw(picture)
    for number, (image, label) in enumerate(zip(images, truth, strict=False)):
        left = gap + (width + gap) * number
        draw.text((left, 10), short(class_names[label]), TEXT, font(20))
        shown = Image.fromarray(image.squeeze()).resize((width, height), Image.Resampling.BICUBIC)
        picture.paste(shown, (left, 44))
        for place, given in enumerate(np.argsort(-probabilities[number], kind="stable")[:top].tolist()):
            value, y = float(probabilities[number][given]), 44 + height + line * (place + 1)
            draw.text((left, y - 8), short(class_names[given]), TEXT, font(16), anchor="ls")
            draw.text((left + width, y - 8), f"{100 * value:.1f}%", TEXT, font(16), anchor="rs")
            draw.rectangle((left, y - 4, left + width, y + 1), LIGHT)
            draw.rectangle((left, y - 4, left + round(width * value), y + 1), BLUE if given == label else GREY)
    picture.save(path)
    return Path(path)
