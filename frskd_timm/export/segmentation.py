"""Writing a segmentation student to a folder, and its backbone to another; both are verified by loading them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import unwrap_model
from torch import nn

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.compare import compare_logits
from frskd_timm.export.folder import CONFIG, plain_state_dict, replacing, write_json, write_weights
from frskd_timm.export.load import verify_export
from frskd_timm.export.student import architecture_name, timm_config, weights_facts
from frskd_timm.segmentation.student import SegmentationStudent


def export_segmentation(student: nn.Module, folder: str | Path, *, finish: Callable[[Path], Any] | None = None) -> Path:
    """Write a student to a folder that `SegmentationStudent.from_pretrained` loads, and verify it by loading it.

    Everything is written and verified in a temporary folder, which then replaces `folder`.

    Args:
        student: The student; wrappers of DDP and `torch.compile` are removed. Its mode and device are restored.
        folder: Where the export goes. An older export there is replaced.
        finish: Called with the temporary folder once the weights are verified, to add card, pictures and recipe.

    Returns:
        The folder: `model.safetensors` and `config.json`, the student alone.

    Raises:
        UserError: The model is not a segmentation student, has values that are not finite, or the folder holds
            something else.
    """
    student = _plain(student)
    with replacing(Path(folder)) as aside:
        write_weights(aside, student)
        write_json(aside / CONFIG, student.config())
        verify_export(aside, student)
        if finish is not None:
            finish(aside)
    return Path(folder)


def export_backbone(
    student: nn.Module,
    folder: str | Path,
    *,
    tag: str,
    license: str | None = None,
    dataset: str | None = None,
    method: str = "frskd",
) -> Path:
    """Write a student's backbone as a timm checkpoint, and verify that it gives the same feature maps.

        timm.create_model('local-dir:FOLDER', pretrained=True, features_only=True)

    It loads without `features_only` too, for a new classifier. Layers after the maps (the last convolution of an
    EfficientNet, a final norm) were not trained and keep timm's initial weights.

    Args:
        student: The student; wrappers of DDP and `torch.compile` are removed. Its mode and device are restored.
        folder: Where the checkpoint goes. An older export there is replaced.
        tag: Name of these weights, usually the dataset's.
        license: Licence of the weights, as the Hub spells it.
        dataset: Readable name of the training data.
        method: `frskd`, or `ce` for a student trained without the self-teacher; its config does not cite the paper.

    Returns:
        The folder: `model.safetensors` and `config.json`.

    Raises:
        UserError: The model is not a segmentation student, has values that are not finite, timm's `features_only` does
            not give the maps it was trained with, or the folder holds something else.
    """
    student = _plain(student)
    architecture = architecture_name(student.backbone, student.backbone_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole: Any = timm.create_model(
            student.backbone_name, num_classes=0, in_chans=student.in_chans, **student.backbone_args
        )
    whole.load_state_dict(plain_state_dict(student.backbone), strict=False)
    fixed = whole.pretrained_cfg.get("fixed_input_size") and "img_size" not in student.backbone_args
    data_config = {
        "input_size": whole.pretrained_cfg["input_size"] if fixed else (student.in_chans, *student.probe),
        "mean": student.mean,
        "std": student.std,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    about = f"Backbone of a network for semantic segmentation, trained on {dataset}." if dataset else None
    facts = weights_facts(tag, license, about, method)
    with replacing(Path(folder)) as aside:
        write_weights(aside, whole)
        config = timm_config(whole, aside / CONFIG, architecture, data_config, facts, None)
        write_json(aside / CONFIG, config)
        _compare_maps(student, aside)
    return Path(folder)


def _plain(student: nn.Module) -> SegmentationStudent:
    student = unwrap_model(student)
    if not isinstance(student, SegmentationStudent):
        raise UserError(f"{type(student).__name__} is not a SegmentationStudent.")
    return student


class _Maps(nn.Module):
    """All feature maps of a backbone, concatenated per image for `compare_logits`."""

    def __init__(self, backbone: nn.Module, maps: Callable[[Any], Any]) -> None:
        super().__init__()
        self.backbone, self.maps = backbone, maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([maps.flatten(1) for maps in self.maps(images)], dim=1)


def _compare_maps(student: SegmentationStudent, folder: Path) -> None:
    name = student.backbone_name
    arguments = {**student.backbone_args, "features_only": True, "out_indices": student.levels}
    try:
        loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments)
        channels_last = str(getattr(loaded, "output_fmt", None)).endswith("NHWC")
    except Exception as error:  # timm's own complaint
        raise UserError(f"The backbone {name} does not load with features_only: {first_line(error)}.") from error

    def maps(images: torch.Tensor) -> list[torch.Tensor]:
        return [map_.permute(0, 3, 1, 2) if channels_last else map_ for map_ in loaded(images)]

    images = torch.randn(2, student.in_chans, *student.probe, generator=torch.Generator().manual_seed(0))
    compare_logits(_Maps(student.backbone, student.backbone_maps), _Maps(loaded, maps), images)
