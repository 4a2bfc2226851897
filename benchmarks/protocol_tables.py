"""The tables of the protocol's results."""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from protocol import BASELINES, CASES, Row, Run, same_time

from frskd_train.report.baseline import Gain, mean_and_std

NOTHING = "There are no results yet."
END = "<!-- end -->"  # of a table in a document


@dataclass(frozen=True)
class Comparison:
    """Scores of a method and of the best baseline with all seeds."""

    title: str  # of the case
    epochs: int
    limit: int  # epochs of baselines that take as long, or as many epochs
    baseline_epochs: int  # of the best one, which may be fewer than the limit
    baseline: str
    variant: str  # of the rival that the baseline is from, if it is
    is_variant: bool  # of a case that comes before it
    best: list[float]  # the baseline's scores
    own: list[float]
    teacher: list[float]


def comparisons(
    rows: Sequence[Row],
    times: Sequence[Row] = (),
    name: str = "frskd",
    split: str = "test",
    epochs: int | None = None,
) -> Iterator[Comparison]:
    """Yield the comparisons of a method and the best baseline of the same epochs and of the same time; see `plan`.

    Once there is a baseline that was trained for the same time, those of the same epochs count there as well.
    """
    for data, case in CASES.items():
        for budget, longer in itertools.product((epochs,) if epochs else case.epochs, (False, True)):
            run = Run(data, split, name, budget, 0)
            limit = (same_time(times, run) if longer else budget) or 0
            own, teacher = scores(rows, run), scores(rows, run, "self_teacher_score")
            is_variant = any(list(CASES).index(rival) < list(CASES).index(data) for rival in case.rivals)
            baselines = []
            for trained, method, rival in itertools.product({budget, limit}, BASELINES, (data, *case.rivals)):
                if found := scores(rows, replace(run, data=rival, method=method, epochs=trained)):
                    baselines.append((found, trained, method, "" if rival == data else CASES[rival].variant))
            if own and any(trained == limit for _, trained, *_ in baselines):
                best, trained, method, variant = max(baselines, key=lambda found: statistics.mean(found[0]))
                yield Comparison(case.title, budget, limit, trained, method, variant, is_variant, best, own, teacher)


def table(found: Iterable[Comparison]) -> str:
    """Format comparisons as a Markdown table."""
    lines = [
        "| data | epochs | best baseline | its score | FRSKD | difference | standard error | seeds | self-teacher | "
        "gain / self-teacher's gain |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for pair in found:
        shown = str(pair.epochs) if pair.limit == pair.epochs else f"{pair.epochs}, baseline {pair.limit}"
        lines.append(f"| {pair.title} | {shown} | {' | '.join(compare(pair))} |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING


def short_table(found: Iterable[Comparison]) -> str:
    """Format the scores of comparisons as a Markdown table with both budgets of the baseline in one line.

    Shown are those with a baseline of equal time; of cases that are variants of each other, the first.
    """
    found = [pair for pair in found if not pair.is_variant]
    timed = {(pair.title, pair.epochs) for pair in found if pair.limit > pair.epochs}
    found = [pair for pair in found if (pair.title, pair.epochs) in timed]
    lines = [
        "| data | epochs | seeds | FRSKD | baseline, equal epochs | baseline, equal time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (title, epochs), pairs in itertools.groupby(found, key=lambda pair: (pair.title, pair.epochs)):
        cells = ["", ""]
        for pair in pairs:
            longer = pair.limit > epochs
            seeds = "" if len(pair.best) == len(pair.own) else f"{len(pair.best)} seeds"
            notes = ", ".join(filter(None, [pair.variant, longer * f"{pair.baseline_epochs} epochs", seeds]))
            cells[longer] = f"{statistics.mean(pair.best):.2f}" + (f" ({notes})" if notes else "")
        own = f"{len(pair.own)} | {statistics.mean(pair.own):.2f}"
        lines.append(f"| {title} | {epochs} | {own} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING


def spoilt_table(rows: Sequence[Row], split: str = "test") -> str:
    """Format a Markdown table of accuracy and calibration of the baselines and FRSKD on imbalanced and wrong labels."""
    lines = ["| data | epochs | method | top-1 | ECE, % | seeds |", "|---|---:|---|---:|---:|---:|"]
    for data, case in CASES.items():
        for epochs, method in itertools.product(case.epochs if case.spoilt else (), (*BASELINES, "frskd")):
            run = Run(data, split, method, epochs, 0)
            found, ece = scores(rows, run), [100 * value for value in scores(rows, run, "ece")]
            if found:
                cells = map(mean_and_std, (found, ece))
                lines.append(f"| {case.title} | {run.epochs} | `{method}` | {' | '.join(cells)} | {len(found)} |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING


def scores(rows: Sequence[Row], run: Run, column: str = "score") -> list[float]:
    """Return the scores of a run with all seeds."""
    return [float(row[column]) for row in rows if replace(Run.of(row), seed=0) == run and row[column]]


def compare(pair: Comparison) -> list[str]:
    """Format the cells of a comparison."""
    best, own, teacher = pair.best, pair.own, pair.teacher
    bar, mean = statistics.mean(best), statistics.mean(own)
    error = Gain.between(own, best).error
    seeds = f"{len(own)}" if len(own) == len(best) else f"{len(own)}, baseline {len(best)}"
    lead = statistics.mean(teacher) - bar if teacher else 0.0
    share = f"{100 * (mean - bar) / lead:.0f}%" if error is not None and lead > error and mean > bar else ""
    cells = [f"{bar:.2f}", f"{mean:.2f}", f"{mean - bar:+.2f}", "" if error is None else f"{error:.2f}", seeds]
    shorter = f"{pair.baseline_epochs} epochs" if pair.baseline_epochs < pair.limit else ""
    baseline = ", ".join(filter(None, [pair.baseline, pair.variant, shorter]))
    return [f"`{baseline}`", *cells, f"{statistics.mean(teacher):.2f}" if teacher else "", share]


def inserted(document: str, table: str, begin: str) -> str:
    """Return a document with a new table between two markers, `begin` and `END`.

    Raises:
        ValueError: The document has no markers.
    """
    before, found, rest = document.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"The document has no '{begin}' and '{END}' around a table.")
    return f"{before}{begin}\n{table}\n{END}{after}"
