"""What is done to one image: timm's and torchvision's transforms, up to bytes [C, H, W]."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_pil_interp
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_train.data.preprocessing import Preprocessing
from frskd_train.settings import PreprocessingSettings

Transform = Callable[[Image.Image], Tensor]


def pixels_of(image: Image.Image) -> Tensor:
    """An image of mode L or RGB as uint8 [C, H, W]."""
    array = np.asarray(image)
    return torch.from_numpy(array[None].copy() if array.ndim == 2 else array.transpose(2, 0, 1).copy())


class Fit:
    """The validation's resize and crop, by timm; images that fit already take a short cut.

    Args:
        preprocessing: Size, filter and crop.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        height, width = preprocessing.input_size[1:]
        self.size = (width, height)
        self.is_whole = all(math.floor(side / preprocessing.crop_pct) == side for side in self.size)
        self.timm_transform = create_transform(**preprocessing.as_timm(), normalize=False)

    def __call__(self, image: Image.Image) -> Tensor:
        """Gives uint8 [C, H, W]."""
        if self.is_whole and image.size == self.size:
            return pixels_of(image)
        fitted: Tensor = self.timm_transform(image)
        return fitted


@dataclass(frozen=True)
class Squash:
    """Resizes to one size for all, without keeping the aspect ratio: random crops restore it.

    Attributes:
        width: Of the result.
        height: Of the result.
        interpolation: Resizing filter.
    """

    width: int
    height: int
    interpolation: str

    def __call__(self, image: Image.Image) -> Tensor:
        """Gives uint8 [C, H, W]."""
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), str_to_pil_interp(self.interpolation))
        return pixels_of(image)


@dataclass(frozen=True)
class Augmented:
    """timm's training transforms of one image: random resized crop if wanted, then a policy or colour jitter.

    Attributes:
        crop: Image to image; None leaves it to `fit`.
        colours: Timm's AutoAugment policy or colour jitter, image to image.
        fit: Image to uint8 [C, H, W].
        is_random: Whether anything of this draws random numbers.
    """

    crop: Callable[[Image.Image], Image.Image] | None
    colours: Callable[[Image.Image], Image.Image]
    fit: Transform
    is_random: bool

    def __call__(self, image: Image.Image) -> Tensor:
        """Gives uint8 [C, H, W]."""
        if self.crop is not None:
            return pixels_of(self.colours(self.crop(image)))
        return self.fit(self.colours(image))


def streamed_transform(settings: PreprocessingSettings, preprocessing: Preprocessing, resized_crop: bool) -> Augmented:
    """Makes the transform of streamed training images; flips, padded crops and erasing follow on the batch.

    Raises:
        UserError: Timm does not know the policy.
    """
    arguments: dict[str, Any] = {
        "is_training": True,
        "scale": settings.scale,
        "ratio": settings.ratio,
        "hflip": 0.0,
        "vflip": 0.0,
        "color_jitter": settings.color_jitter or None,
        "auto_augment": settings.aa,
        "interpolation": preprocessing.interpolation,
        "mean": preprocessing.mean,
        "normalize": False,
        "separate": True,
    }
    try:
        crop, colours, _ = create_transform(preprocessing.input_size, **arguments)
    except Exception as error:  # timm parses the policy with assertions and conversions
        raise UserError(f"--aa {settings.aa}: timm knows no such policy; rand-m9-mstd0.5 is one") from error
    is_random = resized_crop or bool(colours.transforms)
    return Augmented(crop if resized_crop else None, colours, Fit(preprocessing), is_random)
