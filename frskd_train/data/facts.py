"""What is known of a run's data, whatever its task."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from frskd_train.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class DataFacts(ABC):
    """A dataset, ready to train and validate on.

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
        fingerprint: Changes when images, labels or masks, classes or the choice of rows change.
        preprocessing: What the network's input goes through, in validation and after export.
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

    @property
    def num_classes(self) -> int:
        """Number of classes, empty ones included."""
        return len(self.class_names)

    @abstractmethod
    def bad_images(self) -> list[str]:
        """Messages about the images that were left out so far, each once."""
