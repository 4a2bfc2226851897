"""Weights of the students: folders that ship with the package, and repositories on the Hub.

A folder `frskd_timm/weights/<architecture>.<tag>/` with `config.json` and `model.safetensors`, as the export writes it,
is all that timm needs to list and load weights. Weights that cannot be loaded are not listed.
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

DEFAULT_TAGS = {
    "resnet18_frskd": "fashion_mnist",
    "wide_resnet16_2_frskd": "fashion_mnist",
}
"""The weights that `pretrained=True` loads without a tag. Adding weights of an architecture does not change them."""

UNTRAINED_CLASSES = 1000
"""Classes of a student that is created without weights and without `num_classes`."""

PUBLISHED: dict[str, dict[str, Any]] = {}
"""Weights on the Hub by `architecture.tag`: `hf_hub_id` ('owner/name'), and what differs from the architecture's
configuration (num_classes, input_size, mean, std, license...). List only what anybody can download."""

_CFG_FIELDS = {field.name for field in dataclasses.fields(PretrainedCfg)}


def with_weights(cfgs: Mapping[str, dict[str, Any]], folder: Path = WEIGHTS) -> dict[str, Any]:
    """Add the available weights to the configurations of untrained architectures.

    Args:
        cfgs: One configuration per architecture, by its name, without weights.
        folder: Holds one folder for each set of weights.

    Returns:
        Configurations by `architecture.tag` for `timm.models.generate_default_cfgs`, the default first: that of
        `DEFAULT_TAGS`, else shipped before published weights in alphabetical order. An architecture without weights
        keeps its own configuration, untagged.
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
        default = f"{architecture}.{DEFAULT_TAGS.get(architecture)}"
        out.update(dict(sorted(tagged.items(), key=lambda item: item[0] != default)) or {architecture: base})
    return out


def with_default_classes(pretrained: bool, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a student with `num_classes`, if neither weights nor a number of classes were asked for.

    timm takes the number from the default weights' configuration, so that it would depend on what ships.
    """
    if pretrained or arguments.get("pretrained_cfg") is not None:
        return arguments
    return {"num_classes": UNTRAINED_CLASSES, **arguments}


def shipped_cfg(path: Path) -> dict[str, Any]:
    """Return the pretrained configuration of an exported folder; timm loads its weights by the path of the file."""
    cfg, _, _ = load_model_config_from_path(path)
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
    known = {key: value for key, value in known.items() if key in _CFG_FIELDS}
    return {**known, "source": None, "file": str(path / "model.safetensors")}


def _hub_id(hub_id: str) -> str:
    """Return the repository, of another owner if a fork sets FRSKD_HUB_OWNER."""
    owner, _, name = hub_id.partition("/")
    return f"{os.environ.get('FRSKD_HUB_OWNER') or owner}/{name}"


def _fit_pool_size(base: dict[str, Any], cfg: dict[str, Any]) -> dict[str, Any]:
    """Correct the size of the last feature map, which depends on the weights' input size."""
    stride = 2 ** round(math.log2(base["input_size"][-1] / base["pool_size"][-1]))
    return {**cfg, "pool_size": tuple(math.ceil(size / stride) for size in cfg["input_size"][1:])}
