"""The mark at the end of cards, from which a later push or export knows whether they were edited since."""

import re
from hashlib import sha256
from tempfile import TemporaryDirectory

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CARD
from frskd_train.report.repository import Repository

_SIGNATURE = re.compile(rb"\n<!-- Written by frskd_timm; SHA-256 [^\n]*-->\s*\Z")


def refuse_edited(hub: Repository, head: str, card: bytes) -> None:
    """Raise UserError if the card in the repository is neither `card` nor one with an intact mark."""
    with TemporaryDirectory() as cache:
        found = hub.download(CARD, head, cache).read_bytes()
    if found not in (card, signed(found)):
        raise UserError(
            f"{CARD} of {hub.repo_id} was edited on the Hub, or not written by this command: add --keep-card to "
            "keep it, or --overwrite-card to replace it."
        )


def signed(card: bytes) -> bytes:
    """Return a card with its hash in a comment at the end, from which a later push knows whether it was edited."""
    text = _SIGNATURE.sub(b"", card).rstrip() + b"\n"
    digest = sha256(text).hexdigest().encode()
    return text + b"\n<!-- Written by frskd_timm; SHA-256 of the text above: %s -->\n" % digest
