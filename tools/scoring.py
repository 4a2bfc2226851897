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
from frskd_train.data import ValidationData
from frskd_train.data.source import SAMPLE_NAME
from frskd_train.report.baseline import read_baseline
from frskd_train.report.evaluation import Evaluation
from frskd_train.report.metrics import Metrics, SeedRuns
from frskd_train.scoring.scores import Scorer, refuse_unscored
from frskd_train.settings import DataSettings, FitSettings, Settings
from frskd_train.tasks.classification import ClassificationJob

CORRUPTED = 1000  # images that are scored under each corruption


def load(model: nn.Module, data: DataSettings) -> ValidationData:
    """Load validation rows for a model; raise UserError if they do not fit it."""
    return ClassificationJob.load_validation(data, FitSettings(), model)


def evaluate(model: nn.Module, data: DataSettings, accelerator: Accelerator, name: str = "student") -> Evaluation:
    """Score a model on validation rows; raise UserError if its classes are others or no image can be read."""
    loaded = load(model, data)
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
    loaded = load(model, data)
    split = loaded.val.split
    rows = split.targets.subset(split.name, split.rows, min(CORRUPTED, len(split)))  # always the same ones
    loaded = replace(loaded, val=replace(loaded.val, source=replace(split, rows=rows)))
    scorer = Scorer(model.to(accelerator.device).eval(), accelerator, 256)
    found = refuse_unscored(scorer.evaluate(loaded, "student", corrupted=True), "student")
    means = {name: statistics.mean(row["top1"] for row in rows) for name, rows in found.corruptions.items()}
    top1 = {name: round(score, 2) for name, score in {"none": found.top1, **means}.items()}
    return {"images": found.images, "top1": top1}


def read_runs(
    folders: Sequence[str | Path], settings: Settings, metrics: Metrics, method: str, flag: str
) -> SeedRuns | None:
    """Read the scores that finished runs recorded; None without any.

    Args:
        folders: Their folders.
        settings: The recipe of the weights.
        metrics: Those of the weights, whose number of processes, changes and data the runs must share.
        method: The method of the runs; if it is that of the weights, they need other seeds.
        flag: The flag that names them, for errors.

    Raises:
        UserError: A run has another recipe, is given twice, or has the seed of another one.
    """
    if not folders:
        return None
    common = metrics.machine.processes, metrics.dataset.fingerprint, metrics.changes
    found = read_baseline(folders, settings, "top1", method, flag, *common)
    seeds = [metrics.seed] * (method == metrics.method) + [run["seed"] for run in found.runs]
    if len(found.runs) < len(folders) or len(set(seeds)) < len(seeds):
        others = " other than that of the weights" if method == metrics.method else ""
        raise UserError(f"{flag} needs runs with different seeds{others}, each once; the seeds are {seeds}.")
    return found


def score_runs(
    folders: Sequence[str | Path], found: SeedRuns, data: DataSettings, accelerator: Accelerator
) -> SeedRuns:
    """Return runs with their scores measured like the student's."""
    runs = [dict(run) for run in found.runs]
    for folder, run in zip(folders, runs, strict=True):
        run["top1"] = tidy(evaluate(load_student(Path(folder) / "student"), data, accelerator))["top1"]
    return SeedRuns.of(runs, "top1", found.method)


def added(recorded: SeedRuns | None, found: SeedRuns) -> SeedRuns:
    """Return the recorded runs and the runs found, of each seed the latter."""
    runs = {run["seed"]: run for run in [*(recorded.runs if recorded else []), *found.runs]}
    return SeedRuns.of(list(runs.values()), "top1", found.method)


def own_run(metrics: Metrics, top1: float) -> SeedRuns:
    """Return the run of the weights, whose file scores `top1` percent."""
    return SeedRuns.of([{"seed": metrics.seed, "top1": top1}], "top1", metrics.method)
