"""The run's folder: which ones a new run may use."""

import os
from pathlib import Path

import pytest
from runs import small, train_here

from frskd_timm.errors import UserError
from frskd_train.run_folder import RunFolder


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "Not a directory"),
        ("file/run", "Not a directory"),
        ("x" * 300, "name too long"),
        ("/proc/run", "could not be created"),  # not writable, for root either
        ("full", "not empty"),
    ],
    ids=["file", "in a file", "long", "not writable", "full"],
)
def test_a_folder_that_cannot_be_used_is_refused_before_training(
    name: str, reason: str, places: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=reason) as caught:
        train_here(*small(places, "--output-dir", tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_what_a_killed_run_leaves_does_not_take_the_folder(tmp_path: Path) -> None:
    names = {".lock", f".config.yaml.{os.getpid() + 1}", ".student.partial", ".student.previous"}
    for name in names:
        (tmp_path / name).touch()
    folder = RunFolder(tmp_path)
    folder.claim(resuming=False)
    assert {path.name for path in tmp_path.iterdir()} == {name for name in names if "config" not in name}
    (tmp_path / ".mine").touch()
    with pytest.raises(UserError, match=r"\.mine"):
        folder.refuse_if_taken()
