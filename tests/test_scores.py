"""Scores compared with values computed by hand, in one process and in two, and of equal logits."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import free_port
from pictures import class_folders, pictures, save
from runs import evaluate_here, small, train_here
from timm.task import ClassificationEvaluator

from frskd_timm.errors import UserError
from frskd_timm.segmentation.evaluator import SegmentationEvaluator
from frskd_train.data import Preprocessing, load_validation
from frskd_train.report.evaluation import read_evaluation
from frskd_train.scoring.evaluate import evaluate
from frskd_train.scoring.scores import Scorer, find_temperature, refuse_unscored
from frskd_train.settings import DataSettings


def test_held_out_images_are_scored_only_while_they_can_be_identified(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    save(data, train=pictures(24))
    train_here(*small(tmp_path, "--val-fraction", 0.25, "--epochs", 1, "--output-dir", run))
    shutil.rmtree(data)
    save(data, train=pictures(24), test=pictures(9))
    evaluate_here("--model", run)
    assert "Of the 24 images of split train, 6 are scored, those that the run held out; " in capsys.readouterr().out
    scored = read_evaluation(run / "evaluation-data" / "evaluation.json")
    assert (scored.split, scored.images, scored.temperature) == ("train", 6, None)
    evaluate_here("--model", run, "--val-split", "test")
    found = read_evaluation(run / "evaluation-data-test" / "evaluation.json").temperature
    assert found is not None
    assert (found.split, found.images) == ("train", 6)
    with pytest.raises(UserError, match=r"--val-fraction has no effect: all images of split test are scored"):
        evaluate_here("--model", run, "--val-split", "test", "--val-fraction", 0.25)
    shutil.rmtree(data)
    save(data, train=pictures(30))
    with pytest.raises(UserError, match="can no longer be identified: split train had 24 images then, and has 30 now"):
        evaluate_here("--model", run)


def test_scores_of_another_column_are_not_those_of_the_dataset(tmp_path: Path) -> None:
    save(tmp_path / "data", train=pictures(12), test=pictures(9))
    for place, flags in (("plain", []), ("column", ["--target-key", "label"])):
        train_here(*small(tmp_path, *flags, "--epochs", 1, "--output-dir", tmp_path / place))
        facts = json.loads((tmp_path / place / "metrics.json").read_text())["dataset"]
        assert facts["whole_split"] == (place == "plain")


@pytest.fixture(autouse=True)
def forget_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)


def guesses() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return batches of images, logits and labels; class 3 is only predicted, some pixels are unlabelled."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number, (height, width) in enumerate([(8, 9), (5, 4), (6, 6)]):
        logits = torch.randn(number + 1, 4, height, width, generator=generator)
        logits[:, 3] -= 100
        logits[0, 3, 2, 0] = 100
        target = torch.randint(0, 3, (number + 1, height, width), generator=generator)
        target[:, :2] = 255
        batches.append((torch.full((number + 1, 1, 1, 1), float(number)), logits, target))
    return batches


def score(batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> dict[str, dict[str, Any]]:
    by_number = {float(images[0]): logits for images, logits, _ in guesses()}
    predict = lambda images: {"self_teacher": -by_number[float(images[0])], "student": by_number[float(images[0])]}
    found = ((images, target) for images, _, target in batches)
    return evaluate(lambda: SegmentationEvaluator(4), predict, found, Accelerator(cpu=True))


def test_scores_by_hand() -> None:
    scores = score(guesses())
    assert list(scores) == ["student", "self_teacher"]
    predicted = torch.cat([logits.argmax(1).flatten() for _, logits, _ in guesses()])
    target = torch.cat([target.flatten() for _, _, target in guesses()])
    logits = torch.cat([logits.flatten(2).transpose(1, 2).flatten(0, 1) for _, logits, _ in guesses()])
    labelled = target != 255
    predicted, target, logits = predicted[labelled], target[labelled], logits[labelled]
    iou = [
        100 * float(((predicted == k) & (target == k)).sum() / ((predicted == k) | (target == k)).sum())
        for k in range(4)
    ]
    found = scores["student"]
    assert found["miou"] == pytest.approx(sum(iou) / 4, rel=1e-6)
    assert found["pixel_accuracy"] == pytest.approx(100 * float((predicted == target).float().mean()), rel=1e-6)
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, target)), rel=1e-5)
    assert found["images"] == 6
    json.dumps(scores, allow_nan=False)


def test_images_that_pad_a_batch_do_not_count() -> None:
    """With `max_samples`, as timm's evaluators; an evaluator without labels has no scores."""
    _, logits, target = guesses()[2]
    evaluators = [SegmentationEvaluator(4, max_samples=2), SegmentationEvaluator(4)]
    for part in (slice(0, 1), slice(1, 3)):
        evaluators[0].update(logits[part], target[part])
    evaluators[1].update(logits[:2], target[:2].to(torch.uint8))
    assert evaluators[0].compute() == pytest.approx(evaluators[1].compute())
    assert [evaluator.num_samples for evaluator in evaluators] == [2, 2]
    assert all(math.isnan(score) for score in SegmentationEvaluator(4).compute().values())


@pytest.mark.long
def test_scores_of_several_processes() -> None:
    """Two processes give the scores of one, also where one of them has no image."""
    expected = score(guesses())
    code = (
        "import json, os, test_scores as t; rank = int(os.environ['RANK']); all = t.guesses();"
        "print(json.dumps([t.score(all if rank else []), t.score(all[:2] if rank else all[2:])]), flush=True);"
        "t.torch.distributed.barrier(); os._exit(0)"  # torch may abort while it takes gloo's threads down
    )
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    common["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0
        for found in json.loads(output.splitlines()[-1]):
            assert list(found) == list(expected)
            for name, scores in expected.items():
                assert found[name] == pytest.approx(scores)


class Coarse(torch.nn.Module):
    """Rounded pixels as logits, with several equal ones in most images."""

    num_classes = 10

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (2 * images[:, 0, 14, 5:25:2]).round()


def test_a_damaged_run_costs_the_temperature_alone() -> None:
    def damaged() -> Any:
        raise UserError("It is damaged.")

    unused: Any = None
    assert find_temperature(unused, DataSettings(), unused, damaged) == (None, "No temperature: It is damaged.")


def test_one_statistic_is_that_of_all_channels() -> None:
    config = {"input_size": (3, 8, 8), "mean": (0.3,), "std": (0.2,), "interpolation": "bicubic", "crop_pct": 1}
    found = Preprocessing.from_timm({**config, "crop_mode": "center"})
    assert (found.mean, found.std) == ((0.3,) * 3, (0.2,) * 3)


def test_of_equal_logits_the_evaluation_chooses_the_one_of_training() -> None:
    data = load_validation(DataSettings(), Preprocessing((1, 28, 28), (0.0,), (1.0,)), classes=10)
    student, accelerator = Coarse(), Accelerator(cpu=True)
    predict = lambda images: {"student": student(images)}
    seen = evaluate(ClassificationEvaluator, predict, data.val_batches(128), accelerator)["student"]
    found = Scorer(student, accelerator, 128).evaluate(data, "coarse")
    assert found is not None
    assert (found.top1, found.top5) == (pytest.approx(seen["top1"]), pytest.approx(seen["top5"]))
    bins = found.calibration
    hits = sum(n * part for n, part in zip(bins.bin_count, bins.bin_accuracy, strict=True) if part is not None)
    assert hits / 10 == pytest.approx(found.top1, abs=0.05)
    first = sum(int((student(images).argmax(1) == target).sum()) for images, target in data.val_batches(128))
    assert found.top1 != pytest.approx(first / 10)


class Colours(torch.nn.Module):
    """Each pixel's rounded colour as its logits; the first one falls or rises from left to right."""

    num_classes = 3

    def __init__(self, slope: int) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = (16 * images).round()
        logits[:, 0] += self.slope * (2 * torch.arange(images.shape[-1]) - images.shape[-1] + 1)
        return logits


def test_the_logits_of_mirrored_pixels_are_mirrored_back(places: Path) -> None:
    preprocessing = Preprocessing((3, 30, 40), (0.5,) * 3, (0.2,) * 3)
    data = load_validation(DataSettings(str(places / "masks")), preprocessing, task="segmentation", classes=3)

    def confusion(slope: int, flip: bool) -> object:
        found = Scorer(Colours(slope), Accelerator(cpu=True), 4, flip=flip).evaluate(data, "colours")
        assert found is not None
        return found.confusion

    assert confusion(1, flip=True) == confusion(0, flip=False), "the mean over both directions has no slope"
    assert confusion(1, flip=False) != confusion(0, flip=False)


def test_a_temperature_is_fitted_to_the_held_out_images_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Also where the only split is called test; and the run's own scores are not replaced."""
    for name in ("own/test", "elsewhere/own/test"):
        class_folders(tmp_path / name, "cat", "dog", count=10)
    run = tmp_path / "run"
    flags = ["--dataset", tmp_path / "own", "--model", "test_resnet", "--method", "ce", "--epochs", 1, "--lr", 0.01]
    train_here(*flags, "--batch-size", 4, "--threads", 1, "--output-dir", run)
    capsys.readouterr()
    other = tmp_path / "elsewhere" / "own"
    evaluate_here("--model", run, "--dataset", other)
    said = capsys.readouterr().out
    assert "Fitted to 2 images of split test of own, which were not trained on." in said
    assert "are scored" not in said
    with pytest.raises(UserError, match=r"scores\.csv: give a folder"):
        evaluate_here("--model", run, "--dataset", other, "--output", tmp_path / "scores.csv")
    with pytest.raises(UserError, match=r"would replace a run's own evaluation\.json"):
        evaluate_here("--model", run, "--dataset", other, "--output", run)
    with pytest.raises(UserError, match="--pictures needs a folder"):
        evaluate_here("--model", run, "--output", tmp_path / "scores.json", "--pictures")


class Means(torch.nn.Module):
    """The mean of each channel as a logit."""

    num_classes = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def test_a_student_whose_outputs_are_not_finite_is_refused(places: Path) -> None:
    preprocessing = Preprocessing((3, 12, 12), (0.5,) * 3, (1e-45,) * 3)  # which makes the images infinite
    data = load_validation(DataSettings(str(places / "data")), preprocessing, classes=3)
    found = Scorer(Means(), Accelerator(cpu=True), 4).evaluate(data, "means")
    with pytest.raises(UserError, match="The outputs of means are not finite: its weights or the 'std' in its config"):
        refuse_unscored(found, "means")


def test_scores_under_corruptions_are_those_of_the_corrupted_images(places: Path) -> None:
    preprocessing = Preprocessing((3, 12, 12), (0.5,) * 3, (0.2,) * 3)
    data = load_validation(DataSettings(str(places / "data")), preprocessing, classes=3)
    scorer = Scorer(Means(), Accelerator(cpu=True), 4)
    found = scorer.evaluate(data, "means", corrupted=True)
    assert found is not None
    for name, scores in found.corruptions.items():
        for severity, row in enumerate(scores, 1):
            own = scorer.evaluate(data.corrupted(name, severity), name)
            assert own is not None
            wanted = {"severity": severity, "top1": own.top1, "loss": own.loss, "ece": own.calibration.ece}
            assert row == wanted


def test_a_segmentation_student_alone_is_scored_on_the_scenes() -> None:
    preprocessing = Preprocessing((3, 1, 1), (0.5,) * 3, (0.2,) * 3)
    data = load_validation(DataSettings(), preprocessing, task="segmentation", classes=11)
    assert (data.name, data.val_split) == ("fashion_mnist_scenes", "test")
