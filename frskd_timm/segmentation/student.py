"""Segmentation students: any timm backbone under the decoder of FRSKD's segmentation experiments."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub import PyTorchModelHubMixin
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.errors import UserError, first_line
from frskd_timm.lookup import known_cfg
from frskd_timm.pyramid import Pyramid
from frskd_timm.segmentation.decoder import FeaturePyramid, PixelHead, SumBiFPN

MAX_LEVELS = 4  # p2..p5
PROBE = 128  # pixels of the image that finds out a backbone's levels
# Of what a backbone's input has to be a multiple: the first whose odd multiples work. Halved, they are odd again.
MULTIPLES = {1: (97, 113), 4: (100, 116), 16: (112, 80), 32: (96, 160)}

CARD = """---
{{ card_data }}
---

# Segmentation student

A network for semantic segmentation, trained with `frskd_timm` (FRSKD, arXiv 2103.08273).

```python
from frskd_timm.segmentation import SegmentationStudent

student = SegmentationStudent.from_pretrained("{{ repo_id | default("FOLDER OR OWNER/NAME", true) }}")
classes = student.segment(image)  # a PIL image to [height, width] of class numbers
```
"""


class SegmentationStudent(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="frskd-timm",
    pipeline_tag="image-segmentation",
    tags=["frskd", "semantic-segmentation"],
    model_card_template=CARD,
):
    """Backbone, feature pyramid, BiFPN layers, and a head on the finest map (FRSKD, section 4.3).

    `save_pretrained`, `from_pretrained` and `push_to_hub` are huggingface_hub's: `config.json` holds the arguments
    below, `model.safetensors` the weights.

    Args:
        backbone: Any timm model with feature maps (`forward_intermediates`); made with random weights.
        num_classes: Number of classes.
        channels: Channels of all levels of the decoder.
        layers: BiFPN layers.
        in_chans: Channels of the images.
        mean: Mean a channel that the images are normalised with, of images in 0..1.
        std: Standard deviation a channel.
        class_names: One name a class, in the order of the logits.
        backbone_args: More arguments of `timm.create_model`.

    Attributes:
        backbone: The timm model without its head.
        backbone_args: The arguments that `timm.create_model` was given beside name, classes and channels.
        levels: Which of the backbone's maps the decoder takes, fine to coarse.
        probe: Height and width of an image that the backbone takes for certain.
        num_levels: Number of maps that `forward_features` gives: two more than the backbone's.
        multiple: Images are padded to a multiple of this many pixels, which is 1 for convolutional backbones.

    Raises:
        UserError: timm has no such model, or it gives no usable maps.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        channels: int = 64,
        layers: int = 3,
        in_chans: int = 3,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        class_names: Sequence[str] | None = None,
        backbone_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if class_names is not None and len(class_names) != num_classes:
            raise UserError(f"class_names has {len(class_names)} names, but there are {num_classes} classes.")
        self.backbone_name, self.num_classes, self.channels, self.in_chans = backbone, num_classes, channels, in_chans
        self.mean, self.std, self.class_names = tuple(mean), tuple(std), list(class_names or ())
        arguments = dict(backbone_args or {})
        self.probe = probe_size(arguments)
        self.backbone, self.levels, backbone_channels, self.backbone_args = _make_backbone(
            backbone, in_chans, self.probe, arguments
        )
        self.multiple = 1 if "img_size" in arguments else _find_multiple(self.backbone, in_chans)
        self.num_levels = len(self.levels) + 2
        self.pyramid = FeaturePyramid(backbone_channels, channels)
        self.bifpn = nn.ModuleList(SumBiFPN(self.num_levels, channels) for _ in range(layers))
        self.head = PixelHead(channels, num_classes)
        _freeze_unreached(self.backbone, lambda: self.backbone_maps(_blank(self.backbone, in_chans, self.probe)))

    def config(self) -> dict[str, Any]:
        """The arguments that it was made with, as `config.json` holds them."""
        config: Any = self._hub_mixin_config
        return dict(config)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        # huggingface_hub's default would leave weights that are missing from the file as they were drawn.
        return super()._load_as_safetensor(model, model_file, map_location, strict=True)

    def backbone_maps(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps [B, C_i, H_i, W_i] that the decoder is built on, of images it takes without padding."""
        return self.backbone.forward_intermediates(images, indices=self.levels, intermediates_only=True)  # type: ignore[operator]

    def forward_features(self, images: Tensor, finest_only: bool = False) -> list[Tensor]:
        """The decoder's maps.

        Args:
            images: Normalised, [B, in_chans, H, W], of any size.
            finest_only: Leave out what the logits do not need.

        Returns:
            `num_levels` maps [B, channels, H_i, W_i], fine to coarse; the first one alone with `finest_only`.
        """
        height, width = self._padded(images.shape[-2:])
        if (height, width) != tuple(images.shape[-2:]):
            images = F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
        maps = self.pyramid(self.backbone_maps(images))
        for i, layer in enumerate(self.bifpn):
            maps = layer(maps, finest_only=finest_only and i + 1 == len(self.bifpn))
        return maps

    def forward_head(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits [B, num_classes, *size] from the finest of the decoder's maps of images of that size."""
        return self.to_pixels(self.head(maps[0]), size)

    def to_pixels(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits [B, K, h, w] of the finest map to [B, K, *size], bilinear (half-pixel), in float32."""
        whole = F.interpolate(logits.float(), self._padded(size), mode="bilinear", align_corners=False)
        return whole[..., : size[0], : size[1]]

    def _padded(self, size: Sequence[int]) -> tuple[int, int]:
        return -(-size[0] // self.multiple) * self.multiple, -(-size[1] // self.multiple) * self.multiple

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes, H, W] of images [B, in_chans, H, W]."""
        return self.forward_head(self.forward_features(images, finest_only=True), images.shape[-2:])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in the backbone's backward pass."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    @torch.inference_mode()
    def segment(self, image: Any) -> Tensor:
        """Segments one image as in validation: at its own size, normalised with `mean` and `std`.

        Args:
            image: A PIL image, or an array [H, W] or [H, W, C] of bytes.

        Returns:
            Class numbers [H, W] on the CPU.
        """
        array = np.asarray(image.convert("L" if self.in_chans == 1 else "RGB") if hasattr(image, "convert") else image)
        weight = next(self.parameters())
        pixels = torch.from_numpy(array.copy()).to(weight.device, weight.dtype) / 255
        pixels = pixels.reshape(*array.shape[:2], -1).permute(2, 0, 1).expand(self.in_chans, -1, -1)
        mean, std = (torch.tensor(v, device=weight.device, dtype=weight.dtype) for v in (self.mean, self.std))
        was_training = self.training
        logits = self.eval()((pixels - mean[:, None, None])[None] / std[:, None, None])
        self.train(was_training)
        return logits.argmax(dim=1)[0].cpu()


def _make_backbone(
    name: str, in_chans: int, probe: tuple[int, int], arguments: dict[str, Any]
) -> tuple[nn.Module, list[int], list[int], dict[str, Any]]:
    """A timm model without its head, the levels to take of it, their channels, and the arguments that it was given."""
    cfg = known_cfg(name)
    # Transformers refuse images of other sizes than their own unless they are told.
    freedoms: list[dict[str, Any]] = [{}]
    if cfg is not None and cfg.fixed_input_size and "img_size" not in arguments:
        freedoms = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]
    for freedom in freedoms:
        given = {**freedom, **arguments}
        try:
            model = timm.create_model(name, num_classes=0, in_chans=in_chans, **given)
            break
        except TypeError as error:  # no such argument
            if freedom is freedoms[-1]:
                raise UserError(f"timm cannot build '{name}' so: {error}") from error
        except Exception as error:  # a model's own complaint about its arguments
            raise UserError(f"timm cannot build '{name}' so: {first_line(error)}") from error
    pyramid = Pyramid(model, (in_chans, *probe), MAX_LEVELS)
    prune: Any = getattr(model, "prune_intermediate_layers", None)
    if prune is not None:
        prune(pyramid.indices, prune_norm=True, prune_head=True)
    return model, pyramid.indices, pyramid.channels, given


def probe_size(backbone_args: Mapping[str, Any] | None) -> tuple[int, int]:
    """Height and width of an image that a backbone made with these arguments takes for certain."""
    size = (backbone_args or {}).get("img_size", PROBE)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _blank(model: nn.Module, in_chans: int, size: tuple[int, int]) -> Tensor:
    parameter = next(model.parameters())
    return torch.zeros(1, in_chans, *size, device=parameter.device, dtype=parameter.dtype)


@torch.no_grad()
def _find_multiple(model: nn.Module, in_chans: int) -> int:
    was_training = model.training
    model.eval()  # no running statistics
    run: Any = model.forward_intermediates
    try:
        for multiple, size in MULTIPLES.items():
            try:
                run(_blank(model, in_chans, size), intermediates_only=True)
            except (AssertionError, RuntimeError, ValueError):  # what models say of a size they don't take
                continue
            return multiple
    finally:
        model.train(was_training)
    return PROBE


def _freeze_unreached(module: nn.Module, forward: Any) -> None:
    """Freezes parameters that no output depends on, so that DDP does not wait for their gradients."""
    was_training = module.training
    module.eval()  # no running statistics
    with torch.enable_grad():
        nodes = [output.grad_fn for output in forward()]
    module.train(was_training)
    reached, seen = set(), set(nodes)
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        fresh = {following for following, _ in node.next_functions} - seen
        seen |= fresh
        nodes.extend(fresh)
    for parameter in module.parameters():
        if id(parameter) not in reached:
            parameter.requires_grad_(False)
