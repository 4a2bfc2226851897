"""EfficientNet-B0 and B1, the paper's backbones for segmentation: timm's own networks under our names."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import EfficientNet, efficientnet, generate_default_cfgs, register_model

from frskd_timm.models._pretrained import with_weights
from frskd_timm.models._stock import stock_topology

__all__: list[str] = []  # register_model adds each student


def _cfg(**changes: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv_stem",
        "classifier": "classifier",
        **changes,
    }


default_cfgs = generate_default_cfgs(
    with_weights(
        {
            "efficientnet_b0_frskd": _cfg(),
            "efficientnet_b1_frskd": _cfg(input_size=(3, 240, 240), pool_size=(8, 8)),
        }
    )
)


@register_model
@stock_topology("efficientnet_b0")
def efficientnet_b0_frskd(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B0 (arXiv 1905.11946)."""
    return efficientnet.efficientnet_b0(pretrained, **kwargs)


@register_model
@stock_topology("efficientnet_b1")
def efficientnet_b1_frskd(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B1 (arXiv 1905.11946)."""
    return efficientnet.efficientnet_b1(pretrained, **kwargs)
