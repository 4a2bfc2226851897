"""The end of a run: pictures, metrics, the exported student, and the summary that the user reads."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.task import StudentTask
from frskd_train.data import TrainingData
from frskd_train.device import machine_name
from frskd_train.progress import duration
from frskd_train.recipe import write_recipe
from frskd_train.report.card import write_card
from frskd_train.report.figures import curves_figure
from frskd_train.report.onnx import export_onnx
from frskd_train.report.publish import push_student
from frskd_train.report.student_folder import StudentFolder
from frskd_train.run_folder import RunFolder
from frskd_train.settings import RunSettings, default_settings
from frskd_train.tasks import Job
from frskd_train.tasks.base import Scores


def make_metrics(
    job: Job,
    data: TrainingData,
    student: nn.Module,
    accelerator: Accelerator,
    scores: Scores,
    history: Sequence[Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """All that is known of a finished run, for `metrics.json`, the card and the zoo's table."""
    settings = job.settings
    rounded = {name: _rounded(found, data.class_names) for name, found in scores.items()}
    speeds = [row["images_per_second"] for row in history]
    device = accelerator.device
    return {
        "schema": 1,
        "task": settings.model.task,
        "method": settings.method.method,
        **job.about_student(student),
        "tag": settings.run.tag or data.name,
        "license": settings.run.license,
        "dataset": {
            "name": data.name,
            "id": data.id,
            "split": data.val_split,
            "license": data.license,
            "homepage": data.homepage,
            "train_images": data.num_train,
            "val_images": data.num_val,
            "num_classes": data.num_classes,
            # Scores on a sample or on held-out training images are no scores on the dataset.
            "whole_split": data.val_split != data.train_split
            and settings.data.dataset != default_settings(settings.model.task).data.dataset,
        },
        "student": rounded["student"],
        "self_teacher": rounded.get("self_teacher"),
        "weights": "ema" if settings.loop.model_ema else "student",
        "param_count": sum(p.numel() for p in student.parameters()),
        "img_size": data.preprocessing.input_size[1],
        "epochs": settings.optimizer.epochs,
        "epoch": len(history),
        "seed": settings.loop.seed,
        "seconds": round(seconds, 1),
        "images_per_second": round(sum(speeds) / len(speeds), 1) if speeds else None,
        "machine": {
            "device": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else machine_name(),
            "cores": torch.get_num_threads() * accelerator.num_processes if device.type == "cpu" else None,
            "processes": accelerator.num_processes,
            "precision": {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(accelerator.mixed_precision),
        },
        "versions": {
            "frskd_timm": version("frskd-timm"),
            "torch": str(torch.__version__),
            "timm": version("timm"),
            "python": platform.python_version(),
        },
        "baseline": read_baseline(settings.run.baseline, job.score) if settings.run.baseline else None,
    }


def _rounded(scores: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Scores of one network as `metrics.json` holds them; those of each class by its name."""
    found: dict[str, Any] = {}
    for name, value in scores.items():
        if isinstance(value, list):
            by_class = zip(class_names, value, strict=True)
            found[name] = {label: None if each is None else round(each, 4) for label, each in by_class}
        elif name != "images":
            found[name] = round(value, 4)
    return found


def read_baseline(folders: Sequence[str], score: str = "top1") -> dict[str, Any]:
    """Scores of `--method ce` runs, as the card shows them beside this run's.

    Raises:
        UserError: A folder holds no finished cross-entropy run.
    """
    runs = []
    for folder in folders:
        path = Path(folder) / "metrics.json"
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            runs.append({"seed": metrics["seed"], score: metrics["student"][score]})
            method = metrics["method"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--baseline {folder} is no finished run: {path} cannot be read ({error}).") from error
        if method != "ce":
            raise UserError(f"--baseline {folder} was trained with --method {method}, not ce.")
    scores = [run[score] for run in runs]
    spread = {"std": statistics.stdev(scores)} if len(scores) > 1 else {}
    return {"method": "ce", "runs": runs, "mean": statistics.mean(scores), **spread}


def finish_run(
    folder: RunFolder,
    job: Job,
    data: TrainingData,
    task: StudentTask,
    student: nn.Module,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Writes metrics, pictures and the student's folder; main process only."""
    folder.write_metrics(metrics)
    pictures = [curves_figure(history, folder.path / "curves.png"), *job.draw(folder.path, data, task)]

    def complete(aside: Path) -> None:
        for picture in pictures:
            (aside / picture.name).write_bytes(picture.read_bytes())
        heading = f"The settings that made {metrics['model']}, tag {metrics['tag']}."
        recipe = write_recipe(job.settings, heading, portable=True)
        (aside / "recipe.yaml").write_text(recipe, encoding="utf-8")
        write_card(aside, metrics)

    job.export(folder, data, student, metrics, complete)
    if "onnx" in job.settings.run.export:
        export_onnx(folder.student, folder.path / "student.onnx", size=data.preprocessing.input_size[1:])


def preflight(run: RunSettings, score: str) -> None:
    """Makes sure, before training, that what is to be made at the end can be made.

    Raises:
        UserError: The baseline is no finished run, a package for the export is missing, or nobody is logged in.
    """
    if run.baseline:
        read_baseline(run.baseline, score)
    if "onnx" in run.export:
        missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
        if missing:
            raise UserError(f"--export onnx needs {', '.join(missing)}: pip install 'frskd-timm[onnx]'.")
    if run.push_to_hub is not None:
        try:
            validate_repo_id(run.push_to_hub)
        except HFValidationError as error:
            raise UserError(f"--push-to-hub {run.push_to_hub} is no OWNER/NAME: {error}") from error
        if "/" not in run.push_to_hub:
            raise UserError(f"--push-to-hub needs OWNER/NAME, not {run.push_to_hub}.")
        if get_token() is None:
            raise UserError("--push-to-hub needs an access token: run `hf auth login`, or set HF_TOKEN.")


def publish(folder: RunFolder, run: RunSettings) -> None:
    """Pushes the student, where that was asked for.

    Raises:
        UserError: It did not work; the run is finished all the same, and the message says how to push it again.
    """
    if run.push_to_hub is not None:
        try:
            push_student(folder.student, run.push_to_hub, private=run.hub_private)
        except UserError as error:
            again = f"python hub/push.py {folder.student} --repo-id {run.push_to_hub}"
            raise UserError(f"{error} The run is finished; push it again by: {again}") from error


def summary(folder: RunFolder, job: Job, metrics: Mapping[str, Any]) -> str:
    """The last lines of a run."""
    score, name = job.score, job.shown[job.score]
    lines = [
        "",
        f"student       {name} {metrics['student'][score]:.2f}%   ({metrics['dataset']['val_images']} images)",
    ]
    if metrics["self_teacher"]:
        lines.append(f"self-teacher  {name} {metrics['self_teacher'][score]:.2f}%   (thrown away)")
    if metrics["baseline"]:
        lines.append(f"baseline      {name} {metrics['baseline']['mean']:.2f}%   (cross-entropy alone)")
    speed = f"{metrics['images_per_second']:.0f} images/s" if metrics["images_per_second"] else ""
    lines += [
        f"took          {duration(metrics['seconds'])}   {speed}",
        f"student in    {folder.student}",
        "load it       " + load_line(folder.student),
    ]
    return "\n".join(lines)


def load_line(folder: Path) -> str:
    """The line of Python that loads an exported student."""
    student = StudentFolder(folder)
    return f"{student.imports}; {student.load_line(f'local-dir:{folder.as_posix()}')}"


def describe(job: Job, data: TrainingData, task: StudentTask, accelerator: Accelerator) -> str:
    """What is about to happen, in two lines."""
    size = "x".join(map(str, data.preprocessing.input_size[1:]))
    student = sum(p.numel() for p in task.student.parameters()) / 1e6
    rest = sum(p.numel() for p in task.parameters()) / 1e6 - student
    extra = f" + {rest:.2f}M thrown away at the end" if rest else ""
    return (
        f"{job.settings.method.method}: {job.settings.model.model} ({student:.2f}M parameters{extra})\n"
        f"data: {data.name}, {data.num_train} training and {data.num_val} validation images, "
        f"{data.num_classes} classes, {size}, {'in memory' if data.mode == 'memory' else 'streamed'}; "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, {torch.get_num_threads()} thread(s), "
        f"precision {accelerator.mixed_precision}"
    )
