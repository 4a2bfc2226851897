"""Images with their masks: found, decoded and checked, one pair at a time."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_timm.segmentation.losses import IGNORED
from frskd_train.data.columns import columns_named, is_encoded_column, is_image_column
from frskd_train.data.decode import BadImageError, Images, encoded_content, open_image, quiet_pillow
from frskd_train.data.order import Rows
from frskd_train.data.parts import LOOKED_AT
from frskd_train.data.transforms import pixels_of

IMAGE_NAMES = ("image", "img", "pixel_values", "photo")
MASK_NAMES = ("mask", "label", "labels", "annotation", "segmentation", "semantic_segmentation", "seg", "target")


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        image: uint8 [C, H, W].
        mask: uint8 [H, W]: the class of each pixel, 255 where it has none.
    """

    image: Tensor
    mask: Tensor


class Pairs(Protocol):
    """The pairs of a split that are used, addressed by their place."""

    def __len__(self) -> int: ...

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Height and width of each."""
        ...

    def load(self, place: int) -> Pair:
        """One pair; raises BadImageError."""
        ...


@dataclass(frozen=True)
class MemoryPairs:
    """Decoded pairs."""

    pairs: Sequence[Pair]

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each."""
        return [(pair.mask.shape[0], pair.mask.shape[1]) for pair in self.pairs]

    def load(self, place: int) -> Pair:
        """One pair."""
        return self.pairs[place]


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs that are decoded when they are asked for.

    Attributes:
        images: The split's encoded images.
        masks: Its encoded masks.
        rows: The rows in use.
        num_classes: Number of classes; None lets every label below 255 pass.
        mode: L or RGB.
    """

    images: Images
    masks: Images
    rows: Rows
    num_classes: int | None
    mode: Literal["L", "RGB"]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image, from its header; (0, 0) where that cannot be read."""
        sizes = []
        with quiet_pillow():
            for row in self.rows.tolist():
                try:
                    width, height = self.images.look(row)[0]
                except BadImageError:
                    width, height = 0, 0
                sizes.append((height, width))
        return sizes

    def load(self, place: int) -> Pair:
        """One pair.

        Raises:
            BadImageError: Image or mask cannot be read, they differ in size, or a label is out of range.
        """
        row = int(self.rows[place])
        image = pixels_of(self.images.load(row, self.mode))
        mask = torch.from_numpy(self._mask(row))
        if mask.shape != image.shape[1:]:
            raise BadImageError(
                f"{self._name(row)} is {mask.shape[1]}x{mask.shape[0]} pixels, "
                f"but its image is {image.shape[2]}x{image.shape[1]}"
            )
        return Pair(image, mask)

    def _mask(self, row: int) -> np.ndarray:
        value = self.masks.dataset[row][self.masks.column]
        try:
            mask = _labels_of(open_image(value))
        except Exception as error:  # Pillow's plugins raise nearly everything on damaged files
            kind = (
                "no image in a format that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else error
            )
            raise BadImageError(f"{self._name(row)} cannot be read: {kind}") from error
        top = self.num_classes if self.num_classes is not None else IGNORED
        wrong = mask[(mask >= top) & (mask != IGNORED)]
        if wrong.size:
            raise BadImageError(
                f"{self._name(row)} has label {wrong.flat[0]}; labels must be 0 to {top - 1}, or {IGNORED} for pixels "
                "without a class"
            )
        return mask.astype(np.uint8)

    def _name(self, row: int) -> str:
        path = encoded_content(self.masks.dataset[row][self.masks.column])[1]
        return f"mask {row} of split {self.masks.split}" + (f" ({path})" if path else "")

    def sample(self, wanted: int) -> "EncodedPairs":
        """At most `wanted` of the pairs, evenly spread."""
        places = np.unique(np.linspace(0, len(self.rows) - 1, min(len(self.rows), wanted)).astype(np.int64))
        return EncodedPairs(self.images, self.masks, self.rows[places], self.num_classes, self.mode)

    def digest(self) -> bytes:
        """A hash of the chosen rows and of the encoded bytes of some images and masks."""
        digest = hashlib.sha256(self.rows.astype("<i8").tobytes())
        for row in self.sample(LOOKED_AT).rows.tolist():
            digest.update(hashlib.sha256(self.images.encoded(row)).digest())
            digest.update(hashlib.sha256(self.masks.encoded(row)).digest())
        return digest.digest()


def _labels_of(image: Image.Image) -> np.ndarray:
    """Class numbers [H, W] of a mask: the indices of a palette, or gray levels."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "L", "1", "I", "I;16", "I;16L", "I;16B"):
        return np.asarray(image).astype(np.int64)
    raise ValueError(f"it holds colours (mode {image.mode}); a mask has class numbers, in a palette or as gray levels")


def find_pair_columns(features: datasets.Features, image: str | None, mask: str | None) -> tuple[str, str]:
    """Finds the columns of images and of masks.

    Args:
        features: The dataset's columns and their types.
        image: `--input-key`; None takes the one that is named as images often are.
        mask: `--target-key`, likewise.

    Raises:
        UserError: There are no two image columns, or it is not plain which is which.
    """
    found = [name for name, feature in features.items() if is_image_column(feature) or is_encoded_column(feature)]
    for setting, wanted in (("input", image), ("target", mask)):
        if wanted is not None and wanted not in features:
            raise UserError(f"--{setting}-key {wanted}: the dataset has no such column, but {columns_named(features)}")
        if wanted is not None and wanted not in found:
            raise UserError(f"--{setting}-key {wanted}: this column holds no images, among {columns_named(features)}")
    if len(found) < 2:
        raise UserError(
            f"segmentation needs a column of images and one of masks; the dataset has {columns_named(features)}"
        )
    mask = mask or next((name for name in MASK_NAMES if name in found and name != image), None)
    image = image or next((name for name in IMAGE_NAMES if name in found and name != mask), None)
    if len(found) == 2:  # where one is known, the other is what is left
        image = image or next((name for name in found if mask and name != mask), None)
        mask = mask or next((name for name in found if image and name != image), None)
    if image is None or mask is None:
        listed = ", ".join(found)
        raise UserError(f"it is not plain which of the columns {listed} to use; give --input-key and --target-key")
    if image == mask:
        raise UserError(f"--input-key and --target-key both name the column {image}")
    return image, mask


def highest_label(pairs: Pairs) -> int:
    """The highest label of all masks, 255 left out. Pairs that cannot be read are passed over."""
    highest = -1
    for place in range(len(pairs)):
        try:
            mask: Any = pairs.load(place).mask
        except BadImageError:
            continue
        labelled = mask[mask != IGNORED]
        if labelled.numel():
            highest = max(highest, int(labelled.max()))
    return highest
