"""A damaged `config.json` ends in a result or one sentence, whoever reads it: load, validate, push or train."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import METRICS, REPO, make_student
from runs import evaluate_here

from frskd_timm.errors import UserError
from frskd_timm.export.folder import replacing
from frskd_timm.export.load import load_student
from frskd_timm.export.student import export_segmentation
from frskd_timm.segmentation import create_segmentation_student
from frskd_train.cli.validate import chosen_data, folder_name
from frskd_train.found_student import find_exported, load_for_evaluation
from frskd_train.publish.student import push_student
from frskd_train.scoring.scores import Scorer
from frskd_train.settings import EvaluationSettings, FitSettings, ScoredDataSettings
from frskd_train.students import default_cfg

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40),
    st.sampled_from([10**5, 10**9, 10**30, -(10**9), "", "abc", "resnet18"]),
    st.floats(), st.lists(st.one_of(st.integers(-1, 300), st.floats(0, 1), st.text(max_size=2)), max_size=4),
    st.dictionaries(st.sampled_from(["img_size", "num_classes", "depths", "x"]), st.integers(-1, 10**9), max_size=2),
)  # fmt: skip


def paths(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the path of every key of nested objects and of every list item."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in ((*path, key), *paths(item, (*path, key)))]


def damaged(config: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    config = json.loads(json.dumps(config))
    for place, value in changes:
        *parents, last = (found := paths(config))[place % len(found)]
        target = config
        for key in parents:
            target = target[key]
        target[last] = value
    return config


@pytest.fixture(scope="module", params=["classifier", "segmenter"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(f"damaged-{request.param}") / "student"
    if request.param == "classifier":
        return make_student(place, "test_resnet", 32)
    torch.manual_seed(0)
    return export_segmentation(create_segmentation_student("test_resnet", 3, channels=8, layers=1), place)


@given(changes=st.lists(st.tuples(st.integers(0, 10**6), VALUES), min_size=1, max_size=2))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_damage(folder: Path, places: Path, changes: list[tuple[int, Any]]) -> None:
    data = ["--dataset", places / ("masks" if "segmenter" in str(folder) else "data"), "--threads", 1]
    good = (folder / "config.json").read_bytes()
    try:
        (folder / "config.json").write_text(json.dumps(damaged(json.loads(good), changes)))
        outcomes = []
        for use in (
            lambda: push_student(folder, REPO, dry_run=True, say=lambda _: None),
            lambda: default_cfg(f"local-dir:{folder}"),
            lambda: evaluate_here("--model", folder, *data),
        ):
            try:
                use()
                outcomes.append("")
            except UserError as error:
                outcomes.append(str(error))
        assert all(len(said.splitlines()) <= 1 for said in outcomes)
    finally:
        (folder / "config.json").write_bytes(good)


@pytest.mark.parametrize(
    "change",
    [
        {"pretrained_cfg": []}, {"pretrained_cfg": "x"}, {"crop_pct": "1"}, {"mean": "0.5"}, {"interpolation": "best"},
        {"model_args": [1]}, {"input_size": [3, -32, 32]}, {"input_size": [3, 10**6, 10**6]}, {"num_classes": 10**12},
        {"model_args": {"in_chans": 10**6}}, {"std": [0.0, 0.2, 0.2]}, {"std": [float("nan")] * 3},
    ],
    ids=str,
)  # fmt: skip
def test_validate_names_what_is_wrong(student: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    config = json.loads((folder / "config.json").read_text())
    ((key, value),) = change.items()
    (config if key in config else config["pretrained_cfg"])[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json") as caught:
        evaluate_here("--model", folder, "--threads", 1)
    assert len(str(caught.value).splitlines()) == 1


def test_an_interrupted_replacement_is_found_again(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    folder.rename(tmp_path / ".student.previous")  # killed between the two renames
    load_student(folder)
    folder.rename(tmp_path / ".student.previous")
    with pytest.raises(ZeroDivisionError), replacing(folder):
        raise ZeroDivisionError
    load_student(folder)
    with replacing(folder) as aside:
        shutil.copytree(student, aside, dirs_exist_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    monkeypatch.chdir(folder)
    (tmp_path / "config.yaml").write_text("dataset:\n  name: of another program\n")
    assert (find_exported(".").name, find_exported(".").run) == ("student", None)


def test_a_folder_does_not_hide_a_model_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18_frskd").mkdir()
    model, run = load_for_evaluation("resnet18_frskd")
    assert (model.num_classes, run) == (10, None)


def test_the_calibration_split_of_a_run_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(METRICS.to_json())
    (tmp_path / "config.yaml").write_text("dataset: data\ncalibration_split: test\n")
    assert chosen_data(ScoredDataSettings(), tmp_path)[0].calibration_split == "test"
    assert chosen_data(ScoredDataSettings(val_split="test"), tmp_path)[0].calibration_split is None


def test_the_ignored_labels_of_a_run_are_ignored_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(METRICS.to_json())
    (tmp_path / "config.yaml").write_text("dataset: data\nignore_label: [0, 7]\n")
    assert chosen_data(ScoredDataSettings(), tmp_path)[0].ignore_label == (0, 7)
    assert chosen_data(ScoredDataSettings(ignore_label=(3,)), tmp_path)[0].ignore_label == (3,)
    assert chosen_data(ScoredDataSettings("other"), tmp_path)[0].ignore_label is None


def test_where_validate_writes(places: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in (whole / "student").rglob("*") if path.is_file()}
    data = ["--dataset", places / "data", "--threads", 1]
    evaluate_here("--model", whole / "student", *data)
    written = {path.name for path in (whole / "evaluation-data").iterdir()}
    assert written == {"evaluation.json", "per_class.csv", "confusion.csv"}
    fit = FitSettings(img_size=(24,), use_train_size=True)
    chosen = EvaluationSettings(
        str(whole), ScoredDataSettings(str(places / "data"), val_split="a/b"), fit, corruptions=True
    )
    assert folder_name(chosen, "data", whole) == "evaluation-data-a-b-img_size-24-use_train_size-corruptions"
    (tmp_path / "fold 1" / "test").mkdir(parents=True)
    other = EvaluationSettings(str(whole), ScoredDataSettings(str(tmp_path / "fold 1" / "test"), val_fraction=0.5))
    assert folder_name(other, "test", whole) == "evaluation-fold-1-test-val_fraction-0.5"
    own = EvaluationSettings(str(whole), ScoredDataSettings(str(places / "data"), target_key="fine label"))
    assert folder_name(own, "data", whole) == "evaluation-data-target_key-fine-label"
    mapped = ScoredDataSettings(str(places / "data"), class_map="names.txt", calibration_split="val")
    assert folder_name(EvaluationSettings(str(whole), mapped), "data", whole).endswith("split-val-class_map-names-txt")
    (whole / "evaluation-data" / "confusion.png").touch()  # of an earlier evaluation with pictures
    evaluate_here("--model", whole / "student", *data)
    assert {path.name for path in (whole / "evaluation-data").iterdir()} == written
    shutil.rmtree(whole / "evaluation-data")
    assert {path: path.read_bytes() for path in (whole / "student").rglob("*") if path.is_file()} == before
    (tmp_path / "file").touch()
    monkeypatch.setattr(Scorer, "evaluate", None)  # these are refused before anything is scored
    for output in (whole / "student", whole / "student" / "scores", tmp_path / "file" / "scores.json"):
        with pytest.raises(UserError, match=r"--output"):
            evaluate_here("--model", whole, *data, "--output", output)
    monkeypatch.undo()
    evaluate_here("--model", whole, *data, "--output", tmp_path / "new" / "scores.json")
    assert json.loads((tmp_path / "new" / "scores.json").read_text())["images"] == 9


def test_precision_and_batches_of_a_validation_are_those_asked_for(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    look = lambda self, *_, **__: seen.append((self.options["batch_size"], self.accelerator.mixed_precision))
    monkeypatch.setattr(Scorer, "evaluate", look)
    for flags in ([], ["--batch-size", 7, "--amp", "--amp-dtype", "bfloat16"]):
        with pytest.raises(UserError, match="not scored"):
            evaluate_here("--model", whole, *flags)
    assert seen == [(256, "no"), (7, "bf16")]
    with pytest.raises(UserError, match="needs a GPU"):
        evaluate_here("--model", whole, "--amp", "--amp-dtype", "float16")
