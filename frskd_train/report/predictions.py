"""What a student confuses and how sure it is, as the report shows it: views of an `Evaluation`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from frskd_train.data import ValidationData
from frskd_train.data.images import BadImageError
from frskd_train.report.charts import Chart, Line, data_uri, describe, heatmap, reliability_chart
from frskd_train.report.evaluation import Calibration, ClassScores, Evaluation, Mistake

MISTAKES = "mistakes.png"
_SHOWN = 24  # mistakes
_TILE = 128  # largest side of their pictures in pixels
_LEGIBLE = 20  # classes up to which the confusion matrix is a table
_PAIRS = 12  # confusions that are listed


def draw_mistakes(data: ValidationData, mistakes: Sequence[Mistake], path: Path) -> None:
    """Draw the images of the first mistakes, cropped to squares, side by side."""
    split = data.val.split
    places = np.searchsorted(split.rows, [mistake.row for mistake in mistakes[:_SHOWN]]).tolist()
    found = [sample for sample in split.read(places) if not isinstance(sample, BadImageError)]
    images = [sample.image for sample in found if isinstance(sample.image, Image.Image)]
    if not images or len(images) < len(places):
        return
    side = min(_TILE, max(max(image.size) for image in images))
    strip = Image.new("RGB", (side * len(images), side))
    for place, image in enumerate(images):
        strip.paste(ImageOps.fit(image.convert("RGB"), (side, side)), (side * place, 0))
    strip.save(path)


@dataclass(frozen=True)
class Pair:
    """A confusion: the true class, the class given instead, how often, and the fraction of the true class."""

    true: str
    given: str
    count: int
    share: float


class Predictions:
    """An evaluation with what the report derives from it; `folder` is that of the run."""

    few = 5  # samples below which the accuracy of a bin is not drawn

    def __init__(self, evaluation: Evaluation, folder: Path) -> None:
        self.evaluation = evaluation
        self.folder = folder
        self.names = evaluation.class_names
        self.is_dense = evaluation.task == "segmentation"
        self.unit = "pixels" if self.is_dense else "images"

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """Confusion matrix as fractions of the true class, [K, K]; 0 for a class without samples."""
        counts = np.array(self.evaluation.confusion, np.float64)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    @property
    def matrix(self) -> list[tuple[str, list[float]]] | None:
        """Name and fractions of each true class; None if there are too many classes for a table."""
        return list(zip(self.names, self.shares.tolist(), strict=True)) if len(self.names) <= _LEGIBLE else None

    def picture(self) -> str:
        """Return the confusion matrix as a picture."""
        return heatmap(self.shares)

    def pairs(self) -> list[Pair]:
        """Return the most frequent confusions."""
        return [
            Pair(self.names[true], self.names[given], count, float(self.shares[true, given]))
            for true, given, count in self.evaluation.confused(_PAIRS)
        ]

    def classes(self) -> list[ClassScores]:
        """Return the scores of each class that has samples, worst first."""
        present = (row for row in self.evaluation.per_class if row.support or row.iou is not None)
        return sorted(present, key=lambda row: row.iou if row.iou is not None else row.f1)

    def calibrations(self) -> list[tuple[str, Calibration]]:
        """Return label and calibration of the student as it is and, if there is one, with the temperature."""
        found = [("as trained", self.evaluation.calibration)]
        if self.evaluation.calibrated is not None and self.evaluation.temperature is not None:
            found.append((f"temperature {self.evaluation.temperature.value:.2f}", self.evaluation.calibrated))
        return found

    def confidence(self) -> str:
        """Return a sentence that compares confidence and accuracy."""
        own = self.evaluation.calibration
        bins = zip(own.bin_count, own.bin_confidence, own.bin_accuracy, strict=True)
        filled = [(n, mean, right) for n, mean, right in bins if n and mean is not None and right is not None]
        total = max(sum(n for n, _, _ in filled), 1)
        sure, right = (sum(part[0] * part[axis] for part in filled) / total for axis in (1, 2))
        tone = "too sure of itself" if sure > right else "too cautious"
        close = abs(sure - right) < 0.02
        return (
            f"The student is right for {right:.1%} of the {self.unit}, and its mean confidence is {sure:.1%}: it is "
            f"{'about as sure as it should be' if close else tone}."
        )

    def reliability(self) -> Chart:
        """Return the reliability diagram."""
        lines = [Line("perfect", 5, [(0, 0), (1, 1)], "dashed")]
        for colour, (label, found) in enumerate(self.calibrations()):
            points = [
                (mean, right)
                for count, mean, right in zip(found.bin_count, found.bin_confidence, found.bin_accuracy, strict=True)
                if count >= self.few and mean is not None and right is not None
            ]
            lines.append(Line(f"{label}, ECE {describe(found.ece)}", colour, points))
        own = self.evaluation.calibration
        shares = [count / max(sum(own.bin_count), 1) for count in own.bin_count]
        described = ", ".join(f"{label} {describe(found.ece)}" for label, found in self.calibrations())
        alt = f"Accuracy over confidence. Expected calibration error: {described}."
        return reliability_chart("Accuracy over confidence", alt, lines, shares)

    def mistakes(self) -> list[tuple[str, str, str, float]]:
        """Return picture, true class, given class and confidence of the most confident mistakes."""
        path = self.folder / MISTAKES
        shown = self.evaluation.mistakes[:_SHOWN]
        try:
            strip = Image.open(path).convert("RGB")
        except OSError:  # there is none, or it is damaged
            return []
        side = strip.height
        tiles = [strip.crop((side * place, 0, side * (place + 1), side)) for place in range(strip.width // side)]
        return [
            (data_uri(tile, "JPEG"), self.names[mistake.true], self.names[mistake.given], mistake.confidence)
            for tile, mistake in zip(tiles, shown, strict=False)
        ]
