"""Transforms of one sample with timm and torchvision, up to bytes [C, H, W] and a target."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from frskd_timm.errors import UserError
from frskd_timm.losses.functional import IGNORED
from frskd_train.data.preprocessing import Preprocessing
from frskd_train.data.splits import Sample
from frskd_train.settings import PreprocessingSettings

BLUR = 23  # pixels of timm's Gaussian blur, half of which must be less than the image
SampleTransform = Callable[[Sample, int], tuple[Tensor, Tensor]]  # the number is a seed, the results image and target


def pixels_of(image: Image.Image | Tensor) -> Tensor:
    """Return an image of mode L or RGB as uint8 [C, H, W]; tensors are returned unchanged."""
    if isinstance(image, Tensor):
        return image
    array = np.asarray(image)
    return torch.from_numpy(array[None].copy() if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def as_is(sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
    """Return the sample at its own size."""
    return pixels_of(sample.image), sample.target


class EvalTransform:
    """timm's resize and crop for validation, with a shortcut for images that already fit."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        height, width = preprocessing.input_size[1:]
        self.size = (width, height)
        self.is_whole = all(math.floor(side / preprocessing.crop_pct) == side for side in self.size)
        self.timm_transform = create_transform(**asdict(preprocessing), normalize=False)
        self._fills = preprocessing.crop_mode == "border" and preprocessing.input_size[0] == 3

    def __call__(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
        return self.fit(sample.image), sample.target

    def fit(self, image: Image.Image | Tensor) -> Tensor:
        """Resize and crop one image."""
        assert isinstance(image, Image.Image)
        if self.is_whole and image.size == self.size:
            return pixels_of(image)
        if self._fills and image.mode == "L":
            image = image.convert("RGB")  # timm fills with a colour
        return self.timm_transform(image)

    def fit_picture(self, image: Image.Image) -> Image.Image:
        """Resize and crop one image; return a picture instead of a tensor."""
        return F.to_pil_image(self.fit(image))


def squash(size: tuple[int, int], interpolation: str, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
    """Resize to one height and width without keeping the aspect ratio, which random crops restore."""
    assert isinstance(sample.image, Image.Image)
    image = sample.image
    if image.size != size[::-1]:
        image = image.resize(size[::-1], str_to_pil_interp(interpolation))
    return pixels_of(image), sample.target


class PolicyTransform:
    """timm's training transforms of one streamed image: random resized crop, if any, and a policy or colour jitter.

    Flips, padded crops and erasing are applied to the batch. Raises UserError if timm does not know the policy.
    """

    def __init__(self, settings: PreprocessingSettings, preprocessing: Preprocessing, resized_crop: bool) -> None:
        try:
            crop, self._colours, _ = create_transform(
                preprocessing.input_size,
                is_training=True,
                scale=settings.scale,
                ratio=settings.ratio,
                hflip=0.0,
                vflip=0.0,
                color_jitter=settings.color_jitter or None,  # type: ignore[arg-type]
                color_jitter_prob=settings.color_jitter_prob,
                grayscale_prob=settings.grayscale_prob,
                gaussian_blur_prob=settings.gaussian_blur_prob,
                auto_augment=settings.aa,
                interpolation=preprocessing.interpolation,
                mean=preprocessing.mean,
                normalize=False,
                separate=True,
            )
        except Exception as error:  # timm parses the policy with assertions and conversions
            if settings.aa is None:
                raise
            raise UserError(f"--aa {settings.aa} is not a policy that timm knows; rand-m9-mstd0.5 is one.") from error
        fitted = EvalTransform(preprocessing)
        if settings.gaussian_blur_prob and min(fitted.size) <= BLUR // 2:
            raise UserError(f"--gaussian-blur-prob needs images of at least {BLUR // 2 + 1} pixels.")
        # The image may be too small to blur before it is fitted.
        fit_first = fitted.fit_picture if settings.gaussian_blur_prob else None
        self._first: Callable[[Any], Image.Image] | None = crop if resized_crop else fit_first
        self._fit = fitted.fit
        self._is_random = resized_crop or bool(self._colours.transforms)

    def __call__(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
        if self._is_random:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
        if self._first is not None:
            return pixels_of(self._colours(self._first(sample.image))), sample.target
        return self._fit(self._colours(sample.image)), sample.target


def resized_window(image: Tensor, size: Sequence[int], window: Sequence[range], interpolation: str) -> Tensor:
    """Resize an image uint8 [C, H, W], and return a window of the result without computing the rest.

    `size` is the height and width of the whole result, and `window` the ranges of its rows and columns. The pixels are
    those of Pillow's `resize` but for rounding, and where bicubic filters overshoot black or white.
    """
    if list(size) == list(image.shape[1:]):
        return image[:, window[0].start : window[0].stop, window[1].start : window[1].stop]
    parts, ends = [], []  # along each side: the pixels that are needed, and the window among them
    for side, new, wanted in zip(image.shape[1:], size, window, strict=True):
        scale = side / new
        reach = math.ceil(3 * max(scale, 1)) + 1  # no filter of Pillow's is wider
        first = max(0, math.floor(wanted.start * scale) - reach)
        parts.append(slice(first, min(side, math.ceil(wanted.stop * scale) + reach)))
        ends.append((wanted.start * scale - first, wanted.stop * scale - first))
    (top, bottom), (left, right) = ends
    part = F.to_pil_image(image[:, parts[0], parts[1]])
    box = (left, top, right, bottom)
    return pixels_of(part.resize((len(window[1]), len(window[0])), str_to_pil_interp(interpolation), box))


def nearest_window(layer: Tensor, size: Sequence[int], window: Sequence[range]) -> Tensor:
    """Return a window of a layer [C, H, W] resized to the nearest pixels; see `resized_window`."""
    rows, columns = (
        (2 * torch.arange(wanted.start, wanted.stop) + 1) * side // (2 * new)
        for side, new, wanted in zip(layer.shape[1:], size, window, strict=True)
    )
    return layer[:, rows[:, None], columns]


@dataclass(frozen=True)
class DenseTransform:
    """Random scaling, crop, flips and colour jitter of an image together with its mask."""

    crop: tuple[int, int]  # height and width of the result; smaller images are padded
    resize: tuple[float, float]  # smallest and largest factor of the image's size
    hflip: float  # probability; likewise vflip
    vflip: float
    color_jitter: float  # strength of random brightness, contrast and saturation of the image
    fill: tuple[int, ...]  # colour of the padding, one byte per channel; the mask is padded with 255
    interpolation: str = "bilinear"  # of the image; masks use the nearest pixel

    def __call__(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
        """Return an image uint8 [C, *crop] and a mask uint8 [*crop]."""
        generator = np.random.default_rng(seed)
        factor = np.exp(generator.uniform(*np.log(self.resize)))
        places, flips, strengths = generator.random(2), generator.random(2), generator.uniform(-1, 1, 3)

        whole = pixels_of(sample.image)
        size = [max(1, round(side * factor)) for side in whole.shape[1:]]
        window, padding = [], []  # along each side: a range of the resized image, and what is missing around it
        for place, side, wanted in zip(places, size, self.crop, strict=True):
            start = int(place * (side - wanted + 1)) if side > wanted else 0
            before = int(place * (wanted - side + 1)) if side < wanted else 0
            window.append(range(start, min(start + wanted, side)))
            padding.append((before, max(wanted - side, 0) - before))
        (top, bottom), (left, right) = padding

        def finish(layer: Tensor, fill: Any) -> Tensor:
            if any((left, top, right, bottom)):
                layer = F.pad(layer, [left, top, right, bottom], fill=fill)
            layer = F.horizontal_flip(layer) if flips[0] < self.hflip else layer
            return F.vertical_flip(layer) if flips[1] < self.vflip else layer

        image = finish(resized_window(whole, size, window, self.interpolation), list(self.fill))
        mask = finish(nearest_window(sample.target[None], size, window), IGNORED)
        if self.color_jitter:
            changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
            for change, strength in zip(changes, strengths, strict=True):
                image = change(image, max(0.0, 1 + self.color_jitter * strength))
        return image, mask[0]
