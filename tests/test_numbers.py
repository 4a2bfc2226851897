"""Numerical problems in training are reported."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pictures import pictures, save
from runs import rows, small, train_here
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_timm.task import FRSKDTask
from frskd_train.data.augment import BatchAugmentation
from frskd_train.run.checkpoint import latest_checkpoint
from frskd_train.run.meter import NonfiniteGuard, TrainMeter, learning_note
from frskd_train.settings.parse import parse_settings
from frskd_train.system import sync_batchnorm
from frskd_train.system.sync_batchnorm import synchronise_norms
from frskd_train.tasks import choose_job


def test_a_nonfinite_loss_is_reported(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, epoch=1, step=3)
    with pytest.raises(UserError, match=r"loss_ce became NaN .* step 4 of epoch 2.* checkpoint, .*-00000006.*--lr"):
        train_here(*small(places), "--output-dir", places / "spoilt")
    assert all(torch.isfinite(weights).all() for weights in load_file(task_of(places / "spoilt")).values())

    train_here("--resume", places / "spoilt", "--skip-nonfinite", 1)
    assert rows(places / "spoilt")[1]["skipped_steps"] == "1"
    assert json.loads((places / "spoilt" / "metrics.json").read_text())["student"]["loss"] < 100

    spoil(monkeypatch, epoch=0, step=2)
    spoil(monkeypatch, epoch=0, step=4)
    with pytest.raises(UserError, match=r"step 3 of epoch 1 .*2 such steps .* no checkpoint yet"):
        train_here(*small(places), "--skip-nonfinite", 1, "--output-dir", places / "spoilt twice")


def test_discarded_updates_count_although_their_losses_are_finite(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero = torch.zeros(1, requires_grad=True)
    forward = FRSKDTask.forward

    def with_infinite_gradient(self: FRSKDTask, *batch: Any) -> dict[str, Any]:
        result = forward(self, *batch)
        norm = next(self.student.parameters()).flatten()[:1] * 0
        return {**result, "loss": result["loss"] + (norm + zero.detach()).sqrt().sum()}

    monkeypatch.setattr(FRSKDTask, "forward", with_infinite_gradient)
    with pytest.raises(UserError, match=r"^loss, or its gradient, became NaN .*step 1 of epoch 1 \(2 such steps"):
        train_here(*small(places), "--skip-nonfinite", 1, "--output-dir", tmp_path / "run")


def test_a_discarded_update_restores_the_statistics_of_the_one_before() -> None:
    norm = torch.nn.BatchNorm1d(3)
    guard, optimizer = NonfiniteGuard(norm), SimpleNamespace(scaler=None, zero_grad=norm.zero_grad)
    norm(torch.randn(4, 3)).sum().backward()
    assert not guard.check(optimizer)  # type: ignore[arg-type]
    kept = norm.running_mean.clone()
    norm(torch.full((4, 3), float("nan"))).sum().backward()
    assert guard.check(optimizer)  # type: ignore[arg-type]
    assert torch.equal(norm.running_mean, kept)
    assert norm.weight.grad is None


def test_a_bad_batch_of_an_update_counts_once(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, epoch=0, step=2)
    train_here(*small(places), "--grad-accum-steps", 4, "--skip-nonfinite", 1, "--output-dir", tmp_path / "run")
    assert rows(tmp_path / "run")[0]["skipped_steps"] == "1"


def spoil(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    """Put NaN into the images of one step."""
    augment = BatchAugmentation.__call__

    def spoilt(self: BatchAugmentation, *batch: Any) -> tuple[Any, Tensor]:
        images, target = augment(self, *batch)
        return (images * float("nan") if batch[-2:] == (epoch, step) else images), target

    monkeypatch.setattr(BatchAugmentation, "__call__", spoilt)


def task_of(run: Path) -> Path:
    last = latest_checkpoint(run / "checkpoints")
    assert last is not None
    return last / "task.safetensors"


def test_a_student_that_learns_nothing_is_noticed() -> None:
    class Alone:
        def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
            return tensor

    meter = TrainMeter(torch.device("cpu"))
    for step in range(200):  # good for most of the epoch, then dead: the mean hides it
        ce = 0.5 if step < 140 else 2.3026
        meter.update({"loss": torch.tensor(ce), "loss_ce": torch.tensor(ce)})
    means, recent = meter.means(Alone()), meter.recent(Alone())  # type: ignore[arg-type]
    assert means["loss_ce"] < 1.2
    assert recent["loss_ce"] > 1.5
    meter.update({"loss": torch.tensor(float("nan")), "loss_ce": torch.tensor(9.0)})  # counts in neither
    assert meter.means(Alone()) == means  # type: ignore[arg-type]
    assert meter.recent(Alone()) == recent  # type: ignore[arg-type]
    again = TrainMeter(torch.device("cpu"))
    again.load(json.loads(json.dumps(meter.state(Alone()))))
    assert again.means(Alone()) == means  # type: ignore[arg-type]
    assert again.recent(Alone()) == recent  # type: ignore[arg-type]
    heavy = choose_job(parse_settings(["--student-weight", "2"]))
    assert heavy.cross_entropy({"loss_ce": 4.6}, SimpleNamespace(student_weight=2.0)) == 2.3  # type: ignore[arg-type]
    shown = {"top1": "top-1", "top5": "top-5"}
    assert learning_note([{"top1": 50.0}], 1.0, shown, 10, 500) is None
    assert learning_note([{"top1": 80.0}, {"top1": 20.0}, {}], 0.0, shown, 10, 500) is None  # said before
    assert "guessing" in str(learning_note([], 2.31, shown, 10, 500))
    assert "no better than guessing" in str(learning_note([{"top1": 10.0}], 1.0, shown, 10, 500))
    assert "fell to 20.00% from 80.00%" in str(learning_note([{"top1": 80.0}, {"top1": 20.0}], 0.0, shown, 10, 500))


def test_a_run_that_learns_nothing_says_so(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save(tmp_path / "data", train=pictures(204), test=pictures(9))  # the note needs 100 updates
    few = ["--dataset", data, "--method", "ce", "--batch-size", 2, "--epochs", 1, "--lr", 1e-9]
    train_here(*small(places, *few), "--output-dir", tmp_path / "run")
    assert "so it is not learning" in capsys.readouterr().out


def test_a_batch_of_one_image_is_refused_where_normalisation_cannot_take_it(places: Path, tmp_path: Path) -> None:
    flags = small(places, "--batch-size", 1, "--epochs", 1, "--train-num-samples", 6, "--output-dir", tmp_path / "run")
    sentence = r"one 32x32 image .*single value per channel, such as in student\.layer4.* --batch-size 2 .* --img-size"
    for method in ("frskd", "ce"):
        with pytest.raises(UserError, match=sentence):
            train_here(*flags, "--img-size", 32, "--method", method)
    assert not (tmp_path / "run").exists()
    train_here(*flags, "--img-size", 64)
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_synchronised_normalisation_of_one_process_is_the_plain_one(device: str) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.BatchNorm2d(3), BatchNormAct2d(3), torch.nn.BatchNorm2d(3))
    synchronised = copy.deepcopy(plain)
    synchronise_norms(synchronised, torch.device(device))
    assert not {type(layer) for layer in plain} & {type(layer) for layer in synchronised}
    images = torch.randn(4, 3, 5, 5)
    modes = (True, False) if device == "cpu" else (False,)  # in training, torch's layer for CUDA refuses a CPU's images
    for training in modes:
        assert torch.equal(plain.train(training)(images), synchronised.train(training)(images))
    one, other = plain.state_dict(), synchronised.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("layer", "shape"), [(torch.nn.BatchNorm1d, (6, 3)), (torch.nn.BatchNorm2d, (4, 3, 5, 5))])
def test_synchronised_statistics_are_those_of_the_layer(
    layer: type[torch.nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another process existed, whose sums are zero."""
    monkeypatch.setattr(sync_batchnorm, "has_other_processes", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: None)
    plain = layer(3)
    synchronised = copy.deepcopy(plain)
    synchronise_norms(synchronised, torch.device("cpu"))
    images, gradient = torch.randn(shape), torch.randn(shape)
    found = []
    for norm in (plain, synchronised):
        x = images.clone().requires_grad_()
        (norm(x) * gradient).sum().backward()
        found.append([x.grad, norm.weight.grad, norm.running_mean, norm.running_var])
    torch.testing.assert_close(*found)
