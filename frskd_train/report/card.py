"""Model cards, created from `metrics.json` and the exported config with `huggingface_hub`'s card classes."""

import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CARD, EVAL_RESULTS, RECIPE
from frskd_timm.export.load import ExportedStudent, read_student
from frskd_train.report.baseline import Gain, count_seeds, mean_and_std
from frskd_train.report.evaluation import Evaluation
from frskd_train.report.metrics import DatasetFacts, Metrics
from frskd_train.report.score_names import SCORE_NAMES
from frskd_train.report.signature import signed
from frskd_train.run.progress import duration
from frskd_train.settings import flag

# Placeholder of the repository's name until the student is published.
PLACEHOLDER = "OWNER/NAME"
SOURCE = f"https://huggingface.co/{PLACEHOLDER}"

# Ids of licences that the Hub accepts; others need `license: other` with a name.
_LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "h-research",
    "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++",
    "osl-3.0", "other", "pddl", "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
_SPELLINGS = {"cc0": "cc0-1.0", "cc0-1.0-universal": "cc0-1.0", "apache": "apache-2.0", "apache-2": "apache-2.0"}
_LISTED, _WORST = 20, 5  # of more classes than this, only the worst are listed


def read_card(folder: Path) -> ModelCard | None:
    """Return the card of a student; None without one. Raises UserError if it is damaged."""
    path = folder / CARD
    try:
        return ModelCard(path.read_text(encoding="utf-8-sig")) if path.is_file() else None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a valid card ({' '.join(str(error).split())}): write it again.") from None


def write_card(folder: Path, metrics: Metrics, evaluation: Evaluation | None = None) -> None:
    """Write the card of an exported student beside its weights, with the pictures and the recipe in the folder."""
    names = {path.name for path in folder.iterdir()}
    recipe = (folder / RECIPE).read_text(encoding="utf-8") if RECIPE in names else ""
    asked = [flag(name) for name in re.findall(r"^(\w+): ''", recipe, re.MULTILINE)]
    card = model_card(metrics, read_student(folder), names, evaluation, asked)
    (folder / CARD).write_bytes(signed(str(card).encode()))  # so that the next export knows whether it was edited
    if entries := eval_result_entries(metrics):
        target = folder / EVAL_RESULTS
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")


def model_card(
    metrics: Metrics,
    student: ExportedStudent,
    names: Collection[str] = (),
    evaluation: Evaluation | None = None,
    asked: Sequence[str] = (),
) -> ModelCard:
    """Return the card of a student.

    Args:
        metrics: Facts about the run.
        student: The exported student.
        names: Files beside the card; it refers to the pictures and the recipe among them.
        evaluation: Further scores on the same images.
        asked: Flags that the recipe leaves to its user.
    """
    score_names = SCORE_NAMES[metrics.task]
    tags = [score_names.pipeline, *student.libraries]
    if metrics.method == "frskd":
        tags += ["self-distillation", "knowledge-distillation", "frskd", "arxiv:2103.08273"]
    results = _eval_results(metrics, evaluation)
    data = ModelCardData(
        **hub_license(metrics.license),
        library_name=student.libraries[0],
        pipeline_tag=score_names.pipeline,
        tags=tags,
        datasets=[name] if (name := hub_dataset(metrics.dataset)) else None,
        base_model=metrics.initial.hub_id if metrics.initial else None,
        base_architecture=student.architecture,
        metrics=[score_names.results[score_names.score][0]] if results else None,
        model_name=f"{metrics.model if metrics.task == 'segmentation' else student.architecture}.{metrics.tag}",
        eval_results=results or None,
    )
    score = (metrics.student or {}).get(score_names.score)
    classes = evaluation.present() if evaluation else []
    only_worst = len(classes) > _LISTED
    if only_worst:
        classes = score_names.worst_first(classes)[:_WORST]
    return _fill(
        "card_template.md",
        data,
        run=metrics,
        score_names=score_names,
        title=data.model_name,
        student=student,
        files=names,
        asked=asked,
        results=_result_rows(metrics),
        score=score,
        gain=Gain.of(metrics, score_names.score),
        evaluation=evaluation,
        classes=classes,
        only_worst=only_worst,
        cell=_cell,
        duration=duration,
    )


def write_backbone_card(folder: Path, metrics: Metrics) -> None:
    """Write the card of a segmentation student's backbone, exported as a timm checkpoint."""
    architecture = read_student(folder).architecture
    data = ModelCardData(
        **hub_license(metrics.license),
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "semantic-segmentation"],
        base_architecture=architecture,
    )
    card = _fill("backbone_template.md", data, title=f"{architecture}.{metrics.tag}", run=metrics, cell=_cell)
    (folder / CARD).write_bytes(signed(str(card).encode()))


def hub_license(license: str | None) -> dict[str, Any]:
    """Return the entries of a licence in a card: one of the Hub's ids, or 'other' and a name."""
    if not license:
        return {"license": None}
    words = [
        word for word in re.split(r"[^a-z0-9.+]+", license.lower()) if word not in ("", "license", "the", "version")
    ]
    slug = re.sub(r"^([al]?gpl)-?v", r"\1-", "-".join(words))
    slug = _SPELLINGS.get(slug, slug)
    slug = next((name for name in (slug, f"{slug}.0") if name in _LICENSES), slug)
    return {"license": slug} if slug in _LICENSES else {"license": "other", "license_name": slug}


def tidy(card: ModelCard) -> ModelCard:
    """Remove blank lines left by conditions in a template."""
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card


def eval_result_entries(metrics: Metrics) -> list[dict[str, Any]]:
    """Return the scores in the Hub's newer format, one YAML file under `.eval_results/`.

    They appear on the dataset's leaderboard, so the list is empty unless the run was tested on a whole split of a
    dataset on the Hub (`whole_split`). It is also empty for weights that are part of the package, and with clients that
    do not support the format.
    """
    score_names, dataset = SCORE_NAMES[metrics.task], metrics.dataset
    score = (metrics.student or {}).get(score_names.score)
    hub_id = hub_dataset(dataset) if dataset.whole_split and not (dataset.config or dataset.revision) else None
    if metrics.shipped_as or not hasattr(huggingface_hub, "EvalResultEntry") or hub_id is None or score is None:
        return []
    entry = huggingface_hub.EvalResultEntry(
        dataset_id=hub_id,
        task_id="default",
        value=round(score, 4),
        date=metrics.date,
        source_url=SOURCE,
        source_name=_source_name(metrics),
        notes=f"{score_names.results[score_names.score][1]}, {dataset.split} split",
    )
    return huggingface_hub.eval_result_entries_to_yaml([entry])


def hub_dataset(dataset: DatasetFacts) -> str | None:
    """Return the dataset's id on the Hub, or None: `hub_id`, or an `id` of the form OWNER/NAME."""
    name = dataset.hub_id or dataset.id
    return name if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) else None


def _fill(template: str, data: ModelCardData, **variables: Any) -> ModelCard:
    text = files("frskd_train.report").joinpath(template).read_text(encoding="utf-8")
    return tidy(ModelCard.from_template(data, template_str=text, **variables))


def _eval_results(metrics: Metrics, evaluation: Evaluation | None) -> list[EvalResult]:
    score_names, dataset = SCORE_NAMES[metrics.task], metrics.dataset
    whole = hub_dataset(dataset) if dataset.whole_split else None  # scores on a sample are not those of the dataset
    scores = dict(metrics.student or {})
    if dataset.num_classes <= 5 and scores.get("top5") == 100:
        scores.pop("top5")  # five guesses among at most five classes
    found = [(kind, label, scores.get(name)) for name, (kind, label) in score_names.results.items()]
    if scores and evaluation is not None:
        found += [
            ("f1", "F1, mean over the classes (%)", evaluation.macro["f1"]),
            ("expected_calibration_error", "Expected calibration error", evaluation.calibration.ece),
            ("brier_score", "Brier score", evaluation.calibration.brier),
        ]
    return [
        EvalResult(
            task_type=score_names.pipeline,
            task_name=score_names.pipeline.replace("-", " ").capitalize(),
            dataset_type=whole or dataset.name,
            dataset_name=dataset.name,
            dataset_config=dataset.config,
            dataset_revision=dataset.revision,
            dataset_split=None if dataset.held_out else dataset.split,
            metric_type=kind,
            metric_name=label,
            metric_value=round(value, 4),
            source_name=None if metrics.shipped_as else _source_name(metrics),
            source_url=None if metrics.shipped_as else SOURCE,
        )
        for kind, label, value in found
        if value is not None
    ]


def _result_rows(metrics: Metrics) -> list[list[str]]:
    columns = SCORE_NAMES[metrics.task].columns
    networks = {
        f"**this model** ({'FRSKD student' if metrics.method == 'frskd' else 'student'})": metrics.student or {},
        "its self-teacher (not in this repository)": metrics.self_teacher or {},
    }
    rows = [
        [name, *("" if scores.get(key) is None else text.format(scores[key]) for key, (_, text) in columns.items())]
        for name, scores in networks.items()
    ]
    for name, found in {"this recipe": metrics.repeats, "cross-entropy alone, same recipe": metrics.baseline}.items():
        if found:
            scores = [run[SCORE_NAMES[metrics.task].score] for run in found.runs]
            form = f"{count_seeds(scores)}{' (mean ± SD)' if len(scores) > 1 else ''}"
            rows.append([f"{name}, {form}", mean_and_std(scores), *[""] * (len(columns) - 1)])
    return [row for row in rows if any(row[1:])]


def _source_name(metrics: Metrics) -> str:
    """Return what produced the scores, and when."""
    name = f"frskd_timm {metrics.versions['frskd_timm']}"
    return f"{name}, {metrics.date}" if metrics.date else name


def _cell(value: Any) -> str:
    """Return text for a table cell, which is neither HTML nor Markdown."""
    text = re.sub(r"\s+", " ", str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_~\[\]!|])", r"\\\1", text)
