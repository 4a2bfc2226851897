"""ONNX and torch.export: the files say what the student says, for any batch size, and nothing about the machine."""

import json
import re
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT

import frskd_timm  # noqa: F401 registers the students
from frskd_timm.errors import UserError
from frskd_timm.export.load import load_student, read_student
from frskd_timm.export.student import export_student
from frskd_train import cli
from frskd_train.report.formats import export_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra frskd-timm[onnx]")


def answers(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", *images.shape[1:]]
    return session.run(["logits"], {"images": images.numpy()})[0], session


def test_the_command_writes_files_that_equal_the_student(student, tmp_path, capsys, monkeypatch):
    cli.run("export", [str(student), "--format", "onnx", "torch-export", "--output", str(tmp_path)])
    assert capsys.readouterr().out.count("Wrote") == 2
    archive = {"config.json": ""}
    program = torch.export.load(tmp_path / "student.pt2", extra_files=archive).module()
    model = load_student(student)
    for batch in (1, 5):
        images = read_student(student).probe_images(batch)
        with torch.inference_mode():
            expected = model(images)
            torch.testing.assert_close(program(images), expected, atol=1e-4, rtol=1e-4)
        found, session = answers(tmp_path / "student.onnx", images)
        assert np.abs(found - expected.numpy()).max() <= 1e-4 * max(1, expected.abs().max())
    for config in (archive["config.json"], session.get_modelmeta().custom_metadata_map["config"]):
        assert json.loads(config)["pretrained_cfg"]["mean"] == [0.5] * 3
    for path in tmp_path.iterdir():
        assert str(ROOT).encode() not in path.read_bytes(), path

    text = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "onnxruntime" in block]
    monkeypatch.chdir(tmp_path)
    scope = {"torch": torch, "images": images}
    exec(code, scope)
    assert np.abs(scope["logits"].detach().numpy() - expected.numpy()).max() <= 1e-4
    assert "pretrained_cfg" in scope["config"]
    assert json.loads(scope["extra"]["config.json"]) == scope["config"]


@pytest.mark.long
@pytest.mark.parametrize("name", timm.list_models("*_frskd"))
def test_every_registered_student_can_be_exported(tmp_path, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    data = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    folder = export_student(model, tmp_path / "student", tag="garments", **data)
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = model.eval()(images).numpy()
    found, _ = answers(export_onnx(folder), images)
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.onnx", "model.safetensors"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere/run"], "there is no such folder"),
        (["wide_resnet16_3_frskd"], "timm has no model"),
        (["resnet18_cifar_frskd"], "no pretrained weights"),
        (["wide_resnet16_2_frskd", "--img-size", "64"], "only for segmentation students"),
        (["wide_resnet16_2_frskd", "--any-size"], "does not take images of any size in ONNX: leave --any-size out"),
        (["wide_resnet16_2_frskd", "--any-size", "--img-size", "64"], "for --format onnx without --img-size"),
        (["wide_resnet16_2_frskd", "--output", "x.pt2"], "does not fit --format onnx"),
        (["wide_resnet16_2_frskd", "--output", "x.txt"], "give a folder, or a name that ends in .onnx."),
        (["wide_resnet16_2_frskd", "--format", "onnx", "torch-export", "--output", "x.onnx"], "give a folder.\n"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.run("export", arguments)
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_missing_extra_is_one_sentence_with_the_pip_command(student, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="pip install onnxscript"):
        export_onnx(student, tmp_path / "student.onnx")
