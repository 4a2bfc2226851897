"""Folders and images that a run cannot use: one sentence, and nothing lost."""

import errno
import fcntl
import json
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pictures import class_folders, encoded, picture, pictures, save, split
from runs import end_of, fork, rows, small, train_here, train_together

from frskd_timm.errors import UserError
from frskd_train import cli, end_of_run, start_of_run, trainer
from frskd_train.cli import train
from frskd_train.data.augment import BatchAugmentation
from frskd_train.end_of_run import outdated
from frskd_train.run.checkpoint import all_checkpoints, latest_checkpoint, load_state
from frskd_train.run.folder import RunFolder
from frskd_train.system import disk


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


def broken(count: int, good: int = 0) -> object:
    rows = [encoded(picture(k)) if k < good else {"bytes": b"not an image", "path": None} for k in range(count)]
    return split(rows, [k % 3 for k in range(count)])


def test_a_run_whose_validation_fails_keeps_its_epoch(tmp_path: Path) -> None:
    save(tmp_path / "data", train=pictures(24), test=broken(9, good=6))
    run, flags = tmp_path / "run", ["--dataset", tmp_path / "data", "--data-mode", "stream", "--val-interval", 2]
    with pytest.raises(UserError, match="--bad-images skip"):
        train_here(*small(tmp_path, *flags, "--output-dir", run))
    state = load_state(latest_checkpoint(run / "checkpoints"))  # type: ignore[arg-type]
    assert (state["epoch"], state["step"]) == (1, 6)
    assert (run / "student" / "model.safetensors").is_file()
    rates = [row["lr"] for row in state["history"]]
    train_here("--resume", run, "--bad-images", "skip")
    rates += [float(row["lr"]) for row in rows(run)][len(rates) :]
    assert rates == sorted(rates, reverse=True), "the rate of the epoch, not that of a new optimizer"
    scored = json.loads((run / "metrics.json").read_text())["dataset"]
    assert (scored["val_images"], scored["whole_split"]) == (6, False)


def test_lack_of_memory_is_named_with_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    save(tmp_path / "data", train=pictures(24), test=pictures(6))
    flags = small(tmp_path, "--dataset", tmp_path / "data", "--output-dir", tmp_path / "run")
    monkeypatch.setattr(trainer.Trainer, "train_step", fail)
    with pytest.raises(UserError, match=r"for training with --batch-size \d+ at 12x12 pixels: .* smaller --batch-size"):
        train_here(*flags)
    monkeypatch.undo()
    monkeypatch.setattr(trainer.Trainer, "validate", fail)
    with pytest.raises(UserError, match=r"memory for validation .*--validation-batch-size, and continue with --resume"):
        train_here("--resume", tmp_path / "run")
    monkeypatch.undo()
    train_here("--resume", tmp_path / "run", "--validation-batch-size", 2)
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_with_two_processes_a_failed_validation_keeps_the_epoch(tmp_path: Path) -> None:
    save(tmp_path / "data", train=pictures(24), test=broken(9, good=6))
    flags = small(tmp_path, "--data-mode", "stream", "--epochs", 1, "--output-dir", tmp_path / "run")
    assert 0 not in train_together(flags, flags)
    state = load_state(latest_checkpoint(tmp_path / "run" / "checkpoints"))  # type: ignore[arg-type]
    assert (state["epoch"], state["step"]) == (0, 3)
    train_here("--resume", tmp_path / "run", "--bad-images", "skip", "--batch-size", 8)
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def test_a_file_system_without_locks_is_used_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for number, said in ((errno.ENOSYS, None), (errno.EAGAIN, "Another process is training")):

        def fail(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "lockf", fail)
        with pytest.raises(UserError, match=said) if said else nullcontext():
            RunFolder(tmp_path).claim(resuming=False)
    assert "cannot be locked (Function not implemented); do not start two runs in it" in capsys.readouterr().out


def test_file_systems_that_cannot_flush_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", fail)
    disk.sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        disk.sync(tmp_path / "file")


def test_windows_is_refused_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(train, "os", SimpleNamespace(name="nt"))
    with pytest.raises(SystemExit, match="2"):
        cli.run("train", ["--epochs", "1"])
    assert "Training needs Linux or macOS: on Windows, use WSL." in capsys.readouterr().err


def test_a_run_that_cannot_be_scored_exports_its_student(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save(tmp_path / "data", train=pictures(24), test=broken(9))
    flags = ["--dataset", tmp_path / "data", "--data-mode", "stream", "--bad-images", "skip", "--model-ema"]
    train_here(*small(tmp_path, *flags, "--output-dir", tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["student"] is None
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    assert "not scored" in capsys.readouterr().out


def test_what_cannot_be_replaced_or_converted_costs_no_training(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UserError("ONNX has no such operator.")

    monkeypatch.setattr(end_of_run, "export_onnx", fail)
    monkeypatch.setattr(start_of_run, "check_onnx", lambda: None)
    train_here(*small(places, "--export", "onnx", "--output-dir", tmp_path / "run"))
    told = capsys.readouterr().out
    assert f"ONNX has no such operator. The run is finished; try again with: frskd export {tmp_path / 'run'}" in told
    assert (tmp_path / "run" / "report.html").is_file()

    (tmp_path / "run" / "student" / ".DS_Store").touch()
    (tmp_path / "run" / "student" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"student holds something other than an exported student \(notes.txt\)"):
        train_here("--resume", tmp_path / "run", "--epochs", 3)
    assert "epoch 3" not in capsys.readouterr().out
    (tmp_path / "run" / "student" / "notes.txt").unlink()
    train_here("--resume", tmp_path / "run", "--epochs", 3, "--export")
    assert "epoch 3/3" in capsys.readouterr().out


def test_training_images_that_vanish_stop_the_run_and_keep_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, count in (("train", 8), ("val", 3)):
        class_folders(tmp_path / "data" / part, "cat", "dog", "eel", count=count)
    augment = BatchAugmentation.__call__

    def vanish(self: BatchAugmentation, *batch: Any) -> Any:
        if batch[-2:] == (1, 0):  # in the second epoch
            shutil.rmtree(tmp_path / "data" / "train")
        return augment(self, *batch)

    monkeypatch.setattr(BatchAugmentation, "__call__", vanish)
    flags = ["--data-mode", "stream", "--workers", 0, "--bad-images", "skip", "--output-dir", tmp_path / "run"]
    with pytest.raises(UserError, match=r"No such file"):
        train_here(*small(tmp_path, *flags))
    (kept,) = all_checkpoints(tmp_path / "run" / "checkpoints")
    assert load_state(kept)["epoch"] == 1


def test_the_student_is_exported_before_anything_else_can_fail(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(end_of_run.EndOfRun, "evaluate", fail)
    with pytest.raises(MemoryError):
        train_here(*small(places, "--output-dir", tmp_path / "run"))
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def test_a_signal_does_not_interrupt_the_end_of_a_run(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = end_of_run.EndOfRun.evaluate

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(end_of_run.EndOfRun, "evaluate", interrupted)
    assert end_of(fork(lambda: train_here(*small(places, "--output-dir", tmp_path / "run")))) == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(("device", "name", "found"), [("cuda", "gcc", "clang"), ("cpu", "g\\+\\+", "gcc")])
def test_compiled_steps_need_the_compiler_that_torch_calls(
    device: str, name: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(UserError, match=f"there is no {name}: install it"):
        start_of_run.refuse_missing_compiler(torch.device(device))
    monkeypatch.setattr(shutil, "which", lambda program: program if program == found else None)
    if device == "cuda":
        start_of_run.refuse_missing_compiler(torch.device(device))
    else:
        with pytest.raises(UserError, match="C\\+\\+ compiler"):
            start_of_run.refuse_missing_compiler(torch.device(device))


def test_what_is_older_than_the_student_is_named(tmp_path: Path) -> None:
    names = ["student.onnx", "student.pt2", "evaluation-data/evaluation.json", "demo/demo.json"]
    for name in (*names, "checkpoints/step-00000001/state.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    trained = (tmp_path / "checkpoints" / "step-00000001").stat().st_mtime
    for shift, wanted in ((-9, ["student.onnx", "student.pt2", "evaluation-data", "demo"]), (9, [])):
        for name in names:
            os.utime(tmp_path / name, (trained + shift, trained + shift))
        assert outdated(RunFolder(tmp_path)) == wanted
