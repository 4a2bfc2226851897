"""Load exported students, after comparing their weights with the plain architecture named in the config."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import timm
import torch
from timm.models import is_model, model_entrypoint
from timm.utils import unwrap_model
from torch import Tensor, nn

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.config import (
    check_pretrained_cfg,
    check_size,
    check_statistics,
    entry,
    output_names,
    refuse_huge,
)
from frskd_timm.export.folder import CONFIG, read_json, read_weights, recover
from frskd_timm.lookup import known_cfg, refuse_places
from frskd_timm.probing import evaluating
from frskd_timm.segmentation.backbone import probe_size
from frskd_timm.segmentation.student import SegmentationStudent

Module = TypeVar("Module", bound=nn.Module)


class ExportedStudent(ABC):
    """The folder of an exported student of any task.

    Attributes:
        path: The folder.
        config: Its `config.json`, read from the file `where`.
        architecture: timm's name of the network, or of its backbone.
        package: Package that registers the architecture with timm; None if it is part of timm.
        libraries: Libraries that load it, the Hub's `library_name` first.
        imports: Python imports that loading it needs.
        in_chans: Number of image channels.
        size: Height and width of the images that it was made for; in segmentation, of small images that it accepts.
        any_size: Whether it accepts images of other sizes.
        class_names: One name per class, or empty.

    Raises:
        UserError: The config has a missing or unusable value.
    """

    libraries: tuple[str, ...]
    any_size: ClassVar[bool]
    imports: str
    in_chans: int
    size: tuple[int, int]

    def __init__(self, path: Path, config: dict[str, Any], key: str, names_key: str) -> None:
        self.path, self.config, self.where = path, config, path / CONFIG
        self.architecture: str = entry(config, key, str, self.where)
        if not is_model(self.architecture):
            raise UserError(f"{self.where} names the {key} '{self.architecture}', which timm does not know.")
        package = model_entrypoint(self.architecture).__module__.split(".")[0]
        self.package = None if package == "timm" else package
        self.class_names: list[str] = entry(config, names_key, list, self.where, default=[])

    def check(self) -> dict[str, Tensor]:
        """Return the weights after checking that they fit the architecture and are complete and finite.

        Raises:
            UserError: A check failed; the message names the first keys.
        """
        state = read_weights(self.path)
        plain = self.skeleton().state_dict()
        # Frozen normalisation (timm.utils.freeze) has no counter of batches.
        absent = {key for key in plain.keys() - state.keys() if not key.endswith(".num_batches_tracked")}
        for problem, keys in {
            f"keys that the plain {self.architecture} does not have": state.keys() - plain.keys(),
            f"no weights for keys of the plain {self.architecture}": absent,
            f"shapes other than the plain {self.architecture}'s": {
                key for key in state.keys() & plain.keys() if state[key].shape != plain[key].shape
            },
        }.items():
            if keys:
                some = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
                raise UserError(f"The student in {self.path} has {problem}: {some}.")
        return state

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

    def probe_images(self, batch: int = 2, size: tuple[int, int] | None = None) -> Tensor:
        """Return the fixed noise [batch, C, H, W] used in all comparisons; classifiers have their own size."""
        height, width = size if size and self.any_size else self.size
        return torch.randn(batch, self.in_chans, height, width, generator=torch.Generator().manual_seed(0))

    def verify(self, model: nn.Module, *, tolerance: float = 1e-4) -> float:
        """Load the student; return the largest difference of its logits from a model's, in float32 on the CPU.

        Raises:
            UserError: It cannot be loaded, or the difference is NaN or exceeds `tolerance` times the largest absolute
                logit (`tolerance` itself if all logits are below 1).
        """
        images, model, loaded = self.probe_images(), comparable(unwrap_model(model)), comparable(self.load())
        with torch.autocast("cpu", enabled=False), evaluating(model), evaluating(loaded):
            expected, found = model(images.to(next(model.parameters()).dtype)), loaded(images)
        return compare_outputs(expected, found, tolerance=tolerance)

    @abstractmethod
    def load_line(self, name: str) -> str:
        """Return the Python expression that loads the student from OWNER/NAME[@REVISION] or `local-dir:FOLDER`."""

    @abstractmethod
    def _build(self) -> nn.Module: ...

    @abstractmethod
    def _load(self) -> nn.Module: ...

    def _guarded(self, make: Callable[[], nn.Module]) -> nn.Module:
        try:
            return make()
        except Exception as error:  # models raise various errors for unsuitable arguments
            problem = f"The architecture '{self.architecture}' of {self.where} could not be built"
            raise UserError(f"{problem}: {first_line(error)}.") from None


class ExportedClassifier(ExportedStudent):
    """A timm checkpoint."""

    any_size = False

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        cfg = entry(config, "pretrained_cfg", dict, path / CONFIG)
        count, others = config.get("num_classes"), cfg.get("label_names")
        if "label_names" not in config and isinstance(others, list | dict) and len(others) == count:
            config = {**config, "label_names": others}  # timm stores them in either place
        if isinstance(names := config.get("label_names"), dict) and isinstance(count, int):
            config = {**config, "label_names": output_names(names, count)}
        super().__init__(path, config, "architecture", "label_names")
        self.imports = f"import timm, {self.package}" if self.package else "import timm"
        # A null stays one and is refused, because timm cannot read it.
        self.arguments = entry(config, "model_args", dict, self.where, default=config.get("model_args", {}))
        refuse_huge(self.arguments, self.where)
        refuse_places(self.arguments, f"'model_args' in {self.where}")
        classes = entry(config, "num_classes", int, self.where, default=cfg.get("num_classes", 1000))
        if not 0 <= classes <= 1 << 20:
            raise UserError(f"'num_classes' in {self.where} is {classes}: give the number of classes.")
        self.num_classes = classes
        check_pretrained_cfg(cfg, self.where)
        self.in_chans, *size = cfg.get("input_size", (3, 224, 224))
        self.size = (size[0], size[1])
        if self.package:  # the Hub's code for timm and transformers does not import it
            self.libraries = (self.package.replace("_", "-"), "timm")
        else:
            self.libraries = ("timm", "transformers") if self.in_chans == 3 else ("timm",)  # its pipelines take RGB
        names = self.class_names
        if names and (len(names) != classes or not all(isinstance(name, str) for name in names)):
            raise UserError(f"'label_names' in {self.where} is not a list of {classes} names.")

    def load_line(self, name: str) -> str:
        place = name if name.startswith("local-dir:") else f"hf-hub:{name}"
        return f'timm.create_model("{place}", pretrained=True)'

    def _build(self) -> nn.Module:
        arguments = {"num_classes": self.num_classes, **self.arguments}
        cfg = dict(self.config["pretrained_cfg"])
        return timm.create_model(self.architecture, pretrained=False, pretrained_cfg=cfg, **arguments)

    def _load(self) -> nn.Module:
        return timm.create_model(f"local-dir:{self.path}", pretrained=True)


class ExportedSegmenter(ExportedStudent):
    """A `SegmentationStudent`."""

    libraries = ("frskd-timm", "timm")
    imports = "from frskd_timm.segmentation import SegmentationStudent"
    any_size = True

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        super().__init__(path, config, "backbone", "class_names")
        refuse_huge({key: value for key, value in config.items() if key != "class_names"}, self.where)
        for name in ("num_classes", "channels", "layers", "in_chans"):
            if entry(config, name, int, self.where, default=None if name == "num_classes" else 3) < 1:
                raise UserError(f"'{name}' in {self.where} is {config[name]}: give a positive number.")
        self.in_chans = config.get("in_chans", 3)
        for name in ("mean", "std"):
            if config.get(name) is not None:
                check_statistics(name, config[name], self.in_chans, self.where)
        arguments = entry(config, "backbone_args", dict, self.where, default={})
        try:
            self.size = probe_size(arguments)
        except (TypeError, LookupError):
            raise UserError(f"'img_size' in {self.where} is not a size in pixels.") from None
        cfg = known_cfg(self.architecture)
        if cfg is not None and cfg.fixed_input_size and "img_size" not in arguments:
            self.size = cast(SegmentationStudent, self.skeleton()).probe  # perhaps the only size that it takes
        check_size([self.in_chans, *self.size], self.where)

    def load_line(self, name: str) -> str:
        place, _, revision = (name.removeprefix("local-dir:"), "", "") if ":" in name else name.partition("@")
        more = f', revision="{revision}"' if revision else ""
        return f'SegmentationStudent.from_pretrained("{place}"{more})'

    def _build(self) -> nn.Module:
        return SegmentationStudent(**self.config)

    def _load(self) -> nn.Module:
        with redirect_stdout(None):  # huggingface_hub prints messages
            return SegmentationStudent.from_pretrained(self.path)


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
    """Load an exported student in eval mode, a classifier through timm alone; see `ExportedStudent.load`."""
    return read_student(folder).load()


def comparable(model: Module) -> Module:
    """Return a model that computes at least in float32 on the CPU, a copy if necessary.

    On a GPU, the same convolution differs by more than rounding between memory formats, because of TF32.
    """
    parameter = next(model.parameters())
    half = parameter.dtype in (torch.bfloat16, torch.float16)
    if not half and parameter.device.type == "cpu":
        return model
    model = deepcopy(model).cpu()
    return model.float() if half else model


def compare_outputs(expected: Tensor, found: Tensor, *, what: str = "logits", tolerance: float = 1e-4) -> float:
    """Return the largest difference of outputs of the same shape; raise UserError as `ExportedStudent.verify`."""
    expected, found = expected.float(), found.float()
    if expected.shape != found.shape:
        raise UserError(f"The exported student returns shape {tuple(found.shape)}, not {tuple(expected.shape)}.")
    difference, largest = (x.abs().max().item() if x.numel() else 0.0 for x in (expected - found, expected))
    limit = tolerance * max(1.0, largest)
    if not difference <= limit:  # also true for NaN
        raise UserError(
            f"The exported student's {what} differ from the original's by {difference:.3g}, more than {limit:.3g}."
        )
    return difference
