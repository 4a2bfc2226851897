"""The lowest declared versions of all dependencies train, score, export and load.

Installing them takes minutes and gigabytes, and needs the package index. Wheels of the oldest torch exist for Python
up to 3.13; with a newer interpreter the test is skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LOAD = """
import frskd_timm, timm, torch
model = timm.create_model("{student}", pretrained=True).eval()
print("logits", *model(torch.zeros(2, 3, 32, 32)).shape)
"""
SEGMENT = """
import torch
from frskd_timm.segmentation import SegmentationStudent
student = SegmentationStudent("test_resnet", 3, channels=8, layers=1).eval()
student.save_pretrained("masks")
again, images = SegmentationStudent.from_pretrained("masks").eval(), torch.rand(1, 3, 64, 64)
print("equal", torch.equal(student(images), again(images)))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command, and return what it printed; skip the test if it needs a package index that is out of reach."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True)
    if done.returncode and "error sending request" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the oldest torch has no wheels for this Python")
def test_the_lowest_declared_versions_train_export_and_load(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--python", sys.executable, "lowest", cwd=tmp_path)
    python = tmp_path / "lowest" / "bin" / "python"
    lowest = ("--resolution", "lowest-direct", "--python", python)
    run(uv, "pip", "install", *lowest, ROOT, cwd=tmp_path)
    assert run(python, "-c", LOAD.format(student="wide_resnet16_2_frskd"), cwd=tmp_path).strip() == "logits 2 10"
    assert "equal True" in run(python, "-c", SEGMENT, cwd=tmp_path)
    assert run(python, "-c", "import torch; print(torch.__version__)", cwd=tmp_path).startswith("2.6.0")

    run(uv, "pip", "install", *lowest, f"{ROOT}[train]", cwd=tmp_path)
    small = ("--model", "test_resnet", "--epochs", "1", "--train-num-samples", "64", "--img-size", "32")
    train = (python, "-m", "frskd_train", "train", *small, "--threads", "1", "--output-dir", "run")
    assert "epoch 1/1" in run(*train, cwd=tmp_path)
    student = tmp_path / "run" / "student"
    assert "top-1" in run(python, "-m", "frskd_train", "validate", "--model", f"local-dir:{student}", cwd=tmp_path)
    assert run(python, "-c", LOAD.format(student=f"local-dir:{student}"), cwd=tmp_path).strip() == "logits 2 10"

    run(uv, "pip", "install", *lowest, f"{ROOT}[train,onnx]", cwd=tmp_path)
    run(python, "-m", "frskd_train", "export", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "student.onnx").is_file()
