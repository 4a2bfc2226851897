"""Students that are timm's own networks registered under another name, and timm's name of each network."""

from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import is_model, model_entrypoint, register_model, resolve_pretrained_cfg, split_model_name_tag
from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.models._pretrained import apart_from_shipped

IMAGENET = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}

CIFAR = {
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,  # a crop would cut off 4 of 32 pixels
    "mean": (0.5071, 0.4865, 0.4409),  # CIFAR-100's
    "std": (0.2673, 0.2564, 0.2762),
}


def register_stock(name: str, stock: str, module: str) -> Callable[..., nn.Module]:
    """Register timm's network `stock` under another name, with the pretrained configurations of that name.

    Exported checkpoints use timm's name. `module` is the name of the calling module, which has the `default_cfgs`.
    """
    create = model_entrypoint(stock)

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        arguments = apart_from_shipped(pretrained, kwargs)
        overlay = arguments.pop("pretrained_cfg_overlay", None)
        cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)  # before timm looks up its own
        model = create(pretrained, **{**arguments, "pretrained_cfg": cfg.to_dict()})
        model.pretrained_cfg["architecture"] = stock  # the name under which timm's own functions save it
        return model

    build.__name__ = build.__qualname__ = name
    build.__module__, build.__doc__ = module, f"Create timm's `{stock}`, with the weights of `{name}`."
    build.stock_name = stock  # type: ignore[attr-defined]
    return register_model(build)


def exported_name(model_name: str) -> str:
    """Return the name under which this network is exported: that under which plain timm creates it, if it can.

    `resnet18_frskd` gives `resnet18`, with or without a tag; `resnet18` and `wide_resnet16_2_frskd` give themselves.
    Raises UserError if timm has no such model.
    """
    architecture, _ = split_model_name_tag(model_name)
    if not is_model(architecture):
        raise UserError(f"Unknown model '{model_name}': timm.list_models() lists the names.")
    return getattr(model_entrypoint(architecture), "stock_name", architecture)
