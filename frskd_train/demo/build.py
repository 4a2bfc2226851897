"""Assemble the folder of a demo: page, model, description, examples and runtime."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCard, SpaceCardData
from PIL import Image
from timm.data import resolve_data_config

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.folder import CARD, LEFT_BEHIND, replacing, write_json
from frskd_timm.export.load import ExportedClassifier, ExportedStudent
from frskd_timm.pixels import to_8_bits
from frskd_train.data.images import open_image
from frskd_train.data.source import read_sample
from frskd_train.demo.runtime import FILES, find_runtime
from frskd_train.errors import size_text
from frskd_train.found_student import FoundStudent
from frskd_train.report.card import read_card
from frskd_train.report.formats import export_onnx
from frskd_train.report.grids import class_colours
from frskd_train.report.metrics import Metrics
from frskd_train.report.score_names import SCORE_NAMES
from frskd_train.system.disk import disk_errors

DESCRIPTION = "demo.json"
_PAGE = Path(__file__).parent / "page"
_README = """---
{{ card_data }}
---

# {{ title }}

A network trained with {{ method }}{% if "FRSKD" in method %}
([CVPR 2021](https://arxiv.org/abs/2103.08273)){% endif %}. It runs in the browser with
[ONNX Runtime Web](https://www.npmjs.com/package/onnxruntime-web) (MIT licence); pictures are not uploaded.
"""


def build_demo(
    found: FoundStudent,
    folder: Path,
    *,
    img_size: Sequence[int] | None = None,
    examples: Sequence[Path] = (),
    runtime: Path | None = None,
    repo_id: str | None = None,
) -> None:
    """Write a demo as a folder for any static web server or a static Space; an older demo there is replaced.

    Args:
        found: The student.
        folder: Destination.
        img_size: Height and width of the images of a segmentation student.
        examples: Pictures to offer.
        runtime: A local copy of onnxruntime-web; see `find_runtime`.
        repo_id: Repository of the student on the Hub, for the Space's README.

    Raises:
        UserError: The student cannot be exported, an example cannot be read, the runtime could not be downloaded, or
            the folder holds something else.
    """
    _refuse_foreign(folder)
    student, size = found.student, found.image_size(img_size)
    if isinstance(student, ExportedClassifier) and student.num_classes == 0:  # such as a backbone
        raise UserError(f"{student.path} has no classifier to show: give the folder of a run or its student.")
    if student.in_chans not in (1, 3):
        raise UserError(f"The demo shows gray and RGB pictures, but {student.path} takes {student.in_chans} channels.")
    pictures = _open_examples(examples) or _sample_examples(student)
    source = find_runtime(runtime)
    with disk_errors(folder), replacing(folder, _refuse_foreign) as aside:
        shutil.copytree(_PAGE, aside, dirs_exist_ok=True)
        (aside / "ort").mkdir()
        for name in FILES:
            shutil.copyfile(source / name, aside / "ort" / name)
        description = _describe(found, size) | {"examples": _write_examples(pictures, aside)}
        write_json(aside / DESCRIPTION, description)
        (aside / CARD).write_text(_readme(student, description, repo_id), encoding="utf-8")
        attention = isinstance(student, ExportedClassifier)
        export_onnx(student.path, aside / "model.onnx", size=size, attention=attention)


def _refuse_foreign(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} - LEFT_BEHIND if folder.is_dir() else set()
    page = {path.name for path in _PAGE.iterdir()}
    other = names - page - {DESCRIPTION, CARD, "model.onnx", "ort", "examples"}  # such as the .git of a Space
    if folder.is_file() or other or (names and DESCRIPTION not in names):
        raise UserError(f"{folder} holds something other than a demo: give another --output.")


def _describe(found: FoundStudent, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return what the page needs to know: preprocessing, classes and texts."""
    student, metrics = found.student, found.metrics
    _, channels, height, width = student.probe_images(1, size).shape
    if isinstance(student, ExportedClassifier):
        data = resolve_data_config(pretrained_cfg=student.config["pretrained_cfg"])
        fitting = {
            "task": "classification",
            "caption": "Attention: where the feature maps of this level are strong, from dark (weak) to yellow "
            "(strong), over the part of the picture that the network sees.",
            **{name: data[name] for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")},
        }
    else:
        model: Any = student.load()
        uncoloured = (student.class_names or ["class 0"])[0]
        fitting = {
            "task": "segmentation",
            "caption": f"The class of each pixel ({uncoloured}: without colour); the bars give its share of the "
            "picture.",
            "mean": model.mean,
            "std": model.std,
            "colours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in class_colours(model.num_classes).tolist()],
        }
    return {
        "title": _title(student),
        "summary": _summary(student, metrics),
        "method": _method(student, metrics),
        "details": f"{student.architecture}, images of {size_text(height, width)}.",
        "classes": student.class_names,
        "channels": channels,
        "size": [height, width],
        **fitting,
    }


def _title(student: ExportedStudent) -> str:
    """Return the first heading of the card, or the architecture and tag."""
    card = read_card(student.path)
    text = "" if card is None else card.text
    found = re.search(r"^# (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    tag = student.config.get("pretrained_cfg", {}).get("tag")
    return found[1] if found else f"{student.architecture}.{tag}" if tag else student.architecture


def _method(student: ExportedStudent, metrics: Metrics | None) -> str:
    """Return how the student was trained, as far as that is known."""
    if metrics and metrics.by_second_head:
        return "self-distillation derived from FRSKD"
    cites = bool(student.config.get("pretrained_cfg", {}).get("paper_ids"))
    is_frskd = metrics.method == "frskd" if metrics else cites
    if is_frskd:
        return "FRSKD, feature refinement via self-knowledge distillation"
    return "cross-entropy" if metrics else "frskd_timm"


def _summary(student: ExportedStudent, metrics: Metrics | None) -> str:
    """Return a sentence on data and scores, as far as they are known."""
    if metrics is None:
        return f"{len(student.class_names)} classes." if student.class_names else ""
    names = SCORE_NAMES[metrics.task]
    value = (metrics.student or {}).get(names.score)
    text = f"Trained on {metrics.dataset.name}, {metrics.dataset.num_classes} classes."
    return text if value is None else f"{text} {names.results[names.score][1].removesuffix(' (%)')}: {value:.2f}%."


def _open_examples(examples: Sequence[Path]) -> list[tuple[str, Image.Image]]:
    """Return name and picture of each example; raise UserError if one cannot be read."""
    images = []
    for path in examples:
        try:
            images.append((path.stem, to_8_bits(open_image(None, str(path)))))
        except Exception as error:  # Pillow's plugins raise nearly any exception for damaged files
            raise UserError(f"--examples {path} could not be read as a picture: {first_line(error)}.") from None
    return images


def _sample_examples(student: ExportedStudent) -> list[tuple[str, Image.Image]]:
    """Return name and picture of one image per class of the included sample, if the student has its classes."""
    sample = read_sample().splits["test"]
    if sample.features["label"].names != student.class_names:
        return []
    labels = list(sample["label"])
    return [(name, sample[labels.index(label)]["image"]) for label, name in enumerate(student.class_names)]


def _write_examples(pictures: Sequence[tuple[str, Image.Image]], folder: Path) -> list[dict[str, str]]:
    (folder / "examples").mkdir()
    for number, (_, image) in enumerate(pictures):
        image.save(folder / "examples" / f"{number}.png", icc_profile=None)  # which may name a device
    return [{"file": f"examples/{number}.png", "name": name} for number, (name, _) in enumerate(pictures)]


def _readme(student: ExportedStudent, description: Mapping[str, Any], repo_id: str | None) -> str:
    """Return the Space's card with the front matter that the Hub reads."""
    card = read_card(student.path)
    known: Any = {} if card is None else card.data
    license: dict[str, Any] = {name: known.get(name) for name in ("license", "license_name")}
    data = SpaceCardData(
        title=description["title"],
        emoji="🔍",
        colorFrom="blue",
        colorTo="yellow",
        sdk="static",
        **license,
        models=[repo_id] if repo_id else None,
    )
    return str(SpaceCard.from_template(data, template_str=_README, **description))
