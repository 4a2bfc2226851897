"""Losses on logits, computed in float32 whatever the precision of the input."""

from torch import Tensor
from torch.nn import functional as F

IGNORED = 255  # the label of pixels that belong to no class


def pixel_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    factor: Tensor | None = None,
) -> Tensor:
    """Compute the mean cross-entropy of logits [B, K, H, W] over the labelled pixels [B, H, W]; 0 if there are none.

    With class weights [K] it is a weighted mean, and pixels of a class with weight 0 do not count. A factor [B, H, W]
    multiplies the losses before the mean.
    """
    losses = F.cross_entropy(logits.float(), target, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing)
    losses = losses if factor is None else losses * factor
    counts = target != IGNORED
    weights = counts.float() if class_weights is None else class_weights[target.masked_fill(~counts, 0)] * counts
    return weighted_mean(losses, weights)


def soft_label_loss(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float, weight: Tensor | None = None
) -> Tensor:
    """Compute T^2 * KL(softmax(z_t / T) || softmax(z_s / T)) of logits [N, K], summed over classes (FRSKD, eq. 4).

    The gradient flows to the student's logits only. The mean over the rows has the weights [N], if given; the loss is
    0 if all are 0.
    """
    log_teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    log_student = F.log_softmax(student_logits.float() / temperature, dim=1)
    if weight is None:
        return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    rows = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * weighted_mean(rows, weight)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Compute the mean of values with weights of the same shape; 0 if all weights are 0."""
    total = weight.sum()
    return (values * weight).sum() / total.where(total > 0, 1)
