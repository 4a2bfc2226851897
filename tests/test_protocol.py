"""The comparison of FRSKD with baselines: which runs it makes, what its table says, and a rehearsal."""

import re
import sys
from pathlib import Path
from typing import Any

import budgets
import protocol
import protocol_tables
import pytest
from conftest import ROOT, run_script

from tools.table_files import append, read


def row(method: str, epochs: int, seed: int, score: float, teacher: float | str = "") -> dict:
    key = {"data": "wrong", "split": "test", "method": method, "epochs": str(epochs), "seed": str(seed)}
    values = {"score": str(score), "self_teacher_score": str(teacher), "ece": "0.1"}
    return {**key, **values, "flags": "", "commit": ""}


# The best baseline after 10 epochs is the average.
RECORDED = [
    *(row("frskd", 10, seed, score, 92) for seed, score in ((1, 88.0), (2, 90.0))),
    *(row("ce", 10, seed, 80.0) for seed in (1, 2)),
    *(row(protocol.AVERAGED, 10, seed, score) for seed, score in ((1, 84.0), (2, 86.0))),
    *(row("ce", 16, seed, score) for seed, score in ((1, 89.5), (2, 90.5))),
]

TIMES = [{"data": "wrong", "method": "frskd", "ratio": "1.6"}]


def test_the_table_compares_with_the_best_baseline_of_the_same_epochs_and_of_the_same_time() -> None:
    title = protocol.CASES["wrong"].title
    assert protocol_tables.table(protocol_tables.comparisons(RECORDED, TIMES)).splitlines()[2:] == [
        # 89 - 85 of 92 - 85; the variance of each method's two scores is 2
        f"| {title} | 10 | `ce + smoothing + EMA` | 85.00 | 89.00 | +4.00 | 1.41 | 2 | 92.00 | 57% |",
        f"| {title} | 10, baseline 16 | `ce` | 90.00 | 89.00 | -1.00 | 1.12 | 2 | 92.00 |  |",  # behind, so no share
    ]
    assert protocol_tables.spoilt_table(RECORDED).splitlines()[2:] == [
        f"| {title} | 10 | `ce` | 80.00 ± 0.00 | 10.00 ± 0.00 | 2 |",
        f"| {title} | 10 | `{protocol.AVERAGED}` | 85.00 ± 1.41 | 10.00 ± 0.00 | 2 |",
        f"| {title} | 10 | `frskd` | 89.00 ± 1.41 | 10.00 ± 0.00 | 2 |",
    ]
    assert protocol_tables.short_table(protocol_tables.comparisons(RECORDED, TIMES)).splitlines()[2:] == [
        f"| {title} | 10 | 2 | 89.00 | 85.00 | 90.00 (16 epochs) |"
    ]
    # The best baseline of equal time is one of fewer epochs.
    better = [row("ce + smoothing", 10, seed, 91.0) for seed in (1, 2)]
    _, longer = protocol_tables.comparisons([*RECORDED, *better], TIMES)
    assert protocol_tables.compare(longer)[:2] == ["`ce + smoothing, 10 epochs`", "91.00"]
    assert protocol_tables.short_table([longer]).splitlines()[2:] == [
        f"| {title} | 10 | 2 | 89.00 |  | 91.00 (10 epochs) |"
    ]
    for rows in ([], RECORDED[2:]):
        assert protocol_tables.table(protocol_tables.comparisons(rows)) == "There are no results yet."


def test_baselines_with_another_augmentation_of_the_same_data_count_too() -> None:
    uncropped = [{**found, "data": "uncropped"} for found in RECORDED[:4]]
    cropped = [{**found, "data": "sgd"} for found in RECORDED[4:]]
    times = [{**TIMES[0], "data": "sgd"}]
    title = protocol.CASES["uncropped"].title
    assert protocol_tables.table(protocol_tables.comparisons([*uncropped, *cropped], times)).splitlines()[2:] == [
        f"| {title} | 10 | `ce + smoothing + EMA, crops` | 85.00 | 89.00 | +4.00 | 1.41 | 2 | 92.00 | 57% |",
        f"| {title} | 10, baseline 16 | `ce, crops` | 90.00 | 89.00 | -1.00 | 1.12 | 2 | 92.00 |  |",
    ]


def test_the_plan_leaves_out_what_is_recorded_and_knows_the_epochs_of_the_same_time() -> None:
    def missing(**options: Any) -> set[tuple[str, int, int]]:
        runs = protocol.plan(RECORDED, ["wrong"], ["frskd", *protocol.RUNS], [1, 2, 3], epochs=10, **options)
        return {(run.method, run.epochs, run.seed) for run in runs}

    others = {"ce + smoothing", "ce + mixup/cutmix"}  # class weights are for imbalanced data only
    same_epochs = {(method, 10, seed) for method in others for seed in (1, 2, 3)} | {("frskd", 10, 3), ("ce", 10, 3)}
    assert missing() == same_epochs
    longer = {(method, 16, seed) for method in others for seed in (1, 2, 3)} | {("ce", 16, 3)}
    assert missing(times=TIMES) == same_epochs | longer
    without_mixup = protocol.plan([], ["scenes", "noisy_labels"], protocol.RUNS, [1])
    assert not [run for run in without_mixup if "mixup" in run.method]
    assert {run.split for run in protocol.plan(RECORDED, ["wrong"], ["frskd"], [1, 2], split="tuning")} == {"tuning"}


def test_the_documents_get_the_results_of_the_protocol_alone(capsys) -> None:
    for flags in (["--tune"], ["--rehearse"], ["--output", "new.csv"], ["--name", "alpha8"], ["--epochs", "20"]):
        with pytest.raises(SystemExit):
            budgets.parse(["--write", *flags])
        assert "--write takes all results" in capsys.readouterr().err


def test_every_gain_that_the_readme_names_is_in_the_table() -> None:
    cells = [line.split(" | ") for line in (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()]
    measured = [
        (abs(float(row[5])), float(row[6])) for row in cells if re.fullmatch(r"[+-]\d+\.\d\d", "".join(row[5:6]))
    ]
    named = re.findall(r"(\d+\.\d)\s+±\s+(\d\.\d)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 6
    for numbers in named:
        assert pytest.approx([float(number) for number in numbers], abs=0.0501) in measured, numbers


def test_times_are_beside_the_results_and_measured_once(tmp_path: Path, monkeypatch) -> None:
    flags = ["budgets.py", "--output", str(tmp_path / "rows.csv"), "--data", "sgd", "--measure"]
    append(tmp_path / "times.csv", [dict.fromkeys(protocol.TIME_COLUMNS, "1.5") | {"data": "sgd", "method": "frskd"}])
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(SystemExit, match="has the time of frskd on sgd"):
        budgets.main()
    monkeypatch.setattr(sys, "argv", [*flags[:2], str(tmp_path / "times.csv"), "--table"])
    with pytest.raises(SystemExit, match="is a file of other results: it has no column split"):
        budgets.main()


def test_a_run_with_other_flags_does_not_continue_in_the_same_folder() -> None:
    run = protocol.Run("sgd", "test", "alpha", 10, 1)
    first, second = (budgets.parse(["--name", "alpha", "--", "--alpha", value]) for value in ("8", "2"))
    assert budgets.folder_name(run, first) != budgets.folder_name(run, second)
    assert budgets.folder_name(run, first) == budgets.folder_name(run, first)


def test_rows_are_appended_to_a_file_that_ends_within_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n3,", encoding="utf-8")
    append(path, [{"a": 5, "c": 6}])
    rows = [{"a": "1", "b": "2", "c": ""}, {"a": "3", "b": "", "c": ""}, {"a": "5", "b": "", "c": "6"}]
    assert read(path) == rows


@pytest.mark.long
def test_a_rehearsal_trains_every_method_and_continues(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "budgets.py", "--rehearse", "--data"]
    command += ["wrong", "imbalanced", "scenes", "--tune"]
    command += ["--data-dir", tmp_path / "data", "--run-dir", tmp_path / "runs", "--output", tmp_path / "rows.csv"]
    run_script(*command, "--methods", "ce")
    run_script(*command)
    rows = budgets.read(tmp_path / "rows.csv")
    methods = [(row["data"], row["method"]) for row in rows]
    common = {"frskd", "ce", "ce + smoothing", protocol.AVERAGED}
    wanted = {(data, name) for data in ("wrong", "imbalanced", "scenes") for name in common}
    wanted |= {(data, "ce + mixup/cutmix") for data in ("wrong", "imbalanced")} | {("imbalanced", "ce + class weights")}
    assert len(methods) == len(set(methods))
    assert set(methods) == wanted
    assert "| scenes, segmentation | 1 |" in run_script(*command, "--table").stdout
    assert not run_script(*command, "--plan").stdout.strip()
    run_script(*command, "--data", "wrong", "--measure", "--rounds", "3")
    (measured,) = budgets.read(tmp_path / "times.csv")
    assert float(measured["lowest"]) <= float(measured["ratio"]) <= float(measured["highest"])
