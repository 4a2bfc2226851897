"""The model card: from `metrics.json` and the exported config, through `huggingface_hub`'s card classes."""

import math
import re
import statistics
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import is_model, model_entrypoint

from frskd_timm.exported import CARD, RECIPE, read_config

EVAL_RESULTS = ".eval_results/frskd.yaml"
# What the card calls the repository until it is published under a name.
PLACEHOLDER = "OWNER/NAME"
_PIPELINES = {"classification": "image-classification", "segmentation": "image-segmentation"}
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def write_card(folder: str | Path, metrics: Mapping[str, Any]) -> Path:
    """Writes the card of an exported student beside its weights, showing the pictures that lie there.

    Args:
        folder: An exported student, with `curves.png`, `attention.png` and `recipe.yaml` where there are any.
        metrics: The run's `metrics.json`. Whatever it lacks, the card leaves out.

    Returns:
        The path of the card.
    """
    folder = Path(folder)
    names = {path.name for path in folder.iterdir()}
    card = model_card(metrics, read_config(folder), names)
    card.save(folder / CARD)
    entries = eval_result_entries(metrics)
    if entries:
        target = folder / EVAL_RESULTS
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder / CARD


def model_card(metrics: Mapping[str, Any], config: Mapping[str, Any], names: Collection[str] = ()) -> ModelCard:
    """The card of one student.

    Args:
        metrics: As in `metrics.json`.
        config: As in `config.json`.
        names: File names beside the card: pictures and recipe are shown if they are among them.
    """
    metrics = _present(metrics)
    template = files("frskd_timm.hub").joinpath("card_template.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        _card_data(metrics, config), template_str=template, **_text_facts(metrics, config, names)
    )
    return tidy(card)


def tidy(card: ModelCard) -> ModelCard:
    """The card without the blank lines that conditions in a template leave."""
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card


def eval_result_entries(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores in the Hub's newer form, one YAML file under `.eval_results/`.

    They enter the data set's leaderboard there, so the list is empty unless the run says that it was tested on a whole
    split of a data set on the Hub (`whole_split`), and with clients that do not know the form.
    """
    metrics = _present(metrics)
    dataset, top1 = metrics.get("dataset", {}), metrics.get("student", {}).get("top1")
    hub_id = hub_dataset(dataset) if dataset.get("whole_split") else None
    if not hasattr(huggingface_hub, "EvalResultEntry") or hub_id is None or top1 is None:
        return []
    entry = huggingface_hub.EvalResultEntry(
        dataset_id=hub_id,
        task_id=dataset.get("config", "default"),
        value=round(top1, 4),
        notes=f"top-1 accuracy in percent, {dataset['split']} split" if "split" in dataset else "top-1 in percent",
    )
    return huggingface_hub.eval_result_entries_to_yaml([entry])


def hub_dataset(dataset: Mapping[str, Any]) -> str | None:
    """The data set's Hub id, where it has one: `hub_id`, or an `id` that looks like `owner/name`."""
    name = dataset.get("hub_id") or dataset.get("id")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "frskd/")):
        return None  # a folder, or the sample that ships with this package
    return name


def _card_data(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> ModelCardData:
    dataset = metrics.get("dataset", {})
    pipeline = _PIPELINES[metrics.get("task", "classification")]
    tags = [pipeline, "timm", "transformers", "self-distillation", "knowledge-distillation"]
    if metrics.get("method") == "frskd":
        tags += ["frskd", "arxiv:2103.08273"]
    license = str(config["pretrained_cfg"].get("license") or "").lower()
    known = bool(_LICENSE_ID.fullmatch(license))
    results = _eval_results(metrics, pipeline)
    return ModelCardData(
        license=license if known else ("other" if license else None),
        license_name=None if known or not license else re.sub(r"[^a-z0-9.]+", "-", license).strip("-"),
        library_name="timm",
        pipeline_tag=pipeline,
        tags=tags,
        datasets=[name] if (name := hub_dataset(dataset)) else None,
        base_architecture=config["architecture"],
        metrics=["accuracy"] if results else None,
        model_name=_title(metrics, config),
        eval_results=results or None,
    )


def _eval_results(metrics: Mapping[str, Any], pipeline: str) -> list[EvalResult]:
    dataset = metrics.get("dataset", {})
    name = dataset.get("name") or dataset.get("id")
    if name is None:
        return []
    whole = hub_dataset(dataset) if dataset.get("whole_split") else None  # a sample's scores are not the data set's
    return [
        EvalResult(
            task_type=pipeline,
            task_name=pipeline.replace("-", " ").capitalize(),
            dataset_type=whole or str(name),
            dataset_name=str(name),
            dataset_split=dataset.get("split"),
            metric_type=kind,
            metric_name=label,
            metric_value=round(metrics["student"][key], 4),
        )
        for key, kind, label in (
            ("top1", "accuracy", "Top-1 accuracy (%)"),
            ("top5", "top_5_accuracy", "Top-5 accuracy (%)"),
        )
        if key in metrics.get("student", {})
    ]


def _text_facts(metrics: Mapping[str, Any], config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What the template fills in; lists are empty and strings are missing where the metrics say nothing."""
    columns, results = _result_table(metrics)
    seeds = metrics.get("seeds")
    baseline = metrics.get("baseline", {})
    top1 = metrics.get("student", {}).get("top1")
    mean = baseline_scores(baseline)[0]
    return {
        "title": _title(metrics, config),
        "architecture": config["architecture"],
        "package": _package(config["architecture"]),
        "method": metrics.get("method"),
        "dataset": metrics.get("dataset", {}),
        "pictures": [name for name in ("attention.png", "curves.png") if name in names],
        "recipe": RECIPE if RECIPE in names else None,
        "columns": columns,
        "results": results,
        "gain": f"{top1 - mean:+.2f}" if top1 is not None and mean is not None else None,
        "baseline_seeds": ", ".join(str(run["seed"]) for run in baseline.get("runs", []) if "seed" in run),
        "mode": "L" if config["pretrained_cfg"].get("input_size", (3,))[0] == 1 else "RGB",
        "has_labels": bool(config.get("label_names")),
        "settings": _settings(metrics),
        "data_facts": _data_facts(metrics.get("dataset", {})),
        "img_size": metrics.get("img_size"),
        "epochs": metrics.get("epochs"),
        "epoch": metrics.get("epoch"),
        "stopped_early": "epoch" in metrics and "epochs" in metrics and metrics["epoch"] < metrics["epochs"],
        "single_seed": top1 is not None and not (seeds and len(seeds) > 1),
    }


def _result_table(metrics: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Column heads and rows; a column or row without any figure is left out."""
    formats = {"top1": ("top-1 (%)", "{:.2f}"), "top5": ("top-5 (%)", "{:.2f}"), "loss": ("loss", "{:.3f}")}
    method = metrics.get("method")
    scores = {f"**this model** ({'FRSKD student' if method == 'frskd' else 'student'})": metrics.get("student", {})}
    scores["its self-teacher (not in this repository)"] = metrics.get("self_teacher", {})
    table = {
        name: {key: formats[key][1].format(row[key]) for key in formats if key in row} for name, row in scores.items()
    }
    mean, spread, count = baseline_scores(metrics.get("baseline", {}))
    if mean is not None:
        text = f"{mean:.2f}" + (f" ± {spread:.2f}" if spread is not None and count != 1 else "")
        name = "cross-entropy alone, same recipe" + (f", {count} seed{'s' if count > 1 else ''}" if count else "")
        table[name] = {"top1": text}
    columns = [key for key in formats if any(key in row for row in table.values())]
    rows = [{"name": name, "cells": [row.get(key, "") for key in columns]} for name, row in table.items() if row]
    return [formats[key][0] for key in columns], rows


def baseline_scores(baseline: Mapping[str, Any]) -> tuple[float | None, float | None, int]:
    """Mean, spread and number of runs of the cross-entropy baseline."""
    runs = [run["top1"] for run in baseline.get("runs", []) if "top1" in run]
    mean = baseline.get("mean", statistics.fmean(runs) if runs else None)
    spread = baseline.get("std", statistics.stdev(runs) if len(runs) > 1 else None)
    return mean, spread, len(runs)


def _settings(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = metrics.get("machine", {})
    where = [str(machine[key]) for key in ("name", "device") if key in machine][:1]
    where += [f"{machine['cores']} cores"] if "cores" in machine else []
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


def _title(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    tag = metrics.get("tag") or config["pretrained_cfg"].get("tag")
    return f"{config['architecture']}.{tag}" if tag else config["architecture"]


def _package(architecture: str) -> str | None:
    """The package that has to be imported before timm knows the architecture; none where timm brings it."""
    if not is_model(architecture):
        return None
    package = model_entrypoint(architecture).__module__.split(".")[0]
    return None if package == "timm" else package


def _present(value: Any) -> Any:
    """The same without nulls, numbers that are not finite, and what is empty after that."""
    if isinstance(value, Mapping):
        cleaned = {key: _present(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None and item != {}}
    if isinstance(value, list):
        return [item for item in map(_present, value) if item is not None]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cell(value: Any) -> str:
    """Text that cannot break out of a table's cell."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")
