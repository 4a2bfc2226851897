"""Kinds of targets: one file each, and a line here. The rest of the data code is the same for all kinds."""

from frskd_train.data.targets.base import Targets
from frskd_train.data.targets.class_label import ClassLabels
from frskd_train.data.targets.mask import Masks

TARGETS: dict[str, type[Targets]] = {"classification": ClassLabels, "segmentation": Masks}

__all__ = ["TARGETS", "ClassLabels", "Masks", "Targets"]
