"""ResNets: timm's own under other names, and one with a stem for 32x32 images."""

from typing import Any

from timm.models import ResNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.models._pretrained import apart_from_shipped, with_weights
from frskd_timm.models._stock import CIFAR, IMAGENET, register_stock


class CifarResNet(ResNet):
    """timm's ResNet with a 3x3 stride-1 stem and no max-pooling, for images of about 32x32 pixels.

    Its four stages have strides 1, 2, 4, 8 instead of 4, 8, 16, 32; with an `output_stride` of 4 or 2, later stages are
    dilated instead. The other arguments are those of timm's ResNet, except those of the stem.

    Raises:
        UserError: There is an argument of the stem, or `output_stride` is not 8, 4 or 2.
    """

    def __init__(self, *, in_chans: int = 3, output_stride: int = 8, **kwargs: Any) -> None:
        for name in ("stem_width", "stem_type", "replace_stem_pool"):
            if name in kwargs:
                raise UserError(f"The stem of this ResNet is one 3x3 convolution: leave {name} out.")
        if output_stride not in (2, 4, 8):
            raise UserError(f"output_stride must be 8, 4 or 2, not {output_stride}: the stem has stride 1.")
        super().__init__(in_chans=in_chans, output_stride=4 * output_stride, **kwargs)
        dd = {key: kwargs.get(key) for key in ("device", "dtype")}
        self.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False, **dd)  # type: ignore[assignment, arg-type]
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        self.maxpool = nn.Identity()  # type: ignore[assignment]
        strides = [1, *(min(stride, output_stride) for stride in (1, 2, 4, 8))]
        for info, stride in zip(self.feature_info, strides, strict=True):
            info["reduction"] = stride


_RESNET = {**IMAGENET, "interpolation": "bilinear", "first_conv": "conv1", "classifier": "fc"}
_CIFAR = {**CIFAR, "pool_size": (4, 4)}

_CFGS = {
    "resnet18_frskd": _RESNET,
    "resnet34_frskd": _RESNET,
    "resnet50_frskd": {**_RESNET, "interpolation": "bicubic"},
    "resnet18_cifar_frskd": {**_RESNET, **_CIFAR},
}
default_cfgs = generate_default_cfgs(with_weights(_CFGS))

# Deep residual learning (arXiv 1512.03385), with the ImageNet stem; ResNet-50 is not in the paper of FRSKD.
resnet18_frskd = register_stock("resnet18_frskd", "resnet18", __name__)
resnet34_frskd = register_stock("resnet34_frskd", "resnet34", __name__)
resnet50_frskd = register_stock("resnet50_frskd", "resnet50", __name__)


@register_model
def resnet18_cifar_frskd(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Create ResNet-18 for 32x32 images, the paper's student on CIFAR-100 and TinyImageNet."""
    model_args = {"block": BasicBlock, "layers": (2, 2, 2, 2), **apart_from_shipped(pretrained, kwargs)}
    return build_model_with_cfg(CifarResNet, "resnet18_cifar_frskd", pretrained, **model_args)
