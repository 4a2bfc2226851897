"""Loading of data: find and check a dataset, choose rows, resolve the preprocessing, decode or prepare to stream."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_train.data.batches import Samples
from frskd_train.data.cache import Cache, decode_all
from frskd_train.data.loaded import TrainingData, ValidationData, left_out
from frskd_train.data.plan import DensePlan, Mode, Plan, WholeImagePlan, choose_mode, dense_bytes
from frskd_train.data.preprocessing import Preprocessing, given_statistics, measure
from frskd_train.data.sampler import evenly_spaced
from frskd_train.data.source import find_source
from frskd_train.data.splits import Choice, Split
from frskd_train.data.targets import TARGETS
from frskd_train.data.transforms import EvalTransform, SampleTransform, as_is
from frskd_train.errors import listed
from frskd_train.settings import DataSettings, HeldOut, PreprocessingSettings, SegmentationSettings, default_settings

DARK = 17 / 255  # mean of the brightest channel below which images look black: that of 12 of 16 bits is below
GLANCED = 64  # images that are looked at for this if mean and standard deviation are given


def load_data(
    data: DataSettings,
    preprocessing: PreprocessingSettings,
    *,
    task: str = "classification",
    model_cfg: Mapping[str, Any],
    initial_cfg: Mapping[str, Any] | None = None,
    num_outputs: int | None = None,
    resize_range: tuple[float, float] = SegmentationSettings().resize_range,
    measured: tuple[Sequence[float], Sequence[float]] | None = None,
) -> TrainingData:
    """Load a dataset for training and validation.

    The choice of training and validation rows does not depend on the seed of the run.

    Args:
        data: Source of the images.
        preprocessing: Size, colours and augmentation of the images.
        task: Kind of targets: `classification` or `segmentation`.
        model_cfg: The student's timm configuration (`pretrained_cfg`): input_size, mean, std, fixed_input_size.
        initial_cfg: Such a configuration of the initial weights, if there are any: the source of what the settings
            leave open.
        num_outputs: Number of the network's outputs, if larger than the number of classes.
        resize_range: Smallest and largest factor for resizing images with masks before they are cropped.
        measured: Mean and standard deviation that were measured before, of a run that is resumed.

    Raises:
        UserError: There is no such dataset, or it cannot be used for training with these settings.
    """
    source = find_source(data, TARGETS[task].is_dense)
    choice = Choice(source, data, TARGETS[task], preprocessing.in_chans == 1)
    train, val = choice.training()
    targets = train.targets
    targets.find_classes(train.name, train.rows)
    plan: Plan
    if targets.is_dense:
        plan = DensePlan(data, preprocessing, train, val, initial_cfg or {}, resize_range)
    else:
        plan = WholeImagePlan(data, preprocessing, train, val, model_cfg, initial_cfg or {})
    train_samples, train_notes = _samples(train, plan.mode, plan.kept, data)
    val_samples, val_notes = _samples(val, plan.mode, plan.evaluated, data)
    notes: list[str] = []
    mean, std = given_statistics(preprocessing, initial_cfg or {})
    if mean is None or std is None:
        found = measured or measure(_measured(train_samples, plan), preprocessing.in_chans)
        mean, std = mean or tuple(found[0]), std or tuple(found[1])
        brightest = max(found[0])
    else:
        brightest = _brightness_of_16_bits(train, plan)
    if brightest < DARK:
        notes.append(
            f"The training images are nearly black (mean {brightest:.3f} in 0..1). "
            "16-bit images that use fewer bits have to be stretched to 0..65535 first."
        )
    resolved = replace(plan.preprocessing, mean=mean, std=std)
    cache = train_samples.source if isinstance(train_samples.source, Cache) else None
    transform, augmentation = plan.augmentation(resolved, num_outputs or len(targets.class_names), cache)
    digest = hashlib.sha256("\0".join(targets.class_names).encode() + train.digest() + val.digest())
    decoded = cache.targets if cache is not None and isinstance(cache.targets, list) else ()
    empty, classes = train.empty_classes(train_samples.source.rows, decoded), len(targets.class_names)
    others = [name for name in source.splits if name not in (train.name, data.calibration_split, *choice.unlabelled)]
    if val.name == train.name and others:
        notes.append(f"No split is named like a validation split; unused: {listed(others)} (see --val-split).")
    if empty:
        notes.append(f"{len(empty)} of {classes} classes have no training image: {listed(empty)}.")
    return TrainingData(
        name=source.name,
        id=source.id,
        license=source.license,
        homepage=source.homepage,
        train_split=train.name,
        val_split=val.name,
        class_names=targets.class_names,
        fingerprint=digest.hexdigest()[:16],
        preprocessing=resolved,
        mode=plan.mode,
        notes=(*source.notes, *choice.notes, *plan.notes, *notes, *train_notes, *val_notes),
        train=replace(train_samples, transform=transform),
        val=val_samples,
        augmentation=augmentation,
    )


def load_validation(
    data: DataSettings,
    preprocessing: Preprocessing,
    *,
    task: str = "classification",
    classes: list[str] | int,
    held_out: HeldOut | None = None,
) -> ValidationData:
    """Load a dataset for evaluating a trained model; training images are not decoded, and no training split is needed.

    Args:
        data: Source of the images: the rows that training would validate on, or all of `--val-split`. The default
            dataset stands for that of the task.
        preprocessing: That of the model, such as `Preprocessing.from_timm(resolve_data_config({}, model=model))`; in
            segmentation, images keep their own size.
        task: As in `load_data`.
        classes: The model's classes in the order of its outputs, matched to labels by name; or the number of outputs of
            a model without names, which are those of whole-number labels or else in the order of the dataset's classes.
        held_out: The images to load if a run held them out.

    Raises:
        UserError: There is no such dataset, or the model cannot be evaluated on it.
    """
    if data.dataset == DataSettings().dataset:  # which stands for that of the task
        data = replace(data, dataset=default_settings(task).data.dataset)
    source = find_source(data, TARGETS[task].is_dense)
    channels, height, width = preprocessing.input_size
    if channels not in (1, 3):
        raise UserError(f"The model takes images of {channels} channels; only 1 (gray) and 3 (RGB) are supported.")
    choice = Choice(source, data, TARGETS[task], channels == 1)
    split = choice.validation(classes, held_out)
    is_dense = split.targets.is_dense
    transform: SampleTransform = as_is if is_dense else EvalTransform(preprocessing)
    mode = choose_mode(data, lambda: dense_bytes(split) if is_dense else len(split) * channels * height * width)
    samples, unread = _samples(split, mode, transform, data)
    total, held = len(source.splits[split.name]), len(split.rows)
    whose = "the run held out" if held_out else "a run on these data would hold out, and another may have trained on"
    part = f"Of the {total} images of split {split.name}, {held} are scored, those that {whose}; "
    part += f"--val-split {split.name} scores all."
    notes, part = (*source.notes, *choice.notes, *unread), part if held < total else ""
    return ValidationData(source.name, split.name, split.targets.class_names, preprocessing, notes, samples, part=part)


def _samples(split: Split, mode: Mode, kept: SampleTransform, data: DataSettings) -> tuple[Samples, list[str]]:
    """Return the samples of a split, and notes about images that were left out while they were decoded."""
    if mode == "stream":
        return Samples(split, kept, data), []
    cache = decode_all(split, kept, data.bad_images)
    return Samples(cache, as_is, data), left_out(split, cache.bad)


def _measured(samples: Samples, plan: Plan) -> Iterator[Tensor]:
    """Yield training images, uint8 [N, C, H, W], for measuring mean and standard deviation."""
    source = samples.source
    if isinstance(source, Split):
        source = decode_all(source.sample(plan.num_measured), plan.evaluated, "skip")
    if isinstance(source.images, Tensor):
        yield source.images
    else:
        yield from (source.images[place][None] for place in evenly_spaced(len(source), plan.num_measured).tolist())


def _brightness_of_16_bits(split: Split, plan: Plan) -> float:
    """Return the mean, in 0..1, of a few images that have 16 bits; 1 without such images."""
    few = split.sample(GLANCED)
    is_deep = np.array([header.is_deep for header in few.images.headers(few.rows)])
    if not is_deep.any():
        return 1.0
    with suppress(UserError):  # of images that cannot be decoded, which training will name
        images = decode_all(replace(few, rows=few.rows[is_deep]), plan.evaluated, "skip").images
        return max(measure((image[None] for image in images), images[0].shape[0])[0])
    return 1.0
