"""The description on the package's page: README.md, where relative links would lead nowhere."""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = ""  # of the form https://github.com/OWNER/NAME; without one, pictures and relative links are left out


def absolute(link: re.Match[str]) -> str:
    """Point a relative link into the repository."""
    if not REPOSITORY:
        return "" if link["picture"] else link["text"]
    kind = "raw" if link["picture"] else "blob"
    return f"{link['picture']}[{link['text']}]({REPOSITORY}/{kind}/main/{link['path']})"


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(
    long_description=re.sub(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!https:)(?P<path>[^)]*)\)", absolute, readme),
    long_description_content_type="text/markdown",
)
