"""Kinds of targets: one file each, with the methods of `ClassLabels`. The rest of the data code serves all kinds."""

from frskd_train.data.targets.class_label import ClassLabels
from frskd_train.data.targets.mask import Masks

Targets = ClassLabels | Masks
TARGETS: dict[str, type[Targets]] = {"classification": ClassLabels, "segmentation": Masks}
