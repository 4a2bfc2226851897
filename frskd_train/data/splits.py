"""Which rows are trained on and which are validated on. Always the same ones: no seed of a run changes them."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import datasets
import numpy as np
from PIL import Image
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_train.data.decode import to_8_bits
from frskd_train.data.images import BadImageError, Header, Images
from frskd_train.data.sampler import Rows, spread
from frskd_train.data.targets import Targets
from frskd_train.data.targets.base import Splits
from frskd_train.settings import DataSettings

TRAIN_SPLITS = ("train", "training")
VALIDATION_SPLITS = ("validation", "val", "valid", "dev", "test", "testing")


@dataclass(frozen=True)
class Sample:
    """An image, as Pillow decoded it or uint8 [C, H, W] from memory, and its target: see the kinds of `Targets`."""

    image: Image.Image | Tensor
    target: Tensor


@dataclass(frozen=True)
class Split:
    """The rows of a split that are in use, addressed by their place among these.

    Attributes:
        images: The encoded images of the whole split.
        targets: The targets of the dataset.
        rows: The rows in use, ascending.
        mode: Pillow's mode to decode to: L or RGB; None gives L for gray images and RGB for others.
    """

    images: Images
    targets: Targets
    rows: Rows
    mode: Literal["L", "RGB"] | None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """Name of the split."""
        return self.images.split

    def headers(self) -> list[Header | None]:
        """Sizes and colours, from the images' headers, each read once; None where one cannot be read."""
        return self.images.headers(self.rows)

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image; (0, 0) where its header cannot be read."""
        return [(0, 0) if header is None else header.size for header in self.headers()]

    def sample(self, wanted: int) -> "Split":
        """At most `wanted` of the rows, evenly spread."""
        return replace(self, rows=self.rows[spread(len(self), wanted)])

    def read(self, places: list[int]) -> Iterator[Sample | BadImageError]:
        """Decodes images and targets; gives the errors of those that cannot be used."""
        rows = self.rows[places].tolist()
        images = self.images.load_many(rows, partial(to_8_bits, mode=self.mode))
        for row, image, target in zip(rows, images, self.targets.load_many(self.name, rows), strict=True):
            if isinstance(image, BadImageError):
                yield image
            elif isinstance(target, BadImageError):
                yield target
            else:
                yield self.targets.check(self.name, row, image.size, target) or Sample(image, target)

    def digest(self) -> bytes:
        """Hashes rows, images and targets."""
        parts = self.rows.astype("<i8").tobytes(), self.images.digest(self.rows)
        return hashlib.sha256(b"".join([*parts, self.targets.digest(self.name, self.rows)])).digest()


def choose_splits(names: Collection[str], train: str | None, val: str | None) -> tuple[str, str | None]:
    """Chooses among the names of a dataset's splits the one to train on and the one to validate on.

    Args:
        names: The splits that the dataset has.
        train: `--train-split`, if given.
        val: `--val-split`, if given.

    Returns:
        Both names; None for the second means that a part of the first is to be held out.

    Raises:
        UserError: A split that is not there, the same one twice, or none to train on.
    """
    listed = ", ".join(names)
    for setting, wanted in (("train", train), ("val", val)):
        if wanted is not None and wanted not in names:
            raise UserError(f"--{setting}-split {wanted}: the dataset has no such split, but {listed}.")
    if train is None:
        train = next((name for name in TRAIN_SPLITS if name in names), None)
    if train is None:
        if len(names) > 1:
            raise UserError(f"The dataset has no split named train, but {listed}; choose one with --train-split.")
        (train,) = names
    if val is None:
        val = next((name for name in VALIDATION_SPLITS if name in names and name != train), None)
    elif val == train:
        raise UserError(f"--val-split {val} is the split that is trained on; choose another, or use --val-fraction.")
    return train, val


def training_splits(
    splits: Splits,
    data: DataSettings,
    kind: type[Targets],
    class_names: list[str] | None,
    mode: Literal["L", "RGB"],
) -> tuple[Split, Split]:
    """Chooses the rows to train on and those to validate on, before an image is decoded; raises UserError."""
    train_name, val_name = choose_splits(splits, data.train_split, data.val_split)
    used = _loaded(splits, [train_name] if val_name is None else [train_name, val_name], data)
    targets = kind(used, data, class_names)
    if val_name is None:
        val_name = train_name
        rows, val_rows = targets.hold_out(train_name, data.val_fraction)
    else:
        rows, val_rows = np.arange(len(used[train_name])), np.arange(len(used[val_name]))
    if data.train_num_samples is not None:
        rows = targets.subset(train_name, rows, data.train_num_samples)
    images = {name: Images.of(dataset, name, targets.image_column) for name, dataset in used.items()}
    return Split(images[train_name], targets, rows, mode), Split(images[val_name], targets, val_rows, mode)


def validation_split(
    splits: Splits,
    data: DataSettings,
    kind: type[Targets],
    class_names: list[str] | None,
    known_classes: Sequence[str] | None,
    mode: Literal["L", "RGB"],
) -> Split:
    """Chooses the rows to evaluate a trained model on: those that training would validate on, or all of `--val-split`.

    Raises:
        UserError: A split, column or target that cannot be used, or a class that the model does not know.
    """
    if data.val_split is not None and data.val_split in splits:
        name, is_held_out = data.val_split, False
    else:
        train_name, val_name = choose_splits(splits, data.train_split, data.val_split)
        name, is_held_out = val_name or train_name, val_name is None
    used = _loaded(splits, [name], data)
    targets = kind(used, data, class_names)
    rows = targets.hold_out(name, data.val_fraction)[1] if is_held_out else np.arange(len(used[name]))
    targets.match(name, rows, known_classes)
    return Split(Images.of(used[name], name, targets.image_column), targets, rows, mode)


def _loaded(splits: Splits, names: Sequence[str], data: DataSettings) -> dict[str, datasets.Dataset]:
    used = {name: splits[name] for name in names}
    for name, dataset in used.items():
        if len(dataset) == 0:
            raise UserError(f"Split {name} of --dataset {data.dataset} is empty.")
    return used
