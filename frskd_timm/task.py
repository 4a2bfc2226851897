"""FRSKD for classification, with optional self-supervised label augmentation (SLA)."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.augment import rotations
from frskd_timm.cost import cost
from frskd_timm.defaults import CLASSIFICATION as DEFAULT
from frskd_timm.distillation import DistillationTask, Outputs
from frskd_timm.errors import UserError
from frskd_timm.layers import global_average
from frskd_timm.losses import FEATURE_LOSSES, FeatureLoss
from frskd_timm.losses.functional import UNLABELLED, soft_label_loss
from frskd_timm.probing import sample_images
from frskd_timm.pyramid import Pyramid
from frskd_timm.student_task import Terms
from frskd_timm.teachers import SelfTeacher, check_outputs, checked_result, create_self_teacher

TEACHER_VIEWS = ("same", "clean")


class SLAHeads(nn.Module):
    """Joint classifiers of class and rotation on the global averages of both networks' last maps (SLA).

    Each head has four outputs per class, class-major.
    """

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()
        self.student = nn.Linear(student_channels, 4 * num_classes)
        self.teacher = nn.Linear(teacher_channels, 4 * num_classes)


def joint_target(target: Tensor) -> Tensor:
    """Return the joint labels of class and rotation, 4 y + r, for the output of `augment.rotations`.

    Classes [B] become [4 B], probabilities [B, K] become [4 B, 4 K].
    """
    rotation = torch.arange(4, device=target.device)
    if target.ndim == 1:
        return (4 * target[:, None] + rotation).where(target[:, None] >= 0, UNLABELLED).flatten()
    one_hot = torch.eye(4, dtype=target.dtype, device=target.device)
    return torch.einsum("bk,rs->brks", target, one_hot).reshape(4 * len(target), -1)


def aggregate(joint_logits: Tensor) -> Tensor:
    """Average the logits of the four rotations of each image: [4 B, 4 K] -> [B, K]."""
    batch, outputs = len(joint_logits) // 4, joint_logits.shape[1]
    by_rotation = joint_logits.view(batch, 4, outputs // 4, 4)
    return torch.diagonal(by_rotation, dim1=1, dim2=3).mean(dim=-1)


class FRSKDTask(DistillationTask):
    """FRSKD for classification (arXiv 2103.08273, eq. 6; with SLA section 4.2); see `DistillationTask`.

    Args:
        student: Any timm model with `forward_intermediates` and `forward_head`, such as a CNN or a ViT.
        pyramid: Levels of the student.
        self_teacher: Refines the maps and classifies.
        feature_loss: D; None leaves the term out.
        sla: Heads for self-supervised label augmentation; None for no SLA.
        sla_weight: Weight of the terms that distil the aggregated classifiers into the plain ones.
        teacher_view: What the self-teacher sees: 'same', or 'clean' for the images before erasing and mixing; then the
            input of a step is an `augment.TwoViews`, and the student runs on both.
        **options: Further arguments of `DistillationTask`.

    Raises:
        UserError: An argument is out of range, or two of them cannot be combined.
    """

    def __init__(
        self,
        student: nn.Module,
        pyramid: Pyramid,
        self_teacher: SelfTeacher,
        feature_loss: FeatureLoss | None,
        *,
        sla: SLAHeads | None = None,
        sla_weight: float = DEFAULT.sla_weight,
        teacher_view: str = DEFAULT.teacher_view,
        **options: Any,
    ) -> None:
        super().__init__(student, self_teacher, feature_loss, **options)
        if sla is not None and self.clock is not None:
            raise UserError("SLA cannot be combined with teacher_ema or teacher_interval; leave one of them out.")
        if teacher_view not in TEACHER_VIEWS:
            raise UserError(f"Unknown teacher_view '{teacher_view}'; choose from {', '.join(TEACHER_VIEWS)}.")
        if sla_weight < 0:
            raise UserError(f"sla_weight must be at least 0, not {sla_weight:g}.")
        if len(pyramid.channels) != len(self_teacher.channels):
            levels = f"{len(pyramid.channels)} levels and the self-teacher {len(self_teacher.channels)}"
            raise UserError(f"The pyramid has {levels}: create the self-teacher for the channels of the pyramid.")
        before = feature_loss is not None and feature_loss.preactivation
        if any(getattr(part, "preactivation", before) != before for part in (pyramid, self_teacher)):
            when = "before" if before else "after"
            raise UserError(
                f"The feature loss compares maps {when} their activation: create the pyramid and the self-teacher with "
                f"preactivation={before}."
            )
        self.clean_view = teacher_view == "clean"
        if sla is not None and self.clean_view:
            raise UserError("SLA cannot be combined with the teacher_view clean; leave one of them out.")
        self.pyramid = pyramid
        self.sla = None if sla is None else sla.to(self.device, self.dtype)
        self.sla_weight = sla_weight

    @classmethod
    def create(
        cls,
        student: nn.Module,
        input_size: Sequence[int],
        num_classes: int,
        *,
        self_teacher: str = DEFAULT.self_teacher,
        feature_loss: str = DEFAULT.feature_loss,
        beta: float | None = DEFAULT.beta,
        max_levels: int = DEFAULT.feature_levels,
        sla: bool = False,
        teacher_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> "FRSKDTask":
        """Create the self-teacher and the losses around a student by their names, with the defaults of `frskd train`.

        Args:
            student: Any timm model with `forward_intermediates` and `forward_head`, such as a CNN or a ViT.
            input_size: (channels, height, width) of the images.
            num_classes: Number of classes.
            self_teacher: A name in `teachers.SELF_TEACHERS`.
            feature_loss: A name in `losses.FEATURE_LOSSES`.
            beta: Weight of the feature loss; 0 disables it, None uses its `default_beta`.
            max_levels: Maximum number of levels of the student; `Pyramid` says which ones are used.
            sla: Add the heads of self-supervised label augmentation.
            teacher_options: Further arguments of the self-teacher (width, depth, repeats). By default, its depth is 1
                (2 in the paper). The width of bifpnc and residual is the largest of 1/8, 2/8, ..., 1 (2 in the paper)
                at which it has no more parameters and no more multiply-adds than the student, or 1/8 if there is none;
                that of bifpn is 256 channels.
            **options: Further arguments of `FRSKDTask` and `DistillationTask`.

        Returns:
            The task, on the student's device.

        Raises:
            UserError: An argument has a wrong value, or the student does not provide what the method needs.
        """
        if not isinstance(student, nn.Module):
            raise UserError(f"student must be a model, not {student!r:.60}: create it with timm.create_model.")
        if not isinstance(input_size, Sequence) or len(input_size) != 3:
            raise UserError(f"input_size must be (channels, height, width), not {input_size!r:.60}.")
        if getattr(student, "num_classes", num_classes) != num_classes:
            hint = "create it with num_classes, or call its reset_classifier"
            raise UserError(f"The student has {student.num_classes} classes, not {num_classes!r}: {hint}.")
        if num_classes < 2:
            raise UserError(f"The student has {num_classes} classes: create it with at least 2.")
        loss_class: Any = None if beta == 0 else FEATURE_LOSSES.get(feature_loss)
        preactivation = bool(getattr(loss_class, "preactivation", False))
        size = (input_size[0], input_size[1], input_size[2])
        pyramid = Pyramid(student, size, max_levels, preactivation)
        limit = cache(lambda: cost(student, sample_images(student, size)))

        def fits(teacher: nn.Module) -> bool:
            shapes = zip(pyramid.channels, pyramid.sizes, strict=True)
            maps = [torch.empty(1, channels, *size, device="meta") for channels, size in shapes]
            return cost(teacher, maps).fits(limit())

        teacher_arguments = {"depth": DEFAULT.teacher_depth, "fits": fits, **(teacher_options or {})}
        teacher_arguments["preactivation"] = preactivation or None
        teacher = create_self_teacher(self_teacher, pyramid.channels, num_classes, **teacher_arguments)
        if sla and size[1] != size[2]:
            raise UserError(f"SLA rotates the images, so they must be square, not {size[1]}x{size[2]}.")
        heads = SLAHeads(pyramid.channels[-1], teacher.channels[-1], num_classes) if sla else None
        try:
            feature = loss_class and loss_class(pyramid.channels, teacher)
        except TypeError as error:
            raise UserError(f"The feature loss '{feature_loss}' cannot be created: {error}.") from error
        return cls(student, pyramid, teacher, feature, beta=beta, sla=heads, **options)

    def run_networks(self, images: Tensor, networks: Mapping[str, nn.Module]) -> Outputs:
        """Run a student and a self-teacher on images [B, C, H, W]."""
        logits: Any
        maps, logits = self.pyramid(networks["student"], images)
        refined, teacher_logits = self.refine(maps, networks)
        check_outputs(logits, teacher_logits)
        if self.self_teacher.residual:
            teacher_logits = logits.detach() + teacher_logits
        return Outputs(maps, logits, refined, teacher_logits)

    def extend(self, outputs: Outputs, images: Tensor) -> Outputs:
        """With SLA, add maps and joint logits of the four rotations from both networks."""
        if self.sla is None:
            return outputs
        # The rotated images include the unrotated ones, which still need a second forward: each batch has its own
        # normalisation statistics.
        turned_maps, _ = self.pyramid(self.student, rotations(images), head=False)
        turned_refined, _ = self.refine(turned_maps, self.networks)
        joint = self.sla.student(global_average(self.pyramid.activate(self.student, turned_maps)[-1]))
        last = turned_refined[-1]
        if self.feature_loss is not None and self.feature_loss.preactivation:
            last = F.relu(last)
        teacher_joint = self.sla.teacher(global_average(last))
        return outputs._replace(
            maps=[torch.cat(pair) for pair in zip(outputs.maps, turned_maps, strict=True)],
            refined=[torch.cat(pair) for pair in zip(outputs.refined, turned_refined, strict=True)],
            joint=(joint, teacher_joint),
        )

    def label_terms(self, outputs: Outputs, target: Tensor) -> Terms:
        """Return both cross-entropy terms, and with SLA also those of the joint labels."""
        terms = super().label_terms(outputs, target)
        if outputs.joint is not None:
            if getattr(self.label_loss, "class_weights", None) is not None:
                raise UserError("SLA cannot be combined with class weights; leave one of them out.")
            labels, factor = joint_target(target), outputs.factor
            if factor is not None:
                factor = factor.repeat_interleave(4)  # the rotations of an image share its label
            loss, teacher_loss = (self.cross_entropy(joint, labels, factor) for joint in outputs.joint)
            terms["loss_sla"] = self.student_weight * loss
            terms["loss_sla_teacher"] = self.teacher_weight * teacher_loss
            aggregated, teacher_aggregated = map(aggregate, outputs.joint)
            terms["loss_sla_kl"] = self.sla_weight * (
                soft_label_loss(aggregated, outputs.logits, self.temperature)
                + soft_label_loss(teacher_aggregated, outputs.teacher_logits, self.temperature)
            )
        return terms

    def soft_labels(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Return the soft-label loss, and with SLA also that of the aggregated logits."""
        if outputs.joint is None:
            return super().soft_labels(outputs, target)
        aggregated, teacher_aggregated = map(aggregate, outputs.joint)
        both = outputs._replace(
            logits=torch.cat([outputs.logits, aggregated]),
            teacher_logits=torch.cat([outputs.teacher_logits, teacher_aggregated]),
        )
        return super().soft_labels(both, torch.cat([target, target]))

    def refine(self, maps: list[Tensor], networks: Mapping[str, nn.Module]) -> tuple[list[Tensor], Tensor]:
        """Run the self-teacher on the student's maps after their activation, whatever the feature loss."""
        result = networks["self_teacher"](self.entering(self.pyramid.activate(networks["student"], maps)))
        return checked_result(result, maps, self.self_teacher.channels)
