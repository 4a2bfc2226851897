"""Several processes, their signals and their ends."""

import os
import re
import shlex
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import ROOT, launch_command, run_script
from runs import METHOD, assert_same, checkpoints, end_of, family, fork, kill_all, small, start, train_here, wait_for
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_train.data.augment import BatchAugmentation
from frskd_train.run.checkpoint import latest_checkpoint, load_state
from frskd_train.run.folder import RunFolder
from frskd_train.run.resume import find_resume, refuse_if_continued
from frskd_train.system.signals import Interruptions

ENDLESS = 10**6  # epochs: the run does not end before the test stops it


def rank_of(process: Any) -> str | None:
    """Return the rank of a training process; None for its launcher and for helpers of multiprocessing."""
    try:
        return process.environ().get("RANK") if any("train.py" in part for part in process.cmdline()) else None
    except psutil.Error:
        return None


def test_a_dead_process_ends_the_others_and_is_named(places: Path) -> None:
    log = places / "dead.log"
    flags = small(places, "--batch-size", 4, "--epochs", ENDLESS, "--log-interval", 1, "--output-dir", places / "dead")
    launcher = start(*flags, processes=2, log=log)
    try:
        assert wait_for(lambda: "epoch 2/" in log.read_text(), launcher), log.read_text()
        found = [process for process in family(launcher) if rank_of(process) is not None]
        assert len(found) == 2, log.read_text()
        (victim,) = [process for process in found if rank_of(process) == "1"]
        victim.kill()
        assert launcher.wait(60) != 0
        assert not any(process.is_running() and process.status() != "zombie" for process in found)
    finally:
        kill_all(launcher)
    said = log.read_text()
    assert "error: " not in said, said  # torch's launcher says it
    assert re.search(r"Root Cause.*rank +: 1 .*Signal 9 \(SIGKILL\)", said, re.DOTALL), said
    assert "trainer.py" not in said


@pytest.mark.parametrize("number", [signal.SIGHUP, None], ids=["SIGHUP", "closed output"])
def test_stopped_in_an_epoch_and_resumed_it_ends_with_the_same_bits(
    number: int | None, places: Path, whole: Path, capfd: pytest.CaptureFixture
) -> None:
    """Stop by a closing terminal, and by the end of a reader such as `head`."""
    augment, run = BatchAugmentation.__call__, places / f"stopped by {number}"

    def signalled(self: BatchAugmentation, *batch: Any) -> tuple[Any, Tensor]:
        if batch[-2:] == (1, 2):  # epoch and step
            if number is None:
                close_output()
            else:
                os.kill(os.getpid(), number)
        return augment(self, *batch)

    def train_until_then() -> None:
        BatchAugmentation.__call__ = signalled  # type: ignore[method-assign]
        train_here(*small(places, *METHOD, "--log-interval", 1), "--output-dir", run)

    assert end_of(fork(train_until_then)) == (141 if number is None else 130)
    assert (f"--resume {shlex.quote(str(run))}" in capfd.readouterr().out) == (number is not None)
    state = load_state(latest_checkpoint(run / "checkpoints"))  # type: ignore[arg-type]
    assert (state["epoch"], state["step"]) == (1, 4)  # of two epochs and six steps
    train_here("--resume", run)
    assert_same(whole, run)


def test_a_run_of_one_update_per_epoch_stops_between_epochs(
    places: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment, run = BatchAugmentation.__call__, places / "one update"

    def signalled(self: BatchAugmentation, *batch: Any) -> tuple[Any, Tensor]:
        if batch[-2:] == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return augment(self, *batch)

    monkeypatch.setattr(BatchAugmentation, "__call__", signalled)
    flags = small(places, "--grad-accum-steps", 1000, "--epochs", 5, "--output-dir", run)
    assert end_of(fork(lambda: train_here(*flags))) == 130
    assert "Stopped in epoch 3, step 0" in capfd.readouterr().out
    state = load_state(latest_checkpoint(run / "checkpoints"))  # type: ignore[arg-type]
    assert (state["epoch"], state["step"]) == (2, 0)


def close_output() -> None:
    """Make standard output a pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    sys.stdout = os.fdopen(writing, "w")


def test_the_second_signal_ends_a_run_at_once(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first signal waits for the end of the step, which never ends here."""
    hangs = places / "hangs"

    def hang(*_: object) -> None:
        hangs.touch()
        while True:
            time.sleep(0.05)

    monkeypatch.setattr(BatchAugmentation, "__call__", hang)
    child = fork(lambda: train_here(*small(places, "--output-dir", places / "twice")))
    try:
        assert wait_for(hangs.exists)
        for number in (signal.SIGUSR1, signal.SIGINT):
            os.kill(child, number)
        time.sleep(0.3)  # together they may be one request, of which SIGINT then is the first
        os.kill(child, signal.SIGTERM)
    finally:
        assert end_of(child, seconds=60) in (-signal.SIGTERM, -signal.SIGINT)


@pytest.mark.long
@pytest.mark.parametrize(("number", "everybody"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_two_processes_stop_together_and_go_on(number: int, everybody: bool, places: Path) -> None:
    """Ctrl-C in a terminal reaches all processes, a scheduler's SIGTERM only the launcher."""
    name = f"stopped by {number}"
    log, run = places / f"{name}.log", places / name
    launcher = start(*small(places, "--epochs", ENDLESS, "--output-dir", run), processes=2, log=log)
    try:
        assert wait_for(lambda: "epoch 2/" in log.read_text(), launcher), log.read_text()
        *others, agent = family(launcher)
        if everybody:
            for process in others:
                process.send_signal(number)
        agent.send_signal(number)
        launcher.wait(240)
        psutil.wait_procs(others, timeout=240)
    finally:
        kill_all(launcher)
    said = log.read_text()
    state = load_state(latest_checkpoint(run / "checkpoints"))  # type: ignore[arg-type]
    assert f"epoch {state['epoch'] + 1}, step {state['step']}. Continue" in said, said
    assert state["processes"] == 2
    assert "error: " not in said, said
    flags = ["--resume", run, "--threads", 1, "--epochs", state["epoch"] + 1]
    train_here(*flags, "--batch-size", 8)  # one process now, the same global batch
    assert (run / "student" / "model.safetensors").is_file()


def test_resumed_processes_agree_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    two = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda flags, reduction: flags * 2)
    interruptions = Interruptions(two)
    assert interruptions.due(5001, checkpoint=False) == (False, False)
    time.sleep(0.05)
    assert interruptions.due(5002, checkpoint=True) == (False, True)


def test_a_run_that_was_continued_meanwhile_is_not_resumed_from_behind(tmp_path: Path) -> None:
    checkpoints(tmp_path / "checkpoints", 1)
    found = find_resume(str(tmp_path), None)
    refuse_if_continued(found, str(tmp_path), None)
    checkpoints(tmp_path / "checkpoints", 2)
    with pytest.raises(UserError, match="Another process has just continued"):
        refuse_if_continued(found, str(tmp_path), None)


@pytest.mark.parametrize("everybody", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_launchers_end_stops_the_run_with_a_checkpoint(places: Path, everybody: bool) -> None:
    """Its end sends SIGUSR1, which with a SIGTERM to all processes of a job is one request."""
    log, run = places / f"orphan {everybody}.log", places / f"orphan {everybody}"
    flags = small(places, "--epochs", ENDLESS, "--output-dir", run)
    launcher = start(*flags, processes=1, log=log)
    try:
        assert wait_for(lambda: "epoch 2/" in log.read_text(), launcher), log.read_text()
        below = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.wait()
        for process in below if everybody else ():
            process.send_signal(signal.SIGTERM)
        assert wait_for(lambda: "--resume" in log.read_text())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    assert latest_checkpoint(run / "checkpoints") is not None


@pytest.mark.long
def test_several_processes_that_accelerate_does_not_start_are_refused(places: Path) -> None:
    command = [*launch_command(1)[:-1], 2, ROOT / "train.py", *small(places, "--output-dir", places / "single")]
    done = run_script(*command, check=False)
    assert "torchrun --nproc_per_node" in done.stderr.splitlines()[-1]
    assert not (places / "single").exists()


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    first.claim(resuming=False)

    def claim() -> None:
        with pytest.raises(UserError, match="Another process is training in"):
            RunFolder(tmp_path / "run").claim(resuming=True)

    assert end_of(fork(claim)) == 0
    first.write("config.yaml", "")
    with pytest.raises(UserError, match="holds another run"):
        RunFolder(tmp_path / "run").claim(resuming=False)
