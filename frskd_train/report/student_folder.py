"""An exported student's folder, whichever task the student is for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.models import is_model, model_entrypoint
from torch import Tensor, nn

from frskd_timm.export.load import check_weights, load_export, probe_images, read_config
from frskd_timm.export.load_segmentation import (
    check_segmentation,
    is_segmentation,
    load_segmentation,
    read_segmentation_config,
)
from frskd_timm.segmentation.student import probe_size


@dataclass(frozen=True)
class StudentFolder:
    """What publishing, cards and ONNX ask of an exported student.

    Attributes:
        path: The folder: `config.json` and `model.safetensors`.
    """

    path: Path

    @cached_property
    def is_segmentation(self) -> bool:
        """Whether a `SegmentationStudent` lies there; a timm classifier otherwise."""
        return is_segmentation(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its `config.json`; raises UserError where that cannot be read."""
        return read_segmentation_config(self.path) if self.is_segmentation else read_config(self.path)

    @property
    def architecture(self) -> str:
        """timm's name of the network, or of the backbone under the decoder."""
        return str(self.config["backbone" if self.is_segmentation else "architecture"])

    @property
    def library(self) -> str:
        """What the Hub calls the library that loads it."""
        return "frskd-timm" if self.is_segmentation else "timm"

    def check(self) -> None:
        """Makes sure that the weights are the network's, all of them and finite; raises UserError."""
        if self.is_segmentation:
            check_segmentation(self.path)
        else:
            check_weights(self.path)

    def load(self) -> nn.Module:
        """The student in eval mode; raises UserError where it does not load."""
        return load_segmentation(self.path) if self.is_segmentation else load_export(self.path)

    def probe(self, batch: int = 2, size: tuple[int, int] | None = None) -> Tensor:
        """The fixed input of all comparisons: normalised noise [batch, C, H, W].

        Args:
            batch: How many images.
            size: Height and width; only segmentation students take others than their own.
        """
        if not self.is_segmentation:
            return probe_images(self.config, batch)
        size = size or probe_size(self.config.get("backbone_args"))
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, self.config.get("in_chans", 3), *size, generator=generator)

    @property
    def imports(self) -> str:
        """What has to be imported to load it."""
        if self.is_segmentation:
            return "from frskd_timm.segmentation import SegmentationStudent"
        package = package_of(self.architecture)
        return f"import timm, {package}" if package else "import timm"

    def load_line(self, name: str) -> str:
        """The Python that loads it after the imports.

        Args:
            name: OWNER/NAME on the Hub, with or without @REVISION, or `local-dir:FOLDER`.
        """
        if not self.is_segmentation:
            place = name if name.startswith("local-dir:") else f"hf-hub:{name}"
            return f'timm.create_model("{place}", pretrained=True)'
        place, _, revision = name.removeprefix("local-dir:").partition("@")
        more = f', revision="{revision}"' if revision else ""
        return f'SegmentationStudent.from_pretrained("{place}"{more})'


def package_of(architecture: str) -> str | None:
    """The package that has to be imported before timm knows an architecture; none where timm brings it."""
    if not is_model(architecture):
        return None
    package = model_entrypoint(architecture).__module__.split(".")[0]
    return None if package == "timm" else package
