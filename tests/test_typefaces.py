"""The datasets drawn from typefaces: reproducible, and tested on words that were not trained on."""

import csv
import random
from pathlib import Path

import pytest
from pictures import typefaces_are_installed
from PIL import Image

from frskd_timm.errors import UserError
from frskd_train.data.source import find_source
from frskd_train.settings import DataSettings
from tools import typeface_families, typeface_words, typefaces

pytestmark = pytest.mark.long


def read_files(folder: Path, suffix: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob(f"*{suffix}")}


@pytest.mark.skipif(not typefaces_are_installed(), reason="needs the packages of tools.typefaces")
def test_typefaces_are_the_same_for_the_same_arguments_and_others_after_a_skip(tmp_path: Path) -> None:
    def files(name: str, skip: int = 0) -> dict[str, bytes]:
        typefaces.write(tmp_path / name, classes=3, train=4, test=2, size=32, skip=skip)
        return read_files(tmp_path / name, ".png")

    first, second = files("first"), files("second", skip=3)
    assert files("again") == first
    assert len(first) == len(second) == 18
    families = [{path.split("/")[1] for path in each} for each in (first, second)]
    assert len(families[0] | families[1]) == 6
    assert all(typefaces.is_for_training(Path(path).stem) == path.startswith("train/") for path in first)


@pytest.mark.skipif(not typefaces_are_installed(), reason="needs the packages of tools.typefaces")
def test_words_as_classes_are_tested_in_other_typefaces(tmp_path: Path) -> None:
    for name in ("first", "again"):
        typefaces.write(tmp_path / name, classes=3, train=4, test=2, size=32, by_word=True)
    files = read_files(tmp_path / "first", ".png")
    assert files == read_files(tmp_path / "again", ".png")
    assert len(files) == 18
    assert len({path.split("/")[1] for path in files}) == 3
    train, test = ({Path(path).name for path in files if path.startswith(s)} for s in ("train", "test"))
    assert (len(train), len(test), train & test) == (4, 2, set())


@pytest.mark.skipif(not typefaces_are_installed(typeface_families.PACKAGES), reason="needs those of typeface_words")
def test_words_are_new_in_the_test_images_and_licences_are_named(tmp_path: Path) -> None:
    def files(name: str, seed: int) -> dict[str, bytes]:
        typeface_words.write(tmp_path / name, 3, {"train": 20, "test": 5, "photo": 5}, size=32, seed=seed)
        return read_files(tmp_path / name, ".jpg")

    first, other = files("first", 0), files("other", 1)
    assert files("again", 0) == first
    assert len(first) == len(other) == 3 * 30
    assert not set(first.values()) & set(other.values())
    words: dict[str, set[str]] = {split: set() for split in typeface_words.RENDERINGS}
    for path in [*first, *other]:
        words[path.split("/")[0]].update(path.removesuffix(".jpg").rsplit("/", 1)[1].lower().split("_")[1:])
    assert all(map(typefaces.is_for_training, words["train"]))
    assert not any(map(typefaces.is_for_training, words["test"] | words["photo"]))
    pictures = [Image.open(path) for path in (tmp_path / "first").rglob("*.jpg")]
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (32, 32))}
    with (tmp_path / "first" / "families.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {path.split("/")[-2] for path in first}
    assert all(row["licence"] and row["package"] in typeface_families.PACKAGES for row in rows)
    card = (tmp_path / "first" / "README.md").read_text(encoding="utf-8")
    kinds = {split: set(rendering.backgrounds) for split, rendering in typeface_words.RENDERINGS.items()}
    assert not kinds["train"] & (kinds["test"] | kinds["photo"])
    assert "grain, blobs or facets in `train`; stripes or a spot in `test`" in card
    assert "typeface_words FOLDER --classes 3 --train 20 --test 5 --photo 5 --size 32 --seed 0`" in card
    assert all(f"| {row['family']} | {row['package']} | {row['licence']} |" in card for row in rows)
    source = find_source(DataSettings(str(tmp_path / "first")))
    assert source.license == "various-open-font-licences"
    with pytest.raises(UserError, match="families that differ visibly, fewer than --classes 1000"):
        typeface_families.choose(1000)


def test_impossible_numbers_are_refused_before_anything_is_drawn(tmp_path: Path, capsys) -> None:
    for tool in (typefaces, typeface_words):
        for flag, value in (("--classes", "0"), ("--train", "-1"), ("--size", "0")):
            with pytest.raises(SystemExit):
                tool.main([str(tmp_path / "data"), flag, value])
            assert f"{flag} must be at least 1, not {value}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--train is at most 8784, .* not 9000"):
        list(typefaces.draw_words(random.Random(0), {"train": 9000}))
    assert len(list(typefaces.draw_words(random.Random(0), {"test": typefaces.WORDS}))) == typefaces.WORDS
