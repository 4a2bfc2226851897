"""The report of one or several runs: one HTML page that needs no other file."""

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from frskd_timm.errors import UserError
from frskd_train.disk import write_atomically
from frskd_train.report.charts import Line, describe, line_chart
from frskd_train.report.groups import Group, Run, group_runs
from frskd_train.report.verdict import verdict

PAGE = "report.html"
_DETAILED = 8  # groups of runs that are shown in detail, or fewer if the page would be too large
_LARGEST = 4_800_000  # characters of a page; most take one byte


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page about finished runs; runs that differ only in the seed are shown as one with mean and spread.

    Raises:
        UserError: A folder does not hold a finished run, the runs are of different tasks, or the page cannot be
            written.
    """
    runs = [Run.read(folder) for folder in dict.fromkeys(folders)]
    if len({run.metrics.task for run in runs}) > 1:
        raise UserError("The runs are of different tasks (classification and segmentation): make one report for each.")
    groups = group_runs(runs)
    loader = jinja2.PackageLoader("frskd_train.report", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["describe"] = describe
    template, facts = environment.get_template("page_template.html"), _facts(runs, groups)
    for detailed in range(min(len(groups), _DETAILED), 0, -1):
        text = template.render(groups=groups, detailed=groups[:detailed], **facts)
        if len(text) < _LARGEST:
            break
    try:
        write_atomically(output, text)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another file with --output.") from None
    return output


def _facts(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, Any]:
    """Return the variables of the template that concern all runs."""
    form = groups[0].form
    values = [value for group in groups for value in group.values(form.score)]
    low, high = (math.floor(min(values)), math.ceil(max(values) + 0.01)) if values else (0, 100)
    lines = [
        Line(group.label if number == 0 else "", place % 6, run.series(form.score), "thin" if number else "")
        for place, group in enumerate(groups)
        for number, run in enumerate(group.runs)
    ]
    models, data = (dict.fromkeys(names) for names in zip(*((r.metrics.model, r.data) for r in runs), strict=True))
    return {
        "title": f"{' and '.join(models)} on {' and '.join(data)}",
        "subtitle": runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}",
        "low": low,
        "high": high,
        "place": lambda value: round(4 + 92 * (value - low) / (high - low), 1),
        "form": form,
        "verdicts": [(group.label, *verdict(group, groups)) for group in groups],
        "comparison": line_chart(form.label, lines, "epoch", unit="%") if len(runs) > 1 else None,
        "version": version("frskd-timm"),
    }
