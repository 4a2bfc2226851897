"""`frskd push` and `hub/push.py`: publish a trained student on the Hugging Face Hub."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from frskd_train.cli.demo import add_page_arguments
from frskd_train.system.exits import exit_interrupted


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and publish."""
    parser = argparse.ArgumentParser(
        None if arguments is None else "frskd push",
        description="Publish a trained student on the Hugging Face Hub, in one commit, and a demo of it as a Space.",
    )
    parser.add_argument("folder", type=Path, help="folder of a finished run, or its student/ folder")
    parser.add_argument("--repo-id", metavar="OWNER/NAME", help="repository; created if missing")
    parser.add_argument("--space", metavar="OWNER/NAME", help="publish a demo as a static Space; --repo-id is optional")
    private = "create the repository as private; an existing public one is refused"
    parser.add_argument("--private", action="store_true", help=private)
    parser.add_argument("--revision", metavar="REV", help="branch to commit to; created from main if missing")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    card = parser.add_mutually_exclusive_group()
    card.add_argument("--keep-card", action="store_true", help="leave the card in the repository as it is")
    card.add_argument("--overwrite-card", action="store_true", help="replace the card even if it was edited on the Hub")
    parser.add_argument("--dry-run", action="store_true", help="check the folder and list what would be uploaded")
    parser.add_argument("--commit-message", metavar="TEXT", help="first line of the commit")
    parser.add_argument("--onnx", action="store_true", help="also upload the student as onnx/model.onnx")
    add_page_arguments(parser, "page of the Space")
    options = parser.parse_args(arguments)
    if options.repo_id is None and options.space is None:
        parser.error("give --repo-id OWNER/NAME, --space OWNER/NAME, or both")
    if options.onnx and options.repo_id is None:
        parser.error("--onnx needs --repo-id: a Space has the student as model.onnx anyway")
    if options.space is None and (options.examples or options.runtime):
        parser.error("--examples and --runtime need --space: they are for the page of the Space")
    if options.img_size and not (options.space or options.onnx):
        parser.error("--img-size needs --onnx or --space")
    space = options.space
    page = {name: getattr(options, name) for name in ("examples", "runtime", "img_size", "repo_id")}
    of_both = ("private", "revision", "create_pr", "keep_card", "overwrite_card", "dry_run", "commit_message")
    common = {name: getattr(options, name) for name in of_both}
    # Imported here, so that --help and a wrong flag answer at once.
    from frskd_timm.export.folder import student_in
    from frskd_train.publish.repository import check_repo_id, check_target, refuse_missing_access
    from frskd_train.publish.space import demo_files, push_space
    from frskd_train.publish.student import push_student

    if student := student_in(options.folder):
        options.folder = student
    elif (options.folder / "config.yaml").is_file():
        parser.error(f"{options.folder} is the folder of a run that has not finished: it has no student/ yet")

    try:
        if space is not None:  # the page is made before the student is published, and after all other checks
            check_repo_id("--space", space)
            if options.repo_id is not None:
                check_repo_id("--repo-id", options.repo_id)
            check_target(options.revision, options.create_pr)
            if not options.dry_run:
                refuse_missing_access()
            files = demo_files(options.folder, **page)
        if options.repo_id is not None:
            push_student(options.folder, options.repo_id, onnx=options.onnx, img_size=options.img_size, **common)
        if space is not None:
            push_space(files, space, **common)
    except KeyboardInterrupt:
        exit_interrupted(
            "Publishing was interrupted: the repository holds its old commit or the new one, complete; run the same "
            "command again to finish."
        )
