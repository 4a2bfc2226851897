"""Pictures of what networks see: attention maps over images, and predicted masks."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from frskd_timm.losses.functional import IGNORED
from frskd_train.report.drawing import TEXT, font, short

_GAP, _SIZE = 6, 16  # pixels between cells, and of the text
_CELL = 240, 360  # the largest width and height of a picture of a mask
_LEGEND_CLASSES, _LEGEND_COLUMNS = 24, 4  # with more classes the legend is omitted


def attention_picture(
    images: NDArray[np.uint8],
    student_maps: Sequence[NDArray[Any]],
    teacher_maps: Sequence[NDArray[Any]],
    titles: Sequence[str],
    path: str | Path,
) -> Path:
    """Draw attention maps of student and self-teacher over the images, side by side; return the path.

    An attention map is the mean over the channels of the squared feature map, which the feature loss compares. It is
    scaled to 0..1 per image and level and overlaid on the grey image.

    Args:
        images: [N, H, W, 1 or 3].
        student_maps: The feature maps [N, C_i, H_i, W_i] of each level, fine to coarse.
        teacher_maps: The same for the self-teacher's refined maps.
        titles: One per image, for example its class.
        path: The PNG file to write.
    """
    levels = range(1, len(student_maps) + 1)
    heads = ["image", *(f"{name}\nlevel {level}" for name in ("student", "self-teacher") for level in levels)]
    width = min(160, 1440 // len(heads))
    size = width, max(1, round(width * images.shape[1] / images.shape[2]))
    rows = [
        [_resized(image, size), *(_overlay(image, maps[row], size) for maps in (*student_maps, *teacher_maps))]
        for row, image in enumerate(images)
    ]
    first_of_network = {1, 1 + len(student_maps)}
    _grid(rows, heads, first_of_network, [short(title, _SIZE, size[1]) for title in titles]).save(path)
    return Path(path)


def segmentation_picture(
    images: Sequence[NDArray[np.uint8]],
    masks: Mapping[str, Sequence[NDArray[Any]]],
    class_names: Sequence[str],
    path: str | Path,
) -> Path:
    """Draw images with the ground truth and the predictions of networks; return the path.

    Args:
        images: Each [H, W, 1 or 3], of any size.
        masks: By the head of their column: first the true classes of each image [H, W], then predicted ones. Pixels
            that are `IGNORED` in the truth are black in every column.
        class_names: One per class; the first is drawn in light grey.
        path: The PNG file to write.
    """
    colours = np.zeros((IGNORED + 1, 3), np.uint8)
    colours[: len(class_names)] = class_colours(len(class_names))
    rows, shown = [], set()
    for image, *labels in zip(images, *masks.values(), strict=True):
        height, width = image.shape[:2]
        scale = min(_CELL[0] / width, _CELL[1] / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        drawn = [np.where(labels[0] == IGNORED, IGNORED, own) for own in labels]
        rows.append([_resized(image, size), *(_resized(colours[own], size) for own in drawn)])
        shown |= {int(label) for own in drawn for label in np.unique(own)}
    picture = _grid(rows, ["image", *masks])
    if len(shown) <= _LEGEND_CLASSES:
        names = {**dict(enumerate(class_names)), IGNORED: "not labelled"}
        picture = _with_legend(picture, [(tuple(colours[label].tolist()), names[label]) for label in sorted(shown)])
    picture.save(path)
    return Path(path)


def class_colours(count: int) -> NDArray[np.uint8]:
    """Return one colour per class, [count, 3] in 0..255: light grey for the first, then distinct colours."""
    palette = [*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Dark2"]]
    palette += [colour for place, colour in enumerate(matplotlib.color_sequences["tab20b"]) if place % 4 != 3]
    colours = [(0.88, 0.88, 0.88), *(palette[index % len(palette)] for index in range(count - 1))]
    return (255 * np.array(colours[:count])).round().astype(np.uint8)


def _grid(
    rows: Sequence[Sequence[Image.Image]],
    heads: Sequence[str],
    apart: Collection[int] = (),
    names: Sequence[str] = (),
) -> Image.Image:
    """Arrange rows of pictures under heads, with more space before the columns `apart` and upright row names."""
    width = max(row[0].width for row in rows)
    left, top = _GAP + (_SIZE + _GAP) * bool(names), _GAP + (_SIZE + 4) * max(head.count("\n") + 1 for head in heads)
    places = [left]
    for column in range(1, len(heads) + 1):
        places.append(places[-1] + width + _GAP + (width // 6 if column in apart else 0))
    grid = Image.new("RGB", (places[-1], top + sum(row[0].height + _GAP for row in rows)), "white")
    draw = ImageDraw.Draw(grid)
    for head, x in zip(heads, places, strict=False):
        draw.text((x + width / 2, top - 4), head, TEXT, font(_SIZE), anchor="md", align="center")
    y = top
    for number, row in enumerate(rows):
        height = row[0].height
        for picture, x in zip(row, places, strict=False):
            grid.paste(picture, (x + (width - picture.width) // 2, y))
        if names:
            upright = Image.new("RGB", (height, _SIZE + _GAP), "white")
            ImageDraw.Draw(upright).text((height / 2, 0), names[number], TEXT, font(_SIZE), anchor="ma")
            grid.paste(upright.rotate(90, expand=True), (_GAP // 2, y))
        y += height + _GAP
    return grid


def _with_legend(picture: Image.Image, entries: Sequence[tuple[tuple[int, ...], str]]) -> Image.Image:
    """Add colours with names in columns below a picture."""
    line, width = _SIZE + _GAP, picture.width // _LEGEND_COLUMNS
    lines = -(-len(entries) // _LEGEND_COLUMNS)
    larger = Image.new("RGB", (picture.width, picture.height + _GAP + line * lines), "white")
    larger.paste(picture, (0, 0))
    draw = ImageDraw.Draw(larger)
    for number, (colour, name) in enumerate(entries):
        x = _GAP + width * (number % _LEGEND_COLUMNS)
        y = picture.height + line * (number // _LEGEND_COLUMNS)
        draw.rectangle((x, y, x + _SIZE, y + _SIZE), colour)
        fitting = short(name, _SIZE, width - line - _GAP)
        draw.text((x + line, y + _SIZE), fitting, TEXT, font(_SIZE), anchor="ls")
    return larger


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(image.squeeze()).convert("RGB").resize(size, Image.Resampling.NEAREST)


def _overlay(image: NDArray[np.uint8], features: NDArray[Any], size: tuple[int, int]) -> Image.Image:
    """Overlay the attention map of a feature map [C, h, w] in colour on an image [H, W, C] in grey.

    Values of a diverged run may not be finite: infinity is drawn as the maximum, NaN as zero.
    """
    attention = np.square(features.astype(np.float64)).mean(axis=0)
    known = attention[np.isfinite(attention)]
    low, span = (known.min(), max(np.ptp(known), 1e-12)) if known.size else (0.0, 1.0)
    attention = np.nan_to_num((attention - low) / span, nan=0.0, posinf=1.0, neginf=0.0).astype(np.float32)
    heat = Image.fromarray(attention).resize(size, Image.Resampling.BILINEAR)
    grey = Image.fromarray(image.mean(axis=2).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    colour = matplotlib.colormaps["inferno"](np.asarray(heat))[..., :3] * 255
    mixed = 0.62 * colour + 0.38 * np.asarray(grey, dtype=np.float32)[..., None]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
