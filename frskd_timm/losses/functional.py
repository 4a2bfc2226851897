"""Labels that do not count, and losses on logits, computed in float32 whatever the precision of the input."""

from torch import Tensor
from torch.nn import functional as F

IGNORED = 255  # the label of pixels that belong to no class
UNLABELLED = -100  # the same for images, torch's default


def missing_label(target: Tensor) -> int:
    """Return the label that does not count in classes of images [B] or pixels [B, H, W]."""
    return IGNORED if target.ndim == 3 else UNLABELLED


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
