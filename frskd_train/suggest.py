"""Close matches for mistyped names; not in `frskd_timm.lookup`, so that the parser does not import torch."""

import difflib
from collections.abc import Iterable
from pathlib import Path


def suggest(name: str, known: Iterable[str], otherwise: str = "", within: Path = Path()) -> str:
    """Return the end of a sentence about an unknown name: `; did you mean A or B?`, else `; OTHERWISE.` or `.`.

    `within` is the folder of the names if they are files.
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    if close:
        return f"; did you mean {' or '.join(str(within / match) for match in close)}?"
    return f"; {otherwise}." if otherwise else "."
