"""Which column holds the images, which the labels, and what the labels mean."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from frskd_timm.errors import UserError

Labels = npt.NDArray[np.int64]
LABEL_NAMES = ("label", "labels", "class", "fine_label", "target")


def find_image_column(features: datasets.Features, wanted: str | None) -> str:
    """Finds the column of the images.

    Args:
        features: The dataset's columns and their types.
        wanted: `--input-key`; None takes the only image column, or the only one of encoded bytes.

    Raises:
        UserError: There is none, there are several, or the wanted one holds something else.
    """
    if wanted is not None:
        if wanted not in features:
            raise UserError(f"--input-key {wanted}: the dataset has no such column, but {columns_named(features)}")
        if not (is_image_column(features[wanted]) or is_encoded_column(features[wanted])):
            raise UserError(f"--input-key {wanted}: this column holds {_kind(features[wanted])}, not images")
        return wanted
    for is_right in (is_image_column, is_encoded_column):
        found = [name for name, feature in features.items() if is_right(feature)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"the dataset has several image columns ({', '.join(found)}); choose with --input-key")
    raise UserError(f"the dataset has no image column, only {columns_named(features)}")


def find_label_column(features: datasets.Features, wanted: str | None) -> str:
    """Finds the column of the labels.

    Args:
        features: The dataset's columns and their types.
        wanted: `--target-key`; None takes the only class column, or one that is named as labels often are.

    Raises:
        UserError: There is none, or there are several and none has such a name.
    """
    if wanted is not None:
        if wanted not in features:
            raise UserError(f"--target-key {wanted}: the dataset has no such column, but {columns_named(features)}")
        return wanted
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(classes) == 1:
        return classes[0]
    for name in LABEL_NAMES:
        if name in (classes or features):
            return name
    if classes:
        raise UserError(f"the dataset has several class columns ({', '.join(classes)}); choose with --target-key")
    raise UserError(f"the dataset has no label column, only {columns_named(features)}; name it with --target-key")


def read_labels(splits: Mapping[str, datasets.Dataset], column: str) -> tuple[dict[str, Labels], list[str]]:
    """Reads the labels of all splits as class numbers.

    Class columns keep their numbers, matched by name between splits. Whole numbers, strings and booleans become
    classes in sorted order of the values that the first split, the training one, has.

    Args:
        splits: The splits to read, the training split first.
        column: The column of the labels.

    Returns:
        Class numbers of each split's rows, and the classes' names.

    Raises:
        UserError: Labels that are no classes (floats, lists), are missing, negative or out of range, or a class that
            the training split lacks.
    """
    trained_on, *others = splits
    feature = splits[trained_on].features[column]
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
        labels = {split: _class_numbers(dataset, split, column, names) for split, dataset in splits.items()}
    else:
        values = {split: _plain_values(dataset, split, column) for split, dataset in splits.items()}
        known = sorted(set(values[trained_on]))
        number = {value: index for index, value in enumerate(known)}
        names = [str(value) for value in known]
        labels = {}
        for split, found in values.items():
            unseen = sorted({value for value in found if value not in number})
            if unseen:
                raise UserError(_only_there(split, trained_on, [str(value) for value in unseen]))
            labels[split] = np.array([number[value] for value in found], np.int64)
    for split in others:
        unseen = sorted(set(np.unique(labels[split]).tolist()) - set(np.unique(labels[trained_on]).tolist()))
        if unseen:
            raise UserError(_only_there(split, trained_on, [names[target] for target in unseen]))
    if len(names) < 2:
        raise UserError(f"column {column} of split {trained_on} has only one class, {names}; at least 2 are needed")
    return labels, names


def _class_numbers(dataset: datasets.Dataset, split: str, column: str, names: list[str]) -> Labels:
    feature = dataset.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        raise UserError(f"column {column} holds classes in the training split but {_kind(feature)} in split {split}")
    values = _column(dataset, column)
    _refuse_missing(values, split, column)
    labels = values.to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(feature.names)))
    if len(wrong):
        raise UserError(_out_of_range(split, column, int(wrong[0]), int(labels[wrong[0]]), len(feature.names)))
    if feature.names == names:
        return labels
    number = {name: index for index, name in enumerate(names)}
    used = [feature.names[target] for target in np.unique(labels)]
    unseen = [name for name in used if name not in number]
    if unseen:
        raise UserError(_only_there(split, "train", unseen))
    return np.array([number.get(name, -1) for name in feature.names], np.int64)[labels]


def _plain_values(dataset: datasets.Dataset, split: str, column: str) -> list[Any]:
    if column not in dataset.features:
        raise UserError(f"split {split} has no column {column}, but {columns_named(dataset.features)}")
    feature = dataset.features[column]
    kind = dataset.data.schema.field(column).type
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if not (whole or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"column {column} holds {_kind(feature)}; labels are classes, whole numbers or strings")
    values = _column(dataset, column)
    _refuse_missing(values, split, column)
    listed: list[Any] = values.to_pylist()
    if whole and listed and min(listed) < 0:
        row = next(row for row, value in enumerate(listed) if value < 0)
        raise UserError(_out_of_range(split, column, row, listed[row], None))
    return listed


def _column(dataset: datasets.Dataset, column: str) -> pa.ChunkedArray:
    return dataset.select_columns([column]).with_format("arrow")[:].column(column)


def _refuse_missing(values: pa.ChunkedArray, split: str, column: str) -> None:
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise UserError(f"row {row} of split {split} has no value in the label column {column}")


def _out_of_range(split: str, column: str, row: int, value: int, classes: int | None) -> str:
    wanted = "0 or more" if classes is None else f"0 to {classes - 1}"
    hint = " (-1 usually means unlabelled: choose another split)" if value == -1 else ""
    return f"row {row} of split {split} has label {value} in column {column}; labels must be {wanted}{hint}"


def _only_there(split: str, trained_on: str, names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"split {split} has classes without an image in split {trained_on}: {shown}"


def is_image_column(feature: Any) -> bool:
    """Whether datasets knows a column to hold images."""
    return isinstance(feature, datasets.Image)


def is_encoded_column(feature: Any) -> bool:
    """Whether a column holds images' bytes, which files read without their metadata only show by their form."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _kind(feature: Any) -> str:
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__


def columns_named(features: datasets.Features) -> str:
    """A dataset's columns for a sentence."""
    return "the columns " + ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
