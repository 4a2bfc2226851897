"""Weights of the students: folders that ship with the package, and repositories on the Hub.

timm lists and loads the weights in any exported folder `frskd_timm/weights/<architecture>.<tag>/`, which contains
`config.json` and `model.safetensors`. Weights that cannot be loaded are not listed.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, split_model_name_tag

from frskd_timm.lookup import exported_cfg

FOLDER = Path(__file__).parents[1] / "weights"

DEFAULT_TAGS = dict.fromkeys(("efficientnet_b0_frskd", "resnet18_frskd", "wide_resnet16_2_frskd"), "fashion_mnist")
"""Weights that `pretrained=True` loads without a tag. Adding weights of an architecture does not change them."""

PUBLISHED: dict[str, dict[str, Any]] = {}
"""Weights on the Hub by `architecture.tag`: `hf_hub_id` ('owner/name'), and what differs from the architecture's
configuration (num_classes, input_size, mean, std, license...). List only public repositories."""


def with_weights(cfgs: Mapping[str, dict[str, Any]], folder: Path = FOLDER) -> dict[str, Any]:
    """Add the weights in a folder and on the Hub to the configurations of untrained architectures by name.

    Returns:
        Configurations by `architecture.tag` for `timm.models.generate_default_cfgs`, the default first: that of
        `DEFAULT_TAGS`, else shipped before published weights in alphabetical order. An architecture without weights
        keeps its own configuration without a tag.
    """
    found = {
        path.parent.name: shipped_cfg(path.parent)
        for path in sorted(folder.glob("*.*/model.safetensors"))
        if (path.parent / "config.json").is_file()
    }
    for name, cfg in sorted(PUBLISHED.items()):
        found[name] = {**found.get(name, cfg), "hf_hub_id": cfg["hf_hub_id"]}

    out: dict[str, Any] = {}
    for architecture, base in cfgs.items():
        stride = 2 ** round(math.log2(base["input_size"][-1] / base["pool_size"][-1]))
        tagged = {}
        for name, cfg in found.items():
            if split_model_name_tag(name)[0] == architecture:
                height, width = cfg.get("input_size", base["input_size"])[1:]
                tagged[name] = {**base, **cfg, "pool_size": (math.ceil(height / stride), math.ceil(width / stride))}
        default = f"{architecture}.{DEFAULT_TAGS.get(architecture)}"
        out.update(dict(sorted(tagged.items(), key=lambda item: item[0] != default)) or {architecture: base})
    return out


def apart_from_shipped(pretrained: bool, arguments: dict[str, Any]) -> dict[str, Any]:
    """Complete the arguments of a student so that they mean the same whatever weights ship with the package.

    `num_classes` is 1000 if neither they nor a configuration in them has it; timm would take that of the default
    weights. Weights that an overlay of the configuration names are preferred to the shipped file.
    """
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    if overlay.keys() & {"hf_hub_id", "url"}:
        arguments = {**arguments, "pretrained_cfg_overlay": {"file": None, **overlay}}
    if pretrained or arguments.get("pretrained_cfg") is not None or "num_classes" in overlay:
        return arguments
    return {"num_classes": 1000, **arguments}


def shipped_cfg(path: Path) -> dict[str, Any]:
    """Return the pretrained configuration of an exported folder, with the path of its weights file."""
    fields = {field.name for field in dataclasses.fields(PretrainedCfg)}
    found, _ = exported_cfg(f"local-dir:{path}")
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if key in fields}
    return {**known, "source": None, "file": str(path / "model.safetensors")}
