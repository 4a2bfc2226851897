"""Hook of `mkdocs.yml`: README.md is the first page of the site, and files that pages link to are copied into it.

Pages keep links that also work in the repository, such as `../benchmarks/results/budgets.csv`.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()[^)#:\s]+")
FOLDER_LINK = re.compile(r"\[([^\]]*)\]\((hub/[^)#:\s]+)\)")  # folders are not part of the site


def uri(path: str) -> str:
    """Return the place in the site of a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def linked(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield each relative link of a page to a file, with the path of that file in the repository."""
    for link in set(LINK.findall(text)):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if (ROOT / target).is_file():
            yield link, target


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add README.md, MODEL_CARD.md and the files outside `docs/` that the pages link to."""
    pages = {"README.md", "MODEL_CARD.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())}
    targets = {target for page in pages for _, target in linked(page, (ROOT / page).read_text(encoding="utf-8"))}
    for path in sorted(pages | targets):
        if not path.startswith("docs/"):
            files.append(File.generated(config, uri(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""
    path = Path(str(page.file.abs_src_path)).relative_to(ROOT).as_posix()
    here = posixpath.dirname(page.file.src_uri) or "."
    places = {link: posixpath.relpath(uri(target), here) for link, target in linked(path, markdown)}
    markdown = FOLDER_LINK.sub(lambda found: found[1] if (ROOT / found[2]).is_dir() else found[0], markdown)
    return LINK.sub(lambda found: places.get(found[0], found[0]), markdown)
