"""Folders of images and masks as people have them: the lists of VOC's layout, folders beside each other, classes."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import load as load_classes
from pictures import load_masks as load
from pictures import picture, voc_folder
from PIL import Image

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
    data = load(folder, img_size=(32,))
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
    with pytest.raises(UserError, match=r"labels.txt must contain at least 2 class names, each of them once"):
        load(folder)


def test_foreground_of_255_is_no_class_with_names_either(tmp_path: Path) -> None:
    binary = lambda number, width, height: np.where(np.arange(width) < 5, 255, np.zeros((height, 1))).astype(np.uint8)
    folder = voc_folder(tmp_path / "garden", binary)
    (folder / "labels.txt").write_text("background\nforeground\n")
    with pytest.raises(UserError, match="only the labels 0 and 255, which stands for no class: write foreground as 1"):
        load(folder)


def test_scaled_masks_and_labels_of_validation_alone_are_noticed(tmp_path: Path) -> None:
    scaled = lambda number, width, height: np.full((height, width), 40 * (number % 3), np.uint8)
    (note,) = load(voc_folder(tmp_path / "scaled", scaled), img_size=(32,)).notes
    assert note.startswith("78 of 81 classes have no training image: class 1, class 2")
    further = lambda number, width, height: np.full((height, width), 4 if number == 7 else number % 2, np.uint8)
    with pytest.raises(UserError, match=r"has label 4; .* as in the training masks: .* --class-map"):
        load(voc_folder(tmp_path / "further", further), img_size=(32,))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_levels_of_few_bits_are_class_numbers(bits: int, tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    for path in (folder / "SegmentationClass").iterdir():
        with Image.open(path) as mask:
            numbers = np.asarray(mask) % 2 if bits == 1 else np.asarray(mask) % 3
        path.write_bytes(gray_png(numbers, bits))
    data = load(folder, img_size=(32,))
    assert data.class_names == ["class 0", "class 1", "class 2"][: 2 if bits == 1 else 3]


def test_scaled_gray_levels_are_no_class_numbers(tmp_path: Path) -> None:
    folder = beside(tmp_path / "garden", "images", "masks")
    for path in (folder / "masks").iterdir():
        with Image.open(path) as mask:
            numbers = np.asarray(mask) % 3
        height, width = numbers.shape
        path.with_suffix(".pgm").write_bytes(b"P5 %d %d 2 " % (width, height) + numbers.tobytes())
        path.unlink()
    with pytest.raises(UserError, match="it is a PGM, whose numbers are scaled by its largest gray level: store"):
        load(folder, img_size=(32,))


def gray_png(numbers: np.ndarray, bits: int) -> bytes:
    """Encode numbers [H, W] as gray levels of few bits, which Pillow reads but does not write."""
    height, width = numbers.shape
    rows = [np.unpackbits(row[:, None].astype(np.uint8), axis=1)[:, 8 - bits :].flatten() for row in numbers]
    pixels = zlib.compress(b"".join(b"\0" + np.packbits(row).tobytes() for row in rows))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


LAYOUTS = {  # where the images and masks of a split are
    "below the split": ("{split}/images", "{split}/masks"),
    "split below": ("images/{split}", "annotations/{split}"),
    "other names": ("{split}/img", "{split}/mask"),
}


def beside(folder: Path, images: str, masks: str, mark: str = "") -> Path:
    """Write the files of a VOC folder into folders beside each other; `mark` ends the names of masks."""
    voc = voc_folder(folder.with_name("source"))
    for split in ("train", "val"):
        for name in (voc / LISTS / f"{split}.txt").read_text().split():
            for kind, place, ending, more in (
                ("JPEGImages", images, ".jpg", ""),
                ("SegmentationClass", masks, ".png", mark),
            ):
                target = folder / place.format(split=split)
                target.mkdir(parents=True, exist_ok=True)
                shutil.move(voc / kind / f"{name}{ending}", target / f"{name}{more}{ending}")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_masks_beside_each_other_are_the_same_data_as_in_vocs_layout(layout: str, tmp_path: Path) -> None:
    folder = beside(tmp_path / "garden", *LAYOUTS[layout])
    data, voc = load(folder, img_size=(32,)), load(voc_folder(tmp_path / "plain"), img_size=(32,))
    assert (data.num_train, data.num_val, data.class_names) == (voc.num_train, voc.num_val, voc.class_names)
    for (images, masks), (wanted, wanted_masks) in zip(data.val_batches(4), voc.val_batches(4), strict=True):
        assert images.equal(wanted)
        assert masks.equal(wanted_masks)
    assert not data.notes
    for place in LAYOUTS[layout]:
        shutil.copytree(folder / place.format(split="train"), folder / place.format(split="extra"))
    assert load(folder, img_size=(32,)).notes == ("Folders left out: extra.",)


def test_without_splits_a_tenth_is_held_out(tmp_path: Path) -> None:
    folder = beside(tmp_path / "garden", "images", "masks", mark="_mask")
    (folder / "labels.txt").write_text("lawn\nroses\npond\n")
    shutil.copy(folder / "masks" / "p_0_mask.png", folder / "masks" / "p_99_mask.png")
    shutil.copytree(folder / "images", folder / "previews")
    data = load(folder, img_size=(32,))
    assert (data.num_train, data.num_val, data.class_names) == (9, 1, ["lawn", "roses", "pond"])
    assert any(note.startswith("1 mask(s) in") for note in data.notes)
    assert "Folders left out: previews." in data.notes


def test_cityscapes(tmp_path: Path) -> None:
    folder = beside(tmp_path / "city", "leftImg8bit/{split}/ulm", "gtFine/{split}/ulm", mark="_gtFine_labelTrainIds")
    for image in (folder / "leftImg8bit").rglob("*.jpg"):
        image.rename(image.with_stem(f"{image.stem}_leftImg8bit"))
    for mask in [*(folder / "gtFine").rglob("*.png")]:
        shutil.copy(mask, mask.with_stem(mask.stem.replace("labelTrainIds", "instanceIds")))
    data = load(folder, img_size=(32,))
    assert (data.num_train, data.num_val, data.num_classes) == (6, 4, 3)
    assert sorted(note.partition(" in ")[0] for note in data.notes) == ["4 mask(s)", "6 mask(s)"]
    (folder / "gtFine").rename(folder / "fine")
    with pytest.raises(UserError, match=r"has no masks\. Folders must contain images/ and masks/, or"):
        load(folder)


def test_images_need_exactly_one_mask(tmp_path: Path) -> None:
    folder = beside(tmp_path / "garden", "{split}/images", "{split}/masks")
    shutil.copytree(folder / "val" / "images", folder / "test" / "images")
    assert load(folder, img_size=(32,)).notes == ("Split test is left out, because it has no masks.",)
    mask = folder / "train" / "masks" / "p_0.png"
    other = shutil.copy(mask, mask.with_name("p_0_mask.png"))
    with pytest.raises(
        UserError, match=r"^1 image\(s\) in .*images have two masks of the same name in .*masks: p_0\.$"
    ):
        load(folder)
    mask.unlink()
    assert load(folder, img_size=(32,)).num_train == 6
    other.unlink()
    with pytest.raises(UserError, match=r"^1 image\(s\) in .*images have no mask of the same name in .*masks: p_0\.$"):
        load(folder)
    shutil.copy(mask.with_name("p_1.png"), mask.with_name("mask_0.png"))
    with pytest.raises(UserError, match=r"It would be p_0.png or p_0_mask.png; there is mask_0.png\.$"):
        load(folder)
    mask.with_name("mask_0.png").rename(mask)
    image = next((folder / "train" / "images").glob("p_0.*"))
    Image.open(image).save(image.with_suffix(".bmp"))
    with pytest.raises(UserError, match=r"^Two images in .*images have the same mask in .*masks: p_0\.$"):
        load(folder)


def test_training_images_need_masks_and_classes_are_no_masks(tmp_path: Path) -> None:
    folder = beside(tmp_path / "garden", "Images/{split}", "Masks/{split}")
    (folder / "Masks" / "train").rename(folder / "Masks" / "Train")
    assert load(folder, img_size=(32,)).num_train == 6
    (folder / "Masks" / "Train").rename(folder / "Masks" / "first")
    with pytest.raises(UserError, match=r"there are no masks for the images in .*train\.$"):
        load(folder)
    for number, name in enumerate(("image", "labels", "text")):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for other in range(3):
            picture(3 * number + other).save(tmp_path / "classes" / name / f"{other}.png")
    assert load_classes(tmp_path / "classes").class_names == ["image", "labels", "text"]
