"""Checkpoints for resuming a run, written atomically and without pickle.

A checkpoint is a folder `checkpoints/step-00000042/` of safetensors and JSON files. It is written under another name,
synced and renamed, so that a folder with that name is complete; checksums detect later damage.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from frskd_timm.errors import UserError, first_line
from frskd_train.errors import after_divergence
from frskd_train.system.disk import disk_errors, size_and_checksum, sync

FORMAT = 4  # 3 and 2 had other orders of parameters, 1 no weight of the student's cross-entropy
ASIDE = ".writing-"  # prefix of folders being written or deleted
REPLACED = ".replaced"  # suffix of a checkpoint while another one of the same step takes its place
# Values of parameter groups that follow from the settings; all others are state of the optimizer.
_FROM_SETTINGS = ("lr", "initial_lr", "max_lr_snapshot", "lr_scale", "weight_decay", "momentum", "fused")


def save_checkpoint(
    folder: Path, step: int, modules: Mapping[str, nn.Module], optimizer: Optimizer, state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint after `step` updates into a run's `checkpoints/` and return its path.

    It has the modules by file name ('task', 'ema'), the optimizer, and all other state as JSON values. Raises UserError
    if the disk is full or cannot be written, or weights are not finite; older checkpoints stay.
    """
    final = folder / checkpoint_name(step)
    aside = folder / f"{ASIDE}{final.name}"
    refuse_bad_weights(modules, folder)
    try:
        with disk_errors(folder, lambda: latest_checkpoint(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder)  # leftovers of an interrupted write take disk space
            aside.mkdir()
            for name, module in modules.items():
                save_file(_independent(module.state_dict()), aside / f"{name}.safetensors")
            tensors: dict[str, Tensor] = {}
            packed = pack(optimizer.state_dict(), tensors, "optimizer")
            save_file(_independent(tensors), aside / "optimizer.safetensors")
            scaler = getattr(optimizer, "scaler", None)  # with float16
            content = {**state, "format": FORMAT, "optimizer": packed, "scaler": scaler and scaler.state_dict()}
            content["files"] = {path.name: size_and_checksum(path) for path in sorted(aside.iterdir())}
            (aside / "state.json").write_text(_with_checksum(content), encoding="utf-8")
            for path in (*aside.iterdir(), aside):
                sync(path)
            replaced = folder / f"{final.name}{REPLACED}"  # still a checkpoint if the new one cannot take its place
            if final.exists():  # the same step, saved before resuming
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(final, replaced)
            os.replace(aside, final)
            sync(folder)
            if replaced.exists():
                os.replace(replaced, folder / f"{ASIDE}{replaced.name}")
    finally:
        _clear(folder)
    return final


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after `step` updates; names sort by step."""
    return f"step-{step:08d}"


def refuse_bad_weights(modules: Mapping[str, nn.Module], folder: Path) -> None:
    """Raise UserError if a parameter or running statistic is not finite."""
    for module in modules.values():
        bad = [name for name, tensor in module.named_parameters() if not torch.isfinite(tensor).all()]
        bad += [name for name, tensor in module.named_buffers() if torch.isnan(tensor).any()]  # masks may be infinite
        if bad:
            raise UserError(
                f"Weights such as {bad[0]} became NaN or infinite and were not saved; "
                f"{after_divergence(latest_checkpoint(folder))}, or try --clip-grad."
            )


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Return the JSON part of a checkpoint; raise UserError if it is damaged or has another format version."""
    path = checkpoint / "state.json"
    if not path.is_file():
        raise UserError(f"{checkpoint} is not a checkpoint: it has no state.json.")
    try:
        text = path.read_text(encoding="utf-8")
        state = json.loads(text)
        checksum = state.pop("checksum")
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}).") from error
    if text != _with_checksum(state):
        raise UserError(f"{path} is damaged: its checksum is not {checksum}.")
    if state["format"] != FORMAT:
        raise UserError(f"{checkpoint} has format {state['format']}; this version reads format {FORMAT}.")
    return state


def find_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None if it is intact."""
    try:
        files = load_state(checkpoint)["files"]
    except UserError as error:
        return str(error)
    for path in (checkpoint / name for name in files):
        if not path.is_file() or size_and_checksum(path) != files[path.name]:
            return f"{path} is missing or damaged: its size or checksum is not the one recorded when it was written."
    return None


def restore(checkpoint: Path, state: Mapping[str, Any], modules: Mapping[str, nn.Module], optimizer: Optimizer) -> None:
    """Load a checkpoint with JSON part `state` into modules and optimizer; raise UserError if they do not fit."""
    for name, module in modules.items():
        tensors = _read(checkpoint / f"{name}.safetensors")
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip(" .")
            raise UserError(f"{checkpoint} does not fit this {name}: {reason}.") from error
    chosen = [{key: group[key] for key in _FROM_SETTINGS if key in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(unpack(state["optimizer"], _read(checkpoint / "optimizer.safetensors")))
    except (ValueError, KeyError) as error:
        raise UserError(f"{checkpoint} does not fit this optimizer: {first_line(error)}.") from error
    for group, values in zip(optimizer.param_groups, chosen, strict=True):
        group.update(values)
    scaler = getattr(optimizer, "scaler", None)
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    # Restore the parameters' memory format, because mixed strides are slower.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    optimizer.state[parameter][key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def all_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a run's `checkpoints/`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest intact checkpoint of a run's `checkpoints/`, or None."""
    return next((path for path in reversed(all_checkpoints(folder)) if find_damage(path) is None), None)


def set_aside_after(checkpoint: Path) -> None:
    """Rename checkpoints newer than this one to `abandoned-step-...`; delete those abandoned earlier."""
    newer = [path for path in all_checkpoints(checkpoint.parent) if path.name > checkpoint.name]
    if newer:
        for old in checkpoint.parent.glob("abandoned-*"):
            shutil.rmtree(old, ignore_errors=True)
    with disk_errors(checkpoint.parent):
        for path in newer:
            os.replace(path, path.with_name(f"abandoned-{path.name}"))


def prune(folder: Path, keep: int, best: str | None) -> None:
    """Delete all but the newest `keep` checkpoints and the one named `best`."""
    _clear(folder)
    with disk_errors(folder, lambda: latest_checkpoint(folder)):
        for old in all_checkpoints(folder)[:-keep]:
            if old.name != best:
                # Renamed first, so that a partly deleted folder does not look like a checkpoint.
                os.replace(old, folder / f"{ASIDE}{old.name}")
    _clear(folder)


def _clear(folder: Path) -> None:
    for leftover in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise UserError(f"{path} could not be read ({error}); resume from another checkpoint.") from error


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to contiguous CPU memory that they do not share, as safetensors requires."""
    return {key: value.detach().to("cpu").contiguous().clone() for key, value in tensors.items()}


def _with_checksum(content: Mapping[str, Any]) -> str:
    """Convert to JSON that contains a CRC-32 of its own text, to detect damage."""
    return json.dumps({**content, "checksum": zlib.crc32(json.dumps(content).encode())})


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Convert a nested value to JSON, and move its tensors to `tensors` under names that begin with `name`.

    It may consist of tensors, dtypes, numbers, text, None, dictionaries, lists and tuples; others raise TypeError.
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
