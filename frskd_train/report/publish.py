"""Publish an exported student in one commit: check it first, then download and compare it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CARD, CONFIG, RECIPE, WEIGHTS
from frskd_timm.export.load import ExportedStudent, compare_logits, load_student, read_student
from frskd_train.report.card import EVAL_RESULTS, PLACEHOLDER
from frskd_train.report.failures import SILENCE, AlteredError, with_retries
from frskd_train.report.formats import export_onnx
from frskd_train.students import find_exported

INTERRUPTED = (
    "Publishing was interrupted: the repository holds its old commit or the new one, complete; run the same command "
    "again to finish."
)
# Files of an older push, deleted if the new push lacks them. Other files belong to the owner.
ONNX = "onnx/model.onnx"  # where transformers.js and optimum look for it
_PICTURES = ("attention.png", "confusion.png", "curves.png", "examples.png", "segmentation.png")
_OPTIONAL = (*_PICTURES, RECIPE, EVAL_RESULTS, ONNX)
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
_SIGNATURE = re.compile(rb"\n<!-- Written by frskd_timm; SHA-256 [^\n]*-->\s*\Z")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


@dataclass(frozen=True)
class Published:
    """A published student.

    Attributes:
        commit: The commit that contains it.
        url: URL of the commit.
        changed: Whether this push made the commit.
        pull_request: URL of the pull request, if one was requested and made.
    """

    commit: str
    url: str
    changed: bool
    pull_request: str | None = None


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
    endpoint: str | None = None,
    say: Callable[[str], None] = print,
) -> Published | None:
    """Upload a student in one commit and verify that the Hub returns the same student.

    No commit is made if nothing has changed since the last push. Temporary failures are retried.

    Args:
        folder: An exported student with its card.
        repo_id: `OWNER/NAME`; created if it does not exist.
        private: Whether only the owner can see the repository.
        revision: Branch to commit to, created from main if it does not exist.
        create_pr: Open a pull request instead of committing.
        keep_card: Leave the repository's card as it is, if it has one.
        overwrite_card: Replace its card even if that was edited on the Hub.
        dry_run: Check the folder and list what would be uploaded, without contacting the Hub.
        token: Access token with write permission; by default that of `hf auth login` or `HF_TOKEN`.
        commit_message: First line of the commit.
        onnx: Also upload the student as `onnx/model.onnx`; for segmentation, for images of the size in validation.
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
    _check_revision(revision, create_pr)
    files = {name: (folder / name).read_bytes() for name in check_folder(folder)}
    for name in {CARD, EVAL_RESULTS} & files.keys():
        files[name] = files[name].replace(PLACEHOLDER.encode(), repo_id.encode())
    files[CARD] = signed(files[CARD])
    if onnx:
        with TemporaryDirectory() as aside:
            path = export_onnx(folder, Path(aside) / "model.onnx", size=find_exported(str(folder)).image_size(None))
            files[ONNX] = path.read_bytes()
    size = sum(map(len, files.values()))
    say(f"{folder} is complete: {student.architecture}, {len(files)} files, {size / 1e6:.1f} MB.")
    if not ModelCard(files[CARD].decode()).data.get("license"):
        say(f"The card states no licence: add `license:` at the top of {folder / CARD}, or train with --license.")
    if dry_run:
        for name, content in files.items():
            say(f"  {len(content):>12,}  {name}")
        say(f"Nothing was uploaded: this was a dry run for {repo_id}.")
        return None
    token = token or get_token()
    if not token:
        raise UserError("There is no Hugging Face token: run `hf auth login`, or set HF_TOKEN, with write permission.")
    api = HfApi(endpoint=endpoint, token=token, library_name="frskd-timm")
    hub = _Hub(api, repo_id, keep_card, overwrite_card or create_pr)  # a pull request asks the owner anyway
    message = commit_message or f"Upload {student.architecture} trained with frskd-timm"
    published = with_retries(
        lambda: hub.commit(files, message, private, revision, create_pr), repo_id, api, once=create_pr
    )
    if published.changed:
        say(f"Committed {published.commit[:10]}: {published.pull_request or published.url}")
    else:
        say(f"Nothing has changed since {published.commit[:10]}: no commit was made.")
    difference = with_retries(lambda: hub.compare(files, student, published), repo_id, api)
    say(f"Downloaded that commit again: every file is the same, and the logits differ by {difference:.1g}.")
    at = revision or (published.commit if create_pr else None)  # a pull request is not on main
    name = f"{repo_id}@{at}" if at else repo_id
    say(f"Load it: {student.load_line(name)}")
    return published


@dataclass
class _Hub:
    """One repository on the Hub."""

    api: HfApi
    repo_id: str
    keep_card: bool
    overwrite_card: bool
    before: str | None = None  # the commit found first; a retry may find its own

    def commit(
        self, files: dict[str, bytes], message: str, private: bool, revision: str | None, create_pr: bool
    ) -> Published:
        """Make the commit unless the repository already holds exactly these files."""
        head, remote = self._head(private, revision, create_pr)
        self.before = self.before or head
        stale = [name for name in _OPTIONAL if name in remote and name not in files]
        if CARD in remote and self.keep_card:
            files.pop(CARD, None)
            stale = [name for name in stale if not name.endswith(".png")]  # the card may show them
        elif CARD in remote and not self.overwrite_card:
            self._refuse_edited(head, files[CARD])
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        made = self.api.create_commit(
            self.repo_id,
            [*operations, *map(CommitOperationDelete, stale)],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,  # fails if someone else has committed in between
        )
        changed = made.oid != self.before
        url = f"{self.api.endpoint}/{self.repo_id}/commit/{made.oid}"
        return Published(made.oid, url, changed, made.pr_url if changed else None)

    def compare(self, files: Mapping[str, bytes], student: ExportedStudent, published: Published) -> float:
        """Download the commit to an empty cache and compare files and logits."""
        with TemporaryDirectory() as cache:
            for name, content in files.items():
                path = self.api.hf_hub_download(self.repo_id, name, revision=published.commit, cache_dir=cache)
                if Path(path).read_bytes() != content:
                    raise AlteredError(name)
                if name == CONFIG:
                    folder = Path(path).parent
            return compare_logits(student.load(), load_student(folder), student.probe())

    def _refuse_edited(self, head: str, card: bytes) -> None:
        """Raise UserError if the card in the repository is neither `card` nor one that this function published."""
        with TemporaryDirectory() as cache:
            found = Path(self.api.hf_hub_download(self.repo_id, CARD, revision=head, cache_dir=cache)).read_bytes()
        if found not in (card, signed(found)):
            raise UserError(
                f"{CARD} of {self.repo_id} was edited on the Hub, or not written by this command: add --keep-card to "
                "keep it, or --overwrite-card to replace it."
            )

    def _head(self, private: bool, revision: str | None, create_pr: bool) -> tuple[str, set[str]]:
        """Return the parent commit and its files; create the repository and the branch if they are missing."""
        try:
            info = self.api.model_info(self.repo_id, revision=revision, timeout=SILENCE)
        except RevisionNotFoundError:
            self.api.create_branch(self.repo_id, branch=revision or "main", exist_ok=True)
            info = self.api.model_info(self.repo_id, revision=revision, timeout=SILENCE)
        except RepositoryNotFoundError:
            if create_pr:
                raise
            self.api.create_repo(self.repo_id, private=private, exist_ok=True)
            if revision:
                self.api.create_branch(self.repo_id, branch=revision, exist_ok=True)
            info = self.api.model_info(self.repo_id, revision=revision, timeout=SILENCE)
        if private and not info.private:
            raise UserError(
                f"{self.repo_id} exists and is public, but --private was given: make it private in its settings on the"
                " Hub first, or leave --private out."
            )
        return str(info.sha), {sibling.rfilename for sibling in info.siblings or ()}


def signed(card: bytes) -> bytes:
    """Return a card with its hash in a comment at the end, from which a later push knows whether it was edited."""
    text = _SIGNATURE.sub(b"", card).rstrip() + b"\n"
    return (
        text + b"\n<!-- Written by frskd_timm; SHA-256 of the text above: %s -->\n" % sha256(text).hexdigest().encode()
    )


def check_repo_id(flag: str, repo_id: str) -> None:
    """Raise UserError if the name of a repository is not of the form OWNER/NAME."""
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(f"{flag} must be OWNER/NAME, of letters, digits, '-', '_' and '.', not {repo_id!r}.")


def _check_revision(revision: str | None, create_pr: bool) -> None:
    if revision and (re.fullmatch(r"[0-9a-f]{40}", revision) or revision.startswith("refs/")):
        raise UserError(f"--revision must be a branch name, not {revision!r}: commits and refs cannot be committed to.")
    if revision and create_pr:
        raise UserError("--revision and --create-pr cannot be given together: a pull request is made from main.")


def check_folder(folder: Path) -> list[str]:
    """Check that a folder is a loadable student with a valid card, and return the names of the files to publish.

    These are weights, config, card, the pictures in the card, and recipe and evaluation results if they exist.

    Raises:
        UserError: A check failed; the message names the first problem.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the student/ folder of a finished run.")
    student = read_student(folder)
    student.check()
    names = [WEIGHTS, CONFIG, CARD, *_card_pictures(folder, student.libraries[0])]
    names += [name for name in (RECIPE, EVAL_RESULTS) if (folder / name).is_file()]
    for name in names:
        if Path(name).suffix in (".json", ".md", ".yaml"):
            _check_text(folder / name)
    return names


def _card_pictures(folder: Path, library: str) -> list[str]:
    """Check the card, and return the pictures that it shows."""
    path = folder / CARD
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: write the card first (frskd_train.report.card.write_card).") from None
    except (UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a valid card ({' '.join(str(error).split())}): write it again.") from None
    if card.data.get("library_name") != library:
        raise UserError(
            f"{path} must contain 'library_name: {library}' between its '---' lines, or the Hub cannot load it."
        )
    pictures = []
    for name in dict.fromkeys(_PICTURE.findall(card.text)):
        if "://" in name:
            continue
        if not (folder / name).resolve().is_relative_to(folder.resolve()) or not (folder / name).is_file():
            raise UserError(f"{path} shows {name}, which is not in the folder: add the picture or remove the line.")
        pictures.append(name)
    return pictures


def _check_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if _TOKEN.search(text):
        raise UserError(f"{path} contains what looks like a Hugging Face token: remove it before publishing.")
    if path.suffix == ".yaml":
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct it first.") from None
