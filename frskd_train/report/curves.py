"""Curves of losses and scores over the epochs of a run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from frskd_train.report.drawing import BLUE, GREY, ORANGE
from frskd_train.report.score_names import SCORE_NAMES

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
_GREEN, _RED, _PURPLE = "#009E73", "#D55E00", "#CC79A7"  # of Okabe and Ito as well
_TERMS = {
    "loss_ce": ("cross-entropy, student", BLUE),
    "loss_ce_teacher": ("cross-entropy, self-teacher", ORANGE),
    "loss_kl": ("soft labels", _GREEN),
    "loss_feature": ("feature maps", _PURPLE),
}


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
        figure = Figure(figsize=(9, 4))
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
                axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, borderaxespad=0)
        rows_below = (max(len(axes.lines) for axes in (losses, scores)) + 1) // 2
        # Fixed, because a layout that measures the text takes as long as the drawing.
        figure.subplots_adjust(left=0.065, right=0.985, bottom=0.16 + 0.043 * rows_below, top=0.92, wspace=0.16)
        figure.savefig(path, dpi=160)
    return Path(path)


def sort_terms(columns: Iterable[str]) -> list[str]:
    """Return the columns of loss terms, those of FRSKD first."""
    terms = dict.fromkeys(name for name in columns if name.startswith("loss_"))
    return sorted(terms, key=lambda name: list(_TERMS).index(name) if name in _TERMS else len(_TERMS))


def term_label(column: str) -> str:
    """Return the readable name of a loss term."""
    return _TERMS[column][0] if column in _TERMS else column.removeprefix("loss_").replace("_", " ")


def _draw_losses(axes: Axes, epochs: NDArray[Any], columns: Mapping[str, NDArray[np.float64]]) -> None:
    axes.set_title("loss terms as weighted in training")
    spare = iter((_RED, GREY, *matplotlib.color_sequences["Dark2"]))
    for name in sort_terms(columns):
        colour = _TERMS[name][1] if name in _TERMS else next(spare)
        _line(axes, epochs, columns[name], label=term_label(name), color=colour)
    if "loss" in columns:
        _line(axes, epochs, columns["loss"], label="sum", color="#222222", linewidth=2)
    if "val_loss" in columns:
        _line(axes, epochs, columns["val_loss"], label="cross-entropy, validation", color=BLUE, linestyle="--", mfc="w")
    drawn = [value for line in axes.lines for value in np.asarray(line.get_ydata(), float)]
    if drawn and 0 < 10 * min(drawn) <= max(drawn):
        axes.set_yscale("log")


def _draw_scores(axes: Axes, epochs: NDArray[Any], columns: Mapping[str, NDArray[np.float64]]) -> None:
    names = next((names for names in SCORE_NAMES.values() if names.score in columns), SCORE_NAMES["classification"])
    score = names.score
    axes.set_title(f"{names.label}, validation (%)")
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
