"""Shared by all tests: no network access, and fixtures that run the real command."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from hub_server import LoopbackHub

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="0")
# With small tensors, more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, so that no change is refused by chance; `--hypothesis-profile default` draws others.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

ROOT = Path(__file__).resolve().parent.parent

# A test run in the background ignores these, which its child processes would inherit; a handler is not inherited.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

# A stock timm architecture with 0.4 million parameters: a run takes seconds.
SMALL = ["--model", "test_resnet", "--train-num-samples", "160", "--batch-size", "32", "--epochs", "2", "--no-amp"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--device`."""
    parser.addoption("--device", help="device of the golden tests, and of the tests of a GPU; by default these skip")


def pytest_configure(config: pytest.Config) -> None:
    """Train on the CPU, also beside a GPU, unless it is chosen: its results differ, and processes cannot share it."""
    if config.getoption("--device") in (None, "cpu"):
        os.environ["ACCELERATE_USE_CPU"] = "true"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run a golden test on the chosen device, in full float32."""
    device = item.config.getoption("--device")
    if device is None or item.get_closest_marker("golden") is None:
        return (yield)
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with torch.device(device):
        return (yield)


def run_script(*command: object, check: bool = True, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    """Run a command as a user would; if it fails, show its output."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONUTF8": "1", **env},
        timeout=600,
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def launch_command(processes: int) -> list[object]:
    """Return the launcher of `train.py`: Python for 0, `accelerate launch` for 1, torchrun for more processes."""
    if processes == 1:
        command = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--quiet", "--num_processes", 1]
    else:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes else []
    return [sys.executable, *command]


def free_port() -> int:
    """Return an unused port of 127.0.0.1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def train() -> Callable[..., subprocess.CompletedProcess]:
    """Run `train.py` in its own process: train(*flags, processes=1, check=True)."""

    def call(*flags: object, processes: int = 0, check: bool = True, **env: str) -> subprocess.CompletedProcess:
        return run_script(*launch_command(processes), ROOT / "train.py", "--threads", 1, *flags, check=check, **env)

    return call


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for small runs, with datasets of 24 + 9 images in `data` and `masks`."""
    from pictures import masked, pictures, save

    place = tmp_path_factory.mktemp("reliability")
    save(place / "data", train=pictures(24), test=pictures(9))
    save(place / "masks", train=masked(24), test=masked(9))
    return place


@pytest.fixture(scope="session")
def whole(places: Path) -> Path:
    """Return the folder of an uninterrupted run."""
    from runs import METHOD, small, train_here

    train_here(*small(places, *METHOD), "--output-dir", places / "whole")
    return places / "whole"


@pytest.fixture(scope="session")
def whole_masks(places: Path) -> Path:
    """Return the folder of an uninterrupted segmentation run."""
    from runs import METHODS, small, train_here

    train_here(*small(places, *METHODS["segmentation"], task="segmentation"), "--output-dir", places / "whole masks")
    return places / "whole masks"


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an exported student with 0.4 million parameters."""
    from published import make_student

    return make_student(tmp_path_factory.mktemp("exported") / "student", "test_resnet", 64)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator["LoopbackHub"]:
    """Start a Hub on 127.0.0.1 and let the client of this process reach it."""
    from hub_server import LoopbackHub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every sleep to a hundredth."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 100))
