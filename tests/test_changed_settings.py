"""Runs that are resumed with other settings, data or processes, and runs that start from other weights."""

import os
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pictures import picture
from runs import STATE, checkpoints, small, train_here
from safetensors.torch import load_file
from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.export.folder import read_json
from frskd_train.report.baseline import read_baseline
from frskd_train.report.metrics import read_metrics
from frskd_train.run.checkpoint import latest_checkpoint, load_state, restore
from frskd_train.run.resume import check_resume, notes_for_recipe
from frskd_train.settings import ModelSettings, Settings, declared, fields, flag
from frskd_train.settings.constraints import FIXED, FREE, PRIVATE
from frskd_train.settings.parse import parse_settings, read_recipe
from frskd_train.students import build_student, start_from
from frskd_train.tasks import choose_job

NOW = {"fingerprint": "f", "train_rows": 24, "data_mode": "memory", "global_batch": 8, "processes": 1}


DEFINING = """
decoder_channels decoder_layers distill_schedule feature_levels feature_loss filter_bias_and_bn grad_accum_steps
ignore_label img_size in_chans initial_checkpoint layer_decay linear_probe method model model_ema model_kwargs
num_classes opt opt_kwargs pretrained seed self_teacher sla task teacher_depth teacher_ema teacher_interval
teacher_repeats teacher_view teacher_width
"""


def test_what_defines_a_run_is_fixed() -> None:
    fixed = {name for name, facts in declared(Settings).items() if FIXED in facts}
    assert fixed == set(DEFINING.split())


def test_every_setting_is_refused_reported_or_free_at_resume() -> None:
    now = {field.name: "new" for _, field in fields()} | {"epochs": 9}
    for name, facts in declared(Settings).items():
        assert len({FIXED, FREE, PRIVATE} & set(facts)) <= 1
        if name == "epochs":
            continue
        state = {**STATE, **NOW, "settings": {**now, name: "old"}}
        if FIXED in facts and name != "initial_checkpoint":  # a path, whose file may have moved
            with pytest.raises(UserError, match=f"^{flag(name)} is new now but was old"):
                check_resume(state, now, NOW)
        else:
            silent = FREE in facts or PRIVATE in facts
            assert check_resume(state, now, NOW) == ([] if silent else [f"{flag(name)} is new from here on (was old)."])
    assert len(list(fields())) == len(declared(Settings))  # no name twice


@pytest.mark.parametrize(
    ("settings", "facts", "words"),
    [
        ({"train_num_samples": 9}, {"fingerprint": "g"}, "fingerprint g, was f; --train-num-samples is 9, was 8"),
        ({}, {"fingerprint": "g"}, "fingerprint g, was f"),
        ({}, {"train_rows": 23}, "started with 24 readable .* 23"),
        ({}, {"global_batch": 16, "processes": 2}, r"16 images now \(2 .* 8 .* 1 .*as before, or set --batch-size 4\."),
        ({}, {"global_batch": 6, "processes": 3}, "6 images now .* 8 .*start 2 .* --batch-size 4"),
        ({"epochs": 1}, {}, "--epochs is 1 now.* in epoch 2"),
        ({"beta": 0.0}, {}, "--beta is 0.0 now but was 100.0 in this run: .*not be switched on or off"),
        ({"initial_checkpoint": None}, {}, "--initial-checkpoint is None now but was /w.pth in this run"),
        ({"model": "resnet18"}, {}, "--model is resnet18 now but was local-dir:/w in this run"),
        ({"teacher_gradient": 0.5}, {}, "--teacher-gradient is 0.5 now but was 0.0 in this run.*switched"),
    ],
)
def test_what_may_not_change_is_refused(settings: dict[str, Any], facts: dict[str, Any], words: str) -> None:
    was = {"epochs": 3, "train_num_samples": 8, "beta": 100.0, "teacher_gradient": 0.0}
    was |= {"initial_checkpoint": "/w.pth", "model": "local-dir:/w"}
    state = {**STATE, **NOW, "epoch": 1, "step": 2, "settings": was}
    assert check_resume(state, was, NOW) == []
    with pytest.raises(UserError, match=words):
        check_resume(state, {**was, **settings}, {**NOW, **facts})


def test_a_finished_run_takes_no_settings_that_it_would_not_use() -> None:
    was = {"epochs": 3, "lr": 0.1, "dataset": "here", "log_interval": 5}
    state = {**STATE, **NOW, "epoch": 3, "step": 0, "settings": was}
    with pytest.raises(
        UserError, match=r"--lr is 0.2 now but was 0.1, and this run is finished after 3 epochs: give m"
    ):
        check_resume(state, {**was, "lr": 0.2}, NOW)
    assert len(check_resume(state, {**was, "dataset": "there", "log_interval": 6}, NOW)) == 1
    assert len(check_resume(state, {**was, "tag": "new"}, NOW)) == 0  # was not known then
    published = {**was, "license": None}  # which makes no other training
    notes = check_resume(
        {**state, "settings": published}, {**was, "lr": 0.2, "epochs": 4, "dataset": "there", "license": "mit"}, NOW
    )
    assert len(notes) == 4
    lasting_notes = notes_for_recipe(notes, {"epoch": 3, "updates": 9}, epochs=4)
    assert [note.split(":")[0] for note in lasting_notes] == ["After 9 updates"] * 2
    assert not any("there" in note for note in lasting_notes)  # a path on the author's machine is not published
    best = check_resume({**state, "settings": {**was, "epochs": 5}}, {**was, "dataset": "there"}, NOW)
    assert notes_for_recipe(best, {"epoch": 3, "updates": 9}, epochs=3) == [
        "After 9 updates: --epochs is 3 from here on (was 5)."
    ]


def test_a_resumed_run_keeps_the_statistics_of_its_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(12):
        folder = tmp_path / "data" / "train" / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(number, 30 + 3 * number, 50 - 2 * number).save(folder / f"{number}.png")
    run = tmp_path / "run"
    data = ["--dataset", tmp_path / "data", "--img-size", 24, "--train-crop-mode", "rrc", "--output-dir", run]
    train_here("--model", "test_resnet", *data, "--epochs", 1, "--batch-size", 5, "--threads", 1, "--no-amp")
    first = statistics_of(run)
    (run / "student.onnx").write_text("of the first epoch")
    train_here("--resume", run, "--epochs", 2, "--data-mode", "stream", "--workers", 0)
    assert "student.onnx: older than this student" in capsys.readouterr().out
    assert statistics_of(run) == first
    for recipe in (run / "config.yaml", run / "student" / "recipe.yaml"):
        changes = re.findall("^# (After 2 updates: .*)$", recipe.read_text(encoding="utf-8"), re.M)
        assert "After 2 updates: --epochs is 2 from here on (was 1)." in changes
    card = (run / "student" / "README.md").read_text(encoding="utf-8")
    assert "does not reproduce the training:" in card
    assert re.search("^- After 2 updates: --epochs is 2 from here on", card, re.M)
    assert "To reproduce the training" not in card
    settings = read_recipe(str(run / "config.yaml"))
    with pytest.raises(UserError, match=r"its settings changed: After 2 updates: --data-mode is"):
        read_baseline([run], settings, "top1", "frskd")
    changes = read_metrics(run / "metrics.json").changes
    assert read_baseline([run], settings, "top1", "frskd", changes=changes).runs[0]["seed"] == 42
    with pytest.raises(UserError, match="was trained on other data"):
        read_baseline([run], settings, "top1", "frskd", changes=changes, fingerprint="other")
    with pytest.raises(UserError, match="its settings changed"):
        read_baseline([run], settings, "top1", "frskd", changes=changes[:1])
    (run / "metrics.json").write_text(replace(read_metrics(run / "metrics.json"), changes=[]).to_json(), "utf-8")
    with pytest.raises(UserError, match="only the settings of the other run changed: After 2 updates"):
        read_baseline([run], settings, "top1", "frskd", changes=changes)


def test_a_copy_of_a_run_can_be_ended_during_the_warmup(places: Path, tmp_path: Path) -> None:
    """Export the student of an early epoch, as the documents say."""
    waits = ["--warmup-epochs", 1, "--distill-start", 1]
    train_here(*small(places), *waits, "--output-dir", tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    first = min((tmp_path / "copy" / "checkpoints").glob("step-*"))
    last = max((tmp_path / "copy" / "checkpoints").glob("step-*"))
    train_here("--resume", first, "--epochs", 1)
    assert {path.name for path in first.parent.iterdir()} == {first.name, f"abandoned-{last.name}"}
    exported = load_file(tmp_path / "copy" / "student" / "model.safetensors")
    saved = load_file(first / "task.safetensors")
    assert all(torch.equal(value, saved[f"student.{name}"]) for name, value in exported.items())


def statistics_of(run: Path) -> list[Any]:
    cfg = read_json(run / "student" / "config.json")["pretrained_cfg"]
    return [cfg["mean"], cfg["std"]]


def test_initial_weights_keep_the_statistics_of_their_images(whole: Path, places: Path, tmp_path: Path) -> None:
    weights = tmp_path / "alone.safetensors"
    shutil.copy(whole / "student" / "model.safetensors", weights)
    own = statistics_of(whole)[0]
    for path, mean in ((whole / "student" / "model.safetensors", own), (weights, [0.5] * 3)):  # the model's, as in timm
        flags = [*small(places), "--model", "test_resnet", "--initial-checkpoint", path]
        job = choose_job(parse_settings([*map(str, flags)]))
        data = job.load_data(job.initial_cfg())
        assert [*data.preprocessing.mean] == mean


def test_a_run_outlives_the_weights_that_it_started_from(whole: Path, places: Path, tmp_path: Path) -> None:
    weights = tmp_path / "start"
    shutil.copytree(whole / "student", weights)
    flags = [*small(places), "--model", "test_resnet", "--initial-checkpoint", weights / "model.safetensors"]
    train_here(*flags, "--epochs", 2, "--output-dir", tmp_path / "whole")
    train_here(*flags, "--epochs", 1, "--sched", "none", "--output-dir", tmp_path / "other")
    weights.rename(tmp_path / "moved")
    train_here("--resume", tmp_path / "other", "--epochs", 2)  # all weights are in the checkpoint
    moved = tmp_path / "moved" / "model.safetensors"
    train_here("--resume", tmp_path / "other", "--epochs", 3, "--initial-checkpoint", moved)
    assert statistics_of(tmp_path / "other") == statistics_of(tmp_path / "whole") == statistics_of(whole)


def test_the_student_of_a_checkpoint_can_be_initial_weights(whole: Path) -> None:
    student = timm.create_model("test_resnet", num_classes=3)
    checkpoint = latest_checkpoint(whole / "checkpoints") / "task.safetensors"  # type: ignore[operator]
    start_from(student, str(checkpoint), ["fc"])
    state = load_file(checkpoint)
    assert all(torch.equal(value, state[f"student.{name}"]) for name, value in student.state_dict().items())


def test_an_edited_card_is_kept_beside_the_run(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    train_here("--resume", run)
    assert not (run / "README.edited.md").exists()
    card = run / "student" / "README.md"
    written = card.read_text(encoding="utf-8")
    assert written == (whole / "student" / "README.md").read_text(encoding="utf-8")
    for name in ("README.edited.md", "README.edited-2.md"):
        card.write_text(f"{written}My words in {name}.\n", encoding="utf-8")
        capsys.readouterr()
        train_here("--resume", run)
        assert card.read_text(encoding="utf-8") == written
        assert (run / name).read_text(encoding="utf-8") == f"{written}My words in {name}.\n"
        assert f"yours is kept as {run / name}" in capsys.readouterr().out


def test_changed_numbers_of_the_optimizer_are_honoured(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1)
    module = nn.Linear(4, 3)
    changed = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.7, weight_decay=0.1)
    restore(tmp_path / "step-00000001", load_state(tmp_path / "step-00000001"), {"task": module}, changed)
    assert [changed.param_groups[0][key] for key in ("lr", "momentum", "weight_decay")] == [0.5, 0.7, 0.1]
    assert changed.state[module.weight]["momentum_buffer"].abs().sum() > 0


CHECKPOINTS: dict[str, tuple[Any, str | None]] = {  # what a file holds, and the key words of its refusal
    "module.pth.tar": (lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "args": Namespace()}, None),
    "compiled.pth": (lambda w: {"state_dict": {f"_orig_mod.{k}": v for k, v in w.items()}}, None),
    "model.pth": (lambda w: {"model": w, "optimizer": {}}, None),
    "ema.pth.tar": (lambda w: {"state_dict": {k: v * 0 for k, v in w.items()}, "state_dict_ema": w}, None),
    "code.pth": (lambda w: {"state_dict": w, "code": os.system}, "executing code"),
    "list.pth": (lambda w: [1], "executing code"),
    "part.pth": (lambda w: {k: v for k, v in w.items() if "conv1" not in k}, "missing"),
    "more.pth": (lambda w: {**w, "layer4.1.conv1.weight": w["conv1.0.weight"]}, "larger network .* layer4.1.conv1"),
    "nan.pth": (lambda w: {k: v * float("nan") for k, v in w.items()}, "not finite"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_initial_weights_are_read_as_timm_does_or_refused_before_training(name: str, tmp_path: Path) -> None:
    content, refusal = CHECKPOINTS[name]
    weights = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save(content(weights), tmp_path / name)
    settings = ModelSettings(model="test_resnet", initial_checkpoint=str(tmp_path / name))
    if refusal is None:
        found = build_student(settings, {}, 5, (3, 32, 32)).state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in found.items() if not key.startswith("fc."))
    else:
        with pytest.raises(UserError, match=rf"{name}.*{refusal}") as caught:
            build_student(settings, {}, 5, (3, 32, 32))
        assert not re.search(r"weights_only|\x1b", str(caught.value))
