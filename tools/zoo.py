"""Results of the zoo and its model card; `python -m tools.zoo` rewrites the card.

`results/results.csv` has one row for each set of shipped weights. `MODEL_CARD.md` is generated from it, from the
registry and from the recipes.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData

import frskd_timm
from frskd_timm.models import exported_name
from frskd_train.report.baseline import Gain
from frskd_train.report.card import tidy
from frskd_train.report.metrics import Metrics, SeedRuns
from tools.table_files import read, write

# Columns of the results, timm's own first.
COLUMNS = (
    "model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation",
    "dataset", "top1_mean", "top1_std", "top1_n", "baseline_mean", "baseline_std", "baseline_n", "gain", "gain_err",
    "sample_top1", "epochs",
)  # fmt: skip
ROOT = Path(frskd_timm.__file__).parents[1]
RESULTS = ROOT / "results" / "results.csv"
WAITING = Path("hub", "students")  # weights that are too large for the wheel and wait for the Hub, in a repository
RECIPES = ROOT / "frskd_train" / "recipes"
CARD = ROOT / "MODEL_CARD.md"


def results_row(metrics: Metrics) -> dict[str, str]:
    """Return the row of shipped weights in timm's format, with mean, deviation and number of the recipe's runs.

    Without a baseline or sample, their columns are empty.
    """
    assert metrics.student is not None
    own = metrics.repeats or SeedRuns.of([{"top1": metrics.student["top1"]}], "top1", metrics.method)
    row: dict[str, Any] = {
        "model": f"{metrics.model}.{metrics.tag}",
        "dataset": metrics.dataset.name,
        "param_count": _two_digits(metrics.param_count / 1e6),
        "sample_top1": _two_digits(metrics.sample["top1"] if metrics.sample else None),
        **{name: getattr(metrics, name) for name in ("img_size", "crop_pct", "interpolation", "epochs")},
        **{f"top1_{name}": value for name, value in _summary(own).items()},
        **{f"baseline_{name}": value for name, value in _summary(metrics.baseline).items()},
    }
    for name in ("top1", "top5"):
        score = metrics.student[name]
        row |= {name: _two_digits(score), f"{name}_err": _two_digits(100 - score)}
    gain = Gain.of(metrics, "top1")
    if gain is not None:
        row |= {"gain": f"{gain.difference:+.2f}", "gain_err": _two_digits(gain.error)}
    return {column: str(row.get(column, "")) for column in COLUMNS}


def _summary(runs: SeedRuns | None) -> dict[str, Any]:
    return {} if runs is None else {"mean": _two_digits(runs.mean), "std": _two_digits(runs.std), "n": len(runs.runs)}


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def update_results(row: Mapping[str, str], path: Path = RESULTS) -> None:
    """Add a row with the columns `COLUMNS` to the results; replace an older row of the same weights."""
    rows = {old["model"]: old for old in read(path)} | {row["model"]: dict(row)}
    write(path, [rows[name] for name in sorted(rows)], COLUMNS)


def record(metrics: Metrics, root: Path = ROOT) -> dict[str, str]:
    """Write the scores of weights into the results and the zoo's card, and return their row."""
    row = results_row(metrics)
    update_results(row, root / RESULTS.relative_to(ROOT))
    write_card(root)
    return row


def zoo_card(
    results: Sequence[Mapping[str, str]], recipes: Path | None = None, waiting: Collection[str] = ()
) -> ModelCard:
    """Return the card of all students, with the weights in the results.

    Args:
        results: Rows with the columns `COLUMNS`.
        recipes: Folder of the recipes for further weights; that of the repository by default.
        waiting: Names of the weights that are not part of the wheel.
    """
    data = ModelCardData(
        license="apache-2.0",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "frskd", "self-distillation", "arxiv:2103.08273"],
    )
    template = Path(__file__).with_name("zoo_template.md").read_text(encoding="utf-8")
    students = [_student(name) for name in timm.list_models("*_frskd")]
    text = {"table": results_table(results, waiting), "recipes": recipes_table(results, recipes or RECIPES)}
    return tidy(ModelCard.from_template(data, template_str=template, students=students, results=results, **text))


def waiting(root: Path = ROOT) -> list[str]:
    """Return the names of the weights of a repository that are not part of the wheel."""
    return sorted(path.parent.name for path in (root / WAITING).glob("*/config.json"))


def results_table(results: Sequence[Mapping[str, str]], waiting: Collection[str] = ()) -> str:
    """Return the results as a Markdown table, scores in percent.

    Args:
        results: Rows with the columns `COLUMNS`.
        waiting: Names of the weights that are not part of the wheel; these link to their folders.
    """
    names = {
        "model": "weights", "dataset": "data", "img_size": "image size", "param_count": "parameters (M)",
        "epochs": "epochs", "top1": "top-1", "top5": "top-5", "baseline_mean": "cross-entropy top-1 (mean)",
        "gain": "gain ± standard error (runs)",
    }  # fmt: skip
    lines = ["| " + " | ".join(names.values()) + " |", "|---|---|" + "---:|" * (len(names) - 2)]
    for row in results:
        name = row["model"]
        cells = {**row, "model": f"[`{name}`]({(WAITING / name).as_posix()})" if name in waiting else f"`{name}`"}
        if row["gain"]:
            cells["gain"] = f"{row['gain']} ± {row['gain_err']} ({row['top1_n']}, {row['baseline_n']})"
        lines.append("| " + " | ".join(cells[name] for name in names) + " |")
    note = (
        "*Gain*: mean top-1 of all FRSKD runs minus that of the cross-entropy runs of the same recipe; with "
        "several runs,\nthe weights are those of one of them. *Runs*: numbers of FRSKD and of cross-entropy runs."
    )
    if waiting:
        where = f"in a clone, load `local-dir:{WAITING}/NAME` after `import frskd_timm`"
        note += f"\nLinked weights are not in the package; {where}."
    lines += ["", note]
    return "\n".join(lines)


def recipes_table(results: Sequence[Mapping[str, str]], recipes: Path) -> str:
    """Return a table of the students' recipes, with what they need and whether there are weights."""
    lines = ["| recipe | student | weights | requirements and time |", "|---|---|---|---|"]
    trained = {row["model"] for row in results}
    for path in sorted(recipes.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
        model, tag = recipe.get("model"), recipe.get("tag")
        if model in timm.list_models("*_frskd") and tag:
            found = re.search(r"^# Needs: (.*(?:\n#   .*)*)", text, re.MULTILINE)
            needs = re.sub(r"\n# +", " ", found[1]) if found else ""
            link = f"[`{path.stem}`](frskd_train/recipes/{path.name})"
            lines.append(f"| {link} | `{model}` | {'yes' if f'{model}.{tag}' in trained else ''} | {needs} |")
    return "\n".join(lines)


def write_card(root: Path = ROOT) -> None:
    """Write `MODEL_CARD.md` of a repository."""
    results = read(root / RESULTS.relative_to(ROOT))
    zoo_card(results, root / "frskd_train" / "recipes", waiting(root)).save(root / "MODEL_CARD.md")


def _student(name: str) -> dict[str, Any]:
    with torch.device("meta"):  # counts parameters without computing initial weights
        model = timm.create_model(name, num_classes=1000)
    return {
        "name": name,
        "architecture": exported_name(name),
        "stock": exported_name(name) != name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


if __name__ == "__main__":
    write_card()
    print(f"Wrote {CARD}.")
