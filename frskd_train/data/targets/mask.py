"""Masks: one class per pixel, from a second column of images."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_timm.losses.functional import IGNORED
from frskd_train.data.columns import Columns, Splits, columns_named, find_columns, holds_images, read_class_map
from frskd_train.data.images import BadImageError, Images, in_blocks
from frskd_train.data.mask_folder import LAYOUTS
from frskd_train.data.sampler import Rows, evenly_spaced, shuffled
from frskd_train.errors import listed
from frskd_train.settings import DataSettings

IMAGE_NAMES = ("image", "img", "pixel_values", "photo")
MASK_NAMES = ("mask", "label", "labels", "annotation", "segmentation", "semantic_segmentation", "seg", "target")
NUMBERED = ("P", "L", "1", "I", "I;16", "I;16L", "I;16B")  # Pillow's modes that hold class numbers

_CHECKED = 100  # masks, evenly spread over the split
SCALED = {"L;2": 85, "L;4": 17}  # Pillow spreads the gray levels of files with few bits over 0..255


class Masks:
    """See `ClassLabels`; a target is uint8 [H, W]: the class of each pixel, 255 for none."""

    is_dense: ClassVar = True

    def __init__(self, splits: Splits, data: DataSettings, class_names: list[str] | None) -> None:
        self.image_column, column = self.columns(splits, data)
        self._masks = {split: Images(dataset, split, column, "mask") for split, dataset in splits.items()}
        # Empty until find_classes if the dataset does not name its classes.
        self.class_names = read_class_map(data.class_map)[1] if data.class_map is not None else class_names or []
        self._ignored = data.ignore_label or ()
        self._counted: Rows | None = None  # training pixels with each label, if the classes were found by counting
        self._outputs: Rows | None = None  # the model's output of each label, where they differ
        self._labels = 0  # number of different labels in the masks, where that is not the number of classes

    @staticmethod
    def columns(splits: Splits, data: DataSettings) -> Columns:
        return find_columns(splits, data, has_masks=True, find=_find_columns)

    def load_many(self, split: str, rows: list[int]) -> Iterator[Tensor | BadImageError]:
        return self._masks[split].load_many(rows, self._decode)

    def _decode(self, image: Image.Image) -> Tensor:
        stored = _refuse_changed(image)
        image = ImageOps.exif_transpose(image)
        if image.mode not in NUMBERED:
            raise ValueError(
                f"its mode is {image.mode}, but class numbers are read from a palette or gray levels (Pillow's P, L): "
                "convert its colours to numbers first"
            )
        labels = np.asarray(image) // next((unit for mode, unit in SCALED.items() if mode in str(stored)), 1)
        if self._ignored:
            labels = np.where(np.isin(labels, self._ignored), IGNORED, labels)
        top = self._labels or len(self.class_names) or IGNORED
        wrong = labels[((labels >= top) | (labels < 0)) & (labels != IGNORED)]
        if wrong.size:
            found = f"it has label {wrong[0]}; labels must be 0 to {top - 1}, or {IGNORED} for no class"
            if self._counted is None:
                raise ValueError(found)
            raise ValueError(f"{found}, as in the training masks: to allow more, list all of them with --class-map")
        labels = labels.astype(np.uint8)
        return torch.from_numpy(labels if self._outputs is None else self._outputs[labels])

    def check(self, split: str, row: int, image_size: tuple[int, int], target: Tensor) -> BadImageError | None:
        height, width = target.shape
        if (width, height) == image_size:
            return None
        mask, image = f"{width}x{height} pixels", f"{image_size[0]}x{image_size[1]}"
        if (height, width) == image_size:
            image += ", upright as its EXIF orientation says"
        return BadImageError(f"{self._masks[split].describe(row)} is {mask}, but its image is {image}")

    def hold_out(self, split: str, fraction: float) -> tuple[Rows, Rows]:
        count = len(self._masks[split].dataset)
        held = round(count * fraction)
        if not 0 < held < count:
            other = "another --val-fraction" if count > 1 else "more images"
            raise UserError(
                f"The dataset has no validation split and --val-fraction {fraction:g} of its {count} image(s) holds "
                f"out {held}; give --val-split or {other}."
            )
        order = shuffled(count)
        return np.sort(order[held:]), np.sort(order[:held])

    def subset(self, split: str, rows: Rows, count: int) -> Rows:
        return np.sort(rows[shuffled(len(rows))[:count]])

    def digest(self, split: str, rows: Rows) -> bytes:
        return self._masks[split].digest(rows)

    def match(self, split: str, rows: Rows, known: list[str] | int) -> None:
        """See `ClassLabels`; where the data or the model do not name the classes, labels are numbers of outputs."""
        known = unnamed(known) if isinstance(known, int) else known
        names = self.class_names
        unknown = [name for name in names if name not in known]
        if unknown and len(names) != len(known):
            raise UserError(f"The data have {len(names)} classes, but the model has {len(known)}.")
        if names and names != known and known != unnamed(len(known)):
            if unknown or len({*names}) < len(names):
                other = listed(unknown or names)
                raise UserError(f"The model does not know {other}: name the labels as the model does with --class-map.")
            self._outputs = np.full(IGNORED + 1, IGNORED, np.uint8)
            self._outputs[: len(names)] = [known.index(name) for name in names]
        self.class_names, self._labels = known, len(names)

    def find_classes(self, split: str, rows: Rows) -> None:
        """Number classes without names up to the highest label in the training rows; decodes only masks."""
        if not self.class_names:
            counted = self._label_counts(split, rows, f"labels of {split}")
            labels = np.flatnonzero(counted[:IGNORED])
            if not labels.size:
                for mask in self.load_many(split, rows[:1].tolist()):
                    if isinstance(mask, BadImageError):  # probably like all others
                        raise mask
            self.class_names, self._counted = unnamed(int(max(labels, default=-1)) + 1), counted
        count = len(self.class_names)
        if not 2 <= count <= IGNORED:
            raise UserError(
                f"The masks of split {split} have {count} class(es), but training needs 2 to {IGNORED}; the value "
                f"{IGNORED} is ignored, so write foreground as 1."
            )

    def check_labels(self, split: str, rows: Rows) -> None:
        """Raise UserError if some masks of a split, read as numbers, cannot mean what they show."""
        chosen = rows[evenly_spaced(len(rows), _CHECKED)]
        self._check_palettes(split, chosen.tolist())
        counted = self._label_counts(split, chosen)
        if counted[0] and counted[IGNORED] and not self._ignored and not counted[1:IGNORED].any():
            raise UserError(
                f"The masks of split {split} have only the labels 0 and {IGNORED}, which stands for no class: "
                "write foreground as 1."
            )
        between = np.flatnonzero(counted[1:IGNORED]) + 1
        blurred = 0 < counted[between].sum() < min(counted[0], counted[IGNORED]) and between.max() > IGNORED // 2
        if blurred and not self._ignored and not self.class_names:
            raise UserError(
                f"The masks of split {split} have mostly the labels 0 and {IGNORED}, which stands for no class, and "
                f"{len(between)} labels between, as if resizing had blurred them: write foreground as 1 and resize "
                f"without interpolation, or give --ignore-label {IGNORED} if these are classes."
            )

    def _check_palettes(self, split: str, rows: list[int]) -> None:
        """Raise UserError if a number stands for different colours in the palettes of two masks."""
        first: dict[int, tuple[Any, int]] = {}  # the colour of each number, and the row where it was seen first
        masks = self._masks[split]
        for row, found in zip(rows, masks.load_many(rows, _colours), strict=True):
            for label, colour in found.items() if isinstance(found, dict) else ():
                known, other = first.setdefault(label, (colour, row))
                if known != colour:
                    raise UserError(
                        f"{masks.describe(row)} has another palette than mask {other}: number {label} stands for "
                        "different colours, so the numbers are not classes. Convert the colours to numbers; or, if the "
                        "numbers are right, store them without palettes (Pillow's mode L)."
                    )

    def class_counts(self, split: str, rows: Rows) -> list[int]:
        return self._label_counts(split, rows)[: len(self.class_names)].tolist()

    def known_counts(self, split: str, rows: Rows, decoded: Sequence[Tensor]) -> list[int]:
        """Return the pixels of each class in the training rows, if they were counted to find the classes or decoded."""
        counted = _count(decoded) if self._counted is None else self._counted
        return counted[: len(self.class_names)].tolist() if counted.any() else []

    def _label_counts(self, split: str, rows: Rows, title: str | None = None) -> Rows:
        """Return the number of pixels with each label, 0 to 255, in the masks that can be read."""

        def count(block: list[int]) -> list[Rows]:
            return [_count([mask]) for mask in self.load_many(split, block) if isinstance(mask, Tensor)]

        return sum(in_blocks(count, rows.tolist(), title), np.zeros(IGNORED + 1, np.int64))


def _count(masks: Sequence[Tensor]) -> Rows:
    """Return the number of pixels with each label, 0 to 255."""
    counts = (np.bincount(mask.flatten().numpy(), minlength=IGNORED + 1) for mask in masks)
    return sum(counts, np.zeros(IGNORED + 1, np.int64))


def _refuse_changed(image: Image.Image) -> str:
    """Return how an opened mask is stored, as Pillow calls it; raise ValueError if its format changes numbers."""
    name, tiles = getattr(image, "format", None), getattr(image, "tile", None)
    stored: Any = tiles[0][3] if tiles else ""
    lossy = name if name in ("JPEG", "MPO", "JPEG2000") else "TIFF" if image.info.get("compression") == "jpeg" else ""
    if lossy:
        raise ValueError(f"it is a {lossy} file whose compression may change class numbers: store masks as PNG")
    if name == "PPM" and isinstance(stored, tuple) and stored[-1] not in (255, 65535):
        raise ValueError("it is a PGM, whose numbers are scaled by its largest gray level: store masks as PNG")
    if name == "TIFF" and re.search(r"\b(1|L|L;\d);I", str(stored)):
        raise ValueError("it is a TIFF that stores white as 0, whose numbers are reversed: store masks as PNG")
    return str(stored)


def _colours(image: Image.Image) -> dict[int, tuple[int, ...]]:
    """Return the colour of each number in a mask with a palette; nothing for others."""
    if image.mode != "P":
        return {}
    numbers = np.unique(np.asarray(image)).tolist()
    palette = image.getpalette() or []
    return {number: tuple(palette[3 * number : 3 * number + 3]) for number in numbers if number != IGNORED}


def unnamed(count: int) -> list[str]:
    """Return the names of classes without names."""
    return [f"class {label}" for label in range(count)]


def _find_columns(features: datasets.Features, data: DataSettings) -> Columns:
    """Return the columns of images and masks: the given ones, else those with common names for images and masks."""
    image, mask = data.input_key, data.target_key
    found = [name for name, feature in features.items() if holds_images(feature)]
    if len(found) < 2:
        raise UserError(
            f"Segmentation needs a column of images and one of masks, but the dataset has {columns_named(features)}. "
            f"{LAYOUTS}"
        )
    mask = mask or next((name for name in MASK_NAMES if name in found and name != image), None)
    image = image or next((name for name in IMAGE_NAMES if name in found and name != mask), None)
    if len(found) == 2:  # if one is known, the other is the remaining one
        image = image or next((name for name in found if mask and name != mask), None)
        mask = mask or next((name for name in found if image and name != image), None)
    if image is None or mask is None:
        unclear = f"It is unclear which of the columns {', '.join(found)} hold images and masks"
        raise UserError(f"{unclear}; give --input-key and --target-key.")
    return image, mask
