"""Parse flags and recipes into settings and check them. Imports neither torch nor timm."""

import dataclasses
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from frskd_train.constraints import LOCAL, Pattern, Range
from frskd_train.errors import SettingsError, either, suggest
from frskd_train.recipe import (
    NOT_IN_RECIPES,
    SETTINGS,
    as_flags,
    find_recipe,
    read_yaml,
    recipe_path,
    with_absolute_paths,
    with_home,
)
from frskd_train.settings import EvaluationSettings, Settings, declared, default_settings, flag, flat, foreign
from frskd_train.settings.model import SELF_TEACHERS
from frskd_train.timm_flags import TRAIN, VALIDATE

FLAT = (tyro.conf.OmitArgPrefixes,)  # --lr, not --optimizer.lr
# Arguments of timm.create_model that have their own setting or change what it returns.
REFUSED_KWARGS = {
    "cache_dir", "checkpoint_path", "drop_path_rate", "drop_rate", "exportable", "feature_cls", "features_only",
    "in_chans", "no_jit", "num_classes", "out_indices", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "scriptable",
}  # fmt: skip
# Settings that have no effect unless one of those before them is given.
NEEDS = {
    ("bce_loss",): ("bce_sum", "bce_target_thresh", "bce_pos_weight"),
    ("clip_grad",): ("clip_mode",),
    ("lr_base",): ("lr_base_size", "lr_base_scale"),
    ("model_ema",): ("model_ema_decay", "model_ema_warmup"),
    ("color_jitter",): ("color_jitter_prob",),
    ("push_to_hub",): ("hub_private",),
    ("sla",): ("sla_weight",),
    ("warmup_epochs",): ("warmup_lr",),
    ("mixup", "cutmix", "cutmix_minmax"): ("mixup_prob", "mixup_switch_prob", "mixup_mode", "mixup_off_epoch"),
}

OF_SCHEDULER = {
    "decay_epochs": ("step",),
    "decay_milestones": ("multistep",),
    "patience_epochs": ("plateau",),
    "decay_rate": ("step", "multistep", "plateau", "poly"),
    "min_lr": ("cosine", "tanh", "poly", "plateau"),
}


def parse_settings(args: Sequence[str]) -> Settings:
    """Read settings: the defaults of the task, then those of a resumed run, then the `--config` recipe, then flags.

    Raises SettingsError if a recipe cannot be read, a name is unknown, or a value is out of range; and SystemExit for
    `--help` and for a value that cannot be parsed, after a message.
    """
    args = _spelled_out(args)
    config = _last_value(args, "--config")
    given = {path: read_yaml(path) for path in ([] if config is None else [find_recipe(config)])}
    own = next((content.get("output_dir") for content in given.values()), None)
    folder = _last_value(args, "--output-dir") or (None if own is None else os.path.expanduser(str(own)))
    resumed = _resumed_config(_last_value(args, "--resume"), folder)
    recipes = {path: read_yaml(path) for path in ([] if resumed is None else [resumed])} | given
    tasks = [*(recipe.get("task") for recipe in recipes.values()), _last_value(args, "--task")]
    settings = default_settings(next((str(task) for task in reversed(tasks) if task), "classification"))
    for path, content in recipes.items():
        settings = _overlay(path, content, settings)
    _refuse_unknown(args, _program("train"), Settings, TRAIN)
    settings = with_absolute_paths(_cli(args, settings))
    if _last_value(args, "--train-crop-mode") not in (None, "pad") and _last_value(args, "--crop-padding") is None:
        # The padding of a recipe belongs to the crops that the flag replaces.
        settings = replace(settings, preprocessing=replace(settings.preprocessing, crop_padding=None))
    if settings.optimizer.lr_base is not None and _last_value(args, "--lr") is not None:
        raise SettingsError("--lr and --lr-base cannot be combined: leave one out, or give --lr-base None.")
    check_settings(settings)
    _refuse_unused(args, settings)
    return settings


def parse_evaluation(args: Sequence[str]) -> EvaluationSettings:
    """Read the settings of `validate.py`; raise SettingsError and SystemExit like `parse_settings`."""
    _refuse_unknown(args, _program("validate"), EvaluationSettings, VALIDATE)
    description = "Scores a model on a dataset: accuracy or mean IoU, scores by class, calibration and mistakes."
    said: dict[str, Any] = {"prog": _program("validate"), "description": description, "config": FLAT}
    settings = tyro.cli(EvaluationSettings, args=list(args), **said)
    check_ranges(settings)
    if settings.data.train_num_samples is not None:
        raise SettingsError("--train-num-samples has no effect in validate.py: leave it out.")
    return settings


def read_recipe(path: str) -> Settings:
    """Read a recipe on top of the defaults of its task; raise SettingsError if it cannot be used."""
    content = read_yaml(path)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return with_absolute_paths(_overlay(path, content, default_settings(str(content.get("task")))))
    except SystemExit:
        named = re.search(r"Error parsing (--[a-z][\w-]*)", " ".join(said.getvalue().split()))
        raise SettingsError(f"The recipe {path} has an invalid value{f' for {named[1]}' if named else ''}.") from None


def _overlay(path: str, content: Mapping[str, Any], settings: Settings) -> Settings:
    unknown = next((name for name in content if name not in declared(Settings)), None)
    if unknown is not None:
        raise SettingsError(f"The recipe {path} has an unknown setting '{unknown}'{_hint(unknown, Settings, TRAIN)}")
    for name in NOT_IN_RECIPES & set(content):
        raise SettingsError(f"The recipe {path} may not contain '{name}': give {flag(name)} on the command line.")
    try:
        return _cli(as_flags(content), settings)
    except SystemExit:
        print(f"(in the recipe {path})", file=sys.stderr)
        raise


def _hint(name: str, kind: type, table: Mapping[str, str]) -> str:
    if name in table:
        return f" (equivalent here: {table[name]})."
    return suggest(flag(name), map(flag, declared(kind)), "--help lists all settings")


def _refuse_unknown(args: Sequence[str], script: str, kind: type, table: Mapping[str, str]) -> None:
    if args and not args[0].startswith("-"):
        raise SettingsError(f"{script} takes flags only, not '{args[0]}'{_hint('data_dir', kind, table)}")
    sides = args[args.index("--img-size") + 1 :][:2] if "--img-size" in args else ()
    if len(sides) == 2 and all(side.isdecimal() for side in sides):
        raise SettingsError(f"--img-size takes one number, because images are square here, not {' '.join(sides)}.")
    known = declared(kind)
    for name in (token[2:].split("=", 1)[0].replace("-", "_") for token in args if token.startswith("--")):
        if name.removeprefix("no_") not in known and name != "help" and not name.startswith("tyro"):
            raise SettingsError(f"{script} has no {flag(name)}{_hint(name, kind, table)}")


def check_settings(settings: Settings) -> None:
    """Raise SettingsError if a setting is out of its declared range, or does not fit another one."""
    check_ranges(settings)
    values, defaults = flat(settings), flat(default_settings(settings.model.task))
    for name in foreign(settings.model.task):
        if values[name] != defaults[name]:
            raise SettingsError(f"{flag(name)} is not available with --task {settings.model.task}: leave it out.")
    task, teacher = settings.model.task, settings.method.self_teacher
    if teacher not in SELF_TEACHERS[task]:
        raise SettingsError(f"--self-teacher has to be {either(SELF_TEACHERS[task])} for --task {task}, not {teacher}.")
    optimizer, pre = settings.optimizer, settings.preprocessing
    for name in ("drop", "drop_path", "grad_checkpointing", "layer_decay"):  # of layers that are frozen
        if settings.model.linear_probe and values[name]:
            raise SettingsError(f"{flag(name)} has no effect with --linear-probe: leave one of them out.")
    if optimizer.sched == "plateau" and optimizer.decay_rate == 1:
        raise SettingsError("--decay-rate has to be below 1 for --sched plateau, not 1.")
    if optimizer.sched != "poly" and optimizer.own_decay_rate > 1:
        raise SettingsError(
            f"--decay-rate has to be at most 1 for every --sched except poly, not {optimizer.own_decay_rate:g}."
        )
    if optimizer.sched == "none" and optimizer.warmup_epochs not in (0, defaults["warmup_epochs"]):
        raise SettingsError("--warmup-epochs has no effect with --sched none: leave one of them out.")
    if 0 < pre.aug_repeats < 1:
        raise SettingsError(f"--aug-repeats {pre.aug_repeats:g} is less than once: give 0, or 1 and more.")
    if pre.aa and pre.color_jitter and not pre.aa.startswith("3a"):
        raise SettingsError("--color-jitter has no effect with --aa, as in timm: leave one of them out.")
    if pre.grayscale_prob and pre.in_chans == 1:
        raise SettingsError("--grayscale-prob has no effect with --in-chans 1: leave it out.")
    for name in ("mixup", "cutmix", "cutmix_minmax", "bce_loss"):  # whose targets are no classes
        if settings.labels.noisy_labels and values[name]:
            raise SettingsError(f"--noisy-labels cannot be combined with {flag(name)}: leave one of them out.")
    for name, epochs in (("warmup_epochs", optimizer.warmup_epochs), ("distill_start", settings.method.distill_start)):
        if epochs >= optimizer.epochs and epochs > 0:
            raise SettingsError(f"{flag(name)} has to be less than --epochs {optimizer.epochs}, not {epochs:g}.")
    if optimizer.lr_base is None:
        lowest = {"min_lr": optimizer.min_lr if optimizer.sched in OF_SCHEDULER["min_lr"] else 0}
        lowest["warmup_lr"] = optimizer.warmup_lr if optimizer.warmup_epochs else 0
        for name, lr in lowest.items():
            if lr > optimizer.lr:
                raise SettingsError(f"{flag(name)} {lr:g} is above --lr {optimizer.lr:g}.")
    if optimizer.sched == "multistep" and not optimizer.decay_milestones:
        raise SettingsError("--sched multistep needs --decay-milestones, the epochs at which the rate decays.")
    if settings.method.teacher_view == "clean" and not (pre.reprob or pre.mixup or pre.cutmix or pre.cutmix_minmax):
        raise SettingsError("--teacher-view clean has no effect without --reprob, --mixup or --cutmix: add one.")
    for name, numbers in (("--mean", pre.mean), ("--std", pre.std)):
        if numbers is not None and len(numbers) not in (1, pre.in_chans):
            raise SettingsError(f"{name} takes one number, or {pre.in_chans} (one per channel), not {len(numbers)}.")
    for name in ("scale", "ratio", "resize_range"):
        smallest, largest = values[name]
        if smallest > largest:
            raise SettingsError(f"{flag(name)} takes the smaller number first, not {smallest:g} {largest:g}.")
    for name in REFUSED_KWARGS & set(settings.model.model_kwargs):
        raise SettingsError(f"--model-kwargs may not contain {name}: it has its own flag or changes what timm returns.")
    if settings.model.task == "classification" and "img_size" in settings.model.model_kwargs:
        raise SettingsError("--model-kwargs may not contain img_size: use --img-size, which images are resized to.")
    for name in {"lr", "momentum", "opt", "weight_decay"} & set(optimizer.opt_kwargs):
        raise SettingsError(f"--opt-kwargs may not contain {name}: use {flag(name)}.")


def _refuse_unused(args: Sequence[str], settings: Settings) -> None:
    """Raise SettingsError for a flag that has no effect; a value in a recipe may be overruled by other flags."""
    given = {token[2:].partition("=")[0].replace("-", "_").removeprefix("no_") for token in args}
    values, defaults = flat(settings), flat(default_settings(settings.model.task))
    for name in given:
        if isinstance(values.get(name), (list, dict)) and sum(word.split("=")[0] == flag(name) for word in args) > 1:
            raise SettingsError(f"{flag(name)} is given twice: give all its values after one {flag(name)}.")
    for name, schedulers in OF_SCHEDULER.items():
        if name in given and values["sched"] not in schedulers and values[name] != defaults[name]:
            raise SettingsError(f"{flag(name)} has no effect without --sched {either(schedulers)}: leave it out.")
    if {"sched", "decay_milestones"} & given and "decay_epochs" not in given:  # which may be for a longer run
        sched, epochs = values["sched"], values["epochs"]
        first = {"step": values["decay_epochs"], "multistep": min(values["decay_milestones"], default=0)}.get(sched, 0)
        if first >= epochs:
            name = flag("decay_epochs" if sched == "step" else "decay_milestones")
            raise SettingsError(f"--sched {sched} has no effect: {name} {first:g} is not below --epochs {epochs}.")
    both = values["mixup"] and (values["cutmix"] or values["cutmix_minmax"])
    if "mixup_switch_prob" in given and values["mixup_switch_prob"] != defaults["mixup_switch_prob"] and not both:
        raise SettingsError("--mixup-switch-prob has no effect without both --mixup and --cutmix: leave it out.")
    for needed, names in NEEDS.items():
        unused = next((name for name in names if name in given and values[name] != defaults[name]), None)
        if unused is not None and not any(values[name] for name in needed):
            others = either(map(flag, needed))
            raise SettingsError(f"{flag(unused)} has no effect without {others}: add it, or leave {flag(unused)} out.")


def check_ranges(group: Any) -> None:
    """Raise SettingsError if a setting of a group, or of a group within it, does not meet its declared constraints."""
    declarations = declared(type(group))
    for name, value in vars(group).items():
        if dataclasses.is_dataclass(value):
            check_ranges(value)
            continue
        facts = declarations[name]
        if value == "":
            why = " (a published recipe does not hold its author's paths)" if LOCAL in facts else ", or leave it out"
            raise SettingsError(f"{flag(name)} is empty: give a value{why}.")
        for part in value if isinstance(value, tuple) else () if value is None else (value,):
            if isinstance(part, str) and re.search(r"[\x00-\x1f\x7f]", part):
                raise SettingsError(f"{flag(name)} contains a control character: {part!r}.")
            for fact in facts:
                is_for = isinstance(fact, Pattern if isinstance(part, str) else Range)  # a word may replace numbers
                if is_for and (refusal := fact.refusal(part)):
                    raise SettingsError(f"{flag(name)} has to be {refusal}, not {part}.")


def _cli(args: Sequence[str], default: Settings) -> Settings:
    description = "Trains a timm model with FRSKD, or its cross-entropy baseline, and exports the student."
    said: dict[str, Any] = {"prog": _program("train"), "description": description, "config": FLAT}
    return tyro.cli(Settings, args=list(args), default=default, **said)


def _program(command: str) -> str:
    """Return what the user has called: `frskd train` or `train.py`."""
    return f"frskd {command}" if Path(sys.argv[0]).stem in ("frskd", "__main__") else f"{command}.py"


def _spelled_out(args: Sequence[str]) -> list[str]:
    """Return the flags with hyphens, and `-c`, which may have its value attached, as `--config`."""
    found = []
    for token in args:
        if token.startswith("-c=") or (token.startswith("-c") and recipe_path(token[2:])):
            token = f"--config={token[2:].removeprefix('=')}"
        elif token == "-c":
            token = "--config"
        elif token.startswith("--"):
            name, equals, value = token.partition("=")
            token = name.replace("_", "-") + equals + value
        found.append(with_home(token))
    return found


def _resumed_config(resume: str | None, folder: str | None) -> str | None:
    run = folder if resume == "auto" else resume
    if resume is None or run is None:
        return None
    # A run, its checkpoints, or one of these.
    place = Path(os.path.realpath(run))
    folders = [place] if resume == "auto" else [place, place.parent, place.parent.parent]
    return next((str(folder / SETTINGS) for folder in folders if (folder / SETTINGS).is_file()), None)


def _last_value(args: Sequence[str], name: str) -> str | None:
    value = None
    for i, token in enumerate(args):
        if token == name and i + 1 < len(args):
            value = args[i + 1]
        elif token.startswith(f"{name}="):
            value = token.split("=", 1)[1]
    return value
