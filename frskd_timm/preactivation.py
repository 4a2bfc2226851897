"""Feature maps before their activation, read from any model with hooks."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from frskd_timm.errors import UserError

Place = tuple[str, int]
"""A module's name and the number of its call within a forward, because some models reuse one activation."""

# Where torch and timm define activations; pooling or dropout before a map is not one.
ACTIVATION_SOURCES = ("torch.nn.modules.activation", "timm.layers.activations")


def find_activations(model: nn.Module, forward: Callable[[], list[Tensor]]) -> list[Place]:
    """Find the activations that output a model's feature maps.

    Args:
        model: The model.
        forward: Runs the model once and returns its maps.

    Returns:
        For each map, the call of the activation that outputs it.

    Raises:
        UserError: A map is not the output of an activation.
    """
    producers: dict[int, Place] = {}
    alive: list[Any] = []  # keeps ids valid: they are reused after an object is freed
    calls: Counter[str] = Counter()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            producers[id(output)] = (name, calls[name])
            alive.append(output)
            calls[name] += 1

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if type(module).__module__.startswith(ACTIVATION_SOURCES)
    ]
    try:
        maps = forward()
    finally:
        for handle in handles:
            handle.remove()
    missing = [str(i + 1) for i, map_ in enumerate(maps) if id(map_) not in producers]
    if missing:
        raise UserError(
            f"{type(model).__name__} has no activation right before its feature map {' and '.join(missing)} of "
            f"{len(maps)}, so a feature loss that compares maps before their activation is not possible: "
            "use --feature-loss attention or fitnet."
        )
    return [producers[id(map_)] for map_ in maps]


def keep_inputs(model: nn.Module, places: Sequence[Place]) -> None:
    """Disable the in-place mode of activations, which would overwrite the maps before they are read.

    The model's outputs do not change.
    """
    for name, _ in places:
        activation: Any = model.get_submodule(name)
        if hasattr(activation, "inplace"):
            activation.inplace = False


@contextmanager
def catch_inputs(model: nn.Module, places: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """Collect the inputs of activations by place while the model runs."""
    caught: dict[Place, Tensor] = {}
    calls: Counter[str] = Counter()

    def catch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            caught[name, calls[name]] = args[0]
            calls[name] += 1

        return hook

    names = {name for name, _ in places}
    handles = [model.get_submodule(name).register_forward_pre_hook(catch(name)) for name in names]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()
