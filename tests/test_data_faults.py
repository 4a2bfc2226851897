"""Bad data and mistaken settings: handled, left out, or refused in one sentence."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import damaged, encoded, load, picture, pictures, save, split
from PIL import Image
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_timm.pixels import to_8_bits
from frskd_train.data import load_data
from frskd_train.settings import DataSettings, PreprocessingSettings
from frskd_train.settings.constraints import TINY

# --- Images of every kind --------------------------------------------------------------------------------------------


def sixteen_bits() -> dict[str, Any]:
    ramp = np.linspace(0, 65535, 144).astype(np.uint16).reshape(12, 12)
    return encoded(Image.fromarray(ramp))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    return exif


def upright_by_exif() -> dict[str, Any]:
    return encoded(picture(1).transpose(Image.Transpose.ROTATE_90), exif=turned())


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (encoded(picture(1, mode="L")), picture(1, mode="L")),
        (encoded(picture(1, mode="L").convert("LA")), picture(1, mode="L")),
        (encoded(picture(1, mode="1")), picture(1, mode="1")),
        (encoded(picture(1, mode="RGBA")), picture(1)),
        (encoded(picture(1).quantize(8)), picture(1).quantize(8)),
        (encoded(picture(1, mode="CMYK"), "TIFF"), picture(1, mode="CMYK")),
        (encoded(picture(1), "JPEG", quality=100, subsampling=0), picture(1)),
        (encoded(picture(1), "WEBP", lossless=True), picture(1)),
        (encoded(picture(1), "GIF"), picture(1)),
        (sixteen_bits(), Image.fromarray(np.linspace(0, 255, 144).reshape(12, 12).astype(np.uint8))),
        (upright_by_exif(), picture(1)),
        (encoded(picture(1), exif=b"Exif\x00\x00damaged"), picture(1)),
        (encoded(Image.new("RGB", (1, 1), (9, 8, 7))), Image.new("RGB", (12, 12), (9, 8, 7))),
        (encoded(Image.new("RGB", (4000, 3000), (9, 8, 7))), Image.new("RGB", (12, 12), (9, 8, 7))),
    ],
    ids=["L", "LA", "1", "RGBA", "P", "CMYK", "JPEG", "WEBP", "GIF", "16-bit", "EXIF", "damaged EXIF", "1x1", "large"],
)
def test_images_of_every_kind_are_read(row: dict[str, Any], wanted: Image.Image, tmp_path: Path) -> None:
    data = load(
        save(tmp_path / "data", train=pictures(6), test=split([row, encoded(picture(2))], [0, 1])),
        mean=(0.0,), std=(1.0,), img_size=(12,),
    )  # fmt: skip
    ((images, _),) = data.val_batches(2)
    pixels = torch.from_numpy(np.asarray(wanted.convert("RGB")).transpose(2, 0, 1) / 255).float()
    assert (images[0] - pixels).abs().mean() < 0.02


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_turned_images_have_the_size_of_the_upright_ones(kind: str, tmp_path: Path) -> None:
    rows = [encoded(picture(number, 24, 32), kind, exif=turned()) for number in range(6)]
    data = load(save(tmp_path / "data", train=split(rows, [0, 1, 2] * 2)), val_fraction=0.5, img_size=(12,))
    assert data.train.split.images.headers(np.arange(1))[0].size == (24, 32)
    assert to_8_bits(Image.open(io.BytesIO(rows[0]["bytes"]))).size == (32, 24)


def test_what_the_network_does_not_see_is_said(tmp_path: Path) -> None:
    tall = save(tmp_path / "tall", train=split([encoded(picture(k, 20, 60)) for k in range(9)], [0, 1, 2] * 3))
    (note,) = load(tall, val_fraction=0.4, img_size=(20,)).notes
    assert "centre of images such as 60x20 pixels (height x width) is used; --crop-mode squash" in note
    whole = load(tall, val_fraction=0.4, img_size=(20,), crop_mode="squash", mean=(0.0,), std=(1.0,))
    assert whole.notes == ()
    expected = np.asarray(picture(int(whole.val.source.rows[0]), 20, 60).resize((20, 20), Image.Resampling.BILINEAR))
    shown = whole.preprocessing.to_bytes(next(iter(whole.val_batches(1)))[0])[0]
    assert np.abs(shown.astype(int) - expected).max() <= 2
    data, preprocessing = DataSettings(str(tall), val_fraction=0.4), PreprocessingSettings(crop_mode="squash")
    trained = load_data(data, preprocessing, model_cfg={}, initial_cfg={"input_size": (3, 64, 64)})
    assert trained.notes == (
        "The initial weights were trained at 64x64 pixels; this run uses 60x20 pixels (height x width).",
    )
    assert load(tall, val_fraction=0.4, train_crop_mode="rrc", data_mode="stream", crop_mode="squash").notes == ()
    (note,) = load(tall, val_fraction=0.4, img_size=(20,), train_crop_mode="rrc", crop_mode="squash").notes
    assert note.startswith("Training images are kept at 23x23 pixels and cropped there; --data-mode stream")


# --- Mistakes --------------------------------------------------------------------------------------------------------

INTEGERS = datasets.Value("int64")
ROWS = [encoded(picture(k)) for k in range(6)]
GOOD = split(ROWS, [0, 1, 2] * 2)
INTEGER_LABELS = split(ROWS, [0, 1] * 3, INTEGERS)
NO_LABELS = split(ROWS, ["glad", "sad"] * 3, datasets.Value("string")).rename_column("label", "mood")
TWO_IMAGES = datasets.concatenate_datasets(
    [GOOD, split(ROWS, [0] * 6).select_columns("image").rename_column("image", "photo")], axis=1
)

MISTAKES: list[tuple[str, dict[str, datasets.Dataset], dict[str, Any]]] = [
    ("no image column", {"train": datasets.Dataset.from_dict({"text": ["a"] * 4, "label": [0, 1] * 2})}, {}),
    ("no label column", {"train": NO_LABELS}, {}),
    ("several image columns .* --task segmentation", {"train": TWO_IMAGES}, {}),
    ("--input-key label", {"train": GOOD}, {"input_key": "label"}),
    ("--input-key photo", {"train": GOOD}, {"input_key": "photo"}),
    ("--target-key name", {"train": GOOD}, {"target_key": "name"}),
    ("both name the column image", {"train": GOOD}, {"target_key": "image"}),
    ("holds float", {"train": split(ROWS, [0.0, 0.5] * 3, datasets.Value("float32"))}, {}),
    ("holds List", {"train": split(ROWS, [[0], [1]] * 3, datasets.List(INTEGERS))}, {}),
    ("Row 1 .* label -1", {"train": split(ROWS, [0, -1] * 3, INTEGERS)}, {}),
    ("Row 5 of split test .* unlabelled", {"train": GOOD, "test": split(ROWS, [0, 1, 2, 0, 1, -1])}, {}),
    ("Row 2 .* no value", {"train": split(ROWS, ["a", "b", None] * 2, datasets.Value("string"))}, {}),
    ("only one class", {"train": split(ROWS, [3] * 6, INTEGERS)}, {}),
    ("only one class", {"train": split(ROWS, [3] * 6, INTEGERS), "test": split(ROWS, [3] * 6, INTEGERS)}, {}),
    ("without an image in split train: eel", {"train": split(ROWS, [0, 1] * 3), "test": GOOD}, {}),
    ("in split train: 7", {"train": INTEGER_LABELS, "test": split(ROWS, [0, 1, 7] * 2, INTEGERS)}, {}),
    ("Split train .* is empty", {"train": split([], [])}, {}),
    ("Split test .* is empty", {"train": GOOD, "test": split([], [])}, {}),
    ("no split named train", {"test": GOOD, "validation": GOOD}, {}),
    ("--train-split all", {"train": GOOD}, {"train_split": "all"}),
    ("--val-split train is also the training split", {"train": GOOD}, {"val_split": "train"}),
    ("--val-fraction 0", {"train": GOOD}, {"val_fraction": 0.0}),
    ("--val-fraction has no effect with a validation split", {"train": GOOD, "test": GOOD}, {"val_fraction": 0.2}),
    ("only 6 training images", {"train": GOOD, "test": GOOD}, {"train_num_samples": 7}),
    ("less than one image", {"train": GOOD, "test": GOOD}, {"train_num_samples": 2}),
    ("--crop-padding 13", {"train": GOOD}, {"crop_padding": 13}),
    ("--crop-padding has no effect with .* rrc", {"train": GOOD}, {"crop_padding": 2, "img_size": (96,)}),
    ("--aa rend-m9", {"train": GOOD}, {"aa": "rend-m9"}),
    ("--aa works on one image", {"train": GOOD}, {"aa": "rand-m9", "data_mode": "memory"}),
    ("--dataset-revision", {"train": GOOD}, {"dataset_revision": "main"}),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "splits", "chosen"), MISTAKES, ids=[sentence for sentence, _, _ in MISTAKES])
def test_mistakes_are_reported_in_one_sentence(
    sentence: str, splits: dict[str, datasets.Dataset], chosen: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load(save(tmp_path / "data", **splits), **chosen)
    assert "\n" not in str(caught.value)


LABELS: list[tuple[Any, list[Any]]] = [
    (datasets.ClassLabel(names=["cat", "dog", "eel"]), [0, 1, 2]),
    (INTEGERS, [0, 1, 5]),
    (datasets.Value("string"), ["left", "right"]),
    (datasets.Value("bool"), [False, True]),
    (INTEGERS, [-1, 0, 1]),
    (datasets.Value("float64"), [0.0, 1.0]),
]
ALPHAS = st.just(0.0) | st.floats(TINY, 5)  # numbers between are refused before
SETTINGS = st.fixed_dictionaries(
    {"bad_images": st.sampled_from(["stop", "skip"]), "data_mode": st.sampled_from(["auto", "memory", "stream"])},
    optional={
        "img_size": st.lists(st.integers(8, 48), min_size=1, max_size=2).map(tuple),
        "in_chans": st.sampled_from([1, 3]),
        "crop_pct": st.floats(0.1, 1),
        "train_crop_mode": st.sampled_from(["auto", "pad", "rrc", "none"]),
        "crop_padding": st.integers(0, 20),
        "scale": st.tuples(st.floats(0.001, 0.4), st.floats(0.4, 1)),
        "ratio": st.tuples(st.floats(0.001, 1), st.floats(1, 9)),
        "color_jitter": st.floats(0, 2),
        "reprob": st.floats(0, 1),
        "mixup": ALPHAS,
        "cutmix": ALPHAS,
        "val_fraction": st.floats(0, 0.9),
        "train_num_samples": st.integers(3, 30),
        "memory_limit": st.sampled_from([1e-6, 2.0]),
    },
)


def random_split(rng: np.random.Generator, count: int, kind: tuple[Any, list[Any]]) -> datasets.Dataset:
    def row(number: int) -> dict[str, Any]:
        if rng.random() < 0.02:
            return damaged(str(rng.choice(["truncated", "no image", "missing", "thread", "float"])))
        width, height = rng.integers(1, 40, 2).tolist()
        return encoded(picture(number, width, height, str(rng.choice(["L", "RGB", "RGBA", "P", "1", "LA"]))))

    feature, values = kind
    return split([row(k) for k in range(count)], [values[k] for k in rng.integers(0, len(values), count)], feature)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    names=st.sampled_from([["train"], ["train", "test"], ["train", "valid", "test"], ["all"]]),
    sizes=st.lists(st.one_of(st.integers(8, 40), st.integers(0, 8)), min_size=3, max_size=3),
    kind=st.sampled_from(LABELS),
    batch_size=st.integers(1, 9),
    chosen=SETTINGS,
)
def test_random_data_and_settings_end_in_batches_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    names: list[str],
    sizes: list[int],
    kind: tuple[Any, list[Any]],
    batch_size: int,
    chosen: dict[str, Any],
) -> None:
    rng = np.random.default_rng(seed)
    splits = {name: random_split(rng, size, kind) for name, size in zip(names, sizes, strict=False)}
    if len(names) > 1:
        chosen.pop("val_fraction", None)  # it is refused at once
    folder = save(tmp_path_factory.mktemp("random"), **splits)
    try:
        data = load(folder, workers=0, **chosen)
        batches: list[tuple[Tensor, Tensor]] = [*data.train_batches(batch_size).epoch(0), *data.val_batches(5)]
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    for images, target in batches:
        assert images.shape[1:] == data.preprocessing.input_size
        assert images.isfinite().all()
        assert len(images) == len(target)
        assert target.is_floating_point() or 0 <= int(target.min()) <= int(target.max()) < data.num_classes


def test_images_that_look_black_are_noticed(tmp_path: Path) -> None:
    """Such as microscope images of 12 bits in files of 16 bits."""
    for number in range(12):
        values = np.random.default_rng(number).integers(0, 4096, (12, 12), dtype=np.uint16)
        for part in ("train", "val"):
            path = tmp_path / part / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    for statistics in ({}, {"mean": (0.5,), "std": (0.5,)}):
        for mode in ("memory", "stream"):
            notes = load(tmp_path, data_mode=mode, **statistics).notes
            assert any("nearly black" in note and "stretched" in note for note in notes)
