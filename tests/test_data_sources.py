"""Where data come from: folders, files, names of classes and splits, and which rows are used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import class_folders, encoded, load, picture, pictures, save, split

from frskd_timm.errors import UserError
from frskd_train.data import load_validation
from frskd_train.data.sampler import evenly_spaced, shuffled
from frskd_train.data.source import find_source
from frskd_train.data.targets.class_label import balanced_subset, hold_out, read_labels
from frskd_train.settings import DataSettings

# --- Where it comes from ---------------------------------------------------------------------------------------------


def write_class_folders(root: Path, count: int) -> None:
    for k in range(count):
        folder = root / ["cat", "dog", "eel"][k % 3] / ("more" if k % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        picture(k).save(folder / f"{k:03}.png")
        (folder / "notes.txt").write_text("not an image")


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: mit\n---\n# Pets", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\nlicense: other\nlicense_name: house-rules\n---\n", "house-rules"),
        ("# Pets, without metadata", None),
        ("---\nlicense: [\n---\n", None),
        ("---\njust words\n---\n", None),
    ],
)
def test_the_licence_of_a_folder_is_that_of_its_dataset_card(card: str, license: str | None, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", 3)
    (tmp_path / "README.md").write_text(card)
    assert find_source(DataSettings(str(tmp_path))).license == license


@pytest.mark.parametrize("kind", ["train and val", "class folders", "saved dict", "saved dataset", "arrow", "bytes"])
def test_folders_are_read_and_left_as_they_are(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "My Pets"
    if kind == "train and val":
        write_class_folders(root / "train", 27)
        write_class_folders(root / "val", 3)
    elif kind == "class folders":
        write_class_folders(root, 30)
    elif kind == "saved dict":
        datasets.DatasetDict(train=pictures(27), validation=pictures(3), test=pictures(6)).save_to_disk(root)
    elif kind == "saved dataset":
        pictures(30).save_to_disk(root)
    elif kind == "arrow":
        datasets.DatasetDict(train=pictures(27), validation=pictures(3)).save_to_disk(tmp_path / "saved")
        root.mkdir()
        for file in (tmp_path / "saved").rglob("*.arrow"):
            shutil.copy(file, root / f"{file.parent.name}-0.arrow")
    else:
        raw = [encoded(picture(k))["bytes"] for k in range(30)]
        datasets.Dataset.from_dict({"png": raw, "class": ["cat", "dog", "eel"] * 10}).save_to_disk(root)
    before = sorted(root.rglob("*"))
    data = load(root)
    assert (data.num_train, data.num_val, data.class_names) == (27, 3, ["cat", "dog", "eel"])
    assert (data.name, data.id) == ("my-pets", "My Pets")
    chosen = {"train and val": "val", "saved dict": "validation", "arrow": "validation"}.get(kind, "train")
    assert (data.val_split, sum(len(target) for _, target in data.train_batches(9).epoch(0))) == (chosen, 27)
    assert sorted(root.rglob("*")) == before


def test_labels_are_matched_by_name_between_splits(tmp_path: Path) -> None:
    other = split([encoded(picture(k)) for k in range(3)], [0, 1, 2], datasets.ClassLabel(names=["eel", "cat", "dog"]))
    data = load(save(tmp_path / "data", train=pictures(9), test=other))
    assert torch.cat([target for _, target in data.val_batches(2)]).tolist() == [2, 0, 1]


def test_labels_that_differ_only_in_type_or_spelling_are_named_so() -> None:
    for known, other in (([0, 1], ["0", "1"]), (["Cat", "dog"], ["cat ", "dog"])):
        splits = {
            name: datasets.Dataset.from_dict({"label": labels}) for name, labels in (("train", known), ("test", other))
        }
        with pytest.raises(UserError, match="split train, which spells or stores them differently: "):
            read_labels(splits, "label")


def test_tables_of_several_datasets_are_not_mixed(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["dog", "eel", "cat"])
    two = pictures(6), split([encoded(picture(k)) for k in range(6)], [0, 1, 2] * 2, names)
    for number, data in enumerate(two):
        for part in ("train", "test"):
            (tmp_path / "configs" / f"config{number}").mkdir(parents=True, exist_ok=True)
            data.to_parquet(tmp_path / "configs" / f"config{number}" / f"{part}-0.parquet")
        save(tmp_path / "parts", **{f"train-{number}": data})
    with pytest.raises(UserError, match=r"contains several datasets with splits \(config0, config1\)"):
        load(tmp_path / "configs")
    with pytest.raises(UserError, match=r"Column label has different classes in .*train-0.parquet and in .*train-1"):
        load(tmp_path / "parts")


@pytest.mark.parametrize("kind", ["-1", "missing", "no column"])
def test_splits_without_labels_are_left_out(kind: str, tmp_path: Path) -> None:
    test = split([encoded(picture(k)) for k in range(3)], [-1 if kind == "-1" else None] * 3)
    test = test.remove_columns("label") if kind == "no column" else test
    data = load(save(tmp_path / "data", train=pictures(30), test=test))
    assert (data.val_split, data.num_train, data.num_val) == ("train", 27, 3)
    assert data.notes == ("Split test is left out, because its images have no labels.",)
    given = DataSettings(str(tmp_path / "data"))
    assert load_validation(given, data.preprocessing, classes=data.class_names).num_val == 3
    with pytest.raises(UserError, match=r"Split test has no column|label -1|no value"):
        load(tmp_path / "data", val_split="test")


def test_a_trained_model_is_evaluated_on_images_of_one_class(tmp_path: Path) -> None:
    rows = [encoded(picture(k)) for k in range(3)]
    save(tmp_path / "dogs", test=split(rows, ["dog"] * 3, datasets.Value("string")))
    preprocessing = load(save(tmp_path / "data", train=pictures(30))).preprocessing
    assert load_validation(DataSettings(str(tmp_path / "dogs")), preprocessing, classes=["eel", "dog"]).num_val == 3


def broken_parquet(folder: Path) -> None:
    (folder / "train.parquet").write_bytes(b"PAR1 and then nothing")


def half_a_saved_dataset(folder: Path) -> None:
    pictures(6).save_to_disk(folder)
    for file in folder.glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])


def one_class(folder: Path) -> None:
    (folder / "cat").mkdir()
    picture(1).save(folder / "cat" / "1.png")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: None, "neither class folders"),
        (lambda folder: picture(1).save(folder / "1.png"), "neither class folders"),
        (one_class, "1 class folder"),
        (broken_parquet, "files of .* could not be read"),
        (half_a_saved_dataset, "files of .* could not be read"),
    ],
)
def test_folders_that_hold_no_dataset_are_refused(
    make: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", ["", "./no/such/folder", "https://example.org/data", "no-such-owner/no-such-data"])
def test_datasets_that_are_nowhere_are_refused(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="--dataset") as caught:
        load(dataset)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_of_much_data_covers_all_lengths_and_some_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frskd_train.data.images.HASHED_WHOLE", 0)
    monkeypatch.setattr("frskd_train.data.images.HASHED", 4)
    rows, labels, test = [encoded(picture(k)) for k in range(30)], [k % 3 for k in range(30)], pictures(9)
    load_rows = lambda rows: load(save(tmp_path / "data", train=split(rows, labels), test=test)).fingerprint
    first = load_rows(rows)
    longer = [*rows[:5], {**rows[5], "bytes": rows[5]["bytes"] + b"\0"}, *rows[6:]]
    (place, *_) = evenly_spaced(30, 4).tolist()
    turned = rows[place]["bytes"][:-1] + bytes([rows[place]["bytes"][-1] ^ 1])  # of the same length
    other = [*rows[:place], {**rows[place], "bytes": turned}, *rows[place + 1 :]]
    assert len({first, load_rows(longer), load_rows(other)}) == 3
    assert load_rows(rows) == first


@pytest.mark.parametrize("typed", ["photos/brids", "./photos/brids", "brids"])
def test_a_mistyped_folder_is_answered_with_the_one_beside_it(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    meant = Path(typed).with_name("birds")
    for folder in (meant, meant.with_name("cars")):
        folder.mkdir(parents=True)
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        load(typed)


def test_the_fingerprint_notices_another_dataset(tmp_path: Path) -> None:
    rows, labels = [encoded(picture(k)) for k in range(300)], [k % 3 for k in range(300)]
    test = pictures(9)
    seen = {load(save(tmp_path / "a", train=split(rows, labels), test=test)).fingerprint}
    files = class_folders(tmp_path / "files", "cat", "dog", "eel")
    first = load(files).fingerprint
    files.rename(tmp_path / "moved")  # wherever it lies
    assert load(tmp_path / "moved").fingerprint == first
    picture(99).save(tmp_path / "moved" / "dog" / "1.png")
    assert load(tmp_path / "moved").fingerprint != first

    changes = [(rows, [0, *labels[:-1]]), (rows[:-1], labels[:-1])]
    for row in (1, 150, 298):
        changed = [*rows]
        changed[row] = encoded(picture(row, mode="L"))
        changes.append((changed, labels))
    for number, (images, targets) in enumerate(changes):
        seen.add(load(save(tmp_path / str(number), train=split(images, targets), test=test)).fingerprint)
    seen.add(load(tmp_path / "a", train_num_samples=12).fingerprint)
    seen.add(load(tmp_path / "a", val_split="test", data_mode="stream").fingerprint)
    assert len(seen) == 7


# --- Which rows ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=12, max_size=80), st.floats(0.05, 0.9), st.data())
def test_rows_are_chosen_class_by_class(labels: list[int], fraction: float, data: st.DataObject) -> None:
    targets = np.array(labels, np.int64)
    train, val = hold_out(targets, fraction)
    assert sorted([*train, *val]) == list(range(len(labels)))
    for target in np.unique(targets):
        size, held = (targets == target).sum(), (targets[val] == target).sum()
        assert held < size
        assert held in (1, size - 1) or abs(held - size * fraction) <= 0.5

    count = data.draw(st.integers(6, len(labels)))
    sizes = np.bincount(targets[balanced_subset(targets, count)], minlength=6)
    assert sizes.sum() == count
    full = np.bincount(targets, minlength=6)
    assert all(size == there or size >= sizes.max() - 1 for size, there in zip(sizes, full, strict=True))


def test_the_same_rows_are_held_out_as_by_earlier_versions() -> None:
    """Others would be images that older students were trained on; masks are held out in the order of `shuffled`."""
    assert hold_out(np.arange(24) % 2, 0.25)[1].tolist() == [2, 7, 11, 12, 14, 19]
    assert shuffled(10).tolist() == [5, 8, 0, 7, 3, 9, 1, 6, 4, 2]


def test_names_without_an_image_need_none(tmp_path: Path) -> None:
    names, rows = datasets.ClassLabel(names=[f"name {n}" for n in range(40)]), [encoded(picture(n)) for n in range(12)]
    data = load(save(tmp_path / "data", train=split(rows, [0, 7, 9] * 4, names)), train_num_samples=6)
    assert (data.num_train, data.num_classes) == (6, 40)


def test_where_nothing_can_be_held_out_the_reason_is_named() -> None:
    with pytest.raises(UserError, match="no class has a second image"):
        hold_out(np.arange(5), 0.5)
    with pytest.raises(UserError, match="give --val-split or a fraction above 0"):
        hold_out(np.zeros(5, np.int64), 0.0)
