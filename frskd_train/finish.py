"""The end of a run: pictures, metrics, the exported student, and the summary that the user reads."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.export import export_student
from frskd_timm.hub.card import write_card
from frskd_timm.hub.onnx import export_onnx
from frskd_timm.hub.pictures import attention_figure, curves_figure
from frskd_timm.hub.publish import push_student
from frskd_timm.models import stock_name
from frskd_timm.task import FRSKDTask, StudentTask
from frskd_train.data import ImageData
from frskd_train.folder import RunFolder
from frskd_train.machine import machine_name
from frskd_train.parse import write_recipe
from frskd_train.progress import duration
from frskd_train.settings import DataSettings, RunSettings, Settings

PICTURED = 5  # validation images on the attention picture


def make_metrics(
    settings: Settings,
    data: ImageData,
    student: nn.Module,
    accelerator: Accelerator,
    scores: Mapping[str, Mapping[str, float]],
    history: Sequence[Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """All that is known of a finished run, for `metrics.json`, the card and the zoo's table."""
    pre = data.preprocessing
    rounded = {name: {key: round(v, 4) for key, v in s.items() if key != "images"} for name, s in scores.items()}
    speeds = [row["images_per_second"] for row in history]
    device = accelerator.device
    named = ":" not in settings.model.model  # otherwise a folder or repository, which says what it holds
    model = settings.model.model if named else student.pretrained_cfg["architecture"]  # type: ignore[index]
    return {
        "schema": 1,
        "task": "classification",
        "method": settings.method.method,
        "model": model,
        "architecture": stock_name(model.split(".")[0]) or model.split(".")[0],
        "tag": settings.run.tag or data.name,
        "dataset": {
            "name": data.name,
            "id": data.id,
            "split": data.val_split,
            "license": data.license,
            "homepage": data.homepage,
            "train_images": data.train_rows,
            "val_images": data.val_rows,
            "num_classes": data.num_classes,
            # Scores on a sample or on held-out training images are no scores on the dataset.
            "whole_split": data.val_split != data.train_split and settings.data.dataset != DataSettings().dataset,
        },
        "student": rounded["student"],
        "self_teacher": rounded.get("self_teacher"),
        "weights": "ema" if settings.loop.model_ema else "student",
        "param_count": sum(p.numel() for p in student.parameters()),
        "img_size": pre.input_size[1],
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
        "baseline": read_baseline(settings.run.baseline) if settings.run.baseline else None,
    }


def read_baseline(folders: Sequence[str]) -> dict[str, Any]:
    """Scores of `--method ce` runs, as the card shows them beside this run's.

    Raises:
        UserError: A folder holds no finished cross-entropy run.
    """
    runs = []
    for folder in folders:
        path = Path(folder) / "metrics.json"
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            runs.append({"seed": metrics["seed"], "top1": metrics["student"]["top1"]})
            method = metrics["method"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--baseline {folder} is no finished run: {path} cannot be read ({error}).") from error
        if method != "ce":
            raise UserError(f"--baseline {folder} was trained with --method {method}, not ce.")
    scores = [run["top1"] for run in runs]
    spread = {"std": statistics.stdev(scores)} if len(scores) > 1 else {}
    return {"method": "ce", "runs": runs, "mean": statistics.mean(scores), **spread}


def finish_run(
    folder: RunFolder,
    settings: Settings,
    data: ImageData,
    task: StudentTask,
    student: nn.Module,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Writes metrics, pictures and the student's folder; main process only."""
    folder.write_metrics(metrics)
    curves_figure(history, folder.path / "curves.png")
    pictures = [folder.path / "curves.png"]
    if isinstance(task, FRSKDTask):
        draw_attention(folder.path / "attention.png", data, task)
        pictures.append(folder.path / "attention.png")

    def complete(aside: Path) -> None:
        for picture in pictures:
            (aside / picture.name).write_bytes(picture.read_bytes())
        recipe = write_recipe(settings, f"The settings that made {metrics['model']}, tag {metrics['tag']}.")
        (aside / "recipe.yaml").write_text(recipe, encoding="utf-8")
        write_card(aside, metrics)

    pre = data.preprocessing
    export_student(
        student,
        folder.student,
        tag=metrics["tag"],
        input_size=pre.input_size,
        mean=pre.mean,
        std=pre.std,
        interpolation=pre.interpolation,
        crop_pct=pre.crop_pct,
        crop_mode=pre.crop_mode,
        label_names=data.class_names if len(data.class_names) == student.num_classes else None,
        license=settings.run.license,
        dataset=data.name,
        method=settings.method.method,
        finish=complete,
    )
    if "onnx" in settings.run.export:
        export_onnx(folder.student, folder.path / "student.onnx")


def check_wishes(run: RunSettings) -> None:
    """Makes sure, before training, that what is to be made at the end can be made.

    Raises:
        UserError: The baseline is no finished run, a package for the export is missing, or nobody is logged in.
    """
    if run.baseline:
        read_baseline(run.baseline)
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


@torch.no_grad()
def draw_attention(path: Path, data: ImageData, task: FRSKDTask) -> None:
    """Draws attention maps of student and self-teacher for a few validation images of different classes."""
    task.eval()
    device = next(task.parameters()).device
    found: dict[int, Tensor] = {}
    for images, target in data.val_batches(256, device=device):
        for image, label in zip(images, target.tolist(), strict=True):
            found.setdefault(label, image)
        if len(found) >= PICTURED:
            break
    labels = sorted(found)[:PICTURED]
    images = torch.stack([found[label] for label in labels])
    maps, _ = task.pyramid(task.student, images)
    refined, _ = task.refine(maps)
    mean = torch.tensor(data.preprocessing.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(data.preprocessing.std, device=device).view(1, -1, 1, 1)
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    attention_figure(
        np.ascontiguousarray(pixels),
        [_attention(m) for m in maps],
        [_attention(m) for m in refined],
        [data.class_names[label] for label in labels],
        path,
    )


def _attention(maps: Tensor) -> np.ndarray:
    """[B, C, H, W] to the [B, H, W] that the feature loss compares, but for its length."""
    return maps.float().square().mean(dim=1).cpu().numpy()


def summary(folder: RunFolder, metrics: Mapping[str, Any]) -> str:
    """The last lines of a run."""
    lines = ["", f"student       top-1 {metrics['student']['top1']:.2f}%   ({metrics['dataset']['val_images']} images)"]
    if metrics["self_teacher"]:
        lines.append(f"self-teacher  top-1 {metrics['self_teacher']['top1']:.2f}%   (thrown away)")
    if metrics["baseline"]:
        lines.append(f"baseline      top-1 {metrics['baseline']['mean']:.2f}%   (cross-entropy alone)")
    speed = f"{metrics['images_per_second']:.0f} images/s" if metrics["images_per_second"] else ""
    lines += [
        f"took          {duration(metrics['seconds'])}   {speed}",
        f"student in    {folder.student}",
        "load it       " + load_line(folder.student, metrics["architecture"]),
    ]
    return "\n".join(lines)


def load_line(student: Path, architecture: str) -> str:
    """The line of Python that loads an exported student."""
    call = f"timm.create_model('local-dir:{student.as_posix()}', pretrained=True)"
    return f"import timm; {call}" if stock_name(architecture) == architecture else f"import timm, frskd_timm; {call}"


def score_columns(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Scores under the names of `summary.csv`."""
    if not scores:
        return {}
    student = scores["student"]
    columns = {"top1": student["top1"], "top5": student["top5"], "val_loss": student["loss"]}
    if "self_teacher" in scores:
        columns["teacher_top1"] = scores["self_teacher"]["top1"]
    return columns


def describe(settings: Settings, data: ImageData, task: StudentTask, accelerator: Accelerator) -> str:
    """What is about to happen, in two lines."""
    size = "x".join(map(str, data.preprocessing.input_size[1:]))
    student = sum(p.numel() for p in task.student.parameters()) / 1e6
    rest = sum(p.numel() for p in task.parameters()) / 1e6 - student
    extra = f" + {rest:.2f}M thrown away at the end" if rest else ""
    return (
        f"{settings.method.method}: {settings.model.model} ({student:.2f}M parameters{extra})\n"
        f"data: {data.name}, {data.train_rows} training and {data.val_rows} validation images, "
        f"{data.num_classes} classes, {size}, {'in memory' if data.mode == 'memory' else 'streamed'}; "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, {torch.get_num_threads()} thread(s), "
        f"precision {accelerator.mixed_precision}"
    )
