"""External files are data and never code, and secrets stay secret."""

import json
import pickle
import re
import shutil
from pathlib import Path

import hub_server
import pytest
import torch
from conftest import ROOT
from hub_server import LoopbackHub
from huggingface_hub import constants
from pictures import encoded, picture, save, split
from runs import MARKER, small, train_here

from frskd_timm.errors import UserError


def test_no_pickle_is_read(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, resume and load the student with everything disabled that could run code from data."""
    import timm

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle is read")

    torch_load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **kw: torch_load(*args, **kw) if kw.get("weights_only") is True else refuse()
    )
    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    train_here(*small(places, "--epochs", 1), "--output-dir", places / "unpickled")
    train_here("--resume", places / "unpickled", "--epochs", 2, "--threads", 1)
    timm.create_model(f"local-dir:{places / 'unpickled' / 'student'}", pretrained=True)
    with pytest.raises(AssertionError, match="a pickle is read"):
        pickle.loads(b"")
    evil = places / "evil.pth"
    evil.write_bytes(b"cposix\nsystem\n(S'touch " + str(places / "owned").encode() + b"'\ntR.")
    with pytest.raises(UserError, match="--initial-checkpoint"):
        train_here(*small(places, "--initial-checkpoint", evil), "--output-dir", places / "evil")
    assert not (places / "owned").exists()


def test_no_source_file_asks_for_foreign_code() -> None:
    for path in [*(ROOT / "frskd_timm").rglob("*.py"), *(ROOT / "frskd_train").rglob("*.py"), *ROOT.glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\btrust_remote_code\b", text), path  # timm's flag for it is only answered
        assert "weights_only=False" not in text
        assert "torch.load(" not in text, path


def test_names_from_outside_stay_in_the_folder(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class names and a dataset folder look like paths outside."""
    import datasets

    names = ["../../out", "/tmp/out", "a\nb\u202e"]
    label = datasets.ClassLabel(names=names)
    rows = [encoded(picture(k)) for k in range(12)]
    data = tmp_path / "in" / "..evil\u202e name.."
    save(data, train=split(rows, [0, 1, 2] * 4, label), test=split(rows, [0, 1, 2] * 4, label))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = set(tmp_path.rglob("*"))
    train_here(*small(places, "--dataset", data, "--epochs", 1))
    new = set(tmp_path.rglob("*")) - before
    assert new
    assert all((tmp_path / "work" / "runs") in (path, *path.parents) for path in new)
    (run,) = (tmp_path / "work" / "runs").iterdir()
    assert run.name.startswith("test_resnet-evil-name-")
    config = json.loads((run / "student" / "config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == names


def test_tokens_are_written_nowhere(
    places: Path, whole: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Publishing fails at first, because the Hub does not know the token."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    url = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    shutil.copytree(whole, places / "published")
    push = ["--resume", places / "published", "--push-to-hub", f"{hub_server.USER}/student", "--hub-private"]
    with pytest.raises(UserError, match="does not accept the token") as caught:
        train_here(*push)
    monkeypatch.setattr(hub_server, "TOKEN", MARKER)
    train_here(*push)
    assert hub.repos[f"{hub_server.USER}/student"].private
    assert MARKER not in "".join(capfd.readouterr()) + str(caught.value)
    looked_at = [path for path in places.rglob("*") if path.is_file()]
    assert {path.name for path in looked_at} >= {"config.yaml", "state.json", "metrics.json", "README.md"}
    for path in looked_at:
        assert MARKER.encode() not in path.read_bytes(), path
