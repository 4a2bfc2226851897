"""Model cards say what the metrics say, and leave out what is missing."""

import copy
import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from published import EVALUATION, METRICS

from frskd_timm.cost import cost
from frskd_timm.errors import UserError
from frskd_timm.export.load import ExportedClassifier, read_student
from frskd_timm.models import exported_name
from frskd_timm.models._pretrained import FOLDER
from frskd_train.report.baseline import Gain, read_baseline
from frskd_train.report.card import eval_result_entries, hub_license, model_card
from frskd_train.report.metrics import InitialWeights, Metrics, SeedRuns, read_metrics
from frskd_train.settings import Settings
from frskd_train.settings.parse import parse_settings
from frskd_train.settings.recipe import write_recipe
from frskd_train.tasks import choose_job
from tools.table_files import read
from tools.zoo import RESULTS, results_row, waiting, zoo_card


def test_the_code_in_a_card_runs(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 70)).save("image.png")
    card = (student / "README.md").read_text(encoding="utf-8")
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL)[:3]:  # the fourth is of transformers
        exec(block.replace("hf-hub:OWNER/NAME", f"local-dir:{student}"), scope)
    assert scope["embedding"].shape == (1, scope["embedder"].num_features)
    assert scope["features"].ndim == 4
    assert scope["finetuned"].num_classes == 5


@pytest.mark.parametrize(
    ("name", "size", "gmacs", "activations"),
    [
        ("resnet18", 224, 1.8, 2.5),
        ("vit_small_patch16_224", 224, 4.6, 11.9),
        ("efficientnet_b0", 224, 0.4, 6.7),
        ("cait_xxs24_224", 224, 2.5, 20.3),
    ],
)
def test_cost_is_that_of_timms_cards(name, size, gmacs, activations):
    with torch.device("meta"):
        network, image = timm.create_model(name).eval(), torch.empty(1, 3, size, size)
    _, multiply_adds, outputs = cost(network, image)
    assert [round(multiply_adds / 1e9, 1), round(outputs / 1e6, 1)] == [gmacs, activations]
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_cost_is_the_same_on_every_device():
    network, image = timm.create_model("test_vit").eval(), torch.empty(1, 3, 64, 64)
    assert cost(network, image) == cost(copy.deepcopy(network).to("meta"), image.to("meta"))


def test_card_names_the_weights_that_training_started_from(student):
    for initial, sentence in (
        (
            InitialWeights("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
            "[resnet18.a1_in1k](https://huggingface.co/timm/",
        ),
        (InitialWeights("w.pth"), "the weights `w.pth`."),
    ):
        card = model_card(replace(METRICS, initial=initial), read_student(student))
        assert f"Training started from {sentence}" in card.text
        assert card.data.base_model == initial.hub_id
    text = model_card(METRICS, read_student(student)).text
    assert "a self-teacher refines the network's feature maps" in text
    assert "refines" not in model_card(replace(METRICS, by_second_head=True), read_student(student)).text
    for row in ("Started from | random weights", "Multiply-adds (GMACs) | 1.81", "Activations (M) | 2.48"):
        assert f"| {row} |" in text
    for flags, found in (
        ([], None),
        (["--model", "resnet18", "--pretrained"], InitialWeights("resnet18.a1_in1k", "timm/resnet18.a1_in1k")),
        (["--model", "resnet18_frskd", "--pretrained"], InitialWeights("resnet18_frskd.fashion_mnist")),
        (["--model", f"local-dir:{student}"], InitialWeights("test_resnet.garments")),
        (["--initial-checkpoint", "/home/me/w.pth"], InitialWeights("w.pth")),
        (
            ["--task", "segmentation", "--pretrained"],
            InitialWeights("resnet10t.c3_in1k", "timm/resnet10t.c3_in1k", "backbone"),
        ),
    ):
        assert choose_job(parse_settings(flags)).initial_weights() == found


@pytest.mark.parametrize(
    ("license", "found"),
    [
        ("Apache 2.0", {"license": "apache-2.0"}),
        ("MIT License", {"license": "mit"}),
        ("CC BY 4.0", {"license": "cc-by-4.0"}),
        ("gemma", {"license": "gemma"}),
        ("Apache License 2.0", {"license": "apache-2.0"}),
        ("GPLv3", {"license": "gpl-3.0"}),
        ("ODbL", {"license": "odbl"}),
        ("Apache License, Version 2.0", {"license": "apache-2.0"}),
        ("CC0", {"license": "cc0-1.0"}),
        ("Proprietary", {"license": "other", "license_name": "proprietary"}),
        ("GPL-3.0-or-later", {"license": "other", "license_name": "gpl-3.0-or-later"}),
        ("My own terms", {"license": "other", "license_name": "my-own-terms"}),
        (None, {"license": None}),
    ],
)
def test_a_licence_gets_the_hubs_id(license: str | None, found: dict[str, str | None]) -> None:
    assert hub_license(license) == found


def test_a_card_names_the_library_that_registers_the_architecture() -> None:
    for name, library in (("resnet18_frskd", "timm"), ("wide_resnet16_2_frskd", "frskd-timm")):
        config = {"architecture": exported_name(name), "num_classes": 10, "pretrained_cfg": {}}
        assert ExportedClassifier(Path("student"), config).libraries[0] == library


def test_card_says_what_the_metrics_say(student):
    card = ModelCard.load(student / "README.md")
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
    entry = yaml.safe_load((student / ".eval_results" / "frskd.yaml").read_text())[0]
    assert entry["dataset"] == {"id": "someone/garments", "task_id": "default"}
    assert (entry["value"], entry["date"]) == (88.1, METRICS.date)
    sources = {entry["source"]["name"], card.data.eval_results[0].source_name}
    assert sources == {f"frskd_timm 0.1.0, {METRICS.date}"}
    sample = replace(METRICS, dataset=replace(METRICS.dataset, whole_split=False))
    assert eval_result_entries(sample) == []  # its scores are not the data set's
    result = model_card(sample, read_student(student)).data.eval_results[0]
    assert (result.dataset_type, result.dataset_name) == ("Kleidungsstücke", "Kleidungsstücke")
    five = replace(METRICS, dataset=replace(METRICS.dataset, num_classes=5), student={"top1": 88.1, "top5": 100.0})
    assert len(model_card(five, read_student(student)).data.eval_results) == 1  # five guesses among five classes
    noisy = replace(METRICS, dataset=replace(METRICS.dataset, config="noisy", revision="v2"))
    assert eval_result_entries(noisy) == []  # nor are those of another version
    card = model_card(noisy, read_student(student))
    assert ", configuration noisy, revision v2\n" in card.text
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_revision) == ("someone/garments", "noisy", "v2")
    probe = replace(METRICS, method="ce", linear_probe=True, initial=InitialWeights("resnet18.a1_in1k"))
    card = model_card(probe, read_student(student))
    assert (
        "`resnet18.a1_in1k`, and only the classifier was trained; all other layers kept their weights.\n" in card.text
    )
    assert "| Method | cross-entropy, classifier only |" in card.text


NULLABLE = [
    ("license",), ("student",), ("student", "top1"), ("student", "loss"), ("self_teacher",), ("self_teacher", "top5"),
    ("images_per_second",), ("baseline",), ("baseline", "std"), ("machine", "cores"), ("machine", "precision"),
    ("dataset", "license"), ("dataset", "homepage"),
]  # fmt: skip


@given(
    gone=st.sets(st.sampled_from(NULLABLE)),
    names=st.sets(st.sampled_from(["attention.png", "confusion.png", "curves.png", "examples.png", "recipe.yaml"])),
    evaluation=st.sampled_from([None, EVALUATION, replace(EVALUATION, calibrated=None, temperature=None)]),
    license=st.sampled_from(["mit", "My own licence, v2", "CC-BY-4.0"]),
)
@settings(max_examples=60, deadline=None)
def test_card_leaves_out_what_is_missing(gone, names, evaluation, license):
    content = json.loads(METRICS.to_json()) | {"license": license}
    for *parents, last in sorted(gone, key=len, reverse=True):
        target = content
        for key in parents:
            target = target[key]
        target[last] = None
    config = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {}}
    card = model_card(Metrics.from_json(content), ExportedClassifier(Path("student"), config), names, evaluation)
    text = str(card).encode().decode("utf-8")
    assert not re.search(r"\b(None|nan|Undefined|null)\b", text)
    assert not re.search(r"^#+ .*\n+(#|\Z)", text, re.MULTILINE), "a heading without text"
    assert not re.search(r"^\|.*\n\n\|", text, re.MULTILINE), "a table in two pieces"
    assert not re.search(r"\n{3}|\s\.\s| \(\)|: \n\n#", text)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "timm"
    assert ("model-index" in header) == bool(ModelCard(text).data.eval_results)
    assert ("88.10" in text) == (not gone & {("student",), ("student", "top1")})
    for picture in names - {"recipe.yaml"}:
        needs = {"curves.png": "\n## Results\n", "confusion.png": "\nCalibration on the same images"}.get(picture, "")
        assert (f"({picture})" in text) == (needs in text)


def test_card_states_errors_and_calibration(student):
    card = model_card(METRICS, read_student(student), evaluation=EVALUATION)
    for row in (
        "| uncalibrated | 0.410 | 0.062 | 0.171 |",
        "| with temperature 1.32, fitted to 400 held-out images | 0.390 | 0.011 | 0.169 |",
        "| a\\|b | 80.0 | 70.0 | 74.7 | 5 |",
    ):
        assert row in card.text
    assert "Robustness and fairness were not measured" in card.text
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "accuracy": 88.1, "top_5_accuracy": 99.6, "f1": 86.9, "expected_calibration_error": 0.062, "brier_score": 0.171,
    }  # fmt: skip
    many = [replace(EVALUATION.per_class[0], name=f"class {number}", f1=21.0 - number) for number in range(21)]
    text = model_card(METRICS, read_student(student), evaluation=replace(EVALUATION, per_class=many)).text
    assert re.findall(r"^\| (class \d+) ", text, re.M) == [f"class {number}" for number in range(20, 15, -1)]
    marked = [replace(EVALUATION.per_class[0], name=name) for name in ("*a*", "![b](c.png)", "<i>&")]
    text = model_card(METRICS, read_student(student), evaluation=replace(EVALUATION, per_class=marked)).text
    for name in (r"\*a\*", r"\!\[b\](c.png)", "&lt;i>&amp;"):
        assert f"| {name} | 80.0 |" in text


@pytest.mark.parametrize("path", [*FOLDER.glob("*/metrics.json"), None], ids=str)
def test_metrics_are_read_as_they_were_written(tmp_path, path):
    metrics = METRICS if path is None else read_metrics(path)
    (tmp_path / "metrics.json").write_text(metrics.to_json(), encoding="utf-8")
    assert read_metrics(tmp_path / "metrics.json") == metrics
    for damage in ('{"schema": 1}', "[]", "{", metrics.to_json().replace('"tag"', '"gat"')):
        (tmp_path / "metrics.json").write_text(damage, encoding="utf-8")
        with pytest.raises(UserError, match=r"metrics\.json"):
            read_metrics(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("flags", "different"),
    [
        ([], None), (["--seed", "7", "--alpha", "1", "--threads", "1", "--tag", "x"], None),
        (["--lr", "0.5", "--epochs", "3"], "lr is 0.5 there and 0.1 here, epochs is 3 there"),
        (["--batch-size", "32"], "batch_size is 64 there and 128 here"),
        (["--dataset", "elsewhere"], "dataset is elsewhere"), (["--model", "resnet18"], "model is resnet18"),
    ],
)  # fmt: skip
def test_a_baseline_has_the_same_data_model_and_recipe(tmp_path, flags, different):
    (tmp_path / "metrics.json").write_text(replace(METRICS, method="ce").to_json(), encoding="utf-8")
    config = write_recipe(parse_settings(["--method", "ce", *flags]), "A run.")
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    if different is None:
        assert read_baseline([tmp_path], Settings(), "top1", processes=2).mean == 88.1
        with pytest.raises(UserError, match="batch_size is 128 there and 64 here"):
            read_baseline([tmp_path], Settings(), "top1")
    else:
        with pytest.raises(UserError, match=different):
            read_baseline([tmp_path], Settings(), "top1", processes=2)
    (tmp_path / "metrics.json").write_text(METRICS.to_json(), encoding="utf-8")
    with pytest.raises(UserError, match="not ce"):
        read_baseline([tmp_path], Settings(), "top1")


def test_zoo_card_is_up_to_date_and_promises_nothing_else():
    rows, others = read(RESULTS), waiting()
    assert str(zoo_card(rows, waiting=others)) == (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert {row["model"] for row in rows} == {*timm.list_pretrained("*frskd*"), *others}
    row = results_row(METRICS)
    assert (row["model"], row["top1_err"], row["baseline_mean"]) == ("resnet18_frskd.garments", "11.90", "87.10")
    text = zoo_card([row]).text
    assert "| `resnet18_frskd` | `resnet18` | 11,689,512 | yes |" in text
    assert [" | yes | the four" in card for card in (str(zoo_card(rows)), text)] == [True, False]
    assert "Kleidungsstücke | 28 | 11.18 | 20 | 88.10 | 99.60 | 87.10 | +1.00 ± 1.47 (1, 2) |" in text


def test_the_error_of_a_gain_is_that_of_the_runs_or_of_the_images():
    alone = Gain.of(METRICS, "top1")
    assert alone is not None
    assert alone.of_images
    assert alone.error == pytest.approx(100 * math.sqrt((0.881 * 0.119 + 0.871 * 0.129) / 1000))
    repeats = SeedRuns.of([{"seed": 1, "top1": 88.1}, {"seed": 2, "top1": 88.5}], "top1", "frskd")
    several = replace(METRICS, repeats=repeats)
    gain = Gain.of(several, "top1")
    assert gain is not None
    assert (gain.difference, gain.error) == pytest.approx((1.2, math.sqrt(0.08 / 2 + 0.02 / 2)))
    noisy, calm = [80.0, 90.0], [70 + 0.01 * number for number in range(10)]  # the error is that of two runs
    assert Gain.between(noisy, calm).margin == pytest.approx(12.71 * statistics.stdev(noisy) / math.sqrt(2), rel=1e-3)
    assert Gain.between(calm, [value + 1 for value in calm]).freedom == pytest.approx(18)
    equal = Gain.between([90.0, 90.0], [88.0, 88.0], images=50)  # multiples of two points
    assert equal.of_images
    assert equal.margin is not None
    assert equal.margin > 10
    assert Gain.between([100.0], [100.0], images=50).margin > 1  # not certain, though no image is wrong
    row = results_row(several)
    assert [row[name] for name in ("top1_mean", "top1_std", "top1_n", "gain_err")] == ["88.30", "0.28", "2", "0.22"]
