"""Shipped weights load, score what is stated, and come from a run by `tools/ship.py`."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import ROOT, run_script
from huggingface_hub import ModelCard
from PIL import Image
from runs import evaluate_here, train_here
from safetensors.torch import load_file
from timm.models import save_for_hf

from frskd_timm.errors import UserError
from frskd_timm.export.load import load_student, read_student
from frskd_timm.models._pretrained import DEFAULT_TAGS, FOLDER, with_weights
from frskd_train.data.corruptions import CORRUPTIONS
from frskd_train.data.source import SAMPLE_FOLDER
from frskd_train.publish.student import check_folder
from frskd_train.report.metrics import read_metrics
from tools import ship as shipping
from tools.rescore import rescore
from tools.ship import ship
from tools.table_files import read
from tools.zoo import RESULTS, WAITING, results_table, waiting

SHIPPED = sorted(path.parent for path in FOLDER.glob("*/config.json"))
TINY = ["--train-num-samples", 40, "--batch-size", 20, "--epochs", 1, "--no-amp", "--threads", 1, "--tag", "garments"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Ship a short run into a copy of the repository without weights; return the copy, the run and its baseline."""
    home = tmp_path_factory.mktemp("zoo")
    root, run, plain = home / "copy", home / "run", home / "ce"
    for part in ("frskd_timm", "frskd_train", "tools"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    data = home / "garments"
    data.mkdir()
    for split, count in (("train", 200), ("test", 40)):
        rows = pq.read_table(SAMPLE_FOLDER / f"{split}.parquet").slice(0, count)
        pq.write_table(rows, data / f"{split}.parquet")
    flags = ["--model", "wide_resnet16_2_frskd", "--dataset", data, "--workers", 0, *TINY, "--license", "mit"]
    train_here(*flags, "--output-dir", run)
    train_here(*flags, "--method", "ce", "--seed", 7, "--output-dir", plain)
    (data / "README.md").write_text("---\nlicense: mit\n---\n# Garments\n")
    ship(run, baseline=[plain], dataset=str(data), dataset_name="Garments", also=[str(data)], threads=1, root=root)
    return root, run, plain


@pytest.mark.long
def test_a_second_run_of_a_recipe_keeps_its_baseline(repository, tmp_path: Path) -> None:
    root, run, plain = repository
    shipped = Path("frskd_timm") / "weights" / "wide_resnet16_2_frskd.garments"
    for part in ("frskd_timm", "frskd_train", "tools", "MODEL_CARD.md"):
        (shutil.copytree if (root / part).is_dir() else shutil.copy)(root / part, tmp_path / part)
    again = tmp_path / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("checkpoints"))
    config = (run / "config.yaml").read_text(encoding="utf-8")
    for name, kept in (("alpha", True), ("weight_decay", False)):
        changed, count = re.subn(rf"(?m)^{name}: .*$", f"{name}: 0.0", config)
        assert count == 1
        (again / "config.yaml").write_text(changed, encoding="utf-8")
        ship(again, dataset_name="Garments", threads=1, root=tmp_path)
        found = json.loads((tmp_path / shipped / "metrics.json").read_text(encoding="utf-8"))["baseline"]
        wanted = json.loads((root / shipped / "metrics.json").read_text(encoding="utf-8"))["baseline"]
        assert found == (wanted if kept else None)
    folder = tmp_path / shipped
    card = (folder / "README.md").read_text(encoding="utf-8")
    rescore(folder, str(run.parent / "garments"), threads=1, root=tmp_path)
    assert (folder / "README.md").read_text(encoding="utf-8") == card
    metrics = json.loads((again / "metrics.json").read_text(encoding="utf-8"))
    (again / "metrics.json").write_text(json.dumps({**metrics, "seed": 8}), encoding="utf-8")
    rescore(folder, str(run.parent / "garments"), repeats=[again], threads=1, root=tmp_path)
    assert [row["seed"] for row in read_metrics(folder / "metrics.json").repeats.runs] == [metrics["seed"], 8]
    with pytest.raises(UserError, match=r"--repeats .* was trained with another recipe: weight_decay is 0\.0005"):
        rescore(folder, str(run.parent / "garments"), repeats=[run], threads=1, root=tmp_path)
    later = tmp_path / "later"  # a baseline that ended after the weights were shipped
    shutil.copytree(plain, later, ignore=shutil.ignore_patterns("checkpoints"))
    config = (plain / "config.yaml").read_text(encoding="utf-8")
    (later / "config.yaml").write_text(re.sub(r"(?m)^weight_decay: .*$", "weight_decay: 0.0", config), encoding="utf-8")
    rescore(folder, str(run.parent / "garments"), baseline=[later], threads=1, root=tmp_path)
    assert [row["seed"] for row in read_metrics(folder / "metrics.json").baseline.runs] == [7]
    (later / "metrics.json").write_text(
        (plain / "metrics.json").read_text(encoding="utf-8").replace('"seed": 7', '"seed": 9'), encoding="utf-8"
    )
    rescore(folder, str(run.parent / "garments"), baseline=[later], threads=1, root=tmp_path)
    assert [row["seed"] for row in read_metrics(folder / "metrics.json").baseline.runs] == [7, 9]  # the first one stays
    folder = ship(again, for_hub=True, dataset_name="Garments", threads=1, root=tmp_path)
    assert folder == tmp_path / WAITING / "wide_resnet16_2_frskd.garments"
    assert "contains these weights" not in (folder / "README.md").read_text(encoding="utf-8")
    assert "contains these weights" in (root / shipped / "README.md").read_text(encoding="utf-8")
    link = f"[`{folder.name}`]({(WAITING / folder.name).as_posix()})"
    assert link in (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_shipped_weights_are_the_run_s_in_half_precision(repository) -> None:
    root, *_ = repository
    folder = root / "frskd_timm" / "weights" / "wide_resnet16_2_frskd.garments"
    tensors = load_file(folder / "model.safetensors")
    assert {t.dtype for k, t in tensors.items() if "running" not in k and "num_" not in k} == {torch.float16}
    assert {t.dtype for k, t in tensors.items() if "running" in k} == {torch.float32}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["label_names"][9], config["pretrained_cfg"]["license"]) == ("Ankle boot", "mit")


@pytest.mark.long
def test_shipped_figures_are_measured_on_what_ships(repository) -> None:
    root, run, plain = repository
    (row,) = read(root / "results" / "results.csv")
    folder = root / "frskd_timm" / "weights" / "wide_resnet16_2_frskd.garments"
    evaluate_here("--model", folder, "--output", root / "found.json")
    found = json.loads((root / "found.json").read_text(encoding="utf-8"))
    assert row["sample_top1"] == f"{found['top1']:.2f}"
    trained = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["student"]
    assert (float(row["top1"]), float(row["top5"])) == pytest.approx((trained["top1"], trained["top5"]), abs=0.01)
    baseline = json.loads((plain / "metrics.json").read_text(encoding="utf-8"))["student"]["top1"]
    assert float(row["baseline_mean"]) == pytest.approx(baseline, abs=0.2)
    assert (row["model"], row["dataset"], row["param_count"]) == ("wide_resnet16_2_frskd.garments", "Garments", "0.69")

    assert {"README.md", "DATASET.md", "recipe.yaml", "curves.png", "attention.png"} <= set(check_folder(folder))
    text = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in (".json", ".yaml"))
    assert str(run.parent) not in text  # no place of this machine
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert 'timm.create_model("wide_resnet16_2_frskd.garments"' in card
    assert f"On the dataset `garments` ([described here](DATASET.md)) (40 images): top-1 {row['top1']}%" in card
    assert "](DATASET.md)" in card
    assert f"| none | {' | '.join(CORRUPTIONS)} |" in card
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["corruptions"]["top1"]["none"] == pytest.approx(metrics["student"]["top1"], abs=0.01)
    assert "# Garments" in (folder / "DATASET.md").read_text(encoding="utf-8")
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["baseline"]["runs"][0]["seed"] == 7
    assert results_table([row]) in (root / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| `wide_resnet16_2_frskd` | " in (root / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_shipping_refuses_what_is_not_so(repository, tmp_path: Path, monkeypatch) -> None:
    _, run, plain = repository
    with pytest.raises(UserError, match="not a finished run"):
        ship(tmp_path, root=tmp_path)
    other = tmp_path / "other"
    shutil.copytree(plain, other, ignore=shutil.ignore_patterns("checkpoints"))
    config = (other / "config.yaml").read_text(encoding="utf-8")
    (other / "config.yaml").write_text(config.replace("lr: 0.1\n", "lr: 0.2\n"), encoding="utf-8")
    with pytest.raises(UserError, match=r"lr is 0\.2 there and 0\.1"):
        ship(run, baseline=[other], threads=1, root=tmp_path)
    with pytest.raises(UserError, match="not ce"):
        ship(run, baseline=[run], threads=1, root=tmp_path)
    with pytest.raises(UserError, match=r"--baseline needs runs with different seeds, each once; the seeds are \[7\]"):
        ship(run, baseline=[plain, plain], threads=1, root=tmp_path)
    with pytest.raises(UserError, match=r"--repeats needs runs with different seeds other than that of the weights"):
        ship(run, repeats=[run], threads=1, root=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shipping, "evaluate", None)  # nothing is scored before
        with pytest.raises(UserError, match="nowhere"):
            ship(run, also=[str(tmp_path / "nowhere")], threads=1, root=tmp_path)
    metrics = json.loads((other / "metrics.json").read_text(encoding="utf-8"))
    metrics["student"]["top1"] += 5
    (other / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    with pytest.raises(UserError, match="not the run's"):
        ship(other, threads=1, root=tmp_path)
    (other / "metrics.json").write_text(json.dumps(metrics | {"model": "resnet18"}), encoding="utf-8")
    with pytest.raises(UserError, match="this package registers"):
        ship(other, threads=1, root=tmp_path)
    assert not (tmp_path / "frskd_timm").exists()
    assert not (tmp_path / "results").exists()


def test_what_ships_is_what_timm_lists_and_small() -> None:
    assert timm.list_pretrained("*frskd*") == [folder.name for folder in SHIPPED]
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 40e6
    assert [row["model"] for row in read(RESULTS)] == sorted([*(folder.name for folder in SHIPPED), *waiting()])


def test_an_overlay_names_other_weights() -> None:
    for name in DEFAULT_TAGS:
        with pytest.raises(URLError, match="nowhere"):
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"url": "file:///nowhere"})


def test_adding_weights_does_not_change_the_default(tmp_path: Path) -> None:
    shipped = {path.name: path for path in SHIPPED}
    assert {name.split(".")[0] for name in shipped} <= DEFAULT_TAGS.keys()
    for architecture, tag in DEFAULT_TAGS.items():
        assert timm.get_pretrained_cfg(architecture).tag == tag
        for name in (f"{architecture}.{tag}", f"{architecture}.aaa"):
            shutil.copytree(shipped[f"{architecture}.{tag}"], tmp_path / name)
        base = {"input_size": (3, 224, 224), "pool_size": (7, 7), "num_classes": 1000}
        found = with_weights({architecture: base}, tmp_path)
        assert list(found) == [f"{architecture}.{tag}", f"{architecture}.aaa"]


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_what_ships_scores_what_is_stated(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """On the sample in the repository; loaded by name, as a user does."""
    (row,) = [row for row in read(RESULTS) if row["model"] == folder.name]
    evaluate_here("--model", folder.name, "--threads", 1, "--output", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert "(1000 images," in capsys.readouterr().out
    # Another CPU's arithmetic may turn the odd image over.
    assert found["top1"] == pytest.approx(float(row["sample_top1"]), abs=0.21)
    assert found["loss"] == pytest.approx(metrics["sample"]["loss"], abs=2e-3)
    assert row["top1"] == f"{metrics['student']['top1']:.2f}"
    assert float(row["param_count"]) == pytest.approx(found["param_count"] / 1e6, abs=5e-3)


@pytest.mark.parametrize("folder", [*SHIPPED, *(ROOT / WAITING / name for name in waiting())], ids=lambda f: f.name)
def test_what_ships_can_be_published_and_says_what_it_is(folder: Path) -> None:
    names = check_folder(folder)
    assert {"README.md", "recipe.yaml", "curves.png", "attention.png"} <= set(names)
    (row,) = [row for row in read(RESULTS) if row["model"] == folder.name]
    load_student(folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license
    for fact in ("Licence of the data: ", "recipe.yaml", f"| {row['top1']} | {row['top5']} |", "## Limits"):
        assert fact in card.text
    assert ("cross-entropy alone, same recipe" in card.text) == bool(row["baseline_mean"])
    for picture in (name for name in names if name.endswith(".png")):
        with Image.open(folder / picture) as image:
            assert image.width <= 1000
        assert (folder / picture).stat().st_size < 250_000


def test_timms_export_keeps_the_names_of_the_classes(tmp_path: Path) -> None:
    model = timm.create_model("resnet18_frskd", pretrained=True)
    save_for_hf(model, tmp_path / "same", safe_serialization=True)
    assert read_student(tmp_path / "same").class_names[:2] == ["T-shirt/top", "Trouser"]
    model.reset_classifier(3)
    save_for_hf(model, tmp_path / "other", safe_serialization=True)
    assert read_student(tmp_path / "other").class_names == []


def test_the_readme_counts_the_weights() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    total, others = len(read(RESULTS)), len(waiting())
    in_package = f"{numbers[total - others].capitalize()} of the {numbers[total]} are in the package"
    assert f"{in_package}, the others in `hub/students/` of a clone" in readme


@pytest.mark.long
def test_weights_travel_in_the_wheel(tmp_path: Path) -> None:
    """Build the wheel, install it into an empty folder, and use its weights and commands from there."""
    source = tmp_path / "source"
    for part in ("frskd_timm", "frskd_train"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source / part)
    pip = [sys.executable, "-m", "pip", "-q"]
    run_script(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run_script(*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel, cwd=tmp_path)
    probe = (
        "import sys, timm, torch, frskd_timm\n"
        "assert frskd_timm.__file__.startswith(sys.argv[1]), frskd_timm.__file__\n"
        "names = timm.list_pretrained('*frskd*')\n"
        "for name in names:\n"
        "    model = timm.create_model(name, pretrained=True).eval()\n"
        "    assert model(torch.zeros(1, *model.pretrained_cfg['input_size'])).shape == (1, 10)\n"
        "print(*names)\n"
    )
    path = {"PYTHONPATH": str(tmp_path / "site"), "PATH": os.environ["PATH"]}
    done = run_script(sys.executable, "-c", probe, tmp_path / "site", cwd=tmp_path, **path)
    assert done.stdout.split() == [folder.name for folder in SHIPPED]
    command = [sys.executable, tmp_path / "site" / "bin" / "frskd"]
    flags = ["--config", "finetune", "--dataset", "fashion_mnist_sample", *TINY, "--output-dir", "run"]
    run_script(*command, "train", *flags, cwd=tmp_path, **path)
    run_script(*command, "push", "run", "--repo-id", "me/student", "--dry-run", cwd=tmp_path, **path)
