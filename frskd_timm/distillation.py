"""What the training tasks share: `task(input, target) -> {'loss', 'output', one entry per loss term}`.

Everything trainable is in one `forward`, so that DDP, autocast and compile see one module. The terms are already
weighted and 'loss' is their sum, so the training loop does not need to know the method.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.task import TrainingTask
from torch import Tensor, nn

from frskd_timm.losses import FeatureLoss
from frskd_timm.losses.functional import cross_entropy, soft_label_loss
from frskd_timm.schedule import distillation_weight
from frskd_timm.teachers import SelfTeacher

Terms = dict[str, Tensor]


class StudentTask(TrainingTask):
    """Base class of every task.

    Attributes:
        student: The network that is kept: any timm model.
        smoothing: Label smoothing of the cross-entropy terms, 0..1.
    """

    def __init__(self, student: nn.Module, smoothing: float = 0.0) -> None:
        super().__init__(verbose=False)
        self.student = student
        self.smoothing = smoothing

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits [B, K] and classes [B] or probabilities [B, K]."""
        return cross_entropy(logits, target, self.smoothing)

    def set_progress(self, progress: float) -> None:
        """Tell the task, before each step, which fraction of the run is over (0..1)."""

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of each network of the task by name; 'student' is always present."""
        return {"student": self.student(images)}


class CrossEntropyTask(StudentTask):
    """The baseline: the student alone."""

    def forward(self, input: Tensor, target: Tensor) -> Terms:
        """See `DistillationTask.forward`; the only term is 'loss_ce'."""
        logits = self.student(input)
        with torch.autocast(input.device.type, enabled=False):
            loss = self.cross_entropy(logits, target)
        return {"loss": loss, "output": logits, "loss_ce": loss.detach()}


class Views(NamedTuple):
    """What student and self-teacher make of a batch.

    Attributes:
        maps: The student's feature maps, fine to coarse.
        logits: The student's logits.
        refined: The self-teacher's maps.
        teacher_logits: The self-teacher's logits.
        joint: Joint logits of class and rotation of both networks, with SLA.
    """

    maps: list[Tensor]
    logits: Tensor
    refined: list[Tensor]
    teacher_logits: Tensor
    joint: tuple[Tensor, Tensor] | None = None


class DistillationTask(StudentTask):
    """FRSKD (arXiv 2103.08273, eq. 6) for any kind of target.

        loss = CE(z_s, y) + CE(z_t, y) + r (alpha KL_T(z_t, z_s) + beta sum_i D(F_i, T_i))

    r is the weight given by the schedule, 1 in the paper. The maps F_i enter the self-teacher undetached: CE(z_t, y)
    also trains the student's backbone.

    Args:
        student: The network that is kept.
        self_teacher: Refines the student's maps and classifies from them.
        feature_loss: D; None leaves the term out.
        alpha: Weight of the soft labels.
        beta: Weight of the feature maps.
        temperature: T of the soft labels.
        smoothing: Label smoothing of the cross-entropy terms.
        schedule: Name of the schedule of alpha and beta.
        start: Fraction of the run before distillation starts.
        detach: Give the self-teacher detached maps (not in the paper).
    """

    distill_weight: Tensor

    def __init__(
        self,
        student: nn.Module,
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
    ) -> None:
        super().__init__(student, smoothing)
        self.self_teacher = self_teacher
        self.feature_loss = feature_loss
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.schedule, self.start, self.detach = schedule, start, detach
        # A tensor, so that its change does not recompile a compiled step. Not saved: it follows from the progress.
        self.register_buffer("distill_weight", torch.ones(()), persistent=False)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Set r for the next step."""
        self.distill_weight.fill_(distillation_weight(self.schedule, progress, self.start))

    @abstractmethod
    def observe(self, images: Tensor) -> Views:
        """Run student and self-teacher on images [B, C, H, W]."""

    def extend(self, views: Views, images: Tensor) -> Views:
        """Add what only training looks at."""
        return views

    def forward(self, input: Tensor, target: Tensor) -> Terms:
        """Compute one training step's loss.

        Args:
            input: Images [B, C, H, W].
            target: Classes [B], probabilities [B, K] (Mixup, CutMix), or classes [B, H, W] in segmentation.

        Returns:
            'loss' (the scalar to backpropagate), 'output' (the student's logits), 'teacher_output' (the
            self-teacher's), and the weighted terms: loss_ce, loss_ce_teacher, loss_kl, loss_feature, and with SLA
            loss_sla, loss_sla_teacher, loss_sla_kl.
        """
        views = self.extend(self.observe(input), input)
        with torch.autocast(input.device.type, enabled=False):
            terms = self.label_terms(views, target)
            terms["loss_kl"] = self.distill_weight * self.alpha * self.soft_labels(views, target)
        if self.feature_loss is not None:
            distance = self.feature_loss(views.maps, views.refined, self.valid_positions(views, target))
            terms["loss_feature"] = self.distill_weight * self.beta * distance
        loss = torch.stack(list(terms.values())).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, "output": views.logits, "teacher_output": views.teacher_logits, **logged}

    def label_terms(self, views: Views, target: Tensor) -> Terms:
        """Return the terms that compare with the labels."""
        return {
            "loss_ce": self.cross_entropy(views.logits, target),
            "loss_ce_teacher": self.cross_entropy(views.teacher_logits, target),
        }

    def soft_labels(self, views: Views, target: Tensor) -> Tensor:
        """Return the soft-label loss, without its weight."""
        return soft_label_loss(views.teacher_logits, views.logits, self.temperature)

    def valid_positions(self, views: Views, target: Tensor) -> list[Tensor] | None:
        """Return which positions [B, H_i, W_i] of each map the feature loss compares; None for all."""
        return None

    def entering(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps as they enter the self-teacher."""
        return [map_.detach() for map_ in maps] if self.detach else list(maps)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of 'student' and 'self_teacher'."""
        views = self.observe(images)
        return {"student": views.logits, "self_teacher": views.teacher_logits}
