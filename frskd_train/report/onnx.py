"""Export of students to ONNX for onnxruntime; needs the extra `frskd-timm[onnx]`."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.export.load import ExportedStudent, read_student

TOLERANCE = 1e-4


def export_onnx(folder: str | Path, path: str | Path | None = None, *, size: tuple[int, int] | None = None) -> Path:
    """Write an exported student as ONNX for any batch size, and verify it in onnxruntime.

    The metadata of the file contains the student's `config.json` with preprocessing and class names.

    Args:
        folder: An exported student.
        path: The file to write; `model.onnx` in the folder by default.
        size: Height and width of the images for segmentation students; classifiers have their own size.

    Returns:
        The path. Input: normalised `images` [B, C, H, W]; output: `logits` [B, classes] or [B, classes, H, W].

    Raises:
        UserError: The extra is not installed, the folder does not load, the architecture cannot be exported, or
            onnxruntime's logits differ.
    """
    student = read_student(folder)
    path = Path(path) if path is not None else student.path / "model.onnx"
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 torch's exporter is built on it
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}, which is not installed: pip install 'frskd-timm[onnx]'.") from None
    model = student.load()
    aside = path.with_name(f".{path.name}.partial")
    try:
        _write(model, student, student.probe(size=size), aside)
        session = onnxruntime.InferenceSession(str(aside), providers=["CPUExecutionProvider"])
        for batch in (1, 3):  # one image, and more images than were traced
            _compare(model, session, student.probe(batch, size))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _write(model: nn.Module, student: ExportedStudent, images: Tensor, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the exporter about torch internals
            program = torch.onnx.export(
                model,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises various errors for unsupported architectures
        raise UserError(f"{student.architecture} cannot be exported to ONNX ({type(error).__name__}).") from error
    assert program is not None
    program.model.metadata_props["config"] = json.dumps(student.config)
    program.save(path, include_initializers=True)


def _compare(model: nn.Module, session: Any, images: Tensor) -> None:
    with torch.inference_mode():
        expected = model(images).numpy()
    found = session.run(["logits"], {"images": images.numpy()})[0]
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise UserError(f"onnxruntime's logits differ from the student's by {difference:.3g} at batch {len(images)}.")
