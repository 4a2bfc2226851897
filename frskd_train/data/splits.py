"""Choice of training and validation rows, which does not depend on the seed of a run."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_timm.pixels import to_8_bits
from frskd_train.data.folder import TRAIN_SPLITS, VALIDATION_SPLITS
from frskd_train.data.images import BadImageError, Images
from frskd_train.data.sampler import Rows, evenly_spaced
from frskd_train.data.source import Source
from frskd_train.data.targets import Targets
from frskd_train.errors import either
from frskd_train.settings import DataSettings, HeldOut


@dataclass(frozen=True)
class Sample:
    """An image, decoded by Pillow or uint8 [C, H, W] from memory, and its target (see `ClassLabels` and `Masks`)."""

    image: Image.Image | Tensor
    target: Tensor


@dataclass(frozen=True)
class Split:
    """The used rows of a split, indexed by their place among these."""

    images: Images  # of the whole split
    targets: Targets  # of all used splits
    rows: Rows  # the used ones, ascending
    mode: Literal["L", "RGB"] | None  # Pillow's mode to decode to; None for L for gray images and RGB for others

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """Name of the split."""
        return self.images.split

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The height and width of each image from its header; (0, 0) if it cannot be read."""
        return [header.size for header in self.images.headers(self.rows)]

    def sample(self, wanted: int) -> "Split":
        """Return at most `wanted` evenly spread rows."""
        return replace(self, rows=self.rows[evenly_spaced(len(self), wanted)])

    def read(self, places: list[int]) -> Iterator[Sample | BadImageError]:
        """Decode images and targets; yield errors for unusable ones."""
        rows = self.rows[places].tolist()
        images = self.images.load_many(rows, partial(to_8_bits, mode=self.mode))
        for row, image, target in zip(rows, images, self.targets.load_many(self.name, rows), strict=True):
            if isinstance(image, BadImageError):
                yield image
            elif isinstance(target, BadImageError):
                yield target
            elif wrong := self.targets.check(self.name, row, image.size, target):
                yield wrong
            else:
                yield Sample(image, target)

    def empty_classes(self, rows: Rows, decoded: Sequence[Tensor] = ()) -> list[str]:
        """Return the names of classes without a row among `rows`, of masks only if they were counted or are given."""
        counts = self.targets.known_counts(self.name, rows, decoded)
        return [name for name, count in zip(self.targets.class_names, counts, strict=False) if not count]

    def digest(self) -> bytes:
        """Hash rows, images and targets."""
        parts = self.rows.astype("<i8").tobytes(), self.images.digest(self.rows)
        return hashlib.sha256(b"".join([*parts, self.targets.digest(self.name, self.rows)])).digest()


def choose_splits(names: Collection[str], train: str | None, val: str | None) -> tuple[str, str | None]:
    """Choose the training split and the validation split from the names of a dataset's splits.

    `train` and `val` are the user's choices, if any. If there is no validation split, None is returned for it, and a
    part of the training split has to be held out. Raises UserError.
    """
    listed = ", ".join(names)
    for setting, wanted in (("train", train), ("val", val)):
        if wanted is not None and wanted not in names:
            raise UserError(f"--{setting}-split {wanted} does not exist; the dataset has {listed}.")
    if train is None:
        train = next((name for name in TRAIN_SPLITS if name in names), None)
    if train is None:
        if len(names) > 1:
            raise UserError(f"The dataset has no split named train; it has {listed}: choose one with --train-split.")
        (train,) = names
    if val is None:
        val = next((name for name in VALIDATION_SPLITS if name in names and name != train), None)
    elif val == train:
        raise UserError(f"--val-split {val} is also the training split; choose another.")
    return train, val


def _has_labels(dataset: datasets.Dataset, column: str) -> bool:
    """Return whether any row has a label; -1 and missing values are none."""
    if column not in dataset.features:
        return False
    values = dataset.data.column(column)
    used = pc.sum(pc.not_equal(values, -1)) if pa.types.is_integer(values.type) else pc.count(values)
    return bool(used.as_py()) or len(values) == 0


@dataclass(frozen=True)
class Choice:
    """Choice of rows of a dataset, for one kind of targets and for gray or colour images."""

    source: Source
    data: DataSettings
    kind: type[Targets]
    is_gray: bool

    @cached_property
    def unlabelled(self) -> list[str]:
        """Splits that could be chosen for validation, but have no labels, such as test images of a competition."""
        splits, named = self.source.splits, (self.data.train_split, self.data.val_split)
        train = self.data.train_split or next((name for name in TRAIN_SPLITS if name in splits), None)
        candidates = [name for name in VALIDATION_SPLITS if name in splits and name not in named]
        if train is None or train not in splits or not candidates:
            return []
        _, column = self.kind.columns({train: splits[train]}, self.data)
        known = splits[train].features.keys()  # a column of another name may hold the labels
        candidates = [name for name in candidates if splits[name].features.keys() <= known]
        return [name for name in candidates if not _has_labels(splits[name], column)]

    @property
    def notes(self) -> list[str]:
        """Notes about splits that are left out."""
        return [f"Split {name} is left out, because its images have no labels." for name in self.unlabelled]

    def _choose(self, val: str | None) -> tuple[str, str | None]:
        names = [name for name in self.source.splits if name not in self.unlabelled]
        return choose_splits(names, self.data.train_split, val)

    def training(self) -> tuple[Split, Split]:
        """Choose training and validation rows before images are decoded; raise UserError if that is not possible."""
        train, val = self._choose(self.data.val_split)
        self._check_calibration(train, val)
        targets = self._targets([train] if val is None else [train, val])
        if val is None:
            rows, val_rows = targets.hold_out(train, self.data.val_fraction)
        elif self.data.val_fraction != DataSettings().val_fraction:
            raise UserError(f"--val-fraction has no effect with a validation split ({val}): leave it out.")
        else:
            rows, val_rows = np.arange(len(self.source.splits[train])), np.arange(len(self.source.splits[val]))
        count = self.data.train_num_samples
        if count is not None:
            if count > len(rows):
                raise UserError(f"--train-num-samples {count}: there are only {len(rows)} training images.")
            rows = targets.subset(train, rows, count)
        targets.check_labels(train, rows)
        targets.check_labels(val or train, val_rows)
        return self._split(train, targets, rows), self._split(val or train, targets, val_rows)

    def validation(self, known: list[str] | int, held_out: HeldOut | None = None) -> Split:
        """Choose the rows that training would validate on, or a whole validation split, for a model's classes.

        Raises:
            UserError: That is not possible, or the images that a run held out can no longer be identified.
        """
        name, train = self.data.val_split, None
        if held_out is not None:
            train, count = held_out.split, len(self.source.splits.get(held_out.split, ()))
            if not count or held_out.images not in (count, None):
                then = "some" if held_out.images is None else held_out.images
                raise UserError(
                    f"The images that the run held out can no longer be identified: split {train} had {then} images "
                    f"then, and has {count} now. Restore them, or give another --val-split or --dataset."
                )
        elif name is None and self.data.train_split is None and not self.source.splits.keys() & set(TRAIN_SPLITS):
            name = next((split for split in VALIDATION_SPLITS if split in self.source.splits), None)
        if held_out is None and name not in self.source.splits:
            train, name = self._choose(name)
        chosen = name or train or ""
        self._check_calibration(chosen, train, self.data.train_split, *TRAIN_SPLITS)
        targets = self._targets([chosen])
        rows = np.arange(len(self.source.splits[chosen]))
        if name is None:
            _, rows = targets.hold_out(chosen, self.data.val_fraction)
        targets.check_labels(chosen, rows)
        targets.match(chosen, rows, known)
        return self._split(chosen, targets, rows)

    def _check_calibration(self, *used: str | None) -> None:
        wanted = self.data.calibration_split
        if wanted is not None and (wanted in used or wanted not in self.source.splits):
            free = [name for name in self.source.splits if name not in used]
            possible = f"choose {either(free)}" if free else "this dataset has no other split"
            problem = "is used for training or scoring" if wanted in self.source.splits else "does not exist"
            raise UserError(f"--calibration-split {wanted} {problem}; {possible}.")

    def _targets(self, names: Sequence[str]) -> Targets:
        used = {name: self.source.splits[name] for name in names}
        for name, dataset in used.items():
            if len(dataset) == 0:
                raise UserError(f"Split {name} of --dataset {self.data.dataset} is empty.")
        return self.kind(used, self.data, self.source.class_names)

    def _split(self, name: str, targets: Targets, rows: Rows) -> Split:
        images = Images(self.source.splits[name], name, targets.image_column)
        return Split(images, targets, rows, "L" if self.is_gray else "RGB")
