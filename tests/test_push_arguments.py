"""Mistakes in the arguments of `frskd push`, which are found before anything is made or sent."""

import huggingface_hub
import pytest

from frskd_timm.errors import UserError
from frskd_train import cli
from frskd_train.publish import space
from frskd_train.publish import student as publishing
from frskd_train.publish.repository import check_target


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give --repo-id OWNER/NAME, --space OWNER/NAME, or both"),
        (["--onnx", "--space", "a/b"], "--onnx needs --repo-id"),
        (["--examples", "x.png", "--repo-id", "a/b"], "--examples and --runtime need --space"),
        (["--img-size", "64", "--repo-id", "a/b"], "--img-size needs --onnx or --space"),
        (["--repo-id", "a/b"], "a run that has not finished"),
    ],
)
def test_a_wrong_argument_of_a_push_is_one_sentence(arguments, sentence, tmp_path, capsys):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(SystemExit, match="2"):
        cli.run("push", [str(tmp_path), *arguments])
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--revision", "refs/heads/x"], "--revision must be a branch name"),
        (["--revision", "x", "--create-pr"], "--revision and --create-pr cannot be given together"),
        (["--repo-id", "a b"], "--repo-id must be OWNER/NAME"),
        ([], "There is no Hugging Face token"),
    ],
)
def test_mistakes_are_found_before_a_page_is_made(arguments, sentence, student, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(space, "demo_files", None)
    with pytest.raises(SystemExit, match="2"):
        cli.run("push", [str(student), "--space", "a/b", *arguments])
    assert sentence in capsys.readouterr().err


def test_the_flags_of_a_push_reach_it(student, monkeypatch):
    given = {}
    monkeypatch.setattr(publishing, "push_student", lambda folder, repo_id, **options: given.update(options))
    flags = ["--private", "--revision", "trial", "--overwrite-card", "--commit-message", "Second try"]
    cli.run("push", [str(student), "--repo-id", "a/b", *flags])
    sent = {"private": True, "revision": "trial", "overwrite_card": True, "commit_message": "Second try"}
    assert given == given | sent
    assert not any(given[name] for name in ("create_pr", "keep_card", "dry_run", "onnx"))


def test_a_branch_has_a_possible_name():
    for name in ("a b", "a..b", "a~b", "a?b", "a/", "a.lock", "refs/heads/a", "0" * 40):
        with pytest.raises(UserError, match="--revision must be a branch name"):
            check_target(name, create_pr=False)
    for name in ("main", "v1.0", "try/this", "refs/pr/1", None):
        check_target(name, create_pr=False)
