"""Check whether a run can be resumed with the current settings, data and processes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from frskd_timm.errors import UserError
from frskd_train.constraints import FIXED, FREE, PRIVATE
from frskd_train.settings import DataSettings, Settings, declared, flag


def check_resume(state: Mapping[str, Any], settings: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Compare the run of a checkpoint with the current one.

    Args:
        state: The JSON part of the checkpoint.
        settings: All current settings by name.
        facts: Other current values that a run depends on: `fingerprint`, `train_rows` and `data_mode` of the data,
            `global_batch` (images per step over all processes), `processes`.

    Returns:
        One sentence for each change that is applied.

    Raises:
        UserError: A change is not possible; the message has both values.
    """
    before = state["settings"]
    changed = {name: value for name, value in before.items() if name in settings and settings[name] != value}
    kept = declared(Settings)
    for name in changed:
        if FIXED in kept[name]:
            raise UserError(
                f"{flag(name)} is {settings[name]} now but was {before[name]} in this run, and has to stay the same."
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
            f"There are {facts['train_rows']} training images now but there were {state['train_rows']} in this run: "
            "other images are skipped as unreadable; restore --bad-images, --data-mode and the images."
        )
    if state["global_batch"] != facts["global_batch"]:
        raise UserError(
            f"A step uses {facts['global_batch']} images now ({facts['processes']} process(es)) but used "
            f"{state['global_batch']} in this run; {_same_batch(state['global_batch'], facts['processes'])}."
        )
    if settings["epochs"] < state["epoch"] + (state["step"] > 0):
        raise UserError(f"--epochs is {settings['epochs']} now, but this run is already in epoch {state['epoch'] + 1}.")
    notes = [
        f"{flag(name)} is {settings[name]} from here on (was {value})."
        for name, value in changed.items()
        if not {FREE, PRIVATE} & set(kept[name])
    ]
    for name, sentence in (
        ("data_mode", "The data mode is {now} from here on (was {was}), so random crops differ."),
        ("processes", "The run continues with {now} process(es) (was {was})."),
    ):
        if state[name] != facts[name]:
            notes.append(sentence.format(now=facts[name], was=state[name]))
    return notes


def _same_batch(images: int, processes: int) -> str:
    """Describe how to get the same number of images per step."""
    if images % processes == 0:
        return f"set --batch-size {images // processes}"
    possible = max(count for count in range(1, processes) if images % count == 0)
    return (
        f"{images} images cannot be divided among {processes} processes: "
        f"start {possible} process(es) with --batch-size {images // possible}"
    )
