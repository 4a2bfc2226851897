"""The preprocessing in training, validation and export, determined by settings, model and data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frskd_train.settings import FitSettings, PreprocessingSettings

SMALL = 64  # size in pixels up to which images are used at their own size, with padded random crops


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images before the network, with the keys of timm's data configuration.

    Attributes:
        input_size: Channels, height, width.
        mean: Mean per channel for images in 0..1.
        std: Standard deviation per channel.
        interpolation: Resizing filter.
        crop_pct: Fraction of the resized image's side that the centre crop keeps.
        crop_mode: Crop mode in validation.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Create it from a model's data configuration, as returned by timm's `resolve_data_config`."""
        channels, height, width = map(int, config["input_size"])
        given = (tuple(config[name]) for name in ("mean", "std"))
        mean, std = (values * channels if len(values) == 1 else values for values in given)
        others = config["interpolation"], config["crop_pct"], config["crop_mode"]
        return cls((channels, height, width), mean, std, *others)

    def fitted(self, settings: FitSettings) -> "Preprocessing":
        """Return a copy with the size, filter and crop that the settings give."""
        given = settings.given()
        sides = given.pop("img_size", self.input_size[1:])
        given.pop("use_train_size", None)
        return replace(self, **given, input_size=(self.input_size[0], sides[0], sides[-1]))

    def to_bytes(self, images: Tensor) -> npt.NDArray[np.uint8]:
        """Convert normalised images [B, C, H, W] back to pictures [B, H, W, C]."""
        mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        pixels = ((images * std + mean) * 255).round().clamp(0, 255).byte()
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def without_statistics(
    settings: PreprocessingSettings, size: tuple[int, int], initial_cfg: Mapping[str, Any], crops_resized: bool = False
) -> Preprocessing:
    """Return a preprocessing without normalisation; filter and crop are given, or of the initial weights, or as usual.

    The crop of the initial weights is left out unless this run trains on random resized crops (`crops_resized`), which
    enlarge what they show (arXiv 1906.06423).
    """
    usual = Preprocessing((settings.in_chans, *size), (0.0,) * settings.in_chans, (1.0,) * settings.in_chans)
    chosen = {}
    for name, known in (("interpolation", ("bilinear", "bicubic")), ("crop_mode", ("center", "squash"))):
        initial = initial_cfg.get(name)
        chosen[name] = getattr(settings, name) or (initial if initial in known else getattr(usual, name))
    crop_pct = settings.crop_pct
    if crop_pct is None and crops_resized:
        crop_pct = min(initial_cfg.get("crop_pct") or usual.crop_pct, 1.0)
    return replace(usual, **chosen, crop_pct=crop_pct or usual.crop_pct)


def given_statistics(settings: PreprocessingSettings, initial_cfg: Mapping[str, Any]) -> list[tuple[float, ...] | None]:
    """Return mean and standard deviation, each from the settings, else of the initial weights, else None."""
    chosen = []
    for name, values in (("mean", settings.mean), ("std", settings.std)):
        if values is None and initial_cfg.get(name) is not None:
            values = tuple(float(value) for value in initial_cfg[name])
            if len(values) != settings.in_chans:
                values = (sum(values) / len(values),)
        chosen.append(values * settings.in_chans if values is not None and len(values) == 1 else values)
    return chosen


def measure(images: Iterable[Tensor], in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of batches uint8 [N, 1 or in_chans, H, W]; exact, so equal on all machines.

    Returns:
        Mean and standard deviation per channel for images in 0..1, rounded to four decimals as in timm.
    """
    parts = (part for batch in images for part in batch.split(4096))
    counts = sum(
        torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in part.unbind(1)]) for part in parts
    )
    assert isinstance(counts, Tensor)
    level = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ level
    std = (share @ level.square() - mean.square()).clamp_min(0).sqrt()
    if len(counts) != in_chans:
        mean, std = mean.expand(in_chans), std.expand(in_chans)
    floor = 1 / 255  # for images of a single colour
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(max(v, floor), 4) for v in std.tolist())
