"""EfficientNet-B0 and B1 (arXiv 1905.11946), the paper's backbones for segmentation, under other names."""

from timm.models import generate_default_cfgs

from frskd_timm.models._pretrained import with_weights
from frskd_timm.models._stock import IMAGENET, register_stock

_CFG = {**IMAGENET, "first_conv": "conv_stem", "classifier": "classifier"}

_CFGS = {
    "efficientnet_b0_frskd": _CFG,
    "efficientnet_b1_frskd": {**_CFG, "input_size": (3, 240, 240), "pool_size": (8, 8)},
}
default_cfgs = generate_default_cfgs(with_weights(_CFGS))

efficientnet_b0_frskd = register_stock("efficientnet_b0_frskd", "efficientnet_b0", __name__)
efficientnet_b1_frskd = register_stock("efficientnet_b1_frskd", "efficientnet_b1", __name__)
