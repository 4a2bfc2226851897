"""Columns of a dataset: finding, checking and describing them; class maps and other text files."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets

from frskd_timm.errors import UserError
from frskd_train.settings import DataSettings

Splits = Mapping[str, datasets.Dataset]
Columns = tuple[str, str]  # of the images and of the targets
NAME_AND_NUMBER = re.compile(r"(.*\S)[\s,]+(\d+)")


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


def find_columns(
    splits: Splits, data: DataSettings, has_masks: bool, find: Callable[[datasets.Features, DataSettings], Columns]
) -> Columns:
    """Return the columns of the images and the targets: those given by the user, else those that `find` finds.

    Raises:
        UserError: A column does not exist in one of the splits, does not hold images where it has to, or is both.
    """
    features = next(iter(splits.values())).features
    for setting, wanted in (("input", data.input_key), ("target", data.target_key)):
        if wanted is not None and wanted not in features:
            raise UserError(f"--{setting}-key {wanted} does not exist; the dataset has {columns_named(features)}.")
        if wanted is not None and (setting == "input" or has_masks) and not holds_images(features[wanted]):
            raise UserError(f"--{setting}-key {wanted}: this column holds {kind_of(features[wanted])}, not images.")
    image, target = find(features, data)
    if image == target:
        raise UserError(f"--input-key and --target-key both name the column {image}.")
    for split, dataset in splits.items():
        for column in (image, target):
            if column not in dataset.features:
                raise UserError(f"Split {split} has no column {column}; it has {columns_named(dataset.features)}.")
    return image, target


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped, without empty ones; raise UserError if it cannot be read."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()  # Windows may add a mark
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text ({error}).") from error
    return [line.strip() for line in lines if line.strip()]


def read_names(path: Path) -> list[str]:
    """Read class names, one per line; raise UserError if there are fewer than 2, or one is repeated."""
    names = read_lines(path)
    if len(set(names)) < max(len(names), 2):
        raise UserError(f"{path} must contain at least 2 class names, each of them once.")
    return names


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
    names = read_names(Path(path))
    return {name: number for number, name in enumerate(names)}, names
