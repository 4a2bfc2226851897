"""Checks of the arguments of segmentation students, and of the places they are loaded from."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from frskd_timm.errors import UserError, first_line

_CONFIG = "config.json"
_HUB = {"revision", "token", "cache_dir", "force_download", "local_files_only"}  # arguments of loading from the Hub


def names_of_classes(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return the names, empty if there are none; raise UserError if there are not as many as classes."""
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, not {num_classes}.")
    if isinstance(class_names, str):
        raise UserError(f"class_names must be a list of names, not {class_names!r:.60}.")
    names = [] if class_names is None else [*map(str, class_names)]
    if class_names is not None and len(names) != num_classes:
        raise UserError(f"class_names has {len(names)} names, but there are {num_classes} classes.")
    return names


def per_channel(
    name: str, values: Sequence[float] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    """Return one value per channel; raise UserError if they are not those of images in 0..1."""
    if values is None:
        return default if channels == 3 else (sum(default) / 3,) * channels
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError):
        raise UserError(f"{name} must be a list of numbers, not {values!r:.60}.") from None
    if len(numbers) not in (1, channels):
        raise UserError(f"{name} takes one number, or {channels} (one per channel), not {len(numbers)}.")
    if not all(map(math.isfinite, numbers)) or max(numbers) > 1 or (name == "std" and min(numbers) <= 0):
        raise UserError(f"{name} must be for images in 0..1, not {values!r:.60}.")
    return numbers * (channels // len(numbers))


def as_json(backbone_args: dict[str, Any] | None) -> dict[str, Any]:
    """Return the arguments as `config.json` will give them back; raise UserError if it cannot hold them."""
    try:
        arguments: dict[str, Any] = json.loads(json.dumps(backbone_args or {}))
    except TypeError as error:
        raise UserError(
            f"config.json cannot hold these backbone_args ({first_line(error)}): use plain Python numbers, "
            "and names instead of classes, such as act_layer='silu'."
        ) from None
    return arguments


def check_place(name: str, options: dict[str, Any]) -> None:
    """Raise an error unless a folder, or a repository OWNER/NAME on the Hub, holds a segmentation student.

    huggingface_hub would ignore that a repository, or the revision in the `options` of loading, does not exist.

    Raises:
        UserError: The folder does not exist, or there is no segmentation student.
        OSError: huggingface_hub's, if the repository cannot be read.
    """
    folder = Path(name)
    try:
        if not folder.is_dir():
            if folder.is_absolute() or len(folder.parts) > 2:
                raise UserError(f"There is no folder {name}.")
            config = Path(hf_hub_download(name, _CONFIG, **{key: options[key] for key in _HUB & options.keys()}))
        else:
            config = folder / _CONFIG
        found = "backbone" in json.loads(config.read_text(encoding="utf-8"))
    except LocalEntryNotFoundError:  # no connection
        raise
    except (EntryNotFoundError, FileNotFoundError, ValueError, TypeError):
        found = False
    if not found:
        hint = f": give {folder / 'student'}" if (folder / "student" / _CONFIG).is_file() else ""
        raise UserError(f"There is no segmentation student in {name}{hint}.")
