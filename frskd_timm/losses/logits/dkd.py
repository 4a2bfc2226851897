"""Decoupled knowledge distillation (DKD, arXiv 2203.08679)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from frskd_timm.losses.functional import soft_label_loss, weighted_mean
from frskd_timm.losses.logits import LOGIT_LOSSES

OTHERS = 8.0  # weight of the divergence among the other classes in the paper's CIFAR-100 experiments


@LOGIT_LOSSES.register("dkd")
def dkd(teacher: Tensor, student: Tensor, target: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Compute T^2 (KL of the target class against the rest + 8 KL among the other classes).

    For mixed labels, the most probable class is the target.
    """
    classes = target if target.ndim == 1 else target.argmax(dim=1)
    own = F.one_hot(classes.where(classes < student.shape[1], 0), student.shape[1]).bool()
    log_teacher, log_student = (
        torch.stack([log[own], log.masked_fill(own, -torch.inf).logsumexp(dim=1)], dim=1)
        for log in (F.log_softmax(z.float() / temperature, dim=1) for z in (teacher.detach(), student))
    )
    rows = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
    binary = temperature**2 * (rows.mean() if weight is None else weighted_mean(rows, weight))
    without = -1000.0 * temperature  # logit of probability 0; finite, because inf - inf is NaN
    others, own_others = (z.float().masked_fill(own, without) for z in (teacher, student))
    return binary + OTHERS * soft_label_loss(others, own_others, temperature, weight)
