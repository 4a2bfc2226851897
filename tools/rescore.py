"""Score weights of the zoo again and rewrite their cards: `python -m tools.rescore FOLDER --dataset DATA`.

For a new version of the cards, and for a baseline or runs with other seeds that ended after the weights were shipped.
It changes neither the weights nor the scores of the self-teacher.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from frskd_timm.errors import UserError
from frskd_timm.export.folder import METRICS, RECIPE
from frskd_timm.export.load import load_student
from frskd_train.errors import SettingsError
from frskd_train.report.card import write_card
from frskd_train.report.metrics import read_metrics
from frskd_train.settings import DataSettings, LoopSettings
from frskd_train.settings.parse import read_recipe
from frskd_train.system.device import start_accelerator
from frskd_train.system.disk import write_atomically
from frskd_train.system.exits import exit_with_error
from tools import zoo
from tools.scoring import added, corruption_scores, evaluate, own_run, read_runs, sample_scores, score_runs, tidy

OTHER_MACHINE = 0.05  # largest difference of top-1 in points that another processor's arithmetic explains


def rescore(
    folder: Path,
    dataset: str,
    repeats: Sequence[Path] = (),
    baseline: Sequence[Path] = (),
    threads: int | None = None,
    root: Path = zoo.ROOT,
) -> None:
    """Rewrite scores and card of a folder of weights, its row of the results and the zoo's card.

    Args:
        folder: The weights.
        dataset: The data that the weights were validated on.
        repeats: Folders of finished runs of the recipe of the weights with other seeds.
        baseline: Folders of `--method ce` runs of this recipe. As with `repeats`, runs on the card stay there unless
            a run with the same seed is given.
        threads: CPU threads.
        root: The repository.

    Raises:
        UserError: The weights do not have their published score on these data, or a run has another recipe.
    """
    metrics, model, data = read_metrics(folder / METRICS), load_student(folder), DataSettings(dataset)
    recipe = read_recipe(str(folder / RECIPE))
    settings = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, dataset=dataset))
    others = read_runs(repeats, settings, metrics, metrics.method, "--repeats")
    plain = read_runs(baseline, settings, metrics, "ce", "--baseline")
    accelerator = start_accelerator(LoopSettings(amp=False, threads=threads))
    evaluation = evaluate(model, data, accelerator, folder.name)
    top1, before = tidy(evaluation)["top1"], (metrics.student or {})["top1"]
    if abs(top1 - before) > OTHER_MACHINE:
        raise UserError(f"{folder} scores {top1:.2f}% top-1 on these data, not {before:.2f}%.")
    every, own = metrics.repeats, own_run(metrics, top1)
    if every or others:
        every = added(every, added(own, score_runs(repeats, others, data, accelerator)) if others else own)
    metrics = dataclasses.replace(
        metrics,
        student=tidy(evaluation),
        repeats=every,
        baseline=added(metrics.baseline, score_runs(baseline, plain, data, accelerator)) if plain else metrics.baseline,
        sample=sample_scores(model, accelerator),
        corruptions=corruption_scores(model, data, accelerator),
        shipped_as=folder.name if folder.resolve().parent == (root / "frskd_timm" / "weights").resolve() else None,
    )
    write_card(folder, metrics, evaluation)
    write_atomically(folder / METRICS, metrics.to_json())
    zoo.record(metrics, root)
    print(f"Rewrote {folder / METRICS}, its card, the results and the zoo's card.")


def main() -> None:
    """Parse the arguments and rewrite the card."""
    parser = argparse.ArgumentParser(description="Score weights of the zoo again and rewrite their card.")
    parser.add_argument("folder", type=Path, help=f"folder of weights in {zoo.WAITING}/ or in the package")
    parser.add_argument("--dataset", required=True, help="the data that the weights were validated on")
    seeds = "finished runs of the same recipe with other seeds, beside those on the card"
    parser.add_argument("--repeats", type=Path, nargs="+", default=[], help=seeds)
    plain = "finished runs of the same recipe with --method ce, beside those on the card"
    parser.add_argument("--baseline", type=Path, nargs="+", default=[], help=plain)
    parser.add_argument("--threads", type=int, help="CPU threads; all cores by default")
    try:
        rescore(**vars(parser.parse_args()))
    except (UserError, SettingsError) as error:
        exit_with_error(error)


if __name__ == "__main__":
    main()
