"""Flags and recipes to `Settings`, and `Settings` to a recipe. Imports neither torch nor timm."""

import dataclasses
import difflib
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from frskd_train.constraints import OneOf, Range
from frskd_train.errors import SettingsError
from frskd_train.settings import (
    ONLY_CLASSIFICATION,
    ONLY_SEGMENTATION,
    RENAMED,
    EvaluationSettings,
    Settings,
    default_settings,
)
from frskd_train.timm_flags import TRAIN, VALIDATE, elsewhere

DESCRIPTION = "Trains a timm model with FRSKD, or its cross-entropy baseline, and exports the student."


def parse_settings(args: Sequence[str]) -> Settings:
    """Reads settings: the task's defaults, then a resumed run's own, then the recipe of `--config`, then flags.

    Raises:
        SettingsError: A recipe that cannot be read, an unknown key, a value out of its range.
        SystemExit: `--help`, or a flag that does not parse (the message is printed already).
    """
    recipes = [path for path in (_resumed_config(args), _last_value(args, "--config")) if path is not None]
    tasks = [*(_read_yaml(path).get("task") for path in recipes), _last_value(args, "--task")]
    settings = default_settings(next((str(task) for task in reversed(tasks) if task), "classification"))
    for recipe in recipes:
        settings = read_recipe(recipe, settings)
    _refuse_timm_flags(args, "train.py", TRAIN)
    settings = _cli(args, settings)
    check_ranges(settings)
    return settings


def parse_evaluation(args: Sequence[str]) -> EvaluationSettings:
    """Reads the settings of `validate.py`.

    Raises:
        SettingsError: A value out of its range, or a flag of timm's that is called otherwise here.
        SystemExit: `--help`, or a flag that does not parse.
    """
    _refuse_timm_flags(args, "validate.py", VALIDATE)
    settings = tyro.cli(
        EvaluationSettings,
        args=list(args),
        prog="validate.py",
        description="Scores a model on a dataset: top-1, top-5 and loss, or mean IoU, pixel accuracy and loss.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    for group in (settings, settings.data, settings.fit):
        check_group(group)
    return settings


def read_recipe(path: str, settings: Settings | None = None) -> Settings:
    """Lays a recipe (YAML, one key a setting, spelled like the flag with `-` or `_`) over settings.

    Raises:
        SettingsError: The file is missing or no mapping, or a key is unknown.
        SystemExit: A value does not parse; the message is printed, with the recipe's name.
    """
    content = _read_yaml(path)
    settings = settings or default_settings(str(content.get("task")))
    known = {field.name: field for _, field in fields()}
    tokens: list[str] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        name = RENAMED.get(name, name)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else "`python train.py --help` lists all settings."
            raise SettingsError(f"The recipe {path} has an unknown setting '{key}'. {elsewhere(name, TRAIN) or hint}")
        tokens += _tokens(name, value)
    try:
        return _cli(tokens, settings)
    except SystemExit:
        print(f"(in the recipe {path})", file=sys.stderr)
        raise


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"The recipe {path} must hold one setting a line, such as `batch_size: 128`.")
    return content


def fields() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every setting as (group's attribute, field)."""
    for group in dataclasses.fields(Settings):
        for field in dataclasses.fields(typing.cast(Any, group.type)):
            yield group.name, field


def flat(settings: Settings) -> dict[str, Any]:
    """Every setting by its name, as plain YAML values."""
    values = {field.name: getattr(getattr(settings, group), field.name) for group, field in fields()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def write_recipe(settings: Settings, heading: str) -> str:
    """A complete recipe: `train.py --config` of it gives the same settings again.

    Args:
        settings: What to write. Where a run lies and whether it was resumed are left out.
        heading: First line, a comment.
    """
    values = flat(settings)
    left_out = {"config", "output_dir", "resume", *_foreign(settings.model.task)}
    lines = [f"# {heading}"]
    for group in dataclasses.fields(Settings):
        names = [field.name for field in dataclasses.fields(typing.cast(Any, group.type)) if field.name not in left_out]
        if names:
            lines.append(f"\n# {typing.cast(Any, group.type).__doc__}")
        for name in names:
            value = yaml.safe_dump(values[name], default_flow_style=True, width=1000)
            lines.append(f"{name}: {value.removesuffix('...' + chr(10)).strip()}")
    return "\n".join(lines) + "\n"


def check_ranges(settings: Settings) -> None:
    """Holds every number against its declared range, and settings against each other.

    Raises:
        SettingsError: The first setting that is out of its range, with its flag, its value and the bound.
    """
    for group in dataclasses.fields(settings):
        check_group(getattr(settings, group.name))
    _refuse_foreign(settings)
    optimizer, pre = settings.optimizer, settings.preprocessing
    if optimizer.warmup_epochs >= optimizer.epochs and optimizer.warmup_epochs > 0:
        raise SettingsError(
            f"--warmup-epochs {optimizer.warmup_epochs:g} leaves nothing of --epochs {optimizer.epochs}."
        )
    if settings.method.distill_start >= optimizer.epochs and settings.method.distill_start > 0:
        raise SettingsError(
            f"--distill-start {settings.method.distill_start:g} has to be below --epochs {optimizer.epochs}."
        )
    if optimizer.sched == "multistep" and not optimizer.decay_milestones:
        raise SettingsError("--sched multistep needs --decay-milestones, the epochs at which the rate falls.")
    for name, numbers in (("--mean", pre.mean), ("--std", pre.std)):
        if numbers is not None and len(numbers) != pre.in_chans:
            raise SettingsError(f"{name} needs {pre.in_chans} number(s), one a channel, not {len(numbers)}.")
    if pre.std is not None and min(pre.std) <= 0:
        raise SettingsError(f"--std has to be above 0 in every channel, not {min(pre.std):g}.")
    for name, pair in (
        ("--scale", pre.scale),
        ("--ratio", pre.ratio),
        ("--resize-range", settings.segmentation.resize_range),
    ):
        if not 0 < pair[0] <= pair[1]:
            raise SettingsError(
                f"{name} takes two positive numbers, the smaller one first, not {pair[0]:g} {pair[1]:g}."
            )
    if pre.scale[1] > 1:
        raise SettingsError(f"--scale is a share of the image's area, at most 1, not {pre.scale[1]:g}.")


def _foreign(task: str) -> tuple[str, ...]:
    """Settings that a task has no use of."""
    return ONLY_SEGMENTATION if task == "classification" else ONLY_CLASSIFICATION


def _refuse_foreign(settings: Settings) -> None:
    task = settings.model.task
    values, defaults = flat(settings), flat(default_settings(task))
    for name in _foreign(task):
        if values[name] != defaults[name]:
            other = "segmentation" if task == "classification" else "classification"
            raise SettingsError(f"{flag(name)} is for --task {other}, and this is {task}: leave it out.")


def check_group(group: Any) -> None:
    """Holds every number of one group of settings against its declared range.

    Raises:
        SettingsError: The first one that is out of it.
    """
    hints = typing.get_type_hints(type(group), include_extras=True)
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        for bound in getattr(hints[field.name], "__metadata__", ()):
            refusal = bound.refusal(value) if isinstance(bound, Range | OneOf) and value is not None else None
            if refusal:
                raise SettingsError(f"{flag(field.name)} has to be {refusal}, not {value}.")


def _refuse_timm_flags(args: Sequence[str], script: str, table: Mapping[str, str]) -> None:
    if args and not args[0].startswith("-"):
        raise SettingsError(f"{script} takes flags only, not '{args[0]}'. {elsewhere('data_dir', table)}")
    for token in (token for token in args if token.startswith("--")):
        hint = elsewhere(token[2:].split("=", 1)[0].replace("-", "_"), table)
        if hint is not None:
            raise SettingsError(hint)


def flag(name: str) -> str:
    """The flag of a setting: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def _cli(args: Sequence[str], default: Settings) -> Settings:
    return tyro.cli(
        Settings,
        args=list(args),
        default=default,
        prog="train.py",
        description=DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _resumed_config(args: Sequence[str]) -> str | None:
    """The `config.yaml` of the run that `--resume` names, if it has one."""
    resume = _last_value(args, "--resume")
    run = _last_value(args, "--output-dir") if resume == "auto" else resume
    if resume is None or run is None:
        return None
    folders = [Path(run)] if resume == "auto" else [Path(run), Path(run).parent.parent]  # a run, or a checkpoint in it
    return next((str(folder / "config.yaml") for folder in folders if (folder / "config.yaml").is_file()), None)


def _last_value(args: Sequence[str], name: str) -> str | None:
    """The value of the last flag of this name."""
    value = None
    for i, token in enumerate(args):
        if token in (name, name.replace("-", "_").replace("__", "--", 1)) and i + 1 < len(args):
            value = args[i + 1]
        elif token.startswith(f"{name}="):
            value = token.split("=", 1)[1]
    return value


def _tokens(name: str, value: Any) -> list[str]:
    """A recipe's entry as flags, so that one parser checks both."""
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    if isinstance(value, Mapping):
        return [flag(name), *(f"{key}={part}" for key, part in value.items())]
    if isinstance(value, list):
        return [flag(name), *map(str, value)]
    return [f"{flag(name)}={value}"]
