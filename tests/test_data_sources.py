"""Where data come from: folders, files, names of classes and splits, and which rows are used."""

import os
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, load, picture, pictures, save, split

from frskd_timm.errors import UserError
from frskd_train.data import load_validation
from frskd_train.data.source import find_source
from frskd_train.data.targets.class_label import balanced_subset, hold_out
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


@pytest.mark.parametrize("kind", ["train and val", "class folders", "saved dict", "saved dataset", "bytes column"])
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
    else:
        raw = [encoded(picture(k))["bytes"] for k in range(30)]
        datasets.Dataset.from_dict({"png": raw, "class": ["cat", "dog", "eel"] * 10}).save_to_disk(root)
    before = sorted(root.rglob("*"))
    data = load(root)
    assert (data.num_train, data.num_val, data.class_names) == (27, 3, ["cat", "dog", "eel"])
    assert (data.name, data.id) == ("my-pets", "My Pets")
    assert data.val_split == {"train and val": "val", "saved dict": "validation"}.get(kind, "train")
    assert sum(len(target) for _, target in data.train_batches(9).epoch(0)) == 27
    assert sorted(root.rglob("*")) == before


def test_labels_are_matched_by_name_between_splits(tmp_path: Path) -> None:
    other = split([encoded(picture(k)) for k in range(3)], [0, 1, 2], datasets.ClassLabel(names=["eel", "cat", "dog"]))
    data = load(save(tmp_path / "data", train=pictures(9), test=other))
    assert torch.cat([target for _, target in data.val_batches(2)]).tolist() == [2, 0, 1]


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


def class_folders(root: Path, *classes: str, count: int = 3) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            picture(number + k * len(classes)).save(root / name / f"{k}.png")
    return root


@pytest.mark.parametrize(("train", "val"), [("training", "validation"), ("Train", "dev"), ("train", "test")])
def test_split_folders_are_known_by_their_names(train: str, val: str, tmp_path: Path) -> None:
    for name in (train, val):
        class_folders(tmp_path / name, "cat", "dog")
    data = load(tmp_path)
    assert (data.train_split, data.val_split, data.class_names) == (train.lower(), val, ["cat", "dog"])


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["val/cat", "val/dog", "test/cat", "test/dog"], "no split named train; it has .*test.*--train-split"),
        (["pets/train/cat", "pets/val/cat", "birds/train/owl"], r"whole datasets .*birds, pets"),
        (["train", "val"], "train, val.* no class folders"),
        (["val/cat", "val/dog", "owl", "cat"], "val looks like a split, but cat, owl"),
        (["train_set/cat", "train_set/dog", "val_set/cat", "val_set/dog"], "train_set, val_set .* look like splits"),
    ],
)
def test_folders_that_may_be_splits_are_no_classes(folders: list[str], said: str, tmp_path: Path) -> None:
    class_folders(tmp_path, *folders)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_classes_may_be_called_like_splits_and_whole_datasets_are_noticed(tmp_path: Path) -> None:
    assert load(class_folders(tmp_path / "traffic", "bus", "car", "train")).class_names == ["bus", "car", "train"]
    for name, classes in (("pets", ["cat", "dog"]), ("birds", ["owl", "tit"])):
        class_folders(tmp_path / "both" / name, *classes)
    assert any(
        "cat, dog are read as one class, pets" in note or "owl, tit" in note for note in load(tmp_path / "both").notes
    )


def test_links_are_followed_once_and_special_files_left_alone(tmp_path: Path) -> None:
    elsewhere = class_folders(tmp_path / "elsewhere", "more")
    root = class_folders(tmp_path / "data", "cat", "dog", count=4)
    (root / "cat" / "linked").symlink_to(elsewhere / "more", target_is_directory=True)
    (root / "cat" / "loop").symlink_to(root / "cat", target_is_directory=True)
    (root / "dog" / "gone.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(root / "dog" / "pipe.png")
    assert load(root, val_fraction=0.2).num_train == 4 + 3 + 4 - 2

    rows = [encoded(picture(k)) for k in range(5)] + [{"bytes": None, "path": str(root / "dog" / "pipe.png")}]
    with pytest.raises(UserError, match=r"pipe.png\) cannot be read: it is not a regular file"):
        load(save(tmp_path / "rows", train=split(rows, [0, 1, 2] * 2)), val_fraction=0.3)


def test_names_that_are_not_valid_utf8_are_read_and_shown(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"p\xe9ts")
    for name in (b"cat", b"d\xf6g"):
        class_folders(root, os.fsdecode(name))
    (root / "cat" / os.fsdecode(b"b\xffd.png")).write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"b\\xffd.png\) cannot be read"):
        load(root)
    data = load(root, bad_images="skip")
    assert (data.class_names, data.id, data.num_train + data.num_val) == (["cat", r"d\xf6g"], r"p\xe9ts", 6)
    assert str(data.notes).encode()


def test_classes_have_the_order_of_timms_reader(tmp_path: Path) -> None:
    class_folders(tmp_path, "class 10", "class 2", "Zebra", "apple", "10", "9", count=4)
    theirs = timm.data.ImageDataset(tmp_path).reader.class_to_idx
    assert load(tmp_path).class_names == sorted(theirs, key=theirs.__getitem__)
    assert load(class_folders(tmp_path, "\u00b2")).class_names[-1] == "\u00b2"  # which timm's reader cannot sort


def test_class_folders_spell_any_name_and_match_a_models_classes(tmp_path: Path) -> None:
    names = ["100%", "T-shirt/top", ".net"]
    root = class_folders(tmp_path / "copy", "T-shirt%2Ftop", "100%25", "%2enet")
    data = load(root)
    assert data.class_names == ["100%", ".net", "T-shirt/top"]
    found = load_validation(DataSettings(str(root)), data.preprocessing, classes=names)
    assert torch.cat([target for _, target in found.val_batches(9)]).tolist() == [2, 0, 1]  # as the folders are sorted


@pytest.mark.parametrize(
    ("lines", "numbers"),
    [("T-shirt/top\ncoat\nbag\n", [0, 2, 1]), ("coat 1\nshirt 0\nT-shirt/top, 0\n\nbag\t2\n", [2, 1, 0])],
)
def test_a_class_map_renumbers_classes(lines: str, numbers: list[int], tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text(lines)
    root = class_folders(tmp_path / "data", "bag", "coat", "shirt" if "shirt 0" in lines else "T-shirt%2Ftop")
    data = load(root, class_map=str(tmp_path / "map.txt"))
    assert data.class_names[1:] == ["coat", "bag"]
    assert torch.cat([target for _, target in data.val_batches(3)]).tolist() == numbers
    chosen = DataSettings(str(root), class_map=str(tmp_path / "map.txt"))
    found = load_validation(chosen, data.preprocessing, classes=["a", "b", "c"])
    assert torch.cat([target for _, target in found.val_batches(3)]).tolist() == numbers
    (tmp_path / "map.txt").write_text("bag\ncoat\n")
    with pytest.raises(UserError, match=r"class-map .* lacks .*shirt"):
        load(root, class_map=str(tmp_path / "map.txt"))


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
        assert abs(held - size * fraction) <= 1

    count = data.draw(st.integers(6, len(labels)))
    sizes = np.bincount(targets[balanced_subset(targets, count, 6)], minlength=6)
    assert sizes.sum() == count
    full = np.bincount(targets, minlength=6)
    assert all(size == there or size >= sizes.max() - 1 for size, there in zip(sizes, full, strict=True))


def test_where_nothing_can_be_held_out_the_reason_is_named() -> None:
    with pytest.raises(UserError, match="no class has a second image"):
        hold_out(np.arange(5), 0.5)
    with pytest.raises(UserError, match="give --val-split or a fraction above 0"):
        hold_out(np.zeros(5, np.int64), 0.0)
