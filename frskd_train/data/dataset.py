"""A dataset that is ready to train and validate on, whatever its task: what is known of it, and its batches."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from frskd_train.data.order import Order
from frskd_train.data.preprocessing import Preprocessing

TrainT = TypeVar("TrainT")
ValT = TypeVar("ValT")


class Images(Protocol):
    """Images with their labels or masks, in memory or to be decoded; `bad` tells of those that were left out."""

    def __len__(self) -> int: ...

    @property
    def bad(self) -> Iterable[str]: ...


@dataclass(frozen=True)
class ValidationData(Generic[ValT]):
    """A dataset to evaluate a trained network on.

    Attributes:
        name: For folders and tags.
        val_split: Name of the split; the training split's where a part of it is held out.
        class_names: Name of each class, in the order of the network's outputs.
        preprocessing: What the network's input goes through, in validation and after export.
        notes: Sentences that the user should see, such as how many images were left out.
        val: The images.
    """

    name: str
    val_split: str
    class_names: list[str]
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    val: Images = field(repr=False)

    _val_batches: ClassVar[Callable[..., Any]]

    @property
    def num_classes(self) -> int:
        """Number of classes, empty ones included."""
        return len(self.class_names)

    def bad_images(self) -> list[str]:
        """Messages about the images that were left out so far, each once."""
        return list(self.val.bad)

    def val_batches(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> ValT:
        """Makes the validation batches of one process: its share, each image once, the last batch may be smaller."""
        made: ValT = type(self)._val_batches(
            self.val, self.preprocessing, batch_size, rank, world, torch.device(device), channels_last
        )
        return made


@dataclass(frozen=True)
class TrainingData(ValidationData[ValT], Generic[TrainT, ValT]):
    """A dataset to train and validate on.

    Attributes:
        train_split: Name of the split that is trained on.
        id: The dataset's id on the Hub, or its folder's name.
        license: Identifier such as `mit`, if known.
        homepage: If known.
        fingerprint: Changes when images, labels or masks, classes or the choice of rows change.
        mode: `memory` or `stream`.
        train: The training images.
        augmentation: What happens to them.
    """

    train_split: str
    id: str
    license: str | None
    homepage: str | None
    fingerprint: str
    mode: str
    train: Images = field(repr=False)
    augmentation: Any = field(repr=False)

    _train_batches: ClassVar[Callable[..., Any]]

    @property
    def train_rows(self) -> int:
        """Number of training images."""
        return len(self.train)

    @property
    def val_rows(self) -> int:
        """Number of validation images."""
        return len(self.val)

    def bad_images(self) -> list[str]:
        """See `ValidationData`."""
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
    ) -> TrainT:
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
        made: TrainT = type(self)._train_batches(
            self.train, order, self.augmentation, self.preprocessing, torch.device(device), channels_last
        )
        return made
