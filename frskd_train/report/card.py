"""Model cards, created from `metrics.json` and the exported config with `huggingface_hub`'s card classes."""

import re
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from frskd_timm.export.folder import CARD
from frskd_timm.export.load import ExportedStudent, read_student
from frskd_train.report.card_text import FORMS, FURTHER_RESULTS, card_title, text_facts
from frskd_train.report.evaluation import Evaluation
from frskd_train.report.metrics import DatasetFacts, Metrics

EVAL_RESULTS = ".eval_results/frskd.yaml"
# Placeholder of the repository's name until the student is published.
PLACEHOLDER = "OWNER/NAME"
SOURCE = f"https://huggingface.co/{PLACEHOLDER}"

_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def write_card(folder: Path, metrics: Metrics, evaluation: Evaluation | None = None) -> None:
    """Write the card of an exported student beside its weights, with the pictures and the recipe in the folder."""
    names = {path.name for path in folder.iterdir()}
    model_card(metrics, read_student(folder), names, evaluation).save(folder / CARD)
    entries = eval_result_entries(metrics)
    if entries:
        target = folder / EVAL_RESULTS
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")


def model_card(
    metrics: Metrics, student: ExportedStudent, names: Collection[str] = (), evaluation: Evaluation | None = None
) -> ModelCard:
    """Return the card of a student.

    Args:
        metrics: Facts about the run.
        student: The exported student.
        names: Files beside the card; it refers to the pictures and the recipe among them.
        evaluation: Further scores on the same images.
    """
    form = FORMS[metrics.task]
    tags = [form.pipeline, *student.libraries, "self-distillation", "knowledge-distillation"]
    if metrics.method == "frskd":
        tags += ["frskd", "arxiv:2103.08273"]
    license = (metrics.license or "").lower()
    known = bool(_LICENSE_ID.fullmatch(license))
    results = _eval_results(metrics, evaluation)
    data = ModelCardData(
        license=license if known else ("other" if license else None),
        license_name=None if known or not license else re.sub(r"[^a-z0-9.]+", "-", license).strip("-"),
        library_name=student.libraries[0],
        pipeline_tag=form.pipeline,
        tags=tags,
        datasets=[name] if (name := hub_dataset(metrics.dataset)) else None,
        base_model=metrics.initial.hub_id if metrics.initial else None,
        base_architecture=student.architecture,
        metrics=[form.results[form.score][0]] if results else None,
        model_name=card_title(metrics, student),
        eval_results=results or None,
    )
    return _fill("card_template.md", data, text_facts(metrics, student, names, evaluation))


def write_backbone_card(folder: Path, metrics: Metrics) -> None:
    """Write the card of a segmentation student's backbone, exported as a timm checkpoint."""
    architecture = read_student(folder).architecture
    data = ModelCardData(
        license=(metrics.license or "").lower() or None,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "semantic-segmentation"],
        base_architecture=architecture,
    )
    card = _fill("backbone_template.md", data, {"title": f"{architecture}.{metrics.tag}", "run": metrics})
    card.save(folder / CARD)


def tidy(card: ModelCard) -> ModelCard:
    """Remove blank lines left by conditions in a template."""
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card


def eval_result_entries(metrics: Metrics) -> list[dict[str, Any]]:
    """Return the scores in the Hub's newer format, one YAML file under `.eval_results/`.

    They appear on the dataset's leaderboard, so the list is empty unless the run was tested on a whole split of a
    dataset on the Hub (`whole_split`). It is also empty with clients that do not support the format.
    """
    form, dataset = FORMS[metrics.task], metrics.dataset
    score = (metrics.student or {}).get(form.score)
    hub_id = hub_dataset(dataset) if dataset.whole_split else None
    if not hasattr(huggingface_hub, "EvalResultEntry") or hub_id is None or score is None:
        return []
    entry = huggingface_hub.EvalResultEntry(
        dataset_id=hub_id,
        task_id="default",
        value=round(score, 4),
        date=metrics.date,
        source_url=SOURCE,
        source_name=_source_name(metrics),
        notes=f"{form.leaderboard}, {dataset.split} split",
    )
    return huggingface_hub.eval_result_entries_to_yaml([entry])


def hub_dataset(dataset: DatasetFacts) -> str | None:
    """Return the dataset's id on the Hub, or None: `hub_id`, or an `id` of the form OWNER/NAME."""
    name = dataset.hub_id or dataset.id
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "frskd/")):
        return None  # a folder, or the sample that ships with this package
    return name


def _fill(template: str, data: ModelCardData, variables: dict[str, Any]) -> ModelCard:
    text = files("frskd_train.report").joinpath(template).read_text(encoding="utf-8")
    return tidy(ModelCard.from_template(data, template_str=text, **variables))


def _eval_results(metrics: Metrics, evaluation: Evaluation | None) -> list[EvalResult]:
    form, dataset = FORMS[metrics.task], metrics.dataset
    whole = hub_dataset(dataset) if dataset.whole_split else None  # scores on a sample are not those of the dataset
    scores = dict(metrics.student or {})
    if scores and evaluation is not None:
        calibration = evaluation.calibration
        scores |= {"f1": evaluation.macro["f1"], "ece": calibration.ece, "brier": calibration.brier}
    return [
        EvalResult(
            task_type=form.pipeline,
            task_name=form.pipeline.replace("-", " ").capitalize(),
            dataset_type=whole or dataset.name,
            dataset_name=dataset.name,
            dataset_split=dataset.split,
            metric_type=kind,
            metric_name=label,
            metric_value=round(scores[key], 4),
            source_name=_source_name(metrics),
            source_url=SOURCE,
        )
        for key, (kind, label) in {**form.results, **FURTHER_RESULTS}.items()
        if scores.get(key) is not None
    ]


def _source_name(metrics: Metrics) -> str:
    """Return what produced the scores, and when."""
    name = f"frskd_timm {metrics.versions.get('frskd_timm', '')}".strip()
    return f"{name}, {metrics.date}" if metrics.date else name
