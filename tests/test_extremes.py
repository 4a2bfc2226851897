"""Losses and tasks with unusual numbers: equal logits, maps of zeros, frozen layers, other data types."""

import copy

import pytest
import torch
from networks import TARGET, create_task, images, lively
from timm.utils import freeze
from torch import Tensor
from torch.nn import functional as F

from frskd_timm.augment import TwoViews
from frskd_timm.losses.attention import attention_map
from frskd_timm.losses.labels import LabelLoss
from frskd_timm.losses.logits import LOGIT_LOSSES
from frskd_train.scoring.accumulators import PIXELS, TemperatureMetric


@pytest.mark.parametrize("name", LOGIT_LOSSES.names())
def test_a_classifier_that_starts_with_zeros_gets_gradients_of_the_usual_size(name: str) -> None:
    teacher = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))

    def gradient(student: Tensor) -> float:
        student.requires_grad_()
        LOGIT_LOSSES.get(name)(teacher, student, TARGET, 2.0, None).backward()
        assert student.grad is not None
        return float(student.grad.norm())

    assert gradient(torch.zeros(4, 100)) < 50 * gradient(torch.randn(4, 100))


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


def test_a_task_leaves_the_meta_device() -> None:
    task = create_task(teacher_ema=0.9, schedule="lead")
    empty = copy.deepcopy(task).to("meta").to_empty(device="cpu")
    empty.load_state_dict(task.state_dict())
    assert torch.equal(empty.predict(images())["student"], task.predict(images())["student"])


def test_class_weights_of_the_cross_entropy_have_no_scale() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    losses = [LabelLoss(5, class_weights=[factor * weight for weight in (1, 2, 3, 4, 5)]) for factor in (1, 100)]
    first, second = (loss(logits, TARGET) for loss in losses)
    torch.testing.assert_close(first, second)


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
    assert abs(float(metric.compute() / whole.compute()) - 1) < 0.1
