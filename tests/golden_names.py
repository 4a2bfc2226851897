"""Map the authors' parameter names to ours, for the golden tests."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

_TEACHER = [
    (r"layers\.(\d+)\.lat_conv\.(\d+)\.conv\.0\.(\d)", r"layers.\1.lateral.\2.\3"),
    (r"layers\.(\d+)\.lat_conv2\.(\d+)\.conv\.0\.(\d)", r"layers.\1.lateral2.\2.\3"),
    (r"layers\.(\d+)\.up_sample\.(\d+)\.1\.conv\.0\.(\d)", r"layers.\1.to_finer.\2.\3"),
    (r"layers\.(\d+)\.down_sample\.(\d+)\.1\.conv\.0\.(\d)", r"layers.\1.to_coarser.\2.\3"),
    (r"layers\.(\d+)\.up_weight\.(\d+)", r"layers.\1.top_down.\2.weights"),
    (r"layers\.(\d+)\.down_weight\.(\d+)", r"layers.\1.bottom_up.\2.weights"),
    (r"^linear\.", "fc."),
]
_STUDENT = [
    (r"block(\d)\.layer\.(\d+)\.convShortcut", r"layer\1.\2.shortcut"),
    (r"block(\d)\.layer\.(\d+)\.bn2", r"layer\1.\2.norm"),
    (r"block(\d)\.layer\.(\d+)\.", r"layer\1.\2."),
    (r"block(\d)bn", r"norm\1"),
]


def read(name: str) -> dict[str, Tensor]:
    """Read one golden file, to the default device."""
    return load_file(GOLDEN / f"{name}.safetensors", device=str(torch.get_default_device()))


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose names start with `prefix.`, without the prefix."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}


def self_teacher(name: str) -> str:
    """Return our name for a parameter of the authors' BiFPN or BiFPNc."""
    fuse = re.match(r"layers\.(\d+)\.(up|down)_conv\.(\d+)\.conv\.(\d)\.(\d)\.(\w+)", name)
    if fuse:  # one Sequential per repetition there, one flat Sequential here; the second starts with a ReLU
        layer, way, level, repetition, place, what = fuse.groups()
        blocks = {"up": "top_down", "down": "bottom_up"}[way]
        index = int(place) + (3 if repetition == "1" else 0)
        return f"layers.{layer}.{blocks}.{level}.blocks.{index}.{what}"
    for pattern, ours in _TEACHER:
        name = re.sub(pattern, ours, name)
    return name


def student(name: str) -> str:
    """Return our name for a parameter of the authors' wide ResNet."""
    for pattern, ours in _STUDENT:
        name = re.sub(pattern, ours, name)
    return name


def renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Rename the keys of a state dict."""
    return {rename(key): value for key, value in tensors.items()}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Compare the largest difference with the largest expected value."""
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    assert difference <= tolerance, f"{what}: relative difference {difference:.2e} above {tolerance:g}"
