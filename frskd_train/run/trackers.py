"""Trackers of a run (`--report-to`): settings, losses, scores and pictures."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from frskd_timm.errors import UserError, first_line
from frskd_train.errors import suggest
from frskd_train.settings import Settings, flat

# How the trackers call the name of a run; the others have only a project.
RUN_NAME = {
    "wandb": "name",
    "trackio": "name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "clearml": "task_name",
}


def chosen_trackers(report_to: Iterable[str]) -> list[str]:
    """Return the names in `--report-to`; raise UserError if a tracker is unknown or not installed."""
    names = [name for word in report_to for name in word.split(",") if name]
    for name in names:
        if name not in LoggerType.list():
            hint = suggest(name, LoggerType.list(), f"choose from {', '.join(LoggerType.list())}")
            raise UserError(f"--report-to {name} is not a tracker that Accelerate supports{hint}")
        if name not in ("all", *map(str, get_available_trackers())):
            raise UserError(f"--report-to {name} needs a package that is not installed: pip install {name}.")
    return names


def start_trackers(accelerator: Accelerator, settings: Settings, folder: Path) -> None:
    """Start the trackers that the accelerator was created with; raise UserError if one of them cannot start.

    They store the settings as hyperparameters; those that write files write them into the run's folder.
    """
    accelerator.project_configuration.logging_dir = str(folder)
    name = settings.run.run_name or folder.resolve().name
    names = {tracker: {key: name} for tracker, key in RUN_NAME.items()}
    names["trackio"]["resume"] = "allow"
    plain = bool | int | float | str  # every tracker can store these
    values = {key: value if isinstance(value, plain) else str(value) for key, value in flat(settings).items()}
    try:
        accelerator.init_trackers(settings.run.project, values, init_kwargs=names)
    except Exception as error:  # each tracker has its own, for instance if there is no account
        raise UserError(f"A tracker of --report-to could not start: {first_line(error)}.") from error


def log(accelerator: Accelerator, values: Mapping[str, Any], step: int) -> None:
    """Log numbers with every tracker; one that fails is not used any further."""
    _with_each(accelerator, lambda tracker: tracker.log(values, step=step))


def log_pictures(accelerator: Accelerator, paths: Iterable[Path], step: int) -> None:
    """Log pictures, named as their files, with every tracker that shows pictures."""
    for path in paths:
        _with_each(accelerator, partial(_log_picture, path=path, step=step))


def end(accelerator: Accelerator) -> None:
    """End the run for all trackers, and for the processes of the accelerator."""
    _with_each(accelerator, lambda tracker: tracker.finish())
    accelerator.trackers.clear()
    accelerator.end_training()


def _with_each(accelerator: Accelerator, call: Callable[[Any], None]) -> None:
    """Call a function with each tracker, and remove a tracker that fails."""
    for tracker in list(accelerator.trackers):
        try:
            call(tracker)
        except Exception as error:  # for instance if a server is gone; training does not depend on it
            accelerator.trackers.remove(tracker)
            print(f"Tracker {tracker.name} failed and is not used any further: {first_line(error)}.")


def _log_picture(tracker: Any, path: Path, step: int) -> None:
    name = path.stem
    if tracker.name in ("trackio", "wandb", "swanlab"):  # their classes of pictures have the same name
        tracker.log({name: import_module(tracker.name).Image(str(path))}, step=step)
    elif hasattr(tracker, "log_images"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: pixels if tracker.name == "aim" else pixels[None]}, step=step, **layout)
