"""The text of a model card: the variables of its template."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from frskd_timm.export.load import ExportedStudent
from frskd_train.progress import duration
from frskd_train.report.evaluation import Evaluation
from frskd_train.report.metrics import Metrics

_LISTED = 20  # largest number of classes that are all listed; of more classes, the worst are listed
_WORST = 5


@dataclass(frozen=True)
class Form:
    """Presentation of the scores of one task.

    Attributes:
        pipeline: The Hub's name of the task.
        columns: Heading and number format of the columns of the result table, by name of the score.
        results: The Hub's metric type and readable name, by name of the score; models are compared by the first.
        leaderboard: Name of the first score on the Hub's leaderboards.
    """

    pipeline: str
    columns: Mapping[str, tuple[str, str]]
    results: Mapping[str, tuple[str, str]]
    leaderboard: str

    @property
    def score(self) -> str:
        """Name of the score that models are compared by."""
        return next(iter(self.results))

    @property
    def label(self) -> str:
        """Readable name of that score, without its unit."""
        return self.columns[self.score][0].removesuffix(" (%)")


FORMS = {
    "classification": Form(
        "image-classification",
        {"top1": ("top-1 (%)", "{:.2f}"), "top5": ("top-5 (%)", "{:.2f}"), "loss": ("loss", "{:.3f}")},
        {"top1": ("accuracy", "Top-1 accuracy (%)"), "top5": ("top_5_accuracy", "Top-5 accuracy (%)")},
        "top-1 accuracy in percent",
    ),
    "segmentation": Form(
        "image-segmentation",
        {
            "miou": ("mIoU (%)", "{:.2f}"),
            "pixel_accuracy": ("pixel accuracy (%)", "{:.2f}"),
            "loss": ("loss per pixel", "{:.3f}"),
        },
        {"miou": ("mean_iou", "Mean IoU (%)"), "pixel_accuracy": ("accuracy", "Pixel accuracy (%)")},
        "mean IoU in percent",
    ),
}

# The Hub's metric type and readable name of scores from `Evaluation`.
FURTHER_RESULTS = {
    "f1": ("f1", "F1, mean over the classes (%)"),
    "ece": ("expected_calibration_error", "Expected calibration error"),
    "brier": ("brier_score", "Brier score"),
}


def card_title(metrics: Metrics, student: ExportedStudent) -> str:
    """Return the name of the weights: ARCHITECTURE.TAG, or MODEL.TAG of a segmentation network."""
    return f"{metrics.model if metrics.task == 'segmentation' else student.architecture}.{metrics.tag}"


def text_facts(
    metrics: Metrics, student: ExportedStudent, names: Collection[str], evaluation: Evaluation | None
) -> dict[str, Any]:
    """Return the variables of the template; lists are empty and values None if there is no information."""
    form, baseline, scores = FORMS[metrics.task], metrics.baseline, metrics.student or {}
    score = scores.get(form.score)
    return {
        "run": metrics,
        "form": form,
        "title": card_title(metrics, student),
        "student": student,
        "files": names,
        "results": _result_rows(metrics),
        "classes": {_cell(name): iou for name, iou in scores.get("iou", {}).items() if iou is not None},
        "gain": f"{score - baseline.mean:+.2f}" if score is not None and baseline else None,
        "settings": _settings(metrics),
        "single_seed": score is not None,
        "evaluation": evaluation,
        "calibration": _calibration_rows(evaluation) if evaluation else [],
        "by_class": _class_rows(evaluation) if evaluation else [],
    }


def _calibration_rows(evaluation: Evaluation) -> list[list[str]]:
    names, temperature = ["probabilities as they are"], evaluation.temperature
    if temperature is not None:
        names.append(f"logits divided by {temperature.value:.3g}, fitted to {temperature.images:,} held-out images")
    rows = zip(names, evaluation.calibrations(), strict=True)
    return [[name, *(f"{value:.3f}" for value in (found.nll, found.ece, found.brier))] for name, (_, found) in rows]


def _class_rows(evaluation: Evaluation) -> list[list[str]]:
    """Return the scores of all classes of a classifier, or of those with the lowest F1 if there are many."""
    found = [row for row in evaluation.per_class if row.support and evaluation.task == "classification"]
    if len(found) > _LISTED:
        found = sorted(found, key=lambda row: row.f1)[:_WORST]
    return [
        [_cell(row.name), *(f"{value:.1f}" for value in (row.precision, row.recall, row.f1)), f"{row.support:,}"]
        for row in found
    ]


def _result_rows(metrics: Metrics) -> list[list[str]]:
    columns = FORMS[metrics.task].columns
    networks = {
        f"**this model** ({'FRSKD student' if metrics.method == 'frskd' else 'student'})": metrics.student or {},
        "its self-teacher (not in this repository)": metrics.self_teacher or {},
    }
    rows = [
        [name, *("" if scores.get(key) is None else text.format(scores[key]) for key, (_, text) in columns.items())]
        for name, scores in networks.items()
    ]
    if metrics.baseline:
        mean, deviation, count = metrics.baseline.mean, metrics.baseline.std, len(metrics.baseline.runs)
        name = f"cross-entropy alone, same recipe, {count} seed{'s' if count > 1 else ''}"
        score = f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
        rows.append([name, score, *[""] * (len(columns) - 1)])
    return [row for row in rows if any(row[1:])]


def _settings(metrics: Metrics) -> list[tuple[str, str]]:
    machine = metrics.machine
    where = [machine.name or machine.device]
    where += [f"{machine.cores} core{'s' if machine.cores > 1 else ''}"] if machine.cores else []
    where += [f"{machine.processes} processes"] if machine.processes > 1 else []
    rows = {
        "Method": {"frskd": "FRSKD", "ce": "cross-entropy"}[metrics.method],
        "Weights": "exponential moving average" if metrics.weights == "ema" else "the student's own",
        "Started from": metrics.initial.name if metrics.initial else "random weights",
        "Parameters": f"{metrics.param_count:,}",
        "Multiply-adds (GMACs)": f"{metrics.gmacs:.3g}" if metrics.gmacs else None,
        "Activations (M)": f"{metrics.activations:.3g}" if metrics.activations else None,
        "Image size": metrics.img_size,
        "Epochs": metrics.epochs,
        "Seed": metrics.seed,
        "Precision": machine.precision,
        "Parameters stored in": metrics.stored_in,
        "Machine": ", ".join(where),
        "Training time": duration(metrics.seconds),
        "Images per second": f"{metrics.images_per_second:,.0f}" if metrics.images_per_second else None,
        "Versions": ", ".join(f"{name} {version}" for name, version in metrics.versions.items()),
    }
    return [(name, _cell(value)) for name, value in rows.items() if value not in (None, "")]


def _cell(value: Any) -> str:
    """Return text for a table cell, which a line break or a vertical bar would end; it is not HTML."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").replace("<", "&lt;")
