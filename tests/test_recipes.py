"""Every recipe end to end with the real train.py, on small synthetic data in the layout that it needs."""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image
from runs import train_here

from frskd_timm.errors import UserError
from frskd_timm.export.load import load_student
from frskd_train import optim
from frskd_train.errors import SettingsError
from frskd_train.settings import flat
from frskd_train.settings.constraints import keyword_arguments
from frskd_train.settings.parse import parse_settings, read_recipe
from frskd_train.settings.recipe import comparable, differences, write_recipe
from tools import make_sample, official_splits

ALL = sorted((ROOT / "frskd_train" / "recipes").glob("*.yaml"))
RECIPES = [path for path in ALL if "task: segmentation" not in path.read_text(encoding="utf-8")]
# A ResNet and its self-teacher are a quarter of a gigabyte on disk in each run: one of them stands for all by default.
QUICK = {"cifar100_wide_resnet16_2", "tiny_imagenet_wide_resnet16_2", "fashion_mnist_wide_resnet16_2", "finetune",
         "linear_probe", "cub200_resnet18"}  # fmt: skip


def pictures(count: int, width: int, height: int, mode: str = "RGB") -> Iterator[Image.Image]:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    generator = np.random.default_rng(count)
    for _ in range(count):
        yield Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))


def saved(folder: Path, splits: dict[str, int], size: tuple[int, int], image: str, **labels: int) -> Path:
    """Save a dataset as from the Hub; a split `test` beside `validation` has no labels."""
    import datasets

    features = {key: datasets.ClassLabel(names=[f"{key}_{i}" for i in range(n)]) for key, n in labels.items()}
    made = {}
    for split, count in splits.items():
        hidden = split == "test" and "validation" in splits
        rows = {key: [-1 if hidden else i % n for i in range(count)] for key, n in labels.items()}
        rows[image] = list(pictures(count, *size))
        made[split] = datasets.Dataset.from_dict(rows, datasets.Features({**features, image: datasets.Image()}))
    datasets.DatasetDict(made).save_to_disk(folder)
    return folder


def fashion_mnist(folder: Path) -> Path:
    """Write the four original files and run the recipe's own command."""
    idx = folder.with_name("idx")
    idx.mkdir()
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = np.stack([np.asarray(image) for image in pictures(count, 28, 28, "L")])
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (idx / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    make_sample.main(["--idx-dir", str(idx), "--full", str(folder)])
    return folder


def official(form: str, folder: Path) -> Path:
    """Write the unpacked archive and run the recipe's own command."""
    root = folder.with_name("archive")
    rows = [("train" if i < 4 else "test", f"{c:03}.Some_{name}", i) for c, name in enumerate("ABC") for i in range(6)]
    images = {"cub200": "images", "stanford40": "JPEGImages"}.get(form, "Images")
    lists: dict[str, list[str]] = {}
    cub: list[tuple[str, str]] = []
    for (split, name, i), image in zip(rows, pictures(len(rows), 40, 36), strict=True):
        file = f"{name}_{i:03}.jpg" if form == "stanford40" else f"{name}/{name}_{i:03}.jpg"
        (root / images / file).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / images / file)
        lists.setdefault(f"{name}_{split}" if form == "stanford40" else split, []).append(file)
        cub.append((file, str(int(split == "train"))))
    if form == "cub200":
        (root / "images.txt").write_text("".join(f"{i + 1} {file}\n" for i, (file, _) in enumerate(cub)))
        (root / "train_test_split.txt").write_text("".join(f"{i + 1} {train}\n" for i, (_, train) in enumerate(cub)))
    elif form == "mit67":
        for split, name in (("train", "TrainImages.txt"), ("test", "TestImages.txt")):
            (root / name).write_text("\n".join(lists[split]))  # as published: no newline at the end
    elif form == "stanford40":
        (root / "ImageSplits").mkdir()
        for name in (*lists, "train", "test"):  # the last two list all images again
            (root / "ImageSplits" / f"{name}.txt").write_text("\n".join(lists.get(name, ["x.jpg"])))
    else:
        scipy_io = pytest.importorskip("scipy.io")
        for split in ("train", "test"):
            cells = np.array([[file] for file in lists[split]], dtype=object)
            scipy_io.savemat(root / f"{split}_list.mat", {"file_list": cells})
    official_splits.main([form, str(root), str(folder)])
    return folder


DATA: dict[str, Callable[[Path], Path]] = {
    "uoft-cs/cifar100": lambda p: saved(p, {"train": 12, "test": 6}, (32, 32), "img", fine_label=4, coarse_label=2),
    "zh-plus/tiny-imagenet": lambda p: saved(p, {"train": 12, "valid": 6}, (64, 64), "image", label=3),
    "ILSVRC/imagenet-1k": lambda p: saved(p, {"train": 12, "validation": 6, "test": 6}, (50, 44), "image", label=3),
    "data/digits": lambda p: saved(p, {"train": 12, "test": 6}, (8, 8), "image", label=3),
    "data/fashion_mnist": fashion_mnist,
    "data/typeface_words_128": lambda p: saved(p, {"train": 12, "test": 6}, (64, 64), "image", label=3),
    **{f"data/{form}": lambda p, form=form: official(form, p) for form in official_splits.READERS},  # type: ignore[misc]
}


@pytest.mark.parametrize(
    "recipe", [pytest.param(p, marks=[] if p.stem in QUICK else pytest.mark.long, id=p.stem) for p in RECIPES]
)
def test_a_recipe_runs_end_to_end(recipe: Path, tmp_path: Path) -> None:
    wanted = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    data = DATA[wanted["dataset"]](tmp_path / "data")
    small = {"dataset": str(data), "epochs": 1, "batch_size": 6, "workers": 0, "threads": 1, "amp": False}
    if wanted["img_size"] > 64:
        small["img_size"] = 64
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in small.items() if key != "amp"]
    train_here("--config", recipe, *flags, "--no-amp", "--output-dir", tmp_path / "run")

    used = flat(read_recipe(str(tmp_path / "run" / "config.yaml")))
    expected = flat(read_recipe(str(recipe))) | small
    places = ("config", "output_dir", "resume")
    assert {k: v for k, v in used.items() if k not in places} == {k: v for k, v in expected.items() if k not in places}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["tag"] == wanted.get("tag", "data")
    assert (metrics["model"], metrics["method"]) == (wanted["model"], wanted["method"])
    facts = metrics["dataset"]
    assert facts["val_images"] in (6, 10)
    assert facts["train_images"] == (20 if facts["num_classes"] == 10 else 12)
    assert (metrics["self_teacher"] is not None) == (wanted["method"] == "frskd")
    student = load_student(tmp_path / "run" / "student")
    assert student.num_classes == facts["num_classes"] in (3, 4, 10)


@pytest.mark.parametrize("form", official_splits.READERS)
def test_official_splits_are_class_folders(form: str, tmp_path: Path) -> None:
    folder = official(form, tmp_path / "out")
    for split, count in (("train", 4), ("test", 2)):
        found = {path.name: len(list(path.iterdir())) for path in (folder / split).iterdir()}
        assert found == {"000.Some_A": count, "001.Some_B": count, "002.Some_C": count}
    with pytest.raises(UserError, match="not empty"):
        official_splits.arrange(form, tmp_path / "archive", folder)
    gone = next((tmp_path / "archive").rglob("*_005.jpg"))
    gone.unlink()
    with pytest.raises(UserError, match=gone.name):
        official_splits.arrange(form, tmp_path / "archive", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_recipe_says_what_it_needs_and_where_it_leaves_the_paper() -> None:
    for recipe in ALL:
        text = recipe.read_text(encoding="utf-8")
        if "benchmarks/finetune.py --make" not in text:
            assert "\n# Needs: " in text, recipe.name
            assert "\n# Differs from the " in text, recipe.name
        checked = recipe.name.startswith(
            ("cifar100", "voc", "fashion_mnist", "typeface_words", "finetune", "linear_probe")
        )
        assert ("not checked against the paper" in text) != checked, recipe.name


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], {"ns_steps": "[3, 4]"}), (["--opt-kwargs", "eps=1e-6"], {"eps": "1e-6"}), (["--opt-kwargs"], {})],
)
def test_a_flag_replaces_the_pairs_of_a_recipe(flags: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("opt: nmuon\nopt_kwargs: {ns_steps: [3, 4]}\n")
    settings = parse_settings(["--config", str(tmp_path / "recipe.yaml"), *flags, "--lr", "0.2"])
    assert (settings.optimizer.opt_kwargs, settings.optimizer.lr) == (expected, 0.2)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("eps=1e-6", 1e-6),
        ("eps=[1, None]", [1, None]),
        ("eps=false", False),
        ("eps=a=b", "a=b"),
        ("eps={[]: 1}", "{[]: 1}"),
    ],
)
def test_keyword_arguments_are_literals_or_text(word: str, value: object) -> None:
    assert keyword_arguments(parse_settings(["--opt-kwargs", word]).optimizer.opt_kwargs) == {"eps": value}


def test_an_optimizer_is_refused_before_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ptimizer 'sgd'"):
        train_here("--opt", "sgd", "--opt-kwargs", "ns_steps=3", "--dataset", tmp_path / "nowhere")


def test_the_check_of_an_optimizer_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    optim.check_optimizer(parse_settings([]).optimizer)
    assert torch.equal(torch.get_rng_state(), before)  # else a seed would no longer give the same student


def test_a_published_recipe_holds_nothing_of_one_machine(tmp_path: Path) -> None:
    private = ["--push-to-hub", "me/x", "--report-to", "wandb", "--threads", "3", "--workers", "7"]
    private += ["--output-dir", str(tmp_path / "run"), "--baseline", str(tmp_path), "--initial-checkpoint", "/w.pth"]
    settings = parse_settings(["--dataset", str(tmp_path), "--mean", "0.5", "--lr", "0.3", *private])
    text = write_recipe(settings, "A recipe.", portable=True)
    for word in ("me/x", "wandb", "threads", "workers", str(tmp_path), "w.pth"):
        assert word not in text
    (tmp_path / "recipe.yaml").write_text(text)
    config = ["--config", str(tmp_path / "recipe.yaml")]
    for given, asked in (([], "--initial-checkpoint"), (["--initial-checkpoint", "None"], "--dataset")):
        with pytest.raises(SettingsError, match=f"^{asked} is empty: .*"):
            parse_settings([*config, *given])
    again = parse_settings([*config, "--initial-checkpoint", "None", "--dataset", "theirs"])
    assert (again.optimizer, again.preprocessing) == (settings.optimizer, settings.preprocessing)
    assert again.data == replace(parse_settings([]).data, dataset="theirs")
    assert (again.run.push_to_hub, again.loop.threads) == (None, None)
    assert "dataset: me/images\n" in write_recipe(parse_settings(["--dataset", "me/images"]), "", portable=True)


def test_a_recipe_is_found_by_name_and_by_path() -> None:
    for recipe in ALL:
        assert parse_settings(["--config", recipe.stem]).run.config == recipe.stem  # which also checks its rules
    for config in (ALL[0].stem, str(ALL[0])):
        assert flat(parse_settings(["--config", config])) == flat(read_recipe(str(ALL[0]))) | {"config": config}
    with pytest.raises(SettingsError, match=r"cifar100_resnet9 .*cifar100_resnet18"):
        parse_settings(["--config", "cifar100_resnet9"])


@pytest.mark.parametrize(
    "flags",
    ["--cutmix-minmax 0.2 0.8 --mixup-prob 0.5", "--task segmentation --sched none", "--sched poly --decay-rate 2"],
)
def test_settings_that_have_an_effect_are_accepted(flags: str) -> None:
    parse_settings(flags.split())


def test_a_flag_may_overrule_what_a_recipe_needs(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mixup: 0.2\nmixup_off_epoch: 10\n")
    for flags in ([], ["--dataset", "./mixup_off_epoch"]):  # a value is no flag
        parse_settings(["--config", str(tmp_path / "recipe.yaml"), "--mixup", "0", *flags])


def test_a_default_that_was_written_out_makes_no_other_recipe() -> None:
    plateau = ["--sched", "plateau"]
    written = comparable(flat(parse_settings([*plateau, "--decay-rate", "0.1"])))
    assert differences(written, comparable(flat(parse_settings(plateau)))) == []
    assert {"sched", "decay_rate"} <= {*differences(written, comparable(flat(parse_settings(["--sched", "poly"]))))}


def test_a_value_that_cannot_be_parsed_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 3.5\n")
    with pytest.raises(SettingsError, match=r"recipe\.yaml has an invalid value for --epochs"):
        read_recipe(str(tmp_path / "recipe.yaml"))
    (tmp_path / "recipe.yaml").write_text("amp: maybe\n")
    with pytest.raises(SettingsError, match=r"'amp' in the recipe .*recipe\.yaml is maybe: give true or false\.$"):
        read_recipe(str(tmp_path / "recipe.yaml"))


REFUSED = {
    "--color-jitter inf": "--color-jitter .*finite", "--alpha nan": "--alpha .*finite", "--std 0": "--std .*above 0",
    "--class-weights 1 inf --task segmentation": "--class-weights .*finite", "--mean 0.5 0.5": "--mean .* 3 ",
    "--mean 127": "--mean .*at most", "--cutmix 5e-324": "0 or not below 1e-30",
    "--std 0.1 0.2": "--std .* 3 ", "--ratio 0 1": "--ratio .*above 0",
    "--ratio 2 1": "--ratio .*smaller", "--scale 1 0.1": "--scale .*smaller", "--model-kwargs in_chans=1": "in_chans",
    "--jsd-loss": "--aug-repeats", "--warmup-epochs 15": "--epochs 15", "--sched multistep": "--decay-milestones",
    **{f"--tag={tag}": "--tag .*letters" for tag in ("../x", ".hidden", "a/b", "x" * 65)}, "--tag=": "--tag is empty",
    "--project=a/b": "--project .*letters", "--bce-sum": "--bce-loss", "--teacher-view clean": "--reprob, --mixup or",
    "--clip-mode agc": "--clip-grad", "--model-ema-decay 0.9": "--model-ema:", "--mixup-prob 0.5": "--mixup, --cutmix",
    "--color-jitter-prob 0.5": "--color-jitter:", "--aa rand-m9 --color-jitter 0.4": "--color-jitter .*--aa",
    "--sched none --warmup-epochs 1": "--warmup-epochs .*none", "--decay-rate 2": "--decay-rate .*at most 1",
    "--linear-probe --method ce --drop 0.5": "--drop .*--linear-probe",
    "--linear-probe --method ce --clip-grad 1 --clip-mode agc": "classifier", "--method ce --baseline a": "--baseline",
    "--linear-probe --method ce --layer-decay 0.5": "--layer-decay .*--linear-probe", "--lr-base-size 64": "--lr-base:",
    "--layer-decay 0.7 --task segmentation": "--layer-decay .*segmentation", "--self-teacher sum": "bifpnc or residual",
    "--lr 1 --lr-base 1": "cannot be combined", "--sched plateau --decay-rate 1": "below 1", "--sla-weight 2": "--sla:",
    "--tag=a\nb": "control", "--momentun 1": "--momentum", "--patience-epochs 3": "plateau:", "--lr -1": "above 0",
    "--baseline a --baseline b": "--baseline is given twice", "--aug-repeats 0.5": "must be 0 or at least 1",
    "--in-chans 1 --grayscale-prob 0.5": "--grayscale-prob .*--in-chans 1", "--noisy-labels --mixup 0.2": "--mixup:",
    "--model-kwargs img_size=64": "--img-size", "--opt-kwargs weight_decay=0": "--weight-decay",
    "--opt-kwargs weight_decay_exclude_1d=True": "--filter-bias-and-bn",
    "--opt-kwargs layer_decay=0.5": "--layer-decay", "--model hf-hub:a/b --no-pretrained": "hf-hub:a/b.* architecture",
}  # fmt: skip


@pytest.mark.parametrize("flags", REFUSED)
def test_a_setting_that_cannot_be_used_is_refused_by_name(flags: str) -> None:
    with pytest.raises(SettingsError, match=REFUSED[flags]):
        parse_settings(flags.split(" "))


@pytest.mark.parametrize(("trackers", "words"), [("none,wandb", "none .*tensorboard"), ("dvclive", "dvclive .*pip")])
def test_a_tracker_that_cannot_be_used_is_refused_before_data_are_read(trackers: str, words: str) -> None:
    with pytest.raises(UserError, match=f"--report-to {words}"):
        train_here("--report-to", trackers, "--dataset", "nowhere")
