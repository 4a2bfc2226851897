"""What a network costs, counted in one forward pass."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from frskd_timm.probing import evaluating

# The operations that fvcore, which timm uses, counts the outputs of.
_ATEN: Any = torch.ops.aten
_LAYERS = (_ATEN.convolution, _ATEN._convolution, _ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm)


class Cost(NamedTuple):
    """Numbers of parameters, of multiply-adds, and of outputs of convolutions and matrix products (activations).

    The last two are None if the forward pass fails while it is counted.
    """

    parameters: int
    multiply_adds: int | None
    activations: int | None

    def fits(self, limit: "Cost") -> bool:
        """Return whether parameters and multiply-adds, where both are known, are at most those of the limit."""
        if self.parameters > limit.parameters:
            return False
        return self.multiply_adds is None or limit.multiply_adds is None or self.multiply_adds <= limit.multiply_adds


def cost(network: nn.Module, inputs: Any) -> Cost:
    """Count what a forward pass of these inputs costs, the same on every device; on 'meta' nothing is computed."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    counters = dict.fromkeys(_LAYERS, lambda *_, out_shape, **__: math.prod(out_shape))
    flops, outputs = FlopCounterMode(display=False), FlopCounterMode(display=False, custom_mapping=counters)
    learnable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        network.requires_grad_(False)  # counting fails in modules that get a learnable parameter as input, as CaiT's
        # Of the kernels for attention, only this one consists of operations that are counted on every device.
        with evaluating(network), sdpa_kernel(SDPBackend.MATH), flops, outputs:
            network(inputs)
    except Exception:  # such as a network that computes with values, which 'meta' does not have
        return Cost(parameters, None, None)
    finally:
        for parameter in learnable:
            parameter.requires_grad_()
    counted = outputs.get_flop_counts()["Global"]
    activations = sum(counted.get(layer, 0) for layer in _LAYERS)
    return Cost(parameters, flops.get_total_flops() // 2, activations)
