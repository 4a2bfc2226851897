"""Conversion of nested Python values to tensors and JSON and back, used in checkpoints instead of pickle."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Convert a value to JSON, and move its tensors to `tensors` under names that begin with `name`.

    The value may consist of tensors, dtypes, numbers, text, None, and dictionaries, lists and tuples of these; anything
    else raises TypeError.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": pack(list(value), tensors, name)}
    if isinstance(value, list):
        return [pack(item, tensors, f"{name}.{index}") for index, item in enumerate(value)]
    if isinstance(value, Mapping):  # keys may be numbers
        return {"items": [[key, pack(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is of type {type(value).__name__}")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Restore a value from the output of `pack`."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "tuple":
        return tuple(unpack(content, tensors))
    return {key: unpack(item, tensors) for key, item in content}
