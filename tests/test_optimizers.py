"""Every optimizer of timm trains, is saved and resumes to the same bits, or is refused before training."""

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from runs import STATE, assert_resumes, rows, small, train_here
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch.optim import Optimizer

from frskd_timm.errors import UserError
from frskd_timm.segmentation import SegmentationCrossEntropyTask, create_segmentation_student
from frskd_timm.student_task import CrossEntropyTask
from frskd_train import optim, trainer
from frskd_train.optim import base_lr, check_optimizer, create_optimizer, create_scheduler
from frskd_train.run.checkpoint import load_state, restore, save_checkpoint
from frskd_train.settings import OptimizerSettings
from frskd_train.settings.constraints import keyword_arguments

CPU = torch.device("cpu")
NAMES = [str(name) for name in list_optimizers(exclude_filters=["lookahead*"])]
CLASSES = {get_optimizer_info(name).opt_class: name for name in NAMES}


def skip_if_refused(name: str) -> None:
    try:
        check_optimizer(OptimizerSettings(opt=name))
    except UserError as error:
        reason = str(error)
    else:
        return
    assert f"'{name}'" in reason
    assert any(word in reason for word in ("second-order", "CUDA", "Cxx", "opt_einsum")), reason
    pytest.skip(reason)


@pytest.mark.parametrize("name", [name for name in CLASSES.values() if "kron" not in name])  # kron compiles for long
def test_a_checkpoint_restores_every_optimizer(name: str, tmp_path: Path) -> None:
    skip_if_refused(name)
    tasks, optimizers = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        tasks.append(CrossEntropyTask(timm.create_model("test_mambaout", num_classes=3, in_chans=1)))
        optimizers.append(create_optimizer(OptimizerSettings(opt=name, lr=0.01), tasks[-1], CPU))

    def step(seed: int, number: int) -> None:
        torch.manual_seed(seed)
        tasks[number](torch.randn(2, 1, 32, 32), torch.tensor([0, 1]))["loss"].backward()
        optimizers[number].step()
        optimizers[number].zero_grad()

    for seed in range(2):
        step(seed, 0)
    saved = save_checkpoint(tmp_path, 2, {"task": tasks[0]}, optimizers[0], STATE)
    restore(saved, load_state(saved), {"task": tasks[1]}, optimizers[1])
    for number in range(2):
        step(2, number)
    one, other = (task.state_dict() for task in tasks)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.long
@pytest.mark.parametrize("name", ["adafactorbv", "lamb", "madgrad", "nmuon", "rmsproptf"])
def test_a_run_resumes_to_the_same_bits(name: str, places: Path, tmp_path: Path) -> None:
    flags = small(places, "--opt", name, "--train-num-samples", 12)
    train_here(*flags, "--output-dir", tmp_path / "run")
    assert_resumes(tmp_path / "run", tmp_path / "resumed")


def test_arguments_of_the_optimizer_replace_the_defaults() -> None:
    task = CrossEntropyTask(timm.create_model("test_resnet", num_classes=3))
    for arguments in ({"foreach": True}, {"fused": False}):
        optimizer = create_optimizer(OptimizerSettings(opt="adamw", lr=0.01, opt_kwargs=arguments), task, CPU)
        assert all(optimizer.defaults[name] is value for name, value in arguments.items())


def test_an_overflow_of_scaled_gradients_in_the_first_step_changes_nothing() -> None:
    task = CrossEntropyTask(timm.create_model("test_vit", num_classes=3))
    before = [parameter.clone() for parameter in task.parameters()]
    optimizer = create_optimizer(OptimizerSettings(opt="sgd", lr=0.1), task, CPU, is_scaled=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    scaler.scale(task(torch.randn(2, 3, 160, 160), torch.tensor([0, 1]))["loss"] * 1e6).backward()
    scaler.step(optimizer)
    assert not optimizer.state  # torch's fused SGD would keep uninitialised memory as momentum
    assert all(torch.equal(*pair) for pair in zip(before, task.parameters(), strict=True))


def test_scaled_learning_rates_need_no_schedule() -> None:
    task = CrossEntropyTask(timm.create_model("test_vit", num_classes=3))
    found = []
    for sched in ("none", "cosine"):
        settings = OptimizerSettings(sched=sched, lr=0.1, layer_decay=0.5, epochs=10)
        optimizer = create_optimizer(settings, task, CPU)
        create_scheduler(settings, optimizer, 1).step_update(0)
        found.append([group["lr"] for group in optimizer.param_groups])
        assert base_lr(optimizer) == pytest.approx(0.1)
    assert found[0] == pytest.approx(found[1])
    assert min(found[0]) < 0.05
    constant = OptimizerSettings(sched="constant", lr=0.1, epochs=10, warmup_epochs=2, warmup_lr=0.02, momentum=0.5)
    optimizer = create_optimizer(constant, task, CPU)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.5}
    scheduler, rates = create_scheduler(constant, optimizer, 1), []
    for update in range(10):
        scheduler.step_update(update)
        rates.append(base_lr(optimizer))
    assert rates == pytest.approx([0.02, 0.06, *[0.1] * 8])
    only = OptimizerSettings(lr=0.1, epochs=1, warmup_epochs=0.5)
    optimizer = create_optimizer(only, task, CPU)
    create_scheduler(only, optimizer, 1).step_update(0)
    assert base_lr(optimizer) == pytest.approx(0.1)  # warming up would leave no update to train


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("filtered", [False, True])
def test_weight_decay_spares_the_parameters_that_timm_spares(filtered: bool, layer_decay: float | None) -> None:
    student = timm.create_model("test_vit", num_classes=3)
    settings = OptimizerSettings(weight_decay=0.1, filter_bias_and_bn=filtered, layer_decay=layer_decay)
    options = {"opt": "sgd", "lr": 0.1, "weight_decay": 0.1, "layer_decay": layer_decay}
    expected = create_optimizer_v2(student, filter_bias_and_bn=filtered, **options)

    def decays(optimizer: Optimizer) -> dict[int, float]:
        return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}

    own = decays(create_optimizer(settings, CrossEntropyTask(student), CPU))
    assert own == decays(expected)
    assert own[id(student.pos_embed)] == 0
    groups = [
        create_optimizer(replace(settings, weight_decay=decay), CrossEntropyTask(student), CPU).param_groups
        for decay in (0, 0.1)
    ]
    sizes = [[len(group["params"]) for group in found] for found in groups]
    assert sizes[0] == sizes[1], "a resumed run can change its weight decay to and from 0"
    assert {group["weight_decay"] for group in groups[0]} == {0}
    segmenter = create_segmentation_student("test_vit", 3, channels=8)
    plain = replace(settings, layer_decay=None)  # which is for classification
    found = decays(create_optimizer(plain, SegmentationCrossEntropyTask(segmenter), CPU))
    assert found[id(segmenter.backbone.pos_embed)] == 0


@pytest.mark.parametrize("arguments", [{"fallback_list": "['head*']"}, {"fallback_no_weight_decay": "True"}])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_hybrid_optimizers_leave_to_their_fallback_what_timm_leaves(
    arguments: dict[str, str], layer_decay: float | None
) -> None:
    student = timm.create_model("test_vit", num_classes=3)
    settings = OptimizerSettings(opt="muon", lr=0.1, layer_decay=layer_decay, opt_kwargs=arguments)
    options = {"opt": "muon", "lr": 0.1, "weight_decay": 0.1, "layer_decay": layer_decay, "filter_bias_and_bn": False}
    expected = create_optimizer_v2(student, **options, **keyword_arguments(arguments))
    found = create_optimizer(settings, CrossEntropyTask(student), CPU)
    first, second = (
        {id(p) for group in optimizer.param_groups if group.get("use_fallback") for p in group["params"]}
        for optimizer in (expected, found)
    )
    assert first == second != set()
    with pytest.raises(UserError, match="fallback_list must be a list of parameter names, not 3"):
        check_optimizer(replace(settings, opt_kwargs={"fallback_list": "3"}))


def test_a_run_goes_from_its_first_update_to_its_last(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates, progress, seeds of dropout, and parameters whose gradients are clipped."""
    seen: list[float] = []
    seeds: list[tuple[int, ...]] = []
    clipped: list[tuple[str, int]] = []
    monkeypatch.setattr(CrossEntropyTask, "set_progress", lambda self, progress: seen.append(progress))
    monkeypatch.setattr(trainer, "step_seed", lambda *parts: seeds.append(parts) or 0)
    monkeypatch.setattr(trainer, "dispatch_clip_grad", lambda found, *_, mode: clipped.append((mode, len(found))))
    flags = [flag for flag in small(places, "--method", "ce", "--grad-accum-steps", 2) if flag not in ("--lr", "0.01")]
    flags += ["--seed", 7, "--clip-grad", 1, "--clip-mode", "agc"]
    train_here(*flags, "--lr-base", 0.32, "--output-dir", tmp_path / "run")  # for 256 images, not the 8 of an update
    assert seen == pytest.approx([update / 5 for update in range(6) for _ in range(2)])
    assert seeds == [(7, step // 2, step % 6, 0) for step in range(12)]  # update, step of the epoch, process
    parameters = list(timm.create_model("test_resnet").parameters())
    assert clipped == [("agc", len(parameters) - 2)] * 6  # which leaves the head out
    rates = [0.01 * (1 + math.cos(math.pi * update / 6)) / 2 for update in (2, 5)]  # at the end of each epoch
    assert [float(row["lr"]) for row in rows(tmp_path / "run")] == pytest.approx(rates)


def test_milestones_in_any_order_act_from_the_beginning_of_an_epoch() -> None:
    settings = OptimizerSettings(sched="multistep", lr=1.0, epochs=4, decay_milestones=[3, 1], decay_rate=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = create_scheduler(settings, optimizer, 7)
    for update in range(28):
        scheduler.step_update(update)
        epoch = update // 7
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 ** ((epoch >= 1) + (epoch >= 3)))


@pytest.mark.parametrize(
    ("name", "is_scaled", "fused"),
    [("sgd", False, True), ("sgd", True, None), ("adamw", True, True), ("lion", True, None)],
)
def test_updates_are_fused_where_that_is_right(name: str, is_scaled: bool, fused: bool | None) -> None:
    task = CrossEntropyTask(timm.create_model("test_resnet", num_classes=3))
    made = create_optimizer(OptimizerSettings(opt=name, lr=0.01), task, CPU, is_scaled=is_scaled)
    assert made.defaults.get("fused") is fused  # with False, torch would not update many weights at once either


def test_muon_does_not_emulate_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient, task = torch.randn(64, 128, generator=torch.manual_seed(0)), CrossEntropyTask(torch.nn.Linear(128, 64))

    def step() -> torch.Tensor:
        weight = task.student.weight
        torch.nn.init.zeros_(weight)
        optimizer = create_optimizer(OptimizerSettings(opt="muon", lr=1.0, weight_decay=0.0), task, CPU)
        weight.grad = gradient.clone()
        optimizer.step()
        return weight.detach().clone()

    newton_schulz = timm.optim.muon.zeropower_via_newtonschulz
    newton_schulz = getattr(newton_schulz, "func", newton_schulz)  # timm's own, also after a training in this process
    double = functools.partial(newton_schulz, dtype=torch.float64)
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", double)
    monkeypatch.setattr(optim, "fast_bfloat16", lambda _: True)
    exact = step()
    for fast, error in ((True, 1e-1), (False, 1e-4)):  # bfloat16 has 8 bits, float32 24
        monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", newton_schulz)
        monkeypatch.setattr(optim, "fast_bfloat16", lambda _, fast=fast: fast)
        found = (step() - exact).abs().max() / exact.abs().max()
        assert error / 1000 < found < error
