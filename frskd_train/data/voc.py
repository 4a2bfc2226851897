"""The folder layout of Pascal VOC's segmentation data."""

from pathlib import Path

import datasets

from frskd_timm.errors import UserError
from frskd_train.data.images import stored_path

IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
NAMES_FILE = "labels.txt"
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def is_voc_folder(folder: Path) -> bool:
    """Return whether a folder has one of the layout's own folders, even if others are missing."""
    return (folder / MASKS).is_dir() or (folder / LISTS).is_dir()


def read_voc(folder: Path) -> tuple[dict[str, datasets.Dataset], list[str] | None]:
    """List images and masks of a VOC folder as datasets of paths; no image is opened.

    The names in `ImageSets/Segmentation/SPLIT.txt` are those of `JPEGImages/NAME.jpg` and `SegmentationClass/NAME.png`.

    Args:
        folder: Such as `VOCdevkit/VOC2012`.

    Returns:
        Splits by name with the columns `image` and `mask`, and the classes' names: those of `labels.txt`, one per line,
        else VOC's own where the folder or the one around it is called VOC..., else None.

    Raises:
        UserError: A folder, a list, an image or a mask is missing.
    """
    lists = sorted((folder / LISTS).glob("*.txt"))
    if not lists:
        raise UserError(f"--dataset {folder} has {MASKS}, but no list of a split such as {LISTS}/train.txt.")
    splits = {}
    for file in lists:
        names = [line.split()[0] for line in _lines(file) if line.strip()]
        if not names:
            continue
        rows: dict[str, list[str]] = {"image": [], "mask": []}
        for name in names:
            rows["image"].append(_find(folder / IMAGES, name, IMAGE_ENDINGS, file))
            rows["mask"].append(_find(folder / MASKS, name, (".png",), file))
        features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
        splits[file.stem] = datasets.Dataset.from_dict(rows, features=features)
    if not splits:
        raise UserError(f"--dataset {folder}: the lists in {LISTS} name no image.")
    return splits, _class_names(folder)


def _class_names(folder: Path) -> list[str] | None:
    if (folder / NAMES_FILE).is_file():
        return [line.strip() for line in _lines(folder / NAMES_FILE) if line.strip()]
    place = folder.resolve()
    if any(name.upper().startswith("VOC") for name in (place.name, place.parent.name)):
        return list(VOC_CLASSES)
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as text ({error}).") from error


def _find(folder: Path, name: str, endings: tuple[str, ...], named_in: Path) -> str:
    for ending in endings:
        if (folder / f"{name}{ending}").is_file():
            return stored_path(str((folder / f"{name}{ending}").absolute()))
    raise UserError(f"{named_in} names {name}, but there is no {folder / name}{endings[0]}.")
