"""A repository on the Hub, of a student or a Space: one commit, and the comparison with what was sent."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from frskd_timm.errors import UserError
from frskd_train.report.failures import SILENCE, AlteredError


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
                    self.repo_id, repo_type=self.kind, space_sdk=sdk, private=self.private, exist_ok=True
                )
            if self.revision:
                self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
            info = look()
        if self.private and not info.private:
            raise UserError(
                f"{self.repo_id} exists and is public, but --private was given: make it private in its settings on the"
                " Hub first, or leave --private out."
            )
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

    def compare(self, files: Mapping[str, bytes], commit: str, cache: str) -> None:
        """Download files to an empty cache; raise AlteredError if one differs."""
        for name, content in files.items():
            if self.download(name, commit, cache).read_bytes() != content:
                raise AlteredError(name)


def connect(token: str | None, endpoint: str | None) -> HfApi:
    """Return a client; raise UserError if there is no token."""
    token = token or get_token()
    if not token:
        raise UserError("There is no Hugging Face token: run `hf auth login`, or set HF_TOKEN, with write permission.")
    return HfApi(endpoint=endpoint, token=token, library_name="frskd-timm")


def check_repo_id(flag: str, repo_id: str) -> None:
    """Raise UserError if the name of a repository is not of the form OWNER/NAME."""
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(f"{flag} must be OWNER/NAME, of letters, digits, '-', '_' and '.', not {repo_id!r}.")


def list_files(files: Mapping[str, bytes], repo_id: str, say: Callable[[str], None]) -> None:
    """Report what a dry run would have uploaded."""
    for name, content in files.items():
        say(f"  {len(content):>12,}  {name}")
    say(f"Nothing was uploaded: this was a dry run for {repo_id}.")
