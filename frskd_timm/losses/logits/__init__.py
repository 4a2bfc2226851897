"""Soft-label losses: `loss(teacher_logits, student_logits, target, temperature, weight) -> scalar`.

To add one, put a function into a file of this folder and decorate it with `@LOGIT_LOSSES.register(name)`. Its
arguments are the logits of both networks [N, K], of which only the student's get a gradient; classes [N] (255 or -100
for none) or probabilities [N, K]; the temperature T; and the weight of each row in the mean, [N] or None. Flags, help
and tests find it through the registry.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from frskd_timm.losses.functional import soft_label_loss, weighted_mean
from frskd_timm.registry import Registry

LOGIT_LOSSES: Registry[Tensor] = Registry("logit loss", __name__)

FLOOR = 0.03  # smaller standard deviations, as of a classifier that starts with zeros, would give huge gradients
OTHERS = 8.0  # weight of DKD's divergence among the other classes in its paper's CIFAR-100 experiments


@LOGIT_LOSSES.register("kl")
def kl(teacher: Tensor, student: Tensor, target: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Compute T^2 KL(softmax(z_t / T) || softmax(z_s / T)) (FRSKD, eq. 4)."""
    return soft_label_loss(teacher, student, temperature, weight)


@LOGIT_LOSSES.register("standardised")
def standardised(
    teacher: Tensor, student: Tensor, target: Tensor, temperature: float, weight: Tensor | None = None
) -> Tensor:
    """Compute `kl` of logits scaled to mean 0 and standard deviation 1 per row (arXiv 2403.01427)."""
    return soft_label_loss(_standardise(teacher), _standardise(student), temperature, weight)


def _standardise(logits: Tensor) -> Tensor:
    logits = logits.float()
    return _centred(logits) / logits.std(dim=1, keepdim=True, correction=0).clamp_min(FLOOR)


@LOGIT_LOSSES.register("dkd")
def dkd(teacher: Tensor, student: Tensor, target: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Compute T^2 (KL of the target class against the rest + 8 KL among the other classes) (DKD, arXiv 2203.08679).

    For mixed labels, the most probable class is the target; without a label, the teacher's.
    """
    classes = target if target.ndim == 1 else target.argmax(dim=1)
    is_class = (classes >= 0) & (classes < student.shape[1])
    own = F.one_hot(classes.where(is_class, teacher.argmax(dim=1)), student.shape[1]).bool()
    log_teacher, log_student = (
        torch.stack([log.where(own, 0).sum(dim=1), log.masked_fill(own, -torch.inf).logsumexp(dim=1)], dim=1)
        for log in (F.log_softmax(z.float() / temperature, dim=1) for z in (teacher.detach(), student))
    )
    rows = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
    binary = temperature**2 * (rows.mean() if weight is None else weighted_mean(rows, weight))
    without = -1000.0 * temperature  # logit of probability 0; finite, because inf - inf is NaN
    others, own_others = (z.float().masked_fill(own, without) for z in (teacher, student))
    return binary + OTHERS * soft_label_loss(others, own_others, temperature, weight)


@LOGIT_LOSSES.register("dist")
def dist(teacher: Tensor, student: Tensor, target: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Compute T^2 times the mean of 1 - Pearson correlation, of rows plus of classes (DIST, arXiv 2205.10536)."""
    t, s = (F.softmax(z.float() / temperature, dim=1) for z in (teacher.detach(), student))
    weight = torch.ones_like(s[:, 0]) if weight is None else weight
    classes = t.shape[1]
    rows = [_centred(z) * classes**0.5 for z in (t, s)]  # in units in which equal probabilities have norm 1
    within_rows = weighted_mean(1 - F.cosine_similarity(rows[0], rows[1], dim=1, eps=FLOOR), weight)
    share = (weight / weight.sum().clamp_min(1e-6))[:, None]
    means = [(share * z).sum(dim=0).clamp_min(1e-20) for z in (t, s)]
    columns = [(z / mean - 1) * share.sqrt() for z, mean in zip((t, s), means, strict=True)]
    within_classes = ((1 - F.cosine_similarity(columns[0], columns[1], dim=0, eps=FLOOR)) * (weight.sum() > 0)).mean()
    return temperature**2 * (within_rows + within_classes)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=1, keepdim=True)
