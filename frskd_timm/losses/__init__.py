"""Losses on logits and labels (`functional`, `labels`, `logits`) and on feature maps (each other file has one).

To add a feature-map loss, put a `FeatureLoss` into a file of this folder and decorate it with
`@FEATURE_LOSSES.register(name)`. It is called as `builder(student_channels, teacher)`; flags, help and tests find it
through the registry.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.registry import Registry


class FeatureLoss(nn.Module, ABC):
    """Distance D between the student's maps and the refined maps of the self-teacher (FRSKD, section 3.2).

    Gradients flow to the student's maps and the projections of the loss, not to the self-teacher's maps. Distances
    are computed in float32, projections in the precision of autocast.

    Attributes:
        preactivation: Whether the maps on both sides are taken before their activation.
        default_beta: Default weight in the total loss.
    """

    preactivation = False
    default_beta = 100.0

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], valid: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return the sum of the distances of all levels, a scalar.

        Args:
            student: Maps [B, C_i, H_i, W_i], fine to coarse.
            teacher: Refined maps [B, C'_i, H_i, W_i].
            valid: Boolean masks [B, H_i, W_i] of the positions to compare; None for all.
        """
        masks: Sequence[Tensor | None] = [None] * len(student) if valid is None else valid
        levels = enumerate(zip(student, teacher, masks, strict=True))
        distances = [self.distance(i, own, other.detach(), mask) for i, (own, other, mask) in levels]
        if distances[0].ndim:
            raise UserError(f"The distance of {type(self).__name__} must be a scalar, not {list(distances[0].shape)}.")
        return torch.stack(distances).sum()

    @abstractmethod
    def distance(self, level: int, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Compute the scalar distance of one level; the arguments are those of `forward`, `teacher` detached."""


FEATURE_LOSSES: Registry[FeatureLoss] = Registry("feature loss", __name__)
