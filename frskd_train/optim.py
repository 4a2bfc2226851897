"""From settings to the optimizer and the learning-rate schedule of a run."""

import difflib
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.optim._param_groups import param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.task import StudentTask
from frskd_train.constraints import keyword_arguments
from frskd_train.settings import OptimizerSettings

# torch's own optimizers that update everything in one pass over memory; on a CPU that takes a third of the time.
FUSED = {"sgd", "momentum", "adam", "adamw"}


def check_optimizer(settings: OptimizerSettings) -> None:
    """Makes sure, before any data are read, that timm has this optimizer and takes its arguments.

    Raises:
        UserError: timm has no optimizer of that name, or it refuses its arguments.
    """
    # Zeros: a drawn parameter would take numbers from the generator that the student's weights come from.
    _create(settings, [{"params": [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]}])


def create_optimizer(
    settings: OptimizerSettings, task: StudentTask, teacher_lr_scale: float = 1.0
) -> torch.optim.Optimizer:
    """Creates a timm optimizer over everything trainable in a task.

    Args:
        settings: Optimizer and its numbers.
        task: Student and what is thrown away.
        teacher_lr_scale: Learning rate of what is thrown away, as a multiple of the student's.

    Raises:
        UserError: As `check_optimizer`.
    """
    parameters = [
        *_groups(settings, task.student),
        *({**group, "lr_scale": teacher_lr_scale} for group in _groups(settings, task, without=task.student)),
    ]
    return _create(settings, parameters)


def _create(settings: OptimizerSettings, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if settings.opt not in list_optimizers(exclude_filters=["lookahead*"]):
        close = difflib.get_close_matches(settings.opt, [str(name) for name in list_optimizers()], n=3)
        raise UserError(
            f"timm knows no optimizer '{settings.opt}'."
            + (f" Did you mean {' or '.join(close)}?" if close else " timm.optim.list_optimizers() lists them.")
        )
    fused: dict[str, Any] = {"fused": True} if settings.opt in FUSED else {}
    try:
        return create_optimizer_v2(
            parameters,
            opt=settings.opt,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            **(fused | keyword_arguments(settings.opt_kwargs)),
        )
    except Exception as error:
        raise UserError(f"timm cannot build the optimizer '{settings.opt}' so: {error}") from error


def _groups(settings: OptimizerSettings, module: nn.Module, without: nn.Module | None = None) -> list[dict[str, Any]]:
    """Parameter groups as timm makes them: by weight decay, and for the student by layer where that is asked for."""
    if settings.layer_decay is not None and without is None:
        return param_groups_layer_decay(module, settings.weight_decay, layer_decay=settings.layer_decay)
    left_out = set() if without is None else {id(p) for p in without.parameters()}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if id(parameter) in left_out or not parameter.requires_grad:
            continue
        exempt = settings.filter_bias_and_bn and (parameter.ndim <= 1 or name.endswith(".bias"))
        (plain if exempt else decayed).append(parameter)
    groups = [(decayed, settings.weight_decay), (plain, 0.0)]
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


def create_scheduler(
    settings: OptimizerSettings, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> Scheduler | None:
    """Creates a timm schedule that is a function of the number of updates; None keeps the rate."""
    if settings.sched == "none":
        return None
    return create_scheduler_v2(
        optimizer,
        sched=settings.sched,
        num_epochs=settings.epochs,
        decay_epochs=settings.decay_epochs,
        decay_milestones=list(settings.decay_milestones),
        decay_rate=settings.decay_rate,
        min_lr=settings.min_lr,
        warmup_lr=settings.warmup_lr,
        warmup_epochs=settings.warmup_epochs,  # type: ignore[arg-type]
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )[0]
