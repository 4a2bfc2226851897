"""ONNX: onnxruntime says what the student says, for any batch size."""

import json

import numpy as np
import pytest
import timm
import torch

import frskd_timm  # noqa: F401 registers the students
from frskd_timm.errors import UserError
from frskd_timm.export.student import export_student
from frskd_train.report.onnx import export_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra frskd-timm[onnx]")
STUDENTS = timm.list_models("*_frskd")
QUICK = "wide_resnet16_2_frskd"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.long) for name in STUDENTS]
)
def test_logits_equal_the_students(tmp_path, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    data = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    folder = export_student(model, tmp_path / "student", tag="garments", **data)
    session = onnxruntime.InferenceSession(str(export_onnx(folder)), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 32, 32)
        with torch.inference_mode():
            expected = model.eval()(images).numpy()
        found = session.run(["logits"], {"images": images.numpy()})[0]
        assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    config = json.loads(session.get_modelmeta().custom_metadata_map["config"])
    assert config["pretrained_cfg"]["mean"] == [0.5] * 3
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.onnx", "model.safetensors"}


def test_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        export_onnx(tmp_path)
