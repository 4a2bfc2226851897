"""Any timm model as a student: the pyramid, one FRSKD step per timm module, DDP and torch.compile."""

import copy
import gc
import math
from functools import partial
from typing import Any
from unittest.mock import patch

import backbones
import pytest
import timm
import torch
from conftest import free_port
from networks import create, images
from runs import end_of, fork
from timm.layers import Conv2dSame
from torch import Tensor, nn

import frskd_timm  # noqa: F401  (registers the students)
from frskd_timm.errors import UserError
from frskd_timm.probing import refuse_size
from frskd_timm.pyramid import Pyramid, choose_levels
from frskd_timm.task import FRSKDTask
from frskd_train.system.convolutions import adapt_convolutions

TYPICAL = (
    "test_resnet test_vit test_convnext swin_tiny_patch4_window7_224 test_efficientnet mobilenetv4_conv_small",
    "levit_128s hrnet_w18_small repvgg_a0 deit_tiny_distilled_patch16_224",
)
WORKS = [backbones.Row(*cells) for cells in backbones.documented("works")]


def check(done: backbones.Step) -> None:
    assert done.differences == {"eval": 0, "train": 0}
    assert 0 < done.loss < float("inf")
    assert not done.missed, "cross-entropy trains these, FRSKD does not"
    assert not done.unreached, "DDP would wait for these forever"
    assert not done.idle, "DDP would wait for these forever"


@pytest.mark.parametrize("name", " ".join(TYPICAL).split())
def test_one_step(name: str) -> None:
    check(backbones.step(name))


@pytest.mark.long
@pytest.mark.parametrize("row", WORKS, ids=lambda row: row.module)
def test_one_step_of_every_module(row: backbones.Row) -> None:
    done = backbones.step(row.architecture)
    check(done)
    assert backbones.row(row.module, row.architecture, done) == row, "run python tests/backbones.py"
    gc.collect()


def test_the_document_covers_every_module() -> None:
    told = {row.module: row.architecture for row in WORKS}
    assert sorted(told) == sorted(backbones.modules()), "timm has changed: run python tests/backbones.py"
    assert all(name in timm.list_models(module=module) for module, name in told.items())
    assert backbones.documented("refused") == []


@pytest.mark.parametrize(("channels", "stride"), [(3, 2), (15, (2, 3)), (2, 2)])
def test_strided_pointwise_convolutions_survive_channels_last(channels: int, stride: Any) -> None:
    """At these shapes torch 2.13's CPU gradient corrupts the heap; the same numbers must come out without it."""
    plain = nn.Sequential(nn.Conv2d(channels, 48, 1, stride, bias=False))
    other = copy.deepcopy(plain)
    adapt_convolutions(other)
    assert other.state_dict().keys() == plain.state_dict().keys()
    inputs = torch.randn(2, channels, 96, 96)
    for _ in range(3):
        outputs = [plain(inputs), other(inputs.contiguous(memory_format=torch.channels_last))]
        grads = [
            torch.autograd.grad(out.square().sum(), net[0].weight)
            for out, net in zip(outputs, (plain, other), strict=True)
        ]
        assert outputs[1].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("sides", [(1, 1), (2, 1), (1, 3), (4, 4)])
@pytest.mark.parametrize("groups", [1, 64])
def test_strided_convolutions_of_single_pixels_have_right_gradients(groups: int, sides: tuple[int, int]) -> None:
    """In bfloat16, torch 2.13's CPU gradient has memory that nobody wrote in it."""
    plain = nn.Sequential(nn.Conv2d(64, 64, 3, 2, padding=1, groups=groups, bias=False))
    inputs = torch.randn(8, 64, *sides)
    (right,) = torch.autograd.grad(plain(inputs).square().sum(), plain[0].weight)
    adapt_convolutions(plain)
    for _ in range(4):
        unwritten = [torch.full(plain[0].weight.shape, math.nan, dtype=dtype) for dtype in (torch.bfloat16, None)]
        del unwritten
        with torch.autocast("cpu", torch.bfloat16):
            outputs = plain(inputs.contiguous(memory_format=torch.channels_last)).float()
        (grad,) = torch.autograd.grad(outputs.square().sum(), plain[0].weight)
        torch.testing.assert_close(grad, right, rtol=0.05, atol=0.05 * float(right.abs().max()))


@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (4, 3), (1, 5)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, (1, 2)), ((1, 3), 1)])
def test_convolutions_of_small_maps_are_exact(kernel: Any, stride: Any, sides: tuple[int, int]) -> None:
    """As a matrix product, outputs, gradients and the memory format are those of the convolution."""
    padding = tuple(side // 2 for side in (kernel if isinstance(kernel, tuple) else (kernel, kernel)))
    plain = nn.Sequential(nn.Conv2d(384, 8, kernel, stride, padding)).double()
    other = copy.deepcopy(plain)
    adapt_convolutions(other)
    results, targets = [], torch.randn_like(plain(torch.zeros(2, 384, *sides, dtype=torch.float64)))
    with patch.object(torch.nn.functional, "linear", wraps=torch.nn.functional.linear) as product:
        for network in (plain, other):
            inputs = torch.randn(2, 384, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            inputs = inputs.contiguous(memory_format=torch.channels_last).requires_grad_()
            outputs = network(inputs)
            loss = (outputs - targets).square().sum()
            results.append((outputs, *torch.autograd.grad(loss, (inputs, *network.parameters()))))
    assert product.call_count == (sides != (1, 1))
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 8), (3, 1, 2), (3, 2, 8), (5, 1, 7), (7, (2, 1), 4)])
def test_depthwise_convolutions_in_mixed_precision(kind: Any, kernel: int, stride: Any, side: int) -> None:
    """Only those that a CPU computes slowly in bfloat16 are computed in float32, also in a compiled step."""
    is_fast = (kernel, stride, side) == (3, 1, 8)
    plain = nn.Sequential(kind(32, 32, kernel, stride, padding=kernel // 2, groups=32))
    inputs = torch.randn(4, 32, side, side)
    outputs = plain(inputs)
    (grad,) = torch.autograd.grad(outputs.square().sum(), plain[0].weight)
    adapt_convolutions(plain)
    for network in (plain, torch.compile(plain, backend="eager", fullgraph=True)):
        with torch.autocast("cpu", torch.bfloat16):
            found = network(inputs.contiguous(memory_format=torch.channels_last))
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), outputs, rtol=0.004, atol=0.02 if is_fast else 1e-5)
        assert torch.allclose(found.float(), outputs, rtol=0.004, atol=1e-5) is not is_fast
        (own,) = torch.autograd.grad(found.float().square().sum(), plain[0].weight)
        torch.testing.assert_close(own, grad, rtol=0.02, atol=0.01 * float(grad.abs().max()))


@pytest.mark.parametrize(
    ("sides", "levels"),
    [
        ([112, 56, 28, 14, 7], [1, 2, 3, 4]),  # five strides: the coarsest four
        ([8, 8, 4, 4, 4, 2], [1, 4, 5]),  # the last map of each size
        ([15, 8, 4, 2], [0, 1, 2, 3]),  # no size is half of the one before
        ([4, 2, 1, 1], [0, 1, 3]),  # small images
        ([14] * 12, [2, 5, 8, 11]),  # a ViT: spread over its depth
        ([4] * 3, [0, 1, 2]),
        ([7] * 5 + [14], [4, 5]),  # sizes may grow
        ([7], [0]),
    ],
)
def test_choose_levels(sides: list[int], levels: list[int]) -> None:
    assert choose_levels([(side, side + 1) for side in sides], 4) == levels


@pytest.mark.parametrize("name", ["test_resnet", "efficientformerv2_s0"])
def test_a_pyramid_leaves_no_trace(name: str) -> None:
    options = {} if name == "test_resnet" else {"img_size": 64}
    model = create(name, **options)
    next(model.children()).eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    Pyramid(model, (3, 64, 64))
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # Nothing computed from the weights of now is kept for later ones: efficientformerv2_s0 caches biases in evaluation.
    fresh = create(name, **options).eval()
    Pyramid(model.eval(), (3, 64, 64))
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), fresh.parameters(), strict=True):
            noise = 0.1 * torch.randn_like(parameter)
            parameter.add_(noise)
            other.add_(noise)
        torch.testing.assert_close(model(images()), fresh(images()), rtol=0, atol=0)


class TwoHeads(nn.Module):
    """Classifies from more than the last map."""

    num_classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 5, 3, 2), nn.Conv2d(5, 5, 3, 2)])

    def forward_intermediates(self, x: Tensor, indices: Any = None) -> tuple[Tensor, list[Tensor]]:
        first = self.layers[0](x)
        second = self.layers[1](first)
        return second, [first, second]

    def forward_head(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        second, maps = self.forward_intermediates(x)
        return self.forward_head(second) + maps[0].mean(dim=(2, 3))


def test_what_cannot_be_a_student_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"needs timm's forward_intermediates and forward_head, which .+ lacks"):
        Pyramid(nn.Linear(3, 5), (3, 64, 64))
    with pytest.raises(UserError, match="classifies from more than its last feature map"):
        Pyramid(TwoHeads(), (3, 64, 64))
    for limit in (1, 0, -1):
        sentence = rf"at least 2 feature maps: ResNet has 5, and the limit \(--feature-levels, max_levels\) is {limit}"
        with pytest.raises(UserError, match=sentence):
            Pyramid(create("test_resnet"), (3, 64, 64), max_levels=limit)
    vit = create("test_vit", img_size=160)
    with pytest.raises(UserError, match=r"^VisionTransformer does not run on 3x150x150 images \(.+\), but .*3x160x160"):
        Pyramid(vit, (3, 150, 150))
    assert len(Pyramid(vit, (3, 160, 160)).indices) == 4
    small = create("levit_128s", img_size=28)
    with pytest.raises(UserError, match=r"^LevitDistilled does not .* 3x28x28 images \(.+\)\.$"):
        Pyramid(small, (3, 28, 28))
    with pytest.raises(UserError, match=r"; it takes 1 channel\(s\)\.$"):
        Pyramid(create("test_resnet", in_chans=1), (3, 64, 64))


def test_a_model_that_refuses_a_size_without_a_word_gets_a_sentence_too() -> None:
    class Silent(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

    model = Silent(1, 1)
    model.pretrained_cfg = {"input_size": (3, 160, 160)}
    with pytest.raises(UserError, match=r"^Silent does not run on 3x32x32 images \(AssertionError\)\.$"):
        refuse_size(model, (3, 32, 32))


def train_two_steps(rank: int, name: str, feature_loss: str) -> None:
    student = create(name, **({"img_size": 64} if name.startswith(("levit", "deit")) else {}))
    task = FRSKDTask.create(student, (3, 64, 64), 5, feature_loss=feature_loss)
    ddp = nn.parallel.DistributedDataParallel(task, find_unused_parameters=False)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.01)
    for _ in range(2):  # DDP finds out in the second step that a parameter had no gradient in the first
        optimizer.zero_grad()
        ddp(images(batch=4)[2 * rank : 2 * rank + 2], torch.tensor([rank, 3]))["loss"].backward()
        optimizer.step()
    totals = torch.stack([p.detach().double().sum() for p in task.parameters()])
    others = [torch.empty_like(totals) for _ in range(2)]
    torch.distributed.all_gather(others, totals)
    assert torch.equal(*others), f"{name}: the processes went apart"
    assert totals.isfinite().all()


def one_of_two(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    train_two_steps(rank, "test_resnet", "overhaul")
    train_two_steps(rank, "test_vit", "fitnet")
    train_two_steps(rank, "levit_128s", "attention")
    train_two_steps(rank, "deit_tiny_distilled_patch16_224", "attention")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_without_unused_parameters() -> None:
    port = free_port()
    processes = [fork(partial(one_of_two, rank, port)) for rank in range(2)]
    assert [end_of(process) for process in processes] == [0, 0]


@pytest.mark.parametrize(
    ("options", "in_one_piece"),
    [({"teacher_ema": 0.9, "teacher_interval": 2}, True), ({"feature_loss": "overhaul"}, False)],
)
def test_a_step_compiles(options: dict[str, Any], in_one_piece: bool) -> None:
    task = FRSKDTask.create(create("test_resnet"), (3, 64, 64), 5, **options)
    for progress in (0.4, 0.5):  # the second is an update with the self-teacher, also if it runs in every other one
        task.set_progress(progress)
    compiled = torch.compile(task, backend="eager", fullgraph=in_one_piece)
    target = torch.tensor([0, 3])
    torch.testing.assert_close(compiled(images(), target)["loss"], task(images(), target)["loss"])
