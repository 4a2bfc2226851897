"""Exact resume: `kill -9` at any moment, and the same bits in the end."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from runs import (
    METHOD,
    METHODS,
    assert_resumes,
    assert_same,
    end_of,
    family,
    fork,
    half_written,
    kill_all,
    small,
    start,
    train_here,
    wait_for,
)

from frskd_timm.errors import UserError
from frskd_train.run.checkpoint import all_checkpoints, latest_checkpoint, load_state
from frskd_train.run.resume import find_resume

WHOLE = {"classification": "whole", "segmentation": "whole_masks"}


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_killed_while_it_writes_a_checkpoint_it_ends_with_the_same_bits(
    task: str, places: Path, request: pytest.FixtureRequest
) -> None:
    whole, run = request.getfixturevalue(WHOLE[task]), places / f"killed {task}"
    flags = [*small(places, *METHODS[task], task=task), "--output-dir", run, "--checkpoint-minutes", 1e-6]
    assert end_of(fork(lambda: train_here(*flags), dies_at=34)) == -signal.SIGKILL
    assert half_written(run)
    assert latest_checkpoint(run / "checkpoints") is not None
    train_here("--resume", run, "--threads", 1)
    assert not half_written(run)
    assert_same(whole, run)


def test_with_mixed_precision_it_resumes_to_the_same_bits(places: Path, tmp_path: Path) -> None:
    flags = small(places, *METHOD, "--amp", "--amp-dtype", "bfloat16", "--img-size", 64)
    train_here(*flags, "--output-dir", tmp_path / "run")
    assert_resumes(tmp_path / "run", tmp_path / "resumed")


def test_killed_before_its_last_summary_it_is_written_at_resume(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.csv").unlink()
    train_here("--resume", tmp_path / "run")
    assert (tmp_path / "run" / "summary.csv").read_bytes() == (whole / "summary.csv").read_bytes()


def test_stopped_before_its_first_checkpoint_it_begins_again(
    places: Path, whole: Path, capsys: pytest.CaptureFixture
) -> None:
    run = places / "early"
    (run / "checkpoints" / ".writing-step-00000001").mkdir(parents=True)
    shutil.copy(whole / "config.yaml", run)
    train_here(*small(places, *METHOD), "--output-dir", run, "--resume", "auto")
    assert "before its first checkpoint" in capsys.readouterr().out
    assert_same(whole, run)


def test_a_folder_that_is_not_a_run_is_not_restarted(whole: Path, tmp_path: Path) -> None:
    assert find_resume("auto", str(tmp_path / "new")) is None
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for resume, output in (("auto", tmp_path / "run"), (str(tmp_path / "run"), None)):
        with pytest.raises(UserError, match=r"summary\.csv but no checkpoint"):
            find_resume(resume, output and str(output))


@pytest.mark.long
@pytest.mark.parametrize(("task", "processes", "kills"), [("classification", 1, 4), ("segmentation", 2, 2)])
def test_killed_again_and_again_it_ends_with_the_same_bits(task: str, processes: int, kills: int, places: Path) -> None:
    """Kill all processes under the real launcher, every other time while a checkpoint is being written.

    The schedules do not depend on --epochs, so that the run does not end before there were enough kills, however fast
    the machine.
    """
    flags = [*small(places, *METHODS[task], task=task), "--distill-start", 0, "--distill-schedule", "constant"]
    flags += ["--batch-size", 4 // processes, "--warmup-epochs", 0]
    flags += ["--sched", "step", "--decay-epochs", 2, "--decay-rate", 0.9]
    reference, run, log = (places / f"{what} {task} {processes}" for what in ("reference", "killed", "log"))
    endless = [*flags, "--epochs", 10**6, "--output-dir", run, "--resume", "auto", "--checkpoint-minutes", 1e-6]
    rng, killed, writing = random.Random(processes), 0, 0
    while killed < kills or writing < 2:
        assert killed < 3 * kills, f"only {writing} of {killed} kills came while a checkpoint was being written"
        newest = all_checkpoints(run / "checkpoints")[-1:]
        log.write_text("")
        launcher, members = start(*endless, processes=processes, log=log), []
        try:
            wait_for(lambda newest=newest: all_checkpoints(run / "checkpoints")[-1:] != newest, launcher)
            members = family(launcher)
            if killed % 2:
                time.sleep(rng.uniform(0, 0.3))
            else:
                wait_for(lambda: half_written(run), launcher, pause=0.0002)
            assert launcher.poll() is None, log.read_text()
        finally:
            kill_all(launcher, members or None)
        writing += bool(half_written(run))
        killed += 1

    epochs = load_state(latest_checkpoint(run / "checkpoints"))["epoch"] + 1  # type: ignore[arg-type]
    finish([*endless, "--epochs", epochs], processes, log)
    flags += ["--epochs", epochs, "--output-dir", reference]
    if processes == 1:
        train_here(*flags)
    else:
        finish(flags, processes, log)
    assert_same(reference, run)


def finish(flags: list[object], processes: int, log: Path) -> None:
    """Let a run under the real launcher finish."""
    launcher = start(*flags, processes=processes, log=log)
    try:
        assert launcher.wait(900) == 0, log.read_text()
    finally:
        kill_all(launcher)


@pytest.mark.long
@pytest.mark.parametrize("task", WHOLE)
def test_killed_anywhere_it_ends_with_the_same_bits(task: str, places: Path) -> None:
    """Kill a fork sixteen times: at random file operations of writing, and at random times including start-up.

    No fork gets further than four updates, so that all sixteen fit into the run; the times are fractions of the
    lifetime of a fork on this machine.
    """
    flags, run, longest = small(places, *METHODS[task], "--epochs", 22, task=task), places / f"forks {task}", 45
    resumed = ["--output-dir", run, "--resume", "auto", "--checkpoint-minutes", 1e-6]
    rng, writing, lifetime = random.Random(5), 0, 0.0
    for kill in range(16):
        timed, began = kill % 2, time.monotonic()
        dies_at = longest if timed else rng.randint(1, longest)
        child = fork(lambda: train_here(*flags, *resumed), dies_at)
        if timed and lifetime:
            time.sleep(rng.uniform(0, lifetime))
            os.kill(child, signal.SIGKILL)
        assert end_of(child) == -signal.SIGKILL, f"it ended by itself before kill {kill}"
        if timed and not lifetime:
            lifetime = time.monotonic() - began
        writing += bool(half_written(run))
    assert writing > 3
    train_here("--resume", run)
    train_here(*flags, "--output-dir", places / f"unkilled {task}")
    assert_same(places / f"unkilled {task}", run)
