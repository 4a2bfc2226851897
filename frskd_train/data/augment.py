"""Augmentation of whole batches: crops, flips, erasing, Mixup and CutMix.

Random numbers are drawn with NumPy for the whole global batch, and each process takes its share. Mixup and CutMix are
timm's, on the images of each process.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from frskd_timm.augment import TwoViews
from frskd_train.data.preprocessing import Preprocessing
from frskd_train.data.sampler import Draw, Order, Rows, generator_for, untouched_randomness
from frskd_train.settings import PreprocessingSettings

Floats = npt.NDArray[np.float64]
ATTEMPTS = 10  # boxes tried per image before the largest central one is used, as in torchvision


def crop_padded(images: Tensor, offsets: Rows, padding: int) -> Tensor:
    """Pad images uint8 [B, C, H, W] with black, and crop each at its own row and column offset, [2, B]."""
    height, width = images.shape[-2:]
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    rows, columns = torch.from_numpy(offsets).to(images.device, non_blocking=True)
    return windows[torch.arange(len(images), device=images.device), :, rows, columns]


def flip(images: Tensor, flips: npt.NDArray[np.bool_]) -> Tensor:
    """Flip images [B, C, H, W] horizontally and vertically where the booleans [2, B] are true."""
    for chosen, axis in zip(flips, (3, 2), strict=True):
        if chosen.any():
            mask = torch.from_numpy(chosen).to(images.device, non_blocking=True)
            images = torch.where(mask[:, None, None, None], images.flip(axis), images)
    return images


def draw_boxes(
    generator: np.random.Generator, aspect: Floats, scale: tuple[float, float], ratio: tuple[float, float]
) -> Floats:
    """Draw the boxes of RandomResizedCrop (arXiv 1409.4842) for images with aspect ratio width / height `aspect` [B].

    Returns:
        Top, left, height and width as fractions of the image's height and width, [4, B].
    """
    count = len(aspect)
    area = generator.uniform(*scale, (ATTEMPTS, count))
    box_aspect = np.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1]), (ATTEMPTS, count)))
    place = generator.random((2, count))
    widths, heights = np.sqrt(area * box_aspect / aspect), np.sqrt(area / box_aspect * aspect)
    fits = (widths <= 1) & (heights <= 1)
    first = fits.argmax(0)
    each = np.arange(count)
    width = np.where(fits.any(0), widths[first, each], np.minimum(1, ratio[1] / aspect))
    height = np.where(fits.any(0), heights[first, each], np.minimum(1, aspect / ratio[0]))
    place = np.where(fits.any(0), place, 0.5)
    return np.stack([place[0] * (1 - height), place[1] * (1 - width), height, width])


def crop_resized(images: Tensor, boxes: Floats, size: tuple[int, int], interpolation: str) -> Tensor:
    """Crop the boxes of `draw_boxes` from images uint8 [B, C, H, W]; return float32 [B, C, *size] in 0..255."""
    top, left, height, width = torch.from_numpy(boxes).float().to(images.device, non_blocking=True)
    down, across = ((torch.arange(side, device=images.device) + 0.5) / side for side in size)
    rows = (top[:, None] + height[:, None] * down) * 2 - 1
    columns = (left[:, None] + width[:, None] * across) * 2 - 1
    grid = torch.stack([columns[:, None, :].expand(-1, size[0], -1), rows[:, :, None].expand(-1, -1, size[1])], -1)
    sampled = F.grid_sample(images.float(), grid, interpolation, padding_mode="border", align_corners=False)
    return sampled.clamp_(0, 255)


def draw_erased(generator: np.random.Generator, count: int, chance: float, size: tuple[int, int]) -> Rows:
    """Draw the boxes of random erasing (arXiv 1708.04896) in images of height and width `size`.

    They cover 2% to 33% of the area; the aspect ratio is 0.3 to 3.3.

    Returns:
        Start and end row, start and end column (ends exclusive), [4, B]; empty boxes for images without erasing.
    """
    chosen = generator.random(count) < chance
    area = generator.uniform(0.02, 1 / 3, count) * size[0] * size[1]
    aspect = np.exp(generator.uniform(math.log(0.3), math.log(3.3), count))
    height = np.minimum(np.round(np.sqrt(area * aspect)), size[0]).astype(np.int64)
    width = np.minimum(np.round(np.sqrt(area / aspect)), size[1]).astype(np.int64)
    room = np.array(size)[:, None] + 1 - np.stack([height, width])
    top, left = (generator.random((2, count)) * room).astype(np.int64)
    return np.stack([top, top + height, left, left + width]) * chosen


def erase(images: Tensor, boxes: Rows) -> Tensor:
    """Set a box of each normalised image [B, C, H, W] to 0, the mean colour; `boxes` come from `draw_erased`."""
    if not boxes.any():
        return images
    top, bottom, left, right = torch.from_numpy(boxes).to(images.device, non_blocking=True)[:, :, None]
    down, across = (torch.arange(side, device=images.device) for side in images.shape[2:])
    rows, columns = (down >= top) & (down < bottom), (across >= left) & (across < right)
    return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)


class Normalize:
    """Convert bytes to network input: scale to 0..1, subtract mean, divide by deviation; NHWC if channels last."""

    def __init__(self, preprocessing: Preprocessing, channels_last: bool, device: torch.device) -> None:
        self.device = torch.empty(0, device=device).device  # with its number: a cache keeps the images of each device
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        statistics = preprocessing.mean, preprocessing.std
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in statistics)
        self.scale, self.shift = (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalise [B, C or 1, H, W] with values 0..255 of any number type; a gray channel is repeated."""
        size = len(images), len(self.shift), *images.shape[2:]
        out = torch.empty(size, device=images.device, memory_format=self.format, dtype=torch.float32)
        return torch.addcmul(self.shift, out.copy_(images), self.scale, out=out)  # in place: new memory is slow


def mix(images: Tensor, settings: PreprocessingSettings, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix images [B, C, H, W] with timm's Mixup and CutMix; the last one of an odd number stays as it is.

    Returns:
        The images, and how much of each image is in each mixed one, [B, B].
    """
    even = len(images) // 2 * 2
    shares = torch.eye(len(images), device=images.device)
    alphas = settings.mixup, settings.cutmix, settings.cutmix_minmax
    chances = settings.mixup_prob, settings.mixup_switch_prob, settings.mixup_mode
    mixing = Mixup(*alphas, *chances, label_smoothing=0.0, num_classes=even)
    with untouched_randomness():
        np.random.seed(generator.integers(2**32))  # timm draws from NumPy's global generator
        if even:
            numbers = torch.arange(even, device=images.device)
            images[:even], shares[:even, :even] = mixing(images[:even], numbers)
    return images, shares


class ResizedCrop(NamedTuple):
    """Random resized crops of images that were squashed to one size."""

    aspect: Floats  # width / height of each image before that, [N]
    size: tuple[int, int]  # height and width of the crops in pixels
    interpolation: str


@dataclass(frozen=True)
class BatchAugmentation:
    """Augmentation of training batches with the probabilities in the settings."""

    settings: PreprocessingSettings
    num_classes: int = 0  # of the probabilities that mixing makes from labels
    padding: int = 0  # pixels, for random crops
    crop: ResizedCrop | None = None
    clean_view: bool = False  # also return the images before erasing and mixing

    @torch.no_grad()
    def __call__(
        self, images: Tensor, targets: Tensor, normalize: Normalize, order: Order, epoch: int, step: int
    ) -> tuple[Tensor | TwoViews, Tensor]:
        """Augment and normalise the batch of one process; random numbers depend only on the place in the run."""
        settings, count, share = self.settings, order.global_batch, order.share
        if self.crop is not None:
            # Drawn for the whole global batch, because every process knows its aspect ratios.
            generator = generator_for(Draw.CROP, order.seed, epoch, step)
            aspect = self.crop.aspect[order.whole(epoch, step)]
            boxes = draw_boxes(generator, aspect, settings.scale, settings.ratio)[:, share]
            images = crop_resized(images, boxes, self.crop.size, self.crop.interpolation)
        generator = generator_for(Draw.PLACE, order.seed, epoch, step)
        flips = generator.random((2, count))[:, share] < np.array([[settings.hflip], [settings.vflip]])
        if self.padding:
            offsets = generator.integers(0, 2 * self.padding + 1, (2, count))[:, share]
            images = crop_padded(images, offsets, self.padding)
        images = normalize(flip(images, flips))
        clean = images.clone() if self.clean_view else None
        if settings.reprob:
            generator = generator_for(Draw.ERASE, order.seed, epoch, step)
            size = (images.shape[2], images.shape[3])
            images = erase(images, draw_erased(generator, count, settings.reprob, size)[:, share])
        unmixed = images if clean is None else TwoViews(images, clean, targets, None)
        if not settings.mixup and not settings.cutmix and settings.cutmix_minmax is None:
            return unmixed, targets
        one_hot = F.one_hot(targets, self.num_classes).float()
        if 0 < settings.mixup_off_epoch <= epoch:
            return unmixed, one_hot
        images, shares = mix(images, settings, generator_for(Draw.MIX, order.seed, epoch, step, order.rank))
        return images if clean is None else TwoViews(images, clean, targets, shares), shares @ one_hot
