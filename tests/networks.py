"""Small networks and images for the tests of the library."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

from frskd_timm.task import FRSKDTask

TARGET = torch.tensor([0, 1, 2, 3])  # classes of four images
# Options of tasks, whatever the defaults.
OFF: dict[str, Any] = {"student_weight": 1.0, "teacher_weight": 1.0, "teacher_ema": 0.0, "teacher_interval": 1}


def images(size: tuple[int, int] = (64, 64), batch: int = 2, chans: int = 3) -> Tensor:
    return torch.randn(batch, chans, *size, generator=torch.Generator().manual_seed(0))


def create(name: str, **options: Any) -> nn.Module:
    """Create a timm model, always with the same weights."""
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, **options})


def create_task(**options: Any) -> FRSKDTask:
    """Create a task for images of 64x64 pixels."""
    return FRSKDTask.create(create("test_resnet"), (3, 64, 64), 5, **OFF | options).train()


def lively(model: nn.Module) -> nn.Module:
    """Move BN statistics and scales off their initial values, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.0, generator=generator)
    return model
