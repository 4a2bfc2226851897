"""The zoo's own card, `MODEL_CARD.md`, from the registry and the results: `python -m frskd_timm.hub.zoo`."""

import csv
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard, ModelCardData

import frskd_timm
from frskd_timm.hub.card import baseline_scores, tidy

# Columns of the results, timm's own first.
COLUMNS = ("model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "dataset", "baseline_top1")
ROOT = Path(frskd_timm.__file__).parents[1]
RESULTS = ROOT / "results" / "results.csv"
CARD = ROOT / "MODEL_CARD.md"


def results_row(metrics: Mapping[str, Any]) -> dict[str, str]:
    """One run's line of the results, in the form of timm's; a figure that is missing stays empty."""
    scores = metrics.get("student") or {}
    baseline = baseline_scores(metrics.get("baseline") or {})[0]
    row: dict[str, Any] = {
        "model": f"{metrics['model']}.{metrics['tag']}",
        "dataset": (metrics.get("dataset") or {}).get("name"),
        "param_count": f"{metrics['param_count'] / 1e6:.2f}" if metrics.get("param_count") else None,
        "img_size": metrics.get("img_size"),
        "baseline_top1": None if baseline is None else f"{baseline:.2f}",
    }
    for name in ("top1", "top5"):
        if scores.get(name) is not None:
            row |= {name: f"{scores[name]:.2f}", f"{name}_err": f"{100 - scores[name]:.2f}"}
    return {column: "" if row.get(column) is None else str(row[column]) for column in COLUMNS}


def zoo_card(results: Sequence[Mapping[str, str]]) -> ModelCard:
    """The card of all students; their weights are those in the results, and none that is not there.

    Args:
        results: Rows with the columns `COLUMNS`.
    """
    data = ModelCardData(
        license="apache-2.0",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "frskd", "self-distillation", "arxiv:2103.08273"],
    )
    template = files("frskd_timm.hub").joinpath("zoo_template.md").read_text(encoding="utf-8")
    students = [_student(name, results) for name in timm.list_models("*_frskd")]
    return tidy(ModelCard.from_template(data, template_str=template, students=students, results=results))


def read_results(path: Path = RESULTS) -> list[dict[str, str]]:
    """Rows of the results; none where no student has been published."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _student(name: str, results: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    with torch.device("meta"):  # counts without computing initial weights
        model = timm.create_model(name, num_classes=1000)
    tags = [row["model"].split(".", 1)[1] for row in results if row["model"].split(".")[0] == name]
    return {
        "name": name,
        "architecture": frskd_timm.models.stock_name(name) or name,
        "stock": frskd_timm.models.stock_name(name) is not None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tags": ", ".join(f"`{tag}`" for tag in tags),
    }


if __name__ == "__main__":
    zoo_card(read_results()).save(CARD)
    print(f"Wrote {CARD}")
