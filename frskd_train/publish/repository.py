"""A repository on the Hub: one commit, and its comparison with what was sent."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CARD
from frskd_train.report.signature import signed

SILENCE = 30.0  # seconds without an answer after which a request has failed


class AlteredError(Exception):
    """A downloaded file differs from the uploaded one."""


@dataclass
class Repository:
    """A repository on the Hub and how to commit to it; `kind` is `model` or `space`."""

    api: HfApi
    repo_id: str
    kind: str = "model"
    private: bool = False
    revision: str | None = None
    create_pr: bool = False

    def head(self) -> tuple[str, set[str]]:
        """Return the parent commit and its files; create the repository and the branch if they are missing."""
        find = self.api.space_info if self.kind == "space" else self.api.model_info
        look = partial(find, self.repo_id, revision=self.revision, timeout=SILENCE)
        try:
            info = look()
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if isinstance(error, RepositoryNotFoundError):
                if self.create_pr:
                    raise
                sdk = "static" if self.kind == "space" else None
                self.api.create_repo(
                    self.repo_id, repo_type=self.kind, space_sdk=sdk, private=self.private or None, exist_ok=True
                )
            if self.revision and self.revision.startswith("refs/"):
                raise
            if self.revision:
                self.api.create_branch(self.repo_id, branch=self.revision, repo_type=self.kind, exist_ok=True)
            info = look()
        if self.private and not info.private:
            raise UserError(f"{self.repo_id} is public: make it private in its settings, or leave --private out.")
        return str(info.sha), {sibling.rfilename for sibling in info.siblings or ()}

    def commit(self, parent: str, files: Mapping[str, bytes], stale: Iterable[str], message: str) -> CommitInfo:
        """Add files and delete stale ones; the Hub makes no commit if nothing changes."""
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        return self.api.create_commit(
            self.repo_id,
            [*added, *map(CommitOperationDelete, stale)],
            commit_message=message,
            repo_type=self.kind,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=parent,  # fails if someone else has committed in between
        )

    def download(self, name: str, commit: str, cache: str) -> Path:
        """Download one file."""
        return Path(self.api.hf_hub_download(self.repo_id, name, repo_type=self.kind, revision=commit, cache_dir=cache))

    def refuse_edited_card(self, head: str, card: bytes) -> None:
        """Raise UserError if the card in the repository is neither `card` nor one with an intact mark."""
        with TemporaryDirectory() as cache:
            found = self.download(CARD, head, cache).read_bytes()
        if found not in (card, signed(found)):
            raise UserError(
                f"{CARD} of {self.repo_id} was edited on the Hub, or not written by this command: add --keep-card to "
                "keep it, or --overwrite-card to replace it."
            )

    def compare(self, files: Mapping[str, bytes], commit: str, cache: str) -> None:
        """Download files to an empty cache; raise AlteredError if one differs."""
        for name, content in files.items():
            if self.download(name, commit, cache).read_bytes() != content:
                raise AlteredError(name)


def refuse_missing_access(token: str | None = None) -> None:
    """Raise UserError if connections to the Hub are switched off, or neither a token is given nor the user has one."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be published: unset it and run the same command again.")
    if not (token or huggingface_hub.get_token()):
        raise UserError("There is no Hugging Face token: run `hf auth login`, or set HF_TOKEN, with write permission.")


def connect(token: str | None, endpoint: str | None) -> HfApi:
    """Return a client, with the user's own token by default; raise UserError if there can be none."""
    refuse_missing_access(token)
    return HfApi(endpoint=endpoint, token=token, library_name="frskd-timm")


def check_repo_id(flag: str, repo_id: str) -> None:
    """Raise UserError if the name of a repository is not of the form OWNER/NAME."""
    with suppress(HFValidationError):
        validate_repo_id(repo_id)
        if repo_id.count("/") == 1:
            return
    raise UserError(f"{flag} must be OWNER/NAME, of letters, digits, '-', '_' and '.', not {repo_id!r}.")


def check_target(revision: str | None, create_pr: bool) -> None:
    """Raise UserError if a branch cannot be committed to, or is given for a pull request."""
    if revision and re.search(r"^([0-9a-f]{40}|refs/(?!pr/\d+$).*)$|[\s~^:?*[\\]|\.\.|(/|\.lock)$", revision):
        raise UserError(f"--revision must be a branch name, or refs/pr/N of a pull request, not {revision!r}.")
    if revision and create_pr:
        raise UserError("--revision and --create-pr cannot be given together: a pull request is made from main.")


def list_files(files: Mapping[str, bytes], repo_id: str, say: Callable[[str], None]) -> None:
    """Report what a dry run would have uploaded."""
    for name, content in files.items():
        say(f"  {len(content):>12,}  {name}")
    say(f"Nothing was uploaded: this was a dry run for {repo_id}.")
