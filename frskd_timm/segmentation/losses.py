"""Losses of logits at every pixel, in float32 whatever the precision of their input."""

from torch import Tensor
from torch.nn import functional as F

IGNORED = 255  # the label of pixels that belong to no class


def pixel_cross_entropy(
    logits: Tensor, target: Tensor, class_weights: Tensor | None = None, smoothing: float = 0.0, ignored: int = IGNORED
) -> Tensor:
    """Cross-entropy, mean over the labelled pixels of the batch; 0 where there are none.

    Args:
        logits: [B, K, H, W].
        target: Classes [B, H, W].
        class_weights: [K]; the mean is then a weighted one.
        smoothing: Share of the probability spread evenly over all classes, 0..1.
        ignored: Label of the pixels that do not count.
    """
    total = F.cross_entropy(
        logits.float(), target, class_weights, ignore_index=ignored, reduction="sum", label_smoothing=smoothing
    )
    labelled = target != ignored
    weight = (
        labelled.sum() if class_weights is None else (class_weights[target.masked_fill(~labelled, 0)] * labelled).sum()
    )
    return total / weight.clamp_min(1e-6)


def pixel_soft_label_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes, mean over all pixels, unlabelled ones too.

    The gradient reaches the student's logits only.

    Args:
        teacher_logits: z_t, [B, K, H, W].
        student_logits: z_s, [B, K, H, W].
        temperature: T, above 0.
    """
    log_teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    log_student = F.log_softmax(student_logits.float() / temperature, dim=1)
    pixels = student_logits.numel() // student_logits.shape[1]
    return temperature**2 / pixels * F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
