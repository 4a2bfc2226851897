"""Batch augmentations that belong to the method: Mixup, CutMix, rotations, two views. Pure functions of tensors."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Box = tuple[int, int, int, int]


class TwoViews(NamedTuple):
    """A batch for a self-teacher that sees the images before erasing and mixing, with `teacher_view='clean'`."""

    images: Tensor  # [B, C, H, W] as the student sees them
    clean: Tensor  # the same images without erasing and mixing
    classes: Tensor  # of the clean images, [B]
    mixing: Tensor | None  # [B, B]: how much of each clean image is in each mixed one; None without Mixup and CutMix


def mixup(images: Tensor, target: Tensor, lam: float, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each image with another one of the batch (Mixup, arXiv 1710.09412).

    Args:
        images: [B, C, H, W], floating point.
        target: Probabilities [B, K], which are mixed likewise.
        lam: Weight of the image itself, 0..1.
        index: Each image's partner, a permutation [B].
    """
    return torch.lerp(images[index], images, lam), torch.lerp(target[index], target, lam)


def cutmix(images: Tensor, target: Tensor, lam: float, index: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Paste a box from another image of the batch into each image, and mix their targets (CutMix, arXiv 1905.04899).

    Args:
        images: [B, C, H, W].
        target: Probabilities [B, K].
        lam: Weight of the image's own target, 0..1: 1 minus the fraction of the area that the box covers.
        index: Each image's partner, a permutation [B].
        box: Start and end row, start and end column; ends are exclusive.
    """
    top, bottom, left, right = box
    images = images.clone(memory_format=torch.preserve_format)
    images[:, :, top:bottom, left:right] = images[index, :, top:bottom, left:right]
    return images, torch.lerp(target[index], target, lam)


def cutmix_box(height: int, width: int, lam: float, generator: np.random.Generator) -> tuple[Box, float]:
    """Draw the box of CutMix, and return it with lambda corrected for its area.

    It covers about 1 - lam of the image, is centred anywhere and clipped at the image's edges.
    """
    side = math.sqrt(1 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = int(generator.integers(height)), int(generator.integers(width))
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / (height * width)


def rotations(images: Tensor) -> Tensor:
    """Rotate square images by 0, 90, 180 and 270 degrees: [B, C, S, S] -> [4 B, C, S, S].

    The rotations of image k are rows 4 k to 4 k + 3.
    """
    turned = torch.stack([torch.rot90(images, r, (2, 3)) for r in range(4)], dim=1).flatten(0, 1)
    if images.is_contiguous(memory_format=torch.channels_last):
        return turned.contiguous(memory_format=torch.channels_last)
    return turned
