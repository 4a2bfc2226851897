"""Folders of images: one folder a class, under train/ and val/ or directly."""

import os
from collections.abc import Iterator
from pathlib import Path

import datasets

from frskd_timm.errors import UserError

IMAGE_ENDINGS = frozenset(
    (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
SPLIT_FOLDERS = ("train", "validation", "valid", "val", "test")


def is_image_folder(folder: Path) -> bool:
    """Whether there is an image somewhere below one of its folders."""
    return any(next(_images_below(sub), None) for sub in folders_in(folder))


def read_image_folder(folder: Path) -> dict[str, datasets.Dataset]:
    """Lists the images of class folders as datasets of paths; no image is opened and nothing is written.

    A folder named train makes its neighbours named val, valid, validation or test splits too; otherwise every folder
    is a class. A class's images may lie in folders below it. Classes are the folders' names over all splits, sorted.
    Splits without class folders, such as unlabelled test images, are left out.

    Raises:
        UserError: Less than two class folders.
    """
    folders = folders_in(folder)
    if any(sub.name.lower() == "train" and folders_in(sub) for sub in folders):
        roots = {sub.name.lower(): sub for sub in folders if sub.name.lower() in SPLIT_FOLDERS and folders_in(sub)}
    else:
        roots = {"train": folder}

    classes = sorted({sub.name for root in roots.values() for sub in folders_in(root)})
    if len(classes) < 2:
        raise UserError(f"--dataset {folder} has {len(classes)} class folder(s) {classes}; at least 2 are needed")
    number = {name: index for index, name in enumerate(classes)}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    splits = {}
    for split, root in roots.items():
        paths: list[str] = []
        labels: list[int] = []
        for sub in folders_in(root):
            found = list(_images_below(sub))
            paths += found
            labels += [number[sub.name]] * len(found)
        splits[split] = datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)
    return splits


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones.

    Raises:
        UserError: It cannot be listed.
    """
    try:
        found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))]
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be listed ({error.strerror})") from error
    return sorted(found)


def _images_below(folder: Path) -> Iterator[str]:
    for parent, below, files in os.walk(folder.absolute()):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in IMAGE_ENDINGS and not file.startswith("."):
                yield os.path.join(parent, file)
