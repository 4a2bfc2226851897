"""Checkpoints for resuming: everything a run needs to go on, written atomically, free of pickled code.

A checkpoint is a folder `checkpoints/step-00000042/` of safetensors and JSON. It is written under another name, synced
and renamed, so that a folder of that name is whole; sizes and checksums tell if the disk harmed it later. The student
for use is not here but in `student/`.
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
from frskd_train.disk import disk_errors, size_and_checksum, sync

FORMAT = 1
ASIDE = ".writing-"  # begins the names of folders that are being written, or deleted
STATE_KEYS = {
    "epoch", "step", "updates", "history", "best", "seconds", "meter", "settings", "fingerprint", "global_batch",
    "processes", "optimizer",
}  # fmt: skip
# What an optimizer's parameter groups take from the settings; all else in them is the optimizer's own state.
_FROM_SETTINGS = ("lr", "initial_lr", "lr_scale", "weight_decay", "momentum")


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
    aside = folder / f"{ASIDE}{final.name}"
    refuse_bad_weights(modules, folder)
    try:
        with disk_errors(folder, lambda: latest_checkpoint(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder)  # what an interrupted write left takes room
            aside.mkdir()
            for name, module in modules.items():
                save_file(_independent(module.state_dict()), aside / f"{name}.safetensors")
            tensors, plain = _flatten(optimizer.state_dict())
            save_file(_independent(tensors), aside / "optimizer.safetensors")
            content = {"format": FORMAT, "step": step, **state, "optimizer": plain}
            content["files"] = {path.name: size_and_checksum(path) for path in sorted(aside.iterdir())}
            scaler = getattr(optimizer, "scaler", None)  # of float16
            if scaler is not None:
                content["scaler"] = scaler.state_dict()
            (aside / "state.json").write_text(json.dumps(content), encoding="utf-8")
            for path in (*aside.iterdir(), aside):
                sync(path)
            if final.exists():  # the same step, saved before a resume
                os.replace(final, folder / f"{ASIDE}replaced")
            os.replace(aside, final)
            sync(folder)
    finally:
        _clear(folder)
    return final


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint after so many updates; names sort like their steps."""
    return f"step-{step:08d}"


def refuse_bad_weights(modules: Mapping[str, nn.Module], folder: Path) -> None:
    """Keeps weights that are not numbers from being saved as the newest good ones.

    Raises:
        UserError: A parameter or running statistic is not finite.
    """
    for module in modules.values():
        # Infinite buffers may be meant, such as masks of attention.
        bad = [name for name, tensor in module.named_parameters() if not bool(torch.isfinite(tensor).all())]
        bad += [name for name, tensor in module.named_buffers() if bool(torch.isnan(tensor).any())]
        if bad:
            raise UserError(
                f"The weights are not finite numbers any more ({bad[0]} first), so they were not saved. The last "
                f"good checkpoint: {latest_checkpoint(folder) or 'none yet'}. A lower --lr or --clip-grad may help."
            )


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
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise UserError(f"{checkpoint} has format {found}, this version reads format {FORMAT}.")
    missing = sorted(STATE_KEYS - set(state))
    if missing:
        raise UserError(f"{path} is damaged (it lacks {missing[0]}); resume from an older checkpoint beside it.")
    return state


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None for a whole one."""
    try:
        files = load_state(checkpoint).get("files", {})
    except UserError as error:
        return str(error)
    for name, wanted in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if size_and_checksum(path) != wanted:
            return f"{path} is damaged: its checksum is not the one that was noted when it was written"
    return None


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
    chosen = [{key: group[key] for key in _FROM_SETTINGS if key in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(_unflatten(_read(checkpoint / "optimizer.safetensors"), state["optimizer"]))
    except (ValueError, KeyError) as error:
        raise UserError(f"{checkpoint} was made by other settings; its optimizer does not fit: {error}") from error
    for group, values in zip(optimizer.param_groups, chosen, strict=True):
        group.update(values)
    scaler = getattr(optimizer, "scaler", None)
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    # Back into the parameters' memory format: mixed strides cost speed.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    optimizer.state[parameter][key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run's `checkpoints/`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's `checkpoints/`, or None."""
    return next((path for path in reversed(all_checkpoints(folder)) if find_damage(path) is None), None)


def set_aside_after(checkpoint: Path) -> list[Path]:
    """Renames the checkpoints newer than this one to `abandoned-step-...`: a run goes on from here.

    Those of an earlier time are deleted, so that they do not pile up.
    """
    newer = [path for path in all_checkpoints(checkpoint.parent) if path.name > checkpoint.name]
    if newer:
        for old in checkpoint.parent.glob("abandoned-*"):
            shutil.rmtree(old, ignore_errors=True)
    for path in newer:
        os.replace(path, path.with_name(f"abandoned-{path.name}"))
    return newer


def prune(folder: Path, keep: int, best: str | None) -> None:
    """Deletes all but the newest `keep` checkpoints and the one called `best`, and what broken writes left."""
    _clear(folder)
    for old in all_checkpoints(folder)[:-keep]:
        if old.name != best:
            # Out of sight first: a half-deleted folder must not look like a checkpoint.
            os.replace(old, folder / f"{ASIDE}{old.name}")
    _clear(folder)


def _clear(folder: Path) -> None:
    for leftover in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(leftover, ignore_errors=True)


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
