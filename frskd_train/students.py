"""Creation of a run's student: a timm model with its initial weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.config import check_pretrained_cfg
from frskd_timm.export.folder import student_in
from frskd_timm.export.load import ExportedClassifier, read_student
from frskd_timm.lookup import exported_cfg, hub_error, known_cfg
from frskd_train.settings import ModelSettings
from frskd_train.settings.constraints import keyword_arguments

_CONTINUE = (
    "give its backbone/ folder, or with --task segmentation the name of its backbone and --initial-checkpoint "
    "FOLDER/model.safetensors to start from all of it."
)


def default_cfg(name: str, pretrained: bool = False) -> Mapping[str, Any]:
    """Return timm's configuration of a model's input before it is created; raise UserError if there is none."""
    if name.startswith("local-dir:"):
        student = read_student(name.removeprefix("local-dir:"))
        if not isinstance(student, ExportedClassifier):
            raise UserError(f"--model {name} is a segmentation network: {_CONTINUE}")
        return exported_cfg(name)[0]
    if name.startswith("hf-hub:"):
        try:
            found, _ = exported_cfg(name)
        except KeyError as error:
            text = "its config.json names no architecture of timm's"
            raise UserError(f"--model {name} is not a classifier for timm: {text}.") from error
        except Exception as error:
            raise hub_error(f"--model {name}", error) from error
        check_pretrained_cfg(found, name)
        return found
    if Path(name).is_dir() and not timm.is_model(name):
        folder = student_in(Path(name))
        hint = f"give --model local-dir:{folder}" if folder else "a model starts with local-dir:, data go to --dataset"
        raise UserError(f"--model {name} is a folder: {hint}.")
    cfg = known_cfg(name, weights=pretrained)
    return cfg.to_dict() if cfg is not None else {}


def build_student(
    settings: ModelSettings,
    cfg: Mapping[str, Any],
    num_classes: int,
    input_size: tuple[int, int, int],
    load_weights: bool = True,
) -> nn.Module:
    """Create the student for the data's classes and images (channels, height, width).

    With `load_weights`, it gets its initial weights; not in a run that is resumed, whose checkpoint has all weights.

    Raises:
        UserError: Settings or weights do not fit.
    """
    classes = settings.num_classes or num_classes
    if classes < num_classes:
        raise UserError(f"--num-classes {classes} is less than the {num_classes} classes of the data.")
    channels, height, width = input_size
    arguments = keyword_arguments(settings.model_kwargs)
    if cfg.get("fixed_input_size"):
        arguments["img_size"] = (height, width)
    if settings.drop_path is not None:
        arguments["drop_path_rate"] = settings.drop_path
    arguments |= {"num_classes": classes, "in_chans": channels, "drop_rate": settings.drop}
    try:
        student = timm.create_model(settings.model, pretrained=settings.has_weights and load_weights, **arguments)
    except UserError:
        raise
    except Exception as error:  # models raise various errors for unsuitable arguments
        raise UserError(f"timm could not create '{settings.model}': {first_line(error)}.") from error
    prepare_student(student, settings, classifier_names(student), load_weights)
    return student


def prepare_student(
    student: nn.Module, settings: ModelSettings, classifiers: Sequence[str], load_weights: bool = True
) -> None:
    """Load `--initial-checkpoint`, check the initial weights and apply `--grad-checkpointing`.

    Raises:
        UserError: The file does not fit, a weight is not finite, or the model does not support checkpointing.
    """
    if settings.initial_checkpoint is not None and load_weights:
        start_from(student, settings.initial_checkpoint, classifiers)
    refuse_nonfinite_weights(student, settings.initial_checkpoint or settings.model)
    if not settings.grad_checkpointing:
        return
    try:
        student.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError, NotImplementedError) as error:
        raise UserError(f"{settings.model} does not support --grad-checkpointing: leave it out.") from error


def classifier_names(model: nn.Module) -> list[str]:
    """Return the names of a timm model's classifiers."""
    names: Any = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    return [names] if isinstance(names, str) else [*names]


def start_from(student: nn.Module, path: str, classifiers: Sequence[str]) -> None:
    """Load weights, also those of the student in a run's `task.safetensors`, from a file into the student.

    Classifiers of another size, given by their names, are not changed.

    Raises:
        UserError: The file could not be read, or belongs to another network.
    """
    if not Path(path).is_file():
        raise UserError(f"--initial-checkpoint {path}: there is no such file.")
    try:
        weights = load_state_dict(path)  # prefers EMA weights, removes prefixes of wrappers, does not execute pickles
    except Exception as error:  # not quoted, because torch recommends executing the pickle
        raise UserError(
            f"--initial-checkpoint {path} is neither safetensors nor a state dict that torch can read without "
            "executing code."
        ) from error
    own, prefix = student.state_dict(), "student."  # of the student in the task of a checkpoint
    if any(name.startswith(prefix) for name in weights):
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    fitting = {k: v for k, v in weights.items() if isinstance(v, Tensor) and k in own and v.shape == own[k].shape}
    heads = tuple(f"{name}." for name in classifiers)
    optional = "num_batches_tracked"  # old checkpoints have none, and nothing reads it
    missing = [name for name in own if name not in fitting and not name.startswith(heads) and optional not in name]
    if missing:
        raise UserError(
            f"--initial-checkpoint {path} does not fit {type(student).__name__}: {len(missing)} weights are missing or "
            f"of another shape, such as {missing[0]}."
        )
    extra = [name for name in weights if name not in own and not name.startswith(heads) and optional not in name]
    if extra:
        raise UserError(
            f"--initial-checkpoint {path} is of a larger network than {type(student).__name__}: it has {len(extra)} "
            f"further weights, such as {extra[0]}."
        )
    student.load_state_dict(fitting, strict=False)


def refuse_nonfinite_weights(student: nn.Module, source: str) -> None:
    """Raise UserError if an initial weight or running statistic is not finite."""
    for name, value in student.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f"The initial weights of {source} contain a number that is not finite, in {name}.")
