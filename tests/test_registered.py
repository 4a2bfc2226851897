"""What importing the package adds to timm: names, public objects and pretrained weights."""

import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import run_script
from networks import create, images
from timm.layers import DropPath
from torch import nn

import frskd_timm
from frskd_timm.errors import UserError
from frskd_timm.models import _pretrained

IMPORT = """
import sys, time, warnings
start = time.process_time()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # timm's own
    import timm
alone = time.process_time() - start
start = time.process_time()
import frskd_timm
added = time.process_time() - start
assert added < 0.1 * alone or added < 0.2, (added, alone)
assert timm.list_pretrained("*frskd*") == [
    n for n in timm.list_models("*frskd*", include_tags=True) if timm.get_pretrained_cfg(n).file]
heavy = {"frskd_timm.task", "frskd_timm.teachers", "frskd_timm.export.student", "datasets", "accelerate",
         "transformers", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""

USE = """
import sys, timm, torch, frskd_timm
from timm.data import resolve_data_config
assert frskd_timm.__file__.startswith(sys.argv[1])
names = ["resnet18_frskd.garments", "wide_resnet16_2_frskd.four"]
assert timm.list_pretrained("*frskd*") == names
x, logits = torch.load(sys.argv[1] + "/expected.pt")
for name in ("resnet18_frskd", names[0]):
    model = timm.create_model(name, pretrained=True).eval()
    torch.testing.assert_close(model(x), logits)
cfg = model.pretrained_cfg
assert cfg["architecture"] == "resnet18" and cfg["tag"] == "garments" and cfg["license"] == "mit"
assert len(cfg["label_names"]) == 10 and cfg["pool_size"] == (1, 1)
data = resolve_data_config(model=model)
assert data["input_size"] == (1, 28, 28) and data["mean"] == (0.3,)
for name, last in zip(names, ["layer4.1.conv2.weight", "layer3.1.conv2.weight"]):
    trained = timm.create_model(name, pretrained=True).state_dict()[last]
    model = timm.create_model(name, pretrained=True, num_classes=3, in_chans=5)
    assert model(torch.zeros(2, 5, 28, 28)).shape == (2, 3)
    backbone = timm.create_model(name, pretrained=True, features_only=True, in_chans=3)
    assert len(backbone(torch.zeros(2, 3, 28, 28))) == len(model.feature_info)
    assert torch.equal(model.state_dict()[last], trained) and torch.equal(backbone.state_dict()[last], trained)
assert timm.create_model(names[1]).num_classes == 4
for name in timm.list_models("*_frskd"):
    with torch.device("meta"):
        assert timm.create_model(name).num_classes == 1000, name
        assert timm.create_model(name, pretrained_cfg_overlay={"num_classes": 7}).num_classes == 7, name
try:
    timm.create_model("resnet34_frskd", pretrained=True)
except RuntimeError as error:
    assert "No pretrained weights exist for resnet34_frskd" in str(error)
else:
    raise SystemExit("weights were loaded that are not there")
"""


def test_import_is_quiet_light_and_lists_only_what_exists():
    done = run_script(sys.executable, "-W", "error", "-c", IMPORT)
    assert (done.stdout, done.stderr) == ("", "")


def test_public_names_are_found_when_asked_for():
    assert frskd_timm.UserError is UserError
    assert set(frskd_timm.__all__) <= set(dir(frskd_timm))
    for name in frskd_timm.__all__:
        assert getattr(frskd_timm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        frskd_timm.nothing  # noqa: B018


def test_a_folder_in_weights_is_a_pretrained_model(tmp_path):
    """Two folders in a copy of the package, as in a wheel with shipped weights."""
    package = tmp_path / "frskd_timm"
    shutil.copytree(Path(frskd_timm.__file__).parent, package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    save = lambda model, name, **config: timm.models.save_for_hf(
        model, package / "weights" / name, model_config=config, safe_serialization=True
    )
    trained = create("resnet18", num_classes=10, in_chans=1)
    cfg = {"tag": "garments", "license": "mit", "mean": (0.3,), "std": (0.4,), "input_size": (1, 28, 28)}
    save(trained, "resnet18_frskd.garments", pretrained_cfg=cfg, label_names=[f"class {i}" for i in range(10)])
    save(create("wide_resnet16_2_frskd", num_classes=4), "wide_resnet16_2_frskd.four")
    for half in ("config.json", "model.safetensors"):
        half_copied = package / "weights" / f"resnet34_frskd.only_{half.split('.')[0]}"
        half_copied.mkdir()
        shutil.copy(package / "weights" / "resnet18_frskd.garments" / half, half_copied)
    batch = images((28, 28), chans=1)
    torch.save((batch, trained.eval()(batch)), tmp_path / "expected.pt")
    run_script(sys.executable, "-c", USE, tmp_path, cwd=tmp_path)


def test_published_weights_are_loaded_from_the_hub(tmp_path, monkeypatch):
    entry = {"hf_hub_id": "somebody/resnet18_frskd.cifar100", "num_classes": 100, "input_size": (3, 64, 64)}
    monkeypatch.setitem(_pretrained.PUBLISHED, "resnet18_frskd.cifar100", entry)
    base = {"input_size": (3, 224, 224), "pool_size": (7, 7), "num_classes": 1000}
    cfgs = _pretrained.with_weights({"resnet18_frskd": base, "resnet34_frskd": base}, folder=tmp_path)
    cfgs = timm.models.generate_default_cfgs(cfgs)
    assert not cfgs["resnet34_frskd"].is_pretrained
    tag, cfg = cfgs["resnet18_frskd"].default_with_tag
    assert (tag, cfg.hf_hub_id) == ("cifar100", "somebody/resnet18_frskd.cifar100")
    assert (cfg.num_classes, cfg.pool_size) == (100, (2, 2))


def test_timms_own_export_of_a_stock_network_needs_no_import(tmp_path):
    timm.models.save_for_hf(create("resnet18_frskd", num_classes=3), tmp_path)
    load = f"import timm; print(timm.create_model('local-dir:{tmp_path}', pretrained=True).num_classes)"
    assert run_script(sys.executable, "-c", load, cwd=tmp_path).stdout == "3\n"


def test_weights_of_wide_resnets_start_with_the_variance_of_the_outputs() -> None:
    for module in timm.create_model("wide_resnet16_2_frskd").modules():
        if isinstance(module, nn.Conv2d):
            outputs = module.weight[0, 0].numel() * module.out_channels
            assert float(module.weight.detach().std()) == pytest.approx((2 / outputs) ** 0.5, rel=0.15)


def test_stochastic_depth_of_wide_resnets_rises_and_keeps_the_shortcut() -> None:
    net = timm.create_model("wide_resnet16_2_frskd", drop_path_rate=0.6)
    rates = [module.drop_prob for module in net.modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] == pytest.approx(0.6)
    net = timm.create_model("wide_resnet16_2_frskd", drop_path_rate=1 - 1e-6).train()
    x = torch.randn(2, 128, 8, 8)
    assert torch.equal(net.get_submodule("layer3")[-1](x), x)
