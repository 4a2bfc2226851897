"""Settings of a run that arrive in its data, student, and task."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from networks import create
from runs import small, train_here
from timm.layers import DropPath
from torch import nn

from frskd_timm.gates import GATES
from frskd_timm.losses.logits import LOGIT_LOSSES
from frskd_timm.segmentation import create_segmentation_student
from frskd_timm.task import FRSKDTask
from frskd_train.settings.parse import parse_settings
from frskd_train.tasks import base, choose_job
from frskd_train.trainer import Trainer


def some_data() -> Any:
    """What a job reads about the data of five classes, without data."""
    preprocessing = SimpleNamespace(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    val = SimpleNamespace(split=SimpleNamespace(sizes=()))
    return SimpleNamespace(preprocessing=preprocessing, num_classes=5, class_names=list("abcde"), val=val)


OF_NETWORKS = {
    "classification": "--sla --sla-weight 0.25 --feature-levels 3 --teacher-depth 2 --teacher-width 0.5",
    "segmentation": "--self-teacher sum --decoder-layers 2 --decoder-channels 24",
}


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_settings_of_the_networks_reach_them(kind: str) -> None:
    words = f"--task {kind} --model test_convnext --drop-path 0.3 --teacher-repeats 3 {OF_NETWORKS[kind]}"
    job, data = choose_job(parse_settings(words.split())), some_data()
    student: Any = job.build_student(data)
    task: Any = job.build_task(student, data)
    drops = [module.drop_prob for module in student.modules() if isinstance(module, DropPath)]
    assert max(drops) == pytest.approx(0.3)
    if kind == "segmentation":
        assert (len(student.bifpn), len(task.self_teacher.bifpn), student.channels) == (2, 3, 24)
        return
    assert (len(task.pyramid.indices), len(task.self_teacher.layers), task.sla_weight) == (3, 3, 0.25)
    options = {"repeats": 3, "depth": 2, "width": 0.5}
    expected = FRSKDTask.create(student, (3, 64, 64), 5, max_levels=3, sla=True, teacher_options=options)
    shapes = lambda found: {name: value.shape for name, value in found.state_dict().items()}
    assert shapes(task) == shapes(expected)


def test_settings_of_the_labels_reach_the_loss() -> None:
    words = "--bce-loss --bce-sum --bce-target-thresh 0.2 --bce-pos-weight 3 --smoothing 0.1"
    loss: Any = choose_job(parse_settings(words.split())).build_task(create("test_resnet"), some_data()).label_loss
    assert (loss.sum_classes, loss.binary.target_threshold, loss.binary.smoothing) == (True, 0.2, 0.1)
    assert loss.binary.pos_weight == 3


def test_the_range_of_sizes_reaches_the_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(base, "load_data", lambda *_, **options: given.update(options))
    words = "--task segmentation --model test_convnext --resize-range 0.25 4"
    choose_job(parse_settings(words.split())).load_data(None)
    assert given["resize_range"] == (0.25, 4)


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_settings_of_the_method_reach_the_task(kind: str) -> None:
    numbers = {"alpha": 3, "beta": 7, "temperature": 5, "smoothing": 0.2, "student_weight": 0.5, "teacher_weight": 0.25}
    numbers |= {"teacher_gradient": 0.75, "teacher_ema": 0.9, "teacher_interval": 2}
    words = " ".join(f"--{name} {value}" for name, value in numbers.items())
    words += " --distill-schedule warmup --distill-start 3 --epochs 12 --gate advantage --logit-loss dist"
    words += f" --task {kind} --noisy-labels --class-weights 1 2 3 4 5"
    segmented = kind == "segmentation"
    student: Any = create_segmentation_student("test_resnet", 5, channels=8) if segmented else create("test_resnet")
    task: Any = choose_job(parse_settings(words.split())).build_task(student, some_data())
    assert {name: getattr(task, name) for name in numbers} == numbers
    assert (task.schedule, task.start, task.noisy_labels) == ("warmup", 3 / 12, True)
    assert (task.gate, task.logit_loss) == (GATES.get("advantage"), LOGIT_LOSSES.get("dist"))
    assert task.label_loss.class_weights.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_settings_of_the_model_reach_it(kind: str) -> None:
    words = f"--task {kind} --model test_convnext --model-kwargs act_layer=relu --grad-checkpointing"
    words += " --drop 0.2" if kind == "classification" else ""
    student: Any = choose_job(parse_settings(words.split())).build_student(some_data())
    network = student if kind == "classification" else student.backbone
    assert any(isinstance(module, nn.ReLU) for module in network.modules())
    assert any(getattr(module, "grad_checkpointing", False) for module in network.modules())
    dropped = max((module.p for module in network.modules() if isinstance(module, nn.Dropout)), default=0)
    assert dropped == (0.2 if kind == "classification" else 0)


def test_settings_of_the_batches_reach_them(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Trainer] = []
    monkeypatch.setattr(Trainer, "run", lambda self: made.append(self))
    for name, flags in (("a", []), ("b", ["--validation-batch-size", 5, "--no-channels-last"])):
        train_here(*small(places, *flags, "--output-dir", tmp_path / name))
    batches = [next(iter(trainer.val_batches))[0] for trainer in made]
    assert [len(images) for images in batches] == [8, 5]
    assert [images.is_contiguous() for images in batches] == [False, True]
