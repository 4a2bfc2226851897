"""Blocks of the BiFPN self-teachers (FRSKD, section 3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from frskd_timm.layers import Depthwise, Pointwise, upsample


class Lateral(nn.Sequential):
    """1x1 convolution, batch normalisation and ReLU, which change the number of channels of a map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(Pointwise(in_channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    def forward(self, x: Tensor, fusion_weight: Tensor | None = None) -> Tensor:
        """Return the block's output, multiplied by the nonnegative scalar `fusion_weight` w if given.

        w * relu(scale * x + bias) is relu(w * scale * x + w * bias), so the product needs no pass over the map, and
        its gradient follows from that of the normalisation.
        """
        if fusion_weight is None:
            return super().forward(x)
        convolution, norm, relu = self
        affine = {name: fusion_weight * getattr(norm, name) for name in ("weight", "bias")}  # buffers if frozen
        return relu(functional_call(norm, affine, (convolution(x),)))


class Same(nn.Module):
    """Replacement of a lateral block if the numbers of channels are equal."""

    def forward(self, x: Tensor, fusion_weight: Tensor) -> Tensor:
        """Return the map multiplied by `fusion_weight`."""
        return x * fusion_weight.to(x.dtype)


class Fuse(nn.Module):
    """Weighted sum of maps, followed by `depth` times depthwise 3x3, pointwise 1x1 and batch normalisation.

    A ReLU follows every repetition but the last. The weights are relu(a_j) / sum relu(a) with learned a, initially 1.
    """

    def __init__(self, inputs: int, channels: int, depth: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks += [
                Depthwise(channels),
                Pointwise(channels, channels),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.blocks = nn.Sequential(*blocks[:-1])

    def fusion_weights(self) -> Tensor:
        """Return the weight of each map in the sum, [inputs]; the caller multiplies the maps, where it is cheapest."""
        positive = F.relu(self.weights)
        return positive / (positive.sum() + 1e-6)

    def forward(self, total: Tensor) -> Tensor:
        """Convert the weighted sum [B, C, H, W] of maps after their ReLU to a map [B, C, H, W] before its ReLU."""
        return self.blocks(total)


def add_upsampled(x: Tensor, coarser: Tensor) -> Tensor:
    """Resize a map [B, C, h, w] to the size of x [B, C, H, W] (nearest neighbour) and add it to x."""
    up = upsample(coarser, (x.shape[-2], x.shape[-1]))
    # In place, because the resized map is not used elsewhere and no gradient needs it.
    return x + up if up is coarser else up.add_(x)


def downsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Max-pool a map without negative numbers to [B, C, *size].

    Half the size, rounded up, is the authors' zero-padded 3x3 pooling with stride 2: without negative numbers, padding
    never wins, so windows that extend over the edge give the same result. Other sizes, which do not occur in the
    authors' code, are pooled adaptively, or repeated if the next level is larger.
    """
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    if size == ((height + 1) // 2, (width + 1) // 2):
        return F.max_pool2d(x, 3, stride=2, padding=(height % 2, width % 2), ceil_mode=True)
    if size[0] <= height and size[1] <= width:
        return F.adaptive_max_pool2d(x, size)
    return upsample(x, size)
