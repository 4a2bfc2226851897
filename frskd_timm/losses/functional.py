"""Losses of logits, in float32 whatever the precision of their input."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, mean over the batch.

    Args:
        logits: [B, K].
        target: Classes [B], or probabilities [B, K] (Mixup, CutMix).
        smoothing: Share of the probability spread evenly over all classes, 0..1.
    """
    return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)


def soft_label_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes, mean over the batch (FRSKD, eq. 4).

    The gradient reaches the student's logits only.

    Args:
        teacher_logits: z_t, [B, K].
        student_logits: z_s, [B, K].
        temperature: T, above 0.
    """
    log_teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    log_student = F.log_softmax(student_logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
