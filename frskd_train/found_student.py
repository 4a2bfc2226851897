"""Trained students: found in a folder, on the Hub or by a timm name, and loaded to score them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from huggingface_hub import hf_hub_download, snapshot_download
from torch import nn

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.config import MAX_SIDE
from frskd_timm.export.folder import BACKBONE, CARD, CONFIG, METRICS, PICKLE, STUDENT, WEIGHTS, read_json, student_in
from frskd_timm.export.load import ExportedClassifier, ExportedStudent, load_student, read_student
from frskd_timm.lookup import hub_error, hub_name, known_cfg
from frskd_train.report.metrics import Metrics, read_metrics
from frskd_train.settings.recipe import SETTINGS
from frskd_train.students import default_cfg


def load_for_evaluation(model: str) -> tuple[nn.Module, Path | None]:
    """Load a trained model from the folder of a run or a student, or by a timm name with weights.

    Returns the model, and the folder of the run that trained it, or None. Raises UserError if it cannot be loaded.
    """
    folder = _local_folder(model)
    if folder is not None:
        student = load_student(folder)
        if not student.num_classes:
            raise UserError(f"{folder} has no classifier to score: give the folder of a run or its student.")
        return student, _run_of(folder)
    if model.startswith("hf-hub:") and _is_segmentation(model.removeprefix("hf-hub:")):
        return find_exported(model).student.load(), None
    default_cfg(model, pretrained=True)
    try:
        return timm.create_model(model, pretrained=True), None
    except Exception as error:
        raise UserError(f"The weights of '{model}' could not be loaded: {first_line(error)}.") from error


@dataclass(frozen=True)
class FoundStudent:
    """An exported student that a command was given; `name` is a short one for files, `student` for a run.

    Files about it go by default into `place`, the folder of the run that trained it, or else the current one.
    """

    student: ExportedStudent
    run: Path | None
    name: str

    @property
    def place(self) -> Path:
        return self.run or Path()

    @property
    def metrics(self) -> Metrics | None:
        """The facts about the run that trained it, as far as they are known; raise UserError if they cannot be read."""
        path = (self.run or self.student.path) / METRICS
        return read_metrics(path) if path.is_file() else None

    def image_size(self, given: Sequence[int] | None) -> tuple[int, int] | None:
        """Return height and width of images for a segmentation student: as given, else of the run's crops.

        Return None for a classifier; raise UserError if the given size cannot be used.
        """
        if isinstance(self.student, ExportedClassifier):
            if given:
                raise UserError("--img-size is only for segmentation students: a classifier has its own image size.")
            return None
        metrics = self.metrics
        size = list(given or filter(None, [metrics.img_size, metrics.img_width] if metrics else []))
        if not size:
            return None
        if len(size) > 2 or not all(1 <= number <= MAX_SIDE for number in size):
            raise UserError(f"--img-size takes one or two numbers from 1 to {MAX_SIDE}, not {size}.")
        return size[0], size[-1]


def find_exported(model: str) -> FoundStudent:
    """Find an exported student; one on the Hub is downloaded into its cache.

    `model` is the folder of a run or a student (also `local-dir:`), `hf-hub:OWNER/NAME`, or a timm name with weights.
    Raises UserError if there is no such student, or it could not be downloaded.
    """
    folder, repo = _local_folder(model), model.removeprefix("hf-hub:")
    if folder is None and repo == model:
        cfg = known_cfg(model, weights=True)
        assert cfg is not None
        if not cfg.file and not cfg.hf_hub_id:
            raise UserError(f"The weights of '{model}' are neither in this package nor on the Hub: give a folder.")
        folder, repo = Path(cfg.file).parent if cfg.file else None, str(cfg.hf_hub_id)
    if folder is not None:
        return FoundStudent(read_student(folder), _run_of(folder), folder.resolve().name)
    repo_id, revision = hub_name(repo)
    try:
        found = snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD])
        if not Path(found, WEIGHTS).is_file():
            found = snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG, PICKLE, CARD])
    except Exception as error:  # of the connection, the name or the repository
        raise hub_error(model, error) from error
    return FoundStudent(read_student(found), None, repo_id.rpartition("/")[2])


def _is_segmentation(repo: str) -> bool:
    """Return whether a repository is that of a segmentation student; not if its config cannot be read."""
    repo_id, revision = hub_name(repo)
    try:
        config = read_json(Path(hf_hub_download(repo_id, CONFIG, revision=revision)))
    except Exception:  # of the connection, the name or the repository, which loading the model then names
        return False
    return "backbone" in config


def _local_folder(model: str) -> Path | None:
    path = Path(model.removeprefix("local-dir:"))
    if student := student_in(path):
        return student
    if path.exists() and not timm.is_model(model):
        raise UserError(f"{model} is neither a finished run nor an exported student: there is no config.json.")
    if model.startswith("local-dir:") or (":" not in model and len(path.parts) > 1):
        hint = "" if path.is_absolute() or len(path.parts) != 2 else f"; on the Hub it would be hf-hub:{model}"
        raise UserError(f"{model}: there is no such folder{hint}.")
    return None


def _run_of(student: Path) -> Path | None:
    """Return the folder of the run that a student is in; other programs write a config.yaml as well."""
    run, name = student.resolve().parent, student.resolve().name
    is_run = name in (STUDENT, BACKBONE) and (run / SETTINGS).is_file() and (run / METRICS).is_file()
    return run if is_run else None
