"""Training with labels that contain errors (`--noisy-labels`)."""

from typing import Any

import networks
import pytest
import torch
from timm.loss import AsymmetricLossSingleLabel
from torch.nn import functional as F

from frskd_timm.distillation import Outputs
from frskd_timm.errors import UserError
from frskd_timm.losses.labels import LabelLoss, trust
from frskd_timm.segmentation import SegmentationCrossEntropyTask, create_segmentation_student
from frskd_timm.student_task import CrossEntropyTask
from frskd_timm.task import FRSKDTask, joint_target

TARGET = torch.tensor([0, 1, 2])
PROBABILITIES = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
OTHER = torch.tensor([[0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])  # of a second network
TRUST = torch.tensor([0.8, 1.0, 1 / 6])  # in the first label 0.4 / 0.5, in the second 0.5 / 0.5


def losses(logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, TARGET, label_smoothing=0.1, reduction="none")


def test_trust_is_the_probability_of_the_label_relative_to_the_largest() -> None:
    logits = [PROBABILITIES.log().requires_grad_(), OTHER.log()]
    found = trust(logits, TARGET)
    torch.testing.assert_close(found, TRUST)
    assert not found.requires_grad
    pixels = [z.T.reshape(1, 3, 3, 1) for z in logits]
    torch.testing.assert_close(trust(pixels, TARGET.view(1, 3, 1)).flatten(), TRUST)


def test_both_networks_doubt_a_label_together() -> None:
    task = FRSKDTask.create(networks.create("test_resnet", num_classes=3), (3, 64, 64), 3, sla=True)
    task.noisy_labels = True
    own, other = PROBABILITIES.log(), OTHER.log()
    joint = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))  # four rotations of each image
    rotated = F.cross_entropy(joint, joint_target(TARGET), label_smoothing=0.1, reduction="none")
    for progress, doubt in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        task.set_progress(progress)
        factor = 1 - doubt * (1 - TRUST)
        outputs = Outputs([], own, [], other, joint=(joint, joint), factor=task.label_factor((own, other), TARGET))
        found = task.label_terms(outputs, TARGET)
        torch.testing.assert_close(found["loss_ce"], (factor * losses(own)).mean())
        torch.testing.assert_close(found["loss_ce_teacher"], (factor * losses(other)).mean())
        torch.testing.assert_close(found["loss_sla"], (factor.repeat_interleave(4) * rotated).mean())
    task.noisy_labels = False
    torch.testing.assert_close(task.label_terms(Outputs([], own, [], other), TARGET)["loss_ce"], losses(own).mean())


def test_the_baseline_doubts_alone() -> None:
    student = networks.create("test_resnet", num_classes=3)
    images, target = networks.images(batch=3), TARGET
    for task in (CrossEntropyTask(student), FRSKDTask.create(student, (3, 64, 64), 3, teacher_interval=2)):
        task.train().noisy_labels = True
        task.set_progress(0.5)  # after one update; the next one leaves the self-teacher out
        logits = student(images)
        found = task(images, target)
        torch.testing.assert_close(found["loss"], (trust([logits], target) * losses(logits)).mean())


def test_trust_and_class_weights_multiply() -> None:
    own, weights = PROBABILITIES.log(), torch.tensor([1.0, 2.0, 5.0])
    expected = (TRUST * weights * losses(own)).sum() / weights.sum()
    torch.testing.assert_close(LabelLoss(3, 0.1, weights.tolist())(own, TARGET, TRUST), expected)
    pixels, target = own.T.reshape(1, 3, 3, 1), TARGET.view(1, 3, 1)
    found = LabelLoss(3, 0.1, weights.tolist())(pixels, target, TRUST.view(1, 3, 1))
    torch.testing.assert_close(found, expected)


def test_ignored_pixels_do_not_count() -> None:
    task = SegmentationCrossEntropyTask(create_segmentation_student("test_resnet", 3, channels=8)).eval()
    images, target = networks.images(batch=2), torch.randint(0, 3, (2, 64, 64))
    task.noisy_labels = True
    target[:, :32] = 255
    logits = task.student(images)
    factor = trust([logits[:, :, 32:]], target[:, 32:])
    pixels = F.cross_entropy(logits[:, :, 32:], target[:, 32:], label_smoothing=0.1, reduction="none")
    expected = (factor * pixels).mean()
    torch.testing.assert_close(task(images, target)["loss"], expected)


@pytest.mark.parametrize("options", [{}, {"sla": True}, {"logit_loss": "dkd"}], ids=str)
def test_missing_labels_and_labels_of_other_types(options: dict[str, Any]) -> None:
    task = FRSKDTask.create(networks.create("test_resnet", num_classes=100), (3, 64, 64), 100, **options).eval()
    images, target = networks.images(batch=2), torch.tensor([70, 99])
    for task.noisy_labels in (False, True):
        expected, found = task(images, target), task(images, target.to(torch.uint8))
        assert all(bool((found[name] == value).all()) for name, value in expected.items())
        labelled, both = task(images[:1], target[:1]), task(images, torch.tensor([70, -100]))
        unlabelled = task(images, torch.full_like(target, -100))
        assert all(result["loss"].isfinite() for result in (both, unlabelled))
        assert unlabelled["loss_ce"] == 0
        for name in labelled.keys() & {"loss_ce", "loss_ce_teacher", "loss_sla"}:
            torch.testing.assert_close(both[name], labelled[name])
    logits, some = PROBABILITIES.log(), TARGET.clone().index_fill(0, torch.tensor(0), -100)
    torch.testing.assert_close(LabelLoss(3)(logits, some), F.cross_entropy(logits, some))


def test_what_labels_cannot_be_doubted_with_is_refused() -> None:
    task = CrossEntropyTask(networks.create("test_resnet", num_classes=3))
    task.noisy_labels = True
    with pytest.raises(UserError, match="leave Mixup and CutMix out"):
        task(networks.images(batch=3), PROBABILITIES)
    task.label_loss = AsymmetricLossSingleLabel()
    with pytest.raises(TypeError, match="factor"):
        task(networks.images(batch=3), TARGET)
    with pytest.raises(UserError, match="Binary cross-entropy cannot be combined with noisy_labels"):
        LabelLoss(3, 0.1, binary=True)(PROBABILITIES.log(), TARGET, TRUST)
