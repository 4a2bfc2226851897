"""Feature pyramid of any timm model: choice of levels, and maps and logits from one forward."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, overload

import torch
from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn

from frskd_timm.defaults import CLASSIFICATION as DEFAULT
from frskd_timm.errors import UserError
from frskd_timm.probing import evaluating, sample_images, size_message

Size = tuple[int, int]
Place = tuple[str, int]  # a module's name and the number of its call in a forward: some models reuse one activation

# Where torch and timm define activations; pooling or dropout before a map is not one.
ACTIVATION_SOURCES = ("torch.nn.modules.activation", "timm.layers.activations")


class Pyramid:
    """The chosen levels of a model, and one forward that returns their maps.

    It holds no module: the model is passed to each call, so that only one copy of the student exists.

    Args:
        model: Any timm model.
        input_size: (channels, height, width) of its images.
        max_levels: Maximum number of levels: the coarsest ones, or if all maps have the same size, ones spread evenly
            over the depth.
        preactivation: Read each map before its activation.

    Attributes:
        indices: Indices of the levels in `forward_intermediates`, fine to coarse.
        channels: Channels of each level.
        sizes: (height, width) of each level at `input_size`.
        preactivation: Whether each map is read before its activation.

    Raises:
        UserError: The model has no usable maps; the message gives the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: tuple[int, int, int],
        max_levels: int = DEFAULT.feature_levels,
        preactivation: bool = False,
    ) -> None:
        name = type(model).__name__
        if not hasattr(model, "forward_intermediates") or not hasattr(model, "forward_head"):
            raise UserError(f"FRSKD needs timm's forward_intermediates and forward_head, which {name} lacks.")
        shapes = _probe(model, input_size)
        self.indices = choose_levels([size for _, size in shapes], max_levels)
        if min(len(self.indices), max_levels) < 2:
            raise UserError(
                f"FRSKD needs at least 2 feature maps: {name} has {len(shapes)}, and the limit (--feature-levels, "
                f"max_levels) is {max_levels}."
            )
        self.channels = [shapes[i][0] for i in self.indices]
        self.sizes = [shapes[i][1] for i in self.indices]
        self.preactivation = preactivation
        self._before: list[Place] = []
        if preactivation:
            self._before = _find_activations(model, sample_images(model, input_size), self.indices)
            for place, _ in self._before:  # in place, they would overwrite the maps before they are read
                activation: Any = model.get_submodule(place)
                if hasattr(activation, "inplace"):
                    activation.inplace = False

    @overload
    def __call__(self, model: nn.Module, images: Tensor, head: Literal[True] = True) -> tuple[list[Tensor], Tensor]: ...
    @overload
    def __call__(self, model: nn.Module, images: Tensor, head: bool) -> tuple[list[Tensor], Tensor | None]: ...
    def __call__(self, model: nn.Module, images: Tensor, head: bool = True) -> tuple[list[Tensor], Tensor | None]:
        """Run the model once.

        Args:
            model: The model that the pyramid was created for.
            images: [B, C, H, W].
            head: Also compute the logits.

        Returns:
            Maps [B, C_i, H_i, W_i], fine to coarse, and logits [B, num_classes], equal to `model(images)`; None without
            `head`.
        """
        if self._before:
            with _recorded(model, {name for name, _ in self._before}) as calls:
                final, _ = _intermediates(model, images, self.indices)
            maps = [calls[place][0][0] for place in self._before]
        else:
            final, maps = _intermediates(model, images, self.indices)
        return maps, (model.forward_head(final) if head else None)  # type: ignore[operator]

    def activate(self, model: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
        """Apply the activations that `preactivation` left out; without it, return the maps unchanged."""
        if not self._before:
            return list(maps)
        return [model.get_submodule(name)(map_) for (name, _), map_ in zip(self._before, maps, strict=True)]


def _intermediates(model: nn.Module, images: Tensor, indices: list[int] | None = None) -> tuple[Tensor, list[Tensor]]:
    return model.forward_intermediates(images, indices=indices)  # type: ignore[operator]


@contextmanager
def _recorded(model: nn.Module, names: Iterable[str]) -> Iterator[dict[Place, tuple[Any, Any]]]:
    """Collect arguments and output of every call of some activations while the model runs."""
    found: dict[Place, tuple[Any, Any]] = {}
    calls: Counter[str] = Counter()

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        found[name, calls[name]] = args, output
        calls[name] += 1

    handles = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _find_activations(model: nn.Module, images: Tensor, indices: list[int]) -> list[Place]:
    """Find the call of an activation that outputs each map; raise UserError if there is none."""
    activations = [n for n, module in model.named_modules() if type(module).__module__.startswith(ACTIVATION_SOURCES)]
    with evaluating(model), _recorded(model, activations) as calls:
        _, maps = _intermediates(model, images, indices)
    producers = {id(output): place for place, (_, output) in calls.items()}
    missing = [str(i) for i, map_ in enumerate(maps, 1) if id(map_) not in producers]
    if missing:
        raise UserError(
            f"{type(model).__name__} has maps that no activation outputs ({', '.join(missing)} of {len(maps)}), "
            "so a feature loss cannot compare them before their activation: use the feature loss attention or fitnet."
        )
    return [producers[id(map_)] for map_ in maps]


def _probe(model: nn.Module, input_size: tuple[int, int, int]) -> list[tuple[int, Size]]:
    """Measure (channels, (height, width)) of every intermediate map: feature_info has no sizes."""
    name = type(model).__name__
    if any(isinstance(module, PatchDropout | PatchDropoutWithIndices) and module.prob for module in model.modules()):
        raise UserError(f"{name} drops patches in training, so its feature maps are incomplete: omit patch_drop_rate.")
    images = sample_images(model, input_size)
    with evaluating(model):
        try:
            logits = model(images)
            final, maps = _intermediates(model, images)
        except Exception as error:  # models raise various errors for a size that they do not accept
            raise UserError(size_message(model, input_size, error)) from error
        if not all(isinstance(map_, Tensor) and map_.ndim == 4 for map_ in maps):
            raise UserError(f"{name} returns feature maps that are not [B, C, H, W] tensors.")
        classes: Any = getattr(model, "num_classes", 0)
        if classes:
            if not isinstance(logits, Tensor) or logits.shape != (1, classes):
                hint = "it must be a classifier of timm, whose classes reset_classifier changes"
                raise UserError(f"{name} does not return {classes} logits per image: {hint}.")
            again = model.forward_head(final)  # type: ignore[operator]
            if not torch.allclose(again.float(), logits.float(), rtol=1e-3, atol=1e-4, equal_nan=True):
                if "forward" in vars(model):  # Accelerate replaces it by one with mixed precision
                    raise UserError(
                        f"The forward of {name} was replaced, as accelerator.prepare does: prepare the task instead of "
                        "the student."
                    )
                raise UserError(
                    f"{name} cannot be a student, because it classifies from more than its last feature map."
                )
    return [(map_.shape[1], (map_.shape[2], map_.shape[3])) for map_ in maps]


def choose_levels(sizes: Sequence[Size], max_levels: int) -> list[int]:
    """Choose at most `max_levels` maps from the sizes of all, in the order of the forward; return ascending indices.

    If the maps have at least two sizes, the last map of each size is used, up to the coarsest `max_levels`. If all have
    the same size, as in a plain ViT, `max_levels` maps evenly spread over the depth are used, including the last one.
    """
    last_of_size = [i for i in range(len(sizes)) if i + 1 == len(sizes) or sizes[i + 1] != sizes[i]]
    if len(last_of_size) > 1:
        return last_of_size[-max_levels:]
    levels = min(max_levels, len(sizes))
    return [round((k + 1) * len(sizes) / levels) - 1 for k in range(levels)]
