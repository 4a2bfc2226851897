"""Default settings of the method, for the classes of this package and for the command line.

This file imports nothing heavy, because `frskd_train.settings` runs it without importing torch.
"""

from dataclasses import dataclass
from typing import Any

# Names of settings that are arguments of `DistillationTask` as well.
TASK_OPTIONS = (
    "alpha", "beta", "temperature", "logit_loss", "gate",
    "student_weight", "teacher_weight", "teacher_gradient", "teacher_ema", "teacher_interval",
)  # fmt: skip


@dataclass(frozen=True)
class MethodDefaults:
    """Defaults of one kind of task, with the names of the flags."""

    alpha: float = 8.0
    beta: float | None = None  # the `default_beta` of the feature loss
    temperature: float = 2.0
    smoothing: float = 0.1
    logit_loss: str = "kl"
    gate: str = "none"
    distill_schedule: str = "ramp"
    student_weight: float = 1.0
    teacher_weight: float = 1.0
    teacher_gradient: float = 1.0
    teacher_ema: float = 0.0
    teacher_interval: int = 1
    teacher_view: str = "same"
    teacher_depth: int = 1
    teacher_repeats: int = 1
    self_teacher: str = "bifpnc"
    feature_loss: str = "attention"
    feature_levels: int = 4
    sla_weight: float = 1.0

    def task_options(self) -> dict[str, Any]:
        """Return the defaults of `DistillationTask`, with the names of its arguments."""
        options = {name: getattr(self, name) for name in TASK_OPTIONS}
        return {"schedule": self.distill_schedule, "smoothing": self.smoothing, **options}


CLASSIFICATION = MethodDefaults()
SEGMENTATION = MethodDefaults(alpha=1.0, temperature=1.0, self_teacher="pyramid")
