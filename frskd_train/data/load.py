"""From settings to data: find, check, choose rows, resolve the preprocessing, decode or prepare to stream."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from frskd_timm.errors import UserError
from frskd_train.data.batches import Augmentation
from frskd_train.data.columns import Labels, find_image_column, find_label_column, read_labels
from frskd_train.data.decode import BadImageError, Images, quiet_pillow
from frskd_train.data.image_data import ImageData
from frskd_train.data.memory import MemoryImages, ResizedCrop, decode_all
from frskd_train.data.mix import Mix
from frskd_train.data.preprocessing import (
    Preprocessing,
    check_augmentation,
    choose_crop_mode,
    choose_img_size,
    choose_padding,
    given_statistics,
    measure,
)
from frskd_train.data.source import Source, find_source
from frskd_train.data.splits import balanced_subset, choose_splits, hold_out
from frskd_train.data.stream import StreamedImages
from frskd_train.data.transforms import FitCentre, Squash, streamed_transform
from frskd_train.settings import DataSettings, PreprocessingSettings

LOOKED_AT = 256  # images whose headers say what sizes and colours the dataset has
MEASURED = 2048  # images of a streamed dataset that give its mean and standard deviation
MARGIN = 8 / 7  # side of an image kept for random resized crops, relative to the network's input: 256 for 224


@dataclass(frozen=True)
class Part:
    """The rows of a split that are used.

    Attributes:
        images: the split's encoded images.
        rows: the rows in use, ascending.
        labels: the class of each of these.
    """

    images: Images
    rows: Labels
    labels: Labels


def load_data(
    data: DataSettings,
    preprocessing: PreprocessingSettings,
    *,
    model_cfg: Mapping[str, Any],
    use_model_stats: bool = False,
    progress: bool = False,
) -> ImageData:
    """Loads a dataset of images and classes.

    The same rows are trained on and validated on whatever the seed of the run, so this takes none.

    Args:
        data: where the images come from.
        preprocessing: their size, colours and augmentation.
        model_cfg: the student's timm configuration (`pretrained_cfg`): input_size, mean, std, fixed_input_size.
        use_model_stats: take mean and std from `model_cfg` where the settings give none.
        progress: show a bar while images are decoded.

    Raises:
        UserError: no such dataset, or something in it or in the settings that cannot be trained on.
    """
    check_augmentation(preprocessing)
    source = find_source(data)
    train_split, val_split = choose_splits(source.splits, data.train_split, data.val_split)
    train, val, class_names = _choose_rows(source, data, train_split, val_split)

    sizes, gray = _look_at(train)
    in_chans: Literal[1, 3] = preprocessing.in_chans
    img_size = choose_img_size(preprocessing.img_size, sizes, model_cfg)
    crop_mode = choose_crop_mode(preprocessing, img_size)
    padding = choose_padding(preprocessing, img_size) if crop_mode == "pad" else 0
    kept = _size_in_memory(sizes, img_size) if crop_mode == "rrc" else (img_size, img_size)
    pixels = len(train.rows) * kept[0] * kept[1] + len(val.rows) * img_size**2
    mode = _choose_mode(data, preprocessing, pixels * (1 if gray else in_chans))

    fit = FitCentre(img_size, preprocessing.interpolation, preprocessing.crop_pct)
    train_source: MemoryImages | StreamedImages
    val_source: MemoryImages | StreamedImages
    if mode == "memory":
        keep = Squash(*kept, preprocessing.interpolation) if crop_mode == "rrc" else fit
        train_source, val_source = (
            decode_all(part.images, part.rows, part.labels, transform, in_chans, data.bad_images, progress)
            for part, transform in ((train, keep), (val, fit))
        )
        measured = train_source.images
    else:
        one_mode: Literal["L", "RGB"] = "L" if in_chans == 1 else "RGB"
        train_source, val_source = (
            StreamedImages(part.images, part.rows, part.labels, one_mode, data.workers, data.bad_images)
            for part in (train, val)
        )
        some = _evenly(len(train.rows), MEASURED)
        rows, labels = train.rows[some], train.labels[some]
        measured = decode_all(train.images, rows, labels, fit, in_chans, "skip", progress).images

    mean, std = given_statistics(preprocessing, model_cfg, use_model_stats)
    if mean is None or std is None:
        measured_mean, measured_std = measure(measured, in_chans)
        mean, std = mean or measured_mean, std or measured_std
    resolved = Preprocessing(
        (in_chans, img_size, img_size), mean, std, preprocessing.interpolation, preprocessing.crop_pct
    )
    resized = ResizedCrop(img_size, preprocessing.scale, preprocessing.ratio, preprocessing.interpolation)
    augmentation = Augmentation(
        padding=padding,
        resized=resized if crop_mode == "rrc" else None,
        streamed=streamed_transform(preprocessing, resolved, crop_mode == "rrc"),
        hflip=preprocessing.hflip,
        vflip=preprocessing.vflip,
        reprob=preprocessing.reprob,
        mix=Mix(preprocessing.mixup, preprocessing.cutmix, len(class_names)),
    )
    return ImageData(
        name=source.info.name,
        id=source.info.id,
        license=source.info.license,
        homepage=source.info.homepage,
        train_split=train_split,
        val_split=val_split or train_split,
        class_names=class_names,
        train_rows=len(train_source),
        val_rows=len(val_source),
        fingerprint=_fingerprint(class_names, train, val),
        preprocessing=resolved,
        mode=mode,
        notes=_notes(class_names, train, train_source, val_source),
        train=train_source,
        val=val_source,
        augmentation=augmentation,
    )


def _choose_rows(
    source: Source, data: DataSettings, train_split: str, val_split: str | None
) -> tuple[Part, Part, list[str]]:
    """The rows to train on, those to validate on, and the classes."""
    used = [train_split] if val_split is None else [train_split, val_split]
    for split in used:
        if len(source.splits[split]) == 0:
            raise UserError(f"split {split} of --dataset {data.dataset} is empty")
    features = source.splits[train_split].features
    image_column = find_image_column(features, data.input_key)
    label_column = find_label_column(features, data.target_key)
    if label_column == image_column:
        raise UserError(f"--input-key and --target-key both name the column {image_column}")
    labels, class_names = read_labels({split: source.splits[split] for split in used}, label_column)
    images = {split: Images.of(source.splits[split], split, image_column) for split in used}

    if val_split is None:
        val_split = train_split
        rows, val_rows = hold_out(labels[train_split], data.val_fraction)
    else:
        rows, val_rows = np.arange(len(labels[train_split])), np.arange(len(labels[val_split]))
    if data.train_num_samples is not None:
        rows = rows[balanced_subset(labels[train_split][rows], data.train_num_samples, len(class_names))]
    train = Part(images[train_split], rows, labels[train_split][rows])
    return train, Part(images[val_split], val_rows, labels[val_split][val_rows]), class_names


def _evenly(count: int, wanted: int) -> Labels:
    """At most `wanted` of `count` places, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def _look_at(part: Part) -> tuple[set[tuple[int, int]], bool]:
    """Width and height of some images, and whether all of these are gray."""
    sizes, gray = set(), True
    with quiet_pillow():
        for row in part.rows[_evenly(len(part.rows), LOOKED_AT)].tolist():
            try:
                size, is_gray = part.images.look(row)
            except BadImageError:
                continue  # what becomes of it is decided where it is decoded
            sizes.add(size)
            gray = gray and is_gray
    return sizes, gray


def _size_in_memory(sizes: set[tuple[int, int]], img_size: int) -> tuple[int, int]:
    """Width and height at which images are kept for random resized crops: their own if that is not much too large."""
    if len(sizes) == 1:
        (size,) = sizes
        if max(size) <= 2 * img_size:
            return size
    side = round(img_size * MARGIN)
    return side, side


def _choose_mode(data: DataSettings, preprocessing: PreprocessingSettings, size: int) -> Literal["memory", "stream"]:
    one_by_one = "--aa" if preprocessing.aa else "--color-jitter" if preprocessing.color_jitter else None
    if data.data_mode == "memory" and one_by_one:
        raise UserError(f"{one_by_one} works on one image at a time, so --data-mode must be auto or stream")
    if data.data_mode != "auto":
        return data.data_mode
    return "stream" if one_by_one or size > data.memory_limit * 2**30 else "memory"


def _fingerprint(class_names: list[str], *parts: Part) -> str:
    """A hash of classes, chosen rows, their labels, and the encoded bytes of some images."""
    digest = hashlib.sha256("\0".join(class_names).encode())
    for part in parts:
        digest.update(part.rows.astype("<i8").tobytes() + part.labels.astype("<i8").tobytes())
        for row in part.rows[_evenly(len(part.rows), LOOKED_AT)].tolist():
            digest.update(hashlib.sha256(part.images.encoded(row)).digest())
    return digest.hexdigest()[:16]


def _notes(class_names: list[str], train: Part, *sources: MemoryImages | StreamedImages) -> tuple[str, ...]:
    notes = []
    empty = [class_names[target] for target in sorted(set(range(len(class_names))) - set(train.labels.tolist()))]
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        notes.append(f"{len(empty)} of {len(class_names)} classes have no training image: {shown}")
    bad = [message for source in sources for message in source.bad]
    if bad:
        notes.append(f"left out {len(bad)} image(s); the first: {bad[0]}")
    return tuple(notes)
