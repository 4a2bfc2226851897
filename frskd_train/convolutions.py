"""Convolutions that torch 2.13 computes slowly or wrongly on a CPU, and what replaces them."""

from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.teachers.blocks import CentredConv2d


class SlicedConv2d(nn.Conv2d):
    """A strided 1x1 convolution that first removes the unused pixels.

    With channels last, oneDNN's gradient of a strided 1x1 convolution with fewer channels than a vector register holds
    writes out of bounds, as in the stems of FastViT, MobileOne and RepVGG.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        row, column = self.stride
        return F.conv2d(input[..., ::row, ::column], self.weight, self.bias)


class _Depthwise(nn.Conv2d):
    """A depthwise convolution that is computed in float32 where a CPU's bfloat16 is slow.

    With bfloat16, forward and backward pass take 1.2 to 20 times as long, unless kernel and stride are 3x3 and 1 and
    the map is not smaller than the kernel (AMD EPYC).
    """

    def forward(self, x: Tensor) -> Tensor:
        is_fast = self.kernel_size == (3, 3) and self.stride == (1, 1) and min(x.shape[-2:]) >= 3
        if is_fast or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))


class DepthwiseConv2d(_Depthwise, CentredConv2d):
    """The one for `nn.Conv2d` that is padded by half its kernel."""


class DepthwiseConv2dSame(_Depthwise, Conv2dSame):
    """The one for timm's convolutions with TensorFlow's padding."""


def adapt_convolutions(module: nn.Module, channels_last: bool = True) -> None:
    """Replace such convolutions in a module, in place, and convert it to the channels-last memory format if asked.

    Parameters and their names stay. Other subclasses of `nn.Conv2d` that a model brings are left alone.
    """
    child: Any
    for child in module.modules():
        is_depthwise = isinstance(child, nn.Conv2d) and child.groups == child.in_channels > 1
        if type(child) is Conv2dSame and is_depthwise:
            child.__class__ = DepthwiseConv2dSame
        if type(child) is not nn.Conv2d:
            continue
        halves = tuple(size // 2 for size in child.kernel_size if size % 2)  # an even kernel has no centre
        strided, pointwise = child.stride != (1, 1), child.kernel_size == (1, 1)
        if pointwise and strided and child.in_channels < 16 and child.groups == 1:
            if channels_last and child.padding in ((0, 0), "valid"):
                child.__class__ = SlicedConv2d
        elif child.padding == halves and child.padding_mode == "zeros" and child.dilation == (1, 1) and not pointwise:
            if is_depthwise:
                child.__class__ = DepthwiseConv2d
            elif strided:
                child.__class__ = CentredConv2d
    if channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
