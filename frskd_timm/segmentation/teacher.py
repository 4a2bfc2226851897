"""Self-teachers of segmentation: additional BiFPN layers on the student's maps, and their own head."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from frskd_timm.defaults import SEGMENTATION as DEFAULT
from frskd_timm.registry import Registry
from frskd_timm.segmentation.decoder import ConvNorm, DepthwiseNorm, PixelHead, SumBiFPN
from frskd_timm.teachers import SelfTeacher
from frskd_timm.teachers.blocks import Depthwise, Pointwise

SEGMENTATION_TEACHERS: Registry[SelfTeacher] = Registry("segmentation self-teacher", "frskd_timm.segmentation")


@SEGMENTATION_TEACHERS.register("sum")
class SegmentationTeacher(SelfTeacher):
    """Refines the maps of a segmentation student as in the paper (FRSKD, section 4.3).

    The maps are `num_levels` with `channels` channels each. The last of the BiFPN `layers` is only top-down.
    """

    block: Callable[[int], nn.Module] = DepthwiseNorm

    def __init__(self, channels: int, num_levels: int, num_classes: int, layers: int = DEFAULT.teacher_repeats) -> None:
        super().__init__()
        self.channels = [channels] * num_levels
        self.bifpn = nn.ModuleList(
            SumBiFPN(num_levels, channels, bottom_up=i + 1 < layers, block=type(self).block) for i in range(layers)
        )
        self.head: nn.Module = PixelHead(channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return refined maps of the same shapes, and logits [B, num_classes, h, w] of the size of the finest map."""
        maps = list(features)
        for layer in self.bifpn:
            maps = layer(maps)
        return maps, self.head(maps[0])


class MixingNorm(nn.Sequential):
    """Depthwise 3x3 and pointwise convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            Depthwise(channels), Pointwise(channels, channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )


@SEGMENTATION_TEACHERS.register("mixing")
class MixingTeacher(SegmentationTeacher):
    """Self-teacher that mixes channels and neighbouring pixels and classifies at twice the finest resolution."""

    block = MixingNorm

    def __init__(self, channels: int, num_levels: int, num_classes: int, layers: int = DEFAULT.teacher_repeats) -> None:
        super().__init__(channels, num_levels, num_classes, layers)
        self.head = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            MixingNorm(channels),
            ConvNorm(channels, 2 * channels, 1),
            nn.Conv2d(2 * channels, num_classes, 3, padding=1),
        )
