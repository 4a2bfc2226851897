"""`frskd validate` and `validate.py`: score a model on a dataset."""

import json
import sys
from collections.abc import Sequence

from frskd_train.errors import SettingsError, exit_process, exit_with_error
from frskd_train.parse import parse_evaluation
from frskd_train.settings import EvaluationSettings, LoopSettings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one evaluation; exit with status 2 after an error that the user can fix."""
    try:
        settings = parse_evaluation(sys.argv[1:] if arguments is None else arguments)
    except SettingsError as error:
        exit_with_error(error)
    from frskd_timm.errors import UserError

    try:
        evaluate(settings)
    except UserError as error:
        exit_with_error(error)
    exit_process(0)


def evaluate(settings: EvaluationSettings) -> None:
    """Load the model and the data, print the scores and store them; for a run's student in the run's folder.

    Raises:
        UserError: The model or the data cannot be used, or the scores are not finite or cannot be stored.
    """
    # Imported here, so that --help and a wrong flag answer at once.
    from frskd_train.device import start_accelerator
    from frskd_train.evaluate import evaluate as score
    from frskd_train.evaluate import refuse_nonfinite, storable
    from frskd_train.students import load_for_evaluation
    from frskd_train.tasks import job_of

    loop = LoopSettings(amp=settings.amp, amp_dtype=settings.amp_dtype, threads=settings.threads)
    accelerator = start_accelerator(loop)
    model, run = load_for_evaluation(settings.model)
    model.to(accelerator.device).eval()
    job = job_of(model)
    data = job.load_validation(settings.data, settings.fit, model, progress=accelerator.is_main_process)
    output = storable(settings.output or (run and run / f"evaluation-{data.name}.json"))
    batches = data.val_batches(
        settings.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=accelerator.device,
    )
    scores = score(job.measure, lambda images: {"student": model(images)}, batches, accelerator)
    notes = *data.notes, *data.bad_images()  # all processes know of images that were left out
    if not accelerator.is_main_process:
        return
    for note in notes:
        print(note)
    found = refuse_nonfinite(scores, settings.model)
    result = {
        "model": settings.model,
        "dataset": data.name,
        "split": data.val_split,
        "images": int(found["images"]),
        **{name: round(found[name], 4) for name in (*job.shown, "loss")},
        **settings.fit.given(),
        "img_size": data.preprocessing.input_size[1],
        "param_count": sum(p.numel() for p in model.parameters()),
    }
    figures = "  ".join(f"{label} {result[name]:.2f}%" for name, label in job.shown.items())
    print(f"{figures}  loss {result['loss']:.4f}  ({result['images']} images)")
    if output is not None:
        output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"Stored in {output}.")
