"""Training steps for `speed.py`, and a float32 reference that computes the same loss without optimisations."""

from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import frskd_timm  # noqa: F401  registers the students
from frskd_timm.layers import upsample
from frskd_timm.student_task import CrossEntropyTask
from frskd_timm.task import FRSKDTask
from frskd_timm.teachers.blocks import downsample
from frskd_train.system.convolutions import adapt_convolutions

NUM_CLASSES = 100
SELF_TEACHERS: dict[str, dict[str, Any]] = {"frskd": {}, "paper": {"width": 2, "depth": 2}}  # methods and their options


def reference_self_teacher(teacher: Any, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Compute a `bifpnc` self-teacher of one layer operation by operation, as its equations are written."""

    def fuse(block: Any, maps: list[Tensor]) -> Tensor:
        weights = F.relu(block.weights)
        weights = weights / (weights.sum() + 1e-6)
        return block.blocks(sum(weight * F.relu(map_) for weight, map_ in zip(weights, maps, strict=True)))

    (layer,) = teacher.layers
    sizes = [(f.shape[-2], f.shape[-1]) for f in features]
    n = len(features)
    down_path = [layer.lateral[-1](features[-1])]
    for i in range(n - 2, -1, -1):
        up = layer.to_finer[i](upsample(F.relu(down_path[0]), sizes[i]))
        down_path.insert(0, fuse(layer.top_down[i], [layer.lateral[i](features[i]), up]))
    refined = down_path[:1]
    for i in range(1, n):
        maps = [layer.lateral2[i - 1](features[i]), *([down_path[i]] if i < n - 1 else [])]
        maps.append(layer.to_coarser[i - 1](downsample(F.relu(refined[-1]), sizes[i])))
        refined.append(fuse(layer.bottom_up[i - 1], maps))
    refined = [F.relu(map_) for map_ in refined]
    return refined, teacher.fc(refined[-1].mean(dim=(2, 3)))


def reference_loss(task: Any, images: Tensor, target: Tensor) -> Tensor:
    """Compute the loss of an `FRSKDTask` with default losses, without any of its optimisations."""

    def attention(map_: Tensor) -> Tensor:
        return F.normalize(map_.pow(2).mean(1).flatten(1))

    maps, logits = task.pyramid(task.student, images)
    refined, teacher_logits = reference_self_teacher(task.self_teacher, maps)
    t = task.temperature
    soft_target = F.softmax(teacher_logits.detach() / t, 1)
    soft = F.kl_div(F.log_softmax(logits / t, 1), soft_target, reduction="batchmean") * t**2
    distances = [(attention(f) - attention(r.detach())).pow(2).mean() for f, r in zip(maps, refined, strict=True)]
    hard, teacher = (F.cross_entropy(z, target, label_smoothing=task.smoothing) for z in (logits, teacher_logits))
    return task.student_weight * hard + task.teacher_weight * teacher + task.alpha * soft + task.beta * sum(distances)


def without_optimised_layers(task: Any) -> Any:
    """Replace the convolutions of the self-teacher by torch's own, in place."""
    for module in task.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.__class__ = torch.nn.Conv2d
    return task


def make_task(model: str, size: int, method: str) -> Any:
    """Create a task for square images of `size` pixels; `method` is 'ce' or a name in `SELF_TEACHERS`."""
    student = timm.create_model(model, num_classes=NUM_CLASSES)
    if method == "ce":
        return CrossEntropyTask(student)
    return FRSKDTask.create(student, (3, size, size), NUM_CLASSES, teacher_options=SELF_TEACHERS[method])


def make_step(
    task: Any, loss: Callable[..., Tensor], precision: str, device: torch.device, fused: bool = True
) -> Callable[[Tensor, Tensor], None]:
    """Create a training step, a function of images and target."""
    torch.backends.cudnn.benchmark = True  # as in training
    task.train()
    optimizer = create_optimizer_v2(task, opt="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, fused=fused)

    def step(images: Tensor, target: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(images, target)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def package_step(
    model: str, size: int, method: str, precision: str, device: torch.device, compiled: bool = False
) -> Callable[[Tensor, Tensor], None]:
    """Create a step as `train.py` runs it: channels last, autocast, fused optimizer, compiled with `--torchcompile`."""
    task: Any = make_task(model, size, method).to(device)
    adapt_convolutions(task)
    if compiled:
        torch.nn.Module.compile(task)
    return make_step(task, lambda images, target: task(images, target)["loss"], precision, device)


def reference_step(model: str, size: int, method: str, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """Create a float32 FRSKD step without optimisations, which stands for the authors' code."""
    task = without_optimised_layers(make_task(model, size, method).to(device))
    return make_step(task, lambda images, target: reference_loss(task, images, target), "fp32", device, fused=False)


def gmacs(model: str, size: int, method: str) -> float:
    """Count the multiply-adds of a training forward pass of one image, self-teacher included, in units of 1e9."""
    task = make_task(model, size, method).train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task(torch.randn(2, 3, size, size), torch.tensor([0, 1]))
    return counter.get_total_flops() / 2 / 2 / 1e9


def parameters(model: str, size: int, method: str) -> list[int]:
    """Count the parameters of student and self-teacher."""
    task = make_task(model, size, method)
    return [sum(p.numel() for p in network.parameters()) for network in (task.student, task.self_teacher)]


def random_batch(size: int, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Create images [B, 3, size, size] in channels-last memory and class numbers [B]."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, size, size, device=device)
    target = torch.randint(0, NUM_CLASSES, (batch_size,), device=device)
    return images.contiguous(memory_format=torch.channels_last), target
