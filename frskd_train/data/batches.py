"""A process's batches: what the training loop iterates over."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from frskd_train.data.batch import Normalize, crop_padded, draw_erased, draw_flips, draw_offsets, erase, flip
from frskd_train.data.memory import MemoryImages, ResizedCrop
from frskd_train.data.mix import Mix
from frskd_train.data.order import Draw, Order, generator_for, validation_share
from frskd_train.data.preprocessing import Preprocessing
from frskd_train.data.stream import StreamedImages
from frskd_train.data.transforms import Augmented, Fit


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training batch.

    Attributes:
        padding: Pixels of padding of the random crop; 0 is no crop.
        resized: Random resized crops of images in memory, if wanted.
        streamed: The transform of one streamed image.
        hflip: Chance of a horizontal flip.
        vflip: Chance of a vertical flip.
        reprob: Chance of random erasing.
        mix: Mixup and CutMix.
    """

    padding: int
    resized: ResizedCrop | None
    streamed: Augmented
    hflip: float
    vflip: float
    reprob: float
    mix: Mix


class TrainBatches:
    """The training batches of one process; `len()` is the number of steps an epoch.

    Every number drawn depends on seed, epoch, step and place in the global batch alone, so that an epoch can be
    entered at any step, and processes together see what one process with the same global batch sees (Mixup's and
    CutMix's partners excepted, which come from a process's own batch).
    """

    def __init__(
        self,
        source: MemoryImages | StreamedImages,
        order: Order,
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.order = order
        self._source = source
        self._augmentation = augmentation
        self._device = device
        self._normalize = Normalize(preprocessing.mean, preprocessing.std, channels_last).to(device)

    def __len__(self) -> int:
        return self.order.steps

    @property
    def batch_size(self) -> int:
        """Images of each batch of this process."""
        return self.order.per_process

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives the batches of an epoch.

        Args:
            epoch: Counted from 0.
            start: The step to begin at; batches before it are neither decoded nor drawn.

        Yields:
            Normalised float32 images [B, C, H, W], and class numbers [B], or probabilities [B, K] under Mixup/CutMix.

        Raises:
            UserError: A streamed image that cannot be read, if those stop.
        """
        for step, (images, labels) in enumerate(self._raw(epoch, start), start):
            yield self._augment(images, labels, epoch, step)

    def _raw(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(self._source, MemoryImages):
            return self._source.train_batches(self.order, epoch, start, self._device, self._augmentation.resized)
        is_random = self._augmentation.streamed.is_random
        return self._source.train_batches(self._loader, self.order, epoch, start, self._device, is_random)

    @cached_property
    def _loader(self) -> torch.utils.data.DataLoader:
        assert isinstance(self._source, StreamedImages)
        return self._source.loader(self._augmentation.streamed, self._device, keep_workers=True)

    @torch.no_grad()
    def _augment(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        order, chosen = self.order, self._augmentation
        generator = generator_for(Draw.PLACE, order.seed, epoch, step)
        flips = draw_flips(generator, order.global_batch, chosen.hflip, chosen.vflip, order.share)
        if chosen.padding:
            offsets = draw_offsets(generator, order.global_batch, chosen.padding)[:, order.share]
            images = crop_padded(images, offsets, chosen.padding)
        images = self._normalize(flip(images, flips))
        if chosen.reprob:
            generator = generator_for(Draw.ERASE, order.seed, epoch, step)
            boxes = draw_erased(generator, order.global_batch, chosen.reprob, images.shape[-1])
            images = erase(images, boxes[:, order.share])
        if chosen.mix:
            return chosen.mix(images, labels, generator_for(Draw.MIX, order.seed, epoch, step, order.rank))
        return images, labels


class ValBatches:
    """The validation batches of one process; all processes together take each image exactly once."""

    def __init__(
        self,
        source: MemoryImages | StreamedImages,
        preprocessing: Preprocessing,
        batch_size: int,
        rank: int,
        world: int,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self._source = source
        self._preprocessing = preprocessing
        self._normalize = Normalize(preprocessing.mean, preprocessing.std, channels_last).to(device)
        self._share = (batch_size, rank, world)
        self._device = device

    def __len__(self) -> int:
        batch_size, rank, world = self._share
        share = validation_share(len(self._source), rank, world)
        return -(-(share.stop - share.start) // batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(self._source, MemoryImages):
            batches = self._source.val_batches(*self._share, self._device)
        else:
            loader = self._source.loader(Fit(self._preprocessing), self._device, keep_workers=False)
            batches = self._source.val_batches(loader, *self._share, self._device)
        for images, labels in batches:
            with torch.no_grad():
                normalised = self._normalize(images)
            yield normalised, labels
