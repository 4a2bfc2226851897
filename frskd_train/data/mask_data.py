"""Images with masks, ready to train and validate on: the counterpart of `ImageData` for segmentation."""

from dataclasses import dataclass, field

import torch

from frskd_train.data.mask_batches import MaskTrainBatches, MaskValBatches, PairSource
from frskd_train.data.mask_transforms import PairAugmentation
from frskd_train.data.order import Order
from frskd_train.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class MaskData:
    """A dataset for semantic segmentation; the attributes are those of `ImageData`.

    Attributes:
        name: For folders and tags.
        id: The dataset's id on the Hub, or its folder's name.
        license: Identifier such as `mit`, if known.
        homepage: If known.
        train_split: Name of the split that is trained on.
        val_split: Name of the split that is validated on; the training split's where a part of it is held out.
        class_names: Name of each class.
        train_rows: Number of training images.
        val_rows: Number of validation images.
        fingerprint: Changes when images, masks, classes or the choice of rows change.
        preprocessing: Mean and deviation; the input size is that of the training crops.
        mode: `memory` or `stream`.
        notes: Sentences that the user should see, such as how many images were left out.
    """

    name: str
    id: str
    license: str | None
    homepage: str | None
    train_split: str
    val_split: str
    class_names: list[str]
    train_rows: int
    val_rows: int
    fingerprint: str
    preprocessing: Preprocessing
    mode: str
    notes: tuple[str, ...]
    train: PairSource = field(repr=False)
    val: PairSource = field(repr=False)
    augmentation: PairAugmentation = field(repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes, empty ones included."""
        return len(self.class_names)

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
            UserError: Less than two images a batch and process.
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
