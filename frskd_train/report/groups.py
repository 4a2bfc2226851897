"""Runs as the report shows them: those that differ only in the seed are one group."""

import csv
import json
import math
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.folder import METRICS, RECIPE, STUDENT
from frskd_timm.export.load import ExportedStudent, read_student
from frskd_train.errors import SettingsError
from frskd_train.report.baseline import mean_and_std
from frskd_train.report.charts import Line, data_uri, describe, line_chart, read_picture
from frskd_train.report.curves import sort_terms, term_label
from frskd_train.report.evaluation import EVALUATION, read_evaluation
from frskd_train.report.metrics import Metrics, read_metrics
from frskd_train.report.predictions import Predictions
from frskd_train.report.score_names import SCORE_NAMES
from frskd_train.settings import MethodSettings, Settings, declared, default_settings, flat
from frskd_train.settings.constraints import PRIVATE
from frskd_train.settings.recipe import SETTINGS, comparable, read_yaml

METHOD = set(declared(MethodSettings))
COUNTED = "classes", "training images", "validation images"
_WIDEST = 1600  # pixels of a picture


@dataclass(frozen=True)
class Run:
    """What the folder of a finished run holds."""

    folder: Path
    metrics: Metrics
    student: ExportedStudent
    rows: list[dict[str, str]]
    settings: dict[str, Any]  # of the published recipe, without local paths
    implied: frozenset[str]  # settings that the run chose itself
    paths: dict[str, str]  # the local paths among the settings, by name
    predictions: Predictions | None

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run; raise UserError if the folder does not hold a finished one."""
        metrics, student = read_metrics(folder / METRICS), read_student(folder / STUDENT)
        try:
            rows = list(csv.DictReader((folder / "summary.csv").read_text(encoding="utf-8").splitlines()))
            rows = rows[: metrics.epoch]  # it may have been continued since
            settings = flat(default_settings(metrics.task)) | read_yaml(str(student.path / RECIPE))
            own = read_yaml(str(folder / SETTINGS))
        except (OSError, UnicodeDecodeError, csv.Error, SettingsError) as error:
            raise UserError(f"{folder} is not the folder of a finished run ({first_line(error)}).") from None
        evaluated = (folder / EVALUATION).is_file()  # not if no image could be scored
        predictions = Predictions(read_evaluation(folder / EVALUATION), folder) if evaluated else None
        paths = {name: str(Path(str(own[name])).resolve()) for name in own if own[name] and settings.get(name) == ""}
        paths.pop("dataset", None)  # its name and sizes tell it apart, wherever it is
        implied = frozenset(name for name in settings if own.get(name) is None)
        return cls(folder, metrics, student, rows, settings, implied, paths, predictions)

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.metrics.dataset.name

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of classes, training images and validation images, which tell datasets of the same name apart."""
        dataset = self.metrics.dataset
        return dataset.num_classes, dataset.train_images, dataset.val_images

    @property
    def data(self) -> tuple[Any, ...]:
        """What tells the data of two runs apart; the fingerprint is None for runs of older versions."""
        return self.dataset, self.counts, self.metrics.dataset.fingerprint

    def recipe(self, without: Collection[str] = ()) -> dict[str, Any]:
        """Return the settings that two runs have to share to differ only in the seed, apart from some.

        The batch size is that of all processes. Of the settings of the method, cross-entropy has its name only.
        """
        found = comparable(self.settings | self.paths, self.metrics.machine.processes)
        without = {*without, *(METHOD - {"method"} if self.metrics.method == "ce" else ())}
        return {name: value for name, value in found.items() if name not in without}

    def series(self, column: str) -> list[tuple[float, float]]:
        """Return the (epoch, value) pairs of a column of `summary.csv` that hold a finite number."""
        found = []
        for row in self.rows:
            with suppress(KeyError, TypeError, ValueError):
                found.append((float(row["epoch"]), float(row[column])))
        return [point for point in found if math.isfinite(point[1])]

    def picture(self, name: str) -> str | None:
        """Return a picture of the run as a data URI, if there is one."""
        picture = read_picture(self.folder / name)
        if picture is None:
            return None
        picture.thumbnail((_WIDEST, _WIDEST * 4))
        return data_uri(picture)


class Group:
    """Runs that differ only in the seed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.run = runs[0]
        self.metrics = runs[0].metrics
        self.score_names = SCORE_NAMES[self.metrics.task]
        self.method = {"frskd": "FRSKD", "ce": "cross-entropy"}[self.metrics.method]
        self.label = self.method  # the page adds the settings in which groups differ

    @property
    def minutes(self) -> str:
        """Mean and spread of the training time."""
        return mean_and_std([run.metrics.seconds / 60 for run in self.runs], "{:.1f}")

    def values(self, score: str, network: str = "student") -> list[float]:
        """Return a score of each run that has it."""
        found = [(getattr(run.metrics, network) or {}).get(score) for run in self.runs]
        return [value for value in found if value is not None]

    @property
    def baseline_scores(self) -> list[float]:
        """The scores of the cross-entropy runs that any of the runs was compared with, each once."""
        given = [run for member in self.runs if member.metrics.baseline for run in member.metrics.baseline.runs]
        return [run[self.score_names.score] for place, run in enumerate(given) if run not in given[:place]]

    def changed(self) -> list[tuple[str, Any, Any]]:
        """Return name, value and default of the settings that differ from the defaults and that the run was given."""
        defaults, facts = flat(default_settings(self.metrics.task)), declared(Settings)
        return [
            (name, value, defaults.get(name))
            for name, value in self.run.settings.items()
            if value not in (defaults.get(name), "")  # "": a path left out
            and name not in self.run.implied
            and PRIVATE not in facts.get(name, ())
        ]

    def charts(self) -> list[dict[str, Any] | None]:
        """Return the charts of losses and scores over the epochs; None for one without a number."""
        series, score = self.run.series, self.score_names.score
        columns = sort_terms(name for row in self.run.rows for name in row)
        terms = [Line(term_label(name), colour % 6, series(name)) for colour, name in enumerate(columns)]
        terms.append(Line("validation, student", 0, series("val_loss"), "dashed"))
        scores = [Line("student", 0, series(score)), Line("self-teacher", 1, series(f"teacher_{score}"))]
        return [
            line_chart("Loss terms as weighted in training", terms, log=True),
            line_chart(self.score_names.label, scores, unit="%"),
        ]


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Put runs that differ only in the seed into one group and label the groups by what differs between them."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.data, run.recipe(), run.metrics.changes], sort_keys=True, default=str)
        key = json.dumps(json.loads(key, parse_int=float))  # some numbers were written as 30, others as 30.0
        found.setdefault(key, []).append(run)
    for members in found.values():  # a run that was repeated exactly adds no evidence
        members[:] = {(run.metrics.seed, str(run.metrics.student)): run for run in members}.values()
    groups = [Group(members) for members in found.values()]
    data = {group.run.data for group in groups}
    recipes = [(group.metrics.method, group.run.recipe()) for group in groups]
    for group, (method, own) in zip(groups, recipes, strict=True):
        differing = []
        for name in own:  # settings of the method are compared between runs of the same method only
            if name == "dataset":  # whose name and sizes are in the label
                continue
            others = (recipe for other, recipe in recipes if name not in METHOD or other == method)
            if any(other.get(name) != own[name] for other in others):
                paths = {other.run.paths.get(name, "") for other in groups}
                value = _tail(own[name], paths) if name in group.run.paths else own[name]
                differing.append(f"{name} {describe(value)}")
        data_label = [group.run.dataset] if len(data) > 1 else []
        for place, unit in enumerate(COUNTED):
            if len({counts[place] for name, counts, _ in data if name == group.run.dataset}) > 1:
                data_label.append(f"{group.run.counts[place]:,} {unit}")
        if len({mark for *alike, mark in data if alike == [*group.run.data[:2]]}) > 1:
            data_label.append(f"data {group.run.data[2]}")
        if group.metrics.changes:
            differing.append("settings changed during the run")
        group.label = ", ".join([group.method, *data_label, *differing])
    return groups


def _tail(path: str, others: Collection[str]) -> str:
    """Return the last components of a path, as many as tell it apart from the others."""
    parts = Path(path).parts
    for count in range(1, len(parts)):
        if not any(Path(other).parts[-count:] == parts[-count:] for other in others if other != path):
            return "/".join(parts[-count:])
    return path
