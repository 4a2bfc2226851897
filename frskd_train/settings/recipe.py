"""Recipes: YAML files with one setting per line, converted to flags and written from settings."""

import dataclasses
import datetime
import functools
import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from frskd_train.errors import SettingsError, suggest
from frskd_train.settings import (
    MethodSettings,
    Settings,
    decay_rate,
    declared,
    default_settings,
    fields,
    flag,
    flat,
    foreign,
    kinds,
)
from frskd_train.settings.constraints import LOCAL, PRIVATE

RECIPES = Path(__file__).parents[1] / "recipes"
NOT_IN_RECIPES = {"config", "resume"}
SETTINGS = "config.yaml"  # all settings of a run, in its folder


def included_recipes() -> list[str]:
    """Return the names of the included recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> str:
    """Return the path of a recipe, given as a file or as the name of an included one; raise SettingsError if none."""
    path = recipe_path(name)
    if path is None:
        included = included_recipes()
        hint = suggest(Path(name).stem, included, f"included are {', '.join(included)}")
        raise SettingsError(f"--config {name} is neither a file nor the name of an included recipe{hint}")
    return path


def recipe_path(name: str) -> str | None:
    """Return the path of a recipe, as `find_recipe` does; None if there is none."""
    included = RECIPES / f"{name.removesuffix('.yaml')}.yaml"
    return next((str(path) for path in (name, included) if os.path.isfile(path)), None)


def read_yaml(path: str) -> dict[str, Any]:
    """Read the settings of a recipe by name; raise SettingsError if it does not hold one plain value per setting.

    In names, `-` and `_` are equivalent.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _RecipeLoader)
    except OSError as error:
        raise SettingsError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8, impossible dates, too deeply nested
        raise SettingsError(
            f"The recipe {path} cannot be read as YAML: {' '.join(str(error).split())[:300]}."
        ) from error
    if not isinstance(content, dict | None) or not all(isinstance(key, str) for key in content or ()):
        raise SettingsError(f"The recipe {path} must contain one setting per line, such as `batch_size: 128`.")
    for key, value in (content or {}).items():
        words = [*value, *value.values()] if isinstance(value, dict) else [value]
        if not all(_is_plain(word) for word in words):
            raise SettingsError(f"The recipe {path} has a nested value for '{key}': give a single value or a list.")
    found = {key.replace("-", "_"): value for key, value in (content or {}).items()}
    if len(found) < len(content or {}):
        raise SettingsError(f"The recipe {path} has a setting twice, with - and with _ in its name: leave one out.")
    return found


class _RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, except that it refuses keys that occur twice, and integers to another base than ten."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value if not key.tag.endswith(":merge")]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"{twice} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text, value = str(node.value), super().construct_yaml_int(node)
        if re.match(r"[-+]?0\w", text) or ":" in text:
            problem = f"YAML reads {text} as {value}: write the number without leading zeros, or text in quotes"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return value


_RecipeLoader.add_constructor("tag:yaml.org,2002:int", _RecipeLoader.construct_yaml_int)


def _is_plain(value: Any, lists: int = 2) -> bool:
    if isinstance(value, list):
        return lists > 0 and all(_is_plain(part, lists - 1) for part in value)
    return isinstance(value, str | int | float | datetime.date | None)  # types of plain YAML values


def _check_kind(subject: str, value: Any, kind: set[Any]) -> None:
    """Raise SettingsError if a value that YAML has read is not of the kind of its setting, and text would hide that."""
    problem = ""
    if isinstance(value, bool) and bool not in kind:
        problem = f"is {value} (YAML reads yes, no, on and off as booleans): put it in quotes"
    elif not isinstance(value, bool | None) and kind == {bool}:
        problem = f"is {value}: give true or false"
    elif isinstance(value, int | float | datetime.date) and kind <= {str, type(None)}:
        problem = f"is {value} (YAML reads a number or a date): put it in quotes"
    elif isinstance(value, dict | list) and not kind & {tuple, list, dict}:
        problem = f"is {value}: give one value"
    elif value is None and type(None) not in kind:
        problem = "is empty: give a value, or leave the line out"
    if problem:
        raise SettingsError(f"{subject} {problem}.")


def as_flags(content: Mapping[str, Any], path: str) -> list[str]:
    """Return the settings of a recipe in a file as flags, so that both are parsed and checked alike."""
    known = kinds(Settings)
    tokens: list[str] = []
    for name, value in content.items():
        _check_kind(f"'{name}' in the recipe {path}", value, known[name])
        if isinstance(value, bool):
            tokens.append(flag(name) if value else flag(f"no_{name}"))
        elif isinstance(value, dict | list):
            pairs = [f"{key}={part}" for key, part in value.items()] if isinstance(value, dict) else value
            words = [str(part) for part in pairs]
            for word in words:
                if re.match(r"-[^\d.]", word):
                    raise SettingsError(
                        f"A word of {flag(name)} in the recipe {path} may not begin with '-', as {word} does."
                    )
            tokens += [flag(name), *words]
        else:
            tokens.append(f"{flag(name)}={value}")
    return [with_home(token) for token in tokens]


def with_home(token: str) -> str:
    """Replace a `~/` at the beginning of a flag's value, which shells leave alone in some places."""
    found = re.fullmatch(r"(--[\w-]+=)?(local-dir:)?(~/.*)", token, re.DOTALL)
    return token if found is None else f"{found[1] or ''}{found[2] or ''}{os.path.expanduser(found[3])}"


def with_absolute_paths(settings: Settings) -> Settings:
    """Replace relative paths of files and folders that exist, so that a run can be continued from another folder."""
    facts = declared(Settings)
    included = {default_settings(task).data.dataset for task in ("classification", "segmentation")}
    for group in dataclasses.fields(Settings):
        values = getattr(settings, group.name)
        changed: dict[str, Any] = {}
        for name in (setting.name for setting in dataclasses.fields(values)):
            value = getattr(values, name)
            if name == "baseline":
                changed[name] = tuple(map(absolute_path, value))
            elif LOCAL in facts[name] and isinstance(value, str) and value not in included:
                changed[name] = absolute_path(value) if name != "model" or value.startswith("local-dir:") else value
        settings = dataclasses.replace(settings, **{group.name: dataclasses.replace(values, **changed)})
    return settings


def absolute_path(value: Any) -> Any:
    """Return a value with an absolute path if it is the relative path of a file or folder, also after `local-dir:`."""
    if not isinstance(value, str):
        return value
    path = value.removeprefix("local-dir:")
    return value.removesuffix(path) + os.path.abspath(path) if os.path.exists(path) else value


def write_recipe(settings: Settings, heading: str, portable: bool = False) -> str:
    """Format settings as a recipe, except the folder of a run and whether it was resumed.

    `heading` is a comment in the first lines. `portable` omits what belongs to one machine or account; local paths are
    left empty, so that whoever uses the recipe is asked for them.
    """
    values, facts = flat(settings), declared(Settings)
    left_out = {"output_dir", *NOT_IN_RECIPES, *foreign(settings.model.task)}
    left_out |= {name for name in values if portable and PRIVATE in facts[name]}
    lines = [f"# {line}" for line in heading.splitlines()]
    for group in dataclasses.fields(Settings):
        kind = typing.cast(Any, group.type)
        names = [setting.name for setting in dataclasses.fields(kind) if setting.name not in left_out]
        if names:
            lines.append(f"\n# {kind.__doc__}")
        for name in names:
            if portable and LOCAL in facts[name] and is_path(name, values[name]):
                lines.append(f"{name}: ''  # was a path on the author's machine: give {flag(name)}")
                continue
            value = yaml.safe_dump(values[name], default_flow_style=True, width=1000)
            lines.append(f"{name}: {value.removesuffix('...' + chr(10)).strip()}")
    return "\n".join(lines) + "\n"


def repeat_note(processes: int, batch_size: int) -> list[str]:
    """Return how to start several processes, as a line for the heading of a recipe; nothing for one process."""
    if processes == 1:
        return []
    command = f"torchrun --nproc_per_node {processes} -m frskd_train.train"
    return [f"Made by {processes} processes, each with batches of {batch_size}; to start as many: {command}"]


@functools.cache
def training_names() -> list[str]:
    """Return the names of the settings that make another training run, except the seed and what is private."""
    facts = declared(Settings)
    names = [setting.name for group, setting in fields() if group != "run" and setting.name != "seed"]
    return [name for name in names if PRIVATE not in facts[name]]


def comparable(values: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
    """Return the settings that make another training run, except the seed and what is private.

    The batch size is that of all `processes` of the run.
    """
    names = [*training_names(), *(["val_interval"] if values["sched"] == "plateau" else [])]
    found = {name: values[name] for name in names if name in values}
    found["decay_rate"] = decay_rate(values["sched"], values["decay_rate"])
    found["batch_size"] *= processes
    return found


def differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of `comparable` settings that differ between two runs, except those of the method."""
    method = declared(MethodSettings)
    return [name for name in own if name not in method and own[name] != other.get(name)]


def is_path(name: str, value: str | None) -> bool:
    """Return whether the value of a setting that may be a path is one."""
    if name == "model" or value is None:
        return bool(value and value.startswith("local-dir:"))
    hub_id = name == "dataset" and value.count("/") < 2 and not value.startswith(("/", "~", "."))
    return not hub_id or os.path.exists(value)
