"""Training tasks: `task(input, target) -> {'loss', 'output', one entry a loss term}`.

Everything trainable sits under one `forward`, so that DDP, autocast and compile see one module. The terms are weighted
already: 'loss' is their sum. The training loop needs to know nothing more of the method.
"""

from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.augment import rotations
from frskd_timm.errors import UserError
from frskd_timm.losses import FEATURE_LOSSES, FeatureLoss
from frskd_timm.losses.functional import cross_entropy, soft_label_loss
from frskd_timm.pyramid import Pyramid
from frskd_timm.schedule import distillation_weight
from frskd_timm.teachers import SelfTeacher, create_self_teacher
from frskd_timm.teachers.blocks import global_average


class StudentTask(TrainingTask):
    """What every task offers to a training loop beside its forward.

    Attributes:
        student: The network that is kept: any timm model.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__(verbose=False)
        self.student = student

    def set_progress(self, progress: float) -> None:
        """Tells the task which share of the run, 0..1, is over; called before each step."""

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B, num_classes] of each network of the task, by name; 'student' is always there."""
        return {"student": self.student(images)}


class CrossEntropyTask(StudentTask):
    """The baseline: the student alone.

    Args:
        student: Any classifier.
        smoothing: Label smoothing, 0..1.
    """

    def __init__(self, student: nn.Module, smoothing: float = 0.0) -> None:
        super().__init__(student)
        self.smoothing = smoothing

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """See `FRSKDTask.forward`; the only term is 'loss_ce'."""
        logits = self.student(input)
        with torch.autocast(input.device.type, enabled=False):
            loss = cross_entropy(logits, target, self.smoothing)
        return {"loss": loss, "output": logits, "loss_ce": loss.detach()}


class SLAHeads(nn.Module):
    """Joint classifiers of class and rotation on the globally averaged last maps of both networks (SLA).

    Args:
        student_channels: Channels of the student's last map.
        teacher_channels: Channels of the self-teacher's last map.
        num_classes: Number of classes; each head has four times as many outputs, class-major.
    """

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()
        self.student = nn.Linear(student_channels, 4 * num_classes)
        self.teacher = nn.Linear(teacher_channels, 4 * num_classes)


def joint_target(target: Tensor) -> Tensor:
    """Labels of class and rotation, 4 y + r, for the output of `augment.rotations`.

    Args:
        target: Classes [B], or probabilities [B, K].

    Returns:
        [4 B], or [4 B, 4 K].
    """
    rotation = torch.arange(4, device=target.device)
    if target.ndim == 1:
        return (4 * target[:, None] + rotation).flatten()
    one_hot = torch.eye(4, dtype=target.dtype, device=target.device)
    return torch.einsum("bk,rs->brks", target, one_hot).reshape(4 * len(target), -1)


def aggregate(joint_logits: Tensor) -> Tensor:
    """Mean over the four rotations of an image of the logits that belong to that rotation: [4 B, 4 K] -> [B, K]."""
    batch, outputs = len(joint_logits) // 4, joint_logits.shape[1]
    by_rotation = joint_logits.view(batch, 4, outputs // 4, 4)
    return torch.diagonal(by_rotation, dim1=1, dim2=3).mean(dim=-1)


class FRSKDTask(StudentTask):
    """Feature refinement via self-knowledge distillation (arXiv 2103.08273, eq. 6; with SLA section 4.2).

        loss = CE(z_s, y) + CE(z_t, y) + r (alpha KL_T(z_t, z_s) + beta sum_i D(F_i, T_i))

    r is the schedule's weight, 1 in the paper. The maps F_i enter the self-teacher undetached: CE(z_t, y) trains the
    student's backbone too.

    Args:
        student: Any timm model with a pyramid of features.
        pyramid: Levels of the student.
        self_teacher: Refines the maps and classifies.
        feature_loss: D; None leaves the term out.
        alpha: Weight of the soft labels.
        beta: Weight of the feature maps.
        temperature: T.
        smoothing: Label smoothing of the cross-entropy terms.
        schedule: Name of the schedule of alpha and beta.
        start: Share of the run before distillation starts.
        detach: Hand the self-teacher detached maps (not in the paper).
        sla: Heads for self-supervised label augmentation; None leaves it out.
        sla_weight: Weight of the terms that teach the plain classifiers from the aggregated ones.
    """

    distill_weight: Tensor

    def __init__(
        self,
        student: nn.Module,
        pyramid: Pyramid,
        self_teacher: SelfTeacher,
        feature_loss: FeatureLoss | None,
        *,
        alpha: float = 2.0,
        beta: float = 100.0,
        temperature: float = 4.0,
        smoothing: float = 0.0,
        schedule: str = "constant",
        start: float = 0.0,
        detach: bool = False,
        sla: SLAHeads | None = None,
        sla_weight: float = 1.0,
    ) -> None:
        super().__init__(student)
        self.pyramid = pyramid
        self.self_teacher = self_teacher
        self.feature_loss = feature_loss
        self.sla = sla
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.smoothing, self.sla_weight = smoothing, sla_weight
        self.schedule, self.start, self.detach = schedule, start, detach
        # A tensor, so that a compiled step is not compiled again when it changes; follows from the progress, not saved.
        self.register_buffer("distill_weight", torch.ones(()), persistent=False)
        self.set_progress(0.0)

    @classmethod
    def create(
        cls,
        student: nn.Module,
        input_size: tuple[int, int, int],
        num_classes: int,
        *,
        self_teacher: str = "bifpnc",
        feature_loss: str = "attention",
        beta: float | None = None,
        max_levels: int = 4,
        sla: bool = False,
        teacher_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> "FRSKDTask":
        """Builds the parts by their names around a student.

        Args:
            student: Any timm model with a pyramid of features.
            input_size: (channels, height, width) of the images.
            num_classes: Number of classes.
            self_teacher: A name of `teachers.SELF_TEACHERS`.
            feature_loss: A name of `losses.FEATURE_LOSSES`.
            beta: Weight of the feature loss; with 0 it is left out, by default its `default_beta`.
            max_levels: At most this many levels of the student, the coarsest ones.
            sla: Add the heads of self-supervised label augmentation.
            teacher_options: The self-teacher's own arguments (width, depth, repeats).
            **options: Further arguments of the task.

        Raises:
            UserError: Unknown names, or a student without the feature maps that are needed.
        """
        loss_class: Any = None if beta == 0 else FEATURE_LOSSES.get(feature_loss)
        if beta is None:
            beta = loss_class.default_beta
        preactivation = bool(beta) and bool(getattr(loss_class, "preactivation", False))
        pyramid = Pyramid(student, input_size, max_levels, preactivation)
        teacher_arguments = dict(teacher_options or {})
        if preactivation:
            teacher_arguments["preactivation"] = True
        teacher = create_self_teacher(self_teacher, pyramid.channels, num_classes, **teacher_arguments)
        if sla and input_size[1] != input_size[2]:
            raise UserError(f"SLA rotates the images, so they have to be square, not {input_size[1]}x{input_size[2]}.")
        heads = SLAHeads(pyramid.channels[-1], teacher.channels[-1], num_classes) if sla else None
        feature = loss_class(pyramid.channels, teacher) if beta else None
        return cls(student, pyramid, teacher, feature, beta=beta, sla=heads, **options)

    def set_progress(self, progress: float) -> None:
        """Sets r for the coming step."""
        self.distill_weight.fill_(distillation_weight(self.schedule, progress, self.start))

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One training forward.

        Args:
            input: Images [B, C, H, W].
            target: Classes [B], or probabilities [B, K] (Mixup, CutMix).

        Returns:
            'loss' (scalar to backpropagate), 'output' (the student's logits [B, K]), 'teacher_output' (the
            self-teacher's), and the weighted terms: loss_ce, loss_ce_teacher, loss_kl, loss_feature, and with SLA
            loss_sla, loss_sla_teacher, loss_sla_kl.
        """
        maps, logits = self.pyramid(self.student, input)
        refined, teacher_logits = self.refine(maps)
        assert logits is not None
        student_soft, teacher_soft = [logits], [teacher_logits]

        terms: dict[str, Tensor] = {}
        if self.sla is not None:
            # The unrotated images are among the rotated ones, but can't be taken from the first forward: each batch
            # has its own normalisation statistics.
            turned_maps, _ = self.pyramid(self.student, rotations(input), head=False)
            turned_refined, _ = self.refine(turned_maps)
            joint = self.sla.student(global_average(self.pyramid.activate(self.student, turned_maps)[-1]))
            teacher_joint = self.sla.teacher(global_average(self._rectified(turned_refined[-1])))
            maps = [torch.cat(pair) for pair in zip(maps, turned_maps, strict=True)]
            refined = [torch.cat(pair) for pair in zip(refined, turned_refined, strict=True)]

        with torch.autocast(input.device.type, enabled=False):
            terms["loss_ce"] = cross_entropy(logits, target, self.smoothing)
            terms["loss_ce_teacher"] = cross_entropy(teacher_logits, target, self.smoothing)
            if self.sla is not None:
                labels = joint_target(target)
                terms["loss_sla"] = cross_entropy(joint, labels, self.smoothing)
                terms["loss_sla_teacher"] = cross_entropy(teacher_joint, labels, self.smoothing)
                aggregated, teacher_aggregated = aggregate(joint), aggregate(teacher_joint)
                terms["loss_sla_kl"] = self.sla_weight * (
                    soft_label_loss(aggregated, logits, self.temperature)
                    + soft_label_loss(teacher_aggregated, teacher_logits, self.temperature)
                )
                student_soft.append(aggregated)
                teacher_soft.append(teacher_aggregated)
            soft = soft_label_loss(torch.cat(teacher_soft), torch.cat(student_soft), self.temperature)
            terms["loss_kl"] = self.distill_weight * self.alpha * soft
        if self.feature_loss is not None:
            terms["loss_feature"] = self.distill_weight * self.beta * self.feature_loss(maps, refined)

        loss = torch.stack(list(terms.values())).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, "output": logits, "teacher_output": teacher_logits, **logged}

    def refine(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The self-teacher on the student's maps, which it takes after their activation whatever the feature loss."""
        maps = self.pyramid.activate(self.student, maps)
        return self.self_teacher([map_.detach() for map_ in maps] if self.detach else maps)

    def _rectified(self, refined: Tensor) -> Tensor:
        """A refined map after its ReLU, which maps that are handed on before it have not had."""
        return F.relu(refined) if self.feature_loss is not None and self.feature_loss.preactivation else refined

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of 'student' and 'self_teacher'."""
        maps, logits = self.pyramid(self.student, images)
        assert logits is not None
        return {"student": logits, "self_teacher": self.refine(maps)[1]}
