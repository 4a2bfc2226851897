"""Blocks of the BiFPN self-teachers (FRSKD, section 3.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Lateral(nn.Sequential):
    """1x1 convolution, batch normalisation, ReLU: brings a map to another number of channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
        )


class Fuse(nn.Module):
    """Weighted sum of maps, then `depth` times depthwise 3x3, pointwise 1x1, batch normalisation.

    A ReLU stands between the repetitions but not after the last. The weights are relu(a_j) / sum relu(a), with a
    learned from 1 on.

    Args:
        inputs: Number of maps that are summed.
        channels: Their channels.
        depth: Repetitions.
    """

    def __init__(self, inputs: int, channels: int, depth: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        blocks: list[nn.Module] = []
        for i in range(depth):
            if i:
                blocks.append(nn.ReLU(inplace=True))
            blocks += [
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            ]
        self.blocks = nn.Sequential(*blocks)

    @property
    def output_norm(self) -> nn.BatchNorm2d:
        """The normalisation that the output comes out of."""
        norm = self.blocks[-1]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuses maps [B, C, H, W] of one shape, each after its ReLU, to one [B, C, H, W] before its ReLU."""
        positive = F.relu(self.weights)
        weights = positive / (positive.sum() + 1e-6)
        # In the maps' own precision: a float32 sum would double the traffic of a memory-bound step.
        weights = weights.to(maps[0].dtype)
        fused = maps[0] * weights[0]
        for weight, map_ in zip(weights[1:], maps[1:], strict=True):
            fused = torch.addcmul(fused, map_, weight)
        return self.blocks(fused)


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resizing of [B, C, h, w] to [B, C, *size]; the same map where the size fits already."""
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="nearest")


def downsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Max-pooling of a map that holds no negative numbers, to [B, C, *size].

    Half the size, rounded up, is the authors' zero-padded 3x3 stride-2 pooling: without negative numbers no padding
    value can win, so padding and windows that hang over the edge are equal to it. Other sizes, which the authors' code
    does not meet, are pooled adaptively, or repeated where the next level is larger.
    """
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    if size == ((height + 1) // 2, (width + 1) // 2):
        return F.max_pool2d(x, 3, stride=2, padding=(height % 2, width % 2), ceil_mode=True)
    if size[0] <= height and size[1] <= width:
        return F.adaptive_max_pool2d(x, size)
    return upsample(x, size)
