"""Export a small student and push it to the loopback Hub."""

from pathlib import Path
from typing import Any

import timm
import torch
from hub_server import TOKEN, USER, LoopbackHub
from PIL import Image

from frskd_timm.export.student import export_student
from frskd_train.publish.student import push_student
from frskd_train.report.card import write_card
from frskd_train.report.evaluation import Evaluation
from frskd_train.report.metrics import Metrics

REPO = f"{USER}/student"

METRICS = Metrics.from_json(
    {
        "schema": 1,
        "task": "classification",
        "method": "frskd",
        "model": "resnet18_frskd",
        "architecture": "resnet18",
        "tag": "garments",
        "license": "mit",
        "dataset": {
            "name": "Kleidungsstücke",
            "id": "someone/garments",
            "split": "test",
            "whole_split": True,
            "license": "mit",
            "homepage": "https://example.org/garments",
            "train_images": 4000,
            "val_images": 1000,
            "num_classes": 10,
        },
        "student": {"top1": 88.1, "top5": 99.6, "loss": 0.41},
        "self_teacher": {"top1": 88.4, "top5": 99.7, "loss": 0.40},
        "weights": "ema",
        "param_count": 11181642,
        "img_size": 28,
        "epochs": 20,
        "epoch": 20,
        "seed": 42,
        "seconds": 212.0,
        "images_per_second": 371.0,
        "machine": {"device": "cpu", "name": "a machine", "cores": 2, "processes": 2, "precision": "bf16"},
        "versions": {"frskd_timm": "0.1.0", "torch": "2.6", "timm": "1.0.31"},
        "date": "2026-11-20",
        "gmacs": 1.814,
        "activations": 2.4847,
        "baseline": {
            "method": "ce",
            "runs": [{"seed": 42, "top1": 87.0}, {"seed": 43, "top1": 87.2}],
            "mean": 87.1,
            "std": 0.1414,
        },
    }
)

CALIBRATION: dict[str, Any] = {"bin_count": [0, 9], "bin_confidence": [None, 0.9], "bin_accuracy": [None, 0.8]}
EVALUATION = Evaluation.from_json(
    {
        "schema": 2,
        "task": "classification",
        "model": "resnet18_frskd",
        "dataset": "Kleidungsstücke",
        "split": "test",
        "images": 9,
        "top1": 88.1,
        "loss": 0.41,
        "macro": {"precision": 87.5, "recall": 86.5, "f1": 86.9},
        "class_names": ["a|b", "$x$"],
        "per_class": [
            {"name": "a|b", "precision": 80.0, "recall": 70.0, "f1": 74.7, "support": 5},
            {"name": "$x$", "precision": 95.0, "recall": 99.0, "f1": 96.9, "support": 4},
        ],
        "confusion": [[0, 0, 4], [0, 1, 1], [1, 1, 4]],
        "calibration": {"nll": 0.41, "ece": 0.062, "brier": 0.171, **CALIBRATION},
        "calibrated": {"nll": 0.39, "ece": 0.011, "brier": 0.169, **CALIBRATION},
        "temperature": {"value": 1.32, "dataset": "Kleidungsstücke", "split": "train", "images": 400},
        "temperature_note": "",
        "mistakes": [],
        "images_per_second": 371.0,
        "img_size": 28,
        "param_count": 11181642,
    }
)


def make_student(folder: Path, name: str, size: int = 32, seed: int = 0) -> Path:
    """Export a student with random weights, a card, figures and a recipe."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=10)
    for parameter in model.parameters():  # a head that starts at zero would make every comparison trivial
        torch.nn.init.normal_(parameter, std=0.05)

    def finish(aside: Path) -> None:
        for picture in ("attention.png", "curves.png"):
            Image.new("RGB", (8, 8), (seed, 0, 0)).save(aside / picture)
        (aside / "recipe.yaml").write_text("epochs: 20\n")
        write_card(aside, METRICS)

    labels = [f"class {index}" for index in range(10)]
    data = {"input_size": (3, size, size), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return export_student(model, folder, tag="garments", label_names=labels, license="mit", finish=finish, **data)


def push(hub: LoopbackHub, folder: Path, repo_id: str = REPO, **options: Any) -> Any:
    """Push a student to the loopback Hub; no message may show the token."""
    lines: list[str] = []
    published = push_student(
        folder, repo_id, **{"token": TOKEN, "endpoint": hub.endpoint, "say": lines.append} | options
    )
    assert TOKEN not in "".join(lines)
    return published
