"""Image sizes that a backbone accepts."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from frskd_timm.pyramid import evaluating, sample_images

PROBE = 128  # side of the images for probing a backbone
# Candidates for the required multiple of a backbone's input size: the first whose odd multiples work.
MULTIPLES = {1: (97, 113), 4: (100, 116), 14: (98, 126), 16: (112, 80), 32: (96, 160), 128: (128, 384)}


def probe_size(backbone_args: Mapping[str, Any]) -> tuple[int, int]:
    """Return the height and width of a small image for probing a backbone with these arguments."""
    size = backbone_args.get("img_size", PROBE)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


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
