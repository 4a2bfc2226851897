"""Students as a start for other tasks: the code of the documentation and its benchmark."""

import re
from pathlib import Path

import finetune
import timm
import torch
from conftest import ROOT
from datasets import load_from_disk

import frskd_timm  # noqa: F401  registers the students

DOCUMENT = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")


def code_block(text: str, word: str) -> str:
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if word in block)


def test_the_documents_ten_lines_fine_tune_a_student() -> None:
    code = code_block(DOCUMENT, "load_digits")
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    assert code.count("range(10)") == 1
    exec(code.replace("range(10)", "range(4)"), scope)
    weights = timm.create_model("wide_resnet16_2_frskd", pretrained=True, in_chans=1).state_dict()
    tuned = scope["model"].state_dict()  # type: ignore[attr-defined]
    running = next(name for name in weights if name.endswith("running_mean"))
    assert not torch.equal(tuned[running], weights[running])
    assert float(scope["accuracy"]) > 0.85  # type: ignore[arg-type]


def test_a_student_is_the_backbone_of_torchvisions_detector() -> None:
    """The document's code; features of three levels, gradients down to the first layer, boxes out."""
    torch.manual_seed(0)
    scope: dict[str, object] = {"__name__": "document"}
    exec(code_block(DOCUMENT, "RetinaNet"), scope)
    detector, student = scope["detector"], scope["backbone"].student  # type: ignore[attr-defined]
    images = [torch.rand(3, 96, 80), torch.rand(3, 64, 96)]
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = detector.train()(images, [target, target])  # type: ignore[attr-defined]
    sum(losses.values()).backward()
    gradient = student[timm.create_model("resnet18_frskd").pretrained_cfg["first_conv"]].weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        found = detector.eval()(images)  # type: ignore[attr-defined]
    assert len(found) == 2
    assert all(boxes["boxes"].shape[1] == 4 for boxes in found)


def test_a_student_of_a_new_topology_fits_a_feature_pyramid() -> None:
    scope: dict[str, object] = {"__name__": "document"}
    exec(code_block(DOCUMENT, "RetinaNet").split("\nbackbone =")[0], scope)
    backbone = scope["PyramidBackbone"]("wide_resnet16_2_frskd", out_indices=(-3, -2, -1)).eval()  # type: ignore[operator]
    reductions = backbone.student.feature_info.reduction()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps.values()] == [(1, 64, 64 // r, 64 // r) for r in reductions]


def test_the_benchmarks_data_are_disjoint_and_drawn_by_seed(tmp_path: Path) -> None:
    folder = finetune.make("digits", tmp_path / "digits")
    data = load_from_disk(str(folder))
    images = {split: [image.tobytes() for image in data[split]["image"]] for split in data}
    parts = images["train"], images["tuning"], images["test"]
    assert sum(map(len, parts)) == 1797
    assert len(frozenset().union(*parts)) == sum(len(set(part)) for part in parts)
    draws = [images[f"seed{seed}_{count}"] for seed in finetune.SEEDS for count in (10, 100)]
    for draw in draws:
        assert set(draw) <= set(images["train"])
    assert len({frozenset(draw) for draw in draws}) == len(draws)
    for seed in finetune.SEEDS:
        for count in (10, 100):
            labels = data[f"seed{seed}_{count}"]["label"]
            assert [labels.count(target) for target in range(10)] == [count] * 10
    assert data["test"].features["label"].names == [str(target) for target in range(10)]
    assert max(max(image) for image in images["test"]) == 255


def test_the_document_shows_what_was_measured() -> None:
    rows = finetune.read(ROOT / "benchmarks" / "results" / "finetune.csv")
    assert {row["weights"] for row in rows} == {"frskd", "ce", "random"}
    assert finetune.table(rows) in DOCUMENT


def test_the_learning_rate_is_chosen_by_the_tuning_images() -> None:
    """In the results, each cell's tests have the rate with its highest tuning score, and all seeds."""
    rows = finetune.read(ROOT / "benchmarks" / "results" / "finetune.csv")
    for cell in {tuple(row[name] for name in finetune.COLUMNS[:5]) for row in rows}:
        own = [row for row in rows if tuple(row[name] for name in finetune.COLUMNS[:5]) == cell]
        rate = finetune.best_rate([row for row in own if row["split"] == "tuning"])
        tests = [row for row in own if row["split"] == "test"]
        assert [int(row["seed"]) for row in tests] == list(finetune.SEEDS)
        assert {float(row["lr"]) for row in tests} == {rate}


def test_rows_name_the_weights_that_ship(tmp_path: Path) -> None:
    rows = finetune.read(ROOT / "benchmarks" / "results" / "finetune.csv")
    flags = ["--model", "wide_resnet16_2_frskd"]
    assert {row["flags"] for row in rows if row["weights"] == "frskd"} == {" ".join(finetune.identified(flags))}
    assert finetune.identified([*flags, "--no-pretrained"]) == [*flags, "--no-pretrained"]
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert finetune.identified(["--model", f"local-dir:{tmp_path}"]) == ["--model", "local-dir:9a129038d9a0"]


def test_the_table_counts_the_seeds_of_each_mean() -> None:
    rows = finetune.read(ROOT / "benchmarks" / "results" / "finetune.csv")
    row = next(row for row in rows if row["weights"] == "ce" and row["split"] == "test")
    lines = finetune.table([*rows, {**row, "flags": "--model local-dir:0123", "top1": "90.00"}]).splitlines()
    assert f"| 90.0 ({row['lr']}) |" in lines[2]
    assert lines[2].endswith("| 5, 1 |")
    assert {line.rsplit("|", 2)[1].strip() for line in lines[3:]} == {"5"}
