"""The speed benchmark: what it times is the same mathematics, and a user gets a row of figures."""

import csv
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from conftest import ROOT
from safetensors.torch import load_file

import frskd_timm  # noqa: F401  registers the students

SPEED = ROOT / "benchmarks" / "speed.py"


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speed", SPEED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("model", "size"), [("wide_resnet16_2_frskd", 32), ("resnet18_frskd", 64)])
def test_the_plain_build_computes_what_the_fast_one_does(speed: ModuleType, model: str, size: int) -> None:
    """Loss and every gradient; 64x64 brings 2x2 maps with 1024 channels, which have paths of their own."""
    # In float64, so that rounding flips no ReLU.
    task = speed.make_task(model, size, "frskd").to(torch.float64, memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # fusions weigh their maps alike at first, where a mix-up would not be seen
        for name, parameter in task.named_parameters():
            if name.endswith(".weights"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    images = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64)
    images = images.contiguous(memory_format=torch.channels_last)
    target = torch.arange(4)
    parameters = dict(task.named_parameters())

    fast = task(images, target)["loss"]
    fast_gradients = torch.autograd.grad(fast, list(parameters.values()))
    plain = speed.plain_loss(speed.without_fast_paths(task), images, target)
    plain_gradients = torch.autograd.grad(plain, list(parameters.values()))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=0, check_dtype=False)
    largest = max(float(gradient.abs().max()) for gradient in plain_gradients)
    for name, one, other in zip(parameters, fast_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * largest, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)], ids=["step", "whole"])
def test_a_user_gets_a_row_of_figures(tmp_path: Path, whole: bool) -> None:
    output = tmp_path / "speed.csv"
    command = [sys.executable, str(SPEED), "--output", str(output), "--model", "wide_resnet16_2_frskd"]
    command += ["--batch-size", "4", "--rounds", "1", "--steps", "1", "--threads", "1", "--precision", "fp32"]
    done = subprocess.run([*command, *([] if whole else ["--dataset", "", "--no-memory"])], capture_output=True)
    assert done.returncode == 0, done.stderr
    with output.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert 1.5 < float(row["multiply_adds_ratio"]) < 1.67  # the authors' order of operations makes it 1.67
    assert float(row["ce_images_per_s"].split()[0]) > 0
    assert not whole or float(row["frskd_peak_mib"]) > float(row["ce_peak_mib"]) > 0
    done = subprocess.run([sys.executable, str(SPEED), "--table", str(output)], capture_output=True, text=True)
    assert "| `wide_resnet16_2_frskd` |" in done.stdout


def test_help_needs_no_torch() -> None:
    code = f"import runpy, sys; sys.argv = ['x', '--help']\ntry: runpy.run_path({str(SPEED)!r}, None, '__main__')"
    code += "\nfinally: assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_exports_a_plain_student(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "--torchcompile", "--output-dir", str(tmp_path / "run")]
    command += ["--train-num-samples", "64", "--batch-size", "16", "--epochs", "1", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    student = timm.create_model("wide_resnet16_2_frskd", num_classes=10)
    student.load_state_dict(load_file(tmp_path / "run" / "student" / "model.safetensors"))  # strict: no prefixes


def test_the_document_shows_what_was_measured(speed: ModuleType) -> None:
    with (ROOT / "benchmarks" / "results" / "speed.csv").open(encoding="utf-8") as file:
        table = speed.table(list(csv.DictReader(file)))
    assert table in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
