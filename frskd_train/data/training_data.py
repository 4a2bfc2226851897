"""Data that are ready to train and validate on, whatever their task: what is known of them, and their batches."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import distributed

from frskd_train.data.augment import BatchAugmentation, Normalize
from frskd_train.data.batches import TrainBatches, ValBatches
from frskd_train.data.loader import Samples
from frskd_train.data.preprocessing import Preprocessing
from frskd_train.data.sampler import Order


@dataclass(frozen=True)
class ValidationData:
    """Data to evaluate a trained network on.

    Attributes:
        name: For folders and tags.
        val_split: Name of the split; the training split's where a part of it is held out.
        class_names: Name of each class, in the order of the network's outputs.
        preprocessing: What the network's input goes through, in validation and after export.
        notes: Sentences that the user should see before training, such as how many images were left out.
        val: The validation images.
    """

    name: str
    val_split: str
    class_names: list[str]
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    val: Samples = field(repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes, empty ones included."""
        return len(self.class_names)

    @property
    def num_val(self) -> int:
        """Number of validation images; streamed ones that cannot be read included."""
        return len(self.val)

    def bad_images(self) -> list[str]:
        """Sentences about the images that were left out while streaming so far; all processes have to call this."""
        return left_out(self.val, _of_all_processes(self.val.bad))

    def val_batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> ValBatches:
        """Make the validation batches of one process: its share, each image once, the last batch may be smaller."""
        device = torch.device(device)
        return ValBatches(self.val, self._normalize(channels_last, device), batch_size, rank, world_size, device)

    def _normalize(self, channels_last: bool, device: torch.device) -> Normalize:
        return Normalize(self.preprocessing.mean, self.preprocessing.std, channels_last).to(device)


@dataclass(frozen=True)
class TrainingData(ValidationData):
    """Data to train and validate on.

    Attributes:
        train_split: Name of the split that is trained on.
        id: The dataset's id on the Hub, or its folder's name.
        license: Identifier such as `mit`, if known.
        homepage: If known.
        fingerprint: Changes when images, targets, classes or the choice of rows change; the same on every machine.
        mode: `memory` or `stream`.
        train: The training images.
        augmentation: What is done to batches of them.
    """

    train_split: str
    id: str
    license: str | None
    homepage: str | None
    fingerprint: str
    mode: str
    train: Samples = field(repr=False)
    augmentation: BatchAugmentation = field(repr=False)

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.train)

    def bad_images(self) -> list[str]:
        bad, split = _of_all_processes(self.train.bad), self.train.split
        kept = np.delete(split.rows, list(bad))
        lost = split.targets.lost_classes(split.name, split.rows, kept) if bad else None
        return [*left_out(self.train, bad), *([lost] if lost else []), *super().bad_images()]

    def train_batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> TrainBatches:
        """Make the training batches of one process, of `batch_size` images each, on a device.

        Order and augmentation follow from the seed. Raises UserError if there are fewer images than processes.
        """
        order = Order.of(self.num_train, batch_size, rank, world_size, seed)
        device = torch.device(device)
        return TrainBatches(self.train, order, self.augmentation, self._normalize(channels_last, device), device)


def left_out(samples: Samples, bad: dict[int, str]) -> list[str]:
    """Return a sentence about the images of a split that were left out, if any."""
    split = samples.split
    first = next(iter(bad.values()), None)
    return [f"Left out {len(bad)} of {len(split)} image(s) of split {split.name}. {first}."] if first else []


def _of_all_processes(bad: dict[int, str]) -> dict[int, str]:
    """Return what each process found, put together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return bad
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, bad)
    return {place: message for part in found for place, message in part.items()}
