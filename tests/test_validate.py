"""`validate.py`: a trained model scored on a dataset."""

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from conftest import SMALL
from pictures import encoded, picture, pictures, save, split
from published import make_student
from runs import evaluate_here, train_here
from sklearn import metrics
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from frskd_timm.errors import UserError
from frskd_train import cli
from frskd_train.data import Preprocessing, ValidationData, load_validation
from frskd_train.data.corruptions import CORRUPTIONS
from frskd_train.data.source import find_source
from frskd_train.data.transforms import EvalTransform
from frskd_train.found_student import load_for_evaluation
from frskd_train.report.evaluation import Evaluation, read_evaluation
from frskd_train.settings import DataSettings, FitSettings, flag
from frskd_train.tasks.classification import ClassificationJob


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train_here(*SMALL, "--model-ema", "--output-dir", run)
    return run


def test_validation_of_the_export_is_the_runs_own_score(finished: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.run("validate", [str(finished)])
    assert f"give --model {finished}." in capsys.readouterr().err
    run = finished
    evaluate_here("--model", run)
    stored = json.loads((run / "evaluation-fashion_mnist_sample" / "evaluation.json").read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert stored["images"] == 1000
    assert not metrics["dataset"]["whole_split"]  # but a sample of the data set's test split
    for score in ("top1", "top5", "loss"):
        assert stored[score] == pytest.approx(metrics["student"][score], abs=2e-3)
    assert f"top-1 {stored['top1']:.2f}%" in capsys.readouterr().out


def test_held_out_images_unusual_names_and_more_outputs_than_classes(tmp_path: Path, capsys) -> None:
    for number in range(36):
        name = ("$0_to_$10", "$10_to_$20", "$20_to_$30")[number % 3]
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "data" / name / f"{number}.{'avif' if number < 18 else 'png'}")
    small = "--model test_resnet --img-size 16 --batch-size 6 --epochs 1 --num-classes 5 --val-fraction 0.34 --no-amp"
    clipping = "--grad-accum-steps 3 --clip-grad 0.01 --clip-mode agc"
    run = tmp_path / "run"
    train_here(*small.split(), *clipping.split(), "--dataset", tmp_path / "data", "--output-dir", run)
    assert "the last 1 of 4 batches are left out" in capsys.readouterr().out
    card = (run / "student" / "README.md").read_text(encoding="utf-8")
    assert "On images held out from the train split of data (12 images)" in card
    assert "split: train" not in card

    with (run / "config.yaml").open("a", encoding="utf-8") as settings:
        settings.write("setting_of_an_older_version: 1\n")
    evaluate_here("--model", run, "--threads", 1, "--no-amp")  # on its own data
    own, again = (read_evaluation(path / "evaluation.json") for path in (run, run / "evaluation-data"))
    evaluate_here("--model", run, "--dataset", tmp_path / "data", "--val-split", "train", "--tta", "flip")
    assert read_evaluation(run / "evaluation-data-train-flip" / "evaluation.json").tta == "flip"
    assert own.images == again.images == 12, "the images that the run held out, and no others"
    assert own.confusion == again.confusion
    assert own.macro["recall"] == pytest.approx(own.top1, abs=1e-3)  # of the classes that occur, four images each
    assert own.class_names == again.class_names == ["$0_to_$10", "$10_to_$20", "$20_to_$30", "output 3", "output 4"]
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    (taken := tmp_path / "taken" / "evaluation.json").mkdir(parents=True)
    with pytest.raises(UserError, match="taken could not be written"):
        evaluate_here("--model", run, "--dataset", tmp_path / "copy", "--val-split", "train", "--output", taken.parent)
    assert "Fitted to 12 images of split train of data" in capsys.readouterr().out
    save(tmp_path / "two", test=pictures(6))
    unnamed = timm.create_model("test_resnet", num_classes=2)
    with pytest.raises(UserError, match="3 classes, but the model has only 2"):
        ClassificationJob.load_validation(DataSettings(str(tmp_path / "two")), FitSettings(), unnamed)


def test_the_evaluation_of_a_run_is_scikit_learns_and_torchmetrics(finished: Path) -> None:
    found = read_evaluation(finished / "evaluation.json")
    model = timm.create_model(f"local-dir:{finished / 'student'}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    test = find_source(DataSettings()).splits[found.split]
    truth = np.array(test["label"])
    with torch.no_grad():
        probabilities = model(torch.stack([transform(row["image"].convert("RGB")) for row in test])).double().softmax(1)
    given = probabilities.argmax(1).numpy()

    assert np.abs(found.confusion_matrix() - metrics.confusion_matrix(truth, given)).sum() <= 4  # near ties
    for scores in zip(
        *metrics.precision_recall_fscore_support(truth, given, zero_division=0), found.per_class, strict=True
    ):
        *wanted, support, own = scores
        assert [own.precision, own.recall, own.f1] == pytest.approx([100 * value for value in wanted], abs=1.1)
        assert own.support == support == 100
    assert found.calibration.nll == found.loss == pytest.approx(metrics.log_loss(truth, probabilities), abs=2e-3)
    brier = (probabilities - torch.eye(10)[truth]).square().sum(1).mean()
    assert found.calibration.brier == pytest.approx(float(brier), abs=2e-3)
    ece = multiclass_calibration_error(probabilities, torch.from_numpy(truth), 10, n_bins=15)
    assert found.calibration.ece == pytest.approx(float(ece), abs=5e-3)
    assert sum(found.calibration.bin_count) == found.images == 1000
    confidence = probabilities.max(1).values.numpy()
    wrong = np.flatnonzero(given != truth)
    assert len(found.mistakes) == min(100, len(wrong)) > 0
    assert [mistake.confidence for mistake in found.mistakes] == pytest.approx(
        sorted(confidence[wrong], reverse=True)[: len(found.mistakes)], abs=1e-2
    )
    assert all(mistake.true == truth[mistake.row] != mistake.given for mistake in found.mistakes)
    assert found.temperature is None
    assert "there are no held-out images" in found.temperature_note
    assert found == Evaluation.from_json(json.loads(found.to_json()))


def test_validation_at_another_size_is_timms(finished: Path, tmp_path: Path) -> None:
    run = finished
    args = {"img_size": 40, "crop_pct": 0.8, "crop_mode": "squash", "interpolation": "bicubic"}
    flags = [part for name, value in args.items() for part in (flag(name), value)]
    evaluate_here("--model", run, "--threads", 1, *flags, "--output", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert args.items() <= found.items()

    model = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(args, model=model))
    test = find_source(DataSettings()).splits["test"]
    labels = torch.tensor(test["label"])
    with torch.no_grad():
        logits = model(torch.stack([transform(row["image"].convert("RGB")) for row in test]))
    assert found["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item(), abs=0.11)
    assert found["loss"] == pytest.approx(cross_entropy(logits, labels).item(), abs=1e-4)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_that_are_not_square_are_fitted_as_timm_does(mode: str, crop_mode: str) -> None:
    image, mean, std = picture(3, 40, 24, mode), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    preprocessing = Preprocessing((3, 16, 16), mean, std, crop_mode=crop_mode)
    fitted = EvalTransform(preprocessing).fit(image).expand(3, 16, 16)
    wanted = create_transform(**asdict(preprocessing), normalize=False)(image.convert("RGB"))
    assert torch.equal(fitted, wanted)


@pytest.fixture(scope="module")
def three_splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 40 training, 60 validation and 50 test images."""
    rows = find_source(DataSettings()).splits["test"].shuffle(seed=0)
    parts = {"train": range(40), "validation": range(40, 100), "test": range(100, 150)}
    folder = tmp_path_factory.mktemp("three splits") / "data"
    datasets.DatasetDict({name: rows.select(part) for name, part in parts.items()}).save_to_disk(folder)
    return folder


def test_an_unreadable_calibration_image_is_left_out_and_counted(
    finished: Path, three_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = finished
    parts = datasets.load_from_disk(three_splits).cast_column("image", datasets.Image(decode=False))
    rows = parts["validation"].to_list()
    rows[15]["image"]["bytes"] = b"not an image"
    parts["validation"] = datasets.Dataset.from_list(rows, parts["validation"].features)
    parts.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "data")
    for mode in ("memory", "stream"):
        flags = ["--dataset", tmp_path / "data", "--val-split", "test", "--data-mode", mode, "--threads", 1]
        evaluate_here("--model", run, *flags, "--calibration-split", "validation")
        told = capsys.readouterr().out
        assert "Fitted to 59 images of split validation" in told
        assert "Image 15 of split validation cannot be read" in told


def test_calibrated_mirrored_and_corrupted(finished: Path, three_splits: Path, tmp_path: Path) -> None:
    run = finished
    data = ["--dataset", three_splits, "--val-split", "test"]
    for taken in ("test", "train", "nowhere"):
        with pytest.raises(UserError, match=rf"--calibration-split {taken} .* choose validation"):
            evaluate_here("--model", run, *data, "--calibration-split", taken)
    flags = ["--calibration-split", "validation", "--tta", "flip", "--corruptions", "--pictures", "--threads", 1]
    evaluate_here("--model", run, *data, *flags, "--output", tmp_path / "scores")
    found = read_evaluation(tmp_path / "scores" / "evaluation.json")
    assert found.temperature is not None
    assert (found.temperature.split, found.temperature.images, found.images) == ("validation", 60, 50)

    model = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))

    def loss(split: str, temperature: float) -> float:
        rows = datasets.load_from_disk(three_splits)[split]
        images = torch.stack([transform(row["image"].convert("RGB")) for row in rows])
        with torch.no_grad():
            logits = (model(images) + model(images.flip(-1))) / 2
        return cross_entropy(logits / temperature, torch.tensor(rows["label"])).item()

    fitted = found.temperature.value
    assert found.loss == pytest.approx(loss("test", 1), abs=2e-4)
    assert found.calibrated.nll == pytest.approx(loss("test", fitted), abs=2e-4)
    least = loss("validation", fitted)
    assert all(least <= loss("validation", fitted * factor) for factor in (0.9, 0.97, 1.03, 1.1))

    assert {name: len(rows) for name, rows in found.corruptions.items()} == dict.fromkeys(CORRUPTIONS, 5)
    assert all(row["loss"] != found.loss for rows in found.corruptions.values() for row in rows)
    written = {path.name for path in (tmp_path / "scores").iterdir()}
    assert written == {"evaluation.json", *(f"{name}.csv" for name in ("per_class", "confusion", "corruptions")),
                       "reliability.png", "confusion.png"}  # fmt: skip
    with (tmp_path / "scores" / "confusion.csv").open(encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["true", "given", "images"]
    number = found.class_names.index
    assert [(number(true), number(given), int(count)) for true, given, count in rows] == found.confusion


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruptions_grow_and_depend_on_the_image_alone(corruption: str, three_splits: Path) -> None:
    settings = DataSettings(dataset=str(three_splits), val_split="test")
    clean = load_validation(settings, Preprocessing((1, 28, 28), (0.0,), (1.0,)), classes=10)
    (original, _), *_ = clean.val_batches(50)
    changes = []
    for severity in range(1, 6):
        data = clean.corrupted(corruption, severity)
        (whole, _), *_ = data.val_batches(50)
        assert torch.equal(whole, torch.cat([images for images, _ in data.val_batches(20)]))
        changes.append((whole - original).abs().mean().item())
    assert 0 < changes[0] < changes[-1]
    assert changes == sorted(changes)


def test_noise_is_the_same_in_memory_and_streamed() -> None:
    noisy = [
        load_validation(DataSettings(data_mode=mode), Preprocessing((3, 28, 28), (0.0,) * 3, (1.0,) * 3), classes=10)
        .corrupted("noise", 2)
        .val_batches(40)
        for mode in ("memory", "stream")
    ]
    (one, _), (other, _) = (next(iter(batches)) for batches in noisy)
    assert torch.equal(one, other)


def test_models_without_names_are_scored_as_timm_does(tmp_path: Path) -> None:
    """At the size for testing; whole-number labels are outputs, and other classes must be as many as these."""

    def load(dataset: Path, classes: int, train_size: bool = False) -> ValidationData:
        model = timm.create_model("resnet18", num_classes=classes)
        fit = FitSettings(use_train_size=train_size)
        return ClassificationJob.load_validation(DataSettings(str(dataset)), fit, model)

    rows = [encoded(picture(number)) for number in range(5)]
    numbered = save(tmp_path / "numbered", test=split(rows, [0, 2, 5, 5, 2], datasets.Value("int64")))
    named = save(tmp_path / "named", test=split(rows, ["cat", "dog", "eel", "cat", "dog"], datasets.Value("string")))
    ((_, target),) = load(numbered, 10).val_batches(5)
    assert target.tolist() == [0, 2, 5, 5, 2]
    with pytest.raises(UserError, match=r"does not know .* 5"):
        load(numbered, 4)
    assert load(named, 3).class_names == ["cat", "dog", "eel"]
    with pytest.raises(UserError, match="does not name its 10 outputs and the dataset has only 3 classes"):
        load(named, 10)
    found = load(numbered, 10).preprocessing, load(numbered, 10, train_size=True).preprocessing
    assert [(own.input_size[1], own.crop_pct) for own in found] == [(288, 1.0), (224, 0.95)]


def test_folders_that_timm_writes_are_scored(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=4).eval()
    names = {"0": "cat", "1": "dog", "3": "eel"}
    save_for_hf(model, tmp_path, {"label_names": names}, safe_serialization=False)
    loaded, _ = load_for_evaluation(str(tmp_path))
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(loaded(images), model(images))
    rows = [encoded(picture(number)) for number in range(3)]
    data = save(tmp_path / "data", test=split(rows, ["eel", "cat", "dog"], datasets.Value("string")))
    found = ClassificationJob.load_validation(DataSettings(str(data)), FitSettings(), loaded)
    ((_, target),) = found.val_batches(3)
    assert target.tolist() == [3, 0, 1]


def test_validation_at_a_size_that_a_model_cannot_take_reads_no_data(tmp_path: Path) -> None:
    vit = make_student(tmp_path / "vit", "test_vit3", 160)
    with pytest.raises(UserError, match=r"does not run on 3x32x32 images .*160x160"):
        evaluate_here("--model", vit, "--img-size", 32, "--dataset", tmp_path / "nowhere")


def test_validation_without_weights_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.run("validate", ["--model", "nowhere/run"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "nowhere/run: there is no such folder; on the Hub it would be hf-hub:nowhere/run" in said
    with pytest.raises(UserError, match="resnet18_cifar_frskd"):
        load_for_evaluation("resnet18_cifar_frskd")
