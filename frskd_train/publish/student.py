"""Publish an exported student in one commit: check it first, then download and compare it."""

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from tempfile import TemporaryDirectory
from urllib.parse import unquote

import yaml
from huggingface_hub import ModelCard

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CARD, CONFIG, DATASET_CARD, EVAL_RESULTS, METRICS, PICKLE, RECIPE, WEIGHTS
from frskd_timm.export.load import read_student
from frskd_train.found_student import find_exported
from frskd_train.publish.repository import Repository, check_repo_id, check_target, connect, list_files
from frskd_train.publish.retries import with_retries
from frskd_train.report.card import PLACEHOLDER, read_card
from frskd_train.report.formats import export_onnx
from frskd_train.report.signature import signed

ONNX = "onnx/model.onnx"  # where transformers.js and optimum look for it
_OF_IMAGES = "attention.png", "examples.png", "segmentation.png"  # pictures that show validation images
_LICENSE_FILES = "LICENSE", "LICENSE.md", "LICENSE.txt"
# Files of an older push, deleted if the new push lacks them. Other files belong to the owner.
_OPTIONAL = *_OF_IMAGES, "confusion.png", "curves.png", RECIPE, DATASET_CARD, EVAL_RESULTS
# Pictures in Markdown and in HTML: names in brackets, with balanced parentheses, or in quotes.
_SHOWN = re.compile(
    r"""!\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*(?:<([^<>\n]+)>|((?:[^()<>\s]|\([^()\s]*\))+))"""
    r"""|<img\b[^>]*?\bsrc\s*=\s*(?:"([^"]+)"|'([^']+)'|([^"'\s>]+))""",
    re.IGNORECASE,
)
_CODE = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1|\Z)|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)  # URLs, also of embedded data
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}")


@dataclass(frozen=True)
class Published:
    """A published student."""

    commit: str
    changed: bool  # whether this push made the commit
    pull_request: str | None = None  # its URL, if one was requested and made


def push_student(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    keep_card: bool = False,
    overwrite_card: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    onnx: bool = False,
    img_size: Sequence[int] | None = None,
    endpoint: str | None = None,
    say: Callable[[str], None] = print,
) -> Published | None:
    """Upload a student in one commit and verify that the Hub returns the same student.

    No commit is made if nothing has changed since the last push. Temporary failures are retried.

    Args:
        folder: An exported student with its card.
        repo_id: `OWNER/NAME`; created if it does not exist.
        private: Create the repository as private, and refuse an existing public one; otherwise, the owner's default
            applies.
        revision: Branch to commit to, created from main if it does not exist.
        create_pr: Open a pull request instead of committing.
        keep_card: Leave the repository's card as it is, if it has one.
        overwrite_card: Replace its card even if that was edited on the Hub.
        dry_run: Check the folder and list what would be uploaded, without contacting the Hub.
        token: Access token with write permission; by default that of `hf auth login` or `HF_TOKEN`.
        commit_message: First line of the commit.
        onnx: Also upload the student as `onnx/model.onnx`.
        img_size: Height and width of the images of a segmentation student in ONNX, by default those of the crops.
        endpoint: URL of the Hub; by default `HF_ENDPOINT`.
        say: Called with each line of the report.

    Returns:
        The published commit; None after a dry run.

    Raises:
        UserError: Publishing failed, or the card was edited on the Hub and neither `keep_card` nor `overwrite_card` was
            given; the repository then holds either its old commit or the complete new one.
    """
    folder = Path(folder)
    student = read_student(folder)
    check_repo_id("--repo-id", repo_id)
    check_target(revision, create_pr)
    files = {name: (folder / name).read_bytes() for name in check_folder(folder)}
    for name in {CARD, EVAL_RESULTS} & files.keys():
        files[name] = files[name].replace(PLACEHOLDER.encode(), repo_id.encode())
    files[CARD] = signed(files[CARD].removeprefix(codecs.BOM_UTF8))  # with which the Hub would find no metadata
    if onnx:
        with TemporaryDirectory() as aside:
            path = export_onnx(folder, Path(aside) / "model.onnx", size=find_exported(str(folder)).image_size(img_size))
            files[ONNX] = path.read_bytes()
    size = sum(map(len, files.values()))
    say(f"{folder} is complete: {student.architecture}, {len(files)} files, {size / 1e6:.1f} MB.")
    if not ModelCard(files[CARD].decode()).data.get("license"):
        say(f"The card states no licence: add `license:` at the top of {folder / CARD}, or train with --license.")
    if shown := sorted({*_OF_IMAGES} & files.keys()):
        say(f"Validation images are shown in {', '.join(shown)}.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in {name.split("/")[0] for name in files})
    if others := [name for name in others if not name.startswith(".") and name != METRICS]:
        say(f"Not uploaded, because they are neither part of a student nor shown on its card: {', '.join(others)}.")
    if dry_run:
        list_files(files, repo_id, say)
        return None
    hub = Repository(connect(token, endpoint), repo_id, "model", private, revision, create_pr)
    message = commit_message or f"Upload {student.architecture} trained with frskd-timm"
    before: list[str] = []
    deleted: list[str] = []

    def commit() -> Published:
        head, remote = hub.head()
        before.append(head)  # a retry may find its own commit
        stale = [name for name in (*_OPTIONAL, ONNX) if name in remote and name not in files]
        if CARD in remote and keep_card:
            files.pop(CARD, None)
            stale = [name for name in stale if not name.endswith(".png")]  # the card may show them
        elif CARD in remote and not overwrite_card and not create_pr:  # a pull request asks the owner anyway
            hub.refuse_edited_card(head, files[CARD])
        made = hub.commit(head, files, stale, message)
        deleted[:] = stale
        changed = made.oid != before[0]
        return Published(made.oid, changed, made.pr_url if changed else None)

    def compare() -> float:
        with TemporaryDirectory() as cache:
            hub.compare(files, published.commit, cache)
            return read_student(hub.download(CONFIG, published.commit, cache).parent).verify(student.load())

    published = with_retries(commit, hub, once=create_pr)
    if published.changed:
        url = f"{hub.api.endpoint}/{repo_id}/commit/{published.commit}"
        say(f"Committed {published.commit[:10]}: {published.pull_request or url}")
        if deleted:
            say(f"Deleted there, because this push has no newer version: {', '.join(deleted)}.")
    else:
        say(f"Nothing has changed since {published.commit[:10]}: no commit was made.")
    difference = with_retries(compare, hub)
    say(f"Downloaded that commit again: every file is the same, and the logits differ by {difference:.1g}.")
    at = revision or (published.commit if create_pr else None)  # a pull request is not on main
    say(f"Load it: {student.load_line(f'{repo_id}@{at}' if at else repo_id)}")
    return published


def check_folder(folder: Path) -> list[str]:
    """Check that a folder is a loadable student with a valid card, and return the names of the files to publish.

    These are weights, config, card, the pictures in the card, and if they exist the recipe, the card of the dataset,
    the evaluation results and the licence.

    Raises:
        UserError: A check failed; the message names the first problem.
    """
    student = read_student(folder)
    student.check()
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has its weights as {PICKLE}, which can run code: save them as {WEIGHTS}.")
    names = [WEIGHTS, CONFIG, CARD, *_card_pictures(folder, student.libraries[0])]
    names += [name for name in (RECIPE, DATASET_CARD, EVAL_RESULTS, *_LICENSE_FILES) if (folder / name).is_file()]
    for path in (folder / name for name in names):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is a link to another folder: replace it by a copy of what you want to publish.")
        if path.name != WEIGHTS and _TOKEN.search(path.read_bytes()):
            raise UserError(f"{path} contains what looks like a Hugging Face token: remove it before publishing.")
        if path.suffix not in (".json", ".md", ".yaml"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            yaml.safe_load(text if path.suffix == ".yaml" else "")
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text: correct it first.") from None
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct it first.") from None
    return names


def _card_pictures(folder: Path, library: str) -> list[str]:
    """Check the card, and return the pictures that it shows."""
    path = folder / CARD
    card = read_card(folder)
    if card is None:
        hint = "only training writes a card; publish other students with `hf upload`"
        raise UserError(f"{path} does not exist: {hint}.")
    if card.data.get("library_name") != library:
        raise UserError(f"{path} needs 'library_name: {library}' between its '---' lines, or the Hub cannot load it.")
    shown = ("".join(groups) for groups in _SHOWN.findall(_CODE.sub("", card.text)))
    pictures = [*dict.fromkeys(normpath(unquote(name)) for name in shown if not _ELSEWHERE.match(name))]
    for name in pictures:
        if not (folder / name).resolve().is_relative_to(folder.resolve()) or not (folder / name).is_file():
            raise UserError(f"{path} shows {name}, which is not in the folder: add the picture or remove the line.")
    return pictures
