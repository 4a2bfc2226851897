"""The same tests for every registered student, of timm's own networks for one; a new student needs no line here."""

import copy
import math

import networks
import pytest
import timm
import torch
from networks import lively
from timm.models import group_parameters
from torchvision.models.feature_extraction import create_feature_extractor

from frskd_timm.errors import UserError
from frskd_timm.models import exported_name
from frskd_timm.models.frskd_wide_resnet import WideResNet
from frskd_train.settings import ModelSettings
from frskd_train.students import prepare_student

STUDENTS = timm.list_models("*_frskd")
ODD = (75, 53)  # no level is half of the one before
TRAINING = (40, 40)  # maps of at least 2x2, so that BN has more than one value per image
each_student = pytest.mark.parametrize("name", STUDENTS)
OWN = [name for name in STUDENTS if exported_name(name) == name]
each_topology = pytest.mark.parametrize("name", [*OWN, "resnet18_frskd"])


def images(size=(32, 32), **options):
    return networks.images(size, **options)


def create(name, **kwargs):
    return lively(networks.create(name, **{"num_classes": 7, "in_chans": 3, **kwargs})).eval()


def twin(name, model, **kwargs):
    """Create another form of a student with the same weights."""
    other = create(name, **kwargs)
    assert not other.load_state_dict(model.state_dict(), strict=False).missing_keys
    return other


def test_the_zoo_has_the_paper_s_students():
    promised = "resnet18 resnet34 resnet50 resnet18_cifar wide_resnet16_2 efficientnet_b0 efficientnet_b1"
    assert {f"{name}_frskd" for name in promised.split()} <= set(STUDENTS)


@each_student
def test_a_stock_student_is_timm_s_network(name):
    stock = exported_name(name)
    if stock == name:
        assert not timm.is_model(name.removesuffix("_frskd"))  # else a reader would take it for timm's
        return
    ours, theirs = create(name), timm.create_model(stock, num_classes=7).eval()
    assert type(ours) is type(theirs)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@each_topology
@torch.no_grad()
def test_features_are_what_feature_info_says(name):
    levels = len(create(name).feature_info)
    for kwargs in ({}, {"feature_cls": "getter"}):
        extractor = create(name, features_only=True, num_classes=None, **kwargs)
        for size in ((64, 64), ODD):
            maps = extractor(images(size))
            assert len(maps) == levels
            assert [m.shape[1] for m in maps] == extractor.feature_info.channels()
            expected = [tuple(math.ceil(side / r) for side in size) for r in extractor.feature_info.reduction()]
            assert [tuple(m.shape[2:]) for m in maps] == expected


@each_topology
@torch.no_grad()
def test_maps_of_one_forward_are_the_ones_fed_on(name):
    model = create(name)
    x = images(ODD)
    last, maps = model.forward_intermediates(x)
    torch.testing.assert_close(model.forward_head(last), model(x), rtol=0, atol=0)
    torch.testing.assert_close(last, model.forward_features(x), rtol=0, atol=0)
    for index, level in enumerate(maps):  # a later in-place operation would have changed it
        (alone,) = model.forward_intermediates(x, indices=[index], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(level, alone, rtol=0, atol=0)
    getter = create(name, features_only=True, feature_cls="getter", out_indices=[-2], num_classes=None)
    assert not getter.model.load_state_dict(model.state_dict(), strict=False).missing_keys
    torch.testing.assert_close(getter(x)[0], maps[-2])
    with pytest.raises(AssertionError):
        model.forward_intermediates(x, output_fmt="NLC")


@each_topology
@torch.no_grad()
def test_pruning_leaves_the_maps_asked_for(name):
    x = images()
    whole = create(name)
    parameters = sum(p.numel() for p in whole.parameters())
    for index in range(len(whole.feature_info)):
        model = copy.deepcopy(whole)
        expected = model.forward_intermediates(x, indices=[index], intermediates_only=True)
        assert model.prune_intermediate_layers([index]) is not None
        torch.testing.assert_close(model.forward_intermediates(x, [index], intermediates_only=True), expected)
        assert model(x).shape[1] == model.num_features
        assert sum(p.numel() for p in model.parameters()) < parameters


@each_topology
@torch.no_grad()
def test_the_head_is_replaced_and_removed(name):
    model = create(name)
    x = images()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(pooled), model(x))
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert model.num_classes == 5
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.forward_features(x))
    torch.testing.assert_close(twin(name, model, num_classes=0)(x), pooled)
    torch.testing.assert_close(twin(name, model, num_classes=0, global_pool="")(x), model(x))


@each_topology
def test_dropout_acts_in_training_only(name):
    model = create(name, drop_rate=0.5, drop_path_rate=0.0)
    features = model.forward_features(images())
    torch.testing.assert_close(model.forward_head(features), model.forward_head(features))
    model.train()
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


@each_student
def test_channels_classifier_and_first_conv_are_as_configured(name):
    model = create(name, in_chans=1)
    assert model(images(chans=1)).shape == (2, 7)
    cfg = model.pretrained_cfg
    assert model.get_submodule(cfg["first_conv"]).in_channels == 1
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    if isinstance(model, WideResNet):
        assert model.get_classifier(name_only=True) == cfg["classifier"]
    with torch.device("meta"):
        network = timm.create_model(name, in_chans=3).eval()
        last = network.forward_features(torch.empty(1, 3, *cfg["input_size"][1:]))
    assert tuple(last.shape[2:]) == tuple(cfg["pool_size"])


@each_topology
def test_checkpointing_changes_neither_logits_nor_gradients(name):
    def step(checkpointing, intermediates):
        model = create(name).train()
        model.set_grad_checkpointing(checkpointing)
        x = images(TRAINING)
        if intermediates:
            last, maps = model.forward_intermediates(x)
            logits = model.forward_head(last)
            (logits.square().mean() + sum(m.square().mean() for m in maps)).backward()
        else:
            logits = model(x)
            logits.square().mean().backward()
        return logits.detach(), {n: p.grad for n, p in model.named_parameters()}

    for intermediates in (False, True):
        torch.testing.assert_close(step(True, intermediates), step(False, intermediates), rtol=1e-4, atol=1e-6)


@each_topology
def test_every_parameter_gets_a_gradient(name):  # DDP stops otherwise
    model = create(name).train()
    model(images(TRAINING)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("coarse", [False, True])
@each_topology
def test_parameter_groups_follow_the_depth(name, coarse):
    model = create(name)
    depth_of = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    depths = [depth_of[n] for n, _ in model.named_parameters()]
    assert depths == sorted(depths)
    assert depth_of[model.pretrained_cfg["first_conv"] + ".weight"] == 0
    assert depth_of[model.pretrained_cfg["classifier"] + ".weight"] == max(depths) >= 3


@pytest.mark.filterwarnings("error::UserWarning")
@each_topology
@torch.no_grad()
def test_torchscript_and_fx_compute_the_same(name):
    model = create(name)
    x = images()
    torch.testing.assert_close(torch.jit.script(create(name, scriptable=True))(x), model(x))
    (traced,) = create_feature_extractor(model, [model.pretrained_cfg["classifier"]])(x).values()
    torch.testing.assert_close(traced, model(x))


def test_wide_resnet_of_other_sizes():
    with torch.device("meta"):
        assert timm.create_model("wide_resnet16_2_frskd", depth=28, widen_factor=10).num_features == 640
    with pytest.raises(UserError, match="17"):
        WideResNet(depth=17)
    model = WideResNet(drop_path_rate=0.5)
    model.train()
    assert not torch.equal(model(images()), model(images()))


def test_cifar_resnet_dilates_instead_of_striding():
    model = create("resnet18_cifar_frskd", output_stride=4)
    assert [f["reduction"] for f in model.feature_info] == [1, 1, 2, 4, 4]
    assert model.forward_features(images()).shape[2:] == (8, 8)
    with pytest.raises(UserError, match="one 3x3 convolution: leave stem_type out"):
        create("resnet18_cifar_frskd", stem_type="deep")
    with pytest.raises(UserError, match="output_stride must be 8, 4 or 2, not 16"):
        create("resnet18_cifar_frskd", output_stride=16)


def test_exported_names():
    assert exported_name("resnet18_frskd.some_tag") == "resnet18"
    assert exported_name("efficientnet_b1_frskd") == "efficientnet_b1"
    for name in ("vit_tiny_patch16_224", "wide_resnet16_2_frskd"):
        assert exported_name(name) == name
    with pytest.raises(UserError, match="resnet19"):
        exported_name("resnet19")


def test_grad_checkpointing_is_refused_where_timm_lacks_it() -> None:
    with pytest.raises(UserError, match="convit_tiny does not support --grad-checkpointing"):
        prepare_student(
            timm.create_model("convit_tiny"), ModelSettings(model="convit_tiny", grad_checkpointing=True), []
        )
