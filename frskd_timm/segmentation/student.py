"""Segmentation students: any timm backbone with the decoder of the segmentation experiments of FRSKD."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize, pil_to_tensor

from frskd_timm.errors import UserError
from frskd_timm.lookup import hub_name
from frskd_timm.pixels import to_8_bits
from frskd_timm.probing import evaluating, sample_images
from frskd_timm.segmentation.arguments import as_json, check_place, names_of_classes, per_channel
from frskd_timm.segmentation.backbone import create_backbone, find_multiple, find_pyramid
from frskd_timm.segmentation.decoder import EXTRA_LEVELS, FeaturePyramid, SumBiFPN, pixel_classifier, pixel_head

_CARD_TEMPLATE = """---
{{ card_data }}
---

# Segmentation student

A network for semantic segmentation, trained with `frskd_timm` (FRSKD, arXiv 2103.08273).

```python
from frskd_timm.segmentation import SegmentationStudent

student = SegmentationStudent.from_pretrained("{{ repo_id | default("FOLDER OR OWNER/NAME", true) }}")
classes = student.segment(image)  # PIL image -> class indices [height, width]
```
"""


class SegmentationStudent(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="frskd-timm",
    pipeline_tag="image-segmentation",
    tags=["frskd", "semantic-segmentation"],
    model_card_template=_CARD_TEMPLATE,
):
    """Backbone, feature pyramid, BiFPN layers, and a head on the finest map (FRSKD, section 4.3).

    `save_pretrained`, `from_pretrained` and `push_to_hub` come from huggingface_hub: `config.json` holds the arguments
    below, `model.safetensors` the weights.

    Args:
        backbone: Name of any timm model with feature maps (`forward_intermediates`); its weights are random.
        num_classes: Number of classes.
        channels: Channels of all levels of the decoder.
        layers: Number of BiFPN layers, at least 1.
        in_chans: Number of image channels.
        mean: Mean per channel for normalising images in 0..1, or a single one for all; by default ImageNet's, averaged
            if there are other than three channels.
        std: Standard deviation per channel, likewise.
        class_names: One name per class, in the order of the logits.
        backbone_args: Further arguments of `timm.create_model` that JSON can hold.

    Attributes:
        levels: Indices of the backbone's maps that the decoder uses, fine to coarse.
        probe: Height and width of a small image that the backbone accepts without padding.
        num_levels: Number of maps that `forward_features` returns: two more than `levels`.
        multiple: Images are padded to a multiple of this many pixels, 1 for convolutional backbones.
        classifier_name: Name of the only layer whose size depends on the number of classes.
        fixed_size: (height, width) of the only images that the backbone accepts; None if it accepts others.

    Raises:
        UserError: timm has no such model, it has no usable maps, a number of values does not fit, or `config.json`
            could not hold an argument.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        channels: int = 64,
        layers: int = 3,
        in_chans: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        backbone_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.class_names = names_of_classes(class_names, num_classes)
        for name, number in (("channels", channels), ("layers", layers), ("in_chans", in_chans)):
            if number < 1:
                raise UserError(f"{name} must be at least 1, not {number}.")
        given = as_json(backbone_args)
        self.backbone_name, self.num_classes, self.in_chans = backbone, int(num_classes), int(in_chans)
        self.channels = int(channels)
        self.mean = per_channel("mean", mean, IMAGENET_DEFAULT_MEAN, in_chans)
        self.std = per_channel("std", std, IMAGENET_DEFAULT_STD, in_chans)
        self.backbone, self.backbone_args = create_backbone(backbone, in_chans, given)
        self.probe, pyramid = find_pyramid(self.backbone, in_chans, self.backbone_args)
        self.levels = pyramid.indices
        if hasattr(self.backbone, "prune_intermediate_layers"):
            self.backbone.prune_intermediate_layers(self.levels, prune_norm=True, prune_head=True)  # type: ignore[operator]
        multiple = find_multiple(self.backbone, in_chans)
        self.multiple = multiple or 1
        self.fixed_size = None if multiple else self.probe
        self.num_levels = len(self.levels) + EXTRA_LEVELS
        self.pyramid = FeaturePyramid(pyramid.channels, channels)
        self.bifpn = nn.ModuleList(SumBiFPN(self.num_levels, channels) for _ in range(layers))
        self.head = pixel_head(channels, num_classes)
        self.classifier_name = f"head.{len(self.head) - 1}"
        self._unused: list[str] = []  # names within the last bottom-up pass
        self._freeze_unreached()

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, as stored in `config.json`."""
        return {
            "backbone": self.backbone_name,
            "num_classes": self.num_classes,
            "channels": self.channels,
            "layers": len(self.bifpn),
            "in_chans": self.in_chans,
            "mean": list(self.mean),
            "std": list(self.std),
            "class_names": self.class_names or None,
            "backbone_args": self.backbone_args,
        }

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Input and classes in timm's form, for `timm.data.resolve_model_data_config`; without a fixed size, 224."""
        size = self.fixed_size or (224, 224)
        cfg = {"input_size": (self.in_chans, *size), "mean": self.mean, "std": self.std, "crop_pct": 1.0}
        return cfg | {"interpolation": "bilinear", "num_classes": self.num_classes}

    def save_pretrained(self, save_directory: str | Path, *, config: Any = None, **kwargs: Any) -> Any:
        """Save weights and config to a folder; see `huggingface_hub.ModelHubMixin.save_pretrained`."""
        return super().save_pretrained(save_directory, config=config or self.config(), **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, strict: bool = True, **kwargs: Any
    ) -> "SegmentationStudent":
        """Load a student from a folder or from `OWNER/NAME[@REVISION]` on the Hub; see `huggingface_hub.ModelHubMixin`.

        With `strict`, incomplete weights are refused; otherwise missing weights keep their random values. A
        `num_classes` other than that of the weights replaces the classifier as in timm; `class_names` is optional.

        Raises:
            UserError: The folder does not exist, or there is no segmentation student in it or in the repository.
        """
        name, revision = hub_name(str(pretrained_model_name_or_path))
        check_place(name, {"revision": revision, **kwargs})
        classes, names = kwargs.pop("num_classes", None), kwargs.pop("class_names", None)
        student: SegmentationStudent = super().from_pretrained(name, strict=strict, **{"revision": revision, **kwargs})
        if classes not in (None, student.num_classes):
            student.reset_classifier(classes, names)
        elif names is not None:
            student.class_names = names_of_classes(names, student.num_classes)
        return student

    def get_classifier(self) -> nn.Module:
        """Return the last layer, a 3x3 convolution."""
        return self.head[-1]

    def reset_classifier(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        """Replace the last layer by one for other classes, with random weights.

        Raises:
            UserError: There are not as many names as classes.
        """
        names, weight = names_of_classes(class_names, num_classes), next(self.parameters())
        self.head[-1] = pixel_classifier(num_classes).to(weight.device, weight.dtype)
        self.num_classes, self.class_names = int(num_classes), names

    def _freeze_unreached(self) -> None:
        """Freeze parameters of the backbone that no map depends on, because DDP would wait for their gradients."""
        with evaluating(self.backbone), torch.enable_grad():
            maps = self.backbone_maps(sample_images(self.backbone, (self.in_chans, *self.probe)))
        nodes, seen = [map_.grad_fn for map_ in maps], set()
        for node in nodes:  # the list grows meanwhile
            if node is not None and node not in seen:
                seen.add(node)
                nodes += [following for following, _ in node.next_functions]
        reached = {id(getattr(node, "variable", None)) for node in seen}
        for parameter in self.backbone.parameters():
            if id(parameter) not in reached:
                parameter.requires_grad_(False)

    def backbone_maps(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's maps [B, C_i, H_i, W_i] for the decoder, from images that need no padding."""
        return self.backbone.forward_intermediates(images, indices=self.levels, intermediates_only=True)  # type: ignore[operator]

    def forward_features(self, images: Tensor, finest_only: bool = False) -> list[Tensor]:
        """Compute the decoder's maps from normalised images [B, in_chans, H, W] of any size.

        Training with the default self-teacher, or without one, trains only the finest map: the last bottom-up pass,
        which computes the others, keeps its random weights.

        Returns:
            `num_levels` maps [B, channels, H_i, W_i], fine to coarse; only the first one with `finest_only`.

        Raises:
            UserError: The backbone does not accept images of this size.
        """
        return self.decode(self.forward_pyramid(images), finest_only)

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Compute the input maps of the decoder's BiFPN layers, which have the same shapes as the output maps."""
        return self.pyramid(self.backbone_maps(self.pad(images)))

    def decode(self, maps: list[Tensor], finest_only: bool = False) -> list[Tensor]:
        """Run the decoder's BiFPN layers on the maps of `forward_pyramid`."""
        for i, layer in enumerate(self.bifpn):
            maps = layer(maps, finest_only=finest_only and i + 1 == len(self.bifpn))
        return maps

    def forward_head(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return logits [B, num_classes, *size] from the decoder's finest map for images of that size."""
        return self.to_pixels(self.head(maps[0]), size)

    def to_pixels(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Resize logits [B, K, h, w] of the finest map to [B, K, *size], bilinearly and in at least float32."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        whole = F.interpolate(logits, self.padded_size(size), mode="bilinear", align_corners=False)
        return whole[..., : size[0], : size[1]]

    def padded_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the height and width of images of this size after padding at the bottom and right."""
        if self.fixed_size is not None and tuple(size) != self.fixed_size:
            only, given = ("x".join(map(str, pair)) for pair in (self.fixed_size, size))
            raise UserError(
                f"The backbone {self.backbone_name} takes only images of {only} pixels, not {given}; choose a size "
                "with the backbone argument img_size, or another backbone."
            )
        return -(-size[0] // self.multiple) * self.multiple, -(-size[1] // self.multiple) * self.multiple

    def use_bottom_up(self, used: bool) -> None:
        """Say whether a loss uses the maps of the last bottom-up pass, which the logits do not need.

        If none does, its parameters are frozen, because DDP would wait for their gradients.
        """
        last = dict(self.bifpn[-1].get_submodule("down").named_parameters())
        for name in self._unused:
            last[name].requires_grad_(True)
        self._unused = [] if used else [name for name, parameter in last.items() if parameter.requires_grad]
        for name in self._unused:
            last[name].requires_grad_(False)

    def pad(self, images: Tensor) -> Tensor:
        """Pad [..., H, W] with zeros at the bottom and right to the size that the backbone takes."""
        height, width = self.padded_size(images.shape[-2:])
        if (height, width) == tuple(images.shape[-2:]):
            return images
        return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, num_classes, H, W] for images [B, in_chans, H, W]."""
        return self.forward_head(self.forward_features(images, finest_only=True), images.shape[-2:])

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the backbone exempts from weight decay."""
        return {f"backbone.{name}" for name in getattr(self.backbone, "no_weight_decay", set)()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass, which saves memory and costs time."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def segment(self, image: Any) -> Tensor:
        """Return the class indices [H, W] of an image at its own size, normalised as in validation, on the CPU.

        Args:
            image: A PIL image, or a uint8 array [H, W] or [H, W, C] with 1 to 4 channels; an alpha channel is ignored,
                16 bits are reduced to 8, and an image with an EXIF orientation is rotated upright.

        Raises:
            UserError: The array is not a uint8 image, the image has pixels of an unknown range, or the student does
                not take gray or RGB images.
        """
        if self.in_chans not in (1, 3):
            raise UserError(f"segment() is for gray and RGB images, but this student takes {self.in_chans} channels.")
        if not hasattr(image, "convert"):
            array = np.asarray(image)
            is_image = array.size > 0 and array.shape[2:] in ((), (1,), (2,), (3,), (4,))
            if array.dtype != np.uint8 or not is_image:
                raise UserError(
                    f"segment() takes a uint8 array [H, W] or [H, W, 1 to 4], not {array.dtype} of shape {array.shape}."
                )
            image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
        weight = next(self.parameters())
        try:
            narrow = to_8_bits(image, "L" if self.in_chans == 1 else "RGB")
        except ValueError as error:
            raise UserError(f"segment() cannot use this image: {error}.") from error
        pixels = pil_to_tensor(narrow).to(weight.device, weight.dtype)
        with evaluating(self):
            logits = self(normalize(pixels / 255, self.mean, self.std)[None])
        return logits.argmax(dim=1)[0].cpu()
