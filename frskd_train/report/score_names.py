"""The names of the scores of each task, for progress, tables, cards and pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ScoreNames:
    """The names of the scores of one task.

    Attributes:
        pipeline: The Hub's name of the task.
        labels: Readable names of the scores in percent; models are compared by the first one.
        loss: Readable name of the loss.
        results: The Hub's type and title of each of these scores.
        class_score: The score in `evaluation.ClassScores` by which classes are compared.
        class_label: Its readable name.
        unit: What is classified.
    """

    pipeline: str
    labels: Mapping[str, str]
    loss: str
    results: Mapping[str, tuple[str, str]]
    class_score: str
    class_label: str
    unit: str

    @property
    def score(self) -> str:
        """Name of the score that models are compared by."""
        return next(iter(self.labels))

    @property
    def label(self) -> str:
        """Readable name of that score."""
        return self.labels[self.score]

    @property
    def columns(self) -> dict[str, tuple[str, str]]:
        """Heading and number format in tables, by name of the score."""
        scores = {name: (f"{label} (%)", "{:.2f}") for name, label in self.labels.items()}
        return {**scores, "loss": (self.loss, "{:.3f}")}

    def worst_first(self, classes: Iterable[Any]) -> list[Any]:
        """Sort the scores of classes, `evaluation.ClassScores`, by the score that classes are compared by."""
        return sorted(classes, key=lambda row: getattr(row, self.class_score))


SCORE_NAMES = {
    "classification": ScoreNames(
        pipeline="image-classification",
        labels={"top1": "top-1", "top5": "top-5"},
        loss="loss",
        results={"top1": ("accuracy", "Top-1 accuracy (%)"), "top5": ("top_5_accuracy", "Top-5 accuracy (%)")},
        class_score="f1",
        class_label="F1",
        unit="images",
    ),
    "segmentation": ScoreNames(
        pipeline="image-segmentation",
        labels={"miou": "mIoU", "pixel_accuracy": "pixel accuracy"},
        loss="loss per pixel",
        results={"miou": ("mean_iou", "Mean IoU (%)"), "pixel_accuracy": ("accuracy", "Pixel accuracy (%)")},
        class_score="iou",
        class_label="IoU",
        unit="pixels",
    ),
}
