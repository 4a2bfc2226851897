"""The interface of a job: what the loop, the end of a run and `validate.py` ask of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from frskd_timm.task import StudentTask
from frskd_train.data.sampler import Order
from frskd_train.run_folder import RunFolder
from frskd_train.settings import DataSettings, FitSettings, Settings
from frskd_train.sync_batchnorm import refuse_single_values

Batches = Iterable[tuple[Tensor, Tensor]]
Scores = dict[str, dict[str, Any]]  # by network and name; percent, but for losses and counts


class Job(ABC):
    """Data, student, method, scores and export of one task.

    Attributes:
        settings: Those of the run.
        score: Name of the score, in percent, that says which epoch is the best.
        shown: Scores that people see, with what they are called; `score` first.
        notes: Sentences that the user should see before training.
    """

    score: ClassVar[str]
    shown: ClassVar[Mapping[str, str]]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.notes: list[str] = []

    @abstractmethod
    def load_data(self, progress: bool) -> Any:
        """The run's `TrainingData`; raises UserError where it cannot be trained on."""

    @abstractmethod
    def build_student(self, data: Any) -> nn.Module:
        """The student for these data; raises UserError where the settings do not fit it."""

    def build_task(self, student: nn.Module, data: Any) -> StudentTask:
        """The method around the student.

        Raises:
            UserError: The student has no feature maps for it, or batches are too small for batch normalisation.
        """
        task = self.make_task(student, data)
        loop, world_size = self.settings.loop, PartialState().num_processes
        order = Order.of(data.num_train, loop.batch_size, rank=0, world_size=world_size, seed=loop.seed)
        if order.per_process == 1 and not (loop.sync_bn and world_size > 1):
            refuse_single_values(task, data.preprocessing.input_size)
        return task

    @abstractmethod
    def make_task(self, student: nn.Module, data: Any) -> StudentTask:
        """The method around the student; raises UserError where the student has no feature maps for it."""

    @classmethod
    @abstractmethod
    def load_validation(cls, data: DataSettings, fit: FitSettings, student: nn.Module, progress: bool) -> Any:
        """Validation data for a trained student; raises UserError where they do not fit it."""

    @staticmethod
    @abstractmethod
    def evaluate(
        predict: Callable[[Tensor], Mapping[str, Tensor]], batches: Batches, accelerator: Accelerator
    ) -> Scores:
        """Scores networks on all processes' validation images, each image once."""

    @abstractmethod
    def about_student(self, student: nn.Module) -> dict[str, str]:
        """`model`, the name it was asked for by, and `architecture`, timm's name of the network."""

    @abstractmethod
    def draw(self, folder: Path, data: Any, task: StudentTask) -> list[Path]:
        """Draws what the networks see in a few validation images; gives the pictures' paths."""

    @abstractmethod
    def export(
        self,
        folder: RunFolder,
        data: Any,
        student: nn.Module,
        metrics: Mapping[str, Any],
        complete: Callable[[Path], None],
    ) -> None:
        """Writes the student's folder, and whatever else can be used without this package.

        Args:
            folder: Of the run.
            data: What the student was trained on.
            student: The trained one.
            metrics: As in `metrics.json`.
            complete: Adds card, pictures and recipe to the student's folder.
        """

    def columns(self, scores: Scores) -> dict[str, float]:
        """Scores under the names of `summary.csv`; those of the self-teacher begin with `teacher_`."""
        if not scores:
            return {}
        found = {name: scores["student"][name] for name in self.shown} | {"val_loss": scores["student"]["loss"]}
        if "self_teacher" in scores:
            found[f"teacher_{self.score}"] = scores["self_teacher"][self.score]
        return found
