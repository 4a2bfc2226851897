"""Schema of `evaluation.json`: what a trained student does on the images of one split.

Every finished run has the file in its folder, and `validate.py` writes it into its `--output` folder; `read_evaluation`
reads it. Units: `top1`, `top5`, `miou`, `pixel_accuracy`, `macro` and the scores of each class are percent; losses and
everything about calibration are plain numbers, probabilities from 0 to 1. Classes are numbers, the places in
`class_names`. In segmentation a sample is a labelled pixel, in classification an image; `images` counts images. A
number that is not finite is null.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frskd_timm.errors import UserError, first_line

EVALUATION = "evaluation.json"
SCHEMA = 2


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class; a class without samples scores 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int  # number of its samples
    iou: float | None = None  # segmentation only; None for a class that is neither labelled nor predicted


@dataclass(frozen=True)
class Calibration:
    """How well the confidence, the largest probability, agrees with the accuracy."""

    nll: float  # mean negative log-likelihood of the true class
    ece: float  # expected calibration error over the bins below
    brier: float  # mean squared distance of the probabilities to the true class, summed over the classes (0..2)
    bin_count: list[int]  # samples in each of the equally wide bins of the confidence, from 0 to 1
    bin_confidence: list[float | None]  # mean confidence in each bin; None if it is empty
    bin_accuracy: list[float | None]  # fraction of correct predictions in each bin; None if it is empty


@dataclass(frozen=True)
class Temperature:
    """The number by which logits are divided, fitted to `images` images of `split` that were not trained on."""

    value: float
    dataset: str
    split: str
    images: int


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: the image's row in the split, the true and the predicted class, and the confidence in it."""

    row: int
    true: int
    given: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a student on one split: `top1` and `top5`, or in segmentation `miou` and `pixel_accuracy`."""

    schema: int
    task: str
    model: str  # as in a run's settings, or as given to `validate.py`
    dataset: str
    split: str
    images: int
    top1: float | None = None
    top5: float | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    loss: float
    macro: dict[str, float]  # means of `precision`, `recall` and `f1` over the classes that have samples
    class_names: list[str]
    per_class: list[ClassScores]
    confusion: list[tuple[int, int, int]]  # true class, predicted class, number of samples; only pairs that occur
    calibration: Calibration  # of the student as it is
    calibrated: Calibration | None  # the same with the temperature, if there is one
    temperature: Temperature | None
    temperature_note: str  # where the temperature comes from, or why there is none
    mistakes: list[Mistake]  # with the highest confidence, highest first; empty in segmentation
    images_per_second: float  # including the reading of the images
    img_size: int | None  # height, and width unless `img_width` is given; None if the images differ
    param_count: int
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    tta: str | None = None  # test-time augmentation, `flip`, or None
    corruptions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # `severity`, score, `loss`, `ece`
    img_width: int | None = None  # if the images are not square

    def present(self) -> list[ClassScores]:
        """Return the scores of the classes that occur in the labels or, in segmentation, in the predictions."""
        return [row for row in self.per_class if row.support or row.iou is not None]

    def confused(self, most: int) -> list[tuple[int, int, int]]:
        """Return the most frequent confusions: true class, predicted class and how often, the most frequent first."""
        wrong = [row for row in self.confusion if row[0] != row[1]]
        return sorted(wrong, key=lambda found: -found[2])[:most]

    def confusion_matrix(self, most: int = 1000) -> NDArray[np.int64]:
        """Return the number of samples by true class (rows) and predicted class (columns), [K, K].

        With more than `most` classes, neighbouring classes share a row and a column.
        """
        classes = len(self.class_names)
        size = min(classes, most)
        matrix = np.zeros((size, size), np.int64)
        true, given, counts = np.array(self.confusion, np.int64).reshape(-1, 3).T
        np.add.at(matrix, (true * size // classes, given * size // classes), counts)
        return matrix

    def calibrations(self) -> list[tuple[str, Calibration]]:
        """Return label and calibration of the student as it is and, if there is one, with the temperature."""
        found = [("uncalibrated", self.calibration)]
        if self.calibrated is not None and self.temperature is not None:
            found.append((f"temperature {self.temperature.value:.2f}", self.calibrated))
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Evaluation":
        """Create it from parsed JSON; raise TypeError or KeyError for missing and unknown keys."""
        if content["schema"] != SCHEMA:
            raise TypeError(f"its schema is {content['schema']}, not {SCHEMA}")
        kinds = {"temperature": Temperature, "calibration": Calibration, "calibrated": Calibration}
        parts: dict[str, Any] = {name: kind(**content[name]) for name, kind in kinds.items() if content.get(name)}
        parts["per_class"] = [ClassScores(**row) for row in content["per_class"]]
        parts["mistakes"] = [Mistake(**row) for row in content["mistakes"]]
        parts["confusion"] = [(true, given, count) for true, given, count in content["confusion"]]
        return cls(**{**content, **parts})

    def to_json(self) -> str:
        """Return the text of `evaluation.json`, one line per attribute; numbers that are not finite become null."""
        finite = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in finite.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def read_evaluation(path: str | Path) -> Evaluation:
    """Read an `evaluation.json`; raise UserError if it cannot be read or does not follow this schema."""
    try:
        return Evaluation.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is not an evaluation of a student ({first_line(error)}).") from None
