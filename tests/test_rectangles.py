"""Training images that are not square: `--img-size HEIGHT WIDTH`, or data and models of such a size."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, load, pictures, save, split
from PIL import Image
from runs import evaluate_here, small, train_here

from frskd_timm.errors import UserError
from frskd_train import cli
from frskd_train.data import load_data
from frskd_train.data.augment import crop_resized, draw_boxes, draw_erased, erase
from frskd_train.found_student import find_exported
from frskd_train.settings import DataSettings, PreprocessingSettings, flat
from frskd_train.settings.parse import parse_settings


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {name: pictures(count, width=60, height=25) for name, count in (("train", 36), ("test", 18))}
    return save(tmp_path_factory.mktemp("wide") / "data", **splits)


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize(
    ("chosen", "size"),
    [
        ({}, (25, 60)),  # of the data, which are small
        ({"img_size": (24, 40), "train_crop_mode": "rrc"}, (24, 40)),
        ({"img_size": (40, 24), "crop_pct": 0.8}, (40, 24)),
        ({"img_size": (24,), "crop_mode": "squash"}, (24, 24)),
    ],
)
def test_training_and_validation_images_have_the_size(
    wide: Path, mode: str, chosen: dict[str, object], size: tuple[int, int]
) -> None:
    data = load(wide, data_mode=mode, workers=0, reprob=1.0, **chosen)
    assert data.preprocessing.input_size == (3, *size)
    for batches in (data.train_batches(9).epoch(0), data.val_batches(9)):
        assert {images.shape[2:] for images, _ in batches} == {size}


def test_a_model_of_a_fixed_size_and_the_notes(wide: Path) -> None:
    (note,) = load(wide, img_size=(60, 24)).notes
    assert (
        "Only the centre of images such as 25x60 pixels (height x width) is used; --crop-mode squash keeps all." in note
    )
    assert load(wide, img_size=(24, 60)).notes == ()
    with pytest.raises(UserError, match="--crop-padding 25 is more than the image, which is 24x60 pixels"):
        load(wide, img_size=(24, 60), crop_padding=25)


def test_weights_for_another_shape_are_trained_at_theirs(tmp_path: Path) -> None:
    large = DataSettings(str(save(tmp_path / "large", train=pictures(9, width=300, height=200))), val_fraction=0.4)
    cfg = {"input_size": (3, 64, 96)}
    assert load_data(large, PreprocessingSettings(), model_cfg=cfg).preprocessing.input_size == (3, 64, 96)
    found = load_data(large, PreprocessingSettings(img_size=(64,)), model_cfg=cfg, initial_cfg=cfg)
    note = "The initial weights were trained at 64x96 pixels (height x width); this run uses 64x64 pixels."
    assert note in found.notes


def test_a_run_its_pictures_its_scores_and_its_student(wide: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--dataset", wide, "--model", "test_vit", "--img-size", 32, 64, "--cutmix", 1, "--reprob", 0.5]
    train_here(*small(tmp_path, *flags, "--output-dir", run, "--export", "onnx"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["img_size"], metrics["img_width"]) == (32, 64)
    assert {"attention.png", "examples.png", "report.html", "student.onnx"} <= {path.name for path in run.iterdir()}
    assert "images of 32x64 pixels (height x width)" in (run / "student" / "README.md").read_text(encoding="utf-8")

    model = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    config = timm.data.resolve_data_config(model=model)
    assert config["input_size"] == (3, 32, 64)
    evaluate_here("--model", run)
    found = json.loads((run / "evaluation-data" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["top1"] == pytest.approx(metrics["student"]["top1"], abs=1e-3)
    assert (found["img_size"], found["img_width"]) == (32, 64)


def test_a_resumed_run_keeps_the_size(wide: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_here(*small(tmp_path, "--dataset", wide, "--img-size", 24, 40, "--epochs", 1, "--output-dir", run))
    assert "img_size: [24, 40]" in (run / "config.yaml").read_text(encoding="utf-8")
    train_here("--resume", run, "--epochs", 2)
    with pytest.raises(UserError, match=r"--img-size is 24 now but was \[24, 40\] in this run"):
        train_here("--resume", run, "--img-size", 24)
    assert flat(parse_settings(["--img-size", "24"]))["img_size"] == 24  # as runs of earlier versions recorded it
    evaluate_here("--model", run, "--img-size", 48, 80)
    found = json.loads((run / "evaluation-data-img_size-48-80" / "evaluation.json").read_text(encoding="utf-8"))
    assert (found["img_size"], found["img_width"]) == (48, 80)


@pytest.mark.long
def test_crops_of_scenes(places: Path, tmp_path: Path) -> None:
    flags = ["--img-size", 32, 64, "--epochs", 1, "--output-dir", tmp_path / "run", "--export", "onnx"]
    train_here(*small(places, *flags, task="segmentation"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["img_size"], metrics["img_width"]) == (32, 64)
    run = tmp_path / "run"
    session = pytest.importorskip("onnxruntime").InferenceSession(run / "student.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 64]
    assert find_exported(str(run)).image_size(None) == (32, 64)
    cli.run("export", [str(run / "backbone")])
    assert (run / "backbone.onnx").is_file()


@given(seed=st.integers(0, 1000), height=st.integers(8, 40), width=st.integers(8, 40))
def test_crops_and_erased_boxes_are_where_they_were_drawn(seed: int, height: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    boxes = draw_boxes(generator, np.array([0.5, 1.0, 3.0]), (0.08, 1), (3 / 4, 4 / 3))
    rows, columns = torch.meshgrid(torch.linspace(0, 200, 201), torch.linspace(0, 200, 201), indexing="ij")
    ramps = torch.stack([rows, columns]).expand(3, 2, 201, 201).byte()  # each pixel says where it is
    found = crop_resized(ramps, boxes, (height, width), "bilinear")
    assert found.shape == (3, 2, height, width)
    for axis, side in ((0, height), (1, width)):
        start, extent = boxes[axis], boxes[axis + 2]
        middles = (np.arange(side) + 0.5) / side
        wanted = np.clip((start[:, None] + extent[:, None] * middles) * 201 - 0.5, 0, 200)
        own = found[:, axis].mean(dim=2 - axis)
        np.testing.assert_allclose(own.numpy(), wanted, atol=0.01)

    erased = draw_erased(generator, 3, 1.0, (height, width))
    top, bottom, left, right = erased
    area = (bottom - top) * (right - left) / (height * width)
    assert (erased >= 0).all()
    assert (bottom <= height).all()
    assert (right <= width).all()
    assert ((area > 0.005) & (area < 0.4)).all()
    images = erase(torch.ones(3, 1, height, width), erased)
    np.testing.assert_allclose(1 - images.mean((1, 2, 3)).numpy(), area, atol=1e-5)


def test_crops_have_the_area_and_the_shape_of_the_settings() -> None:
    aspect = np.repeat([0.5, 1.0, 2.0], 3000)  # width / height of the images, into which all of these crops fit
    _, _, height, width = draw_boxes(np.random.default_rng(0), aspect, (0.1, 0.3), (3 / 4, 4 / 3))
    area, shape = height * width, np.log(width * aspect / height)  # uniform both
    assert (area.min(), area.max(), area.mean()) == pytest.approx((0.1, 0.3, 0.2), abs=2e-3)
    assert (shape.min(), shape.max(), shape.mean()) == pytest.approx((np.log(3 / 4), np.log(4 / 3), 0), abs=1e-2)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_resized_crops_have_the_area_and_the_shape_of_the_settings(mode: str, tmp_path: Path) -> None:
    ramp = np.stack([*np.mgrid[:200, :200], np.zeros((200, 200))], -1).astype(np.uint8)  # each pixel says where it is
    ramps = split([encoded(Image.fromarray(ramp))] * 40, [0, 1] * 20)
    own: dict[str, Any] = {"scale": (0.2, 0.3), "ratio": (1.9, 2.1), "mean": (0.0,), "std": (1.0,), "img_size": (16,)}
    data = load(save(tmp_path, train=ramps, test=ramps), train_crop_mode="rrc", data_mode=mode, workers=0, **own)
    images, _ = next(data.train_batches(40).epoch(0))
    height, width = ((images[:, c].amax((1, 2)) - images[:, c].amin((1, 2))) * 255 / 200 * 16 / 15 for c in (0, 1))
    assert 0.18 < float((height * width).min()) < float((height * width).max()) < 0.33
    assert 1.7 < float((width / height).min()) < float((width / height).max()) < 2.3


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_the_filter_of_training_images_is_the_given_one(mode: str, tmp_path: Path) -> None:
    rows = save(tmp_path, train=pictures(8, width=40, height=30), test=pictures(3))
    own = {"train_crop_mode": "rrc", "hflip": 0.0, "mean": (0.5,), "std": (0.5,), "img_size": (16,)}
    draw = partial(load, rows, data_mode=mode, workers=0, **own)
    found = [draw(interpolation=name) for name in ("bilinear", "bilinear", "bicubic")]
    if mode == "memory":
        assert not torch.equal(found[0].train.source.images, found[2].train.source.images)
    one, same, other = (next(data.train_batches(8).epoch(0))[0] for data in found)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
