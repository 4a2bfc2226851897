"""Training tasks of segmentation, for the same training loop as classification (see `frskd_timm.distillation`)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.defaults import SEGMENTATION as DEFAULT
from frskd_timm.distillation import DistillationTask, Outputs
from frskd_timm.errors import UserError
from frskd_timm.losses import FEATURE_LOSSES, FeatureLoss
from frskd_timm.losses.functional import IGNORED
from frskd_timm.losses.labels import LabelLoss
from frskd_timm.segmentation.evaluator import SegmentationEvaluator
from frskd_timm.segmentation.student import SegmentationStudent
from frskd_timm.segmentation.teacher import SEGMENTATION_TEACHERS
from frskd_timm.student_task import CrossEntropyTask, StudentTask
from frskd_timm.teachers import SelfTeacher, check_outputs


def _checked(student: nn.Module) -> nn.Module:
    if not isinstance(student, SegmentationStudent):
        raise UserError(
            f"student must be a SegmentationStudent, not {type(student).__name__}: use create_segmentation_student."
        )
    if not 2 <= student.num_classes <= IGNORED:
        raise UserError(
            f"The student has {student.num_classes} class(es), but its task needs 2 to {IGNORED}: a binary mask has 2, "
            "background and foreground."
        )
    return student


class _PixelTask(StudentTask):
    """Base class of tasks with one class per pixel; their `label_loss` is a `LabelLoss`."""

    student: SegmentationStudent

    def use_class_weights(self, class_weights: Sequence[float] | None) -> None:
        """Set one weight per class, None for equal weights; raise UserError if their number or a value is wrong."""
        loss = LabelLoss(self.student.num_classes, self.smoothing, class_weights)
        self.label_loss = loss.to(self.device)

    def create_evaluator(self, **kwargs: Any) -> SegmentationEvaluator:
        """Create an evaluator of mean IoU, as timm's tasks do for accuracy."""
        return SegmentationEvaluator(self.student.num_classes, self.device, **kwargs)


class SegmentationCrossEntropyTask(_PixelTask, CrossEntropyTask):
    """The baseline: the student alone, with the parts that only a self-teacher would use frozen."""

    def __init__(
        self,
        student: SegmentationStudent,
        class_weights: Sequence[float] | None = None,
        smoothing: float = DEFAULT.smoothing,
    ) -> None:
        super().__init__(_checked(student), smoothing)
        self.use_class_weights(class_weights)
        student.use_bottom_up(False)


class SegmentationTask(_PixelTask, DistillationTask):
    """FRSKD for semantic segmentation (arXiv 2103.08273, section 4.3); see `DistillationTask`.

    Pixels labelled 255, such as padding, do not count in any term: a position of a feature map is compared if at least
    half of its pixels are labelled.

    Args:
        student: The network that is kept after training.
        self_teacher: Refines the student's maps and classifies pixels.
        feature_loss: D; None leaves the term out.
        class_weights: Weight of each class in both cross-entropy terms; None for equal weights.
        **options: Further arguments of `DistillationTask`.

    Raises:
        UserError: An argument is out of range, or does not fit the student.
    """

    beta_share: ClassVar = 0.5  # the authors' beta is 50

    def __init__(
        self,
        student: SegmentationStudent,
        self_teacher: SelfTeacher,
        feature_loss: FeatureLoss | None,
        *,
        class_weights: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(_checked(student), self_teacher, feature_loss, **(DEFAULT.task_options() | options))
        self.use_class_weights(class_weights)
        trains_decoder = self.teacher_gradient > 0 and not self_teacher.beside_decoder
        student.use_bottom_up(self.feature_loss is not None or trains_decoder)

    @classmethod
    def create(
        cls,
        student: SegmentationStudent,
        *,
        self_teacher: str = DEFAULT.self_teacher,
        teacher_repeats: int = DEFAULT.teacher_repeats,
        feature_loss: str = DEFAULT.feature_loss,
        beta: float | None = DEFAULT.beta,
        **options: Any,
    ) -> "SegmentationTask":
        """Create the self-teacher and the feature loss around a student, with the defaults of `frskd train`.

        Args:
            student: The network that is kept after training.
            self_teacher: A name in `teacher.SEGMENTATION_TEACHERS`.
            teacher_repeats: BiFPN layers of a self-teacher that has some.
            feature_loss: Name in `losses.FEATURE_LOSSES` of a loss that compares maps after their activation.
            beta: Weight of the feature loss; 0 disables it, None uses half of its `default_beta`, which is the authors'
                50 for attention, or disables it for a self-teacher beside the decoder.
            **options: Further arguments of the task.

        Raises:
            UserError: An argument has a wrong value, or two of them cannot be combined.
        """
        _checked(student)
        if teacher_repeats < 1:
            raise UserError(f"teacher_repeats must be at least 1, not {teacher_repeats}.")
        teacher_class: Any = SEGMENTATION_TEACHERS.get(self_teacher)
        teacher = teacher_class(student.channels, student.num_levels, student.num_classes, teacher_repeats)
        if teacher.beside_decoder and teacher_repeats != DEFAULT.teacher_repeats:
            raise UserError(
                f"teacher_repeats {teacher_repeats} has no effect with the self-teacher {self_teacher}, which has no "
                "layers; choose another one, or leave it out."
            )
        loss_class: Any = None if beta == 0 else FEATURE_LOSSES.get(feature_loss)
        if getattr(loss_class, "preactivation", False):
            raise UserError(
                f"The feature loss {feature_loss} is for classification; segmentation takes attention or fitnet."
            )
        if beta is None and teacher.beside_decoder:
            if feature_loss != DEFAULT.feature_loss:
                refining = [name for name in SEGMENTATION_TEACHERS.names() if name != self_teacher]
                raise UserError(
                    f"The feature loss {feature_loss} has no effect with the self-teacher {self_teacher}, which "
                    f"refines no maps; choose the self-teacher {' or '.join(refining)}, or set beta."
                )
            loss_class = None  # it refines nothing
        feature = loss_class and loss_class([student.channels] * student.num_levels, teacher)
        return cls(student, teacher, feature, beta=beta, **options)

    def run_networks(self, images: Tensor, networks: Mapping[str, nn.Module]) -> Outputs:
        """Run a student and a self-teacher on images [B, C, H, W]; logits are [B, K, H, W]."""
        student: Any = networks["student"]
        pyramid = student.forward_pyramid(images)
        maps = student.decode(pyramid, finest_only=self.feature_loss is None and self.self_teacher.beside_decoder)
        entering = pyramid if self.self_teacher.beside_decoder else maps
        refined, teacher_logits = networks["self_teacher"](self.entering(entering))
        size = images.shape[-2:]
        logits = student.forward_head(maps, size)
        check_outputs(logits, teacher_logits)
        return Outputs(maps, logits, refined, student.to_pixels(teacher_logits, size))

    def idle_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters that have no part in the student's logits."""
        last = self.student.bifpn[-1].get_submodule("down")
        return [*super().idle_parameters(), *(p for p in last.parameters() if p.requires_grad)]

    def soft_labels(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Return the mean soft-label loss over the labelled pixels."""
        weight, gate = self._labelled(target).float(), self._gate_weights(outputs, target)
        weight = weight if gate is None else weight * gate
        teacher, student = (logits.movedim(1, -1).flatten(0, -2) for logits in (outputs.teacher_logits, outputs.logits))
        return self.logit_loss(teacher.detach(), student, target.flatten(), self.temperature, weight.flatten())

    def valid_positions(self, outputs: Outputs, target: Tensor) -> list[Tensor]:
        """Return a mask per map of the positions with at least half of their pixels labelled."""
        labelled = self.student.pad(self._labelled(target).float())
        return [F.adaptive_avg_pool2d(labelled, (map_.shape[-2], map_.shape[-1])) >= 0.5 for map_ in outputs.maps]

    def _labelled(self, target: Tensor) -> Tensor:
        return target != IGNORED
