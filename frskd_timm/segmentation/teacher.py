"""The self-teacher of segmentation: two more BiFPN layers on the student's maps, and a head of its own."""

from collections.abc import Sequence

from torch import Tensor, nn

from frskd_timm.segmentation.decoder import PixelHead, SumBiFPN
from frskd_timm.teachers import SelfTeacher


class SegmentationTeacher(SelfTeacher):
    """Refines the maps of a segmentation student (FRSKD, section 4.3).

    Args:
        channels: Channels of each of the student's maps.
        num_levels: Number of those maps.
        num_classes: Number of classes.
        layers: BiFPN layers; the last one only goes top-down.
    """

    def __init__(self, channels: int, num_levels: int, num_classes: int, layers: int = 2) -> None:
        super().__init__()
        self.channels = [channels] * num_levels
        self.bifpn = nn.ModuleList(SumBiFPN(num_levels, channels, bottom_up=i + 1 < layers) for i in range(layers))
        self.head = PixelHead(channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Refined maps of the same shapes, and logits [B, num_classes, H_1, W_1] at the size of the finest."""
        maps = list(features)
        for layer in self.bifpn:
            maps = layer(maps)
        return maps, self.head(maps[0])
