"""Small datasets, decoded once and kept as bytes in memory, and on the GPU if there is one."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_train.data.images import BadImageError, in_blocks, quiet_pillow
from frskd_train.data.sampler import Rows
from frskd_train.data.splits import Sample, Split
from frskd_train.data.transforms import SampleTransform

SKIP = "--bad-images skip leaves such images out"


@dataclass(frozen=True)
class Cache:
    """The decoded samples of a split, indexed by their place among the readable ones."""

    split: Split
    images: Tensor | list[Tensor]  # uint8 [N, C, H, W], with C = 1 if all are gray; for dense targets N of [C, H, W]
    targets: Tensor | list[Tensor]  # [N]; for dense targets N of [H, W]
    sizes: list[tuple[int, int]]  # height and width of each image before resizing
    rows: Rows
    bad: dict[int, str]  # messages about the images that were left out, by place in the split
    _resident: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: list[int]) -> Iterator[Sample]:
        """Yield samples one by one."""
        for place in places:
            yield Sample(self.images[place], self.targets[place])

    def batch(self, places: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images and targets of one size as a batch on a device; all are moved there only once."""
        assert isinstance(self.images, Tensor)
        assert isinstance(self.targets, Tensor)
        if device not in self._resident:
            self._resident[device] = self.images.to(device), self.targets.to(device)
        images, targets = self._resident[device]
        chosen = torch.from_numpy(places).to(device, non_blocking=True)
        return images[chosen], targets[chosen]


def decode_all(split: Split, transform: SampleTransform, bad_images: Literal["stop", "skip"]) -> Cache:
    """Decode all samples of a split in threads; `transform` resizes them to one size unless targets are dense.

    Raises:
        UserError: An image cannot be used and `bad_images` is 'stop', or no image can be used.
    """

    def decode(places: list[int]) -> list[tuple[Tensor, Tensor, tuple[int, int]] | BadImageError]:
        decoded: list[tuple[Tensor, Tensor, tuple[int, int]] | BadImageError] = []
        for sample in split.read(places):
            if isinstance(sample, BadImageError):
                decoded.append(sample)
            else:
                assert isinstance(sample.image, Image.Image)
                decoded.append((*transform(sample, 0), (sample.image.height, sample.image.width)))
        return decoded

    if not split.targets.is_dense and split.mode == "RGB":
        split = replace(split, mode=None)  # gray images take a third of the space
    count = len(split)
    pixels: Tensor | None = None
    images: list[Tensor] = []
    targets: list[Tensor] = []
    sizes: list[tuple[int, int]] = []
    bad: dict[int, str] = {}
    with quiet_pillow():
        for place, result in enumerate(in_blocks(decode, list(range(count)), f"decoding {split.name}")):
            if isinstance(result, BadImageError):
                if bad_images == "stop":
                    raise UserError(f"{result} ({SKIP}).") from result
                bad[place] = str(result)
                continue
            image, target, size = result
            if split.targets.is_dense:
                images.append(image)
            else:  # written to its place immediately, so that the images are in memory only once
                if pixels is None:
                    pixels = torch.empty(count, *image.shape, dtype=torch.uint8)
                elif len(image) > pixels.shape[1]:  # the first image with colours
                    pixels = pixels.expand(-1, len(image), -1, -1).contiguous()
                pixels[len(targets)] = image  # a gray image among colour images fills all channels
            targets.append(target)
            sizes.append(size)
    if not targets:
        raise UserError(f"None of the {count} images of split {split.name} can be used; the first error is: {bad[0]}.")
    rows = np.delete(split.rows, list(bad))
    if pixels is None:
        return Cache(split, images, targets, sizes, rows, bad)
    return Cache(split, pixels[: len(targets)], torch.stack(targets), sizes, rows, bad)
