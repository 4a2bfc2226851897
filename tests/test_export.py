"""Exported students: the files, loading them with timm and transformers, and never losing an older export."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.utils import freeze
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification

from frskd_timm.errors import UserError
from frskd_timm.export.folder import read_json
from frskd_timm.export.load import load_student, read_student
from frskd_timm.export.student import export_student

NAMES = [f"class {index}" for index in range(7)]


def make(name, seed=0, **kwargs):
    """Create a model with random weights everywhere; a head of zeros would make every comparison trivial."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return model


def export(model, folder, size=64, **options):
    channels = getattr(model, "in_chans", 3)
    facts = {"tag": "garments", "license": "cc-by-4.0", "dataset": "Garments"}
    data = {"input_size": (channels, size, size), "mean": (0.4,) * channels, "std": (0.2,) * channels}
    return export_student(model, folder, **(facts | data | options))


def logits(model, images):
    with torch.inference_mode():
        return model.eval()(images)


CASES = [
    ("resnet18_frskd", {}, 28, "resnet18"),
    ("resnet18_frskd", {"in_chans": 1}, 28, "resnet18"),
    ("wide_resnet16_2_frskd", {}, 32, "wide_resnet16_2_frskd"),
    ("resnet18_cifar_frskd", {"drop_rate": 0.1}, 32, "resnet18_cifar_frskd"),
    ("test_resnet", {"global_pool": "max", "in_chans": 5}, 40, "test_resnet"),
    ("test_vit", {"img_size": 96}, 96, "test_vit"),
    ("test_vit", {"dynamic_img_size": True}, 64, "test_vit"),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1)}, 64, None),
    ("mobilenetv3_small_050", {"drop_path_rate": 0.1}, 64, "mobilenetv3_small_050"),
    ("convnext_atto", {"depths": (1, 1, 1, 1)}, 64, "convnext_atto"),
]


@pytest.mark.parametrize(("name", "kwargs", "size", "architecture"), CASES)
def test_loads_in_timm_and_transformers(tmp_path, name, kwargs, size, architecture):
    model = make(name, num_classes=7, **kwargs)
    model.train()
    random = torch.get_rng_state()
    folder = export(model, tmp_path / "student", size, label_names=NAMES)
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())
    student = read_student(folder)
    config = student.config
    assert config["architecture"] == (architecture or name)
    assert "num_classes" not in config["model_args"]

    images = student.probe_images()
    assert images.shape == (2, kwargs.get("in_chans", 3), size, size)
    expected = logits(model, images)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    torch.testing.assert_close(logits(loaded, images), expected)
    assert list(loaded.pretrained_cfg["label_names"]) == NAMES
    data = timm.data.resolve_model_data_config(loaded)
    assert tuple(data["input_size"]) == images.shape[1:]
    assert list(data["mean"]) == [0.4] * images.shape[1]
    assert data["crop_pct"] == 1.0

    wrapped = AutoModelForImageClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(wrapped, images).logits, expected)
    assert wrapped.config.id2label == dict(enumerate(NAMES))


def test_nothing_of_timms_default_weights_is_left(tmp_path):
    model = make("resnet18_frskd", num_classes=7)
    assert timm.get_pretrained_cfg("resnet18").license  # there is something that could be left
    config = read_student(export(model, tmp_path / "student")).config
    default = json.dumps(timm.get_pretrained_cfg("resnet18").to_dict())
    cfg = config["pretrained_cfg"]
    assert cfg["tag"] == "garments"
    assert cfg["license"] == "cc-by-4.0"
    assert cfg["paper_ids"] == "arXiv:2103.08273"
    assert (cfg["mean"], cfg["std"], cfg["input_size"]) == ([0.4] * 3, [0.2] * 3, [3, 64, 64])
    assert cfg["first_conv"] == "conv1"
    for key in ("url", "hf_hub_id", "origin_url", "test_input_size", "test_crop_pct", "notes"):
        assert key not in cfg
    for value in ("a1_in1k", "2110.00476", "apache"):
        assert value in default
        assert value not in json.dumps(config)
    plain = read_student(export(model, tmp_path / "ce", method="ce", license=None, dataset=None)).config[
        "pretrained_cfg"
    ]
    assert not {"paper_ids", "paper_name", "license", "description"} & set(plain)


def test_used_as_backbone_and_with_another_head(tmp_path):
    model = make("test_resnet", num_classes=7)
    name = f"local-dir:{export(model, tmp_path / 'student')}"
    images = torch.randn(2, 3, 64, 64)
    features = timm.create_model(name, pretrained=True, features_only=True).eval()(images)
    expected = model.eval().forward_intermediates(images, intermediates_only=True)
    torch.testing.assert_close(features[-1], expected[-1])
    tuned = timm.create_model(name, pretrained=True, num_classes=3, in_chans=1)
    assert tuned(images[:, :1]).shape == (2, 3)
    torch.testing.assert_close(tuned.layer4[0].conv1.weight, model.layer4[0].conv1.weight)
    headless = timm.create_model(name, pretrained=True, num_classes=0).eval()
    torch.testing.assert_close(headless(images), model.forward_head(model.forward_features(images), pre_logits=True))


def test_backbone_without_classes(tmp_path):
    model = make("test_resnet", num_classes=0)
    folder = export(model, tmp_path / "student")
    images = read_student(folder).probe_images()
    torch.testing.assert_close(logits(load_student(folder), images), logits(model, images))
    pooled = logits(AutoModel.from_pretrained(folder).eval(), images).pooler_output
    torch.testing.assert_close(pooled, logits(model, images))


def test_wrappers_layout_and_shared_memory_leave_no_trace(tmp_path):
    model = make("test_resnet", num_classes=7).to(memory_format=torch.channels_last)
    model.layer1 = torch.compile(model.layer1, backend="eager")  # the prefix then stands in the middle of keys
    folder = export(torch.compile(nn.DataParallel(model)), tmp_path / "student")
    keys = load_file(folder / "model.safetensors").keys()
    assert not [key for key in keys if "_orig_mod" in key or "module." in key]
    plain = timm.create_model("test_resnet", num_classes=7)
    plain.load_state_dict(load_file(folder / "model.safetensors"), strict=True)


def test_frozen_normalisation_has_no_counter(tmp_path):
    model = make("test_resnet", num_classes=7)
    freeze(model, ["conv1", "bn1", "layer1"])
    folder = export(model, tmp_path / "student")
    assert "bn1.num_batches_tracked" not in load_file(folder / "model.safetensors")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(load_student(folder)(images), model.eval()(images))


def test_nothing_but_the_student(tmp_path):
    model = make("test_resnet", num_classes=7)
    model.self_teacher = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"keys that the plain test_resnet does not have: self_teacher\.bias"):
        export(model, tmp_path / "student")
    with pytest.raises(UserError, match="not a model made by timm"):
        export(nn.Linear(2, 2), tmp_path / "student")
    with pytest.raises(UserError, match="FeatureListNet cannot be exported: it was created with features_only"):
        export(make("test_resnet", features_only=True), tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_half_precision(tmp_path):
    model = make("wide_resnet16_2_frskd", num_classes=7)
    folder = export(model, tmp_path / "student", 32, half=True)
    state = load_file(folder / "model.safetensors")
    assert state["fc.weight"].dtype == torch.float16
    running = [tensor for key, tensor in state.items() if "running" in key]
    assert {tensor.dtype for tensor in running} == {torch.float32}
    largest = logits(model, torch.randn(2, 3, 32, 32)).abs().max()
    assert 0 < read_student(folder).verify(model, tolerance=2e-2) < 0.05 * largest
    with pytest.raises(UserError, match="logits differ"):
        read_student(folder).verify(model, tolerance=1e-7)
    wrapped = AutoModelForImageClassification.from_pretrained(folder)
    assert wrapped.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_student_of_low_precision(tmp_path, dtype):
    model = make("wide_resnet16_2_frskd", num_classes=7).to(dtype)
    state = load_file(export(model, tmp_path / "student", 32) / "model.safetensors")
    assert torch.equal(state["fc.weight"], model.fc.weight.float())
    assert model.fc.weight.dtype == dtype


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_names": ["one"]}, "list of 7 names"),
        ({"mean": 0.5}, "mean must be one number per channel"),
        ({"input_size": 64}, r"input_size must be \(channels, height, width\)"),
        ({"input_size": (3, 64.5, 64)}, r"input_size must be \(channels, height, width\)"),
        ({"label_names": dict.fromkeys("abcdefg", 0)}, "list of 7 names"),
        ({"mean": (127.0, 127.0, 127.0)}, r"images in 0\.\.1"),
        ({"model_name": "no_such_model"}, "does not know model_name 'no_such_model'"),
        ({"mean": (0.5, 0.5)}, "'mean' in the arguments is .*: give numbers, one per channel"),
        ({"input_size": (1, 64, 64)}, "'mean' in the arguments is .*: give numbers, one per channel"),
        ({"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.5,)}, "with these arguments: .*1 input channels"),
        ({"mean": (), "std": ()}, "'mean' in the arguments is .*: give numbers, one per channel"),
        ({"crop_pct": 0}, r"'crop_pct' in the arguments is 0\.0: give a number above 0"),
        ({"interpolation": "random"}, "'interpolation' in the arguments is 'random': give one of"),
        ({"label_names": [*"abcdef", "bad\udcff"]}, "surrogates not allowed"),
        ({"model_name": "resnet18"}, "keys that the plain resnet18 does not have"),
    ],
)
def test_a_failed_export_leaves_the_older_one(tmp_path, options, sentence):
    folder = export(make("test_resnet", num_classes=7), tmp_path / "student")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=sentence):
        export(make("test_resnet", seed=1, num_classes=7), folder, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_an_export_that_fails_late_leaves_the_older_one(tmp_path):
    folder = export(make("test_resnet", num_classes=7), tmp_path / "student")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    broken = make("test_resnet", seed=1, num_classes=7)
    broken.fc.bias.data[0] = float("inf")
    with pytest.raises(UserError, match=r"not finite in fc\.bias"):
        export(broken, folder)

    def finish(aside):
        (aside / "README.md").write_text("half a card")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(make("test_resnet", seed=1, num_classes=7), folder, finish=finish)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_numbers_and_names_may_come_from_arrays(tmp_path):
    statistics = np.array([0.25, 0.5, 0.75], np.float32), torch.tensor([0.5, 0.25, 0.5])
    names, size = np.arange(7), np.array([3, 64, 64])
    options = {"mean": statistics[0], "std": statistics[1], "label_names": names, "crop_pct": np.float32(1)}
    model = make("test_resnet", num_classes=7)
    folder = export_student(model, tmp_path / "student", tag="arrays", input_size=size, **options)
    config = read_json(folder / "config.json")
    assert config["label_names"] == ["0", "1", "2", "3", "4", "5", "6"]
    cfg = config["pretrained_cfg"]
    assert (cfg["mean"], cfg["std"], cfg["input_size"]) == ([0.25, 0.5, 0.75], [0.5, 0.25, 0.5], [3, 64, 64])


def test_arguments_that_are_not_json_can_be_replaced(tmp_path):
    model = timm.create_model("test_resnet", num_classes=7, act_layer=torch.nn.SiLU)
    with pytest.raises(UserError, match="'act_layer' is not serializable; provide a model_args replacement"):
        export(model, tmp_path / "student")
    export(model, tmp_path / "student", model_args={"act_layer": "silu"})


def test_a_folder_that_cannot_be_renamed_stays_in_its_place(tmp_path, monkeypatch):
    (tmp_path / "lost+found").mkdir()  # as on a mounted disk
    monkeypatch.chdir(tmp_path)
    export(make("test_resnet", num_classes=7), ".", finish=lambda aside: (aside / "README.md").write_text("old"))
    newer = make("test_resnet", seed=1, num_classes=7)
    export(newer, Path.cwd())
    assert sorted(os.listdir()) == ["config.json", "lost+found", "model.safetensors"]
    read_student(".").verify(newer)
    with pytest.raises(UserError, match="cannot be written"):
        export(newer, tmp_path / "config.json" / "student")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_quantised_student_is_refused(tmp_path):
    model = torch.ao.quantization.quantize_dynamic(timm.create_model("test_resnet", num_classes=3), {torch.nn.Linear})
    with pytest.raises(UserError, match="not a plain tensor: export the student before"):
        export_student(model, tmp_path / "student", tag="x", input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


def test_replaces_an_export_and_nothing_else(tmp_path):
    folder = tmp_path / "student"
    export(make("test_resnet", num_classes=7), folder, finish=lambda aside: (aside / "README.md").write_text("old"))
    newer = make("test_resnet", seed=1, num_classes=7)
    export(newer, folder)
    assert not (folder / "README.md").exists()
    read_student(folder).verify(newer)
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        export(newer, folder)
    with pytest.raises(UserError, match="is a file"):
        export(newer, folder / "thesis.tex")
    assert (folder / "thesis.tex").read_text() == "mine"
    for place, mine in ((tmp_path / "photos", "album.png/1.jpg"), (tmp_path / "experiment", "config.json")):
        if mine != "config.json":
            shutil.copytree(folder, place, ignore=lambda *_: ["thesis.tex"])
        (place / mine).parent.mkdir(parents=True)
        (place / mine).write_text('{"lr": 1}')
        with pytest.raises(UserError, match=rf"holds something other than an exported .*{mine.split('/')[0]}"):
            export(newer, place)
        assert (place / mine).read_text() == '{"lr": 1}'
