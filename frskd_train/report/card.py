"""The model card: from `metrics.json` and the exported config, through `huggingface_hub`'s card classes."""

import math
import re
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from frskd_timm.export.load import CARD
from frskd_train.report.card_text import About, Form, form_of, text_facts
from frskd_train.report.student_folder import StudentFolder

EVAL_RESULTS = ".eval_results/frskd.yaml"
# What the card calls the repository until it is published under a name.
PLACEHOLDER = "OWNER/NAME"


_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def write_card(folder: str | Path, metrics: Mapping[str, Any]) -> Path:
    """Writes the card of an exported student beside its weights, showing the pictures that lie there.

    Args:
        folder: An exported student, with `curves.png`, `attention.png` and `recipe.yaml` where there are any.
        metrics: The run's `metrics.json`. Whatever it lacks, the card leaves out.

    Returns:
        The path of the card.
    """
    folder = Path(folder)
    names = {path.name for path in folder.iterdir()}
    card = model_card(metrics, StudentFolder(folder).config, names)
    card.save(folder / CARD)
    entries = eval_result_entries(metrics)
    if entries:
        target = folder / EVAL_RESULTS
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder / CARD


def model_card(metrics: Mapping[str, Any], config: Mapping[str, Any], names: Collection[str] = ()) -> ModelCard:
    """The card of one student.

    Args:
        metrics: As in `metrics.json`.
        config: As in `config.json`.
        names: File names beside the card: pictures and recipe are shown if they are among them.
    """
    metrics = _present(metrics)
    template = files("frskd_train.report").joinpath("card_template.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        _card_data(metrics, config), template_str=template, **text_facts(metrics, config, names)
    )
    return tidy(card)


def write_backbone_card(folder: str | Path, metrics: Mapping[str, Any]) -> Path:
    """Writes the card of a segmentation student's backbone, exported as a timm checkpoint.

    Args:
        folder: The checkpoint's folder.
        metrics: The `metrics.json` of the run that trained it.

    Returns:
        The path of the card.
    """
    folder = Path(folder)
    config = StudentFolder(folder).config
    about = About.of(metrics, config)
    data = ModelCardData(
        license=about.license or None,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "semantic-segmentation"],
        base_architecture=about.architecture,
    )
    template = files("frskd_train.report").joinpath("backbone_template.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        data, template_str=template, **{"title": about.title, "architecture": about.architecture}, run=_present(metrics)
    )
    tidy(card).save(folder / CARD)
    return folder / CARD


def tidy(card: ModelCard) -> ModelCard:
    """The card without the blank lines that conditions in a template leave."""
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card


def eval_result_entries(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores in the Hub's newer form, one YAML file under `.eval_results/`.

    They enter the data set's leaderboard there, so the list is empty unless the run says that it was tested on a whole
    split of a data set on the Hub (`whole_split`), and with clients that do not know the form.
    """
    metrics = _present(metrics)
    form = form_of(metrics)
    dataset, score = metrics.get("dataset", {}), metrics.get("student", {}).get(form.score)
    hub_id = hub_dataset(dataset) if dataset.get("whole_split") else None
    if not hasattr(huggingface_hub, "EvalResultEntry") or hub_id is None or score is None:
        return []
    entry = huggingface_hub.EvalResultEntry(
        dataset_id=hub_id,
        task_id=dataset.get("config", "default"),
        value=round(score, 4),
        notes=form.leaderboard + (f", {dataset['split']} split" if "split" in dataset else ""),
    )
    return huggingface_hub.eval_result_entries_to_yaml([entry])


def hub_dataset(dataset: Mapping[str, Any]) -> str | None:
    """The data set's Hub id, where it has one: `hub_id`, or an `id` that looks like `owner/name`."""
    name = dataset.get("hub_id") or dataset.get("id")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "frskd/")):
        return None  # a folder, or the sample that ships with this package
    return name


def _card_data(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> ModelCardData:
    dataset, form = metrics.get("dataset", {}), form_of(metrics)
    about = About.of(metrics, config)
    tags = [form.pipeline, *about.libraries, "self-distillation", "knowledge-distillation"]
    if metrics.get("method") == "frskd":
        tags += ["frskd", "arxiv:2103.08273"]
    known = bool(_LICENSE_ID.fullmatch(about.license))
    results = _eval_results(metrics, form)
    return ModelCardData(
        license=about.license if known else ("other" if about.license else None),
        license_name=None if known or not about.license else re.sub(r"[^a-z0-9.]+", "-", about.license).strip("-"),
        library_name=about.libraries[0],
        pipeline_tag=form.pipeline,
        tags=tags,
        datasets=[name] if (name := hub_dataset(dataset)) else None,
        base_architecture=about.architecture,
        metrics=[form.results[form.score][0]] if results else None,
        model_name=about.title,
        eval_results=results or None,
    )


def _eval_results(metrics: Mapping[str, Any], form: Form) -> list[EvalResult]:
    dataset = metrics.get("dataset", {})
    name = dataset.get("name") or dataset.get("id")
    if name is None:
        return []
    whole = hub_dataset(dataset) if dataset.get("whole_split") else None  # a sample's scores are not the data set's
    return [
        EvalResult(
            task_type=form.pipeline,
            task_name=form.pipeline.replace("-", " ").capitalize(),
            dataset_type=whole or str(name),
            dataset_name=str(name),
            dataset_split=dataset.get("split"),
            metric_type=kind,
            metric_name=label,
            metric_value=round(metrics["student"][key], 4),
        )
        for key, (kind, label) in form.results.items()
        if key in metrics.get("student", {})
    ]


def _present(value: Any) -> Any:
    """The same without nulls, numbers that are not finite, and what is empty after that."""
    if isinstance(value, Mapping):
        cleaned = {key: _present(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None and item != {}}
    if isinstance(value, list):
        return [item for item in map(_present, value) if item is not None]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
