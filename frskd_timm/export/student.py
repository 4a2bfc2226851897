"""Export a trained student to a folder that can be published on the Hub; `load` reads it.

A classifier's folder holds `model.safetensors` and `config.json` as timm (`local-dir:`, `hf-hub:`) and transformers
(`AutoModelForImageClassification`) read them: the student only, under timm's own name of the architecture if it has
one, without the metadata of timm's default weights.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, SupportsFloat

import timm
import torch
from timm.models import is_model
from timm.models._hub import save_config_for_hf  # timm's public save_for_hf also writes weights
from timm.utils import unwrap_model
from torch import nn

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.config import check_pretrained_cfg
from frskd_timm.export.folder import CONFIG, plain_state_dict, read_json, replacing, write_json, write_weights
from frskd_timm.export.load import comparable, compare_outputs, read_student
from frskd_timm.models import exported_name
from frskd_timm.probing import evaluating, sample_images
from frskd_timm.segmentation.student import SegmentationStudent

PAPER_NAME = "Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation"
PAPER_ID = "arXiv:2103.08273"

# Fields of a default cfg that describe the architecture or the images; the others describe timm's own weights.
_KEPT_FIELDS = (
    *("custom_load", "fixed_input_size", "num_classes", "pool_size", "first_conv", "classifier"),
    *("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
)


def export_student(
    model: nn.Module,
    folder: str | Path,
    *,
    tag: str,
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    model_name: str | None = None,
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = "center",
    label_names: Sequence[str] | None = None,
    license: str | None = None,
    dataset: str | None = None,
    method: str = "frskd",
    half: bool = False,
    model_args: Mapping[str, Any] | None = None,
    finish: Callable[[Path], Any] | None = None,
) -> Path:
    """Write the student to a folder that timm and transformers load, and verify it by loading it.

    Everything is written and verified in a temporary folder, which then replaces `folder`: an older export stays intact
    until the new one is complete. With several processes, call it in one of them.

    Args:
        model: The student, any timm model; wrappers of DDP and `torch.compile` are removed. Its mode and device are
            restored, and the state of torch's random generator.
        folder: Destination. An older export there is replaced.
        tag: Name of these weights, usually that of the dataset: `resnet18.<tag>`.
        input_size: Channels, height and width of validation images.
        mean: Mean per channel for images in 0..1.
        std: Standard deviation per channel for images in 0..1.
        model_name: Name that the student was created with, if its own configuration lacks it.
        interpolation: Resizing filter in validation: `bicubic`, `bilinear`, `nearest`, `lanczos`, `box` or `hamming`.
        crop_pct: Fraction of the resized image's side that validation keeps.
        crop_mode: Crop mode in validation: `center`, `squash` or `border`.
        label_names: One name per class, in the order of the logits.
        license: Licence of the weights, as the Hub spells it (`mit`, `apache-2.0`).
        dataset: Readable name of the training data.
        method: `frskd`, or `ce` for a student trained without the self-teacher; its config does not cite the paper.
        half: Store parameters as float16; buffers (running statistics) stay float32.
        model_args: Replaces arguments of `timm.create_model` that cannot be written as JSON, such as
            `{"act_layer": "silu"}` for a class.
        finish: Called with the temporary folder once the weights are verified, to add card, pictures and recipe.

    Raises:
        UserError: The model is not a timm model, has keys that the plain architecture lacks or values that are not
            finite; the names or sizes do not fit it; or the folder holds something other than an export.
    """
    folder = Path(folder).resolve()
    model = unwrap_model(model)
    architecture = _architecture_name(model, model_name)
    names = [] if label_names is None else [str(name) for name in label_names]
    if isinstance(label_names, (str, Mapping)) or (label_names is not None and len(names) != model.num_classes):
        raise UserError(f"label_names must be a list of {model.num_classes} names, not {label_names!r:.60}.")
    data_config = _data_config(input_size, mean, std, interpolation, crop_pct, crop_mode)
    facts = _facts(tag, license, f"Trained on {dataset}." if dataset else None, method)
    with torch.random.fork_rng(devices=[]), replacing(folder) as aside:  # verifying creates models
        write_weights(aside, model, half=half)
        config = _write_config(model, aside, architecture, data_config, facts, names, model_args)
        if half:  # otherwise transformers would compute in the precision of the file
            write_json(aside / CONFIG, {**config, "dtype": "float32"})
        read_student(aside).verify(model, tolerance=2e-2 if half else 1e-4)
        if finish is not None:
            finish(aside)
    return folder


def _architecture_name(model: nn.Module, model_name: str | None) -> str:
    """Return the name under which plain timm, or else this package, creates the model; raise UserError without one."""
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or not hasattr(model, "num_classes") or not hasattr(model, "num_features"):
        hint = ": give task.student" if hasattr(model, "student") else ""
        why = f"it is not a model made by timm.create_model{hint}"
        if hasattr(model, "feature_info") and not hasattr(model, "num_features"):
            why = "it was created with features_only, which leaves out layers of the network"
        raise UserError(f"{type(model).__name__} cannot be exported: {why}.")
    name = (model_name or cfg.get("architecture") or "").split(".")[0]
    if not is_model(name):
        raise UserError(f"timm does not know model_name {name!r}: give the name that the student was created with.")
    return exported_name(name)


def _data_config(
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    crop_pct: float = 1.0,
    crop_mode: str = "center",
) -> dict[str, Any]:
    """Return timm's image settings in plain numbers, whatever arrays they come from; raise UserError for wrong ones."""
    found: dict[str, Any] = {"interpolation": interpolation, "crop_mode": crop_mode}
    found["crop_pct"] = float(crop_pct) if isinstance(crop_pct, SupportsFloat) else crop_pct
    given: Any = ("input_size", input_size, index), ("mean", mean, float), ("std", std, float)
    for name, numbers, convert in given:
        try:
            found[name] = tuple(map(convert, numbers))
        except (TypeError, ValueError):
            what = "(channels, height, width)" if name == "input_size" else "one number per channel"
            raise UserError(f"{name} must be {what}, not {numbers!r:.60}.") from None
    if max((0, *found["mean"], *found["std"])) > 1:
        raise UserError(f"mean and std must be for images in 0..1, not {mean!r:.60} and {std!r:.60}.")
    check_pretrained_cfg(found, "the arguments")
    return found


def _facts(tag: str, license: str | None, description: str | None, method: str) -> dict[str, str]:
    """Return the fields of a timm config that describe the weights; with method `ce` the paper is not cited."""
    if method not in ("frskd", "ce"):
        raise UserError(f"method must be 'frskd' or 'ce', not {method!r:.60}.")
    facts = {"tag": tag, "license": license, "description": description}
    if method == "frskd":
        facts |= {"paper_name": PAPER_NAME, "paper_ids": PAPER_ID}
    return {key: value for key, value in facts.items() if value is not None}


def _write_config(
    model: nn.Module,
    folder: Path,
    architecture: str,
    data_config: dict[str, Any],
    facts: dict[str, str],
    label_names: Sequence[str] = (),
    model_args: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write timm's config of the model, with `facts` instead of the metadata of timm's default weights; return it."""
    path = folder / CONFIG
    own = {"pretrained_cfg": {"architecture": architecture}, "label_names": label_names}
    try:
        save_config_for_hf(model, str(path), own, dict(model_args or {}), data_config)
        config = read_json(path)
        found = config["pretrained_cfg"]
        config["pretrained_cfg"] = facts | {key: found[key] for key in _KEPT_FIELDS if key in found}
        # transformers would pass num_classes twice, because it is also at the top level
        config.get("model_args", {}).pop("num_classes", None)
        write_json(path, config)
    except ValueError as error:  # such as for a number of channels
        raise UserError(f"The student cannot be exported with these arguments: {first_line(error)}.") from error
    return config


def export_segmentation(student: nn.Module, folder: str | Path, *, finish: Callable[[Path], Any] | None = None) -> Path:
    """Write a student to a folder that `SegmentationStudent.from_pretrained` loads, and verify it by loading it.

    Model, folder and `finish` are treated as by `export_student`.

    Raises:
        UserError: The model is not a segmentation student, has values that are not finite, or the folder holds
            something else.
    """
    student, folder = _plain(student), Path(folder).resolve()
    with torch.random.fork_rng(devices=[]), replacing(folder) as aside:
        write_weights(aside, student)
        write_json(aside / CONFIG, student.config())
        read_student(aside).verify(student)
        if finish is not None:
            finish(aside)
    return folder


def export_backbone(
    student: nn.Module,
    folder: str | Path,
    *,
    tag: str,
    input_size: Sequence[int] | None = None,
    license: str | None = None,
    dataset: str | None = None,
    method: str = "frskd",
) -> Path:
    """Write a student's backbone as a timm checkpoint, and verify that it gives the same feature maps.

        timm.create_model('local-dir:FOLDER', pretrained=True, features_only=True)

    It also loads without `features_only`, for a new classifier. Layers after the maps (the last convolution of an
    EfficientNet, a final norm) were not trained and keep timm's initial weights. The arguments are those of
    `export_student`; `input_size` is that of the crops, and by default that of a small image.

    Raises:
        UserError: The model is not a segmentation student, has values that are not finite, timm's `features_only` does
            not give the maps it was trained with, or the folder holds something other than an export.
    """
    student, folder = _plain(student), Path(folder).resolve()
    architecture = _architecture_name(student.backbone, student.backbone_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole: Any = timm.create_model(
            student.backbone_name, num_classes=0, in_chans=student.in_chans, **student.backbone_args
        )
    whole.load_state_dict(plain_state_dict(student.backbone), strict=False)
    fixed = whole.pretrained_cfg.get("fixed_input_size") and "img_size" not in student.backbone_args
    size = (student.in_chans, *student.probe) if input_size is None else input_size
    data_config = _data_config(whole.pretrained_cfg["input_size"] if fixed else size, student.mean, student.std)
    about = f"Backbone of a network for semantic segmentation, trained on {dataset}." if dataset else None
    with torch.random.fork_rng(devices=[]), replacing(folder) as aside:
        write_weights(aside, whole)
        _write_config(whole, aside, architecture, data_config, _facts(tag, license, about, method))
        _compare_maps(student, aside)
    return folder


def _plain(student: nn.Module) -> SegmentationStudent:
    student = unwrap_model(student)
    if not isinstance(student, SegmentationStudent):
        hint = ": give task.student" if hasattr(student, "student") else ""
        raise UserError(f"{type(student).__name__} is not a SegmentationStudent{hint}.")
    return student


def _compare_maps(student: SegmentationStudent, folder: Path) -> None:
    """Load a backbone with `features_only`, and compare all maps, concatenated per image."""
    arguments = {**student.backbone_args, "features_only": True, "out_indices": student.levels}
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)  # timm warns of the weights behind the last map
        loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments)
        channels_last = str(getattr(loaded, "output_fmt", None)).endswith("NHWC")
    except Exception as error:  # timm raises various errors
        name = student.backbone_name
        raise UserError(f"The backbone {name} does not load with features_only: {first_line(error)}.") from error
    finally:
        logging.disable(disabled)
    student = comparable(student)
    images = sample_images(student, (student.in_chans, *student.probe))
    with evaluating(student), evaluating(loaded):
        expected = [map_.float() for map_ in student.backbone_maps(images)]
        found = [map_.permute(0, 3, 1, 2) if channels_last else map_ for map_ in loaded(images.float())]
    compare_outputs(*(torch.cat([map_.flatten(1) for map_ in maps], 1) for maps in (expected, found)), what="maps")
