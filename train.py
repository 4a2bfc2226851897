"""Trains a timm model with FRSKD and exports it: `accelerate launch train.py [--config recipe.yaml] [--flag ...]`."""

import sys
from pathlib import Path
from typing import Any

from frskd_train.distributed import start_requested_processes
from frskd_train.errors import SettingsError, exit_after_another, exit_process, exit_with_error, keep_until_exit
from frskd_train.parse import flat, parse_settings, write_recipe
from frskd_train.settings import Settings


def main(settings: Settings) -> None:
    """One run, from settings to the exported student.

    Raises:
        UserError: Something that the user can mend; before training where it can be known before.
    """
    # Imported here, so that --help and a wrong flag answer at once.
    import torch
    from accelerate.utils import broadcast_object_list, set_seed
    from timm.utils import ModelEmaV3, dispatch_clip_grad

    from frskd_timm.errors import UserError
    from frskd_train import optim as build
    from frskd_train.checkpoint import checkpoint_name, load_state, prune, restore, save_checkpoint, set_aside_after
    from frskd_train.device import start_accelerator, step_seed
    from frskd_train.meter import TrainMeter, learning_note
    from frskd_train.nonfinite import NonfiniteGuard
    from frskd_train.progress import Progress
    from frskd_train.report import run as report
    from frskd_train.run_folder import RunFolder, choose_folder, find_resume
    from frskd_train.run_state import Position, check_resume
    from frskd_train.signals import Interruptions
    from frskd_train.sync_batchnorm import broadcast_buffers, synchronise_norms
    from frskd_train.tasks import choose_job

    loop, optim, run = settings.loop, settings.optimizer, settings.run

    # The machine: processes, device and precision are Accelerate's business.
    accelerator = start_accelerator(loop, run.report_to, run.output_dir)
    set_seed(loop.seed)

    # The data, the student that fits them, the method around the student: the job says which.
    job = choose_job(settings)
    report.preflight(run, job.score)
    build.check_optimizer(optim)
    resume = find_resume(run.resume, run.output_dir)
    if resume is None and run.output_dir is not None:
        RunFolder(Path(run.output_dir)).refuse_if_taken()
    data = job.load_data(progress=accelerator.is_main_process)
    student = job.build_student(data)
    task = job.build_task(student, data)
    outputs: Any = student.num_classes  # may be more than the data have classes
    if loop.channels_last:
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if loop.sync_bn:
        synchronise_norms(task)

    # Batches. What a step sees follows from the seed and the step alone.
    process: dict[str, Any] = {
        "rank": accelerator.process_index,
        "world": accelerator.num_processes,
        "device": accelerator.device,
        "channels_last": loop.channels_last,
    }
    train_batches = data.train_batches(loop.batch_size, seed=loop.seed, **process)
    val_batches = data.val_batches(loop.validation_batch_size or 2 * loop.batch_size, **process)
    global_batch = train_batches.order.global_batch
    accelerator.gradient_accumulation_steps = min(loop.grad_accum_steps, len(train_batches))
    updates_per_epoch = len(train_batches) // accelerator.gradient_accumulation_steps
    steps_per_epoch = updates_per_epoch * accelerator.gradient_accumulation_steps
    last_update = max(1, updates_per_epoch * optim.epochs - 1)

    # Optimizer and schedule.
    optimizer = build.build_optimizer(optim, task, settings.method.teacher_lr_scale)
    scheduler = build.build_scheduler(optim, optimizer, updates_per_epoch)
    if loop.torchcompile:
        torch.nn.Module.compile(task)  # in place: no wrapper, no prefix in the keys
    model, optimizer = accelerator.prepare(task, optimizer)
    keep_until_exit(model)
    ema = ModelEmaV3(student, decay=loop.model_ema_decay, use_warmup=loop.model_ema_warmup) if loop.model_ema else None
    saved_modules = {"task": task} if ema is None else {"task": task, "ema": ema.module}

    # The run's folder, and the place in the run.
    path = resume.run if resume else choose_folder(run.output_dir, settings.model.model, data.name)
    folder = RunFolder(broadcast_object_list([path])[0])  # clocks may differ
    if accelerator.is_main_process:
        folder.claim(resuming=resume is not None)
    accelerator.wait_for_everyone()
    position, meter = Position(job.score), TrainMeter(accelerator.device)
    progress = Progress(accelerator.is_main_process, optim.epochs, steps_per_epoch, global_batch, job.shown)
    progress.say("\n".join([*data.notes, *job.notes, report.describe(job, data, task, accelerator)]))
    facts = {
        "fingerprint": data.fingerprint,
        "train_rows": data.train_rows,
        "data_mode": data.mode,
        "global_batch": global_batch,
        "processes": accelerator.num_processes,
    }
    for note in resume.notes if resume else ():
        progress.say(note)
    if resume and resume.checkpoint:
        state = load_state(resume.checkpoint)
        for note in check_resume(state, flat(settings), facts):
            progress.say(note)
        restore(resume.checkpoint, state, saved_modules, optimizer)
        position = Position.from_state(state, resume.checkpoint, job.score)
        meter.load(state["meter"])
        progress.skip(position.epoch * steps_per_epoch + position.step)
        if accelerator.is_main_process:
            set_aside_after(resume.checkpoint)
        progress.say(f"going on from {resume.checkpoint}: {position.place}")
    if accelerator.is_main_process:
        folder.write("config.yaml", write_recipe(settings, f"All settings of the run {folder.path.name}."))
    accelerator.init_trackers("frskd_timm", config={key: str(value) for key, value in flat(settings).items()})

    def refuse_bad_numbers() -> None:
        bad = meter.first_bad()
        if bad is not None and meter.bad_steps() > loop.skip_nonfinite:
            count = f", and at {meter.bad_steps()} steps of it in all" if loop.skip_nonfinite else ""
            raise UserError(
                f"{bad[0]} was not a finite number at step {bad[1] + 1} of epoch {position.epoch + 1}{count}. "
                f"The last good checkpoint: {position.last_checkpoint or 'none yet'}. "
                "A lower --lr, --clip-grad, --no-amp or --skip-nonfinite may help."
            )

    def save() -> None:
        refuse_bad_numbers()
        sums = meter.state(accelerator)
        if accelerator.is_main_process:
            state = position.to_state() | facts | {"meter": sums, "settings": flat(settings)}
            save_checkpoint(folder.checkpoints, position.updates, saved_modules, optimizer, state)
            prune(folder.checkpoints, run.checkpoint_hist, position.best["checkpoint"] if position.best else None)
            folder.write_summary(position.history)
        position.saved(folder.checkpoints / checkpoint_name(position.updates))  # every process's clock begins again
        accelerator.wait_for_everyone()

    def validate() -> dict[str, dict[str, Any]]:
        broadcast_buffers(task)
        task.eval()
        scores = job.evaluate(task.predict, val_batches, accelerator)
        if ema is not None:  # the average is what the run is for
            broadcast_buffers(ema.module)
            ema.module.eval()
            scores |= job.evaluate(lambda images: {"student": ema.module(images)}, val_batches, accelerator)
        return scores

    # Training.
    guard = NonfiniteGuard(task, accelerator.mixed_precision == "fp16") if loop.skip_nonfinite else None
    interruptions = Interruptions(accelerator)
    scores: dict[str, dict[str, Any]] = {}
    while position.epoch < optim.epochs:
        model.train()
        progress.start_epoch()
        for images, target in train_batches.epoch(position.epoch, start=position.step):
            # Dropout, too, follows from the seed and the step, so a resumed run needs no generator's state.
            torch.manual_seed(step_seed(loop.seed, position.updates, position.step, accelerator.process_index))
            task.set_progress(position.updates / last_update)
            if scheduler is not None:
                scheduler.step_update(position.updates)

            with accelerator.accumulate(model):
                result = model(images, target)
                accelerator.backward(result["loss"])
                if guard is not None and accelerator.sync_gradients:
                    guard.check(optimizer)
                if optim.clip_grad is not None and accelerator.sync_gradients:
                    accelerator.unscale_gradients(optimizer)
                    dispatch_clip_grad(task.parameters(), optim.clip_grad, mode=optim.clip_mode)
                optimizer.step()
                optimizer.zero_grad()

            meter.update(result)
            progress.step()
            position.step += 1
            if accelerator.device.type == "cpu":  # elsewhere looking costs a synchronisation
                refuse_bad_numbers()
            if not accelerator.sync_gradients:
                continue
            position.updates += 1
            if ema is not None:
                ema.update(student, step=position.updates)
            if position.step >= steps_per_epoch:
                break
            if position.updates % run.log_interval == 0:
                refuse_bad_numbers()
                recent = meter.recent(accelerator)
                progress.show(position.epoch, position.step, recent, optimizer.param_groups[0]["lr"])
            stop_now, save_now = interruptions.due(
                position.updates, checkpoint=position.minutes_since_checkpoint() > run.checkpoint_minutes
            )
            if save_now:
                save()
            if stop_now:
                progress.say(f"stopped in {position.place}; go on with: train.py --resume {folder.path}")
                accelerator.end_training()
                exit_process(130)
        progress.stop_epoch()

        is_last = position.epoch + 1 == optim.epochs
        scores = validate() if is_last or (position.epoch + 1) % run.val_interval == 0 else {}
        row = {"lr": optimizer.param_groups[0]["lr"], **meter.means(accelerator), **job.columns(scores)}
        refuse_bad_numbers()
        if loop.skip_nonfinite:
            row["skipped_steps"] = meter.bad_steps()
        position.finish_epoch({**row, "images_per_second": round(progress.images_per_second, 1)})
        recent = meter.recent(accelerator)
        complaint = learning_note(position.history, recent, job.shown, outputs, position.updates)
        meter = TrainMeter(accelerator.device)
        accelerator.log(row, step=position.updates)
        progress.close_epoch(position.history[-1])
        if complaint:
            progress.say(complaint)
        save()

    # The end: score, export, show.
    for complaint in data.bad_images():
        progress.say(complaint)
    scores = scores or validate()  # none yet where a finished run was resumed
    if accelerator.is_main_process:
        kept = ema.module if ema is not None else student
        metrics = report.make_metrics(job, data, kept, accelerator, scores, position.history, position.seconds)
        with folder.writing():
            report.finish_run(folder, job, data, task, kept, metrics, position.history)
        progress.say(report.summary(folder, job, metrics))
        report.publish(folder, run)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        chosen = parse_settings(sys.argv[1:])
        start_requested_processes()
    except SettingsError as error:
        exit_with_error(error)
    from frskd_timm.errors import UserError, first_line
    from frskd_train.device import is_loss_of_a_process

    try:
        main(chosen)
    except UserError as error:
        exit_with_error(error)
    except KeyboardInterrupt:
        exit_process(130)
    except RuntimeError as error:
        if not is_loss_of_a_process(error):
            raise
        exit_after_another(f"another process of this run ended ({first_line(error)}).")
    exit_process(0)
