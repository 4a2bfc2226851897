"""Handling of losses and gradients that are not finite: stop the run, or skip the update (`--skip-nonfinite`)."""

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.utils import get_total_norm

from frskd_timm.errors import UserError
from frskd_train.meter import TrainMeter
from frskd_train.run_state import RunState


def refuse_nonfinite(meter: TrainMeter, state: RunState, allowed: int) -> None:
    """Raise UserError if more than `allowed` steps of an epoch had a loss that is not finite. Synchronises."""
    bad = meter.first_bad()
    if bad is None or meter.bad_steps() <= allowed:
        return
    in_all = f" ({meter.bad_steps()} such steps in all)" if allowed else ""
    raise UserError(
        f"{bad[0]} was not a finite number at step {bad[1] + 1} of epoch {state.epoch + 1}{in_all}; the last good "
        f"checkpoint is {state.last_checkpoint or 'none yet'}, and a lower --lr, --clip-grad, --no-amp or "
        "--skip-nonfinite may help."
    )


class NonfiniteGuard:
    """Skip updates whose gradients are not finite, and undo everything that their forward passes changed.

    All processes hold the same gradients, so they make the same decision without communication.

    Args:
        module: Module that contains everything trainable.
        scaled: Whether the gradient scaler of float16 already skips such updates.
    """

    def __init__(self, module: nn.Module, scaled: bool) -> None:
        self.module = module
        self.scaled = scaled
        self._buffers = [buffer.clone() for buffer in module.buffers()]

    @torch.no_grad()
    def check(self, optimizer: AcceleratedOptimizer) -> None:
        """Check the complete gradients before they are clipped and applied. Synchronises."""
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
