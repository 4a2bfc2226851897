"""Attention transfer (AT, arXiv 1612.03928), the default feature-map loss of FRSKD."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from frskd_timm.losses import FEATURE_LOSSES, FeatureLoss
from frskd_timm.teachers import SelfTeacher


class _MeanSquare(torch.autograd.Function):
    """Mean over channels of the squares, [B, C, H, W] to [B, H, W], in float32 without a float32 copy of the maps.

    One reduction forward and one product backward; plain autograd takes ten times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.save_for_backward(maps)
        precise = torch.promote_types(maps.dtype, torch.float32)
        # On a CPU, maps are converted before they are reduced, so reduce slices that fit into the cache.
        images = max(1, 2**20 // maps.shape[1:].numel()) if maps.device.type == "cpu" else len(maps)
        norms = [torch.linalg.vector_norm(part, dim=1, dtype=precise) for part in maps.split(images)]
        return torch.cat(norms).square_().div_(maps.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        return maps * (grad * (2 / maps.shape[1])).to(maps.dtype).unsqueeze(1)


def attention_map(features: Tensor, valid: Tensor | None = None) -> Tensor:
    """Compute the mean over channels of the squared maps, flattened and l2-normalised.

    Args:
        features: [B, C, H, W].
        valid: Boolean mask [B, H, W] of the positions that count; the others become 0.

    Returns:
        [B, H * W] in float32 or higher precision, with rows of length 1.
    """
    means = _MeanSquare.apply(features)
    return F.normalize((means if valid is None else means * valid).flatten(1), dim=1)


@FEATURE_LOSSES.register("attention")
class AttentionLoss(FeatureLoss):
    """D = sum over levels of the mean over batch and positions of (A(F) - A(T))^2.

    It has no parameters, and both maps of a level may have different numbers of channels.
    """

    def __init__(self, student_channels: Sequence[int], teacher: SelfTeacher) -> None:
        super().__init__()

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], valid: Sequence[Tensor] | None = None
    ) -> Tensor:
        terms = []
        for i, (f, t) in enumerate(zip(student, teacher, strict=True)):
            counts = None if valid is None else valid[i]
            with torch.no_grad():
                target = attention_map(t, counts)
            if counts is None:
                terms.append(F.mse_loss(attention_map(f), target))
            else:
                squared = (attention_map(f, counts) - target).square()  # 0 at positions that are not compared
                terms.append(squared.sum() / counts.sum().clamp_min(1))
        return torch.stack(terms).sum()
