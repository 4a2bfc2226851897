"""The documentation site, the notebook and the source distribution."""

import re
import sys
import tarfile
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, run_script
from nbclient import NotebookClient

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


@pytest.mark.long
def test_the_notebook_runs_offline(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "first_student.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is stored without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    scores = re.findall(r"(\w+) student: top-1 ([\d.]+)%", "".join(output.get("text", "") for output in outputs))
    assert [name for name, _ in scores] == ["Pretrained", "My"]
    assert float(scores[0][1]) > 90  # of 1,000 test images
    assert float(scores[1][1]) > 30  # after one epoch; guessing gives 10
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


@pytest.mark.long
def test_the_source_distribution_passes_its_own_tests(tmp_path: Path) -> None:
    """It holds all files but the weights for the Hub; the page on the package index has no link that leads nowhere."""
    build = "from setuptools import build_meta as b; import sys; b.build_sdist(sys.argv[1])"
    run_script(sys.executable, "-c", build, tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("frskd_timm-*/")
    if (ROOT / ".git").exists():
        tracked = run_script("git", "ls-files", cwd=ROOT).stdout.split("\n")[:-1]
        missing = [path for path in tracked if "/" in path and not (source / path).is_file()]
        assert missing == [path for path in tracked if re.fullmatch(r"hub/students/.*\.safetensors", path)]
    description = (source / "PKG-INFO").read_text(encoding="utf-8")
    assert len(re.findall(r"\]\(https:", description)) > 1
    assert not re.search(r"\]\((?!https:)", description)
    quick = "links or commands or navigation or tables or guarantee or imports or short"
    run_script(sys.executable, "-m", "pytest", "-q", "-n", 0, "tests/test_docs.py", "tests/test_layers.py", "-k", quick,
               cwd=source)  # fmt: skip
