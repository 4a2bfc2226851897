"""Look up configurations of models: in timm's registry, with suggestions for unknown names, and in exported folders."""

import difflib
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg, load_model_config_from_hf
from timm.models._hub import load_model_config_from_path  # timm has no public reader of 'local-dir:'

from frskd_timm.errors import UserError


def known_cfg(name: str, *, weights: bool = False) -> PretrainedCfg | None:
    """Return timm's default configuration of `architecture` or `architecture.tag`; None if the model has none.

    Raises:
        UserError: timm has no such model, no such tag, or no weights although `weights` asks for them.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(name):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else " timm.list_models() lists the names."
        raise UserError(f"timm has no model '{name}'.{hint}")
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the tag
        there = ", ".join(timm.list_pretrained(f"{architecture}.*")) or f"none of '{architecture}'"
        raise UserError(f"timm has no weights '{name}'. There are: {there}.") from error
    if weights and (cfg is None or not cfg.has_weights):
        raise UserError(
            f"There are no pretrained weights for '{name}': for training, leave pretrained out; otherwise "
            "give the folder of a run or a student."
        )
    return cfg


def config_elsewhere(name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return configuration, architecture and arguments of the model with a `local-dir:` or `hf-hub:` name."""
    kind, place = name.split(":", 1)
    cfg, architecture, arguments = (
        load_model_config_from_path(place) if kind == "local-dir" else load_model_config_from_hf(place)
    )
    return cfg, architecture, arguments or {}


def exported_cfg(folder: str | Path) -> dict[str, Any]:
    """Return timm's configuration of the model in an exported folder, with its `architecture`."""
    cfg, architecture, _ = load_model_config_from_path(folder)
    return {**cfg, "architecture": architecture}
