"""What a card says of a run, in words and tables: the figures of `metrics.json` for the template to fill in."""

import re
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from frskd_timm.export.load import RECIPE
from frskd_train.report.student_folder import package_of


@dataclass(frozen=True)
class Form:
    """What a card says of the scores of one task.

    Attributes:
        pipeline: The Hub's name of the task.
        columns: Of the result table: head and format by the score's name.
        results: Metadata: the Hub's type of metric and its readable name, by the score's name. The first is what
            models are compared by.
        leaderboard: What the first one is called there.
    """

    pipeline: str
    columns: Mapping[str, tuple[str, str]]
    results: Mapping[str, tuple[str, str]]
    leaderboard: str

    @property
    def score(self) -> str:
        """Name of the score that models are compared by."""
        return next(iter(self.results))


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
            "loss": ("loss a pixel", "{:.3f}"),
        },
        {"miou": ("mean_iou", "Mean IoU (%)"), "pixel_accuracy": ("accuracy", "Pixel accuracy (%)")},
        "mean IoU in percent",
    ),
}


def form_of(metrics: Mapping[str, Any]) -> Form:
    """The form of a run's task."""
    return FORMS[metrics.get("task", "classification")]


@dataclass(frozen=True)
class About:
    """What the two kinds of `config.json` say of a student; `libraries` load it, the Hub's library_name first."""

    architecture: str
    title: str
    license: str
    channels: int
    has_labels: bool
    libraries: tuple[str, ...]

    @classmethod
    def of(cls, metrics: Mapping[str, Any], config: Mapping[str, Any]) -> "About":
        """From `metrics.json` and `config.json`."""
        if "backbone" in config:
            name, tag = metrics.get("model") or config["backbone"], metrics.get("tag")
            architecture, license, channels = config["backbone"], metrics.get("license"), config.get("in_chans", 3)
            labels, libraries = config.get("class_names"), ("frskd-timm", "timm")
        else:
            found = config["pretrained_cfg"]
            name = architecture = config["architecture"]
            tag, license = metrics.get("tag") or found.get("tag"), found.get("license")
            channels, labels = found.get("input_size", (3,))[0], config.get("label_names")
            libraries = ("timm", "transformers")
        title = f"{name}.{tag}" if tag else str(name)
        return cls(str(architecture), title, str(license or "").lower(), channels, bool(labels), libraries)


def text_facts(metrics: Mapping[str, Any], config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What the template fills in; lists are empty and strings are missing where the metrics say nothing."""
    columns, results = _result_table(metrics)
    form, about = form_of(metrics), About.of(metrics, config)
    seeds = metrics.get("seeds")
    baseline = metrics.get("baseline", {})
    score = metrics.get("student", {}).get(form.score)
    mean = baseline_scores(baseline, form.score)[0]
    return {
        "task": metrics.get("task", "classification"),
        "title": about.title,
        "architecture": about.architecture,
        "package": package_of(about.architecture),
        "shipped_as": metrics.get("shipped_as"),
        "method": metrics.get("method"),
        "dataset": metrics.get("dataset", {}),
        "pictures": [name for name in ("attention.png", "segmentation.png", "curves.png") if name in names],
        "recipe": RECIPE if RECIPE in names else None,
        "columns": columns,
        "results": results,
        "score": form.columns[form.score][0].removesuffix(" (%)"),
        "classes": metrics.get("student", {}).get("iou", {}),
        "gain": f"{score - mean:+.2f}" if score is not None and mean is not None else None,
        "baseline_seeds": ", ".join(str(run["seed"]) for run in baseline.get("runs", []) if "seed" in run),
        "mode": "L" if about.channels == 1 else "RGB",
        "has_labels": about.has_labels,
        "settings": _settings(metrics),
        "data_facts": _data_facts(metrics.get("dataset", {})),
        "img_size": metrics.get("img_size"),
        "epochs": metrics.get("epochs"),
        "epoch": metrics.get("epoch"),
        "stopped_early": "epoch" in metrics and "epochs" in metrics and metrics["epoch"] < metrics["epochs"],
        "single_seed": score is not None and not (seeds and len(seeds) > 1),
    }


def _result_table(metrics: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Column heads and rows; a column or row without any figure is left out."""
    form = form_of(metrics)
    formats = form.columns
    method = metrics.get("method")
    scores = {f"**this model** ({'FRSKD student' if method == 'frskd' else 'student'})": metrics.get("student", {})}
    scores["its self-teacher (not in this repository)"] = metrics.get("self_teacher", {})
    table = {
        name: {key: formats[key][1].format(row[key]) for key in formats if key in row} for name, row in scores.items()
    }
    mean, spread, count = baseline_scores(metrics.get("baseline", {}), form.score)
    if mean is not None:
        text = f"{mean:.2f}" + (f" ± {spread:.2f}" if spread is not None and count != 1 else "")
        name = "cross-entropy alone, same recipe" + (f", {count} seed{'s' if count > 1 else ''}" if count else "")
        table[name] = {form.score: text}
    columns = [key for key in formats if any(key in row for row in table.values())]
    rows = [{"name": name, "cells": [row.get(key, "") for key in columns]} for name, row in table.items() if row]
    return [formats[key][0] for key in columns], rows


def baseline_scores(baseline: Mapping[str, Any], score: str = "top1") -> tuple[float | None, float | None, int]:
    """Mean, spread and number of runs of the cross-entropy baseline."""
    runs = [run[score] for run in baseline.get("runs", []) if score in run]
    mean = baseline.get("mean", statistics.fmean(runs) if runs else None)
    spread = baseline.get("std", statistics.stdev(runs) if len(runs) > 1 else None)
    return mean, spread, len(runs)


def _settings(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = metrics.get("machine", {})
    where = [str(machine[key]) for key in ("name", "device") if key in machine][:1]
    where += [f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''}"] if "cores" in machine else []
    where += [f"{machine['processes']} processes"] if machine.get("processes", 1) > 1 else []
    weights = {"ema": "exponential moving average of the student", "student": "the student's own"}
    method = {"frskd": "FRSKD", "ce": "cross-entropy"}
    rows = {
        "Method": method.get(metrics.get("method", "")),
        "Weights": weights.get(metrics.get("weights", "")),
        "Parameters": f"{metrics['param_count']:,}" if "param_count" in metrics else None,
        "Image size": metrics.get("img_size"),
        "Epochs": metrics.get("epochs"),
        "Seed": metrics.get("seed"),
        "Seeds of all runs": ", ".join(map(str, metrics.get("seeds", []))),
        "Precision": machine.get("precision"),
        "Parameters stored in": metrics.get("stored_in"),
        "Machine": ", ".join(where),
        "Training time": _duration(metrics["seconds"]) if "seconds" in metrics else None,
        "Images a second": f"{metrics['images_per_second']:,.0f}" if "images_per_second" in metrics else None,
        "Versions": ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items()),
    }
    return [(name, _cell(value)) for name, value in rows.items() if value not in (None, "")]


def _data_facts(dataset: Mapping[str, Any]) -> list[str]:
    name = dataset.get("name")
    counts = [f"{dataset[key]:,} {what}" for key, what in _COUNTS.items() if key in dataset]
    facts = []
    if name and dataset.get("homepage"):
        facts.append(f"[{name}]({dataset['homepage']})")
    elif name or dataset.get("homepage"):
        facts.append(f"{name or dataset['homepage']}")
    if counts:
        facts.append(", ".join(counts))
    if dataset.get("license"):
        facts.append(f"Licence of the data: {dataset['license']}")
    return facts


_COUNTS = {"train_images": "training images", "val_images": "validation images", "num_classes": "classes"}


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cell(value: Any) -> str:
    """Text that cannot break out of a table's cell."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")
