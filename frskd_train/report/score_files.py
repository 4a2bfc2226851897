"""Files and pictures of an evaluation, and its summary for the user."""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CONFIG, METRICS, WEIGHTS
from frskd_train.report.answers import confusion_picture
from frskd_train.report.curves import STYLE
from frskd_train.report.drawing import BLUE, GREY, ORANGE
from frskd_train.report.evaluation import EVALUATION, ClassScores, Evaluation
from frskd_train.report.score_names import SCORE_NAMES
from frskd_train.system.disk import refuse_links

PER_CLASS, CONFUSION, CORRUPTIONS = "per_class.csv", "confusion.csv", "corruptions.csv"
PICTURES = "reliability.png", "confusion.png"


def check_output(output: str | Path | None) -> Path | None:
    """Return the folder for the scores, or the JSON file; raise UserError, before scoring, if it cannot be written."""
    if output is None:
        return None
    path = Path(output)
    if path.suffix in (".csv", ".txt"):
        raise UserError(f"--output {path}: give a folder for JSON and CSV files, or a .json file for the scores alone.")
    folder = path.parent if path.suffix == ".json" else path
    for place in (folder, *folder.absolute().parents):
        if (place / CONFIG).is_file() and (place / WEIGHTS).is_file():
            raise UserError(f"--output {path} is in a student's folder, which holds the student alone: choose another.")
    replaced = path.name if path.suffix == ".json" else EVALUATION
    if (folder / METRICS).is_file() and replaced in (METRICS, EVALUATION):
        raise UserError(f"--output {path} would replace a run's own {replaced}: choose another name.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}): choose another folder.") from None
    if folder == path:
        refuse_links(folder / name for name in (EVALUATION, PER_CLASS, CONFUSION, CORRUPTIONS, *PICTURES))
    return path


def write_scores(evaluation: Evaluation, output: Path, *, pictures: bool = False) -> None:
    """Write an evaluation as JSON and CSV, and as pictures, into a folder; as JSON alone if `output` is a `.json`."""
    if output.suffix == ".json":
        output.write_text(evaluation.to_json(), encoding="utf-8")
        return
    if (output / EVALUATION).is_file():  # of an earlier evaluation, as these are
        for name in (CORRUPTIONS, *PICTURES):
            (output / name).unlink(missing_ok=True)
    (output / EVALUATION).write_text(evaluation.to_json(), encoding="utf-8")
    names = evaluation.class_names
    counts = [[names[true], names[given], count] for true, given, count in evaluation.confusion]
    _write_csv(output / CONFUSION, ["true", "given", SCORE_NAMES[evaluation.task].unit], counts)
    columns = [attribute.name for attribute in fields(ClassScores)]
    _write_csv(output / PER_CLASS, columns, [astuple(row) for row in evaluation.per_class])
    corruptions = [{"corruption": name, **row} for name, rows in evaluation.corruptions.items() for row in rows]
    if corruptions:
        _write_csv(output / CORRUPTIONS, list(corruptions[0]), [list(row.values()) for row in corruptions])
    if pictures:
        reliability, confusion = (output / name for name in PICTURES)
        _reliability_figure(evaluation, reliability)
        confusion_picture(evaluation.confusion_matrix(), names, confusion)


def summary(evaluation: Evaluation) -> str:
    """Return the lines for the user."""
    score_names = SCORE_NAMES[evaluation.task]
    figures = "  ".join(f"{label} {getattr(evaluation, name):.2f}%" for name, label in score_names.labels.items())
    speed = f"{evaluation.images_per_second:.0f} images/s"
    macro = "  ".join(f"{name} {value:.2f}%" for name, value in evaluation.macro.items())
    lines = [
        f"{figures}  loss {evaluation.loss:.4f}  ({evaluation.images} images, {speed})",
        f"macro averages: {macro}",
        *(
            f"calibration {label}: NLL {found.nll:.4f}  ECE {found.ece:.4f}  Brier score {found.brier:.4f}"
            for label, found in evaluation.calibrations()
        ),
        evaluation.temperature_note,
    ]
    names = evaluation.class_names
    confused = [f"{names[true]} as {names[given]} ({count:,})" for true, given, count in evaluation.confused(3)]
    if confused:
        lines.append(f"most often confused: {', '.join(confused)}")
    for name, rows in evaluation.corruptions.items():
        values = "  ".join(f"{row[score_names.score]:.2f}%" for row in rows)
        lines.append(f"{name:<10} {score_names.label} at severity 1 to {len(rows)}: {values}")
    return "\n".join(lines)


def _reliability_figure(evaluation: Evaluation, path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfectly calibrated")
        styles = ((BLUE, "o"), (ORANGE, "s"))
        for (name, found), (colour, marker) in zip(evaluation.calibrations(), styles, strict=False):
            confidence, accuracy = (  # without the empty bins
                [mean for mean in means if mean is not None] for means in (found.bin_confidence, found.bin_accuracy)
            )
            label = f"{name}, ECE {found.ece:.3f}"
            axes.plot(confidence, accuracy, color=colour, marker=marker, clip_on=False, label=label)
            edges = np.linspace(0, 1, len(found.bin_count) + 1)
            counts.stairs(np.array(found.bin_count) / sum(found.bin_count), edges, color=colour)
        axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title="Reliability")
        axes.legend(loc="upper left")
        counts.set(xlabel="confidence", ylabel="share")
        figure.savefig(path, dpi=160)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
