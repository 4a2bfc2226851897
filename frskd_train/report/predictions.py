"""What a student confuses and how sure it is, as the report shows it: views of an `Evaluation`."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from frskd_train.data import ValidationData
from frskd_train.data.images import BadImageError, quiet_pillow
from frskd_train.report.charts import Line, data_uri, describe, read_picture
from frskd_train.report.evaluation import ClassScores, Evaluation, Mistake
from frskd_train.report.score_names import SCORE_NAMES

MISTAKES = "mistakes.png"
_SHOWN = 24  # mistakes
_TILE = 128  # largest side of their pictures in pixels


def draw_mistakes(data: ValidationData, mistakes: Sequence[Mistake], path: Path) -> None:
    """Draw the images of the first mistakes, fitted into squares, side by side."""
    split = data.val.split
    places = np.searchsorted(split.rows, [mistake.row for mistake in mistakes[:_SHOWN]]).tolist()
    found = (sample.image for sample in split.read(places) if not isinstance(sample, BadImageError))
    with quiet_pillow():
        images = [image for image in found if isinstance(image, Image.Image)]
    if not images or len(images) < len(places):
        path.unlink(missing_ok=True)  # of an earlier evaluation
        return
    side = min(_TILE, max(max(image.size) for image in images))
    strip = Image.new("RGB", (side * len(images), side))
    for place, image in enumerate(images):
        strip.paste(ImageOps.pad(image.convert("RGB"), (side, side)), (side * place, 0))
    strip.save(path)


class Predictions:
    """An evaluation with what the report derives from it; `folder` is that of the run."""

    few = 5  # samples below which the accuracy of a bin is not drawn

    def __init__(self, evaluation: Evaluation, folder: Path) -> None:
        self.evaluation, self.folder, self.names = evaluation, folder, evaluation.class_names
        self.score_names = SCORE_NAMES[evaluation.task]

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """Confusion matrix as fractions of the true class, [K, K]; 0 for a class without samples."""
        counts = self.evaluation.confusion_matrix()
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def classes(self) -> list[ClassScores]:
        """Return the scores of the present classes, worst first."""
        return self.score_names.worst_first(self.evaluation.present())

    def confidence(self) -> str:
        """Return a sentence that compares confidence and accuracy."""
        own = self.evaluation.calibration
        total = max(sum(own.bin_count), 1)
        sure, right = (
            sum(count * (mean or 0) for count, mean in zip(own.bin_count, means, strict=True)) / total
            for means in (own.bin_confidence, own.bin_accuracy)  # None for an empty bin
        )
        tone = "overconfident" if sure > right else "underconfident"
        if abs(sure - right) < 0.02:
            tone = "well calibrated on average"
        share = f"{right:.1%} of the {self.score_names.unit}"
        return f"The student classifies {share} correctly with a mean confidence of {sure:.1%}, so it is {tone}."

    def reliability(self) -> dict[str, Any]:
        """Lay out accuracy over confidence, over bars with the share of the images in each bin; see `line_chart`."""
        lines = [Line("perfect", 5, [(0, 100), (100, 0)], "dashed")]
        for colour, (label, found) in enumerate(self.evaluation.calibrations()):
            points = [
                (100 * mean, 100 - 100 * right)
                for count, mean, right in zip(found.bin_count, found.bin_confidence, found.bin_accuracy, strict=True)
                if count >= self.few and mean is not None and right is not None
            ]
            lines.append(Line(f"{label}, ECE {describe(found.ece)}", colour, points))
        counts = self.evaluation.calibration.bin_count
        ticks = [(percent, f"{percent}%") for percent in range(0, 101, 20)]
        return {
            "title": "Accuracy over confidence",
            "alt": f"Accuracy over confidence: {'; '.join(line.label for line in lines[1:])}.",
            "x_label": "confidence",
            "x_ticks": ticks,
            "y_ticks": ticks,
            "lines": lines,
            "bars": [
                (100 * (place + 1) / len(counts), round(100 * count / max(sum(counts), 1), 2))
                for place, count in enumerate(counts)
            ],
            "square": True,
        }

    def mistakes(self) -> list[tuple[str, str, str, float]]:
        """Return picture, true class, predicted class and confidence of the most confident mistakes."""
        strip = read_picture(self.folder / MISTAKES)
        if strip is None:
            return []
        side = strip.height
        tiles = [strip.crop((side * place, 0, side * (place + 1), side)) for place in range(strip.width // side)]
        return [
            (data_uri(tile), self.names[mistake.true], self.names[mistake.given], mistake.confidence)
            for tile, mistake in zip(tiles, self.evaluation.mistakes, strict=False)  # the others have no picture
        ]
