"""EfficientNet-B0 and B1, the paper's backbones for segmentation: timm's own networks under other names."""

from typing import Any

from timm.models import EfficientNet, efficientnet, generate_default_cfgs, register_model

from frskd_timm.models._pretrained import with_weights
from frskd_timm.models._stock import IMAGENET, stock_topology

_CFG = {**IMAGENET, "first_conv": "conv_stem", "classifier": "classifier"}

default_cfgs = generate_default_cfgs(
    with_weights(
        {
            "efficientnet_b0_frskd": _CFG,
            "efficientnet_b1_frskd": {**_CFG, "input_size": (3, 240, 240), "pool_size": (8, 8)},
        }
    )
)


@register_model
@stock_topology("efficientnet_b0")
def efficientnet_b0_frskd(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """Create EfficientNet-B0 (arXiv 1905.11946)."""
    return efficientnet.efficientnet_b0(pretrained, **kwargs)


@register_model
@stock_topology("efficientnet_b1")
def efficientnet_b1_frskd(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """Create EfficientNet-B1 (arXiv 1905.11946)."""
    return efficientnet.efficientnet_b1(pretrained, **kwargs)
