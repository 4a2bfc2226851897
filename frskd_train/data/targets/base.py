"""The interface of a kind of targets, and what kinds share: finding columns, reading a class map."""

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
    """The targets of the splits in use: their column, their meaning and their values.

    Attributes:
        is_dense: Whether a target has the size of its image and is moved with it.
        image_column: The column of the images.
        class_names: In the order of the class numbers; empty until `find_classes` where nothing names the classes.
    """

    is_dense: ClassVar[bool]
    image_column: str
    class_names: list[str]

    @abstractmethod
    def __init__(self, splits: Splits, data: DataSettings, class_names: list[str] | None) -> None:
        """Find the columns and check what can be checked without decoding; raise UserError.

        Args:
            splits: The splits in use, the one that knows the classes first.
            data: The settings of the dataset.
            class_names: Where the dataset's source names the classes.
        """

    @abstractmethod
    def load_many(self, split: str, rows: list[int]) -> Iterator[Tensor | BadImageError]:
        """Decode the targets of rows."""

    @abstractmethod
    def hold_out(self, split: str, fraction: float) -> tuple[Rows, Rows]:
        """Divide the rows of a split into rows to train and to validate on, always the same ones, both ascending.

        Raise UserError if nothing is left for one of the two.
        """

    @abstractmethod
    def subset(self, split: str, rows: Rows, count: int) -> Rows:
        """Choose `count` of the rows, always the same ones, ascending; raise UserError if there are too few."""

    @abstractmethod
    def digest(self, split: str, rows: Rows) -> bytes:
        """Hash the targets of rows."""

    @abstractmethod
    def match(self, split: str, rows: Rows, known: Sequence[str] | None) -> None:
        """Renumber the classes of the rows as a trained model knows them, in the order of its outputs, if it does.

        Raise UserError for a class that the model does not know.
        """

    def check(self, split: str, row: int, image_size: tuple[int, int], target: Tensor) -> BadImageError | None:
        """Compare a target with the width and height of its image."""
        return None

    def find_classes(self, split: str, rows: Rows, progress: bool) -> None:  # noqa: B027
        """Name the classes by the targets of the training rows where nothing else does."""

    def lost_classes(self, split: str, rows: Rows, kept: Rows) -> str | None:
        """Return a sentence about classes without a row among `kept`, those of the rows that can be read, or None."""
        return None


def columns_named(features: datasets.Features) -> str:
    """Return a dataset's columns for a sentence."""
    return "the columns " + ", ".join(f"{name} ({kind_of(feature)})" for name, feature in features.items())


def kind_of(feature: Any) -> str:
    """Return what a column holds, for a sentence."""
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__


def holds_images(feature: Any) -> bool:
    """Return whether a column holds images, or encoded bytes, which files without metadata only show by their form."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    is_binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return is_binary or isinstance(feature, datasets.Image)


def check_columns(splits: Splits, *columns: str) -> None:
    """Raise UserError where a split lacks a column, or both columns are the same one."""
    if len(set(columns)) < len(columns):
        raise UserError(f"--input-key and --target-key both name the column {columns[0]}.")
    for split, dataset in splits.items():
        for column in columns:
            if column not in dataset.features:
                raise UserError(f"Split {split} has no column {column}, but {columns_named(dataset.features)}.")


def given_column(features: datasets.Features, setting: str, wanted: str, must_hold_images: bool = True) -> str:
    """Return a column that the user named; raise UserError where there is none, or it does not hold images."""
    if wanted not in features:
        raise UserError(f"--{setting} {wanted}: the dataset has no such column, but {columns_named(features)}.")
    if must_hold_images and not holds_images(features[wanted]):
        raise UserError(f"--{setting} {wanted}: this column holds {kind_of(features[wanted])}, not images.")
    return wanted


def read_class_map(path: str) -> dict[str, int]:
    """Read `--class-map`: one class name per line in the order of the numbers, or a name and a number per line."""
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
    """Return the class names in the order of a map's numbers, the first one where several names have one number."""
    first = {number: name for name, number in reversed(list(class_map.items()))}
    return [first[number] for number in range(len(first))]


def listed(names: Sequence[str]) -> str:
    """Return the first names, for a sentence."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def check_count(rows: Rows, count: int) -> None:
    """Raise UserError where fewer rows than `--train-num-samples` are there."""
    if count > len(rows):
        raise UserError(f"--train-num-samples {count}: there are only {len(rows)} training images.")
