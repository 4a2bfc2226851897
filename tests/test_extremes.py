"""Losses and tasks with unusual numbers: equal logits, maps of zeros, frozen layers, other data types."""

import copy

import pytest
import torch
from networks import TARGET, create, create_task, images, lively
from timm.utils import freeze
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from frskd_timm.augment import TwoViews
from frskd_timm.losses import FEATURE_LOSSES
from frskd_timm.losses.attention import attention_map
from frskd_timm.losses.labels import LabelLoss
from frskd_timm.losses.logits import LOGIT_LOSSES
from frskd_timm.segmentation import SegmentationTask, create_segmentation_student
from frskd_timm.segmentation.teacher import SEGMENTATION_TEACHERS, SegmentationTeacher
from frskd_timm.student_task import CrossEntropyTask
from frskd_timm.task import FRSKDTask
from frskd_train.scoring.accumulators import PIXELS, CalibrationMetric, TemperatureMetric, read_bins


@pytest.mark.parametrize("name", LOGIT_LOSSES.names())
def test_a_classifier_that_starts_with_zeros_gets_gradients_of_the_usual_size(name: str) -> None:
    teacher = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))

    def gradient(student: Tensor) -> float:
        student.requires_grad_()
        LOGIT_LOSSES.get(name)(teacher, student, TARGET, 2.0, None).backward()
        assert student.grad is not None
        return float(student.grad.norm())

    assert gradient(torch.zeros(4, 100)) < 50 * gradient(torch.randn(4, 100))


@pytest.mark.parametrize("name", LOGIT_LOSSES.names())
def test_logit_losses_of_weighted_rows_are_the_formulas_of_repeated_rows(name: str) -> None:
    generator, temperature, rows = torch.Generator().manual_seed(0), 3.0, [0, 1, 1, 2]
    logits = [3 * torch.randn(4, 5, generator=generator) for _ in range(2)]
    p, q = ((z[rows] / temperature).softmax(dim=1) for z in logits)
    own = F.one_hot(TARGET[rows], 5).bool()
    binary = [torch.stack([z[own], 1 - z[own]], dim=1) for z in (p, q)]
    others = [z[~own].view(4, 4) / (1 - z[own])[:, None] for z in (p, q)]
    centred = [z[rows] - z[rows].mean(dim=1, keepdim=True) for z in logits]
    scaled = [(z / z.square().mean(dim=1, keepdim=True).sqrt() / temperature).softmax(dim=1) for z in centred]

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p / q).log()).sum(dim=1).mean()

    def apart(p: Tensor, q: Tensor) -> Tensor:
        return 1 - torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p, q, strict=True)]).mean()

    wanted = {"kl": kl(p, q), "standardised": kl(*scaled), "dkd": kl(*binary) + 8 * kl(*others)}
    wanted["dist"] = apart(p, q) + apart(p.T, q.T)
    found = LOGIT_LOSSES.get(name)(*logits, TARGET, temperature, torch.tensor([1.0, 2.0, 1.0, 0.0]))
    torch.testing.assert_close(found, temperature**2 * wanted[name], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["attention", "fitnet"])
def test_masked_feature_losses_are_those_of_the_compared_positions(name: str) -> None:
    loss = FEATURE_LOSSES.get(name)([8, 8], SegmentationTeacher(8, 2, 3, layers=1)).eval()
    generator, sides = torch.Generator().manual_seed(0), (10, 4)
    own, other = ([torch.rand(2, 8, 6, side, generator=generator) for side in sides] for _ in range(2))
    valid = [(torch.arange(side) < side // 2).expand(2, 6, side) for side in sides]
    left = lambda maps: [map_[..., : map_.shape[-1] // 2] for map_ in maps]
    torch.testing.assert_close(loss(own, other, valid), loss(left(own), left(other)))


def test_images_are_padded_at_the_bottom_and_right_with_pixels_that_do_not_count() -> None:
    student = create_segmentation_student("test_vit", 3, channels=8).eval()
    assert student.multiple == 16
    padded = F.pad(images((20, 36)), (0, 12, 0, 12))
    torch.testing.assert_close(student(images((20, 36))), student(padded)[..., :20, :36])
    task = SegmentationTask.create(student, self_teacher="sum")
    found = task.valid_positions(task.run_networks(images((20, 36)), task.networks), torch.zeros(2, 20, 36))
    for valid in found[:4]:  # less than half of the last row and column of patches has labels
        assert valid[0].tolist() == [[True, True, False], [False, False, False]]


def test_maps_of_any_size_have_finite_gradients_in_float16() -> None:
    maps = torch.zeros(3, 512, 7, 7)
    maps[1:] = 1e-3 * torch.rand(2, 512, 7, 7, generator=torch.Generator().manual_seed(0))  # the first has none
    gradients = []
    for dtype in (torch.float32, torch.float16):
        own = maps.detach().to(dtype, copy=True).requires_grad_()
        (65536 * F.mse_loss(attention_map(own), torch.ones(3, 49))).backward()
        assert own.grad is not None
        gradients.append(own.grad.float())
    assert gradients[1].isfinite().all()
    assert not gradients[1][0].any()
    torch.testing.assert_close(gradients[1][1:], gradients[0][1:], rtol=2e-2, atol=1e-2)


def test_freezing_the_self_teachers_normalisation_keeps_its_outputs() -> None:
    task = lively(create_task()).eval()
    before = task.predict(images(batch=4))
    freeze(task)  # parameters of normalisation become buffers
    after = task.predict(images(batch=4))
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-5)


def test_steps_without_a_frozen_self_teacher() -> None:
    task = create_task(teacher_interval=2)
    task.self_teacher.requires_grad_(False)
    for progress in (0.0, 0.1, 0.2):
        task.set_progress(progress)
        result = task(images(batch=4), TARGET)
        result["loss"].backward()
    torch.testing.assert_close(
        result["loss"],
        result["loss_ce"]
        + sum(value for name, value in result.items() if name.startswith("loss_") and name != "loss_ce"),
    )


def test_probabilities_of_any_type() -> None:
    mixed = torch.eye(5)[TARGET]
    for options in ({"schedule": "lead"}, {"gate": "advantage"}, {}):
        expected = create_task(**options)(images(batch=4), mixed)["loss"]
        assert torch.equal(create_task(**options)(images(batch=4), mixed.double())["loss"], expected)
    task = create_task().bfloat16()
    task.label_loss = LabelLoss(5, class_weights=[1.0, 2, 3, 4, 5]).bfloat16()
    assert task(images(batch=4).bfloat16(), mixed.bfloat16())["loss"].isfinite()
    clean = create_task(teacher_view="clean").bfloat16()
    batch = TwoViews(*(images(batch=4).bfloat16(),) * 2, TARGET, mixing=torch.eye(4).bfloat16())
    assert clean(batch, mixed)["loss"].isfinite()


def test_classes_of_any_integer_type() -> None:
    clean = create_task(teacher_view="clean")
    batch = TwoViews(images(batch=4), images(batch=4), TARGET.int(), mixing=None)
    assert clean(batch, TARGET.short())["loss"].isfinite()


def test_modules_that_torch_has_compiled() -> None:  # these have a __len__, so they have no truth value
    plain = create_task(sla=True)
    loss, heads, average = (
        torch.compile(part, backend="eager") for part in (plain.feature_loss, plain.sla, plain.student)
    )
    task = FRSKDTask(plain.student, plain.pyramid, plain.self_teacher, loss, sla=heads, beta=1.0)
    assert task(images(batch=4), TARGET)["loss_feature"] > 0
    task.eval()
    assert torch.equal(task.predict(images(), average)["student"], task.predict(images())["student"])
    assert task.get_eval_model(average) is plain.student
    other = nn.Sequential(plain.student, nn.Softmax(dim=1))
    assert torch.equal(task.predict(images(), other)["student"], task.predict(images())["student"].softmax(1))


def test_attention_has_second_derivatives() -> None:
    maps = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradgradcheck(attention_map, maps.requires_grad_())


def test_a_task_leaves_the_meta_device() -> None:
    task = create_task(teacher_ema=0.9, schedule="lead")
    empty = copy.deepcopy(task).to("meta").to_empty(device="cpu")
    empty.load_state_dict(task.state_dict())
    assert torch.equal(empty.predict(images())["student"], task.predict(images())["student"])


def test_the_calibration_of_a_student_that_is_too_sure_and_not_sure_enough_is_torchmetrics() -> None:
    logits = 2 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    confidence, given = logits.softmax(dim=1).max(dim=1)
    target = torch.where(confidence < 0.6, given, torch.arange(500) % 4)  # right where it is not sure
    metric = CalibrationMetric()
    metric.update(logits, target)
    wanted = multiclass_calibration_error(logits.softmax(dim=1), target, 4, n_bins=15)
    assert read_bins(metric.compute()).ece == pytest.approx(float(wanted), abs=1e-4)


def test_the_temperature_of_large_masks_is_that_of_all_pixels() -> None:
    """The border of the masks differs from the rest."""
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(128, 512, 5, generator=generator), torch.randint(5, (128, 512), generator=generator)
    logits.scatter_(2, target[..., None], 3.0)
    logits[:, :4].scatter_(2, (target[:, :4, None] + 1) % 5, 9.0)
    metric, whole = TemperatureMetric(), TemperatureMetric()
    assert target.numel() > PIXELS
    metric.update(logits.flatten(0, 1), target.flatten())
    for part, classes in zip(logits.flatten(0, 1).split(PIXELS), target.flatten().split(PIXELS), strict=True):
        whole.update(part, classes)
    for each in (metric, whole):  # a small mask, whose pixels count as much as those of the large one
        each.update(logits[:, :4].flatten(0, 1), target[:, :4].flatten())
    assert abs(float(metric.compute() / whole.compute()) - 1) < 0.1


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_the_temperature_is_that_of_the_labels(scale: float) -> None:
    logits = 2 * torch.randn(PIXELS, 5, generator=torch.Generator().manual_seed(0))
    target = logits.softmax(dim=1).multinomial(1, generator=torch.Generator().manual_seed(1))[:, 0]
    metric = TemperatureMetric()
    metric.update(scale * logits, target)
    assert float(metric.compute()) == pytest.approx(scale, rel=0.06)


@pytest.mark.parametrize("name", SEGMENTATION_TEACHERS.names())
def test_no_gradient_enters_a_segmentation_student_without_teacher_gradient(name: str) -> None:
    student = create_segmentation_student("test_resnet", 5, channels=8)
    task = SegmentationTask.create(student, self_teacher=name, teacher_gradient=0.0, beta=0)
    task.run_networks(images(batch=4), task.networks).teacher_logits.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_a_self_teacher_that_is_behind_is_not_opposed() -> None:
    task = create_task(schedule="lead")
    with torch.no_grad():
        task.self_teacher.get_submodule("fc").weight.mul_(30)  # badly wrong, so that the student leads
    result = task(images(batch=4), TARGET)
    assert result["loss_ce_teacher"] > result["loss_ce"]
    assert task.lead == 0


def test_batches_of_one_update_count_once() -> None:
    task = create_task(teacher_interval=2)
    for step in range(4):
        for _ in range(3):  # most fractions have no exact float32
            task.set_progress(step / 10)
    assert task.clock[1] == 3


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_the_average_is_one_of_both_networks(kind: str) -> None:
    student = create_segmentation_student("test_resnet", 5, channels=8)
    segmented = kind == "segmentation"
    task = SegmentationTask.create(student, teacher_ema=0.5) if segmented else create_task(teacher_ema=0.5)
    average = dict(task.average.named_children())
    before = task.run_networks(images(batch=4), average).teacher_logits
    with torch.no_grad():
        next(average["student"].parameters()).mul_(-1)
    assert not torch.allclose(task.run_networks(images(batch=4), average).teacher_logits, before)


@pytest.mark.parametrize("kind", ["ce", "frskd"])
def test_class_weights_of_mixed_labels_are_exact_under_autocast(kind: str) -> None:
    target = images(batch=4)[:, 0, 0, :5].softmax(1)
    task = CrossEntropyTask(create("test_resnet")) if kind == "ce" else create_task(teacher_interval=2)
    task.set_progress(0.5)  # for FRSKD a step without the self-teacher
    task.label_loss = LabelLoss(5, 0.1, [1.0, 2.0, 3.0, 4.0, 5.1])
    with torch.autocast("cpu", torch.bfloat16):
        result = task.train()(images(batch=4), target)
    torch.testing.assert_close(result["loss"], task.label_loss(result["output"].float(), target), rtol=1e-6, atol=1e-6)


def test_dkd_without_a_label_takes_the_teachers_class() -> None:
    teacher, student = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.zeros(4, 5)
    student[:, 0] = 1
    loss = LOGIT_LOSSES.get("dkd")
    unlabelled, labelled = (
        loss(teacher, student, target, 4.0, None) for target in (torch.full((4,), -100), teacher.argmax(1))
    )
    torch.testing.assert_close(unlabelled, labelled)
