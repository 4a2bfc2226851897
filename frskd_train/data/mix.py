"""Mixup and CutMix as the batches apply them: one lambda and one permutation for each process's batch."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frskd_timm.augment import cutmix, cutmix_box, mixup


@dataclass(frozen=True)
class Mix:
    """Which of the two is on, and how strongly.

    Attributes:
        mixup: Alpha of Mixup's Beta distribution; 0 is off.
        cutmix: Alpha of CutMix's; 0 is off. With both, a fair coin decides for each batch.
        num_classes: Columns of the mixed targets.
    """

    mixup: float
    cutmix: float
    num_classes: int

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: Tensor, labels: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            images: [B, C, H, W].
            labels: Class numbers [B].
            generator: Of this step and process.

        Returns:
            Images, and probabilities [B, num_classes].
        """
        target = torch.zeros(len(labels), self.num_classes, device=images.device).scatter_(1, labels[:, None], 1.0)
        takes_mixup = generator.random() < 0.5 if self.mixup > 0 and self.cutmix > 0 else self.mixup > 0
        alpha = self.mixup if takes_mixup else self.cutmix
        lam = float(generator.beta(alpha, alpha))
        index = torch.from_numpy(generator.permutation(len(labels))).to(images.device, non_blocking=True)
        if takes_mixup:
            return mixup(images, target, lam, index)
        box, lam = cutmix_box(images.shape[2], images.shape[3], lam, generator)
        return cutmix(images, target, lam, index, box)
