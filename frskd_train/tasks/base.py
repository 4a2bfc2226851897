"""The interface of a job: what trainer, report and `validate.py` need of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from frskd_timm.task import StudentTask
from frskd_train.data.sampler import Order
from frskd_train.evaluate import Measure, Scores, evaluate
from frskd_train.report.card import write_card
from frskd_train.report.metrics import Metrics
from frskd_train.run_folder import RunFolder
from frskd_train.settings import DataSettings, FitSettings, Settings
from frskd_train.sync_batchnorm import refuse_single_values


class Job(ABC):
    """Data, student, method, scores and export of one task.

    Attributes:
        settings: Settings of the run.
        measure: How networks are scored.
        score: Name of the score, in percent, that decides which epoch is the best.
        shown: Labels of the scores that are shown, by their names; `score` first.
        notes: Sentences to show before training.
    """

    measure: ClassVar[Measure]
    score: ClassVar[str]
    shown: ClassVar[Mapping[str, str]]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.notes: list[str] = []

    @abstractmethod
    def load_data(self, progress: bool) -> Any:
        """Return the run's `TrainingData`; raises UserError if it cannot be trained on."""

    @abstractmethod
    def build_student(self, data: Any) -> nn.Module:
        """Return the student for these data; raises UserError if the settings do not fit it."""

    def build_task(self, student: nn.Module, data: Any) -> StudentTask:
        """Return the method around the student.

        Raises:
            UserError: The student has no feature maps for it, or batches are too small for batch normalisation.
        """
        task = self.make_task(student, data)
        loop, world_size = self.settings.loop, PartialState().num_processes
        order = Order.of(data.num_train, loop.batch_size, rank=0, world_size=world_size, seed=loop.seed)
        if order.per_process == 1 and not (loop.sync_bn and world_size > 1):
            refuse_single_values(task, data.preprocessing.input_size)
        return task

    def distillation_options(self) -> dict[str, Any]:
        """Return the arguments of `DistillationTask` that follow from the settings in the same way for every task."""
        method = self.settings.method
        return {
            "alpha": method.alpha,
            "temperature": method.temperature,
            "schedule": method.distill_schedule,
            "start": method.distill_start / self.settings.optimizer.epochs,
            "logit_loss": method.logit_loss,
            "gate": method.gate,
            "teacher_gradient": method.teacher_gradient,
            "teacher_ema": method.teacher_ema,
            "teacher_interval": method.teacher_interval,
        }

    @abstractmethod
    def make_task(self, student: nn.Module, data: Any) -> StudentTask:
        """Return the method around the student; raises UserError if the student has no feature maps for it."""

    @classmethod
    @abstractmethod
    def load_validation(cls, data: DataSettings, fit: FitSettings, student: nn.Module, progress: bool) -> Any:
        """Return validation data for a trained student; raises UserError if they do not fit it."""

    @classmethod
    def evaluate(
        cls,
        predict: Callable[[Tensor], Mapping[str, Tensor]],
        batches: Iterable[tuple[Tensor, Tensor]],
        accelerator: Accelerator,
    ) -> Scores:
        """Score networks on the validation images of all processes; see `frskd_train.evaluate`."""
        return evaluate(cls.measure, predict, batches, accelerator)

    @abstractmethod
    def about_student(self, student: nn.Module) -> dict[str, str]:
        """Return `model`, the name that was asked for, and `architecture`, timm's name of the network."""

    @abstractmethod
    def draw(self, folder: Path, data: Any, task: StudentTask) -> list[Path]:
        """Draw what the networks see in a few validation images; return the paths of the pictures."""

    @abstractmethod
    def export(self, folder: RunFolder, data: Any, student: nn.Module, finish: Callable[[Path], Any]) -> None:
        """Write the student's folder, and others that can be used without this package.

        Args:
            folder: The run's folder.
            data: What the student was trained on.
            student: The trained student.
            finish: Called with the student's folder before it is put in place.
        """

    def write_cards(self, folder: RunFolder, metrics: Metrics) -> None:
        """Write the model cards of the exported folders."""
        write_card(folder.student, metrics)

    def tag(self, data: Any) -> str:
        """Return the tag of the exported weights."""
        return self.settings.run.tag or str(data.name)

    def columns(self, scores: Scores) -> dict[str, float]:
        """Return scores by their names in `summary.csv`; those of the self-teacher begin with `teacher_`."""
        if not scores:
            return {}
        found = {name: scores["student"][name] for name in self.shown} | {"val_loss": scores["student"]["loss"]}
        if "self_teacher" in scores:
            found[f"teacher_{self.score}"] = scores["self_teacher"][self.score]
        return found
