"""Files and texts of others are data, never code; they reach no other folder, and secrets stay secret."""

import json
import pickle
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import datasets
import hub_server
import pytest
import torch
from conftest import ROOT
from hub_server import TOKEN, LoopbackHub
from huggingface_hub import constants
from pictures import encoded, load, picture, save, split, voc_folder
from PIL import Image
from published import METRICS, make_student, push
from runs import MARKER, small, train_here

from frskd_timm.errors import UserError
from frskd_timm.export.load import load_student, read_student
from frskd_timm.export.student import export_segmentation
from frskd_timm.segmentation import SegmentationStudent, create_segmentation_student
from frskd_train.data.source import find_source
from frskd_train.demo.build import build_demo
from frskd_train.demo.runtime import FILES
from frskd_train.errors import printable
from frskd_train.found_student import find_exported
from frskd_train.publish.student import check_folder
from frskd_train.report.card import model_card
from frskd_train.report.groups import Run
from frskd_train.report.metrics import InitialWeights
from frskd_train.report.score_files import check_output
from frskd_train.run.folder import RunFolder
from frskd_train.settings import default_settings
from frskd_train.settings.parse import parse_settings
from frskd_train.tasks import choose_job


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
    again = rf"does not accept the token.*frskd push \S*published --repo-id {hub_server.USER}/student --private$"
    with pytest.raises(UserError, match=again) as caught:
        train_here(*push)
    monkeypatch.setattr(hub_server, "TOKEN", MARKER)
    train_here(*push)
    assert hub.repos[f"{hub_server.USER}/student"].private
    assert MARKER not in "".join(capfd.readouterr()) + str(caught.value)
    looked_at = [path for path in places.rglob("*") if path.is_file()]
    assert {path.name for path in looked_at} >= {"config.yaml", "state.json", "metrics.json", "README.md"}
    for path in looked_at:
        assert MARKER.encode() not in path.read_bytes(), path


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a file and the requests for it."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"print('mine now')")

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/yaml.py", requests
        listening.shutdown()


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "backbone"])
def test_a_config_downloads_no_file(kind: str, server: tuple[str, list[str]], tmp_path: Path) -> None:
    url, requests = server
    folder, here = tmp_path / "student", tmp_path / "here"
    if kind == "segmenter":
        key = "backbone_args"
        export_segmentation(create_segmentation_student("test_resnet", 3, channels=8, layers=1), folder)
    else:
        key = "model_args"
        make_student(folder, "test_resnet")
    config = json.loads((folder / "config.json").read_text())
    config[key] = {"pretrained": True, "cache_dir": str(here), "pretrained_cfg": {"url": url, "num_classes": 10}}
    (folder / "config.json").write_text(json.dumps(config))
    loads: dict[str, list[Any]] = {
        "classifier": [load_student, check_folder],
        "segmenter": [load_student, check_folder, SegmentationStudent.from_pretrained],
        "backbone": [lambda folder: create_segmentation_student(f"local-dir:{folder}", 3)],
    }
    for call in loads[kind]:
        with pytest.raises(UserError, match=r"contains cache_dir, which does not describe a network"):
            call(folder)
    assert not requests
    assert not here.exists()


def test_no_file_of_another_folder_is_published(hub, student: Path, tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("a secret")
    for name in ("LICENSE", "DATASET.md", "recipe.yaml"):
        folder = tmp_path / name / "student"
        shutil.copytree(student, folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "id_rsa")
        with pytest.raises(UserError, match=rf"{name} is a link to another folder"):
            push(hub, folder)
        (folder / name).unlink()
        (folder / name).write_text(f"# {TOKEN}")
        with pytest.raises(UserError, match=rf"{name} contains what looks like a Hugging Face token"):
            push(hub, folder)
    assert not hub.repos


def test_a_demo_replaces_no_clone_of_its_space(student: Path, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode())
    found, demo = find_exported(str(student)), tmp_path / "demo"
    build_demo(found, demo, runtime=tmp_path)
    (demo / ".git").mkdir()
    with pytest.raises(UserError, match="holds something other than a demo"):
        build_demo(found, demo, runtime=tmp_path)
    assert (demo / ".git").exists()


@pytest.mark.parametrize("name", ["curves.png", "student", "evaluation.json"])
def test_a_run_does_not_write_through_links(name: str, whole: Path, tmp_path: Path) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(whole, run)
    (run / name).rename(mine)
    (run / name).symlink_to(mine)
    with pytest.raises(UserError, match=rf"{name} is a link to {mine}, which would be overwritten"):
        RunFolder(run).claim(resuming=True)
    (run / name).unlink()
    (run / "checkpoints").rename(tmp_path / "on another disk")
    (run / "checkpoints").symlink_to(tmp_path / "on another disk")
    RunFolder(run).claim(resuming=True)
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "per_class.csv").symlink_to(mine)
    with pytest.raises(UserError, match="which would be overwritten"):
        check_output(tmp_path / "scores")


def test_the_report_starts_no_program(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path / "run")
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!{sys.executable}\nopen({str(tmp_path / 'started')!r}, 'w')\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=":")
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "attention.eps")
    (tmp_path / "run" / "attention.eps").replace(tmp_path / "run" / "attention.png")
    assert Run.read(tmp_path / "run").picture("attention.png") is None
    assert Run.read(tmp_path / "run").picture("curves.png") is not None
    assert not (tmp_path / "started").exists()


def test_a_list_of_images_names_none_outside_the_dataset(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    (folder / "JPEGImages" / "a ").mkdir()
    for path in ("../../private/passport", str(tmp_path / "passport"), "a /../../../passport"):
        (folder / "ImageSets" / "Segmentation" / "val.txt").write_text(f"{path}\n")
        with pytest.raises(UserError, match="which is not in"):
            load(folder)


def test_a_card_quotes_what_a_dataset_says(student: Path, tmp_path: Path) -> None:
    facts = replace(METRICS.dataset, license="mit\n## Install\n![](https://evil/pixel.png) <img src=x>")
    text = model_card(replace(METRICS, dataset=facts), read_student(student)).text
    assert "\n## Install" not in text
    assert r"!\[\](https://evil/pixel.png) &lt;img" in text
    for homepage, shown in (("https://example.org/a?b=1", True), ("https://x) ![](https://evil/pixel.png", False)):
        rows = datasets.Dataset.from_dict({"label": [0]}, info=datasets.DatasetInfo(homepage=homepage))
        datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "data")
        found = find_source(replace(default_settings().data, dataset=str(tmp_path / "data"))).homepage
        assert found == (homepage if shown else None)


def test_a_card_does_not_name_the_user(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "alice"
    monkeypatch.setenv("HOME", str(home))
    for place, name in (
        (home, "model.safetensors"),
        (home / "student", "model.safetensors"),
        (home / "run" / "student", "run"),
    ):
        shutil.copytree(student, place, dirs_exist_ok=True)
        settings = parse_settings(["--initial-checkpoint", str(place / "model.safetensors")])
        assert choose_job(settings).initial_weights() == InitialWeights(name)


def test_names_control_no_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b") == r"a\x1b[2Jb\x07\x9b"
