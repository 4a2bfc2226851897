"""The student of a run: a timm model by its name, with the weights it starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from torch import Tensor, nn

from frskd_timm.errors import UserError, first_line
from frskd_timm.lookup import known_cfg
from frskd_train.constraints import keyword_arguments
from frskd_train.data import ImageData
from frskd_train.report.student_folder import StudentFolder
from frskd_train.settings import ModelSettings


def default_cfg(settings: ModelSettings, name: str | None = None) -> Mapping[str, Any]:
    """What timm knows of the student's input before it is built.

    Args:
        settings: The student's.
        name: timm's name of it, where the settings have another one.

    Raises:
        UserError: timm has no such model or tag, or the folder or repository cannot be read.
    """
    name = name or settings.model
    if name.startswith("local-dir:"):
        try:
            return load_model_config_from_path(name.removeprefix("local-dir:"))[0]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--model {name} is no exported model: {error}.") from error
    if name.startswith("hf-hub:"):
        try:
            return load_model_config_from_hf(name.removeprefix("hf-hub:"))[0]
        except Exception as error:
            raise UserError(f"--model {name} cannot be had from the Hub: {first_line(error)}") from error
    cfg = known_cfg(name, weights=settings.pretrained)
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
    arguments = keyword_arguments(settings.model_kwargs)
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
        raise UserError(f"timm cannot build '{settings.model}' so: {first_line(error)}") from error
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
            return StudentFolder(student).load(), path
    if path.exists():
        raise UserError(f"--model {model} is neither a finished run nor an exported student: it has no config.json.")
    settings = ModelSettings(model=model, pretrained=True)
    default_cfg(settings)
    try:
        return timm.create_model(model, pretrained=True), None
    except Exception as error:
        raise UserError(f"The weights of '{model}' cannot be had: {first_line(error)}") from error


@torch.no_grad()
def refuse_size(student: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Tries images of another size than the model's own on it, before any are decoded.

    Args:
        student: In evaluation mode.
        input_size: Channels, height, width.

    Raises:
        UserError: The model does not take them.
    """
    device = next(student.parameters()).device
    try:
        student(torch.zeros(1, *input_size, device=device))
    except Exception as error:  # a model's own complaint
        own = student.pretrained_cfg.get("input_size", input_size)[-1]  # type: ignore[union-attr, operator]
        raise UserError(
            f"--img-size {input_size[-1]}: the model does not take it ({first_line(error)}). Its own is {own}."
        ) from error


def _start_from(student: nn.Module, path: str) -> None:
    """Loads weights into the student; a classifier of another size stays as it is."""
    try:
        weights = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"--initial-checkpoint {path} cannot be read: {first_line(error)}") from error
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
