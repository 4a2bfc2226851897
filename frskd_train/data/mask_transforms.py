"""Random changes of an image together with its mask."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from frskd_timm.segmentation.losses import IGNORED
from frskd_train.data.mask_rows import Pair

FILTERS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


@dataclass(frozen=True)
class PairAugmentation:
    """Scale, crop, flip and colour, the same for the image and its mask.

    Attributes:
        crop: Height and width of the result. Where the scaled image is smaller, it is padded.
        resize: Smallest and largest factor of the image's size.
        hflip: Chance of a horizontal flip.
        vflip: Chance of a vertical flip.
        color_jitter: Strength of random brightness, contrast and saturation of the image.
        fill: Colour of the padding, one byte a channel; the mask is padded with 255.
        interpolation: Resizing filter of the image; the mask takes the nearest pixel.
    """

    crop: tuple[int, int]
    resize: tuple[float, float]
    hflip: float
    vflip: float
    color_jitter: float
    fill: tuple[int, ...]
    interpolation: str = "bilinear"

    def __call__(self, pair: Pair, seed: int) -> tuple[Tensor, Tensor]:
        """Changes a pair as the seed says.

        Returns:
            Image uint8 [C, *crop] and mask uint8 [*crop].
        """
        random = np.random.default_rng(seed)
        factor = np.exp(random.uniform(*np.log(self.resize)))
        places, flips, strengths = random.random(2), random.random(2), random.uniform(-1, 1, 3)
        image, mask = pair.image, pair.mask[None]
        if factor != 1:
            size = [max(1, round(side * factor)) for side in mask.shape[1:]]
            image = F.resize(image, size, FILTERS[self.interpolation], antialias=True)
            mask = F.resize(mask, size, InterpolationMode.NEAREST_EXACT)
        missing = [max(0, wanted - side) for wanted, side in zip(self.crop, mask.shape[1:], strict=True)]
        if any(missing):
            before = [int(place * (lack + 1)) for place, lack in zip(places, missing, strict=True)]
            after = [lack - first for lack, first in zip(missing, before, strict=True)]
            padding = [before[1], before[0], after[1], after[0]]
            image = F.pad(image, padding, fill=list(self.fill))
            mask = F.pad(mask, padding, fill=IGNORED)
        top, left = (
            int(place * (side - wanted + 1))
            for place, side, wanted in zip(places, mask.shape[1:], self.crop, strict=True)
        )
        image, mask = (F.crop(layer, top, left, *self.crop) for layer in (image, mask))
        if flips[0] < self.hflip:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        if flips[1] < self.vflip:
            image, mask = F.vertical_flip(image), F.vertical_flip(mask)
        if self.color_jitter:
            changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
            for change, strength in zip(changes, strengths, strict=True):
                image = change(image, max(0.0, 1 + self.color_jitter * strength))
        return image, mask[0]
