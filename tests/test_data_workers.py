"""Processes that decode images: kept, killed, or left by the training process."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pictures import load, load_masks, pictures, save
from runs import ROOT, end_of, fork, kill_all, small, start, wait_for

from frskd_timm.errors import UserError
from frskd_train.data.batches import is_loss_of_a_worker

STREAM: dict[str, Any] = {"data_mode": "stream", "img_size": (12,), "mean": (0.5,), "std": (0.2,)}
KILLED = """
import multiprocessing, os, signal, sys
multiprocessing.set_start_method("forkserver")  # the default from Python 3.14 on
from pictures import load
from test_data_workers import STREAM
batches = load(sys.argv[1], workers=1, **STREAM).train_batches(2).epoch(0)
next(batches)
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("method", "started"), [("fork", 2), ("spawn", 1)])
def test_workers_that_start_slowly_are_kept(
    method: str, started: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(save(tmp_path / "data", train=pictures(24), test=pictures(9)), **STREAM)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    others = {worker.pid for worker in multiprocessing.active_children()}  # of earlier tests
    batches, workers, passes = data.val_batches(5), set(), []
    for _ in range(2):
        passes.append([(images.sum().item(), target.tolist()) for images, target in _noting(batches, workers)])
    assert passes[0] == passes[1]
    assert len(workers - others) == started * data.val.settings.workers


def _noting(batches: Any, workers: set[int | None]) -> Iterator[Any]:
    for batch in batches:
        workers |= {worker.pid for worker in multiprocessing.active_children()}
        yield batch


def test_a_worker_that_dies_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    data = load(save(tmp_path / "data", train=pictures(300), test=pictures(9)), **STREAM, workers=1)

    def train() -> None:
        batches = data.train_batches(2).epoch(0)
        next(batches)
        try:
            try:
                for worker in multiprocessing.active_children():
                    worker.kill()
                list(batches)
            except UserError as error:
                os._exit(2 if "process that decodes images died" in str(error) else 1)
        except RuntimeError as error:  # a signal handler of torch raises it anywhere, even while another is handled
            os._exit(2 if is_loss_of_a_worker(error) else 1)

    assert end_of(fork(train)) == 2  # a fork: torch would raise its error in pytest, too


@pytest.mark.long
def test_a_run_whose_worker_dies_says_so(tmp_path: Path) -> None:
    """Torch may notice it anywhere in the training process."""
    save(tmp_path / "data", train=pictures(24), test=pictures(9))
    flags = ["--data-mode", "stream", "--workers", 1, "--epochs", 10**6, "--output-dir", tmp_path / "run"]
    run = start(*small(tmp_path, *flags), log=tmp_path / "log")
    try:
        wait_for(lambda: "epoch 2/" in (tmp_path / "log").read_text(), run)
        for process in psutil.Process(run.pid).children(recursive=True):
            if not process.children() and "resource_tracker" not in str(process.cmdline()):
                process.kill()
        status = run.wait(60)
    finally:
        kill_all(run)
    said = (tmp_path / "log").read_text()
    assert status == 2, said
    assert "Traceback" not in said, said
    assert len(re.findall("error: A process that decodes images died", said)) == 1


@pytest.mark.long
def test_a_worker_of_a_server_ends_with_the_killed_training_process(tmp_path: Path) -> None:
    folder = save(tmp_path / "data", train=pictures(24), test=pictures(9))
    command = [sys.executable, "-c", KILLED, str(folder)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    with (tmp_path / "output").open("w") as output:  # a pipe would be open as long as the worker lives
        killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stdout=output, stderr=output)
    said = (tmp_path / "output").read_text()
    assert killed.returncode == -signal.SIGKILL, said
    worker = int(said)
    assert wait_for(lambda: not psutil.pid_exists(worker), seconds=15)


@pytest.mark.parametrize(("name", "load", "size"), [("data", load, 12 * 12 * 3), ("masks", load_masks, 40 * 30 * 4)])
def test_datasets_above_the_memory_limit_are_streamed(name: str, load: Any, size: int, places: Path) -> None:
    modes = [load(places / name, memory_limit=(33 * size - missing) / 2**30).mode for missing in (0, 1)]
    assert modes == ["memory", "stream"]
