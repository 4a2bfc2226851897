"""Inputs that the method needs: two views of a batch, and rotated images."""

from typing import NamedTuple

import torch
from torch import Tensor


class TwoViews(NamedTuple):
    """A batch for a self-teacher that sees the images before erasing and mixing, with `teacher_view='clean'`."""

    images: Tensor  # [B, C, H, W] as the student sees them
    clean: Tensor  # the same images without erasing and mixing
    classes: Tensor  # of the clean images, [B]
    mixing: Tensor | None  # [B, B]: how much of each clean image is in each mixed one; None without Mixup and CutMix


def rotations(images: Tensor) -> Tensor:
    """Rotate square images by 0, 90, 180 and 270 degrees: [B, C, S, S] -> [4 B, C, S, S].

    The rotations of image k are rows 4 k to 4 k + 3.
    """
    turned = torch.stack([torch.rot90(images, r, (2, 3)) for r in range(4)], dim=1).flatten(0, 1)
    if images.is_contiguous(memory_format=torch.channels_last):
        return turned.contiguous(memory_format=torch.channels_last)
    return turned
