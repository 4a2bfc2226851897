"""Small runs of `train.py`, in this process or in one that can be killed."""

import csv
import gc
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, free_port, launch_command
from safetensors.torch import load_file
from torch import Tensor, nn

from frskd_train.run.checkpoint import all_checkpoints, latest_checkpoint, load_state, save_checkpoint
from frskd_train.settings import parse
from frskd_train.trainer import Trainer

MARKER = "hf_tHiSiSaSeCrEtMaRkEr"  # the access token of these runs; it must not be written anywhere
METHOD = ["--sla", "--cutmix", 1, "--mixup", 0.2, "--model-ema", "--grad-accum-steps", 2, "--drop", 0.1]


MASKED = ["--model-ema", "--grad-accum-steps", 2, "--color-jitter", 0.3, "--distill-start", 1, "--self-teacher", "sum"]
METHODS = {"classification": METHOD, "segmentation": MASKED}


def small(places: Path, *flags: object, task: str = "classification") -> list[str]:
    base = ["--task", task, "--dataset", places / "data", "--model", "test_resnet", "--batch-size", 4, "--epochs", 2]
    if task == "segmentation":
        base += ["--dataset", places / "masks", "--decoder-channels", 8, "--decoder-layers", 2, "--img-size", 32]
    return [str(part) for part in (*base, "--no-amp", "--threads", 1, "--lr", 0.01, *flags)]


def evaluate_here(*flags: object) -> None:
    """Run `validate.py` in this process."""
    from accelerate.state import AcceleratorState

    from frskd_train.cli.validate import evaluate

    AcceleratorState._reset_state(True)  # of an earlier test with another precision
    try:
        evaluate(parse.parse_evaluation(["--threads", "1", *map(str, flags)]))
    finally:
        AcceleratorState._reset_state(True)


def train_here(*flags: object) -> None:
    """Run `train.py` in this process: about one second instead of ten."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)  # of an earlier test with another precision
    token = os.environ.get("HF_TOKEN")
    os.environ["HF_TOKEN"] = MARKER
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        # One thread: on a busy machine several would wait for each other.
        Trainer(parse.parse_settings(["--threads", "1", *map(str, flags)])).run()
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        os.environ.pop("HF_TOKEN")
        os.environ.update({"HF_TOKEN": token} if token is not None else {})


def start(*flags: object, processes: int = 0, log: Path, **env: str) -> subprocess.Popen:
    """Start `train.py` in its own process group, under the real launcher if `processes` is not 0."""
    command = [*launch_command(processes), ROOT / "train.py", *flags]
    with log.open("a") as file:
        output = {"stdout": file, "stderr": subprocess.STDOUT}
        environment = {**os.environ, "HF_TOKEN": MARKER, **env}
        return subprocess.Popen(list(map(str, command)), cwd=ROOT, start_new_session=True, env=environment, **output)


def wait_for(
    condition: Callable[[], Any], process: subprocess.Popen | None = None, seconds: float = 240, pause: float = 0.05
) -> Any:
    """Poll until the condition holds or the process ends; return the last result of the condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := condition()) or (process is not None and process.poll() is not None):
            return found
        time.sleep(pause)
    raise AssertionError("The condition was never met.")


def family(launcher: subprocess.Popen) -> list[Any]:
    """Return a launcher and its descendants, which torch's launcher puts into their own sessions; children first."""
    import psutil

    if launcher.poll() is not None:
        return []
    root = psutil.Process(launcher.pid)
    return [*reversed(root.children(recursive=True)), root]


def kill_all(launcher: subprocess.Popen, members: list[Any] | None = None) -> None:
    """Send kill -9 to a launcher and its descendants; `members` saves looking them up."""
    import psutil

    for member in family(launcher) if members is None else members:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    launcher.wait()


def fork(call: Callable[[], object], dies_at: int = 0) -> int:
    """Run a call in a fork of this process, which has imported everything already; return its process ID.

    Args:
        call: What the fork does, for instance `train_here`.
        dies_at: The fork kills itself, as kill -9 does, before this file operation (counted from 1) of those that
            write or delete checkpoints; each checkpoint takes twelve or more. 0 is never.
    """
    child = os.fork()
    if child:
        return child
    gc.freeze()  # destroying a process group that an earlier test left would wait for threads that a fork lacks
    multiprocessing.set_start_method("fork", force=True)  # the server of Python 3.14 is no child of the fork
    status: Any = 1
    try:
        operations = itertools.count(1)

        def look(_: str, arguments: tuple) -> None:
            if ".writing-step" in str(arguments[:2]) and next(operations) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        call()
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(child: int, seconds: float = 300) -> int:
    """Wait for a fork; return its exit status, or minus the signal that ended it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("The fork hangs.")


def train_together(*processes: Sequence[object]) -> list[int]:
    """Run `train.py` in several processes, each with its flags, that form a group; return their exit statuses."""
    count = str(len(processes))
    world = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }

    def train_as(rank: int) -> None:
        os.environ.update(world, RANK=str(rank), LOCAL_RANK=str(rank))
        train_here(*processes[rank])

    return [end_of(child) for child in [fork(partial(train_as, rank)) for rank in range(len(processes))]]


def half_written(run: Path) -> list[Path]:
    """Return the temporary folders of checkpoints that are being written or deleted."""
    return list(run.glob("checkpoints/.writing-*"))


def tensors(run: Path) -> dict[str, Tensor]:
    """Return every tensor of the last checkpoint and of the student."""
    last = latest_checkpoint(run / "checkpoints")
    assert last is not None
    files = [*last.glob("*.safetensors"), run / "student" / "model.safetensors"]
    return {f"{path.name}:{key}": value for path in files for key, value in load_file(path).items()}


def rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's `summary.csv`."""
    with (run / "summary.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same(one: Path, other: Path) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different, different[:5]
    histories = [load_state(latest_checkpoint(run / "checkpoints"))["history"] for run in (one, other)]  # type: ignore[arg-type]
    for x, y in zip(*histories, strict=True):  # several processes add up sums in a different order
        wanted = {k: v for k, v in y.items() if k != "images_per_second"}
        assert {k: v for k, v in x.items() if k != "images_per_second"} == pytest.approx(wanted, rel=1e-12)


def assert_resumes(run: Path, copy: Path) -> None:
    """Resume a copy of a finished run from the last checkpoint but one and check that the results are equal."""
    shutil.copytree(run, copy)
    *_, first, last = all_checkpoints(copy / "checkpoints")
    shutil.rmtree(last)
    train_here("--resume", first)
    assert_same(run, copy)


# The state of a checkpoint other than its tensors.
STATE = {
    "epoch": 0, "step": 0, "updates": 0, "history": [], "best": None, "seconds": 0.0, "meter": {}, "settings": {},
    "fingerprint": "f", "global_batch": 8, "processes": 1,
}  # fmt: skip


def checkpoints(folder: Path, *steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Write checkpoints of a single layer; return the layer and its optimizer."""
    module = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(2, 4)).sum().backward()
    for step in steps:
        optimizer.step()
        save_checkpoint(folder, step, {"task": module}, optimizer, STATE)
    return module, optimizer
