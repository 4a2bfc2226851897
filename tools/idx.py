"""Reader for the IDX format of MNIST and similar datasets."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from frskd_timm.errors import UserError

UINT8 = 8  # IDX code of the element type, the only one in these datasets


def read_idx(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file with elements of type uint8.

    Raises:
        UserError: The file does not exist or is not a complete IDX file of bytes.
    """
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"The file {path} does not exist; --idx-dir names the folder of the IDX files.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"The file {path} could not be decompressed ({error}).") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UINT8:
        raise UserError(f"The file {path} is not an IDX file of bytes.")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise UserError(f"The file {path} ends within its header.")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise UserError(f"The file {path} contains {len(content) - header} bytes instead of {math.prod(shape)}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
