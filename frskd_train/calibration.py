"""Choice of the images that the temperature of a student is fitted to: neither trained on nor scored."""

from dataclasses import replace
from pathlib import Path

from frskd_timm.errors import UserError
from frskd_train.data import ValidationData, load_validation
from frskd_train.errors import SettingsError
from frskd_train.parse import read_recipe
from frskd_train.report.evaluation import Temperature
from frskd_train.scores import Scorer
from frskd_train.settings import DataSettings

NONE = "No temperature: no training images were held out that are not scored here; --calibration-split names a split."


def find_temperature(
    scorer: Scorer, settings: DataSettings, data: ValidationData, run: Path | None = None
) -> tuple[Temperature | None, str]:
    """Fit the temperature, and say to what, or why there is none.

    Args:
        scorer: It has the student.
        settings: The dataset; its `calibration_split` is used if it is given.
        data: The images that are scored.
        run: The run that trained the student. If it held out a part of its training images, which are not those
            scored, these are used by default.
    """
    if settings.calibration_split is None and run is None:
        return None, NONE
    try:
        if settings.calibration_split is not None:
            chosen = replace(settings, val_split=settings.calibration_split, calibration_split=None)
        else:
            chosen = read_recipe(str(run / "config.yaml")).data  # type: ignore[operator]
            if chosen.val_split is not None:
                return None, NONE
        task = "segmentation" if data.val.split.targets.is_dense else "classification"
        held_out = load_validation(chosen, data.preprocessing, task=task, class_names=data.class_names)
        split = held_out.val.split
        is_scored = (held_out.name, held_out.val_split) == (data.name, data.val_split)
        if settings.calibration_split is None and (is_scored or len(split) == len(split.images.dataset)):
            return None, NONE
        temperature = scorer.fit_temperature(held_out)
    except (UserError, SettingsError) as error:
        return None, f"No temperature: {error}"
    origin = f"{temperature.images} images of split {temperature.split} of {temperature.dataset}"
    return temperature, f"Fitted to {origin}, which were not trained on."
