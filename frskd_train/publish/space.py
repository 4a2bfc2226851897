"""Publish the demo of a student as a static Space."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CARD
from frskd_train.demo.build import DESCRIPTION, build_demo
from frskd_train.found_student import find_exported
from frskd_train.publish.repository import Repository, check_repo_id, check_target, connect, list_files
from frskd_train.publish.retries import with_retries
from frskd_train.report.signature import signed

_OF_A_NEW_SPACE = {".gitattributes", CARD, "index.html", "style.css"}


def demo_files(student: str | Path, **page: Any) -> dict[str, bytes]:
    """Return the files of a demo by name.

    Args:
        student: Folder of a run or of a student.
        page: Further arguments of `build_demo`.

    Raises:
        UserError: The demo could not be built.
    """
    with TemporaryDirectory() as aside:
        folder = Path(aside) / "demo"
        build_demo(find_exported(str(student)), folder, **page)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def push_space(
    files: Mapping[str, bytes],
    space: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    keep_card: bool = False,
    overwrite_card: bool = False,
    dry_run: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    say: Callable[[str], None] = print,
) -> str | None:
    """Upload a demo in one commit and verify that the Hub returns the same files.

    The other arguments are those of `push_student`, with the README of the Space as the card.

    Args:
        files: The result of `demo_files`.
        space: `OWNER/NAME` of the Space; created if it does not exist.

    Returns:
        The commit; None after a dry run.

    Raises:
        UserError: The Space holds another application or an edited README, or publishing failed; the Space then holds
            its old commit or the new one, complete.
    """
    check_repo_id("--space", space)
    check_target(revision, create_pr)
    files = {**files, CARD: signed(files[CARD])}
    if dry_run:
        list_files(files, f"the Space {space}", say)
        return None
    hub = Repository(connect(token, endpoint), space, "space", private, revision, create_pr)

    def commit() -> CommitInfo:
        head, remote = hub.head()
        if foreign := sorted(remote - _OF_A_NEW_SPACE) if DESCRIPTION not in remote else []:
            raise UserError(f"The Space {space} holds something other than a demo ({foreign[0]}): give another name.")
        if DESCRIPTION in remote and keep_card:
            files.pop(CARD, None)
        elif DESCRIPTION in remote and not overwrite_card and not create_pr:
            hub.refuse_edited_card(head, files[CARD])
        stale = [name for name in remote - files.keys() if name.startswith("examples/")]  # of an older push
        return hub.commit(head, files, stale, commit_message or "Upload a demo made with frskd-timm")

    def compare() -> None:
        with TemporaryDirectory() as cache:
            hub.compare(files, made.oid, cache)

    made = with_retries(commit, hub, once=create_pr)
    with_retries(compare, hub)
    url = made.pr_url or f"{hub.api.endpoint}/spaces/{space}" + (f"/tree/{revision}" if revision else "")
    say(f"Committed {made.oid[:10]}; downloaded again, every file is the same: {url}")
    return str(made.oid)
