"""Folders of images and masks: Pascal VOC with its lists, or folders `images` and `masks`."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from frskd_timm.errors import UserError
from frskd_train.data.columns import Splits, read_lines, read_names
from frskd_train.data.folder import SPLIT_NAMES, TRAIN_SPLITS, folders_in, images_below, images_in
from frskd_train.data.images import stored_path
from frskd_train.errors import listed, printable

VOC_IMAGES, VOC_MASKS, VOC_LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
VOC_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
NAMES_FILE = "labels.txt"
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "leftimg8bit")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "gtfine")
IMAGE_MARK = "_leftImg8bit"  # of Cityscapes; the names of its masks lack it
MASK_MARKS = ("", "_mask", "_gtFine_labelTrainIds")  # what the name of a mask adds to that of its image
LAYOUTS = (
    "Folders must contain images/ and masks/, or have the layout of Pascal VOC (JPEGImages, SegmentationClass, "
    "ImageSets/Segmentation) or Cityscapes (leftImg8bit, gtFine)."
)
Read = tuple[Splits, list[str] | None, tuple[str, ...]]


def is_voc_folder(folder: Path) -> bool:
    """Return whether a folder has one of the folders of the VOC layout, even if others are missing."""
    return (folder / VOC_MASKS).is_dir() or (folder / VOC_LISTS).is_dir()


def read_voc(folder: Path) -> Read:
    """List images and masks of a VOC folder as datasets of paths; no image is opened.

    The names in `ImageSets/Segmentation/SPLIT.txt` are those of `JPEGImages/NAME.jpg` and `SegmentationClass/NAME.png`.

    Returns:
        Splits by name with the columns `image` and `mask`, the class names (those in `labels.txt`, one per line, else
        those of VOC if the folder is called VOC, or VOC and a year, else None), and notes for the user. A list with
        another name than train or val is left out if it names a file that is missing, such as the mask of a test image.

    Raises:
        UserError: A folder, a list, an image or a mask is missing, or `labels.txt` is not a list of names.
    """
    splits: dict[str, datasets.Dataset] = {}
    notes = []
    for file in sorted((folder / VOC_LISTS).glob("*.txt")):
        names = read_lines(file)
        try:
            images = [_find(folder / VOC_IMAGES, name, VOC_ENDINGS, file) for name in names]
            masks = [_find(folder / VOC_MASKS, name, (".png",), file) for name in names]
        except UserError as error:
            if file.stem in ("train", "val"):
                raise
            notes.append(f"{file.name} is left out. {error}")
            continue
        if names:
            splits[file.stem] = pairs(images, masks)
    if not splits:
        raise UserError(f"--dataset {folder} has {VOC_MASKS}, but no list of a split such as {VOC_LISTS}/train.txt.")
    is_voc = re.fullmatch(r"VOC(\d{4})?", folder.resolve().name, re.IGNORECASE)
    return splits, _class_names(folder) or (list(VOC_CLASSES) if is_voc else None), tuple(notes)


def mask_folders(folder: Path, has_masks: bool) -> dict[str, tuple[Path, Path | None]]:
    """Return the folders of images and of their masks by split; empty if the folder has another layout.

    Without splits they are `images` and `masks` in the folder; splits are folders with these two, or folders in both of
    them. A split without masks has None. Further folders of images beside them make all of them classes, unless the
    dataset `has_masks`.
    """
    images, masks = (_child(folder, names) for names in (IMAGE_FOLDERS, MASK_FOLDERS))
    others = [] if has_masks or images is None else [sub for sub in folders_in(folder) if sub not in (images, masks)]
    if any(any(images_below(sub)) for sub in others):
        return {}
    if images is None:
        splits = [sub for sub in folders_in(folder) if sub.name.lower() in SPLIT_NAMES]
        parts = {sub.name.lower(): (_child(sub, IMAGE_FOLDERS), _child(sub, MASK_FOLDERS)) for sub in splits}
        found = {split: (own, of_own) for split, (own, of_own) in parts.items() if own is not None}
    elif masks is None:
        return {}
    elif below := [sub for sub in folders_in(images) if sub.name.lower() in SPLIT_NAMES and not any(images_in(images))]:
        found = {sub.name.lower(): (sub, _child(masks, [sub.name.lower()])) for sub in below}
    else:
        found = {"train": (images, masks)}
    return found if any(of_own for _, of_own in found.values()) else {}


def read_masks(folder: Path, folders: Mapping[str, tuple[Path, Path | None]]) -> Read:
    """List images and masks as datasets of paths; no image is opened.

    A mask has the name of its image, with another ending or with `_mask` before it, in the same subfolder; or the names
    are those of Cityscapes, whose masks `*_gtFine_labelTrainIds.png` are made by a script of its authors.

    Args:
        folder: The dataset; its `labels.txt` has the class names, one per line.
        folders: The result of `mask_folders`.

    Returns:
        As `read_voc`. A split without masks, such as test images, is left out.

    Raises:
        UserError: There are no masks to train on, an image has no mask, two, or that of another image as well, or
            `labels.txt` is not a list of names.
    """
    splits, notes = {}, []
    for split, (images, masks) in folders.items():
        if masks is None and split in TRAIN_SPLITS:
            raise UserError(f"--dataset {folder}: there are no masks for the images in {images}.")
        if masks is None:
            notes.append(f"Split {split} is left out, because it has no masks.")
            continue
        pictures, found, unused = _matched(images, masks)
        if unused:
            notes.append(f"{len(unused)} mask(s) in {masks} belong to no image.")
        splits[split] = pairs([*map(stored_path, pictures)], [*map(stored_path, found)])
    if left := _unused(folder, {sub for pair in folders.values() for sub in pair if sub is not None}):
        notes.append(f"Folders left out: {listed(left)}.")
    return splits, _class_names(folder), tuple(notes)


def _matched(images: Path, masks: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the images, their masks, and the masks of no image; raise UserError if an image has not one of its own."""
    pictures, of_name = [*images_below(images)], defaultdict[str, list[str]](list)
    for mask in images_below(masks):
        of_name[_stem(mask, masks)].append(mask)
    stems = [_stem(picture, images).removesuffix(IMAGE_MARK) for picture in pictures]
    found = [[mask for mark in MASK_MARKS for mask in of_name.get(stem + mark, [])] for stem in stems]
    used = {mask for own in found for mask in own}
    unused = [mask for own in of_name.values() for mask in own if mask not in used]
    for number, problem in ((0, "no mask"), (2, "two masks")):
        wrong = [_stem(i, images) for i, own in zip(pictures, found, strict=True) if min(len(own), 2) == number]
        if wrong:
            names = listed([printable(name) for name in wrong])
            text = f"{len(wrong)} image(s) in {images} have {problem} of the same name in {masks}: {names}."
            if number == 0 and unused:
                name, other = printable(wrong[0]), printable(os.path.relpath(unused[0], masks.absolute()))
                text += f" It would be {name}.png or {name}_mask.png; there is {other}."
            raise UserError(text)
    chosen = [mask for (mask,) in found]
    if twice := [mask for mask, count in Counter(chosen).items() if count > 1]:
        names = listed([printable(_stem(mask, masks)) for mask in twice])
        raise UserError(f"Two images in {images} have the same mask in {masks}: {names}.")
    return pictures, chosen, unused


def _unused(folder: Path, used: set[Path]) -> list[str]:
    """Return the names of folders with images beside those that are used, or beside the folders above these."""
    above = {parent for sub in used for parent in sub.parents if parent.is_relative_to(folder)}
    beside = [sub for parent in above for sub in folders_in(parent) if sub not in used | above]
    return sorted({printable(sub.name) for sub in beside if any(images_below(sub))})


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first subfolder of images with one of the names, in any case."""
    found = {sub.name.lower(): sub for sub in folders_in(folder)}
    return next((found[name] for name in names if name in found and any(images_below(found[name]))), None)


def _stem(path: str, folder: Path) -> str:
    return os.path.splitext(os.path.relpath(path, folder.absolute()))[0]


def pairs(images: list[Any], masks: list[Any]) -> datasets.Dataset:
    """Create a dataset of images and masks, given as paths or as `datasets.Image` encodes them."""
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    return datasets.Dataset.from_dict({"image": images, "mask": masks}, features=features)


def _class_names(folder: Path) -> list[str] | None:
    return read_names(folder / NAMES_FILE) if (folder / NAMES_FILE).is_file() else None


def _find(folder: Path, line: str, endings: tuple[str, ...], named_in: Path) -> str:
    """Return the path of the file that a line of a list names, alone or before a space."""
    first = line.split()[0]
    if os.path.isabs(first) or ".." in Path(line).parts:
        raise UserError(f"{named_in} names {first}, which is not in {folder}: correct the list.")
    for path in (folder / f"{name}{ending}" for name in dict.fromkeys((line, first)) for ending in endings):
        if path.is_file():
            return stored_path(str(path.absolute()))
    raise UserError(f"{named_in} names {first}, but there is no {folder / first}{endings[0]}.")
