"""Encoded images to pixels: 8 bits, gray or RGB, upright. Bad ones are told apart from mistakes in this program."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from PIL import ExifTags, Image, ImageOps

from frskd_timm.errors import UserError

GRAY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"))
MAX_PIXELS = 89_478_485  # Pillow's own bound, above which it warns of decompression bombs


class BadImageError(UserError):
    """An image that cannot be used; the message names its row and file."""


@dataclass(frozen=True)
class Images:
    """The encoded images of one split, addressed by row.

    Attributes:
        dataset: the split; `column` gives bytes and paths, not pictures.
        split: its name, for messages.
        column: the column of the images.
    """

    dataset: datasets.Dataset
    split: str
    column: str

    @classmethod
    def of(cls, dataset: datasets.Dataset, split: str, column: str) -> "Images":
        """Takes the column of a split, which may hold pictures or encoded bytes."""
        if column not in dataset.features:
            raise UserError(f"split {split} has no column {column}, but {', '.join(dataset.features)}")
        # cast_column writes nothing where the column is one of images already; else it is small enough to be in memory
        only = dataset.select_columns([column]).with_format(None)
        return cls(only.cast_column(column, datasets.Image(decode=False)), split, column)

    def open(self, row: int) -> Image.Image:
        """Opens an image and reads its header.

        Raises:
            BadImageError: it is missing, no image, or too large.
        """
        value = self.dataset[row][self.column]
        try:
            return _open(value)
        except Exception as error:  # Pillow's plugins raise nearly everything on damaged files
            raise self._bad(row, value, error) from error

    def load(self, row: int, mode: Literal["L", "RGB"] | None) -> Image.Image:
        """Decodes an image.

        Args:
            row: its row.
            mode: L or RGB; None gives L for gray images and RGB for others.

        Raises:
            BadImageError: it is missing, truncated, no image, or too large.
        """
        value = self.dataset[row][self.column]
        try:
            image = _open(value)
            return _to_8_bits(image, mode or ("L" if is_gray(image) else "RGB"))
        except Exception as error:
            raise self._bad(row, value, error) from error

    def encoded(self, row: int) -> bytes:
        """The bytes of an image's file, for a fingerprint; its path where the file cannot be read."""
        value = self.dataset[row][self.column] or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        try:
            return Path(value.get("path") or "").read_bytes()
        except OSError:
            return str(value.get("path")).encode()

    def _bad(self, row: int, value: Any, error: Exception) -> BadImageError:
        path = value.get("path") if isinstance(value, dict) else None
        where = f"image {row} of split {self.split}" + (f" ({path})" if path else "")
        reason = "no image in a format that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else error
        return BadImageError(f"{where} cannot be read: {reason}")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Leaves out Pillow's warnings: sizes are checked here, and damaged EXIF data does not matter. One thread only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def is_gray(image: Image.Image) -> bool:
    """Whether an opened image has no colours."""
    return image.mode in GRAY_MODES


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after turning as EXIF says."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def _open(value: Any) -> Image.Image:
    if not isinstance(value, dict) or (value.get("bytes") is None and not value.get("path")):
        raise ValueError("the row is empty")
    source = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
    image = Image.open(source)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}, make it smaller first")
    return image


def _to_8_bits(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Decodes, turns upright as EXIF says, and converts to L or RGB. Transparency is dropped, as timm does."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of an unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray(_from_16_bits(np.asarray(image)))
    return image if image.mode == mode else image.convert(mode)


def _from_16_bits(pixels: np.ndarray) -> np.ndarray:
    wide = pixels.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError("its pixels have more than 16 bits")
    return ((wide + 128) // 257).astype(np.uint8)
