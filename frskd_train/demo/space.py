"""Publish the demo of a student as a static Space."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from frskd_timm.errors import UserError
from frskd_train.demo.build import build_demo
from frskd_train.report.failures import SILENCE, AlteredError, with_retries
from frskd_train.report.publish import check_repo_id
from frskd_train.students import find_exported


def push_space(
    student: str | Path,
    space: str,
    *,
    repo_id: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    img_size: Sequence[int] | None = None,
    examples: Sequence[Path] = (),
    runtime: Path | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    say: Callable[[str], None] = print,
) -> str | None:
    """Build a demo, upload it in one commit and verify that the Hub returns the same files.

    Args:
        student: Folder of a run or of a student.
        space: `OWNER/NAME` of the Space; created if it does not exist.
        repo_id: Repository of the student on the Hub, which the Space then names.
        private: Whether only the owner can see the Space.
        dry_run: Build the demo and list its files, without contacting the Hub.
        img_size: Height and width of the images of a segmentation student.
        examples: Pictures to offer.
        runtime: A local copy of onnxruntime-web.
        token: Access token with write permission; by default that of `hf auth login` or `HF_TOKEN`.
        endpoint: URL of the Hub; by default `HF_ENDPOINT`.
        say: Called with each line of the report.

    Returns:
        The commit; None after a dry run.

    Raises:
        UserError: The demo could not be built, or publishing failed; the Space then holds its old commit or the new
            one, complete.
    """
    check_repo_id("--space", space)
    token = token or get_token()
    if not token and not dry_run:
        raise UserError("A Space needs a Hugging Face token with write permission: run `hf auth login`.")
    with TemporaryDirectory() as aside:
        folder = build_demo(
            find_exported(str(student)),
            Path(aside) / "demo",
            img_size=img_size,
            examples=examples,
            runtime=runtime,
            repo_id=repo_id,
        )
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    if dry_run:
        for name, content in files.items():
            say(f"  {len(content):>12,}  {name}")
        say(f"Nothing was uploaded: this was a dry run for the Space {space}.")
        return None
    api = HfApi(endpoint=endpoint, token=token, library_name="frskd-timm")
    commit = with_retries(lambda: _commit(api, space, files, private), space, api)
    with_retries(lambda: _compare(api, space, files, commit), space, api)
    say(f"Committed {commit[:10]}; downloaded again, every file is the same: {api.endpoint}/spaces/{space}")
    return commit


def _commit(api: HfApi, space: str, files: Mapping[str, bytes], private: bool) -> str:
    """Create the Space if it does not exist, and make one commit; delete examples of an older push."""
    try:
        info = api.space_info(space, timeout=SILENCE)
    except RepositoryNotFoundError:
        api.create_repo(space, repo_type="space", space_sdk="static", private=private, exist_ok=True)
        info = api.space_info(space, timeout=SILENCE)
    if private and not info.private:
        raise UserError(f"The Space {space} exists and is public: make it private on the Hub, or leave --private out.")
    remote = {sibling.rfilename for sibling in info.siblings or ()}
    stale = [name for name in remote - files.keys() if name.startswith("examples/")]
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    made = api.create_commit(
        space,
        [*operations, *map(CommitOperationDelete, stale)],
        commit_message="Upload a demo made with frskd-timm",
        repo_type="space",
        parent_commit=info.sha,  # fails if someone else has committed in between
    )
    return made.oid


def _compare(api: HfApi, space: str, files: Mapping[str, bytes], commit: str) -> None:
    with TemporaryDirectory() as cache:
        for name, content in files.items():
            path = api.hf_hub_download(space, name, repo_type="space", revision=commit, cache_dir=cache)
            if Path(path).read_bytes() != content:
                raise AlteredError(name)
