"""The report of one or several runs: one HTML page that needs no other file."""

import math
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

import frskd_timm
from frskd_timm.errors import UserError
from frskd_train.report.baseline import Gain, count_seeds, mean_and_std
from frskd_train.report.charts import Line, describe, line_chart
from frskd_train.report.groups import METHOD, Group, Run, group_runs
from frskd_train.run.progress import duration
from frskd_train.system.disk import write_atomically

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
    score_names = groups[0].score_names
    values = [value for group in groups for value in group.values(score_names.score)]
    low, high = (math.floor(min(values)), math.ceil(max(values) + 0.01)) if values else (0, 100)
    lines = [
        Line(group.label if number == 0 else "", place % 6, run.series(score_names.score), "thin" if number else "")
        for place, group in enumerate(groups)
        for number, run in enumerate(group.runs)
    ]
    models, data = dict.fromkeys(run.metrics.model for run in runs), dict.fromkeys(run.dataset for run in runs)
    names = [run.folder.resolve().name for run in runs]
    content = {
        "title": f"{' and '.join(models)} on {' and '.join(data)}",
        "subtitle": names[0] if len(runs) == 1 else f"{len(runs)} runs: {', '.join(names)}",
        "low": low,
        "high": high,
        "place": lambda value: round(4 + 92 * (value - low) / (high - low), 1),
        "score_names": score_names,
        "groups": groups,
        "verdicts": [(group.label, *_verdict(group, groups)) for group in groups],
        "comparison": line_chart(score_names.label, lines, unit="%") if len(runs) > 1 else None,
        "version": frskd_timm.__version__,
    }
    for detailed in range(min(len(groups), _DETAILED), 0, -1):
        text = _template().render(content, detailed=groups[:detailed])
        if len(text) < _LARGEST:
            break
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, text)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another file with --output.") from None
    return output


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("frskd_train.report", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {function.__name__: function for function in (count_seeds, describe, duration, mean_and_std)}
    return environment.get_template("page_template.html")


def _verdict(group: Group, groups: Sequence[Group]) -> tuple[str, str]:
    """Return the tone (better, worse, same, none) and the text of the comparison of a group with its baseline."""
    own, other = group.values(group.score_names.score), _baseline_scores(group, groups)
    if not own:
        return "none", "The student was not scored: no validation image could be read."
    if group.metrics.method == "ce":
        return "none", ""
    if not other and group.metrics.changes:
        return "none", "Settings were changed when the run was resumed, and no baseline has the same changes."
    if not other:
        return "none", (
            "There is no baseline to compare with: train one with --method ce and the same settings, and give both "
            "folders to frskd report."
        )
    gain = Gain.between(own, other, images=group.metrics.classified_images)
    difference, margin = gain.difference, gain.margin
    better = "better" if difference >= 0 else "worse"
    text = (
        f"FRSKD is {abs(difference):.2f} points {better} in {group.score_names.label} than "
        f"cross-entropy with the same recipe ({statistics.mean(own):.2f} with {count_seeds(own)}, "
        f"{statistics.mean(other):.2f} with {count_seeds(other)})."
    )
    if margin is None:
        return "same", f"{text} More seeds are needed to tell whether this is more than chance."
    images = f"the choice of {group.metrics.dataset.val_images:,} test images"
    cause = images if gain.of_images else "the choice of seeds"
    inside = abs(difference) <= margin
    text += f" That is {'within' if inside else 'more than'} the {margin:.2f} points that {cause} can explain."
    return "same" if inside else "better" if difference > 0 else "worse", text


def _baseline_scores(group: Group, groups: Sequence[Group]) -> list[float]:
    """Return the scores of cross-entropy runs of the same recipe: among the groups, else those given to the run."""
    for other in groups:
        same = other.run.data == group.run.data and other.metrics.changes == group.metrics.changes
        if same and other.run.recipe(METHOD) == group.run.recipe(METHOD) and other.metrics.method == "ce":
            return other.values(group.score_names.score)
    return group.baseline_scores
