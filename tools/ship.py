"""Ship the weights of a finished run with the package: `python -m tools.ship RUN --baseline RUN_CE`.

The published scores are those of the shipped file in float32, as measured by `validate.py`; the baseline is scored
again in the same way.
"""

import argparse
import copy
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.models import is_model, model_entrypoint
from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CARD, DATASET_CARD, METRICS, RECIPE
from frskd_timm.export.load import read_student
from frskd_timm.export.student import export_student
from frskd_timm.models._pretrained import shipped_cfg
from frskd_train.errors import SettingsError
from frskd_train.report.answers import confusion_picture
from frskd_train.report.card import write_card
from frskd_train.report.evaluation import Evaluation
from frskd_train.report.metrics import Metrics, SeedRuns, read_metrics
from frskd_train.settings import DataSettings, LoopSettings, Settings, flat
from frskd_train.settings.parse import read_recipe
from frskd_train.settings.recipe import SETTINGS, comparable, differences, repeat_note, write_recipe
from frskd_train.system.device import start_accelerator
from frskd_train.system.exits import exit_with_error
from tools import zoo
from tools.scoring import (
    added,
    corruption_scores,
    evaluate,
    load,
    own_run,
    read_runs,
    sample_scores,
    score_runs,
    scores_on,
    tidy,
)

HALF_MAY_COST = 0.05  # largest loss of top-1 in points by half precision; otherwise float32 ships
PICTURE_WIDTH = 1000  # pixels


def ship(
    run: str | Path,
    *,
    repeats: Sequence[str | Path] = (),
    baseline: Sequence[str | Path] = (),
    dataset: str | None = None,
    dataset_name: str | None = None,
    hub_dataset: str | None = None,
    also: Sequence[str] = (),
    for_hub: bool = False,
    threads: int | None = None,
    root: Path = zoo.ROOT,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the folder of weights `MODEL.TAG`, the row of the results, and the zoo's card.

    Args:
        run: Folder of a finished run of a student of this package.
        repeats: Folders of finished runs of the same recipe with other seeds.
        baseline: Folders of `--method ce` runs of the same recipe. Without one, the baseline of the weights already
            shipped under this name is kept, if their recipe differs only in the method.
        dataset: Current location of the data, if it differs from that in the run.
        dataset_name: Readable name of the data for card and results.
        hub_dataset: The data's id on the Hub, for the card.
        also: Further datasets with the same classes, to score the student on for its card.
        for_hub: Write to `hub/students/`, which is not part of the wheel, instead of `frskd_timm/weights/`.
        threads: CPU threads.
        root: The repository.
        say: Called with each line of the report.

    Returns:
        The folder.

    Raises:
        UserError: The run is not finished or has no registered student, its score is not reproduced, or another
            run was trained with another recipe.
    """
    run = Path(run)
    settings, metrics = _finished(run)
    name = metrics.model.split(".")[0]
    if not is_model(name) or not model_entrypoint(name).__module__.startswith("frskd_timm."):
        raise UserError(f"{run} trained {metrics.model}; weights ship only for names that this package registers.")
    accelerator = start_accelerator(LoopSettings(amp=False, threads=threads))
    data = dataclasses.replace(settings.data, dataset=dataset or settings.data.dataset)
    student = read_student(run / "student")
    model = student.load()
    baseline = baseline or settings.run.baseline  # whose scores in the run's metrics are in mixed precision
    plain = read_runs(baseline, settings, metrics, "ce", "--baseline")  # before anything is scored, which takes long
    others = read_runs(repeats, settings, metrics, metrics.method, "--repeats")
    for place in also:
        load(model, DataSettings(place))
    whole, rounded = evaluate(model, data, accelerator, name), _rounded(model)
    top1 = tidy(whole)["top1"]
    # the run's own score was in mixed precision
    if abs(top1 - (before := (metrics.student or {})["top1"])) > 0.3:
        raise UserError(
            f"{run} ended with {before:.2f}% top-1, but its student scores {top1:.2f}% on these data: they are not the "
            "run's."
        )
    halved = evaluate(rounded, data, accelerator, name)
    half = round(top1 - tidy(halved)["top1"], 4) <= HALF_MAY_COST
    say(f"Top-1 is {top1:.2f}% in float32, {tidy(halved)['top1']:.2f}% with parameters in float16.")
    folder = root / (zoo.WAITING if for_hub else Path("frskd_timm", "weights")) / f"{name}.{metrics.tag}"
    kept = metrics.baseline
    if plain:
        kept = score_runs(baseline, plain, data, accelerator)
    elif kept is None:
        kept = _kept_baseline(folder, settings, metrics.changes)
        say(f"The baseline of {folder} is {'kept' if kept else 'missing or from another recipe'}.")
    cfg = student.config["pretrained_cfg"]
    final, evaluation = (rounded, halved) if half else (model, whole)
    every = None
    if others:
        every = added(own_run(metrics, tidy(evaluation)["top1"]), score_runs(repeats, others, data, accelerator))
    shipped = dataclasses.replace(
        metrics,
        student=tidy(evaluation),
        dataset=dataclasses.replace(metrics.dataset, name=dataset_name or metrics.dataset.name, hub_id=hub_dataset),
        baseline=kept,
        repeats=every,
        stored_in="float16" if half else "float32",
        shipped_as=None if for_hub else folder.name,
        crop_pct=cfg["crop_pct"],
        interpolation=cfg["interpolation"],
        sample=sample_scores(final, accelerator),
        further=[scores_on(name, final, accelerator) for name in also],
        corruptions=corruption_scores(final, data, accelerator),
    )
    _write(folder, run, model, half, shipped, evaluation, settings, Path(data.dataset) / CARD)
    again = timm.create_model(name, pretrained=True, pretrained_cfg=shipped_cfg(folder))
    student.verify(again, tolerance=2e-2 if half else 1e-4)
    row = zoo.record(shipped, root)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    say(f"Wrote {folder} ({size / 1e6:.1f} MB, top-1 {row['top1']}%), the results and the zoo's card.")
    return folder


def _finished(run: Path) -> tuple[Settings, Metrics]:
    for name in (METRICS, SETTINGS, "student/config.json"):
        if not (run / name).is_file():
            raise UserError(f"{run} is not a finished run: it has no {name}.")
    return read_recipe(str(run / SETTINGS)), read_metrics(run / METRICS)


def _rounded(model: nn.Module) -> nn.Module:
    """Return a copy of the model with parameters rounded to float16."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model


def _kept_baseline(folder: Path, settings: Settings, changes: list[str]) -> SeedRuns | None:
    """Return the baseline that ships in `folder`, if it has this recipe and the same changes during the run."""
    if not (folder / RECIPE).is_file():
        return None
    # A published recipe does not name a local dataset.
    before = comparable(flat(read_recipe(str(folder / RECIPE))))
    if set(differences(comparable(flat(settings)), before)) - {"dataset"}:
        return None
    shipped = read_metrics(folder / METRICS)
    return shipped.baseline if shipped.changes == changes else None


def _write(
    folder: Path,
    run: Path,
    model: nn.Module,
    half: bool,
    metrics: Metrics,
    evaluation: Evaluation,
    settings: Settings,
    dataset_card: Path,
) -> None:
    config = read_student(run / "student").config
    cfg = config["pretrained_cfg"]

    def complete(aside: Path) -> None:
        for name in ("attention.png", "curves.png", "examples.png"):
            if (run / name).is_file():
                _shrink(run / name, aside / name)
        note = repeat_note(metrics.machine.processes, settings.loop.batch_size)
        heading = "\n".join([f"The settings that made {metrics.model}, tag {metrics.tag}.", *note, *metrics.changes])
        (aside / RECIPE).write_text(write_recipe(settings, heading, portable=True), encoding="utf-8")
        (aside / METRICS).write_text(metrics.to_json(), encoding="utf-8")
        picture = confusion_picture(evaluation.confusion_matrix(), evaluation.class_names, aside / "confusion.png")
        _shrink(picture, picture)
        if dataset_card.is_file():
            shutil.copy(dataset_card, aside / DATASET_CARD)
        write_card(aside, metrics, evaluation)

    folder.parent.mkdir(parents=True, exist_ok=True)
    export_student(
        model,
        folder,
        tag=metrics.tag,
        input_size=cfg["input_size"],
        mean=cfg["mean"],
        std=cfg["std"],
        interpolation=cfg["interpolation"],
        crop_pct=cfg["crop_pct"],
        crop_mode=cfg["crop_mode"],
        label_names=config.get("label_names") or None,
        license=cfg.get("license"),
        dataset=metrics.dataset.name,
        method=metrics.method,
        half=half,
        finish=complete,
    )


def _shrink(picture: Path, target: Path) -> None:
    """Save a picture with few colours, on white, at most `PICTURE_WIDTH` wide."""
    with Image.open(picture) as file:
        image = file.convert("RGBA")
    flat_image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.width > PICTURE_WIDTH:
        size = (PICTURE_WIDTH, round(image.height * PICTURE_WIDTH / image.width))
        flat_image = flat_image.resize(size, Image.Resampling.LANCZOS)
    flat_image.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    """Parse the arguments and write weights, results and the zoo's card."""
    parser = argparse.ArgumentParser(description="Write weights, results and tables from a finished run.")
    parser.add_argument("run", type=Path, help="folder of the finished run")
    seeds = "runs of the same recipe with other seeds"
    parser.add_argument("--repeats", type=Path, nargs="+", default=[], help=seeds)
    plain = "runs of the same recipe with --method ce; by default those of the replaced weights, if they fit"
    parser.add_argument("--baseline", type=Path, nargs="+", default=[], help=plain)
    parser.add_argument("--dataset", help="current location of the data, if it differs from that in the run")
    parser.add_argument("--dataset-name", help="readable name of the data, for card and results")
    parser.add_argument("--hub-dataset", metavar="OWNER/NAME", help="the data's id on the Hub, for the card")
    parser.add_argument("--for-hub", action="store_true", help=f"write to {zoo.WAITING}/, which is not in the wheel")
    parser.add_argument("--also", nargs="+", default=[], help="further datasets to score it on, with the same classes")
    parser.add_argument("--threads", type=int, help="CPU threads; all cores by default")
    arguments = parser.parse_args()

    try:
        ship(**vars(arguments))
    except (UserError, SettingsError) as error:
        exit_with_error(error)


if __name__ == "__main__":
    main()
