"""FitNets hints (arXiv 1412.6550) on every level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.losses import FEATURE_LOSSES, FeatureLoss
from frskd_timm.losses.functional import weighted_mean
from frskd_timm.teachers import SelfTeacher


@FEATURE_LOSSES.register("fitnet")
class FitNetLoss(FeatureLoss):
    """Mean squared error between a refined map and the student's map after a learned 1x1 convolution, BN and ReLU."""

    default_beta = 1.0

    def __init__(self, student_channels: Sequence[int], teacher: SelfTeacher) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, t, 1, bias=False), nn.BatchNorm2d(t), nn.ReLU())
            for c, t in zip(student_channels, teacher.channels, strict=True)
        )

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], valid: Sequence[Tensor] | None = None
    ) -> Tensor:
        terms = []
        for i, (project, f, t) in enumerate(zip(self.projections, student, teacher, strict=True)):
            source, target = project(f).float(), t.detach().float()
            if valid is None:
                terms.append(F.mse_loss(source, target))
            else:
                terms.append(weighted_mean((source - target).square().mean(dim=1), valid[i].float()))
        return torch.stack(terms).sum()
