"""Loaded datasets, from which batches are made."""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from accelerate.utils import gather_object

from frskd_train.data.augment import BatchAugmentation, Normalize
from frskd_train.data.batches import Samples, TrainBatches, ValBatches
from frskd_train.data.corruptions import corrupt
from frskd_train.data.preprocessing import Preprocessing
from frskd_train.data.sampler import Order
from frskd_train.data.splits import Split
from frskd_train.errors import listed

Device = torch.device | str


@dataclass(frozen=True)
class ValidationData:
    """Data for evaluating a trained network.

    Attributes:
        name: Name for folders and tags.
        val_split: Name of the validation split, or of the training split if a part of it is held out.
        class_names: Name of each class, in the order of the network's outputs.
        preprocessing: Preprocessing of the network's input, in validation and after export.
        notes: Notes for the user before training, such as how many images were left out.
        val: The validation images.
        part: Which part of the split they are, for the user; empty if they are all of it or in training.
    """

    name: str
    val_split: str
    class_names: list[str]
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    val: Samples = field(repr=False)
    part: str = field(default="", kw_only=True)

    @property
    def num_classes(self) -> int:
        """Number of classes, including empty ones."""
        return len(self.class_names)

    @property
    def task(self) -> str:
        """The task of `--task` that the targets are for."""
        return "segmentation" if self.val.split.targets.is_dense else "classification"

    @property
    def num_val(self) -> int:
        """Number of validation images, including streamed images that cannot be read."""
        return len(self.val)

    def bad_images(self) -> list[str]:
        """Return notes about images that were left out while streaming so far; all processes have to call this."""
        return _left_out_of_stream(self.val)

    def val_batches(
        self, batch_size: int, *, rank: int = 0, world_size: int = 1, device: Device = "cpu", channels_last: bool = True
    ) -> ValBatches:
        """Create the validation batches of one process: its share, each image once; the last batch may be smaller."""
        normalize = Normalize(self.preprocessing, channels_last, torch.device(device))
        return ValBatches(self.val, normalize, batch_size, rank, world_size)

    def corrupted(self, name: str, severity: int) -> "ValidationData":
        """Return the same data with one of `frskd_train.data.corruptions.CORRUPTIONS` at a severity from 1 to 5."""
        change = partial(corrupt, self.val.transform, self.preprocessing.input_size[0], name, severity)
        return replace(self, val=replace(self.val, transform=change))


@dataclass(frozen=True)
class TrainingData(ValidationData):
    """Data for training and validation.

    Attributes:
        train_split: Name of the training split.
        id: The dataset's id on the Hub, or the name of its folder.
        license: Identifier such as `mit`, if known.
        homepage: URL, if known.
        fingerprint: Hash of images, targets, classes and chosen rows; the same on every machine.
        mode: `memory` or `stream`.
        train: The training images.
        augmentation: Augmentation of the training batches.
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
        return [*_left_out_of_stream(self.train), *super().bad_images()]

    def train_batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        device: Device = "cpu",
        channels_last: bool = True,
        clean_view: bool = False,
    ) -> TrainBatches:
        """Create the training batches of one process, of `batch_size` images each, on a device.

        Order and augmentation depend on the seed. With `clean_view`, images come as `TwoViews`. Raises UserError if
        there are fewer images than processes.
        """
        order = Order(self.num_train, batch_size, rank, world_size, seed, self.augmentation.settings.aug_repeats)
        normalize = Normalize(self.preprocessing, channels_last, torch.device(device))
        return TrainBatches(self.train, order, replace(self.augmentation, clean_view=clean_view), normalize)


def left_out(split: Split, bad: dict[int, str]) -> list[str]:
    """Return a note about the bad images of a split, if any."""
    if not bad:
        return []
    known = split.empty_classes(split.rows)
    lost = [name for name in split.empty_classes(np.delete(split.rows, list(bad))) if name not in known]
    unreadable = f"; none of the images of {listed(lost)} can be read" if lost else ""
    first = next(iter(bad.values()))
    return [f"Left out {len(bad)} of {len(split)} image(s) of split {split.name}. {first}{unreadable}."]


def _left_out_of_stream(samples: Samples) -> list[str]:
    """Return a note about the bad images of a split that all processes have found so far."""
    found = gather_object([samples.bad])
    return left_out(samples.split, {place: message for bad in found for place, message in bad.items()})
