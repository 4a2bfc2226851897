"""Publishing to a Hub and loading from it: genuine clients, a loopback server, fresh processes."""

import hashlib
import json
import shutil
import sys
from dataclasses import replace

import huggingface_hub
import pytest
import timm
import torch
from conftest import ROOT, run_script
from hub_server import TOKEN, USER, Fault
from published import METRICS, REPO, make_student, push

from frskd_timm.errors import UserError
from frskd_timm.export.load import read_student
from frskd_train.publish.repository import Repository
from frskd_train.publish.student import push_student
from frskd_train.report.card import write_card


def run(hub, cache, *command, token="", **environment):
    """Run Python in a process whose Hub is the loopback one."""
    environment = hub.environment(cache, token) | environment
    done = run_script(sys.executable, *command, check=False, cwd=cache, **environment)
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
assert ("frskd_timm" in sys.modules) == {package} and "frskd_train.report" not in sys.modules
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

WRONG_NAMES = """
from frskd_timm.errors import UserError
from frskd_timm.segmentation import create_segmentation_student as segmentation
from frskd_train.found_student import find_exported
from frskd_train.students import default_cfg
sentences = []
for name in {names}:
    for read in (find_exported, default_cfg, lambda name: segmentation(name, num_classes=2)):
        try:
            read("hf-hub:" + name)
        except UserError as error:
            sentences.append(str(error))
print(json.dumps(sentences))
"""


def test_push_then_load_in_a_fresh_process(hub, tmp_path):
    stock = make_student(tmp_path / "stock", "resnet18_frskd", seed=1)
    new = make_student(tmp_path / "new", "wide_resnet16_2_frskd", seed=2)
    images = tmp_path / "images.pt"
    torch.save(read_student(stock).probe_images(), images)

    def expected(folder):
        with torch.inference_mode():
            return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(torch.load(images))

    cache = tmp_path / "cache"
    cache.mkdir()
    done = run(hub, cache, ROOT / "hub" / "push.py", stock, "--repo-id", REPO, token=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "every file is the same" in done.stdout
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in done.stdout
    push(hub, new, f"{USER}/new", private=True)
    older = hub.repos[REPO].history()[0]
    first = expected(stock)
    make_student(stock, "resnet18_frskd", seed=3)
    assert push(hub, stock).changed
    api = huggingface_hub.HfApi(hub.endpoint, token=TOKEN)
    api.upload_file(path_or_fileobj=b"a pickle", path_in_repo="pytorch_model.bin", repo_id=f"{USER}/new")

    # Plain timm and transformers, which have never heard of this package; then a new topology, private, with the
    # package and a token: the other weights in its repository stay there.
    names = [REPO, f"{REPO}@{older}", f"{USER}/new"]
    code = LOAD.format(package=False, names=names, images=str(images))
    code += TRANSFORMERS.format(name=REPO, images=str(images))
    code += f"import os\nos.environ['HF_TOKEN'] = {TOKEN!r}\n"
    code += LOAD.format(package=True, names=names[2:], images=str(images))
    code += f"from frskd_train.found_student import find_exported\nfind_exported('hf-hub:{USER}/new')\n"
    code += f"del os.environ['HF_TOKEN']{WRONG_NAMES.format(names=[f'{USER}/none', f'{REPO}@none'])}"
    done = run(hub, cache, "-c", code)
    assert done.returncode == 0, done.stderr
    answers, (logits, best, label), private, sentences = map(json.loads, done.stdout.splitlines()[-4:])
    torch.testing.assert_close(torch.tensor(answers[REPO]), expected(stock))
    torch.testing.assert_close(torch.tensor(answers[f"{REPO}@{older}"]), first)
    assert (torch.tensor(answers[REPO]) - first).abs().max() > 0.1
    assert answers[f"{USER}/new"] == "RepositoryNotFoundError"  # private, and no token
    torch.testing.assert_close(torch.tensor(logits), expected(stock))
    assert best.startswith("class ")
    assert label == "class 3"
    assert len(sentences) == 6
    assert all("no such repository, or it is private" in sentence for sentence in sentences[:3])
    assert all("no such revision" in sentence for sentence in sentences[3:])
    torch.testing.assert_close(torch.tensor(private[f"{USER}/new"]), expected(new))
    assert not hub.asked(r"resolve/.*pytorch_model\.bin")


def test_one_commit_and_none_without_a_change(hub, student, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
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
    write_card(folder, replace(METRICS, student={"top1": 91.25, "top5": 99.6, "loss": 0.4}))
    said: list[str] = []
    second = push(hub, folder, say=said.append)
    assert "Deleted there, because this push has no newer version: curves.png." in said
    assert second.changed
    assert len(hub.repos[REPO].history()) == 3
    assert b"91.25" in hub.files(REPO)["README.md"]
    assert "curves.png" not in hub.files(REPO)


def test_an_edited_card_is_kept_or_replaced_only_on_request(hub, student, quick_clock, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    push(hub, folder)
    assert b"huggingface.co/OWNER" not in b"".join(hub.files(REPO).values())
    edited = hub.files(REPO)["README.md"] + b"\nA note of the owner, and ![a picture](curves.png)\n"
    repo, digest = hub.repos[REPO], hashlib.sha256(edited).hexdigest()
    hub.blobs[digest] = edited
    head = repo.refs["main"]
    changed = dict.fromkeys(("README.md", "onnx/model.onnx"), digest)  # and the ONNX file of an older push
    repo.refs["main"] = repo.commit(head, "Edit on the Hub", repo.commits[head]["tree"] | changed)

    make_student(folder, "test_resnet", 64, seed=5)
    (folder / "curves.png").unlink()
    write_card(folder, METRICS)
    with pytest.raises(UserError, match=f"^README.md of {REPO} was edited .*--keep-card .*--overwrite-card .*"):
        push(hub, folder)
    hub.faults = [Fault("/commit/", "lost")]
    with pytest.raises(UserError, match="did not confirm the pull request"):  # which asks the owner, and is sent once
        push(hub, folder, create_pr=True)
    assert [ref for ref in repo.refs if ref.startswith("refs/pr/")] == ["refs/pr/1"]
    assert (repo.history()[1], hub.files(REPO)["README.md"]) == (head, edited)
    assert push(hub, folder, keep_card=True).changed
    kept = hub.files(REPO)
    assert (kept["README.md"], "curves.png" in kept, "onnx/model.onnx" in kept) == (edited, True, False)
    assert kept["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert push(hub, folder, overwrite_card=True).changed
    assert b"A note of the owner" not in hub.files(REPO)["README.md"]
    assert "curves.png" not in hub.files(REPO)
    write_card(folder, replace(METRICS, student={"top1": 91.25, "top5": 99.6, "loss": 0.4}))
    assert push(hub, folder).changed  # the card is again the one that was pushed


def test_an_edit_during_a_push_is_not_overwritten(hub, student, quick_clock, monkeypatch):
    push(hub, student)
    repo, look, digest = hub.repos[REPO], Repository.head, hashlib.sha256(b"A note of the owner").hexdigest()
    hub.blobs[digest] = b"A note of the owner"

    def edited_afterwards(self):
        found, head = look(self), repo.refs["main"]
        repo.refs["main"] = repo.commit(head, "Edit", repo.commits[head]["tree"] | {"README.md": digest})
        return found

    monkeypatch.setattr(Repository, "head", edited_afterwards)
    with pytest.raises(UserError, match="was edited on the Hub"):
        push(hub, student)
    assert hub.files(REPO)["README.md"] == b"A note of the owner"


def test_branch_private_pull_request_and_dry_run(hub, student, tmp_path):
    student, lines = shutil.copytree(student, tmp_path / "student"), []
    assert push_student(student, REPO, dry_run=True, endpoint=hub.endpoint, say=lines.append) is None
    assert "model.safetensors" in "".join(lines)
    assert "licence" not in "".join(lines)
    card = student / "README.md"
    stated = card.read_text(encoding="utf-8")
    card.write_text(stated.replace("license: mit\n", ""), encoding="utf-8")
    push_student(student, REPO, dry_run=True, endpoint=hub.endpoint, say=lines.append)
    assert "states no licence" in "".join(lines)
    card.write_text(stated, encoding="utf-8")
    assert hub.log == []

    push(hub, student, revision="trial", private=True)
    assert hub.repos[REPO].private
    assert "model.safetensors" in hub.files(REPO, "trial")
    assert hub.files(REPO) == {}
    published = push(hub, student, create_pr=True, say=lines.append)
    assert f'"hf-hub:{REPO}@{published.commit}"' in lines[-1]  # it is not on main
    assert published.pull_request.endswith("/discussions/1")
    assert hub.files(REPO, "refs/pr/1") == hub.files(REPO, "trial")
    assert hub.files(REPO) == {}

    push(hub, student, f"{USER}/public")
    with pytest.raises(UserError, match="is public"):
        push(hub, student, f"{USER}/public", private=True)
    assert len(hub.repos[f"{USER}/public"].history()) == 2
    hub.private_by_default = True
    push(hub, student, f"{USER}/default")
    assert hub.repos[f"{USER}/default"].private


def test_no_network_no_token_no_name(hub, student, tmp_path, quick_clock, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="hf auth login"):
        push(hub, student, token=None)
    with pytest.raises(UserError, match="does not accept the token"):
        push(hub, student, token="hf_wrong")
    with pytest.raises(UserError, match=r"may not write to someone/else \(403\)"):
        push(hub, student, "someone/else")
    with pytest.raises(UserError, match="OWNER/NAME"):
        push(hub, student, "no-owner")
    with pytest.raises(UserError, match="could not be reached"):
        push(hub, student, endpoint="http://127.0.0.1:9")
    assert hub.repos == {}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push(hub, student)
