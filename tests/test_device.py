"""The device, its cores and its precision, and what launchers say about them."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from frskd_timm.errors import UserError
from frskd_train.settings import LoopSettings
from frskd_train.system import device


@pytest.mark.parametrize(
    ("launched", "word"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "PARALLELISM_CONFIG"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--grad-accum-steps 4"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "--torchcompile"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "fp8"),
    ],
)
def test_settings_of_the_launcher_are_followed_or_refused(
    launched: dict[str, str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=word):
        device.start_accelerator(LoopSettings())
    monkeypatch.setattr(device, "fast_bfloat16", lambda _: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert device.precision(LoopSettings(), torch.device("cpu")) == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert device.precision(LoopSettings(), torch.device("cpu")) == "bf16"
    assert device.precision(LoopSettings(amp=False), torch.device("cpu")) == "no"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE in the environment is not from a launcher"),
        ({"LOCAL_WORLD_SIZE": "auto"}, "LOCAL_WORLD_SIZE in the environment is not from a launcher"),
        ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU is maybe: set it to true or false"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "Accelerate's mixed precision fp16 needs a GPU"),
    ],
)
def test_an_environment_that_is_not_a_launchers_is_named(monkeypatch: pytest.MonkeyPatch, variables, said) -> None:
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(os, "environ", {**os.environ, **variables})  # Accelerate sets further variables
    with pytest.raises(UserError, match=said):
        device.start_accelerator(LoopSettings())
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(
    ("variables", "threads", "expected"),
    [
        ({}, None, 3),
        ({"OMP_NUM_THREADS": "2"}, None, 2),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, None, 3),  # a launcher's default
        ({"OMP_NUM_THREADS": "2", "TORCHELASTIC_RUN_ID": "x"}, None, 2),
        ({"OMP_NUM_THREADS": "64", "ACCELERATE_MIXED_PRECISION": "no"}, None, 3),  # the cores of the whole machine
        ({"OMP_NUM_THREADS": "2"}, 1, 1),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, None, 1),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "3"}, None, 1),
    ],
)
def test_threads(
    variables: dict[str, str], threads: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device, "cores", lambda: 3)
    before = torch.get_num_threads()
    torch.set_num_threads(int(variables.get("OMP_NUM_THREADS", "1")))  # as torch does when it is imported
    try:
        device.start_accelerator(LoopSettings(amp=False, threads=threads))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 4), ("150000 100000", 2), ("900000 100000", 4), ("", 4)])
def test_cores_of_a_container(limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(device, "CPU_LIMIT", tmp_path / "cpu.max")
    assert device.cores() == 4
    (tmp_path / "cpu.max").write_text(limit)
    assert device.cores() == cores


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_would_train_alone_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs, where Accelerate ignores these variables without LOCAL_RANK."""
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    monkeypatch.setattr(device, "PartialState", lambda **_: alone)
    monkeypatch.setenv(name, "4")
    with pytest.raises(UserError, match=f"{name} is 4, but each process would train alone: start with torchrun"):
        device.start_accelerator(LoopSettings())
