"""The tasks in loops other than `train.py`, and timm's own tools on the students."""

import re
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networks
import pytest
import timm
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ROOT, launch_command, run_script
from pictures import picture
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import Tensor

from frskd_timm import FRSKDTask
from frskd_timm.errors import UserError
from frskd_timm.segmentation import SegmentationTask, create_segmentation_student
from frskd_timm.student_task import LinearProbeTask, StudentTask
from frskd_train.settings import Settings, default_settings
from frskd_train.students import build_student
from frskd_train.tasks.classification import ClassificationJob
from frskd_train.tasks.segmentation import SegmentationJob

README = (ROOT / "README.md").read_text(encoding="utf-8")
LOOP = next(code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "FRSKDTask.create" in code)
BATCH = (torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1]))


def create(**options: Any) -> FRSKDTask:
    return FRSKDTask.create(networks.create("test_resnet"), (3, 64, 64), 5, **options)


def train(task: StudentTask, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    """Train as timm's `train.py` does, on one batch."""
    losses = []
    for step in steps:
        task.train()
        task.set_progress(step / 4)
        optimizer.zero_grad()
        result = task(*BATCH)
        result["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.get_clip_parameters(), 1.0)
        optimizer.step()
        task.update_ema(step=step)
        losses.append(result["loss"].detach())
    return losses


def test_the_loop_of_the_readme_learns_from_timms_loader(tmp_path: Path) -> None:
    """Run the README's code on a folder of images, with a smaller student, then timm's evaluator on the student."""
    torch.manual_seed(0)
    for number in range(24):
        folder = tmp_path / "train" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number % 3, 64, 64).rotate(number).save(folder / f"{number}.jpg")
    dataset = create_dataset("", str(tmp_path), split="train")
    options: dict[str, Any] = {"input_size": (3, 64, 64), "batch_size": 4, "num_workers": 0, "use_prefetcher": False}
    scope: dict[str, Any] = {"loader": create_loader(dataset, is_training=True, no_aug=True, **options)}
    exec(
        LOOP.replace("convnext_atto", "test_resnet")
        .replace("num_epochs=10", "num_epochs=6")
        .replace("lr=1e-3", "lr=3e-3"),
        scope,
    )
    task, result = scope["task"], scope["result"]
    assert set(re.search(r"# (loss, output.*)", LOOP)[1].split(", ")) <= set(result)
    assert scope["optimizer"].param_groups[0]["lr"] < 1e-6  # the end of the schedule
    evaluator = task.create_evaluator()
    model = task.get_eval_model().eval()
    for images, target in create_loader(dataset, is_training=False, **options):
        evaluator.update(model(images), target)
    assert evaluator.compute()["top1"] > 80


def test_checkpoints_of_timm_hold_the_student_and_resume_exactly(tmp_path: Path) -> None:
    def make() -> tuple[FRSKDTask, torch.optim.Optimizer]:
        task = create(schedule="lead", feature_loss="fitnet")
        task.setup_ema(decay=0.5)
        return task, create_optimizer_v2(task, opt="adamw", lr=1e-3)

    torch.manual_seed(0)
    task, optimizer = make()
    train(task, optimizer, range(2))
    arguments = Namespace(model="test_resnet")
    model: Any = task.get_trainable_module()
    saver = CheckpointSaver(model, optimizer, args=arguments, checkpoint_dir=str(tmp_path), task=task)
    saver.save_checkpoint(0, metric=1.0)
    best = tmp_path / "model_best.pth.tar"
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    assert saved["state_dict"].keys() == saved["state_dict_ema"].keys() == task.student.state_dict().keys()
    average = {name: value.clone() for name, value in saved["state_dict_ema"].items()}

    again, fresh = make()
    assert resume_task_checkpoint(again, best, fresh) == 1
    load_task_ema_checkpoint(again, best)
    assert train(again, fresh, range(2, 4)) == train(task, optimizer, range(2, 4))
    for ema in (False, True):
        one, other = (t.get_checkpoint_state(ema=ema)["state_dict_ema" if ema else "state_dict"] for t in (task, again))
        assert all(torch.equal(value, other[name]) for name, value in one.items())

    loaded = timm.create_model("test_resnet", num_classes=5, checkpoint_path=str(best))
    settings = default_settings().model.__class__(model="test_resnet", initial_checkpoint=str(best))
    for student in (loaded, build_student(settings, {}, 5, (3, 64, 64))):
        assert all(torch.equal(value, average[name]) for name, value in student.state_dict().items())


def check_wrapped(task: FRSKDTask, prepare: Callable[[], object]) -> None:
    """Check that `prepare` changes neither the loss nor the names of the state."""
    names, loss = list(task.state_dict()), task(*BATCH)["loss"]
    prepare()
    again = task(*BATCH)["loss"]
    again.backward()
    assert torch.allclose(again, loss)
    assert all(parameter.grad is not None for parameter in task.get_clip_parameters())
    assert list(task.state_dict()) == names
    assert task.get_eval_model(task.get_trainable_module()) is task.get_eval_model() is task.student


def test_a_distributed_task() -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        task = create()
        check_wrapped(task, task.prepare_distributed)
        wrapped: Any = task.get_trainable_module()
        with task.no_sync():
            assert not wrapped.require_backward_grad_sync
    finally:
        dist.destroy_process_group()


@pytest.mark.long
def test_a_compiled_task() -> None:
    task = create()
    average = task.setup_ema(0.999, True)
    check_wrapped(task, lambda: task.compile("eager", None))
    assert task.compile_ema("eager", None) is average.module


RANKS = """
import os, torch, timm
from frskd_timm import FRSKDTask
from frskd_timm.errors import UserError
torch.distributed.init_process_group("gloo")
rank = int(os.environ["RANK"])
torch.manual_seed(0)
task = FRSKDTask.create(timm.create_model("test_resnet", num_classes=5), (3, 64, 64), 5).eval()
images, target = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 1])
task(images, target)["loss"].backward()
whole = [parameter.grad.clone() for parameter in task.parameters()]
task.zero_grad()
task.prepare_distributed()
task(images[rank::2], target[rank::2])["loss"].backward()
assert all(torch.allclose(p.grad, grad, atol=1e-5) for p, grad in zip(task.parameters(), whole, strict=True))
"""


@pytest.mark.long
def test_gradients_are_averaged_over_processes(tmp_path: Path) -> None:
    """Half of the batch in each process gives the gradients of the whole batch."""
    (tmp_path / "ranks.py").write_text(RANKS)
    run_script(*launch_command(2), tmp_path / "ranks.py")


def test_layer_decay_covers_all_parameters() -> None:
    task = FRSKDTask.create(timm.create_model("vit_tiny_patch16_224", num_classes=5), (3, 224, 224), 5)
    groups = create_optimizer_v2(task, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    scale = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(scale) == len(task.get_clip_parameters())
    assert scale[id(task.self_teacher.get_submodule("fc").weight)] == (1.0, 0.1)
    assert scale[id(task.student.get_parameter("pos_embed"))] == (0.5**13, 0.0)
    clipped = {id(parameter) for parameter in task.get_clip_parameters(exclude_head=True)}
    excluded = [name for name, parameter in task.named_parameters() if id(parameter) not in clipped]
    assert excluded == [
        f"{network}.{name}" for network in ("student.head", "self_teacher.fc") for name in ("weight", "bias")
    ]


def test_unusable_options_are_refused() -> None:
    student = timm.create_model("test_resnet", num_classes=5)
    with pytest.raises(UserError, match=r"bifpnc.* 'widht'"):
        FRSKDTask.create(student, (3, 64, 64), 5, teacher_options={"widht": 2})
    with pytest.raises(UserError, match="has 0 classes: create it with at least 2"):
        FRSKDTask.create(timm.create_model("test_resnet", num_classes=0), (3, 64, 64), 0)
    AcceleratorState._reset_state(True)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(timm.create_model("test_resnet", num_classes=5))
    with pytest.raises(UserError, match=r"forward of .* was replaced, .*: prepare the task"):
        FRSKDTask.create(prepared, (3, 64, 64), 5)
    broken = timm.create_model("test_resnet", num_classes=5)
    broken.fc = torch.nn.Linear(512, 5)
    with pytest.raises(UserError, match=r"does not run on 3x64x64 images \(.*\)\.$"):
        FRSKDTask.create(broken, (3, 64, 64), 5)
    task = FRSKDTask.create(student, (3, 64, 64), 5)
    student.reset_classifier(7)
    with pytest.raises(UserError, match="student has 7 outputs and the self-teacher 5"):
        task(*BATCH)
    segmentation = SegmentationTask.create(create_segmentation_student("test_resnet", 3, channels=8))
    segmentation.student.reset_classifier(4)
    with pytest.raises(UserError, match="student has 4 outputs and the self-teacher 3"):
        segmentation(BATCH[0], torch.zeros(len(BATCH[0]), 64, 64, dtype=torch.uint8))
    with pytest.raises(UserError, match="group_matcher"):
        create_optimizer_v2(segmentation, opt="sgd", lr=0.1, layer_decay=0.5)


def test_the_self_teacher_has_the_type_of_the_student() -> None:
    task = FRSKDTask.create(networks.create("test_resnet").double(), (3, 64, 64), 5, feature_loss="fitnet", sla=True)
    assert task(BATCH[0].double(), BATCH[1])["teacher_output"].dtype == task.dtype == torch.float64


def test_a_new_linear_probe_keeps_the_statistics_of_its_student() -> None:
    student = networks.lively(timm.create_model("test_resnet", num_classes=5)).train()
    before = [buffer.clone() for buffer in student.buffers()]
    LinearProbeTask(student)(torch.randn(4, 3, 64, 64), torch.arange(4))
    assert all(map(torch.equal, student.buffers(), before))


def test_without_progress_distillation_has_full_weight() -> None:
    task = create(schedule="ramp").eval()
    never = task(*BATCH)
    task.set_progress(0.0)
    assert task(*BATCH)["loss_kl"] < 0.01 * never["loss_kl"]
    task.set_progress(1.0)
    assert task(*BATCH)["loss_kl"] == never["loss_kl"]
    averaged = create(teacher_ema=0.9).train()
    torch.nn.utils.vector_to_parameters(torch.full((10**7,), torch.nan), averaged.average.parameters())
    with pytest.warns(UserWarning, match="teacher_ema has no effect"):
        assert averaged(*BATCH)["loss"].isfinite()


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_create_and_the_command_line_have_the_same_defaults(kind: str) -> None:
    """Compare every number, word and shape of both tasks."""
    settings: Settings = default_settings(kind)
    data: Any = SimpleNamespace(preprocessing=SimpleNamespace(input_size=(3, 64, 64)))
    if kind == "classification":
        student: Any = networks.create("test_resnet")
        tasks = [ClassificationJob(settings).make_task(student, data), FRSKDTask.create(student, (3, 64, 64), 5)]
    else:
        student = create_segmentation_student("test_resnet", 5, channels=8)
        tasks = [SegmentationJob(settings).make_task(student, data), SegmentationTask.create(student)]
    plain = [{k: v for k, v in vars(task).items() if isinstance(v, float | str | bool)} for task in tasks]
    assert plain[0] == plain[1]
    assert {"alpha", "beta", "temperature", "smoothing", "schedule"} <= plain[0].keys()
    shapes = [{k: v.shape for k, v in task.state_dict().items()} for task in tasks]
    assert shapes[0] == shapes[1]


def test_a_script_sees_the_students(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    (tmp_path / "neighbour.py").touch()
    script.write_text(
        "import sys, neighbour, timm\nprint(type(timm.create_model(sys.argv[2])).__name__, sys.argv[1], __name__)\n"
    )
    monkeypatch.setattr(sys, "argv", ["frskd_timm", str(script), "--model", "wide_resnet16_2_frskd"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_module("frskd_timm", run_name="__main__")
    assert capsys.readouterr().out == "WideResNet --model __main__\n"
    for words, said in (
        ([], "^Give a script"),
        (["--help"], "^Give a script"),
        (["nowhere.py"], "nowhere.py is not a file"),
    ):
        monkeypatch.setattr(sys, "argv", ["frskd_timm", *words])
        with pytest.raises(SystemExit, match=said):
            runpy.run_module("frskd_timm", run_name="__main__")
