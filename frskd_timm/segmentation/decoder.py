"""The decoder of FRSKD's segmentation networks: a feature pyramid, BiFPN layers of plain sums, and a pixel head."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from frskd_timm.layers import CentredConv2d, interpolate, upsample

Block = Callable[[int], nn.Module]
EPS = 1e-4
HEAD_CHANNELS = 256
EXTRA_LEVELS = 2  # p6 and p7, computed from the coarsest map of the backbone


def conv_norm(in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Create a convolution with bias, batch normalisation and ReLU; padded to keep the size at stride 1."""
    return nn.Sequential(
        CentredConv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2),
        nn.BatchNorm2d(channels, eps=EPS),  # the authors' momentum of 0.997 would keep the last batch's statistics
        nn.ReLU(inplace=True),
    )


def depthwise_norm(channels: int) -> nn.Sequential:
    """Create one weight and bias per channel, batch normalisation with PyTorch's default constants, and ReLU."""
    pointwise = nn.Conv2d(channels, channels, 1, groups=channels)
    return nn.Sequential(pointwise, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def pixel_head(channels: int, num_classes: int) -> nn.Sequential:
    """Create a classifier of each position of the finest map: [B, channels, H, W] to [B, num_classes, H, W]."""
    return nn.Sequential(*conv_norm(channels, HEAD_CHANNELS, 3), pixel_classifier(num_classes))


def pixel_classifier(num_classes: int) -> nn.Conv2d:
    """Create the last layer of `pixel_head`."""
    return nn.Conv2d(HEAD_CHANNELS, num_classes, 3, padding=1)


def resize_bilinear(maps: Tensor, like: Tensor) -> Tensor:
    """Resize maps [B, C, H, W] bilinearly to the height and width of `like`, with half-pixel centres."""
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    return interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)


class FeaturePyramid(nn.Module):
    """Convert the maps of a backbone, fine to coarse (p2..p5 in the paper), to equal width, and add two coarser."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(conv_norm(c, channels, 1) for c in in_channels)
        sources = [in_channels[-1], *[channels] * (EXTRA_LEVELS - 1)]
        self.coarser = nn.ModuleList(conv_norm(c, channels, 3, stride=2) for c in sources)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Convert maps [B, C_i, H_i, W_i], fine to coarse, to two more maps, all [B, channels, H_i, W_i]."""
        extra = [features[-1]]
        for block in self.coarser:
            extra.append(block(extra[-1]))
        maps = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + resize_bilinear(maps[i + 1], maps[i])
        return [*maps, *extra[1:]]


class SumBiFPN(nn.Module):
    """One top-down and one bottom-up pass; the maps that meet at a level are summed and passed through a block.

    `block` creates the block after each sum from the number of channels.
    """

    def __init__(self, levels: int, channels: int, bottom_up: bool = True, block: Block = depthwise_norm) -> None:
        super().__init__()
        self.up = nn.ModuleList(block(channels) for _ in range(levels))
        # Starts at the second level.
        self.down = nn.ModuleList(block(channels) for _ in range(levels - 1 if bottom_up else 0))

    def forward(self, maps: Sequence[Tensor], finest_only: bool = False) -> list[Tensor]:
        """Refine maps [B, channels, H_i, W_i], fine to coarse, of any sizes; `finest_only` computes only the first."""
        refined = [self.up[-1](maps[-1])]
        for block, map_ in zip(reversed(self.up[:-1]), reversed(maps[:-1]), strict=True):
            refined.insert(0, block(map_ + resize_bilinear(refined[0], map_)))
        if finest_only or not self.down:
            return refined[:1] if finest_only else refined
        out = [refined[0]]
        for i, block in enumerate(self.down, 1):
            out.append(block(maps[i] + refined[i] + upsample(out[-1], maps[i].shape[-2:])))
        return out
