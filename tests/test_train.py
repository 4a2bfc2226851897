"""Training as a user runs it: `train.py` on the sample that ships."""

import json
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml
from conftest import ROOT, SMALL, run_script
from hub_server import TOKEN, USER, LoopbackHub
from pictures import pictures, save
from runs import assert_same, rows, small, train_here, train_together
from safetensors.torch import load_file

from frskd_timm.errors import UserError
from frskd_train.errors import SettingsError
from frskd_train.report.evaluation import read_evaluation
from frskd_train.run.checkpoint import all_checkpoints, latest_checkpoint
from frskd_train.trainer import Trainer


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """Return the folder of a finished run under the real launcher, and the completed process."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, train(*SMALL, "--output-dir", run, "--model-ema", "--clip-grad", 5, processes=1)


def test_a_run_leaves_what_it_promises(finished) -> None:
    run, done = finished
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml", "summary.csv", "metrics.json", "curves.png", "attention.png", "checkpoints", "student",
    }  # fmt: skip
    assert {p.name for p in (run / "student").iterdir()} >= {"model.safetensors", "config.json", "README.md"}
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["weights"] == "ema"
    assert metrics["dataset"]["train_images"] == 160
    assert (metrics["gmacs"], metrics["activations"], metrics["initial"]) == (0.0034, 0.0208, None)
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    assert float(rows(run)[-1]["top1"]) == pytest.approx(metrics["student"]["top1"], abs=1e-3)
    terms = sum(float(value) for key, value in rows(run)[0].items() if key.startswith("loss_"))
    assert terms == pytest.approx(float(rows(run)[0]["loss"]), rel=1e-5)
    for promised in ("images/s", "left", "ce_teacher", "self-teacher", "create_model"):
        assert promised in done.stdout


def test_the_student_is_alone_and_is_the_average_of_the_run(finished) -> None:
    run, _ = finished
    keys = set(load_file(run / "student" / "model.safetensors"))
    assert keys == set(timm.create_model("test_resnet", num_classes=10).state_dict())
    config = json.loads((run / "student" / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "test_resnet"
    assert config["label_names"][9] == "Ankle boot"
    cfg = config["pretrained_cfg"]
    assert (cfg["tag"], cfg["input_size"]) == ("fashion_mnist_sample", [3, 28, 28])
    assert "license" not in cfg  # nobody has given one

    loaded = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).state_dict()
    averaged = load_file(latest_checkpoint(run / "checkpoints") / "ema.safetensors")
    assert loaded.keys() == averaged.keys()
    assert all(torch.equal(loaded[name], averaged[name]) for name in loaded)
    last = load_file(latest_checkpoint(run / "checkpoints") / "task.safetensors")
    assert not torch.equal(averaged["fc.weight"], last["student.fc.weight"])


STILL = ("--method", "ce", "--model", "test_convnext", "--img-size", 32)  # no running statistics


def test_the_average_follows_every_update(places: Path, tmp_path: Path) -> None:
    average = ["--model-ema", "--model-ema-decay", 0.75, "--no-model-ema-warmup", "--grad-accum-steps", 2]
    kept = ["--checkpoint-minutes", 1e-9, "--checkpoint-hist", 9, "--epochs", 1]
    train_here(*small(places, *STILL, *average, *kept, "--output-dir", tmp_path / "run"))
    found = all_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name[-2:] for path in found] == ["01", "02", "03"]
    tasks, averages = ([load_file(path / f"{name}.safetensors") for path in found] for name in ("task", "ema"))
    for before, task, after in zip(averages[:-1], tasks[1:], averages[1:], strict=True):
        for name, value in after.items():
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * task[f"student.{name}"])


def test_the_checkpoint_of_the_best_epoch_stays(places: Path, tmp_path: Path) -> None:
    """With equal scores, the best epoch is the first; an epoch has 6 updates."""
    train_here(*small(places, *STILL, "--lr", 1e-12, "--epochs", 4, "--output-dir", tmp_path / "run"))
    assert [path.name[-2:] for path in all_checkpoints(tmp_path / "run" / "checkpoints")] == ["06", "18", "24"]


def test_a_seed_gives_other_weights_and_another_order(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Trainer] = []
    monkeypatch.setattr(Trainer, "run", lambda self: made.append(self))
    for number, seed in enumerate((1, 1, 2)):
        train_here(*small(places, "--seed", seed, "--output-dir", tmp_path / str(number)))
    first, same, other = (next(trainer.student.parameters()) for trainer in made)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    orders = [trainer.train_batches.order.permutation(0).tolist() for trainer in made]
    assert orders[0] == orders[1] != orders[2]


def test_config_runs_it_again_to_the_same_weights(finished, tmp_path: Path) -> None:
    run, _ = finished
    train_here("--config", run / "config.yaml", "--output-dir", tmp_path / "again")
    assert_same(run, tmp_path / "again")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Same global batch, BN over both; and each of 101 validation images counts once."""
    flags = ["--model", "test_resnet", "--no-amp", "--epochs", 1, "--train-num-samples", 64, "--lr", 0.002]
    flags += ["--dataset", save(tmp_path / "data", train=pictures(64), test=pictures(101))]
    train_here(*flags, "--batch-size", 32, "--output-dir", tmp_path / "one")
    two = [*flags, "--batch-size", 16, "--sync-bn", "--output-dir", tmp_path / "two"]
    assert train_together(two, two) == [0, 0]
    one, other = rows(tmp_path / "one")[0], rows(tmp_path / "two")[0]
    for term in ("loss", "loss_ce", "loss_ce_teacher", "loss_kl", "loss_feature"):
        assert float(other[term]) == pytest.approx(float(one[term]), rel=1e-3), term
    weights = [load_file(tmp_path / run / "student" / "model.safetensors") for run in ("one", "two")]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["machine"]["processes"] == 2
    for network in ("student", "self_teacher"):
        hits = metrics[network]["top1"] * 101 / 100
        assert hits == pytest.approx(round(hits), abs=1e-3)
    found = read_evaluation(tmp_path / "two" / "evaluation.json")
    assert found.images == sum(row[2] for row in found.confusion) == sum(found.calibration.bin_count) == 101


def test_processes_that_disagree_are_refused(places: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    flags = small(places, "--output-dir", tmp_path / "run")
    assert train_together(flags, [*flags, "--lr", "0.5"]) == [1, 1]
    assert "Processes differ: --lr is 0.01 in process 0 and 0.5 in process 1; give all" in capfd.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_cross_entropy_alone_is_the_same_recipe_without_self_teacher(tmp_path: Path) -> None:
    train_here(*SMALL, "--threads", 1, "--method", "ce", "--output-dir", tmp_path / "ce")
    metrics = json.loads((tmp_path / "ce" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["self_teacher"] is None
    assert set(load_file(tmp_path / "ce" / "student" / "model.safetensors"))
    assert "loss_kl" not in rows(tmp_path / "ce")[0]
    train_here(*SMALL, "--threads", 1, "--baseline", tmp_path / "ce", "--output-dir", tmp_path / "frskd")
    card = (tmp_path / "frskd" / "student" / "README.md").read_text(encoding="utf-8")
    assert f"{metrics['student']['top1']:.2f}" in card


WEIGHTS = ROOT / "frskd_timm" / "weights" / "resnet18_frskd.fashion_mnist"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "resnet18_frsk"], ["resnet18_frsk'", "resnet18_frskd"]),
        (["--model", "timm/resnet18.a1_in1k"], ["hf-hub:timm/resnet18.a1_in1k"]),
        (["--dataset", "no/such_folder_or_id"], ["no/such_folder_or_id"]),
        (["--dataset", "hfds/food101"], ["without timm's hfds/, it is --dataset food101."]),
        (["--dataset", "torch/cifar10/x"], ["timm's torch/ is not supported: give a folder"]),
        (["--opt", "sdg"], ["sdg", "sgd"]),
        (["--self-teacher", "fpn"], ["--self-teacher", "fpn", "bifpn, bifpnc"]),
        (["--self-teacher", "bifpn", "--teacher-width", "2.5"], ["2.5", "integer"]),
        (["--model", "resnet18_frskd.mnist"], ["no weights 'resnet18_frskd.mnist'", "resnet18_frskd.fashion_mnist"]),
        (["--model", "resnet50_frskd", "--pretrained"], ["no pretrained weights", "train without pretrained weights"]),
        (["--resume", "nowhere"], ["nowhere", "checkpoint"]),
        (["--config", "no.yaml"], ["no.yaml", "recipe"]),
        (["--amp-dtype", "float16"], ["float16", "GPU"]),
        (["--opt", "lookahead_adamw"], ["Lookahead", "--opt adamw"]),
        (["--sched", "step"], ["--sched step", "--decay-epochs 30", "--epochs 15"]),
        (["--decay-rate", "0.5"], ["--decay-rate", "--sched step, multistep, plateau or poly"]),
        (["--min-lr", "0.2"], ["--min-lr 0.2", "--lr 0.1"]),
        (["--lr-base", "1e-3", "-b", "8", "--min-lr", "1e-4"], ["--min-lr 0.0001", "--lr-base 0.001", "3.125e-05"]),
        (["--mixup", "0.2", "--mixup-switch-prob", "0.9"], ["--mixup-switch-prob", "--cutmix"]),
        (["--img-size", "3", "96", "64", "-b", "8"], ["--img-size takes", "height and width, not 3 numbers"]),
        (["--model", str(WEIGHTS)], ["is a folder", f"--model local-dir:{WEIGHTS}"]),
        (["--resume", ""], ["--resume is empty"]),
    ],
)
def test_a_mistake_gets_one_clear_sentence(flags: list[str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises((UserError, SettingsError)) as caught:
        train_here(*flags, "--threads", 1, "--output-dir", tmp_path / "run")
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_mistake_ends_the_command_with_one_line(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = train("--lr", -1, "--output-dir", tmp_path / "run", check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: --lr ")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for offline, sentence in ((True, "HF_HUB_OFFLINE is set"), (False, "hf auth login")):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(UserError, match=sentence):
            train_here(*SMALL, "--push-to-hub", "someone/student", "--output-dir", tmp_path / "run")
    small_images = "--method", "ce", "--model", "test_convnext", "--img-size", 16
    with pytest.raises(UserError, match=r"^ConvNeXt does not run on 3x16x16 images .* but runs on 3x32x32"):
        train_here(*SMALL, *small_images, "--output-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_run_is_never_overwritten(finished) -> None:
    run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="another run"):
        train_here(*SMALL, "--threads", 1, "--output-dir", run)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_with_two_processes_a_mistake_is_reported_once_and_soon(train, tmp_path: Path) -> None:
    start = time.monotonic()
    done = train("--model", "no_such_model", "--output-dir", tmp_path / "run", processes=2, check=False)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert time.monotonic() - start < 240  # torch's own patience with a process that is gone is half an hour


def test_recipes_are_the_papers_settings() -> None:
    """Settings of the paper and its authors' code, as far as the recipes state them."""
    for name in ("cifar100_resnet18", "cifar100_wide_resnet16_2"):
        recipe = yaml.safe_load((ROOT / "frskd_train" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        wanted = {"alpha": 2, "beta": 100, "temperature": 4, "lr": 0.1, "momentum": 0.9, "batch_size": 128}
        wanted |= {"student_weight": 1, "teacher_weight": 1}
        wanted |= {"epochs": 200, "decay_milestones": [100, 150], "crop_padding": 4, "distill_schedule": "constant"}
        assert wanted.items() <= recipe.items()
        assert float(recipe["weight_decay"]) == 1e-4
    for name in ("imagenet_resnet18", "imagenet_resnet34"):
        recipe = yaml.safe_load((ROOT / "frskd_train" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        wanted = {"alpha": 1, "beta": 200, "temperature": 4, "epochs": 90, "batch_size": 256}
        wanted |= {"student_weight": 1, "teacher_weight": 1}
        assert (wanted | {"decay_milestones": [30, 60], "train_crop_mode": "rrc"}).items() <= recipe.items()


def test_fine_tuning_starts_from_an_export_with_a_new_head(finished, tmp_path: Path) -> None:
    run, _ = finished
    flags = [*SMALL, "--epochs", 1, "--lr", 1e-6, "--layer-decay", 0.9, "--export", "onnx"]
    train_here(*flags, "--threads", 1, "--model", f"local-dir:{run / 'student'}", "--output-dir", tmp_path / "tuned")
    before = load_file(run / "student" / "model.safetensors")
    after = load_file(tmp_path / "tuned" / "student" / "model.safetensors")
    assert (tmp_path / "tuned" / "student.onnx").is_file()
    assert all(torch.allclose(before[k], after[k], atol=1e-3) for k in before if "running" not in k and "num" not in k)


def test_a_linear_probe_trains_the_classifier_and_nothing_else(finished, tmp_path: Path) -> None:
    run, _ = finished
    flags = [*SMALL, "--model", f"local-dir:{run / 'student'}", "--linear-probe", "--model-ema"]
    with pytest.raises(SettingsError, match="--method ce"):
        train_here(*flags, "--output-dir", tmp_path / "frskd")
    train_here(*flags, "--method", "ce", "--output-dir", tmp_path / "probe")
    before = load_file(run / "student" / "model.safetensors")
    after = load_file(tmp_path / "probe" / "student" / "model.safetensors")
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"fc.weight", "fc.bias"}
    state = load_file(latest_checkpoint(tmp_path / "probe" / "checkpoints") / "task.safetensors")
    assert set(state) == {f"student.{key}" for key in before}  # as in a full training, running statistics and all


def test_accumulated_and_clipped_gradients_are_those_of_a_larger_batch(places: Path, tmp_path: Path) -> None:
    plain = ["--method", "ce", "--model", "test_convnext", "--img-size", 32, "--opt", "sgd", "--lr", 0.1]
    plain += ["--hflip", 0, "--crop-padding", 0]

    def trained(*flags: object) -> torch.Tensor:
        run = tmp_path / "-".join(map(str, flags))
        train_here(*small(places, *plain, *flags, "--output-dir", run))
        return torch.cat([value.flatten() for value in load_file(run / "student" / "model.safetensors").values()])

    clipped = "--clip-grad", 0.5
    whole = trained("--batch-size", 8, *clipped)
    torch.testing.assert_close(trained("--batch-size", 4, "--grad-accum-steps", 2, *clipped), whole, atol=1e-6, rtol=0)
    assert (trained("--batch-size", 8) - whole).abs().max() > 0.1  # so the gradients are larger than the limit


@pytest.mark.long
def test_pushed_at_the_end_of_training(train, tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        flags = [*SMALL, "--epochs", 1, "--push-to-hub", f"{USER}/pushed"]
        done = train(*flags, "--output-dir", tmp_path / "run", **hub.environment(tmp_path / "hf", TOKEN))
        assert TOKEN not in done.stdout + done.stderr
        files = hub.files(f"{USER}/pushed")
    assert files["model.safetensors"] == (tmp_path / "run" / "student" / "model.safetensors").read_bytes()
    pictures = {"curves.png", "attention.png", "confusion.png", "examples.png"}
    assert {"README.md", "config.json", "recipe.yaml", *pictures} <= set(files)
    assert not [name for name in files if "teacher" in name or name.endswith((".bin", ".pth", ".pt"))]
    assert not [word for word in ("push_to_hub", "threads", str(tmp_path)) if word.encode() in files["recipe.yaml"]]
    push = run_script(sys.executable, "hub/push.py", tmp_path / "run", "--repo-id", f"{USER}/again", "--dry-run")
    assert "recipe.yaml" in push.stdout
