"""Checks of an exported student's `config.json`: types, ranges, and sizes that fit into memory."""

import math
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError

MAX_SIDE = 4096  # pixels
MAX_ARGUMENT = 1 << 16  # of a model; larger values would exhaust the memory before the weights are checked
INTERPOLATIONS = {"nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"}
CROP_MODES = {"center", "squash", "border"}


def check_pretrained_cfg(cfg: dict[str, Any], where: object) -> None:
    """Raise UserError for image settings of a timm configuration that cannot be used; `where` names its source."""
    size = cfg.get("input_size", (3, 224, 224))
    check_size(size, where)
    for name in ("mean", "std"):
        if cfg.get(name) is not None:
            check_statistics(name, cfg[name], size[0], where)
    if not _is_number(cfg.get("crop_pct", 1.0)) or not 0 < cfg.get("crop_pct", 1.0) <= 2:
        raise UserError(f"'crop_pct' in {where} is {cfg['crop_pct']!r}: give a number above 0, at most 2.")
    for name, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if cfg.get(name) is not None and (not isinstance(cfg[name], str) or cfg[name] not in known):
            raise UserError(f"'{name}' in {where} is {cfg[name]!r}: give one of {', '.join(sorted(known))}.")


def entry(config: dict[str, Any], name: str, kind: type, where: Path, default: Any = None) -> Any:
    """Return a value of the config after checking its type; `default` if the key is missing or null."""
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, kind) or isinstance(value, bool):
        what = {dict: "an object", str: "a string", int: "an integer", list: "a list"}[kind]
        raise UserError(f"'{name}' in {where} must be {what}, not {value!r:.60}.")
    return value


def output_names(label_names: Any, outputs: int) -> list[str]:
    """Return the names of a model's outputs from timm's list, or dict with gaps, of names; empty if there are none."""
    if isinstance(label_names, dict):
        names = {str(number): str(name) for number, name in label_names.items()}
        return [names.get(str(number), f"output {number}") for number in range(outputs)]
    return list(label_names or ())


def check_size(size: Any, where: object) -> None:
    usable = isinstance(size, (list, tuple)) and len(size) == 3 and all(isinstance(n, int) for n in size)
    if not usable or not all(1 <= n <= MAX_SIDE for n in size):
        raise UserError(f"The input size {size!r:.60} in {where} is not three numbers from 1 to {MAX_SIDE}.")


def check_statistics(name: str, values: Any, channels: int, where: object) -> None:
    usable = isinstance(values, (list, tuple)) and len(values) in (1, channels) and all(map(_is_number, values))
    if not usable or (name == "std" and not all(value > 0 for value in values)):
        kind = "positive numbers" if name == "std" else "numbers"
        raise UserError(f"'{name}' in {where} is {values!r:.60}: give {kind}, one per channel.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def refuse_huge(value: Any, where: Path) -> None:
    """Raise UserError for model arguments that are larger than in any network."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        refuse_huge(item, where)
    if isinstance(value, (int, float)) and not abs(value) <= MAX_ARGUMENT:
        raise UserError(f"A model argument in {where} is {value!r:.30}, but at most {MAX_ARGUMENT} is allowed.")
