"""From settings to the parts of a run: student, task, optimizer, learning-rate schedule."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors.torch import load_file
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from timm.optim import create_optimizer_v2, list_optimizers
from timm.optim._param_groups import param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.exported import load_export
from frskd_timm.task import CrossEntropyTask, FRSKDTask, StudentTask
from frskd_train.data import ImageData
from frskd_train.probe import LinearProbeTask
from frskd_train.settings import MethodSettings, ModelSettings, OptimizerSettings, Settings

__all__ = ["build_optimizer", "build_scheduler", "build_student", "build_task", "default_cfg"]

# torch's own optimizers that update everything in one pass over memory; on a CPU that takes a third of the time.
FUSED = {"sgd", "momentum", "adam", "adamw"}


def default_cfg(settings: ModelSettings) -> Mapping[str, Any]:
    """What timm knows of the student's input before it is built.

    Raises:
        UserError: timm has no such model, or the folder or repository cannot be read.
    """
    name = settings.model
    if name.startswith("local-dir:"):
        try:
            return load_model_config_from_path(name.removeprefix("local-dir:"))[0]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--model {name} is no exported model: {error}.") from error
    if name.startswith("hf-hub:"):
        try:
            return load_model_config_from_hf(name.removeprefix("hf-hub:"))[0]
        except Exception as error:
            raise UserError(f"--model {name} cannot be had from the Hub: {str(error).splitlines()[0]}") from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else " timm.list_models() lists the names."
        raise UserError(f"timm knows no model '{name}'.{hint}")
    cfg = timm.get_pretrained_cfg(name)
    if settings.pretrained and (cfg is None or not cfg.has_weights):
        raise UserError(f"There are no pretrained weights for '{name}'; leave --pretrained out.")
    return cfg.to_dict() if cfg is not None else {}


def build_student(settings: ModelSettings, cfg: Mapping[str, Any], data: ImageData) -> nn.Module:
    """Creates the student for the data's classes and image size.

    Raises:
        UserError: The model refuses its arguments, or the weights to start from do not fit.
    """
    classes = settings.num_classes or data.num_classes
    if classes < data.num_classes:
        raise UserError(f"--num-classes {classes} is fewer than the {data.num_classes} classes of the data.")
    channels, height, width = data.preprocessing.input_size
    arguments: dict[str, Any] = {key: yaml.safe_load(value) for key, value in settings.model_kwargs.items()}
    if cfg.get("fixed_input_size"):
        arguments.setdefault("img_size", (height, width))
    if settings.drop_path is not None:
        arguments["drop_path_rate"] = settings.drop_path
    pretrained = settings.pretrained or settings.model.startswith(("local-dir:", "hf-hub:"))
    try:
        student = timm.create_model(
            settings.model,
            pretrained=pretrained,
            num_classes=classes,
            in_chans=channels,
            drop_rate=settings.drop,
            **arguments,
        )
    except UserError:
        raise
    except Exception as error:  # a model's own complaint about its arguments
        raise UserError(f"timm cannot build '{settings.model}' so: {str(error).splitlines()[0]}") from error
    if settings.initial_checkpoint is not None:
        _start_from(student, settings.initial_checkpoint)
    if settings.grad_checkpointing:
        student.set_grad_checkpointing(True)  # type: ignore[operator]
    return student


def load_for_evaluation(model: str) -> tuple[nn.Module, Path | None]:
    """Loads trained weights.

    Args:
        model: A run's folder, an exported student's folder, or a name that timm has weights for.

    Returns:
        The model, and the folder that results about it belong into, if it has one.

    Raises:
        UserError: There is no such model, or no weights for it.
    """
    path = Path(model.removeprefix("local-dir:"))
    for student in (path / "student", path):
        if (student / "config.json").is_file():
            return load_export(student), path
    if path.exists():
        raise UserError(f"--model {model} is neither a finished run nor an exported student: it has no config.json.")
    settings = ModelSettings(model=model, pretrained=True)
    default_cfg(settings)
    try:
        return timm.create_model(model, pretrained=True), None
    except Exception as error:
        raise UserError(f"The weights of '{model}' cannot be had: {str(error).splitlines()[0]}") from error


def _start_from(student: nn.Module, path: str) -> None:
    """Loads weights into the student; a classifier of another size stays as it is."""
    try:
        weights = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"--initial-checkpoint {path} cannot be read: {str(error).splitlines()[0]}") from error
    own = student.state_dict()
    if not isinstance(weights, dict):
        raise UserError(f"--initial-checkpoint {path} holds no state dict.")
    fitting = {k: v for k, v in weights.items() if isinstance(v, Tensor) and k in own and v.shape == own[k].shape}
    head = {name for name in own if not _is_backbone(student, name)}
    missing = sorted(set(own) - set(fitting) - head)
    if missing:
        raise UserError(f"--initial-checkpoint {path} lacks {len(missing)} weights of the student, {missing[0]} first.")
    student.load_state_dict(fitting, strict=False)


def _is_backbone(student: nn.Module, name: str) -> bool:
    classifiers = student.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    return not name.startswith(tuple(f"{classifier}." for classifier in classifiers))


def build_task(settings: Settings, student: nn.Module, data: ImageData) -> StudentTask:
    """Puts the method around the student.

    Raises:
        UserError: Unknown names, a student without usable feature maps, or a linear probe with the self-teacher.
    """
    method, smoothing = settings.method, settings.preprocessing.smoothing
    if settings.model.linear_probe:
        if method.method != "ce":
            raise UserError(
                f"--linear-probe trains no feature maps, so --method {method.method} has nothing to teach: "
                "add --method ce."
            )
        return LinearProbeTask(student, smoothing)
    if method.method == "ce":
        return CrossEntropyTask(student, smoothing)
    return FRSKDTask.create(
        student,
        data.preprocessing.input_size,
        student.num_classes,  # type: ignore[arg-type]
        self_teacher=method.self_teacher,
        feature_loss=method.feature_loss,
        beta=method.beta,
        max_levels=method.feature_levels,
        sla=method.sla,
        teacher_options=_teacher_options(method),
        alpha=method.alpha,
        temperature=method.temperature,
        smoothing=smoothing,
        schedule=method.distill_schedule,
        start=method.distill_start / settings.optimizer.epochs,
        sla_weight=method.sla_weight,
        detach=method.teacher_detach,
    )


def _teacher_options(method: MethodSettings) -> dict[str, Any]:
    return {"width": method.teacher_width, "depth": method.teacher_depth, "repeats": method.teacher_repeats}


def build_optimizer(
    settings: OptimizerSettings, task: StudentTask, teacher_lr_scale: float = 1.0
) -> torch.optim.Optimizer:
    """Creates a timm optimizer over everything trainable in a task.

    Args:
        settings: Optimizer and its numbers.
        task: Student and what is thrown away.
        teacher_lr_scale: Learning rate of what is thrown away, as a multiple of the student's.

    Raises:
        UserError: timm has no optimizer of that name, or it refuses its arguments.
    """
    if settings.opt not in list_optimizers(exclude_filters=["lookahead*"]):
        close = difflib.get_close_matches(settings.opt, [str(name) for name in list_optimizers()], n=3)
        raise UserError(
            f"timm knows no optimizer '{settings.opt}'."
            + (f" Did you mean {' or '.join(close)}?" if close else " timm.optim.list_optimizers() lists them.")
        )
    arguments: dict[str, Any] = {"fused": True} if settings.opt in FUSED else {}
    arguments |= {key: yaml.safe_load(value) for key, value in settings.opt_kwargs.items()}
    parameters = [
        *_groups(settings, task.student),
        *({**group, "lr_scale": teacher_lr_scale} for group in _groups(settings, task, without=task.student)),
    ]
    try:
        return create_optimizer_v2(
            parameters,
            opt=settings.opt,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            **arguments,
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


def build_scheduler(
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
