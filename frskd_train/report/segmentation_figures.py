"""The picture of a segmentation run: image, truth, student and self-teacher, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

IGNORED_COLOUR = (1.0, 1.0, 1.0)
BACKGROUND_COLOUR = (0.88, 0.88, 0.88)
LEGEND_CLASSES = 24  # with more the legend is left out


def segmentation_figure(
    images: NDArray[np.uint8],
    truth: NDArray[Any],
    student: NDArray[Any],
    self_teacher: NDArray[Any] | None,
    class_names: Sequence[str],
    path: str | Path,
    *,
    ignored: int = 255,
) -> Path:
    """Draw images with their truth and the predictions of two networks.

    Args:
        images: [N, H, W, 1 or 3].
        truth: Classes [N, H, W].
        student: Predicted classes [N, H, W].
        self_teacher: Predicted classes [N, H, W]; None leaves the column out.
        class_names: One per class; the first is drawn in light grey.
        path: The PNG to write.
        ignored: Label of pixels without a class; they are white in every column.

    Returns:
        The path.
    """
    columns: list[tuple[str, NDArray[Any]]] = [("image", images), ("truth", truth), ("student", student)]
    if self_teacher is not None:
        columns.append(("self-teacher", self_teacher))
    colours = class_colours(len(class_names))
    shown = sorted({int(label) for _, labels in columns[1:] for label in np.unique(labels)} - {ignored})
    cell = 1.5
    tall = cell * images.shape[1] / images.shape[2]
    legend_rows = -(-len(shown) // 4) if len(shown) <= LEGEND_CLASSES else 0
    below = 0.2 * legend_rows + 0.1
    height = tall * len(images) + 0.3 + below
    figure = Figure(figsize=(cell * len(columns), height))
    grid = figure.add_gridspec(
        len(images), len(columns), wspace=0.03, hspace=0.03, left=0.01, right=0.99,
        bottom=below / height, top=1 - 0.3 / height,
    )  # fmt: skip
    for row in range(len(images)):
        hidden = truth[row] == ignored
        for column, (title, content) in enumerate(columns):
            picture = content[row].squeeze() if column == 0 else _painted(content[row], hidden, colours)
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=9, color="#333333", pad=4)
    if legend_rows:
        patches = [Patch(color=tuple(colours[label]), label=class_names[label]) for label in shown]
        figure.legend(
            handles=patches, ncols=4, loc="lower center", frameon=False, fontsize=7, handlelength=1, columnspacing=1
        )
    figure.savefig(path, dpi=160)
    return Path(path)


def class_colours(count: int) -> NDArray[np.float64]:
    """Return one colour per class, [count, 3] in 0..1: light grey for the first, then distinct colours."""
    palette = [*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Dark2"]]
    palette += [colour for place, colour in enumerate(matplotlib.color_sequences["tab20b"]) if place % 4 != 3]
    colours = [BACKGROUND_COLOUR, *(palette[index % len(palette)] for index in range(count - 1))]
    return np.array(colours[:count])


def _painted(labels: NDArray[Any], hidden: NDArray[Any], colours: NDArray[np.float64]) -> NDArray[np.float64]:
    painted = colours[np.clip(labels, 0, len(colours) - 1)]
    painted[hidden] = IGNORED_COLOUR
    return painted
