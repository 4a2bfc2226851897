"""`frskd validate` and `validate.py`: score a model on a dataset."""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from frskd_train.settings import OWN_DATA, DataSettings, EvaluationSettings, HeldOut, LoopSettings, ScoredDataSettings
from frskd_train.settings.parse import parse_evaluation
from frskd_train.settings.recipe import SETTINGS, read_yaml
from frskd_train.system.exits import exit_process


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one evaluation and end the process."""
    settings = parse_evaluation(sys.argv[1:] if arguments is None else arguments)
    from frskd_train.system.lost_processes import reporting_lost_processes  # imports torch

    with reporting_lost_processes():
        evaluate(settings)
    exit_process(0)


def evaluate(settings: EvaluationSettings) -> None:
    """Load the model and the data, print the scores and store them; for a run's student in the run's folder.

    Raises:
        UserError: The model or the data cannot be used, or the scores are not finite or cannot be stored.
    """
    # Imported here, so that --help and a wrong flag answer at once.
    from frskd_timm.errors import UserError
    from frskd_train.found_student import load_for_evaluation
    from frskd_train.report.score_files import check_output, summary, write_scores
    from frskd_train.scoring.scores import Scorer, find_temperature, refuse_unscored
    from frskd_train.system.convolutions import adapt_convolutions
    from frskd_train.system.device import start_accelerator
    from frskd_train.system.disk import disk_errors
    from frskd_train.tasks import job_of

    loop = LoopSettings(amp=settings.amp, amp_dtype=settings.amp_dtype, threads=settings.threads)
    accelerator = start_accelerator(loop, training=False)
    model, run = load_for_evaluation(settings.model)
    chosen, held_out = chosen_data(settings.data, run)
    model.to(accelerator.device).eval()
    adapt_convolutions(model)
    job = job_of(model)
    try:
        data = job.load_validation(chosen, settings.fit, model, held_out)
    except UserError as error:
        on_sample = chosen.dataset == DataSettings().dataset and settings.data.dataset == OWN_DATA
        if not on_sample or "class" not in str(error) or settings.fit.given():
            raise
        raise UserError(f"{error} These are the images of the included sample; --dataset chooses others.") from error
    if settings.data.val_fraction is not None and not data.part:
        raise UserError(f"--val-fraction has no effect: all images of split {data.val_split} are scored; leave it out.")
    output = check_output(settings.output or (run and run / folder_name(settings, data.name, run)))
    if settings.pictures and (output is None or output.suffix == ".json"):
        raise UserError("--pictures needs a folder to write them to: give --output FOLDER.")
    batch_size = settings.batch_size or (16 if data.task == "segmentation" else 256)
    scorer = Scorer(model, accelerator, batch_size, flip=settings.tta == "flip")
    reading = {name: getattr(chosen, name) for name in ("data_mode", "memory_limit", "workers")}
    of_run = partial(chosen_data, ScoredDataSettings(**reading), run)
    fitted = find_temperature(scorer, chosen, data, of_run)
    found = scorer.evaluate(data, settings.model, fitted, corrupted=settings.corruptions)
    notes = *data.notes, *data.bad_images()  # all processes know of images that were left out
    if not accelerator.is_main_process:
        return
    if data.part:
        print(data.part)
    for text in notes:
        print(text)
    evaluation = refuse_unscored(found, settings.model)
    print(summary(evaluation))
    if output is not None:
        with disk_errors(output):
            write_scores(evaluation, output, pictures=settings.pictures)
        print(f"Stored in {output}.")


def _trained_on(run: Path | None) -> tuple[dict[str, Any], str]:
    """Return the settings of a run, some of which may be unknown today, and its dataset."""
    trained = {} if run is None else read_yaml(str(run / SETTINGS))
    return trained, str(trained.get("dataset") or DataSettings().dataset)


# Settings of the data that change which images are scored, or against which labels.
_CHOICES = (
    *("dataset_config", "dataset_revision", "val_fraction", "calibration_split"),
    *("input_key", "target_key", "class_map", "ignore_label", "bad_images"),
)


def folder_name(settings: EvaluationSettings, dataset: str, run: Path) -> str:
    """Return a name that differs between datasets, and between settings that were given and change the scores."""
    amp = "amp" if settings.amp_dtype == "auto" else f"amp-{settings.amp_dtype}"
    switches = {amp: settings.amp, settings.tta: settings.tta != "none", "corruptions": settings.corruptions}
    data, default, place = settings.data, ScoredDataSettings(), Path(settings.data.dataset).resolve()
    if data.dataset != OWN_DATA and place.exists() and place != Path(_trained_on(run)[1]).resolve():
        dataset = "-".join(place.parts[1:][-2:])  # a/test and b/test are different data
    other = {name: getattr(data, name) for name in _CHOICES if getattr(data, name) != getattr(default, name)}
    chosen = {
        name: "-".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in (other | settings.fit.given()).items()
    }
    names = [
        *("evaluation", dataset, data.train_split, data.val_split),
        *(name if value is True else f"{name}-{value}" for name, value in chosen.items()),
        *(name for name, is_on in switches.items() if is_on),
    ]
    name = "-".join(re.sub(r"[^\w.]+", "-", name) for name in names if name)
    return re.sub(r"\.(?=[A-Za-z]\w*$)", "-", name)  # the end of a file's name


def chosen_data(given: ScoredDataSettings, run: Path | None) -> tuple[DataSettings, HeldOut | None]:
    """Return the data to score on: by default those of the run, as it validated on them, or the included sample.

    On the run's dataset, settings that are not given are those of the run; other datasets are used as given. The images
    that the run held out, if these are meant, are returned as well.

    Raises:
        UserError: The run held out another part of its images than the one to be scored.
    """
    trained, own = _trained_on(run)
    values = asdict(given) | ({"dataset": own} if given.dataset == OWN_DATA else {})
    same = Path(values["dataset"]).resolve() == Path(own).resolve()
    versions, held_out = ("dataset_config", "dataset_revision"), None
    if run is not None and same and all(values[name] in (None, trained.get(name)) for name in versions):
        names = *_CHOICES, "train_split", "val_split"
        known = {name: trained.get(name) for name in names if values[name] is None}
        values |= {name: value for name, value in known.items() if isinstance(value, (str, float))}
        if isinstance(labels := known.get("ignore_label"), list):
            values["ignore_label"] = tuple(labels)
        if given.val_split and given.val_split == known.get("calibration_split"):
            values["calibration_split"] = None
        from frskd_timm.errors import UserError  # imports torch
        from frskd_timm.export.folder import METRICS
        from frskd_train.report.metrics import read_metrics

        facts = read_metrics(run / METRICS).dataset
        if facts.held_out:
            fraction = trained.get("val_fraction", values["val_fraction"])
            if values["val_split"] is None and values["val_fraction"] != fraction:
                raise UserError(
                    f"The run held out {fraction:g} of its images, not {values['val_fraction']:g}: leave out "
                    f"--val-fraction, or give --val-split {facts.split} to score all images."
                )
            if values["val_split"] is None and values["train_split"] in (None, facts.split):
                held_out = facts.held_out_images
    return DataSettings(**{name: value for name, value in values.items() if value is not None}), held_out
