"""Cross-entropy runs as the baseline of a run, and the gain over them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frskd_timm.errors import UserError
from frskd_train.errors import SettingsError
from frskd_train.parse import read_recipe
from frskd_train.recipe import differences
from frskd_train.report.metrics import Metrics, SeedRuns, read_metrics
from frskd_train.settings import Settings, flat


@dataclass(frozen=True)
class Gain:
    """Difference of the mean scores of FRSKD and of the baseline in points, with its standard error."""

    difference: float
    error: float | None  # of the runs, or with a single run of the validation images; None where neither is known
    runs: int
    baseline_runs: int

    @property
    def of_images(self) -> bool:
        """Whether the error is that of the validation images, because a method has a single run."""
        return min(self.runs, self.baseline_runs) == 1

    @classmethod
    def of(cls, metrics: Metrics, score: str) -> "Gain | None":
        """Compare a run, or all runs of its recipe, with its baseline; None without one."""
        if metrics.baseline is None or metrics.student is None or metrics.student.get(score) is None:
            return None
        own = [run[score] for run in metrics.repeats.runs] if metrics.repeats else [metrics.student[score]]
        others = [run[score] for run in metrics.baseline.runs]
        error = None
        if min(len(own), len(others)) > 1:
            error = math.sqrt(sum(statistics.variance(scores) / len(scores) for scores in (own, others)))
        elif score == "top1" and metrics.dataset.val_images:
            shares = [statistics.mean(scores) / 100 for scores in (own, others)]
            error = 100 * math.sqrt(sum(share * (1 - share) for share in shares) / metrics.dataset.val_images)
        return cls(statistics.mean(own) - statistics.mean(others), error, len(own), len(others))


def read_baseline(
    folders: Sequence[str | Path],
    settings: Settings,
    score: str,
    method: str = "ce",
    flag: str = "--baseline",
    processes: int = 1,
) -> SeedRuns:
    """Read the scores of the runs in `flag`, of the same data, model and recipe as `settings` apart from the seed.

    `processes` is the number of processes of the run with these settings; the batches of all are compared.

    Raises:
        UserError: A folder does not contain a finished run of this method with these settings.
    """
    runs = []
    own = flat(settings)
    own["batch_size"] *= processes
    for folder in map(Path, folders):
        metrics = read_metrics(folder / "metrics.json")
        if metrics.method != method:
            raise UserError(f"{flag} {folder} was trained with --method {metrics.method}, not {method}.")
        if metrics.student is None or metrics.student.get(score) is None:
            raise UserError(f"{flag} {folder} has no score '{score}'.")
        try:
            other = read_recipe(str(folder / "config.yaml"))
        except SettingsError as error:
            raise UserError(f"{flag} {folder} cannot be compared: {error}") from None
        others = flat(other)
        others["batch_size"] *= metrics.machine.processes
        different = [name for name in differences(settings, other) if name != "batch_size"]
        if others["batch_size"] != own["batch_size"]:
            different.append("batch_size")
        if "dataset" in different and Path(own["dataset"]).resolve() == Path(others["dataset"]).resolve():
            different.remove("dataset")
        if different:
            named = ", ".join(f"{name} is {others[name]} there and {own[name]} here" for name in different[:5])
            raise UserError(f"{flag} {folder} was trained with another recipe: {named}.")
        runs.append({"seed": metrics.seed, score: metrics.student[score]})
    return SeedRuns.of(runs, score, method)
