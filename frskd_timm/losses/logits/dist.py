"""Relational distillation from a stronger teacher (DIST, arXiv 2205.10536)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from frskd_timm.losses.functional import weighted_mean
from frskd_timm.losses.logits import LOGIT_LOSSES


@LOGIT_LOSSES.register("dist")
def dist(teacher: Tensor, student: Tensor, target: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Compute T^2 times the mean of 1 - Pearson correlation, over the classes of each row plus over rows per class."""
    t, s = (F.softmax(z.float() / temperature, dim=1) for z in (teacher.detach(), student))
    weight = torch.ones_like(s[:, 0]) if weight is None else weight
    within_rows = weighted_mean(1 - F.cosine_similarity(_centred(t), _centred(s), dim=1), weight)
    share = (weight / weight.sum().clamp_min(1e-6))[:, None]
    t, s = ((z - (share * z).sum(dim=0)) * share.sqrt() for z in (t, s))
    within_classes = ((1 - F.cosine_similarity(t, s, dim=0)) * (weight.sum() > 0)).mean()
    return temperature**2 * (within_rows + within_classes)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=1, keepdim=True)
