"""The lists of a folder in VOC's layout, as people have them, and the classes that they name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import load_masks as load
from pictures import voc_folder

from frskd_timm.errors import UserError

LISTS = Path("ImageSets", "Segmentation")


def test_lists_with_marks_spaces_and_test_images(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    for kind, ending in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        shutil.move(folder / kind / f"p_0{ending}", folder / kind / f"my p 0{ending}")
    names = (folder / LISTS / "train.txt").read_text().replace("p_0\n", "my p 0\n").replace("p_1\n", "p_1 1\n")
    (folder / LISTS / "train.txt").write_text(names, encoding="utf-8-sig")
    (folder / "labels.txt").write_text("lawn\nroses\npond\n", encoding="utf-8-sig")
    (folder / LISTS / "test.txt").write_text("p_0\n")
    data = load(folder, img_size=32)
    assert (data.num_train, data.num_val, data.class_names) == (6, 4, ["lawn", "roses", "pond"])
    (note,) = data.notes
    assert note.startswith("test.txt is left out. ")
    (folder / LISTS / "val.txt").write_text("p_99\n")
    with pytest.raises(UserError, match=r"val.txt names p_99, but there is no"):
        load(folder)


@pytest.mark.parametrize("names", ["lawn\n", "lawn\nlawn\nroses\n"])
def test_names_of_classes_are_checked(names: str, tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    (folder / "labels.txt").write_text(names)
    with pytest.raises(UserError, match=r"labels.txt has to hold at least 2 class names, each of them once"):
        load(folder)


def test_scaled_masks_and_labels_of_validation_alone_are_noticed(tmp_path: Path) -> None:
    scaled = lambda number, width, height: np.full((height, width), 40 * (number % 3), np.uint8)
    (note,) = load(voc_folder(tmp_path / "scaled", scaled), img_size=32).notes
    assert note.startswith("78 of 81 classes have no training image: class 1, class 2")
    further = lambda number, width, height: np.full((height, width), 4 if number == 7 else number % 2, np.uint8)
    with pytest.raises(UserError, match=r"has label 4; .* the training masks have no other; .* --class-map"):
        load(voc_folder(tmp_path / "further", further), img_size=32)
