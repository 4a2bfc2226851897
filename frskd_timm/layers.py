"""Layers and operations of the networks, in forms that torch computes fast and without errors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pointwise(nn.Conv2d):
    """1x1 convolution without bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # For few pixels and many channels, as at the coarsest level, a matrix product takes half the time on a CPU.
        if x.device.type == "cpu" and x.shape[-2:].numel() <= 16 and x.is_contiguous(memory_format=torch.channels_last):
            return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1)).permute(0, 3, 1, 2)
        return super().forward(x)


class Depthwise(nn.Conv2d):
    """Depthwise 3x3 convolution without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # On a CPU, oneDNN's gradient takes 40 times as long if the map is smaller than the kernel.
        if x.device.type == "cpu" and min(x.shape[-2:]) < 3:
            return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, groups=self.groups)
        return super().forward(x)


class CentredConv2d(nn.Conv2d):
    """Convolution padded by half its kernel that uses only the kernel's centre along a side of one pixel.

    That pixel is surrounded by padding. With a stride, the CPU's bfloat16 gradient of the kernel's border is
    uninitialised memory there (torch 2.13): not deterministic, and sometimes not finite.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, stride, padding = self.weight, list(self.stride), [size // 2 for size in self.kernel_size]
        for axis in (0, 1):
            if x.shape[2 + axis] == 1:
                weight = weight.narrow(2 + axis, self.kernel_size[axis] // 2, 1)
                stride[axis], padding[axis] = 1, 0
        return F.conv2d(x, weight, self.bias, stride, padding, self.dilation, self.groups)


def upsample(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize [B, C, h, w] to [B, C, *size] (nearest neighbour); return the same map if the size already fits."""
    return x if x.shape[-2:] == size else interpolate(x, size, mode="nearest")


def interpolate(x: Tensor, size: tuple[int, ...], **options: Any) -> Tensor:
    """Resize a map as `torch.nn.functional.interpolate`, in its own data type."""
    if x.device.type != "cuda":
        return F.interpolate(x, size=size, **options)
    with torch.autocast("cuda", enabled=False):  # which would convert it to float32
        return F.interpolate(x, size=size, **options)


def global_average(x: Tensor) -> Tensor:
    """Compute the mean over the pixels of a map [B, C, H, W], [B, C]."""
    # Not `mean`: its gradient is laid out channels first, which slows a CPU down more than tenfold.
    return F.avg_pool2d(x, x.shape[-2:]).flatten(1)
