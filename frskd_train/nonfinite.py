"""Skipping of updates whose gradients are not finite (`--skip-nonfinite`)."""

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.utils import get_total_norm


class NonfiniteGuard:
    """Skip updates whose gradients are not finite, and undo everything that their forward passes changed.

    All processes hold the same gradients, so they make the same decision without communication. `has_scaler` is whether
    the gradient scaler of float16 already skips such updates.
    """

    def __init__(self, module: nn.Module, has_scaler: bool) -> None:
        self.module, self.has_scaler = module, has_scaler
        self._buffers = [buffer.clone() for buffer in module.buffers()]

    @torch.no_grad()
    def check(self, optimizer: AcceleratedOptimizer) -> None:
        """Check the complete gradients before they are clipped and applied. Synchronises."""
        bad = any(bool(buffer.isnan().any()) for buffer in self.module.buffers())
        if not self.has_scaler:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            bad = bad or not bool(torch.isfinite(get_total_norm(gradients)))
            if bad:
                optimizer.zero_grad()
        for kept, buffer in zip(self._buffers, self.module.buffers(), strict=True):
            if bad:
                buffer.copy_(kept)
            else:
                kept.copy_(buffer)
