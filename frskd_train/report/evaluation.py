"""Schema of `evaluation.json`: what a trained student does on the images of one split.

Every finished run has the file in its folder, and `validate.py` writes it into its `--output` folder; `read_evaluation`
reads it. Units: `top1`, `top5`, `miou`, `pixel_accuracy`, `macro` and the scores of each class are percent; losses and
everything about calibration are plain numbers, probabilities from 0 to 1. Classes are numbers, the places in
`class_names`. In segmentation a sample is a labelled pixel, in classification an image; `images` counts images. A
number that is not finite is null.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError, first_line

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class ClassScores:
    """One class: percent, and `support`, the number of its samples. A class without samples scores 0.

    Attributes:
        iou: Intersection over union (segmentation only); None for a class that is neither labelled nor predicted.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    iou: float | None = None


@dataclass(frozen=True)
class Calibration:
    """How well the confidence, the largest probability, agrees with the accuracy.

    Attributes:
        nll: Mean negative log-likelihood of the true class.
        ece: Expected calibration error over the bins below.
        brier: Mean squared distance between the probabilities and the true class, summed over the classes (0..2).
        bin_count: Number of samples in each of the equally wide bins of the confidence, from 0 to 1.
        bin_confidence: Mean confidence in each bin; None if it is empty.
        bin_accuracy: Fraction of correct predictions in each bin; None if it is empty.
    """

    nll: float
    ece: float
    brier: float
    bin_count: list[int]
    bin_confidence: list[float | None]
    bin_accuracy: list[float | None]


@dataclass(frozen=True)
class Temperature:
    """The number by which logits are divided, fitted to `images` images of `split` that were not trained on."""

    value: float
    dataset: str
    split: str
    images: int


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: the image's row in the split, the true class, the given class, and the confidence in it."""

    row: int
    true: int
    given: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a student on one split.

    Attributes:
        model: Name of the model in a run's settings, or as given to `validate.py`.
        top1: Classification only, like top5.
        miou: Segmentation only, like pixel_accuracy.
        macro: Means of `precision`, `recall` and `f1` over the classes that have samples.
        confusion: Number of samples by true class (rows) and given class (columns).
        calibration: Of the student as it is.
        calibrated: The same with the temperature; None if there is none.
        temperature_note: Where the temperature comes from, or why there is none.
        mistakes: The wrong predictions with the highest confidence, highest first; empty in segmentation.
        images_per_second: Speed of the pass over the images, including reading them.
        tta: Test-time augmentation, `flip`, or None.
        corruptions: By name of the corruption, one mapping per severity with `severity`, the scores and `ece`.
    """

    schema: int
    task: str
    model: str
    dataset: str
    split: str
    images: int
    top1: float | None = None
    top5: float | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    loss: float
    macro: dict[str, float]
    class_names: list[str]
    per_class: list[ClassScores]
    confusion: list[list[int]]
    calibration: Calibration
    calibrated: Calibration | None
    temperature: Temperature | None
    temperature_note: str
    mistakes: list[Mistake]
    images_per_second: float
    img_size: int
    param_count: int
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    tta: str | None = None
    corruptions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def confused(self, most: int) -> list[tuple[int, int, int]]:
        """Return the most frequent confusions: true class, given class and how often, the most frequent first."""
        wrong = [
            (true, given, count)
            for true, row in enumerate(self.confusion)
            for given, count in enumerate(row)
            if true != given and count
        ]
        return sorted(wrong, key=lambda found: -found[2])[:most]

    def calibrations(self) -> list[tuple[str, Calibration]]:
        """Return label and calibration of the student as it is and, if there is one, with the temperature."""
        found = [("as trained", self.calibration)]
        if self.calibrated is not None and self.temperature is not None:
            found.append((f"temperature {self.temperature.value:.2f}", self.calibrated))
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Evaluation":
        """Create it from parsed JSON; raise TypeError for missing and unknown keys."""
        parts: dict[str, Callable[..., Any]] = {
            "per_class": lambda rows: [ClassScores(**row) for row in rows],
            "mistakes": lambda rows: [Mistake(**row) for row in rows],
            "temperature": lambda value: Temperature(**value),
            "calibration": lambda value: Calibration(**value),
            "calibrated": lambda value: Calibration(**value),
        }
        return cls(
            **{name: parts[name](value) if name in parts and value else value for name, value in content.items()}
        )

    def to_json(self) -> str:
        """Return the text of `evaluation.json`, one line per attribute; numbers that are not finite become null."""
        finite = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in finite.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def read_evaluation(path: Path) -> Evaluation:
    """Read an `evaluation.json`; raise UserError if it cannot be read or does not follow this schema."""
    try:
        return Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not an evaluation of a student ({first_line(error)}).") from None
