"""Common corruptions of images at five severities, after Hendrycks and Dietterich (2019).

The strengths are those of ImageNet-C, except that blur is relative to the image's side, so that it also suits small
images. Randomness depends only on the seed of a sample.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from frskd_train.data.splits import Sample
from frskd_train.data.transforms import SampleTransform

SEVERITIES = (1, 2, 3, 4, 5)


def _noise(image: Tensor, sigma: float) -> Tensor:
    return F.to_dtype(
        F.gaussian_noise(F.to_dtype(image, torch.float32, scale=True), sigma=sigma), image.dtype, scale=True
    )


def _blur(image: Tensor, share: float) -> Tensor:
    sigma = 0.3 + share * min(image.shape[1:])  # pixels; a smaller one would leave tiny images as they are
    return F.gaussian_blur(image, [2 * round(2 * sigma) + 1] * 2, [sigma, sigma])


def _pixelate(image: Tensor, share: float) -> Tensor:
    height, width = image.shape[1:]
    small = F.resize(image, [max(1, round(height * share)), max(1, round(width * share))], antialias=True)
    return F.resize(small, [height, width], InterpolationMode.NEAREST)


# By name: the function of an image uint8 [C, H, W] and a strength, and the strength of each severity.
CORRUPTIONS: Mapping[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "noise": (_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": (_blur, (0.01, 0.015, 0.02, 0.025, 0.035)),
    "brightness": (F.adjust_brightness, (1.2, 1.4, 1.6, 1.8, 2.0)),
    "contrast": (F.adjust_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": (lambda image, quality: F.jpeg(image, int(quality)), (25, 18, 15, 10, 7)),
    "pixelation": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
}


@dataclass(frozen=True)
class Corruption:
    """A transform followed by one of `CORRUPTIONS` at a severity."""

    transform: SampleTransform
    name: str
    severity: int

    def __call__(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
        image, target = self.transform(sample, seed)
        torch.default_generator.manual_seed(seed)
        change, strengths = CORRUPTIONS[self.name]
        return change(image, strengths[self.severity - 1]), target
