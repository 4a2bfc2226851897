"""Overhaul of feature distillation (OFD, arXiv 1904.01866)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frskd_timm.losses import FEATURE_LOSSES, FeatureLoss
from frskd_timm.teachers import SelfTeacher


def expected_negative_response(norm: nn.BatchNorm2d) -> Tensor:
    """Compute the mean of the negative part of each output channel of a batch normalisation, [1, C, 1, 1] (OFD, eq. 6).

    With scale s = |weight| and shift m = bias, the channel is assumed to be distributed as normal(m, s). Channels that
    are almost never negative (probability up to 0.001) get -3 s.
    """
    # Apple's GPUs have no float64.
    weight, shift = ((p.detach().cpu() if p.is_mps else p.detach()).double() for p in (norm.weight, norm.bias))
    scale = weight.abs()
    negative = 0.5 * (1 + torch.erf(-shift / scale / math.sqrt(2)))
    density = torch.exp(-((shift / scale) ** 2) / 2) / math.sqrt(2 * math.pi)
    margin = torch.where(negative > 1e-3, shift - scale * density / negative, -3 * scale)
    return margin.to(norm.weight).reshape(1, -1, 1, 1)


@FEATURE_LOSSES.register("overhaul")
class OverhaulLoss(FeatureLoss):
    """Partial L2 distance between maps before their activation.

    The student's map goes through a learned 1x1 convolution and BN; the refined map is clipped below at a margin, which
    is read once from the self-teacher's last BN of that level. Squared errors count where the source exceeds the target
    or the target is positive; their sum is divided by the batch size, and level i of n has weight 1 / 2^(n - i).
    """

    preactivation = True
    default_beta = 1e-4  # small, because the sum starts in the thousands

    def __init__(self, student_channels: Sequence[int], teacher: SelfTeacher) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, t, 1, bias=False), nn.BatchNorm2d(t))
            for c, t in zip(student_channels, teacher.channels, strict=True)
        )
        for i, norm in enumerate(teacher.output_norms()):
            self.register_buffer(f"margin{i}", expected_negative_response(norm))

    def distance(self, level: int, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        source = self.projections[level](student).float()
        target = torch.maximum(teacher.float(), getattr(self, f"margin{level}"))
        counts = (source > target) | (target > 0)
        squared = (source - target).square() * (counts if valid is None else counts & valid.unsqueeze(1))
        return squared.sum() / len(source) / 2 ** (len(self.projections) - 1 - level)
