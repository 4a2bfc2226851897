"""Common corruptions of images, to measure how robust a network is."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from frskd_train.data.splits import Sample
from frskd_train.data.transforms import SampleTransform


def _noise(image: Tensor, sigma: float) -> Tensor:
    noisy = F.gaussian_noise(F.to_dtype(image, torch.float32, scale=True), sigma=sigma)
    return F.to_dtype(noisy, image.dtype, scale=True)


def _blur(image: Tensor, share: float) -> Tensor:
    sigma = 0.3 + share * min(image.shape[1:])  # pixels; a smaller one would leave tiny images as they are
    return F.gaussian_blur(image, [2 * round(2 * sigma) + 1] * 2, [sigma, sigma])


def _pixelate(image: Tensor, share: float) -> Tensor:
    height, width = image.shape[1:]
    small = F.resize(image, [max(1, round(height * share)), max(1, round(width * share))], antialias=True)
    return F.resize(small, [height, width], InterpolationMode.NEAREST)


# Common corruptions after Hendrycks and Dietterich (2019), with the strengths of ImageNet-C, except that blur is
# relative to the image's side, so that it also suits small images. By name: the function of an image uint8 [C, H, W]
# and a strength, and the strength of each severity.
CORRUPTIONS: Mapping[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "noise": (_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": (_blur, (0.01, 0.015, 0.02, 0.025, 0.035)),
    "brightness": (F.adjust_brightness, (1.2, 1.4, 1.6, 1.8, 2.0)),
    "contrast": (F.adjust_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": (lambda image, quality: F.jpeg(image, int(quality)), (25, 18, 15, 10, 7)),
    "pixelation": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(
    transform: SampleTransform, channels: int, name: str, severity: int, sample: Sample, seed: int
) -> tuple[Tensor, Tensor]:
    """Transform a sample to an image with this number of channels, then apply one of `CORRUPTIONS` at a severity."""
    image, target = transform(sample, seed)
    image = image.expand(channels, -1, -1)  # gray images in memory have one channel, and noise differs between channels
    torch.default_generator.manual_seed(seed)
    change, strengths = CORRUPTIONS[name]
    return change(image, strengths[severity - 1]), target
