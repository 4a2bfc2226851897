"""`validate.py`: a trained model scored on a dataset."""

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT, run_script
from published import make_student
from runs import evaluate_here
from timm.data import create_transform, resolve_data_config
from torch.nn.functional import cross_entropy

from frskd_timm.errors import UserError
from frskd_train.data.source import find_source
from frskd_train.parse import flag
from frskd_train.settings import DataSettings
from frskd_train.students import load_for_evaluation, refuse_size


def test_validation_of_the_export_is_the_runs_own_score(finished) -> None:
    run, _ = finished
    done = run_script(sys.executable, ROOT / "validate.py", "--model", run)
    stored = json.loads((run / "evaluation-fashion_mnist_sample.json").read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert stored["images"] == 1000
    for score in ("top1", "top5", "loss"):
        assert stored[score] == pytest.approx(metrics["student"][score], abs=2e-3)
    assert f"top-1 {stored['top1']:.2f}%" in done.stdout


def test_validation_at_another_size_is_timms(finished, tmp_path: Path) -> None:
    run, _ = finished
    args = {"img_size": 40, "crop_pct": 0.8, "crop_mode": "squash", "interpolation": "bicubic"}
    flags = [part for name, value in args.items() for part in (flag(name), value)]
    evaluate_here("--model", run, "--threads", 1, *flags, "--output", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert args.items() <= found.items()

    model = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(args, model=model))
    test = find_source(DataSettings()).splits["test"]
    labels = torch.tensor(test["label"])
    with torch.no_grad():
        logits = model(torch.stack([transform(row["image"].convert("RGB")) for row in test]))
    assert found["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item(), abs=0.11)
    assert found["loss"] == pytest.approx(cross_entropy(logits, labels).item(), abs=1e-4)


def test_validation_at_a_size_that_a_model_cannot_take_reads_no_data(tmp_path: Path) -> None:
    vit = make_student(tmp_path / "vit", "test_vit3", 160)
    with pytest.raises(UserError, match=r"--img-size 32 .*160"):
        evaluate_here("--model", vit, "--img-size", 32, "--dataset", tmp_path / "nowhere")


def test_a_model_that_refuses_a_size_without_a_word_gets_a_sentence_too() -> None:
    class Silent(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    model = Silent(1, 1)
    model.pretrained_cfg = {"input_size": (3, 160, 160)}
    with pytest.raises(UserError, match=r"--img-size 32 \(AssertionError\)"):
        refuse_size(model, (3, 32, 32))


def test_validation_without_weights_is_one_sentence() -> None:
    done = run_script(sys.executable, ROOT / "validate.py", "--model", "nowhere/run", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nowhere/run: there is no such folder" in done.stderr
    with pytest.raises(UserError, match="resnet18_cifar_frskd"):
        load_for_evaluation("resnet18_cifar_frskd")
