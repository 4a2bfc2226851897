"""One encoded image to pixels: 8 bits, gray or RGB, upright."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

GRAY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"))
MAX_PIXELS = 89_478_485  # Pillow's own bound, above which it warns of decompression bombs
MAX_ASPECT = 100  # a thinner image, with its short side resized to the network's input, could fill the memory
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings: sizes are checked here, damaged EXIF data is harmless. Not for use in threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def open_image(content: bytes | None, path: str | None) -> Image.Image:
    """Open an encoded image without decoding it; whatever Pillow raises passes through."""
    if content is None and not path:
        raise ValueError("the row is empty")
    if content is None and os.path.exists(str(path)) and not os.path.isfile(str(path)):
        raise ValueError("it is not a regular file")  # reading from a pipe would block for ever
    image = Image.open(io.BytesIO(content) if content is not None else str(path), formats=_formats())
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}, make it smaller first")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"its aspect ratio, {image.width}x{image.height} pixels, is above {MAX_ASPECT} to 1")
    return image


@cache
def _formats() -> list[str]:
    """Return the formats that this Pillow can read of those used for photographs; others may start programs (EPS)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def is_gray(image: Image.Image) -> bool:
    """Return whether an opened image has no colours."""
    return image.mode in GRAY_MODES


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the height and width of an opened image as its EXIF orientation says."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def to_8_bits(image: Image.Image, mode: Literal["L", "RGB"] | None = None) -> Image.Image:
    """Decode an image, turn it upright and convert it. Transparency is dropped, as timm does.

    Args:
        image: An opened image.
        mode: L or RGB; None gives L for gray images and RGB for others.
    """
    mode = mode or ("L" if is_gray(image) else "RGB")
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
