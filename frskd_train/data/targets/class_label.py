"""Class labels: one class per image, from a column of classes, integers, strings or booleans."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_train.data.columns import (
    NAME_AND_NUMBER,
    Columns,
    Splits,
    columns_named,
    find_columns,
    holds_images,
    kind_of,
    read_class_map,
)
from frskd_train.data.images import BadImageError
from frskd_train.data.sampler import Rows, shuffled
from frskd_train.errors import listed
from frskd_train.settings import DataSettings

LABEL_NAMES = ("label", "labels", "class", "fine_label", "target")


class ClassLabels:
    """The labels of the used splits; a target is a class number, an int64 scalar.

    The constructor finds the columns and checks everything that needs no decoding. The first split determines the
    classes. Every method raises UserError for data or settings that cannot be used.

    Attributes:
        is_dense: Whether a target has the size of its image and is transformed with it.
        image_column: The column of the images.
        class_names: In the order of the class numbers.
    """

    is_dense: ClassVar = False

    def __init__(self, splits: Splits, data: DataSettings, class_names: list[str] | None) -> None:
        if data.ignore_label:
            raise UserError("--ignore-label is only for masks; leave it out.")
        self.image_column, column = self.columns(splits, data)
        self.labels, self.class_names = read_labels(splits, column)
        kind = next(iter(splits.values())).features[column]
        self._is_numbered = isinstance(kind, datasets.Value) and "int" in kind.dtype
        self._is_mapped = data.class_map is not None
        if data.class_map is not None:
            numbers, names = read_class_map(data.class_map)
            for split, labels in self.labels.items():
                complaint = f"--class-map {data.class_map} has {listed(names)}, numbered from 0, but lacks"
                if all(map(NAME_AND_NUMBER.fullmatch, names)):
                    complaint = f"--class-map {data.class_map} was read as names, since its numbers have gaps; it lacks"
                self._renumber(split, np.arange(len(labels)), numbers, complaint)
            self.class_names = names

    @staticmethod
    def columns(splits: Splits, data: DataSettings) -> Columns:
        """Return the columns of the images and the targets."""
        return find_columns(splits, data, has_masks=False, find=_find_columns)

    def load_many(self, split: str, rows: list[int]) -> Iterator[Tensor]:
        """Decode the targets of the rows."""
        yield from torch.from_numpy(self.labels[split][rows])

    def check(self, split: str, row: int, image_size: tuple[int, int], target: Tensor) -> BadImageError | None:
        """Return what is wrong with a decoded target for an image of this width and height, if anything."""
        return None

    def hold_out(self, split: str, fraction: float) -> tuple[Rows, Rows]:
        """Divide the rows of a split into training and validation rows, always the same ones, both ascending."""
        return hold_out(self.labels[split], fraction)

    def subset(self, split: str, rows: Rows, count: int) -> Rows:
        """Choose `count` of the rows, always the same ones, ascending."""
        return rows[balanced_subset(self.labels[split][rows], count)]

    def digest(self, split: str, rows: Rows) -> bytes:
        """Hash the targets of the rows."""
        return self.labels[split][rows].astype("<i8").tobytes()

    def match(self, split: str, rows: Rows, known: list[str] | int) -> None:
        """Renumber the classes of the rows as a trained model's: by name, or by the numbers of a class map.

        `known` holds the names of the model's outputs, or is their number if they have no names.
        """
        if isinstance(known, int):
            if self._is_mapped or not self._is_numbered:
                return self._refuse_other_number(known)
            known = list(map(str, range(known)))
        if not self._is_mapped:
            complaint = f"Split {split} has classes that the model does not know (see --class-map):"
            self._renumber(split, rows, {name: number for number, name in enumerate(known)}, complaint)
        elif len(self.class_names) > len(known):
            raise UserError(f"--class-map has {len(self.class_names)} classes, but the model has {len(known)}.")
        self.class_names = known

    def _refuse_other_number(self, outputs: int) -> None:
        count = len(self.class_names)
        if count > outputs:
            raise UserError(f"The dataset has {count} classes, but the model has only {outputs} outputs.")
        if count < outputs and not self._is_mapped:
            raise UserError(
                f"The model does not name its {outputs} outputs and the dataset has only {count} classes: name the "
                "output of each class with --class-map."
            )

    def check_labels(self, split: str, rows: Rows) -> None:
        """Check the targets of rows that are to be used, before their classes are known; labels need no check."""

    def find_classes(self, split: str, rows: Rows) -> None:
        """Find the classes in the training rows, unless the constructor did; raise UserError if there is only one."""
        if len(self.class_names) < 2:
            raise UserError(f"The labels of split {split} have only one class, {self.class_names}; 2 are needed.")

    def class_counts(self, split: str, rows: Rows) -> list[int]:
        """Count the images, or the pixels of masks, of each class in the rows."""
        return np.bincount(self.labels[split][rows], minlength=len(self.class_names)).tolist()

    def known_counts(self, split: str, rows: Rows, decoded: Sequence[Tensor]) -> list[int]:
        """Return `class_counts` if nothing has to be decoded for them, else nothing."""
        return self.class_counts(split, rows)

    def _renumber(self, split: str, rows: Rows, numbers: Mapping[str, int], complaint: str) -> None:
        labels = self.labels[split]
        used = [self.class_names[target] for target in np.unique(labels[rows])]
        unknown = [name for name in used if name not in numbers]
        if unknown:
            raise UserError(f"{complaint} {listed(unknown)}.")
        self.labels[split] = np.array([numbers.get(name, -1) for name in self.class_names], np.int64)[labels]


def _find_columns(features: datasets.Features, data: DataSettings) -> Columns:
    """Return the only image column (or column of bytes), and the only class column or one with a common name."""
    kinds = {name: type(feature) for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind is datasets.Image]
    images = images or [name for name, feature in features.items() if holds_images(feature)]
    if data.input_key is None and not images:
        raise UserError(f"The dataset has no image column, only {columns_named(features)}.")
    if data.input_key is None and len(images) > 1:
        raise UserError(
            f"The dataset has several image columns ({', '.join(images)}); choose one with --input-key, or train on "
            "images and masks with --task segmentation."
        )
    classes = [name for name, kind in kinds.items() if kind is datasets.ClassLabel]
    named = [name for name in LABEL_NAMES if name in (classes or features)]
    found = classes if len(classes) == 1 else named
    if data.target_key is None and not found:
        what = f"several class columns ({', '.join(classes)})" if classes else "no label column"
        raise UserError(f"The dataset has {what}; choose one of {columns_named(features)} with --target-key.")
    return data.input_key or images[0], data.target_key or found[0]


def read_labels(splits: Splits, column: str) -> tuple[dict[str, Rows], list[str]]:
    """Return the class number of each row of all splits, and the class names.

    Class columns keep their numbers, matched by name between splits. Whole numbers, strings and booleans become classes
    in the sorted order of the values in the first split, the training split.

    Raises:
        UserError: Labels are not classes (floats, lists), are missing, negative or out of range, or a class is missing
            in the training split.
    """
    read = {split: _read_column(dataset, split, column) for split, dataset in splits.items()}
    trained_on, (trained, known) = next(iter(read.items()))
    has_images = set(trained.tolist())
    number = {value: index for index, value in enumerate(known)}
    labels = {}
    for split, (codes, values) in read.items():
        numbers = np.array([number.get(value, -1) for value in values], np.int64)
        unseen = [code for code in np.unique(codes) if numbers[code] not in has_images]
        if unseen:
            spelled = set(map(_simple, known))
            other = all(numbers[code] < 0 and _simple(values[code]) in spelled for code in unseen)
            hint = ", which spells or stores them differently" if other else ""
            names = listed([str(values[code]) for code in unseen])
            raise UserError(f"Split {split} has classes without an image in split {trained_on}{hint}: {names}.")
        labels[split] = numbers[codes]
    return labels, [str(value) for value in known]


def _simple(label: Any) -> str:
    """Return a label without case, outer spaces and differences in how accents are stored."""
    return unicodedata.normalize("NFC", str(label)).strip().casefold()


def _read_column(dataset: datasets.Dataset, split: str, column: str) -> tuple[Rows, list[Any]]:
    """Return a code per row, and the meaning of each code: the name of a class, or a value."""
    feature = dataset.features[column]
    kind = dataset.data.schema.field(column).type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    values = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    if values.null_count:  # which make a CSV's column of integers one of floats
        row = values.is_null().to_pylist().index(True)
        hint = "in metadata.csv, words such as NA, None and null count as missing, so use metadata.jsonl for them"
        raise UserError(f"Row {row} of split {split} has no value in the label column {column} ({hint}).")
    if not (is_text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"Column {column} holds {kind_of(feature)}; labels are classes, integers or strings.")
    found = values.to_numpy(zero_copy_only=False)
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if pa.types.is_integer(kind):
        wanted, limit = ("0 or more", np.inf) if names is None else (f"0 to {len(names) - 1}", len(names))
        wrong = np.flatnonzero((found < 0) | (found >= limit))
        if len(wrong):
            row = wrong[0]
            hint = " (-1 usually means unlabelled: choose another split)" if found[row] == -1 else ""
            raise UserError(
                f"Row {row} of split {split} has label {found[row]} in column {column}; labels must be {wanted}{hint}."
            )
    if names is not None:
        return found.astype(np.int64), names
    known, codes = np.unique(found, return_inverse=True)
    return codes, known.tolist()


def hold_out(labels: Rows, fraction: float) -> tuple[Rows, Rows]:
    """Divide rows by their labels, class by class; a class with one image goes to training."""
    if fraction == 0:
        raise UserError(
            "The dataset has no validation split and --val-fraction 0 holds out none; "
            "give --val-split or a fraction above 0."
        )
    rank, size = _rank_in_class(labels)
    is_held = rank < np.minimum(np.maximum(np.round(size * fraction), 1), size - 1)
    if not is_held.any():
        raise UserError(
            "The dataset has no validation split and no class has a second image that --val-fraction could hold out; "
            "give --val-split or more images of each class."
        )
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def balanced_subset(labels: Rows, count: int) -> Rows:
    """Choose `count` rows by their labels, balanced over the classes as far as possible. See `ClassLabels.subset`."""
    present = len(np.unique(labels))  # a dataset may name more classes than it has images of
    if count < present:
        raise UserError(f"--train-num-samples {count} is less than one image for each of the {present} classes.")
    rank, _ = _rank_in_class(labels)
    return np.sort(np.argsort(rank, kind="stable")[:count])


def _rank_in_class(labels: Rows) -> tuple[Rows, Rows]:
    """Return the place of each row in a fixed random order of its class, and the size of its class."""
    order = shuffled(len(labels))
    grouped = order[np.argsort(labels[order], kind="stable")]
    size = np.bincount(labels)
    start = np.cumsum(size) - size
    rank = np.empty_like(labels)
    rank[grouped] = np.arange(len(labels)) - np.repeat(start, size)
    return rank, size[labels]
