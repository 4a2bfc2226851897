"""Model cards, created from `metrics.json` and the exported config with `huggingface_hub`'s card classes."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from frskd_timm.export.folder import CARD
from frskd_timm.export.load import ExportedStudent, read_student
from frskd_train.report.cost import count_cost
from frskd_train.report.metrics import DatasetFacts, Metrics

EVAL_RESULTS = ".eval_results/frskd.yaml"
# Placeholder of the repository's name until the student is published.
PLACEHOLDER = "OWNER/NAME"
SOURCE = f"https://huggingface.co/{PLACEHOLDER}"

_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


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


def write_card(folder: Path, metrics: Metrics) -> None:
    """Write the card of an exported student beside its weights, with the pictures and the recipe in the folder."""
    names = {path.name for path in folder.iterdir()}
    model_card(metrics, read_student(folder), names).save(folder / CARD)
    entries = eval_result_entries(metrics)
    if entries:
        target = folder / EVAL_RESULTS
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")


def model_card(metrics: Metrics, student: ExportedStudent, names: Collection[str] = ()) -> ModelCard:
    """Return the card of a student; it refers to the pictures and the recipe among `names`, the files beside it."""
    form = FORMS[metrics.task]
    tags = [form.pipeline, *student.libraries, "self-distillation", "knowledge-distillation"]
    if metrics.method == "frskd":
        tags += ["frskd", "arxiv:2103.08273"]
    license = (metrics.license or "").lower()
    known = bool(_LICENSE_ID.fullmatch(license))
    results = _eval_results(metrics)
    data = ModelCardData(
        license=license if known else ("other" if license else None),
        license_name=None if known or not license else re.sub(r"[^a-z0-9.]+", "-", license).strip("-"),
        library_name=student.libraries[0],
        pipeline_tag=form.pipeline,
        tags=tags,
        datasets=[name] if (name := hub_dataset(metrics.dataset)) else None,
        base_model=metrics.initial.hub_id if metrics.initial else None,
        base_architecture=student.architecture,
        metrics=[form.results[form.score][0]] if results else None,
        model_name=_card_title(metrics, student),
        eval_results=results or None,
    )
    return _fill("card_template.md", data, _text_facts(metrics, student, names))


def write_backbone_card(folder: Path, metrics: Metrics) -> None:
    """Write the card of a segmentation student's backbone, exported as a timm checkpoint."""
    architecture = read_student(folder).architecture
    data = ModelCardData(
        license=(metrics.license or "").lower() or None,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "semantic-segmentation"],
        base_architecture=architecture,
    )
    card = _fill("backbone_template.md", data, {"title": f"{architecture}.{metrics.tag}", "run": metrics})
    card.save(folder / CARD)


def tidy(card: ModelCard) -> ModelCard:
    """Remove blank lines left by conditions in a template."""
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card


def eval_result_entries(metrics: Metrics) -> list[dict[str, Any]]:
    """Return the scores in the Hub's newer format, one YAML file under `.eval_results/`.

    They appear on the dataset's leaderboard, so the list is empty unless the run was tested on a whole split of a
    dataset on the Hub (`whole_split`). It is also empty with clients that do not support the format.
    """
    form, dataset = FORMS[metrics.task], metrics.dataset
    score = (metrics.student or {}).get(form.score)
    hub_id = hub_dataset(dataset) if dataset.whole_split else None
    if not hasattr(huggingface_hub, "EvalResultEntry") or hub_id is None or score is None:
        return []
    entry = huggingface_hub.EvalResultEntry(
        dataset_id=hub_id,
        task_id="default",
        value=round(score, 4),
        date=metrics.date,
        source_url=SOURCE,
        source_name=_source_name(metrics),
        notes=f"{form.leaderboard}, {dataset.split} split",
    )
    return huggingface_hub.eval_result_entries_to_yaml([entry])


def hub_dataset(dataset: DatasetFacts) -> str | None:
    """Return the dataset's id on the Hub, or None: `hub_id`, or an `id` of the form OWNER/NAME."""
    name = dataset.hub_id or dataset.id
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "frskd/")):
        return None  # a folder, or the sample that ships with this package
    return name


def _fill(template: str, data: ModelCardData, variables: dict[str, Any]) -> ModelCard:
    text = files("frskd_train.report").joinpath(template).read_text(encoding="utf-8")
    return tidy(ModelCard.from_template(data, template_str=text, **variables))


def _eval_results(metrics: Metrics) -> list[EvalResult]:
    form, dataset = FORMS[metrics.task], metrics.dataset
    whole = hub_dataset(dataset) if dataset.whole_split else None  # scores on a sample are not those of the dataset
    scores = metrics.student or {}
    return [
        EvalResult(
            task_type=form.pipeline,
            task_name=form.pipeline.replace("-", " ").capitalize(),
            dataset_type=whole or dataset.name,
            dataset_name=dataset.name,
            dataset_split=dataset.split,
            metric_type=kind,
            metric_name=label,
            metric_value=round(scores[key], 4),
            source_name=_source_name(metrics),
            source_url=SOURCE,
        )
        for key, (kind, label) in form.results.items()
        if scores.get(key) is not None
    ]


def _source_name(metrics: Metrics) -> str:
    """Return what produced the scores, and when."""
    name = f"frskd_timm {metrics.versions.get('frskd_timm', '')}".strip()
    return f"{name}, {metrics.date}" if metrics.date else name


def _card_title(metrics: Metrics, student: ExportedStudent) -> str:
    """Return the name of the weights: ARCHITECTURE.TAG, or MODEL.TAG of a segmentation network."""
    return f"{metrics.model if metrics.task == 'segmentation' else student.architecture}.{metrics.tag}"


def _text_facts(metrics: Metrics, student: ExportedStudent, names: Collection[str]) -> dict[str, Any]:
    """Return the variables of the template; lists are empty and values None if there is no information."""
    form, baseline = FORMS[metrics.task], metrics.baseline
    columns, results = _result_table(metrics)
    score = (metrics.student or {}).get(form.score)
    return {
        "run": metrics,
        "title": _card_title(metrics, student),
        "student": student,
        "files": names,
        "columns": columns,
        "results": results,
        "score": form.label,
        "classes": {_cell(name): iou for name, iou in _with_value((metrics.student or {}).get("iou", {})).items()},
        "gain": f"{score - baseline.mean:+.2f}" if score is not None and baseline else None,
        "baseline_seeds": ", ".join(str(run["seed"]) for run in baseline.runs) if baseline else "",
        "mode": "L" if student.in_chans == 1 else "RGB",
        "settings": _settings(metrics, student),
        "single_seed": score is not None,
    }


def _result_table(metrics: Metrics) -> tuple[list[str], list[dict[str, Any]]]:
    """Return column headings and rows, without empty rows and columns."""
    form = FORMS[metrics.task]
    rows = {
        f"**this model** ({'FRSKD student' if metrics.method == 'frskd' else 'student'})": metrics.student,
        "its self-teacher (not in this repository)": metrics.self_teacher,
    }
    table = {
        name: {key: text.format(scores[key]) for key, (_, text) in form.columns.items() if scores[key] is not None}
        for name, scores in rows.items()
        if scores
    }
    if metrics.baseline:
        mean, spread, count = metrics.baseline.mean, metrics.baseline.std, len(metrics.baseline.runs)
        name = f"cross-entropy alone, same recipe, {count} seed{'s' if count > 1 else ''}"
        table[name] = {form.score: f"{mean:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")}
    columns = [key for key in form.columns if any(key in row for row in table.values())]
    cells = [{"name": name, "cells": [row.get(key, "") for key in columns]} for name, row in table.items() if row]
    return [form.columns[key][0] for key in columns], cells


def _settings(metrics: Metrics, student: ExportedStudent) -> list[tuple[str, str]]:
    machine = metrics.machine
    cost = count_cost(student.skeleton().eval(), (student.in_chans, metrics.img_size, metrics.img_size))
    where = [machine.name or machine.device]
    where += [f"{machine.cores} core{'s' if machine.cores > 1 else ''}"] if machine.cores else []
    where += [f"{machine.processes} processes"] if machine.processes > 1 else []
    speed = metrics.images_per_second
    rows = {
        "Method": {"frskd": "FRSKD", "ce": "cross-entropy"}[metrics.method],
        "Weights": "exponential moving average" if metrics.weights == "ema" else "the student's own",
        "Started from": metrics.initial.name if metrics.initial else "random weights",
        "Parameters": f"{metrics.param_count:,}",
        "Multiply-adds (GMACs)": f"{cost[0]:.3g}" if cost else None,
        "Activations (M)": f"{cost[1]:.3g}" if cost else None,
        "Image size": metrics.img_size,
        "Epochs": metrics.epochs,
        "Seed": metrics.seed,
        "Precision": machine.precision,
        "Parameters stored in": metrics.stored_in,
        "Machine": ", ".join(where),
        "Training time": _duration(metrics.seconds),
        "Images per second": f"{speed:,.0f}" if speed is not None else None,
        "Versions": ", ".join(f"{name} {version}" for name, version in metrics.versions.items()),
    }
    return [(name, _cell(value)) for name, value in _with_value(rows).items()]


def _cell(value: Any) -> str:
    """Return text for a table cell, which a line break or a vertical bar would end."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _with_value(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "")}
