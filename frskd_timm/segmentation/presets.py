"""Segmentation students by name, and initial weights of their backbones."""

from typing import Any

import timm
from torch import nn

from frskd_timm.errors import UserError, first_line
from frskd_timm.lookup import HUB_ERRORS, exported_cfg, hub_error, known_cfg
from frskd_timm.segmentation.student import SegmentationStudent

PRESETS: dict[str, dict[str, Any]] = {
    "efficientdet_d0": {"backbone": "efficientnet_b0", "channels": 64},
    "efficientdet_d1": {"backbone": "efficientnet_b1", "channels": 88},
}
"""Networks of the paper: backbones and widths of EfficientDet (arXiv 1911.09070)."""


_ELSEWHERE = ("local-dir:", "hf-hub:")
_OF_STUDENT = ("num_classes", "in_chans", "global_pool", "features_only")  # arguments that do not apply to a backbone


def create_segmentation_student(
    name: str, num_classes: int, *, pretrained: bool = False, **arguments: Any
) -> SegmentationStudent:
    """Create a student.

    Args:
        name: A key of `PRESETS`, or the name of a timm model as backbone; a `local-dir:` or `hf-hub:` name also selects
            the initial weights.
        num_classes: Number of classes.
        pretrained: Start from timm's pretrained weights of the backbone.
        **arguments: Further arguments of `SegmentationStudent`. `channels` defaults to the preset's value, else to 64;
            `mean` and `std` default to those of the pretrained weights.

    Raises:
        UserError: The model is unknown, has no usable maps, or its weights are not available.
    """
    if not isinstance(name, str):
        raise UserError(f"name must be that of a timm model, such as 'resnet18', not {type(name).__name__}.")
    arguments = {**PRESETS.get(name, {"backbone": name}), **arguments}
    weights = arguments["backbone"]
    cfg: dict[str, Any] = {}
    if weights.startswith(_ELSEWHERE):
        try:
            cfg, own = exported_cfg(weights)
        except HUB_ERRORS as error:
            raise hub_error(weights, error) from error
        except Exception as error:
            raise UserError(f"{weights} is not an exported model: {first_line(error)}.") from error
        arguments["backbone"] = cfg["architecture"]
        own = {key: value for key, value in own.items() if key not in _OF_STUDENT}
        arguments["backbone_args"] = own | (arguments.get("backbone_args") or {})
        pretrained = True
    elif pretrained and (known := known_cfg(weights)):
        cfg = known.to_dict()
    for statistic in ("mean", "std"):
        values = cfg.get(statistic) or None
        if isinstance(values, (list, tuple)) and len(values) != arguments.get("in_chans", 3):
            values = (sum(values) / len(values),)
        arguments.setdefault(statistic, values)  # the student refuses what is no list
    student = SegmentationStudent(num_classes=num_classes, **arguments)
    if pretrained:
        load_backbone(student, weights)
    return student


def load_backbone(student: SegmentationStudent, name: str) -> None:
    """Load weights into a student's backbone.

    `name` is a timm model of the same architecture, or a `local-dir:` or `hf-hub:` name.

    Raises:
        UserError: There are no weights, they could not be loaded, or they belong to another architecture.
    """
    if not name.startswith(_ELSEWHERE):
        known_cfg(name, weights=True)
    try:
        arguments = {**student.backbone_args, "num_classes": 0, "in_chans": student.in_chans}
        model: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # no network, no such folder, damaged files: the error of the Hub or timm says which
        raise UserError(f"The weights of '{name}' could not be loaded: {first_line(error)}.") from error
    own, found = student.backbone.state_dict(), model.state_dict()
    missing = sorted(key for key, value in own.items() if key not in found or found[key].shape != value.shape)
    if missing:
        raise UserError(
            f"'{name}' does not fit the backbone {student.backbone_name}: {len(missing)} weights are missing or of "
            f"another shape, such as {missing[0]}."
        )
    student.backbone.load_state_dict({key: found[key] for key in own})
