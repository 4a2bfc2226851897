"""Everything that one pass over a split tells about a student: see `frskd_train.report.evaluation` for the result.

Importing torchmetrics takes more than a second, so this module is imported only where a student is scored.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from frskd_timm.segmentation.losses import IGNORED
from frskd_train.data import ValidationData
from frskd_train.report.evaluation import Calibration, ClassScores, Evaluation, Mistake, Temperature

_RATES = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
BINS = 15  # of the confidence, as in Guo et al., 2017
KEPT = 100  # mistakes
TEMPERATURES = torch.logspace(-1, 1, 233)  # in steps of 2%
NO_HELD_OUT_IMAGES = "No temperature: no training images were held out that are not scored here."


class CalibrationMetric(Metric):
    """Sums for `Calibration`, of logits divided by a temperature. torchmetrics' own keeps every confidence."""

    bins: Tensor
    sums: Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.add_state("bins", torch.zeros(BINS, 3, dtype=torch.float64), "sum")  # samples, confidence, hits
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), "sum")  # NLL, Brier score

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add logits [N, K] and classes [N]."""
        logarithms = (logits / self.temperature).log_softmax(dim=1)
        probabilities = logarithms.exp()
        confidence, given = probabilities.max(dim=1)
        own = probabilities.gather(1, target[:, None])[:, 0]
        brier = probabilities.square().sum(dim=1) - 2 * own + 1
        self.sums += torch.stack([F.nll_loss(logarithms, target, reduction="sum"), brier.sum()])
        confidence = confidence.nan_to_num().double()
        place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        self.bins.index_add_(0, place, torch.stack([torch.ones_like(confidence), confidence, given == target], dim=1))

    def compute(self) -> Tensor:
        """Return the bins, followed by NLL and Brier score."""
        return torch.cat([self.bins.flatten(), self.sums])


class TemperatureMetric(Metric):
    """The temperature with the smallest NLL."""

    losses: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("losses", torch.zeros(len(TEMPERATURES), dtype=torch.float64), "sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add logits [N, K] and classes [N]."""
        values = (F.cross_entropy(logits / value, target, reduction="sum") for value in TEMPERATURES.tolist())
        self.losses += torch.stack([*values])

    def compute(self) -> Tensor:
        """Return the temperature."""
        return TEMPERATURES[int(self.losses.argmin())]


class Scorer:
    """Scores of one student on the images of all processes; every process has to make the same calls.

    Args:
        student: The student, in evaluation mode on the accelerator's device.
        accelerator: Device, precision and processes.
        batch_size: Images per batch.
        channels_last: Memory format of the images.
    """

    def __init__(
        self, student: nn.Module, accelerator: Accelerator, batch_size: int, channels_last: bool = True
    ) -> None:
        self.student, self.accelerator = student, accelerator
        self.classes: int = student.num_classes  # type: ignore[assignment]
        self.options: dict[str, Any] = {
            "batch_size": batch_size,
            "rank": accelerator.process_index,
            "world_size": accelerator.num_processes,
            "device": accelerator.device,
            "channels_last": channels_last,
        }

    def fit_temperature(self, data: ValidationData) -> Temperature:
        """Fit the temperature to images that were neither trained on nor are scored."""
        metrics = MetricCollection({"temperature": TemperatureMetric()})
        found = self._pass(data.val_batches(**self.options), metrics)
        return Temperature(round(float(found["temperature"]), 4), data.name, data.val_split, data.num_val)

    def evaluate(
        self, data: ValidationData, model: str, temperature: Temperature | None = None, note: str = NO_HELD_OUT_IMAGES
    ) -> Evaluation | None:
        """Score the student; return None if no image could be read.

        Args:
            data: The split to score.
            model: Name of the model in the result.
            temperature: From `fit_temperature`.
            note: Why there is no temperature.
        """
        classes, is_dense = self.classes, data.val.split.targets.is_dense
        options: dict[str, Any] = {"num_classes": classes, "validate_args": False}
        metrics: dict[str, Metric | MetricCollection] = {
            "confusion": MulticlassConfusionMatrix(**options),
            "calibration": CalibrationMetric(),
            **{name: kind(average=None, **options) for name, kind in _RATES.items()},
        }
        if not is_dense:
            metrics["top5"] = MulticlassAccuracy(top_k=min(5, classes), average="micro", **options)
        if temperature is not None:
            metrics["calibrated"] = CalibrationMetric(temperature.value)
            note = f"Fitted to {temperature.images} images of split {temperature.split} of {temperature.dataset}."
        mistakes = _Mistakes()
        batches, start = data.val_batches(**self.options), time.perf_counter()
        found = self._pass(batches, MetricCollection(metrics, compute_groups=False), None if is_dense else mistakes.add)
        seconds = time.perf_counter() - start
        images = sum(gather_object([len(batches.rows())]))
        confusion = found["confusion"]
        samples, hits = int(confusion.sum()), confusion.diagonal()
        if not samples:
            return None
        names = [*data.class_names, *(f"output {number}" for number in range(len(data.class_names), self.classes))]
        per_class = _per_class(names, found, is_dense)
        present = [row for row in per_class if row.support]
        calibration, pre = _calibration(found["calibration"]), data.preprocessing
        accuracy = round(100 * int(hits.sum()) / samples, 4)
        scores: dict[str, Any]
        if is_dense:
            overlaps = [row.iou for row in per_class if row.iou is not None]
            scores = {"miou": round(mean(overlaps), 4), "pixel_accuracy": accuracy}
        else:
            scores = {"top1": accuracy, "top5": round(100 * float(found["top5"]), 4)}
            scores |= {name: getattr(pre, name) for name in ("crop_pct", "crop_mode", "interpolation")}
        return Evaluation(
            schema=1,
            task="segmentation" if is_dense else "classification",
            model=model,
            dataset=data.name,
            split=data.val_split,
            images=images,
            loss=calibration.nll,
            macro={name: round(mean(getattr(row, name) for row in present), 4) for name in _RATES},
            class_names=names,
            per_class=per_class,
            confusion=confusion.tolist(),
            calibration=calibration,
            calibrated=_calibration(found["calibrated"]) if temperature is not None else None,
            temperature=temperature,
            temperature_note=note,
            mistakes=mistakes.gather(batches.rows().tolist()),
            images_per_second=round(images / seconds, 1),
            img_size=pre.input_size[1],
            param_count=sum(p.numel() for p in self.student.parameters()),
            **scores,
        )

    @torch.no_grad()
    def _pass(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        metrics: MetricCollection,
        watch: Callable[[Tensor, Tensor], None] | None = None,
    ) -> dict[str, Tensor]:
        """Update metrics with the logits [N, K] and classes [N] of each batch, and compute them over all processes."""
        metrics.to(self.accelerator.device)
        for images, target in batches:
            with self.accelerator.autocast():
                logits = self.student(images)
            labelled = target != IGNORED if target.ndim > 1 else slice(None)  # a class may have that number
            logits, target = logits.float().movedim(1, -1)[labelled], target[labelled]
            if len(target):
                metrics.update(logits, target)
                if watch is not None:
                    watch(logits, target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a process that has no image
            return {name: value.cpu() for name, value in metrics.compute().items()}


class _Mistakes:
    """The most confident mistakes of one process, by the place of the image among those read."""

    def __init__(self) -> None:
        self._seen = 0
        self._found = torch.empty(0, 4, dtype=torch.float64)  # confidence, place, true, given

    def add(self, logits: Tensor, target: Tensor) -> None:
        confidence, given = logits.softmax(dim=1).max(dim=1)
        place = torch.arange(self._seen, self._seen + len(target), device=target.device)
        self._seen += len(target)
        wrong = given != target
        found = torch.stack([value[wrong].double() for value in (confidence, place, target, given)], dim=1).cpu()
        found = torch.cat([self._found, found])
        self._found = found[found[:, 0].argsort(descending=True, stable=True)[:KEPT]]

    def gather(self, rows: list[int]) -> list[Mistake]:
        """Return the most confident mistakes of all processes; `rows` has the row of each image of this process."""
        own = [(score, rows[int(place)], int(true), int(given)) for score, place, true, given in self._found.tolist()]
        found = sorted(gather_object(own), key=lambda mistake: (-mistake[0], mistake[1]))[:KEPT]
        return [Mistake(row, true, given, round(confidence, 4)) for confidence, row, true, given in found]


def _per_class(names: Sequence[str], found: dict[str, Tensor], is_dense: bool) -> list[ClassScores]:
    confusion = found["confusion"]
    support, hits = confusion.sum(dim=1), confusion.diagonal()
    iou = 100 * hits / (support + confusion.sum(dim=0) - hits)  # NaN for a class that is never labelled or predicted
    rates = (100 * torch.stack([found[name] for name in _RATES])).T.tolist()
    return [
        ClassScores(
            name, round(precision, 4), round(recall, 4), round(f1, 4), count, _finite(overlap) if is_dense else None
        )
        for name, (precision, recall, f1), count, overlap in zip(
            names, rates, support.tolist(), iou.tolist(), strict=True
        )
    ]


def _calibration(found: Tensor) -> Calibration:
    """Convert the result of `CalibrationMetric`."""
    bins, sums = found[:-2].reshape(BINS, 3), found[-2:]
    count, confidence, hits = bins.unbind(dim=1)
    nll, brier = (sums / count.sum()).tolist()
    ece = (confidence - hits).abs().sum() / count.sum()
    means = ([_finite(value) for value in (part / count).tolist()] for part in (confidence, hits))
    return Calibration(round(nll, 4), round(float(ece), 4), round(brier, 4), count.long().tolist(), *means)


def _finite(value: float) -> float | None:
    return round(value, 4) if value == value else None
