"""The start of a run: checks of what is needed at its end, and a description for the user."""

import os
import shutil
import sys
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from frskd_timm.errors import UserError
from frskd_timm.student_task import StudentTask
from frskd_train.data import TrainingData
from frskd_train.data.sampler import Order
from frskd_train.errors import size_text
from frskd_train.optim import check_optimizer, lr_note
from frskd_train.publish.repository import check_repo_id, refuse_missing_access
from frskd_train.report.baseline import read_baseline
from frskd_train.report.formats import check_onnx
from frskd_train.report.metrics import SeedRuns
from frskd_train.run.resume import Resume
from frskd_train.run.state import RunState
from frskd_train.settings import Settings, declared, flag, flat
from frskd_train.settings.constraints import LOCAL
from frskd_train.settings.recipe import training_names
from frskd_train.system.sync_batchnorm import refuse_single_values
from frskd_train.tasks import Job


def refuse_missing_compiler(device: torch.device) -> None:
    """Raise UserError if `torch.compile` lacks the compiler that it calls: for C on CUDA (Triton), else for C++."""
    if device.type == "cuda":
        variable, language, names = "CC", "C", ["gcc", "clang"]
    else:
        variable, language, names = "CXX", "C++", ["clang++" if sys.platform == "darwin" else "g++"]
    names = [os.environ[variable]] if os.environ.get(variable) else names
    if not any(map(shutil.which, names)):
        problem = f"--torchcompile needs a {language} compiler, and there is no {names[0]}"
        raise UserError(f"{problem}: install it, or set {variable}.")


def preflight(job: Job, accelerator: Accelerator, is_new: bool = True) -> None:
    """Raise UserError, before the data are loaded, if something is impossible that is needed later."""
    settings, run = job.settings, job.settings.run
    check_optimizer(settings.optimizer, accelerator.device)
    if settings.loop.torchcompile:
        refuse_missing_compiler(accelerator.device)
    if not accelerator.is_main_process:  # which alone publishes, converts and compares
        return
    if "onnx" in run.export:
        check_onnx()
    if run.push_to_hub is not None:
        check_repo_id("--push-to-hub", run.push_to_hub)
        refuse_missing_access()
    if is_new:
        find_baseline(job, accelerator)


def find_baseline(
    job: Job, accelerator: Accelerator, data: TrainingData | None = None, state: RunState | None = None
) -> SeedRuns | None:
    """Return the runs of `--baseline`; None without it, and in all processes but the first.

    The data and the state of the run are compared as well, if they are given. If settings changed during the run, a
    baseline in which they did not change in the same way is left out, with a note. Otherwise UserError is raised if the
    baseline cannot be compared.
    """
    folders, changes = job.settings.run.baseline, state.changed_settings if state else []
    if not folders or not accelerator.is_main_process:
        return None
    facts: dict[str, Any] = {"processes": accelerator.num_processes, "fingerprint": data and data.fingerprint}
    try:
        return read_baseline(folders, job.settings, job.score_names.score, **facts, changes=changes)
    except UserError as error:
        if not changes:
            raise
        print(f"{error} It is left out.")
        return None


def refuse_batches_of_one(task: StudentTask, data: TrainingData, order: Order, sync_bn: bool) -> None:
    """Raise UserError if each process has one image per batch, and batch normalisation one value of a channel."""
    if order.per_process == 1 and not (sync_bn and order.world_size > 1):
        refuse_single_values(task, data.preprocessing.input_size)


def refuse_disagreement(
    settings: Settings, data: TrainingData, accelerator: Accelerator, resume: Resume | None
) -> None:
    """Raise UserError if processes have different settings, data or checkpoints; all of them call it together."""
    facts, values = declared(Settings), flat(settings)
    names = [name for name in (*training_names(), "seed", "val_interval", "log_interval") if LOCAL not in facts[name]]
    own = {flag(name): values[name] for name in names}
    own |= {"the fingerprint of the data": data.fingerprint, "the number of training images": data.num_train}
    own |= {"the mode of the data": data.mode, "the precision": accelerator.mixed_precision}
    own["the checkpoint"] = resume.checkpoint.name if resume and resume.checkpoint else None
    for rank, other in enumerate(gather_object([own])):
        for name, value in own.items():
            if other[name] != value:
                raise UserError(
                    f"Processes differ: {name} is {value} in process {accelerator.process_index} and {other[name]} in "
                    f"process {rank}; give all of them the same command, data and --output-dir."
                )


def describe(job: Job, data: TrainingData, task: StudentTask, accelerator: Accelerator) -> str:
    """Describe the run in two lines, with more if the learning rate is unusual or the student will be published."""
    size = size_text(*data.preprocessing.input_size[1:])
    student = sum(p.numel() for p in task.student.parameters()) / 1e6
    average = getattr(task, "average", None)  # of student and self-teacher, for soft labels
    kept = [p for part in (task.student, average) if part is not None for p in part.parameters()]
    rest = sum(p.numel() for p in task.parameters()) / 1e6 - sum(p.numel() for p in kept) / 1e6
    extra = f" + {rest:.2f}M in the self-teacher, discarded after training" if rest else ""
    precision, loop, hub = str(accelerator.mixed_precision), job.settings.loop, job.settings.run.push_to_hub
    if precision == "no" and accelerator.device.type == "cuda" and loop.amp:
        precision = "float32, because this GPU has no bfloat16 (--amp-dtype float16 may be faster)"
    return (
        f"{job.settings.method.method}: {job.settings.model.model} ({student:.2f}M parameters{extra})\n"
        f"data: {data.name}, {data.num_train} training and {data.num_val} validation images "
        f"({'held out of' if data.val_split == data.train_split else 'split'} {data.val_split}), "
        f"{data.num_classes} classes, {size}, {'in memory' if data.mode == 'memory' else 'streamed'}; "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, {torch.get_num_threads()} thread(s), "
        f"precision {precision}{lr_note(job.settings.optimizer)}"
        + (f"\nafter training, the student and pictures of validation images go to {hub} on the Hub" if hub else "")
    )
