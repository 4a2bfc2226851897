"""Attention transfer (AT, arXiv 1612.03928), the default feature-map loss of FRSKD."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
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
        images = max(1, 2**17 // maps.shape[1:].numel()) if maps.device.type == "cpu" else len(maps)
        norms = [torch.linalg.vector_norm(part, dim=1, dtype=precise) for part in maps.split(images)]
        return torch.cat(norms).square_().div_(maps.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        factor = (grad * (2 / maps.shape[1])).unsqueeze(1)
        if maps.dtype == torch.float16:  # whose range the factor may exceed, but not the product
            return (maps * factor).to(maps.dtype)
        return maps * factor.to(maps.dtype)


def attention_map(features: Tensor, valid: Tensor | None = None) -> Tensor:
    """Compute the mean over channels of squared maps [B, C, H, W] as rows of length 1, [B, H * W], at least in float32.

    Positions where the boolean mask `valid` [B, H, W] is False become 0.
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

    def distance(self, level: int, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        with torch.no_grad():
            target = attention_map(teacher, valid)
        if valid is None:
            return F.mse_loss(attention_map(student), target)
        squared = (attention_map(student, valid) - target).square()  # 0 at positions that are not compared
        return squared.sum() / valid.sum().clamp_min(1)
