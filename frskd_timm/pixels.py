"""Pixels of image files in 8 bits, as training and validation see them."""

import struct
from contextlib import suppress
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

DAMAGED_EXIF = (SyntaxError, ValueError, struct.error)  # what Pillow raises for some files; their pixels are intact
DEEP_MODES = frozenset(("I", "I;16", "I;16B", "I;16L", "I;16N"))  # Pillow's, of gray images of 16 bits
GRAY_MODES = frozenset(("1", "L", "LA", "La")) | DEEP_MODES


def to_8_bits(image: Image.Image, mode: Literal["L", "RGB"] | None = None) -> Image.Image:
    """Decode an opened image, rotate it upright and convert it to `mode`, by default L for gray images, else RGB.

    Transparency is dropped, as in timm.
    """
    mode = mode or ("L" if image.mode in GRAY_MODES else "RGB")
    image.load()
    with suppress(*DAMAGED_EXIF):
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of an unknown range")
    if image.mode in DEEP_MODES:
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)
