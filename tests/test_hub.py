"""Publishing to a Hub and loading from it: genuine clients, a loopback server, faults."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml
from hub_server import TOKEN, USER, Fault, LoopbackHub
from huggingface_hub import ModelCard, constants
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from frskd_timm.errors import UserError
from frskd_timm.export import export_student
from frskd_timm.exported import probe_images, read_config
from frskd_timm.hub.card import eval_result_entries, model_card, write_card
from frskd_timm.hub.publish import push_student
from frskd_timm.hub.zoo import read_results, results_row, zoo_card

ROOT = Path(__file__).parents[1]
REPO = f"{USER}/student"
METRICS = {
    "schema": 1,
    "task": "classification",
    "method": "frskd",
    "model": "resnet18_frskd",
    "architecture": "resnet18",
    "tag": "garments",
    "dataset": {
        "name": "Kleidungsstücke",
        "id": "someone/garments",
        "split": "test",
        "whole_split": True,
        "license": "mit",
        "homepage": "https://example.org/garments",
        "train_images": 4000,
        "val_images": 1000,
        "num_classes": 10,
    },
    "student": {"top1": 88.1, "top5": 99.6, "loss": 0.41},
    "self_teacher": {"top1": 88.4, "top5": 99.7, "loss": 0.40},
    "weights": "ema",
    "param_count": 11181642,
    "img_size": 28,
    "epochs": 20,
    "epoch": 20,
    "seed": 42,
    "seeds": [42, 43],
    "seconds": 212.0,
    "images_per_second": 371.0,
    "machine": {"device": "cpu", "name": "a machine", "cores": 2, "processes": 2, "precision": "bf16"},
    "versions": {"frskd_timm": "0.1.0", "torch": "2.6", "timm": "1.0.31"},
    "baseline": {"method": "ce", "runs": [{"seed": 42, "top1": 87.0}, {"seed": 43, "top1": 87.2}]},
}


def make_student(folder: Path, name: str, size: int = 32, seed: int = 0) -> Path:
    """A student with random weights everywhere, its card, pictures and recipe."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=10)
    for parameter in model.parameters():  # heads start at zero, which would make every comparison easy
        torch.nn.init.normal_(parameter, std=0.05)

    def finish(aside: Path) -> None:
        for picture in ("attention.png", "curves.png"):
            Image.new("RGB", (8, 8), (seed, 0, 0)).save(aside / picture)
        (aside / "recipe.yaml").write_text("epochs: 20\n")
        write_card(aside, METRICS)

    labels = [f"class {index}" for index in range(10)]
    data = {"input_size": (3, size, size), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return export_student(model, folder, tag="garments", label_names=labels, license="mit", finish=finish, **data)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_student(tmp_path_factory.mktemp("small") / "student", "test_resnet", 64)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # only the loopback Hub is asked
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def quick_clock(monkeypatch):
    """Waiting takes a hundredth of its time."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 100))


def push(hub, folder, repo_id=REPO, **options):
    lines = []
    options = {"token": TOKEN, "endpoint": hub.endpoint, "say": lines.append} | options
    published = push_student(folder, repo_id, **options)
    assert TOKEN not in "".join(lines)
    return published


def run(hub, cache, *command, **environment):
    """A fresh process whose Hub is the loopback one; it may not see any cache or login of this machine."""
    names = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=inherited | names | environment,
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


LOAD = """
import json, sys, torch
if {package}: import frskd_timm
import timm
answers = {{}}
for name in {names}:
    try:
        model = timm.create_model("hf-hub:" + name, pretrained=True).eval()
        with torch.inference_mode():
            answers[name] = model(torch.load({images!r})).tolist()
    except Exception as error:
        answers[name] = type(error).__name__
assert ("frskd_timm" in sys.modules) == {package} and "frskd_timm.hub" not in sys.modules
print(json.dumps(answers))
"""

TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForImageClassification, pipeline
from PIL import Image
model = AutoModelForImageClassification.from_pretrained({name!r}).eval()
with torch.inference_mode():
    logits = model(torch.load({images!r})).logits.tolist()
best = pipeline("image-classification", model={name!r})(Image.new("RGB", (64, 64)))[0]["label"]
assert "frskd_timm" not in sys.modules
print(json.dumps([logits, best, model.config.id2label[3]]))
"""


def test_push_then_load_in_fresh_processes(hub, tmp_path):
    stock = make_student(tmp_path / "stock", "resnet18_frskd", seed=1)
    new = make_student(tmp_path / "new", "wide_resnet16_2_frskd", seed=2)
    images = tmp_path / "images.pt"
    torch.save(probe_images(read_config(stock)), images)

    def expected(folder):
        with torch.inference_mode():
            return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(torch.load(images))

    cache = tmp_path / "cache"
    cache.mkdir()
    script = ROOT / "hub" / "push.py"
    done = run(hub, cache, script, stock, "--repo-id", REPO, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "every file is the same" in done.stdout
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in done.stdout
    push(hub, new, f"{USER}/new", private=True)
    older = hub.repos[REPO].history()[0]
    first = expected(stock)
    make_student(stock, "resnet18_frskd", seed=3)
    assert push(hub, stock).changed

    # plain timm, which has never heard of this package
    names = [REPO, f"{REPO}@{older}", f"{USER}/new"]
    done = run(hub, cache, "-c", LOAD.format(package=False, names=names, images=str(images)))
    answers = json.loads(done.stdout)
    torch.testing.assert_close(torch.tensor(answers[REPO]), expected(stock))
    torch.testing.assert_close(torch.tensor(answers[f"{REPO}@{older}"]), first)
    assert (torch.tensor(answers[REPO]) - first).abs().max() > 0.1
    assert answers[f"{USER}/new"] == "RepositoryNotFoundError"  # private, and no token

    # a new topology, private, with the package and a token
    done = run(hub, cache, "-c", LOAD.format(package=True, names=names[2:], images=str(images)), HF_TOKEN=TOKEN)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)[f"{USER}/new"]), expected(new))

    done = run(hub, cache, "-c", TRANSFORMERS.format(name=REPO, images=str(images)))
    logits, best, label = json.loads(done.stdout)
    torch.testing.assert_close(torch.tensor(logits), expected(stock))
    assert best.startswith("class ")
    assert label == "class 3"

    # offline, from the cache, with the server gone
    hub.stop()
    done = run(hub, cache, "-c", LOAD.format(package=False, names=names[:1], images=str(images)), HF_HUB_OFFLINE="1")
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)[REPO]), expected(stock))


def test_one_commit_and_none_without_a_change(hub, small, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(small, folder)
    (folder / "optimizer.bin").write_bytes(b"not the student")
    first = push(hub, folder, commit_message="first")
    files = hub.files(REPO)
    names = {"model.safetensors", "config.json", "README.md", "attention.png", "curves.png", "recipe.yaml"}
    assert set(files) == names | {".eval_results/frskd.yaml"}
    assert b"OWNER/NAME" not in files["README.md"]
    assert f'"hf-hub:{REPO}"'.encode() in files["README.md"]
    assert len(hub.repos[REPO].history()) == 2  # the Hub's own first one, and ours
    assert not push(hub, folder).changed
    assert hub.repos[REPO].history()[0] == first.commit

    # better figures and no curves any more: one commit changes the card and takes the picture away
    (folder / "curves.png").unlink()
    write_card(folder, METRICS | {"student": {"top1": 91.25}})
    second = push(hub, folder)
    assert second.changed
    assert len(hub.repos[REPO].history()) == 3
    assert b"91.25" in hub.files(REPO)["README.md"]
    assert "curves.png" not in hub.files(REPO)


def test_branch_private_pull_request_and_dry_run(hub, small):
    lines = []
    assert push_student(small, REPO, dry_run=True, endpoint=hub.endpoint, say=lines.append) is None
    assert "model.safetensors" in "".join(lines)
    assert hub.log == []

    push(hub, small, revision="trial", private=True)
    assert hub.repos[REPO].private
    assert "model.safetensors" in hub.files(REPO, "trial")
    assert hub.files(REPO) == {}
    published = push(hub, small, create_pr=True)
    assert published.pull_request.endswith("/discussions/1")
    assert hub.files(REPO, "refs/pr/1") == hub.files(REPO, "trial")
    assert hub.files(REPO) == {}

    push(hub, small, f"{USER}/public")
    with pytest.raises(UserError, match="is public"):
        push(hub, small, f"{USER}/public", private=True)
    assert len(hub.repos[f"{USER}/public"].history()) == 2


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("GET /api/models", 401, 99), "does not accept the token"),
        (Fault("commit", 403), "write permission"),
        (Fault("preupload", 404), "was not found"),
        (Fault("repos/create", 409), None),
        (Fault("PUT", 413, 99), "half precision"),
        (Fault("commit", 429, 2, {"Retry-After": "3"}), None),
        (Fault("commit", 429, 99, {"Retry-After": "4000"}), "wait 4000"),
        (Fault("objects/batch", 500, 2), None),
        (Fault("PUT", 503, 3), None),
        (Fault("commit", 503, 3), None),
        (Fault("commit", 500, 99), "trouble of its own"),
        (Fault("validate-yaml", 502, 1), None),
        (Fault("PUT", "cut", 2), None),
        (Fault("commit", "cut", 2), None),
        (Fault("commit", "lost", 1), None),
        (Fault("PUT", "corrupt", 1), None),
        (Fault("GET .*safetensors", "corrupt", 1), None),
        (Fault("GET .*safetensors", "corrupt", 99), "not what was sent"),
        (Fault("GET .*safetensors", "half", 1), None),
        (Fault("PUT", "stop"), "cannot be reached"),
        (Fault("commit", "stop"), "cannot be reached"),
    ],
    ids=lambda value: f"{value.pattern} {value.what} x{value.times}" if isinstance(value, Fault) else "",
)
def test_fault(hub, small, quick_clock, fault, sentence):
    hub.faults = [fault]
    if sentence is None:
        assert push(hub, small).changed
        assert len(hub.repos[REPO].history()) == 2
        assert fault.times == 0
        return
    with pytest.raises(UserError, match=sentence) as caught:
        push(hub, small)
    assert TOKEN not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert REPO not in hub.repos or set(hub.files(REPO)) in ({*()}, whole(small))
    if fault.what != "stop":
        hub.faults = []
        push(hub, small)
        assert len(hub.repos[REPO].history()) == 2


def whole(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names - {"optimizer.bin"}


def test_no_network_no_token_no_name(hub, small, tmp_path, quick_clock, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="hf auth login"):
        push(hub, small, token=None)
    with pytest.raises(UserError, match="does not accept the token"):
        push(hub, small, token="hf_wrong")
    with pytest.raises(UserError, match=r"may not write to someone/else \(403\)"):
        push(hub, small, "someone/else")
    with pytest.raises(UserError, match="OWNER/NAME"):
        push(hub, small, "no-owner")
    with pytest.raises(UserError, match="cannot be reached"):
        push(hub, small, endpoint="http://127.0.0.1:9")
    assert hub.repos == {}
    script = ROOT / "hub" / "push.py"
    done = run(hub, tmp_path, script, small, "--repo-id", REPO, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert re.fullmatch(r"error: HF_HUB_OFFLINE is set.*\n", done.stderr)


def damage_weights(change):
    def damage(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_weights(lambda s: s.update({"self_teacher.head.weight": torch.zeros(2)})), "self_teacher.head.weight"),
        (damage_weights(lambda s: s.pop("fc.bias")), "no weights for keys.*fc.bias"),
        (damage_weights(lambda s: s["fc.bias"].fill_(float("nan"))), "not finite in fc.bias"),
        (damage_weights(lambda s: s.update({"fc.bias": torch.zeros(11)})), "shapes"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), "is damaged"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text('{"architecture": "no_such", "pretrained_cfg": {}}'), "no_such"),
        (lambda f: (f / "README.md").unlink(), "write the card first"),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "not a valid card"),
        (lambda f: (f / "README.md").write_text("# no metadata"), "library_name"),
        (lambda f: (f / "curves.png").unlink(), "shows curves.png"),
        (lambda f: (f / "recipe.yaml").write_text(f"token: {TOKEN.replace('_', '_Z')}"), "Hugging Face token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_that_is_not_in_order_stays_here(hub, small, tmp_path, damage, sentence):
    folder = tmp_path / "student"
    shutil.copytree(small, folder)
    damage(folder)
    with pytest.raises(UserError, match=sentence):
        push(hub, folder)
    assert hub.log == []


def test_card_says_what_the_metrics_say(small):
    card = ModelCard.load(small / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "mit"
    assert data["library_name"] == "timm"
    assert data["pipeline_tag"] == "image-classification"
    assert data["datasets"] == ["someone/garments"]
    assert data["base_architecture"] == "test_resnet"
    scores = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert scores == {"Top-1 accuracy (%)": 88.1, "Top-5 accuracy (%)": 99.6}
    for text in (
        "88.10",
        "88.40",
        "87.10 ± 0.14",
        "+1.00 points",
        "2 seeds",
        "4,000 training images",
        "Kleidungsstücke",
    ):
        assert text in card.text
    entry = yaml.safe_load((small / ".eval_results" / "frskd.yaml").read_text())[0]
    assert entry["dataset"] == {"id": "someone/garments", "task_id": "default"}
    assert entry["value"] == 88.1
    sample = METRICS | {"dataset": METRICS["dataset"] | {"whole_split": False}}
    assert eval_result_entries(sample) == []  # its scores are not the data set's
    result = model_card(sample, read_config(small)).data.eval_results[0]
    assert (result.dataset_type, result.dataset_name) == ("Kleidungsstücke", "Kleidungsstücke")


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    yield path


@given(
    gone=st.sets(st.sampled_from([path for path in leaves(METRICS) if path]), max_size=40),
    null=st.booleans(),
    names=st.sets(st.sampled_from(["attention.png", "curves.png", "recipe.yaml"])),
    license=st.sampled_from([None, "mit", "My own licence, v2", "CC-BY-4.0"]),
)
@settings(max_examples=60, deadline=None)
def test_card_leaves_out_what_is_missing(gone, null, names, license):
    metrics = json.loads(json.dumps(METRICS))
    for *parents, last in sorted(gone, key=len, reverse=True):
        target = metrics
        for key in parents:
            target = target[key]
        target.pop(last)
        if null:
            target[last] = None
    config = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {"license": license}}
    text = str(model_card(metrics, config, names)).encode().decode("utf-8")
    assert not re.search(r"\b(None|nan|Undefined|null)\b", text)
    assert not re.search(r"^#+ .*\n+(#|\Z)", text, re.MULTILINE), "a heading without text"
    assert not re.search(r"^\|.*\n\n\|", text, re.MULTILINE), "a table in two pieces"
    assert not re.search(r"\n{3}|\s\.\s| \(\)|: \n\n#", text)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "timm"
    assert ("model-index" in header) == bool(ModelCard(text).data.eval_results)
    if ("student",) not in gone and ("student", "top1") not in gone:
        assert "88.10" in text
    for picture in names - {"recipe.yaml"}:
        assert (f"({picture})" in text) or picture == "curves.png"


def test_zoo_card_is_up_to_date_and_promises_nothing_else():
    rows = read_results()
    assert str(zoo_card(rows)) == (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
    listed = {row["model"] for row in rows}
    assert listed == set(timm.list_pretrained("*frskd*"))
    row = results_row(METRICS)
    assert (row["model"], row["top1_err"], row["baseline_top1"]) == ("resnet18_frskd.garments", "11.90", "87.10")
    text = zoo_card([row]).text
    assert "| `resnet18_frskd` | `resnet18` | 11,689,512 | yes | `garments` |" in text
    assert "| `resnet18_frskd.garments` | Kleidungsstücke | 28 | 11.18 | 20 | 88.10 | 99.60 | 87.10 |" in text


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200))
def test_random_faults_never_publish_a_mixture(hub, small, tmp_path, quick_clock, seed):
    """An old version stands; a new one is pushed through a random sequence of faults, then once more without."""
    draw = random.Random(seed)
    push(hub, small)
    old = hub.files(REPO)
    folder = tmp_path / "student"
    make_student(folder, "test_resnet", 64, seed=seed + 1)
    hub.faults = [
        Fault(
            draw.choice(["GET /api", "HEAD|GET /tester", "validate", "preupload", "batch", "PUT", "/commit/", ""]),
            draw.choice([429, 500, 502, 503, "cut", "lost", "half", "corrupt"] * 3 + [401, 403, 404, 409, 412, 413]),
            draw.randint(1, 4),
            {"Retry-After": str(draw.randint(0, 5))} if draw.random() < 0.3 else {},
        )
        for _ in range(draw.randint(1, 4))
    ]
    sentence = ""
    try:
        push(hub, folder)
    except UserError as error:
        sentence = str(error)
    assert len(sentence.splitlines()) <= 1
    assert TOKEN not in sentence
    between = hub.files(REPO)
    hub.faults = []
    push(hub, folder)
    new = hub.files(REPO)
    assert between == new or (between == old and sentence)
    assert new["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(hub.repos[REPO].history()) == 3
