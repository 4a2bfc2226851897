"""Close matches for mistyped names. Needs no torch, unlike everything in `frskd_timm`."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of a sentence about an unknown name: `; did you mean A or B?`, else `; OTHERWISE.` or `.`."""
    close = difflib.get_close_matches(name, list(known), n=3)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; {otherwise}." if otherwise else "."
