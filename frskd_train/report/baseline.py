"""Cross-entropy runs as the baseline of a run, and the gain over them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frskd_timm.errors import UserError
from frskd_timm.export.folder import METRICS
from frskd_train.errors import SettingsError
from frskd_train.report.metrics import Metrics, SeedRuns, read_metrics
from frskd_train.settings import Settings, flat
from frskd_train.settings.parse import read_recipe
from frskd_train.settings.recipe import SETTINGS, comparable, differences

# 97.5% quantiles of Student's t distribution for 1, 2, ... degrees of freedom; the last one is used for more as well.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


@dataclass(frozen=True)
class Gain:
    """Difference of the mean scores of FRSKD and of the baseline in points, with its standard error."""

    difference: float
    error: float | None  # of the runs, or if these do not differ, of the validation images; None where neither is known
    runs: int
    baseline_runs: int
    freedom: float = 1  # degrees of freedom of the error
    of_images: bool = False  # whether the error is that of the validation images

    @classmethod
    def of(cls, metrics: Metrics, score: str) -> "Gain | None":
        """Compare a run, or all runs of its recipe, with its baseline; None without one."""
        if metrics.baseline is None or metrics.student is None or metrics.student.get(score) is None:
            return None
        own = [run[score] for run in metrics.repeats.runs] if metrics.repeats else [metrics.student[score]]
        others = [run[score] for run in metrics.baseline.runs]
        return cls.between(own, others, images=metrics.classified_images)

    @classmethod
    def between(cls, own: Sequence[float], others: Sequence[float], images: int = 0) -> "Gain":
        """Compare the scores of runs in percent; `images` were classified by each, 0 if the score is no accuracy."""
        error, freedom, of_images = None, 1.0, False
        if min(len(own), len(others)) > 1:  # Welch's test: the methods may differ in variance and number of runs
            parts = [statistics.variance(scores) / len(scores) for scores in (own, others)]
            error = math.sqrt(sum(parts))
            below = sum(part**2 / (len(scores) - 1) for part, scores in zip(parts, (own, others), strict=True))
            freedom = sum(parts) ** 2 / below if below else 1.0
        if not error and images:  # a single run, or equal scores by chance
            of_images = True
            shares = [min(max(statistics.mean(scores) / 100, 0.005), 0.995) for scores in (own, others)]
            error = 100 * math.sqrt(sum(share * (1 - share) for share in shares) / images)
        return cls(
            statistics.mean(own) - statistics.mean(others), error or None, len(own), len(others), freedom, of_images
        )

    @property
    def margin(self) -> float | None:
        """Difference that chance explains with 95% probability, in points (Student's t); None where unknown."""
        if self.error is None or self.of_images:
            return self.error and 1.96 * self.error
        return _T[min(int(self.freedom), len(_T)) - 1] * self.error


def read_baseline(
    folders: Sequence[str | Path],
    settings: Settings,
    score: str,
    method: str = "ce",
    flag: str = "--baseline",
    processes: int = 1,
    fingerprint: str | None = None,
    changes: Sequence[str] = (),
) -> SeedRuns:
    """Read the scores of the runs in `flag`, of the same data, model and recipe as `settings` apart from the seed.

    `processes` is the number of processes of the run with these settings; the batches of all are compared.
    `fingerprint` is that of its data, if known. `changes` are the settings that changed during that run; the others
    must have changed in the same way at the same updates.

    Raises:
        UserError: A folder does not contain a finished run of this method with these settings.
    """
    runs = []
    own = comparable(flat(settings), processes)
    for folder in map(Path, folders):
        try:
            metrics = read_metrics(folder / METRICS)
        except UserError as error:
            raise UserError(f"{flag}: {error} Give the folder of a finished run, or {flag} without a value.") from None
        if metrics.method != method:
            raise UserError(f"{flag} {folder} was trained with --method {metrics.method}, not {method}.")
        if metrics.changes != list(changes):
            whose = "its settings" if metrics.changes else "only the settings of the other run"
            why = f"{whose} changed: {(metrics.changes or changes)[0]}"
            raise UserError(f"{flag} {folder} cannot be compared, because {why}")
        if metrics.student is None or metrics.student.get(score) is None:
            raise UserError(f"{flag} {folder} has no score '{score}'.")
        if None not in (fingerprint, metrics.dataset.fingerprint) and metrics.dataset.fingerprint != fingerprint:
            raise UserError(f"{flag} {folder} was trained on other data: images, labels or classes differ.")
        try:
            other = read_recipe(str(folder / SETTINGS))
        except SettingsError as error:
            raise UserError(f"{flag} {folder} cannot be compared: {error}") from None
        others = comparable(flat(other), metrics.machine.processes)
        different = differences(own, others)
        if "dataset" in different and Path(own["dataset"]).resolve() == Path(others["dataset"]).resolve():
            different.remove("dataset")
        if different:
            named = ", ".join(f"{name} is {others[name]} there and {own[name]} here" for name in different[:5])
            raise UserError(f"{flag} {folder} was trained with another recipe: {named}.")
        runs.append({"seed": metrics.seed, score: metrics.student[score]})
    return SeedRuns.of(runs, score, method)


def mean_and_std(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Return mean ± standard deviation for people; without ± for one value, empty for none."""
    if not values:
        return ""
    text = form.format(statistics.mean(values))
    return text if len(values) == 1 else f"{text} ± {form.format(statistics.stdev(values))}"


def count_seeds(scores: Sequence[float]) -> str:
    """Return the number of seeds for people."""
    return f"{len(scores)} seed{'s' if len(scores) > 1 else ''}"
