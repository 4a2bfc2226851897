"""Datasets to batches: what training sees is reproducible, what validation sees is what timm will see later."""

import hashlib
import pickle
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import MODEL_CFG, encoded, load, picture, pictures, save, split
from timm.data import create_transform, resolve_data_config

from frskd_timm.errors import UserError
from frskd_train.data import load_data, load_validation
from frskd_train.data.source import SAMPLE_FOLDER, find_source
from frskd_train.data.targets.class_label import read_labels
from frskd_train.settings import DataSettings, PreprocessingSettings
from frskd_train.settings.parse import parse_settings
from tools import make_sample

IDX_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("data") / "small", train=pictures(37), test=pictures(23))


def global_random_state() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


# --- The sample that ships -------------------------------------------------------------------------------------------


def test_the_sample_is_what_its_card_says() -> None:
    card = (SAMPLE_FOLDER / "README.md").read_text()
    for name, count in (("train", 4000), ("test", 1000)):
        content = (SAMPLE_FOLDER / f"{name}.parquet").read_bytes()
        assert hashlib.sha256(content).hexdigest() in card
        labels, names = read_labels({name: find_source(DataSettings()).splits[name]}, "label")
        assert np.bincount(labels[name]).tolist() == [count // 10] * 10
        assert ", ".join(names) in card


@pytest.mark.skipif(not IDX_FOLDER.exists(), reason="needs the Debian package dataset-fashion-mnist")
def test_the_sample_is_made_again_from_the_original_files(tmp_path: Path) -> None:
    make_sample.main(["--idx-dir", str(IDX_FOLDER), "--output", str(tmp_path)])
    for name in ("train", "test"):
        made, shipped = (find_source(DataSettings(str(folder))).splits[name] for folder in (tmp_path, SAMPLE_FOLDER))
        assert made.features == shipped.features
        assert made["label"][:] == shipped["label"][:]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(made["image"], shipped["image"], strict=True))


def test_the_sample_loads_fast_and_is_augmented_faster_than_any_network_trains() -> None:
    data = load("fashion_mnist_sample")
    assert (data.num_train, data.num_val, data.num_classes, data.license) == (4000, 1000, 10, "mit")
    assert data.preprocessing.input_size == (3, 28, 28)
    batches = data.train_batches(128, seed=1)
    assert len(batches) == 31
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = []
        for epoch in range(5):
            start = time.process_time()  # of the processor: others may use it too
            count = sum(len(target) for _, target in batches.epoch(epoch))
            rates.append(count / (time.process_time() - start))
    finally:
        torch.set_num_threads(threads)
    assert max(rates) > 20_000


# --- What validation and users see -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"img_size": (16,), "crop_pct": 0.8, "interpolation": "bicubic"},
        {"img_size": (20,), "mean": (0.5, 0.4, 0.3), "std": (0.2,), "data_mode": "stream", "workers": 0},
        {"img_size": (24,), "in_chans": 1, "train_crop_mode": "rrc"},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_validation_is_timms_own_preprocessing(chosen: dict[str, Any], mode: str, tmp_path: Path) -> None:
    rows = [encoded(picture(k, width=30 + 5 * k, height=25, mode=mode)) for k in range(6)]
    test = split(rows, [0, 1, 2] * 2)
    data = load(save(tmp_path / "data", train=test, test=test), **chosen)
    wanted = data.preprocessing
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=asdict(wanted)))
    # What a user does who has the exported config.json and an image file.
    users = torch.stack([transform(row.convert("RGB" if wanted.input_size[0] == 3 else "L")) for row in test["image"]])
    ours = torch.cat([images for images, _ in data.val_batches(4)])
    torch.testing.assert_close(ours, users, rtol=1e-5, atol=1e-5)


def test_mean_and_deviation_are_given_measured_or_the_models_own(small: Path) -> None:
    measured = load(small, train_crop_mode="none", hflip=0.0)
    images = torch.cat([images for images, _ in measured.train_batches(37).epoch(0)])
    assert images.mean((0, 2, 3)).abs().max() < 1e-3
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert load(small, mean=(0.1,), std=(0.2, 0.3, 0.4)).preprocessing.mean == (0.1, 0.1, 0.1)
    own = load_data(
        DataSettings(dataset=str(small)), PreprocessingSettings(), model_cfg=MODEL_CFG, initial_cfg=MODEL_CFG
    )
    assert (own.preprocessing.mean, own.preprocessing.std) == (MODEL_CFG["mean"], MODEL_CFG["std"])


def test_filter_and_crop_of_validation_are_given_or_the_models_own(small: Path) -> None:
    cfg = {**MODEL_CFG, "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "squash"}

    def found(initial_cfg: dict[str, Any] | None = cfg, **chosen: Any) -> tuple[str, float, str]:
        settings = PreprocessingSettings(**chosen)
        data = load_data(DataSettings(str(small)), settings, model_cfg=MODEL_CFG, initial_cfg=initial_cfg)
        own = data.preprocessing
        return own.interpolation, own.crop_pct, own.crop_mode

    assert found(train_crop_mode="rrc") == ("bicubic", 0.95, "squash")
    assert found(train_crop_mode="pad") == ("bicubic", 1.0, "squash")  # trained on whole images
    assert found(train_crop_mode="rrc", interpolation="bilinear", crop_pct=0.9, crop_mode="center") == (
        "bilinear", 0.9, "center"
    )  # fmt: skip
    assert found(None, train_crop_mode="rrc") == ("bilinear", 1.0, "center")
    assert found({"interpolation": "lanczos", "crop_mode": "border"}) == ("bilinear", 1.0, "center")  # not for training


@pytest.mark.parametrize("mode", ["memory", "stream"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world_size=st.integers(1, 5), batch_size=st.integers(1, 9))
def test_validation_counts_each_image_once(mode: str, small: Path, world_size: int, batch_size: int) -> None:
    data = load(small, data_mode=mode, workers=0)
    parts = [data.val_batches(batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = torch.cat([images for part in parts for images, _ in part])
    assert torch.equal(seen, torch.cat([images for images, _ in data.val_batches(23)]))


def test_a_trained_model_is_evaluated_without_the_training_images(small: Path, tmp_path: Path) -> None:
    trained = load(small, img_size=(16,))
    test_only = DataSettings(str(save(tmp_path / "test only", test=pictures(23))), val_split="test")
    reordered = load_validation(test_only, trained.preprocessing, classes=["eel", "zebra", "dog", "cat"])
    assert (len(reordered.val), reordered.num_classes, reordered.val_split) == (23, 4, "test")
    only_split = load_validation(DataSettings(test_only.dataset), trained.preprocessing, classes=3)
    assert len(only_split.val) == 23
    for (images, target), (again, number) in zip(trained.val_batches(9), reordered.val_batches(9), strict=True):
        assert torch.equal(images, again)
        assert number.tolist() == [{0: 3, 1: 2, 2: 0}[label] for label in target.tolist()]
    with pytest.raises(UserError, match=r"classes that the model does not know.*: dog"):
        load_validation(test_only, trained.preprocessing, classes=["cat", "eel"])

    # Where training held rows out, the same ones are evaluated on.
    held_out = save(tmp_path / "held out", train=pictures(40))
    wanted = torch.cat([images for images, _ in load(held_out).val_batches(9)])
    found = load_validation(DataSettings(str(held_out)), load(held_out).preprocessing, classes=3)
    assert torch.equal(torch.cat([images for images, _ in found.val_batches(9)]), wanted)


# --- What training sees ----------------------------------------------------------------------------------------------

AUGMENTATIONS = st.fixed_dictionaries(
    {
        "train_crop_mode": st.sampled_from(["pad", "rrc", "none"]),
        "hflip": st.sampled_from([0.0, 0.5]),
        "vflip": st.sampled_from([0.0, 0.5]),
        "reprob": st.sampled_from([0.0, 0.7]),
        "data_mode": st.sampled_from(["memory", "stream"]),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=AUGMENTATIONS,
    per_process=st.integers(2, 7),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 300),
    start=st.integers(0, 6),
)
def test_batches_follow_from_seed_epoch_and_step_alone(
    small: Path, chosen: dict[str, Any], per_process: int, world_size: int, seed: int, epoch: int, start: int
) -> None:
    data = load(small, workers=0, **chosen)
    before = global_random_state()
    one = list(data.train_batches(per_process * world_size, seed=seed).epoch(epoch))
    assert global_random_state() == before
    assert len(one) == 37 // (per_process * world_size)

    # Several processes see, side by side, what one sees with the same global batch.
    shares = [
        list(data.train_batches(per_process, rank=rank, world_size=world_size, seed=seed).epoch(epoch))
        for rank in range(world_size)
    ]
    for step, (images, target) in enumerate(one):
        assert torch.equal(images, torch.cat([share[step][0] for share in shares]))
        assert torch.equal(target, torch.cat([share[step][1] for share in shares]))

    # An epoch entered late goes on as if it had been watched from its beginning.
    late = list(data.train_batches(per_process * world_size, seed=seed).epoch(epoch, start))
    assert len(late) == max(len(one) - start, 0)
    assert all(torch.equal(a, b) and torch.equal(s, t) for (a, s), (b, t) in zip(late, one[start:], strict=True))


def test_epochs_go_through_all_rows_each_in_another_order(small: Path) -> None:
    data = load(small, train_crop_mode="none", hflip=0.0)
    batches = data.train_batches(37, seed=3)
    (first, _), (second, _) = (next(batches.epoch(epoch)) for epoch in (0, 1))
    assert not torch.equal(first, second)
    rows = [{tuple(image.flatten().tolist()) for image in images} for images in (first, second)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 37


def test_an_epoch_entered_late_decodes_nothing_before(small: Path, tmp_path: Path) -> None:
    order = load(small).train_batches(6).order
    rows = [encoded(picture(k)) for k in range(37)]
    for row in order.permutation(0)[: 5 * 6]:
        rows[row] = {"bytes": b"not an image", "path": None}
    damaged = save(tmp_path / "data", train=split(rows, [k % 3 for k in range(37)]), test=pictures(9))
    batches = load(damaged, data_mode="stream", workers=0, img_size=(12,), mean=(0.5,), std=(0.2,)).train_batches(6)
    assert len(list(batches.epoch(0, start=5))) == 1
    with pytest.raises(UserError, match="cannot be read"):
        next(batches.epoch(0, start=4))


def test_streaming_gives_the_bits_that_memory_gives(small: Path) -> None:
    chosen = {"reprob": 0.5, "vflip": 0.3, "cutmix": 1.0}
    in_memory = list(load(small, data_mode="memory", **chosen).train_batches(8, seed=5).epoch(4))
    for workers in (0, 2):
        data = load(small, data_mode="stream", workers=workers, **chosen)
        streamed = list(data.train_batches(8, seed=5).epoch(4))
        assert all(torch.equal(a, b) and torch.equal(s, t) for (a, s), (b, t) in zip(in_memory, streamed, strict=True))


def test_policies_do_not_depend_on_the_number_of_workers_or_processes(small: Path) -> None:
    chosen = {"aa": "rand-m9-mstd0.5", "img_size": (16,), "train_crop_mode": "rrc"}
    alone, helped = (load(small, workers=workers, **chosen) for workers in (0, 2))
    pickle.dumps((alone.train, alone.augmentation))  # workers are spawned, not forked, on some systems
    assert (alone.mode, helped.mode) == ("stream", "stream")
    batches = helped.train_batches(8, seed=2)
    for _ in batches.epoch(0):
        break  # left in the middle, as by a checkpoint before the end
    wanted = list(alone.train_batches(8, seed=2).epoch(1))
    found = list(batches.epoch(1))
    halves = [list(alone.train_batches(4, rank=rank, world_size=2, seed=2).epoch(1)) for rank in (0, 1)]
    for step, (images, _) in enumerate(wanted):
        assert torch.equal(images, found[step][0])
        assert torch.equal(images, torch.cat([halves[0][step][0], halves[1][step][0]]))
    assert not torch.equal(next(alone.train_batches(8, seed=2).epoch(2))[0], wanted[0][0])


def test_crops_flips_and_resized_crops_are_what_they_say(small: Path) -> None:
    plain = load(small, train_crop_mode="none", hflip=0.0, mean=(0.0,), std=(1.0,))
    originals, _ = next(plain.train_batches(37, seed=1).epoch(0))
    for hflip, vflip in ((1.0, 0.0), (0.0, 1.0)):
        flips = load(small, train_crop_mode="none", hflip=hflip, vflip=vflip, mean=(0.0,), std=(1.0,))
        mirrored, _ = next(flips.train_batches(37, seed=1).epoch(0))
        assert torch.equal(mirrored, originals.flip(3 if hflip else 2))

    padded, _ = next(load(small, crop_padding=3, hflip=0.0, mean=(0.0,), std=(1.0,)).train_batches(37, seed=1).epoch(0))
    places = set()
    for image, original in zip(padded, originals, strict=True):
        framed = torch.nn.functional.pad(original, (3, 3, 3, 3))
        (place,) = [(y, x) for y in range(7) for x in range(7) if torch.equal(framed[:, y : y + 12, x : x + 12], image)]
        places.add(place)
    assert len(places) > 15
    assert {y for y, _ in places} == {x for _, x in places} == set(range(7))

    whole: dict[str, Any] = {"train_crop_mode": "rrc", "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0}
    for mode in ("memory", "stream"):
        data = load(small, **whole, mean=(0.0,), std=(1.0,), data_mode=mode, workers=0)
        torch.testing.assert_close(next(data.train_batches(37, seed=1).epoch(0))[0], originals, rtol=0, atol=1e-3)


def test_small_and_unequal_datasets_fill_at_least_one_batch(small: Path) -> None:
    data = load(small)
    (batch,) = data.train_batches(64, rank=1, world_size=2).epoch(0)
    assert len(batch[1]) == 18
    with pytest.raises(UserError, match="37 training image"):
        data.train_batches(8, rank=0, world_size=38)
    assert len(next(data.train_batches(1).epoch(0))[1]) == 1


@pytest.mark.parametrize(
    ("flags", "padding"), [([], 0), (["--train-crop-mode", "pad"], 4), (["--crop-padding", "2"], 2)]
)
def test_the_sample_is_cropped_on_request_only(flags: list[str], padding: int) -> None:
    settings = parse_settings(["--train-num-samples", "40", *flags])
    data = load_data(settings.data, settings.preprocessing, model_cfg={})
    assert data.augmentation.padding == padding
