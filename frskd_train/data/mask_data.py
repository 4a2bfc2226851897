"""Images with masks, ready to train and validate on: the counterpart of `ImageData` for segmentation."""

from dataclasses import dataclass, field

import torch

from frskd_train.data.facts import DataFacts
from frskd_train.data.mask_batches import MaskTrainBatches, MaskValBatches, PairSource
from frskd_train.data.mask_transforms import PairAugmentation
from frskd_train.data.order import Order
from frskd_train.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class MaskData(DataFacts):
    """Images and their masks; the preprocessing's input size is that of the training crops."""

    train: PairSource = field(repr=False)
    val: PairSource = field(repr=False)
    augmentation: PairAugmentation = field(repr=False)

    def bad_images(self) -> list[str]:
        """Messages about the images that were left out so far, each once."""
        return [*self.train.bad, *self.val.bad]

    def train_batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> MaskTrainBatches:
        """Makes the training batches of one process; the arguments are those of `ImageData.train_batches`.

        Raises:
            UserError: There are fewer images than processes.
        """
        order = Order.of(self.train_rows, batch_size, rank, world, seed)
        return MaskTrainBatches(
            self.train, order, self.augmentation, self.preprocessing, torch.device(device), channels_last
        )

    def val_batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> MaskValBatches:
        """Makes the validation batches of one process: its share, each image once at its own size."""
        return MaskValBatches(
            self.val, self.preprocessing, batch_size, rank, world, torch.device(device), channels_last
        )


@dataclass(frozen=True)
class MaskValidationData:
    """Images and their masks to evaluate a trained student on.

    Attributes:
        name: For folders and tags.
        split: Name of the split.
        class_names: Name of each class, in the order of the student's outputs.
        preprocessing: The student's mean and deviation; the input size is that of the first image.
        notes: Sentences that the user should see.
        pairs: The images and masks.
    """

    name: str
    split: str
    class_names: list[str]
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    pairs: PairSource = field(repr=False)

    def bad_images(self) -> list[str]:
        """Messages about the images that were left out so far, each once."""
        return list(self.pairs.bad)

    def val_batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> MaskValBatches:
        """Makes the batches of one process: its share, each image once at its own size."""
        return MaskValBatches(
            self.pairs, self.preprocessing, batch_size, rank, world, torch.device(device), channels_last
        )
