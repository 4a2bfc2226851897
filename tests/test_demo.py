"""The demo: in Chromium the page says what PyTorch says and asks nobody else; the Space holds exactly this page."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import ROOT
from hub_server import TOKEN, USER
from huggingface_hub import constants
from PIL import Image
from published import REPO, push
from timm.data import create_transform, resolve_data_config

from frskd_timm.errors import UserError
from frskd_timm.export.load import load_student
from frskd_timm.export.student import export_segmentation, export_student
from frskd_timm.segmentation import SegmentationStudent
from frskd_train import cli
from frskd_train.demo.build import build_demo
from frskd_train.demo.runtime import FILES, cached_runtime, find_runtime
from frskd_train.found_student import find_exported
from frskd_train.publish.space import demo_files, push_space

SIZE = (48, 64)  # height and width in the demo of the segmentation student


def make_pictures(folder: Path) -> list[Path]:
    """Write 20 PNG files: colour, gray and palette, upright, wide and tiny, smooth and noisy."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(20):
        height, width = generator.integers(9, 400, 2).tolist() if number else (28, 28)
        small = generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        if number % 3 == 0:
            image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image = image.convert(("RGB", "RGB", "L", "P")[number % 4])
        paths.append(folder / f"{number}.png")
        image.save(paths[-1])
    return paths


def make_student(kind: str, folder: Path) -> str:
    torch.manual_seed(0)
    if kind == "shipped":
        return "wide_resnet16_2_frskd"
    names = ["background", "<i>cat", "dog"]
    if kind == "gray":
        model = timm.create_model("test_resnet", num_classes=3, in_chans=1)
        data: dict[str, Any] = {"input_size": (1, 48, 80), "mean": (0.4,), "std": (0.3,), "label_names": names}
        return str(export_student(model, folder, tag="gray", interpolation="bicubic", crop_pct=0.9, **data))
    model = SegmentationStudent("test_resnet", 3, channels=8, layers=1, class_names=names)
    return str(export_segmentation(model, folder))


def expected_logits(kind: str, student: str, path: Path) -> torch.Tensor:
    """Return PyTorch's logits for a file, with timm's preprocessing."""
    model = timm.create_model(student, pretrained=True).eval() if kind == "shipped" else load_student(student)
    with Image.open(path) as file, torch.inference_mode():
        if isinstance(model, SegmentationStudent):
            image = file.convert("RGB")
            scale = min(1, SIZE[1] / image.width, SIZE[0] / image.height)
            image = image.resize([max(1, int(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
            pixels = (torch.from_numpy(np.array(image)) / 255 - torch.tensor(model.mean)) / torch.tensor(model.std)
            images = torch.zeros(1, 3, *SIZE)
            images[0, :, : image.height, : image.width] = pixels.permute(2, 0, 1)
            return model(images).flatten()
        config = resolve_data_config(model=model)
        image = file.convert("L" if config["input_size"][0] == 1 else "RGB")
        return model(create_transform(**config)(image)[None])[0]


@pytest.fixture
def browser() -> Iterator[Any]:
    """Start headless Chromium, which reaches this machine only."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Debian's package chromium")
    if not all((cached_runtime() / name).is_file() for name in FILES):
        pytest.skip("needs onnxruntime-web in the cache: run `frskd demo` once")
    with playwright.sync_playwright() as started:
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        yield started.chromium.launch(executable_path=chromium, args=["--no-sandbox", rules])


LISTEN = """() => { window.answer = new Promise((done) =>
  document.addEventListener("prediction", (event) => done(event.detail.logits), {once: true})); }"""
# Give a file to the page in the other two ways.
GIVE = """async ([name, kind]) => {
  const blob = await (await fetch(name)).blob(), data = new DataTransfer();
  data.items.add(new File([blob], "picture.png", {type: "image/png"}));
  dispatchEvent(kind === "drop" ? new DragEvent("drop", {dataTransfer: data})
                                : new ClipboardEvent("paste", {clipboardData: data}));
}"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["shipped", "gray", "segmentation"])
def test_the_page_says_what_pytorch_says(kind: str, browser: Any, tmp_path: Path) -> None:
    student = make_student(kind, tmp_path / "student")
    size = ["--img-size", *map(str, SIZE)] if kind == "segmentation" else []
    command = [sys.executable, "-m", "frskd_train", "demo", student, "--port", "0", *size]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        page = browser.new_page(viewport={"width": 390, "height": 844})
        asked, problems = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(error))
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        if kind == "shipped":  # its classes are those of the included sample
            page.wait_for_selector("#bars li")
            assert page.locator("#bars li .name").first.inner_text() == "T-shirt/top"
        pictures = make_pictures(tmp_path)
        for path in pictures:
            page.evaluate(LISTEN)
            page.set_input_files("#file", path)
            found = torch.tensor(page.evaluate("window.answer"))
            expected = expected_logits(kind, student, path)
            assert (found - expected).abs().max() <= 1e-3, path
        shutil.copy(pictures[-1], next(tmp_path.glob("demo-*")) / "last.png")
        for way in ("drop", "paste"):
            page.evaluate(LISTEN)
            page.evaluate(GIVE, ["last.png", way])
            assert torch.equal(torch.tensor(page.evaluate("window.answer")), found)
        assert 1 <= page.locator("#bars li").count() <= (5 if kind == "shipped" else 3)
        assert page.locator("#view").is_visible()
        page.click("#show-draw")
        page.evaluate(LISTEN)
        box = page.locator("#pad").bounding_box()
        page.mouse.move(box["x"] + 50, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 150, box["y"] + 90, steps=5)
        page.mouse.up()
        assert not torch.equal(torch.tensor(page.evaluate("window.answer")), found)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert not problems
        assert all(url.startswith((f"{address}/", "blob:", "data:")) for url in asked), asked
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """Return a folder in place of the npm package."""
    (tmp_path / "npm").mkdir()
    for name in FILES:
        (tmp_path / "npm" / name).write_bytes(name.encode())
    return tmp_path / "npm"


def test_another_runtime_is_refused(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_runtime(runtime) == runtime
    monkeypatch.setattr(constants, "HF_HOME", str(runtime / FILES[0]))
    with pytest.raises(UserError, match="could not be written"):
        find_runtime()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="checksum differs"):
        find_runtime(runtime / FILES[0])
    (runtime / FILES[1]).unlink()
    with pytest.raises(UserError, match="lacks"):
        find_runtime(runtime)


@pytest.mark.long
def test_a_space_holds_the_page_and_a_repository_the_onnx_file(hub, student, runtime, capsys, monkeypatch) -> None:
    options: dict[str, Any] = {"token": TOKEN, "endpoint": hub.endpoint, "say": lambda _: None}
    pictured = demo_files(student, runtime=runtime, repo_id=REPO, examples=[ROOT / "docs" / "curves.png"])
    published = push_space(pictured, f"{USER}/demo", **options)
    assert published == hub.repos[f"spaces/{USER}/demo"].history()[0]
    assert hub.repos[f"spaces/{USER}/demo"].sdk == "static"
    files = hub.files(f"spaces/{USER}/demo")
    names = {"index.html", "app.js", "view.js", "preprocess.js", "style.css", "demo.json", "model.onnx", "README.md"}
    assert set(files) == names | {f"ort/{name}" for name in FILES} | {"examples/0.png"}
    assert b"FRSKD" in files["README.md"]
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (header["sdk"], header["models"]) == ("static", [REPO])
    page = demo_files(student, runtime=runtime, repo_id=REPO)
    again = push_space(page, f"{USER}/demo", **options)  # no example any more
    assert again != published
    assert "examples/0.png" not in hub.files(f"spaces/{USER}/demo")
    assert push_space(page, f"{USER}/demo", **options) == again
    unlinked = demo_files(student, runtime=runtime)  # without the link to the student
    proposed = push_space(unlinked, f"{USER}/demo", create_pr=True, **options)
    branched = push_space(unlinked, f"{USER}/demo", revision="trial", **options)
    assert hub.repos[f"spaces/{USER}/demo"].history()[0] == again
    assert hub.repos[f"spaces/{USER}/demo"].history("trial")[0] == branched
    assert proposed != again
    with pytest.raises(UserError, match="--revision must be a branch name"):
        push_space(page, f"{USER}/demo", revision="refs/heads/trial", **options)
    updated = push_space(page, f"{USER}/demo", revision="refs/pr/1", **options)
    assert hub.repos[f"spaces/{USER}/demo"].refs["refs/pr/1"] == updated != proposed

    assert push(hub, student, onnx=True).changed
    assert hub.files(REPO)["onnx/model.onnx"].startswith(b"\x08")
    assert not push(hub, student, onnx=True).changed
    cli.run("push", [str(student), "--space", f"{USER}/other", "--runtime", str(runtime), "--dry-run"])
    assert "model.onnx" in capsys.readouterr().out
    assert f"spaces/{USER}/other" not in hub.repos
    words = ["--repo-id", REPO, "--space", f"{USER}/other", "--runtime", str(runtime), "--img-size", "3"]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(SystemExit):
        cli.run("push", [str(student), *words])
    said = capsys.readouterr()
    assert "--img-size is only for segmentation" in said.err
    assert "complete" not in said.out  # nothing was published before


def test_a_demo_of_a_second_head_does_not_claim_refined_features(
    runtime: Path, whole_masks: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole_masks, tmp_path / "run")
    facts = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    (run / "metrics.json").write_text(json.dumps(facts | {"by_second_head": True}), encoding="utf-8")
    cli.run("demo", [str(run), "--no-serve", "--runtime", str(runtime)])
    assert json.loads((run / "demo" / "demo.json").read_text())["method"] == "self-distillation derived from FRSKD"


@pytest.mark.parametrize(
    ("method", "claim"), [("frskd", "FRSKD, feature"), pytest.param("ce", "frskd_timm", marks=pytest.mark.long)]
)
def test_a_demo_names_the_method_of_its_student(method: str, claim: str, runtime: Path, tmp_path: Path) -> None:
    facts: dict[str, Any] = {"tag": "x", "method": method, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = timm.create_model("test_resnet", num_classes=2)
    export_student(model, tmp_path / "student", input_size=(3, 32, 32), **facts)
    cli.run("demo", [str(tmp_path / "student"), "--output", str(tmp_path / "demo"), "--runtime", str(runtime)])
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["method"].startswith(claim)
    readme = (tmp_path / "demo" / "README.md").read_text()
    assert claim in readme
    assert ("FRSKD" in readme) == (method == "frskd")
    (tmp_path / "student" / "README.md").write_text(
        "---\n# mine\nlicense: mit\n---\n```bash\n# pip install timm\n```\n"
    )
    build_demo(find_exported(str(tmp_path / "student")), tmp_path / "demo", runtime=runtime)
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["title"] == "test_resnet.x"
    export_student(timm.create_model("test_resnet", num_classes=0), tmp_path / "maps", input_size=(3, 32, 32), **facts)
    four = timm.create_model("test_resnet", num_classes=2, in_chans=4)
    export_student(four, tmp_path / "four", input_size=(4, 32, 32), tag="x", mean=(0.5,) * 4, std=(0.5,) * 4)
    (tmp_path / "student" / "README.md").write_text("---\ntitle: Birds: two\n---\n# x\n")
    for folder, sentence in (
        ("maps", "has no classifier to show"), ("four", "takes 4 channels"), ("student", "is not a valid card")
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            build_demo(find_exported(str(tmp_path / folder)), tmp_path / "other", runtime=runtime)
