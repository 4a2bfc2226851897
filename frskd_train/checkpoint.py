"""Checkpoints for resuming: everything a run needs to go on, written atomically, free of pickled code.

A checkpoint is a folder `checkpoints/step-00000042/` of safetensors and JSON. It is written under another name, synced
and renamed, so that a folder of that name is always whole. The student for use is not here but in `student/`.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frskd_timm.errors import UserError

FORMAT = 1


def save_checkpoint(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> Path:
    """Writes one checkpoint.

    Args:
        folder: The run's `checkpoints/`.
        step: Updates so far; names the checkpoint.
        modules: Modules to save whole, by file name ('task', 'ema').
        optimizer: The optimizer.
        state: Everything else, JSON.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: The disk is full or cannot be written; older checkpoints are as they were.
    """
    final = folder / checkpoint_name(step)
    aside = folder / f".writing-{step:08d}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, module in modules.items():
            save_file(_independent(module.state_dict()), aside / f"{name}.safetensors")
        tensors, plain = _flatten(optimizer.state_dict())
        save_file(_independent(tensors), aside / "optimizer.safetensors")
        content = {"format": FORMAT, "step": step, **state, "optimizer": plain}
        (aside / "state.json").write_text(json.dumps(content), encoding="utf-8")
        for path in aside.iterdir():
            _sync(path)
        if final.exists():  # the same step, saved before a resume
            shutil.rmtree(final)
        os.replace(aside, final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise _cannot_write(folder, error) from error
    except Exception as error:  # safetensors reports a full disk as its own error type
        shutil.rmtree(aside, ignore_errors=True)
        if type(error).__name__ != "SafetensorError":
            raise
        raise _cannot_write(folder, error) from error
    return final


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint after so many updates; names sort like their steps."""
    return f"step-{step:08d}"


def _cannot_write(folder: Path, error: Exception) -> UserError:
    last = latest_checkpoint(folder)
    kept = f" The last good one is {last}; free some space and go on with --resume." if last else ""
    return UserError(f"A checkpoint could not be written to {folder} ({error}).{kept}")


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        UserError: This is no checkpoint of this version.
    """
    path = checkpoint / "state.json"
    if not path.is_file():
        raise UserError(f"{checkpoint} is no checkpoint: it has no state.json.")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); resume from an older checkpoint beside it.") from error
    if state.get("format") != FORMAT:
        raise UserError(f"{checkpoint} has format {state.get('format')}, this version reads format {FORMAT}.")
    return state


def restore(
    checkpoint: Path,
    state: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Puts a checkpoint's tensors back.

    Args:
        checkpoint: The checkpoint's folder.
        state: Its JSON part.
        modules: The modules that were saved, by file name.
        optimizer: An optimizer of the same kind over the same parameters.

    Raises:
        UserError: A file is missing or damaged, or the modules have other parameters.
    """
    for name, module in modules.items():
        tensors = _read(checkpoint / f"{name}.safetensors")
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(
                f"{checkpoint} was made by other settings; it does not fit this {name}: {str(error).splitlines()[1]}"
            ) from error
    optimizer.load_state_dict(_unflatten(_read(checkpoint / "optimizer.safetensors"), state["optimizer"]))
    # Back into the parameters' memory format: mixed strides cost speed.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    optimizer.state[parameter][key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's `checkpoints/`, or None."""
    found = sorted(folder.glob("step-*")) if folder.is_dir() else []
    return found[-1] if found else None


def set_aside_after(checkpoint: Path) -> list[Path]:
    """Renames the checkpoints that are newer than this one to `abandoned-step-...`: a run goes on from here."""
    newer = [path for path in sorted(checkpoint.parent.glob("step-*")) if path.name > checkpoint.name]
    for path in newer:
        shutil.rmtree(path.with_name(f"abandoned-{path.name}"), ignore_errors=True)
        os.replace(path, path.with_name(f"abandoned-{path.name}"))
    return newer


def prune(folder: Path, keep: int, best: str | None) -> None:
    """Deletes all but the newest `keep` checkpoints and the one called `best`, and what broken writes left."""
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old.name != best:
            # Out of sight first: a half-deleted folder must not look like a checkpoint.
            gone = old.with_name(f".writing-{old.name}")
            os.replace(old, gone)
            shutil.rmtree(gone, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small file in one step, UTF-8."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise UserError(f"{path} is missing or damaged ({error}); resume from another checkpoint.") from error


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that share no memory, as the format wants them."""
    return {key: value.detach().to("cpu").contiguous().clone() for key, value in tensors.items()}


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits an optimizer's state dict into tensors named 'index.name' and a JSON rest."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        numbers[str(index)] = {}
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers[str(index)][name] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def _unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in plain["numbers"].items()}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state[int(index)][name] = value
    return {"state": state, "param_groups": [dict(group) for group in plain["param_groups"]]}


def _sync(path: Path) -> None:
    """Flushes a file or a folder's entries to the disk, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
