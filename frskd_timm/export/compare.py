"""Comparing the outputs of two models."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from frskd_timm.errors import UserError


def compare_logits(model: nn.Module, other: nn.Module, images: Tensor, *, tolerance: float = 1e-4) -> float:
    """Compare the outputs of two models in eval mode and float32 on the first one's device.

    Returns:
        The largest absolute difference.

    Raises:
        UserError: It exceeds `tolerance` times the largest logit, or is NaN.
    """
    model = unwrap_model(model)
    parameter = next(model.parameters())
    images = images.to(parameter.device)
    other = other.to(parameter.device)
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False), _eval(model), _eval(other):
        expected = model(images.to(parameter.dtype)).float()
        found = other(images).float()
    if expected.shape != found.shape:
        raise UserError(f"The exported student answers with shape {tuple(found.shape)}, not {tuple(expected.shape)}.")
    difference = (expected - found).abs().max().item() if expected.numel() else 0.0
    limit = tolerance * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    if not difference <= limit:  # also when it is NaN
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
