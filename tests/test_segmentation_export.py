"""Segmentation students and their backbones as folders, and as ONNX."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from golden_names import assert_close
from pictures import picture
from safetensors.torch import load_file, save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN

from frskd_timm.errors import UserError
from frskd_timm.export.load import load_student, read_student
from frskd_timm.export.student import export_backbone, export_segmentation, export_student
from frskd_timm.lookup import hub_name
from frskd_timm.losses.labels import LabelLoss
from frskd_timm.segmentation import (
    SegmentationCrossEntropyTask,
    SegmentationStudent,
    SegmentationTask,
    create_segmentation_student,
)
from frskd_train.report.formats import export_onnx, export_program

SMALL = "mobilenetv3_small_050"


@pytest.fixture
def trained() -> SegmentationStudent:
    """A student with settled running statistics, and names for its classes."""
    torch.manual_seed(1)
    student = create_segmentation_student(
        SMALL, 3, channels=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3), class_names=["sky", "Straße", "tree"]
    )
    task = SegmentationTask.create(student)
    task(torch.randn(4, 3, 64, 64), torch.randint(0, 3, (4, 64, 64)))["loss"].backward()
    return student


def test_student_comes_back(trained: SegmentationStudent, tmp_path: Path) -> None:
    random = torch.get_rng_state()
    folder = export_segmentation(trained, tmp_path / "student")
    assert torch.equal(random, torch.get_rng_state())
    assert trained.training
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    loaded = SegmentationStudent.from_pretrained(f"local-dir:{folder}")
    assert hub_name("hf-hub:someone/streets@dev") == ("someone/streets", "dev")
    images = torch.randn(2, 3, 50, 61)
    with torch.no_grad():
        assert torch.equal(trained.eval()(images), loaded(images))
    assert loaded.class_names == ["sky", "Straße", "tree"]
    assert loaded.mean == (0.4, 0.5, 0.6)

    pixels = torch.randint(0, 256, (50, 61, 3), dtype=torch.uint8)
    by_hand = (pixels.permute(2, 0, 1)[None] / 255 - torch.tensor(loaded.mean).view(1, 3, 1, 1)) / torch.tensor(
        loaded.std
    ).view(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.equal(loaded.segment(pixels.numpy()), loaded(by_hand).argmax(1)[0])

    loaded.save_pretrained(tmp_path / "again")  # huggingface_hub's own way
    assert "SegmentationStudent.from_pretrained" in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_have_their_own_statistics(channels: int, tmp_path: Path) -> None:
    student = create_segmentation_student("test_resnet", 3, channels=8, layers=1, in_chans=channels).eval()
    folder = export_segmentation(student, tmp_path / "a@b")
    assert read_student(folder).load_line(f"local-dir:{folder}").endswith(f'from_pretrained("{folder}")')
    assert load_student(folder).mean == pytest.approx([sum(IMAGENET_DEFAULT_MEAN) / 3] * channels)
    if channels == 1:
        assert student.segment(picture(1, 40, 30)).shape == (30, 40)
    else:
        with pytest.raises(UserError, match="gray and RGB images, but this student takes 4 channels"):
            student.segment(picture(1, 40, 30))
    with pytest.raises(UserError, match=rf"one number, or {channels} \(one per channel\), not 2"):
        create_segmentation_student("test_resnet", 3, in_chans=channels, mean=(0.1, 0.2))


def test_what_cannot_be_exported_or_loaded(trained: SegmentationStudent, tmp_path: Path) -> None:
    folder = export_segmentation(trained, tmp_path / "student")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        export_segmentation(trained, tmp_path / "notes")
    with torch.no_grad():
        trained.head[-1].bias.fill_(float("nan"))
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="not finite"):
        export_segmentation(trained, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "student"]

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layers": 4}))  # more layers than there are weights for
    with pytest.raises(RuntimeError, match=r"bifpn\.3"):
        SegmentationStudent.from_pretrained(folder)


@pytest.mark.parametrize("size", [(3, 99999, 99999), (3, 64.5, 64), (128, 128), (1, 64, 64), 5])
def test_a_backbone_with_a_wrong_size_is_not_exported(size: Any, trained: SegmentationStudent, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input_size|input size|one per channel"):
        export_backbone(trained, tmp_path / "backbone", tag="scenes", input_size=size)
    assert not (tmp_path / "backbone").exists()


def test_backbone_is_a_timm_checkpoint(trained: SegmentationStudent, tmp_path: Path) -> None:
    folder = export_backbone(
        trained, tmp_path / "backbone", tag="scenes", license="mit", dataset="scenes", input_size=(3, 96, 96)
    )
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 96, 96]
    features = timm.create_model(
        f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=trained.levels
    ).eval()
    images = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        for found, expected in zip(features(images), trained.eval().backbone_maps(images), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)(images).shape == (2, 7)
    assert features.feature_info.reduction() == [4, 8, 16, 32]

    # And back: another student starts from it, or from a classifier.
    torch.manual_seed(2)
    other = create_segmentation_student(f"local-dir:{folder}", 9, channels=8)
    assert (other.backbone_name, other.mean) == (SMALL, trained.mean)
    assert torch.equal(other.backbone.conv_stem.weight, trained.backbone.conv_stem.weight)

    # Edited by hand: one number instead of a list.
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"mean must be a list of numbers, not 0\.5"):
        create_segmentation_student(f"local-dir:{folder}", 9, channels=8)


@pytest.mark.long
def test_a_backbone_of_one_size_is_verified_at_this_size(tmp_path: Path) -> None:
    student = create_segmentation_student("test_vit_relpos", 3, channels=8)
    assert student.fixed_size == (160, 160)
    folder = export_segmentation(student, tmp_path / "student")
    assert read_student(folder).probe_images().shape == (2, 3, 160, 160)
    export_program(folder, tmp_path / "student.pt2")


def test_statistics_are_those_of_the_weights() -> None:
    name = "wide_resnet16_2_frskd"
    expected = timm.get_pretrained_cfg(name).mean
    assert create_segmentation_student(name, 5, pretrained=True).mean == expected
    gray = create_segmentation_student(name, 5, pretrained=True, in_chans=1)
    assert gray.mean == pytest.approx([sum(expected) / 3])
    given = create_segmentation_student(name, 5, pretrained=True, mean=(0.1, 0.2, 0.3))
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), timm.get_pretrained_cfg(name).std)
    assert timm.data.resolve_model_data_config(given)["mean"] == (0.1, 0.2, 0.3)
    config = timm.data.resolve_model_data_config(gray)
    assert (config["input_size"], config["mean"], config["std"]) == ((1, 224, 224), gray.mean, gray.std)


def test_the_classifier_is_replaced(trained: SegmentationStudent, tmp_path: Path) -> None:
    trained.class_names = ["a", "b", "c"]
    trained.reset_classifier(7)
    images = torch.randn(1, 3, 64, 64)
    logits = trained.eval()(images)
    assert logits.shape == (1, 7, 64, 64)
    precise = copy.deepcopy(trained).double()(images.double())
    assert precise.dtype == torch.float64
    assert torch.allclose(precise.float(), logits, atol=1e-5)
    assert trained.get_classifier() is trained.get_submodule(trained.classifier_name)
    trained.save_pretrained(tmp_path)
    assert load_student(tmp_path).num_classes == 7
    with pytest.raises(UserError, match="2 names, but there are 7 classes"):
        trained.reset_classifier(7, ["a", "b"])


def test_a_backbone_keeps_the_arguments_that_it_was_exported_with(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=5, img_size=64, act_layer="relu").eval()
    export_student(model, tmp_path / "vit", tag="x", input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    student = create_segmentation_student(f"local-dir:{tmp_path / 'vit'}", 3, channels=8).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model.forward_intermediates(images, indices=student.levels, intermediates_only=True)
    for found, map_ in zip(student.backbone_maps(images), expected, strict=True):
        assert_close(found, map_, 1e-5, "map")
    student.save_pretrained(tmp_path / "student")
    torch.testing.assert_close(load_student(tmp_path / "student")(images), student(images))


def test_numbers_of_numpy_and_torch_are_stored(tmp_path: Path) -> None:
    means, deviations = np.full(3, 0.5, np.float32), torch.full((3,), 0.25)
    names = {"sky": 1, "tree": 2}.keys()
    student = SegmentationStudent(SMALL, np.int64(2), 8, mean=means, std=deviations, class_names=names)
    student.save_pretrained(tmp_path / "student")
    again = SegmentationStudent.from_pretrained(tmp_path / "student")
    assert (again.mean, again.std, again.class_names) == ((0.5,) * 3, (0.25,) * 3, ["sky", "tree"])
    assert again.config() == student.config()


def test_what_cannot_be_stored_is_refused() -> None:
    wrong: dict[str, dict[str, Any]] = {
        "2 names, but there are 5 classes": {"class_names": ["a", "b"]},
        "must be a list of names, not 'names'": {"class_names": "names"},
        "layers must be at least 1, not 0": {"layers": 0},
        "channels must be at least 1, not 0": {"channels": 0},
        "cannot hold these backbone_args .* not JSON serializable": {"backbone_args": {"act_layer": torch.nn.SiLU}},
    }
    for message, arguments in wrong.items():
        with pytest.raises(UserError, match=message):
            create_segmentation_student(SMALL, 5, **arguments)


@pytest.mark.long
def test_onnx(trained: SegmentationStudent, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra frskd-timm[onnx]")

    folder = export_segmentation(trained, tmp_path / "student")
    for sizes, options in {((50, 61),): {"size": (50, 61)}, ((50, 61), (96, 33)): {"any_size": True}}.items():
        path = export_onnx(folder, **options)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for size in sizes:
            images = torch.randn(5, 3, *size)
            with torch.no_grad():
                expected = trained.eval()(images)
            (found,) = session.run(["logits"], {"images": images.numpy()})
            assert_close(torch.from_numpy(found), expected, 1e-4, "logits")
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    fixed = create_segmentation_student("levit_128s", 3, channels=8, backbone_args={"img_size": 64})
    with pytest.raises(UserError, match="does not take images of any size in ONNX"):
        export_onnx(export_segmentation(fixed, tmp_path / "fixed"), any_size=True)
    assert json.loads(session.get_modelmeta().custom_metadata_map["config"])["class_names"][1] == "Straße"


def test_a_label_loss_replaces_the_cross_entropy_of_pixels(trained: SegmentationStudent) -> None:
    task = SegmentationTask.create(trained)
    images, target = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    task.label_loss = LabelLoss(3, smoothing=0.9)
    smoothed = torch.nn.functional.cross_entropy(trained(images), target, label_smoothing=0.9)
    torch.testing.assert_close(task(images, target)["loss_ce"], task.student_weight * smoothed.detach())


def test_a_backbone_trained_without_frskd_does_not_cite_it(tmp_path: Path) -> None:
    student = create_segmentation_student("test_resnet", 3, channels=8)
    export_backbone(student, tmp_path / "b", tag="x", method="ce", license="mit", dataset="streets")
    cfg = json.loads((tmp_path / "b" / "config.json").read_text())["pretrained_cfg"]
    assert (cfg["tag"], cfg["license"]) == ("x", "mit")
    assert "streets" in cfg["description"]
    assert not {"paper_ids", "paper_name"} & cfg.keys()


def test_names_and_missing_weights_of_a_loaded_student(tmp_path: Path) -> None:
    student = create_segmentation_student("test_resnet", 3, channels=8)
    student.save_pretrained(tmp_path)
    assert SegmentationStudent.from_pretrained(tmp_path, class_names=["a", "b", "c"]).class_names == ["a", "b", "c"]
    weights = load_file(tmp_path / "model.safetensors")
    del weights["head.3.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    found = SegmentationStudent.from_pretrained(tmp_path, strict=False)
    assert torch.equal(found.head[3].weight, student.head[3].weight)
    student.bfloat16().reset_classifier(5)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    for enable in (True, False):
        student.set_grad_checkpointing(enable)
        assert student.backbone.grad_checkpointing == enable


def test_options_of_the_segmentation_tasks_arrive() -> None:
    student = create_segmentation_student("test_resnet", 3, channels=8, mean=[0.4])
    assert student.mean == (0.4,) * 3
    task = SegmentationCrossEntropyTask(student, smoothing=0.4)
    assert task.label_loss.smoothing == 0.4
    assert task.create_evaluator(max_samples=3).max_samples == 3
    image = np.zeros((20, 30, 3), np.uint8)
    assert student.bfloat16().eval().segment(image).shape == (20, 30)
