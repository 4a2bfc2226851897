"""A self-teacher that sees the images before erasing and mixing."""

from typing import Any

import pytest
import torch
from golden_names import assert_close
from networks import TARGET, create_task, images

from frskd_timm.augment import TwoViews
from frskd_timm.distillation import Outputs
from frskd_timm.errors import UserError
from frskd_timm.losses.functional import soft_label_loss
from frskd_train.data import load_data
from frskd_train.settings.parse import parse_settings


def test_the_self_teacher_sees_the_clean_images() -> None:
    task, plain = create_task(teacher_view="clean"), create_task()
    plain.load_state_dict(task.state_dict())
    task.eval()  # so that batch norm does not depend on the order of the passes
    plain.eval()
    clean, seen = images(batch=4), images(batch=4).flip(3) + 0.1
    result = task(TwoViews(seen, clean, TARGET, None), TARGET)
    of_clean, of_seen = plain(clean, TARGET), plain(seen, TARGET)
    for name, expected in (("output", of_seen), ("teacher_output", of_clean), ("loss_feature", of_clean)):
        assert_close(result[name], expected[name], 1e-5, name)
    assert_close(result["loss_ce"], of_seen["loss_ce"], 1e-5, "student")
    assert_close(result["loss_ce_teacher"], of_clean["loss_ce_teacher"], 1e-5, "self-teacher")
    soft = soft_label_loss(of_clean["teacher_output"], of_seen["output"], task.temperature)
    assert_close(result["loss_kl"], task.alpha * soft, 1e-5, "soft labels")

    mixing = torch.lerp(torch.eye(4)[[1, 0, 3, 2]], torch.eye(4), 0.7)  # each image with one other
    mixed = mixing @ torch.eye(5)[TARGET]
    result = task(TwoViews(seen, clean, TARGET, mixing), mixed)
    assert_close(result["loss_ce_teacher"], of_clean["loss_ce_teacher"], 1e-5, "labels of the clean images")
    advice = (mixing @ of_clean["teacher_output"].softmax(1)).log()
    soft = soft_label_loss(advice, of_seen["output"], task.temperature)
    assert_close(result["loss_kl"], task.alpha * soft, 1e-5, "mixed soft labels")
    with pytest.raises(UserError, match="SLA"):
        create_task(teacher_view="clean", sla=True)
    with pytest.raises(UserError, match="same, clean"):
        create_task(teacher_view="dirty")


def test_the_average_advises_about_the_clean_images() -> None:
    task = create_task(teacher_view="clean", teacher_ema=0.5).eval()
    assert task.average is not None
    assert task.feature_loss is not None
    with torch.no_grad():
        for parameter in task.average["self_teacher"].parameters():
            parameter.add_(0.1)
    clean, seen = images(batch=4), images(batch=4).flip(3) + 0.1
    own, advice = (task.run_networks(clean, dict(networks)) for networks in (task.networks, task.average.items()))
    result = task(TwoViews(seen, clean, TARGET, None), TARGET)
    soft = soft_label_loss(advice.teacher_logits, result["output"], task.temperature)
    assert_close(result["loss_kl"], task.alpha * soft, 1e-5, "soft labels")
    assert_close(result["loss_feature"], task.beta * task.feature_loss(own.maps, advice.refined), 1e-5, "feature maps")


def test_the_lead_compares_both_networks_on_the_clean_images() -> None:
    task, plain = create_task(teacher_view="clean", schedule="lead"), create_task(schedule="lead")
    plain.load_state_dict(task.state_dict())
    for each in (task, plain):
        with torch.no_grad():
            each.student.get_submodule("fc").weight.mul_(30)  # badly wrong, so that the self-teacher leads
    noise = torch.randn(images(batch=4).shape, generator=torch.Generator().manual_seed(1))
    task(TwoViews(noise, images(batch=4), TARGET, None), TARGET)
    plain(images(batch=4), TARGET)
    assert float(plain.lead) > 0
    assert_close(task.lead, plain.lead, 1e-6, "lead")
    task.noisy_labels = plain.noisy_labels = True
    before, seen = float(plain.lead), images(batch=4) + 1
    task(TwoViews(seen, seen, TARGET, None), TARGET)
    plain(seen, TARGET)
    assert float(plain.lead) != before
    assert_close(task.lead, plain.lead, 1e-6, "lead with doubted labels")


@pytest.mark.parametrize(
    "flags",
    [
        ["--reprob", "1"],
        ["--mixup", "1"],
        ["--mixup", "1", "--mixup-mode", "elem"],
        ["--cutmix", "1", "--mixup-off-epoch", "1"],
    ],
)
def test_the_clean_view_is_the_batch_before_erasing_and_mixing(flags: list[str]) -> None:
    def first(epoch: int, *flags: str) -> Any:
        settings = parse_settings(["--train-num-samples", "40", *flags])
        data = load_data(settings.data, settings.preprocessing, model_cfg={})
        return next(data.train_batches(20, clean_view=settings.method.teacher_view == "clean").epoch(epoch))

    views, target = first(0, *flags, "--teacher-view", "clean")
    same, same_target = first(0, *flags)
    plain, classes = first(0)
    assert torch.equal(views.images, same)
    assert torch.equal(target, same_target)
    assert torch.equal(views.clean, plain)
    assert torch.equal(views.classes, classes)
    assert not torch.equal(views.images, views.clean)
    if flags[0] == "--reprob":
        assert views.mixing is None
        return
    assert_close(views.mixing @ torch.eye(target.shape[1])[classes], target, 1e-6, "mixed targets")
    if flags[0] == "--mixup":
        assert_close(torch.einsum("bm,mchw->bchw", views.mixing, views.clean), views.images, 1e-5, "mixed images")
    else:
        views, _ = first(1, *flags, "--teacher-view", "clean")
        assert views.mixing is None
        assert torch.equal(views.images, views.clean)


def test_a_step_without_the_self_teacher_is_one_of_the_mixed_images() -> None:
    task = create_task(teacher_view="clean", teacher_interval=2)
    task.set_progress(0.5)  # after one update; the next one leaves the self-teacher out
    noise = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    result = task(TwoViews(noise, images(batch=4), TARGET, None), TARGET)
    assert torch.equal(result["output"], task.student(noise))


def test_the_gate_weighs_the_advice_about_mixtures() -> None:
    task = create_task(teacher_view="clean", gate="advantage", temperature=1.0)
    mixing, labels = torch.full((4, 4), 0.25), torch.eye(5)[TARGET]
    sure = 9 * labels
    found = task.soft_labels(
        Outputs([], 0 * sure, [], sure, batch=TwoViews(images(batch=4), images(batch=4), TARGET, mixing)),
        mixing @ labels,
    )
    assert_close(found, soft_label_loss((mixing @ sure.softmax(1)).log(), 0 * sure, 1.0), 1e-5, "advice about mixtures")


def test_advice_of_a_very_sure_teacher_is_finite() -> None:
    task = create_task(teacher_view="clean", temperature=1.0)
    sure = torch.tensor([[200.0, 0, 0, 0, 0]] * 4)
    batch = TwoViews(images(batch=4), images(batch=4), TARGET, mixing=torch.eye(4))
    assert task.soft_labels(Outputs([], 0 * sure, [], sure, batch=batch), torch.eye(5)[TARGET]).isfinite()
