"""The cross-entropy of every pixel, in float32 whatever the precision of its input."""

from torch import Tensor
from torch.nn import functional as F

from frskd_timm.losses.functional import IGNORED


def pixel_cross_entropy(
    logits: Tensor, target: Tensor, class_weights: Tensor | None = None, smoothing: float = 0.0, ignored: int = IGNORED
) -> Tensor:
    """Compute the cross-entropy, mean over the pixels of the batch that count; 0 where none does.

    Args:
        logits: [B, K, H, W].
        target: Classes [B, H, W].
        class_weights: [K]; the mean is then a weighted one, and pixels of a class of weight 0 do not count at all.
        smoothing: Share of the probability spread evenly over all classes, 0..1.
        ignored: Label of the pixels that do not count.
    """
    counts = target != ignored
    total = counts.sum()
    if class_weights is not None:
        weights = class_weights[target.masked_fill(~counts, 0)] * counts
        target, total = target.masked_fill(weights == 0, ignored), weights.sum()
    loss = F.cross_entropy(
        logits.float(), target, class_weights, ignore_index=ignored, reduction="sum", label_smoothing=smoothing
    )
    return loss / total.where(total > 0, 1)
