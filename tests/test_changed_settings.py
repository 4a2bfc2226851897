"""A run that goes on with other settings, data or processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import STATE, checkpoints
from torch import nn

from frskd_timm.errors import UserError
from frskd_train import parse
from frskd_train import settings as settings_module
from frskd_train.checkpoint import load_state, restore
from frskd_train.errors import SettingsError
from frskd_train.run_state import _FIXED, _FREE, check_resume


def test_every_setting_is_refused_said_or_free_at_resume() -> None:
    names = [field.name for _, field in parse.fields()]
    assert len(names) == len(set(names))
    assert set(_FIXED) | set(_FREE) <= set(names)
    assert not set(_FIXED) & set(_FREE)
    now = dict.fromkeys(names, "new") | {"epochs": 9}
    for name in set(names) - {"epochs"}:
        state = {**STATE, "settings": {**now, name: "old"}}
        facts = {"fingerprint": "f", "train_rows": 1, "data_mode": "memory", "global_batch": 8, "processes": 1}
        flag = parse.flag(name)
        if name in _FIXED:
            with pytest.raises(UserError, match=f"^{flag} is new now but was old"):
                check_resume(state, now, facts)
        else:
            said = check_resume(state, now, facts)
            assert said == ([] if name in _FREE else [f"{flag} is new from here on (was old)"])


@pytest.mark.parametrize(
    ("settings", "facts", "words"),
    [
        ({"train_num_samples": 9}, {"fingerprint": "g"}, "fingerprint g, was f; --train-num-samples is 9, was 8"),
        ({}, {"fingerprint": "g"}, "fingerprint g, was f"),
        ({}, {"train_rows": 23}, "23 training images now but were 24"),
        ({}, {"global_batch": 16, "processes": 2}, r"16 images now \(2 process\(es\)\) but took 8; set --batch-size 4"),
        ({"epochs": 1}, {}, "--epochs is 1 now, but this run is in epoch 2"),
    ],
)
def test_what_may_not_change_is_refused(settings: dict[str, Any], facts: dict[str, Any], words: str) -> None:
    was = {"epochs": 3, "train_num_samples": 8}
    state = {**STATE, "epoch": 1, "step": 2, "train_rows": 24, "data_mode": "memory", "settings": was}
    now = {"fingerprint": "f", "train_rows": 24, "data_mode": "memory", "global_batch": 8, "processes": 1}
    assert check_resume(state, was, now) == []
    with pytest.raises(UserError, match=words):
        check_resume(state, {**was, **settings}, {**now, **facts})


def test_changed_numbers_of_the_optimizer_are_honoured(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1)
    module = nn.Linear(4, 3)
    changed = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.7, weight_decay=0.1)
    restore(tmp_path / "step-00000001", load_state(tmp_path / "step-00000001"), {"task": module}, changed)
    assert [changed.param_groups[0][key] for key in ("lr", "momentum", "weight_decay")] == [0.5, 0.7, 0.1]
    assert changed.state[module.weight]["momentum_buffer"].abs().sum() > 0


def test_recipes_of_older_versions_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {field.name for _, field in parse.fields()}
    assert set(settings_module.RENAMED.values()) <= names
    assert not set(settings_module.RENAMED) & names
    (tmp_path / "old.yaml").write_text("learning-rate: 0.3\n")
    with pytest.raises(SettingsError, match="unknown setting 'learning-rate'"):
        parse.read_recipe(str(tmp_path / "old.yaml"))
    monkeypatch.setitem(settings_module.RENAMED, "learning_rate", "lr")
    assert parse.read_recipe(str(tmp_path / "old.yaml")).optimizer.lr == 0.3
    facts = {"fingerprint": "f", "train_rows": 1, "data_mode": "memory", "global_batch": 8, "processes": 1}
    state = {**STATE, "settings": {"learning_rate": 0.1}}
    assert check_resume(state, {"lr": 0.3, "epochs": 2}, facts) == ["--lr is 0.3 from here on (was 0.1)"]
