"""Which values of the settings are allowed, alone and together. Imports neither torch nor timm."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from frskd_train.errors import SettingsError, either
from frskd_train.settings import OptimizerSettings, Settings, declared, default_settings, flag, flat, foreign
from frskd_train.settings.constraints import LOCAL, SIDES, OneOf, Pattern, Range
from frskd_train.settings.model import SELF_TEACHERS

# Arguments of timm.create_model that have their own setting or change what it returns.
REFUSED_KWARGS = {
    "cache_dir", "checkpoint_path", "drop_path_rate", "drop_rate", "exportable", "feature_cls", "features_only",
    "in_chans", "no_jit", "num_classes", "out_indices", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "scriptable",
}  # fmt: skip
# Arguments of timm.optim.create_optimizer_v2 and the settings for them.
OWN_FLAGS = {name: name for name in ("filter_bias_and_bn", "layer_decay", "lr", "momentum", "opt", "weight_decay")} | {
    "layer_decay_min_scale": "layer_decay",
    "layer_decay_no_opt_scale": "layer_decay",
    "param_group_fn": "layer_decay",
    "weight_decay_exclude_1d": "filter_bias_and_bn",
}
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


def check_settings(settings: Settings) -> None:
    """Raise SettingsError if a setting is out of its declared range, or does not fit another one."""
    check_ranges(settings)
    _check_task(settings)
    _check_schedule(settings)
    _check_augmentation(settings)
    _check_keyword_arguments(settings)


def _check_task(settings: Settings) -> None:
    task, method, teacher = settings.model.task, settings.method, settings.method.self_teacher
    values, defaults = flat(settings), flat(default_settings(task))
    for name in foreign(task):
        if values[name] != defaults[name]:
            raise SettingsError(f"{flag(name)} is not available with --task {task}: leave it out.")
    if teacher not in SELF_TEACHERS[task]:
        raise SettingsError(f"--self-teacher must be {either(SELF_TEACHERS[task])} for --task {task}, not {teacher}.")
    if settings.model.linear_probe and method.method != "ce":
        raise SettingsError("--linear-probe freezes the feature maps that FRSKD trains: add --method ce.")
    if settings.labels.class_weights and method.sla and method.method != "ce":
        raise SettingsError("--class-weights cannot be combined with --sla: leave one of them out.")
    if settings.run.baseline and method.method != "frskd":
        raise SettingsError(f"--baseline is what FRSKD is compared with: leave it out with --method {method.method}.")
    if settings.model.linear_probe and values["clip_grad"] and values["clip_mode"] == "agc":
        raise SettingsError("--clip-mode agc leaves out the classifier, which --linear-probe trains: choose another.")
    for name in ("drop", "drop_path", "grad_checkpointing", "layer_decay"):  # of layers that are frozen
        if settings.model.linear_probe and values[name]:
            raise SettingsError(f"{flag(name)} has no effect with --linear-probe: leave one of them out.")


def _check_schedule(settings: Settings) -> None:
    chosen = settings.optimizer
    sched, epochs, rate = chosen.sched, chosen.epochs, chosen.own_decay_rate
    if sched == "plateau" and chosen.decay_rate == 1:
        raise SettingsError("--decay-rate must be below 1 for --sched plateau, not 1.")
    if sched != "poly" and rate > 1:
        raise SettingsError(f"--decay-rate must be at most 1 for every --sched except poly, not {rate:g}.")
    default = default_settings(settings.model.task).optimizer.warmup_epochs
    if sched == "none" and chosen.warmup_epochs not in (0, default):
        raise SettingsError("--warmup-epochs has no effect with --sched none: leave one of them out.")
    if sched == "multistep" and not chosen.decay_milestones:
        raise SettingsError("--sched multistep needs --decay-milestones, the epochs at which the rate decays.")
    is_new = settings.run.resume in (None, "auto")  # a resumed run may be ended earlier, for the student of an epoch
    for name, start in (("warmup_epochs", chosen.warmup_epochs), ("distill_start", settings.method.distill_start)):
        if is_new and start >= epochs and start > 0:
            raise SettingsError(f"{flag(name)} must be less than --epochs {epochs}, not {start:g}.")
    if chosen.lr_base is None:
        check_lowest_rates(chosen)


def check_lowest_rates(chosen: OptimizerSettings) -> None:
    """Raise SettingsError if the learning rate would start or end above `lr`, to which `--lr-base` has been scaled."""
    lowest = {"min_lr": chosen.min_lr if chosen.sched in OF_SCHEDULER["min_lr"] else 0}
    lowest["warmup_lr"] = chosen.warmup_lr if chosen.warmup_epochs else 0
    scaled = "--lr" if chosen.lr_base is None else f"--lr-base {chosen.lr_base:g}, which is scaled to"
    for name, lr in lowest.items():
        if lr > chosen.lr:
            raise SettingsError(f"{flag(name)} {lr:g} is above {scaled} {chosen.lr:g}.")


def _check_augmentation(settings: Settings) -> None:
    chosen, values = settings.preprocessing, flat(settings)
    if 0 < chosen.aug_repeats < 1:
        raise SettingsError(f"--aug-repeats must be 0 or at least 1, not {chosen.aug_repeats:g}.")
    if chosen.aa and chosen.color_jitter and not chosen.aa.startswith("3a"):
        raise SettingsError("--color-jitter has no effect with --aa, as in timm: leave one of them out.")
    if chosen.grayscale_prob and chosen.in_chans == 1:
        raise SettingsError("--grayscale-prob has no effect with --in-chans 1: leave it out.")
    for name in ("mixup", "cutmix", "cutmix_minmax", "bce_loss"):  # whose targets are no classes
        if settings.labels.noisy_labels and values[name]:
            raise SettingsError(f"--noisy-labels cannot be combined with {flag(name)}: leave one of them out.")
    changes_images = chosen.reprob or chosen.mixup or chosen.cutmix or chosen.cutmix_minmax
    if settings.method.teacher_view == "clean" and not changes_images:
        raise SettingsError("--teacher-view clean has no effect without --reprob, --mixup or --cutmix: add one.")
    for name, numbers in (("--mean", chosen.mean), ("--std", chosen.std)):
        if numbers is not None and len(numbers) not in (1, chosen.in_chans):
            takes = f"one number, or {chosen.in_chans} (one per channel)"
            raise SettingsError(f"{name} takes {takes}, not {len(numbers)}.")
    for name in ("scale", "ratio", "resize_range"):
        smallest, largest = values[name]
        if smallest > largest:
            raise SettingsError(f"{flag(name)} takes the smaller number first, not {smallest:g} {largest:g}.")


def _check_keyword_arguments(settings: Settings) -> None:
    for name in REFUSED_KWARGS & set(settings.model.model_kwargs):
        raise SettingsError(f"--model-kwargs may not contain {name}: it has its own flag or changes what timm returns.")
    if settings.model.task == "classification" and "img_size" in settings.model.model_kwargs:
        raise SettingsError("--model-kwargs may not contain img_size: use --img-size, which images are resized to.")
    for name, own in OWN_FLAGS.items():
        if name in settings.optimizer.opt_kwargs:
            raise SettingsError(f"--opt-kwargs may not contain {name}: use {flag(own)}.")


def refuse_unused(times_given: Mapping[str, int], settings: Settings) -> None:
    """Raise SettingsError for a flag that has no effect; a value in a recipe may be overruled by other flags.

    Args:
        times_given: How often each setting is given on the command line.
        settings: Those of the run.
    """
    values, defaults = flat(settings), flat(default_settings(settings.model.task))
    changed = {name for name in times_given if name in values and values[name] != defaults[name]}
    facts = declared(Settings)
    for name, times in times_given.items():
        if times > 1 and isinstance(values.get(name), (list, dict)) and SIDES not in facts[name]:
            raise SettingsError(f"{flag(name)} is given twice: give all its values after one {flag(name)}.")
    for name, schedulers in OF_SCHEDULER.items():
        if name in changed and values["sched"] not in schedulers:
            raise SettingsError(f"{flag(name)} has no effect without --sched {either(schedulers)}: leave it out.")
    late = settings.optimizer.decays_too_late  # given, --decay-epochs may be for a longer run
    if late and {"sched", "decay_milestones"} & set(times_given) and "decay_epochs" not in times_given:
        raise SettingsError(f"--sched {values['sched']} has no effect: {late}.")
    both = values["mixup"] and (values["cutmix"] or values["cutmix_minmax"])
    if "mixup_switch_prob" in changed and not both:
        raise SettingsError("--mixup-switch-prob has no effect without both --mixup and --cutmix: leave it out.")
    for needed, names in NEEDS.items():
        unused = next((name for name in names if name in changed), None)
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
        parts = value if isinstance(value, tuple) else () if value is None else (value,)
        if SIDES in facts and value is not None and len(parts) not in (1, 2):
            raise SettingsError(
                f"{flag(name)} takes the side of a square, or height and width, not {len(parts)} numbers."
            )
        for part in parts:
            if isinstance(part, str) and re.search(r"[\x00-\x1f\x7f]", part):
                raise SettingsError(f"{flag(name)} contains a control character: {part!r}.")
            for fact in facts:
                is_for = isinstance(fact, (Pattern, OneOf) if isinstance(part, str) else Range)  # words may replace it
                if is_for and (refusal := fact.refusal(part)):
                    raise SettingsError(f"{flag(name)} must be {refusal}, not {part}.")
