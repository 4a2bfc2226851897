"""One battery over every student that is registered: a new one adds no line here."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import group_parameters
from torchvision.models.feature_extraction import create_feature_extractor

import frskd_timm
from frskd_timm.errors import UserError
from frskd_timm.models import _pretrained, stock_name
from frskd_timm.models.frskd_wide_resnet import WideResNet

STUDENTS = timm.list_models("*_frskd")
ODD = (75, 53)  # no level is half of the one before
each_student = pytest.mark.parametrize("name", STUDENTS)


def images(size=(64, 64), batch=2, chans=3):
    return torch.randn(batch, chans, *size, generator=torch.Generator().manual_seed(0))


def lively(model):
    """Gives BN statistics and scales that are not their initial ones, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0, generator=generator)
    return model


def create(name, **kwargs):
    torch.manual_seed(0)
    return lively(timm.create_model(name, **{"num_classes": 7, "in_chans": 3, **kwargs})).eval()


def twin(name, model, **kwargs):
    """Another form of a student with the weights of this one."""
    other = create(name, **kwargs)
    assert not other.load_state_dict(model.state_dict(), strict=False).missing_keys
    return other


def python(code, *flags, home=Path(frskd_timm.__file__).parents[1], **env):
    """Runs code in a fresh interpreter that finds the package in `home`."""
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def test_the_zoo_has_the_paper_s_students():
    promised = "resnet18 resnet34 resnet50 resnet18_cifar wide_resnet16_2 efficientnet_b0 efficientnet_b1"
    assert {f"{name}_frskd" for name in promised.split()} <= set(STUDENTS)


@each_student
def test_a_stock_student_is_timm_s_network(name):
    stock = stock_name(name)
    if stock is None:
        assert not timm.is_model(name.removesuffix("_frskd"))  # else a reader would take it for timm's
        return
    ours, theirs = create(name), timm.create_model(stock, num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("size", [(64, 64), ODD])
@each_student
@torch.no_grad()
def test_features_are_what_feature_info_says(name, size):
    for kwargs in ({}, {"feature_cls": "getter"}):
        extractor = create(name, features_only=True, num_classes=None, **kwargs)
        maps = extractor(images(size))
        assert len(maps) == len(create(name).feature_info)
        assert [m.shape[1] for m in maps] == extractor.feature_info.channels()
        expected = [tuple(math.ceil(side / r) for side in size) for r in extractor.feature_info.reduction()]
        assert [tuple(m.shape[2:]) for m in maps] == expected


@each_student
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


@each_student
@torch.no_grad()
def test_pruning_leaves_the_maps_asked_for(name):
    x = images()
    for index in range(len(create(name).feature_info)):
        model = create(name)
        expected = model.forward_intermediates(x, indices=[index], intermediates_only=True)
        parameters = sum(p.numel() for p in model.parameters())
        assert model.prune_intermediate_layers([index]) is not None
        torch.testing.assert_close(model.forward_intermediates(x, [index], intermediates_only=True), expected)
        assert model(x).shape[1] == model.num_features
        assert sum(p.numel() for p in model.parameters()) < parameters


@each_student
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


@each_student
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
    last = create(name).forward_features(images(cfg["input_size"][1:]))
    assert tuple(last.shape[2:]) == tuple(cfg["pool_size"])


@each_student
def test_checkpointing_changes_neither_logits_nor_gradients(name):
    def step(checkpointing, intermediates):
        model = create(name).train()
        model.set_grad_checkpointing(checkpointing)
        x = images()
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


@each_student
def test_every_parameter_gets_a_gradient(name):  # DDP stops otherwise
    model = create(name).train()
    model(images()).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("coarse", [False, True])
@each_student
def test_parameter_groups_follow_the_depth(name, coarse):
    model = create(name)
    depth_of = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    depths = [depth_of[n] for n, _ in model.named_parameters()]
    assert depths == sorted(depths)
    assert depth_of[model.pretrained_cfg["first_conv"] + ".weight"] == 0
    assert depth_of[model.pretrained_cfg["classifier"] + ".weight"] == max(depths) >= 3


@pytest.mark.filterwarnings("error::UserWarning")
@each_student
@torch.no_grad()
def test_torchscript_and_fx_compute_the_same(name):
    model = create(name)
    x = images()
    torch.testing.assert_close(torch.jit.script(create(name, scriptable=True))(x), model(x))
    (traced,) = create_feature_extractor(model, [model.pretrained_cfg["classifier"]])(x).values()
    torch.testing.assert_close(traced, model(x))


@torch.no_grad()
def test_wide_resnet_is_the_authors():
    golden = load_file(Path(__file__).parent / "golden" / "trajectory_frskd.safetensors")
    renamed = {}
    for key, value in golden.items():
        if not key.startswith("student.final.") or key.startswith("student.final.bn1."):  # bn1 is never used
            continue
        key = key.removeprefix("student.final.")
        for old, new in (
            *((f"block{i}bn.", f"norm{i}.") for i in (1, 2, 3)),
            *((f"block{i}.layer.", f"layer{i}.") for i in (1, 2, 3)),
            (".bn2.", ".norm."),
            (".convShortcut.", ".shortcut."),
        ):
            key = key.replace(old, new)
        renamed[key] = value
    model = WideResNet(depth=10, widen_factor=1, num_classes=10).eval()
    model.load_state_dict(renamed)
    torch.testing.assert_close(model(golden["batch.0.image"].float()), golden["eval.logits"], rtol=1e-4, atol=1e-5)


def test_wide_resnet_of_other_sizes():
    assert timm.create_model("wide_resnet16_2_frskd", depth=28, widen_factor=10).num_features == 640
    with pytest.raises(UserError, match="17"):
        WideResNet(depth=17)
    model = WideResNet(drop_path_rate=0.5)
    model.train()
    assert not torch.equal(model(images()), model(images()))


def test_cifar_resnet_dilates_instead_of_striding():
    model = create("resnet18_cifar_frskd", output_stride=4)
    assert [f["reduction"] for f in model.feature_info] == [1, 1, 2, 4, 4]
    assert model.forward_features(images()).shape[2:] == (16, 16)


def test_stock_names():
    assert stock_name("resnet18_frskd.some_tag") == "resnet18"
    assert stock_name("efficientnet_b1_frskd") == "efficientnet_b1"
    assert stock_name("vit_tiny_patch16_224") == "vit_tiny_patch16_224"
    assert stock_name("wide_resnet16_2_frskd") is None
    with pytest.raises(UserError, match="resnet19"):
        stock_name("resnet19")


def test_import_is_quiet_light_and_lists_only_what_exists():
    result = python(
        "import sys, time, warnings\n"
        "start = time.process_time()\n"
        "with warnings.catch_warnings():\n"
        "    warnings.simplefilter('ignore')  # timm's own\n"
        "    import timm\n"
        "alone = time.process_time() - start\n"
        "start = time.process_time()\n"
        "import frskd_timm\n"
        "added = time.process_time() - start\n"
        "assert added < 0.1 * alone or added < 0.2, (added, alone)\n"
        "assert timm.list_pretrained('*frskd*') == [\n"
        "    n for n in timm.list_models('*frskd*', include_tags=True) if timm.get_pretrained_cfg(n).file]\n"
        "heavy = {'frskd_timm.task', 'frskd_timm.teachers', 'frskd_timm.export.student', 'datasets', 'accelerate',"
        " 'transformers', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n",
        "-W",
        "error",
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_public_names_are_found_when_asked_for():
    assert frskd_timm.UserError is UserError
    assert set(frskd_timm.__all__) <= set(dir(frskd_timm))
    for name in frskd_timm.__all__:
        assert getattr(frskd_timm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        frskd_timm.nothing  # noqa: B018


def test_a_folder_in_weights_is_a_pretrained_model(tmp_path):
    """A copy of the package with two folders put in: what a wheel with shipped weights is."""
    package = tmp_path / "frskd_timm"
    shutil.copytree(Path(frskd_timm.__file__).parent, package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    trained = timm.create_model("resnet18", num_classes=10, in_chans=1)
    cfg = {
        "tag": "garments",
        "license": "mit",
        "mean": (0.3,),
        "std": (0.4,),
        "input_size": (1, 28, 28),
    }
    timm.models.save_for_hf(
        trained,
        package / "weights" / "resnet18_frskd.garments",
        model_config={"pretrained_cfg": cfg, "label_names": [f"class {i}" for i in range(10)]},
        safe_serialization=True,
    )
    small = timm.create_model("wide_resnet16_2_frskd", num_classes=4)
    timm.models.save_for_hf(small, package / "weights" / "wide_resnet16_2_frskd.four", safe_serialization=True)
    for half in ("config.json", "model.safetensors"):
        half_copied = package / "weights" / f"resnet34_frskd.only_{half.split('.')[0]}"
        half_copied.mkdir()
        shutil.copy(package / "weights" / "resnet18_frskd.garments" / half, half_copied)
    torch.save((images((28, 28), chans=1), trained.eval()(images((28, 28), chans=1))), tmp_path / "expected.pt")
    result = python(
        "import timm, torch, frskd_timm\n"
        "from timm.data import resolve_data_config\n"
        f"assert frskd_timm.__file__.startswith({str(tmp_path)!r})\n"
        "names = ['resnet18_frskd.garments', 'wide_resnet16_2_frskd.four']\n"
        "assert timm.list_pretrained('*frskd*') == names\n"
        f"x, logits = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "for name in ('resnet18_frskd', names[0]):\n"
        "    model = timm.create_model(name, pretrained=True).eval()\n"
        "    torch.testing.assert_close(model(x), logits)\n"
        "cfg = model.pretrained_cfg\n"
        "assert cfg['architecture'] == 'resnet18_frskd' and cfg['tag'] == 'garments' and cfg['license'] == 'mit'\n"
        "assert len(cfg['label_names']) == 10 and cfg['pool_size'] == (1, 1)\n"
        "data = resolve_data_config(model=model)\n"
        "assert data['input_size'] == (1, 28, 28) and data['mean'] == (0.3,)\n"
        "for name in names:\n"
        "    model = timm.create_model(name, pretrained=True, num_classes=3, in_chans=5)\n"
        "    assert model(torch.zeros(2, 5, 28, 28)).shape == (2, 3)\n"
        "    backbone = timm.create_model(name, pretrained=True, features_only=True, in_chans=3)\n"
        "    assert len(backbone(torch.zeros(2, 3, 28, 28))) == len(model.feature_info)\n"
        "assert timm.create_model(names[1]).num_classes == 4\n"
        "for name in timm.list_models('*_frskd'):\n"
        "    with torch.device('meta'):\n"
        "        assert timm.create_model(name).num_classes == 1000, name\n"
        "try:\n"
        "    timm.create_model('resnet34_frskd', pretrained=True)\n"
        "except RuntimeError as error:\n"
        "    assert 'No pretrained weights' in str(error)\n"
        "else:\n"
        "    raise SystemExit('loaded what is not there')\n",
        home=tmp_path,
    )
    assert result.returncode == 0, result.stderr


def test_published_weights_are_at_their_owner_or_a_fork_s(tmp_path, monkeypatch):
    entry = {"hf_hub_id": "somebody/resnet18_frskd.cifar100", "num_classes": 100, "input_size": (3, 64, 64)}
    monkeypatch.setitem(_pretrained.PUBLISHED, "resnet18_frskd.cifar100", entry)
    base = {"input_size": (3, 224, 224), "pool_size": (7, 7), "num_classes": 1000}

    def default():
        cfgs = _pretrained.with_weights({"resnet18_frskd": base, "resnet34_frskd": base}, folder=tmp_path)
        cfgs = timm.models.generate_default_cfgs(cfgs)
        assert not cfgs["resnet34_frskd"].is_pretrained
        return cfgs["resnet18_frskd"].default_with_tag

    monkeypatch.delenv("FRSKD_HUB_OWNER", raising=False)
    tag, cfg = default()
    assert (tag, cfg.hf_hub_id) == ("cifar100", "somebody/resnet18_frskd.cifar100")
    assert (cfg.num_classes, cfg.pool_size) == (100, (2, 2))
    monkeypatch.setenv("FRSKD_HUB_OWNER", "fork")
    assert default()[1].hf_hub_id == "fork/resnet18_frskd.cifar100"
