"""Trackers of a run (`--report-to`): settings, losses, scores and pictures."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from frskd_timm.errors import UserError, first_line
from frskd_train.run_folder import RunFolder
from frskd_train.settings import Settings, flat

# How the trackers call the name of a run; the others have only a project.
RUN_NAME = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}


class Trackers:
    """The trackers that the accelerator was created with, if any.

    Args:
        accelerator: Knows the trackers; files of trackers that write some are put into the run's folder.
        settings: Settings of the run, which are stored as hyperparameters.
        folder: Folder of the run.

    Raises:
        UserError: A tracker could not start.
    """

    def __init__(self, accelerator: Accelerator, settings: Settings, folder: RunFolder) -> None:
        self.accelerator = accelerator
        accelerator.project_configuration.logging_dir = str(folder.path)
        name = settings.run.run_name or folder.path.name
        names = {tracker: {key: name} for tracker, key in RUN_NAME.items()}
        names["trackio"]["resume"] = "allow"
        values = {key: _plain(value) for key, value in flat(settings).items()}
        try:
            accelerator.init_trackers(settings.run.project, values, init_kwargs=names)
        except Exception as error:  # each tracker has its own, for instance if there is no account
            raise UserError(f"A tracker of --report-to could not start: {first_line(error)}.") from error

    def log(self, values: Mapping[str, float], step: int, prefix: str = "") -> None:
        """Log numbers at an update."""
        self.accelerator.log({prefix + name: value for name, value in values.items()}, step=step)

    def log_pictures(self, pictures: Iterable[Path], step: int) -> None:
        """Log pictures with every tracker that shows pictures."""
        for path in pictures:
            for tracker in self.accelerator.trackers:
                _log_picture(tracker, path, step)


def _log_picture(tracker: GeneralTracker, path: Path, step: int) -> None:
    if tracker.name in ("trackio", "wandb", "swanlab"):  # their classes of pictures have the same name
        tracker.log({path.stem: import_module(tracker.name).Image(str(path))}, step=step)
    elif hasattr(tracker, "log_images"):
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({path.stem: np.asarray(Image.open(path).convert("RGB"))[None]}, step=step, **layout)


def _plain(value: Any) -> str | float | bool:
    """Return a value that every tracker can store: numbers and booleans as they are, others as text."""
    return value if isinstance(value, bool | int | float | str) else str(value)
