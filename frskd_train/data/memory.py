"""Small datasets: decoded once, kept as bytes in memory, and on the GPU where there is one."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from frskd_timm.errors import UserError
from frskd_train.data.batch import Floats, crop_resized, draw_boxes
from frskd_train.data.decode import BadImageError, quiet_pillow
from frskd_train.data.order import Draw, Order, generator_for, validation_share
from frskd_train.data.parts import Part
from frskd_train.data.transforms import Transform

CHUNK = 1024  # images decoded between two steps of the progress bar
BLOCK = 32  # images that a thread decodes at a time


@dataclass(frozen=True)
class ResizedCrop:
    """Settings of RandomResizedCrop on images in memory."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str


@dataclass(frozen=True)
class MemoryImages:
    """Decoded images and their labels.

    Attributes:
        images: uint8 [N, C, H, W]; C is 1 where all are gray.
        labels: [N].
        aspect: Width over height of each image before it was resized, [N].
        bad: Messages about the images that were left out.
    """

    images: Tensor
    labels: Tensor
    aspect: Floats
    bad: tuple[str, ...] = ()
    _resident: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels on a device, to which they are moved only once."""
        if device not in self._resident:
            self._resident[device] = self.images.to(device), self.labels.to(device)
        return self._resident[device]

    def train_batches(
        self, order: Order, epoch: int, start: int, device: torch.device, resized: ResizedCrop | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives a process's images and labels of each step from `start` on, cropped at random if `resized`."""
        images, labels = self.on(device)
        permutation = order.permutation(epoch)
        rows = torch.from_numpy(permutation).to(device)
        for step in range(start, order.steps):
            chosen = rows[order.places(step)]
            batch = images[chosen]
            if resized is not None:
                # Drawn for the whole global batch, whose aspect ratios every process knows.
                whole = permutation[step * order.global_batch :][: order.global_batch]
                generator = generator_for(Draw.CROP, order.seed, epoch, step)
                boxes = draw_boxes(generator, self.aspect[whole], resized.scale, resized.ratio)[:, order.share]
                batch = crop_resized(batch, boxes, resized.size, resized.interpolation)
            yield batch, labels[chosen]

    def val_batches(
        self, batch_size: int, rank: int, world: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives a process's share of all images, in order."""
        images, labels = self.on(device)
        share = validation_share(len(self), rank, world)
        for first in range(share.start, share.stop, batch_size):
            chosen = slice(first, min(first + batch_size, share.stop))
            yield images[chosen], labels[chosen]


def decode_all(
    part: Part,
    transform: Transform,
    in_chans: Literal[1, 3],
    bad_images: Literal["stop", "skip"],
    progress: bool,
) -> MemoryImages:
    """Decodes the rows of a part.

    Args:
        part: The rows to decode.
        transform: Image to uint8 [C, H, W], the same size for all.
        in_chans: Channels of the network's input; with 3, one is kept as long as all images are gray.
        bad_images: Whether an image that cannot be read stops or is left out.
        progress: Show a bar if it takes more than a few seconds.

    Raises:
        UserError: An image that cannot be read if those stop, or not one that can.
    """

    images, rows = part.images, part.rows

    def decode(block: list[int]) -> list[tuple[Tensor, float] | BadImageError]:
        results: list[tuple[Tensor, float] | BadImageError] = []
        for image in images.load_many(block, "L" if in_chans == 1 else None):
            if isinstance(image, BadImageError):
                results.append(image)
            else:
                results.append((transform(image), image.width / image.height))
        return results

    pixels: Tensor | None = None
    aspect, kept, bad = np.ones(len(rows)), np.zeros(len(rows), np.bool_), []
    bar = tqdm(total=len(rows), desc=f"decoding {images.split}", unit=" images", delay=3, disable=not progress)
    with quiet_pillow(), bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(rows), CHUNK):
            chunk = rows[first : first + CHUNK].tolist()
            blocks = pool.map(decode, [chunk[start : start + BLOCK] for start in range(0, len(chunk), BLOCK)])
            for place, result in enumerate(chain.from_iterable(blocks), first):
                if isinstance(result, BadImageError):
                    if bad_images == "stop":
                        raise UserError(f"{result} (--bad-images skip leaves such images out)") from result
                    bad.append(str(result))
                    continue
                decoded, aspect[place] = result
                if pixels is None:
                    pixels = torch.empty(len(rows), *decoded.shape, dtype=torch.uint8)
                elif len(decoded) > pixels.shape[1]:  # the first image with colours
                    pixels = pixels.expand(-1, len(decoded), -1, -1).contiguous()
                pixels[place] = decoded  # a gray image among coloured ones fills all channels
                kept[place] = True
            bar.update(len(chunk))
    if pixels is None:
        raise UserError(f"none of the {len(rows)} images of split {images.split} can be read; the first: {bad[0]}")
    if bad:
        pixels = pixels[torch.from_numpy(kept)]
    return MemoryImages(pixels, torch.from_numpy(part.labels[kept]), aspect[kept], tuple(bad))
