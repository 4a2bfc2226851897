"""Semantic segmentation: a decoder on any timm backbone, one class per pixel, mean IoU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.export.folder import BACKBONE
from frskd_timm.export.student import export_backbone, export_segmentation
from frskd_timm.segmentation import (
    PRESETS,
    SegmentationCrossEntropyTask,
    SegmentationStudent,
    SegmentationTask,
    create_segmentation_student,
)
from frskd_timm.student_task import StudentTask
from frskd_train.data import Preprocessing, TrainingData, ValidationData, load_validation
from frskd_train.report.card import write_backbone_card
from frskd_train.report.evaluation import Evaluation
from frskd_train.report.grids import segmentation_picture
from frskd_train.report.metrics import InitialWeights, Metrics
from frskd_train.report.score_names import SCORE_NAMES
from frskd_train.run.folder import RunFolder
from frskd_train.settings import DataSettings, FitSettings, HeldOut, Settings, flag
from frskd_train.settings.constraints import keyword_arguments
from frskd_train.students import default_cfg, prepare_student
from frskd_train.tasks.base import PICTURED, Job


class SegmentationJob(Job):
    """A decoder on any timm backbone, one class per pixel."""

    score_names = SCORE_NAMES["segmentation"]

    def __init__(self, settings: Settings) -> None:
        preset = PRESETS.get(settings.model.model, {})
        super().__init__(settings, default_cfg(preset.get("backbone", settings.model.model), settings.model.pretrained))

    def initial_weights(self) -> InitialWeights | None:
        found, is_whole = super().initial_weights(), self.settings.model.initial_checkpoint is not None
        return found if found is None or is_whole else replace(found, part="backbone")

    def build_student(self, data: TrainingData, load_weights: bool = True) -> SegmentationStudent:
        model, own = self.settings.model, self.settings.segmentation
        arguments = keyword_arguments(model.model_kwargs)
        if model.drop_path is not None:
            arguments["drop_path_rate"] = model.drop_path
        decoder: dict[str, Any] = {"layers": own.decoder_layers}
        if own.decoder_channels is not None:
            decoder["channels"] = own.decoder_channels
        pre = data.preprocessing
        images: dict[str, Any] = {"in_chans": pre.input_size[0], "mean": pre.mean, "std": pre.std}
        student = create_segmentation_student(
            model.model,
            data.num_classes,
            pretrained=model.has_weights and load_weights,
            class_names=data.class_names,
            backbone_args=arguments,
            **decoder,
            **images,
        )
        if student.fixed_size is not None:
            sizes = {tuple(pre.input_size[1:]), *data.val.split.sizes} - {(0, 0)}
            if sizes != {student.fixed_size}:
                only = "x".join(map(str, student.fixed_size))
                raise UserError(
                    f"The backbone {model.model} accepts only images of {only} pixels, for training and validation: "
                    "resize the images, or choose another --model."
                )
        prepare_student(student, model, [student.classifier_name], load_weights)
        return student

    def make_task(self, student: Any, data: TrainingData) -> StudentTask:
        method = self.settings.method
        weights = self.class_weights(data, student.num_classes)
        common: dict[str, Any] = {"class_weights": weights, "smoothing": self.settings.labels.smoothing}
        if method.method == "ce":
            return SegmentationCrossEntropyTask(student, **common)
        return SegmentationTask.create(
            student,
            self_teacher=method.self_teacher,
            teacher_repeats=method.teacher_repeats,
            **common,
            **self.distillation_options(),
        )

    @classmethod
    def load_validation(
        cls, data: DataSettings, fit: FitSettings, student: Any, held_out: HeldOut | None = None
    ) -> ValidationData:
        for name in fit.given():
            raise UserError(f"{flag(name)} is for classification: segmentation scores images at their own size.")
        preprocessing = Preprocessing((student.in_chans, 1, 1), tuple(student.mean), tuple(student.std))
        classes = student.class_names or student.num_classes
        return load_validation(data, preprocessing, task="segmentation", classes=classes, held_out=held_out)

    def about_student(self, student: Any) -> dict[str, str]:
        name, backbone = self.settings.model.model, student.backbone_name
        return {"model": backbone if ":" in name else name, "architecture": backbone}

    @torch.no_grad()
    def draw(self, folder: Path, data: TrainingData, task: StudentTask, student: nn.Module) -> list[Path]:
        task.eval()
        device = next(task.parameters()).device
        pictured: list[Any] = []
        columns: dict[str, list[Any]] = {}
        for images, truth in data.val_batches(PICTURED, device=device):  # each with images of one size
            outputs = task.predict(images, average=student.eval())
            masks = {"truth": truth} | {name: logits.argmax(dim=1) for name, logits in outputs.items()}
            pictured.extend(data.preprocessing.to_bytes(images))
            for name, found in masks.items():
                columns.setdefault(name.replace("_", "-"), []).extend(found.cpu().numpy())
            if len(pictured) >= PICTURED:
                break
        shown = {name: found[:PICTURED] for name, found in columns.items()}
        return [segmentation_picture(pictured[:PICTURED], shown, data.class_names, folder / "segmentation.png")]

    def export(self, folder: RunFolder, data: TrainingData, student: nn.Module, finish: Callable[[Path], Any]) -> None:
        export_segmentation(student, folder.student, finish=finish)
        size = data.preprocessing.input_size
        export_backbone(student, folder.path / BACKBONE, input_size=size, **self.provenance(data))

    def write_cards(self, folder: RunFolder, metrics: Metrics, evaluation: Evaluation | None) -> None:
        super().write_cards(folder, metrics, evaluation)
        write_backbone_card(folder.path / BACKBONE, metrics)
