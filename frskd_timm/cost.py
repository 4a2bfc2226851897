"""What a network costs: parameters and multiply-adds."""

from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from frskd_timm.pyramid import evaluating


def cost(network: nn.Module, inputs: Any) -> tuple[int, int]:
    """Return the number of parameters, and of multiply-adds of one forward pass; on the meta device nothing is run."""
    with evaluating(network), FlopCounterMode(display=False) as counter:
        network(inputs)
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2
