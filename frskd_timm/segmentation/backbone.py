"""Backbones of segmentation students: their creation, levels, and the image sizes that they accept."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import timm
from torch import nn

from frskd_timm.errors import UserError, first_line
from frskd_timm.lookup import known_cfg, refuse_places
from frskd_timm.probing import evaluating, sample_images
from frskd_timm.pyramid import Pyramid

MAX_LEVELS = 4  # p2..p5
PROBE = 128  # side of the images for probing a backbone
# Candidates for the required multiple of a backbone's input size: the first whose odd multiples work.
MULTIPLES = {1: (97, 113), 4: (100, 116), 14: (98, 126), 16: (112, 80), 32: (96, 160), 128: (128, 384)}


def create_backbone(name: str, in_chans: int, arguments: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Create a timm model without its head; return it with the arguments that it was created with."""
    cfg = known_cfg(name)
    refuse_places(arguments, "backbone_args")
    try:
        if cfg is not None and cfg.fixed_input_size:
            # Without one of these arguments, transformers accept only images of their own size.
            for freedom in ({"dynamic_img_size": True}, {"strict_img_size": False}):
                with suppress(TypeError):  # not an argument of this model
                    given = {**freedom, **arguments}
                    return timm.create_model(name, num_classes=0, in_chans=in_chans, **given), given
        return timm.create_model(name, num_classes=0, in_chans=in_chans, **arguments), arguments
    except Exception as error:  # unknown or unsuitable arguments
        raise UserError(f"Could not create the backbone '{name}': {first_line(error)}.") from error


def probe_size(backbone_args: Mapping[str, Any]) -> tuple[int, int]:
    """Return the height and width of a small image for probing a backbone with these arguments."""
    size = backbone_args.get("img_size", PROBE)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def find_pyramid(model: nn.Module, in_chans: int, backbone_args: Mapping[str, Any]) -> tuple[tuple[int, int], Pyramid]:
    """Find a small size that a backbone accepts; return it with the pyramid at that size."""
    sizes = [probe_size(backbone_args)]
    if "img_size" not in backbone_args:
        sizes.append((224, 224))  # fits all common patch sizes
        cfg: Any = getattr(model, "pretrained_cfg", None)
        sizes += [tuple(cfg["input_size"][1:])] if cfg else []
    *others, last = sizes
    for size in others:
        with suppress(UserError):
            return size, Pyramid(model, (in_chans, *size), MAX_LEVELS)
    return last, Pyramid(model, (in_chans, *last), MAX_LEVELS)


def find_multiple(model: nn.Module, in_chans: int) -> int | None:
    """Find the number that input height and width must be a multiple of; None if the model accepts only one size.

    Networks that cut images into patches, such as ConvNeXt, accept other sizes but leave the last rows out; a multiple
    at which all maps cover the image is preferred.
    """
    forward: Any = model.forward_intermediates
    errors = AssertionError, RuntimeError, ValueError  # raised by models for sizes that they do not accept

    def sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
        maps = forward(sample_images(model, (in_chans, *size)), intermediates_only=True)
        return [(map_.shape[-2], map_.shape[-1]) for map_ in maps]

    accepted = None
    with evaluating(model):
        try:
            strides = [PROBE / width for _, width in sizes((PROBE, PROBE))]
        except errors:
            strides = []
        for multiple, size in MULTIPLES.items():
            try:
                found = sizes(size)
            except errors:
                continue
            accepted = accepted or multiple
            covered = [
                (height * stride, width * stride) for (height, width), stride in zip(found, strides, strict=False)
            ]
            if all(height >= size[0] and width >= size[1] for height, width in covered):
                return multiple
    return accepted
