"""Training on a GPU, with `--device cuda`; `--device cpu` rehearses these tests, and without the flag they skip."""

import json
from pathlib import Path

import pytest
import timm
import torch
from runs import train_here
from safetensors.torch import load_file

import frskd_timm  # noqa: F401  registers the students
from frskd_timm.layers import interpolate


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Return the device of `--device`, or skip the test."""
    return request.config.getoption("--device") or pytest.skip("needs --device cuda, or cpu for a rehearsal")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("model", timm.list_models("*_frskd"))
def test_two_steps_of_every_student(model: str, compiled: bool, device: str, tmp_path: Path) -> None:
    """With the defaults: bfloat16, channels last, and data on the GPU."""
    flags = ["--model", model, "--train-num-samples", 40, "--batch-size", 20, "--epochs", 1, "--img-size", 64]
    torch._dynamo.reset()  # all students share a limited number of compiled variants
    torch._dynamo.utils.counters.clear()
    train_here(*flags, "--output-dir", tmp_path / "run", *(["--torchcompile"] if compiled else []))
    assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["machine"]["device"] == torch.device(device).type
    weights = load_file(tmp_path / "run" / "student" / "model.safetensors", device=device)
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_resized_maps_keep_their_type(device: str) -> None:
    maps = torch.ones(2, 8, 4, 4, device=device, dtype=torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        assert interpolate(maps, (8, 8), mode="nearest").dtype == torch.bfloat16
