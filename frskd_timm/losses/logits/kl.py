"""Kullback-Leibler divergence of softened probabilities, as in FRSKD, and of standardised logits."""

from torch import Tensor

from frskd_timm.losses.functional import soft_label_loss
from frskd_timm.losses.logits import LOGIT_LOSSES


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
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True, correction=0) + 1e-7)
