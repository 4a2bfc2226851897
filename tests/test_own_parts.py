"""Parts of the method that users register: what is promised to them, and what they hear about mistakes."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from frskd_timm import FRSKDTask, UserError, create_self_teacher
from frskd_timm.gates import GATES
from frskd_timm.layers import global_average
from frskd_timm.losses import FEATURE_LOSSES, FeatureLoss
from frskd_timm.losses.logits import LOGIT_LOSSES
from frskd_timm.losses.overhaul import OverhaulLoss
from frskd_timm.pyramid import Pyramid
from frskd_timm.registry import Registry
from frskd_timm.teachers import SELF_TEACHERS, SelfTeacher
from frskd_train.settings import library

SIZE = (3, 32, 32)
REGISTRIES = (SELF_TEACHERS, FEATURE_LOSSES, LOGIT_LOSSES, GATES)


@pytest.fixture(autouse=True)
def own_registrations() -> Iterator[None]:
    """Forget afterwards what a test has registered."""
    before = [(registry, registry.names() and dict(registry._builders)) for registry in REGISTRIES]
    yield
    for registry, builders in before:
        registry._builders = builders


class Plain(SelfTeacher):
    """A classifier on the last map, which refines nothing; `fault` changes what it returns."""

    def __init__(self, channels: Sequence[int], num_classes: int, fault: str = "", **_: Any) -> None:
        super().__init__()
        self.channels, self.fault = list(channels), fault
        self.fc = nn.Linear(channels[-1], num_classes)

    def forward(self, features: Sequence[Tensor]) -> Any:
        maps, logits = list(features), self.fc(global_average(features[-1]))
        return {
            "": (maps, logits),
            "one map too few": (maps[1:], logits),
            "one map too many": ([*maps, maps[-1]], logits),
            "pixels": ([map_[:, :, :1, :1] for map_ in maps], logits),
            "channels": ([map_[:, :1] for map_ in maps], logits),
            "no maps": logits,
            "swapped": (logits, maps),
        }[self.fault]


def create(**options: Any) -> FRSKDTask:
    torch.manual_seed(0)
    student = timm.create_model("test_resnet", num_classes=5)
    return FRSKDTask.create(student, SIZE, 5, **options).train()


def step(task: FRSKDTask) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return task(torch.randn(4, *SIZE), torch.arange(4))


def test_own_losses_do_not_train_the_self_teacher() -> None:
    """Even losses that do not detach it: the self-teacher's gradients are those of its cross-entropy."""

    @FEATURE_LOSSES.register("own")
    class Distance(FeatureLoss):
        def __init__(self, channels: Sequence[int], teacher: SelfTeacher) -> None:
            super().__init__()

        def distance(self, level: int, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
            return (student.mean(dim=1) - teacher.mean(dim=1)).square().mean()

    LOGIT_LOSSES.register("own")(lambda teacher, student, *_: (teacher - student).square().mean())
    own, none = create(feature_loss="own", logit_loss="own", beta=1.0), create(beta=0.0, alpha=0.0)
    gradients = []
    for task in (own, none):
        step(task)["loss"].backward()
        gradients.append([parameter.grad for parameter in task.self_teacher.parameters()])
    assert step(own)["loss_kl"] > 0
    assert step(own)["loss_feature"] > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("fault", ["one map too few", "one map too many", "pixels", "channels"])
def test_refined_maps_must_fit_the_students(fault: str) -> None:
    SELF_TEACHERS.register("own")(Plain)
    with pytest.raises(UserError, match=r"returns maps of \[\(.*they must be \[\("):
        step(create(self_teacher="own", teacher_options={"fault": fault}))


@pytest.mark.parametrize("fault", ["no maps", "swapped"])
def test_a_self_teacher_returns_maps_and_logits(fault: str) -> None:
    SELF_TEACHERS.register("own")(Plain)
    with pytest.raises(UserError, match=r"must return \(refined_maps, logits\)"):
        step(create(self_teacher="own", teacher_options={"fault": fault}))


class Unfit(FeatureLoss):
    def distance(self, level: int, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        return (student - teacher).square().mean(dim=(1, 2, 3))


def test_other_mistakes_in_own_parts_are_one_sentence() -> None:
    SELF_TEACHERS.register("own")(Plain)
    SELF_TEACHERS.register("module")(lambda channels, classes, **_: nn.Identity())
    SELF_TEACHERS.register("few")(lambda channels, classes, **_: Plain(channels[1:], classes))
    SELF_TEACHERS.register("old")(lambda channels, classes: Plain(channels, classes))
    FEATURE_LOSSES.register("unfit")(Unfit)
    FEATURE_LOSSES.register("vector")(lambda channels, teacher: Unfit())
    for sentence, options in {
        "'module' must be a teachers.SelfTeacher, not Identity": {"self_teacher": "module"},
        "'few' must name the channels of its 4 maps": {"self_teacher": "few"},
        "'old' cannot be created: .*unexpected keyword argument 'depth'": {"self_teacher": "old"},
        "Plain does not end in batch normalisations": {"self_teacher": "own", "feature_loss": "overhaul"},
        "feature loss 'unfit' cannot be created: .*positional argument": {"feature_loss": "unfit"},
        r"distance of Unfit must be a scalar, not \[4\]": {"self_teacher": "own", "feature_loss": "vector"},
    }.items():
        with pytest.raises(UserError, match=sentence):
            step(create(**options))


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    student = timm.create_model("test_resnet", num_classes=5)
    pyramid, before = Pyramid(student, SIZE), Pyramid(student, SIZE, preactivation=True)
    plain, preactivated = (
        create_self_teacher("bifpnc", pyramid.channels, 5, depth=1, preactivation=before) for before in (False, True)
    )
    loss = OverhaulLoss(pyramid.channels, preactivated)
    for parts in ((pyramid, plain, loss), (before, plain, loss), (pyramid, preactivated, loss)):
        with pytest.raises(UserError, match=r"before their activation: .* preactivation=True"):
            FRSKDTask(student, *parts)
    with pytest.raises(UserError, match="compares maps after their activation"):
        FRSKDTask(student, before, preactivated, None)
    with pytest.raises(UserError, match="The pyramid has 2 levels and the self-teacher 4"):
        FRSKDTask(student, Pyramid(student, SIZE, max_levels=2), plain, None)
    assert step(FRSKDTask(student, before, preactivated, loss).train())["loss_feature"] > 0


def test_names_belong_to_one_part() -> None:
    parts: Registry[Any] = Registry("gate", "frskd_timm.gates")
    with pytest.raises(ValueError, match=r"already a gate named 'advantage', in frskd_timm\.gates"):
        GATES.register("advantage")(lambda own, other: own)
    with pytest.raises(TypeError, match=r"registered with a name: @register\('mine'\)"):
        parts.register(lambda own, other: own)  # type: ignore[arg-type]
    for _ in range(2):  # as in a notebook's cell that is run again

        @GATES.register("mine")
        def mine(own: Tensor, other: Tensor) -> Tensor:
            return own

    assert GATES.get("mine") is mine


def test_flags_find_the_names_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    @GATES.register("double")
    @GATES.register('single')
    @GATES.register("with-hyphen")
    """
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates" / "own.py").write_text(inspect.cleandoc(text))
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    assert library.registered("gates") == ("double", "single", "with-hyphen")
