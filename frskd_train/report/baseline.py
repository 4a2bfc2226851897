"""Cross-entropy runs as the baseline of a run."""

from collections.abc import Sequence
from pathlib import Path

from frskd_timm.errors import UserError
from frskd_train.constraints import FREE
from frskd_train.errors import SettingsError
from frskd_train.parse import read_recipe
from frskd_train.recipe import differences
from frskd_train.report.metrics import Baseline, read_metrics
from frskd_train.settings import Settings, declared, flat


def read_baseline(folders: Sequence[str | Path], settings: Settings, score: str) -> Baseline:
    """Read the scores of `--method ce` runs with the same data, model and recipe as `settings`, apart from the seed.

    Raises:
        UserError: A folder does not contain a finished cross-entropy run with these settings.
    """
    runs = []
    own, facts = flat(settings), declared(Settings)
    for folder in map(Path, folders):
        metrics = read_metrics(folder / "metrics.json")
        if metrics.method != "ce":
            raise UserError(f"--baseline {folder} was trained with --method {metrics.method}, not ce.")
        if metrics.student is None or metrics.student.get(score) is None:
            raise UserError(f"--baseline {folder} has no score '{score}'.")
        try:
            other = read_recipe(str(folder / "config.yaml"))
        except SettingsError as error:
            raise UserError(f"--baseline {folder} cannot be compared: {error}") from None
        others = flat(other)
        different = [name for name in differences(settings, other) if FREE not in facts[name]]
        if "dataset" in different and Path(own["dataset"]).resolve() == Path(others["dataset"]).resolve():
            different.remove("dataset")
        if different:
            named = ", ".join(f"{name} is {others[name]} there and {own[name]} here" for name in different[:5])
            raise UserError(f"--baseline {folder} was trained with another recipe: {named}.")
        runs.append({"seed": metrics.seed, score: metrics.student[score]})
    return Baseline.of(runs, score)
