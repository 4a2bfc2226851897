"""FitNets hints (arXiv 1412.6550) on every level."""

from collections.abc import Sequence

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

    def distance(self, level: int, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        source, target = self.projections[level](student).float(), teacher.float()
        if valid is None:
            return F.mse_loss(source, target)
        return weighted_mean((source - target).square().mean(dim=1), valid.float())
