"""The interface of all kinds of targets, and shared functions: finding columns, reading a class map."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_train.data.images import BadImageError
from frskd_train.data.sampler import Rows
from frskd_train.settings import DataSettings

Splits = Mapping[str, datasets.Dataset]
NAME_AND_NUMBER = re.compile(r"(.*\S)[\s,]+(\d+)")


class Targets(ABC):
    """The targets of the used splits: columns, classes and values.

    Attributes:
        is_dense: Whether a target has the size of its image and is transformed with it.
        image_column: The column of the images.
        class_names: In the order of the class numbers; empty until `find_classes` if the dataset does not name them.
    """

    is_dense: ClassVar[bool]
    image_column: str
    class_names: list[str]

    @abstractmethod
    def __init__(self, splits: Splits, data: DataSettings, class_names: list[str] | None) -> None:
        """Find the columns and check everything that needs no decoding; raise UserError.

        Args:
            splits: The used splits; the first one determines the classes.
            data: The settings of the dataset.
            class_names: Class names from the dataset's source, if any.
        """

    @abstractmethod
    def load_many(self, split: str, rows: list[int]) -> Iterator[Tensor | BadImageError]:
        """Decode the targets of the rows."""

    @abstractmethod
    def hold_out(self, split: str, fraction: float) -> tuple[Rows, Rows]:
        """Divide the rows of a split into training and validation rows, always the same ones, both ascending.

        Raises UserError if one of the two is empty.
        """

    @abstractmethod
    def subset(self, split: str, rows: Rows, count: int) -> Rows:
        """Choose `count` of the rows, always the same ones, ascending; raise UserError if there are too few."""

    @abstractmethod
    def digest(self, split: str, rows: Rows) -> bytes:
        """Hash the targets of the rows."""

    @abstractmethod
    def match(self, split: str, rows: Rows, known: Sequence[str] | None) -> None:
        """Renumber the classes of the rows in the order of a trained model's outputs, if its class names are known.

        Raises UserError for a class that the model does not know.
        """

    def check(self, split: str, row: int, image_size: tuple[int, int], target: Tensor) -> BadImageError | None:
        """Check a target against the width and height of its image."""
        return None

    def find_classes(self, split: str, rows: Rows, progress: bool) -> None:  # noqa: B027
        """Determine the classes from the targets of the training rows if the dataset does not name them."""

    def empty_classes(self, split: str, rows: Rows) -> list[str]:
        """Return the names of classes without a row among `rows`, if the classes of a row are known."""
        return []

    @abstractmethod
    def class_counts(self, split: str, rows: Rows) -> list[int]:
        """Count the images, or the pixels of masks, of each class in the rows."""


def columns_named(features: datasets.Features) -> str:
    """Describe a dataset's columns for a sentence."""
    return "the columns " + ", ".join(f"{name} ({kind_of(feature)})" for name, feature in features.items())


def kind_of(feature: Any) -> str:
    """Describe the content of a column for a sentence."""
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__


def holds_images(feature: Any) -> bool:
    """Return whether a column holds images or encoded bytes, which in files without metadata have no image type."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    is_binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return is_binary or isinstance(feature, datasets.Image)


def check_columns(splits: Splits, *columns: str) -> None:
    """Raise UserError if a split lacks a column, or both columns are the same."""
    if len(set(columns)) < len(columns):
        raise UserError(f"--input-key and --target-key both name the column {columns[0]}.")
    for split, dataset in splits.items():
        for column in columns:
            if column not in dataset.features:
                raise UserError(f"Split {split} has no column {column}, but {columns_named(dataset.features)}.")


def given_column(features: datasets.Features, setting: str, wanted: str, must_hold_images: bool = True) -> str:
    """Return the column given by the user; raise UserError if it does not exist or does not hold images."""
    if wanted not in features:
        raise UserError(f"--{setting} {wanted}: the dataset has no such column, but {columns_named(features)}.")
    if must_hold_images and not holds_images(features[wanted]):
        raise UserError(f"--{setting} {wanted}: this column holds {kind_of(features[wanted])}, not images.")
    return wanted


def read_class_map(path: str) -> dict[str, int]:
    """Read `--class-map`: one class name per line in numerical order, or a name and a number per line."""
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--class-map {path} cannot be read as text ({error}).") from error
    names = [line for line in lines if line]
    numbers = {found[1]: int(found[2]) for line in names if (found := NAME_AND_NUMBER.fullmatch(line))}
    if len(numbers) == len(names) and set(numbers.values()) == set(range(max(numbers.values(), default=0) + 1)):
        return numbers
    if len(set(names)) < max(len(names), 2):
        raise UserError(f"--class-map {path} must hold at least 2 class names, each only once.")
    return {name: number for number, name in enumerate(names)}


def names_of(class_map: Mapping[str, int]) -> list[str]:
    """Return the class names in the order of their numbers; if several names have one number, the first one."""
    first = {number: name for name, number in reversed(list(class_map.items()))}
    return [first[number] for number in range(len(first))]


def listed(names: Sequence[str]) -> str:
    """Return the first names, for a sentence."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def check_count(rows: Rows, count: int) -> None:
    """Raise UserError if there are fewer rows than `--train-num-samples`."""
    if count > len(rows):
        raise UserError(f"--train-num-samples {count}: there are only {len(rows)} training images.")
