"""Pixel-wise cross-entropy, computed in float32 whatever the precision of the input."""

from torch import Tensor
from torch.nn import functional as F

from frskd_timm.losses.functional import IGNORED


def pixel_cross_entropy(
    logits: Tensor, target: Tensor, class_weights: Tensor | None = None, smoothing: float = 0.0, ignored: int = IGNORED
) -> Tensor:
    """Compute the mean cross-entropy over the counted pixels of the batch; 0 if there are none.

    Args:
        logits: [B, K, H, W].
        target: Classes [B, H, W].
        class_weights: Weights [K] of a weighted mean; pixels of a class with weight 0 do not count.
        smoothing: Probability mass spread evenly over all classes, 0..1.
        ignored: Label of pixels that do not count.
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
