"""Segmentation as a user runs it: `train.py --task segmentation`, `validate.py`, `hub/push.py`."""

import functools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, run_script
from hub_server import USER
from pictures import labels_of, picture, voc_folder
from published import push
from runs import evaluate_here, rows, small, train_here
from safetensors.torch import load_file, save_file

from frskd_timm.errors import UserError
from frskd_timm.export.load import read_student
from frskd_timm.segmentation import SegmentationStudent
from frskd_train.data.mask_folder import VOC_CLASSES
from frskd_train.errors import SettingsError
from frskd_train.found_student import load_for_evaluation
from frskd_train.report.evaluation import read_evaluation
from frskd_train.settings import flat, parse
from frskd_train.settings.recipe import write_recipe
from frskd_train.tasks import choose_job


def test_a_run_leaves_what_it_promises(places: Path, whole_masks: Path, capsys: pytest.CaptureFixture) -> None:
    run = whole_masks
    names = {path.name for path in run.iterdir()}
    assert names == {
        ".lock", "config.yaml", "summary.csv", "metrics.json", "evaluation.json", "curves.png", "segmentation.png",
        "confusion.png", "report.html", "checkpoints", "student", "backbone",
    }  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["task"], metrics["model"], metrics["weights"]) == ("segmentation", "test_resnet", "ema")
    first, last = rows(run)
    assert float(first["loss_kl"]) == float(first["loss_feature"]) == 0  # the warm-up of --distill-start 1
    assert float(last["loss_feature"]) > 0
    assert float(last["miou"]) == pytest.approx(metrics["student"]["miou"], abs=1e-3)
    assert float(last["teacher_miou"]) == pytest.approx(metrics["self_teacher"]["miou"], abs=1e-3)

    evaluation = read_evaluation(run / "evaluation.json")
    assert evaluation.class_names == ["class 0", "class 1", "class 2"]
    assert (evaluation.img_size, evaluation.img_width) == (30, 40)
    assert evaluation.miou == pytest.approx(metrics["student"]["miou"], abs=0.02)
    assert evaluation.loss == pytest.approx(metrics["student"]["loss"], abs=2e-3)

    # The student alone, at the very scores that it was exported with.
    keys = set(load_file(run / "student" / "model.safetensors"))
    assert not any("teacher" in key or key.startswith(("module.", "student.")) for key in keys)
    evaluate_here("--model", run, "--dataset", places / "masks", "--threads", 1)
    with pytest.raises(UserError, match="at their own size"):
        evaluate_here("--model", run, "--dataset", places / "masks", "--threads", 1, "--img-size", 64)
    result = json.loads((run / "evaluation-masks" / "evaluation.json").read_text(encoding="utf-8"))
    assert result["miou"] == pytest.approx(metrics["student"]["miou"], abs=0.02)
    assert result["pixel_accuracy"] == pytest.approx(metrics["student"]["pixel_accuracy"], abs=0.02)
    assert result["images"] == 9
    assert "mIoU" in capsys.readouterr().out
    shutil.rmtree(run / "evaluation-masks")


def test_the_student_segments_and_its_backbone_is_timms(whole_masks: Path) -> None:
    student = SegmentationStudent.from_pretrained(whole_masks / "student").eval()
    image = picture(3, 40, 30)
    classes = student.segment(image)
    assert classes.shape == (30, 40)
    pixels = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255)[None]
    mean, std = (torch.tensor(values)[:, None, None] for values in (student.mean, student.std))
    with torch.inference_mode():
        maps = student.backbone_maps((pixels - mean) / std)
        plain = timm.create_model(f"local-dir:{whole_masks / 'backbone'}", pretrained=True, features_only=True).eval()
        found = plain((pixels - mean) / std)
    for wanted in maps:
        assert any(torch.allclose(wanted, each, atol=1e-4) for each in found if each.shape == wanted.shape)


@pytest.mark.parametrize("more", [[], ["--pretrained"]])
def test_training_continues_from_an_exported_backbone(places: Path, whole_masks: Path, more: list[str]) -> None:
    name = f"local-dir:{whole_masks / 'backbone'}"
    job = choose_job(parse.parse_settings([*small(places, task="segmentation"), "--model", name, *more]))
    data = job.load_data(job.initial_cfg())
    backbone = job.build_student(data).backbone.state_dict()
    own = SegmentationStudent.from_pretrained(whole_masks / "student")
    assert all(torch.equal(value, backbone[key]) for key, value in own.backbone.state_dict().items())
    assert data.preprocessing.mean == pytest.approx(own.mean)
    weights = job.initial_weights()
    assert weights is not None
    assert weights.name == "test_resnet.masks"


def test_training_continues_from_a_whole_student(places: Path, whole_masks: Path, tmp_path: Path) -> None:
    """Decoder and backbone start from the file; only the layer that knows the number of classes may differ."""
    weights, more = whole_masks / "student" / "model.safetensors", tmp_path / "more classes.safetensors"
    saved = load_file(weights)
    save_file({key: value.repeat_interleave(2, 0) if "head.3" in key else value for key, value in saved.items()}, more)
    for path, known in ((weights, set(saved)), (more, {key for key in saved if "head.3" not in key})):
        flags = [*small(places, task="segmentation"), "--initial-checkpoint", str(path)]
        job = choose_job(parse.parse_settings(flags))
        found = job.build_student(job.load_data(job.initial_cfg())).state_dict()
        assert {key for key in saved if torch.equal(found[key], saved[key])} == known
    initial = choose_job(parse.parse_settings([*flags[:-1], str(weights)])).initial_weights()
    assert initial is not None
    assert initial.name == whole_masks.name
    job = choose_job(parse.parse_settings([*flags[:-1], str(weights), "--decoder-channels", "16"]))
    with pytest.raises(UserError, match=r"model.safetensors does not fit SegmentationStudent: .*such as"):
        job.build_student(job.load_data(job.initial_cfg()))


def test_a_backbone_is_not_scored(whole_masks: Path) -> None:
    with pytest.raises(UserError, match="backbone has no classifier to score: give the folder of a run or its student"):
        load_for_evaluation(str(whole_masks / "backbone"))


def test_the_baseline_stands_beside_it(places: Path, capsys: pytest.CaptureFixture) -> None:
    plain, run = places / "masks ce", places / "masks beside"
    train_here(*small(places, "--method", "ce", task="segmentation"), "--output-dir", plain)
    train_here(*small(places, "--baseline", plain, task="segmentation"), "--output-dir", run)
    card = (run / "student" / "README.md").read_text(encoding="utf-8")
    miou = json.loads((plain / "metrics.json").read_text(encoding="utf-8"))["student"]["miou"]
    assert f"| cross-entropy alone, same recipe, 1 seed | {miou:.2f} |" in card
    assert "Compared with the cross-entropy baseline, the difference in mIoU is" in card
    assert "segmentation.png" in card
    assert "| class | precision (%) | recall (%) | IoU (%) | pixels |" in card
    first = read_evaluation(run / "evaluation.json").per_class[0]
    assert f"| class 0 | {first.precision:.1f} | {first.recall:.1f} | {first.iou:.1f} |" in card
    for folder in (plain, run):
        train_here("--resume", folder, "--epochs", 3)
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["baseline"]["runs"]
    capsys.readouterr()
    train_here("--resume", run, "--epochs", 4)  # now of another recipe
    assert f"--baseline {plain} cannot be compared, because its settings changed" in capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["baseline"] is None


LOAD = """
import timm, torch
from frskd_timm.segmentation import SegmentationStudent
student = SegmentationStudent.from_pretrained("{repo}")
images = torch.load("{images}")
torch.save(student.eval()(images), "{images}")
from frskd_train.found_student import load_for_evaluation  # as validate.py does
assert torch.equal(load_for_evaluation("hf-hub:{repo}")[0](images), torch.load("{images}"))
assert timm.create_model("hf-hub:{repo}-backbone", pretrained=True, num_classes=3).num_classes == 3
for place, revision, said in (
    ("{repo}", "v9", "v9"), ("{repo}@v9", None, "v9"), ("{repo}x", None, "Repository Not Found"),
    ("{repo}-backbone", None, "There is no segmentation student in {repo}-backbone."),
):
    try:
        SegmentationStudent.from_pretrained(place, **({{"revision": revision}} if revision else {{}}))
    except Exception as error:
        assert said in str(error), error
    else:
        raise AssertionError(place)
"""


def test_publishing(hub, whole_masks: Path, tmp_path: Path) -> None:
    repo = f"{USER}/segmenter"
    assert push(hub, whole_masks / "student", repo).changed
    assert not push(hub, whole_masks / "student", repo).changed
    assert push(hub, whole_masks / "backbone", f"{repo}-backbone").changed
    student = read_student(whole_masks / "student")
    images = tmp_path / "images.pt"
    torch.save(student.probe_images(), images)
    run_script(sys.executable, "-c", LOAD.format(repo=repo, images=images), **hub.environment(tmp_path))
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(images), student.load()(student.probe_images()))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mixup", 0.2], "--mixup .* segmentation"),
        (["--resize-range", 2, 1], "--resize-range .*smaller"),
        (["--class-weights", 1, 2], "There are 2 class weights for 3 classes"),
        (["--model", "gmixer_24_224", "--img-size", 224], "gmixer_24_224 accepts only images of 224x224 pixels"),
        (["--model", "resnet10t", "--pretrained"], "The weights of 'resnet10t' could not be loaded"),  # no network
    ],
)
def test_mistakes_end_in_a_sentence(
    flags: list[object], message: str, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))  # without weights
    with pytest.raises((UserError, SettingsError), match=message):
        train_here(*small(places, *flags, task="segmentation"), "--output-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_recipe_for_voc(tmp_path: Path) -> None:
    recipe = ROOT / "frskd_train" / "recipes" / "voc_efficientdet_d0.yaml"
    folder = voc_folder(tmp_path / "VOC2012", functools.partial(labels_of, classes=21))
    flags = ["--epochs", 1, "--distill-start", 0, "--batch-size", 2, "--img-size", 64, "--no-amp", "--threads", 1]
    flags += ["--no-pretrained"]  # there is no network
    train_here("--config", recipe, "--dataset", folder, *flags, "--output-dir", tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["model"], metrics["architecture"]) == ("efficientdet_d0", "efficientnet_b0")
    evaluation = read_evaluation(tmp_path / "run" / "evaluation.json")
    assert evaluation.class_names == [*VOC_CLASSES]
    assert None in {row.iou for row in evaluation.per_class}
    assert evaluation.miou == pytest.approx(metrics["student"]["miou"], abs=2e-3)
    used = parse.read_recipe(str(tmp_path / "run" / "config.yaml"))
    assert (used.optimizer.clip_mode, used.optimizer.clip_grad, used.loop.grad_accum_steps) == ("value", 2.0, 2)


def test_a_bad_mask_is_named_before_training(places: Path, tmp_path: Path) -> None:
    uniform = lambda number, width, height: np.full((height, width), 77 if number == 3 else number % 2, np.uint8)
    folder = voc_folder(tmp_path / "VOC", uniform)
    flags = small(places, "--dataset", folder, "--epochs", 1, task="segmentation")
    with pytest.raises(UserError, match=r"Mask 3 of split train .* has label 77"):
        train_here(*flags, "--output-dir", tmp_path / "run")
    train_here(*flags, "--bad-images", "skip", "--output-dir", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["dataset"]["train_images"] == 5
    for number in (6, 9):  # the others have one size
        (folder / "JPEGImages" / f"p_{number}.jpg").write_bytes(b"")
    flags = ["--data-mode", "stream", "--bad-images", "skip", "--output", tmp_path / "scores.json"]
    evaluate_here("--model", tmp_path / "run", "--dataset", folder, *flags)
    found = read_evaluation(tmp_path / "scores.json")
    assert (found.images, found.img_size, found.img_width) == (2, 30, 40)


def test_what_has_no_label_is_not_scored_and_has_no_temperature(places: Path, tmp_path: Path, capsys) -> None:
    unlabelled = lambda number, width, height: np.full((height, width), 255 if number > 5 else number % 2, np.uint8)
    folder = voc_folder(tmp_path / "VOC", unlabelled)
    (folder / "labels.txt").write_text("lawn\nroses\n")
    run = tmp_path / "run"
    train_here(*small(places, "--dataset", folder, "--epochs", 1, task="segmentation"), "--output-dir", run)
    assert "not scored: no validation image could be read, or none has a label" in capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text())["student"] is None
    with pytest.raises(UserError, match="none has a label"):
        evaluate_here("--model", run, "--dataset", folder)
    with pytest.raises(UserError, match="--val-split nowhere"):  # of the scenes, if no --dataset is given
        evaluate_here("--model", run, "--val-split", "nowhere")
    evaluate_here("--model", run, "--dataset", folder, "--val-split", "train", "--calibration-split", "val")
    assert "No temperature: No image of split val could be read, or none has a label" in capsys.readouterr().out


def test_settings_of_either_task_make_a_recipe_of_it(tmp_path: Path) -> None:
    for task, foreign in (("segmentation", "mixup"), ("classification", "decoder_layers")):
        settings = parse.parse_settings(["--task", task, "--lr", "0.5"])
        recipe = tmp_path / f"{task}.yaml"
        recipe.write_text(write_recipe(settings, "A recipe."), encoding="utf-8")
        assert f"{foreign}:" not in recipe.read_text(encoding="utf-8")
        assert flat(parse.parse_settings(["--config", str(recipe)])) == {
            **flat(settings), "config": str(recipe)
        }  # fmt: skip


def test_an_edited_card_of_the_backbone_is_kept_beside_the_run(whole_masks: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_masks, run)
    card = run / "backbone" / "README.md"
    mine = card.read_text(encoding="utf-8") + "My words.\n"
    card.write_text(mine, encoding="utf-8")
    train_here("--resume", run)
    assert (run / "README.backbone-edited.md").read_text(encoding="utf-8") == mine
    assert "My words" not in card.read_text(encoding="utf-8")
