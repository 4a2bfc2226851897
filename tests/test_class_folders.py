"""Folders of images: which folders are splits and classes, and how classes are numbered."""

import os
import tempfile
import unicodedata
from pathlib import Path

import datasets
import pytest
import timm
import torch
from pictures import class_folders, encoded, load, picture, pictures, save, split

from frskd_timm.errors import UserError
from frskd_train.data import load_validation
from frskd_train.settings import DataSettings


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
        (["pets/train/cat", "pets/val/cat", "birds/train/owl"], r"several datasets .*birds, pets"),
        (["train", "val"], "train, val.* no class folders"),
        (
            ["cat/train", "cat/val", "dog/train", "dog/val"],
            "inside its classes, such as cat/train: .* such as train/cat",
        ),
        (["val/cat", "val/dog", "owl", "cat"], r"folders named like splits \(val\) with others \(cat, owl\)"),
        (["train_set/cat", "train_set/dog", "val_set/cat", "val_set/dog"], "train_set, val_set .* look like splits"),
        (
            ["seg_train/a/cat", "seg_train/a/dog", "seg_val/b/cat", "seg_val/b/dog", "seg_pred"],
            "look like splits, .* folders cat, dog",
        ),
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


def test_folders_without_images_are_no_classes_and_said(tmp_path: Path) -> None:
    for name in ("train", "val"):
        class_folders(tmp_path / name, "b", "c")
        class_folders(tmp_path / name, "annotations", count=0)
    data = load(tmp_path)
    assert data.class_names == ["b", "c"]
    assert any("were ignored: annotations" in note for note in data.notes)
    for name in ("train", "val"):
        class_folders(tmp_path / name, "__background__", "__MACOSX", ".hidden")
    assert load(tmp_path).class_names == ["__background__", "b", "c"]


def test_tables_are_split_by_their_names_and_read_beside_pictures(tmp_path: Path) -> None:
    for name, count in (("train-00000", 9), ("eval", 6)):
        (tmp_path / "data").mkdir(exist_ok=True)
        pictures(count).to_parquet(tmp_path / "data" / f"{name}.parquet")
    class_folders(tmp_path, "assets")
    data = load(tmp_path)
    assert (data.num_train, data.num_val, data.val_split) == (9, 6, "test")
    assert any("not the images beside them" in note for note in data.notes)
    pictures(3).to_parquet(tmp_path / "data" / "more.parquet")
    with pytest.raises(UserError, match=r"name a split .*but not data/more.parquet"):
        load(tmp_path)
    for name, count in (("train", 9), ("train_test_split_test", 6)):  # the name of the file decides, at its end
        (tmp_path / "all" / "test-small").mkdir(parents=True, exist_ok=True)
        pictures(count).to_parquet(tmp_path / "all" / "test-small" / f"{name}.parquet")
    data = load(tmp_path / "all")
    assert (data.num_train, data.num_val, data.val_split) == (9, 6, "test")


def test_links_are_followed_once_and_special_files_left_alone(tmp_path: Path) -> None:
    elsewhere = class_folders(tmp_path / "elsewhere", "more")
    root = class_folders(tmp_path / "data", "cat", "dog", count=4)
    (root / "cat" / "linked").symlink_to(elsewhere / "more", target_is_directory=True)
    (root / "cat" / "loop").symlink_to(root / "cat", target_is_directory=True)
    (root / "dog" / "gone.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(root / "dog" / "pipe.png")
    with pytest.raises(UserError, match=r"gone\.png\) cannot be read: .*No such file"):  # a link to nothing
        load(root, val_fraction=0.2)
    data = load(root, val_fraction=0.2, bad_images="skip")
    assert (data.num_train + data.num_val, any("Left out 1 of" in note for note in data.notes)) == (4 + 3 + 4, True)

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


def test_accents_may_be_stored_in_either_form(tmp_path: Path) -> None:
    for part, form in (("train", "NFC"), ("val", "NFD")):
        class_folders(tmp_path / part, unicodedata.normalize(form, "café"), "tea")
    assert load(tmp_path).class_names == ["café", "tea"]


def test_a_folder_that_cannot_be_read_is_named() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as place:  # not below tmp_path, which only its owner can read
        Path(place).chmod(0o755)
        class_folders(Path(place), "a", "b", "b/more")
        load(place)
        for closed in (Path(place) / "b", Path(place) / "b" / "more"):
            closed.chmod(0)
            try:
                os.seteuid(user or 65534)  # root may read every folder
                with pytest.raises(UserError, match=rf"{closed} cannot be listed \(Permission denied\)"):
                    load(place)
            finally:
                os.seteuid(user)
                closed.chmod(0o755)


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
    (tmp_path / "map.txt").write_text("bag 8\ncoat 4\n")
    with pytest.raises(UserError, match=r"class-map .* read as names, since its numbers have gaps; it lacks bag, coat"):
        load(root, class_map=str(tmp_path / "map.txt"))


def test_images_and_folders_beside_those_that_are_read_are_named(tmp_path: Path) -> None:
    for name in ("train", "val", "extra"):
        class_folders(tmp_path / name, "cat", "dog")
    class_folders(tmp_path / "test", "cat", "dog", count=0)
    (tmp_path / "train" / "cat" / "1.png").rename(tmp_path / "train" / "stray.png")
    class_folders(tmp_path / "train" / "dog", "big", "small")
    for path in (tmp_path / "train" / "dog").glob("*.png"):
        path.unlink()
    notes = " ".join(load(tmp_path).notes)
    assert "beside the class folders were ignored, such as stray.png" in notes
    assert "Left out beside the splits: extra, test" in notes
    assert "the images of big, small are read as one class, dog" in notes


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", "cat", "dog")
    class_folders(tmp_path, "val")  # as in ImageNet's archive
    (tmp_path / "train" / "dog" / "photo.HEIC").touch()
    data = load(tmp_path)
    assert data.val_split == "train"
    assert any("images without class folders: val" in note for note in data.notes)
    assert any("1 image(s) were ignored" in note and ".heic cannot be read" in note for note in data.notes)
    for path in (tmp_path / "train" / "cat").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(UserError, match=r"has 1 class folder.* 4 image\(s\) were ignored"):
        load(tmp_path)
    class_folders(tmp_path / "Train", "cat", "dog")
    with pytest.raises(UserError, match="differ only in upper and lower case"):
        load(tmp_path)


def test_runs_beside_the_classes_are_no_class(tmp_path: Path) -> None:
    class_folders(tmp_path, "cat", "dog", "runs/first/student")
    before = load(tmp_path)
    (tmp_path / "runs" / "first" / "checkpoints").mkdir()
    (tmp_path / "runs" / "first" / "config.yaml").touch()
    assert before.class_names == ["cat", "dog", "runs"]
    assert load(tmp_path).class_names == ["cat", "dog"]
    (tmp_path / "runs" / "first" / "checkpoints").rmdir()  # which is not needed to use the student
    assert load(tmp_path).class_names == ["cat", "dog"]
    (tmp_path / "metadata.csv").write_text("class,description\ncat,purrs\n")  # not of the images
    assert load(tmp_path).class_names == ["cat", "dog"]


def test_only_splits_for_validation_need_no_choice(tmp_path: Path) -> None:
    for name in ("test", "val"):
        class_folders(tmp_path / name, "cat", "dog")
    data = load_validation(
        DataSettings(dataset=str(tmp_path)), load(tmp_path, train_split="test").preprocessing, classes=2
    )
    assert data.val_split == "val"


def test_a_table_of_labels_is_named_as_datasets_expects_it(tmp_path: Path) -> None:
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
    table = tmp_path / "labels.csv"
    table.write_text("file_name,label\n" + "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(8)))
    for place, said in ((table, "is a file; give the folder"), (tmp_path, "holds neither class folders")):
        with pytest.raises(UserError, match=rf"{said} .* metadata\.csv"):
            load(place)
    table.rename(tmp_path / "metadata.csv")
    data = load(tmp_path)
    assert (data.num_train + data.num_val, data.class_names) == (8, ["a", "b"])


def described(folder: Path, names: list[str], ending: str = "csv") -> None:
    """Draw images, and describe them in a metadata file."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        picture(number).save(folder / name)
    table = datasets.Dataset.from_dict({"file_name": names, "label": ["ab"[k % 2] for k in range(len(names))]})
    (table.to_csv if ending == "csv" else table.to_json)(folder / f"metadata.{ending}")


def test_folders_with_metadata_are_read_whole_whatever_their_files_are_called(tmp_path: Path) -> None:
    names = ["test_1.png", "2.png", "validation.png", "train 4.png", "5.png", "6.png"]
    described(tmp_path / "flat [1]", names)
    flat = load(tmp_path / "flat [1]", val_fraction=0.5)
    assert (flat.num_train + flat.num_val, flat.class_names) == (6, ["a", "b"])
    for part in ("train", "val"):
        described(tmp_path / "two" / part, names[: 6 if part == "train" else 4], "jsonl")
    class_folders(tmp_path / "two", "test")  # without labels
    picture(0).save(tmp_path / "two" / "val" / "unlisted.png")
    two = load(tmp_path / "two")
    assert (two.num_train, two.num_val) == (6, 4)
    assert "Left out, as images without a metadata file: test." in two.notes
    assert "Left out, as images that the metadata do not list: 1." in two.notes
    (tmp_path / "two" / "train" / "metadata.jsonl").rename(tmp_path / "table")
    with pytest.raises(UserError, match=r"train has no metadata file, but another folder has one: add it"):
        load(tmp_path / "two")
    (tmp_path / "table").rename(tmp_path / "two" / "train" / "metadata.jsonl")
    (tmp_path / "two" / "metadata.csv").write_text("file_name,label\ntrain/2.png,a\nval/2.png,b\n")
    with pytest.raises(UserError, match=r"one metadata file for several splits \(test, train, val\): put one into"):
        load(tmp_path / "two")
    (tmp_path / "two" / "metadata.csv").unlink()
    described(tmp_path / "two" / "batch 1", names)
    with pytest.raises(UserError, match=r"batch 1, train, val have metadata; name them after their splits"):
        load(tmp_path / "two")
