"""What each option of distillation beyond the paper's does."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import networks
import pytest
import timm
import torch
from golden_names import assert_close
from networks import OFF, TARGET, create_task
from runs import assert_same, small, train_here
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.cost import cost
from frskd_timm.distillation import DistillationTask, Outputs
from frskd_timm.errors import UserError
from frskd_timm.losses.functional import soft_label_loss
from frskd_timm.losses.labels import LabelLoss
from frskd_timm.losses.logits import LOGIT_LOSSES
from frskd_timm.schedule import distillation_weight
from frskd_timm.segmentation import SegmentationTask, create_segmentation_student
from frskd_timm.segmentation.teacher import SEGMENTATION_TEACHERS
from frskd_timm.task import FRSKDTask
from frskd_timm.teachers import SelfTeacher, create_self_teacher

MASKS = TARGET.view(4, 1, 1).expand(4, 64, 64)


images = partial(networks.images, batch=4)


def logits(*shape: int, seed: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LOGIT_LOSSES.names())
def test_logit_losses(name: str) -> None:
    loss: Any = LOGIT_LOSSES.get(name)
    teacher, student = logits(4, 5, seed=1).requires_grad_(), logits(4, 5, seed=2).requires_grad_()
    value = loss(teacher, student, TARGET, 4.0, None)
    value.backward()
    assert value > 0
    assert teacher.grad is None
    assert student.grad.any()
    assert abs(loss(teacher, teacher, TARGET, 4.0, None)) < 1e-4
    assert_close(loss(teacher, student, TARGET, 4.0, torch.ones(4)), value, 1e-5, "equal weights")
    assert_close(loss(teacher, student, torch.eye(5)[TARGET], 4.0, None), value, 1e-5, "probabilities")
    some = loss(teacher, student, TARGET, 4.0, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert_close(some, loss(teacher[:3], student[:3], TARGET[:3], 4.0, None), 1e-4, "a row of weight 0")
    assert loss(teacher, student, torch.full((4,), 255), 4.0, torch.zeros(4)) == 0
    if name in ("standardised", "dist"):  # neither sees a shift of the logits, one of them no scale
        scale = 2.0 if name == "standardised" else 1.0
        assert_close(loss(scale * teacher + 7, student, TARGET, 4.0, None), value, 1e-4, "shift and scale")


def test_the_gate_takes_advice_from_the_better_one() -> None:
    task = create_task(gate="advantage", temperature=1.0)
    own, other = torch.zeros(2, 4, 5)
    other[0, 0] = other[1, 2] = 4.0  # right about the first image, wrong about the second, no better on the others
    outputs = Outputs([], own, [], other)
    expected = soft_label_loss(other[:1], own[:1], 1.0)
    assert_close(task.soft_labels(outputs, TARGET), expected, 1e-6, "one image")
    assert_close(task.soft_labels(outputs, torch.eye(5)[TARGET]), expected, 1e-6, "probabilities")
    assert task.soft_labels(outputs._replace(teacher_logits=own), TARGET) == 0
    pixels = SegmentationTask.create(create_segmentation_student("test_resnet", 5, channels=8), gate="advantage")
    maps = Outputs([], own.T.reshape(1, 5, 2, 2), [], other.T.reshape(1, 5, 2, 2))
    assert_close(pixels.soft_labels(maps, TARGET.view(1, 2, 2)), expected, 1e-6, "one pixel")
    assert pixels.soft_labels(maps, torch.full((1, 2, 2), 255)) == 0


def test_the_self_teachers_gradient_is_scaled() -> None:
    gradients = []
    for factor in (0.0, 0.25, 1.0):
        task = create_task(alpha=0.0, beta=0.0, teacher_gradient=factor)
        task(images(), TARGET)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in task.student.parameters()]))
    assert_close(gradients[1], 0.75 * gradients[0] + 0.25 * gradients[2], 1e-4, "gradient of the student")
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-2)


@pytest.mark.parametrize(("network", "ending"), [("student", ""), ("teacher", "_teacher")])
def test_the_label_terms_of_both_networks_are_weighted(network: str, ending: str) -> None:
    found, rotated = [], []
    for weight in (1.0, 0.25):
        torch.manual_seed(0)
        task = create_task(**{f"{network}_weight": weight, "schedule": "lead"})
        found.append(task(images(), TARGET) | {"lead": task.lead})
        rotated.append(create_task(**{f"{network}_weight": weight, "sla": True})(images(), TARGET))
    whole, quarter = found
    assert_close(quarter[f"loss_ce{ending}"], whole[f"loss_ce{ending}"] / 4, 1e-6, "cross-entropy")
    for name in {"loss_ce", "loss_ce_teacher", "loss_kl", "loss_feature", "lead"} - {f"loss_ce{ending}"}:
        assert_close(quarter[name], whole[name], 1e-6, name)  # the lead compares unweighted losses
    assert rotated[1][f"loss_sla{ending}"] < 0.5 * rotated[0][f"loss_sla{ending}"]


def test_the_aggregated_classifiers_of_sla_are_weighted() -> None:
    one, half = (create_task(sla=True, sla_weight=weight)(images(), TARGET)["loss_sla_kl"] for weight in (1.0, 0.5))
    assert_close(half, one / 2, 1e-6, "SLA")


def test_the_residual_self_teacher_starts_as_its_student() -> None:
    task = create_task(self_teacher="residual", beta=0.0)
    result = task(images(), TARGET)
    assert torch.equal(result["output"], result["teacher_output"])
    assert result["loss_kl"] == pytest.approx(0, abs=1e-6)
    assert create_self_teacher("residual", [64, 512], 5).channels == [128, 256]
    result["teacher_output"].sum().backward(retain_graph=True)
    assert task.student.get_submodule("fc").weight.grad is None, "a correction does not train the student's classifier"
    result["loss"].backward()
    assert task.self_teacher.get_submodule("fc").weight.grad.any()


def train(task: DistillationTask, steps: range, target: Tensor = TARGET) -> list[Tensor]:
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for step in steps:
        task.set_progress(step / 10)
        optimizer.zero_grad()
        result = task(images(), target)
        result["loss"].backward()
        assert not [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
        losses.append(result["loss"].detach())
    return losses


@pytest.mark.parametrize("kind", ["classification", "pyramid", "sum"])
def test_state_goes_into_a_checkpoint(kind: str) -> None:
    options: dict[str, Any] = {"teacher_ema": 0.9, "teacher_interval": 2, "schedule": "lead"}

    def make() -> DistillationTask:
        torch.manual_seed(0)
        if kind == "classification":
            return create_task(**options)
        student = create_segmentation_student("test_resnet", 4, channels=8)
        return SegmentationTask.create(student, self_teacher=kind, **OFF | options)

    target = TARGET if kind == "classification" else MASKS
    whole, first, second = make(), make(), make()
    losses = train(whole, range(6), target)
    train(first, range(3), target)
    second.load_state_dict(first.state_dict())
    assert train(second, range(3, 6), target) == losses[3:]
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())
    assert not [key for key in whole.student.state_dict() if "average" in key]


def test_the_average_follows_updates_and_gives_the_advice() -> None:
    task = create_task(teacher_ema=0.5)
    assert task.average is not None
    assert all(not p.requires_grad for p in task.average.parameters())
    name = "fc.bias"
    train(task, range(1))
    old, new = task.average["self_teacher"].get_parameter(name).clone(), task.self_teacher.get_parameter(name)
    task.set_progress(0.0)  # the next batch of an accumulation
    assert torch.equal(task.average["self_teacher"].get_parameter(name), old)
    task.set_progress(0.1)
    decay = 2 / 11  # at the first update
    assert_close(task.average["self_teacher"].get_parameter(name), decay * old + (1 - decay) * new, 1e-5, "average")
    with torch.no_grad():
        task.average["self_teacher"].get_parameter(name).add_(torch.arange(5.0))
        soft = task.run_networks(images(), dict(task.average.items())).teacher_logits
        result = task(images(), TARGET)
        expected = task.distill_weight * task.alpha * soft_label_loss(soft, result["output"], task.temperature)
    assert_close(result["loss_kl"], expected, 1e-4, "soft labels")
    with pytest.raises(UserError, match="SLA"):
        create_task(teacher_ema=0.5, sla=True)


def test_the_self_teacher_runs_in_every_second_update() -> None:
    task = create_task(teacher_interval=2, student_weight=0.5)
    runs: list[int] = []
    task.self_teacher.register_forward_hook(lambda *_: runs.append(1))
    for step, count in enumerate([1, 1, 2, 2]):
        train(task, range(step, step + 1))
        assert len(runs) == count
    result = task(images(), TARGET)  # of an update without the self-teacher: the labels count in full
    wanted = F.cross_entropy(result["output"], TARGET, label_smoothing=task.smoothing)
    assert_close(result["loss"], wanted, 1e-6, "loss")
    assert "teacher_output" not in result
    assert "teacher_output" in task.eval()(images(), TARGET), "evaluation does not depend on the step"


def test_updates_are_counted_exactly_in_half_precision() -> None:
    task = create_task(teacher_interval=2).to(torch.bfloat16)
    for step in range(300):
        task.set_progress(step / 300)
    assert task.clock.tolist() == [pytest.approx(299 / 300, abs=1e-7), 299]


def test_schedules_of_full_weight() -> None:
    assert [distillation_weight("warmup", t) for t in (0, 0.05, 0.1, 1)] == [0, 0.5, 1, 1]
    task = create_task(schedule="lead")
    assert task.lead == 0
    with torch.no_grad():
        task.student.get_submodule("fc").weight.mul_(30)  # badly wrong, so that the self-teacher leads
    first = task(images(), TARGET)
    assert first["loss_kl"] == 0
    lead = 1 - float(first["loss_ce_teacher"] / first["loss_ce"])
    assert 0 < lead < 1
    task.eval()(images(), TARGET)  # which does not move it
    assert float(task.lead) == pytest.approx(0.01 * lead, rel=1e-4)
    task.train()(images() * float("nan"), TARGET)
    assert task(images(), TARGET)["loss_kl"] > 0
    unlabelled = SegmentationTask.create(create_segmentation_student("test_resnet", 5, channels=8), schedule="lead")
    unlabelled.train()(torch.rand(2, 3, 64, 64), torch.full((2, 64, 64), 255))
    assert unlabelled.lead == 0
    assert task.to(torch.bfloat16).lead.dtype == torch.float32  # moves by less than bfloat16 can tell apart


WRONG = {
    "alpha": -1, "beta": -1, "temperature": 0, "smoothing": 1, "start": -1, "sla_weight": -1,
    "student_weight": 0, "teacher_weight": 0, "teacher_gradient": 2, "teacher_ema": 1, "teacher_interval": 0,
}  # fmt: skip


OTHER_END = [("start", 1), ("teacher_gradient", -0.5), ("teacher_ema", -0.1)]


@pytest.mark.parametrize(("name", "value"), [*WRONG.items(), *OTHER_END])
def test_a_lever_out_of_its_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} must be .*, not {value}"):
        create_task(**{name: value})


@pytest.mark.parametrize("name", ["width", "depth", "repeats"])
def test_a_self_teacher_of_no_size_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"The {name} of a self-teacher must be above 0, not 0"):
        create_task(teacher_options={name: 0})


@pytest.mark.parametrize("beta", [None, 0])
@pytest.mark.parametrize("name", SEGMENTATION_TEACHERS.names())
def test_every_segmentation_self_teacher_reaches_every_parameter(name: str, beta: float | None) -> None:
    student = create_segmentation_student("test_resnet", 4, channels=8)
    task = SegmentationTask.create(student, self_teacher=name, beta=beta).train()
    result = task(images(), MASKS)
    assert result["teacher_output"].shape == (4, 4, 64, 64)
    result["loss"].backward()
    assert not [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]


def test_a_run_with_every_lever_resumes_exactly(places: Path, tmp_path: Path) -> None:
    levers = ["--teacher-ema", 0.9, "--teacher-interval", 2, "--distill-schedule", "lead", "--gate", "advantage"]
    more = ["--logit-loss", "dkd", "--teacher-gradient", 0.5, "--self-teacher", "residual", "--checkpoint-hist", 9]
    more += ["--teacher-view", "clean", "--mixup", 0.2, "--reprob", 0.5]
    flags = small(places, *levers, *more)
    train_here(*flags, "--output-dir", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    first = sorted((tmp_path / "resumed" / "checkpoints").glob("step-*"))[0]
    train_here(*flags, "--resume", first)
    assert_same(tmp_path / "whole", tmp_path / "resumed")


def test_the_default_self_teacher_costs_at_most_as_much_as_its_student() -> None:
    def teacher(model: str, **options: float) -> SelfTeacher:
        torch.manual_seed(0)
        network = timm.create_model(model, num_classes=10)
        return FRSKDTask.create(network, (3, 64, 64), 10, teacher_options=options).self_teacher

    def size(network: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    student = timm.create_model("test_resnet", num_classes=10)
    assert teacher("test_resnet", width=2).channels == [64, 96, 384, 192]
    assert teacher("test_resnet", width=0.5).channels == [16, 24, 96, 48]
    assert size(teacher("test_resnet")) <= size(student) < size(teacher("test_resnet", width=2))
    own, wider = teacher("hgnetv2_b0"), teacher("hgnetv2_b0", width=5 / 8)
    student = timm.create_model("hgnetv2_b0", num_classes=10)
    maps = [torch.zeros(1, c, side, side) for c, side in zip((64, 256, 512, 1024), (16, 8, 4, 2), strict=True)]
    assert own.channels == [32, 128, 256, 512]
    assert size(wider) <= size(student), "only its multiply-adds are too many"
    found = [cost(own, maps), cost(student, torch.zeros(1, 3, 64, 64)), cost(wider, maps)]
    assert found[0].multiply_adds <= found[1].multiply_adds < found[2].multiply_adds


def test_another_loss_of_the_labels_is_computed_in_float32() -> None:
    task = create_task()
    with torch.autocast("cpu", torch.bfloat16):
        expected = task(images(), TARGET)["loss_ce"]
        task.label_loss = nn.CrossEntropyLoss(label_smoothing=task.smoothing)
        assert torch.equal(task(images(), TARGET)["loss_ce"], expected)


def test_class_weights_do_not_fit_the_joint_labels_of_sla() -> None:
    task = create_task(sla=True)
    task.label_loss = LabelLoss(5, class_weights=[1.0] * 5)
    with pytest.raises(UserError, match="SLA cannot be combined with class weights"):
        task(images(), TARGET)
