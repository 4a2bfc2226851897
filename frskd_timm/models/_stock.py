"""Students that are timm's own networks registered under another name, and timm's name of each network."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import is_model, model_entrypoint, resolve_pretrained_cfg, split_model_name_tag
from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.models._pretrained import with_default_classes

IMAGENET = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}


def stock_topology(stock: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Mark a registered function as timm's network `stock` with the pretrained configurations of the registered name.

    The function may pass its arguments to timm's own function unchanged: the configuration of the registered name, or
    of the requested tag, is resolved here before timm looks up its own.

    Args:
        stock: Name under which timm creates the same network; exported checkpoints use it.
    """

    def decorate(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        @wraps(function)
        def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            overlay = kwargs.pop("pretrained_cfg_overlay", None)
            cfg = resolve_pretrained_cfg(function.__name__, kwargs.get("pretrained_cfg"), overlay)
            arguments = with_default_classes(pretrained, kwargs)
            return function(pretrained, **{**arguments, "pretrained_cfg": cfg.to_dict()})

        build.stock_name = stock  # type: ignore[attr-defined]
        return build

    return decorate


def stock_name(model_name: str) -> str | None:
    """Return the name under which plain timm creates this network, or None if it needs an import besides timm.

    Args:
        model_name: A registered name, with or without a tag: `resnet18_frskd` gives `resnet18`, `resnet18` itself,
            `wide_resnet16_2_frskd` None.

    Raises:
        UserError: timm has no such model.
    """
    architecture, _ = split_model_name_tag(model_name)
    if not is_model(architecture):
        raise UserError(f"Unknown model '{model_name}': timm.list_models() lists the names.")
    entrypoint = model_entrypoint(architecture)
    if entrypoint.__module__.partition(".")[0] == "timm":
        return architecture
    return getattr(entrypoint, "stock_name", None)
