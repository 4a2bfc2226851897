"""Classification: any timm model, one class per image, top-1 accuracy."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.export.config import output_names
from frskd_timm.export.student import export_student
from frskd_timm.losses.labels import LabelLoss
from frskd_timm.models import exported_name
from frskd_timm.probing import refuse_size
from frskd_timm.student_task import CrossEntropyTask, LinearProbeTask, StudentTask
from frskd_timm.task import FRSKDTask
from frskd_train.data import Preprocessing, TrainingData, ValidationData, load_validation
from frskd_train.report.answers import examples_picture
from frskd_train.report.grids import attention_picture
from frskd_train.report.score_names import SCORE_NAMES
from frskd_train.run.folder import RunFolder
from frskd_train.settings import DataSettings, FitSettings, HeldOut, Settings
from frskd_train.students import build_student, default_cfg
from frskd_train.tasks.base import PICTURED, Job

EXAMPLES = 3  # number of images in the picture of examples


class ClassificationJob(Job):
    """Any timm model, one class per image."""

    score_names = SCORE_NAMES["classification"]

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, default_cfg(settings.model.model, settings.model.pretrained))

    def build_student(self, data: TrainingData, load_weights: bool = True) -> nn.Module:
        size = data.preprocessing.input_size
        return build_student(self.settings.model, self.model_cfg, data.num_classes, size, load_weights)

    def make_task(self, student: nn.Module, data: TrainingData) -> StudentTask:
        task = self._plain_task(student, data)
        if self.settings.labels.class_weights or self.settings.labels.bce_loss:
            task.label_loss = self._label_loss(student, data)
        return task

    def _plain_task(self, student: nn.Module, data: TrainingData) -> StudentTask:
        method, smoothing = self.settings.method, self.settings.labels.smoothing
        if method.method == "ce":
            refuse_size(student, data.preprocessing.input_size)
            return (LinearProbeTask if self.settings.model.linear_probe else CrossEntropyTask)(student, smoothing)
        return FRSKDTask.create(
            student,
            data.preprocessing.input_size,
            student.num_classes,  # type: ignore[arg-type]
            self_teacher=method.self_teacher,
            max_levels=method.feature_levels,
            sla=method.sla,
            teacher_options={name: getattr(method, f"teacher_{name}") for name in ("width", "depth", "repeats")},
            smoothing=smoothing,
            sla_weight=method.sla_weight,
            teacher_view=method.teacher_view,
            **self.distillation_options(),
        )

    def _label_loss(self, student: nn.Module, data: TrainingData) -> nn.Module:
        """Return the loss with class weights, or the binary one."""
        labels, outputs = self.settings.labels, int(student.num_classes)  # type: ignore[arg-type]
        binary: dict[str, Any] = {}
        if labels.bce_loss:
            binary = {"binary": True, "sum_classes": labels.bce_sum, "pos_weight": labels.bce_pos_weight}
            binary["target_threshold"] = labels.bce_target_thresh
        return LabelLoss(outputs, labels.smoothing, self.class_weights(data, outputs), **binary)

    @classmethod
    def load_validation(
        cls, data: DataSettings, fit: FitSettings, student: Any, held_out: HeldOut | None = None
    ) -> ValidationData:
        config = resolve_data_config({}, model=student, use_test_size=not fit.use_train_size)
        preprocessing = Preprocessing.from_timm(config).fitted(fit)
        if fit.img_size is not None:
            refuse_size(student, preprocessing.input_size)
        names = output_names(getattr(student, "pretrained_cfg", {}).get("label_names"), student.num_classes)
        if names and len(names) != student.num_classes:
            raise UserError(f"The model names {len(names)} classes, but has {student.num_classes} outputs.")
        return load_validation(data, preprocessing, classes=names or student.num_classes, held_out=held_out)

    def about_student(self, student: nn.Module) -> dict[str, str]:
        model = self.settings.model.model
        if ":" in model:  # the config of a local folder or a repository has the architecture's name
            model = str(student.pretrained_cfg["architecture"])  # type: ignore[index]
        return {"model": model, "architecture": exported_name(model)}

    @torch.no_grad()
    def draw(self, folder: Path, data: TrainingData, task: StudentTask, student: nn.Module) -> list[Path]:
        task.eval()
        device = next(task.parameters()).device
        firsts: dict[int, Tensor] = {}  # the first image of each class
        for images, target in data.val_batches(self.settings.loop.images_per_validation_batch, device=device):
            for image, label in zip(images, target.tolist(), strict=True):
                firsts.setdefault(label, image)
            if len(firsts) >= min(PICTURED, data.num_classes):
                break
        labels = sorted(firsts)[:PICTURED]
        images = torch.stack([firsts[label] for label in labels])
        outputs = student.eval()(images[:EXAMPLES]).float().softmax(dim=1).nan_to_num().cpu().numpy()
        names = output_names(dict(enumerate(data.class_names)), outputs.shape[1])
        pixels = data.preprocessing.to_bytes(images)
        examples = examples_picture(pixels[:EXAMPLES], labels, outputs, names, folder / "examples.png")
        if not isinstance(task, FRSKDTask):
            return [examples]
        maps, _ = task.pyramid(task.student, images)
        refined, _ = task.refine(maps, task.networks)
        own, teachers = ([m.float().cpu().numpy() for m in found] for found in (maps, refined))
        classes = [data.class_names[label] for label in labels]
        return [attention_picture(pixels, own, teachers, classes, folder / "attention.png"), examples]

    def export(self, folder: RunFolder, data: TrainingData, student: nn.Module, finish: Callable[[Path], Any]) -> None:
        """Write a timm checkpoint under timm's own name of the architecture, if it has one."""
        names = output_names(dict(enumerate(data.class_names)), int(student.num_classes))  # type: ignore[arg-type]
        preprocessing = asdict(data.preprocessing)
        export_student(
            student, folder.student, label_names=names, finish=finish, **preprocessing, **self.provenance(data)
        )
