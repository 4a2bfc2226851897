"""Parse flags and recipes into settings. Imports neither torch nor timm."""

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
from tyro.conf import Suppress

from frskd_train.errors import SettingsError, suggest
from frskd_train.settings import EvaluationSettings, Settings, declared, default_settings, flag, flat, foreign, kinds
from frskd_train.settings.recipe import (
    NOT_IN_RECIPES,
    SETTINGS,
    as_flags,
    find_recipe,
    read_yaml,
    recipe_path,
    with_absolute_paths,
    with_home,
)
from frskd_train.settings.rules import check_ranges, check_settings, refuse_unused
from frskd_train.settings.timm_flags import TRAIN, VALIDATE

FLAT = (tyro.conf.OmitArgPrefixes,)  # --lr, not --optimizer.lr


def parse_settings(args: Sequence[str]) -> Settings:
    """Read settings: the defaults of the task, then those of a resumed run, then the `--config` recipe, then flags.

    Raises SettingsError if a recipe cannot be read, a name is unknown, or a value is out of range; and SystemExit for
    `--help` and for a value that cannot be parsed, after a message.
    """
    args = _spelled_out(args)
    given = _given(args)
    last = {name: words[-1][0] for name, words in given.items() if words[-1]}
    recipe = find_recipe(last["config"]) if "config" in last else None
    recipes = {} if recipe is None else {recipe: read_yaml(recipe)}
    own = None if recipe is None else recipes[recipe].get("output_dir")
    folder = last.get("output_dir") or (None if own is None else os.path.expanduser(str(own)))
    if (resumed := _resumed_config(last.get("resume"), folder)) is not None:
        recipes = {resumed: read_yaml(resumed)} | recipes
    tasks = [*(recipe.get("task") for recipe in recipes.values()), last.get("task")]
    settings = default_settings(next((str(task) for task in reversed(tasks) if task), "classification"))
    for path, content in recipes.items():
        settings = _overlay(path, content, settings)
    _refuse_unknown(args, program("train"), Settings, TRAIN)
    before, settings = flat(settings), with_absolute_paths(_cli(args, settings))
    after = flat(settings)
    if "beta" not in given and any(after[name] != before[name] for name in ("task", "feature_loss", "self_teacher")):
        # The weight of a recipe belongs to the loss that the flag replaces.
        settings = replace(settings, method=replace(settings.method, beta=None))
    if last.get("train_crop_mode", "pad") != "pad" and "crop_padding" not in given:
        # The padding of a recipe belongs to the crops that the flag replaces.
        settings = replace(settings, preprocessing=replace(settings.preprocessing, crop_padding=None))
    if settings.optimizer.lr_base is not None and "lr" in given:
        raise SettingsError("--lr and --lr-base cannot be combined: leave one out, or give --lr-base None.")
    if "no_pretrained" in given and settings.model.has_weights and not settings.model.pretrained:
        raise SettingsError(
            f"--no-pretrained has no effect on {settings.model.model}, which names weights: give the name of its "
            "architecture."
        )
    check_settings(settings)
    refuse_unused({name.removeprefix("no_"): len(words) for name, words in given.items()}, settings)
    return settings


def parse_evaluation(args: Sequence[str]) -> EvaluationSettings:
    """Read the settings of `validate.py`; raise SettingsError and SystemExit like `parse_settings`."""
    args = _spelled_out(args)
    _refuse_unknown(args, program("validate"), EvaluationSettings, VALIDATE)
    description = "Scores a model on a dataset: accuracy or mean IoU, scores by class, calibration and mistakes."
    said: dict[str, Any] = {"prog": program("validate"), "description": description, "config": FLAT}
    settings = tyro.cli(EvaluationSettings, args=list(args), **said)
    check_ranges(settings)
    if settings.amp_dtype != "auto" and not settings.amp:
        raise SettingsError("--amp-dtype has no effect without --amp: add it, or leave --amp-dtype out.")
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
        return _cli(as_flags(content, path), settings)
    except SystemExit:
        print(f"(in the recipe {path})", file=sys.stderr)
        raise


def _hint(name: str, kind: type, table: Mapping[str, str]) -> str:
    if name in table:
        answer = table[name]
        reason = answer.removeprefix("none: ")
        return f" ({reason})." if reason != answer else f" (equivalent here: {answer})."
    return suggest(flag(name), map(flag, declared(kind)), "--help lists all settings")


def _refuse_unknown(args: Sequence[str], script: str, kind: type, table: Mapping[str, str]) -> None:
    if args and not args[0].startswith("-"):
        is_run = kind is EvaluationSettings and (Path(args[0]) / SETTINGS).is_file()
        hint = f": give --model {args[0]}." if is_run else _hint("data_dir", kind, table)
        raise SettingsError(f"{script} takes flags only, not '{args[0]}'{hint}")
    given, known = _given(args), {name for name, facts in declared(kind).items() if Suppress not in facts}
    for name in given:
        if name.removeprefix("no_") not in known and name != "help" and not name.startswith("tyro"):
            raise SettingsError(f"{script} has no {flag(name)}{_hint(name, kind, table)}")
    for name, words in ((name, words[-1]) for name, words in given.items()):
        if kinds(kind).get(name) == {bool} and words and not words[0].startswith("-"):  # "-" as in short flags
            raise SettingsError(f"{flag(name)} takes no value: leave {words[0]} out, or give {flag(f'no_{name}')}.")


def _cli(args: Sequence[str], default: Settings) -> Settings:
    task = default.model.task
    description = "Trains a timm model with FRSKD, or its cross-entropy baseline, and exports the student."
    description += f" Not available with --task {task}: {', '.join(map(flag, foreign(task)))}."
    said: dict[str, Any] = {"prog": program("train"), "description": description, "config": FLAT}
    return tyro.cli(Settings, args=list(args), default=default, **said)


def program(command: str) -> str:
    """Return what the user has called: `frskd train`, `train.py` or another script."""
    called = Path(sys.argv[0])
    if called.stem in ("frskd", "__main__") or called.parent.name == "frskd_train":
        return f"frskd {command}"
    return called.name if called.suffix == ".py" else f"{command}.py"


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


def _given(args: Sequence[str]) -> dict[str, list[list[str]]]:
    """Return the words after each flag, once for each time it is given, by its name with underscores."""
    found: dict[str, list[list[str]]] = {}
    words: list[str] = []
    for token in args:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            words = [value] if equals else []
            found.setdefault(name.replace("-", "_"), []).append(words)
        else:
            words.append(token)
    return found


def _resumed_config(resume: str | None, folder: str | None) -> str | None:
    run = folder if resume == "auto" else resume
    if resume is None or run is None:
        return None
    # A run, its checkpoints, or one of these.
    place = Path(os.path.realpath(run))
    for path in [place] if resume == "auto" else [place, place.parent, place.parent.parent]:
        if (path / SETTINGS).is_file():
            return str(path / SETTINGS)
        if any(path.glob("checkpoints/step-*")):
            raise SettingsError(f"{path} has no {SETTINGS}, from which a resumed run reads its settings: restore it.")
    return None
