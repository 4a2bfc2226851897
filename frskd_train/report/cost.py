"""Cost of one inference: multiply-adds and activations, counted as timm's model cards do."""

from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_ATEN: Any = torch.ops.aten
# The operations that fvcore, which timm uses, counts the outputs of.
_LAYERS = (_ATEN.convolution, _ATEN._convolution, _ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm)


def _num_outputs(*_: Any, out_shape: tuple[int, ...], **__: Any) -> int:
    return prod(out_shape)


@torch.no_grad()
def count_cost(network: nn.Module, input_size: tuple[int, int, int]) -> tuple[float, float] | None:
    """Return multiply-adds in billions and activations in millions for one image; None if they cannot be counted.

    Args:
        network: A network in evaluation mode; on the meta device nothing is computed.
        input_size: Channels, height and width.
    """
    image = torch.empty(1, *input_size, device=next(network.parameters()).device)
    flops = FlopCounterMode(display=False)
    outputs = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(_LAYERS, _num_outputs))
    try:
        with flops, outputs:
            network(image)
    except Exception:  # a network may compute with values, which the meta device does not have
        return None
    counted = outputs.get_flop_counts()["Global"]
    return flops.get_total_flops() / 2e9, sum(counted.get(layer, 0) for layer in _LAYERS) / 1e6
