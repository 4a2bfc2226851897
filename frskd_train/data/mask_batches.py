"""A process's batches of images and masks: the same interface as the batches of images and classes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frskd_timm.errors import UserError
from frskd_train.data.batch import Normalize
from frskd_train.data.decode import BadImageError, quiet_pillow
from frskd_train.data.mask_rows import Pair, Pairs
from frskd_train.data.mask_transforms import PairAugmentation
from frskd_train.data.order import Draw, Order, generator_for, validation_share
from frskd_train.data.preprocessing import Preprocessing
from frskd_train.data.stream import NEIGHBOURS, Request, Requests, start_worker, with_workers_alive, worker_ending

Batch = tuple[Tensor | None, Tensor, list[str]]  # images, masks, messages about pairs that cannot be used


@dataclass(frozen=True)
class PairSource:
    """The pairs of a split, and how they are read.

    Attributes:
        pairs: Decoded or encoded.
        workers: Processes that decode; 0 decodes in the training process.
        bad_images: Whether a pair that cannot be used stops, or is left out (in training: replaced by the next).
        bad: Messages about the pairs that were left out so far.
    """

    pairs: Pairs
    workers: int
    bad_images: Literal["stop", "skip"]
    bad: dict[str, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def run(
        self, reading: "Reading", loader: DataLoader | None, requests: Callable[[], Iterator[Request]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Reads batches, in workers where there is a loader."""
        if loader is None:
            batches: Iterator[Batch] = (reading[request] for request in requests())
        else:
            assert isinstance(loader.sampler, Requests)
            loader.sampler.make = requests
            batches = with_workers_alive(loader)
        for images, masks, bad in batches:
            if bad and self.bad_images == "stop":
                raise UserError(f"{bad[0]} (--bad-images skip leaves such images out)")
            self.bad.update(dict.fromkeys(bad))
            if images is not None:
                yield images, masks

    def loader(self, reading: "Reading", device: torch.device, keep_workers: bool) -> DataLoader | None:
        """Makes a loader whose requests are set before each pass; None where nothing is decoded."""
        if self.workers == 0:
            return None
        return DataLoader(
            reading,
            sampler=Requests(),
            batch_size=None,  # a request is a batch
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=partial(start_worker, worker_ending()),
            persistent_workers=keep_workers,
            generator=torch.Generator(),  # else every pass draws from the global one
        )


@dataclass(frozen=True)
class Reading(Dataset):
    """Pairs to batches, in a worker or in the training process.

    Attributes:
        pairs: The pairs of a split.
        augmentation: What is done to each pair; None leaves it as it is.
        replace: Take a neighbour for a pair that cannot be used; else it is left out.
    """

    pairs: Pairs
    augmentation: PairAugmentation | None
    replace: bool

    def __getitem__(self, request: Request) -> Batch:
        images: list[Tensor] = []
        masks: list[Tensor] = []
        bad: list[str] = []
        with quiet_pillow():
            for number, place in enumerate(request.places.tolist()):
                pair = self._load(place, bad)
                if pair is None:
                    continue
                if self.augmentation is not None:
                    assert request.seeds is not None
                    image, mask = self.augmentation(pair, int(request.seeds[number]))
                else:
                    image, mask = pair.image, pair.mask
                images.append(image)
                masks.append(mask)
        if not images:
            return None, torch.empty(0), bad
        return torch.stack(images), torch.stack(masks), bad

    def _load(self, place: int, bad: list[str]) -> Pair | None:
        for neighbour in range(NEIGHBOURS + 1 if self.replace else 1):
            try:
                return self.pairs.load((place + neighbour) % len(self.pairs))
            except BadImageError as error:
                bad.append(str(error))
        return None


class MaskTrainBatches:
    """The training batches of one process; `len()` is the number of steps an epoch.

    Every number drawn depends on seed, epoch, step and place in the global batch alone (see `TrainBatches`).
    """

    def __init__(
        self,
        source: PairSource,
        order: Order,
        augmentation: PairAugmentation,
        preprocessing: Preprocessing,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.order = order
        self._source = source
        self._reading = Reading(source.pairs, augmentation, replace=source.bad_images == "skip")
        self._device = device
        self._normalize = Normalize(preprocessing.mean, preprocessing.std, channels_last).to(device)

    def __len__(self) -> int:
        return self.order.steps

    @property
    def batch_size(self) -> int:
        """Images of each batch of this process."""
        return self.order.per_process

    @cached_property
    def _loader(self) -> DataLoader | None:
        return self._source.loader(self._reading, self._device, keep_workers=True)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives the batches of an epoch.

        Args:
            epoch: Counted from 0.
            start: The step to begin at; batches before it are neither decoded nor drawn.

        Yields:
            Normalised float32 images [B, C, H, W], and class numbers [B, H, W], 255 where a pixel has none.

        Raises:
            UserError: A pair that cannot be used, if those stop.
        """
        order = self.order
        permutation = order.permutation(epoch)

        def requests() -> Iterator[Request]:
            for step in range(start, order.steps):
                generator = generator_for(Draw.IMAGE, order.seed, epoch, step)
                seeds = generator.integers(2**63, size=order.global_batch)[order.share]
                yield Request(permutation[order.places(step)], seeds)

        for images, masks in self._source.run(self._reading, self._loader, requests):
            if len(masks) < order.per_process:
                raise UserError(f"{NEIGHBOURS} images in a row cannot be used; the last: {list(self._source.bad)[-1]}")
            yield _on(self._device, images, masks, self._normalize)


class MaskValBatches:
    """The validation batches of one process: images at their own size, those of one size together.

    All processes together take each image exactly once.
    """

    def __init__(
        self,
        source: PairSource,
        preprocessing: Preprocessing,
        batch_size: int,
        rank: int,
        world: int,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self._source = source
        self._device = device
        self._normalize = Normalize(preprocessing.mean, preprocessing.std, channels_last).to(device)
        sizes = source.pairs.sizes
        by_size = sorted(range(len(sizes)), key=lambda place: sizes[place])
        share = by_size[validation_share(len(sizes), rank, world)]
        self._batches = [
            np.array(places[first : first + batch_size])
            for _, group in groupby(share, key=lambda place: sizes[place])
            for places in [list(group)]
            for first in range(0, len(places), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        reading = Reading(self._source.pairs, None, replace=False)
        loader = self._source.loader(reading, self._device, keep_workers=False)
        for images, masks in self._source.run(reading, loader, lambda: (Request(places) for places in self._batches)):
            yield _on(self._device, images, masks, self._normalize)


@torch.no_grad()
def _on(device: torch.device, images: Tensor, masks: Tensor, normalize: Normalize) -> tuple[Tensor, Tensor]:
    return normalize(images.to(device, non_blocking=True)), masks.to(device, non_blocking=True).long()
