"""Scores of weights for their cards, in float32: on whole datasets, on the included sample, and on corrupted images."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.export.load import load_student
from frskd_train.data.source import SAMPLE_NAME
from frskd_train.report.baseline import read_baseline
from frskd_train.report.evaluation import Evaluation
from frskd_train.report.metrics import Metrics, SeedRuns
from frskd_train.scoring.scores import Scorer, refuse_unscored
from frskd_train.settings import DataSettings, FitSettings, Settings
from frskd_train.tasks.classification import ClassificationJob

CORRUPTED = 1000  # images that are scored under each corruption


def evaluate(model: nn.Module, data: DataSettings, accelerator: Accelerator, name: str = "student") -> Evaluation:
    """Score a model on validation rows; raise UserError if its classes are others or no image can be read."""
    loaded = ClassificationJob.load_validation(data, FitSettings(), model)
    return refuse_unscored(Scorer(model.to(accelerator.device).eval(), accelerator, 256).evaluate(loaded, name), name)


def tidy(found: Evaluation) -> dict[str, float]:
    """Return the scores that metrics.json has of each dataset."""
    return {name: round(getattr(found, name), 4) for name in ("top1", "top5", "loss")}


def scores_on(dataset: str, model: nn.Module, accelerator: Accelerator) -> dict[str, Any]:
    """Measure scores on another dataset, under the name of its folder."""
    found = evaluate(model, DataSettings(dataset), accelerator)
    return {"dataset": Path(dataset).name, "images": found.images, **tidy(found)}


def sample_scores(model: nn.Module, accelerator: Accelerator) -> dict[str, Any] | None:
    """Measure scores on the test images in the repository; return None for a model with other classes."""
    try:
        return scores_on(SAMPLE_NAME, model, accelerator)
    except UserError:
        return None


def corruption_scores(model: nn.Module, data: DataSettings, accelerator: Accelerator) -> dict[str, Any]:
    """Measure top-1 on corrupted validation images, for each corruption the mean over its severities."""
    data = replace(data, data_mode="stream")  # images in memory are resized already, and could not be chosen
    loaded = ClassificationJob.load_validation(data, FitSettings(), model)
    split = loaded.val.split
    rows = split.targets.subset(split.name, split.rows, min(CORRUPTED, len(split)))  # always the same ones
    loaded = replace(loaded, val=replace(loaded.val, source=replace(split, rows=rows)))
    scorer = Scorer(model.to(accelerator.device).eval(), accelerator, 256)
    found = refuse_unscored(scorer.evaluate(loaded, "student", corrupted=True), "student")
    means = {name: statistics.mean(row["top1"] for row in rows) for name, rows in found.corruptions.items()}
    top1 = {name: round(score, 2) for name, score in {"none": found.top1, **means}.items()}
    return {"images": found.images, "top1": top1}


def compared(metrics: Metrics) -> dict[str, Any]:
    """Return what runs have to share with the one that made the weights, beside its recipe; see `read_baseline`."""
    facts = {"processes": metrics.machine.processes, "changes": metrics.changes}
    return facts | {"fingerprint": metrics.dataset.fingerprint}


def score_runs(
    folders: Sequence[str | Path], found: SeedRuns, data: DataSettings, accelerator: Accelerator
) -> SeedRuns:
    """Return runs with their scores measured like the student's."""
    if len(folders) > len(found.runs):
        raise UserError("A run was given twice: name each run once.")
    runs = [dict(run) for run in found.runs]
    for folder, run in zip(folders, runs, strict=True):
        run["top1"] = tidy(evaluate(load_student(Path(folder) / "student"), data, accelerator))["top1"]
    return SeedRuns.of(runs, "top1", found.method)


def repeated(
    folders: Sequence[str | Path],
    settings: Settings,
    metrics: Metrics,
    top1: float,
    data: DataSettings,
    accelerator: Accelerator,
) -> SeedRuns:
    """Return the scores of a run, which has `top1` percent, and of runs of its recipe with other seeds.

    Raises:
        UserError: A run has another recipe, or the seed of another one.
    """
    others = read_baseline(folders, settings, "top1", metrics.method, "--repeats", **compared(metrics))
    seeds = [metrics.seed, *(run["seed"] for run in others.runs)]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--repeats needs runs with other seeds than the weights, each once; the seeds are {seeds}.")
    others = score_runs(folders, others, data, accelerator)
    return SeedRuns.of([{"seed": metrics.seed, "top1": top1}, *others.runs], "top1", metrics.method)
