"""Training and validation batches of one process."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_train.data.augment import BatchAugmentation, Normalize
from frskd_train.data.loader import Reader, Samples
from frskd_train.data.sampler import BatchRequest, Order, Rows


@dataclass(eq=False)
class TrainBatches:
    """The training batches of one process; `len()` is the number of steps per epoch.

    All random numbers depend only on seed, epoch, step and place in the global batch, so that an epoch can be entered
    at any step, and several processes together see what one process with the same global batch sees (except for the
    partners in Mixup and CutMix, which come from the process's own batch). An epoch always has all its steps with full
    batches, so that processes never disagree: images that are left out are replaced by others.
    """

    samples: Samples
    order: Order
    augmentation: BatchAugmentation
    normalize: Normalize

    def __len__(self) -> int:
        return self.order.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch.

        Args:
            epoch: Counted from 0.
            start: First step; batches before it are neither decoded nor drawn.

        Yields:
            Normalised float32 images [B, C, H, W], and class numbers [B], or probabilities [B, K] under Mixup/CutMix,
            or masks [B, H, W], 255 where a pixel has no class.

        Raises:
            UserError: A streamed image cannot be used with --bad-images stop, or no image can be used.
        """
        order, step = self.order, start
        for images, targets in self._reader.run([order.request(epoch, step) for step in range(start, order.steps)]):
            if len(images) < order.per_process:
                break
            yield self._augment(images, targets, epoch, step)
            step += 1
        if step < order.steps:
            first = next(iter(self.samples.bad.values()))
            raise UserError(
                f"None of the {len(self.samples)} images of split {self.samples.split.name} can be used. {first}."
            )

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.samples, self.normalize.device, is_training=True)

    def _augment(self, images: Tensor, targets: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        return self.augmentation(images, targets.long(), self.normalize, self.order, epoch, step)


class ValBatches:
    """The validation batches of one process; all processes together take each image exactly once.

    Images that keep their own size are grouped by size.
    """

    def __init__(self, samples: Samples, normalize: Normalize, batch_size: int, rank: int, world_size: int) -> None:
        self._samples, self._normalize = samples, normalize
        count = len(samples)
        sizes = samples.source.sizes() if samples.split.targets.is_dense else [(0, 0)] * count
        by_size = sorted(range(count), key=lambda place: sizes[place])
        share = by_size[count * rank // world_size : count * (rank + 1) // world_size]
        self._batches: list[Rows] = []
        for _, group in groupby(share, key=lambda place: sizes[place]):
            places = np.array(list(group))
            self._batches += [places[first : first + batch_size] for first in range(0, len(places), batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        reader = Reader(self._samples, self._normalize.device, is_training=False)
        for images, targets in reader.run([BatchRequest(places, places) for places in self._batches]):
            yield self._normalize(images), targets.long()

    def rows(self) -> Rows:
        """Return the row in the split of each image of the last pass, in its order."""
        places = np.concatenate([np.zeros(0, np.int64), *self._batches])
        return self._samples.source.rows[places[~np.isin(places, list(self._samples.bad))]]
