"""The mark at the end of cards, from which a later push or export knows whether they were edited since."""

import re
from hashlib import sha256

_SIGNATURE = re.compile(rb"\n<!-- Written by frskd_timm; SHA-256 [^\n]*-->\s*\Z")


def signed(card: bytes) -> bytes:
    """Return a card with its hash in a comment at the end, from which a later push knows whether it was edited."""
    text = _SIGNATURE.sub(b"", card).rstrip() + b"\n"
    digest = sha256(text).hexdigest().encode()
    return text + b"\n<!-- Written by frskd_timm; SHA-256 of the text above: %s -->\n" % digest
