"""A segmentation student as an ONNX file for onnxruntime; needs the extra `frskd-timm[onnx]`."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch

from frskd_timm.errors import UserError
from frskd_timm.segmentation.student import SegmentationStudent

TOLERANCE = 1e-4


def export_segmentation_onnx(student: SegmentationStudent, path: str | Path, size: tuple[int, int]) -> Path:
    """Writes a student as ONNX, with any batch size, and proves it in onnxruntime.

    The file's metadata carry the student's `config.json`: mean, std and class names travel with it.

    Args:
        student: The student, on the CPU; its mode is left as it is.
        path: The file to write.
        size: Height and width of the images.

    Returns:
        The path: input `images` [B, C, H, W], normalised; output `logits` [B, classes, H, W].

    Raises:
        UserError: The extra is not installed, the backbone cannot be exported, or onnxruntime's logits differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 torch's exporter is built on it
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}, which is not installed: pip install 'frskd-timm[onnx]'.") from None
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    was_training = student.training
    student.eval()
    try:
        _write(student, aside, size)
        session = onnxruntime.InferenceSession(str(aside), providers=["CPUExecutionProvider"])
        for batch in (1, 3):
            images = _images(student, batch, size)
            with torch.inference_mode():
                expected = student(images).numpy()
            found = session.run(["logits"], {"images": images.numpy()})[0]
            difference = float(np.abs(found - expected).max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
                raise UserError(f"onnxruntime's logits differ from the student's by {difference:.3g} at batch {batch}.")
        aside.replace(path)
    finally:
        student.train(was_training)
        aside.unlink(missing_ok=True)
    return path


def _images(student: SegmentationStudent, batch: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(batch, student.in_chans, *size, generator=torch.Generator().manual_seed(0))


def _write(student: SegmentationStudent, path: Path, size: tuple[int, int]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about torch's own insides
            program = torch.onnx.export(
                student,
                (_images(student, 2, size),),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever the exporter makes of an architecture it does not know how to write
        raise UserError(f"{student.backbone_name} cannot be exported to ONNX ({type(error).__name__}).") from error
    assert program is not None
    program.model.metadata_props["config"] = json.dumps(student.config())
    program.save(path, include_initializers=True)
