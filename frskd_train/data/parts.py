"""The rows that are trained on and those that are validated on, checked before an image is decoded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frskd_timm.errors import UserError
from frskd_train.data.columns import Labels, find_image_column, find_label_column, read_labels
from frskd_train.data.decode import BadImageError, Images, quiet_pillow
from frskd_train.data.source import Source
from frskd_train.data.splits import balanced_subset, choose_splits, hold_out
from frskd_train.settings import DataSettings

LOOKED_AT = 256  # images whose headers say what sizes and colours the dataset has, and whose bytes tell datasets apart


@dataclass(frozen=True)
class Part:
    """The rows of a split that are used.

    Attributes:
        images: The split's encoded images.
        rows: The rows in use, ascending.
        labels: The class of each of these.
    """

    images: Images
    rows: Labels
    labels: Labels

    def sample(self, wanted: int) -> "Part":
        """At most `wanted` of the rows, evenly spread."""
        places = np.unique(np.linspace(0, len(self.rows) - 1, min(len(self.rows), wanted)).astype(np.int64))
        return Part(self.images, self.rows[places], self.labels[places])

    def look(self) -> tuple[set[tuple[int, int]], bool]:
        """Width and height of some of the images, and whether all of these are gray."""
        sizes, gray = set(), True
        with quiet_pillow():
            for row in self.sample(LOOKED_AT).rows.tolist():
                try:
                    size, is_gray = self.images.look(row)
                except BadImageError:
                    continue  # what becomes of it is decided where it is decoded
                sizes.add(size)
                gray = gray and is_gray
        return sizes, gray


def training_parts(source: Source, data: DataSettings) -> tuple[Part, Part, list[str]]:
    """Chooses the rows to train on and those to validate on.

    Returns:
        Both, and the classes' names.

    Raises:
        UserError: A split, column or label that cannot be used.
    """
    train_split, val_split = choose_splits(source.splits, data.train_split, data.val_split)
    used = [train_split] if val_split is None else [train_split, val_split]
    images, labels, class_names = _read(source, data, used)
    rows = np.arange(len(labels[train_split]))
    if val_split is None:
        val_split = train_split
        rows, val_rows = hold_out(labels[train_split], data.val_fraction)
    else:
        val_rows = np.arange(len(labels[val_split]))
    if data.train_num_samples is not None:
        rows = rows[balanced_subset(labels[train_split][rows], data.train_num_samples, len(class_names))]
    train = Part(images[train_split], rows, labels[train_split][rows])
    return train, Part(images[val_split], val_rows, labels[val_split][val_rows]), class_names


def validation_part(source: Source, data: DataSettings, known_classes: Sequence[str] | None) -> tuple[Part, list[str]]:
    """Chooses the rows to validate a trained model on: those that training would validate on, or all of `--val-split`.

    Args:
        source: The dataset.
        data: Its settings.
        known_classes: The model's classes, in the order of its outputs; labels are matched to them by name.

    Returns:
        The rows, and the classes' names.

    Raises:
        UserError: A split, column or label that cannot be used, or a class that the model does not know.
    """
    if data.val_split is not None and data.val_split in source.splits:
        split, held = data.val_split, False
    else:
        train_split, val_split = choose_splits(source.splits, data.train_split, data.val_split)
        split, held = val_split or train_split, val_split is None
    images, labels, class_names = _read(source, data, [split])
    chosen = labels[split]
    rows = hold_out(chosen, data.val_fraction)[1] if held else np.arange(len(chosen))
    if known_classes is not None:
        number = {name: index for index, name in enumerate(known_classes)}
        unknown = [class_names[target] for target in np.unique(chosen[rows]) if class_names[target] not in number]
        if unknown:
            shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise UserError(f"split {split} has classes that the model does not know: {shown}")
        chosen = np.array([number.get(name, -1) for name in class_names], np.int64)[chosen]
        class_names = list(known_classes)
    return Part(images[split], rows, chosen[rows]), class_names


def fingerprint(class_names: Sequence[str], *parts: Part) -> str:
    """A hash of classes, chosen rows, their labels, and the encoded bytes of some images."""
    digest = hashlib.sha256("\0".join(class_names).encode())
    for part in parts:
        digest.update(part.rows.astype("<i8").tobytes() + part.labels.astype("<i8").tobytes())
        for row in part.sample(LOOKED_AT).rows.tolist():
            digest.update(hashlib.sha256(part.images.encoded(row)).digest())
    return digest.hexdigest()[:16]


def _read(
    source: Source, data: DataSettings, used: Sequence[str]
) -> tuple[dict[str, Images], dict[str, Labels], list[str]]:
    """Images and labels of the splits in use, the one that knows the classes first."""
    splits = {split: source.splits[split] for split in used}
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise UserError(f"split {split} of --dataset {data.dataset} is empty")
    features = splits[used[0]].features
    image_column = find_image_column(features, data.input_key)
    label_column = find_label_column(features, data.target_key)
    if label_column == image_column:
        raise UserError(f"--input-key and --target-key both name the column {image_column}")
    labels, class_names = read_labels(splits, label_column)
    images = {split: Images.of(dataset, split, image_column) for split, dataset in splits.items()}
    return images, labels, class_names
