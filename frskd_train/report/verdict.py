"""Comparison of a group of runs with cross-entropy runs of the same recipe."""

import statistics
from collections.abc import Sequence

from frskd_train.report.groups import METHOD, Group, count_seeds
from frskd_train.report.metrics import Metrics

# 97.5% quantiles of Student's t distribution for 1, 2, ... degrees of freedom; the last stands for more.
_T = (12.7, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.2)


def verdict(group: Group, groups: Sequence[Group]) -> tuple[str, str]:
    """Return the tone (better, worse, same, none) and the text of the comparison of a group with its baseline."""
    own, other = group.values(group.form.score), _baseline_scores(group, groups)
    if not own or group.metrics.method == "ce":
        return "none", "" if own else "The student was not scored: no validation image could be read."
    if not other:
        return "none", (
            "There is no baseline to compare with: train one with --method ce and the same settings, and give both "
            "folders to frskd report."
        )
    gain, margin = statistics.mean(own) - statistics.mean(other), _margin(own, other, group.metrics)
    text = (
        f"FRSKD is {abs(gain):.2f} points {'better' if gain >= 0 else 'worse'} in {group.form.label} than "
        f"cross-entropy with the same recipe ({statistics.mean(own):.2f} with {count_seeds(own)}, "
        f"{statistics.mean(other):.2f} with {count_seeds(other)})."
    )
    if margin is None:
        return "same", f"{text} More seeds are needed to tell whether this is more than chance."
    inside = abs(gain) <= margin
    cause = (
        "the choice of seeds" if len(own) + len(other) > 2 else f"a test on {group.metrics.dataset.val_images:,} images"
    )
    text += f" That is {'within' if inside else 'more than'} the {margin:.2f} points that {cause} can explain."
    return "same" if inside else "better" if gain > 0 else "worse", text


def _baseline_scores(group: Group, groups: Sequence[Group]) -> list[float]:
    """Return the scores of cross-entropy runs of the same recipe: among the groups, else those given to the run."""
    for other in groups:
        same = other.run.data == group.run.data and other.run.recipe(METHOD) == group.run.recipe(METHOD)
        if same and other.metrics.method == "ce":
            return other.values(group.form.score)
    baseline = group.metrics.baseline
    return [run[group.form.score] for run in baseline.runs] if baseline else []


def _margin(own: Sequence[float], other: Sequence[float], metrics: Metrics) -> float | None:
    """Return the difference of two means in points that chance explains with 95% probability; None if unknown.

    With several seeds it follows from their spread, otherwise from the number of images (classification only).
    """
    freedom = len(own) + len(other) - 2
    if freedom > 0:
        squares = sum(statistics.pvariance(values) * len(values) for values in (own, other))
        deviation = (squares / freedom * (1 / len(own) + 1 / len(other))) ** 0.5
        return _T[min(freedom, len(_T)) - 1] * deviation
    if metrics.task != "classification":
        return None
    rate = min(max(own[0] / 100, 0.005), 0.995)
    return 1.96 * 100 * (2 * rate * (1 - rate) / max(metrics.dataset.val_images, 1)) ** 0.5
