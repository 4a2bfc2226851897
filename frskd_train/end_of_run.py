"""The end of a run: export, metrics, pictures, card, and the summary for the user."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from itertools import chain, count
from pathlib import Path
from platform import python_version
from statistics import harmonic_mean

import timm
import torch
from accelerate import Accelerator
from torch import nn

import frskd_timm
from frskd_timm.cost import cost
from frskd_timm.distillation import DistillationTask
from frskd_timm.errors import UserError, first_line
from frskd_timm.export.folder import BACKBONE, CARD, METRICS, RECIPE, STUDENT
from frskd_timm.export.load import read_student
from frskd_timm.student_task import StudentTask
from frskd_train.data import TrainingData
from frskd_train.publish.student import push_student
from frskd_train.report.answers import confusion_picture
from frskd_train.report.curves import curves_figure
from frskd_train.report.evaluation import EVALUATION, Evaluation
from frskd_train.report.formats import export_onnx
from frskd_train.report.metrics import SCHEMA, DatasetFacts, MachineFacts, Metrics, SeedRuns
from frskd_train.report.page import PAGE, write_report
from frskd_train.report.predictions import MISTAKES, draw_mistakes
from frskd_train.report.signature import signed
from frskd_train.run.checkpoint import all_checkpoints
from frskd_train.run.folder import RunFolder
from frskd_train.run.progress import duration
from frskd_train.run.state import RunState
from frskd_train.scoring.evaluate import UNSCORED, Scores
from frskd_train.settings import default_settings
from frskd_train.settings.recipe import repeat_note, write_recipe
from frskd_train.system.device import machine_name
from frskd_train.system.exits import exit_interrupted
from frskd_train.system.launcher import PRECISIONS
from frskd_train.tasks import Job


@dataclass
class EndOfRun:
    """What happens when the training of a run has ended; only `evaluate` is called by all processes."""

    folder: RunFolder
    job: Job
    data: TrainingData
    task: StudentTask
    student: nn.Module  # what is exported: that of the task, or its average
    accelerator: Accelerator
    state: RunState
    baseline: SeedRuns | None  # the result of `start_of_run.preflight`

    def export(self) -> None:
        """Write the student's folder with its recipe, before any other step can fail."""
        job, settings = self.job, self.job.settings
        made = f"The settings that made {job.about_student(self.student)['model']}, tag {job.tag(self.data)}."
        note = repeat_note(self.accelerator.num_processes, settings.loop.batch_size)
        heading = "\n".join([made, *note, *self.state.changes])
        if isinstance(self.task, DistillationTask):  # another version may have another default
            settings = replace(settings, method=replace(settings.method, beta=self.task.beta))
        recipe = write_recipe(settings, heading, portable=True)
        with self.folder.writing():
            for part in (STUDENT, BACKBONE):
                self._keep_edited_card(part)
            write = partial(Path.write_text, data=recipe, encoding="utf-8")
            job.export(self.folder, self.data, self.student, lambda aside: write(aside / RECIPE))

    def _keep_edited_card(self, part: str) -> None:
        """Move the card of the student or its backbone out of the folder that is replaced, if it was edited."""
        card, name = self.folder.path / part / CARD, "README." + ("edited" if part == STUDENT else f"{part}-edited")
        if card.is_file() and signed(card.read_bytes()) != card.read_bytes():
            names = chain([f"{name}.md"], (f"{name}-{number}.md" for number in count(2)))
            kept = card.replace(next(path for path in map(self.folder.path.joinpath, names) if not path.exists()))
            print(f"The {part}'s card was edited; a new one replaces it, and yours is kept as {kept}.")

    def evaluate(self) -> Evaluation | None:
        """Score the exported student, in all processes; None if no validation image could be read."""
        from frskd_train.scoring.scores import Scorer, find_temperature  # imports torchmetrics, which takes a second

        loop, student = self.job.settings.loop, self.student.eval()
        scorer = Scorer(student, self.accelerator, loop.images_per_validation_batch, channels_last=loop.channels_last)
        temperature = find_temperature(scorer, self.job.settings.data, self.data)
        return scorer.evaluate(self.data, self.job.about_student(student)["model"], temperature)

    def report(self, scores: Scores, evaluation: Evaluation | None) -> list[str]:
        """Write everything about the run beside the exported student; return the last lines for the user."""
        metrics = self.metrics(scores)
        self.write(metrics, evaluation)
        self.write_onnx()  # before the summary, which names files older than the student
        return [self.summary(metrics), self.write_page(evaluation)]

    def write(self, metrics: Metrics, evaluation: Evaluation | None) -> None:
        """Write metrics, pictures and cards beside the exported student."""
        folder, job, data = self.folder, self.job, self.data
        with folder.writing():
            folder.write(METRICS, metrics.to_json())
            if evaluation is not None:
                folder.write(EVALUATION, evaluation.to_json())
            pictures = [curves_figure(self.state.history, folder.path / "curves.png")]
            if metrics.student is not None:  # None if no validation image could be read
                pictures += job.draw(folder.path, data, self.task, self.student)
            if evaluation is not None:
                path = folder.path / "confusion.png"
                pictures.append(confusion_picture(evaluation.confusion_matrix(), evaluation.class_names, path))
            for picture in pictures:
                (folder.student / picture.name).write_bytes(picture.read_bytes())
            job.write_cards(folder, metrics, evaluation)

    def write_onnx(self) -> None:
        """Write `student.onnx` if `--export` asks for it; if that fails, print a line, because the run is finished."""
        if "onnx" not in self.job.settings.run.export:
            return
        folder, size = self.folder, self.data.preprocessing.input_size[1:]
        try:
            with folder.writing():
                export_onnx(folder.student, folder.path / "student.onnx", size=size)
        except UserError as error:
            print(f"{error} The run is finished; try again with: frskd export {folder.quoted}")

    def metrics(self, scores: Scores) -> Metrics:
        """Collect the facts about the run, whose student has been exported."""
        folder, job, data, student, state = self.folder, self.job, self.data, self.student, self.state
        settings = job.settings
        with torch.device("meta"):
            image = torch.empty(1, *data.preprocessing.input_size)
        found = cost(read_student(folder.student).skeleton(), image)
        rounded = {name: _rounded(found) for name, found in scores.items()}
        speeds = [row["images_per_second"] for row in state.history if row["images_per_second"]]
        names, device = job.about_student(student), self.accelerator.device
        _, height, width = data.preprocessing.input_size
        # Scores on a sample, on a part of the images, of other columns or classes are not scores of the dataset.
        scored, chosen = int(scores["student"]["images"]) if scores else 0, settings.data
        others = chosen.input_key, chosen.target_key, job.score_names.unit != "pixels" and chosen.class_map
        is_whole = scored == len(data.val.split.images.dataset) and not any(others)
        on_sample = chosen.dataset == default_settings(settings.model.task).data.dataset
        return Metrics(
            schema=SCHEMA,
            task=settings.model.task,
            method=settings.method.method,
            model=names["model"],
            architecture=names["architecture"],
            tag=job.tag(data),
            license=settings.run.license,
            dataset=DatasetFacts(
                name=data.name,
                id=data.id,
                split=data.val_split,
                license=data.license,
                homepage=data.homepage,
                train_images=data.num_train,
                val_images=scored,
                num_classes=data.num_classes,
                whole_split=is_whole and data.val_split != data.train_split and not on_sample,
                held_out=data.val_split == data.train_split,
                config=chosen.dataset_config,
                revision=chosen.dataset_revision,
                split_images=len(data.val.split.images.dataset),
                fingerprint=data.fingerprint,
            ),
            student=rounded.get("student"),
            self_teacher=rounded.get("self_teacher"),
            weights="ema" if settings.loop.model_ema else "student",
            param_count=found.parameters,
            img_size=height,
            img_width=width if width != height else None,
            epochs=settings.optimizer.epochs,
            epoch=len(state.history),
            seed=settings.loop.seed,
            seconds=round(state.seconds, 1),
            images_per_second=round(harmonic_mean(speeds), 1) if speeds else None,
            machine=MachineFacts(
                device=device.type,
                name=machine_name(device),
                cores=torch.get_num_threads() * self.accelerator.num_processes if device.type == "cpu" else None,
                processes=self.accelerator.num_processes,
                precision=PRECISIONS.get(self.accelerator.mixed_precision),
            ),
            versions={module.__name__: module.__version__ for module in (frskd_timm, torch, timm)}
            | {"python": python_version()},
            by_second_head=isinstance(self.task, DistillationTask) and self.task.self_teacher.beside_decoder,
            linear_probe=settings.model.linear_probe,
            changes=state.changed_settings,
            baseline=self.baseline,
            date=datetime.now(timezone.utc).date().isoformat(),
            initial=job.initial_weights(),
            gmacs=_scaled(found.multiply_adds, 1e9),
            activations=_scaled(found.activations, 1e6),
        )

    def summary(self, metrics: Metrics) -> str:
        """Return the last lines of the run."""
        folder, job = self.folder, self.job
        score, name = job.score_names.score, job.score_names.label
        if metrics.student is None:
            lines = ["", f"student       {UNSCORED}"]
        else:
            lines = ["", f"student       {name} {metrics.student[score]:.2f}%   ({metrics.dataset.val_images} images)"]
        if metrics.self_teacher:
            lines.append(f"self-teacher  {name} {metrics.self_teacher[score]:.2f}%   (discarded)")
        if metrics.baseline:
            lines.append(f"baseline      {name} {metrics.baseline.mean:.2f}%   (cross-entropy alone)")
        speed = f"{metrics.images_per_second:.0f} images/s" if metrics.images_per_second else ""
        if older := outdated(folder):
            lines.append(f"outdated      {', '.join(older)}: older than this student; make them again")
        exported = read_student(folder.student)
        lines += [
            f"took          {duration(metrics.seconds)}   {speed}",
            f"student in    {folder.student}",
            f"load it       {exported.imports}; {exported.load_line(f'local-dir:{folder.student.as_posix()}')}",
        ]
        return "\n".join(lines)

    def write_page(self, evaluation: Evaluation | None) -> str:
        """Write the report page; return a line for the user, a warning if it could not be made."""
        folder = self.folder
        try:
            if evaluation is not None:
                draw_mistakes(self.data, evaluation.mistakes, folder.path / MISTAKES)
            return f"report in     {write_report([folder.path], folder.path / PAGE)}"
        except Exception as error:  # the run is finished, whatever is wrong with its report
            return f"The report could not be made ({first_line(error)}); try again with: frskd report {folder.quoted}"

    def publish(self) -> None:
        """Push the student if `--push-to-hub` was given.

        Raises:
            UserError: Publishing failed; the run is finished anyway, and the message says how to push again.
        """
        run, student = self.job.settings.run, self.folder.student
        if run.push_to_hub is None:
            return
        private = " --private" if run.hub_private else ""
        push = f"frskd push {self.folder.quoted} --repo-id {run.push_to_hub}{private}"
        again = f"The run is finished; push again with: {push}"
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the trainer's would wait for the end of a step
        try:
            push_student(student, run.push_to_hub, private=run.hub_private)
        except UserError as error:
            raise UserError(f"{error} {again}") from error
        except KeyboardInterrupt:
            exit_interrupted(f"Publishing was interrupted. {again}")


def _scaled(count: int | None, unit: float) -> float | None:
    return None if count is None else round(count / unit, 4)


def _rounded(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in scores.items() if name != "images"}


def outdated(folder: RunFolder) -> list[str]:
    """Return the names of what `frskd export`, `validate` and `demo` made in a run's folder before training ended."""
    trained = max((path.stat().st_mtime for path in all_checkpoints(folder.checkpoints)), default=0.0)
    names = "*.onnx", "*.pt2", "evaluation-*/evaluation.json", "demo/demo.json"
    found = [path for name in names for path in sorted(folder.path.glob(name))]
    return [path.relative_to(folder.path).parts[0] for path in found if path.stat().st_mtime < trained]
