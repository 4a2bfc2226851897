"""The IDX format, in which MNIST and its relatives are published."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from frskd_timm.errors import UserError

UINT8 = 8  # IDX's code of the element type, the only one that these datasets use


def read_idx(path: str | Path) -> npt.NDArray[np.uint8]:
    """Reads one gzipped IDX file of bytes.

    Raises:
        UserError: There is no such file, or it is not a whole IDX file of bytes.
    """
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; --idx-dir takes the folder of the four IDX .gz files") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UINT8:
        raise UserError(f"{path} is not an IDX file of bytes")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise UserError(f"{path} ends inside its header")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise UserError(f"{path} holds {len(content) - header} bytes, its header says {math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
