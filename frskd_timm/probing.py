"""Run a model once, without side effects, to learn something about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frskd_timm.errors import UserError, first_line

OTHER_SIZES = (28, 32, 42, 64, 84, 96, 112, 128, 160, 168, 192, 224, 240, 256, 288, 320, 336, 384, 448, 512)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run forwards without side effects: no gradients, random numbers or updates of running statistics."""
    training = {module: module.training for module in model.modules()}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)  # some models clear here what they cached for evaluation
        for module, mode in training.items():
            module.training = mode


def sample_images(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    """Return a fixed batch of one image [1, C, H, W] with the type and device of the model's parameters."""
    parameter = next(model.parameters())
    channels, height, width = input_size
    ramp = torch.linspace(-1, 1, channels * height * width, device=parameter.device, dtype=parameter.dtype)
    return ramp.view(1, channels, height, width)


def refuse_size(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Raise UserError if a model does not accept images of this size (channels, height, width)."""
    with evaluating(model):
        try:
            model(sample_images(model, input_size))
        except Exception as error:  # models raise various errors
            raise UserError(size_message(model, input_size, error)) from error


def size_message(model: nn.Module, input_size: tuple[int, int, int], error: Exception) -> str:
    """Return a message about the size that failed, with a similar size that works if there is one."""
    channels, height, width = input_size
    message = f"{type(model).__name__} does not run on {channels}x{height}x{width} images ({first_line(error)})"
    takes = getattr(model, "in_chans", channels)
    if takes != channels:
        return f"{message}; it takes {takes} channel(s)."
    # A model created for one size may accept no other; the size it was designed for is the last one to try.
    own: Any = getattr(model, "pretrained_cfg", None) or {}
    others = [(side, side) for side in sorted(OTHER_SIZES, key=lambda side: abs(side - max(height, width)))]
    for size in [*others, *([own["input_size"][1:]] if own.get("input_size") else [])]:
        try:
            images = sample_images(model, (channels, *size))
            model(images)
            if hasattr(model, "forward_intermediates"):
                model.forward_intermediates(images)  # type: ignore[operator]
        except Exception:  # as above
            continue
        return f"{message}, but runs on {channels}x{size[0]}x{size[1]}."
    return f"{message}."
