"""Semantic segmentation with FRSKD (arXiv 2103.08273, section 4.3): students, self-teacher, losses, task, export."""

from frskd_timm.segmentation.presets import (
    PRESETS,
    WeightsUnavailableError,
    create_segmentation_student,
    load_backbone,
)
from frskd_timm.segmentation.student import SegmentationStudent
from frskd_timm.segmentation.task import SegmentationCrossEntropyTask, SegmentationTask
from frskd_timm.segmentation.teacher import SegmentationTeacher

__all__ = [
    "PRESETS",
    "SegmentationCrossEntropyTask",
    "SegmentationStudent",
    "SegmentationTask",
    "SegmentationTeacher",
    "WeightsUnavailableError",
    "create_segmentation_student",
    "load_backbone",
]
