"""The interface of a job, which trainer, report and `validate.py` use for a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from timm.loss import compute_class_weights
from torch import nn

from frskd_timm.defaults import TASK_OPTIONS
from frskd_timm.errors import UserError
from frskd_timm.export.folder import CONFIG, STUDENT, WEIGHTS
from frskd_timm.export.load import read_student
from frskd_timm.student_task import StudentTask
from frskd_train.data import TrainingData, ValidationData, load_data
from frskd_train.report.card import write_card
from frskd_train.report.evaluation import Evaluation
from frskd_train.report.metrics import InitialWeights, Metrics
from frskd_train.report.score_names import ScoreNames
from frskd_train.run.folder import RunFolder
from frskd_train.scoring.evaluate import Scores
from frskd_train.settings import DataSettings, FitSettings, HeldOut, Settings

PICTURED = 5  # number of validation images in the picture


OF_IMAGES = "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"  # in timm's configurations


class Job(ABC):
    """Data, student, method, scores and export of one task; `model_cfg` is timm's configuration of the student."""

    score_names: ClassVar[ScoreNames]  # names of the scores; the first one determines the best epoch

    def __init__(self, settings: Settings, model_cfg: Mapping[str, Any]) -> None:
        self.settings, self.model_cfg = settings, model_cfg

    def initial_weights(self) -> InitialWeights | None:
        """Describe the weights that the student starts from, without a path; None if they are random."""
        model, cfg = self.settings.model, self.model_cfg
        if not model.has_weights and model.initial_checkpoint is None:
            return None
        if model.initial_checkpoint is not None:
            path = Path(model.initial_checkpoint).absolute()
            folder = path.parent.parent if path.parent.name == STUDENT else path.parent
            of_student = path.name == WEIGHTS and path.with_name(CONFIG).is_file() and folder != Path.home()
            return InitialWeights(folder.name if of_student else path.name)
        if model.model.startswith("hf-hub:"):
            name = model.model.removeprefix("hf-hub:")
            return InitialWeights(name, name.split("@")[0])
        return InitialWeights(f"{cfg['architecture']}.{cfg.get('tag') or 'unknown'}", cfg.get("hf_hub_id"))

    def initial_cfg(self) -> Mapping[str, Any] | None:
        """Return timm's configuration of the images that the initial weights were trained with; None if random.

        For `--initial-checkpoint` it is in the folder of an exported student; beside other files it is the model's, as
        in timm, but for the size.
        """
        model, cfg = self.settings.model, self.model_cfg
        if not model.has_weights and model.initial_checkpoint is None:
            return None
        if model.initial_checkpoint is not None:
            cfg = {name: value for name, value in cfg.items() if name != "input_size"}
            with suppress(UserError):
                config = read_student(Path(model.initial_checkpoint).parent).config
                cfg = config.get("pretrained_cfg", config)
        return {name: cfg[name] for name in OF_IMAGES if name in cfg}

    def load_data(self, initial_cfg: Mapping[str, Any] | None, measured: Any = None) -> TrainingData:
        """Return images and targets of the run; raise UserError if they cannot be used for training.

        `initial_cfg` is the result of `initial_cfg`, and `measured` are mean and standard deviation, of a run that is
        resumed.
        """
        settings, model = self.settings, self.settings.model
        return load_data(
            settings.data,
            settings.preprocessing,
            task=model.task,
            model_cfg=self.model_cfg,
            initial_cfg=initial_cfg,
            num_outputs=model.num_classes,
            resize_range=settings.segmentation.resize_range,
            measured=measured,
        )

    @abstractmethod
    def build_student(self, data: TrainingData, load_weights: bool = True) -> nn.Module:
        """Return the student for these data, with its initial weights unless they are in a checkpoint anyway.

        Raises:
            UserError: The settings do not fit it.
        """

    def build_task(self, student: nn.Module, data: TrainingData) -> StudentTask:
        """Return the training task; raise UserError if the student lacks the feature maps."""
        task = self.make_task(student, data)
        task.noisy_labels = self.settings.labels.noisy_labels
        return task

    def class_weights(self, data: TrainingData, outputs: int) -> Sequence[float] | None:
        """Return the weights of `--class-weights`, one for each output of the student; None for equal weights."""
        chosen = self.settings.labels.class_weights
        if not isinstance(chosen, str):
            return chosen or None
        split = data.train.split
        counts = split.targets.class_counts(split.name, data.train.source.rows)  # in memory without unreadable images
        method = "inv_freq" if chosen == "auto" else chosen
        found = [count for count in counts if count]  # timm would give an empty class the largest weight
        weights = iter(compute_class_weights(found, sum(found), method)[1].tolist())
        return [next(weights) if count else 1.0 for count in counts] + [1.0] * (outputs - len(counts))

    def cross_entropy(self, recent: Mapping[str, float], task: StudentTask) -> float:
        """Return the student's cross-entropy from recent means of the loss terms; 0 if none of them is comparable."""
        if self.settings.labels.bce_loss or self.settings.method.teacher_interval > 1:  # guessing has another loss
            return 0.0
        return recent.get("loss_ce", 0.0) / task.student_weight

    def distillation_options(self) -> dict[str, Any]:
        """Return the arguments of `DistillationTask` that all tasks derive from the settings in the same way."""
        method = self.settings.method
        start = min(0.999, method.distill_start / self.settings.optimizer.epochs)  # a resumed run may end before it
        own = {"schedule": method.distill_schedule, "start": start, "feature_loss": method.feature_loss}
        return own | {name: getattr(method, name) for name in TASK_OPTIONS}

    @abstractmethod
    def make_task(self, student: nn.Module, data: TrainingData) -> StudentTask:
        """Return the training task around the student; raise UserError if the student lacks the feature maps."""

    @classmethod
    @abstractmethod
    def load_validation(
        cls, data: DataSettings, fit: FitSettings, student: Any, held_out: HeldOut | None = None
    ) -> ValidationData:
        """Return validation data for a trained student; raise UserError if they do not fit it."""

    @abstractmethod
    def about_student(self, student: nn.Module) -> dict[str, str]:
        """Return `model`, the name in the settings, and `architecture`, timm's name of the network."""

    @abstractmethod
    def draw(self, folder: Path, data: TrainingData, task: StudentTask, student: nn.Module) -> list[Path]:
        """Draw a few validation images into the folder; return the paths. `student` may be an average of the task's."""

    @abstractmethod
    def export(self, folder: RunFolder, data: TrainingData, student: nn.Module, finish: Callable[[Path], Any]) -> None:
        """Write the student's folder, after calling `finish` with it, and further folders that need only timm."""

    def write_cards(self, folder: RunFolder, metrics: Metrics, evaluation: Evaluation | None) -> None:
        """Write the model cards of the exported folders."""
        write_card(folder.student, metrics, evaluation)

    def tag(self, data: TrainingData) -> str:
        """Return the tag of the exported weights."""
        return self.settings.run.tag or data.name

    def provenance(self, data: TrainingData) -> dict[str, Any]:
        """Return where the exported weights come from, as arguments of the export."""
        settings = self.settings
        license, method = settings.run.license, settings.method.method
        return {"tag": self.tag(data), "license": license, "dataset": data.name, "method": method}

    def columns(self, scores: Scores) -> dict[str, float]:
        """Return scores by their columns in `summary.csv`; those of the self-teacher begin with `teacher_`."""
        if not scores:
            return {}
        student, names = scores["student"], self.score_names
        found = {name: student[name] for name in names.labels} | {"val_loss": student["loss"]}
        if "self_teacher" in scores:
            found[f"teacher_{names.score}"] = scores["self_teacher"][names.score]
        return found
