"""Random settings, random data, damaged recipes: always a result or an error message, never a traceback."""

import itertools
import shutil
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pictures import encoded, picture, save, split
from runs import train_here

from frskd_timm.errors import UserError
from frskd_train.errors import SettingsError
from frskd_train.settings import Settings, declared, default_settings
from frskd_train.settings import flag as flag_of
from frskd_train.settings.constraints import SEGMENTATION, Range
from frskd_train.settings.model import FEATURE_LOSSES, GATES, LOGIT_LOSSES, SCHEDULES, SELF_TEACHERS
from frskd_train.settings.parse import parse_settings
from frskd_train.settings.recipe import RECIPES, write_recipe

WORDS: dict[str, st.SearchStrategy] = {
    "model": st.sampled_from(["test_resnet", "test_vit", "test_convnext", "no_model", "wide_resnet16_2_frskd"]),
    "opt": st.sampled_from(["sgd", "adamw", "lamb", "muon", "adafactor", "nonsense", "prodigy"]),
    "aa": st.sampled_from(["rand-m9-mstd0.5", "original", "nonsense", "rand", ""]),
    "self_teacher": st.sampled_from([*itertools.chain(*SELF_TEACHERS.values()), "nonsense"]),
    "feature_loss": st.sampled_from([*FEATURE_LOSSES, "nonsense"]),
    "logit_loss": st.sampled_from([*LOGIT_LOSSES, "nonsense"]),
    "gate": st.sampled_from([*GATES, "nonsense"]),
    "distill_schedule": st.sampled_from([*SCHEDULES, "nonsense"]),
    "model_kwargs": st.dictionaries(
        st.sampled_from(["patch_size", "-", "features_only", "global_pool"]), st.sampled_from(["4", "[", "", "True"]),
        max_size=1),
    "class_weights": st.lists(st.sampled_from(["auto", "effective_num", "1", "x"]), min_size=1, max_size=3),
    "project": st.sampled_from(["images"]),
    "run_name": st.sampled_from(["first"]),
    "opt_kwargs": st.dictionaries(st.sampled_from(["eps", "nonsense"]), st.sampled_from(["1e-6", "x"]), max_size=1),
    "tag": st.text(max_size=8) | st.just("../x"),
    "license": st.sampled_from(["mit", "nonsense"]),
    "train_split": st.sampled_from(["train", "test", "all", ""]),
    "val_split": st.sampled_from(["train", "test", "nowhere"]),
    "calibration_split": st.sampled_from(["train", "test", "all", "nowhere"]),
    "input_key": st.sampled_from(["image", "label"]),
    "target_key": st.sampled_from(["label", "image", "x"]),
    "class_map": st.sampled_from(["nowhere.txt", str(ROOT / "LICENSE")]),
    "initial_checkpoint": st.sampled_from(["nowhere.pth", str(ROOT / "LICENSE")]),
    "report_to": st.lists(st.sampled_from(["nonsense", "wandb,", "tensorboard"]), min_size=1),
    "mean": st.lists(st.floats(0, 1), min_size=1, max_size=3).map(lambda values: list(map(str, values))),
    "img_size": st.lists(st.integers(7, 64).map(str), min_size=1, max_size=2),
    "teacher_width": st.sampled_from(["0.1", "0.5", "1", "2.5", "3", "0", "-1", "nan", "inf"]),  # more takes memory
}  # fmt: skip
# Left as they are: places, other tests' subjects, what costs minutes, or would reach for the network.
APART = {"config", "output_dir", "resume", "push_to_hub", "hub_private", "export", "torchcompile", "threads", "dataset",
         "dataset_config", "dataset_revision", "pretrained", "workers", "baseline", "task"}  # fmt: skip
COUNTS = {"epochs": 2, "teacher_depth": 3, "teacher_repeats": 3, "batch_size": 12,
          "num_classes": 9, "validation_batch_size": 9, "grad_accum_steps": 5, "feature_levels": 6}  # fmt: skip


def flags_of(name: str, kind: Any) -> st.SearchStrategy[list[str]]:
    """Flags for one setting: mostly within its bounds, sometimes not."""
    flag = flag_of(name)
    if name in WORDS:
        flat = lambda value: [f"{key}={part}" for key, part in value.items()] if isinstance(value, dict) else value
        listed = lambda value: [flag, *value] if isinstance(value, list) else [f"{flag}={value}"]
        return WORDS[name].map(flat).map(listed)
    if type(None) in typing.get_args(kind):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from([*typing.get_args(kind), "nonsense"]).map(lambda value: [f"{flag}={value}"])
    if kind is bool:
        return st.sampled_from([flag, flag_of(f"no_{name}")]).map(lambda text: [text])
    if typing.get_origin(kind) is tuple:
        number = st.integers(0, 3) if int in typing.get_args(kind) else st.floats(0, 2)
        return st.lists(number, min_size=0, max_size=3).map(lambda values: [flag, *map(str, values)])
    bound = next(fact for fact in declared(Settings)[name] if isinstance(fact, Range))  # every number has one
    low = bound.low if bound.low is not None else 0
    if kind is int:
        inside, extremes = st.integers(int(low), COUNTS.get(name, 30)), [-1, 0]
    else:
        high = min(bound.high if bound.high is not None else 10, 10)
        inside, extremes = st.floats(low, high), [-1.0, 0.0, 1e-300, 1e30, float("nan"), float("inf")]
    number = st.integers(0, 9).flatmap(lambda k: st.sampled_from(extremes) if k == 9 else inside)
    return number.map(lambda value: [f"{flag}={value}"])


def any_settings() -> st.SearchStrategy[list[str]]:
    groups = typing.get_type_hints(Settings).values()
    hints = {name: kind for group in groups for name, kind in typing.get_type_hints(group).items()}
    others = {name for name, facts in declared(Settings).items() if SEGMENTATION in facts}  # refused without that task
    names = st.lists(st.sampled_from(sorted(set(hints) - APART - others)), max_size=4, unique=True)
    several = names.flatmap(lambda chosen: st.tuples(*(flags_of(name, hints[name]) for name in chosen)))
    return several.map(lambda parts: [flag for flags in parts for flag in flags])


@contextmanager
def only_sentences(flags: list[str]) -> Iterator[None]:
    try:
        yield
        event("a result")
    except (UserError, SettingsError) as error:
        event("a sentence")
        sentence = str(error)
        assert "\n" not in sentence
        assert 20 < len(sentence) < 1000
    except SystemExit as end:  # a value that cannot be parsed; tyro has printed the message
        event("a flag that does not parse")
        assert end.code == 2 or "--help" in flags  # noqa: PT017


def any_outcome(flags: list[str], seed: int, sizes: tuple[int, int], place: Path) -> None:
    rng = np.random.default_rng(seed)
    splits = {}
    for name, count in zip(("train", "test"), sizes, strict=True):
        shapes = rng.integers(1, 30, (count, 2)).tolist() if seed % 2 else [[16, 16]] * count
        rows = [encoded(picture(k, *shape, str(rng.choice(["L", "RGB", "RGBA"])))) for k, shape in enumerate(shapes)]
        if seed % 16 == 5 and rows:
            rows[-1] = {"bytes": b"no image", "path": None}
        splits[name] = split(rows, rng.integers(0, 3, count).tolist())
    save(place / "data", **splits)
    base = ["--dataset", place / "data", "--model", "test_resnet", "--epochs", 1, "--batch-size", 4, "--threads", 1]
    try:
        with only_sentences(flags):
            train_here(*base, "--lr", 0.01, "--no-amp", *flags, "--output-dir", place / "run")
            assert (place / "run" / "student" / "model.safetensors").is_file()
    finally:
        shutil.rmtree(place)


SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
ODD = ["null", "yes", "[]", "[1, [2]]", "{a: {b: 1}}", "{a: 1}", "{--lr: 1}", "-1", ".inf", ".nan", "1e999",
       "--push-to-hub", "['--lr', '3']", "2001-99-99", "9" * 5000, '"\\0"', "&a [*a]", "!!python/object:os.system x",
       "{" * 2000, "*x", ""]  # fmt: skip
KEYS = st.sampled_from(sorted(declared(Settings))) | st.sampled_from(["learning_rate", "1", "? [1]", "<<", "help"])
VALUES = st.sampled_from(ODD) | st.text(max_size=6) | st.floats().map(str)
LINES = st.tuples(KEYS, VALUES).map(lambda pair: f"{pair[0]}: {pair[1]}".encode()) | st.binary(max_size=8)
FLAGS = KEYS.map(flag_of) | VALUES | st.tuples(KEYS.map(flag_of), VALUES).map("=".join)
BASES = [*(write_recipe(default_settings(task), "x") for task in ("classification", "segmentation")),
         (RECIPES / "finetune.yaml").read_text(encoding="utf-8")]  # fmt: skip


@hypothesis_settings(max_examples=40, **SLOW)  # type: ignore[arg-type]
@given(
    base=st.sampled_from(BASES),
    damage=st.lists(st.tuples(st.integers(0, 120), LINES), max_size=4),
    flags=st.lists(FLAGS, max_size=4) | st.just([]),
    flag=st.sampled_from(["--config", "--resume"]),
)
def test_damaged_recipes_and_flags_end_in_settings_or_a_sentence(
    base: str, damage: list[tuple[int, bytes]], flags: list[str], flag: str, tmp_path: Path
) -> None:
    lines = base.encode().splitlines()
    for place, line in damage:
        lines[place % len(lines)] = line
    (tmp_path / "config.yaml").write_bytes(b"\n".join(lines))
    with only_sentences(flags):
        parse_settings([flag, str(tmp_path if flag == "--resume" else tmp_path / "config.yaml"), *flags])


SIZES = st.sampled_from([(24, 9), (17, 8), (16, 6), (12, 5), (9, 9), (8, 3), (7, 1), (0, 9), (9, 0)])
ANYTHING = given(flags=any_settings(), seed=st.integers(0, 2**20), sizes=SIZES)


@hypothesis_settings(max_examples=12, **SLOW)  # type: ignore[arg-type]
@ANYTHING
def test_any_settings_on_any_data_end_in_a_result_or_a_sentence(
    flags: list[str], seed: int, sizes: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    any_outcome(flags, seed, sizes, tmp_path_factory.mktemp("any"))


@pytest.mark.long
@hypothesis_settings(max_examples=40, **SLOW)  # type: ignore[arg-type]
@ANYTHING
def test_many_settings_on_much_data_end_in_a_result_or_a_sentence(
    flags: list[str], seed: int, sizes: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    any_outcome(flags, seed, sizes, tmp_path_factory.mktemp("any"))
