"""Figures of a run: curves over the epochs, attention maps over images, and predicted masks."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from frskd_timm.losses.functional import IGNORED
from frskd_train.report.forms import FORMS

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_LITERAL: dict[Any, Any] = STYLE | {"axes.grid": False, "text.parse_math": False}  # class names may contain $
# Colours of Okabe and Ito, which colour-blind readers can distinguish.
BLUE, ORANGE, _GREEN, _RED, _PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#777777"
_TERMS = {
    "loss_ce": ("cross-entropy, student", BLUE),
    "loss_ce_teacher": ("cross-entropy, self-teacher", ORANGE),
    "loss_kl": ("soft labels", _GREEN),
    "loss_feature": ("feature maps", _PURPLE),
}
_LEGEND_CLASSES = 24  # with more classes the legend is omitted


@contextmanager
def _literally() -> Iterator[None]:
    """Draw names as they are; characters that the font lacks become boxes, without a warning for each."""
    with matplotlib.rc_context(_LITERAL), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        yield


def curves_figure(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw loss terms and accuracies over the epochs; return the path.

    Args:
        rows: One mapping per epoch, as in `summary.csv`: `epoch`, `loss`, `loss_*`, `val_loss`, `top1`, `teacher_top1`,
            or `miou`, `teacher_miou` (percent). Numbers may be missing, None or not finite.
        path: The PNG file to write.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: np.array([row.get(name) for row in rows], dtype=float) for name in names}
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    epochs = columns.pop("epoch", np.arange(1, len(rows) + 1, dtype=float))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        losses, scores = figure.subplots(1, 2)
        _draw_losses(losses, epochs, columns)
        _draw_scores(scores, epochs, columns)
        for axes in (losses, scores):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            if len(rows) == 1:
                axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
            axes.tick_params(length=0)
            if axes.lines:  # the legend is below the axes, because long runs leave no free corner
                axes.legend(loc="upper left", bbox_to_anchor=(0, -0.15), ncols=2, borderaxespad=0)
        figure.savefig(path, dpi=160)
    return Path(path)


def sort_terms(columns: Iterable[str]) -> list[str]:
    """Return the columns of loss terms, those of FRSKD first."""
    terms = dict.fromkeys(name for name in columns if name.startswith("loss_"))
    return sorted(terms, key=lambda name: list(_TERMS).index(name) if name in _TERMS else len(_TERMS))


def term_label(column: str) -> str:
    """Return the readable name of a loss term."""
    return _TERMS[column][0] if column in _TERMS else column.removeprefix("loss_").replace("_", " ")


def attention_figure(
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
    levels = len(student_maps)
    gap = 0.18  # empty columns separate image, student and self-teacher
    widths = [1, gap, *[1] * levels, gap, *[1] * levels]
    cell = min(1.0, 9 / (1 + 2 * levels))
    side = cell * images.shape[1] / images.shape[2]
    height, longest = side * len(images) + 0.45, int(side / 0.065)  # characters beside a row
    with _literally():
        figure = Figure(figsize=(cell * (1 + 2 * levels) + 0.4, height))
        grid = figure.add_gridspec(
            len(images), len(widths), width_ratios=widths, wspace=0.04, hspace=0.04,
            left=0.03, right=0.99, bottom=0.01, top=1 - 0.45 / height,
        )  # fmt: skip
        for row, (image, title) in enumerate(zip(images, titles, strict=True)):
            axes = _cell(figure, grid[row, 0], image.squeeze(), "image" if row == 0 else "")
            short = title if len(title) <= longest else f"{title[: longest - 1]}…"
            axes.set_ylabel(short, fontsize=7, color="#333333", labelpad=3)
            for first, name, maps in ((2, "student", student_maps), (3 + levels, "self-teacher", teacher_maps)):
                for level, features in enumerate(maps):
                    head = f"{name}\nlevel {level + 1}" if level == 0 else f"\nlevel {level + 1}"
                    _cell(figure, grid[row, first + level], _overlay(image, features[row]), head if row == 0 else "")
        figure.savefig(path, dpi=160)
    return Path(path)


def segmentation_figure(
    images: NDArray[np.uint8],
    truth: NDArray[Any],
    student: NDArray[Any],
    self_teacher: NDArray[Any] | None,
    class_names: Sequence[str],
    path: str | Path,
) -> Path:
    """Draw images with the ground truth and the predictions of two networks; return the path.

    Args:
        images: [N, H, W, 1 or 3].
        truth: Classes [N, H, W]; pixels of `IGNORED` are white in every column.
        student: Predicted classes [N, H, W].
        self_teacher: Predicted classes [N, H, W]; None omits the column.
        class_names: One per class; the first is drawn in light grey.
        path: The PNG file to write.
    """
    columns: list[tuple[str, NDArray[Any]]] = [("image", images), ("truth", truth), ("student", student)]
    if self_teacher is not None:
        columns.append(("self-teacher", self_teacher))
    colours = class_colours(len(class_names))
    shown = sorted({int(label) for _, labels in columns[1:] for label in np.unique(labels)} - {IGNORED})
    cell = 1.5
    tall = cell * images.shape[1] / images.shape[2]
    legend_rows = -(-len(shown) // 4) if len(shown) <= _LEGEND_CLASSES else 0
    below = 0.2 * legend_rows + 0.1
    height = tall * len(images) + 0.3 + below
    figure = Figure(figsize=(cell * len(columns), height))
    grid = figure.add_gridspec(
        len(images), len(columns), wspace=0.03, hspace=0.03, left=0.01, right=0.99,
        bottom=below / height, top=1 - 0.3 / height,
    )  # fmt: skip
    for row in range(len(images)):
        hidden = truth[row][..., None] == IGNORED
        for column, (title, content) in enumerate(columns):
            if column == 0:
                picture = content[row].squeeze()
            else:
                picture = np.where(hidden, 1.0, colours[content[row].clip(max=len(colours) - 1)])
            _cell(figure, grid[row, column], picture, title if row == 0 else "", fontsize=9)
    with _literally():
        if legend_rows:
            patches = [Patch(color=tuple(colours[label]), label=class_names[label]) for label in shown]
            figure.legend(handles=patches, ncols=4, loc="lower center", fontsize=7, handlelength=1, columnspacing=1)
        figure.savefig(path, dpi=160)
    return Path(path)


def class_colours(count: int) -> NDArray[np.float64]:
    """Return one colour per class, [count, 3] in 0..1: light grey for the first, then distinct colours."""
    palette = [*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Dark2"]]
    palette += [colour for place, colour in enumerate(matplotlib.color_sequences["tab20b"]) if place % 4 != 3]
    colours = [(0.88, 0.88, 0.88), *(palette[index % len(palette)] for index in range(count - 1))]
    return np.array(colours[:count])


def _draw_losses(axes: Axes, epochs: NDArray[Any], columns: Mapping[str, NDArray[np.float64]]) -> None:
    axes.set_title("loss terms as weighted in training")
    spare = iter((_RED, GREY, *matplotlib.color_sequences["Dark2"]))
    for name in sort_terms(columns):
        colour = _TERMS[name][1] if name in _TERMS else next(spare)
        _line(axes, epochs, columns[name], label=term_label(name), color=colour)
    if "loss" in columns:
        _line(axes, epochs, columns["loss"], label="sum", color="#222222", linewidth=2)
    if "val_loss" in columns:
        _line(axes, epochs, columns["val_loss"], label="cross-entropy, validation", color=BLUE, linestyle="--")
    drawn = [value for line in axes.lines for value in np.asarray(line.get_ydata(), float)]
    if drawn and 0 < 10 * min(drawn) <= max(drawn):
        axes.set_yscale("log")


def _draw_scores(axes: Axes, epochs: NDArray[Any], columns: Mapping[str, NDArray[np.float64]]) -> None:
    form = next((form for form in FORMS.values() if form.score in columns), FORMS["classification"])
    score = form.score
    axes.set_title(f"{form.label}, validation (%)")
    drawn: list[float] = []
    for name, label, colour in ((score, "student", BLUE), (f"teacher_{score}", "self-teacher", ORANGE)):
        if name in columns:
            known = np.flatnonzero(np.isfinite(columns[name]))
            final = columns[name][known[-1]]
            _line(axes, epochs, columns[name], label=f"{label}: {final:.2f}", color=colour)
            axes.plot(epochs[known[-1]], final, "o", color=colour, markersize=4)
            drawn += columns[name][known].tolist()
    if drawn:
        low, cut, high = min(drawn), np.percentile(drawn, 8 if len(epochs) >= 10 else 0), max(drawn)
        if high - low > 2 * (high - cut):  # a few poor epochs would compress the rest, where the lines are compared
            low = cut
        margin = max((high - low) * 0.12, 0.5)
        axes.set_ylim(max(low - margin, 0), min(high + margin, 100))


def _line(axes: Axes, epochs: NDArray[Any], values: NDArray[np.float64], **style: Any) -> None:
    known = np.isfinite(values)  # some epochs may not have been validated
    marker = {"marker": "o", "markersize": 3} if known.sum() == 1 else {}
    axes.plot(epochs[known], values[known], **({"linewidth": 1.6} | style | marker))


def _cell(figure: Figure, place: Any, picture: NDArray[Any], title: str, fontsize: float = 7.5) -> Axes:
    axes = figure.add_subplot(place)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title, fontsize=fontsize, fontweight="normal", color="#333333", pad=3, loc="center")
    return axes


def _overlay(image: NDArray[np.uint8], features: NDArray[Any]) -> NDArray[np.uint8]:
    """Overlay the attention map of a feature map [C, h, w] in colour on an image [H, W, C] in grey.

    Values of a diverged run may not be finite: infinity is drawn as the maximum, NaN as zero.
    """
    attention = np.square(features.astype(np.float64)).mean(axis=0)
    known = attention[np.isfinite(attention)]
    low, span = (known.min(), max(np.ptp(known), 1e-12)) if known.size else (0.0, 1.0)
    attention = np.nan_to_num((attention - low) / span, nan=0.0, posinf=1.0, neginf=0.0).astype(np.float32)
    height, width = image.shape[:2]
    factor = max(1, math.ceil(112 / width))  # at least 112 pixels wide
    size = (width * factor, height * factor)
    heat = Image.fromarray(attention).resize(size, Image.Resampling.BILINEAR)
    grey = Image.fromarray(image.mean(axis=2).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    colour = matplotlib.colormaps["inferno"](np.asarray(heat))[..., :3] * 255
    mixed = 0.62 * colour + 0.38 * np.asarray(grey, dtype=np.float32)[..., None]
    return mixed.clip(0, 255).astype(np.uint8)
