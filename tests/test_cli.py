"""The command `frskd`: subcommands, quick help, and one sentence if a package is missing."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
from conftest import ROOT, run_script
from published import METRICS

import frskd_timm
from frskd_timm.errors import UserError
from frskd_train.cli import COMMANDS, main
from frskd_train.cli.validate import chosen_data
from frskd_train.errors import SettingsError
from frskd_train.settings import DataSettings, HeldOut, ScoredDataSettings
from frskd_train.settings.parse import parse_evaluation, parse_settings, read_recipe
from frskd_train.settings.recipe import write_recipe

EXTRA = ("accelerate", "datasets", "matplotlib", "pyarrow", "tyro")  # core never needs these


def block(*packages: str) -> str:
    """Code that makes imports of packages fail as if they were not installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"


# Runs `frskd` with each list of arguments in one process; prints its exit status and what it has imported.
QUICK = """
import contextlib, io, json, sys
from frskd_train.cli import main
answers = []
for words in json.loads(sys.argv.pop()):
    sys.argv, told = ["frskd", *words], io.StringIO()
    status = 0
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    heavy = {"torch", "timm", "datasets", "accelerate", "tyro"} & set(sys.modules)
    answers.append((status, told.getvalue(), sorted(heavy)))
print(json.dumps(answers))
"""


def test_help_and_wrong_flags_are_answered_without_heavy_imports() -> None:
    commands = ["train", "validate", "export", "demo", "push"]
    lines = [["--help"], ["-V"], ["--version"], *([command, "--help"] for command in commands)]
    lines += [["train", "--bacth-size"]]
    answers = json.loads(run_script(sys.executable, "-c", QUICK, json.dumps(lines)).stdout)
    (_, listed, heavy), *versions = answers[:3]
    assert all(f"  {command} " in listed for command in COMMANDS)
    assert versions == [[0, f"frskd-timm {frskd_timm.__version__}\n", []]] * 2
    assert heavy == []
    for command, (status, told, imported) in zip(commands, answers[3:8], strict=True):
        assert (status, imported) in ((0, []), (0, ["tyro"]))
        assert told.startswith(f"usage: frskd {command} ")
    assert "--batch-size" in answers[3][1]
    status, told, imported = answers[8]
    assert (status, imported) == (2, ["tyro"])
    assert "--batch-size" in told


def test_list_names_students_and_recipes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["frskd", "list"])
    main()
    listed = capsys.readouterr().out.split()
    assert {*timm.list_models("*_frskd"), "finetune", "cifar100_resnet18"} <= set(listed)


@pytest.mark.parametrize("words", ["schema", "--version", "push --help"])
def test_a_reader_that_is_gone_ends_a_command_quietly(words: str) -> None:
    code = f"import os, sys; sys.argv = ['frskd', *{words.split()}]; reading, writing = os.pipe(); os.dup2(writing, 1)"
    code += "; os.close(reading); os.close(writing); from frskd_train.cli import main; main()"
    done = run_script(sys.executable, "-c", code, check=False, PYTHONUNBUFFERED="")  # the output waits in a buffer
    assert (done.returncode, done.stderr) == (141, "")


def test_an_unknown_command_is_answered_with_the_known_ones() -> None:
    done = run_script(sys.executable, "-m", "frskd_train", "trian", check=False)
    assert done.returncode == 2
    assert "trian" in done.stderr
    assert all(command in done.stderr for command in COMMANDS)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("license: no", "'license' .* quotes"),
        ("model: null", "'model' .* is empty"),
        ("tag: 1.10", "'tag' in the recipe .* is 1.1 .* quotes"),
        ("pretrained: 'true'", "'pretrained' in the recipe .* is true: give true or false"),
        ("lr: [0.1, 0.2]", r"'lr' in the recipe .* is \[0.1, 0.2\]: give one value"),
    ],
)
def test_words_that_yaml_changes_are_refused(line: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"{line}\n")
    with pytest.raises(SettingsError, match=sentence):
        parse_settings(["--config", str(tmp_path / "r.yaml")])


def test_a_switch_takes_no_value() -> None:
    with pytest.raises(SettingsError, match="--pretrained takes no value: leave true out, or give --no-pretrained"):
        parse_settings(["--model", "resnet18", "--pretrained", "true"])
    assert parse_settings(["--model", "resnet18", "--pretrained", "-b", "32"]).loop.batch_size == 32


def test_a_precision_without_mixed_precision_is_refused() -> None:
    with pytest.raises(SettingsError, match="--amp-dtype has no effect without --amp"):
        parse_evaluation(["--model", "run", "--amp-dtype", "float16"])


@pytest.mark.parametrize(
    ("called", "named"),
    [
        ("/env/bin/frskd", "frskd train"),
        ("/env/frskd_train/train.py", "frskd train"),
        ("/clone/train.py", "train.py"),
        ("examples/hf_job.py", "hf_job.py"),
        ("-c", "train.py"),
    ],
)
def test_errors_name_what_was_called(called: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    with pytest.raises(SettingsError, match=f"^{named} has no --epochz; did you mean --epochs"):
        parse_settings(["--epochz", "3"])


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("class_map: ~/names.txt\n")
    settings = parse_settings(["--config=~/r.yaml", "--output-dir", "~/run", "--model=local-dir:~/student"])
    found = settings.data.class_map, settings.run.output_dir, settings.model.model
    assert found == (f"{tmp_path}/names.txt", f"{tmp_path}/run", f"local-dir:{tmp_path}/student")
    scored = parse_evaluation(["--model=~/run", "--output=~/scores"])
    assert (scored.model, scored.output) == (f"{tmp_path}/run", f"{tmp_path}/scores")


def test_paths_of_a_run_hold_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "student").mkdir()
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", "student", "--model", "local-dir:student", "--baseline", "student", "--seed", "3"]
    settings = parse_settings(flags)
    (tmp_path / "config.yaml").write_text(write_recipe(settings, "x"))
    monkeypatch.chdir("/")
    again = read_recipe(str(tmp_path / "config.yaml"))
    place = str(tmp_path / "student")
    assert again == settings
    assert (again.data.dataset, again.model.model, again.run.baseline) == (place, f"local-dir:{place}", (place,))
    assert parse_settings([]).data.dataset == "fashion_mnist_sample"


@pytest.mark.parametrize(
    ("script", "package"), [("train.py", "tyro"), ("frskd_train/train.py", "tyro"), ("validate.py", "tyro")]
)
def test_a_missing_package_is_one_sentence_with_the_pip_command(script: str, package: str) -> None:
    code = f"{block(package)}sys.argv = ['x', '--model', 'test_resnet']\nimport runpy\n"
    code += f"runpy.run_path({str(ROOT / script)!r}, None, '__main__')"
    done = run_script(sys.executable, "-c", code, check=False)
    assert done.returncode == 2
    assert package in done.stderr
    assert "pip install -e '.[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_student_loads_without_the_training_extra() -> None:
    code = block(*EXTRA) + "import frskd_timm, timm, torch\nfrom frskd_timm.segmentation import SegmentationStudent\n"
    code += "model = timm.create_model('wide_resnet16_2_frskd', pretrained=True)\n"
    code += "frskd_timm.FRSKDTask.create(model, input_size=(3, 28, 28), num_classes=10)"
    run_script(sys.executable, "-c", code)


def test_a_runs_own_data_and_splits_are_scored(tmp_path: Path) -> None:
    """The images that it was trained on would give a better score."""
    text = "train_split: trainval\nval_split: test\ntarget_key: fine\nval_fraction: 0.2\n"
    (tmp_path / "config.yaml").write_text(f"dataset: {tmp_path / 'data'}\n{text}")
    own, other = str(tmp_path / "data"), str(tmp_path / "other")
    (tmp_path / "metrics.json").write_text(METRICS.to_json())
    for dataset, given, found in (
        ("auto", None, (own, "trainval", "test", "fine", 0.2)),
        (own, None, (own, "trainval", "test", "fine", 0.2)),
        (own, "val", (own, "trainval", "val", "fine", 0.2)),
        (other, None, (other, None, None, None, 0.1)),
    ):
        used, _ = chosen_data(ScoredDataSettings(dataset, val_split=given), tmp_path)
        assert (used.dataset, used.train_split, used.val_split, used.target_key, used.val_fraction) == found
    assert chosen_data(ScoredDataSettings(), None) == (DataSettings(), None)
    assert chosen_data(ScoredDataSettings(val_fraction=0.1), tmp_path)[0].val_fraction == 0.1, (
        "given, though the default"
    )
    facts = replace(METRICS.dataset, held_out=True, split="test")
    (tmp_path / "metrics.json").write_text(replace(METRICS, dataset=facts).to_json())
    (tmp_path / "config.yaml").write_text(f"dataset: {tmp_path / 'data'}\nbad_images: skip\n")
    used, held_out = chosen_data(ScoredDataSettings(), tmp_path)
    assert held_out == HeldOut("test", METRICS.dataset.split_images), "not the images trained on"
    assert (used.val_split, used.bad_images) == (None, "skip")
    assert chosen_data(ScoredDataSettings(bad_images="stop"), tmp_path)[0].bad_images == "stop"
    (tmp_path / "config.yaml").write_text(f"dataset: {tmp_path / 'data'}\nval_fraction: 0.1\n")
    with pytest.raises(UserError, match=r"held out 0\.1 of its images, not 0\.5: .* --val-split test"):
        chosen_data(ScoredDataSettings(val_fraction=0.5), tmp_path)


def test_every_spelling_of_a_flag_is_understood(tmp_path: Path) -> None:
    assert parse_settings(["-cfinetune"]) == parse_settings(["-c=finetune"])
    assert parse_settings(["-cfinetune"]).model.pretrained
    crops = [["--train-crop-mode", mode] for mode in ("rrc", "none", "pad")] + [["--train-crop-mode=auto"], []]
    paddings = [parse_settings(["-cfinetune", *flags]).preprocessing.crop_padding for flags in crops]
    assert paddings == [None, None, 2, None, 2], "a recipe's padding belongs to its own crops"
    (tmp_path / "config.yaml").write_text("epochs: 77\n")
    (tmp_path / "recipe.yaml").write_text(f"output_dir: {tmp_path}\nlr: 0.5\n")
    auto = f"--output_dir={tmp_path}", f"--output-dir {tmp_path}", f"-c {tmp_path}/recipe.yaml"
    for flags in (*(f"auto {more}" for more in auto), f"{tmp_path}", f"{tmp_path}/checkpoints"):
        assert parse_settings(["--resume", *flags.split()]).optimizer.epochs == 77
    for name in ("config", "resume"):
        (tmp_path / "recipe.yaml").write_text(f"{name}: finetune\n")
        with pytest.raises(SettingsError, match=f"may not contain '{name}': give --{name}"):
            parse_settings(["-c", f"{tmp_path}/recipe.yaml"])


def test_a_flag_for_another_loss_leaves_its_weight_in_a_recipe_out(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("feature_loss: attention\nbeta: 100\nlr: 0.5\n")
    weight = lambda *flags: parse_settings(["--config", str(recipe), *flags]).method.beta
    assert [weight(), weight("--lr", "0.1"), weight("--feature-loss", "attention")] == [100, 100, 100]
    assert weight("--feature-loss", "fitnet") is None
    assert weight("--feature-loss", "fitnet", "--beta", "3") == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr: 0.1\nlr: 0.2\n", "lr is given twice"),
        ("batch-size: 8\nbatch_size: 9\n", "has a setting twice"),
        ("batch_size: 064\n", "YAML reads 064 as 52"),
        ("seed: 1:30\n", "YAML reads 1:30 as 90"),
    ],
)
def test_what_yaml_would_read_otherwise_than_written_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(SettingsError, match=problem):
        parse_settings(["--config", str(recipe)])
