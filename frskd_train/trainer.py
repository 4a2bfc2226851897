"""The training loop: one run, from its settings to the exported student."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list, set_seed
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from frskd_timm.augment import TwoViews
from frskd_train import start_of_run
from frskd_train.data.sampler import step_seed
from frskd_train.end_of_run import EndOfRun
from frskd_train.errors import printable
from frskd_train.optim import base_lr, create_optimizer, create_scheduler, follow_plateau, with_scaled_lr
from frskd_train.run import memory, trackers
from frskd_train.run.checkpoint import checkpoint_name, load_state, prune, restore, save_checkpoint, set_aside_after
from frskd_train.run.folder import RunFolder, choose_folder
from frskd_train.run.meter import NonfiniteGuard, TrainMeter, learning_note
from frskd_train.run.progress import Progress
from frskd_train.run.resume import Resume, check_resume, find_resume, notes_for_recipe, refuse_if_continued, run_facts
from frskd_train.run.state import RunState
from frskd_train.scoring.evaluate import Scores, evaluate
from frskd_train.settings import Settings, flat
from frskd_train.settings.recipe import SETTINGS, repeat_note, write_recipe
from frskd_train.system.convolutions import adapt_convolutions
from frskd_train.system.device import start_accelerator
from frskd_train.system.exits import exit_process
from frskd_train.system.signals import Interruptions
from frskd_train.system.sync_batchnorm import synchronise_norms
from frskd_train.tasks import choose_job


class Trainer:
    """One training run: the constructor sets everything up and resumes, `run` trains and finishes.

    All random numbers depend only on the seed and the step, so that a resumed run needs no generator state.
    Raises UserError for unusable settings or data.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        run = settings.run
        self.accelerator = start_accelerator(settings.loop, trackers.chosen_trackers(run.report_to), run.output_dir)
        self.is_main = self.accelerator.is_main_process
        set_seed(settings.loop.seed)
        self.job = choose_job(settings)
        resume = find_resume(run.resume, run.output_dir)
        start_of_run.preflight(self.job, self.accelerator, is_new=resume is None)
        if resume is None and run.output_dir is not None:
            RunFolder(Path(run.output_dir)).refuse_if_taken()
        saved = load_state(resume.checkpoint) if resume and resume.checkpoint else {}
        if self.is_main:
            print(f"Loading {settings.data.dataset}.", flush=True)
        self._load_data_and_task(saved)
        start_of_run.refuse_disagreement(settings, self.data, self.accelerator, resume)
        self._create_optimizer()
        self._open_folder(resume)
        if resume is not None:
            self._resume(resume, saved)
        baseline = start_of_run.find_baseline(self.job, self.accelerator, self.data, self.state)
        if self.is_main:
            heading = [f"Settings of the run {printable(self.folder.path.resolve().name)}."]
            heading += [*repeat_note(self.accelerator.num_processes, settings.loop.batch_size), *self.state.changes]
            self.folder.write(SETTINGS, write_recipe(settings, "\n".join(heading)))
        trackers.start_trackers(self.accelerator, settings, self.folder.path)
        self.end_of_run = EndOfRun(
            self.folder, self.job, self.data, self.task, self.exported, self.accelerator, self.state, baseline
        )

    def run(self) -> None:
        """Train the remaining epochs, then score, export and publish; raise UserError if that fails."""
        self.guard = NonfiniteGuard(self.task) if self.settings.loop.skip_nonfinite else None
        scores: Scores = {}
        with Interruptions(self.accelerator) as self.interruptions:
            while self.state.epoch < self.settings.optimizer.epochs:
                with memory.enough_for_training(self.settings.loop, self.data, self.folder, self.state):
                    self.train_epoch()
                with memory.enough_for_validation(self.settings.loop, self.folder):
                    scores = self.close_epoch()
            with memory.enough_for_validation(self.settings.loop, self.folder):
                self.finish(scores)

    def _load_data_and_task(self, saved: dict[str, Any]) -> None:
        loop, accelerator = self.settings.loop, self.accelerator
        self.initial_cfg = saved.get("initial_cfg", self.job.initial_cfg())
        self.data = self.job.load_data(self.initial_cfg, measured=saved.get("statistics"))
        self.student = self.job.build_student(self.data, load_weights=not saved)
        self.task = self.job.build_task(self.student, self.data)
        adapt_convolutions(self.task, loop.channels_last)
        if loop.sync_bn:
            synchronise_norms(self.task, accelerator.device)
        process: dict[str, Any] = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        process |= {"device": accelerator.device, "channels_last": loop.channels_last}
        clean = self.task.clean_view
        self.train_batches = self.data.train_batches(loop.batch_size, seed=loop.seed, clean_view=clean, **process)
        start_of_run.refuse_batches_of_one(self.task, self.data, self.train_batches.order, loop.sync_bn)
        self.val_batches = self.data.val_batches(loop.images_per_validation_batch, **process)
        accelerator.gradient_accumulation_steps = min(loop.grad_accum_steps, len(self.train_batches))
        self.updates_per_epoch = len(self.train_batches) // accelerator.gradient_accumulation_steps
        self.steps_per_epoch = self.updates_per_epoch * accelerator.gradient_accumulation_steps

    def _create_optimizer(self) -> None:
        loop = self.settings.loop
        images_per_update = self.train_batches.order.global_batch * self.accelerator.gradient_accumulation_steps
        self.optim = with_scaled_lr(self.settings.optimizer, images_per_update)
        optimizer = create_optimizer(
            self.optim, self.task, self.accelerator.device, is_scaled=self.accelerator.scaler is not None
        )
        self.scheduler = create_scheduler(self.optim, optimizer, self.updates_per_epoch)
        if loop.torchcompile:
            torch.nn.Module.compile(self.task)  # in place, without a wrapper and its prefix in the keys
        self.model, self.optimizer = self.accelerator.prepare(self.task, optimizer)
        self.average: nn.Module | None = None
        self.saved_modules = {"task": self.task}
        if loop.model_ema:
            average = self.task.setup_ema(loop.model_ema_decay, use_warmup=loop.model_ema_warmup)
            self.average = self.saved_modules["ema"] = average.module
        self.exported = self.student if self.average is None else self.average

    def _open_folder(self, resume: Resume | None) -> None:
        accelerator, settings = self.accelerator, self.settings
        path = resume.run if resume else choose_folder(settings.run.output_dir, settings.model.model, self.data.name)
        self.folder = RunFolder(broadcast_object_list([path])[0])  # clocks of processes may differ
        if self.is_main:
            self.folder.claim(resuming=resume is not None)
            if resume is not None:
                refuse_if_continued(resume, settings.run.resume, settings.run.output_dir)
        accelerator.wait_for_everyone()
        self.state, self.meter = RunState(self.job.score_names.score), TrainMeter(accelerator.device)
        epochs, global_batch = settings.optimizer.epochs, self.train_batches.order.global_batch
        self.progress = Progress(self.is_main, epochs, self.steps_per_epoch, global_batch, self.job.score_names.labels)
        self.progress.say(*self.data.notes, *self.train_batches.unused(settings.loop.grad_accum_steps))
        self.progress.say(start_of_run.describe(self.job, self.data, self.task, accelerator))
        self.facts = run_facts(self.data, self.initial_cfg, global_batch, accelerator.num_processes)

    def _resume(self, resume: Resume, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint, or from the beginning if the run was stopped before its first one."""
        self.progress.say(*resume.notes)
        if resume.checkpoint is None:
            return
        notes = check_resume(saved, flat(self.settings), self.facts)
        self.progress.say(*notes)
        restore(resume.checkpoint, saved, self.saved_modules, self.optimizer)
        self.state = RunState.from_saved(saved, resume.checkpoint, self.job.score_names.score)
        self.state.changes += notes_for_recipe(notes, saved, self.settings.optimizer.epochs)
        self.meter.load(saved["meter"])
        self.progress.done_before = self.state.epoch * self.steps_per_epoch + self.state.step
        if self.is_main:
            set_aside_after(resume.checkpoint)
            if self.state.history:
                self.folder.write_summary(self.state.history)  # the run may have been killed before it wrote the file
        self.progress.say(f"Resuming from {resume.checkpoint}: {self.state.place}.")

    def train_epoch(self) -> None:
        """Train until the end of the current epoch, or until a signal stops the run."""
        state = self.state
        follow_plateau(self.scheduler, self.optim, state.scores)
        if state.step >= self.steps_per_epoch:  # resumed after a failure in validation
            self.scheduler.step_update(state.updates - 1)  # for the row of the epoch
            return
        self.model.train()
        torch.backends.cudnn.benchmark = True  # all batches have the same size
        self.progress.start_epoch()
        for images, target in self.train_batches.epoch(state.epoch, start=state.step):
            updated = self.train_step(images, target)
            if updated:
                self.report()
            if state.step >= self.steps_per_epoch:
                break
            if updated:
                self.save_or_stop(checkpoint=state.minutes_since_checkpoint() > self.settings.run.checkpoint_minutes)
        if self.accelerator.device.type != "cpu":
            torch.accelerator.synchronize()  # the last steps are only queued
            self.progress.add_time()

    def train_step(self, images: Tensor | TwoViews, target: Tensor) -> bool:
        """Train on images [B, C, H, W] and their targets; return whether this completed an update of the weights."""
        state, optim, accelerator = self.state, self.optim, self.accelerator
        torch.manual_seed(step_seed(self.settings.loop.seed, state.updates, state.step, accelerator.process_index))
        self.task.set_progress(state.updates / max(1, self.updates_per_epoch * optim.epochs - 1))
        self.scheduler.step_update(state.updates)

        with accelerator.accumulate(self.model):
            result = self.model(images, target)
            accelerator.backward(result["loss"])
            discarded = bool(self.guard and accelerator.sync_gradients and self.guard.check(self.optimizer))
            if optim.clip_grad is not None and accelerator.sync_gradients:
                accelerator.unscale_gradients(self.optimizer)
                clipped = self.task.get_clip_parameters(exclude_head=optim.clip_mode == "agc")
                dispatch_clip_grad(clipped, optim.clip_grad, mode=optim.clip_mode)
            self.optimizer.step()
            self.optimizer.zero_grad()

        self.meter.update(result, accelerator if self.guard else None, accelerator.sync_gradients, discarded)
        self.progress.step()
        state.step += 1
        if accelerator.device.type == "cpu":  # on other devices this would synchronise at every step
            self.refuse_nonfinite()
        if not accelerator.sync_gradients:
            return False
        state.updates += 1
        self.task.update_ema(step=state.updates)
        return True

    def report(self) -> None:
        """Print and log progress, if due after this update."""
        state = self.state
        if state.updates % self.settings.run.log_interval:
            return
        self.refuse_nonfinite()
        recent, lr = self.meter.recent(self.accelerator), base_lr(self.optimizer)
        self.progress.show(state.epoch, state.step, recent, lr)
        logged = {f"step/{name}": value for name, value in {**recent, "lr": lr}.items()}
        trackers.log(self.accelerator, logged, state.updates)

    def save_or_stop(self, checkpoint: bool, saved: bool = False) -> None:
        """Save a checkpoint if one is due, unless it has just been saved; stop if that was requested."""
        if self.progress.closed:
            self.interruptions.output_closed()
        stop_now, save_now = self.interruptions.due(self.state.updates, checkpoint=checkpoint)
        if save_now and not saved:
            self.save()
        if stop_now:
            continuing = self.folder.continuing(self.accelerator.num_processes)
            self.progress.say(f"Stopped in {self.state.place}. {continuing}")
            trackers.end(self.accelerator)
            exit_process(self.interruptions.exit_code)

    def close_epoch(self) -> Scores:
        """Validate if it is due, log the epoch's row and save a checkpoint; return the scores, if any."""
        state, meter, accelerator = self.state, self.meter, self.accelerator
        is_last = state.epoch + 1 == self.settings.optimizer.epochs
        is_due = is_last or (state.epoch + 1) % self.settings.run.val_interval == 0
        if is_due and accelerator.num_processes > 1:  # validation may fail in one, or outlast a launcher's patience
            self.save()
        try:
            scores = self.validate() if is_due else {}
        except Exception:  # models raise various errors
            if accelerator.num_processes == 1:  # several processes may disagree on the failure
                self.save()
                if is_last:
                    self.end_of_run.export()
            raise
        row = {"lr": base_lr(self.optimizer), **meter.means(accelerator), **self.job.columns(scores)}
        self.refuse_nonfinite()
        if self.settings.loop.skip_nonfinite:
            row["skipped_steps"] = meter.bad_steps()
        state.finish_epoch({**row, "images_per_second": round(self.progress.images_per_second, 1)})
        outputs: Any = self.student.num_classes  # may be more than the classes of the data
        cross_entropy = self.job.cross_entropy(meter.recent(accelerator), self.task)
        note = learning_note(state.history, cross_entropy, self.job.score_names.labels, outputs, state.updates)
        self.meter = TrainMeter(accelerator.device)
        self.progress.close_epoch(state.history[-1], note)
        self.save()
        trackers.log(accelerator, row, state.updates)
        if not is_last:  # after the last one, the run is finished instead
            self.save_or_stop(checkpoint=False, saved=True)
        return scores

    def validate(self) -> Scores:
        """Score student (or its average if there is one) and self-teacher on the validation images."""
        for module in self.saved_modules.values():
            broadcast(list(module.eval().buffers()))  # running statistics of the main process
        predict = partial(self.task.predict, average=self.average)
        return evaluate(self.task.create_evaluator, predict, self.val_batches, self.accelerator)

    def save(self) -> None:
        """Write a checkpoint and `summary.csv`; all processes call it together."""
        self.refuse_nonfinite()
        state, folder = self.state, self.folder
        state.count_time()  # on all processes, which check the interval between checkpoints
        meter = self.meter.state(self.accelerator)
        if self.is_main:
            content = {**state.to_saved(), **self.facts, "meter": meter, "settings": flat(self.settings)}
            save_checkpoint(folder.checkpoints, state.updates, self.saved_modules, self.optimizer, content)
            prune(folder.checkpoints, self.settings.run.checkpoint_hist, state.best_checkpoint)
            folder.write_summary(state.history)
        state.last_checkpoint = folder.checkpoints / checkpoint_name(state.updates)
        self.accelerator.wait_for_everyone()

    def refuse_nonfinite(self) -> None:
        """Raise UserError if more steps of this epoch than `--skip-nonfinite` had a loss that is not finite."""
        self.meter.refuse_bad(self.settings.loop.skip_nonfinite, self.state.epoch, self.state.last_checkpoint)

    def finish(self, scores: Scores) -> None:
        """Export the student, write the run's report and publish."""
        self.progress.say(*self.data.bad_images())
        if self.is_main:
            self.end_of_run.export()  # before anything else can fail
        scores = scores or self.validate()  # there are no scores if a finished run was resumed
        evaluation = self.end_of_run.evaluate()
        if self.is_main:
            self.progress.say(*self.end_of_run.report(scores, evaluation))
            trackers.log_pictures(self.accelerator, self.folder.path.glob("*.png"), self.state.updates)
            trackers.end(self.accelerator)  # the run is complete, even if it cannot be published
            self.end_of_run.publish()  # the other processes do not wait for it
