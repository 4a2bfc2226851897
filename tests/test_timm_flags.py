"""Flags that users of timm's train.py know do here what they do there, or are answered."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from pictures import encoded, labels_of, load, load_masks, picture, save, split
from runs import assert_resumes, rows, small, train_here
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from frskd_timm.errors import UserError
from frskd_timm.losses.labels import LabelLoss
from frskd_train.optim import create_scheduler, follow_plateau, lr_note, with_scaled_lr
from frskd_train.run.state import RunState
from frskd_train.settings import Settings, declared
from frskd_train.settings.parse import parse_settings
from frskd_train.settings.timm_flags import TRAIN
from frskd_train.tasks import choose_job

LOGITS = torch.randn(6, 3, generator=torch.manual_seed(0))
TARGET = torch.tensor([0, 0, 0, 1, 1, 2])


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Every flag of the train.py of timm 1.0.31."""
    text = (ROOT / "tests" / "golden" / "timm_train_flags.txt").read_text(encoding="utf-8")
    return [name.replace("-", "_") for name in text.split()]


def test_every_flag_of_timms_train_py_exists_or_is_answered(names: list[str]) -> None:
    assert len(names) > 150
    assert [name for name in names if name not in declared(Settings) and name not in TRAIN] == []
    assert parse_settings(["-c", "cifar100_resnet18", "-j", "3", "-vb", "99"]).loop.validation_batch_size == 99


def test_class_weights_and_binary_cross_entropy_are_those_of_torch_and_timm() -> None:
    weights = [3.0, 1.0, 0.0]
    loss = LabelLoss(3, 0.0, weights)(LOGITS, TARGET)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, TARGET, torch.tensor(weights)))
    assert LabelLoss(3, 0.1, weights)(LOGITS, torch.full_like(TARGET, 2)) == 0  # no image counts
    one_hot = F.one_hot(TARGET, 3).float()
    for options in ({}, {"sum_classes": True}, {"target_threshold": 0.2}, {"pos_weight": 2.0}):
        wanted = BinaryCrossEntropy(0.1, weight=torch.tensor(weights), **options)(LOGITS, TARGET)  # type: ignore[arg-type]
        loss = LabelLoss(3, 0.1, weights, binary=True, **options)  # type: ignore[arg-type]
        assert not loss.state_dict()
        for target in (TARGET, one_hot):  # Mixup gives probabilities, which are smoothed alike
            torch.testing.assert_close(loss(LOGITS, target), wanted)
        some = TARGET.clone().index_fill(0, torch.tensor(0), -100)
        torch.testing.assert_close(loss(LOGITS, some), loss(LOGITS[1:], TARGET[1:]))
        assert loss(LOGITS, torch.full_like(TARGET, -100)) == 0
    with pytest.raises(UserError, match="2 class weights for 3 classes"):
        LabelLoss(3, 0.1, [1.0, 2.0])
    with pytest.raises(UserError, match="finite"):
        LabelLoss(3, 0.1, [1.0, 2.0, float("nan")])


def test_class_weights_follow_the_images_that_are_trained_on(places: Path, tmp_path: Path) -> None:
    """A class without images, or an output without a class, does not change the weights of the others."""
    rows = [encoded(picture(number)) for number in range(12)] + [{"bytes": b"no image", "path": None}]
    data = save(tmp_path / "data", train=split(rows, [0] * 8 + [2] * 5), test=split(rows[:2], [0, 2]))
    for method, mode, ratio in (
        ("auto", "memory", 8 / 4),
        ("auto", "stream", 8 / 5),
        ("effective_num", "memory", 1 + 0.999**4),
    ):
        job = choose_job(parse_settings(["--class-weights", method]))
        images = load(data, data_mode=mode, bad_images="skip", img_size=(12,))
        first, empty, third, further = job.class_weights(images, 4)  # type: ignore[misc]
        assert empty == further == 1
        assert third > 1 > first
        assert third / first == pytest.approx(ratio)
    labels = np.concatenate([labels_of(number, 40, 30).ravel() for number in range(24)])
    pixels = np.bincount(labels, minlength=256)[:3]
    job = choose_job(parse_settings(["--task", "segmentation", "--class-weights", "auto"]))
    found = np.array(job.class_weights(load_masks(places / "masks"), 3))
    np.testing.assert_allclose(found / found[0], pixels[0] / pixels, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "lr"),
    [
        ("--opt sgd", 0.1 * 64 / 256),
        ("--opt adamw", 0.1 * 0.5),
        ("--opt adamw --lr-base-scale linear --lr-base-size 128", 0.1 * 64 / 128),
        ("--opt lamb --lr-base None", 0.1),
    ],
)
def test_the_base_rate_is_scaled_as_in_timm(flags: str, lr: float) -> None:
    settings = parse_settings(f"--lr-base 0.1 {flags}".split())
    assert with_scaled_lr(settings.optimizer, 64).lr == pytest.approx(lr)


def test_a_run_with_flags_of_timm_decays_at_a_plateau_and_resumes_to_the_same_bits(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = ["--bce-loss", "--bce-target-thresh", 0.2, "--class-weights", "auto"]
    mixing = ["--mixup", 0.2, "--cutmix", 1, "--mixup-mode", "elem", "--mixup-prob", 0.8, "--mixup-off-epoch", 2]
    colours = ["--grayscale-prob", 0.5, "--gaussian-blur-prob", 0.5, "--color-jitter", 0.3, "--color-jitter-prob", 0.5]
    rate = ["--lr-base", 0.64, "--sched", "plateau", "--patience-epochs", 0, "--decay-rate", 0.5, "--warmup-epochs", 1]
    run = tmp_path / "run"
    flags = [flag for flag in small(places) if flag not in ("--lr", "0.01")]
    others = ["--method", "ce", "--aug-repeats", 2, "--workers", 0, "--epochs", 4, "--output-dir", run]
    constant = property(lambda self: dict.fromkeys((row["epoch"] for row in self.history), 50.0))
    monkeypatch.setattr(RunState, "scores", constant)
    train_here(*flags, *losses, *mixing, *colours, *rate, *others)
    rates = [float(row["lr"]) for row in rows(run)]
    assert rates[1:] == pytest.approx([0.01, 0.01, 0.005])  # the second score after the warm-up is no better
    assert_resumes(run, tmp_path / "copy")


def test_a_plateau_decays_after_the_patience_down_to_the_lowest_rate() -> None:
    words = "--sched plateau --lr 1 --patience-epochs 1 --decay-rate 0.1 --min-lr 0.05 --warmup-epochs 2"
    settings = parse_settings(words.split()).optimizer
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1)
    scheduler = create_scheduler(settings, optimizer, updates_per_epoch=4)
    rates = []
    for scores in ([], [9.0], [9.0, 8.0], [9.0, 8.0, 9.0], [9.0, 8.0, 9.0, 7.0, 6.0]):
        warmup = {1: 99.0, 2: 98.0}  # scores that do not count
        follow_plateau(scheduler, settings, warmup | dict(enumerate(scores, 3)))
        scheduler.step_update(8)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.05])


def test_a_recipe_with_too_few_epochs_for_its_schedule_is_noticed() -> None:
    words = ["--config", "cifar100_resnet18", "--epochs"]
    assert "never decays, because --decay-milestones 100 is not" in lr_note(parse_settings([*words, "60"]).optimizer)
    assert not lr_note(parse_settings([*words, "101"]).optimizer)


def test_a_rate_for_sgd_is_noticed_with_adam() -> None:
    note = lambda words: lr_note(parse_settings(words.split()).optimizer)
    assert "--lr 0.1 is high for --opt adamw; rates from 1e-4 to 1e-2 are usual." in note("--opt adamw --lr 0.1")
    assert not note("--opt adamw --lr 1e-3") + note("--opt sgd --lr 0.1")


def test_colours_are_changed_as_often_as_asked(places: Path) -> None:
    def images(**chosen: float) -> torch.Tensor:
        plain = {"hflip": 0.0, "crop_padding": 0, "mean": (0.0,), "std": (1.0,), "data_mode": "stream", "workers": 0}
        return next(load(places / "data", **plain, **chosen).train_batches(24).epoch(0))[0]

    gray = images(grayscale_prob=1.0)
    assert torch.equal(gray, gray[:, :1].expand_as(gray))
    assert not torch.equal(images(gaussian_blur_prob=1.0), images())
    assert torch.equal(images(color_jitter=0.5, color_jitter_prob=0.0), images())
    assert not torch.equal(images(color_jitter=0.5), images())


def test_class_weights_count_for_mixed_labels() -> None:
    weights, logits = torch.tensor([3.0, 1.0, 0.0]), torch.randn(3, 3)
    wanted = F.cross_entropy(logits, torch.arange(3), weights)
    torch.testing.assert_close(LabelLoss(3, 0.0, weights)(logits, torch.eye(3)), wanted)
