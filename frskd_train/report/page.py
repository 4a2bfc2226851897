"""The report of one or several runs: one HTML page that needs no other file."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from frskd_timm.errors import UserError
from frskd_train.disk import write_atomically
from frskd_train.report.charts import Line, line_chart
from frskd_train.report.groups import Run, group_runs
from frskd_train.report.verdict import verdict

PAGE = "report.html"
_PICTURED = 8  # groups of runs that are shown in detail; more would make the page too large


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page about finished runs; runs that differ only in the seed are shown as one with mean and spread.

    Raises:
        UserError: A folder does not hold a finished run, the runs are of different tasks, or the page cannot be
            written.
    """
    runs = [Run.read(folder) for folder in folders]
    tasks = {run.metrics.task for run in runs}
    if len(tasks) > 1:
        raise UserError("The runs are of different tasks (classification and segmentation): make one report for each.")
    groups = group_runs(runs)
    form = groups[0].form
    comparison = None
    if len(runs) > 1:
        lines = [
            Line(group.label if number == 0 else "", place % 6, run.series(form.score), "" if number == 0 else "thin")
            for place, group in enumerate(groups)
            for number, run in enumerate(group.runs)
        ]
        comparison = line_chart(form.columns[form.score][0].removesuffix(" (%)"), lines, "epoch", unit="%")
    loader = jinja2.PackageLoader("frskd_train.report", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["describe"] = describe
    values = [value for group in groups for value in group.values(form.score)]
    low, high = (math.floor(min(values)), math.ceil(max(values) + 0.01)) if values else (0, 100)
    metrics = runs[0].metrics
    text = environment.get_template("page_template.html").render(
        title=f"{' and '.join(dict.fromkeys(run.metrics.model for run in runs))} on {metrics.dataset.name}",
        subtitle=runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}",
        low=low,
        high=high,
        place=lambda value: round(4 + 92 * (value - low) / (high - low), 1),
        groups=groups,
        detailed=groups[:_PICTURED],
        form=form,
        verdicts=[verdict(group, groups) for group in groups],
        comparison=comparison,
        version=version("frskd-timm"),
    )
    try:
        write_atomically(output, text)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another file with --output.") from None
    return output


def describe(value: Any) -> str:
    """Return a setting's value for people."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={each}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
