"""FRSKD for any kind of target: the base class of the tasks with a self-teacher."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.augment import TwoViews
from frskd_timm.defaults import CLASSIFICATION as DEFAULT
from frskd_timm.errors import UserError
from frskd_timm.gates import GATES
from frskd_timm.losses import FeatureLoss
from frskd_timm.losses.functional import missing_label
from frskd_timm.losses.logits import LOGIT_LOSSES
from frskd_timm.schedule import distillation_weight
from frskd_timm.student_task import StudentTask, Terms
from frskd_timm.teachers import SelfTeacher


class Outputs(NamedTuple):
    """Outputs of student and self-teacher for a batch; lists of maps are fine to coarse."""

    maps: list[Tensor]  # the student's
    logits: Tensor
    refined: list[Tensor]  # the self-teacher's maps
    teacher_logits: Tensor
    joint: tuple[Tensor, Tensor] | None = None  # with SLA: both networks' joint logits of class and rotation
    batch: TwoViews | None = None  # with a clean view; maps, refined and teacher_logits are then of its clean images
    clean_logits: Tensor | None = None  # the student's for these
    factor: Tensor | None = None  # of the images' or pixels' cross-entropy terms


class DistillationTask(StudentTask):
    """FRSKD (arXiv 2103.08273, eq. 6) for any kind of target.

        loss = v CE(z_s, y) + w CE(z_t, y) + r (alpha KL_tau(z_t, z_s) + beta sum_i D(F_i, T_i))

    r is the weight given by the schedule; v, w and r are 1 in the paper. The maps F_i enter the self-teacher without
    detaching, so CE(z_t, y) also trains the student's backbone. With SGD, v + w is a factor on its learning rate.

    Args:
        student: The network that is kept after training.
        self_teacher: Refines the student's maps and classifies from them.
        feature_loss: D; None leaves the term out.
        alpha: Weight of the soft labels.
        beta: Weight of the feature maps; None uses the `default_beta` of the feature loss, in segmentation half of it.
        temperature: tau of the soft labels.
        smoothing: Label smoothing of the cross-entropy terms.
        schedule: Name of the schedule of alpha and beta.
        start: Fraction of the run before distillation starts.
        logit_loss: A name in `losses.logits.LOGIT_LOSSES`.
        gate: 'none', or a name in `gates.GATES`, such as 'advantage' to use the soft labels only for images or pixels
            whose cross-entropy is lower for the self-teacher than for the student; the loss is the mean over these, so
            its scale does not change.
        student_weight: v, the weight of the terms with which the student learns the labels, above 0.
        teacher_weight: w, the weight of the terms with which the self-teacher learns the labels, above 0.
        teacher_gradient: Factor, from 0 to 1, of the gradient that flows from the self-teacher into the student; 1 in
            the paper.
        teacher_ema: Decay per update of a moving average of both networks that replaces the self-teacher as source of
            soft labels and refined maps; 0 for none. It normalises with the statistics of the batch.
        teacher_interval: Run the self-teacher only in every Nth update; the others use the labels only, and their
            result has no 'teacher_output'.

    With the schedule 'lead', r is a moving average of the relative lead of the self-teacher: how far its cross-entropy
    is below the student's, divided by the student's. With several processes, the first one measures it on its batches.

    A loop that never calls `set_progress` trains with r = 1 (with 'lead': the lead), and `teacher_interval` and
    `teacher_ema` have no effect; a warning says so for the latter.

    Raises:
        UserError: An argument is out of range, or a name is unknown.
    """

    beta_share: ClassVar = 1.0  # of the feature loss's `default_beta`, without a given beta
    distill_weight: Tensor
    lead: Tensor | None
    clock: Tensor | None

    def __init__(
        self,
        student: nn.Module,
        self_teacher: SelfTeacher,
        feature_loss: FeatureLoss | None,
        *,
        alpha: float = DEFAULT.alpha,
        beta: float | None = DEFAULT.beta,
        temperature: float = DEFAULT.temperature,
        smoothing: float = DEFAULT.smoothing,
        schedule: str = DEFAULT.distill_schedule,
        start: float = 0.0,
        logit_loss: str = DEFAULT.logit_loss,
        gate: str = DEFAULT.gate,
        student_weight: float = DEFAULT.student_weight,
        teacher_weight: float = DEFAULT.teacher_weight,
        teacher_gradient: float = DEFAULT.teacher_gradient,
        teacher_ema: float = DEFAULT.teacher_ema,
        teacher_interval: int = DEFAULT.teacher_interval,
    ) -> None:
        super().__init__(student, smoothing)
        self.self_teacher = self_teacher.to(self.device, self.dtype)
        self.feature_loss = None if feature_loss is None else feature_loss.to(self.device, self.dtype)
        if beta is None:
            beta = self.beta_share * feature_loss.default_beta if feature_loss is not None else 0.0
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.schedule, self.start = schedule, start
        self.gate = None if gate == "none" else GATES.get(gate, also=("none",))
        self.student_weight, self.teacher_weight = student_weight, teacher_weight
        self.teacher_gradient, self.teacher_ema, self.teacher_interval = teacher_gradient, teacher_ema, teacher_interval
        for name, value, fits, right in (
            ("alpha", alpha, alpha >= 0, "at least 0"),
            ("beta", beta, beta >= 0, "at least 0"),
            ("temperature", temperature, temperature > 0, "above 0"),
            ("start", start, 0 <= start < 1, "from 0 to below 1"),
            ("student_weight", student_weight, student_weight > 0, "above 0"),
            ("teacher_weight", teacher_weight, teacher_weight > 0, "above 0"),
            ("teacher_gradient", teacher_gradient, 0 <= teacher_gradient <= 1, "from 0 to 1"),
            ("teacher_ema", teacher_ema, 0 <= teacher_ema < 1, "from 0 to below 1"),
            ("teacher_interval", teacher_interval, teacher_interval >= 1, "at least 1"),
        ):
            if not fits:
                raise UserError(f"{name} must be {right}, not {value:g}.")
        self.logit_loss = LOGIT_LOSSES.get(logit_loss)
        self.average: nn.Module | None = None
        if teacher_ema:
            # After n updates the decay is (1 + n) / (10 + n), which forgets the random initial weights sooner.
            warmup: dict[str, Any] = {"use_warmup": True, "warmup_gamma": 9, "warmup_power": 1}
            ema = ModelEmaV3(nn.ModuleDict(self.networks), teacher_ema, exclude_buffers=True, **warmup)
            self._ema_of_teacher = (ema,)
            self.average = ema.module.requires_grad_(False).train(student.training)
        # Progress at the last update and number of updates. Saved with the lead, so that a resumed run is identical.
        counts = bool(teacher_ema) or teacher_interval > 1
        self.register_buffer("clock", torch.zeros(2, device=self.device) if counts else None)
        self.register_buffer("lead", torch.zeros((), device=self.device) if schedule == "lead" else None)
        # A tensor, so that a change does not recompile a compiled step. Not saved: it follows from the progress.
        self.register_buffer("distill_weight", torch.ones((), device=self.device), persistent=False)
        distillation_weight(schedule, 0.0)  # refuses an unknown schedule
        self._in_progress = self._skips_teacher = False

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        before = {name: getattr(self, name) for name in ("clock", "lead")}
        result = super()._apply(fn, *args, **kwargs)
        for name, buffer in before.items():  # their numbers need all their digits, also after .bfloat16()
            if buffer is not None and not buffer.is_meta:
                setattr(self, name, buffer.to(getattr(self, name).device))
        return result

    def _follow(self, progress: float) -> None:
        """Set r for the next step, and update the moving average if the last step updated the weights."""
        super()._follow(progress)
        self._in_progress = True
        self.distill_weight.fill_(distillation_weight(self.schedule, progress, self.start))
        if self.clock is None:
            return
        before, updates = self.clock.tolist()
        if before != torch.tensor(progress, dtype=self.clock.dtype).item():
            updates += 1
            self.clock.copy_(torch.tensor([progress, updates]))
            if self.average is not None:
                networks = nn.ModuleDict(self.networks)
                if [p.shape for p in networks.parameters()] != [p.shape for p in self.average.parameters()]:
                    raise UserError("With teacher_ema, freeze or replace layers before the task is created.")
                self._ema_of_teacher[0].update(networks, step=int(updates) + 2)
        self._skips_teacher = updates % self.teacher_interval > 0

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The trained networks by name."""
        return {"student": self.student, "self_teacher": self.self_teacher}

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return the parameters whose gradients are clipped; `exclude_head` leaves out the last two of each network."""
        head = {id(parameter) for parameter in list(self.self_teacher.parameters())[-2:]} if exclude_head else set()
        return [p for p in super().get_clip_parameters(exclude_head) if id(p) not in head]

    @abstractmethod
    def run_networks(self, images: Tensor, networks: Mapping[str, nn.Module]) -> Outputs:
        """Run a 'student' and a 'self_teacher' on images [B, C, H, W]."""

    def _run_views(self, input: Tensor | TwoViews) -> Outputs:
        if self.training and isinstance(input, TwoViews) != self.clean_view:
            kind = "an augment.TwoViews" if self.clean_view else "a tensor of images"
            raise UserError(f"The input of a step must be {kind} with this teacher_view.")
        if not isinstance(input, TwoViews):
            return self.run_networks(input, self.networks)
        outputs = self.run_networks(input.clean, self.networks)
        views = input._replace(classes=input.classes.long())
        return outputs._replace(logits=self.student(input.images), batch=views, clean_logits=outputs.logits)

    def extend(self, outputs: Outputs, images: Tensor) -> Outputs:
        """Add outputs that only training needs."""
        return outputs

    def step(self, input: Tensor | TwoViews, target: Tensor) -> Terms:
        """Compute the loss of one training step.

        Args:
            input: Images [B, C, H, W], or with `clean_view` the two views of them.
            target: Classes [B], probabilities [B, K] (Mixup, CutMix), or classes [B, H, W] in segmentation.

        Returns:
            'loss' (the scalar to backpropagate), 'output' (the student's logits), 'teacher_output' (the
            self-teacher's), and the weighted terms: loss_ce, loss_ce_teacher, loss_kl, with a feature loss
            loss_feature, and with SLA loss_sla, loss_sla_teacher, loss_sla_kl.
        """
        images = input.images if isinstance(input, TwoViews) else input
        if self.training and self._skips_teacher:
            return self._labels_only(images, target)
        outputs = self.extend(self._run_views(input), images)
        advice = outputs
        if self.average is not None and self.training and not self._in_progress:
            warnings.warn("teacher_ema has no effect until task.set_progress is called before each step.", stacklevel=2)
        elif self.average is not None:
            clean = input.clean if isinstance(input, TwoViews) else input
            with torch.no_grad():
                average = self.run_networks(clean, dict(self.average.named_children()))
            advice = outputs._replace(refined=average.refined, teacher_logits=average.teacher_logits)
        weight = self.distill_weight if self.lead is None else self.distill_weight * self.lead
        with torch.autocast(images.device.type, enabled=False):
            factor = self.label_factor((outputs.logits, outputs.teacher_logits), target)
            outputs = outputs._replace(factor=factor)
            terms = self.label_terms(outputs, target)
            terms["loss_kl"] = weight * self.alpha * self.soft_labels(advice, target)
        if self.feature_loss is not None:
            distance = self.feature_loss(advice.maps, advice.refined, self.valid_positions(advice, target))
            terms["loss_feature"] = weight * self.beta * distance
        if self.lead is not None and self.training:
            self._measure_lead(outputs, terms)
        loss = torch.stack(list(terms.values())).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, "output": outputs.logits, "teacher_output": outputs.teacher_logits, **logged}

    @torch.no_grad()
    def _measure_lead(self, outputs: Outputs, terms: Terms) -> None:
        """Move the lead towards that of this batch, where both networks see the same images."""
        assert self.lead is not None
        own, other = terms["loss_ce"] / self.student_weight, terms["loss_ce_teacher"] / self.teacher_weight
        if outputs.batch is not None and outputs.clean_logits is not None:
            own = self.cross_entropy(outputs.clean_logits, outputs.batch.classes, outputs.factor)
        found = (1 - other / own.clamp_min(1e-6)).clamp(0, 1).nan_to_num(0)
        self.lead.lerp_(found, torch.where(own > 0, 0.01, 0.0))  # a batch without a labelled pixel tells nothing

    def _labels_only(self, images: Tensor, target: Tensor) -> Terms:
        """Compute a step with the labels alone; all other parameters get a gradient of zero, as DDP requires."""
        logits = self.student(images)
        with torch.autocast(images.device.type, enabled=False):
            # In full, since no other term trains the backbone.
            loss = self.cross_entropy(logits, target, self.label_factor([logits], target))
        zero = torch.zeros_like(loss)
        idle = sum((p.flatten()[:0].sum(dtype=zero.dtype) for p in self.idle_parameters()), zero)
        terms = {"loss_ce": loss.detach(), "loss_ce_teacher": zero, "loss_kl": zero}
        if self.feature_loss is not None:
            terms["loss_feature"] = zero
        return {"loss": loss + idle, "output": logits, **terms}

    def idle_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters that have no part in the student's logits."""
        return [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("student.")]

    def label_terms(self, outputs: Outputs, target: Tensor) -> Terms:
        """Return the loss terms that use the labels."""
        labels = target if outputs.batch is None else outputs.batch.classes
        own = self.cross_entropy(outputs.logits, target, outputs.factor)
        other = self.cross_entropy(outputs.teacher_logits, labels, outputs.factor)
        return {"loss_ce": self.student_weight * own, "loss_ce_teacher": self.teacher_weight * other}

    def soft_labels(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Return the unweighted soft-label loss."""
        if outputs.batch is not None and outputs.batch.mixing is not None:  # the soft label of a mixture is the mixture
            probabilities = outputs.batch.mixing.float() @ outputs.teacher_logits.float().softmax(dim=1)
            outputs = outputs._replace(teacher_logits=probabilities.clamp_min(1e-12).log())
        weight = self._gate_weights(outputs, target)
        return self.logit_loss(outputs.teacher_logits.detach(), outputs.logits, target, self.temperature, weight)

    @torch.no_grad()
    def _gate_weights(self, outputs: Outputs, target: Tensor) -> Tensor | None:
        """Return 1 for images or pixels whose soft labels count and 0 for the others; None if all count."""
        if self.gate is None:
            return None
        both, ignored = (outputs.logits, outputs.teacher_logits), missing_label(target)
        return self.gate(*(F.cross_entropy(z.float(), target, ignore_index=ignored, reduction="none") for z in both))

    def valid_positions(self, outputs: Outputs, target: Tensor) -> list[Tensor] | None:
        """Return masks [B, H_i, W_i] of the positions that the feature loss compares, one per map; None for all."""
        return None

    def entering(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps that the self-teacher takes as input, with their gradient scaled by `teacher_gradient`."""
        if self.teacher_gradient == 1:
            return list(maps)
        return [torch.lerp(map_.detach(), map_, self.teacher_gradient) for map_ in maps]

    def predict(self, images: Tensor, average: nn.Module | None = None) -> dict[str, Tensor]:
        """Return the logits of 'student', or of an average of it, and 'self_teacher'."""
        found = self.run_networks(images, self.networks)
        return {"student": found.logits if average is None else average(images), "self_teacher": found.teacher_logits}
