"""The documentation site builds without a warning and loads nothing from other servers."""

import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_script

EXTERNAL = re.compile(r"<(?:script|img|iframe|source)[^>]+src=\"?(?:https?:)?//|<link[^>]+href=\"?(?:https?:)?//[^>]+>")


@pytest.mark.long
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """Pages outside the navigation, broken links and anchors, and names missing in the API reference are errors."""
    run_script(sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site", NO_MKDOCS_2_WARNING="1")
    pages = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "site").glob("*.html")}
    assert {"index.html", "api.html", *(f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md"))} <= pages.keys()
    for name, html in pages.items():
        assert not EXTERNAL.search(html), f"{name}: {EXTERNAL.search(html)}"
        for picture in re.findall(r"<img[^>]+src=\"([^\"]+)\"", html):
            assert (tmp_path / "site" / picture).is_file(), f"{name}: {picture}"
    assert 'id="frskd_timm.task.FRSKDTask.create"' in pages["api.html"]
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"@import|url\(\"?https?:", sheet.read_text(encoding="utf-8")), sheet
