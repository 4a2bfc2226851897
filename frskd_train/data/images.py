"""Encoded images of a dataset: headers, 8-bit pixels and hashes; bad images are distinguished from bugs."""

import hashlib
import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote_to_bytes

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from frskd_timm.errors import UserError
from frskd_timm.pixels import DAMAGED_EXIF, DEEP_MODES, GRAY_MODES
from frskd_train.data.sampler import Rows, evenly_spaced
from frskd_train.errors import printable

T = TypeVar("T")
QUOTED = "file://"  # prefix of a path that is not valid UTF-8, percent-encoded: Arrow only stores UTF-8 strings
HASHED_WHOLE = 2**30  # size in encoded bytes up to which the fingerprint covers every byte
HASHED = 4096  # images of a larger split whose bytes are covered; for the others only the length
LENGTHS_AT_ONCE = 4096
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it warns about decompression bombs
MAX_ASPECT = 100  # a thinner image, with its short side resized to the network's input, could fill the memory
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
CHUNK = 1024  # items in flight, which bounds the memory of the results
BLOCK = 32  # items per task of a thread


class BadImageError(UserError):
    """An unusable image or mask; the message contains its row and file."""


class Header(NamedTuple):
    """Facts about an image before decoding; `size` is its upright height and width, (0, 0) if it is unreadable."""

    size: tuple[int, int] = (0, 0)
    is_gray: bool = True
    is_turned: bool = False  # or mirrored, as its EXIF orientation says
    is_deep: bool = False  # gray of 16 bits


class Images:
    """A column of images or encoded bytes of one split, indexed by row; `split` and `noun` are for messages."""

    def __init__(self, dataset: datasets.Dataset, split: str, column: str, noun: str = "image") -> None:
        only = dataset.select_columns([column]).with_format(None)
        if isinstance(only.features[column], datasets.Image):
            only = only.cast_column(column, datasets.Image(decode=False))
        self.dataset, self.split, self._column, self._noun = only, split, column, noun
        self._headers: dict[int, Header] = {}

    def headers(self, rows: Rows) -> list[Header]:
        """Read the headers of images, each only once."""

        def read(block: list[int]) -> list[Header]:
            return [found if isinstance(found, Header) else Header() for found in self.load_many(block, _read_header)]

        missing = [row for row in rows.tolist() if row not in self._headers]
        with quiet_pillow():
            self._headers.update(zip(missing, in_blocks(read, missing), strict=True))
        return [self._headers[row] for row in rows.tolist()]

    def load_many(self, rows: list[int], decode: Callable[[Image.Image], T]) -> Iterator[T | BadImageError]:
        """Open images and decode each with `decode`; yield errors of bad images instead of raising them."""
        for row, (content, path) in zip(rows, self._contents(rows), strict=True):
            try:
                yield decode(open_image(content, path))
            except Exception as error:  # Pillow's plugins raise nearly any exception for damaged files
                unknown = isinstance(error, UnidentifiedImageError)
                reason = "it is not an image in a format that Pillow knows" if unknown else printable(str(error))
                yield BadImageError(f"{self.describe(row)} cannot be read: {reason}")

    def _contents(self, rows: list[int]) -> list[tuple[bytes | None, str | None]]:
        """Return the bytes of each image, or the path of its file."""
        return [
            (value.get("bytes"), local_path(value.get("path"))) if isinstance(value, dict) else (value, None)
            for value in self.dataset[rows][self._column]
        ]

    def describe(self, row: int) -> str:
        """Return the row and file of an image, for a message."""
        ((_, path),) = self._contents([row])
        where = f" ({printable(path)})" if path else ""
        return f"{self._noun.capitalize()} {row} of split {self.split}{where}"

    def digest(self, rows: Rows) -> bytes:
        """Hash the encoded images, wherever they are stored; of large splits, all lengths and some images."""
        lengths = self._lengths(rows)
        digest = hashlib.sha256(lengths.astype("<i8").tobytes())
        chosen = rows if lengths.sum() <= HASHED_WHOLE else rows[evenly_spaced(len(rows), HASHED)]

        def hashes(block: list[int]) -> list[bytes]:
            return [_digest(content, path) for content, path in self._contents(block)]

        for part in in_blocks(hashes, chosen.tolist()):
            digest.update(part)
        return digest.digest()

    def _lengths(self, rows: Rows) -> Rows:
        """Return the length of each image without reading it; -1 if its file is missing."""
        dataset, found = self.dataset.with_format("arrow"), [np.zeros(0, np.int64)]
        for first in range(0, len(rows), LENGTHS_AT_ONCE):
            part = rows[first : first + LENGTHS_AT_ONCE].tolist()
            consecutive = part[-1] - part[0] + 1 == len(part)  # rows ascend, and a slice is faster
            table = dataset[part[0] : part[-1] + 1] if consecutive else dataset[part]
            column = table.column(self._column)
            is_struct = pa.types.is_struct(column.type)
            stored = pc.struct_field(column, "bytes") if is_struct else column
            lengths = pc.fill_null(pc.binary_length(stored).cast(pa.int64()), -1).to_numpy().copy()
            if is_struct and (lengths < 0).any():
                paths, missing = pc.struct_field(column, "path").to_pylist(), np.flatnonzero(lengths < 0)
                lengths[missing] = [*in_blocks(partial(_file_sizes, paths), missing.tolist())]
            found.append(lengths)
        return np.concatenate(found)


def stored_path(path: str) -> str:
    """Convert a path to a form that Arrow can store."""
    return QUOTED + quote(os.fsencode(path)) if re.search(r"[\ud800-\udfff]", path) else path


def local_path(stored: str | None) -> str | None:
    """Invert `stored_path`."""
    return os.fsdecode(unquote_to_bytes(stored[len(QUOTED) :])) if stored and stored.startswith(QUOTED) else stored


def _file_sizes(paths: Sequence[str | None], places: list[int]) -> list[int]:
    """Return the sizes of the files at some places; -1 for what is missing, or no file, such as a pipe."""
    sizes = []
    for path in (local_path(paths[place]) for place in places):
        size = -1
        with suppress(OSError, ValueError):
            found = os.stat(path or "")
            size = found.st_size if stat.S_ISREG(found.st_mode) else -1
        sizes.append(size)
    return sizes


def _digest(content: bytes | None, path: str | None) -> bytes:
    if content is None:
        if not path or not os.path.isfile(path):  # missing, or a pipe, which would never end
            return b"missing"
        content = Path(path).read_bytes()
    return hashlib.sha256(content).digest()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings: sizes are checked here, and damaged EXIF data is harmless. Not thread-safe."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def open_image(content: bytes | None, path: str | None) -> Image.Image:
    """Open an encoded image without decoding it; exceptions of Pillow are not caught."""
    if content is None and not path:
        raise ValueError("the row is empty")
    if path and content is None and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is not a regular file")  # reading from a pipe would block forever
    image = Image.open(io.BytesIO(content) if content is not None else str(path), formats=_formats())
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it has {image.width}x{image.height} pixels; downscale it to at most {MAX_PIXELS:,} first")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"its aspect ratio, {image.width}x{image.height} pixels, is above {MAX_ASPECT} to 1")
    return image


@cache
def _formats() -> list[str]:
    """Return the photographic formats that this Pillow can read; other formats may start programs (EPS)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _read_header(image: Image.Image) -> Header:
    """Describe an opened image, taking its EXIF orientation into account."""
    orientation = 1
    with suppress(*DAMAGED_EXIF):
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    lying = orientation in (5, 6, 7, 8) and image.format != "TIFF"  # whose size Pillow gives as upright
    size = image.size if lying else image.size[::-1]
    return Header(size, image.mode in GRAY_MODES, orientation in range(2, 9), image.mode in DEEP_MODES)


def in_blocks(work: Callable[[list[int]], Sequence[T]], items: list[int], title: str | None = None) -> Iterator[T]:
    """Run `work` on blocks of items in threads; yield one result per item in order.

    With a title, the first process shows a progress bar on a terminal if it takes more than three seconds. Threads
    help because Pillow and hashing release the GIL.
    """
    is_hidden = title is None or os.environ.get("RANK", "0") != "0"
    bar = tqdm(total=len(items), desc=title, unit=" images", delay=3, disable=is_hidden or None)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(items), CHUNK):
            chunk = items[first : first + CHUNK]
            for results in pool.map(work, [chunk[start : start + BLOCK] for start in range(0, len(chunk), BLOCK)]):
                yield from results
            bar.update(len(chunk))
