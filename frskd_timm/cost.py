"""What a network costs, counted in one forward pass."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from frskd_timm.pyramid import evaluating

# The operations that fvcore, which timm uses, counts the outputs of.
_ATEN: Any = torch.ops.aten
_LAYERS = (_ATEN.convolution, _ATEN._convolution, _ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm)


class Cost(NamedTuple):
    """Numbers of parameters, multiply-adds, and activations: outputs of convolutions and matrix products."""

    parameters: int
    multiply_adds: int
    activations: int


def cost(network: nn.Module, inputs: Any) -> Cost:
    """Count what a forward pass of these inputs costs; on the meta device nothing is computed."""
    counters = dict.fromkeys(_LAYERS, lambda *_, out_shape, **__: math.prod(out_shape))
    flops, outputs = FlopCounterMode(display=False), FlopCounterMode(display=False, custom_mapping=counters)
    learnable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        network.requires_grad_(False)  # counting fails in modules that get a learnable parameter as input, as CaiT's
        with evaluating(network), flops, outputs:
            network(inputs)
    finally:
        for parameter in learnable:
            parameter.requires_grad_()
    counted = outputs.get_flop_counts()["Global"]
    activations = sum(counted.get(layer, 0) for layer in _LAYERS)
    return Cost(sum(p.numel() for p in network.parameters()), flops.get_total_flops() // 2, activations)
