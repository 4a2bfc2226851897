"""The feature pyramid of any timm model: which levels, and one forward that gives maps and logits together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frskd_timm.errors import UserError


class Pyramid:
    """Chosen levels of a model, and how to read them.

    It holds no module: the model is handed in at each call, so that one copy of the student exists.

    Args:
        model: Any timm model with a classifier.
        input_size: (channels, height, width) of its images.
        max_levels: At most this many levels, the coarsest ones.
        preactivation: Read each map before the activation that it comes out of.

    Attributes:
        indices: Levels, as `forward_intermediates` counts them, fine to coarse.
        channels: Channels of each level.
        sizes: (height, width) of each level at `input_size`.

    Raises:
        UserError: The model gives no usable maps; the message says why.
    """

    def __init__(
        self, model: nn.Module, input_size: tuple[int, int, int], max_levels: int = 4, preactivation: bool = False
    ) -> None:
        name = type(model).__name__
        if not hasattr(model, "forward_intermediates") or not hasattr(model, "forward_head"):
            raise UserError(f"{name} offers no feature maps beside its logits (timm's forward_intermediates).")
        shapes = _probe(model, input_size)
        self.indices = choose_levels([size for _, size in shapes], max_levels)
        if len(self.indices) < 2:
            raise UserError(
                f"{name} offers {len(shapes)} feature map(s) at {input_size[1]}x{input_size[2]}; two it takes."
            )
        self.channels = [shapes[i][0] for i in self.indices]
        self.sizes = [shapes[i][1] for i in self.indices]
        self._before: list[str] = _activations(model, input_size, self.indices) if preactivation else []

    def __call__(self, model: nn.Module, images: Tensor, head: bool = True) -> tuple[list[Tensor], Tensor | None]:
        """One forward of the model.

        Args:
            model: The model that the pyramid was made for.
            images: [B, C, H, W].
            head: Compute the logits too.

        Returns:
            Maps [B, C_i, H_i, W_i], fine to coarse, and logits [B, num_classes], equal to `model(images)`.
        """
        caught: dict[str, Tensor] = {}
        hooks = [model.get_submodule(name).register_forward_pre_hook(_catch(caught, name)) for name in self._before]
        try:
            final, maps = _intermediates(model, images, self.indices)
        finally:
            for hook in hooks:
                hook.remove()
        logits = model.forward_head(final) if head else None  # type: ignore[operator]
        return ([caught[name] for name in self._before] or maps), logits


def _intermediates(model: nn.Module, images: Tensor, indices: Sequence[int] | None) -> tuple[Tensor, list[Tensor]]:
    return model.forward_intermediates(images, indices=None if indices is None else list(indices))  # type: ignore[operator]


def _catch(caught: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught[name] = args[0]

    return hook


@torch.no_grad()
def _run_quietly(model: nn.Module, images: Tensor, indices: Sequence[int] | None) -> list[Tensor]:
    """One forward that leaves no trace: evaluation mode, so no random numbers and no running statistics."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return _intermediates(model, images, indices)[1]
    finally:
        for module, mode in training.items():
            module.training = mode


def _blank(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    parameter = next(model.parameters())
    return torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)


def _probe(model: nn.Module, input_size: tuple[int, int, int]) -> list[tuple[int, tuple[int, int]]]:
    """(channels, (height, width)) of every intermediate map, measured: feature_info has no sizes."""
    try:
        maps = _run_quietly(model, _blank(model, input_size), None)
    except UserError:
        raise
    except Exception as error:  # whatever a model's own code says of a size that it can't take
        size = "x".join(map(str, input_size))
        raise UserError(f"{type(model).__name__} does not run on {size} images: {error}") from error
    return [(map_.shape[1], (map_.shape[2], map_.shape[3])) for map_ in maps]


def choose_levels(sizes: Sequence[tuple[int, int]], max_levels: int) -> list[int]:
    """Chooses levels for a pyramid out of all intermediate maps.

    Where the maps have at least two sizes, the last map of each size, the coarsest `max_levels` of them. Where all are
    alike, as in a plain ViT, `max_levels` maps spread evenly over the depth, the last one among them.

    Args:
        sizes: (height, width) of every map, in the order of the forward pass.
        max_levels: Upper bound of the number of levels.

    Returns:
        Indices into `sizes`, rising.
    """
    last_of_size = [i for i in range(len(sizes)) if i + 1 == len(sizes) or sizes[i + 1] != sizes[i]]
    if len(last_of_size) > 1:
        return last_of_size[-max_levels:]
    levels = min(max_levels, len(sizes))
    return [round((k + 1) * len(sizes) / levels) - 1 for k in range(levels)]


def _activations(model: nn.Module, input_size: tuple[int, int, int], indices: Sequence[int]) -> list[str]:
    """Names of the activation modules whose outputs the chosen maps are; their in-place mode is switched off.

    In place, the activation would overwrite the very map that is read before it. The model's function is unchanged.
    """
    outputs: dict[int, str] = {}
    hooks = []
    for name, module in model.named_modules():
        if not list(module.children()) and not list(module.parameters(recurse=False)) and name:

            def hook(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and not isinstance(module, nn.Identity):
                    outputs[id(output)] = name
                    kept.append(output)

            hooks.append(module.register_forward_hook(hook))
    kept: list[Tensor] = []  # keeps ids unique while the forward runs
    try:
        maps = _run_quietly(model, _blank(model, input_size), indices)
    finally:
        for handle in hooks:
            handle.remove()
    missing = [index for index, map_ in zip(indices, maps, strict=True) if id(map_) not in outputs]
    if missing:
        raise UserError(
            f"{type(model).__name__} has no activation module right before its feature map(s) {missing}, so there are "
            "no maps before the activation; use --feature-loss attention or fitnet."
        )
    names = [outputs[id(map_)] for map_ in maps]
    for name in names:
        activation = model.get_submodule(name)
        if hasattr(activation, "inplace"):
            activation.inplace = False  # type: ignore[assignment]
    return names
