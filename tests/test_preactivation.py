"""Feature maps before their activation, which `overhaul` compares."""

import copy
from functools import partial

import pytest
import torch
from golden_names import assert_close
from networks import create, images, lively
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.pyramid import Pyramid
from frskd_timm.task import FRSKDTask


class Tap(nn.Module):
    """Replaces an activation, works out of place and remembers its inputs."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = copy.deepcopy(activation)
        if hasattr(self.activation, "inplace"):
            self.activation.inplace = False
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return self.activation(x)


def tapped(model: nn.Module, names: list[str]) -> nn.Module:
    """Copy a model, with all activations out of place and taps for some."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    for name in names:
        model.set_submodule(name, Tap(model.get_submodule(name)))
    return model


def gradients(model: nn.Module, maps: list[Tensor], logits: Tensor) -> dict[str, Tensor]:
    loss = sum((map_.square() - map_).mean() for map_ in maps) + logits.square().mean()
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {name.replace(".activation", ""): g for (name, _), g in zip(model.named_parameters(), found, strict=True)}


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        ("test_resnet", True),
        ("wide_resnet16_2_frskd", True),
        ("regnetx_002", True),
        ("lcnet_035", True),
        ("repvgg_a0", False),
        ("legacy_seresnext26_32x4d", False),  # calls one activation several times
    ],
)
def test_maps_before_their_activation(name: str, checkpointing: bool) -> None:
    model = lively(create(name))
    pristine = copy.deepcopy(model)
    pyramid = Pyramid(model, (3, 64, 64), preactivation=True)
    places = pyramid._before
    reference = tapped(pristine, sorted({place for place, _ in places}))
    if checkpointing:
        model.set_grad_checkpointing(True)

    batch = images()
    torch.manual_seed(0)  # the same dropout in both
    maps, logits = pyramid(model, batch)
    torch.manual_seed(0)
    expected_logits = reference(batch)
    expected = [reference.get_submodule(place).inputs[call] for place, call in places]
    assert [(m.shape[1], m.shape[2:]) for m in maps] == list(zip(pyramid.channels, pyramid.sizes, strict=True))
    for map_, right in zip(maps, expected, strict=True):
        torch.testing.assert_close(map_, right, rtol=0, atol=0)
        assert map_.min() < 0
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=0)
    ours, right = gradients(model, maps, logits), gradients(reference, expected, expected_logits)
    assert ours.keys() == right.keys()
    for key, gradient in right.items():
        torch.testing.assert_close(ours[key], gradient, msg=lambda text, key=key: f"{key}: {text}")

    # The plain maps are these after the activation, and the student is the function that it was.
    plain = Pyramid(pristine, (3, 64, 64))
    pristine.load_state_dict(model.state_dict())
    after, again = plain(pristine.eval(), batch)
    maps, logits = pyramid(model.eval(), batch)
    for map_, activated in zip(pyramid.activate(model, maps), after, strict=True):
        torch.testing.assert_close(map_, activated, rtol=0, atol=0)
    assert all(map_ is same for map_, same in zip(after, plain.activate(pristine, after), strict=True))
    torch.testing.assert_close(logits, again, rtol=0, atol=0)
    torch.testing.assert_close(logits, model(batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options"), [("test_vit", {}), ("test_efficientnet", {}), ("vgg11", {"mlp_ratio": 0.01})]
)
def test_no_map_before_an_activation(name: str, options: dict[str, float]) -> None:
    """ViT blocks and inverted bottlenecks end without one; VGG's maps come from poolings."""
    with pytest.raises(UserError, match=r"maps that no activation outputs .* attention or fitnet"):
        FRSKDTask.create(create(name, **options), (3, 64, 64), 5, feature_loss="overhaul")


def test_the_self_teacher_sees_activated_maps_whatever_the_feature_loss() -> None:
    """`overhaul` compares maps before their activation; the self-teacher still gets activated maps."""
    student = create("test_resnet").eval()
    create_task = partial(FRSKDTask.create, student, (3, 64, 64), 5, sla=True)
    tasks = [create_task(feature_loss=name).eval() for name in ("attention", "overhaul")]
    tasks[1].load_state_dict(tasks[0].state_dict(), strict=False)
    logits = [task.predict(images())["self_teacher"] for task in tasks]
    assert_close(logits[1], logits[0].detach(), 1e-6, "logits of the self-teacher")
    one, other = (task(images(), torch.tensor([0, 3])) for task in tasks)
    for name in ("loss_sla", "loss_sla_teacher"):
        assert_close(other[name], one[name], 1e-6, name)
