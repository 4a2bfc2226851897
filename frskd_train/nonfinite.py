"""Updates that are left out because their numbers are not finite (`--skip-nonfinite`)."""

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.utils import get_total_norm


class NonfiniteGuard:
    """Leaves an update with gradients that are not finite out, with all that its forward passes did.

    All processes hold the same gradients, so they come to the same decision without asking each other.

    Args:
        module: Everything trainable.
        scaled: Whether a gradient scaler, that of float16, leaves such updates out by itself.
    """

    def __init__(self, module: nn.Module, scaled: bool) -> None:
        self.module = module
        self.scaled = scaled
        self._buffers = [buffer.clone() for buffer in module.buffers()]

    @torch.no_grad()
    def check(self, optimizer: AcceleratedOptimizer) -> None:
        """Called when the gradients of an update are complete, before they are clipped and used. Synchronises."""
        bad = any(bool(buffer.isnan().any()) for buffer in self.module.buffers())
        if not self.scaled:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            bad = bad or not bool(torch.isfinite(get_total_norm(gradients)))
            if bad:
                optimizer.zero_grad()
        for kept, buffer in zip(self._buffers, self.module.buffers(), strict=True):
            if bad:
                buffer.copy_(kept)
            else:
                kept.copy_(buffer)
