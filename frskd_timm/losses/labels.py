"""The loss of logits and labels of images or pixels with class weights, as cross-entropy or timm's binary one."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.errors import UserError
from frskd_timm.losses.functional import UNLABELLED, missing_label, weighted_mean


def _as_tensor(weights: Sequence[float] | Tensor, num_classes: int) -> Tensor:
    """Return class weights as a tensor [K]; raise UserError if they do not fit."""
    found = torch.tensor([float(weight) for weight in weights])
    if len(found) != num_classes or not (found.isfinite() & (found >= 0)).all() or not found.any():
        raise UserError(
            f"There are {len(found)} class weights for {num_classes} classes; give one finite number per class, none "
            "negative and not all 0."
        )
    return found


def trust(logits: Sequence[Tensor], target: Tensor) -> Tensor:
    """Return how far networks believe the labels: their mean probability of each label relative to the largest one.

    A soft version of the small-loss selection of co-teaching (arXiv 1804.06872), based on the mean of the networks.

    Args:
        logits: Logits [B, K, ...] of each network.
        target: Classes [B, ...]; a missing label (255 in segmentation, else -100) counts as class 0.

    Returns:
        1 where the label is the predicted class, otherwise less, at least 0; [B, ...], without a gradient.

    Raises:
        UserError: The target has probabilities instead of classes.
    """
    if target.is_floating_point():
        raise UserError("noisy_labels needs one class per image: leave Mixup and CutMix out.")
    with torch.no_grad():
        probabilities = torch.stack([output.float().softmax(dim=1) for output in logits]).mean(dim=0)
        classes = target.masked_fill(target == missing_label(target), 0)
        return probabilities.gather(1, classes.unsqueeze(1)).squeeze(1) / probabilities.amax(dim=1)


class LabelLoss(nn.Module):
    """Mean loss of logits [B, K] and classes [B], or probabilities [B, K] (Mixup, CutMix), or of pixels.

    Pixels have logits [B, K, H, W] and classes [B, H, W]. Pixels with the label 255 and images with the label -100 do
    not count. The loss is 0 if nothing counts.

    Args:
        num_classes: K.
        smoothing: Probability mass spread evenly over all classes, 0..1.
        class_weights: Weight of each class; None for equal weights. With cross-entropy, an image has the weight of its
            class, and the loss is a weighted mean. With smoothing, torch would instead weight every class of the
            smoothed target.
        binary: Use timm's binary cross-entropy (arXiv 2110.00476); only for images. As in timm, the class weights then
            multiply the losses without normalisation: give weights with a mean of 1.
        **options: Further arguments of the binary loss: `sum_classes`, `target_threshold` (targets above it become 1,
            the others 0) and `pos_weight`.

    Raises:
        UserError: The class weights do not fit, or there are options without `binary`.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        smoothing: float = 0.0,
        class_weights: Sequence[float] | Tensor | None = None,
        *,
        binary: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if options and not binary:
            raise UserError(f"{', '.join(options)} has no effect without binary=True.")
        self.smoothing = smoothing
        weights = None if class_weights is None else _as_tensor(class_weights, num_classes)
        self.register_buffer("class_weights", weights, persistent=False)
        self.binary: BinaryCrossEntropy | None = None
        self.sum_classes = options.pop("sum_classes", False)
        if binary:
            self.binary = BinaryCrossEntropy(smoothing, weight=weights, reduction="none", **options)
            for name, buffer in self.binary.named_buffers():
                self.binary.register_buffer(name, buffer, persistent=False)  # settings, which checkpoints hold already

    def forward(self, logits: Tensor, target: Tensor, factor: Tensor | None = None) -> Tensor:
        """Compute the loss in float32; a factor of the shape of the classes multiplies the losses before the mean.

        Raises:
            UserError: There is a factor, and the loss is binary.
        """
        logits = logits.float()
        if target.ndim == 2:
            target = target.to(logits.dtype)
        if self.binary is not None:
            if factor is not None:
                raise UserError("Binary cross-entropy cannot be combined with noisy_labels; leave one of them out.")
            if target.ndim == 2:  # timm expects probabilities that are smoothed already
                target = target.lerp(torch.full_like(target, 1 / target.shape[1]), self.smoothing)
                counts = torch.ones_like(target[:, 0])
            else:
                counts = target != UNLABELLED
                target = target.masked_fill(~counts, 0)
            losses = self.binary(logits, target)
            return weighted_mean(losses.sum(dim=1) if self.sum_classes else losses.mean(dim=1), counts)
        ignored = missing_label(target)
        losses = F.cross_entropy(logits, target, ignore_index=ignored, label_smoothing=self.smoothing, reduction="none")
        losses = losses if factor is None else losses * factor
        if target.ndim == 2:
            if self.class_weights is None:
                return losses.mean()
            return weighted_mean(losses, target @ self.class_weights.to(target.dtype))
        counts = target != ignored
        weights = 1.0 if self.class_weights is None else self.class_weights[target.masked_fill(~counts, 0)]
        return weighted_mean(losses, weights * counts)
