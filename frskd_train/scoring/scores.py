"""Everything that one pass over a split tells about a student: see `frskd_train.report.evaluation` for the result.

Importing torchmetrics takes more than a second, so this module is imported only where a student is scored.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from frskd_timm.errors import UserError
from frskd_timm.export.config import output_names
from frskd_timm.losses.functional import IGNORED
from frskd_timm.segmentation.evaluator import iou_of_classes
from frskd_train.data import ValidationData, load_validation
from frskd_train.data.corruptions import CORRUPTIONS, SEVERITIES
from frskd_train.errors import SettingsError
from frskd_train.report.evaluation import SCHEMA, ClassScores, Evaluation, Temperature
from frskd_train.report.score_names import SCORE_NAMES
from frskd_train.scoring.accumulators import (
    CalibrationMetric,
    Confusions,
    Mistakes,
    TemperatureMetric,
    finite,
    predicted,
    read_bins,
)
from frskd_train.scoring.evaluate import UNSCORED
from frskd_train.settings import DataSettings, HeldOut

NONE = "No temperature: there are no held-out images besides those scored here; --calibration-split names a split."


class Scorer:
    """Scores of one student on the images of all processes; every process has to make the same calls.

    The student is in evaluation mode on the accelerator's device. `flip`: use the mean of the logits of each image and
    of its mirror image.
    """

    def __init__(
        self,
        student: nn.Module,
        accelerator: Accelerator,
        batch_size: int,
        channels_last: bool = True,
        flip: bool = False,
    ) -> None:
        self.student, self.accelerator, self.flip = student, accelerator, flip
        self.classes: int = student.num_classes  # type: ignore[assignment]
        self.options: dict[str, Any] = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        self.options |= {"batch_size": batch_size, "device": accelerator.device, "channels_last": channels_last}

    def fit_temperature(self, data: ValidationData) -> Temperature:
        """Fit the temperature to images that are neither trained on nor scored; raise UserError if none can be read."""
        batches, metrics = data.val_batches(**self.options), MetricCollection({"temperature": TemperatureMetric()})
        found = self._pass(batches, metrics)
        images = sum(gather_object([len(batches.rows())]))
        if math.isnan(found["temperature"]):
            raise UserError(f"No image of split {data.val_split} could be read, or none has a label.")
        return Temperature(round(float(found["temperature"]), 4), data.name, data.val_split, images)

    def evaluate(
        self,
        data: ValidationData,
        model: str,
        fitted: tuple[Temperature | None, str] = (None, ""),
        corrupted: bool = False,
    ) -> Evaluation | None:
        """Score the student on a split, and if asked on its corrupted images; return None if no image could be read.

        The name of the model, and the temperature and note from `find_temperature`, are parts of the result.
        """
        temperature, note = fitted
        classes, is_dense = self.classes, data.task == "segmentation"
        metrics: dict[str, Metric | MetricCollection] = {"calibration": CalibrationMetric(is_dense=is_dense)}
        if not is_dense:
            metrics["top5"] = MulticlassAccuracy(classes, min(5, classes), average="micro", validate_args=False)
        if temperature is not None:
            metrics["calibrated"] = CalibrationMetric(temperature.value, is_dense)
        confusions, mistakes = Confusions(classes), Mistakes()
        collectors = (confusions,) if is_dense else (confusions, mistakes)
        batches, start = data.val_batches(**self.options), time.perf_counter()
        found = self._pass(batches, MetricCollection(metrics, compute_groups=False), collectors)
        seconds = time.perf_counter() - start
        images = sum(gather_object([len(batches.rows())]))
        confusion = confusions.gather()
        if not len(confusion):
            return None
        names = output_names(dict(enumerate(data.class_names)), classes)
        per_class = _per_class(names, confusion, is_dense)
        present = [row for row in per_class if row.support]
        calibration, pre = read_bins(found["calibration"]), data.preprocessing
        true, given, counts = confusion.unbind(dim=1)
        accuracy = round(100 * int(counts[true == given].sum()) / int(counts.sum()), 4)
        scores: dict[str, Any]
        sizes: set[tuple[int, ...]] = {pre.input_size[1:]}
        if is_dense:  # images keep their size, which is 0 if they cannot be read
            sizes = {size for size in data.val.source.sizes if size != (0, 0)}
            overlaps = [row.iou for row in per_class if row.iou is not None]
            scores = {"miou": round(mean(overlaps), 4), "pixel_accuracy": accuracy}
        else:
            scores = {"top1": accuracy, "top5": round(100 * float(found["top5"]), 4)}
            scores |= {name: getattr(pre, name) for name in ("crop_pct", "crop_mode", "interpolation")}
        height, width = sizes.pop() if len(sizes) == 1 else (None, None)
        return Evaluation(
            schema=SCHEMA,
            task=data.task,
            model=model,
            dataset=data.name,
            split=data.val_split,
            images=images,
            loss=calibration.nll,
            macro={
                name: round(mean(getattr(row, name) for row in present), 4) for name in ("precision", "recall", "f1")
            },
            class_names=names,
            per_class=per_class,
            confusion=[*map(tuple, confusion.tolist())],
            calibration=calibration,
            calibrated=read_bins(found["calibrated"]) if temperature is not None else None,
            temperature=temperature,
            temperature_note=note,
            mistakes=mistakes.gather(batches.rows().tolist()),
            images_per_second=round(images / seconds, 1),
            img_size=height,
            img_width=width if width != height else None,
            param_count=sum(p.numel() for p in self.student.parameters()),
            tta="flip" if self.flip else None,
            corruptions=self._score_corrupted(data) if corrupted else {},
            **scores,
        )

    def _score_corrupted(self, data: ValidationData) -> dict[str, list[dict[str, Any]]]:
        score = SCORE_NAMES[data.task].score
        corruptions: dict[str, list[dict[str, Any]]] = {name: [] for name in CORRUPTIONS}
        for name, severity in product(CORRUPTIONS, SEVERITIES):
            found = self.evaluate(data.corrupted(name, severity), name)
            assert found is not None
            values = {score: getattr(found, score), "loss": found.loss, "ece": found.calibration.ece}
            corruptions[name].append({"severity": severity, **values})
        return corruptions

    @torch.no_grad()
    def _pass(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        metrics: MetricCollection,
        collectors: Sequence[Confusions | Mistakes] = (),
    ) -> dict[str, Tensor]:
        """Show the logits [N, K] and classes [N] of each batch to metrics and collectors.

        Returns the metrics over all processes.
        """
        metrics.to(self.accelerator.device)
        for images, target in batches:
            with self.accelerator.autocast():
                logits = self._predict(images)
            is_dense = target.ndim > 1
            labelled = target != IGNORED if is_dense else slice(None)  # a class may have that number
            logits, target = logits.float().movedim(1, -1)[labelled], target[labelled]
            if len(target):
                metrics.update(logits, target)
                given = predicted(logits, is_dense)
                for collector in collectors:
                    collector.add(logits, given, target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a process that has no image
            return {name: value.cpu() for name, value in metrics.compute().items()}

    def _predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.student(images)
        if self.flip:
            mirrored: Tensor = self.student(images.flip(-1))
            logits = (logits + (mirrored.flip(-1) if mirrored.ndim > 2 else mirrored)) / 2
        return logits


def refuse_unscored(found: Evaluation | None, model: str) -> Evaluation:
    """Return the evaluation; raise UserError if no image was scored or the student's outputs are not finite."""
    if found is None:
        raise UserError(f"{model} was {UNSCORED}.")
    if not math.isfinite(found.loss):
        raise UserError(f"The outputs of {model} are not finite: its weights or the 'std' in its config are wrong.")
    return found


def _per_class(names: Sequence[str], confusion: Tensor, is_dense: bool) -> list[ClassScores]:
    true, given, counts = confusion.unbind(dim=1)
    is_right = true == given
    support, given, hits = (
        torch.zeros(len(names), dtype=torch.long).index_add_(0, place, count)
        for place, count in ((true, counts), (given, counts), (true[is_right], counts[is_right]))
    )
    overlaps = [finite(value) if is_dense else None for value in iou_of_classes(hits, given, support).tolist()]
    rates = (100 * torch.stack([hits / given, hits / support, 2 * hits / (support + given)]).nan_to_num()).T.tolist()
    return [
        ClassScores(name, round(precision, 4), round(recall, 4), round(f1, 4), count, overlap)
        for name, (precision, recall, f1), count, overlap in zip(names, rates, support.tolist(), overlaps, strict=True)
    ]


def find_temperature(
    scorer: Scorer,
    settings: DataSettings,
    data: ValidationData,
    find_spare: Callable[[], tuple[DataSettings, HeldOut | None]] | None = None,
) -> tuple[Temperature | None, str]:
    """Fit the temperature, and say to what, or why there is none.

    It is fitted to the `calibration_split` of the settings, or else to what `find_spare` returns: the images that the
    run that trained the student held out of its training images, unless these are the images that are scored (`data`).
    """
    given = settings.calibration_split
    try:
        chosen, held_out = find_spare() if find_spare and given is None else (settings, None)
        if given is not None:
            chosen = replace(settings, val_split=given, calibration_split=None)
        elif held_out is None or (
            held_out.split == data.val_split and Path(settings.dataset).resolve() == Path(chosen.dataset).resolve()
        ):
            return None, NONE
        # One process alone must not stop at an image that it cannot read.
        chosen = replace(chosen, bad_images="skip")
        options: dict[str, Any] = {"task": data.task, "classes": data.class_names, "held_out": held_out}
        found = load_validation(chosen, data.preprocessing, **options)
        temperature = scorer.fit_temperature(found)
    except (UserError, SettingsError) as error:
        return None, f"No temperature: {error}"
    origin = f"{temperature.images} images of split {temperature.split} of {temperature.dataset}"
    notes = [note for note in (*found.notes, *found.bad_images()) if note not in data.notes]
    return temperature, " ".join([f"Fitted to {origin}, which were not trained on.", *notes])
