"""Export of students to ONNX, which needs the extra `frskd-timm[onnx]`, and to programs of `torch.export`."""

import json
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CONFIG
from frskd_timm.export.load import ExportedStudent, compare_outputs, read_student
from frskd_timm.pyramid import Pyramid
from frskd_timm.segmentation import SegmentationStudent
from frskd_train.system.disk import disk_errors

_BATCH = ({0: torch.export.Dim("batch")},)


class WithAttention(nn.Module):
    """A classifier that returns its logits and the attention map [B, h, w] of each level, fine to coarse."""

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = model
        self.pyramid = Pyramid(model, input_size)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps, logits = self.pyramid(self.model, images)
        assert logits is not None
        return logits, *(map_.square().mean(1) for map_ in maps)


def check_onnx() -> None:
    """Raise UserError if the extra `frskd-timm[onnx]` is not installed."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs packages that are not installed: pip install {' '.join(missing)}.")


def export_onnx(
    folder: str | Path,
    path: str | Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    any_size: bool = False,
    attention: bool = False,
) -> Path:
    """Write an exported student as ONNX for any batch size, and verify it in onnxruntime.

    The metadata of the file contains the student's `config.json` with preprocessing and class names.

    Args:
        folder: An exported student.
        path: The file to write; `model.onnx` in the folder by default.
        size: Height and width of the images for segmentation students; classifiers have their own size.
        any_size: Let a segmentation student take images of any size, if its backbone does without padding them.
        attention: Also return the attention map of each level of a classifier, as `attention_1` (fine) and following.

    Returns:
        The path. Input: normalised `images` [batch, C, H, W]; output: `logits` [batch, classes] or
        [batch, classes, H, W].

    Raises:
        UserError: The extra is not installed, the folder does not load, the architecture cannot be exported (for any
            size), or onnxruntime's outputs differ.
    """
    student = read_student(folder)
    check_onnx()
    import onnxruntime

    model, names = student.load(), ["logits"]
    if any_size and not (isinstance(model, SegmentationStudent) and model.multiple == 1 and model.fixed_size is None):
        raise UserError(f"{student.architecture} does not take images of any size in ONNX: leave --any-size out.")
    if attention:
        _, channels, height, width = student.probe_images(size=size).shape
        model = WithAttention(model, (channels, height, width)).eval()
        names += [f"attention_{level + 1}" for level in range(len(model.pyramid.indices))]

    def write(images: Tensor, aside: Path) -> None:
        program = torch.onnx.export(
            model, (images,), input_names=["images"], output_names=names, dynamo=True, verbose=False,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},) if any_size else _BATCH,
        )  # fmt: skip
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces with the paths of this machine
        program.model.metadata_props["config"] = json.dumps(student.config)
        program.save(aside, include_initializers=True)

    def read(aside: Path) -> Callable[[Tensor], Sequence[Any]]:
        session = onnxruntime.InferenceSession(str(aside), providers=["CPUExecutionProvider"])
        return lambda images: session.run(names, {"images": images.numpy()})

    return _export(student, model, Path(path or student.path / "model.onnx"), size, write, read, any_size)


def export_program(folder: str | Path, path: str | Path, *, size: tuple[int, int] | None = None) -> Path:
    """Write an exported student as a program of `torch.export` for any batch size, verify it, and return the path.

    `torch.export.load(path).module()` runs it without timm. The archive contains the student's `config.json`.

    Args:
        folder: An exported student.
        path: The file to write, with the suffix `.pt2`.
        size: Height and width of the images for segmentation students; classifiers have their own size.

    Raises:
        UserError: The folder does not load, the architecture cannot be exported, or the program's logits differ.
    """
    student = read_student(folder)
    model = student.load()

    def write(images: Tensor, aside: Path) -> None:
        program = torch.export.export(model, (images,), dynamic_shapes=_BATCH)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # with the paths of this machine
        torch.export.save(program, aside, extra_files={CONFIG: json.dumps(student.config)})

    def read(aside: Path) -> Callable[[Tensor], Sequence[Any]]:
        program = torch.export.load(aside).module()
        return lambda images: [program(images).numpy()]

    return _export(student, model, Path(path), size, write, read)


def _export(
    student: ExportedStudent,
    model: nn.Module,
    path: Path,
    size: tuple[int, int] | None,
    write: Callable[[Tensor, Path], None],
    read: Callable[[Path], Callable[[Tensor], Sequence[Any]]],
    any_size: bool = False,
) -> Path:
    """Write a file, compare its outputs with the model's, and only then put it in place."""
    aside = path.with_name(f".{path.stem}.partial{path.suffix}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings of the exporters about torch internals
                write(student.probe_images(size=size), aside)
            run, others = read(aside), [(37, 90), (130, 61)] if any_size else []
            for batch, height_and_width in ((1, size), (3, size), *((2, other) for other in others)):
                _compare(model, run, student.probe_images(batch, height_and_width))  # not only what was traced
            aside.replace(path)
        except (OSError, UserError):
            raise
        except Exception as error:  # the exporters raise various errors for unsupported architectures
            reason = type(error).__name__
            raise UserError(f"{student.architecture} cannot be exported to {path.suffix} ({reason}).") from error
        finally:
            aside.unlink(missing_ok=True)
    return path


def _compare(model: nn.Module, run: Callable[[Tensor], Sequence[Any]], images: Tensor) -> None:
    with torch.inference_mode():
        outputs = model(images)
        found = run(images)
    for expected, other in zip(outputs if isinstance(outputs, tuple) else (outputs,), found, strict=True):
        compare_outputs(expected, torch.from_numpy(other), what="outputs")
