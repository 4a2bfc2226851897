"""Convolutions that torch 2.13 computes slowly or wrongly on a CPU, and what replaces them."""

from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.layers import CentredConv2d


class SlicedConv2d(nn.Conv2d):
    """A strided 1x1 convolution that first removes the unused pixels.

    With channels last, oneDNN's gradient of a strided 1x1 convolution with fewer channels than a vector register holds
    writes out of bounds, as in the stems of FastViT, MobileOne and RepVGG.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        row, column = self.stride
        return F.conv2d(input[..., ::row, ::column], self.weight, self.bias)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that is computed in float32 where autocast would use a CPU's slow bfloat16.

    In bfloat16, forward and backward pass take 1.2 to 20 times as long (AMD EPYC with AVX-512 bf16), except for 3x3
    kernels with stride 1 on maps that are not smaller. The backward pass keeps a float32 copy of the input.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        is_fast = self.kernel_size == (3, 3) and self.stride == self.dilation == (1, 1) and min(x.shape[-2:]) >= 3
        is_cast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and self.weight.dtype == torch.float32
        if not is_cast or x.dtype == torch.float64 or is_fast:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))


class DepthwiseConv2dSame(DepthwiseConv2d, Conv2dSame):
    """The same with TensorFlow's padding."""


class SmallMapConv2d(CentredConv2d):
    """A convolution that is computed as one matrix product where its map has few pixels and many channels.

    There, oneDNN spends its time on the kernel's layout: for 512 channels on 2x2 pixels and 64 images, the product
    takes a fifth of the time in bfloat16 (Intel Xeon with AMX) and a third in float32, forward and backward.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        (rows, columns), (down, right) = self.kernel_size, self.stride
        height, width = -(-x.shape[2] // down), -(-x.shape[3] // right)
        is_pixel = x.shape[2:].numel() == 1  # of which the kernel's centre sees everything
        if x.device.type != "cpu" or x.shape[1] < 32 * height * width or is_pixel:
            return super().forward(x)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, columns // 2, columns // 2, rows // 2, rows // 2))
        shifts = [(row, column) for row in range(rows) for column in range(columns)]
        seen = [padded[:, i : i + x.shape[2] : down, j : j + x.shape[3] : right] for i, j in shifts]
        kernel = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(torch.cat(seen, -1), kernel, self.bias).permute(0, 3, 1, 2)


def adapt_convolutions(module: nn.Module, channels_last: bool = True) -> None:
    """Replace the convolutions that torch computes slowly or wrongly on a CPU, in place.

    Parameters and their names stay. Subclasses of `nn.Conv2d` that a model brings are left alone, except for timm's
    `Conv2dSame`. With `channels_last`, the module is converted to that memory format.
    """
    network: Any = module  # the type of `to` differs between versions of torch
    child: Any
    for child in network.modules():
        kind = type(child)
        if kind not in (nn.Conv2d, Conv2dSame):
            continue
        halves = tuple(size // 2 for size in child.kernel_size if size % 2)  # an even kernel has no centre
        is_centred = child.padding == halves and child.padding_mode == "zeros" and child.dilation == (1, 1)
        is_narrow = child.in_channels < 16 and child.groups == 1 and child.padding in ((0, 0), "valid")
        if child.groups == child.in_channels > 1:
            child.__class__ = DepthwiseConv2d if kind is nn.Conv2d else DepthwiseConv2dSame
        elif kind is Conv2dSame:
            continue
        elif child.kernel_size == (1, 1):
            if child.stride != (1, 1) and is_narrow and channels_last:
                child.__class__ = SlicedConv2d
        elif is_centred:
            child.__class__ = SmallMapConv2d if child.groups == 1 else CentredConv2d
    if channels_last:
        network.to(memory_format=torch.channels_last)
