"""Self-teachers of segmentation: a head of their own, with or without BiFPN layers that refine the student's maps."""

from collections.abc import Sequence

from torch import Tensor, nn

from frskd_timm.layers import Depthwise, Pointwise
from frskd_timm.registry import Registry
from frskd_timm.segmentation.decoder import Block, SumBiFPN, conv_norm, depthwise_norm, pixel_head
from frskd_timm.teachers import SelfTeacher

SEGMENTATION_TEACHERS: Registry[SelfTeacher] = Registry("segmentation self-teacher", "frskd_timm.segmentation")


@SEGMENTATION_TEACHERS.register("sum")
class SegmentationTeacher(SelfTeacher):
    """Refines the maps of a segmentation student as in the paper (FRSKD, section 4.3).

    The last of the BiFPN `layers` is only top-down; `block` creates the block after each sum.
    """

    def __init__(
        self, channels: int, num_levels: int, num_classes: int, layers: int, block: Block = depthwise_norm
    ) -> None:
        super().__init__()
        self.channels = [channels] * num_levels
        self.bifpn = nn.ModuleList(
            SumBiFPN(num_levels, channels, bottom_up=i + 1 < layers, block=block) for i in range(layers)
        )
        self.head: nn.Module = pixel_head(channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return refined maps of the same shapes, and logits [B, num_classes, h, w] of the size of the finest map."""
        maps = list(features)
        for layer in self.bifpn:
            maps = layer(maps)
        return maps, self.head(maps[0])


@SEGMENTATION_TEACHERS.register("pyramid")
def pyramid(channels: int, num_levels: int, num_classes: int, layers: int) -> SegmentationTeacher:
    """Create a head on the finest map that enters the decoder's layers (not in the paper).

    It refines nothing; its gradient reaches the backbone without passing the decoder's layers.
    """
    teacher = SegmentationTeacher(channels, num_levels, num_classes, layers=0)
    teacher.beside_decoder = True
    return teacher


def mixing_norm(channels: int) -> nn.Sequential:
    """Create a depthwise 3x3 and a pointwise convolution, batch normalisation and ReLU."""
    convolutions = (Depthwise(channels), Pointwise(channels, channels))
    return nn.Sequential(*convolutions, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


@SEGMENTATION_TEACHERS.register("mixing")
def mixing(channels: int, num_levels: int, num_classes: int, layers: int) -> SegmentationTeacher:
    """Create a self-teacher that mixes channels and neighbouring pixels and classifies at twice the resolution."""
    teacher = SegmentationTeacher(channels, num_levels, num_classes, layers, mixing_norm)
    teacher.head = nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"),
        mixing_norm(channels),
        conv_norm(channels, 2 * channels, 1),
        nn.Conv2d(2 * channels, num_classes, 3, padding=1),
    )
    return teacher
