"""Folders of images: one folder per class, under train/ and val/ or directly."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import datasets

from frskd_timm.errors import UserError
from frskd_train.data.columns import Splits
from frskd_train.data.images import stored_path
from frskd_train.errors import listed, printable

TRAIN_SPLITS = ("train", "training")
VALIDATION_SPLITS = ("validation", "val", "valid", "dev", "test", "testing")
IMAGE_ENDINGS = frozenset((
    ".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".pnm", ".ppm", ".tga",
    ".tif", ".tiff", ".webp",
))  # fmt: skip
UNSUPPORTED = frozenset(
    (".arw", ".cr2", ".dng", ".heic", ".heif", ".jxl", ".nef", ".svg")
)  # of images that Pillow does not read
NO_DATA = re.compile(r"\..*|__MACOSX|__pycache__|lost\+found")  # hidden, or of archives, Python and file systems
_LIKE_SPLITS = re.compile(r"(^|[_-])(train|val|dev|test|eval)(?![a-z])", re.IGNORECASE)  # in the name of a folder
SPLIT_NAMES = frozenset((*TRAIN_SPLITS, *VALIDATION_SPLITS))
# Characters that file systems do not allow in names, and the percent sign; a leading dot would hide the folder.
ESCAPED = re.compile(r"%(?:2F|5C|3A|2A|3F|22|3C|3E|7C|25|2E)", re.IGNORECASE)


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder contains images in subfolders at any depth."""
    return any(any(images_below(sub)) for sub in folders_in(folder))


def read_image_folder(folder: Path) -> tuple[Splits, tuple[str, ...]]:
    """List the images of class folders as datasets of paths; no image is opened and nothing is written.

    Folders that are named like splits and contain folders are splits if one of them is a training split or if all
    folders are named like splits; otherwise every folder is a class. The images of a class may be in subfolders,
    including links; folders of training runs are not read. Classes are the names of the folders with images in any
    split, in which `%2F` stands for `/`, in timm's order. Splits without class folders, such as unlabelled test images,
    are left out.

    Returns:
        The splits, and notes for the user.

    Raises:
        UserError: There are fewer than two class folders, or it is unclear which folders are splits or classes.
    """
    found_splits = split_folders(folder)
    roots = found_splits or {"train": folder}
    images: dict[str, list[tuple[Path, list[str]]]] = {split: [] for split in roots}
    unsupported: list[str] = []
    loose = [next(images_in(root), "") for root in roots.values()]
    unused = [sub for sub in folders_in(folder) if found_splits and sub not in roots.values()]
    for sub in unused:
        unsupported += images_below(sub, UNSUPPORTED)
    for split, root in roots.items():
        for sub in folders_in(root):
            paths = [*images_below(sub, IMAGE_ENDINGS | UNSUPPORTED)]
            images[split].append((sub, [stored_path(path) for path in paths if _ending(path) in IMAGE_ENDINGS]))
            unsupported += [path for path in paths if _ending(path) in UNSUPPORTED]
    listing = [(_class_name(sub), found) for folders in images.values() for sub, found in folders]
    classes = sorted({name for name, found in listing if found}, key=_order)
    ignored = ""
    if unsupported:
        kinds = ", ".join(sorted(set(map(_ending, unsupported))))
        ignored = f"{len(unsupported)} image(s) were ignored, such as {unsupported[0]}: {kinds} cannot be read."
    if len(classes) < 2:
        problem = f"has {len(classes)} class folder(s) {classes}; at least 2 are needed. {ignored}"
        raise UserError(f"--dataset {folder} {problem}".strip())
    number = {name: index for index, name in enumerate(classes)}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    splits = {}
    for split, folders in images.items():
        columns: dict[str, list[Any]] = {"image": [], "label": []}
        for sub, paths in folders:
            columns["image"] += paths
            columns["label"] += [number[_class_name(sub)]] * len(paths) if paths else []
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    empty = sorted({name for name, _ in listing} - set(classes))
    notes = [f"Folders without images of their own were ignored: {listed(empty)}."] if empty else []
    notes += [ignored] if ignored else []
    if alone := [name for name in loose if name]:
        notes.append(f"Images beside the class folders were ignored, such as {alone[0]}.")
    named = [sub for sub in unused if sub.name.lower() in SPLIT_NAMES]
    if flat := [sub for sub in named if any(images_below(sub))]:
        notes.append(f"Left out, as images without class folders: {_listed(flat)}.")
    if left := [sub for sub in unused if sub not in flat]:
        notes.append(f"Left out beside the splits: {_listed(left)}.")
    return splits, (*notes, *_nested(roots))


def _order(name: str) -> tuple[list[int | str], str]:
    """Return a sort key as in timm's reader of image folders: numbers by value, letters without case."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())], name


def _class_name(folder: Path) -> str:
    """Return the class name that a folder stands for: `T-shirt%2Ftop` is `T-shirt/top`, `%25` a percent sign.

    Letters with accents are composed (NFC); copies from macOS may have decomposed ones, which look the same.
    """
    return unicodedata.normalize("NFC", ESCAPED.sub(lambda found: unquote(found[0]), printable(folder.name)))


def folders_in(folder: Path) -> list[Path]:
    """Return the sorted subfolders of a folder, including links, without hidden ones and those of archives or Python.

    Raises:
        UserError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:  # without a look at each file, as Path.is_dir needs
            names = [entry.name for entry in entries if _is_folder(entry) and not NO_DATA.fullmatch(entry.name)]
    except OSError as error:
        raise unreadable(error) from error
    return sorted(map(folder.joinpath, names))


def unreadable(error: OSError) -> UserError:
    """Return the error of a folder that cannot be read."""
    return UserError(f"The folder {error.filename} cannot be listed ({error.strerror}).")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders that are splits, by name; empty if all folders are classes.

    Raises:
        UserError: It is unclear which they are.
    """
    folders = folders_in(folder)
    named = [sub for sub in folders if sub.name.lower() in SPLIT_NAMES]
    if len({sub.name.lower() for sub in named}) < len(named):
        raise UserError(f"--dataset {folder}: two of {_listed(named)} differ only in upper and lower case; rename one.")
    roots = {sub.name.lower(): sub for sub in named if any(any(images_below(below)) for below in folders_in(sub))}
    others = [sub for sub in folders if sub not in named and any(images_below(sub))]
    if not roots:
        if named and not others and all(any(images_below(sub)) for sub in named):
            raise UserError(f"--dataset {folder}: {_listed(named)} hold images, but no class folders.")
        several = [sub for sub in others if {below.name.lower() for below in folders_in(sub)} & SPLIT_NAMES]
        flat = [sub for sub in several if not any(is_image_folder(below) for below in folders_in(sub))]
        if len(flat) > 1:
            split = folders_in(flat[0])[0].name
            raise UserError(
                f"--dataset {folder} has splits inside its classes, such as {flat[0].name}/{split}: "
                f"it needs classes inside splits, such as {split}/{flat[0].name}."
            )
        if inside := _listed([sub for sub in several if sub not in flat and split_folders(sub)]):
            raise UserError(f"--dataset {folder} contains several datasets with splits ({inside}); choose one of them.")
    elif others and (len(roots) == 1 or not set(TRAIN_SPLITS) & set(roots)):
        found = f"folders named like splits ({_listed(list(roots.values()))}) with others ({_listed(others)})"
        raise UserError(f"--dataset {folder} mixes {found}: move or rename one kind.")
    return roots


def _nested(roots: dict[str, Path]) -> tuple[str, ...]:
    """Return a note about class folders that contain only folders, which may be the real classes.

    Raises:
        UserError: Several are named almost like splits and contain the same folders.
    """
    folders = [sub for root in roots.values() for sub in folders_in(root)]
    like = [sub for sub in folders if _LIKE_SPLITS.search(sub.name)]
    inside = {tuple(below.name for below in folders_in(_innermost(sub))) for sub in like if not any(images_in(sub))}
    if len(like) > 1 and len(inside) == 1 and len(names := inside.pop()) > 1:
        raise UserError(
            f"{_listed(like)} in {like[0].parent} look like splits, because each holds the folders {listed(names)}: "
            f"name them {TRAIN_SPLITS[0]}, {VALIDATION_SPLITS[0]} or test, with these folders directly in them."
        )
    deep = [sub for sub in folders if len(folders_in(sub)) > 1 and not any(images_in(sub)) and any(images_below(sub))]
    if not deep:
        return ()
    below, name = _listed(folders_in(deep[0])), deep[0].name
    return (f"Class folders hold folders: the images of {below} are read as one class, {name}.",)


def _innermost(folder: Path) -> Path:
    """Return the folder that a chain of folders with nothing else in them ends in."""
    while len(below := folders_in(folder)) == 1 and not any(images_in(folder)):
        folder = below[0]
    return folder


def _listed(folders: list[Path]) -> str:
    return listed([printable(sub.name) for sub in folders])


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def images_in(folder: Path, endings: Collection[str] = IMAGE_ENDINGS) -> Iterator[str]:
    """Yield the names of the image files in a folder, and of links to files that are missing."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if _ending(entry.name) not in endings or entry.name.startswith("."):
                continue
            if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                yield entry.name


def images_below(folder: Path, endings: Collection[str] = IMAGE_ENDINGS) -> Iterator[str]:
    """Yield the paths of image files below a folder, each folder once, even with circular links; no training runs.

    Raises:
        UserError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(error) from error

    seen = set()
    for parent, below, files in os.walk(folder.absolute(), followlinks=True, onerror=refuse):
        place, is_run = os.stat(parent), "config.yaml" in files and bool({"checkpoints", "student"} & {*below})
        if (place.st_dev, place.st_ino) in seen or is_run:
            below.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for file in sorted(images_in(Path(parent), endings)):
            yield os.path.join(parent, file)
