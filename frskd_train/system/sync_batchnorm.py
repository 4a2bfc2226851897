"""Batch normalisation over all processes, and a check for batches that are too small."""

from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.probing import evaluating
from frskd_timm.student_task import StudentTask


class _SumOverProcesses(torch.autograd.Function):
    """A differentiable sum over processes, because each loss depends on the inputs of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, grad)


def has_other_processes() -> bool:
    """Return whether this process trains together with others."""
    return dist.is_initialized() and dist.get_world_size() > 1


class _Synced(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the statistics of all processes together, in float32; torch's own needs a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C] or [B, C, ...]; like the plain layer in evaluation or with one process."""
        if not self.training or not has_other_processes():
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.float()
            channels, others = x.shape[1], (0, *range(2, x.ndim))
            shape = -1, *(1 for _ in others[1:])  # of values per channel beside x
            # First the mean, then squared deviations, because the difference of two large sums would lose precision.
            count = torch.full((1,), float(x.numel() // channels), device=x.device)
            total = _SumOverProcesses.apply(torch.cat([x.sum(dim=others), count]))
            n = total[-1].detach()
            mean = total[:channels] / n
            variance = _SumOverProcesses.apply((x - mean.view(shape)).square().sum(dim=others)) / n
            if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
                with torch.no_grad():
                    self.num_batches_tracked.add_(1)
                    share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                    self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                    unbiased = variance * (n / (n - 1).clamp_min(1))
                    self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
            scale = torch.rsqrt(variance + self.eps) * (1 if self.weight is None else self.weight)
            shift = -mean * scale if self.bias is None else self.bias - mean * scale
            return self.activate(torch.addcmul(shift.view(shape), x, scale.view(shape)).to(input.dtype))

    def activate(self, x: Tensor) -> Tensor:
        """Do nothing; timm's layer has an activation."""
        return x


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    """`BatchNorm1d` over all processes."""


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    """`BatchNorm2d` over all processes."""


class SyncedBatchNormAct2d(_Synced, BatchNormAct2d):
    """timm's batch normalisation with activation over all processes."""

    def activate(self, x: Tensor) -> Tensor:
        """Apply dropout and activation."""
        return self.act(self.drop(x))


def synchronise_norms(module: nn.Module, device: torch.device) -> None:
    """Convert BatchNorm1d, BatchNorm2d and timm's BatchNormAct2d to synchronised ones, in place, with the same state.

    Unlike torch's conversion, changing the class keeps hooks and references to the layers.
    """
    on_cpu = device.type == "cpu"
    classes: dict[type, Any] = {
        nn.BatchNorm1d: SyncedBatchNorm1d if on_cpu else nn.SyncBatchNorm,
        nn.BatchNorm2d: SyncedBatchNorm2d if on_cpu else nn.SyncBatchNorm,
        BatchNormAct2d: SyncedBatchNormAct2d if on_cpu else SyncBatchNormAct,
    }
    for child in module.modules():
        if type(child) in classes:
            child.__class__ = classes[type(child)]
            child.process_group = None  # type: ignore[assignment]  # all processes; torch's layer reads this attribute


def refuse_single_values(task: StudentTask, input_size: tuple[int, int, int]) -> None:
    """Raise UserError if a batch of one image gives batch normalisation a single value per channel, without variance.

    `input_size` is (channels, height, width) of the images.
    """
    task.train()
    names: dict[nn.Module, str] = {module: name for name, module in task.named_modules()}
    norms = [module for module in names if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training]
    single: list[str] = []

    def look(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if arguments[0].numel() == arguments[0].shape[1]:
            single.append(names[norm])

    with ExitStack() as hooks, evaluating(task):
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(look).remove)
        task.predict(torch.zeros(1, *input_size, device=next(task.parameters()).device))
    if single:
        height, width = input_size[1:]
        raise UserError(
            f"A batch of one {height}x{width} image leaves batch normalisation a single value per channel, such as in "
            f"{single[0]}; use --batch-size 2 or more with two training images per process, or a larger --img-size."
        )
