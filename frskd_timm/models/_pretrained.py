"""Where weights of the students come from: folders that ship with the package, and repositories on the Hub.

A folder `frskd_timm/weights/<architecture>.<tag>/` with `config.json` and `model.safetensors`, as export writes it,
is all that is needed: its configuration joins the architecture's, timm lists it and loads it. What is not there is
not listed.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import split_model_name_tag
from timm.models._hub import load_model_config_from_path  # how timm itself reads 'local-dir:'
from timm.models._pretrained import PretrainedCfg

WEIGHTS = Path(__file__).parents[1] / "weights"

PUBLISHED: dict[str, dict[str, Any]] = {}
"""Weights on the Hub by `architecture.tag`: `hf_hub_id` ('owner/name'), and what differs from the architecture's
configuration (num_classes, input_size, mean, std, license...). Enter only what anybody can download."""

_CFG_FIELDS = {field.name for field in dataclasses.fields(PretrainedCfg)}


def with_weights(cfgs: Mapping[str, dict[str, Any]], folder: Path = WEIGHTS) -> dict[str, Any]:
    """Adds the weights that can be had to the configurations of untrained architectures.

    Args:
        cfgs: One configuration an architecture, by its name; it names no weights.
        folder: Holds one folder for each set of weights.

    Returns:
        Configurations by `architecture.tag` for `timm.models.generate_default_cfgs`; an architecture without
        weights keeps its own, untagged. Of several tags the first is the default: shipped before published, then
        by the alphabet.
    """
    found = {
        path.parent.name: shipped_cfg(path.parent)
        for path in sorted(folder.glob("*.*/model.safetensors"))
        if (path.parent / "config.json").is_file()
    }
    for name, cfg in sorted(PUBLISHED.items()):
        found.setdefault(name, cfg)
        found[name] = {**found[name], "hf_hub_id": _hub_id(cfg["hf_hub_id"])}

    out: dict[str, Any] = {}
    for architecture, base in cfgs.items():
        tagged = {
            name: _fit_pool_size(base, {**base, **cfg})
            for name, cfg in found.items()
            if split_model_name_tag(name)[0] == architecture
        }
        out.update(tagged or {architecture: base})
    return out


def shipped_cfg(path: Path) -> dict[str, Any]:
    """The pretrained configuration of a Hub-ready folder; timm loads its weights by the path of the file."""
    cfg, _, _ = load_model_config_from_path(path)
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
    known = {key: value for key, value in known.items() if key in _CFG_FIELDS}
    return {**known, "source": None, "file": str(path / "model.safetensors")}


def _hub_id(hub_id: str) -> str:
    """The repository, at another owner if a fork says so with FRSKD_HUB_OWNER."""
    owner, _, name = hub_id.partition("/")
    return f"{os.environ.get('FRSKD_HUB_OWNER') or owner}/{name}"


def _fit_pool_size(base: dict[str, Any], cfg: dict[str, Any]) -> dict[str, Any]:
    """Corrects the last map's size, which export leaves empty for an input size of its own."""
    stride = 2 ** round(math.log2(base["input_size"][-1] / base["pool_size"][-1]))
    return {**cfg, "pool_size": tuple(math.ceil(size / stride) for size in cfg["input_size"][1:])}
