"""From settings to images with masks: find, check, choose rows, resolve the preprocessing, decode or stream."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from frskd_timm.errors import UserError
from frskd_timm.segmentation.losses import IGNORED
from frskd_train.data.decode import BadImageError, Images, quiet_pillow
from frskd_train.data.mask_batches import PairSource
from frskd_train.data.mask_data import MaskData, MaskValidationData
from frskd_train.data.mask_rows import (
    EncodedPairs,
    MemoryPairs,
    Pair,
    Pairs,
    find_pair_columns,
    highest_label,
)
from frskd_train.data.mask_transforms import PairAugmentation
from frskd_train.data.order import Rows
from frskd_train.data.preprocessing import Preprocessing, given_statistics, measure
from frskd_train.data.scenes import COUNTS, SCENES_INFO, SCENES_NAME, SIZE, compose, garments
from frskd_train.data.source import Source, SourceInfo, find_source, slug
from frskd_train.data.splits import FIXED, choose_splits
from frskd_train.data.voc import is_voc_folder, read_voc
from frskd_train.settings import DataSettings, PreprocessingSettings

CROP = 512  # pixels at most of a side of the training crops, by default
MEASURED = 256  # images that give mean and standard deviation


@dataclass(frozen=True)
class _Found:
    """What a dataset has: names, splits, pairs."""

    info: SourceInfo
    splits: tuple[str, str]
    class_names: list[str]
    pairs: tuple[Pairs, Pairs]
    fingerprint: str
    mode: Literal["memory", "stream"]
    notes: tuple[str, ...] = ()


def load_masks(
    data: DataSettings,
    preprocessing: PreprocessingSettings,
    *,
    model_cfg: Mapping[str, Any],
    use_model_stats: bool = False,
    resize: tuple[float, float] = (0.5, 2.0),
    class_names: Sequence[str] | None = None,
    progress: bool = False,
) -> MaskData:
    """Loads a dataset for semantic segmentation.

    In this order: the scenes that are composed on the spot (`fashion_mnist_scenes`), a folder in the layout of Pascal
    VOC, and whatever `load_data` finds, with a column of masks beside that of the images. The same rows are trained
    on and validated on whatever the seed of the run, so this takes none.

    Args:
        data: Where the images come from; `input_key` is the column of images, `target_key` that of masks.
        preprocessing: Their size, colours and augmentation. `img_size` is the side of the training crops; by default
            the images' own size where all are alike, at most 512.
        model_cfg: The backbone's timm configuration: mean, std.
        use_model_stats: Take mean and std from `model_cfg` where the settings give none.
        resize: Smallest and largest factor by which training images are resized before they are cropped.
        class_names: Names of the classes; None takes the dataset's own, or numbers up to the highest label.
        progress: Show a bar while images are decoded.

    Raises:
        UserError: No such dataset, or something in it or in the settings that cannot be trained on.
    """
    statistics = given_statistics(preprocessing, model_cfg, use_model_stats)
    if data.dataset == SCENES_NAME:
        found = _scenes(data, preprocessing)
    else:
        found = _dataset(data, preprocessing, class_names, progress)
    train, val = (
        PairSource(pairs, data.workers if found.mode == "stream" else 0, data.bad_images) for pairs in found.pairs
    )
    if None in statistics:
        mean, std = _measure(train.pairs, preprocessing.in_chans)
        statistics = statistics[0] or mean, statistics[1] or std
    mean, std = statistics[0] or (), statistics[1] or ()
    height, width = _crop(preprocessing.img_size, train.pairs.sizes)
    augmentation = PairAugmentation(
        crop=(height, width),
        resize=resize,
        hflip=preprocessing.hflip,
        vflip=preprocessing.vflip,
        color_jitter=preprocessing.color_jitter,
        fill=tuple(round(255 * value) for value in mean),
        interpolation=preprocessing.interpolation,
    )
    return MaskData(
        name=found.info.name,
        id=found.info.id,
        license=found.info.license,
        homepage=found.info.homepage,
        train_split=found.splits[0],
        val_split=found.splits[1],
        class_names=found.class_names,
        fingerprint=found.fingerprint,
        preprocessing=Preprocessing((preprocessing.in_chans, height, width), mean, std, preprocessing.interpolation),
        mode=found.mode,
        notes=found.notes,
        train=train,
        val=val,
        augmentation=augmentation,
    )


def load_mask_validation(
    data: DataSettings,
    *,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
    progress: bool = False,
) -> MaskValidationData:
    """Loads images and masks to evaluate a trained student on; nothing of a training split is decoded.

    Args:
        data: As for `load_masks`: the images that training would validate on, or all of `--val-split`.
        in_chans: Channels of the student's input, 1 or 3.
        mean: The student's, a channel.
        std: The student's, a channel.
        class_names: The student's classes in the order of its outputs, which are the labels of the masks.
        progress: Show a bar while images are decoded.

    Raises:
        UserError: No such dataset, or something in it that the student cannot be evaluated on.
    """
    notes: tuple[str, ...] = ()
    if data.dataset == SCENES_NAME:
        split = choose_splits(tuple(COUNTS), data.train_split, data.val_split)[1] or "test"
        pairs, names = _composed(split, COUNTS["test"], in_chans)
        name, source = SCENES_NAME, PairSource(pairs, 0, data.bad_images)
    else:
        found, names_found = _find(data)
        names = names_found or list(class_names)
        train_split, val_split = choose_splits(found.splits, data.train_split, data.val_split)
        split = val_split or train_split
        rows = np.arange(len(found.splits[split]))
        if val_split is None:
            rows = _hold_out(len(rows), data.val_fraction)[1]
        columns = find_pair_columns(found.splits[split].features, data.input_key, data.target_key)
        part = _encoded(found, split, columns, rows, in_chans, len(class_names))
        mode = _mode(data, (part,), in_chans)
        bad: list[str] = []
        chosen: Pairs = _decode(part, data.bad_images, bad, progress) if mode == "memory" else part
        notes = _left_out(bad)
        name, source = found.info.name, PairSource(chosen, data.workers if mode == "stream" else 0, data.bad_images)
    if len(names) != len(class_names):
        raise UserError(f"{name} has {len(names)} classes, but the model tells {len(class_names)} apart.")
    preprocessing = Preprocessing((in_chans, *source.pairs.sizes[0]), tuple(mean), tuple(std), "bilinear")
    return MaskValidationData(name, split, list(class_names), preprocessing, notes, source)


def _crop(wanted: int | None, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if wanted is not None:
        return wanted, wanted
    if len(set(sizes)) == 1:
        return min(sizes[0][0], CROP), min(sizes[0][1], CROP)
    return CROP, CROP


def _scenes(data: DataSettings, preprocessing: PreprocessingSettings) -> _Found:
    train_split, val_split = choose_splits(tuple(COUNTS), data.train_split, data.val_split)
    counts = data.train_num_samples or COUNTS["train"], COUNTS["test"]
    digest = hashlib.sha256(f"{SCENES_NAME} {counts} {SIZE} {FIXED} {train_split} {val_split}".encode())
    pairs: list[MemoryPairs] = []
    class_names: list[str] = []
    for split, count in zip((train_split, val_split or "test"), counts, strict=True):
        composed, class_names = _composed(split, count, preprocessing.in_chans)
        digest.update(garments(split)[0].tobytes())
        pairs.append(composed)
    splits = train_split, val_split or "test"
    return _Found(SCENES_INFO, splits, class_names, (pairs[0], pairs[1]), digest.hexdigest()[:16], "memory")


def _composed(split: str, count: int, in_chans: int) -> tuple[MemoryPairs, list[str]]:
    scenes, class_names = compose(split, count)
    images, masks = torch.from_numpy(scenes.images), torch.from_numpy(scenes.masks)
    if in_chans == 1:
        images = images.float().mean(dim=1, keepdim=True).round().byte()
    return MemoryPairs([Pair(image, mask) for image, mask in zip(images, masks, strict=True)]), class_names


def _dataset(
    data: DataSettings, preprocessing: PreprocessingSettings, names: Sequence[str] | None, progress: bool
) -> _Found:
    source, own_names = _find(data)
    names = list(names) if names is not None else own_names
    train_split, val_split = choose_splits(source.splits, data.train_split, data.val_split)
    columns = find_pair_columns(source.splits[train_split].features, data.input_key, data.target_key)
    rows = np.arange(len(source.splits[train_split]))
    if val_split is None:
        rows, val_rows = _hold_out(len(rows), data.val_fraction)
    else:
        val_rows = np.arange(len(source.splits[val_split]))
    if data.train_num_samples is not None:
        rows = _subset(rows, data.train_num_samples)

    classes = None if names is None else len(names)
    parts = (
        _encoded(source, train_split, columns, rows, preprocessing.in_chans, classes),
        _encoded(source, val_split or train_split, columns, val_rows, preprocessing.in_chans, classes),
    )
    mode = _mode(data, parts, preprocessing.in_chans)

    bad: list[str] = []
    train: Pairs = _decode(parts[0], data.bad_images, bad, progress) if mode == "memory" else parts[0]
    if names is None:
        names = [f"class {label}" for label in range(highest_label(train) + 1)]
    if len(names) < 2 or len(names) > IGNORED:
        raise UserError(
            f"the masks of split {train_split} have {len(names)} class(es); 2 to {IGNORED} can be trained on"
        )
    parts = replace(parts[0], num_classes=len(names)), replace(parts[1], num_classes=len(names))
    val: Pairs = _decode(parts[1], data.bad_images, bad, progress) if mode == "memory" else parts[1]
    if mode == "stream":
        train = parts[0]
    digest = hashlib.sha256("\0".join(names).encode() + parts[0].digest() + parts[1].digest())
    splits = train_split, val_split or train_split
    return _Found(source.info, splits, list(names), (train, val), digest.hexdigest()[:16], mode, _left_out(bad))


def _encoded(
    source: Source, split: str, columns: tuple[str, str], rows: Rows, in_chans: int, num_classes: int | None
) -> EncodedPairs:
    if len(rows) == 0:
        raise UserError(f"split {split} of {source.info.name} is empty")
    images, masks = (Images.of(source.splits[split], split, column) for column in columns)
    return EncodedPairs(images, masks, rows, num_classes, "L" if in_chans == 1 else "RGB")


def _mode(data: DataSettings, parts: Sequence[EncodedPairs], in_chans: int) -> Literal["memory", "stream"]:
    if data.data_mode != "auto":
        return data.data_mode
    size = sum(height * width for part in parts for height, width in part.sizes) * (in_chans + 1)
    return "memory" if size <= data.memory_limit * 2**30 else "stream"


def _left_out(bad: Sequence[str]) -> tuple[str, ...]:
    return (f"left out {len(bad)} image(s); the first: {bad[0]}",) if bad else ()


def _find(data: DataSettings) -> tuple[Source, list[str] | None]:
    folder = Path(data.dataset).expanduser()
    if not (data.dataset.strip() and is_voc_folder(folder)):
        return find_source(data), None
    splits, names = read_voc(folder)
    name = folder.resolve().name
    return Source(SourceInfo(slug(name), name), splits), names


def _hold_out(count: int, fraction: float) -> tuple[Rows, Rows]:
    """Row numbers to train on and to validate on, both ascending; always the same ones."""
    held = round(count * fraction)
    if not 0 < held < count:
        raise UserError(
            f"the dataset has no validation split and --val-fraction {fraction:g} of its {count} images holds out "
            f"{held}; give --val-split or another --val-fraction"
        )
    shuffled = np.random.default_rng(FIXED).permutation(count)
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def _subset(rows: Rows, wanted: int) -> Rows:
    if wanted > len(rows):
        raise UserError(f"--train-num-samples {wanted}: there are only {len(rows)} training images")
    return np.sort(np.random.default_rng(FIXED).permutation(rows)[:wanted])


def _decode(encoded: EncodedPairs, bad_images: Literal["stop", "skip"], bad: list[str], progress: bool) -> MemoryPairs:
    """Decodes all pairs; messages about those that are left out are added to `bad`."""

    def load(place: int) -> Pair | BadImageError:
        try:
            return encoded.load(place)
        except BadImageError as error:
            return error

    pairs = []
    split = encoded.images.split
    bar = tqdm(total=len(encoded), desc=f"decoding {split}", unit=" images", delay=3, disable=not progress)
    with quiet_pillow(), bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(load, range(len(encoded))):
            bar.update()
            if isinstance(result, Pair):
                pairs.append(result)
            elif bad_images == "stop":
                raise UserError(f"{result} (--bad-images skip leaves such images out)") from result
            else:
                bad.append(str(result))
    if not pairs:
        raise UserError(f"none of the {len(encoded)} images of split {split} can be used; the first: {bad[0]}")
    return MemoryPairs(pairs)


def _measure(pairs: Pairs, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, of some images in 0..1."""
    pixels: list[Tensor] = []
    for place in np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), MEASURED)).astype(np.int64)).tolist():
        try:
            pixels.append(pairs.load(place).image.flatten(1))
        except BadImageError:
            continue  # what becomes of it is decided where it is used
    if not pixels:
        raise UserError("no image and mask of the training split can be used")
    return measure(torch.cat(pixels, dim=1)[None, :, None], in_chans)
