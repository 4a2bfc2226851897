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

        The first of the used splits determines the classes; `class_names` come from the dataset's source, if any.
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
        """Choose `count` of the rows, always the same ones, ascending; raise UserError if a class would be empty."""

    @abstractmethod
    def digest(self, split: str, rows: Rows) -> bytes:
        """Hash the targets of the rows."""

    @abstractmethod
    def match(self, split: str, rows: Rows, known: list[str]) -> None:
        """Renumber the classes of the rows in the order of a trained model's outputs, given its class names.

        Raises UserError for a class that the model does not know.
        """

    @abstractmethod
    def class_counts(self, split: str, rows: Rows) -> list[int]:
        """Count the images, or the pixels of masks, of each class in the rows."""

    def check(self, split: str, row: int, image_size: tuple[int, int], target: Tensor) -> BadImageError | None:
        """Check a target against the width and height of its image."""
        return None

    def find_classes(self, split: str, rows: Rows, progress: bool) -> None:  # noqa: B027
        """Determine the classes from the targets of the training rows if the dataset does not name them."""

    def empty_classes(self, split: str, rows: Rows) -> list[str]:
        """Return the names of classes without a row among `rows`, if the classes of a row are known."""
        return []


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


def check_given(features: datasets.Features, data: DataSettings, target_holds_images: bool) -> None:
    """Raise UserError if a column given by the user does not exist, or does not hold images where it has to."""
    for setting, wanted in (("input", data.input_key), ("target", data.target_key)):
        if wanted is None:
            continue
        if wanted not in features:
            raise UserError(f"--{setting}-key {wanted}: the dataset has no such column, but {columns_named(features)}.")
        if (setting == "input" or target_holds_images) and not holds_images(features[wanted]):
            raise UserError(f"--{setting}-key {wanted}: this column holds {kind_of(features[wanted])}, not images.")


def check_columns(splits: Splits, image: str, target: str) -> None:
    """Raise UserError if a split lacks a column, or both columns are the same."""
    if image == target:
        raise UserError(f"--input-key and --target-key both name the column {image}.")
    for split, dataset in splits.items():
        for column in (image, target):
            if column not in dataset.features:
                raise UserError(f"Split {split} has no column {column}, but {columns_named(dataset.features)}.")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped, without empty ones; raise UserError if it cannot be read."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text ({error}).") from error
    return [line.strip() for line in lines if line.strip()]


def read_class_map(path: str) -> tuple[dict[str, int], list[str]]:
    """Read `--class-map`: one class name per line in numerical order, or a name and a number per line.

    Returns:
        The number of each name, and one name of each number.
    """
    lines = read_lines(Path(path))
    numbers = {found[1]: int(found[2]) for line in lines if (found := NAME_AND_NUMBER.fullmatch(line))}
    first = {number: name for name, number in reversed(list(numbers.items()))}
    if first and len(numbers) == len(lines) and set(first) == set(range(len(first))):
        return numbers, [first[number] for number in range(len(first))]
    if len(set(lines)) < max(len(lines), 2):
        raise UserError(f"--class-map {path} must hold at least 2 class names, each only once.")
    return {name: number for number, name in enumerate(lines)}, lines


def listed(names: Sequence[str]) -> str:
    """Return the first names, for a sentence."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
