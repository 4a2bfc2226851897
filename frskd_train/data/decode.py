"""Encoded images to pixels: 8 bits, gray or RGB, upright. Bad ones are told apart from mistakes in this program."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from PIL import ExifTags, Image, ImageOps

from frskd_timm.errors import UserError

GRAY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"))
MAX_PIXELS = 89_478_485  # Pillow's own bound, above which it warns of decompression bombs
MAX_ASPECT = 100  # a thinner image, with its short side resized to the network's input, could fill the memory
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")


class BadImageError(UserError):
    """An image that cannot be used; the message names its row and file."""


@dataclass(frozen=True)
class Images:
    """The encoded images of one split, addressed by row.

    Attributes:
        dataset: The split; `column` gives bytes and paths, not pictures.
        split: Its name, for messages.
        column: The column of the images.
    """

    dataset: datasets.Dataset
    split: str
    column: str

    @classmethod
    def of(cls, dataset: datasets.Dataset, split: str, column: str) -> "Images":
        """Takes the column of a split, which may hold pictures or encoded bytes; copies and writes nothing."""
        if column not in dataset.features:
            raise UserError(f"split {split} has no column {column}, but {', '.join(dataset.features)}")
        only = dataset.select_columns([column]).with_format(None)
        if isinstance(only.features[column], datasets.Image):
            only = only.cast_column(column, datasets.Image(decode=False))
        return cls(only, split, column)

    def look(self, row: int) -> tuple[tuple[int, int], bool]:
        """Reads an image's header.

        Returns:
            Its upright width and height, and whether it has no colours.

        Raises:
            BadImageError: It is missing, no image, or too large.
        """
        value = self.dataset[row][self.column]
        try:
            image = open_image(value)
            return _upright_size(image), _is_gray(image)
        except Exception as error:  # Pillow's plugins raise nearly everything on damaged files
            raise self._bad(row, value, error) from error

    def load(self, row: int, mode: Literal["L", "RGB"] | None) -> Image.Image:
        """Decodes an image.

        Args:
            row: Its row.
            mode: L or RGB; None gives L for gray images and RGB for others.

        Raises:
            BadImageError: It is missing, truncated, no image, or too large.
        """
        (image,) = self.load_many([row], mode)
        if isinstance(image, BadImageError):
            raise image
        return image

    def load_many(self, rows: list[int], mode: Literal["L", "RGB"] | None) -> Iterator[Image.Image | BadImageError]:
        """Decodes images as `load` does, but gives the errors of bad ones instead of raising them."""
        for row, value in zip(rows, self.dataset[rows][self.column], strict=True):
            try:
                image = open_image(value)
                yield _to_8_bits(image, mode or ("L" if _is_gray(image) else "RGB"))
            except Exception as error:
                yield self._bad(row, value, error)

    def encoded(self, row: int) -> bytes:
        """The bytes of an image's file, for a fingerprint; its path where the file cannot be read."""
        content, path = encoded_content(self.dataset[row][self.column])
        try:
            return content if content is not None else Path(path or "").read_bytes()
        except OSError:
            return str(path).encode()

    def _bad(self, row: int, value: Any, error: Exception) -> BadImageError:
        _, path = encoded_content(value)
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


def _is_gray(image: Image.Image) -> bool:
    """Whether an opened image has no colours."""
    return image.mode in GRAY_MODES


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def encoded_content(value: Any) -> tuple[bytes | None, str | None]:
    """An image's bytes, or where its file is."""
    return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)


def open_image(value: Any) -> Image.Image:
    """An encoded image, not decoded yet; whatever Pillow raises passes through."""
    content, path = encoded_content(value)
    if content is None and not path:
        raise ValueError("the row is empty")
    image = Image.open(io.BytesIO(content) if content is not None else str(path), formats=_formats())
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}, make it smaller first")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_ASPECT} to 1")
    return image


@cache
def _formats() -> list[str]:
    """The formats that this Pillow can read of those used for photographs; others may start programs (EPS)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


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
