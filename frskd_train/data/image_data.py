"""The data of a run: what is known of it, and its batches."""

from dataclasses import dataclass, field

import torch

from frskd_train.data.batches import Augmentation, TrainBatches, ValBatches
from frskd_train.data.facts import DataFacts
from frskd_train.data.memory import MemoryImages
from frskd_train.data.order import Order
from frskd_train.data.preprocessing import Preprocessing
from frskd_train.data.stream import StreamedImages


@dataclass(frozen=True)
class ImageData(DataFacts):
    """Images and their classes."""

    train: MemoryImages | StreamedImages = field(repr=False)
    val: MemoryImages | StreamedImages = field(repr=False)
    augmentation: Augmentation = field(repr=False)

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
    ) -> TrainBatches:
        """Makes the training batches of one process.

        Args:
            batch_size: Images in a batch of one process.
            rank: This process.
            world: Number of processes.
            seed: Of order and augmentation.
            device: Where batches are put together, and images in memory kept.
            channels_last: Give NHWC memory.

        Raises:
            UserError: There are fewer images than processes.
        """
        order = Order.of(self.train_rows, batch_size, rank, world, seed)
        return TrainBatches(
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
    ) -> ValBatches:
        """Makes the validation batches of one process: its share, each image once, the last batch may be smaller."""
        return ValBatches(self.val, self.preprocessing, batch_size, rank, world, torch.device(device), channels_last)


@dataclass(frozen=True)
class ValidationData:
    """A dataset to evaluate a trained model on.

    Attributes:
        name: For folders and tags.
        id: The dataset's id on the Hub, or its folder's name.
        license: Identifier such as `mit`, if known.
        homepage: If known.
        split: Name of the split.
        class_names: Name of each class, in the order of the model's outputs.
        rows: Number of images.
        preprocessing: The model's.
        mode: `memory` or `stream`.
        notes: Sentences that the user should see.
    """

    name: str
    id: str
    license: str | None
    homepage: str | None
    split: str
    class_names: list[str]
    rows: int
    preprocessing: Preprocessing
    mode: str
    notes: tuple[str, ...]
    images: MemoryImages | StreamedImages = field(repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes, empty ones included."""
        return len(self.class_names)

    def bad_images(self) -> list[str]:
        """Messages about the images that were left out so far, each once."""
        return list(self.images.bad)

    def val_batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> ValBatches:
        """Makes the batches of one process: its share, each image once, the last batch may be smaller."""
        return ValBatches(self.images, self.preprocessing, batch_size, rank, world, torch.device(device), channels_last)
