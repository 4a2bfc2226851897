"""Semantic segmentation with FRSKD (arXiv 2103.08273, section 4.3): students, self-teacher, losses, task, export."""

from frskd_timm.segmentation.presets import PRESETS as PRESETS
from frskd_timm.segmentation.presets import create_segmentation_student as create_segmentation_student
from frskd_timm.segmentation.student import SegmentationStudent as SegmentationStudent
from frskd_timm.segmentation.task import SegmentationCrossEntropyTask as SegmentationCrossEntropyTask
from frskd_timm.segmentation.task import SegmentationTask as SegmentationTask
