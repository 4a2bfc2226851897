"""The parts that differ between the tasks of `--task`."""

from torch import nn

from frskd_timm.segmentation import SegmentationStudent
from frskd_train.settings import Settings
from frskd_train.tasks.base import Job as Job
from frskd_train.tasks.classification import ClassificationJob
from frskd_train.tasks.segmentation import SegmentationJob


def choose_job(settings: Settings) -> Job:
    """Return the job of a run; raise UserError if timm has no such model or no weights to start from."""
    return SegmentationJob(settings) if settings.model.task == "segmentation" else ClassificationJob(settings)


def job_of(student: nn.Module) -> type[Job]:
    """Return the job that scores a trained student."""
    return SegmentationJob if isinstance(student, SegmentationStudent) else ClassificationJob
