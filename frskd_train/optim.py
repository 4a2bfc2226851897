"""Optimizer and learning-rate schedule of a run."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    muon,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from frskd_timm.errors import UserError, first_line
from frskd_timm.student_task import StudentTask
from frskd_train.errors import suggest
from frskd_train.run.checkpoint import pack
from frskd_train.settings import OptimizerSettings
from frskd_train.settings.constraints import keyword_arguments
from frskd_train.settings.rules import check_lowest_rates
from frskd_train.system.device import fast_bfloat16

# torch optimizers with a fused update of all weights, which takes a third of the time on a CPU, and whether it is right
# for scaled gradients: if these overflow in the first step, torch's fused SGD starts from uninitialised momentum.
FUSED = {"sgd": False, "momentum": False, "adam": True, "adamw": True}
_OF_GROUPS = "fallback_list", "fallback_no_weight_decay"  # arguments of timm's parameter groups


def check_optimizer(settings: OptimizerSettings, device: torch.device | str = "cpu") -> None:
    """Try the optimizer on two tiny parameters before any data are read; raise UserError if it cannot be used."""
    if settings.opt in list_optimizers("*kron*") and find_spec("opt_einsum") is None:
        raise UserError(
            f"Optimizer '{settings.opt}' runs out of memory without the package opt_einsum: pip install opt_einsum."
        )
    # Zeros, which do not advance the random generator of the student's weights.
    parameters = [nn.Parameter(torch.zeros(shape, device=device)) for shape in ((2, 2), (2,))]
    _fallback(settings)
    optimizer = _create(settings, [{"params": parameters}])
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        with torch.random.fork_rng(devices=[]):
            optimizer.step()
        pack(optimizer.state_dict(), {}, settings.opt)
    except Exception as error:
        raise UserError(f"Optimizer '{settings.opt}' cannot be used here: {first_line(error)}.") from error


def create_optimizer(
    settings: OptimizerSettings, task: StudentTask, device: torch.device, is_scaled: bool = False
) -> Optimizer:
    """Create a timm optimizer for all trainable parameters of a task; raise UserError like `check_optimizer`.

    `device` is where the task will be trained. `is_scaled` says that the gradients are scaled, as with float16.
    """
    if "muon" in settings.opt and not fast_bfloat16(device):
        muon_in_float32()
    # The groups do not depend on the value, so that a resumed run can change it, to and from 0 as well.
    decay: dict[str, Any] = {"weight_decay": 1.0, "weight_decay_exclude_1d": settings.filter_bias_and_bn}
    decay |= {"no_weight_decay_list": task.no_weight_decay(), **_fallback(settings)}
    if settings.layer_decay is not None:
        groups = param_groups_layer_decay(task, layer_decay=settings.layer_decay, **decay)
    else:
        groups = param_groups_weight_decay(task, **decay)
    groups = [{**group, "weight_decay": settings.weight_decay * group["weight_decay"]} for group in groups]
    return _create(settings, groups, is_scaled)


def _fallback(settings: OptimizerSettings) -> dict[str, Any]:
    """Return which parameters a hybrid optimizer leaves to its second optimizer, as timm's groups take it."""
    found = {name: value for name, value in keyword_arguments(settings.opt_kwargs).items() if name in _OF_GROUPS}
    if "fallback_list" in found:
        names = found["fallback_list"]
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise UserError(f"--opt-kwargs fallback_list must be a list of parameter names, not {names!r:.60}.")
        found["fallback_list"] = [*names, *(f"student.{name}" for name in names)]  # the names in the task
    return found


def _create(settings: OptimizerSettings, parameters: list[dict[str, Any]], is_scaled: bool = False) -> Optimizer:
    if settings.opt.startswith("lookahead"):
        raise UserError(f"Lookahead is not supported: use --opt {settings.opt.removeprefix('lookahead_')}.")
    names = [str(name) for name in list_optimizers(exclude_filters=["lookahead*"])]
    if settings.opt not in names:
        hint = suggest(settings.opt, names, "see timm.optim.list_optimizers()")
        raise UserError(f"timm has no optimizer '{settings.opt}'{hint}")
    if get_optimizer_info(settings.opt).second_order:
        raise UserError(f"Optimizer '{settings.opt}' needs second-order gradients, which training does not compute.")
    own: dict[str, Any] = {name: getattr(settings, name) for name in ("opt", "lr", "weight_decay", "momentum")}
    more = {name: value for name, value in keyword_arguments(settings.opt_kwargs).items() if name not in _OF_GROUPS}
    is_fused = FUSED.get(settings.opt, False) or (settings.opt in FUSED and not is_scaled)
    if is_fused and not (more.get("foreach") or more.get("differentiable")):  # with fused=False, torch is slowest
        more.setdefault("fused", True)
    try:
        return create_optimizer_v2(parameters, **own, **more)
    except Exception as error:
        raise UserError(f"Optimizer '{settings.opt}' could not be created: {first_line(error)}.") from error


def muon_in_float32() -> None:
    """Let timm's Muon orthogonalise its updates in float32 instead of bfloat16, which it offers no argument for.

    A CPU without bfloat16 instructions emulates them at a quarter of the speed of float32.
    """
    muon.zeropower_via_newtonschulz = functools.partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)


def lr_note(settings: OptimizerSettings) -> str:
    """Return lines about a learning rate that is usual for SGD only, and about one that never decays."""
    note = ""
    small = any(name in settings.opt.lower() for name in ("adam", "adan", "lamb", "lion"))
    if small and settings.lr_base is None and settings.lr >= 0.05:
        note += f"\nNote: --lr {settings.lr:g} is high for --opt {settings.opt}; rates from 1e-4 to 1e-2 are usual."
    if late := settings.decays_too_late:
        note += f"\nNote: the learning rate never decays, because {late}."
    return note


def with_scaled_lr(settings: OptimizerSettings, images: int) -> OptimizerSettings:
    """Replace `lr` by `lr_base` for `images` per update, scaled as timm does, if it is set.

    Raises:
        SettingsError: The schedule would start or end above this rate.
    """
    if settings.lr_base is None:
        return settings
    ratio = images / settings.lr_base_size
    adaptive = any(word in settings.opt.lower() for word in ("ada", "lamb"))
    is_root = settings.lr_base_scale == "sqrt" or (settings.lr_base_scale == "auto" and adaptive)
    scaled = replace(settings, lr=settings.lr_base * (ratio**0.5 if is_root else ratio))
    check_lowest_rates(scaled)
    return scaled


def follow_plateau(scheduler: Scheduler, settings: OptimizerSettings, scores: Mapping[int, float]) -> None:
    """Set the learning rate of `--sched plateau` from the score after each validated epoch; higher is better.

    It is replayed from all scores, so that a resumed run needs no state of the scheduler. As in timm, those of the
    warm-up do not count.
    """
    if settings.sched != "plateau":
        return
    probe = torch.optim.SGD([torch.zeros(1)], lr=settings.lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        probe, "max", settings.own_decay_rate, settings.patience_epochs, min_lr=min(settings.min_lr, settings.lr)
    )
    for epoch, score in scores.items():
        if epoch > settings.warmup_epochs:
            plateau.step(score)
    scheduler.base_values = [probe.param_groups[0]["lr"]] * len(scheduler.base_values)


def base_lr(optimizer: Optimizer) -> float:
    """Return the learning rate of parameters without a factor of their own, such as that of `--layer-decay`."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)


def create_scheduler(settings: OptimizerSettings, optimizer: Optimizer, updates_per_epoch: int) -> Scheduler:
    """Create a timm scheduler that depends only on the number of updates."""
    sched = "constant" if settings.sched in ("none", "plateau") else settings.sched
    same = ("decay_epochs", "min_lr", "warmup_lr", "warmup_epochs")
    options: dict[str, Any] = {name: getattr(settings, name) for name in same}
    options["decay_rate"] = settings.own_decay_rate
    # timm expects them in ascending order, and would decay one update early.
    options["decay_milestones"] = sorted(epoch + 0.5 / updates_per_epoch for epoch in settings.decay_milestones)
    if settings.sched == "none" or settings.epochs * updates_per_epoch == 1:  # not even the only update would train
        options["warmup_epochs"] = 0
    options |= {"num_epochs": settings.epochs, "updates_per_epoch": updates_per_epoch, "step_on_epochs": False}
    return create_scheduler_v2(optimizer, sched, **options)[0]
