"""Checkpoints: damage, what is kept, disks that are full."""

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from runs import METHOD, STATE, assert_same, checkpoints, small, train_here

from frskd_timm.errors import UserError
from frskd_train.errors import SettingsError
from frskd_train.run import checkpoint as module
from frskd_train.run.checkpoint import (
    all_checkpoints,
    find_damage,
    latest_checkpoint,
    prune,
    save_checkpoint,
    set_aside_after,
)
from frskd_train.run.resume import find_resume
from frskd_train.run.state import RunState
from frskd_train.settings.parse import parse_settings


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: (path / "task.safetensors").write_bytes(b"\0" * (path / "task.safetensors").stat().st_size),
        lambda path: (path / "optimizer.safetensors").unlink(),
        lambda path: os.truncate(path / "task.safetensors", 100),
        lambda path: (path / "state.json").write_text('{"format": 1}'),
        lambda path: (path / "state.json").write_text("[]"),
        lambda path: os.truncate(path / "state.json", 50),
    ],
    ids=["zeros", "missing", "short", "no state", "other state", "half state"],
)
def test_the_newest_whole_checkpoint_is_found(harm: Callable[[Path], object], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoints(folder, 1, 2, 3)
    harm(folder / "step-00000003")
    (folder / ".writing-step-00000004").mkdir()
    assert latest_checkpoint(folder) == folder / "step-00000002"
    found = find_resume(str(tmp_path), None)
    assert found is not None
    assert found.checkpoint == folder / "step-00000002"
    assert "step-00000003" in found.notes[0]
    with pytest.raises(UserError, match="step-00000003"):
        find_resume(str(folder / "step-00000003"), None)
    for step in (1, 2):
        harm(folder / f"step-0000000{step}")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact"):
        find_resume("auto", str(tmp_path))


def test_a_single_wrong_bit_in_any_file_is_found(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1)
    (checkpoint,) = all_checkpoints(tmp_path)
    rng = random.Random(0)
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        for bit in rng.sample(range(8 * len(content)), 15):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert find_damage(checkpoint) is not None, (path.name, bit)
        path.write_bytes(content)
    assert find_damage(checkpoint) is None


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    sync, replace = module.sync, os.replace
    monkeypatch.setattr(module, "sync", lambda path: (done.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("rename", Path(b).name)), replace(a, b)))
    checkpoints(tmp_path, 1)
    named = done.index(("rename", "step-00000001"))
    files = {path.name for path in (tmp_path / "step-00000001").iterdir()}
    before = {name for what, name in done[:named] if what == "sync"}
    assert files < before
    assert len(before - files) == 1  # the folder under its temporary name
    assert ("sync", tmp_path.name) in done[named:]


def test_the_best_and_the_last_few_are_kept(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1, 2, 3, 4, 5)
    prune(tmp_path, 2, "step-00000002")
    assert [path.name[-1] for path in all_checkpoints(tmp_path)] == ["2", "4", "5"]
    for newest in ("step-00000004", "step-00000002"):
        set_aside_after(tmp_path / newest)
        assert len(list(tmp_path.glob("abandoned-*"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["abandoned-step-00000004", "step-00000002"]


def test_the_checkpoint_of_the_best_epoch_is_remembered(tmp_path: Path) -> None:
    state = RunState("top1")
    for updates, score in ((10, 50.0), (20, 70.0), (30, None), (40, 60.0), (50, 70.0)):
        state.updates = updates
        state.finish_epoch({} if score is None else {"top1": score})
    assert (state.best_checkpoint, state.best["epoch"]) == ("step-00000020", 2)
    again = RunState.from_saved(state.to_saved(), tmp_path / "step-00000050", "top1")
    assert again.best_checkpoint is None, "it is not in the folder"
    (tmp_path / "step-00000020").mkdir()
    again = RunState.from_saved(state.to_saved(), tmp_path / "step-00000050", "top1")
    assert (again.best_checkpoint, again.scores) == ("step-00000020", {1: 50.0, 2: 70.0, 4: 60.0, 5: 70.0})


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_is_found_by_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    checkpoints(run / "checkpoints", 1)
    (run / "config.yaml").write_text("epochs: 77\n")
    place = run / "checkpoints" / "step-00000001"
    (tmp_path / "link").symlink_to(place)
    for here, given in (
        *((place, path) for path in (".", "..", "../..", "../step-00000001/")),
        *((tmp_path, path) for path in ("link", "run", f"{place}/..", "run/checkpoints/step-00000001")),
        (place.parent, "step-00000001"),
    ):
        monkeypatch.chdir(here)
        found = find_resume(given, None)
        assert found is not None
        assert (found.run.resolve(), found.checkpoint) == (run, found.run / "checkpoints" / "step-00000001"), given
        assert parse_settings(["--resume", given]).optimizer.epochs == 77


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    module, optimizer = checkpoints(tmp_path, 1)
    for size in (0, 100, 300):  # fails at one file or another
        with file_size_limit(size), pytest.raises(UserError, match=r"could not be written .* last good .*-00000001"):
            save_checkpoint(tmp_path, 2, {"task": module}, optimizer, STATE)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        assert find_damage(tmp_path / "step-00000001") is None
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"such as weight became NaN .*last good .*step-00000001"):
        save_checkpoint(tmp_path, 2, {"task": module}, optimizer, STATE)


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is saved twice in the same step, and the second time its place cannot be taken."""
    module, optimizer = checkpoints(tmp_path, 1)
    renames, replace = iter([True, False]), os.replace

    def fails_second(*places: Path) -> None:
        if not next(renames):
            raise OSError("no space")
        replace(*places)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails_second)
        with pytest.raises(UserError, match=r"last good .*-00000001"):
            save_checkpoint(tmp_path, 1, {"task": module}, optimizer, STATE)
    kept = latest_checkpoint(tmp_path)
    assert kept is not None
    save_checkpoint(tmp_path, 1, {"task": module}, optimizer, STATE)
    save_checkpoint(tmp_path, 1, {"task": module}, optimizer, STATE)
    prune(tmp_path, 1, None)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name.removesuffix(".replaced")]


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Mount a file system of `size` bytes; yield a function that changes its size."""
    place.mkdir()
    mount = lambda *options: subprocess.run(["mount", *options, str(place)], capture_output=True).returncode
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        pytest.skip("mounting a small file system needs root")
    try:
        yield lambda size: mount("-o", f"remount,size={size}")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(places: Path, whole: Path, disk: Path, sizes: list[int]) -> set[str]:
    """Run and resume on full disks of growing size; return what could not be written."""
    said = set()
    with small_disk(disk, sizes[0]) as resize:
        for size in sizes:
            resize(size)
            try:
                train_here(*small(places, *METHOD), "--output-dir", disk / "run", "--resume", "auto")
                break
            except UserError as error:
                sentence = str(error)
                assert "No space left" in sentence or "StorageFull" in sentence, sentence
                said.add(sentence.split(" could not")[0].replace(str(disk), ""))
                kept = all_checkpoints(disk / "run" / "checkpoints")
                assert all(find_damage(path) is None for path in kept)
                assert not kept or str(kept[-1]) in sentence
        else:
            raise AssertionError("it never got room enough")
        assert_same(whole, disk / "run")
    return said


def test_a_full_disk_is_reported_and_loses_nothing(places: Path, whole: Path, tmp_path: Path) -> None:
    room = sum(path.stat().st_size for path in whole.rglob("*"))
    said = fill_up(places, whole, tmp_path / "disk", [room // 3, room - 200_000, 4 * room])
    assert said


@pytest.mark.long
def test_full_disks_of_every_size(places: Path, whole: Path, tmp_path: Path) -> None:
    room = sum(path.stat().st_size for path in whole.rglob("*"))
    said = fill_up(places, whole, tmp_path / "disk", [4096, *range(room // 8, 2 * room, room // 12), 9 * room])
    assert {"/run", "/run/checkpoints"} <= said


def test_a_checkpoint_outside_its_place_is_not_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoints(run / "checkpoints", 1)
    step = run / "checkpoints" / "step-00000001"
    (run / "config.yaml").touch()
    assert find_resume(str(step), None) is not None
    for other in (tmp_path / "backup" / step.name, step.with_name(f"abandoned-{step.name}")):
        shutil.copytree(step, other)
        with pytest.raises(UserError, match="is a checkpoint, but not step-"):
            find_resume(str(other), None)
    (run / "config.yaml").unlink()
    for place in (run, step):
        with pytest.raises(
            SettingsError, match=r"run has no config\.yaml, from which a resumed run reads its settings"
        ):
            parse_settings(["--resume", str(place)])
