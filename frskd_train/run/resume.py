"""Where a run is resumed, and whether it can be with the current settings, data and processes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError
from frskd_timm.export.folder import METRICS, STUDENT
from frskd_train.data import TrainingData
from frskd_train.run.checkpoint import all_checkpoints, find_damage
from frskd_train.settings import DataSettings, Settings, declared, flag
from frskd_train.settings.constraints import FIXED, FREE, LOCAL, PRIVATE
from frskd_train.settings.recipe import SETTINGS, is_path, training_names

AT_END = {"epochs", "tag", "license", "export", "calibration_split", "data_mode"}  # also used after the last epoch


@dataclass(frozen=True)
class Resume:
    """The point from which the run in a folder is resumed, with sentences for the user about the choice."""

    run: Path
    checkpoint: Path | None  # None if the run was stopped before its first one and starts again
    notes: tuple[str, ...] = ()


def find_resume(resume: str | None, output_dir: str | None) -> Resume | None:
    """Find the checkpoint that `--resume` refers to; None to start a new run. Raises UserError if there is none."""
    if resume is None:
        return None
    if resume == "auto":
        if output_dir is None:
            raise UserError("--resume auto needs --output-dir, the folder of the run to look for.")
        run = Path(output_dir)
        is_run = (run / SETTINGS).is_file() or all_checkpoints(run / "checkpoints")
        return _newest(run, resume) if is_run else None
    path = Path(resume)
    if not os.path.isdir(path):
        raise UserError(f"--resume {resume} is not a run or a checkpoint: there is no such folder.")
    run = place = Path(os.path.realpath(path))
    is_checkpoint = (place / "state.json").is_file()
    if is_checkpoint:
        run = place.parent.parent
        if place.parent.name != "checkpoints" or not place.name.startswith("step-"):
            raise UserError(
                f"--resume {resume} is a checkpoint, but not step-... in the checkpoints/ of a run: move or rename it."
            )
    elif place.name == "checkpoints" and (place.parent / SETTINGS).is_file():
        run = place.parent
    inside = place.relative_to(run)
    if not path.is_absolute():
        run = Path(os.path.relpath(run))
    if output_dir is not None and Path(output_dir).resolve() != run.resolve():
        raise UserError(f"--resume continues in {run}; omit --output-dir {output_dir}, or copy the run there first.")
    if not is_checkpoint:
        return _newest(run, resume)
    checkpoint = run / inside
    damage = find_damage(checkpoint)
    if damage is not None:
        raise UserError(f"--resume {checkpoint}: {damage}")
    return Resume(run, checkpoint)


def refuse_if_continued(found: Resume, resume: str | None, output_dir: str | None) -> None:
    """Raise UserError if another process has continued a run between `find_resume` and the lock of its folder."""
    again = find_resume(resume, output_dir)
    if again is None or again.checkpoint != found.checkpoint:
        raise UserError(f"Another process has just continued the run in {found.run}: give the same command again.")


def _newest(run: Path, resume: str) -> Resume:
    """Return a run's newest intact checkpoint, or the run's start if it was stopped before its first one."""
    notes: list[str] = []
    for checkpoint in reversed(all_checkpoints(run / "checkpoints")):
        damage = find_damage(checkpoint)
        if damage is None:
            return Resume(run, checkpoint, tuple(f"{note} Looking for an older checkpoint." for note in notes))
        notes.append(damage)
    if notes:
        raise UserError(f"--resume {resume}: no checkpoint in {run / 'checkpoints'} is intact. {notes[0]}")
    finished = next((name for name in ("summary.csv", METRICS, STUDENT) if (run / name).exists()), None)
    if finished is not None:
        raise UserError(f"--resume {resume}: {run} has {finished} but no checkpoint to resume; choose a new folder.")
    if not (run / SETTINGS).is_file():
        raise UserError(f"--resume {resume}: there is no checkpoint in {run / 'checkpoints'}.")
    return Resume(run, None, (f"{run} was stopped before its first checkpoint; starting again.",))


def notes_for_recipe(notes: list[str], state: Mapping[str, Any], epochs: int) -> list[str]:
    """Return the notes of `check_resume` that make it another training, without local paths.

    If no training follows, that is only a lower number of epochs: the schedules were those of the larger number.
    """
    declarations = declared(Settings)
    without = {flag(name) for name in declarations if LOCAL in declarations[name] or name not in training_names()}
    notes = [note for note in notes if state["epoch"] < epochs or note.startswith("--epochs ")]
    kept = [note for note in notes if note.split()[0] not in without]
    return [f"After {state['updates']} updates: {note}" for note in kept]


def run_facts(
    data: TrainingData, initial_cfg: Mapping[str, Any] | None, global_batch: int, processes: int
) -> dict[str, Any]:
    """Return what a checkpoint records about data and processes, for `check_resume`, and about the initial weights.

    `initial_cfg` is the result of `Job.initial_cfg`, `global_batch` the number of images per step over all processes.
    """
    return {
        "fingerprint": data.fingerprint,
        "train_rows": data.num_train,
        "statistics": [data.preprocessing.mean, data.preprocessing.std],
        "data_mode": data.mode,
        "global_batch": global_batch,
        "processes": processes,
        "initial_cfg": initial_cfg,
    }


def check_resume(state: Mapping[str, Any], settings: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Compare the JSON part of a checkpoint with the current run; return a sentence for each change that is applied.

    `settings` are all settings by name, and `facts` those of `run_facts`. Raises UserError, with both values, if a
    change is not possible.
    """
    kept = declared(Settings)
    before = state["settings"]
    changed = {name: value for name, value in before.items() if name in settings and settings[name] != value}
    for name in changed:
        if FIXED in kept[name] and not (
            LOCAL in kept[name] and is_path(name, settings[name]) and is_path(name, before[name])
        ):
            raise UserError(
                f"{flag(name)} is {settings[name]} now but was {before[name]} in this run, and must stay the same."
            )
    for name in ("beta", "teacher_gradient"):  # they decide which terms and parameters there are
        by_default = {None} if settings.get("task") == "segmentation" else set()
        if name in changed and {settings[name], before[name]} & {0.0, *by_default}:
            raise UserError(
                f"{flag(name)} is {settings[name]} now but was {before[name]} in this run: it can change to another "
                "number above 0, but not be switched on or off."
            )
    if state["fingerprint"] != facts["fingerprint"]:
        suspects = [field.name for field in fields(DataSettings) if field.name in changed]
        because = "".join(f"; {flag(name)} is {settings[name]}, was {before[name]}" for name in suspects)
        raise UserError(
            "The data are not those that this run was started with "
            f"(fingerprint {facts['fingerprint']}, was {state['fingerprint']}{because})."
        )
    if state["train_rows"] != facts["train_rows"]:
        raise UserError(
            f"This run was started with {state['train_rows']} readable training images, but now there are "
            f"{facts['train_rows']}: restore the images, --bad-images and --data-mode."
        )
    if state["global_batch"] != facts["global_batch"]:
        images, processes, before = state["global_batch"], facts["processes"], state["processes"]
        possible = max(count for count in range(1, processes + 1) if images % count == 0)
        start = f"start {before} process(es) as before, or " if before != processes else ""
        start += f"start {possible} process(es) and " if possible < processes else ""
        raise UserError(
            f"A step uses {facts['global_batch']} images now ({processes} process(es)) but used {images} in this run; "
            f"{start}set --batch-size {images // possible}."
        )
    if settings["epochs"] < state["epoch"] + (state["step"] > 0):
        place = f"in epoch {state['epoch'] + 1}" if state["step"] else f"after epoch {state['epoch']}"
        raise UserError(f"--epochs is {settings['epochs']} now, but this run is already {place}.")
    is_finished = state["epoch"] >= settings["epochs"]
    for name in changed:
        if is_finished and name not in AT_END and not {FREE, PRIVATE, LOCAL} & set(kept[name]):
            raise UserError(
                f"{flag(name)} is {settings[name]} now but was {before[name]}, and this run is finished after "
                f"{state['epoch']} epochs: give more --epochs to continue it, or leave the change out."
            )
    notes = [
        f"{flag(name)} is {settings[name]} from here on (was {value})."
        for name, value in changed.items()
        if not {FREE, PRIVATE} & set(kept[name])
    ]
    if state["data_mode"] != facts["data_mode"]:
        was, now = state["data_mode"], facts["data_mode"]
        notes.append(f"The data mode is {now} from here on (was {was}), so random crops differ.")
    if state["processes"] != facts["processes"]:
        notes.append(f"The run continues with {facts['processes']} process(es) (was {state['processes']}).")
    return notes
