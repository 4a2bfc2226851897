"""Training tasks of segmentation, for the same loop as those of classification (see `frskd_timm.task`)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_timm.losses import FEATURE_LOSSES, FeatureLoss
from frskd_timm.schedule import distillation_weight
from frskd_timm.segmentation.losses import pixel_cross_entropy, pixel_soft_label_loss
from frskd_timm.segmentation.student import SegmentationStudent
from frskd_timm.segmentation.teacher import SegmentationTeacher
from frskd_timm.task import StudentTask


class SegmentationCrossEntropyTask(StudentTask):
    """The baseline: the student alone. What of the student only a self-teacher would use is frozen.

    Args:
        student: The network.
        class_weights: Weight of each class in the cross-entropy; None weighs all alike.
        smoothing: Label smoothing, 0..1.
    """

    class_weights: Tensor | None

    def __init__(
        self, student: SegmentationStudent, class_weights: Sequence[float] | None = None, smoothing: float = 0.0
    ) -> None:
        super().__init__(student)
        self.smoothing = smoothing
        self.register_buffer("class_weights", _weights(class_weights, student.num_classes), persistent=False)
        _freeze_unused(student)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """See `SegmentationTask.forward`; the only term is 'loss_ce'."""
        logits = self.student(input)
        with torch.autocast(input.device.type, enabled=False):
            loss = pixel_cross_entropy(logits, target, self.class_weights, self.smoothing)
        return {"loss": loss, "output": logits, "loss_ce": loss.detach()}


class SegmentationTask(StudentTask):
    """FRSKD for semantic segmentation (arXiv 2103.08273, section 4.3).

        loss = CE(o_s, y) + CE(o_t, y) + r (alpha KL(o_t, o_s) + beta sum_i D(F_i, T_i))

    The cross-entropy leaves out pixels labelled 255; KL and D count every pixel. The maps F_i enter the self-teacher
    undetached. r is the schedule's weight: 0 before `start`, then rising to 1.

    Args:
        student: The network that is kept.
        self_teacher: Refines the student's maps and classifies pixels.
        feature_loss: D; None leaves the term out.
        alpha: Weight of the soft labels.
        beta: Weight of the feature maps.
        temperature: T of the soft labels.
        class_weights: Weight of each class in both cross-entropy terms; None weighs all alike.
        smoothing: Label smoothing of the cross-entropy terms.
        schedule: Name of the schedule of alpha and beta.
        start: Share of the run before distillation starts.
        detach: Hand the self-teacher detached maps (not in the paper).
    """

    class_weights: Tensor | None
    distill_weight: Tensor

    def __init__(
        self,
        student: SegmentationStudent,
        self_teacher: SegmentationTeacher,
        feature_loss: FeatureLoss | None,
        *,
        alpha: float = 1.0,
        beta: float = 50.0,
        temperature: float = 1.0,
        class_weights: Sequence[float] | None = None,
        smoothing: float = 0.0,
        schedule: str = "ramp",
        start: float = 0.0,
        detach: bool = False,
    ) -> None:
        super().__init__(student)
        self.self_teacher = self_teacher
        self.feature_loss = feature_loss
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.smoothing, self.schedule, self.start, self.detach = smoothing, schedule, start, detach
        self.register_buffer("class_weights", _weights(class_weights, student.num_classes), persistent=False)
        # A tensor, so that a compiled step is not compiled again when it changes; follows from the progress, not saved.
        self.register_buffer("distill_weight", torch.ones(()), persistent=False)
        self.set_progress(0.0)
        if detach and feature_loss is None:
            _freeze_unused(student)

    @classmethod
    def create(
        cls,
        student: SegmentationStudent,
        *,
        teacher_layers: int = 2,
        feature_loss: str = "attention",
        beta: float | None = None,
        **options: Any,
    ) -> "SegmentationTask":
        """Builds the self-teacher and the feature loss around a student.

        Args:
            student: The network that is kept.
            teacher_layers: BiFPN layers of the self-teacher.
            feature_loss: A name of `losses.FEATURE_LOSSES`, of those that compare maps after their activation.
            beta: Weight of the feature loss; with 0 it is left out, by default half its `default_beta`.
            **options: Further arguments of the task.

        Raises:
            UserError: Unknown names, or a feature loss that needs maps before their activation.
        """
        teacher = SegmentationTeacher(student.channels, student.num_levels, student.num_classes, teacher_layers)
        loss_class: Any = None if beta == 0 else FEATURE_LOSSES.get(feature_loss)
        if getattr(loss_class, "preactivation", False):
            raise UserError(
                f"--feature-loss {feature_loss} is for classification; segmentation takes attention or fitnet."
            )
        if beta is None:
            beta = loss_class.default_beta / 2
        feature = loss_class([student.channels] * student.num_levels, teacher) if beta else None
        return cls(student, teacher, feature, beta=beta, **options)

    def set_progress(self, progress: float) -> None:
        """Sets r for the coming step."""
        self.distill_weight.fill_(distillation_weight(self.schedule, progress, self.start))

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One training forward.

        Args:
            input: Images [B, C, H, W].
            target: Classes [B, H, W], 255 where there is none.

        Returns:
            'loss' (scalar to backpropagate), 'output' (the student's logits [B, K, H, W]), 'teacher_output' (the
            self-teacher's), and the weighted terms: loss_ce, loss_ce_teacher, loss_kl, loss_feature.
        """
        maps, logits, refined, teacher_logits = self._both(input)
        terms: dict[str, Tensor] = {}
        with torch.autocast(input.device.type, enabled=False):
            terms["loss_ce"] = pixel_cross_entropy(logits, target, self.class_weights, self.smoothing)
            terms["loss_ce_teacher"] = pixel_cross_entropy(teacher_logits, target, self.class_weights, self.smoothing)
            soft = pixel_soft_label_loss(teacher_logits, logits, self.temperature)
            terms["loss_kl"] = self.distill_weight * self.alpha * soft
        if self.feature_loss is not None:
            terms["loss_feature"] = self.distill_weight * self.beta * self.feature_loss(maps, refined)
        loss = torch.stack(list(terms.values())).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, "output": logits, "teacher_output": teacher_logits, **logged}

    def _both(self, images: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor], Tensor]:
        student: Any = self.student
        maps = student.forward_features(images)
        refined, teacher_logits = self.self_teacher([map_.detach() for map_ in maps] if self.detach else maps)
        size = images.shape[-2:]
        return maps, student.forward_head(maps, size), refined, student.to_pixels(teacher_logits, size)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B, K, H, W] of 'student' and 'self_teacher'."""
        _, logits, _, teacher_logits = self._both(images)
        return {"student": logits, "self_teacher": teacher_logits}


def _freeze_unused(student: SegmentationStudent) -> None:
    """Freezes what of the student its own logits do not depend on: DDP would wait for its gradients."""
    last: Any = student.bifpn[-1]
    last.down.requires_grad_(False)


def _weights(class_weights: Sequence[float] | None, num_classes: int) -> Tensor | None:
    if class_weights is None:
        return None
    if len(class_weights) != num_classes or min(class_weights) < 0 or max(class_weights) == 0:
        raise UserError(
            f"There are {len(class_weights)} class weights for {num_classes} classes; give one a class, none below 0."
        )
    return torch.tensor(class_weights, dtype=torch.float32)
