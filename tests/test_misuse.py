"""What users of the Python interface hear about mistakes, and what type checkers know of it."""

import sys
from pathlib import Path

import networks
import pytest
import timm
import torch
from conftest import run_script
from timm.utils import ModelEmaV3, freeze
from torch import nn

import frskd_timm
from frskd_timm import FRSKDTask, UserError, export_student, load_student
from frskd_timm.augment import TwoViews
from frskd_timm.losses.labels import LabelLoss
from frskd_timm.segmentation import (
    SegmentationCrossEntropyTask,
    SegmentationStudent,
    SegmentationTask,
    create_segmentation_student,
)
from frskd_timm.student_task import CrossEntropyTask, LinearProbeTask

SIZE = (3, 32, 32)
IMAGES, TARGET = torch.randn(4, *SIZE), torch.tensor([0, 1, 2, 3])
EXPORT = {"tag": "x", "input_size": SIZE, "mean": (0.5,) * 3, "std": (0.2,) * 3}


def create(**options) -> FRSKDTask:
    return FRSKDTask.create(networks.create("test_resnet"), SIZE, 5, **options)


def test_a_task_is_distributed_once_and_last() -> None:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        task = create()
        task.compile(backend="eager")
        task.prepare_distributed(gradient_as_bucket_view=True)
        assert task.get_trainable_module().gradient_as_bucket_view
        for again in (task.prepare_distributed, task.compile):
            with pytest.raises(UserError, match="distributed already: call compile first"):
                again()
        assert isinstance(task.get_trainable_module(), nn.parallel.DistributedDataParallel)
    finally:
        torch.distributed.destroy_process_group()


def test_progress_is_a_fraction() -> None:
    task = create(schedule="constant")
    for epoch in (2, -1):
        with pytest.warns(UserWarning, match=rf"fraction of the run, 0 to 1, not {epoch}\.") as found:
            task.set_progress(epoch)
        assert found[0].filename == __file__, "the warning names another line than the caller's"
        assert task.distill_weight == 1
    with pytest.raises(UserError, match="not NaN"):
        task.set_progress(float("nan"))


def test_a_loss_that_is_scaled_in_place_leaves_its_terms() -> None:
    for task in (create(), CrossEntropyTask(networks.create("test_resnet", num_classes=5))):
        result = task.train()(IMAGES, TARGET)
        before, loss = result["loss_ce"].item(), result["loss"]
        loss /= 4  # as timm's train.py does to accumulate gradients
        assert result["loss_ce"].item() == before


def test_views_are_for_the_clean_view() -> None:
    views = TwoViews(IMAGES, IMAGES, TARGET, None)
    with pytest.raises(UserError, match="must be a tensor of images"):
        create().train()(views, TARGET)
    with pytest.raises(UserError, match=r"must be an augment\.TwoViews"):
        create(teacher_view="clean").train()(IMAGES, TARGET)


def test_an_empty_batch_is_refused() -> None:
    for task in (create(), CrossEntropyTask(networks.create("test_resnet", num_classes=5))):
        with pytest.raises(UserError, match="no images"):
            task(IMAGES[:0], TARGET[:0])


def test_a_replaced_classifier_is_explained(tmp_path: Path) -> None:
    student = networks.create("test_resnet")
    student.fc = nn.Linear(student.num_features, 7)
    with pytest.raises(UserError, match=r"has 5 classes, not 7: create it with num_classes, or .*reset_classifier"):
        FRSKDTask.create(student, SIZE, 7)
    with pytest.raises(UserError, match=r"does not return 5 logits per image: .*reset_classifier"):
        FRSKDTask.create(student, SIZE, 5)
    with pytest.raises(UserError, match=rf"^The student in {tmp_path / 'student'} has shapes"):
        export_student(student, tmp_path / "student", **EXPORT)


def test_the_baseline_checks_what_frskd_checks() -> None:
    with pytest.raises(UserError, match=r"smoothing must be from 0 to below 1, not -0\.5"):
        CrossEntropyTask(networks.create("test_resnet"), smoothing=-0.5)
    with pytest.raises(UserError, match="ResNet has no classifier: create it with num_classes"):
        CrossEntropyTask(timm.create_model("test_resnet", num_classes=0))
    with pytest.raises(UserError, match=r"^sum_class has no effect without binary=True\.$"):
        LabelLoss(5, sum_class=True)
    with pytest.raises(UserError, match="Unknown gate 'bogus'; choose from none, advantage"):
        create(gate="bogus")


def test_what_is_exported_is_the_student(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"made by timm\.create_model: give task\.student\.$"):
        export_student(create(), tmp_path / "student", **EXPORT)
    with pytest.raises(UserError, match="method must be 'frskd' or 'ce', not 'kd'"):
        export_student(networks.create("test_resnet"), tmp_path / "student", **EXPORT, method="kd")
    export_student(networks.create("test_resnet"), tmp_path / "student", **EXPORT)
    assert load_student(tmp_path / "student")(IMAGES).shape == (4, 5)


def test_segmentation_needs_its_own_student(tmp_path: Path) -> None:
    backbone = networks.create("test_resnet")
    for use in (SegmentationTask.create, SegmentationCrossEntropyTask):
        with pytest.raises(UserError, match=r"must be a SegmentationStudent, .*: use create_segmentation_student"):
            use(backbone)
    with pytest.raises(UserError, match="name must be that of a timm model"):
        create_segmentation_student(backbone, 3)  # type: ignore[arg-type]
    for arguments, sentence in (
        ({"mean": (128,) * 3}, r"mean must be for images in 0\.\.1"),
        ({"std": (0, 0, 0)}, r"std must be for images in 0\.\.1"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            create_segmentation_student("test_resnet", **{"num_classes": 3, **arguments})
    run = tmp_path / "run"
    create_segmentation_student("test_resnet", 3, channels=8).save_pretrained(run / "student")
    export_student(backbone, tmp_path / "classifier", **EXPORT)
    for place, sentence in (
        (run, rf"no segmentation student in {run}: give {run / 'student'}\."),
        (tmp_path / "classifier", "no segmentation student in .*classifier"),
        (tmp_path / "nothing", "There is no folder .*nothing"),
        ("runs/x/student", "There is no folder runs/x/student"),
    ):
        with pytest.raises(UserError, match=sentence):
            SegmentationStudent.from_pretrained(place)
    for classes in (1, 256):  # one logit, and a class whose number means no class
        with pytest.raises(UserError, match=rf"has {classes} class\(es\), but its task needs 2 to 255"):
            SegmentationTask.create(create_segmentation_student("test_resnet", classes, channels=8))
    same, other = (SegmentationStudent.from_pretrained(run / "student", num_classes=number) for number in (3, 5))
    kept = same.state_dict()
    stored = SegmentationStudent.from_pretrained(run / "student").state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in kept.items())
    assert {name for name, value in other.state_dict().items() if not value.equal(kept[name])} == {
        f"{other.classifier_name}.{kind}" for kind in ("weight", "bias")
    }
    assert other(IMAGES).shape[1] == other.num_classes == 5


def test_completion_shows_the_public_names() -> None:
    assert {"segmentation", "losses", "FRSKDTask", "load_student"} <= set(dir(frskd_timm))
    assert not {"import_module", "Any", "TYPE_CHECKING"} & set(dir(frskd_timm))
    run_script(sys.executable, "-c", "import frskd_timm; frskd_timm.segmentation.SegmentationTask; frskd_timm.export")


TYPED = """
import timm
from torch import Tensor, nn
from frskd_timm import FRSKDTask, export_student
from frskd_timm.losses.labels import LabelLoss
from frskd_timm.pyramid import Pyramid
from frskd_timm.segmentation import SegmentationStudent


def use(student: nn.Module, images: Tensor, weights: Tensor) -> tuple[nn.Module, Tensor, int]:
    task = FRSKDTask.create(student, [3, 64, 64], 5)
    task.label_loss = LabelLoss(5, 0.1, weights)
    maps, logits = Pyramid(student, (3, 64, 64))(student, images)
    export_student(student, "out", tag="x", input_size=(3, 64, 64), mean=(0.5,), std=(0.2,))
    return task.get_eval_model().eval(), logits.softmax(1), SegmentationStudent.from_pretrained("a").num_classes
"""


@pytest.mark.long
def test_type_checkers_know_the_interface(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(TYPED)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    good = run_script(*command, tmp_path / "good.py", check=False).stdout
    assert "Success" in good, good
    (tmp_path / "bad.py").write_text("from frskd_timm import FRSKDTsk\n")
    bad = run_script(*command, tmp_path / "bad.py", check=False).stdout
    assert 'has no attribute "FRSKDTsk"' in bad, bad


def test_frozen_layers_of_a_student_stay_frozen() -> None:
    student = networks.create("test_resnet")
    first = next(student.parameters()).requires_grad_(False)
    FRSKDTask.create(student, SIZE, 5)
    assert [id(p) for p in student.parameters() if not p.requires_grad] == [id(first)]


def test_a_linear_probe_needs_a_classifier() -> None:
    for student in (nn.Linear(3, 5), timm.create_model("test_resnet", num_classes=0)):
        with pytest.raises(UserError, match="classifier"):
            LinearProbeTask(student)


def test_an_incomplete_task_state_is_refused() -> None:
    task = create()
    state = task.get_task_state()
    del state["self_teacher.fc.bias"]
    with pytest.raises(RuntimeError, match="Missing"):
        task.load_task_state(state)
    task.load_task_state(state, strict=False)


def test_the_average_of_the_student_is_timms() -> None:
    task, student = create(), networks.create("test_resnet")
    options = {"decay": 0.9, "use_warmup": True, "min_decay": 0.2}
    expected = ModelEmaV3(student, **options)
    task.setup_ema(**options)
    for step in (1, 50):
        for network in (task.student, student):
            with torch.no_grad():
                network.get_submodule("fc").weight.add_(1)
        task.update_ema(step=step)
        expected.update(student, step=step)
    assert torch.equal(task.get_eval_model(ema=True).fc.weight, expected.module.fc.weight)


def test_the_settings_of_validation_are_exported(tmp_path: Path) -> None:
    chosen = {"crop_mode": "border", "crop_pct": 0.9, "interpolation": "nearest"}
    export_student(networks.create("test_resnet"), tmp_path / "x", **EXPORT, **chosen)
    cfg = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True).pretrained_cfg
    assert {name: cfg[name] for name in chosen} == chosen
    assert (tmp_path / "x" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match="Unknown distillation schedule 'bogus'"):
        create(schedule="bogus")
    with pytest.raises(UserError, match="SLA cannot be combined with teacher_ema or teacher_interval"):
        create(sla=True, teacher_interval=2)
    with pytest.raises(UserError, match="must be square, not 64x32"):
        FRSKDTask.create(networks.create("test_resnet"), (3, 64, 32), 5, sla=True)
    with pytest.raises(UserError, match="drops patches"):
        FRSKDTask.create(networks.create("test_vit", img_size=64, patch_drop_rate=0.5), (3, 64, 64), 5)
    with pytest.raises(UserError, match="not all 0"):
        LabelLoss(3, 0.1, [0.0] * 3)


def test_layers_that_change_after_an_average_was_made_are_named() -> None:
    task = create(teacher_ema=0.9)
    task.set_progress(0.1)
    freeze(task.student)  # its normalisation layers then have no parameters
    with pytest.raises(UserError, match="freeze or replace layers before the task is created"):
        task.set_progress(0.2)


def test_a_linear_probe_trains_all_classifiers() -> None:
    student = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, img_size=32)
    LinearProbeTask(student)
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert trained == {f"{head}.{kind}" for head in ("head", "head_dist") for kind in ("weight", "bias")}
