"""Load exported students: config, weights and logits.

The weights are compared with the plain architecture named in the config, which detects parts of a self-teacher and
prefixes of wrappers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from timm.models import is_model, model_entrypoint
from timm.utils import unwrap_model
from torch import Tensor, nn

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.config import check_pretrained_cfg, check_size, check_statistics, entry, refuse_huge
from frskd_timm.export.folder import CONFIG, read_json, read_shapes, read_weights, recover
from frskd_timm.segmentation.student import SegmentationStudent, probe_size


class ExportedStudent(ABC):
    """The folder of an exported student of any task.

    Args:
        path: The folder.
        config: Its `config.json`.

    Attributes:
        libraries: Libraries that load it, the Hub's `library_name` first.
        imports: Python imports that loading it needs.
        class_names: One name per class, or empty.

    Raises:
        UserError: The config has a missing or unusable value.
    """

    libraries: ClassVar[tuple[str, ...]]
    imports: str
    architecture: str
    in_chans: int
    class_names: list[str]

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config

    def check(self) -> dict[str, Tensor]:
        """Return the weights after checking that they fit the architecture and are complete and finite.

        Raises:
            UserError: A check failed; the message names the first keys.
        """
        self._compare_shapes(read_shapes(self.path))
        return read_weights(self.path)

    def load(self) -> nn.Module:
        """Return the student in eval mode.

        Raises:
            UserError: A file is missing or unreadable, or the weights do not fit the architecture.
        """
        self.check()
        return self._guarded(self._load).eval()

    def skeleton(self) -> nn.Module:
        """Return the network without its weights, on the meta device if possible; raise UserError if it is unknown."""
        try:
            with torch.device("meta"):  # takes no memory, whatever sizes the config contains
                return self._build()
        except Exception:  # some architectures compute with tensor values in their constructor
            return self._guarded(self._build)

    def probe(self, batch: int = 2, size: tuple[int, int] | None = None) -> Tensor:
        """Return the fixed noise [batch, C, H, W] used in all comparisons; classifiers have their own size."""
        return torch.randn(batch, self.in_chans, *self._size(size), generator=torch.Generator().manual_seed(0))

    @property
    def package(self) -> str | None:
        """Package that registers the architecture with timm; None if it is part of timm."""
        package = model_entrypoint(self.architecture).__module__.split(".")[0]
        return None if package == "timm" else package

    @abstractmethod
    def load_line(self, name: str) -> str:
        """Return the Python expression that loads the student.

        Args:
            name: OWNER/NAME on the Hub, with or without @REVISION, or `local-dir:FOLDER`.
        """

    @abstractmethod
    def _build(self) -> nn.Module: ...

    @abstractmethod
    def _load(self) -> nn.Module: ...

    @abstractmethod
    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]: ...

    def _guarded(self, make: Callable[[], nn.Module]) -> nn.Module:
        try:
            return make()
        except Exception as error:  # models raise various errors for unsuitable arguments
            raise UserError(
                f"The architecture '{self.architecture}' of {self.path / CONFIG} could not be built: "
                f"{first_line(error)}."
            ) from None

    def _compare_shapes(self, found: dict[str, tuple[int, ...]]) -> None:
        plain = {name: tuple(tensor.shape) for name, tensor in self.skeleton().state_dict().items()}
        different = {name for name in found.keys() & plain.keys() if found[name] != plain[name]}
        for keys, problem in (
            (found.keys() - plain.keys(), "keys that the plain {} does not have"),
            (plain.keys() - found.keys(), "no weights for keys of the plain {}"),
            (different, "shapes other than the plain {}'s"),
        ):
            if keys:
                some = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
                raise UserError(f"The student in {self.path} has {problem.format(self.architecture)}: {some}.")


class ExportedClassifier(ExportedStudent):
    """A timm checkpoint."""

    libraries: ClassVar = ("timm", "transformers")

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        super().__init__(path, config)
        where = path / CONFIG
        cfg = entry(config, "pretrained_cfg", dict, where)
        self.architecture = entry(config, "architecture", str, where)
        if not is_model(self.architecture):
            raise UserError(f"{where} names the architecture '{self.architecture}', which timm does not know.")
        self.imports = f"import timm, {self.package}" if self.package else "import timm"
        self.arguments = entry(config, "model_args", dict, where, default=config.get("model_args", {}))
        refuse_huge(self.arguments, where)
        classes = entry(config, "num_classes", int, where, default=cfg.get("num_classes", 1000))
        if not 0 <= classes <= 1 << 20:
            raise UserError(f"'num_classes' in {where} is {classes}: give the number of classes.")
        self.num_classes = classes
        check_pretrained_cfg(cfg, where)
        self.in_chans, *self.size = cfg.get("input_size", (3, 224, 224))
        self.class_names = entry(config, "label_names", list, where, default=[])
        if self.class_names and (
            len(self.class_names) != classes or not all(isinstance(name, str) for name in self.class_names)
        ):
            raise UserError(f"'label_names' in {where} is not a list of {classes} names.")

    def load_line(self, name: str) -> str:
        place = name if name.startswith("local-dir:") else f"hf-hub:{name}"
        return f'timm.create_model("{place}", pretrained=True)'

    def _build(self) -> nn.Module:
        arguments = {"num_classes": self.num_classes, **self.arguments}
        cfg = dict(self.config["pretrained_cfg"])
        return timm.create_model(self.architecture, pretrained=False, pretrained_cfg=cfg, **arguments)

    def _load(self) -> nn.Module:
        return timm.create_model(f"local-dir:{self.path}", pretrained=True)

    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        return self.size[0], self.size[1]


class ExportedSegmenter(ExportedStudent):
    """A `SegmentationStudent`."""

    libraries: ClassVar = ("frskd-timm", "timm")
    imports = "from frskd_timm.segmentation import SegmentationStudent"

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        super().__init__(path, config)
        where = path / CONFIG
        self.architecture = entry(config, "backbone", str, where)
        if not is_model(self.architecture):
            raise UserError(f"{where} names the backbone '{self.architecture}', which timm does not know.")
        refuse_huge({key: value for key, value in config.items() if key != "class_names"}, where)
        for name in ("num_classes", "channels", "layers", "in_chans"):
            if entry(config, name, int, where, default=None if name == "num_classes" else 3) < 1:
                raise UserError(f"'{name}' in {where} is {config[name]}: give a positive number.")
        self.in_chans = config.get("in_chans", 3)
        for name in ("mean", "std"):
            if name in config:
                check_statistics(name, config[name], self.in_chans, where)
        self.class_names = entry(config, "class_names", list, where, default=[])
        self.arguments = entry(config, "backbone_args", dict, where, default={})
        try:
            height, width = probe_size(self.arguments)
        except (TypeError, LookupError):
            raise UserError(f"'img_size' in {where} is not a size in pixels.") from None
        check_size([self.in_chans, height, width], where)

    def load_line(self, name: str) -> str:
        place, _, revision = name.removeprefix("local-dir:").partition("@")
        more = f', revision="{revision}"' if revision else ""
        return f'SegmentationStudent.from_pretrained("{place}"{more})'

    def _build(self) -> nn.Module:
        return SegmentationStudent(**self.config)

    def _load(self) -> nn.Module:
        with redirect_stdout(None):  # huggingface_hub prints messages
            return SegmentationStudent.from_pretrained(self.path)

    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        return size or probe_size(self.arguments)


def read_student(folder: str | Path) -> ExportedStudent:
    """Read the config of an exported student.

    Raises:
        UserError: `config.json` is missing or has a missing or unusable value.
    """
    folder = Path(folder)
    recover(folder)
    config = read_json(folder / CONFIG)
    return (ExportedSegmenter if "backbone" in config else ExportedClassifier)(folder, config)


def load_student(folder: str | Path) -> nn.Module:
    """Load an exported student in eval mode; a classifier through timm alone.

    Raises:
        UserError: A file is missing or unreadable, the architecture is unknown, or the weights do not fit it.
    """
    return read_student(folder).load()


def verify_export(folder: str | Path, model: nn.Module, *, tolerance: float = 1e-4) -> float:
    """Load an exported student and compare its logits with those of the model it was exported from.

    Raises:
        UserError: The folder does not load, or its logits differ; see `compare_logits`.
    """
    student = read_student(folder)
    return compare_logits(model, student.load(), student.probe(), tolerance=tolerance)


def compare_logits(model: nn.Module, other: nn.Module, images: Tensor, *, tolerance: float = 1e-4) -> float:
    """Compare the outputs of two models in eval mode and float32 on the first one's device.

    Returns:
        The largest absolute difference.

    Raises:
        UserError: The difference exceeds `tolerance` times the largest logit, or is NaN.
    """
    model = unwrap_model(model)
    parameter = next(model.parameters())
    images = images.to(parameter.device)
    other = other.to(parameter.device)
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False), _eval(model), _eval(other):
        expected = model(images.to(parameter.dtype)).float()
        found = other(images).float()
    if expected.shape != found.shape:
        raise UserError(f"The exported student returns shape {tuple(found.shape)}, not {tuple(expected.shape)}.")
    difference = (expected - found).abs().max().item() if expected.numel() else 0.0
    limit = tolerance * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    if not difference <= limit:  # also true for NaN
        raise UserError(
            f"The exported student's logits differ from the trained one's by {difference:.3g} > {limit:.3g}."
        )
    return difference


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    """Set eval mode and restore each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
